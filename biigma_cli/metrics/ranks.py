"""ROC, precision-recall and operating points of one class against the rest, on many resamples.

scikit-learn has each of these for one sample; here a block of resamples is a matrix of weights
`(n, b)`, and one sort serves them all. Images with equal scores pass a threshold together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from biigma_cli.metrics.confusion import Floats

#: Rates at which an operating point is read, in percent.
RATES = (90, 95)
# A share of whole images is compared with a rate; what floating point adds must not decide it.
SLACK = 1e-9


class Ranking(NamedTuple):
    """One class's images by falling score.

    Attributes:
        order_n: indices of the images.
        positive_n1: 1 where the image is of the class, in that order.
        starts: where each set of equal scores begins; None where all scores differ.
    """

    order_n: npt.NDArray[np.intp]
    positive_n1: Floats
    starts: npt.NDArray[np.intp] | None


def rank(score_n: Floats, is_positive_n: npt.NDArray[np.bool_]) -> Ranking:
    """Sort once."""
    order = np.argsort(-score_n, kind="stable")
    ordered = score_n[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    return Ranking(
        order_n=order,
        positive_n1=is_positive_n[order, None].astype(np.float64),
        starts=None if len(starts) == len(order) else starts,
    )


def rank_figures(ranking: Ranking, weight_nb: Floats) -> dict[str, Floats]:
    """`(b,)` figures for each of b weightings of the n images; NaN where a side is empty.

    `auc` is the share of pairs in the right order, a tie counting a half; `ap` the sum of
    precision over the steps of recall, without interpolation, as in scikit-learn. For the
    operating points see `points`.
    """
    all_nb = weight_nb[ranking.order_n]
    hit_nb = all_nb * ranking.positive_n1
    if ranking.starts is not None:
        all_nb = np.add.reduceat(all_nb, ranking.starts, axis=0)
        hit_nb = np.add.reduceat(hit_nb, ranking.starts, axis=0)
    called_nb = np.cumsum(all_nb, axis=0)
    tp_nb = np.cumsum(hit_nb, axis=0)
    fp_nb = called_nb - tp_nb
    positives, negatives = tp_nb[-1], fp_nb[-1]
    below_nb = negatives - fp_nb + (all_nb - hit_nb) / 2
    precision_nb = np.divide(tp_nb, called_nb, out=np.zeros_like(tp_nb), where=called_nb > 0)
    return {
        "auc": ratio(np.einsum("nb,nb->b", hit_nb, below_nb), positives * negatives),
        # scikit-learn gives a figure without negatives, too: nothing is ranked then.
        "ap": ratio(
            np.einsum("nb,nb->b", hit_nb, precision_nb), np.where(negatives > 0, positives, 0)
        ),
        **points(tp_nb, fp_nb),
    }


def points(tp_nb: Floats, fp_nb: Floats) -> dict[str, Floats]:
    """Operating points from counts above each threshold, falling.

    Of the thresholds that keep at least the wanted specificity the one with the highest
    sensitivity counts, and the other way round; nothing is interpolated between thresholds, and
    images with equal scores pass together. That nothing is called positive is a threshold, too.
    """
    positives, negatives = tp_nb[-1], fp_nb[-1]
    figures: dict[str, Floats] = {}
    for rate in RATES:
        kept = (fp_nb <= negatives * (1 - rate / 100) + SLACK).sum(0)  # a prefix: fp only grows
        last = np.take_along_axis(tp_nb, np.maximum(kept - 1, 0)[None], axis=0)[0]
        tp = np.where(kept > 0, last, 0)
        defined = (positives > 0) & (negatives > 0)
        figures[f"sensitivity_at_specificity_{rate}"] = ratio(tp, np.where(defined, positives, 0))
        missed = (tp_nb < positives * rate / 100 - SLACK).sum(0)
        fp = np.take_along_axis(fp_nb, missed[None], axis=0)[0]
        figures[f"specificity_at_sensitivity_{rate}"] = ratio(
            negatives - fp, np.where(defined, negatives, 0)
        )
    return figures


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Quotient; NaN where the denominator is 0."""
    none = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    quotient: Floats = np.divide(numerator, denominator, out=none, where=denominator > 0)
    return quotient
