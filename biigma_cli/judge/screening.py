"""Malignant against benign: how well they are told apart, and whether a model's limits hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from biigma_cli.metrics import Figure, Floats, Ints, ScreeningLimits, malignancy, malignant_classes
from biigma_cli.metrics.assess import share_figure, with_interval
from biigma_cli.metrics.confusion import resample_weights
from biigma_cli.metrics.ranks import rank, rank_figures, ratio

#: Sensitivities that are asked for.
SENSITIVITIES = (0.95, 0.9, 0.8)


@dataclass(frozen=True, kw_only=True)
class Screening:
    """What calling images suspicious from one limit on does on a part.

    Attributes:
        min_sensitivity: what was asked for; None where the limit itself was.
        threshold: the least malignancy that is suspicious; None where no limit promises so much.
        sensitivity: share of the malignant images that are suspicious.
        specificity: share of the benign ones that are not.
        ppv: share of the suspicious ones that are malignant, at this part's share of them.
        missed: malignant images that are not suspicious.
    """

    min_sensitivity: float | None
    threshold: float | None
    sensitivity: Figure
    specificity: Figure
    ppv: Figure
    missed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return {
            "min_sensitivity": self.min_sensitivity,
            "threshold": self.threshold,
            "sensitivity": self.sensitivity.to_dict(),
            "specificity": self.specificity.to_dict(),
            "ppv": self.ppv.to_dict(),
            "missed": self.missed,
        }


@dataclass(frozen=True, kw_only=True)
class Malignancy:
    """Malignant against benign, without the images that the input check flags.

    Attributes:
        malignant: images of a malignant or pre-malignant class.
        benign: the others.
        flagged_malignant: malignant images that are left out, flagged as no dermoscopy.
        flagged_benign: the others that are.
        auc: of the malignant classes' summed probability.
        limits: one for each limit.
    """

    malignant: int
    benign: int
    flagged_malignant: int
    flagged_benign: int
    auc: Figure
    limits: tuple[Screening, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return {
            "malignant": self.malignant,
            "benign": self.benign,
            "flagged_malignant": self.flagged_malignant,
            "flagged_benign": self.flagged_benign,
            "auc": self.auc.to_dict(),
            "limits": [row.to_dict() for row in self.limits],
        }


def promised(found: ScreeningLimits | None) -> list[tuple[float, float | None]]:
    """Each of `SENSITIVITIES`, and the limit that a model promises it with; None for none.

    Empty where the model states no limits.
    """
    if found is None:
        return []
    rows = [(asked, found.at_least(asked)) for asked in SENSITIVITIES]
    return [(asked, None if row is None else row.threshold) for asked, row in rows]


def screen(
    asked: Sequence[tuple[float | None, float | None]],
    label_n: Ints,
    proba_nY: npt.NDArray[np.floating[Any]],
    malignant: Sequence[bool | None],
    groups: Sequence[str],
    *,
    flagged_n: npt.NDArray[np.bool_] | None,
    resamples: int,
    seed: int = 0,
) -> Malignancy | None:
    """How it tells them apart, with 95% percentile intervals over resamples of groups.

    Args:
        asked: sensitivities and limits, see `promised`; None for one that was not asked for.
        label_n: `(n,)` class indices, of the images that count.
        proba_nY: `(n, Y)`, of the same.
        malignant: of each class.
        groups: lesion of each image.
        flagged_n: `(n,)`, those that get no answer.

    Returns:
        None where not every class is known to be malignant or benign, or there are images of one
        kind alone.
    """
    malignant_Y = malignant_classes(malignant)
    if malignant_Y is None:
        return None
    left_out = [0, 0]
    if flagged_n is not None:
        left_out = [int((flagged_n & (malignant_Y[label_n] == kind)).sum()) for kind in (1, 0)]
        label_n, proba_nY = label_n[~flagged_n], proba_nY[~flagged_n]
        groups = [g for g, flagged in zip(groups, flagged_n, strict=True) if not flagged]
    is_malignant_n = malignant_Y[label_n]
    if not is_malignant_n.any() or is_malignant_n.all():
        return None
    score_n = malignancy(proba_nY, malignant_Y)
    names, group_n = np.unique(np.asarray(groups), return_inverse=True)
    ranking = rank(score_n, is_malignant_n)
    thresholds = np.array([np.inf if t is None else t for _, t in asked])
    called_nt = score_n[:, None] >= thresholds
    here_n1 = is_malignant_n[:, None]

    def figures(weight_nb: Floats) -> tuple[Floats, ...]:
        """AUC `(b,)`, then sensitivity, specificity and PPV, `(b, t)` each."""
        hit_bt = weight_nb.T @ (called_nt & here_n1)
        false_bt = weight_nb.T @ (called_nt & ~here_n1)
        positive_b1 = weight_nb.T @ here_n1
        negative_b1 = weight_nb.T @ ~here_n1
        return (
            rank_figures(ranking, weight_nb)["auc"],
            ratio(hit_bt, np.broadcast_to(positive_b1, hit_bt.shape)),
            1 - ratio(false_bt, np.broadcast_to(negative_b1, false_bt.shape)),
            ratio(hit_bt, hit_bt + false_bt),
        )

    own = [values[0] for values in figures(np.ones((len(score_n), 1)))]
    blocks = [
        figures(weights.T[group_n]) for weights in resample_weights(len(names), resamples, seed)
    ]
    drawn = [np.concatenate([b[i] for b in blocks] or [own[i][None][:0]]) for i in range(4)]

    def told(i: int, t: int, of_n: npt.NDArray[np.bool_]) -> Figure:
        if asked[t][1] is None:
            return Figure(value=None, why="no limit promises so much")
        if np.isnan(own[i][t]):
            return Figure(value=None, why="nothing is suspicious")
        return share_figure(own[i][t], drawn[i][:, t], group_n[of_n])

    return Malignancy(
        malignant=int(is_malignant_n.sum()),
        benign=int((~is_malignant_n).sum()),
        flagged_malignant=left_out[0],
        flagged_benign=left_out[1],
        auc=with_interval(own[0], drawn[0]),
        limits=tuple(
            Screening(
                min_sensitivity=sensitivity,
                threshold=threshold,
                sensitivity=told(1, t, is_malignant_n),
                specificity=told(2, t, ~is_malignant_n),
                ppv=told(3, t, called_nt[:, t]),
                missed=int((is_malignant_n & ~called_nt[:, t]).sum()),
            )
            for t, (sensitivity, threshold) in enumerate(asked)
        ),
    )
