"""A CSV with one row per image, and faults by their lines."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from biigma_cli.data.answers import BEFORE, BEHIND, SUSPICIOUS
from biigma_cli.data.magic import SUFFIXES
from biigma_cli.data.scan import begin_table, composed, first, refuse_nul
from biigma_cli.errors import DataError

ID_COLUMNS = ("image", "image_id", "isic_id")
_SUFFIX = re.compile(f"({'|'.join(map(re.escape, sorted(SUFFIXES)))})$", re.IGNORECASE)


class Row(NamedTuple):
    line: int
    cells: dict[str, str]


class Table(NamedTuple):
    """A CSV: its key column, the other columns as written, rows by lower-case column."""

    path: Path
    key: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    decimal_comma: bool

    @property
    def answers(self) -> bool:
        """Whether `biigma predict` wrote it."""
        return self.key == BEFORE[0]

    def ids(self) -> tuple[str, ...]:
        keys = [r.cells[self.key] for r in self.rows]
        return tuple(map(image_id, map(file_name, keys) if self.answers else keys))

    def number(self, row: Row, column: str) -> float | None:
        """The cell as a number; None where it is none, NaN and infinity among them."""
        text = row.cells[column.casefold()]
        if self.decimal_comma and "." not in text:
            text = text.replace(",", ".")
        try:
            value = float(text)
        except ValueError:
            return None
        return value if math.isfinite(value) else None


def read_table(path: Path, *, answers: bool = False) -> Table:
    """A CSV with an id column. Raises `DataError` naming the line that cannot be right.

    With `answers`, that of `biigma predict`, too: of its columns the classes are given.
    """
    try:
        _refuse_other_forms(path, answers=answers)
        with path.open(newline="", encoding="utf-8-sig") as file:
            delimiter, above = begin_table(file)
            text = file.read()
    except FileNotFoundError:
        raise DataError(f"nothing at {path}", fix="check the path") from None
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path}: {error}", fix="save it as UTF-8 text") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", fix="check the path") from error
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        header = [composed(c.strip()) for c in next(reader, [])]
        while header and not header[-1]:  # spreadsheets leave empty columns at the end
            header.pop()
        names = [c.casefold() for c in header]
        classes = _classes(names) if answers else None
        key = BEFORE[0] if classes else next((c for c in ID_COLUMNS if c in names), None)
        if key is None:
            raise DataError(
                f"{path} has no column {' or '.join(ID_COLUMNS)}; it has: "
                f"{', '.join(header)[:200] or 'nothing'}",
                fix="the first line must name the columns: image, then one per class",
            )
        twice = [c for c, n in Counter(names).items() if n > 1]
        if twice or "" in names:
            raise DataError(
                f"{path} has "
                + (f"the column {twice[0]!r} twice" if twice else "a nameless column"),
                fix="name each column once",
            )
        rows = []
        for cells in reader:
            if not any(c.strip() for c in cells):
                continue
            line = reader.line_num + above
            refuse_nul(path, line, cells)
            if len(cells) < len(names) or any(c.strip() for c in cells[len(names) :]):
                raise DataError(
                    f"{path}, line {line}: {len(cells)} cells, and {len(names)} columns",
                    fix="mend that line",
                )
            row = dict(zip(names, cells, strict=False))
            if not row[key].strip():
                raise DataError(f"{path}, line {line}: no image id", fix="mend that line")
            rows.append(Row(line, row))
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num + above}: {error}", fix="mend that line"
        ) from error
    if not rows:
        raise DataError(f"{path} has no rows", fix="there must be one per image")
    kept = classes or {*names} - {key}
    columns = tuple(c for c, name in zip(header, names, strict=True) if name in kept)
    return Table(path, key, columns, tuple(rows), decimal_comma=delimiter != ",")


def _refuse_other_forms(path: Path, *, answers: bool) -> None:
    """What `biigma predict` writes beside CSV begins otherwise."""
    with path.open("rb") as file:
        head = file.read(4)
    form = "Parquet" if head == b"PAR1" else "JSON" if head[:1] == b"{" else ""
    if form:
        raise DataError(
            f"{path} is {form}, and CSV is read here",
            fix="biigma predict writes it with -o FILE.csv" if answers else "save it as CSV",
        )


def _classes(names: Sequence[str]) -> set[str] | None:
    """The classes among the columns, where they are those of `biigma predict`."""
    if BEHIND[0] not in names:
        return None
    end = names.index(BEHIND[0])
    behind = list(names[end:])
    if SUSPICIOUS in behind[1:2]:
        del behind[1]
    ours = (*names[: len(BEFORE)], *behind[: len(BEHIND)]) == (*BEFORE, *BEHIND)
    return set(names[len(BEFORE) : end]) if ours else None


def image_id(text: str) -> str:
    """An image's id: without white space and without the suffix of an image file."""
    return _SUFFIX.sub("", composed(text.strip()))


def file_name(image: str) -> str:
    """The last part of a path with either separator, as of another system's."""
    return re.split(r"[/\\]", image)[-1]


def same_files(ours: Collection[str], theirs: Collection[str]) -> dict[str, str]:
    """Of ids that are in one alone, which differ in their folder only; no other image may be
    called so.
    """
    mine, other = _unique_names(ours), _unique_names(theirs)
    alone, there = {*ours} - {*theirs}, {*theirs} - {*ours}
    return {
        image: other[name]
        for name, image in mine.items()
        if image in alone and other.get(name) in there
    }


def _unique_names(ids: Collection[str]) -> dict[str, str]:
    counts = Counter(map(file_name, ids))
    return {name: image for image in ids if counts[name := file_name(image)] == 1}


def folders_apart(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """Of ids that are not the same, the first two that differ in their folder only, to show."""
    named = {file_name(image): image for image in theirs}
    for image in ours:
        if file_name(image) in named:
            return f"; {image} and {named[file_name(image)]} differ in their folder alone"
    return ""


def refuse_doubles(where: Path | str, ids: Sequence[str]) -> None:
    doubled = [i for i, n in Counter(ids).items() if n > 1]
    if doubled:
        raise DataError(
            f"{where}: {len(doubled)} images come more than once: {first(doubled)}",
            fix="keep one row per image",
        )


def listed(items: Sequence[str]) -> str:
    rest = len(items) - 10
    return "; ".join(items[:10]) + (f"; and {rest} more" if rest > 0 else "")
