"""Train, validation and test parts: stratified, seeded, the same on every machine.

Nothing here depends on Python's or numpy's random generators: groups are ordered by a hash of seed
and name, so a split can be made again anywhere, in any language.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from biigma_cli.config import DataConfig
from biigma_cli.data.duplicates import twin_key
from biigma_cli.data.manifest import Manifest, Record, load_manifest
from biigma_cli.errors import CheckpointMismatch, DataError, UsageError
from biigma_cli.storage import sha256_lines
from biigma_cli.taxonomy import SYNTHETIC, TAXONOMIES, base_of

PARTS = ("train", "val", "test")
PROTOCOLS: tuple[Literal["lesion", "paper", "official"], ...] = ("lesion", "paper", "official")
# What must be equal where a split is the same, and what of.
_HASHES = {"data_hash": "data", "split_hash": "split"}
# What makes a split of the same data another, and the setting it comes from.
_MAKE = {
    "protocol": "data.protocol",
    "seed": "data.split_seed",
    "test_fraction": "data.test_fraction",
    "val_fraction": "data.val_fraction",
    "join_duplicates": "data.join_duplicates",
}


@dataclass(frozen=True, kw_only=True)
class Split:
    """Image ids of each part, sorted, and how they came about.

    Attributes:
        nameless: images of all parts that say of no lesion that they show it.
        leaked: test images that show a lesion or a patient of train or val, by id or as a copy of
            the file, where the parts are a publisher's.
        patients: images of all parts that say which patient they show.
    """

    dataset: str
    variant: str
    protocol: str
    join_duplicates: bool
    seed: int
    test_fraction: float
    val_fraction: float
    data_hash: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    nameless: int = 0
    leaked: int = 0
    patients: int = 0

    @property
    def split_hash(self) -> str:
        """SHA-256 over part names and ids: equal hashes mean equal parts."""
        return sha256_lines(f"{part}\t{i}" for part in PARTS for i in getattr(self, part))

    @property
    def title(self) -> str:
        """The protocol in one line, to stand beside every score."""
        images = sum(len(getattr(self, p)) for p in PARTS)
        safe = "lesion-safe (no lesion on two sides)"
        if self.nameless:
            named = f"{images - self.nameless:,} of {images:,}"
            safe = f"lesion-safe as far as lesions are named ({named} images have a lesion id)"
        if self.patients == images:
            safe = "patient-safe (no patient on two sides)"
        elif self.patients:
            safe += f", patients apart as far as they are named ({self.patients:,} of {images:,})"
        how = {
            "lesion": safe,
            "paper": "random by image, as published (lesions leak between parts)",
            "official": "the publisher's own parts" + self._leak(),
        }[self.protocol]
        sizes = " / ".join(f"{len(getattr(self, p))}" for p in PARTS)
        which = f"{self.dataset} ({self.variant})" if self.variant else self.dataset
        return f"{which}, {how}, seed {self.seed}, {sizes} train / val / test"

    def _leak(self) -> str:
        if not self.leaked:
            return ""
        shown = f"{self.leaked:,} of {len(self.test):,} test images show one of train or val"
        return f" (lesions {'or patients ' * bool(self.patients)}leak: {shown})"

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

    Groups that must not be divided are whole lesions, and patients where they are known, joined
    with byte-identical images and known near-duplicates (`lesion`), or single images (`paper`).
    Within each class, groups are taken in hash order until the class has given its share of images.
    With `official`, parts are the publisher's; where it has no validation part, that is cut from
    train by lesion. The other two protocols leave the official test and validation images of ISIC
    2018 and 2019 out, and pool those of ISIC 2017; `paper` pools its training and test images
    alone, the paper's 2,600, where the latter are there.

    Raises:
        DataError: a class has too few groups to stand in all parts that are cut, or stands in too
            few of them as patients have several classes; or a publisher's part that is needed is
            not there, or has no image of a class to train on, or images of one alone to choose the
            epoch by.
    """
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    if config.protocol == "official":
        _official(manifest, config, parts)
    else:
        pool = manifest.records
        if (
            config.protocol == "paper"
            and base_of(manifest.dataset) == "isic17"
            and any(r.part == "test" for r in pool)
        ):
            pool = tuple(r for r in pool if r.part != "val")
        if manifest.dataset in ("isic18", "isic19"):
            pool = tuple(r for r in pool if r.part in ("", "train"))
            if not pool:
                raise DataError(
                    f"{manifest.dataset} has no training images on this machine",
                    fix=f"get them with: biigma download {manifest.dataset}",
                )
        shares = {"test": config.test_fraction, "val": config.val_fraction}
        _cut(manifest, pool, config, parts, shares, by_lesion=config.protocol == "lesion")
    official = config.protocol == "official"
    used = {i for ids in parts.values() for i in ids}
    records = [r for r in manifest.records if r.image_id in used]
    return Split(
        dataset=manifest.dataset,
        variant=manifest.variant,
        protocol=config.protocol,
        join_duplicates=config.join_duplicates,
        seed=config.split_seed,
        test_fraction=config.test_fraction,
        val_fraction=config.val_fraction,
        data_hash=manifest.data_hash,
        nameless=sum(not r.lesion_id for r in records),
        patients=sum(bool(r.patient_id) for r in records),
        leaked=_leaked(manifest, parts, "test", config.join_duplicates) if official else 0,
        **{part: tuple(sorted(ids)) for part, ids in parts.items()},
    )


def _leaked(
    manifest: Manifest, parts: Mapping[str, Sequence[str]], judged: str, twins: bool
) -> int:
    """How many of a publisher's `judged` part show a lesion or patient of the parts before it."""
    before = {i for part in PARTS[: PARTS.index(judged)] for i in parts[part]}
    held = set(parts[judged])
    records = tuple(r for r in manifest.records if r.image_id in before | held)
    return sum(
        sum(r.image_id in held for r in group)
        for group in lesion_groups(records, by_lesion=True, twins=twins)
        if any(r.image_id in before for r in group)
    )


def own_parts_meant(dataset: str) -> bool:
    """`own_split_meant` of a data set by name; nothing is drawn. Raises as `load_manifest`, too."""
    if dataset in TAXONOMIES:
        return dataset == SYNTHETIC.dataset
    return own_split_meant(load_manifest(dataset))


def brings_own_split(manifest: Manifest) -> bool:
    """Whether a user's own or the synthetic data set has parts, which then are what is meant.

    The challenges have parts, too, but stand for the lesion-safe protocol by default.
    """
    if manifest.dataset in TAXONOMIES and manifest.dataset != SYNTHETIC.dataset:
        return False
    parts = {r.part for r in manifest.records}
    return "" not in parts and {"train", "test"} <= parts


def own_split_meant(manifest: Manifest) -> bool:
    """`brings_own_split`, where nothing else was asked for.

    Raises `UsageError` where a user's own data set has parts that cannot be a split: they would be
    pooled and cut anew, held-out images among those to train on.
    """
    brings = brings_own_split(manifest)
    counts = Counter(r.part for r in manifest.records)
    if brings or manifest.dataset in TAXONOMIES or set(counts) == {""}:
        return brings
    have = ", ".join(f"{counts[p]} in {p}" for p in PARTS if counts[p])
    lacking = [f"none in {p}" for p in ("train", "test") if not counts[p]]
    lacking += [f"{counts['']} in no part"] * bool(counts[""])
    raise UsageError(
        f"the parts of {manifest.dataset} are no split: {have}, but {' and '.join(lacking)}",
        fix="complete them and record the data set again, or choose --protocol lesion, which cuts "
        "all its images anew",
    )


def _official(manifest: Manifest, config: DataConfig, parts: dict[str, list[str]]) -> None:
    by_part: dict[str, list[Record]] = defaultdict(list)
    for record in manifest.records:
        by_part[record.part].append(record)
    for part in ("train", "test"):
        if not by_part[part]:
            base = base_of(manifest.dataset)
            fix = f"get it with: biigma download {base} --parts {part}"
            if manifest.codes:
                fix = "add a column split with train, val and test to its CSV"
            raise DataError(
                f"{manifest.dataset} has no official {part} part on this machine",
                fix=f"{fix}; or choose --protocol lesion",
            )
    if by_part[""]:
        raise DataError(
            f"{len(by_part[''])} images of {manifest.dataset} are in no part",
            fix="fill its column split, or choose --protocol lesion",
        )
    untrained = {r.label for r in manifest.records} - {r.label for r in by_part["train"]}
    if untrained:
        raise DataError(
            f"the train part of {manifest.dataset} has no image of {', '.join(sorted(untrained))}",
            fix="add some, or choose --protocol lesion",
        )
    parts["test"] += [r.image_id for r in by_part["test"]]
    if by_part["val"]:
        judged = {r.label for r in by_part["val"]}
        if len(judged) < 2:
            raise DataError(
                f"the val part of {manifest.dataset} has images of one class alone, "
                f"{judged.pop()}: no epoch can be chosen by it",
                fix="add some of the others, or leave the part out: it is then cut from train; or "
                "choose --protocol lesion",
            )
        parts["train"] += [r.image_id for r in by_part["train"]]
        parts["val"] += [r.image_id for r in by_part["val"]]
        return
    _cut(
        manifest, tuple(by_part["train"]), config, parts, {"val": config.val_fraction},
        by_lesion=True,
    )  # fmt: skip


def _cut(
    manifest: Manifest,
    pool: tuple[Record, ...],
    config: DataConfig,
    parts: dict[str, list[str]],
    shares: dict[str, float],
    *,
    by_lesion: bool,
) -> None:
    """Share `pool` out over the parts of `shares`, in that order, and train."""
    by_class: dict[str, list[list[Record]]] = defaultdict(list)
    images = Counter(r.label for r in pool)
    by_patient = by_lesion and any(r.patient_id for r in pool)
    for members in lesion_groups(pool, by_lesion=by_lesion, twins=config.join_duplicates):
        # A group of several classes (a label conflict) goes with its first by image id; a patient
        # with the rarest, of which there are the fewest to go round.
        label = members[0].label
        if any(r.patient_id for r in members):
            label = min((r.label for r in members), key=lambda code: (images[code], code))
        by_class[label].append(members)
    kind = "images" if not by_lesion else "patients" if by_patient else "lesions"
    for code in manifest.taxonomy.codes:
        own = by_class.get(code, [])
        if not own:
            continue
        if len(own) < len(shares) + 1:
            raise DataError(
                f"class {code} has {len(own)} {kind}: too few for "
                + ", ".join(("train", *reversed(shares))),
                fix="add images of that class, or leave it out",
            )
        own.sort(key=lambda g: _rank(config.split_seed, g[0]))
        _deal(own, parts, shares)
    if by_patient:
        _check_classes(pool, images, parts, ("train", *reversed(shares)))


def _check_classes(
    pool: tuple[Record, ...],
    images: Mapping[str, int],
    parts: Mapping[str, Sequence[str]],
    cut: Sequence[str],
) -> None:
    """Raise `DataError` where a part has none of a class, all of whose patients went elsewhere."""
    label = {r.image_id: r.label for r in pool}
    for part in cut:
        there = {label[i] for i in parts[part] if i in label}
        absent = sorted(code for code in images if code not in there)
        if absent:
            raise DataError(
                f"kept together by patient, no image of {', '.join(absent)} comes to {part}",
                fix="try another --set data.split_seed=N, add patients, or leave patient_id out",
            )


def same_split(stored: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two networks say that they were trained with the same split of the same data."""
    return all(stored.get(key) == other.get(key) for key in _HASHES)


def check_same_split(split: Split, stored: dict[str, Any], *, source: str) -> None:
    """Raise `CheckpointMismatch` where `split` is not the one `source` was trained with."""
    for key, what in _HASHES.items():
        now = getattr(split, key)
        if now == stored.get(key):
            continue
        how = f"{what} hash {str(stored.get(key))[:12]}, here {now[:12]}"
        fix = "record the original data with 'biigma download', or train again"
        said = {"join_duplicates": False, **stored}  # earlier versions joined none
        made = {_MAKE[k]: (said[k], getattr(split, k)) for k in _MAKE if k in said}
        differing = {k: (then, here) for k, (then, here) in made.items() if then != here}
        if what == "split" and differing:  # the data are the same
            how = ", ".join(f"{k} {then}, here {here}" for k, (then, here) in differing.items())
            again = " ".join(f"--set {k}={str(v).lower()}" for k, (v, _) in differing.items())
            fix = f"compare runs of one split; train one of that split with {again}"
        raise CheckpointMismatch(
            f"{source} was trained on another {what} ({how}): its test images may be among the "
            "ones it has seen",
            fix=fix,
        )


def _deal(
    groups: list[list[Record]], parts: dict[str, list[str]], shares: dict[str, float]
) -> None:
    """Share one class's groups out: at least one group to each part, the rest to train."""
    total = sum(len(g) for g in groups)
    rest = iter(groups)
    left = len(groups)
    for i, (part, share) in enumerate(shares.items()):
        reserved = len(shares) - i  # a group for each part still to come, train among them
        taken = 0
        while left > reserved and (taken == 0 or taken < round(share * total)):
            group = next(rest)
            parts[part] += [r.image_id for r in group]
            taken += len(group)
            left -= 1
    for group in rest:
        parts["train"] += [r.image_id for r in group]


def lesion_groups(
    records: tuple[Record, ...], *, by_lesion: bool, twins: bool
) -> list[list[Record]]:
    """Records that must stay together, each group sorted by id."""
    if not by_lesion:
        return [[r] for r in records]
    keys = [known_keys(record) for record in records]
    for own, record in zip(keys, records, strict=True):
        if record.patient_id:
            own.append(("patient", record.patient_id))
        if twins and (twin := twin_key(record.image_id)):
            own.append(("twin", twin))
    return [sorted((records[i] for i in group), key=lambda r: r.image_id) for group in joined(keys)]


def known_keys(record: Record) -> list[tuple[str, str]]:
    """What all images of its lesion, and copies of its file, share."""
    keys = [("digest", record.digest)]
    if record.lesion_id:
        keys.append(("lesion", record.lesion_id))
    return keys


def joined(keys: Sequence[Iterable[Hashable]]) -> list[list[int]]:
    """Indices of items that have a key in common, directly or over others, in order."""
    parent = list(range(len(keys)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    seen: dict[Hashable, int] = {}
    for i, own in enumerate(keys):
        for key in own:
            parent[find(i)] = find(seen.setdefault(key, i))
    grouped: dict[int, list[int]] = defaultdict(list)
    for i in range(len(keys)):
        grouped[find(i)].append(i)
    return list(grouped.values())


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


def poorly_judged(split: Split, manifest: Manifest) -> list[str]:
    """What the publisher's validation and test parts cannot judge well, a line each."""
    counts = part_counts(split, manifest)
    lines = []
    absent = [code for code, n in counts["val"].items() if not n and counts["train"][code]]
    if absent:
        lines.append(
            f"the val part of {split.dataset} has no image of {', '.join(absent)}: the epoch is "
            "chosen without"
        )
    tested = [code for code, n in counts["test"].items() if n]
    if len(tested) == 1:
        lines.append(
            f"the test part of {split.dataset} has images of one class alone, {tested[0]}: 'biigma "
            "eval' cannot judge by it"
        )
    if split.protocol == "official":
        parts = {part: split.part(part) for part in PARTS}
        of_val = _leaked(manifest, parts, "val", split.join_duplicates)
        for part, leaked in (("val", of_val), ("test", split.leaked)):
            if leaked:
                lines.append(
                    f"{leaked} of {len(parts[part])} {part} images of {split.dataset} show a "
                    f"lesion {'or patient ' * bool(split.patients)}that is in "
                    f"{'train' if part == 'val' else 'train or val'}, too: what "
                    "is measured there is no figure for new ones (--protocol "
                    "lesion cuts all anew)"
                )
    return lines
