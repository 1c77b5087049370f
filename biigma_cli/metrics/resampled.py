"""All figures at once for each of many weightings of the groups.

What a figure adds up is summed per group once, what it sorts is sorted once; a block of resamples
is then a few products and cumulative sums.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from biigma_cli.metrics.calibration import Confidence, by_confidence, calibration_error
from biigma_cli.metrics.confusion import Floats, Ints, confusion_figures, confusions
from biigma_cli.metrics.ranks import Ranking, rank, rank_figures, ratio
from biigma_cli.metrics.selective import aurc


class Prepared(NamedTuple):
    """Sums per group, and what is sorted once for all resamples."""

    confusion_GYY: Floats
    untied_GY: Floats
    above_GY: Floats
    above_right_GY: Floats
    loss_G2: Floats
    rankings: tuple[Ranking, ...]
    confidence: Confidence
    group_n: npt.NDArray[np.intp]


def prepare(label_n: Ints, proba: Floats, group_n: npt.NDArray[np.intp], count: int) -> Prepared:
    rows, classes = np.arange(len(label_n)), proba.shape[1]
    answer_n = proba.argmax(1).astype(np.int64)
    truth_nY = np.eye(classes)[label_n]

    def per_group(value: Floats) -> Floats:
        total = np.zeros((count, *value.shape[1:]))
        np.add.at(total, group_n, value)
        return total

    right_n = (answer_n == label_n) & untied(proba)
    above_nY = (proba > 0.5).astype(np.float64)
    loss_n = -np.log(np.maximum(proba[rows, label_n], np.finfo(np.float64).eps))
    brier_n = ((proba - truth_nY) ** 2).sum(1)
    return Prepared(
        confusion_GYY=confusions(label_n, answer_n, group_n, count, classes),
        untied_GY=per_group(truth_nY * right_n[:, None]),
        above_GY=per_group(above_nY),
        above_right_GY=per_group(above_nY * truth_nY),
        loss_G2=per_group(np.stack([loss_n, brier_n], 1)),
        rankings=tuple(rank(proba[:, c], label_n == c) for c in range(classes)),
        confidence=by_confidence(label_n, proba),
        group_n=group_n,
    )


def block(p: Prepared, weight_bG: Floats) -> dict[str, Floats]:
    """Figures for each of b weightings of the groups: `(b,)` overall, `(b, Y)` per class."""
    groups, classes, _ = p.confusion_GYY.shape
    table_bYY = (weight_bG @ p.confusion_GYY.reshape(groups, -1)).reshape(-1, classes, classes)
    hit_bY = np.diagonal(table_bYY, axis1=1, axis2=2)
    support_bY, called_bY = table_bYY.sum(2), table_bYY.sum(1)
    total_b1 = support_bY.sum(1, keepdims=True)
    present = support_bY > 0
    untied_bY = ratio(weight_bG @ p.untied_GY, support_bY)
    above_bY, above_right_bY = weight_bG @ p.above_GY, weight_bG @ p.above_right_GY
    above_wrong_bY = above_bY - above_right_bY
    negative_bY = total_b1 - support_bY
    precision = np.nan_to_num(ratio(hit_bY, called_bY))  # never said: 0, as in `evaluate`
    loss_b2 = (weight_bG @ p.loss_G2) / total_b1
    weight_nb = weight_bG.T[p.group_n]
    ranks = [rank_figures(r, weight_nb) for r in p.rankings]
    ranked = {name: np.stack([r[name] for r in ranks], 1) for name in ranks[0]}
    return {
        **confusion_figures(table_bYY),
        "isic_score": mean_defined(untied_bY),
        "macro_auc": mean_defined(ranked["auc"]),
        "macro_ap": mean_defined(ranked["ap"]),
        "log_loss": loss_b2[:, 0],
        "brier": loss_b2[:, 1],
        "ece": calibration_error(p.confidence, weight_nb),
        "aurc": aurc(p.confidence, weight_nb),
        "sensitivity": ratio(hit_bY, support_bY),
        "specificity": ratio(negative_bY - called_bY + hit_bY, negative_bY),
        "precision": np.where(present, precision, np.nan),
        "f1": np.where(present, ratio(2 * hit_bY, support_bY + called_bY), np.nan),
        **ranked,
        "accuracy_at_half": (above_right_bY + negative_bY - above_wrong_bY) / total_b1,
        "sensitivity_at_half": ratio(above_right_bY, support_bY),
        "specificity_at_half": ratio(negative_bY - above_wrong_bY, negative_bY),
    }


def mean_defined(value_bY: Floats) -> Floats:
    """Mean over the classes that have a value; NaN where none has."""
    there = ~np.isnan(value_bY)
    return ratio(np.where(there, value_bY, 0).sum(1), there.sum(1).astype(np.float64))


def untied(proba: Floats) -> npt.NDArray[np.bool_]:
    """Whether one class alone has the row's top score."""
    alone: npt.NDArray[np.bool_] = (proba == proba.max(1, keepdims=True)).sum(1) == 1
    return alone
