"""Training images from other data sets than the one a run is split, chosen and judged on."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from biigma_cli.config import DataConfig
from biigma_cli.data.images import Part, load_part
from biigma_cli.data.manifest import Manifest, load_manifest
from biigma_cli.data.seen import marks
from biigma_cli.data.splits import Split, lesion_groups, make_split, own_split_meant
from biigma_cli.errors import DataError
from biigma_cli.taxonomy import counterpart


class Extra(NamedTuple):
    """Another data set's training part, as it may join a training.

    Attributes:
        manifest: of that data set, with its own labels.
        split: of that data set.
        ids: images that join.
        known: images left out because the data set they would join has them, or another image of
            their lesion; or because another extra set holds them out, or has brought them already.
        classless: images left out by label, for want of a class here.
    """

    manifest: Manifest
    split: Split
    ids: tuple[str, ...]
    known: int
    classless: dict[str, int]

    def summary(self) -> dict[str, Any]:
        """What a checkpoint says of it."""
        labels = self.manifest.by_id()
        return {
            "dataset": self.split.dataset,
            "protocol": self.split.title,
            "data_hash": self.split.data_hash,
            "split_hash": self.split.split_hash,
            "images": len(self.ids),
            "classes": dict(sorted(Counter(labels[i].label for i in self.ids).items())),
            "known": self.known,
            "classless": self.classless,
            "licence": self.manifest.licence,
            "citation": self.manifest.citation,
        }


def find_extra(manifest: Manifest, config: DataConfig) -> list[Extra]:
    """The training parts of `config.extra`.

    Each is split by itself, with the protocol, shares and seed of `config` (`official` where a
    user's own set brings its parts, `lesion` in place of `official` where it brings none) and
    near-duplicates kept together, so that its own validation and test part stay unseen, of which
    no other of the sets may bring an image either. Images that `manifest` has anywhere are left
    out, by bytes, by the archive's id and by its lesion id, and with them whatever the other set
    keeps together with them. Near-duplicates over two data sets are not searched for.

    Raises:
        DataError: a data set is not recorded here, or none of its images can join.
        UsageError: no such data set, or its own parts are no split.
    """
    seen = {mark for record in manifest.records for mark in marks(record)}
    # All are split before any is chosen from: what the last holds out, the first must not bring.
    others = [_split(name, config) for name in config.extra]
    held_out = [_held_out(other, split) for other, split in others]
    found = []
    for n, (other, split) in enumerate(others):
        shut = seen.union(*held_out[:n], *held_out[n + 1 :])
        records = other.by_id()
        own_images = {
            record.image_id
            for group in lesion_groups(other.records, by_lesion=True, twins=True)
            if any(mark in shut for record in group for mark in marks(record))
            for record in group
        }
        joining, known, classless = [], 0, Counter[str]()
        for image in split.train:
            record = records[image]
            if image in own_images:
                known += 1
            elif counterpart(record.label, manifest.taxonomy) is None:
                classless[record.label] += 1
            else:
                joining.append(image)
        if not joining:
            raise DataError(
                f"data.extra: no training image of {other.dataset} can join {manifest.dataset} "
                f"({known} are its own, of its lesions, or in another extra set, "
                f"{sum(classless.values())} have no class in it)",
                fix="leave that data set out of data.extra",
            )
        seen |= {mark for i in joining for mark in marks(records[i])}
        found.append(Extra(other, split, tuple(joining), known, dict(sorted(classless.items()))))
    return found


def _split(name: str, config: DataConfig) -> tuple[Manifest, Split]:
    """An extra data set and its split."""
    other = load_manifest(name)
    protocol = config.protocol
    if own_split_meant(other):
        protocol = "official"
    elif protocol == "official":
        protocol = "lesion"
    own = dataclasses.replace(
        config, dataset=name, extra=(), protocol=protocol, join_duplicates=True
    )
    return other, make_split(other, own)


def _held_out(manifest: Manifest, split: Split) -> set[tuple[str, str]]:
    """Marks of the images that the set validates and tests on."""
    records = manifest.by_id()
    return {mark for i in (*split.val, *split.test) for mark in marks(records[i])}


def add_extra(
    part: Part,
    manifest: Manifest,
    extras: Sequence[Extra],
    config: DataConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Part:
    """`part` with the extra images behind its own, their labels as `manifest` counts classes.

    Raises `DataError` as `load_part` does.
    """
    parts = [part]
    for extra in extras:
        found = load_part(
            extra.manifest, extra.ids, config.side, rule=config.resize, build=True,
            progress=progress, warn=warn,
        )  # fmt: skip
        records = extra.manifest.by_id()
        codes = [counterpart(records[i].label, manifest.taxonomy) for i in extra.ids]
        labels = [manifest.taxonomy.index(code or "") for code in codes]
        parts.append(found._replace(labels=np.array(labels, np.int64)))
    if len(parts) == 1:
        return part
    return Part(
        ids=tuple(i for p in parts for i in p.ids),
        pixels=np.concatenate([p.pixels for p in parts]),
        labels=np.concatenate([p.labels for p in parts]),
        groups=tuple(g for p in parts for g in p.groups),
    )
