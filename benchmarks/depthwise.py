"""What depthwise convolutions cost in a training step on a CPU, side by side.

    python benchmarks/depthwise.py [--trunk efficientnet_lite0 ...] [--side 160] [--batch 32]

Each trunk takes forward and backward passes in bf16 autocast, channels last, turn by turn: with
torch's own convolutions, and with `core.depthwise.DepthwiseConv2d`, which computes the depthwise
ones in float32. Weights and pictures are the same.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable

import torch
from side_by_side import quartiles, ratio
from torch import nn

from biigma_cli.core.backbone import TRUNKS
from biigma_cli.core.depthwise import DepthwiseConv2d

DEFAULT = ("efficientnet_lite0", "mobilenet_v2")


def as_torch(trunk: nn.Module) -> nn.Module:
    """With torch's own convolutions again."""
    for module in trunk.modules():
        if isinstance(module, DepthwiseConv2d):
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
    return trunk


def passes(trunk: nn.Module, image: torch.Tensor) -> Callable[[], None]:
    """One forward and one backward pass."""
    trunk.to(memory_format=torch.channels_last).train()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            taps = trunk(image)
        sum(tap.float().square().mean() for tap in taps).backward()

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trunk", action="append", choices=list(TRUNKS))
    parser.add_argument("--side", type=int, default=160)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(
        f"{platform.machine()}, torch {torch.__version__}, {args.threads} threads (load "
        f"{load:.1f}); batches of {args.batch} at {args.side}, {args.rounds} rounds"
    )
    image = torch.randn(args.batch, 3, args.side, args.side)
    image = image.contiguous(memory_format=torch.channels_last)
    for name in args.trunk or DEFAULT:
        torch.manual_seed(0)
        ours, plain = TRUNKS[name](), TRUNKS[name]()
        plain.load_state_dict(ours.state_dict())
        steps = {"torch": passes(as_torch(plain), image), "ours": passes(ours, image)}
        taken: dict[str, list[float]] = {who: [] for who in steps}
        for step in steps.values():
            step()
        for turn in range(args.rounds):
            for who in steps if turn % 2 == 0 else reversed(steps):
                start = time.perf_counter()
                steps[who]()
                taken[who].append(time.perf_counter() - start)
        for who, times in taken.items():
            _, middle, _ = quartiles([1000 * t / args.batch for t in times])
            print(f"{name}, {who}: {middle:.1f} ms an image")
        print(ratio(f"{name}, torch over ours", taken["torch"], taken["ours"]).line(36))


if __name__ == "__main__":
    main()
