"""Finding the images of a data set on disk, and checking that each one opens."""

from __future__ import annotations

import csv
import difflib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from biigma_cli.data.manifest import Record
from biigma_cli.data.preprocess import load_image, map_threads
from biigma_cli.errors import DataError, ImageError
from biigma_cli.storage import available_cpus, content_digest

Progress = Callable[[int, int], None]
Warn = Callable[[str], None]

# Excel's own way to say what separates the cells; saved again, the line is filled up with those.
_SEPARATOR = re.compile(r'"?sep=([^\w\s"\0]|\t)"?[,;\s]*', re.IGNORECASE)
JPEG = (".jpg", ".jpeg")
IMAGES = (*JPEG, ".png", ".tif", ".tiff", ".bmp", ".webp")
#: Read where a table names them, but not looked for in folders: films, and whole studies.
OTHER_IMAGES = (".gif", ".dcm")
#: What people and programs write where they do not know.
NOTHING = frozenset(
    ("", "unknown", "unk", "nan", "na", "n/a", "#n/a", "<na>", "none", "null", "-", "?")
)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A labelled image that has not been opened yet; fields as in `Record`, files as paths."""

    image_id: str
    file: Path
    label: str
    lesion_id: str = ""
    part: str = ""
    mask: Path | None = None
    age: str = ""
    sex: str = ""
    site: str = ""
    patient_id: str = ""


def resolved(path: Path, *, fix: str) -> Path:
    """`path` whole, of a file or folder that is there.

    Raises `DataError` where it is not, or may not be looked at.
    """
    try:
        whole = path.expanduser().resolve()
        whole.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"nothing at {path}", fix=fix) from None
    except (OSError, RuntimeError) as error:
        # RuntimeError: a link to itself, or no such user after `~`.
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"cannot read {path}: {reason}", fix=fix) from error
    return whole


def composed(text: str) -> str:
    """In Unicode's composed form: file systems and spreadsheets differ in how they spell `é`."""
    return unicodedata.normalize("NFC", text)


def known_value(text: str) -> str:
    """What a cell says, composed and without space around; empty where it says "unknown"."""
    text = composed(text.strip())
    return "" if text.casefold() in NOTHING else text


def big_lesion(lesions: Iterable[str]) -> tuple[str, int] | None:
    """A lesion that may be a placeholder, and its images; None where there is none.

    That is one with all images, or a tenth and more than 20.

    Args:
        lesions: of each image; empty where unknown.
    """
    lesions = list(lesions)
    for lesion, count in Counter(filter(None, lesions)).most_common(1):
        if count > max(20, len(lesions) / 10) or count == len(lesions) > 1:
            return lesion, count
    return None


def walk_files(folders: Iterable[Path], suffixes: Sequence[str]) -> list[Path]:
    """Files below `folders` by suffix, any case, in a fixed order.

    Links to folders are followed, each real folder once and none that lies above the start, so
    that a loop of links ends and brings nothing in from elsewhere. Hidden files and folders
    (`.ipynb_checkpoints`, `._image.jpg`) are passed over.

    Raises `DataError` where a folder may not be read.
    """
    folders = list(folders)
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    above = {_identity(p) for top in folders for p in top.resolve().parents}

    def refuse(error: OSError) -> None:
        raise DataError(
            f"cannot read the folder {error.filename}: {error.strerror}",
            fix="change its permissions, or give another folder",
        )

    for top in folders:
        for current, below, names in os.walk(top, followlinks=True, onerror=refuse):
            try:
                this = _identity(Path(current))
            except OSError as error:
                refuse(error)
            if this in seen or (this in above and Path(current) != top):
                below.clear()
                continue
            seen.add(this)
            # Sorted: a double is resolved the same way on every machine.
            below[:] = sorted(n for n in below if not n.startswith("."))
            found += [
                Path(current) / name
                for name in sorted(names)
                if name.lower().endswith(tuple(suffixes)) and not name.startswith(".")
            ]
    return found


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def images_by_stem(folders: Iterable[Path], suffixes: Sequence[str] = JPEG) -> dict[str, Path]:
    """Image files by name without suffix; the first of doubles counts."""
    found: dict[str, Path] = {}
    for path in walk_files(folders, suffixes):
        found.setdefault(path.stem, path)
    return found


def check_images(
    drafts: Sequence[Draft], root: Path, *, progress: Progress | None = None
) -> tuple[Record, ...]:
    """Open each image, on all cores; records in order of `image_id`.

    Raises `DataError` naming the first image that cannot be read, and how many there are, or a
    name that is not valid Unicode.
    """
    for draft in drafts:
        try:
            f"{draft.image_id}{draft.label}{draft.file}".encode()
        except UnicodeEncodeError:
            raise DataError(
                f"the name {str(draft.file)!a} is not valid UTF-8", fix="rename the file or folder"
            ) from None

    def check(draft: Draft) -> Record | ImageError:
        try:
            if draft.file.exists() and not draft.file.is_file():  # a pipe would never end
                return ImageError(f"{draft.file} is no file")
            content = draft.file.read_bytes()
            load_image(content, 32, name=str(draft.file))
        except ImageError as error:
            return error
        except OSError as error:
            return ImageError(f"cannot read {draft.file}: {error.strerror}")
        return Record(
            image_id=draft.image_id,
            path=_stored(draft.file, root),
            label=draft.label,
            lesion_id=draft.lesion_id,
            digest=content_digest(content),
            part=draft.part,
            mask=_stored(draft.mask, root) if draft.mask else "",
            age=draft.age,
            sex=draft.sex,
            site=draft.site,
            patient_id=draft.patient_id,
        )

    records: list[Record] = []
    damaged: list[ImageError] = []
    ordered = sorted(drafts, key=lambda d: d.image_id)
    for done, result in enumerate(map_threads(check, ordered, threads=available_cpus()), 1):
        if isinstance(result, Record):
            records.append(result)
        else:
            damaged.append(result)
        if progress:
            progress(done, len(ordered))
    if damaged:
        raise DataError(
            f"{len(damaged)} of {len(ordered)} images cannot be read; first: {damaged[0].message}",
            fix="get those files again",
        )
    return tuple(records)


def _stored(path: Path, root: Path) -> str:
    """Relative where it lies below the root, whole elsewhere."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


class Row(dict[str, str]):
    """A line of a table, by column; `line` is its number in the file."""

    line: int = 0


def read_csv(
    path: Path,
    columns: Sequence[str],
    *,
    optional: Sequence[str] = (),
    filled: Sequence[str] | None = None,
    delimiter: str | None = ",",
    absent: str = "",
    warn: Warn | None = None,
) -> list[Row]:
    """Rows of a CSV file in UTF-8, with or without a byte-order mark.

    Args:
        columns: those it must have, in any case and with spaces around.
        optional: those it may have, likewise.
        filled: those of them in which no cell may be empty; default: all.
        delimiter: None: a comma, semicolon or tab, as the header has it; or what `sep=` above it
            says.
        absent: the remedy where there is no such file.
        warn: told of a column that is none of these but nearly so.

    Rows of empty cells alone, which spreadsheets leave at the end, are passed over.

    Raises `DataError` where it cannot be read, lacks a column or has it twice, or has an empty
    cell, a NUL byte or a line longer than the header.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            above = 0
            if delimiter is None:
                delimiter, above = begin_table(file)
            reader = csv.DictReader(file, delimiter=delimiter)
            there = [_column(name, (*columns, *optional)) for name in reader.fieldnames or []]
            reader.fieldnames = there
            lacking = [c for c in columns if c not in there]
            if lacking:
                raise DataError(
                    f"{path} has no column {', '.join(lacking)}; it has: {', '.join(there)}",
                    fix=f"the expected columns are {', '.join(columns)}",
                )
            twice = [c for c in (*columns, *optional) if there.count(c) > 1]
            if twice:
                raise DataError(
                    f"{path} has the column {', '.join(twice)} more than once",
                    fix=f"keep one column {twice[0]}",
                )
            if warn:
                _tell_near(path, there, (*columns, *optional), warn)
            rows = []
            for cells in reader:
                row = Row(cells)
                row.line = reader.line_num + above
                beyond: Sequence[str] = row.get(None, ())  # type: ignore[call-overload]
                inside = [cells[c] or "" for c in there]
                if not any(cell.strip() for cell in (*inside, *beyond)):
                    continue
                refuse_nul(path, row.line, inside)
                if any(cell.strip() for cell in beyond):
                    raise DataError(
                        f"{path}, line {row.line}: more cells than columns",
                        fix="mend that line, or quote it",
                    )
                rows.append(row)
    except FileNotFoundError:
        raise DataError(f"no {path.name} in {path.parent}", fix=absent) from None
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path}: {error}", fix="save it as UTF-8 text") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}", fix="get the file again") from error
    for row in rows:
        if not all((row[c] or "").strip() for c in (columns if filled is None else filled)):
            raise DataError(f"{path}, line {row.line}: an empty cell", fix="mend that line")
    return rows


def alike_in_case(names: Iterable[str]) -> list[str]:
    """Names that differ from one another in case only, the first such group; mostly empty."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        alike[name.casefold()].append(name)
    return next((same for same in alike.values() if len(same) > 1), [])


def delimiter_of(header: str) -> str:
    """What separates the cells of a table's header: a comma, a semicolon or a tab."""
    return max(",;\t", key=header.count)


def begin_table(file: TextIO) -> tuple[str, int]:
    """Go to a table's header. Returns what separates its cells, and how many lines are above it."""
    head = file.readline()
    said = _SEPARATOR.fullmatch(head)
    if said is not None:
        return said[1], 1
    file.seek(0)
    return delimiter_of(head), 0


def refuse_nul(path: Path, line: int, cells: Iterable[str]) -> None:
    """Raise `DataError` where a cell holds a NUL byte, which no name or label has."""
    odd = next((cell for cell in cells if "\0" in cell), None)
    if odd is not None:
        raise DataError(f"{path}, line {line}: a NUL byte in {odd[:40]!r}", fix="mend that line")


def _column(name: str, known: Sequence[str]) -> str:
    """A column's name as it is known, however it is spelt here; else as it is."""
    plain = composed(name.strip()).casefold()
    return next((k for k in known if k.casefold() == plain), name)


def _tell_near(path: Path, there: Sequence[str], known: Sequence[str], warn: Warn) -> None:
    def plain(name: str) -> str:
        return re.sub(r"[\W_]", "", name).casefold()

    absent = {plain(k): k for k in known if k not in there}
    for name in there:
        near = difflib.get_close_matches(plain(name), absent, n=1, cutoff=0.8)
        if near and name not in known:
            warn(f"{path}: the column {name!r} is not read; did you mean {absent[near[0]]!r}?")


def refuse_doubles(ids: Iterable[str], where: Path | str) -> None:
    """Raise `DataError` where an id comes twice."""
    doubled = [i for i, n in Counter(ids).items() if n > 1]
    if doubled:
        raise DataError(f"{where} names images twice: {first(doubled)}", fix="remove the doubles")


def first(ids: Sequence[str], n: int = 10) -> str:
    """The first few, and how many more there are."""
    rest = len(ids) - n
    return ", ".join(ids[:n]) + (f" and {rest} more" if rest > 0 else "")
