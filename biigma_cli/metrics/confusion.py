"""Figures of answers (class indices), on scikit-learn, with bootstrap intervals by lesion.

Macro averages run over the classes present in the truth, so that a class nobody could have found
does not count as missed; absent classes are named in `Figures.absent`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from biigma_cli.errors import DataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

HEADLINE = ("accuracy", "macro_f1", "macro_recall", "macro_precision")


@dataclass(frozen=True, kw_only=True)
class ClassFigures:
    """One class: its code, images (support), precision, recall and F1."""

    code: str
    support: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, kw_only=True)
class Figures:
    """All figures of one set of predictions.

    Attributes:
        macro_recall: the same number as balanced accuracy.
        confusion: rows are the truth, columns the prediction.
        absent: classes without an image in the truth, left out of the macro averages.
    """

    n: int
    accuracy: float
    macro_f1: float
    macro_recall: float
    macro_precision: float
    per_class: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]
    absent: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, with `balanced_accuracy` as the second name of `macro_recall`."""
        return {**asdict(self), "balanced_accuracy": self.macro_recall}

    def headline(self) -> dict[str, float]:
        """The four figures of the paper's tables."""
        return {name: getattr(self, name) for name in HEADLINE}


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with its 95% bootstrap interval."""

    value: float
    low: float
    high: float


def evaluate(truth_n: Ints, predicted_n: Ints, codes: Sequence[str]) -> Figures:
    """Figures of `(n,)` class indices.

    Raises `DataError` for empty input, unequal lengths, or an index outside the classes.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    _check(truth_n, predicted_n, len(codes))
    labels = np.arange(len(codes))
    precision, recall, f1, support = precision_recall_fscore_support(
        truth_n, predicted_n, labels=labels, zero_division=0
    )
    present = support > 0
    return Figures(
        n=len(truth_n),
        accuracy=float((truth_n == predicted_n).mean()),
        macro_f1=float(f1[present].mean()),
        macro_recall=float(recall[present].mean()),
        macro_precision=float(precision[present].mean()),
        per_class=tuple(
            ClassFigures(
                code=code,
                support=int(support[i]),
                precision=float(precision[i]),
                recall=float(recall[i]),
                f1=float(f1[i]),
            )
            for i, code in enumerate(codes)
        ),
        confusion=tuple(
            tuple(int(v) for v in row)
            for row in confusion_matrix(truth_n, predicted_n, labels=labels)
        ),
        absent=tuple(c for c, p in zip(codes, present, strict=True) if not p),
    )


def bootstrap(
    truth_n: Ints,
    predicted_n: Ints,
    groups: Sequence[str],
    classes: int,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """95% percentile intervals of the headline figures, resampling whole lesions.

    Args:
        groups: lesion of each image; images of one lesion are drawn together.
    """
    drawn = _resampled(truth_n, [predicted_n], groups, classes, resamples, seed)[0]
    values = confusion_figures(confusions(truth_n, predicted_n, np.zeros_like(truth_n), 1, classes))
    return {name: _interval(float(values[name][0]), drawn[name]) for name in HEADLINE}


def bootstrap_difference(
    truth_n: Ints,
    first_n: Ints,
    second_n: Ints,
    groups: Sequence[str],
    classes: int,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Paired differences first - second of the headline figures, over the same lesions."""
    a, b = _resampled(truth_n, [first_n, second_n], groups, classes, resamples, seed)
    one = np.zeros_like(truth_n)
    va, vb = (
        confusion_figures(confusions(truth_n, p, one, 1, classes)) for p in (first_n, second_n)
    )
    return {n: _interval(float(va[n][0] - vb[n][0]), a[n] - b[n]) for n in HEADLINE}


def _interval(value: float, drawn: Floats) -> Interval:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(value=value, low=float(low), high=float(high))


def _resampled(
    truth_n: Ints,
    predictions: Sequence[Ints],
    groups: Sequence[str],
    classes: int,
    resamples: int,
    seed: int,
) -> list[dict[str, Floats]]:
    """Headline figures of each prediction on the same resamples of groups."""
    for predicted_n in predictions:
        _check(truth_n, predicted_n, classes)
    if len(groups) != len(truth_n):
        raise DataError(f"{len(truth_n)} labels and {len(groups)} groups", fix="match them by id")
    names, group_n = np.unique(np.asarray(groups), return_inverse=True)
    count = len(names)
    per_group = [
        confusions(truth_n, p, group_n, count, classes).reshape(count, -1) for p in predictions
    ]
    sums: list[list[Floats]] = [[] for _ in predictions]
    for weights in resample_weights(count, resamples, seed):
        for total, tables in zip(sums, per_group, strict=True):
            total.append((weights @ tables).reshape(len(weights), classes, classes))
    return [confusion_figures(np.concatenate(total)) for total in sums]


def resample_weights(groups: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each group is drawn in each resample, in blocks `(b, groups)` to save memory.

    Equal arguments give equal draws, so that models judged one after the other are paired.
    """
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, 100):
        block = min(100, resamples - start)
        yield rng.multinomial(groups, np.full(groups, 1 / groups), size=block).astype(np.float64)


def confusions(
    truth_n: Ints,
    predicted_n: Ints,
    group_n: npt.NDArray[np.intp] | Ints,
    groups: int,
    classes: int,
) -> Floats:
    """One confusion matrix per group, `(groups, classes, classes)`."""
    tables = np.zeros((groups, classes, classes))
    np.add.at(tables, (group_n, truth_n, predicted_n), 1)
    return tables


def confusion_figures(tables_rYY: Floats) -> dict[str, Floats]:
    """Headline figures of each of r confusion matrices; the same rules as `evaluate`."""
    hits = np.diagonal(tables_rYY, axis1=1, axis2=2)
    support = tables_rYY.sum(2)
    called = tables_rYY.sum(1)
    present = support > 0
    recall = np.divide(hits, support, out=np.zeros_like(hits), where=present)
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    f1 = np.divide(2 * hits, support + called, out=np.zeros_like(hits), where=support + called > 0)
    classes = present.sum(1)

    def macro(values: Floats) -> Floats:
        mean: Floats = (values * present).sum(1) / classes
        return mean

    return {
        "accuracy": hits.sum(1) / support.sum(1),
        "macro_f1": macro(f1),
        "macro_recall": macro(recall),
        "macro_precision": macro(precision),
    }


def _check(truth_n: Ints, predicted_n: Ints, classes: int) -> None:
    if len(truth_n) == 0:
        raise DataError("there is nothing to evaluate: no image", fix="choose another part")
    if len(truth_n) != len(predicted_n):
        raise DataError(
            f"{len(truth_n)} labels and {len(predicted_n)} predictions", fix="match them by id"
        )
    for name, values in (("labels", truth_n), ("predictions", predicted_n)):
        if values.min() < 0 or values.max() >= classes:
            raise DataError(f"{name} name a class outside 0..{classes - 1}", fix="check classes")
