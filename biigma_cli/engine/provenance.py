"""What a checkpoint says of where it comes from: versions, source commit, earlier networks."""

from __future__ import annotations

import contextlib
import itertools
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from biigma_cli import __version__
from biigma_cli.config import ModelConfig
from biigma_cli.core.efficientnet import SCALING, weights_package
from biigma_cli.core.exported import exported_file, read_metadata
from biigma_cli.core.sources import shares_images, sources_of
from biigma_cli.core.weights import Checkpoint, is_checkpoint, load_checkpoint
from biigma_cli.data.splits import Split
from biigma_cli.errors import CheckpointMismatch


def versions(model: ModelConfig | None = None) -> dict[str, str]:
    """Versions that a result depends on; `commit` where biigma runs from a git checkout.

    Args:
        model: a network whose training begins now: the package of its published weights is named.
    """
    import torchvision

    found = commit()
    backbone = {}
    if model is not None and model.weights == "imagenet" and model.trunk in SCALING:
        package = weights_package(model.trunk)
        # A run that goes on needs the package no more.
        with contextlib.suppress(metadata.PackageNotFoundError):
            backbone = {package: metadata.version(package)}
    return {
        "biigma": __version__,
        **({} if found is None else {"commit": found}),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        **backbone,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def commit(root: Path | None = None) -> str | None:
    """The commit of the checkout that biigma runs from, `-dirty` behind it where files differ.

    None where it is installed elsewhere, and where git is absent or does not answer.

    Args:
        root: of the checkout; by default the folder above the package.
    """
    root = root or Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # a folder above might be somebody else's
        return None
    where = ["git", "--no-optional-locks", "-C", str(root)]
    asked = ["describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        done = subprocess.run(
            [*where, *asked], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def trunk_source(config: ModelConfig) -> Checkpoint | None:
    """What the network that the trunk's weights come from says of itself; None for other weights.

    Raises `ModelFileError` where the file cannot be read.
    """
    exported = exported_file(config.weights)
    if exported is not None:
        return Checkpoint({}, read_metadata(exported))
    if config.weights in ("imagenet", "none") or not is_checkpoint(Path(config.weights)):
        return None
    return load_checkpoint(Path(config.weights), tensors=False)


def check_unseen(split: Split, source: str, checkpoint: Checkpoint) -> None:
    """Raise `CheckpointMismatch` where a network may have learnt from test images of `split`.

    It may where it, or a network behind it, was trained on the same images in another split. Only
    the data sets of ISIC are known to share images under different names.
    """
    for entry in sources_of(checkpoint):
        if shares_images(entry, split.dataset) and entry["split_hash"] != split.split_hash:
            raise CheckpointMismatch(
                f"{source} has learnt from {entry['dataset']} in another split (split hash "
                f"{entry['split_hash'][:12]}, that of {split.dataset} here is "
                f"{split.split_hash[:12]}): test images may be among the ones it has seen",
                fix="use the split it was trained with, or other weights",
            )


def run_of(path: Path) -> str:
    """Name of the run of `RUN/weights/NAME.safetensors` or of `RUN/model.onnx`, its export.

    Of a file elsewhere its own.
    """
    if path.parent.name == "weights":
        return path.parent.parent.name
    return path.absolute().parent.name if path.name == "model.onnx" else path.stem


def line_of(name: str, checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """The networks behind a checkpoint, oldest first, and its own: `run`, `command`, `versions`.

    Checkpoints of earlier versions do not know what is behind them.
    """
    meta = checkpoint.meta
    own = {"run": name, "command": meta.get("command", ""), "versions": meta.get("versions", {})}
    return [*meta.get("ancestors", []), own]


def ancestry(*lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Several lines as one, each network once."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in itertools.chain.from_iterable(lines):
        found.setdefault((entry["run"], entry["command"]), entry)
    return list(found.values())
