"""Predictions, truth and lesions, read from their forms; predictions written."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from biigma_cli.data.scan import alike_in_case, composed, first, known_value
from biigma_cli.data.submission.table import (
    Table,
    folders_apart,
    listed,
    read_table,
    refuse_doubles,
)
from biigma_cli.errors import DataError
from biigma_cli.metrics import Floats, Ints, score_weight
from biigma_cli.storage import atomic_write_text
from biigma_cli.taxonomy import ISIC17, ISIC18, ISIC19, lesion_class

GROUP_COLUMNS = ("lesion_id", "lesion", "group")
# How far float32 may miss 0 or 1.
ROUNDING = 1e-6
WEIGHTS = ("score_weight", "validation_weight")
#: Columns of the 2017 form and their codes; an image that is neither is a nevus.
BINARY = {"melanoma": "MEL", "seborrheic_keratosis": "SK"}


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Scores by image.

    Attributes:
        path: the file they are from.
        ids: image ids, without suffix.
        codes: class codes, in the file's order.
        score_nY: `(n, Y)` from 0 to 1.
        binary: whether it is the 2017 form: two questions, each of its own.
        failed: rows of `biigma predict` that hold an error in place of scores, left out.
    """

    path: Path
    ids: tuple[str, ...]
    codes: tuple[str, ...]
    score_nY: Floats
    binary: bool = False
    failed: int = 0


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Labels by image.

    Attributes:
        path: the file they are from.
        ids: image ids, without suffix.
        codes: class codes, in the file's order; for labels by name, that of the ISIC challenge
            that has them all, else sorted.
        label_n: `(n,)` indices of `codes`.
        counted: `(n,)`, False for images of weight 0: the official one, and those that a column
            `score_weight` says.
        lesions: lesion of each image, the image where unknown; None where the file says none.
        closed: whether `codes` are all classes there are, rather than those that happen to occur.
    """

    path: Path
    ids: tuple[str, ...]
    codes: tuple[str, ...]
    label_n: Ints
    counted: npt.NDArray[np.bool_]
    lesions: tuple[str, ...] | None
    closed: bool


def read_predictions(path: Path) -> Predictions:
    """Predictions in the form of 2018 and 2019, or of 2017, or as `biigma predict` writes them.

    Raises:
        DataError: it cannot be read, has no id column or fewer than two of classes, a column or an
            image twice, a cell that is no number from 0 to 1, or nothing but errors; names the
            lines.
    """
    table = read_table(path, answers=True)
    rows = table.rows
    if table.answers:
        table = table._replace(rows=tuple(r for r in rows if not r.cells["error"].strip()))
        if not table.rows:
            raise DataError(f"{path} has nothing but errors", fix="its error column says why")
    columns = tuple(c for c in table.columns if c.casefold() not in WEIGHTS)
    binary = {c.casefold() for c in columns} == set(BINARY)
    codes = tuple(BINARY[c.casefold()] if binary else class_code(c) for c in columns)
    if len(columns) < 2:
        raise DataError(
            f"{path} has {len(columns)} columns of scores: {', '.join(columns) or 'none'}",
            fix="beside `image` there must be one column per class, two at least",
        )
    _refuse_shared_names(table)
    refuse_doubles(path, table.ids())
    given_nY, faults = np.full((len(table.rows), len(columns)), np.nan), []
    for n, row in enumerate(table.rows):
        for y, column in enumerate(columns):
            value = table.number(row, column)
            if value is not None:
                given_nY[n, y] = value
            if value is None or not -ROUNDING <= value <= 1 + ROUNDING:
                faults.append((row.line, column, row.cells[column.casefold()], value))
    if faults:
        said = [f"line {line}, {c}: {_why(text, value)}" for line, c, text, value in faults]
        raise DataError(
            f"{path} has {len(faults)} cells that are no number from 0 to 1: {listed(said)}",
            fix=_remedy(given_nY, binary=binary),
        )
    return Predictions(
        path=path, ids=table.ids(), codes=codes, score_nY=given_nY.clip(0, 1), binary=binary,
        failed=len(rows) - len(table.rows),
    )  # fmt: skip


def read_truth(path: Path) -> Truth:
    """Truth as 0 and 1 by class (2018, 2019), as two binary columns (2017), or as `dx`.

    Raises:
        DataError: it cannot be read, is in none of these forms, names an image twice, or has a row
            that is not of exactly one class; names the lines.
    """
    table = read_table(path)
    ids = table.ids()
    refuse_doubles(path, ids)
    there = {c.casefold() for c in table.columns}
    named = next((c for c in ("dx", "label") if c in there), None)
    if named is not None:
        codes, labels = _named_labels(table, named)
    elif set(BINARY) <= there:
        codes, labels = ISIC17.codes, _binary_labels(table)
    else:
        codes, labels = _one_hot_labels(table)
    weight = score_weight(ids)
    if "score_weight" in there:
        weight &= np.array(_ones(table, ("score_weight",))).ravel()
    group = next((c for c in GROUP_COLUMNS if c in there), None)
    return Truth(
        path=path,
        ids=ids,
        codes=codes,
        label_n=np.array([codes.index(label) for label in labels], np.int64),
        counted=weight,
        lesions=None if group is None else _lesions(table, group),
        closed=named is None,
    )


def read_groups(path: Path, ids: Sequence[str]) -> tuple[str, ...] | None:
    """Lesion of each of `ids`, from a CSV with an id column and `lesion_id`.

    An image whose lesion is unknown stands for itself; None where all are.

    Raises:
        DataError: it cannot be read, lacks a column, or has no row for an image.
    """
    table = read_table(path)
    group = next((c.casefold() for c in table.columns if c.casefold() in GROUP_COLUMNS), None)
    if group is None:
        raise DataError(
            f"{path} has no column {GROUP_COLUMNS[0]}; it has: {', '.join(table.columns)}",
            fix="give a CSV with the image's id and its lesion_id",
        )
    lesions: dict[str, str] = {}
    doubtful = []
    of_rows = _lesions(table, group)
    for image, lesion in zip(table.ids(), of_rows or table.ids(), strict=True):
        if lesions.setdefault(image, lesion) != lesion:
            doubtful.append(image)
    if doubtful:
        raise DataError(
            f"{path} gives {len(doubtful)} images two lesions: {first(doubtful)}",
            fix="give each image one lesion",
        )
    absent = [i for i in ids if i not in lesions]
    if absent:
        apart = folders_apart(absent, list(lesions))
        raise DataError(
            f"{path} has no row for {len(absent)} of {len(ids)} images: {first(absent)}{apart}",
            fix="call the images there as the truth does"
            if apart
            else "give a file that names every image; an unknown lesion_id may be empty",
        )
    return None if of_rows is None else tuple(lesions[i] for i in ids)


def submission_text(
    ids: Sequence[str], proba_nY: npt.NDArray[np.floating[Any]], codes: Sequence[str]
) -> str:
    """The submission form: `image`, then the classes; 9 digits, which keep a float32 as it is.

    Raises:
        DataError: shapes that do not match, an image twice, a value that is no number from 0 to 1.
    """
    proba = np.asarray(proba_nY, np.float64)
    if proba.shape != (len(ids), len(codes)):
        raise DataError(
            f"{len(ids)} images, {len(codes)} classes and scores of shape {proba.shape}",
            fix="give a row per image and a column per class",
        )
    refuse_doubles("the predictions", ids)
    bad = np.flatnonzero(~((proba >= -1e-6) & (proba <= 1 + 1e-6)).all(1))
    if len(bad):
        named = [ids[n] for n in bad.tolist()]
        raise DataError(
            f"{len(named)} images have scores that are no number from 0 to 1: {first(named)}",
            fix="check the model",
        )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *codes])
    for image, row in zip(ids, proba.clip(0, 1), strict=True):
        writer.writerow([image, *(f"{value:.9g}" for value in row)])
    return text.getvalue()


def write_submission(
    path: Path, ids: Sequence[str], proba_nY: npt.NDArray[np.floating[Any]], codes: Sequence[str]
) -> None:
    """`submission_text` to a file, atomically. Raises `DataError` as that does."""
    atomic_write_text(path, submission_text(ids, proba_nY, codes))


def class_code(text: str) -> str:
    """A column or label as it is, or the ISIC code that it is in another case."""
    text = composed(text.strip())
    return text.upper() if lesion_class(text.upper()).name != text.upper() else text


def in_order(codes: Sequence[str]) -> tuple[str, ...]:
    """In the order of the ISIC challenge that has them all, else as they come."""
    for known in (ISIC18, ISIC19, ISIC17):
        if set(codes) <= set(known.codes):
            return tuple(sorted(codes, key=known.codes.index))
    return tuple(codes)


def _refuse_shared_names(table: Table) -> None:
    """The answers of `biigma predict` go by the names of files; those of two folders may be one."""
    if not table.answers:
        return
    paths: dict[str, str] = {}
    for row, image in zip(table.rows, table.ids(), strict=True):
        path = row.cells[table.key].strip()
        other = paths.setdefault(image, path)
        if other != path:
            raise DataError(
                f"{table.path}: {other} and {path} are both called {image}, as images go by the "
                "names of their files",
                fix="rename one, or predict and score each folder by itself",
            )


def _lesions(table: Table, column: str) -> tuple[str, ...] | None:
    """Lesion of each row, its image where unknown; None where all are."""
    found = [known_value(row.cells[column]) for row in table.rows]
    if not any(found):
        return None
    return tuple(lesion or image for lesion, image in zip(found, table.ids(), strict=True))


def _named_labels(table: Table, column: str) -> tuple[tuple[str, ...], list[str]]:
    """Labels by name, and the classes among them."""
    labels = [class_code(r.cells[column]) for r in table.rows]
    empty = [f"line {r.line}" for r, label in zip(table.rows, labels, strict=True) if not label]
    if empty:
        raise DataError(f"{table.path} has no {column} in {listed(empty)}", fix="mend those lines")
    _refuse_alike(table, set(labels))
    return in_order(sorted(set(labels))), labels


def _one_hot_labels(table: Table) -> tuple[tuple[str, ...], list[str]]:
    skipped = (*WEIGHTS, *GROUP_COLUMNS)
    columns = tuple(c for c in table.columns if c.casefold() not in skipped)
    if len(columns) < 2:
        raise DataError(
            f"{table.path} has neither a column dx nor one per class; it has: "
            f"{', '.join(table.columns)}",
            fix="give the truth as image_id,dx or as image and a 0 or 1 per class",
        )
    ones = _ones(table, columns)
    _refuse_rows(table, [sum(row) == 1 for row in ones], "of exactly one class")
    codes = tuple(class_code(c) for c in columns)
    _refuse_alike(table, codes)
    return codes, [codes[row.index(True)] for row in ones]


def _refuse_alike(table: Table, codes: Collection[str]) -> None:
    """Classes that differ in case only would share one column of the predictions."""
    alike = alike_in_case(codes)
    if alike:
        raise DataError(
            f"{table.path} has classes that differ in case only: {listed(alike)}",
            fix="write them alike",
        )


def _binary_labels(table: Table) -> list[str]:
    ones = _ones(table, tuple(BINARY))
    _refuse_rows(table, [sum(row) <= 1 for row in ones], "of one class at most")
    return [
        next((code for code, one in zip(BINARY.values(), row, strict=True) if one), "NV")
        for row in ones
    ]


def _ones(table: Table, columns: Sequence[str]) -> list[list[bool]]:
    """Which cells are 1. Raises `DataError` for any that is neither 0 nor 1."""
    values = [[table.number(row, c) for c in columns] for row in table.rows]
    faults = [
        f"line {row.line}, {c}: {row.cells[c.casefold()].strip() or 'nothing'}"
        for row, numbers in zip(table.rows, values, strict=True)
        for c, value in zip(columns, numbers, strict=True)
        if value not in (0, 1)
    ]
    if faults:
        raise DataError(
            f"{table.path} has {len(faults)} cells that are neither 0 nor 1: {listed(faults)}",
            fix="the truth has 1 in the column of an image's class and 0 in the others; it is the "
            "second file, the predictions are the first",
        )
    return [[value == 1 for value in numbers] for numbers in values]


def _refuse_rows(table: Table, good: Sequence[bool], what: str) -> None:
    lines = [f"line {r.line}" for r, ok in zip(table.rows, good, strict=True) if not ok]
    if lines:
        raise DataError(
            f"{table.path} has {len(lines)} rows that are not {what}: {listed(lines)}",
            fix="mend those lines",
        )


def _remedy(given_nY: Floats, *, binary: bool) -> str:
    """What to do about scores that are no probabilities, NaN where they are no numbers."""
    if np.isnan(given_nY).any():
        return "every class's column must hold a probability for every image"
    hundreds = binary or 90 <= np.median(given_nY.sum(1)) <= 110
    if hundreds and given_nY.min() >= 0 and 5 < given_nY.max() <= 100:
        return "they look like percent: divide them by 100"
    return (
        "give probabilities; if these are what a network puts out (logits), take the softmax of "
        "each row"
    )


def _why(text: str, value: float | None) -> str:
    if value is not None:
        return f"{value!r} is outside 0..1"
    return f"{text.strip()[:40]!r} is not a number" if text.strip() else "empty"
