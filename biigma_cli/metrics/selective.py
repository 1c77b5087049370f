"""Answering only where the model is sure: error against coverage, and limits that hold a promise.

Confidence is the probability of the answer. Of the images at or above a threshold a share, the
coverage, is answered, and of these a share is wrong, the selective error (El-Yaniv and Wiener,
2010). AURC is the mean error over all coverages (Geifman and El-Yaniv, 2017): of all thresholds
together, so that no one of them has to be chosen.

A threshold is chosen for a promise, "at most so many answers are wrong", on images that no weight
was fitted to: from the strictest downwards as long as the error's upper bound keeps the promise
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
    "the least probability of the answer down to which, from where a third of the errors asked for "
    "could be borne, the upper bound of the error (Clopper-Pearson, images of one lesion taken as "
    "one observation) stays below what is asked for"
)


class Limit(NamedTuple):
    """What one threshold does on the images that the limits were found on.

    Attributes:
        threshold: least probability of the answer that is still an answer.
        answered: images answered.
        effective: how many independent images they are worth, at least (`effective_size`).
        wrong: images answered wrong.
        bound: upper bound of the error, one-sided, at `CONFIDENCE`.
    """

    threshold: float
    answered: int
    effective: float
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
            if error_bound(error / _SPARE, row.effective) > error:
                continue
            if row.bound > error:
                break
            found = row
        return found

    def next_to(self, error: float) -> float | None:
        """The next larger error, in whole percent, that can be promised; None where none can.

        More is not always easier: a larger one has its search begin with fewer images.
        """
        whole = (e / 100 for e in range(1, 100))
        return next((e for e in whole if e > error and self.at_most(e)), None)

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
            "rows": [list(row) for row in self.rows],
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """From what `to_dict` gave. Raises `KeyError`, `TypeError` or `ValueError` otherwise."""
        images, lesions = int(plain["images"]), int(plain["lesions"])
        rows = []
        for threshold, answered, effective, wrong, bound in plain["rows"]:
            row = Limit(threshold, answered, effective, wrong, bound)
            whole = isinstance(answered, int) and isinstance(wrong, int)
            # NaN is in no order.
            if not whole or not (
                0 <= threshold <= 1 and 0 <= bound <= 1
                and 0 <= wrong <= answered <= images and 0 <= effective <= answered
                and (answered > 0 or bound == 1)
            ):  # fmt: skip
                raise ValueError(f"a row that cannot be: {list(row)}")
            rows.append(row)
        if not rows:
            raise ValueError("no rows")
        return cls(images=images, groups=lesions, rows=tuple(rows))


def error_bound(error: float, n: float, confidence: float = CONFIDENCE) -> float:
    """Upper bound of a share of which `error` was seen among n (Clopper and Pearson, 1934).

    One-sided. Neither need be whole: of images that are not independent the share of all is given
    with what they are worth. Without any, 1.
    """
    if not n or error >= 1:
        return 1.0
    if not error:
        return float(1 - (1 - confidence) ** (1 / n))
    from scipy.special import betaincinv  # type: ignore[import-untyped]

    return float(betaincinv(error * n + 1, n - error * n, confidence))


def effective_size(group_n: npt.NDArray[Any]) -> float:
    """How many independent images those of such groups are worth, at least (Kish).

    (sum m)^2 / sum m^2 over the groups' m images, as if those of one group all said the same;
    rounded down to hundredths, so that what is stored says what is found.
    """
    size_G = np.unique(group_n, return_counts=True)[1]
    return math.floor(100 * len(group_n) ** 2 / (size_G**2).sum()) / 100 if len(group_n) else 0.0


def sureness(
    proba_nY: npt.NDArray[np.floating[Any]], flagged_n: npt.NDArray[np.bool_] | None = None
) -> Floats:
    """Probability of each answer, `(n,)` in float64, as it is compared where an answer is given.

    Of images that are flagged, and get no answer, -1: below every threshold.
    """
    sure_n: Floats = proba_nY.max(1).astype(np.float64)
    return sure_n if flagged_n is None else np.where(flagged_n, -1.0, sure_n)


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
        groups: lesion of each image; see `Limit.effective`.
        flagged_n: `(n,)`, images that get no answer whatever their probability.
    """
    names, group_n = np.unique(np.asarray(groups), return_inverse=True)
    sure_n = sureness(proba_nY, flagged_n)
    wrong_n = proba_nY.argmax(1) != label_n
    rows = []
    for threshold in _THRESHOLDS:
        answered_n = sure_n >= threshold
        answered, wrong = int(answered_n.sum()), int((answered_n & wrong_n).sum())
        effective = effective_size(group_n[answered_n])
        bound = error_bound(wrong / answered, effective) if answered else 1.0
        rows.append(Limit(threshold, answered, effective, wrong, math.ceil(1e5 * bound) / 1e5))
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
