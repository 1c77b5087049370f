"""HAM10000, the training set of ISIC 2018 task 3, as Kaggle and Harvard Dataverse hand it out."""

from __future__ import annotations

import csv
import difflib
import hashlib
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from biigma_cli.data.manifest import Manifest, Record
from biigma_cli.data.preprocess import load_image, map_threads
from biigma_cli.errors import DataError, ImageError
from biigma_cli.taxonomy import ISIC18

METADATA = "HAM10000_metadata.csv"
COLUMNS = ("lesion_id", "image_id", "dx")
EXPECTED_COUNTS = {
    "MEL": 1113, "NV": 6705, "BCC": 514, "AKIEC": 327, "BKL": 1099, "DF": 115, "VASC": 142,
}  # fmt: skip
LICENCE = "CC-BY-NC-4.0"
CITATION = (
    "HAM10000 (c) ViDIR Group, Department of Dermatology, Medical University of Vienna; "
    "Tschandl et al., doi:10.1038/sdata.2018.161. ISIC 2018: arXiv:1902.03368, arXiv:1710.05006."
)

Progress = Callable[[int, int], None]


def read_ham10000(
    folder: Path,
    *,
    allow_missing: bool = False,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> Manifest:
    """Check an existing copy: counts, classes, and that each image opens.

    Args:
        folder: holds `HAM10000_metadata.csv` and the images, in `HAM10000_images_part_1` and
            `_2` or anywhere below.
        allow_missing: take a partial copy: rows without an image are left out, counts may differ.
        progress: called with (images checked, images in all).
        warn: called with one line for what is odd but no error.

    Raises:
        DataError: anything is missing, unknown, doubled or damaged; names the first offenders.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise DataError(f"no folder at {folder}", fix="give the folder that holds " + METADATA)
    rows = _read_metadata(folder / METADATA)
    files = _find_images(folder)
    missing = [r["image_id"] for r in rows if r["image_id"] not in files]
    if missing and not allow_missing:
        raise DataError(
            f"{len(missing)} rows of {METADATA} have no image: {_first(missing)}",
            fix="complete the copy, or pass --allow-missing to train on the rest",
        )
    rows = [r for r in rows if r["image_id"] in files]
    if not rows:
        raise DataError(f"no image of {METADATA} lies below {folder}", fix="check --from")
    counts = Counter(r["dx"].upper() for r in rows)
    if not allow_missing and counts != EXPECTED_COUNTS:
        raise DataError(
            f"class counts differ from HAM10000's: found {_show(counts)}, "
            f"expected {_show(EXPECTED_COUNTS)}",
            fix="get the original metadata, or pass --allow-missing",
        )
    extra = len(files) - len(rows)
    if extra and warn:
        warn(f"{extra} images have no row in {METADATA}; left out")

    def check(row: dict[str, str]) -> Record | ImageError:
        path = files[row["image_id"]]
        try:
            content = path.read_bytes()
            load_image(content, 32, name=str(path))
        except ImageError as error:
            return error
        except OSError as error:
            return ImageError(f"cannot read {path}: {error.strerror}")
        return Record(
            image_id=row["image_id"],
            path=path.relative_to(folder).as_posix(),
            label=row["dx"].upper(),
            lesion_id=row["lesion_id"],
            digest=hashlib.blake2b(content, digest_size=16).hexdigest(),
        )

    records: list[Record] = []
    damaged: list[ImageError] = []
    rows.sort(key=lambda r: r["image_id"])
    for done, result in enumerate(map_threads(check, rows, threads=os.cpu_count() or 1), 1):
        if isinstance(result, Record):
            records.append(result)
        else:
            damaged.append(result)
        if progress:
            progress(done, len(rows))
    if damaged:
        raise DataError(
            f"{len(damaged)} of {len(rows)} images cannot be read; first: {damaged[0].message}",
            fix="get those files again",
        )
    return Manifest(
        dataset="isic18",
        root=folder,
        records=tuple(records),
        licence=LICENCE,
        citation=CITATION,
    )


def _read_metadata(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            lacking = [c for c in COLUMNS if c not in columns]
            if lacking:
                raise DataError(
                    f"{path} has no column {', '.join(lacking)}; it has: {', '.join(columns)}",
                    fix=f"the expected columns are {', '.join(COLUMNS)}",
                )
            rows = list(reader)
    except FileNotFoundError:
        raise DataError(
            f"no {METADATA} in {path.parent}",
            fix="give the folder of a Kaggle or Dataverse copy of HAM10000",
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}", fix="get the file again") from error
    known = [c.lower() for c in ISIC18.codes]
    for line, row in enumerate(rows, 2):
        if not all(row[c] for c in COLUMNS):
            raise DataError(f"{path}, line {line}: an empty cell", fix="mend that line")
        if row["dx"].lower() not in known:
            near = difflib.get_close_matches(row["dx"].lower(), known, n=1)
            raise DataError(
                f"{path}, line {line}: unknown class {row['dx']!r}",
                fix=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}",
            )
    doubled = [i for i, n in Counter(r["image_id"] for r in rows).items() if n > 1]
    if doubled:
        raise DataError(f"{path} names images twice: {_first(doubled)}", fix="remove the doubles")
    return rows


def _find_images(folder: Path) -> dict[str, Path]:
    """JPEGs below `folder` by stem; masks are PNG and so never among them."""
    found: dict[str, Path] = {}
    for current, folders, names in os.walk(folder):
        folders.sort()  # a double is resolved the same way on every machine
        for name in sorted(names):
            stem, dot, suffix = name.rpartition(".")
            if dot and suffix.lower() in ("jpg", "jpeg"):
                found.setdefault(stem, Path(current) / name)
    return found


def _first(ids: list[str], n: int = 10) -> str:
    rest = len(ids) - n
    return ", ".join(ids[:n]) + (f" and {rest} more" if rest > 0 else "")


def _show(counts: dict[str, int]) -> str:
    return ", ".join(f"{code} {counts.get(code, 0)}" for code in ISIC18.codes)
