"""Figures of a model's answers before and after, with bootstrap intervals by lesion.

Dimension letters: n images, Y classes, G groups (lesions), C conditions, b resamples of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from biigma_cli.errors import DataError
from biigma_cli.metrics import Figure, Floats, Ints
from biigma_cli.metrics.assess import with_interval
from biigma_cli.metrics.confusion import resample_weights
from biigma_cli.metrics.subgroups import FEW, FEWEST_LESIONS


class Measures(NamedTuple):
    """The figures of one set of images.

    Attributes:
        unchanged: share of images whose answer stays the same.
        accuracy_drop: accuracy before - after: above 0 is worse.
        p_true_shift: mean of p(true class) after - before: below 0 is worse.
    """

    unchanged: Figure
    accuracy_drop: Figure
    p_true_shift: Figure

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return {name: figure.to_dict() for name, figure in self._asdict().items()}


class Answers(NamedTuple):
    """Probabilities under one condition.

    Attributes:
        name: of the perturbation.
        strength: from 1.
        there_n: `(n,)`, False for images it was not done to.
        proba_nY: `(n, Y)`; rows where `there_n` is False are not read.
    """

    name: str
    strength: int
    there_n: npt.NDArray[np.bool_]
    proba_nY: npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What one condition did to a model's answers.

    Attributes:
        name: of the perturbation.
        strength: from 1.
        n: images.
        overall: over all images.
        macro: mean over the classes, each as heavy.
        per_class: by code of the true class; classes without an image are left out.
        support: images, by code.
        lesions: likewise; under `FEWEST_LESIONS` a class's figures have no interval.
        by_chance: share of answers that would stay if answers after had nothing to do with answers
            before, each as often as it is given.
        draws: of every resample, `(resamples, 2 + Y, 3)`: overall, macro, classes.
    """

    name: str
    strength: int
    n: int
    overall: Measures
    macro: Measures
    per_class: Mapping[str, Measures]
    support: Mapping[str, int]
    lesions: Mapping[str, int]
    by_chance: float
    values: Floats = field(repr=False, compare=False)
    draws: Floats = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return {
            "images": self.n,
            "overall": self.overall.to_dict(),
            "macro": self.macro.to_dict(),
            "unchanged_by_chance": self.by_chance,
            "per_class": {
                code: {
                    "images": self.support[code],
                    "lesions": self.lesions[code],
                    **measures.to_dict(),
                }
                for code, measures in self.per_class.items()
            },
        }


def effects(
    label_n: Ints,
    before_nY: npt.NDArray[np.floating[Any]],
    after: Sequence[Answers],
    codes: Sequence[str],
    *,
    groups: Sequence[str],
    resamples: int = 2000,
    seed: int = 0,
) -> list[Effect]:
    """Figures of each condition; all of them over the same resamples of lesions.

    Intervals are 95% percentile intervals. A resample without a class does not count for that
    class's figures, and its macro averages run over the classes it has. A class of fewer than
    `FEWEST_LESIONS` lesions gets no interval, and then the macro averages get none either.

    Args:
        label_n: `(n,)` class indices.
        before_nY: `(n, Y)` probabilities of the unchanged pictures.
        groups: lesion of each image.
        resamples: 0 gives figures without intervals.

    Raises `DataError` where a probability is not finite.
    """
    names, group_n = np.unique(np.asarray(groups), return_inverse=True)
    count, classes = len(names), len(codes)
    # Per condition, group and class: images, unchanged, accuracy lost, shift of p(true).
    sums_GCY4 = np.zeros((count, len(after), classes, 4))
    before = np.asarray(before_nY, np.float64)
    _check_finite(before, "the unchanged pictures")
    rows = np.arange(len(label_n))
    answer_n = before.argmax(1)
    for c, found in enumerate(after):
        proba = np.asarray(found.proba_nY, np.float64)
        _check_finite(proba[found.there_n], found.name)
        new_n = proba.argmax(1)
        right = (answer_n == label_n).astype(np.float64) - (new_n == label_n)
        shift = proba[rows, label_n] - before[rows, label_n]
        each_n4 = np.stack([np.ones(len(rows)), answer_n == new_n, right, shift], 1)
        t = found.there_n
        np.add.at(sums_GCY4[:, c], (group_n[t], label_n[t]), each_n4[t])
    shape = (-1, len(after), classes, 4)
    flat = sums_GCY4.reshape(count, -1)
    values_CM3 = _measures(flat.sum(0).reshape(shape))[0]
    blocks = [
        _measures((w @ flat).reshape(shape)) for w in resample_weights(count, resamples, seed)
    ]
    draws_bCM3 = np.concatenate(blocks) if blocks else np.empty((0, *values_CM3.shape))
    made = []
    for c, found in enumerate(after):
        support = sums_GCY4[:, c, :, 0].sum(0).astype(int)
        lesions = (sums_GCY4[:, c, :, 0] > 0).sum(0)
        value, draws = values_CM3[c], draws_bCM3[:, c]
        proba = np.asarray(found.proba_nY)[found.there_n]
        made.append(
            Effect(
                name=found.name,
                strength=found.strength,
                n=int(support.sum()),
                overall=_with_intervals(value[0], draws[:, 0]),
                macro=_with_intervals(value[1], draws[:, 1], _why_macro(lesions[support > 0])),
                per_class={
                    code: _with_intervals(value[2 + i], draws[:, 2 + i], _why_class(lesions[i]))
                    for i, code in enumerate(codes)
                    if support[i]
                },
                support={code: int(s) for code, s in zip(codes, support, strict=True) if s},
                lesions={code: int(k) for code, k in zip(codes, lesions, strict=True) if k},
                by_chance=_by_chance(answer_n[found.there_n], proba.argmax(1), classes),
                values=value,
                draws=draws,
            )
        )
    return made


def difference(first: Effect, second: Effect) -> dict[str, Measures]:
    """Paired differences first - second, `overall`, `macro` and by class code.

    Both are to be of the same condition, images, groups, resamples and seed.
    """
    apart, drawn = first.values - second.values, first.draws - second.draws
    codes = list(first.per_class)
    places = [0, 1, *(2 + i for i in range(len(first.values) - 2))]
    # Classes without an image stand in the arrays as NaN, and have no code here.
    known = [i for i in places if i < 2 or not np.isnan(first.values[i, 0])]
    why = {code: _why_class(first.lesions[code]) for code in codes}
    why["macro"] = _why_macro(list(first.lesions.values()))
    return {
        name: _with_intervals(apart[i], drawn[:, i], why.get(name, ""))
        for name, i in zip(("overall", "macro", *codes), known, strict=True)
    }


def mean_with_interval(
    value_n: npt.NDArray[np.floating[Any]],
    groups: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Figure:
    """Mean of a value of each image, with its 95% interval over resamples of lesions."""
    if len(value_n) == 0:
        return Figure(value=None, why="no image")
    names, group_n = np.unique(np.asarray(groups), return_inverse=True)
    sums_G2 = np.zeros((len(names), 2))
    np.add.at(sums_G2, group_n, np.stack([value_n, np.ones(len(value_n))], 1))
    drawn = [w @ sums_G2 for w in resample_weights(len(names), resamples, seed)]
    draws = np.concatenate(drawn) if drawn else np.empty((0, 2))
    return with_interval(np.float64(np.mean(value_n)), draws[:, 0] / draws[:, 1])


def _measures(sums_bCY4: Floats) -> Floats:
    """`(b, C, 2 + Y, 3)`: overall, macro, classes; NaN where there is no image."""
    each = _ratio(sums_bCY4[..., 1:], sums_bCY4[..., :1])
    total = sums_bCY4.sum(2, keepdims=True)
    overall = _ratio(total[..., 1:], total[..., :1])
    there = ~np.isnan(each)
    macro = _ratio(
        np.where(there, each, 0).sum(2, keepdims=True),
        there.sum(2, keepdims=True).astype(np.float64),
    )
    return np.concatenate([overall, macro, each], 2)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    none = np.full(numerator.shape, np.nan)
    quotient: Floats = np.divide(
        numerator, denominator, out=none, where=np.broadcast_to(denominator > 0, numerator.shape)
    )
    return quotient


def _why_class(lesions: int) -> str:
    """Why a class gets no interval; "" where it does."""
    return FEW if lesions < FEWEST_LESIONS else ""


def _why_macro(lesions: Iterable[int]) -> str:
    """Likewise the mean over classes of so many lesions each."""
    return f"a class has {FEW}" if min(lesions, default=0) < FEWEST_LESIONS else ""


def _with_intervals(value_3: Floats, draws_b3: Floats, why: str = "") -> Measures:
    """Values with their intervals; without, where `why` says why."""
    return Measures(
        *(
            Figure(value=None, why="no image")
            if np.isnan(value_3[i])
            else Figure(value=float(value_3[i]), why=why)
            if why
            else with_interval(value_3[i], draws_b3[:, i])
            for i in range(3)
        )
    )


def _by_chance(before_n: Any, after_n: Any, classes: int) -> float:
    shares = [np.bincount(a, minlength=classes) / max(len(a), 1) for a in (before_n, after_n)]
    return float((shares[0] * shares[1]).sum())


def _check_finite(proba: Floats, where: str) -> None:
    bad = int((~np.isfinite(proba)).any(1).sum())
    if bad:
        raise DataError(
            f"the model gives NaN or infinity for {bad} of {len(proba)} pictures ({where})",
            fix="check the model",
        )
