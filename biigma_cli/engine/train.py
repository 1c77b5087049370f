"""The training loop. It prints nothing: it calls `on_event`, which the command line displays."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from biigma_cli import __version__
from biigma_cli.config import Config, to_toml
from biigma_cli.core.backbone import resolve_normalisation
from biigma_cli.core.loss import Criterion, Loss
from biigma_cli.core.model import BiigmaNet
from biigma_cli.core.weights import (
    Checkpoint,
    load_checkpoint,
    load_into,
    model_state,
    save_checkpoint,
)
from biigma_cli.data.augment import augment_batch, resize_batch
from biigma_cli.data.images import Part, load_part
from biigma_cli.data.manifest import Manifest
from biigma_cli.data.splits import Split, check_same_split, make_split
from biigma_cli.engine.device import pick_precision
from biigma_cli.engine.evaluate import predict_proba, prepare, to_batch
from biigma_cli.engine.schedule import generator, learning_rate, side_at
from biigma_cli.errors import CheckpointMismatch, TrainingDiverged
from biigma_cli.metrics import evaluate
from biigma_cli.storage import atomic_write_text, write_json

SELECTION = "macro_f1 on the validation part"


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """After each step: where we are, the step's loss terms, and images/s since the epoch began."""

    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_s: float
    loss: float
    terms: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class EpochEvent:
    """After each epoch: its row of `metrics.csv` and whether it is the best so far."""

    epoch: int
    epochs: int
    row: dict[str, float | int]
    best: bool


@dataclass(frozen=True, kw_only=True)
class LoadEvent:
    """While images are decoded."""

    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class NoteEvent:
    """One line worth telling."""

    text: str


Event = StepEvent | EpochEvent | LoadEvent | NoteEvent


@dataclass
class _State:
    """What changes from epoch to epoch."""

    epoch: int = 0
    best_score: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0
    rows: list[dict[str, float | int]] = field(default_factory=list)


class _Average:
    """Exponential moving average of all floating tensors of a model, norms' statistics included."""

    def __init__(self, model: BiigmaNet, decay: float) -> None:
        self.decay = decay
        self.tensors = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: BiigmaNet, step: int) -> None:
        # Early on the average would be mostly the initial weights: shorten its memory.
        decay = min(self.decay, (1 + step) / (10 + step))
        floats, news = [], []
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                floats.append(self.tensors[key])
                news.append(value.detach())
            else:
                self.tensors[key].copy_(value)
        torch._foreach_lerp_(floats, news, 1 - decay)


def train(
    config: Config,
    manifest: Manifest,
    run: Path,
    *,
    device: torch.device,
    resume: bool = False,
    command: str = "",
    on_event: Callable[[Event], None] = lambda _: None,
) -> dict[str, Any]:
    """Train, choosing the epoch with the best macro-F1 on the validation part.

    The test part is cut off and never decoded here. The run folder gets `config.toml`,
    `split.json`, `metrics.csv`, `weights/best.safetensors`, `weights/last.safetensors` and, at the
    end, `summary.json`, each written whole or not at all. Killed at any time, a run goes on from
    its last finished epoch with `resume`, and on the CPU ends with the same weights.

    Returns:
        the summary.

    Raises:
        TrainingDiverged: the loss became NaN or infinite; names the batch and the last good epoch.
        CheckpointMismatch: `resume` with another config, data set or split.
    """
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model,
            normalisation=resolve_normalisation(config.model),  # type: ignore[arg-type]
        ),
    )
    split = make_split(manifest, config.data)
    last_path, best_path = (
        run / "weights" / "last.safetensors",
        run / "weights" / "best.safetensors",
    )
    last = load_checkpoint(last_path) if resume else None
    if last is not None:
        _check_resumable(last, config, split)
    first = None
    if config.train.init and last is None:
        first = load_checkpoint(Path(config.train.init))
        # Another split would have shown the network images that are test images here.
        check_same_split(split, first.meta["split"], source=config.train.init)
    # Built before anything is written or decoded: weights that do not fit end it here.
    codes = list(manifest.taxonomy.codes)
    torch.manual_seed(config.train.seed)
    fresh = last is None and first is None
    model = BiigmaNet(config.model, len(codes), load_weights=fresh)
    if first is not None:
        load_into(model, first, classes=codes)
    model = prepare(model, device)
    atomic_write_text(run / "config.toml", to_toml(config))
    atomic_write_text(run / "split.json", split.to_json())

    parts: dict[str, Part] = {}
    for name in ("train", "val"):
        parts[name] = load_part(
            manifest,
            split.part(name),
            config.data.side,
            rule=config.data.resize,
            build=True,
            progress=lambda done, total: on_event(LoadEvent(done=done, total=total)),
            warn=lambda text: on_event(NoteEvent(text=text)),
        )
        on_event(NoteEvent(text=f"{len(parts[name].ids)} {name} images"))
    precision = pick_precision(config.train.precision, device)
    on_event(NoteEvent(text=f"training on {device} in {precision}"))

    counts = torch.from_numpy(np.bincount(parts["train"].labels, minlength=len(codes)))
    criterion = Criterion(config.loss, config.model, counts).to(device)
    optimizer = _optimizer(model, config)
    average = _Average(model, config.train.ema) if config.train.ema else None
    state = _State()
    if last is not None:
        state = _restore(last, model, optimizer, average)
        on_event(NoteEvent(text=f"resumed after epoch {state.epoch}"))

    def meta(row: dict[str, float | int]) -> dict[str, Any]:
        return {
            "config": config.to_dict(),
            "classes": codes,
            "split": split.summary(),
            "protocol": split.title,
            "licence": manifest.licence,
            "citation": manifest.citation,
            "epoch": state.epoch,
            "selection": SELECTION,
            "validation": {k: v for k, v in row.items() if k.startswith("val_")},
            "versions": versions(),
            "command": (last.meta.get("command") if last else None) or command,
        }

    data = _TrainData(parts["train"], device)
    while state.epoch < config.train.epochs:
        started = time.perf_counter()
        row = _train_epoch(
            model, criterion, optimizer, average, data, config, state.epoch, device, precision,
            on_event, last_good=last_path if state.epoch else None,
        )  # fmt: skip
        judged = _with_average(model, average) if average else model
        # In float32, as the exported model will run: in bf16 other epochs look best.
        proba = predict_proba(judged, parts["val"].pixels, device=device)
        figures = evaluate(parts["val"].labels, proba.argmax(1), codes)
        picked = np.clip(proba[np.arange(len(proba)), parts["val"].labels], 1e-12, 1)
        row |= {f"val_{k}": v for k, v in figures.headline().items()}
        row["val_log_loss"] = float(-np.log(picked).mean())
        row["seconds"] = time.perf_counter() - started
        state.epoch += 1
        state.seconds += float(row["seconds"])
        state.rows.append(row)
        is_best = figures.macro_f1 > state.best_score
        if is_best:
            state.best_score, state.best_epoch = figures.macro_f1, state.epoch
            save_checkpoint(best_path, model_state(judged), meta(row))
        _save_last(last_path, model, optimizer, average, state, meta(row))
        atomic_write_text(run / "metrics.csv", _as_csv(state.rows))
        on_event(EpochEvent(epoch=state.epoch, epochs=config.train.epochs, row=row, best=is_best))
    summary = {
        "run": run.name,
        "dataset": manifest.dataset,
        "protocol": split.title,
        "split": split.summary(),
        "selection": SELECTION,
        "best_epoch": state.best_epoch,
        "best_val_macro_f1": state.best_score,
        "epochs": state.epoch,
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": str(device),
        "precision": precision,
        "seconds": round(state.seconds, 1),
        "versions": versions(),
    }
    write_json(run / "summary.json", summary)
    return summary


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    import torchvision

    return {
        "biigma": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


class _TrainData:
    """The training part on the device, in batches of a random order."""

    def __init__(self, part: Part, device: torch.device) -> None:
        self.part = part
        self.pixels = torch.from_numpy(part.pixels).to(device)
        self.labels = torch.from_numpy(part.labels).to(device)

    def batches(self, config: Config, epoch: int) -> list[Tensor]:
        """Index batches of an epoch; a last, smaller one is left out (batch norm)."""
        order = torch.randperm(
            len(self.labels), generator=generator(config.train.seed, "order", epoch)
        )
        size = min(config.train.batch_size, len(order))
        return [order[i : i + size] for i in range(0, len(order) - size + 1, size)]


def _train_epoch(
    model: BiigmaNet,
    criterion: Criterion,
    optimizer: torch.optim.Optimizer,
    average: _Average | None,
    data: _TrainData,
    config: Config,
    epoch: int,
    device: torch.device,
    precision: str,
    on_event: Callable[[Event], None],
    *,
    last_good: Path | None,
) -> dict[str, float | int]:
    """One pass over the training part; returns its row of `metrics.csv`, without validation."""
    tc = config.train
    side = side_at(tc, epoch, config.data.side)
    sample = config.model.sampling and epoch >= tc.sampling_start_epoch
    batches = data.batches(config, epoch)
    total = tc.epochs * len(batches)
    sums: dict[str, float] = {}
    model.train()
    started = time.perf_counter()
    seen = 0
    for step, index in enumerate(batches):
        overall = epoch * len(batches) + step
        lr = learning_rate(tc, overall, total)
        for group in optimizer.param_groups:
            group["lr"] = lr
        draws = generator(tc.seed, "step", epoch, step)
        # Dropout draws from the global generators.
        torch.manual_seed(int(torch.randint(2**62, (), generator=draws)))
        on_device = index.to(device)
        image = resize_batch(to_batch(data.pixels[on_device], device), side)
        if tc.augment:
            image = augment_batch(image, draws)
            image = image.contiguous(memory_format=torch.channels_last)
        target = data.labels[on_device]
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            output = model(image, sample=sample, generator=draws)
        loss: Loss = criterion(output, target, model)
        value = loss.total.item()
        if not math.isfinite(value):
            ids = [data.part.ids[i] for i in index.tolist()]
            kept = f"the last good checkpoint is {last_good}" if last_good else "no epoch was done"
            raise TrainingDiverged(
                f"the loss is {value} in epoch {epoch + 1}, step {step + 1}; {kept}; "
                f"images of the batch: {', '.join(ids[:8])} and {max(0, len(ids) - 8)} more",
                fix="lower train.lr, or set train.grad_clip and train.precision=fp32",
            )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss.total)
        if tc.grad_clip:
            nn.utils.clip_grad_norm_(model.parameters(), tc.grad_clip)
        optimizer.step()
        if average:
            average.update(model, overall)
        seen += len(index)
        terms = {name: float(term) for name, term in loss.terms.items()}
        logged = {"loss": value, **terms}
        if loss.independence is not None:
            cosine = loss.independence.cosine_KK
            k = len(cosine)
            logged["kernel_mean"] = float(loss.independence.kernel_mean)
            logged["head_cosine"] = float((cosine.sum() - cosine.trace()) / max(1, k * (k - 1)))
        for name, number in logged.items():
            sums[name] = sums.get(name, 0.0) + number
        on_event(
            StepEvent(
                epoch=epoch + 1,
                epochs=tc.epochs,
                step=step + 1,
                steps=len(batches),
                images_per_s=seen / (time.perf_counter() - started),
                loss=value,
                terms=terms,
            )
        )
    return {
        "epoch": epoch + 1,
        "side": side,
        "lr": lr,
        "images_per_s": seen / (time.perf_counter() - started),
        **{name: number / len(batches) for name, number in sums.items()},
    }


def _optimizer(model: BiigmaNet, config: Config) -> torch.optim.Optimizer:
    if config.train.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=config.train.lr)
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": config.train.weight_decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.train.lr)


def _with_average(model: BiigmaNet, average: _Average) -> BiigmaNet:
    """A copy of the network that holds the averaged weights."""
    copy = BiigmaNet(model.config, model.head.out_features, load_weights=False)
    copy.load_state_dict(average.tensors)
    return prepare(copy, next(model.parameters()).device).eval()


def _save_last(
    path: Path,
    model: BiigmaNet,
    optimizer: torch.optim.Optimizer,
    average: _Average | None,
    state: _State,
    meta: dict[str, Any],
) -> None:
    tensors = model_state(model)
    for i, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            tensors[f"optim.{i}.{name}"] = torch.as_tensor(value)
    if average:
        tensors |= {f"ema.{k}": v for k, v in average.tensors.items()}
    save_checkpoint(path, tensors, {**meta, "state": dataclasses.asdict(state)})


def _restore(
    last: Checkpoint,
    model: BiigmaNet,
    optimizer: torch.optim.Optimizer,
    average: _Average | None,
) -> _State:
    def under(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in last.tensors.items() if k.startswith(prefix)}

    model.load_state_dict(under("model."))
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in under("optim.").items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    if average:
        device = next(model.parameters()).device
        average.tensors = {k: v.to(device) for k, v in under("ema.").items()}
    return _State(**last.meta["state"])


def _check_resumable(last: Checkpoint, config: Config, split: Split) -> None:
    differences = [
        f"{section}.{key}: {old} -> {values[key]}"
        for section, values in config.to_dict().items()
        for key, old in last.meta["config"].get(section, {}).items()
        if key in values and values[key] != old
    ]
    stored = last.meta["split"]
    for key in ("data_hash", "split_hash"):
        if stored[key] != getattr(split, key):
            differences.append(f"{key}: {stored[key][:12]} -> {getattr(split, key)[:12]}")
    if differences:
        raise CheckpointMismatch(
            "the run was started with other settings or data:\n  " + "\n  ".join(differences),
            fix="resume with the same settings, or start a new run with --name",
        )


def _as_csv(rows: list[dict[str, float | int]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


__all__ = ["EpochEvent", "Event", "LoadEvent", "NoteEvent", "StepEvent", "train"]
