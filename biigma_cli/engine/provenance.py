"""What a checkpoint says of where it comes from: versions, source commit, earlier networks."""

from __future__ import annotations

import itertools
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from biigma_cli import __version__
from biigma_cli.config import ModelConfig
from biigma_cli.core.weights import Checkpoint, is_checkpoint, load_checkpoint
from biigma_cli.data.splits import Split, check_same_split
from biigma_cli.taxonomy import DERIVED

#: From the freest to the strictest; each allows what is made to go under one further on.
LICENCES = ("CC0-1.0", "CC-BY-4.0", "CC-BY-NC-4.0")
#: Data sets whose images are among another's.
WITHIN = {"isic19": ("isic17", "isic18")}


def versions() -> dict[str, str]:
    """Versions that a result depends on; `commit` where biigma runs from a git checkout."""
    import torchvision

    found = commit()
    return {
        "biigma": __version__,
        **({} if found is None else {"commit": found}),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
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
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(
            [*command, "--abbrev=12"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def trunk_source(config: ModelConfig) -> Checkpoint | None:
    """The checkpoint that the trunk's weights come from; None for any other weights.

    Raises `ModelFileError` where the file cannot be read.
    """
    if config.weights in ("imagenet", "none") or not is_checkpoint(Path(config.weights)):
        return None
    return load_checkpoint(Path(config.weights))


def check_unseen(split: Split, source: str, checkpoint: Checkpoint) -> None:
    """Raise `CheckpointMismatch` where a network may have been trained on test images of `split`.

    A network of another data set has not; one of the same images has, unless their split is the
    same. Only the data sets of ISIC are known to share images under different names.
    """
    meta = checkpoint.meta
    for joined in meta.get("extra", []):
        if _images_of(joined["dataset"]) & _images_of(split.dataset):
            check_same_split(split, joined, source=source)
    if _images_of(checkpoint.config.data.dataset) & _images_of(split.dataset):
        check_same_split(split, meta["split"], source=source)


def _images_of(dataset: str) -> set[str]:
    base = DERIVED.get(dataset, dataset)
    return {base, *WITHIN.get(base, ())}


def run_of(path: Path) -> str:
    """Name of the run that a checkpoint file belongs to; the file's own where it is in none."""
    return path.parent.parent.name if path.parent.name == "weights" else path.stem


class Terms(NamedTuple):
    """What a network owes to those whose images it has learnt from, itself or through others.

    Attributes:
        licence: an SPDX expression.
        citation: to be passed on with it.
    """

    licence: str
    citation: str


def terms_of(meta: dict[str, Any]) -> Terms:
    """Those of a checkpoint, or of a data set that joined (`data.extra`)."""
    return Terms(meta.get("licence") or "unknown", meta.get("citation") or "")


def joint_terms(terms: Sequence[Terms]) -> Terms:
    """Those of what is made from several: the strictest of `LICENCES`, with any other beside it."""
    licences = dict.fromkeys(t.licence for t in terms)
    known = [name for name in LICENCES if name in licences]
    others = [name for name in licences if name not in LICENCES]
    if known and not (others and known[-1] == LICENCES[0]):  # the freest asks for nothing
        others.insert(0, known[-1])
    texts = list(dict.fromkeys(t.citation for t in terms if t.citation))
    # What is from several names each once.
    citations = [a for a in texts if not any(a != b and a in b for b in texts)]
    return Terms(" AND ".join(others), " ".join(citations))


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
