"""Images that a network was trained on in another data set, whatever they are called there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import PurePosixPath
from typing import Any

from biigma_cli.config import DataConfig
from biigma_cli.data.manifest import Manifest, Record
from biigma_cli.data.splits import PROTOCOLS, Split, lesion_groups, make_split
from biigma_cli.errors import DataError

# An image of the ISIC archive.
_ARCHIVE = re.compile(r"ISIC_\d{7}")


def archive_id(record: Record) -> str:
    """The id that the ISIC archive knows an image by, from its id or its file's name; "" for none.

    ISIC 2019 appends `_downsampled` to some ids of the same images, whose bytes differ.
    """
    for name in (PurePosixPath(record.image_id).name, PurePosixPath(record.path).stem):
        if _ARCHIVE.fullmatch(found := name.removesuffix("_downsampled")):
            return found
    return ""


def marks(record: Record) -> list[tuple[str, str]]:
    """What an image and its lesion are known by in any data set.

    Ids count only as the archive gives them: a user's own (`MEL/001`) may mean anything elsewhere.
    """
    found = _names(record)
    if record.lesion_id and len(found) > 1:
        found.append(("lesion", record.lesion_id))
    return found


def _names(record: Record) -> list[tuple[str, str]]:
    """What the image alone is known by."""
    name = archive_id(record)
    return [("bytes", record.digest), *([("id", name)] if name else [])]


def split_again(other: Manifest, split_hash: str, stored: Mapping[str, Any]) -> Split | None:
    """The split of that hash; None where it cannot be made of the data as recorded.

    Args:
        stored: summary of a split of the same training, which has the same seed and shares.
    """
    default = DataConfig()
    # A network behind that training may have had the default ones.
    for said, protocol, joined in product((stored, {}), PROTOCOLS, (True, False)):
        config = DataConfig(
            dataset=other.dataset,
            protocol=protocol,
            join_duplicates=joined,
            test_fraction=said.get("test_fraction", default.test_fraction),
            val_fraction=said.get("val_fraction", default.val_fraction),
            split_seed=said.get("seed", default.split_seed),
        )
        try:
            split = make_split(other, config)
        except DataError:
            continue
        if split.split_hash == split_hash:
            return split
    return None


def seen_in(
    records: Iterable[Record],
    other: Manifest,
    split: Split | None,
    *,
    beside: Manifest | None = None,
) -> list[str]:
    """Ids of those of `records` that were trained on in another data set, or whose lesion was.

    Args:
        split: of that one; None where any image of it may have been trained on.
        beside: a data set that it joined; images of that one were left out (`data.extra`).
    """
    left = set() if beside is None else {mark for r in beside.records for mark in marks(r)}
    trained = {r.image_id for r in other.records} if split is None else {*split.train}
    seen = set[tuple[str, str]]()
    for group in lesion_groups(other.records, by_lesion=True, twins=True):
        known = {mark for record in group for mark in marks(record)}
        if known.isdisjoint(left) and any(r.image_id in trained for r in group):
            seen |= known
    return [r.image_id for r in records if not seen.isdisjoint(_names(r))]
