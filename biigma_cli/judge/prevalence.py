"""What a model does where classes have other shares than on the part: each class by its own weight.

A figure there is the mean over each class's images, weighted by the share that the class has there.
So it presumes, as `metrics.prior` does, that the images of a class are the same in both places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from biigma_cli.metrics import (
    Figure,
    Floats,
    Ints,
    at_prevalence,
    log_probability,
    malignancy,
    malignant_classes,
)
from biigma_cli.metrics.assess import with_end, with_interval
from biigma_cli.metrics.confusion import resample_weights
from biigma_cli.metrics.ranks import ratio
from biigma_cli.metrics.selective import effective_size

#: Kinds of probabilities: as judged, and as `predict --prevalence` takes them.
AS_JUDGED, CORRECTED = "as judged", "corrected"
ANSWER = "the answer"
#: Lesions of a class below which no interval is worth much.
FEWEST = 10
_ANSWER_FIGURES = ("accuracy", "log_loss", "brier", "malignancy")


@dataclass(frozen=True, kw_only=True)
class Call:
    """Calling images malignant in one way.

    Attributes:
        by: `ANSWER`, or `limit`.
        probabilities: `AS_JUDGED` or `CORRECTED`; limits are of the former.
        min_sensitivity: that the limit was asked for; None where none was.
        threshold: the least malignancy that is called so; None of an answer, and where no limit
            promises so much.
        sensitivity: share of the malignant that are called malignant.
        specificity: share of the benign that are not.
        ppv: share of those called malignant that are.
        npv: share of the others that are benign.
        called: share of all that are called malignant.
    """

    by: str
    probabilities: str
    min_sensitivity: float | None = None
    threshold: float | None = None
    sensitivity: Figure
    specificity: Figure
    ppv: Figure
    npv: Figure
    called: Figure

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        names = ("sensitivity", "specificity", "ppv", "npv", "called")
        return {
            "by": self.by,
            "probabilities": self.probabilities,
            "min_sensitivity": self.min_sensitivity,
            "threshold": self.threshold,
            **{name: getattr(self, name).to_dict() for name in names},
        }


@dataclass(frozen=True, kw_only=True)
class AtPrevalence:
    """Figures where classes have given shares.

    Attributes:
        codes: of the classes.
        shares: of each, together 1.
        malignant: share of the malignant classes; None where it is not known which they are.
        images: judged.
        worth: how many images of one weight they are worth, at most (Kish).
        few: classes with a share but fewer than `FEWEST` lesions here, with their images: their
            figures hang on so few that the intervals say too little.
        answers: by kind of probabilities: `accuracy`, `log_loss`, `brier`, and `malignancy`, the
            malignant classes' mean probability (where these are known).
        difference: corrected minus as judged, likewise; empty without correction.
        calls: of the images that the input check does not flag; none where it is not known which
            classes are malignant, or where all are or none is.
    """

    codes: tuple[str, ...]
    shares: tuple[float, ...]
    malignant: float | None
    images: int
    worth: float
    few: Mapping[str, int]
    answers: Mapping[str, Mapping[str, Figure]]
    difference: Mapping[str, Figure]
    calls: tuple[Call, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""

        def plain(figures: Mapping[str, Figure]) -> dict[str, Any]:
            return {name: figure.to_dict() for name, figure in figures.items()}

        return {
            "shares": dict(zip(self.codes, self.shares, strict=True)),
            "malignant": self.malignant,
            "images": self.images,
            "worth": self.worth,
            "few": dict(self.few),
            "answers": {kind: plain(figures) for kind, figures in self.answers.items()},
            "difference": plain(self.difference),
            "calls": [call.to_dict() for call in self.calls],
        }


def judge_at(
    shares: Sequence[float],
    label_n: Ints,
    proba_nY: npt.NDArray[np.floating[Any]],
    codes: Sequence[str],
    malignant: Sequence[bool | None],
    groups: Sequence[str],
    *,
    limits: Sequence[tuple[float | None, float | None]] = (),
    weight_Y: Floats | None = None,
    flagged_n: npt.NDArray[np.bool_] | None = None,
    resamples: int,
    seed: int = 0,
) -> AtPrevalence:
    """Figures where classes have such shares, with 95% percentile intervals over groups.

    Args:
        shares: `(Y,)`, together 1; 0 for a class without an image here.
        label_n: `(n,)` class indices, of the images that count.
        proba_nY: `(n, Y)` probabilities, of the same.
        malignant: of each class.
        groups: lesion of each image.
        limits: sensitivities asked for and limits, as of `judge.screening.screen`.
        weight_Y: what `predict --prevalence` multiplies each probability with, see
            `ClassPrior.weights`; None where the model states no class shares.
        flagged_n: `(n,)`, those that get no answer.

    Raises:
        ValueError: a class without an image has a share.
    """
    share_Y = np.asarray(shares, np.float64)
    count_Y = np.bincount(label_n, minlength=len(codes))
    if (share_Y[count_Y == 0] > 0).any():
        raise ValueError("a class without an image has a share")
    malignant_Y = malignant_classes(malignant)
    kinds = {AS_JUDGED: proba_nY.astype(np.float64)}
    if weight_Y is not None:
        kinds[CORRECTED] = at_prevalence(proba_nY, weight_Y)
    names, group_n = np.unique(np.asarray(groups), return_inverse=True)

    def per_class(value_nk: Floats, there_n: npt.NDArray[np.bool_]) -> _ClassMeans:
        return _ClassMeans(
            label_n[there_n], value_nk[there_n], group_n[there_n], len(names), len(codes)
        )

    every_n = np.ones(len(label_n), np.bool_)
    answers = per_class(
        np.concatenate([_answer_values(p, label_n, malignant_Y) for p in kinds.values()], 1),
        every_n,
    )
    ways, called = _ways(kinds, limits, malignant_Y)
    there_n = every_n if flagged_n is None else ~flagged_n
    calls = per_class(called, there_n)
    # Of the images that get an answer: a class that is flagged more often is rarer among them.
    passed_Y = ratio(
        np.bincount(label_n[there_n], minlength=len(codes)).astype(np.float64),
        count_Y.astype(np.float64),
    )
    left_Y = share_Y * np.where(count_Y > 0, passed_Y, 0)
    left_Y = left_Y / (left_Y.sum() or 1)

    def figures(weight_bG: Floats) -> tuple[Floats, ...]:
        return (
            answers.mean(weight_bG, share_Y),
            *(() if malignant_Y is None else _rates(calls, weight_bG, left_Y, malignant_Y)),
        )

    own = [found[0] for found in figures(np.ones((1, len(names))))]
    blocks = [figures(weights) for weights in resample_weights(len(names), resamples, seed)]
    drawn = [np.concatenate([b[i] for b in blocks] or [v[None][:0]]) for i, v in enumerate(own)]
    weight_n = np.divide(share_Y, count_Y, out=np.zeros(len(codes)), where=count_Y > 0)[label_n]

    def answered(own_f: Floats, drawn_bf: Floats) -> dict[str, Figure]:
        # Without malignancy where it is not known.
        columns = zip(_ANSWER_FIGURES, own_f, drawn_bf.T, strict=False)
        return {name: with_interval(value, drawn_b) for name, value, drawn_b in columns}

    own_kf = own[0].reshape(len(kinds), -1)
    drawn_bkf = drawn[0].reshape(len(drawn[0]), *own_kf.shape)
    found = {kind: answered(own_kf[k], drawn_bkf[:, k]) for k, kind in enumerate(kinds)}
    for figures_ in found.values():
        figures_["accuracy"] = with_end(figures_["accuracy"], _worth(weight_n, group_n, every_n))
    difference = {}
    if CORRECTED in kinds:
        difference = answered(own_kf[1] - own_kf[0], drawn_bkf[:, 1] - drawn_bkf[:, 0])
    share = None if malignant_Y is None else float(share_Y[malignant_Y].sum())
    told: tuple[Call, ...] = ()
    if malignant_Y is not None and 0 < (left := float(left_Y[malignant_Y].sum())) < 1:
        sides = [
            _worth(weight_n, group_n, there_n & side_n)
            for side_n in (malignant_Y[label_n], ~malignant_Y[label_n], every_n)
        ]
        told = tuple(
            _call(way, left, [v[t] for v in own[1:]], [d[:, t] for d in drawn[1:]], sides)
            for t, way in enumerate(ways)
        )
    return AtPrevalence(
        codes=tuple(codes),
        shares=tuple(share_Y.tolist()),
        malignant=share,
        images=len(label_n),
        worth=float(weight_n.sum() ** 2 / (weight_n**2).sum()),
        few={
            code: int(count_Y[c])
            for c, code in enumerate(codes)
            if share_Y[c] > 0 and len(np.unique(group_n[label_n == c])) < FEWEST
        },
        answers=found,
        difference=difference,
        calls=told,
    )


class _ClassMeans:
    """Means of k values over the images of each class, for any weighting of the groups."""

    def __init__(
        self,
        label_n: Ints,
        value_nk: Floats,
        group_n: npt.NDArray[np.intp],
        groups: int,
        classes: int,
    ) -> None:
        self.sum_GYk = np.zeros((groups, classes, value_nk.shape[1]))
        self.count_GY = np.zeros((groups, classes))
        np.add.at(self.sum_GYk, (group_n, label_n), value_nk)
        np.add.at(self.count_GY, (group_n, label_n), 1)

    def mean(self, weight_bG: Floats, share_Y: Floats) -> Floats:
        """`(b, k)`, each class by its share of all shares; NaN where one with a share has none."""
        has = share_Y > 0
        if not has.any():
            return np.full((len(weight_bG), self.sum_GYk.shape[2]), np.nan)
        total_bYk = np.tensordot(weight_bG, self.sum_GYk[:, has], 1)
        of_class_bYk = ratio(total_bYk, (weight_bG @ self.count_GY[:, has])[..., None])
        found: Floats = np.einsum("byk,y->bk", of_class_bYk, share_Y[has] / share_Y[has].sum())
        # All of each class is all of them, whatever the rounding of the shares' sum.
        return np.where((of_class_bYk == 1).all(1), 1.0, found)


def _answer_values(
    proba_nY: Floats, label_n: Ints, malignant_Y: npt.NDArray[np.bool_] | None
) -> Floats:
    """`(n, 4)`, the values whose means are `_ANSWER_FIGURES`; `(n, 3)` without malignancy."""
    rows, truth_nY = np.arange(len(label_n)), np.eye(proba_nY.shape[1])[label_n]
    values = [
        (proba_nY.argmax(1) == label_n).astype(np.float64),
        -log_probability(proba_nY)[rows, label_n],
        ((proba_nY - truth_nY) ** 2).sum(1),
    ]
    if malignant_Y is not None:
        values.append(malignancy(proba_nY, malignant_Y))
    return np.stack(values, 1)


def _ways(
    kinds: Mapping[str, Floats],
    limits: Sequence[tuple[float | None, float | None]],
    malignant_Y: npt.NDArray[np.bool_] | None,
) -> tuple[list[dict[str, Any]], Floats]:
    """Ways of calling an image malignant, and `(n, ways)`, whether it is."""
    own = kinds[AS_JUDGED]
    if malignant_Y is None:
        return [], np.zeros((len(own), 0))
    ways: list[dict[str, Any]] = [{"by": ANSWER, "probabilities": kind} for kind in kinds]
    called = [malignant_Y[p.argmax(1)] for p in kinds.values()]
    for asked, threshold in limits:
        ways.append(
            {"by": "limit", "probabilities": AS_JUDGED, "min_sensitivity": asked,
             "threshold": threshold}
        )  # fmt: skip
        called.append(malignancy(own, malignant_Y) >= (np.inf if threshold is None else threshold))
    return ways, np.stack(called, 1).astype(np.float64)


def _rates(
    calls: _ClassMeans, weight_bG: Floats, share_Y: Floats, malignant_Y: npt.NDArray[np.bool_]
) -> tuple[Floats, ...]:
    """Sensitivity, specificity, PPV, NPV and the share that is called malignant, `(b, t)` each."""
    sensitivity = calls.mean(weight_bG, share_Y * malignant_Y)
    specificity = 1 - calls.mean(weight_bG, share_Y * ~malignant_Y)
    share = float(share_Y[malignant_Y].sum())
    ppv, npv = predictive(sensitivity, specificity, share)
    called = share * sensitivity + (1 - share) * (1 - specificity)
    return sensitivity, specificity, ppv, npv, called


def predictive(sensitivity: Floats, specificity: Floats, share: float) -> tuple[Floats, Floats]:
    """PPV and NPV where such a share is malignant (Bayes' rule); NaN where none is called so."""
    hit, false = share * sensitivity, (1 - share) * (1 - specificity)
    spared, missed = (1 - share) * specificity, share * (1 - sensitivity)
    return ratio(hit, hit + false), ratio(spared, spared + missed)


def _worth(weight_n: Floats, group_n: npt.NDArray[np.intp], of_n: npt.NDArray[np.bool_]) -> float:
    """How many independent images of one weight some are worth, at least (Kish, twice)."""
    own_n = weight_n[of_n]
    if not own_n.sum():
        return 0.0
    return effective_size(group_n[of_n]) * float(own_n.sum() ** 2 / (own_n**2).sum()) / len(own_n)


def _call(
    way: Mapping[str, Any],
    share: float,
    own: Sequence[np.float64],
    drawn: Sequence[Floats],
    worth: Sequence[float],
) -> Call:
    """One row.

    Args:
        share: malignant images of those that get an answer.
        own: sensitivity, specificity, PPV, NPV and the share that is called malignant.
        drawn: `(b,)` each, likewise.
        worth: how many independent malignant, benign and all images there are, at least.
    """
    if way["by"] != ANSWER and way["threshold"] is None:
        none = Figure(value=None, why="no limit promises so much")
        return Call(**way, sensitivity=none, specificity=none, ppv=none, npv=none, called=none)

    def told(i: int, why: str = "") -> Figure:
        return Figure(value=None, why=why) if np.isnan(own[i]) else with_interval(own[i], drawn[i])

    def rate(i: int, of: int) -> Figure:
        return with_end(told(i), worth[of])

    sensitivity, specificity = rate(0, 0), rate(1, 1)
    ends = [
        [np.array(np.nan if f.low is None else getattr(f, end)) for f in (sensitivity, specificity)]
        for end in ("low", "high")
    ]
    values = []
    for i, why in ((2, "none is called malignant"), (3, "all are called malignant")):
        figure = told(i, why)
        if {sensitivity.value, specificity.value} & {0.0, 1.0}:
            # That rate is the same in each resample, so these are too narrow: at least as wide as
            # by the ends of both rates.
            low, high = (float(predictive(sens, spec, share)[i - 2]) for sens, spec in ends)
            figure = _widened(figure, low, high)
        values.append(figure)
    return Call(
        **way, sensitivity=sensitivity, specificity=specificity, ppv=values[0], npv=values[1],
        called=rate(4, 2),
    )  # fmt: skip


def _widened(figure: Figure, low: float, high: float) -> Figure:
    """It, with an interval that holds these, too; NaN widens nothing."""
    if figure.low is None or figure.high is None:
        return figure
    low, high = float(np.fmin(figure.low, low)), float(np.fmax(figure.high, high))
    return replace(figure, low=low, high=high)
