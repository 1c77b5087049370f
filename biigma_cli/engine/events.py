"""What a training tells while it runs; the engine prints nothing itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class StepEvent:
    """After each optimisation step.

    Attributes:
        epoch: 1-based, of `epochs`.
        step: 1-based within the epoch, of `steps`.
        images_per_s: over the epoch so far, all ranks together.
        lr: learning rate of the step.
        loss: the total that was minimised.
        terms: its unweighted terms by name, see `core.loss.Loss`.
        kernel_mean: mean off-diagonal value of the heads' kernels (1: no spread, 0: saturated);
            None without MICA.
        head_cosine: mean cosine similarity of different heads; None without MICA.
        memory_bytes: memory of the process (CPU) or peak memory allocated on the device (CUDA).
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_s: float
    lr: float
    loss: float
    terms: dict[str, float] = field(default_factory=dict)
    kernel_mean: float | None = None
    head_cosine: float | None = None
    memory_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class PhaseEvent:
    """Progress of work between the steps, in images."""

    phase: Literal["decoding", "backgrounds", "teachers", "validation"]
    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class EpochEvent:
    """After each epoch: its row of `metrics.csv` and whether it is the chosen one so far."""

    epoch: int
    epochs: int
    row: dict[str, float | int]
    best: bool


@dataclass(frozen=True, kw_only=True)
class NoteEvent:
    """One line worth telling."""

    text: str


Event = StepEvent | PhaseEvent | EpochEvent | NoteEvent
