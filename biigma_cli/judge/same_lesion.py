"""Which pictures of a data set probably show one lesion, whatever their lesion ids say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from biigma_cli.config import ModelConfig
from biigma_cli.core.likeness import LesionMetric, Views, fit_metric, load_metric
from biigma_cli.data.alike import (
    AlikePair,
    AlikeSearch,
    alike_pairs,
    chance_threshold,
)
from biigma_cli.data.manifest import Manifest, Record
from biigma_cli.data.preprocess import Pixels, load_image, map_threads
from biigma_cli.errors import ImageError, ModelFileError
from biigma_cli.storage import available_cpus, models_dir

Progress = Callable[[int, int], None]
T = TypeVar("T")
#: File of the metric that ships.
SHIPPED = "same-lesion.safetensors"


def shipped_metric() -> LesionMetric:
    """The metric that comes with the package. Raises `ModelFileError` where it is damaged."""
    metric = load_metric(models_dir() / SHIPPED)
    _chance_table(metric)
    return metric


def shipped_views(metric: LesionMetric, device: torch.device) -> Views:
    """The trunk of a metric, from the model that ships under its name.

    Raises `ModelFileError` where it cannot be read.
    """
    # By its whole path: a bare name could be a file of the user's.
    weights = str(models_dir() / f"{metric.weights}.onnx")
    return Views(ModelConfig(trunk=metric.trunk, weights=weights), device)  # type: ignore[arg-type]


def features(
    views: Views,
    paths: Sequence[Path],
    side: int,
    *,
    threads: int | None = None,
    progress: Progress = lambda *_: None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], list[int]]:
    """Features `(N, C)` of pictures, whole and their middle, and which these are.

    One that cannot be read is left out.
    """
    kept: list[int] = []
    whole: list[npt.NDArray[np.float32]] = []
    middle: list[npt.NDArray[np.float32]] = []
    progress(0, len(paths))

    def decode(path: Path) -> Pixels | None:
        try:
            return load_image(path, side)
        except ImageError:
            return None

    decoded = map_threads(decode, paths, threads=threads or available_cpus())
    for chunk in _chunks(enumerate(decoded), 32):
        read = [(n, pixels) for n, pixels in chunk if pixels is not None]
        if read:
            kept += [n for n, _ in read]
            found = views(np.stack([pixels for _, pixels in read]))
            for into, values in zip((whole, middle), found, strict=True):
                into.append(values)
        progress(chunk[-1][0] + 1, len(paths))
    width = sum(views.channels)
    none = np.zeros((0, width), np.float32)
    return np.concatenate([*whole, none]), np.concatenate([*middle, none]), kept


def same_lesion(
    manifest: Manifest,
    readable: Iterable[str],
    *,
    metric: LesionMetric,
    views: Views,
    threads: int | None = None,
    reading: Progress = lambda *_: None,
    comparing: Progress = lambda *_: None,
) -> AlikeSearch:
    """All pairs that are alike enough to be of one lesion; of identical files the first alone.

    Args:
        readable: ids of the images that can be read; those that have gone since are left out.
        metric: see `core.likeness`.
        views: its trunk.

    Raises `ModelFileError` where the metric does not say how often different lesions are alike.
    """
    wanted = set(readable)
    first_of: dict[str, Record] = {}
    for record in manifest.records:
        if record.image_id in wanted:
            first_of.setdefault(record.digest, record)
    records = list(first_of.values())
    whole, middle, kept = features(
        views,
        [manifest.root / r.path for r in records],
        metric.side,
        threads=threads,
        progress=reading,
    )
    records = [records[n] for n in kept]
    whole, middle = metric.project(whole), metric.project(middle)
    threshold, by_chance = chance_threshold(_chance_table(metric), len(records))
    pairs = []
    # Two passes over all pairs, half of the work each.
    count = len(records)
    offset = metric.offset(whole, middle, progress=lambda done: comparing(done // 2, count))
    found = alike_pairs(
        whole,
        middle,
        offset,
        threshold=threshold,
        progress=lambda done, _: comparing((count + done) // 2, count),
    )
    for i_p, j_p, likeness_p in found:
        for i, j, likeness in zip(i_p, j_p, likeness_p, strict=True):
            one, two = records[i], records[j]
            pairs.append(
                AlikePair(
                    first=one.image_id,
                    second=two.image_id,
                    likeness=float(likeness),
                    same_lesion=one.shares_lesion(two),
                    same_label=one.label == two.label,
                )
            )
    return AlikeSearch(
        pairs=tuple(sorted(pairs, key=lambda p: (-p.likeness, p.first, p.second))),
        threshold=threshold,
        by_chance=by_chance,
        compared=len(records),
        source=str(metric.stated.get("source", "")),
    )


def fitted(
    config: ModelConfig,
    side: int,
    whole_NC: npt.NDArray[np.float32],
    middle_NC: npt.NDArray[np.float32],
    lesion_N: npt.NDArray[Any],
    *,
    cohort: int = 4096,
    seed: int = 0,
) -> LesionMetric:
    """A metric of these pictures and their lesions, without anything stated.

    Args:
        config: the trunk that gave the features, of pictures of `side`.
        cohort: lesions, at most, of which one picture each is kept to measure others against.
    """
    mean_C, projection_CK = fit_metric(
        np.concatenate([whole_NC, middle_NC]), np.concatenate([lesion_N, lesion_N])
    )
    bare = LesionMetric(
        weights=config.weights,
        trunk=config.trunk,
        side=side,
        mean_C=mean_C,
        projection_CK=projection_CK,
        cohort_MK=np.zeros((0, projection_CK.shape[1]), np.float32),
        stated={},
    )
    order = np.random.default_rng(seed).permutation(len(lesion_N))
    _, first = np.unique(lesion_N[order], return_index=True)
    chosen = order[np.sort(first)][:cohort]
    return replace(bare, cohort_MK=bare.project(whole_NC[chosen]))


def _chunks(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while chunk := list(islice(items, size)):
        yield chunk


def _chance_table(metric: LesionMetric) -> list[tuple[float, float]]:
    try:
        table = [(float(a), float(b)) for a, b in metric.stated["chance"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(
            "the lesion metric does not say how often different lesions are alike",
            fix="install biigma again",
        ) from error
    if not table:
        raise ModelFileError("the lesion metric states no chance", fix="install biigma again")
    return table
