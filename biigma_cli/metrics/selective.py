"""Answering only where the model is sure: error against coverage, and limits that hold a promise.

Confidence is the probability of the answer. Of the images at or above a threshold a share, the
coverage, is answered, and of these a share is wrong, the selective error (El-Yaniv and Wiener,
2010). AURC is the mean error over all coverages (Geifman and El-Yaniv, 2017): of all thresholds
together, so that no one of them has to be chosen.

A threshold is chosen for a promise, "at most so many answers are wrong", on images that nothing was
trained on: from the strictest downwards as long as the error's upper bound keeps the promise
(fixed-sequence testing, Angelopoulos et al. 2021), beginning with the strictest at which so many
images are answered that a third of the errors allowed would keep it: with fewer, the first chance
error would end the search. That is known from the confidences alone, so one chance of error,
`1 - CONFIDENCE`, covers all that is tried.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from biigma_cli.metrics.calibration import Confidence
from biigma_cli.metrics.confusion import Floats, Ints
from biigma_cli.metrics.ranks import ratio

#: Of the promise: in one set of images in twenty it may fail by chance.
CONFIDENCE = 0.95
# Every hundredth, and none at all: what is more finely chosen is chosen by noise.
_THRESHOLDS = (*(i / 100 for i in range(99, 0, -1)), 0.0)
# Of the errors allowed one part in so many must be bearable where the search begins.
_SPARE = 3
METHOD = (
    "the least probability of the answer at which, from the strictest downwards, the upper bound "
    "of the error (Clopper-Pearson, counts scaled to lesions) stays below what is asked for"
)


class Limit(NamedTuple):
    """What one threshold does on the images that the limits were found on.

    Attributes:
        threshold: least probability of the answer that is still an answer.
        answered: images answered.
        groups: lesions among them.
        wrong: images answered wrong.
        bound: upper bound of the error, one-sided, at `CONFIDENCE`.
    """

    threshold: float
    answered: int
    groups: int
    wrong: int
    bound: float


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Thresholds and what they do.

    Attributes:
        images: in all, those that the input check flags among them.
        groups: lesions among them.
        rows: the strictest first.
    """

    images: int
    groups: int
    rows: tuple[Limit, ...]

    def at_most(self, error: float) -> Limit | None:
        """The lowest threshold with at most that share of wrong answers; None where none has."""
        found = None
        for row in self.rows:
            if error_bound(error / _SPARE, row.groups) > error:
                continue
            if row.bound > error:
                break
            found = row
        return found

    @property
    def least(self) -> float | None:
        """The least error, in whole percent, that can be promised; None where none below 1 can."""
        return next((e / 100 for e in range(1, 100) if self.at_most(e / 100)), None)

    def summary(self) -> str:
        """One line to show."""
        shown = {error: self.at_most(error) for error in (0.05, 0.1)}
        told = [
            f"{row.answered / self.images:.0%} answered with at most {error:.0%} wrong"
            for error, row in shown.items()
            if row is not None
        ]
        if not told:
            return f"can't say: no limit promises few errors on {self.groups} validation lesions"
        return f"can't say: on the validation images {', '.join(told)} (predict --max-error)"

    def to_dict(self) -> dict[str, Any]:
        """As it stands in an exported model's metadata."""
        return {
            "method": METHOD,
            "confidence": CONFIDENCE,
            "part": "val",
            "images": self.images,
            "lesions": self.groups,
            "columns": list(Limit._fields),
            "rows": [[*row[:-1], round(row.bound, 5)] for row in self.rows],
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """From what `to_dict` gave. Raises `KeyError`, `TypeError` or `ValueError` otherwise."""
        rows = tuple(
            Limit(float(t), int(answered), int(groups), int(wrong), float(bound))
            for t, answered, groups, wrong, bound in plain["rows"]
        )
        return cls(images=int(plain["images"]), groups=int(plain["lesions"]), rows=rows)


def error_bound(error: float, n: int, confidence: float = CONFIDENCE) -> float:
    """Upper bound of a share of which `error` was seen among n (Clopper and Pearson, 1934).

    One-sided. `error * n` need not be whole: of images that are not independent the share of all
    is given with the number of their lesions. Without any, 1.
    """
    if not n or error >= 1:
        return 1.0
    if not error:
        return float(1 - (1 - confidence) ** (1 / n))
    from scipy.special import betaincinv  # type: ignore[import-untyped]

    return float(betaincinv(error * n + 1, n - error * n, confidence))


def limits(
    label_n: Ints,
    proba_nY: npt.NDArray[np.floating[Any]],
    groups: Sequence[str],
    *,
    flagged_n: npt.NDArray[np.bool_] | None = None,
) -> Limits:
    """What each threshold does on images that nothing was trained on.

    Args:
        label_n: `(n,)` class indices.
        proba_nY: `(n, Y)` probabilities, as they will be when it is asked for an answer.
        groups: lesion of each image. Images of one lesion count as one where the bound is taken.
        flagged_n: `(n,)`, images that get no answer whatever their probability.
    """
    names, group_n = np.unique(np.asarray(groups), return_inverse=True)
    sure_n = proba_nY.max(1).astype(np.float64)  # as it is compared where an answer is given
    if flagged_n is not None:
        sure_n = np.where(flagged_n, -1.0, sure_n)
    wrong_n = proba_nY.argmax(1) != label_n
    rows = []
    for threshold in _THRESHOLDS:
        answered_n = sure_n >= threshold
        answered, wrong = int(answered_n.sum()), int((answered_n & wrong_n).sum())
        lesions = len(np.unique(group_n[answered_n]))
        share = wrong / answered if answered else math.nan
        bound = error_bound(share, lesions) if answered else 1.0
        rows.append(Limit(threshold, answered, lesions, wrong, bound))
    return Limits(images=len(label_n), groups=len(names), rows=tuple(rows))


def risk_coverage(sorted_: Confidence, weight_nb: Floats) -> tuple[Floats, Floats]:
    """Coverage and error at each distinct confidence, from the greatest on, `(d, b)` each.

    Images of equal confidence are answered all or none, so their order does not matter.

    Args:
        weight_nb: b weightings of the n images.
    """
    ordered_nb = weight_nb[sorted_.order_n]
    mass_db = np.add.reduceat(ordered_nb, sorted_.starts, axis=0)[::-1]
    wrong_n1 = (1 - sorted_.right_n)[:, None]
    wrong_db = np.add.reduceat(ordered_nb * wrong_n1, sorted_.starts, axis=0)[::-1]
    covered_db = np.cumsum(mass_db, axis=0)
    return covered_db / covered_db[-1], ratio(np.cumsum(wrong_db, axis=0), covered_db)


def aurc(sorted_: Confidence, weight_nb: Floats) -> Floats:
    """`(b,)` area under the risk-coverage curve: the mean error over all coverages, 0 to 1.

    Every image stands for the coverage that its own confidence gives.
    """
    coverage_db, error_db = risk_coverage(sorted_, weight_nb)
    step_db = np.diff(coverage_db, axis=0, prepend=0)
    area: Floats = (step_db * np.nan_to_num(error_db)).sum(0)
    return area
