"""Truth and predictions joined by image and by class."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from biigma_cli.data.scan import first
from biigma_cli.data.submission.forms import (
    BINARY,
    Predictions,
    Truth,
    in_order,
    read_groups,
)
from biigma_cli.data.submission.table import folders_apart, same_files
from biigma_cli.errors import DataError
from biigma_cli.metrics import SUM_TOLERANCE, Floats, Ints
from biigma_cli.taxonomy import lesion_class

_NAME_ALIKE = (
    "name the images alike in both files; names without folders count where no two images share one"
)


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Truth and scores of the same images, in the truth's order.

    Attributes:
        ids: image ids.
        codes: class codes: the truth's, then those only predicted.
        label_n: `(n,)` class indices.
        score_nY: `(n, Y)`.
        counted: `(n,)`, see `Truth`.
        groups: lesion of each image; None where unknown.
        dropped: classes of the truth without an image and without predictions, left out.
        binary: whether the scores are those of the 2017 form's two questions, see `binary_tasks`.
    """

    ids: tuple[str, ...]
    codes: tuple[str, ...]
    label_n: Ints
    score_nY: Floats
    counted: npt.NDArray[np.bool_]
    groups: tuple[str, ...] | None
    dropped: tuple[str, ...] = ()
    binary: bool = False

    @property
    def unlike_one(self) -> npt.NDArray[np.intp]:
        """Rows that count and do not sum to 1; none in the 2017 form: its columns are separate."""
        if self.binary:
            return np.zeros(0, np.intp)
        away = np.abs(self.score_nY.sum(1) - 1) > SUM_TOLERANCE
        return np.flatnonzero(away & self.counted)


def by_name(predictions: Predictions, truth: Truth) -> tuple[Predictions, dict[str, str]]:
    """Predictions by the truth's ids, also where these differ in their folder alone.

    Only images that the other file does not name otherwise, and whose file's name no other image
    of either has.

    Returns:
        The predictions, and of the ids so changed what they became.
    """
    found = same_files(predictions.ids, truth.ids)
    ids = tuple(found.get(image, image) for image in predictions.ids)
    return dataclasses.replace(predictions, ids=ids), found


def common(truth: Truth, files: Sequence[Predictions]) -> tuple[Truth, int]:
    """The truth of the images that every file names, and how many images are left out.

    Raises `DataError` where there is none.
    """
    here = set(truth.ids).intersection(*(f.ids for f in files))
    if not here:
        apart = next(filter(None, (folders_apart(f.ids, truth.ids) for f in files)), "")
        raise DataError(
            f"no image is in {truth.path} and in {' and '.join(str(f.path) for f in files)}{apart}",
            fix=_NAME_ALIKE if apart else "check that they are of the same data set",
        )
    keep = np.array([n for n, image in enumerate(truth.ids) if image in here], np.intp)
    left = len({*truth.ids, *(image for f in files for image in f.ids)}) - len(keep)
    return dataclasses.replace(
        truth,
        ids=tuple(truth.ids[n] for n in keep.tolist()),
        label_n=truth.label_n[keep],
        counted=truth.counted[keep],
        lesions=None if truth.lesions is None else tuple(truth.lesions[n] for n in keep.tolist()),
    ), left


def match(
    predictions: Predictions,
    truth: Truth,
    *,
    subset: bool = False,
    groups: Path | None = None,
) -> Matched:
    """Join by id and by class.

    Args:
        subset: take the images that both name, rather than refuse any that only one names.
        groups: CSV of lesions; default: those of the truth file, if it has them.

    Raises:
        DataError: images or classes that only one of the two has; a class of the truth without an
            image may lack predictions, an image of weight 0, too.
    """
    place = {image: i for i, image in enumerate(predictions.ids)}
    known = set(truth.ids)
    lacking = [
        i for i, counts in zip(truth.ids, truth.counted, strict=True) if i not in place and counts
    ]
    unknown = [i for i in predictions.ids if i not in known]
    common = [n for n, image in enumerate(truth.ids) if image in place]
    apart = folders_apart(unknown, [i for i in truth.ids if i not in place])
    if not common:
        raise DataError(
            f"{predictions.path} and {truth.path} have no image in common: {first(unknown, 3)} "
            f"and {first(truth.ids, 3)}{apart}",
            fix=_NAME_ALIKE if apart else "check that they are of the same data set",
        )
    if (lacking or unknown) and not subset:
        parts = []
        if lacking:
            parts.append(
                f"{predictions.path} has no row for {len(lacking)} of {len(truth.ids)} images of "
                f"the truth: {first(lacking)}"
            )
        if unknown:
            parts.append(
                f"{truth.path} does not know {len(unknown)} of {len(predictions.ids)} predicted "
                f"images: {first(unknown)}"
            )
        raise DataError(
            "; ".join(parts) + apart,
            fix=(_NAME_ALIKE if apart else "complete the files")
            + ", or judge what both name: --subset",
        )
    codes, score_nY, dropped = _match_classes(predictions, truth, common)
    label_n = np.array([codes.index(truth.codes[truth.label_n[n]]) for n in common], np.int64)
    ids = tuple(truth.ids[n] for n in common)
    if groups is not None:
        lesions = read_groups(groups, ids)
    else:
        lesions = None if truth.lesions is None else tuple(truth.lesions[n] for n in common)
    return Matched(
        ids=ids,
        codes=codes,
        label_n=label_n,
        score_nY=score_nY[[place[i] for i in ids]],
        counted=truth.counted[common],
        groups=lesions,
        dropped=dropped,
        binary=predictions.binary,
    )


def _match_classes(
    predictions: Predictions, truth: Truth, common: Sequence[int]
) -> tuple[tuple[str, ...], Floats, tuple[str, ...]]:
    """Codes, scores in their order, and classes of the truth that are left out."""
    column = {c.casefold(): y for y, c in enumerate(predictions.codes)}
    if predictions.binary:
        # Neither question asks for the third class, and none of its own is predicted.
        lacking = [c for c in BINARY.values() if c not in truth.codes]
        if lacking:
            raise DataError(
                f"{truth.path} has no class {', '.join(lacking)}, which {predictions.path} "
                f"predicts; it has: {', '.join(truth.codes)}",
                fix="the 2017 form goes with the 2017 truth",
            )
        return truth.codes, predictions.score_nY, ()
    seen = {truth.codes[truth.label_n[n]] for n in common}
    lacking = [c for c in truth.codes if c.casefold() not in column and c in seen]
    if lacking:
        counts = Counter(truth.codes[truth.label_n[n]] for n in common)
        said = ", ".join(f"{c} ({counts[c]} images)" for c in lacking)
        raise DataError(
            f"{predictions.path} has no column for {said}; it has: {', '.join(predictions.codes)}",
            fix="add the column; 0 throughout, if the model cannot say that class",
        )
    dropped = tuple(c for c in truth.codes if c.casefold() not in column)
    spelled = {c.casefold() for c in truth.codes}
    extra = [c for c in predictions.codes if c.casefold() not in spelled]
    if extra and truth.closed:
        raise DataError(
            f"{predictions.path} has columns of no class of {truth.path}: {', '.join(extra)}",
            fix=f"the classes are {', '.join(truth.codes)}",
        )
    _refuse_no_classes(predictions, extra, truth)
    if extra:
        # Sorted: two files with the same columns in another order are of the same classes.
        codes = in_order([*(c for c in truth.codes if c not in dropped), *sorted(extra)])
    else:
        codes = tuple(c for c in truth.codes if c not in dropped)
    return codes, predictions.score_nY[:, [column[c.casefold()] for c in codes]], dropped


def _refuse_no_classes(predictions: Predictions, extra: Sequence[str], truth: Truth) -> None:
    """Raise `DataError` where columns that the truth does not know are no classes.

    A label of one's own that no image here has is a class where the rows sum to 1 with it, and
    without it less nearly. A column of zeros is in no figure.
    """
    column = {c: predictions.score_nY[:, y] for y, c in enumerate(predictions.codes)}
    odd = [
        c for c in extra if c != "UNK" and lesion_class(c).name == c and column[c].any()
    ]  # UNK: of ISIC 2019, and without an image there
    away_n = np.abs(predictions.score_nY.sum(1) - 1)
    without_n = np.abs(sum(column[c] for c in column if c not in odd) - 1)
    if odd and (np.median(away_n) > SUM_TOLERANCE or away_n.mean() > without_n.mean()):
        raise DataError(
            f"{predictions.path} has columns of scores that are no class of {truth.path} and no "
            f"known diagnosis: {', '.join(odd)}",
            fix="delete what is no class; a class without an image is taken where the rows sum to "
            "1 with it",
        )


def binary_tasks(matched: Matched) -> Iterator[tuple[str, Matched]]:
    """The two tasks of the 2017 form, each a class against the rest, as `isic17-mel`, `isic17-sk`.

    The score s of a question becomes the row (s, 1 - s).
    """
    for column, (code, task) in enumerate({"MEL": "isic17-mel", "SK": "isic17-sk"}.items()):
        score_n = matched.score_nY[:, column]
        yield (
            task,
            dataclasses.replace(
                matched,
                codes=(code, "OTHER"),
                binary=False,
                label_n=(matched.label_n != matched.codes.index(code)).astype(np.int64),
                score_nY=np.stack([score_n, 1 - score_n], 1),
            ),
        )


def normalised(matched: Matched) -> Matched:
    """Each row divided by its sum.

    Raises `DataError` where a row that counts is 0 throughout.
    """
    sums = matched.score_nY.sum(1)
    empty = [matched.ids[n] for n in np.flatnonzero((sums == 0) & matched.counted).tolist()]
    if empty:
        raise DataError(
            f"{len(empty)} images have no score but 0: {first(empty)}",
            fix="such a row cannot be made to sum to 1; mend it, or do without --normalise",
        )
    whole = np.where(sums > 0, sums, 1)
    return dataclasses.replace(matched, score_nY=matched.score_nY / whole[:, None])
