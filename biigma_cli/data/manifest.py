"""What a data set on disk consists of, and the record of it in the data folder."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from biigma_cli.errors import DataError, UsageError
from biigma_cli.storage import (
    check_home,
    home,
    is_file,
    is_folder,
    is_there,
    sha256_lines,
    write_json,
)
from biigma_cli.taxonomy import (
    SYNTHETIC,
    TAXONOMIES,
    Taxonomy,
    base_of,
    custom_taxonomy,
    taxonomy,
)

FORMAT = "biigma-dataset-2"
# Version 1 had fewer fields; its records read as they are.
FORMATS = ("biigma-dataset-1", FORMAT)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One labelled image.

    Attributes:
        image_id: the archive's id, such as `ISIC_0024306`.
        path: file, relative to the manifest's root.
        label: class code.
        lesion_id: images of one lesion share it; empty where unknown.
        digest: hex BLAKE2b-128 of the file's bytes.
        part: the part its publisher put it in (`train`, `val`, `test`); empty where there is none.
        mask: lesion mask, relative to the manifest's root; empty where there is none.
        age: years, as text; empty where unknown, like the next two.
        sex: as published.
        site: anatomical site, as published.
        patient_id: images of one patient share it; empty where unknown.
    """

    image_id: str
    path: str
    label: str
    lesion_id: str
    digest: str
    part: str = ""
    mask: str = ""
    age: str = ""
    sex: str = ""
    site: str = ""
    patient_id: str = ""

    def shares_lesion(self, other: Record) -> bool | None:
        """Whether another image is of the same lesion; None where either has no lesion id."""
        known = self.lesion_id and other.lesion_id
        return self.lesion_id == other.lesion_id if known else None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A checked data set.

    Attributes:
        dataset: name, such as `isic18`.
        root: folder the records' paths start from; a path elsewhere is stored whole.
        records: in order of `image_id`.
        licence: SPDX id of the images' licence.
        citation: what its authors ask to be cited.
        codes: classes of a user's own data set; empty where the name says them.
        missing: labelled images that are not on this machine.
        variant: which of several sets of that name it is, to stand in the protocol.
    """

    dataset: str
    root: Path
    records: tuple[Record, ...]
    licence: str
    citation: str
    codes: tuple[str, ...] = ()
    missing: int = 0
    variant: str = ""

    @property
    def taxonomy(self) -> Taxonomy:
        """Its classes."""
        return custom_taxonomy(self.dataset, self.codes) if self.codes else taxonomy(self.dataset)

    @property
    def data_hash(self) -> str:
        """SHA-256 over what a split hangs on, and file contents; not over where they lie.

        Parts and patients are in it where there are any: without them it is an older version's.
        """
        return sha256_lines(
            "\t".join(
                (
                    r.image_id,
                    r.label,
                    r.lesion_id,
                    r.digest,
                    *([r.part] if r.part else []),
                    *([f"patient {r.patient_id}"] if r.patient_id else []),
                )
            )
            for r in self.records
        )

    def class_counts(self) -> dict[str, int]:
        """Images per class code, in logit order."""
        counts = Counter(r.label for r in self.records)
        return {code: counts[code] for code in self.taxonomy.codes}

    def same_content(self, other: Manifest) -> bool:
        """Whether another has the same images, and says the same of each, wherever they lie."""
        mine, theirs = (
            [dataclasses.replace(r, path="", mask=str(bool(r.mask))) for r in m.records]
            for m in (self, other)
        )
        return mine == theirs and self.taxonomy.codes == other.taxonomy.codes

    def by_id(self) -> dict[str, Record]:
        """Records by image id."""
        return {r.image_id: r for r in self.records}


def record_path(dataset: str) -> Path:
    """Where `biigma download` records a data set."""
    return home() / "datasets" / f"{dataset}.json"


def save_manifest(manifest: Manifest, *, name: str | None = None) -> Path:
    """Record a checked data set in the data folder, atomically.

    Args:
        name: name of the record; default: the data set's.
    """
    path = record_path(name or manifest.dataset)
    fields = tuple(f.name for f in dataclasses.fields(Record))
    write_json(
        path,
        {
            "format": FORMAT,
            "dataset": manifest.dataset,
            "root": str(manifest.root),
            "licence": manifest.licence,
            "citation": manifest.citation,
            "codes": manifest.codes,
            "missing": manifest.missing,
            "variant": manifest.variant,
            "data_hash": manifest.data_hash,
            "fields": fields,
            "records": [[getattr(r, f) for f in fields] for r in manifest.records],
        },
    )
    return path


def load_manifest(dataset: str) -> Manifest:
    """The recorded data set; a binary task is made from the one it relabels.

    Raises:
        UsageError: `dataset` is unknown.
        DataError: it was never recorded, its record is damaged, or its folder is gone.
    """
    base = base_of(dataset)
    path = record_path(base)
    drawn = base.startswith(f"{SYNTHETIC.dataset}-")
    if base == SYNTHETIC.dataset or drawn:
        again = f"draw it: biigma train --dataset {SYNTHETIC.dataset}"
    elif base in TAXONOMIES:
        again = f"run: biigma download {base}"
    else:
        again = f"run: biigma datasets add {base} FOLDER"
    if is_path(base) or not is_file(path):
        check_known(base)
        check_home()
        raise DataError(f"the data set {base} is not on this machine yet", fix=again)
    manifest = read_record(path, again=again)
    if manifest.dataset != (SYNTHETIC.dataset if drawn else base):
        raise DataError(f"{path} is damaged: it holds {manifest.dataset!r}", fix=again)
    if not is_folder(manifest.root):
        raise DataError(f"the images of {base} are gone from {manifest.root}", fix=again)
    return manifest if base == dataset else _binary(manifest, dataset)


def find_manifest(dataset: str) -> Manifest | None:
    """The recorded data set, whether its images are there or not; None without a good record."""
    base = base_of(dataset)
    path = record_path(base)
    if is_path(base) or not is_file(path):
        return None
    try:
        manifest = read_record(path, again="")
    except DataError:
        return None
    return manifest if base == dataset else _binary(manifest, dataset)


def read_record(path: Path, *, again: str) -> Manifest:
    """A record file, whole and true to its own hash.

    Raises `DataError`, with `again` as the remedy, where it is damaged.
    """
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if stored["format"] not in FORMATS:
            raise DataError(f"{path} has format {stored['format']!r}", fix=again)
        manifest = Manifest(
            dataset=stored["dataset"],
            root=Path(stored["root"]),
            records=tuple(
                Record(**dict(zip(stored["fields"], row, strict=True))) for row in stored["records"]
            ),
            licence=stored["licence"],
            citation=stored["citation"],
            codes=tuple(stored.get("codes", ())),
            missing=int(stored.get("missing", 0)),
            variant=str(stored.get("variant", "")),
        )
        if manifest.data_hash != stored["data_hash"]:
            raise ValueError("its contents do not match its own hash")
        foreign = {r.label for r in manifest.records}.difference(manifest.taxonomy.codes)
        if foreign:
            raise ValueError(f"{', '.join(sorted(foreign))} are none of its classes")
    except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
        raise DataError(f"{path} is damaged: {error}", fix=again) from error
    return manifest


def is_path(name: str) -> bool:
    """Whether what was given as a data set's name cannot be one, but could be a path."""
    return "/" in name or "\\" in name or len(name) > 128


def age_years(age: str) -> float | None:
    """An age as it is recorded, in years from 0 to 130; None for what is none."""
    try:
        years = float(age)
    except ValueError:
        return None
    return years if 0 <= years < 130 else None


def check_known(dataset: str) -> None:
    """Raise `UsageError` where no data set is called so, on this machine or at all."""
    base = base_of(dataset)
    if base not in TAXONOMIES and (is_path(base) or not is_file(record_path(base))):
        _unknown(base)


def _unknown(dataset: str) -> NoReturn:
    if is_path(dataset) or is_there(dataset):
        raise UsageError(
            f"{dataset} is a path, and data sets go by name",
            fix=f"record it first: biigma datasets add NAME {dataset}",
        )
    own = (p.stem for p in record_path("x").parent.glob("*.json"))
    known = sorted({*TAXONOMIES, *own})
    near = difflib.get_close_matches(dataset, known, n=1)
    raise UsageError(
        f"unknown data set {dataset!r}" + (f" (did you mean {near[0]!r}?)" if near else ""),
        fix=f"choose one of: {', '.join(known)}; your own: biigma datasets add NAME FOLDER",
    )


def _binary(manifest: Manifest, dataset: str) -> Manifest:
    """One class of `manifest` against the rest."""
    positive = taxonomy(dataset).codes[0]
    return dataclasses.replace(
        manifest,
        dataset=dataset,
        records=tuple(
            dataclasses.replace(r, label=positive if r.label == positive else "OTHER")
            for r in manifest.records
        ),
    )
