"""Train, validation and test parts: stratified, seeded, the same on every machine.

Nothing here depends on Python's or numpy's random generators: groups are ordered by a hash of seed
and name, so a split can be made again anywhere, in any language.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from biigma_cli.config import DataConfig
from biigma_cli.data.manifest import Manifest, Record
from biigma_cli.errors import CheckpointMismatch, DataError
from biigma_cli.storage import sha256_lines

PARTS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Image ids of each part, sorted, and how they came about."""

    dataset: str
    protocol: str
    seed: int
    test_fraction: float
    val_fraction: float
    data_hash: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def split_hash(self) -> str:
        """SHA-256 over part names and ids: equal hashes mean equal parts."""
        return sha256_lines(f"{part}\t{i}" for part in PARTS for i in getattr(self, part))

    @property
    def title(self) -> str:
        """The protocol in one line, to stand beside every score."""
        how = {
            "lesion": "lesion-safe (no lesion on two sides)",
            "paper": "random by image, as published (lesions leak between parts)",
        }[self.protocol]
        sizes = " / ".join(f"{len(getattr(self, p))}" for p in PARTS)
        return f"{self.dataset}, {how}, seed {self.seed}, {sizes} train / val / test"

    def part(self, name: str) -> tuple[str, ...]:
        """Ids of a part by name."""
        return tuple(getattr(self, name))

    def summary(self) -> dict[str, Any]:
        """Everything but the ids, for checkpoints and exported models."""
        plain = asdict(self)
        sizes = {part: len(plain.pop(part)) for part in PARTS}
        return {**plain, "sizes": sizes, "split_hash": self.split_hash}

    def to_json(self) -> str:
        """With all ids."""
        return json.dumps({**asdict(self), "split_hash": self.split_hash}, indent=1) + "\n"


def make_split(manifest: Manifest, config: DataConfig) -> Split:
    """Cut the test part from all images, then validation from the rest.

    Groups that must not be divided are whole lesions joined with byte-identical images
    (`lesion`), or single images (`paper`). Within each class, groups are taken in hash order until
    the class has given its share of images.

    Raises:
        DataError: a class has too few groups to stand in all three parts.
    """
    groups = _groups(manifest.records, by_lesion=config.protocol == "lesion")
    by_class: dict[str, list[list[Record]]] = defaultdict(list)
    for members in groups:
        # A group of several classes (a label conflict) goes with its first by image id.
        by_class[members[0].label].append(members)
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for code in manifest.taxonomy.codes:
        own = by_class.get(code, [])
        if not own:
            continue
        if len(own) < len(PARTS):
            raise DataError(
                f"class {code} has {len(own)} lesions: too few for train, val and test",
                fix="add images of that class",
            )
        own.sort(key=lambda g: _rank(config.split_seed, g[0]))
        _deal(own, parts, test=config.test_fraction, val=config.val_fraction)
    return Split(
        dataset=manifest.dataset,
        protocol=config.protocol,
        seed=config.split_seed,
        test_fraction=config.test_fraction,
        val_fraction=config.val_fraction,
        data_hash=manifest.data_hash,
        **{part: tuple(sorted(ids)) for part, ids in parts.items()},
    )


def check_same_split(split: Split, stored: dict[str, Any], *, source: str) -> None:
    """Raise `CheckpointMismatch` where `split` is not the one `source` was trained with."""
    for key, what in (("data_hash", "data"), ("split_hash", "split")):
        now = getattr(split, key)
        if now != stored.get(key):
            raise CheckpointMismatch(
                f"{source} was trained on another {what} "
                f"({what} hash {str(stored.get(key))[:12]}, here {now[:12]}): its test images "
                "may be among the ones it has seen",
                fix="record the original data with 'biigma download', or train again",
            )


def _deal(
    groups: list[list[Record]], parts: dict[str, list[str]], *, test: float, val: float
) -> None:
    """Share one class's groups out: test first, then val, each at least one group."""
    total = sum(len(g) for g in groups)
    rest = iter(groups)
    left = len(groups)
    for part, share, reserved in (("test", test, 2), ("val", val, 1)):
        taken = 0
        while left > reserved and (taken == 0 or taken < round(share * total)):
            group = next(rest)
            parts[part] += [r.image_id for r in group]
            taken += len(group)
            left -= 1
    for group in rest:
        parts["train"] += [r.image_id for r in group]


def _groups(records: tuple[Record, ...], *, by_lesion: bool) -> list[list[Record]]:
    """Records that must stay together, each group sorted by id."""
    if not by_lesion:
        return [[r] for r in records]
    # Union-find over shared lesion ids and shared file contents.
    parent = list(range(len(records)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    seen: dict[tuple[str, str], int] = {}
    for i, record in enumerate(records):
        keys = [("digest", record.digest)]
        if record.lesion_id:
            keys.append(("lesion", record.lesion_id))
        for key in keys:
            parent[find(i)] = find(seen.setdefault(key, i))
    grouped: dict[int, list[Record]] = defaultdict(list)
    for i, record in enumerate(records):
        grouped[find(i)].append(record)
    return [sorted(g, key=lambda r: r.image_id) for g in grouped.values()]


def _rank(seed: int, record: Record) -> bytes:
    name = record.lesion_id or record.image_id
    return hashlib.sha256(f"{seed}:{name}:{record.image_id}".encode()).digest()


def part_counts(split: Split, manifest: Manifest) -> dict[str, dict[str, int]]:
    """Images per class in each part."""
    records = manifest.by_id()
    result = {}
    for part in PARTS:
        counts = Counter(records[i].label for i in split.part(part))
        result[part] = {code: counts[code] for code in manifest.taxonomy.codes}
    return result
