"""Learning rate and image side over time, and random generators that need no state.

Each step's random numbers come from a generator seeded by (seed, purpose, epoch, step), so a run
that goes on from an epoch's end draws what an uninterrupted run would have drawn.
"""

from __future__ import annotations

import hashlib
import math

import torch

from biigma_cli.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Learning rate of a step, 0-based, of `total`.

    `one_cycle` warms up linearly over `warmup_fraction` of the steps from a 25th of the peak, then
    falls along a cosine to a thousandth of it.
    """
    if config.schedule == "constant":
        return config.lr
    warm = max(1, round(config.warmup_fraction * total))
    if step < warm:
        return config.lr * (0.04 + 0.96 * step / warm)
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
    return config.lr * (0.001 + 0.999 * cosine)


def side_at(config: TrainConfig, epoch: int, side: int) -> int:
    """Image side in an epoch, 0-based; `side` where there are no phases."""
    for phase, epochs in zip(config.sides, config.side_epochs, strict=True):
        if epoch < epochs:
            return phase
        epoch -= epochs
    return side


def generator(seed: int, purpose: str, epoch: int, step: int = 0) -> torch.Generator:
    """A CPU generator for one purpose at one moment."""
    digest = hashlib.sha256(f"{seed}:{purpose}:{epoch}:{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
