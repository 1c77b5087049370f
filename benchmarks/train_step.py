"""What one training step of BIIGMA-Net costs beside its bare trunk's, and beside a plain reading.

Networks take whole steps (gradients cleared, forward, loss, backward, optimizer) on one batch,
turn by turn so that a noisy machine is noisy for all:

    bare      torchvision's trunk with its own classifier, cross-entropy
    biigma    BIIGMA-Net as the preset has it: `paper-isic18`, or `light` with MobileNetV2
    no-indep  the same without the loss on independence (Eq. 3)
    indep     that loss alone, forward and backward: its share of a step, less noisy than the
              difference of the two above
    plain     the paper read straight down: a loop over heads, for each ordered pair both Gram
              matrices computed anew and multiplied by centring matrices; contiguous, float32

All but the last share precision (bf16 autocast where the device computes it natively) and layout
(channels last); all share batch, trunk and optimizer (AdamW, fused where it can be).

    python benchmarks/train_step.py [--device cuda] [--batch 32] [--trunk mobilenet_v2] [--profile]

On a CPU that others use as well, `--cpu-time` counts one thread's own seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import permutations
from pathlib import Path

import torch
import torchvision
from side_by_side import Ratio, ratio
from torch import Tensor, nn
from torch.nn import functional as F

from biigma_cli.config import Config, ModelConfig, preset
from biigma_cli.core.backbone import TRUNKS
from biigma_cli.core.loss import Criterion
from biigma_cli.core.mica import Heads
from biigma_cli.core.model import BiigmaNet
from biigma_cli.engine.device import pick_device, pick_precision

CLASSES = 7
PRESETS = {"densenet121": ("paper-isic18", 224), "mobilenet_v2": ("light", 160)}
RATIO_TARGET = {"cpu": 1.15, "cuda": 1.20}
SHARE_TARGET = 0.03


@dataclass(kw_only=True)
class Contender:
    """One network with all that its step needs, and the times seen so far.

    Attributes:
        optimizer: None for a part of a step.
        loss: forward pass and loss of the batch.
        seconds: of each timed step.
        peak_bytes: most device memory held at once in a step, its own weights, gradients and
            optimizer state included; 0 on the CPU.
    """

    name: str
    title: str
    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    loss: Callable[[], Tensor]
    slow: bool = False
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def step(self) -> None:
        """One whole training step."""
        self.model.zero_grad(set_to_none=True)
        self.loss().backward()
        if self.optimizer is not None:
            self.optimizer.step()

    def own_bytes(self) -> int:
        """Device memory held between steps."""
        held = [*self.model.parameters(), *self.model.buffers()]
        held += [p.grad for p in self.model.parameters() if p.grad is not None]
        for state in self.optimizer.state.values() if self.optimizer is not None else ():
            held += [value for value in state.values() if isinstance(value, Tensor)]
        return sum(t.numel() * t.element_size() for t in held if t.device.type == "cuda")


class PlainHead(nn.Module):
    """1x1 convolution, ReLU and squeeze-and-excitation: one head."""

    def __init__(self, channels: int, width: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, width // reduction)
        self.project = nn.Conv2d(channels, width, 1, bias=False)
        self.squeeze = nn.Linear(width, hidden, bias=False)
        self.excite = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.project(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class PlainNet(nn.Module):
    """BIIGMA-Net as a reader of the paper would first write it down."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.trunk = TRUNKS[config.trunk]()
        channels = self.trunk.channels
        width = config.projection_channels or channels[-1]
        self.heads = nn.ModuleList(
            PlainHead(channels[-1], width, config.se_reduction) for _ in range(config.heads)
        )
        self.adapters = nn.ModuleList(nn.Conv2d(c, config.adapter_channels, 1) for c in channels)
        self.head = nn.Linear(config.heads * width, CLASSES)

    def classify(self, feat: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits from the gated maps, concatenated and pooled; and the maps."""
        heads = [head(feat) for head in self.heads]
        return self.head(torch.cat(heads, 1).mean((2, 3))), heads

    def saliency(self, taps: tuple[Tensor, ...]) -> Tensor:
        """Eq. 5 after pruning, `(B, 1, H, W)`."""
        size = taps[-1].shape[-1]
        stack = torch.cat(
            [
                F.max_pool2d(adapter(tap), tap.shape[-1] // size)
                for adapter, tap in zip(self.adapters, taps, strict=True)
            ],
            1,
        )
        variance = stack.var((2, 3), correction=0)
        keep = (variance >= variance.mean(1, keepdim=True)).float()[:, :, None, None]
        return torch.sigmoid((stack * keep).sum(1, keepdim=True) / keep.sum(1, keepdim=True))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits of both branches, and the gated maps of the first."""
        taps = self.trunk(image / 255)
        feat = taps[-1]
        logits, heads = self.classify(feat)
        m = self.saliency(taps)
        inverse = 1 - m
        b, c, h, w = feat.shape
        vectors = (feat * inverse).permute(0, 2, 3, 1).reshape(-1, c)
        background = vectors[(vectors != 0).any(1)]
        drawn = background[torch.randint(len(background), (b * h * w,), device=feat.device)]
        theta = drawn.reshape(b, h, w, c).permute(0, 3, 1, 2)
        return logits, self.classify(m * feat + inverse * theta)[0], heads


def plain_gram(head: Tensor, sigma: float) -> Tensor:
    """RBF Gram matrices of one head's positions, `(B, N, N)`."""
    vectors = head.flatten(2).transpose(1, 2)
    squares = vectors.square().sum(-1)
    d2 = squares[:, :, None] + squares[:, None] - 2 * vectors @ vectors.transpose(1, 2)
    return torch.exp(-d2.clamp_min(0) / (2 * sigma**2))


def plain_independence(heads: list[Tensor], sigma: float) -> Tensor:
    """Eq. 2 and the first term of Eq. 3, pair by pair."""
    n = heads[0].shape[2] * heads[0].shape[3]
    centring = torch.eye(n, device=heads[0].device) - 1 / n
    total = heads[0].new_zeros(())
    for one, two in permutations(heads, 2):
        product = plain_gram(one, sigma) @ centring @ plain_gram(two, sigma) @ centring
        trace = product.diagonal(dim1=1, dim2=2).sum(1)
        total = total + (trace / n**2).mean()
    return total / len(heads) ** 2


def optimizer_for(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW at a rate that hardly moves the weights, so that all steps do the same work."""
    params = list(model.parameters())
    fused = params[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(params, lr=1e-6, fused=fused)


def contenders(
    config: Config, *, batch: int, side: int, device: torch.device, precision: str
) -> list[Contender]:
    """All four, on the device, with one batch of noise between them."""
    torch.manual_seed(0)
    image = 255 * torch.rand(batch, 3, side, side)
    target = (torch.arange(batch) % CLASSES).to(device)
    last = image.to(device).contiguous(memory_format=torch.channels_last)
    contiguous = image.to(device)
    draws = torch.Generator().manual_seed(0)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    def as_trained(model: nn.Module) -> nn.Module:
        return model.to(device).to(memory_format=torch.channels_last).train()

    bare = as_trained(getattr(torchvision.models, config.model.trunk)(num_classes=CLASSES))

    def bare_loss() -> Tensor:
        with autocast():
            logits = bare(last / 255)
        return F.cross_entropy(logits.float(), target)

    counts = torch.bincount(target.cpu(), minlength=CLASSES)
    criterion = Criterion(config.loss, config.model, counts).to(device)

    def biigma_loss(model: BiigmaNet, *, independence: bool) -> Tensor:
        with autocast():
            output = model(last, sample=True, generator=draws)
        # Without the heads' maps the criterion has nothing to compare and leaves Eq. 3 out.
        output = output if independence else output._replace(heads=None)
        return criterion(output, target, model).total

    full, without = (BiigmaNet(config.model, CLASSES, load_weights=False) for _ in range(2))
    as_trained(full)
    as_trained(without)

    with torch.no_grad(), autocast():
        seen = full(last)

    def independence_loss() -> Tensor:
        leaves = [t.detach().requires_grad_() for t in seen.heads[:2]]
        with autocast():
            heads = Heads(*leaves, pooled_BKD=seen.heads.pooled_BKD)
            return criterion(seen._replace(heads=heads), target, full).total

    plain = PlainNet(config.model).to(device).train()
    weight = criterion.weight_Y

    def plain_loss() -> Tensor:
        logits, hybrid, heads = plain(contiguous)
        l2 = torch.stack([h.project.weight.square().mean() for h in plain.heads]).mean()
        return (
            F.cross_entropy(logits, target, weight)
            + F.cross_entropy(hybrid, target, weight)
            + plain_independence(heads, config.model.sigma)
            + l2
        )

    rows: list[tuple[str, str, nn.Module, Callable[[], Tensor], bool]] = [
        ("bare", f"torchvision {config.model.trunk}", bare, bare_loss, False),
        ("biigma", "BIIGMA-Net", full, lambda: biigma_loss(full, independence=True), False),
        (
            "no-indep",
            "BIIGMA-Net without L_indep",
            without,
            lambda: biigma_loss(without, independence=False),
            False,
        ),
        ("indep", "L_indep alone", full, independence_loss, False),
        ("plain", "plain reading, float32", plain, plain_loss, device.type == "cpu"),
    ]
    return [
        Contender(
            name=name,
            title=title,
            model=model,
            optimizer=optimizer_for(model) if name != "indep" else None,
            loss=loss,
            slow=slow,
        )
        for name, title, model, loss, slow in rows
    ]


Clock = Callable[[], float]


@contextmanager
def timed(contender: Contender, device: torch.device, clock: Clock) -> Iterator[None]:
    """Add the block's time, and its peak of device memory, to the contender."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device) - contender.own_bytes()
        torch.cuda.reset_peak_memory_stats(device)
    started = clock()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        contender.peak_bytes = max(contender.peak_bytes, peak)
    contender.seconds.append(clock() - started)


def measure(
    entries: list[Contender],
    *,
    repeats: int,
    warmup: int,
    device: torch.device,
    clock: Clock = time.perf_counter,
    limit: float = 0,
) -> None:
    """Steps of all contenders in turn; a slow one takes part in every fifth round.

    No round begins after `limit` seconds, where that is not 0, but for the first.
    """
    started = time.perf_counter()
    for number in range(-warmup, repeats):
        if limit and number > 0 and time.perf_counter() - started > limit:
            break
        for entry in entries:
            if entry.slow and (number % 5 if number >= 0 else number < -1):
                continue
            with timed(entry, device, clock):
                entry.step()
            if number < 0:
                entry.seconds.clear()


def compare(what: str, one: list[float], two: list[float], target: float | None) -> Ratio:
    """`one` over `two`; rounds are paired, every fifth of `two` where `one` is slow."""
    if len(one) < len(two):
        two = two[::5]
    return ratio(what, one, two, target)


def ratios(entries: list[Contender], device: torch.device) -> list[Ratio]:
    """The quotients that the targets speak of."""
    times = {entry.name: entry.seconds for entry in entries}
    found = [
        compare("biigma / bare", times["biigma"], times["bare"], RATIO_TARGET.get(device.type)),
        compare("indep / biigma", times["indep"], times["biigma"], SHARE_TARGET),
        compare("biigma / no-indep", times["biigma"], times["no-indep"], None),
    ]
    if "plain" in times:
        found.append(compare("plain / biigma", times["plain"], times["biigma"], None))
    return found


def report(entries: list[Contender], found: list[Ratio], heading: str, batch: int) -> str:
    """The table, the ratios and their targets."""
    lines = [heading, f"{'network':<36}{'ms a step':>11}{'min':>9}{'images/s':>10}{'steps':>7}"]
    memory = any(entry.peak_bytes for entry in entries)
    lines[-1] += f"{'peak MiB':>10}" if memory else ""
    for entry in entries:
        median = statistics.median(entry.seconds)
        lines.append(
            f"{f'{entry.name}: {entry.title}':<36}{1e3 * median:11.1f}"
            f"{1e3 * min(entry.seconds):9.1f}"
            + (f"{batch / median:10.1f}" if entry.optimizer is not None else f"{'':10}")
            + f"{len(entry.seconds):7d}"
            + (f"{entry.peak_bytes / 2**20:10.0f}" if memory else "")
        )
    lines.append("")
    lines += [each.line() for each in found]
    return "\n".join(lines)


def profile(entry: Contender, device: torch.device) -> str:
    """The ten operators that cost one contender's step the most."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    entry.step()
    with torch.profiler.profile(activities=activities) as trace:
        for _ in range(3):
            entry.step()
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    table: str = trace.key_averages().table(sort_by=order, row_limit=10, max_name_column_width=40)
    return table


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--trunk", choices=PRESETS, default="densenet121")
    parser.add_argument("--batch", type=int, default=0, help="default: 16, on a GPU 32")
    parser.add_argument("--side", type=int, default=0, help="default: 224; MobileNetV2: 160")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--threads", type=int, default=0, help="default: torch's choice")
    parser.add_argument("--repeats", type=int, default=0, help="default: 15, on a GPU 50")
    parser.add_argument("--warmup", type=int, default=0, help="default: 2, on a GPU 10")
    parser.add_argument("--seconds", type=float, default=0, help="begin no round after so long")
    parser.add_argument("--cpu-time", action="store_true", help="see above; implies --threads 1")
    parser.add_argument("--skip-plain", action="store_true", help="leave the plain reading out")
    parser.add_argument("--profile", action="store_true", help="also list biigma's operators")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = parse()
    device = pick_device(options.device)
    on_gpu = device.type == "cuda"
    if options.cpu_time and on_gpu:
        raise SystemExit("--cpu-time is for --device cpu")
    threads = 1 if options.cpu_time else options.threads
    if threads:
        torch.set_num_threads(threads)
    batch = options.batch or (32 if on_gpu else 16)
    repeats = options.repeats or (50 if on_gpu else 15)
    warmup = options.warmup or (10 if on_gpu else 2)
    name, default_side = PRESETS[options.trunk]
    side = options.side or default_side
    precision = pick_precision(options.precision, device)
    config = preset(name)
    # The network alone is measured: random weights cost as much as trained ones.
    model = {**asdict(config.model), "weights": "none", "normalisation": "unit"}
    config = Config(model=ModelConfig(**model), loss=config.loss)
    if on_gpu:
        torch.backends.cudnn.benchmark = True
    entries = contenders(config, batch=batch, side=side, device=device, precision=precision)
    if options.skip_plain:
        entries = [entry for entry in entries if entry.name != "plain"]
    measure(
        entries,
        repeats=repeats,
        warmup=warmup,
        device=device,
        clock=time.thread_time if options.cpu_time else time.perf_counter,
        limit=options.seconds,
    )
    found = ratios(entries, device)
    where = torch.cuda.get_device_name(device) if on_gpu else f"{torch.get_num_threads()} threads"
    heading = (
        f"{options.trunk} at {side}, batch {batch}, {precision}, {device.type} ({where}), "
        f"torch {torch.__version__}" + (", CPU time" if options.cpu_time else "")
    )
    print(report(entries, found, heading, batch))
    if options.profile:
        print(profile(next(e for e in entries if e.name == "biigma"), device))
    if options.json:
        rows = [{"name": e.name, "seconds": e.seconds, "peak_bytes": e.peak_bytes} for e in entries]
        record = {"setting": heading, "steps": rows, "ratios": [asdict(r) for r in found]}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
