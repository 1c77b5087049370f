"""What a data set on disk consists of, and the record of it in the data folder."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biigma_cli.errors import DataError
from biigma_cli.storage import home, sha256_lines, write_json
from biigma_cli.taxonomy import Taxonomy, taxonomy

FORMAT = "biigma-dataset-1"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One labelled image.

    Attributes:
        image_id: the archive's id, such as `ISIC_0024306`.
        path: file, relative to the manifest's root.
        label: class code.
        lesion_id: images of one lesion share it; empty where unknown.
        digest: hex BLAKE2b-128 of the file's bytes.
    """

    image_id: str
    path: str
    label: str
    lesion_id: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A checked data set.

    Attributes:
        dataset: name, such as `isic18`.
        root: folder the records' paths start from.
        records: in order of `image_id`.
        licence: SPDX id of the images' licence.
        citation: what its authors ask to be cited.
    """

    dataset: str
    root: Path
    records: tuple[Record, ...]
    licence: str
    citation: str

    @property
    def taxonomy(self) -> Taxonomy:
        """Its classes."""
        return taxonomy(self.dataset)

    @property
    def data_hash(self) -> str:
        """SHA-256 over ids, labels, lesions and file contents; not over where they lie."""
        return sha256_lines(
            "\t".join((r.image_id, r.label, r.lesion_id, r.digest)) for r in self.records
        )

    def class_counts(self) -> dict[str, int]:
        """Images per class code, in logit order."""
        counts = Counter(r.label for r in self.records)
        return {code: counts[code] for code in self.taxonomy.codes}

    def by_id(self) -> dict[str, Record]:
        """Records by image id."""
        return {r.image_id: r for r in self.records}


def record_path(dataset: str) -> Path:
    """Where `biigma download` records a data set."""
    return home() / "datasets" / f"{dataset}.json"


def save_manifest(manifest: Manifest) -> Path:
    """Record a checked data set in the data folder, atomically."""
    path = record_path(manifest.dataset)
    fields = ("image_id", "path", "label", "lesion_id", "digest")
    write_json(
        path,
        {
            "format": FORMAT,
            "dataset": manifest.dataset,
            "root": str(manifest.root),
            "licence": manifest.licence,
            "citation": manifest.citation,
            "data_hash": manifest.data_hash,
            "fields": fields,
            "records": [[getattr(r, f) for f in fields] for r in manifest.records],
        },
    )
    return path


def load_manifest(dataset: str) -> Manifest:
    """The recorded data set.

    Raises:
        UsageError: `dataset` is unknown.
        DataError: it was never recorded, its record is damaged, or its folder is gone.
    """
    taxonomy(dataset)
    path = record_path(dataset)
    again = f"run: biigma download {dataset} --from FOLDER"
    if not path.is_file():
        raise DataError(f"the data set {dataset} is not on this machine yet", fix=again)
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if stored["format"] != FORMAT:
            raise DataError(f"{path} has format {stored['format']!r}", fix=again)
        manifest = Manifest(
            dataset=stored["dataset"],
            root=Path(stored["root"]),
            records=tuple(
                Record(**dict(zip(stored["fields"], row, strict=True))) for row in stored["records"]
            ),
            licence=stored["licence"],
            citation=stored["citation"],
        )
        if (manifest.dataset, manifest.data_hash) != (dataset, stored["data_hash"]):
            raise ValueError("its contents do not match its own hash")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}", fix=again) from error
    if not manifest.root.is_dir():
        raise DataError(f"the images of {dataset} are gone from {manifest.root}", fix=again)
    return manifest
