"""The data sets of this machine: recording, loading by the settings of a run, listing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from biigma_cli.config import DataConfig
from biigma_cli.data import official
from biigma_cli.data.ham10000 import METADATA, read_ham10000
from biigma_cli.data.manifest import (
    Manifest,
    is_path,
    load_manifest,
    read_record,
    record_path,
    save_manifest,
)
from biigma_cli.data.scan import Draft, Progress, Warn, check_images, read_csv
from biigma_cli.errors import BiigmaError, DataError, UsageError
from biigma_cli.storage import home, is_file, is_folder
from biigma_cli.taxonomy import DERIVED, SYNTHETIC, TAXONOMIES, base_of

OFFICIAL = tuple(official.CHALLENGES)
SYNTHETIC_LICENCE = "CC0-1.0"
SYNTHETIC_CITATION = "Drawn by biigma; no patient is shown."


def read_copy(
    dataset: str,
    folders: Sequence[Path],
    *,
    allow_missing: bool = False,
    progress: Progress | None = None,
    warn: Warn | None = None,
) -> Manifest:
    """Check a copy of an official data set, in whichever layout it is, and describe it.

    Raises `DataError` as `read_ham10000` and `read_official` do.
    """
    folders = [official.existing_folder(f) for f in folders]
    if dataset == "isic18":
        # Official ground truth counts first: it alone says which images are the test part's. But
        # that of the test part alone, as Dataverse hands it out, says nothing of HAM10000.
        challenge = official.CHALLENGES[dataset]
        there = official.truth_files(folders)
        found = there.get(METADATA)
        truths = [p.truth for p in challenge.parts if p.truth in there]
        trained = next(p.truth for p in challenge.parts if p.part == "train")
        if not truths or (found and trained not in truths):
            if truths and warn:
                warn(
                    f"{', '.join(truths)} left aside: {METADATA} is read, which knows no parts; "
                    f"for the official ones, add {trained}"
                )
            folder = found.parent if found else folders[0]
            return read_ham10000(
                folder,
                beside=folders,
                allow_missing=allow_missing,
                progress=progress,
                warn=warn,
            )
    return official.read_official(
        dataset, folders, allow_missing=allow_missing, progress=progress, warn=warn
    )


def load_dataset(data: DataConfig, *, progress: Progress | None = None) -> Manifest:
    """The data set that a run's settings name; the synthetic one is drawn first if need be.

    Raises as `load_manifest` does.
    """
    if data.dataset == SYNTHETIC.dataset:
        return load_synthetic(data, progress=progress)
    return load_manifest(data.dataset)


def load_synthetic(data: DataConfig, *, progress: Progress | None = None) -> Manifest:
    """The synthetic data set of these settings, drawn into the data folder where it is not there.

    Raises:
        BiigmaError: it cannot be written.
        DataError: its record is damaged.
    """
    from biigma_cli.data.synthetic import SyntheticOptions, write_synthetic

    options = SyntheticOptions(
        count=data.synthetic_count,
        seed=data.synthetic_seed,
        side=max(data.side, 224),
        background_bias=data.background_bias,
        test_background=data.test_background,
    )
    text = json.dumps(dataclasses.asdict(options), sort_keys=True)
    name = f"{SYNTHETIC.dataset}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    folder = home() / "data" / name
    record = record_path(name)
    written = write_synthetic(options, folder, progress=progress)
    if is_file(record):
        manifest = read_record(record, again=f"remove {record} and {folder}, and run it again")
        if manifest.root == written:
            return manifest
    rows = read_csv(
        written / "metadata.csv", ("image", "label", "lesion_id", "split", "mask"),
        absent=f"remove {written} and run it again",
    )  # fmt: skip
    drafts = [
        Draft(
            image_id=Path(row["image"]).stem,
            file=written / row["image"],
            label=row["label"],
            lesion_id=row["lesion_id"],
            part=row["split"],
            mask=written / row["mask"],
        )
        for row in rows
    ]
    manifest = Manifest(
        dataset=SYNTHETIC.dataset,
        root=written,
        records=check_images(drafts, written),
        licence=SYNTHETIC_LICENCE,
        citation=SYNTHETIC_CITATION,
        variant=f"background bias {options.background_bias:g}, "
        f"in the test part {options.test_background}",
    )
    save_manifest(manifest, name=name)
    return manifest


@dataclass(frozen=True, kw_only=True)
class Status:
    """What is known of a data set on this machine.

    Attributes:
        name: as commands take it.
        title: for people.
        state: `here`, `partial`, `not here` or `damaged`, and which official parts are absent.
        problem: what is wrong with it, empty where nothing is.
        manifest: its record, if any.
    """

    name: str
    title: str
    state: str
    problem: str = ""
    manifest: Manifest | None = None


def statuses() -> list[Status]:
    """All data sets biigma knows by name, and all that are recorded here."""
    own = sorted(p.stem for p in record_path("x").parent.glob("*.json"))
    result = [_status(name) for name in TAXONOMIES if name != SYNTHETIC.dataset]
    result += [_status(name) for name in own if name not in TAXONOMIES]
    return result


def _status(name: str) -> Status:
    title = TAXONOMIES[name].title if name in TAXONOMIES else name
    if not is_file(record_path(base_of(name))):
        return Status(name=name, title=title, state="not here")
    try:
        if name.startswith(f"{SYNTHETIC.dataset}-"):
            manifest = read_record(record_path(name), again="remove it")
            title = SYNTHETIC.title
            if not is_folder(manifest.root):
                raise DataError(f"its images are gone from {manifest.root}")
        else:
            manifest = load_manifest(name)
    except BiigmaError as error:
        return Status(name=name, title=title, state="damaged", problem=error.message)
    state = "partial" if manifest.missing else "here"
    challenge = official.CHALLENGES.get(manifest.dataset)
    if challenge is not None and any(r.part for r in manifest.records):
        absent = {p.part for p in challenge.parts} - {r.part for r in manifest.records}
        if absent:
            state += f", no {' or '.join(sorted(absent))} part"
    return Status(name=name, title=title, state=state, manifest=manifest)


def forget(name: str) -> Path:
    """Remove a data set's record; its images stay. Returns the record's path.

    Raises `UsageError` where there is none, `BiigmaError` where it cannot be removed.
    """
    path = record_path(name)
    if name in DERIVED:
        raise UsageError(
            f"{name} is made from {DERIVED[name]}", fix=f"biigma datasets remove {DERIVED[name]}"
        )
    if is_path(name) or not is_file(path):
        raise UsageError(f"no data set {name!r} is recorded", fix="see: biigma datasets")
    try:
        path.unlink()
    except OSError as error:
        raise BiigmaError(
            f"cannot remove {path}: {error.strerror}", fix="change its permissions"
        ) from error
    return path
