"""Checkpoints: tensors in safetensors, everything else as JSON in its header; no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from biigma_cli.config import Config, fill_older, from_dict
from biigma_cli.core.header import CHECKPOINT, decoded, is_ours
from biigma_cli.core.model import BiigmaNet
from biigma_cli.errors import CheckpointMismatch, ModelFileError
from biigma_cli.storage import atomic_write_bytes


class Checkpoint(NamedTuple):
    """A checkpoint as read.

    Attributes:
        tensors: by name; the network's start with `model.`, the optimizer's with `optim.`.
        meta: `config`, `classes`, `split`, `epoch`, `metrics` and whatever else was saved.
    """

    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    @property
    def config(self) -> Config:
        """The run's resolved config."""
        return from_dict(fill_older(self.meta["config"]))


def save_checkpoint(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write a checkpoint atomically: the old file stays whole until the new one is complete."""
    plain = {k: v.detach().to("cpu").contiguous() for k, v in tensors.items()}
    header = {"format": CHECKPOINT, "biigma": json.dumps(meta, sort_keys=True)}
    atomic_write_bytes(path, save(plain, metadata=header))


def is_checkpoint(path: Path) -> bool:
    """Whether a safetensors file is a checkpoint of ours; False where it cannot be read."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return is_ours(file.metadata())
    except (SafetensorError, OSError):
        return False


def load_checkpoint(path: Path, *, tensors: bool = True) -> Checkpoint:
    """Read a checkpoint, or with `tensors=False` its header alone.

    Raises `ModelFileError` where it is missing, corrupt or not ours.
    """
    if not path.is_file():
        raise ModelFileError(f"no checkpoint at {path}", fix="check the path, or train first")
    try:
        with safe_open(str(path), framework="pt") as file:
            meta = file.metadata() or {}
            if not is_ours(meta):
                raise ModelFileError(
                    f"{path} was not written by biigma (format {meta.get('format')!r})",
                    fix="give a checkpoint from a run's weights folder",
                )
            found = {k: file.get_tensor(k) for k in file.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path} is not a readable checkpoint: {error}", fix="use another checkpoint"
        ) from error
    return Checkpoint(found, decoded(meta, path))


def model_state(model: BiigmaNet) -> dict[str, Tensor]:
    """The network's tensors under the names a checkpoint uses."""
    return {f"model.{k}": v for k, v in model.state_dict().items()}


def load_model(checkpoint: Checkpoint, *, classes: list[str] | None = None) -> BiigmaNet:
    """The trained network, in eval mode.

    Args:
        classes: class codes the caller works with; None takes the checkpoint's.

    Raises:
        CheckpointMismatch: its classes are others, or its tensors do not fit its own config.
    """
    own = list(checkpoint.meta["classes"])
    model = BiigmaNet(checkpoint.config.model, len(own), load_weights=False)
    load_into(model, checkpoint, classes=classes or own)
    return model.eval()


def load_into(model: BiigmaNet, checkpoint: Checkpoint, *, classes: list[str]) -> None:
    """Fill `model` with a checkpoint's tensors.

    Args:
        classes: class codes the caller works with.

    Raises:
        CheckpointMismatch: its classes are others, or its tensors do not fit the model.
    """
    check_classes(list(checkpoint.meta["classes"]), classes)
    state = {
        k.removeprefix("model."): v for k, v in checkpoint.tensors.items() if k.startswith("model.")
    }
    wanted = model.state_dict()
    wrong = sorted(set(wanted) ^ set(state)) or [
        f"{k} is {tuple(state[k].shape)}, expected {tuple(wanted[k].shape)}"
        for k in wanted
        if wanted[k].shape != state[k].shape
    ]
    if wrong:
        raise CheckpointMismatch(
            f"the checkpoint's tensors do not fit the network: {wrong[:3]}",
            fix="give the network the settings the checkpoint was trained with",
        )
    with torch.no_grad():
        model.load_state_dict(state)


def check_classes(own: list[str], classes: list[str], *, source: str = "the checkpoint") -> None:
    """Raise `CheckpointMismatch` where a network's classes are not those of the data."""
    if classes != own:
        raise CheckpointMismatch(
            f"{source} has {len(own)} classes ({', '.join(own)}), the data has "
            f"{len(classes)} ({', '.join(classes)})",
            fix="use the data set it was trained on",
        )
