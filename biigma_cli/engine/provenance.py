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
from biigma_cli.core.sources import Source, may_share, shares_images, sources_of
from biigma_cli.core.weights import Checkpoint, is_checkpoint, load_checkpoint
from biigma_cli.data.manifest import Manifest, find_manifest
from biigma_cli.data.scan import first
from biigma_cli.data.seen import archive_id, seen_in, split_again
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


def check_unseen(
    split: Split, manifest: Manifest, source: str, checkpoint: Checkpoint
) -> list[Source]:
    """Raise `CheckpointMismatch` where a network may have learnt from test images of `split`.

    It may where it, or a network behind it, was trained on the same images in another split. Data
    sets of ISIC share images by their names; a user's own is compared, by bytes and archive ids,
    with what is recorded here.

    Returns:
        the data it has learnt from, with a `caveat` where that could not be compared.
    """
    found = []
    for told in sources_of(checkpoint):
        # Of another split it says nothing here.
        entry = {key: value for key, value in told.items() if key != "caveat"}
        if shares_images(entry, split.dataset) and entry["split_hash"] != split.split_hash:
            raise CheckpointMismatch(
                f"{source} has learnt from {entry['dataset']} in another split (split hash "
                f"{entry['split_hash'][:12]}, that of {split.dataset} here is "
                f"{split.split_hash[:12]}): test images may be among the ones it has seen",
                fix="use the split it was trained with, or other weights",
            )
        if not shares_images(entry, split.dataset) and may_share(entry, split.dataset):
            entry |= _compared(split, manifest, source, entry, checkpoint.meta.get("split", {}))
        found.append(entry)
    return found


def _compared(
    split: Split, manifest: Manifest, source: str, entry: Source, stored: dict[str, Any]
) -> Source:
    """A caveat where images held out here cannot be compared with a data set learnt from.

    Raises `CheckpointMismatch` where that holds some of them, and not outside its training part.
    """
    records = manifest.by_id()
    held_out = [records[image] for image in (*split.val, *split.test)]
    name, other = entry["dataset"], find_manifest(entry["dataset"])
    trained = None
    if other is not None:
        trained = split_again(other, entry["split_hash"], stored)
        beside = find_manifest(entry["beside"]) if entry["beside"] else None
        seen = seen_in(held_out, other, trained, beside=beside)
        if seen:
            where = f"in the part of {name} that it was trained on, or show a lesion of it"
            if trained is None:
                where = f"in {name}, of which it was trained on a part that cannot be told here"
            raise CheckpointMismatch(
                f"{source} has learnt from {name}, and {len(seen)} of the {len(held_out)} "
                f"validation and test images of {split.dataset} are {where}: {first(seen, 3)}",
                fix="put them into the train part or leave them out, or use another network",
            )
    named = sum(bool(archive_id(record)) for record in held_out)
    whole = other is not None and (trained or other.data_hash == entry["data_hash"])
    if whole or not named:
        return {}
    return {
        "caveat": f"{named} of the {len(held_out)} validation and test images of {split.dataset} "
        f"have ISIC ids and may have been seen in training: a network behind this one has learnt "
        f"from {name}, which was not there to compare them with"
    }


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
