"""Figures of parts of the images: the same model, apart by sex, age or site.

Each subgroup's lesions are resampled by themselves. The intervals are not widened for the number
of subgroups that are looked at, and subgroups differ in their mix of diagnoses: a lower accuracy
alone does not say that the model treats them worse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from biigma_cli.errors import DataError
from biigma_cli.metrics.assess import Figure, share_figure, with_interval
from biigma_cli.metrics.confusion import (
    Floats,
    Ints,
    _check,
    confusion_figures,
    confusions,
    resample_weights,
)
from biigma_cli.metrics.ranks import ratio

#: Figures of each subgroup, in the order they are shown.
SUBGROUP_FIGURES = ("accuracy", "macro_recall", "macro_f1", "sensitivity", "specificity")
#: Fewer lesions than this give no figure at all.
FEWEST_LESIONS = 10
#: Fewer lesions with a positive image than this, or with a negative one, give no sensitivity and
#: specificity: lesions are what is resampled.
FEWEST_POSITIVES = 10
FEW = f"fewer than {FEWEST_LESIONS} lesions"
ONE_CLASS = "one class only"


@dataclass(frozen=True, kw_only=True)
class Subgroup:
    """Figures of the images that share a value.

    Attributes:
        by: what is told apart, such as `sex`.
        value: such as `female`.
        images: that count.
        lesions: among them.
        positives: images of the class asked for; 0 where none is.
        classes: codes of the classes present.
        figures: `SUBGROUP_FIGURES` by name; sensitivity and specificity are to the class asked for.
    """

    by: str
    value: str
    images: int
    lesions: int
    positives: int
    classes: tuple[str, ...]
    figures: Mapping[str, Figure]

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return {
            "by": self.by,
            "value": self.value,
            "images": self.images,
            "lesions": self.lesions,
            "positives": self.positives,
            "classes": list(self.classes),
            "figures": {name: figure.to_dict() for name, figure in self.figures.items()},
        }


def assess_subgroups(
    label_n: Ints,
    answer_n: Ints,
    codes: Sequence[str],
    values: Mapping[str, Sequence[str]],
    *,
    groups: Sequence[str],
    asked: str | None,
    resamples: int = 2000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Subgroup, ...]:
    """Figures of each value of each variable: the variables as given, their values sorted.

    Macro averages run over the classes present in the subgroup.

    Args:
        label_n: `(n,)` class indices.
        answer_n: `(n,)` class indices.
        codes: the class codes.
        values: variable to the `n` values of the images.
        groups: lesion of each image: images of one lesion are drawn together.
        asked: class whose sensitivity and specificity are given; None for none.
        resamples: 0 gives figures without intervals.
        progress: called with (subgroups done, subgroups in all).

    Raises:
        DataError: no image, lengths that do not match, an index outside the classes.
    """
    _check(label_n, answer_n, len(codes))
    if any(len(v) != len(label_n) for v in (groups, *values.values())):
        raise DataError("the subgroups are not of the same images", fix="match them by id")
    lesion_n = np.asarray(groups)
    wanted = [(by, value) for by, own in values.items() for value in sorted(set(own))]
    found = []
    for by, value in wanted:
        inside_n = np.asarray(values[by]) == value
        found.append(
            _subgroup(
                by, value, label_n[inside_n], answer_n[inside_n], lesion_n[inside_n], codes,
                codes.index(asked) if asked is not None else None, resamples, seed,
            )
        )  # fmt: skip
        if progress:
            progress(len(found), len(wanted))
    return tuple(found)


def _subgroup(
    by: str,
    value: str,
    label_n: Ints,
    answer_n: Ints,
    lesion_n: npt.NDArray[np.str_],
    codes: Sequence[str],
    asked: int | None,
    resamples: int,
    seed: int,
) -> Subgroup:
    names, group_n = np.unique(lesion_n, return_inverse=True)
    count, classes = len(names), len(codes)
    present = np.unique(label_n)
    positives = int((label_n == asked).sum()) if asked is not None else 0
    with_positive, with_negative = (
        len(np.unique(group_n[is_n])) for is_n in (label_n == asked, label_n != asked)
    )
    why = _why_not(count, len(present), with_positive, with_negative, asked)
    figures = {}
    if all(why.values()):
        figures = {name: Figure(value=None, why=why[name]) for name in SUBGROUP_FIGURES}
    else:
        per_group = confusions(label_n, answer_n, group_n, count, classes).reshape(count, -1)
        tables = [per_group.sum(0)[None]]
        tables += [weights @ per_group for weights in resample_weights(count, resamples, seed)]
        drawn = _values(np.concatenate(tables).reshape(-1, classes, classes), asked)
        of_n = {
            "accuracy": group_n,
            "sensitivity": group_n[label_n == asked],
            "specificity": group_n[label_n != asked],
        }

        def told(name: str) -> Figure:
            value, resampled = drawn[name][0], drawn[name][1:]
            if name in of_n:
                return share_figure(value, resampled, of_n[name])
            return with_interval(value, resampled)

        figures = {
            name: Figure(value=None, why=why[name]) if why[name] else told(name)
            for name in SUBGROUP_FIGURES
        }
    return Subgroup(
        by=by,
        value=value,
        images=len(label_n),
        lesions=count,
        positives=positives,
        classes=tuple(codes[i] for i in present),
        figures=figures,
    )


def _why_not(
    lesions: int, classes: int, positives: int, negatives: int, asked: int | None
) -> dict[str, str]:
    """Why a figure is not given; "" where it is. `positives`, `negatives`: lesions with one."""
    few = FEW if lesions < FEWEST_LESIONS else ""
    one = few or (ONE_CLASS if classes < 2 else "")
    if asked is None:
        against = "no class asked for"
    elif positives < FEWEST_POSITIVES:
        against = f"fewer than {FEWEST_POSITIVES} positive lesions"
    else:
        few_others = f"fewer than {FEWEST_POSITIVES} other lesions"
        against = few_others if negatives < FEWEST_POSITIVES else ""
    asked_for = few or against
    return dict(zip(SUBGROUP_FIGURES, (few, one, one, asked_for, asked_for), strict=True))


def _values(table_rYY: Floats, asked: int | None) -> dict[str, Floats]:
    """Figures of each of r confusion matrices."""
    figures = confusion_figures(table_rYY)
    if asked is None:
        return figures
    support_r = table_rYY[:, asked].sum(1)
    hit_r = table_rYY[:, asked, asked]
    negative_r = table_rYY.sum((1, 2)) - support_r
    called_r = table_rYY[:, :, asked].sum(1)
    return {
        **figures,
        "sensitivity": ratio(hit_r, support_r),
        "specificity": ratio(negative_r - called_r + hit_r, negative_r),
    }
