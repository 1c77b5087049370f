"""Whether an exported model's limits, found on its validation part, hold on another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from biigma_cli.metrics import Figure, Floats, Ints, Limits
from biigma_cli.metrics.assess import share_figure
from biigma_cli.metrics.confusion import resample_weights
from biigma_cli.metrics.ranks import ratio
from biigma_cli.metrics.selective import sureness

#: Shares of wrong answers that are asked for.
ERRORS = (0.05, 0.10, 0.15, 0.20)


@dataclass(frozen=True, kw_only=True)
class Abstention:
    """What answering only above a limit does on a part.

    Attributes:
        max_error: what was asked for, a share of the answers; None where the limit itself was.
        threshold: the least probability that is answered; None where no limit promises so much,
            and nothing is answered.
        coverage: share of the images answered.
        error: share of the answers that are wrong; None as its value where there is no answer.
        malignant: images of a malignant or pre-malignant class.
        missed: of these, answered with a benign class.
    """

    max_error: float | None
    threshold: float | None
    coverage: Figure
    error: Figure
    malignant: int
    missed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return {
            "max_error": self.max_error,
            "threshold": self.threshold,
            "coverage": self.coverage.to_dict(),
            "error": self.error.to_dict(),
            "malignant": self.malignant,
            "missed": self.missed,
        }


def promised(found: Limits) -> list[tuple[float, float | None]]:
    """Each of `ERRORS`, and the limit that a model promises it with; None for none."""
    rows = [(error, found.at_most(error)) for error in ERRORS]
    return [(error, None if row is None else row.threshold) for error, row in rows]


def abstentions(
    asked: Sequence[tuple[float | None, float | None]],
    label_n: Ints,
    proba_nY: npt.NDArray[np.floating[Any]],
    malignant: Sequence[bool | None],
    groups: Sequence[str],
    *,
    flagged_n: npt.NDArray[np.bool_] | None,
    resamples: int,
    seed: int = 0,
) -> tuple[Abstention, ...]:
    """One for each limit, with 95% percentile intervals over resamples of groups.

    Args:
        asked: errors and limits, see `promised`; None for one that was not asked for.
        label_n: `(n,)` class indices, of the images that count.
        proba_nY: `(n, Y)`, of the same.
        malignant: of each class; one that nobody has called malignant or benign is neither.
        groups: lesion of each.
        flagged_n: `(n,)`, those that get no answer whatever their probability.
    """
    sure_n = sureness(proba_nY, flagged_n)
    answer_n = proba_nY.argmax(1)
    names, group_n = np.unique(np.asarray(groups), return_inverse=True)
    malignant_Y, benign_Y = (np.array([m is kind for m in malignant]) for kind in (True, False))
    thresholds = np.array([np.inf if t is None else t for _, t in asked])
    answered_tn = sure_n[None] >= thresholds[:, None]
    wrong_tn = answered_tn & (answer_n != label_n)
    missed_n = malignant_Y[label_n] & benign_Y[answer_n]
    images_G1, answered_Gt, wrong_Gt = (
        _per_group(value, group_n, len(names))
        for value in (np.ones((1, len(label_n))), answered_tn, wrong_tn)
    )

    def figures(weight_bG: Floats) -> tuple[Floats, Floats]:
        answered_bt = weight_bG @ answered_Gt
        return answered_bt / (weight_bG @ images_G1), ratio(weight_bG @ wrong_Gt, answered_bt)

    coverage_t, error_t = (v[0] for v in figures(np.ones((1, len(names)))))
    drawn = [figures(weights) for weights in resample_weights(len(names), resamples, seed)]
    none = np.zeros((0, len(asked)))
    coverage_bt, error_bt = (np.concatenate([d[i] for d in drawn] or [none]) for i in (0, 1))
    return tuple(
        Abstention(
            max_error=error,
            threshold=threshold,
            coverage=Figure(value=0.0, why="no limit promises so much")
            if threshold is None
            else share_figure(coverage_t[t], coverage_bt[:, t], group_n),
            error=Figure(value=None, why="no answer")
            if np.isnan(error_t[t])
            else share_figure(error_t[t], error_bt[:, t], group_n[answered_tn[t]]),
            malignant=int(malignant_Y[label_n].sum()),
            missed=int((answered_tn[t] & missed_n).sum()),
        )
        for t, (error, threshold) in enumerate(asked)
    )


def _per_group(value_tn: npt.NDArray[Any], group_n: npt.NDArray[np.intp], count: int) -> Floats:
    """Sums over the images of each group, `(groups, t)`."""
    total = np.zeros((count, len(value_tn)))
    np.add.at(total, group_n, value_tn.T.astype(np.float64))
    return total
