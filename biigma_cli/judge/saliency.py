"""A model's maps against the lesion masks of one part of a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from biigma_cli.config import FIRST_CENTRE
from biigma_cli.data.images import load_part
from biigma_cli.data.manifest import Manifest
from biigma_cli.data.masks import load_masks
from biigma_cli.errors import DataError, ModelFileError
from biigma_cli.judge.candidate import Candidate, Maps, Progress
from biigma_cli.judge.judgement import split_of
from biigma_cli.metrics import intervals_title, score_weight
from biigma_cli.metrics.localisation import REFERENCES, Localisation, localise

#: Names of a model's maps, in the order they are shown.
MAPS = ("answer", "truth", "plain", "standardised")


@dataclass(frozen=True, kw_only=True)
class SaliencyJudgement:
    """How far a model's maps show the lesion.

    Attributes:
        model: its name.
        part: `train`, `val` or `test`.
        images: that were judged.
        groups: lesions among them.
        grouped: whether any lesion has several images; where none has, images were resampled.
        codes: class codes.
        class_counts: images judged, by class.
        grid: rows and columns of a map.
        area: mean share of the square that the lesion covers.
        missing: images left out because they have no mask.
        empty: images left out because their mask shows no lesion in the square.
        full: images left out because their mask shows nothing else.
        pictures: images left out because a picture stands for their mask.
        left_out: images that do not count (weight 0).
        resamples: of the intervals.
        seed: of the resamples.
        maps: the figures of the model's own maps, those of `MAPS` that it has, then of the
            references `metrics.localisation.REFERENCES`.
    """

    model: str
    part: str
    images: int
    groups: int
    grouped: bool
    codes: tuple[str, ...]
    class_counts: Mapping[str, int]
    grid: tuple[int, int]
    area: float
    missing: int
    empty: int
    full: int
    pictures: int
    left_out: int
    resamples: int
    seed: int
    maps: Mapping[str, Localisation]

    @property
    def bootstrap(self) -> str:
        """How the intervals were made, for people."""
        return intervals_title(self.resamples, grouped=self.grouped)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return {
            "model": self.model,
            "part": self.part,
            "images": self.images,
            "groups": self.groups,
            "classes": dict(self.class_counts),
            "grid": list(self.grid),
            "area": self.area,
            "left_out": {
                "without_mask": self.missing,
                "empty_mask": self.empty,
                "full_mask": self.full,
                "picture_for_mask": self.pictures,
                "weight_0": self.left_out,
            },
            "bootstrap": self.bootstrap,
            "resamples": self.resamples,
            "seed": self.seed,
            # Pointing game and AUC of both are those of the standardised form, by construction.
            "plain_and_standardised_rank_alike": {"plain", "standardised"} <= set(self.maps),
            "maps": {name: found.to_dict() for name, found in self.maps.items()},
        }


def judge_saliency(
    candidate: Candidate,
    manifest: Manifest,
    part_name: str,
    *,
    resamples: int = 2000,
    seed: int = 0,
    decoding: Progress = lambda *_: None,
    masking: Progress = lambda *_: None,
    running: Progress = lambda *_: None,
    resampling: Progress = lambda *_: None,
    warn: Callable[[str], None] = lambda _: None,
) -> SaliencyJudgement:
    """Evidence of the answer and of the true class, and M in each form, against the masks.

    Images without a mask, and those whose mask shows no lesion or nothing else or is none but a
    picture, are left out.

    Args:
        resamples: of the bootstrap; 0 gives figures without intervals.
        masking: progress of reading masks; the others as of `judge`.

    Raises:
        CheckpointMismatch: classes, data or split are not those the model was trained with.
        DataError: an image is gone or has changed, no image has a usable mask, masks cannot be
            read or have another shape than their picture, or a map holds NaN.
        ModelFileError: the model has no map at all.
    """
    split = split_of(candidate, manifest)
    ids = split.part(part_name)
    counted = score_weight(ids)
    data = candidate.data
    part = load_part(
        manifest, [i for i, counts in zip(ids, counted, strict=True) if counts], data.side,
        rule=data.resize, build=True, progress=decoding, warn=warn,
    )  # fmt: skip
    grid = _grid(candidate, candidate.maps(part.pixels[:1], lambda *_: None))
    first_centre = FIRST_CENTRE.get(candidate.trunk)
    # Of the cells against an even grid, in cells.
    shift = 0.0 if first_centre is None else first_centre / data.side * grid[0] - 0.5
    masks = load_masks(
        manifest, part.ids, data.side, rule=data.resize, cells=grid,
        first_centre=first_centre, progress=masking,
    )  # fmt: skip
    if not masks.ids:
        raise DataError(
            f"no mask of the {part_name} part shows both lesion and skin: {len(masks.empty)} are "
            f"empty, {len(masks.full)} full, {len(masks.pictures)} no masks but pictures",
            fix="check the masks",
        )
    place = {image: i for i, image in enumerate(part.ids)}
    at = np.array([place[i] for i in masks.ids], np.intp)
    label_n = part.labels[at]
    groups = [part.groups[i] for i in at]
    running(0, len(at))
    shown = _named(candidate.maps(part.pixels[at], running), label_n)
    resampling(0, resamples)
    # One is a rising function of the other; in float32 the plain form's sigmoid makes equals.
    both = {"plain", "standardised"} <= set(shown)
    found = localise(
        shown, masks.cover_nhw, masks.centre_nhw, label_n, candidate.classes,
        order_of={"plain": "standardised"} if both else None, groups=groups, shift=shift,
        resamples=resamples, seed=seed, progress=resampling,
    )  # fmt: skip
    return SaliencyJudgement(
        model=candidate.name,
        part=part_name,
        images=len(at),
        groups=len(set(groups)),
        grouped=len(set(groups)) < len(groups),
        codes=candidate.classes,
        class_counts={c: int((label_n == i).sum()) for i, c in enumerate(candidate.classes)},
        grid=grid,
        area=float(masks.cover_nhw.mean()),
        missing=len(masks.missing),
        empty=len(masks.empty),
        full=len(masks.full),
        pictures=len(masks.pictures),
        left_out=int((~counted).sum()),
        resamples=resamples,
        seed=seed,
        maps={name: found[name] for name in (*MAPS, *REFERENCES) if name in found},
    )


def _grid(candidate: Candidate, maps: Maps) -> tuple[int, int]:
    every = [*maps.saliency.values()]
    if maps.evidence_nYhw is not None:
        every.append(maps.evidence_nYhw)
    if not every:
        raise ModelFileError(
            f"{candidate.name} shows neither evidence nor saliency: an older version exported it",
            fix="export it again, or judge the checkpoint",
        )
    return every[0].shape[-2], every[0].shape[-1]


def _named(maps: Maps, label_n: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.floating[Any]]]:
    """`(n, h, w)` by the names in `MAPS`."""
    named: dict[str, npt.NDArray[np.floating[Any]]] = {}
    if maps.evidence_nYhw is not None:
        rows = np.arange(len(label_n))
        named["answer"] = maps.evidence_nYhw[rows, maps.logits_nY.argmax(1)]
        named["truth"] = maps.evidence_nYhw[rows, label_n]
    return named | dict(maps.saliency)
