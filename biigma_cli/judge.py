"""Any model, torch checkpoint or exported ONNX, judged on one part of a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from biigma_cli.config import DataConfig, fill_older, from_dict
from biigma_cli.core.weights import load_checkpoint, load_model
from biigma_cli.data.images import Part, load_part
from biigma_cli.data.manifest import Manifest
from biigma_cli.data.splits import Split, check_same_split, make_split
from biigma_cli.engine.evaluate import predict_proba, prepare
from biigma_cli.errors import CheckpointMismatch, ModelFileError
from biigma_cli.metrics import Interval, bootstrap, bootstrap_difference, evaluate
from biigma_cli.runtime.session import Predictor

Progress = Callable[[int, int], None]


class Candidate(NamedTuple):
    """A model to judge.

    Attributes:
        name: to show.
        classes: class codes.
        data: what it was trained on, its input's side and resize rule.
        split: summary of the split it was trained with.
        run: uint8 `(n, side, side, 3)` to probabilities `(n, Y)`.
    """

    name: str
    classes: tuple[str, ...]
    data: DataConfig
    split: dict[str, Any]
    run: Callable[[npt.NDArray[np.uint8], Progress], npt.NDArray[np.float32]]


def open_candidate(path: Path, device: torch.device) -> Candidate:
    """A checkpoint (`.safetensors`) or an exported model (`.onnx`).

    Raises `ModelFileError` for anything else.
    """
    if path.suffix == ".onnx":
        return _open_onnx(path, device)
    if path.suffix != ".safetensors":
        raise ModelFileError(
            f"{path} is neither a checkpoint (.safetensors) nor an exported model (.onnx)",
            fix="name a run with --run, or a file",
        )
    checkpoint = load_checkpoint(path)
    model = prepare(load_model(checkpoint), device)

    def run(pixels: npt.NDArray[np.uint8], progress: Progress) -> npt.NDArray[np.float32]:
        return predict_proba(model, pixels, device=device, progress=progress)

    return Candidate(
        name=str(path),
        classes=tuple(checkpoint.meta["classes"]),
        data=checkpoint.config.data,
        split=checkpoint.meta["split"],
        run=run,
    )


def _open_onnx(path: Path, device: torch.device) -> Candidate:
    predictor = Predictor(path, device="cuda" if device.type == "cuda" else "cpu")
    info = predictor.info

    def run(pixels: npt.NDArray[np.uint8], progress: Progress) -> npt.NDArray[np.float32]:
        rows = []
        for start in range(0, len(pixels), 32):
            rows.append(predictor(pixels[start : start + 32]).probabilities_BY)
            progress(min(start + 32, len(pixels)), len(pixels))
        return np.concatenate(rows)

    return Candidate(
        name=str(path),
        classes=info.classes,
        data=from_dict(fill_older({"data": info.metadata["config"]["data"]})).data,
        split=info.metadata["split"],
        run=run,
    )


def split_of(candidate: Candidate, manifest: Manifest) -> Split:
    """The candidate's own split, made again from the data here.

    Raises `CheckpointMismatch` where data or split differ from those it was trained with, or where
    the classes do.
    """
    if candidate.classes != manifest.taxonomy.codes:
        raise CheckpointMismatch(
            f"{candidate.name} has {len(candidate.classes)} classes "
            f"({', '.join(candidate.classes)}), {manifest.dataset} has "
            f"{len(manifest.taxonomy)} ({', '.join(manifest.taxonomy.codes)})",
            fix="judge it on the data set it was trained on",
        )
    stored = candidate.split
    config = DataConfig(
        dataset=manifest.dataset,
        protocol=stored["protocol"],
        join_duplicates=stored.get("join_duplicates", False),
        test_fraction=stored["test_fraction"],
        val_fraction=stored["val_fraction"],
        split_seed=stored["seed"],
    )
    split = make_split(manifest, config)
    check_same_split(split, stored, source=candidate.name)
    return split


def judge(
    candidate: Candidate,
    manifest: Manifest,
    part_name: str,
    *,
    against: Candidate | None = None,
    resamples: int = 2000,
    decoding: Progress = lambda *_: None,
    running: Progress = lambda *_: None,
    warn: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """All figures of a part, with bootstrap intervals by lesion, as a plain dict.

    Args:
        against: a second model; paired differences (first - second) are added. It must have been
            trained with the same split, or its test images may be among those it has seen.
    """
    split = split_of(candidate, manifest)
    data = candidate.data
    part = load_part(
        manifest, split.part(part_name), data.side, rule=data.resize, build=True,
        progress=decoding, warn=warn,
    )  # fmt: skip
    predicted = candidate.run(part.pixels, running).argmax(1).astype(np.int64)
    codes = candidate.classes
    figures = evaluate(part.labels, predicted, codes)
    spans = bootstrap(part.labels, predicted, part.groups, len(codes), resamples=resamples)
    result: dict[str, Any] = {
        "model": candidate.name,
        "dataset": manifest.dataset,
        "part": part_name,
        "protocol": split.title,
        "data_hash": split.data_hash,
        "split_hash": split.split_hash,
        "bootstrap": f"{resamples} resamples of lesions, 95% percentile intervals",
        **figures.to_dict(),
        "intervals": _plain(spans),
    }
    if against is not None:
        check_same_split(split, against.split, source=against.name)
        other_part = _same_images(part, manifest, data, against.data)
        other = against.run(other_part, running).argmax(1).astype(np.int64)
        difference = bootstrap_difference(
            part.labels, predicted, other, part.groups, len(codes), resamples=resamples
        )
        result["against"] = {
            "model": against.name,
            **evaluate(part.labels, other, codes).headline(),
            "difference": _plain(difference),
        }
    return result


def _same_images(
    part: Part, manifest: Manifest, first: DataConfig, second: DataConfig
) -> npt.NDArray[np.uint8]:
    if (first.side, first.resize) == (second.side, second.resize):
        return part.pixels
    return load_part(manifest, part.ids, second.side, rule=second.resize, build=True).pixels


def _plain(intervals: dict[str, Interval]) -> dict[str, dict[str, float]]:
    return {k: {"value": i.value, "low": i.low, "high": i.high} for k, i in intervals.items()}
