"""Figures apart by sex, age band and site, where the data set says them, and by what leaked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from biigma_cli.data.manifest import Manifest, Record, age_years
from biigma_cli.data.scan import known_value
from biigma_cli.judge.judgement import Judgement
from biigma_cli.metrics import score_weight
from biigma_cli.metrics.subgroups import Subgroup, assess_subgroups

UNKNOWN = "unknown"
#: Whether another image of the lesion was trained on; told apart where that is so of any.
LEAK = "lesion in train"
#: First year after the band, and its name.
AGE_BANDS = ((30, "<30"), (45, "30-44"), (60, "45-59"), (75, "60-74"), (np.inf, "75+"))
# As the ISIC archive and HAM10000 write them.
_SEXES = {"m": "male", "man": "male", "f": "female", "woman": "female"}


@dataclass(frozen=True, kw_only=True)
class Subgroups:
    """All subgroups of a judgement.

    Attributes:
        asked: class that sensitivity and specificity are to; None where there is no melanoma.
        rows: by sex, then age, then site, then `LEAK`; the unknown last.
        absent: of the first three, what the data set says of no image of the part.
        resamples: of the intervals.
        grouped: whether lesions were resampled; else images.
    """

    asked: str | None
    rows: tuple[Subgroup, ...]
    absent: tuple[str, ...]
    resamples: int
    grouped: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return {
            "asked": self.asked,
            "absent": list(self.absent),
            "resamples": self.resamples,
            "rows": [row.to_dict() for row in self.rows],
        }


def judge_subgroups(
    judged: Judgement,
    manifest: Manifest,
    *,
    resamples: int = 2000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Subgroups:
    """The judgement's answers by sex, age band and site, with 95% intervals by lesion.

    Where the split has lesions on two sides, also by whether the lesion was trained on: what the
    leak is worth, though the two kinds of lesion differ in their mix of diagnoses, too. A variable
    that the manifest says of no image of the part is left out and named. Images of weight 0 do not
    count, as elsewhere.

    Args:
        manifest: that was judged on.
        resamples: 0 gives figures without intervals.
        progress: called with (subgroups done, subgroups in all).
    """
    records = manifest.by_id()
    counted_n = score_weight(judged.ids)
    kept = [records[image] for image, c in zip(judged.ids, counted_n, strict=True) if c]
    values = {
        "sex": [_sex(r.sex) for r in kept],
        "age": [age_band(r.age) for r in kept],
        "site": [_word(r.site) for r in kept],
    }
    known = {by: own for by, own in values.items() if set(own) != {UNKNOWN}}
    leaked = _in_train(judged, manifest, kept)
    if "yes" in leaked:
        known[LEAK] = leaked
    codes = judged.assessment.codes
    asked = codes[0] if judged.binary else "MEL"
    rows = assess_subgroups(
        judged.label_n[counted_n],
        judged.proba_nY[counted_n].argmax(1).astype(np.int64),
        codes,
        known,
        groups=[r.lesion_id or r.image_id for r in kept],
        asked=asked if asked in codes else None,
        resamples=resamples,
        seed=seed,
        progress=progress,
    )
    return Subgroups(
        asked=asked if asked in codes else None,
        rows=tuple(sorted(rows, key=lambda row: _order(row, [*values, LEAK]))),
        absent=tuple(by for by in values if by not in known),
        resamples=resamples,
        grouped=judged.assessment.grouped,
    )


def _in_train(judged: Judgement, manifest: Manifest, kept: Sequence[Record]) -> list[str]:
    """Of each image whether its lesion has another one in the training part."""
    if judged.part == "train":
        return []
    records = manifest.by_id()
    trained = {records[image].lesion_id for image in judged.split.train} - {""}
    return [("yes" if r.lesion_id in trained else "no") if r.lesion_id else UNKNOWN for r in kept]


def age_band(age: str) -> str:
    """Band of an age in years as the publisher wrote it; `unknown` for what is no age."""
    years = age_years(age)
    if years is None:
        return UNKNOWN
    return next(name for end, name in AGE_BANDS if years < end)


def _word(text: str) -> str:
    """A value in lower case; `unknown` for the ways of saying so."""
    return " ".join(known_value(text).lower().split()) or UNKNOWN


def _sex(text: str) -> str:
    word = _word(text)
    return _SEXES.get(word, word)


def _order(row: Subgroup, by: list[str]) -> tuple[int, bool, int, str]:
    bands = [name for _, name in AGE_BANDS]
    # Bands by age; sexes and sites from the most images to the fewest.
    rank = bands.index(row.value) if row.value in bands else -row.images
    return by.index(row.by), row.value == UNKNOWN, rank, row.value


__all__ = ["AGE_BANDS", "LEAK", "UNKNOWN", "Subgroups", "age_band", "judge_subgroups"]
