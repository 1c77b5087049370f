"""HAM10000, the training set of ISIC 2018 task 3, as Kaggle and Harvard Dataverse hand it out."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from biigma_cli.data.manifest import Manifest
from biigma_cli.data.scan import (
    Draft,
    Progress,
    Row,
    Warn,
    check_images,
    first,
    images_by_stem,
    read_csv,
    refuse_doubles,
    walk_files,
)
from biigma_cli.errors import DataError
from biigma_cli.storage import is_file
from biigma_cli.taxonomy import ISIC18

METADATA = "HAM10000_metadata.csv"
#: Its names: Kaggle's, Dataverse's with tabs, and Dataverse's as it was deposited.
METADATA_NAMES = (METADATA, "HAM10000_metadata.tab", "HAM10000_metadata")
# What a lesion mask's name has behind its image's.
MASK = "_segmentation"
COLUMNS = ("lesion_id", "image_id", "dx")
EXPECTED_COUNTS = {
    "MEL": 1113, "NV": 6705, "BCC": 514, "AKIEC": 327, "BKL": 1099, "DF": 115, "VASC": 142,
}  # fmt: skip
LICENCE = "CC-BY-NC-4.0"
CITATION = (
    "HAM10000 (c) ViDIR Group, Department of Dermatology, Medical University of Vienna; "
    "Tschandl et al., doi:10.1038/sdata.2018.161. ISIC 2018: arXiv:1902.03368, arXiv:1710.05006."
)


def read_ham10000(
    folder: Path,
    *,
    beside: Sequence[Path] = (),
    allow_missing: bool = False,
    progress: Progress | None = None,
    warn: Warn | None = None,
) -> Manifest:
    """Check an existing copy: counts, classes, and that each image opens.

    Args:
        folder: holds `HAM10000_metadata.csv` (or `.tab`, or without a suffix) and the images, in
            `HAM10000_images_part_1` and `_2` or anywhere below; lesion masks
            (`*_segmentation.png`) are taken where they are.
        beside: more folders below which images and masks may lie.
        allow_missing: take a partial copy: rows without an image are left out, counts may differ.
        progress: called with (images checked, images in all).
        warn: called with one line for what is odd but no error.

    Raises:
        DataError: anything is missing, unknown, doubled or damaged; names the first offenders.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise DataError(f"no folder at {folder}", fix="give the folder that holds " + METADATA)
    table = next((t for n in METADATA_NAMES if is_file(t := folder / n)), folder / METADATA)
    rows = _read_metadata(table)
    folders = [folder, *beside]
    files = images_by_stem(folders)
    missing = [r["image_id"] for r in rows if r["image_id"] not in files]
    if missing and not allow_missing:
        raise DataError(
            f"{len(missing)} rows of {table.name} have no image: {first(missing)}",
            fix=_completing(folders),
        )
    rows = [r for r in rows if r["image_id"] in files]
    if not rows:
        raise DataError(f"no image of {table.name} lies below {folder}", fix=_completing(folders))
    counts = Counter(r["dx"].upper() for r in rows)
    if not allow_missing and counts != EXPECTED_COUNTS:
        raise DataError(
            f"class counts differ from HAM10000's: found {_show(counts)}, "
            f"expected {_show(EXPECTED_COUNTS)}",
            fix="get the original metadata, or pass --allow-missing",
        )
    extra = len(files) - len(rows)
    if extra and warn:
        warn(f"{extra} images have no row in {table.name}; left out")
    masks = masks_by_id(folders)
    drafts = [
        Draft(
            image_id=row["image_id"],
            file=files[row["image_id"]],
            label=row["dx"].upper(),
            lesion_id=row["lesion_id"],
            mask=masks.get(row["image_id"]),
            age=row.get("age") or "",
            sex=_known(row.get("sex")),
            site=_known(row.get("localization")),
        )
        for row in rows
    ]
    return Manifest(
        dataset="isic18",
        root=folder,
        records=check_images(drafts, folder, progress=progress),
        licence=LICENCE,
        citation=CITATION,
        missing=len(missing),
    )


def _completing(folders: Sequence[Path]) -> str:
    """What to do about images that are not there."""
    zips = [p.name for f in folders for p in sorted(f.glob("HAM10000_images_part_*.zip"))]
    if zips:
        return f"unzip {' and '.join(dict.fromkeys(zips))} there"
    return "complete the copy, or pass --allow-missing to train on the rest"


def masks_by_id(folders: Sequence[Path]) -> dict[str, Path]:
    """Lesion masks (`ID_segmentation.png`, by ViDIR and by the ISIC challenges) by image id."""
    found: dict[str, Path] = {}
    for path in walk_files(folders, (f"{MASK}.png",)):
        found.setdefault(path.stem[: -len(MASK)], path)
    return found


def _known(value: str | None) -> str:
    return "" if value in (None, "unknown") else str(value)


def _read_metadata(path: Path) -> list[Row]:
    rows = read_csv(
        path, COLUMNS, delimiter=None,
        absent="give the folder of a Kaggle or Dataverse copy of HAM10000, of the archives as they "
        "are handed out, or of the challenge's own layout",
    )  # fmt: skip
    known = [c.lower() for c in ISIC18.codes]
    for row in rows:
        if row["dx"].lower() not in known:
            near = difflib.get_close_matches(row["dx"].lower(), known, n=1)
            raise DataError(
                f"{path}, line {row.line}: unknown class {row['dx']!r}",
                fix=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}",
            )
    refuse_doubles((r["image_id"] for r in rows), path)
    return rows


def _show(counts: dict[str, int]) -> str:
    return ", ".join(f"{code} {counts.get(code, 0)}" for code in ISIC18.codes)
