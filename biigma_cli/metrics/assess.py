"""Everything labels and probabilities say of a model, each figure with its bootstrap interval.

Dimension letters: n images, Y classes, G groups (lesions), b resamples of a block.

Conventions:

* The answer is the class with the highest score, the first of equals. The ISIC score alone counts
  a tie of the top scores as wrong, as the challenges of 2018 and 2019 do.
* Macro averages, the ISIC score among them, run over the classes present in the truth.
* Log loss is the mean of -ln p(true class), natural logarithm, p cut off below at 2.2e-16 as in
  scikit-learn. The Brier score is the squared error summed over the classes, averaged over the
  images: 0 to 2, not halved. ECE is of the answer's probability, in 15 bins of equal mass. AURC
  is the mean error over all shares of the images that the surest answers can be (`selective`).
* Intervals are 95% percentile intervals over resamples of whole groups; a resample without a class
  does not count for that class's figures, and its macro averages run over the classes it has.
  That of ECE alone is the basic one, twice the value less the percentiles, widened to hold the
  value: resampling itself adds calibration error, and plain percentiles may all lie above the
  value. It adds more where there was less, which no interval of a difference of two ECEs mends:
  that has none. A share of images that is 0 or 1 (accuracy, sensitivity, specificity, precision)
  is so in every resample: the other end is Clopper and Pearson's (`share_figure`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from biigma_cli.errors import DataError
from biigma_cli.metrics.confusion import Figures, Floats, Ints, evaluate, resample_weights
from biigma_cli.metrics.names import NEGATIVES_ONLY, OVERALL, PER_CLASS, PROPER
from biigma_cli.metrics.resampled import block, prepare, untied
from biigma_cli.metrics.selective import effective_size, error_bound

#: Images that the official scorer gives weight 0: this one of the test part of ISIC 2018 task 3
#: (github.com/ImageMarkup/isic-challenge-scoring, `load_csv.py`).
ZERO_WEIGHT = frozenset({"ISIC_0035068"})
# Rows may miss 1 by this much, as rows rounded to three decimals do.
SUM_TOLERANCE = 0.005
# Resamples with a value, below which there is no interval.
FEWEST = 20


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure with its 95% interval.

    Attributes:
        value: None where it is not defined.
        low: lower end; None where there is no value, or too few resamples have one.
        high: upper end.
        why: why something is None.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON; `why` only where there is something to say."""
        plain = {"value": self.value, "low": self.low, "high": self.high}
        return {**plain, "why": self.why} if self.why else plain


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """All figures of one model on one set of images.

    Attributes:
        figures: counts of answers: accuracy, macro averages, confusion matrix, absent classes.
        overall: the figures `OVERALL`, by name.
        per_class: the figures `PER_CLASS`, by class code and name.
        groups: groups that were resampled.
        grouped: whether any group has several images; where none has, images were resampled.
        ties: images whose top score two classes share.
        left_out: images that do not count (weight 0).
        resamples: of the intervals.
        seed: of the resamples.
        draws: figures of every resample, `(resamples,)` or `(resamples, Y)`, for `compare`.
        sample: digest of labels, groups, resamples and seed; equal where models can be compared.
    """

    figures: Figures
    overall: Mapping[str, Figure]
    per_class: Mapping[str, Mapping[str, Figure]]
    groups: int
    grouped: bool
    ties: int
    left_out: int
    resamples: int
    seed: int
    draws: Mapping[str, Floats] = field(repr=False, compare=False)
    sample: str = field(repr=False)

    @property
    def codes(self) -> tuple[str, ...]:
        """Class codes, in the order of the scores."""
        return tuple(c.code for c in self.figures.per_class)

    @property
    def rare(self) -> tuple[str, ...]:
        """Classes present in the truth that some resample lacks."""
        lacking = np.flatnonzero(np.isnan(self.draws["sensitivity"]).any(axis=0))
        return tuple(c for c in (self.codes[i] for i in lacking) if c not in self.figures.absent)

    @property
    def bootstrap(self) -> str:
        """How the intervals were made, for people."""
        return intervals_title(self.resamples, grouped=self.grouped, basic="ECE")

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        support = {c.code: c.support for c in self.figures.per_class}
        return {
            "n": self.figures.n,
            "groups": self.groups,
            "left_out": self.left_out,
            "ties": self.ties,
            "classes": list(self.codes),
            "absent": list(self.figures.absent),
            "bootstrap": self.bootstrap,
            "resamples": self.resamples,
            "seed": self.seed,
            "overall": plain_figures(self.overall),
            "per_class": {
                code: {"support": support[code], **plain_figures(figures)}
                for code, figures in self.per_class.items()
            },
            "confusion": [list(row) for row in self.figures.confusion],
        }


@dataclass(frozen=True, kw_only=True)
class Difference:
    """First model minus second, over the same images and the same resamples."""

    overall: Mapping[str, Figure]
    per_class: Mapping[str, Mapping[str, Figure]]

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return {
            "overall": plain_figures(self.overall),
            "per_class": {code: plain_figures(figures) for code, figures in self.per_class.items()},
        }


def intervals_title(resamples: int, *, grouped: bool, basic: str = "") -> str:
    """How intervals were made, for people.

    Args:
        grouped: whether lesions were drawn, not images.
        basic: figures whose intervals are no percentiles.
    """
    if resamples < FEWEST:
        return "no intervals" + (f": {resamples} resamples are too few" if resamples else "")
    but = f" ({basic}: basic)" if basic else ""
    what = "lesions" if grouped else "images"
    return f"95% percentile intervals{but}, {resamples} resamples of {what}"


def score_weight(ids: Sequence[str]) -> npt.NDArray[np.bool_]:
    """`(n,)`: False for the images that the official scorer gives weight 0.

    That scorer weights every one of its figures, so such images are left out of all of ours.
    """
    return np.array([i not in ZERO_WEIGHT for i in ids], np.bool_)


def is_probability(proba_nY: npt.NDArray[np.floating[Any]]) -> bool:
    """Whether every row sums to 1, within what rounding to three decimals does."""
    return bool((np.abs(np.asarray(proba_nY, np.float64).sum(1) - 1) <= SUM_TOLERANCE).all())


def assess(
    label_n: Ints,
    proba_nY: npt.NDArray[np.floating[Any]],
    codes: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    counted: npt.NDArray[np.bool_] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Assessment:
    """All figures of a model's scores, with intervals.

    Args:
        label_n: `(n,)` class indices.
        proba_nY: `(n, Y)` scores from 0 to 1. Rows need not sum to 1; log loss, Brier score and
            ECE are then not defined.
        codes: the Y class codes.
        groups: lesion of each image: images of one lesion are drawn together. None: each its own.
        counted: `(n,)`, False for images to leave out; see `score_weight`.
        resamples: 0 gives figures without intervals.
        progress: called with (resamples done, resamples in all).

    Raises:
        DataError: no image, fewer than two classes in the truth, shapes that do not match, a label
            outside the classes, NaN, a score outside 0..1.
    """
    label_n, proba, groups, left_out = _checked(label_n, proba_nY, codes, groups, counted)
    names, group_n = np.unique(np.asarray(groups), return_inverse=True)
    count = len(names)
    prepared = prepare(label_n, proba, group_n, count)
    figures = evaluate(label_n, proba.argmax(1).astype(np.int64), codes)
    values = {k: v[0] for k, v in block(prepared, np.ones((1, count))).items()}
    values.update(_scikit(label_n, proba, figures))
    blocks: list[dict[str, Floats]] = []
    for weights in resample_weights(count, resamples, seed):
        blocks.append(block(prepared, weights))
        if progress:
            progress(sum(len(b["accuracy"]) for b in blocks), resamples)
    draws = {k: np.concatenate([b[k] for b in blocks] or [v[None][:0]]) for k, v in values.items()}
    sure = is_probability(proba)
    of_class = _shares_of(label_n, proba.argmax(1), len(codes))

    def of_one_class(name: str, i: int) -> Figure:
        value, drawn = values[name][i], draws[name][:, i]
        if name in of_class:
            return share_figure(value, drawn, group_n[of_class[name][:, i]])
        return with_interval(value, drawn)

    overall = {
        name: with_interval(values[name], draws[name], basic=name == "ece", least=0)
        if sure or name not in PROPER
        else Figure(value=None, why="the scores do not sum to 1")
        for name in OVERALL
    }
    overall["accuracy"] = share_figure(values["accuracy"], draws["accuracy"], group_n)
    per_class = {
        code: {
            name: of_one_class(name, i)
            if code not in figures.absent or name in NEGATIVES_ONLY
            else Figure(value=None, why="no image of this class")
            for name in PER_CLASS
        }
        for i, code in enumerate(codes)
    }
    return Assessment(
        figures=figures,
        overall=overall,
        per_class=per_class,
        groups=count,
        grouped=count < len(label_n),
        ties=int((~untied(proba)).sum()),
        left_out=left_out,
        resamples=resamples,
        seed=seed,
        draws=draws,
        sample=_digest(label_n, group_n, codes, resamples, seed),
    )


def compare(first: Assessment, second: Assessment) -> Difference:
    """Paired differences first - second of every figure, with percentile intervals; ECE's without.

    Raises `DataError` where they were not made over the same images, in the same order, with the
    same groups, resamples and seed.
    """
    if first.codes != second.codes:
        raise DataError(
            f"the two models have different classes: {', '.join(first.codes)} and "
            f"{', '.join(second.codes)}",
            fix="compare models of the same classes",
        )
    if first.sample != second.sample:
        raise DataError(
            "the two models were not judged on the same images",
            fix="judge both on the same images, in the same order, with the same seed",
        )

    def minus(a: Figure, b: Figure, draws: Floats, *, biased: bool = False) -> Figure:
        if a.value is None or b.value is None:
            return Figure(value=None, why=a.why or b.why)
        if biased:
            why = "no interval: resampling draws it towards 0; see log loss and Brier score"
            return Figure(value=a.value - b.value, why=why)
        return with_interval(np.float64(a.value - b.value), draws)

    apart = {name: drawn - second.draws[name] for name, drawn in first.draws.items()}
    return Difference(
        overall={
            n: minus(f, second.overall[n], apart[n], biased=n == "ece")
            for n, f in first.overall.items()
        },
        per_class={
            code: {
                n: minus(f, second.per_class[code][n], apart[n][:, i]) for n, f in figures.items()
            }
            for i, (code, figures) in enumerate(first.per_class.items())
        },
    )


def mean_auc(assessments: Sequence[Assessment]) -> Figure:
    """Mean AUC of the positive (first) classes of binary tasks over the same images.

    ISIC 2017 ranked by that of melanoma and seborrheic keratosis. Where the tasks were given the
    same groups, resamples and seed, its interval is over the same resamples.
    """
    found = [a.per_class[a.codes[0]]["auc"].value for a in assessments]
    values = [v for v in found if v is not None]
    if not values or len(values) < len(found):
        return Figure(value=None, why="not every task has an AUC")
    draws: Floats = np.mean([a.draws["auc"][:, 0] for a in assessments], axis=0)
    return with_interval(np.float64(np.mean(values)), draws)


def paper_columns(assessment: Assessment) -> dict[str, Figure]:
    """The columns of the paper's Table 1: F1, accuracy, recall and precision, macro-averaged.

    For a task of two classes those of its positive class, the first, are added (`sensitivity`,
    `specificity`, `auc`): what the methods the paper compares itself with on ISIC 2017 call recall
    is that sensitivity.
    """
    columns = {
        "f1": assessment.overall["macro_f1"],
        "accuracy": assessment.overall["accuracy"],
        "recall": assessment.overall["macro_recall"],
        "precision": assessment.overall["macro_precision"],
    }
    if len(assessment.codes) == 2:
        positive = assessment.per_class[assessment.codes[0]]
        columns |= {name: positive[name] for name in ("sensitivity", "specificity", "auc")}
    return columns


def _scikit(label_n: Ints, proba: Floats, figures: Figures) -> dict[str, Any]:
    """The figures of the whole sample that scikit-learn has."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    there = [c.support > 0 for c in figures.per_class]
    auc, ap = (
        np.array(
            [
                float(score(label_n == c, proba[:, c])) if here else np.nan
                for c, here in enumerate(there)
            ]
        )
        for score in (roc_auc_score, average_precision_score)
    )

    def column(name: str) -> Floats:
        return np.array(
            [getattr(c, name) if c.support else np.nan for c in figures.per_class], np.float64
        )

    return {
        **{name: np.float64(value) for name, value in figures.headline().items()},
        "sensitivity": column("recall"),
        "precision": column("precision"),
        "f1": column("f1"),
        "auc": auc,
        "ap": ap,
        "macro_auc": auc[there].mean(),
        "macro_ap": ap[there].mean(),
    }


def with_interval(
    value: np.float64, drawn: Floats, *, basic: bool = False, least: float = -np.inf
) -> Figure:
    """A value with the 95% interval of the resamples that have one.

    Args:
        drawn: `(b,)`, the value in each resample, NaN where it has none.
        basic: the basic interval (2 v - q) instead of the percentile one: for what a resample
            biases, such as ECE.
        least: of what the value can be: no basic interval goes below.
    """
    drawn = drawn[~np.isnan(drawn)]
    if len(drawn) < FEWEST:
        return Figure(value=float(value), why="too few resamples for an interval")
    low, high = np.quantile(drawn, (0.025, 0.975))
    if basic:
        # Widened to hold the value: the shift can be larger than half the interval.
        low, high = 2 * value - high, 2 * value - low
        low, high = max(min(low, value), least), max(high, value)
    return Figure(value=float(value), low=float(low), high=float(high))


def share_figure(value: np.float64, drawn: Floats, group_n: npt.NDArray[np.intp]) -> Figure:
    """A share of images with its 95% interval.

    Where it is 0 or 1 no resample has another value; the other end is then Clopper and Pearson's,
    for as many images as these are worth (`effective_size`).

    Args:
        drawn: `(b,)`, the share in each resample.
        group_n: group of each image that it is a share of.
    """
    return with_end(with_interval(value, drawn), effective_size(group_n))


def with_end(figure: Figure, worth: float) -> Figure:
    """A share's figure; of 0 or 1 with Clopper and Pearson's other end, for so many images."""
    if figure.low is None or figure.value not in (0.0, 1.0):
        return figure
    end = error_bound(0, worth, 0.975)
    return replace(figure, low=1 - end) if figure.value else replace(figure, high=end)


def _shares_of(
    label_n: Ints, answer_n: npt.NDArray[np.intp], classes: int
) -> dict[str, npt.NDArray[np.bool_]]:
    """`(n, Y)` by figure of a class: whether it is a share of images among which the image is."""
    is_nY = label_n[:, None] == np.arange(classes)
    return {
        "sensitivity": is_nY,
        "specificity": ~is_nY,
        "precision": answer_n[:, None] == np.arange(classes),
        "accuracy_at_half": np.ones_like(is_nY),
        "sensitivity_at_half": is_nY,
        "specificity_at_half": ~is_nY,
    }


def _digest(
    label_n: Ints, group_n: npt.NDArray[np.intp], codes: Sequence[str], resamples: int, seed: int
) -> str:
    digest = hashlib.sha256(repr((tuple(codes), resamples, seed)).encode())
    for array in (label_n, group_n):
        digest.update(np.ascontiguousarray(array, np.int64).tobytes())
    return digest.hexdigest()


def plain_figures(figures: Mapping[str, Figure]) -> dict[str, dict[str, Any]]:
    """As plain values, for JSON."""
    return {name: figure.to_dict() for name, figure in figures.items()}


def _checked(
    label_n: Ints,
    proba_nY: npt.NDArray[np.floating[Any]],
    codes: Sequence[str],
    groups: Sequence[str] | None,
    counted: npt.NDArray[np.bool_] | None,
) -> tuple[Ints, Floats, Sequence[str], int]:
    """The images that count. Raises `DataError` for what cannot be judged."""
    proba = np.asarray(proba_nY, np.float64)
    n = len(label_n)
    if groups is None:
        groups = [str(i) for i in range(n)]
    if counted is None:
        counted = np.ones(n, np.bool_)
    if proba.ndim != 2 or not n == len(proba) == len(groups) == len(counted):
        raise DataError(
            f"{n} labels, scores of shape {proba.shape}, {len(groups)} groups and "
            f"{len(counted)} weights",
            fix="match them by id",
        )
    if proba.shape[1] != len(codes) or len(codes) < 2:
        raise DataError(
            f"{proba.shape[1]} scores per image and {len(codes)} classes",
            fix="give one score per class, and two classes at least",
        )
    label_n, proba = label_n[counted], proba[counted]
    groups = [g for g, c in zip(groups, counted, strict=True) if c]
    if len(label_n) == 0:
        raise DataError("there is nothing to evaluate: no image", fix="choose another part")
    if label_n.min() < 0 or label_n.max() >= len(codes):
        raise DataError(f"labels name a class outside 0..{len(codes) - 1}", fix="check classes")
    bad = np.flatnonzero(~((proba >= 0) & (proba <= 1 + 1e-6)).all(1))
    if len(bad):
        what = "NaN" if np.isnan(proba[bad[0]]).any() else "outside 0..1"
        raise DataError(
            f"{len(bad)} of {len(proba)} rows of scores are NaN or outside 0..1; the first, row "
            f"{bad[0]}, is {what}",
            fix="check the model, or mend the predictions",
        )
    present = np.unique(label_n)
    if len(present) == 1:
        raise DataError(
            f"all {len(label_n)} images are of one class, {codes[present[0]]}: there is nothing "
            "to tell apart",
            fix="judge on images of two classes at least",
        )
    return label_n, proba, groups, int((~counted).sum())
