"""Calling images suspicious, so that few malignant ones pass: limits that hold a promise.

Malignancy is the summed probability of the malignant and pre-malignant classes. Images at or above
a threshold are called suspicious; of the malignant ones a share, the sensitivity, is, and of the
benign ones a share, the specificity, is not.

A threshold is chosen for a promise, "at least such a sensitivity", on images that no weight was
fitted to: upwards from 0, where all are suspicious, as long as the upper bound of the share that is
missed keeps the promise (fixed-sequence testing, Angelopoulos et al. 2021). The malignant images
are the same at every threshold, so the search can begin at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from biigma_cli.metrics.confusion import Floats, Ints
from biigma_cli.metrics.selective import CONFIDENCE, effective_size, error_bound

# Every hundredth, below 0.05 every thousandth: most benign images lie there. What is more finely
# chosen is chosen by noise.
_THRESHOLDS = (*(i / 1000 for i in range(50)), *(i / 100 for i in range(5, 100)))
# A limit that may miss more finds no user.
_MOST_MISSED = 0.3
METHOD = (
    "the largest probability of all malignant classes together down to which images are called "
    "suspicious, up to where the upper bound of the share of malignant images below it "
    "(Clopper-Pearson, images of one lesion taken as one observation) stays below what is asked for"
)


class ScreeningLimit(NamedTuple):
    """What one threshold does on the images that the limits were found on.

    Attributes:
        threshold: least malignancy that is suspicious.
        missed: malignant images below it.
        spared: benign images below it.
        bound: upper bound of the share of malignant images that is missed, one-sided, at
            `CONFIDENCE`.
    """

    threshold: float
    missed: int
    spared: int
    bound: float


@dataclass(frozen=True, kw_only=True)
class ScreeningLimits:
    """Thresholds and what they do. Images that the input check flags are out of it.

    Attributes:
        malignant: malignant or pre-malignant images.
        effective: how many independent images they are worth, at least (`effective_size`).
        benign: the others.
        rows: the lowest first.
    """

    malignant: int
    effective: float
    benign: int
    rows: tuple[ScreeningLimit, ...]

    def at_least(self, sensitivity: float) -> ScreeningLimit | None:
        """The highest threshold with at least that sensitivity; None where none has."""
        found = None
        for row in self.rows:
            if row.bound > 1 - sensitivity:
                break
            found = row
        return found

    def next_to(self, sensitivity: float) -> float | None:
        """The next lower sensitivity, in whole percent, that can be promised; None for none."""
        whole = (s / 100 for s in range(99, 0, -1))
        return next((s for s in whole if s < sensitivity and self.at_least(s)), None)

    def summary(self) -> str:
        """One line to show."""
        shown = {asked: self.at_least(asked) for asked in (0.95, 0.9)}
        told = [
            f"{asked:.0%} of the malignant are found and {row.spared / self.benign:.0%} of the "
            "benign spared"
            for asked, row in shown.items()
            if row is not None and self.benign
        ]
        if not told:
            return (
                f"suspicious: no limit promises to find most of the malignant on {self.malignant} "
                "validation images"
            )
        return f"suspicious: by the validation images {', '.join(told)} (predict --min-sensitivity)"

    def to_dict(self) -> dict[str, Any]:
        """As it stands in an exported model's metadata."""
        return {
            "method": METHOD,
            "confidence": CONFIDENCE,
            "part": "val",
            "malignant": self.malignant,
            "effective": self.effective,
            "benign": self.benign,
            "columns": list(ScreeningLimit._fields),
            "rows": [list(row) for row in self.rows],
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """From what `to_dict` gave. Raises `KeyError`, `TypeError` or `ValueError` otherwise."""
        malignant, benign = int(plain["malignant"]), int(plain["benign"])
        effective = float(plain["effective"])
        rows: list[ScreeningLimit] = []
        for threshold, missed, spared, bound in plain["rows"]:
            row = ScreeningLimit(threshold, missed, spared, bound)
            whole = isinstance(missed, int) and isinstance(spared, int)
            rising = not rows or (rows[-1].threshold < threshold and rows[-1].bound <= bound)
            # NaN is in no order.
            if not (whole and rising) or not (
                0 <= threshold <= 1 and 0 <= bound <= 1
                and 0 <= missed <= malignant and 0 <= spared <= benign
            ):  # fmt: skip
                raise ValueError(f"a row that cannot be: {list(row)}")
            rows.append(row)
        if not (0 < effective <= malignant or effective == malignant == len(rows) == 0):
            raise ValueError(f"{malignant} images worth {effective}, {len(rows)} rows")
        return cls(malignant=malignant, effective=effective, benign=benign, rows=tuple(rows))


def malignant_classes(malignant: Sequence[bool | None]) -> npt.NDArray[np.bool_] | None:
    """`(Y,)`, which classes are malignant; None where one is not known to be or not to be.

    None, too, where all are or none is.
    """
    known = {None, True, False} & set(malignant)
    return np.array(malignant, np.bool_) if known == {True, False} else None


def malignancy(
    proba_nY: npt.NDArray[np.floating[Any]], malignant_Y: npt.NDArray[np.bool_]
) -> Floats:
    """Summed probability of the malignant classes, `(n,)` in float64."""
    summed: Floats = proba_nY[:, malignant_Y].astype(np.float64).sum(1)
    return summed


def screening_limits(
    label_n: Ints,
    proba_nY: npt.NDArray[np.floating[Any]],
    malignant_Y: npt.NDArray[np.bool_],
    groups: Sequence[str],
    *,
    flagged_n: npt.NDArray[np.bool_] | None = None,
) -> ScreeningLimits:
    """What each threshold does on images that nothing was trained on.

    Args:
        label_n: `(n,)` class indices.
        proba_nY: `(n, Y)` probabilities, as they will be when it is asked for an answer.
        malignant_Y: `(Y,)`, which classes are; see `malignant_classes`.
        groups: lesion of each image.
        flagged_n: `(n,)`, images that get no answer whatever their probability: they count neither
            as found nor as missed.
    """
    there_n = np.ones(len(label_n), np.bool_) if flagged_n is None else ~flagged_n
    score_n = malignancy(proba_nY, malignant_Y)
    is_malignant_n = malignant_Y[label_n] & there_n
    is_benign_n = ~malignant_Y[label_n] & there_n
    count = int(is_malignant_n.sum())
    effective = effective_size(np.asarray(groups)[is_malignant_n])
    rows = []
    for threshold in _THRESHOLDS:
        below_n = score_n < threshold
        missed = int((below_n & is_malignant_n).sum())
        bound = error_bound(missed / count, effective) if count else 1.0
        if bound > _MOST_MISSED:
            break
        spared = int((below_n & is_benign_n).sum())
        rows.append(ScreeningLimit(threshold, missed, spared, math.ceil(1e5 * bound) / 1e5))
    return ScreeningLimits(
        malignant=count, effective=effective, benign=int(is_benign_n.sum()), rows=tuple(rows)
    )
