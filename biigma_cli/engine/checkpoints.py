"""The whole state of a training on disk: the last two checkpoints, and how they are read."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from biigma_cli.config import Config
from biigma_cli.core.model import BiigmaNet
from biigma_cli.core.weights import Checkpoint, load_checkpoint, model_state, save_checkpoint
from biigma_cli.data.splits import Split
from biigma_cli.engine.average import Average
from biigma_cli.errors import CheckpointMismatch, ModelFileError
from biigma_cli.storage import write_error

Row = dict[str, float | int]


@dataclass
class State:
    """What changes while a training runs, apart from tensors. Random numbers need no state.

    Attributes:
        epoch: finished epochs.
        step: steps done in the epoch under way.
        best_score: of the chosen epoch, by the rule of `train.select`; higher is better.
        best_epoch: the chosen epoch, 1-based; 0 while there is none.
        seconds: wall time of the finished epochs.
        rows: of `metrics.csv`.
        columns: of it, in their order, which the rows do not keep in a checkpoint.
        first_loss: of the run's first step; divergence is judged by it.
        names: of what is summed over the epoch under way.
        sums: their sums over `step` steps.
        spent: wall time of the epoch under way.
        waited: of that, waiting for data.
    """

    epoch: int = 0
    step: int = 0
    best_score: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    first_loss: float = 0.0
    names: list[str] = field(default_factory=list)
    sums: list[float] = field(default_factory=list)
    spent: float = 0.0
    waited: float = 0.0


class RunFiles:
    """Paths of a run folder.

    Attributes:
        last_is_whole: whether `last`, if it is there, can be read as far as is known.
    """

    def __init__(self, run: Path) -> None:
        self.last_is_whole = True
        self.run = run
        self.best = run / "weights" / "best.safetensors"
        self.last = run / "weights" / "last.safetensors"
        self.previous = run / "weights" / "previous.safetensors"

    def save_last(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Write the newest checkpoint; the one before it stays as `previous`.

        At every moment one of the two is whole: one that `newest` could not read takes the place
        of none. Raises `BiigmaError` where the disk is full.
        """
        if self.last_is_whole and self.last.exists():
            spare = self.previous.with_suffix(".new~")
            with contextlib.suppress(FileNotFoundError):
                spare.unlink()
            try:
                os.link(self.last, spare)
            except OSError:  # a file system without hard links
                try:
                    shutil.copyfile(self.last, spare)
                except OSError as error:
                    with contextlib.suppress(OSError):
                        spare.unlink()
                    raise write_error(spare, error) from error
            spare.replace(self.previous)
        save_checkpoint(self.last, tensors, meta)
        self.last_is_whole = True

    def whole(self) -> Path | None:
        """The newest of the two that is whole; None where none was written."""
        there = (self.last if self.last_is_whole else None, self.previous)
        return next((path for path in there if path is not None and path.is_file()), None)

    def newest(self) -> tuple[Checkpoint, Path]:
        """The newest checkpoint that can be read and gone on from, and where it lies.

        Raises `ModelFileError` where there is none.
        """
        problems = []
        for path in (self.last, self.previous):
            try:
                checkpoint = load_checkpoint(path)
                if "state" not in checkpoint.meta:
                    problems.append(f"{path} holds no training state")
                elif not finite_weights(checkpoint.tensors):  # older versions wrote such
                    problems.append(f"{path} holds weights that are not finite")
                else:
                    self.last_is_whole = path == self.last
                    return checkpoint, path
            except ModelFileError as error:
                problems.append(error.message)
        raise ModelFileError(
            f"{self.run} has no checkpoint to go on from: " + "; ".join(problems),
            fix="start it again under another name",
        )


def training_tensors(
    model: BiigmaNet, optimizer: torch.optim.Optimizer, average: Average | None
) -> dict[str, Tensor]:
    """Everything that a training needs to go on: weights, optimizer, average."""
    tensors = model_state(model)
    for i, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            tensors[f"optim.{i}.{name}"] = torch.as_tensor(value)
    if average:
        tensors |= {f"ema.{k}": v for k, v in average.tensors.items()}
    return tensors


def finite_weights(tensors: dict[str, Tensor]) -> bool:
    """Whether the network of a checkpoint, and its average, hold no NaN and nothing infinite.

    Makes the host wait for the device, once.
    """
    return all_finite(v for k, v in tensors.items() if k.startswith(("model.", "ema.")))


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether floating tensors, the others apart, hold no NaN and nothing infinite."""
    floats = [t for t in tensors if t.is_floating_point()]
    return bool(nn.utils.get_total_norm(floats, math.inf).isfinite())


def restore(
    last: Checkpoint,
    model: BiigmaNet,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
) -> State:
    """Fill model, optimizer and average from a checkpoint; returns the rest of the state."""

    def under(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in last.tensors.items() if k.startswith(prefix)}

    model.load_state_dict(under("model."))
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in under("optim.").items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    # A fused optimizer walks weights and moments in the order of memory: they must lie alike.
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter).copy_(value)
    if average:
        device = next(model.parameters()).device
        average.tensors = {k: v.to(device) for k, v in under("ema.").items()}
    known = {f.name for f in dataclasses.fields(State)}
    return State(**{k: v for k, v in last.meta["state"].items() if k in known})


def check_resumable(
    last: Checkpoint,
    config: Config,
    split: Split,
    teachers: Mapping[str, str] = MappingProxyType({}),
    extra: Sequence[dict[str, Any]] = (),
    masks: str = "",
) -> None:
    """Raise `CheckpointMismatch` that lists what differs from when the run was started.

    Args:
        teachers: digests of the teachers' files, see `Teachers`.
        extra: summaries of the extra data sets, see `Extra`.
        masks: digest of the lesion masks that are trained with; "" for none. Checkpoints of older
            versions do not know theirs.
    """
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
    before = {e["dataset"]: e["split_hash"] for e in last.meta.get("extra", [])}
    differences += [
        f"data.extra, {e['dataset']}: {str(before.get(e['dataset']))[:12]} -> "
        f"{e['split_hash'][:12]}"
        for e in extra
        if before.get(e["dataset"]) != e["split_hash"]
    ]
    for path, digest in teachers.items():
        old = last.meta.get("teachers", {}).get(path)
        if old != digest:
            differences.append(f"teacher {path}: file {str(old)[:12]} -> {digest[:12]}")
    old = last.meta.get("masks")
    if masks and old and old != masks:
        differences.append(f"lesion masks: {old[:12]} -> {masks[:12]}")
    if differences:
        raise CheckpointMismatch(
            "the run was started with other settings or data:\n  " + "\n  ".join(differences),
            fix="resume with the same settings, or start a new run with --name",
        )
