"""Splits: what stays together, how much each part gets, and the same on every machine."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biigma_cli.config import DataConfig
from biigma_cli.data.duplicates import KNOWN_PAIRS
from biigma_cli.data.ham10000 import METADATA
from biigma_cli.data.manifest import Manifest
from biigma_cli.data.splits import (
    PARTS,
    Split,
    brings_own_split,
    check_same_split,
    make_split,
    part_counts,
    poorly_judged,
)
from biigma_cli.errors import CheckpointMismatch, DataError
from biigma_cli.taxonomy import ISIC17, ISIC18
from tests.data.samples import HAM10000, NO_HAM10000, manifest, record

PAPER = DataConfig(protocol="paper")


def lesions(sizes: dict[str, int], *, biggest: int = 3) -> Manifest:
    """`sizes` lesions per class, of 1 to `biggest` images each in turn."""
    records = [
        record(f"{code}_{lesion:03}_{image}", code, f"L_{code}_{lesion:03}")
        for code, count in sizes.items()
        for lesion in range(count)
        for image in range(1 + lesion % biggest)
    ]
    return manifest(sorted(records, key=lambda r: r.image_id))


FIXED = lesions({"MEL": 30, "NV": 150, "BCC": 14, "AKIEC": 9, "BKL": 30, "DF": 4, "VASC": 5})
FIXED_DATA_HASH = "1ae099d5acefee2c25db326cb312d5030a35304007753453b4a327316bce2b63"


def part_of(split: Split) -> dict[str, str]:
    """Part of each image; fails where an image is in two."""
    parts = {i: part for part in PARTS for i in split.part(part)}
    assert len(parts) == sum(len(split.part(part)) for part in PARTS)
    return parts


def shared(split: Split, data: Manifest, key: str) -> list[str]:
    """Values of a record's field that lie in more than one part."""
    parts = part_of(split)
    where: dict[str, set[str]] = defaultdict(set)
    for r in data.records:
        where[getattr(r, key)].add(parts[r.image_id])
    return [value for value, sides in where.items() if value and len(sides) > 1]


@st.composite
def tangled(draw: st.DrawFn) -> Manifest:
    """Lesions, byte-identical images and classes at random, and enough of each class."""
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, 9), st.integers(0, 14), st.sampled_from(ISIC17.codes)),
            max_size=40,
        )
    )
    records = [
        record(f"I{i:02}", code, f"L{lesion}" if lesion else "", content=f"C{content}")
        for i, (lesion, content, code) in enumerate(rows)
    ]
    records += [record(f"J{code}{i}", code, f"M{code}{i}") for code in ISIC17.codes for i in "abc"]
    return manifest(draw(st.permutations(records)), dataset="isic17")


@settings(max_examples=60, deadline=None)
@given(data=tangled(), seed=st.integers(0, 5))
def test_lesions_and_identical_images_stay_together(data: Manifest, seed: int) -> None:
    """No lesion and no file's content is on two sides; each image is in exactly one part."""
    split = make_split(data, DataConfig(split_seed=seed))
    assert set(part_of(split)) == {r.image_id for r in data.records}
    assert shared(split, data, "lesion_id") == []
    assert shared(split, data, "digest") == []
    for part in PARTS:
        assert split.part(part)
        assert list(split.part(part)) == sorted(split.part(part))


def test_chains_of_shared_contents_and_lesions_stay_together() -> None:
    """Lesions linked only through each other's copies end up on one side."""
    chain = [record(f"C{i}", "NV", f"L{i // 2}", content=f"{(i + 1) // 2}") for i in range(40)]
    others = [record(f"X{i:02}", "NV", f"M{i}") for i in range(40)]
    for seed in range(5):
        data = manifest([*chain[::2], *others, *chain[1::2]])
        parts = part_of(make_split(data, DataConfig(split_seed=seed)))
        assert len({parts[r.image_id] for r in chain}) == 1


@pytest.mark.parametrize("protocol", ["lesion", "paper"])
@pytest.mark.parametrize(("test", "val"), [(0.2, 0.1), (0.3, 0.25), (0.05, 0.05)])
def test_parts_are_stratified(protocol: Any, test: float, val: float) -> None:
    """Each class gives its share, over by less than one lesion."""
    biggest = 3 if protocol == "lesion" else 1
    config = DataConfig(protocol=protocol, test_fraction=test, val_fraction=val)
    counts = part_counts(make_split(FIXED, config), FIXED)
    for code, total in FIXED.class_counts().items():
        assert sum(counts[part][code] for part in PARTS) == total
        for part, share in (("test", test), ("val", val)):
            wanted = max(1, round(share * total))
            assert wanted <= counts[part][code] < wanted + biggest
        assert counts["train"][code] > 0


def test_the_smallest_class_stands_in_all_parts() -> None:
    """Three lesions of a class: one in each part."""
    data = lesions({"NV": 30, "DF": 3}, biggest=5)
    split = make_split(data, DataConfig())
    sides = {r.lesion_id: part_of(split)[r.image_id] for r in data.records if r.label == "DF"}
    assert sorted(sides.values()) == sorted(PARTS)


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_lesions(count: int) -> None:
    """Fewer than three lesions cannot stand in three parts, however many images they have."""
    records = [record(f"D{i}", "DF", f"L{i % count}") for i in range(12)]
    data = manifest([*lesions({"NV": 30}).records, *records])
    with pytest.raises(DataError, match=f"class DF has {count} lesions"):
        make_split(data, DataConfig())
    make_split(data, PAPER)


@pytest.mark.parametrize("protocol", ["lesion", "paper"])
def test_the_order_of_records_does_not_matter(protocol: Any) -> None:
    """Reversed and interleaved records give the same parts."""
    config = DataConfig(protocol=protocol)
    one = make_split(FIXED, config)
    r = FIXED.records
    for order in (r[::-1], r[::2] + r[1::2]):
        other = make_split(dataclasses.replace(FIXED, records=order), config)
        assert other.split_hash == one.split_hash
        assert other.test == one.test


@pytest.mark.parametrize("protocol", ["lesion", "paper"])
def test_the_seed_matters(protocol: Any) -> None:
    """Another seed is another split, of about the same sizes."""
    one, two = (
        make_split(FIXED, DataConfig(protocol=protocol, split_seed=seed)) for seed in (0, 1)
    )
    assert one.split_hash != two.split_hash
    assert set(one.test) != set(two.test)
    assert abs(len(one.test) - len(two.test)) <= 2 * len(ISIC18)


@pytest.mark.parametrize(
    ("config", "data_hash", "split_hash"),
    [
        (
            DataConfig(),
            FIXED_DATA_HASH,
            "cbd1325e637d3d1fccd6b15ae396dcc016b7527d9d278d961797ae5f81ace35c",
        ),
        (
            DataConfig(split_seed=7),
            FIXED_DATA_HASH,
            "d180c369c3c3056681afcf367e726b944ee0b71e404387fec1aacaf09e45e98a",
        ),
        (
            PAPER,
            FIXED_DATA_HASH,
            "b319728d933e1e4f76671c7ba1721833b4ada40d393d2886fe178cf918ed7509",
        ),
    ],
    ids=["lesion", "lesion-7", "paper"],
)
def test_golden_hashes(config: DataConfig, data_hash: str, split_hash: str) -> None:
    """The same hashes on every machine, and in every later version."""
    split = make_split(FIXED, config)
    assert split.data_hash == data_hash
    assert split.split_hash == split_hash


def test_the_paper_protocol_is_80_20_by_image_and_leaks() -> None:
    """A fifth of the images is for testing, and most have a twin in training."""
    split = make_split(FIXED, PAPER)
    total = len(FIXED.records)
    assert abs(len(split.test) - 0.2 * total) <= len(ISIC18)
    assert len(shared(split, FIXED, "lesion_id")) > 20
    assert shared(make_split(FIXED, DataConfig()), FIXED, "lesion_id") == []


def test_title_and_summary() -> None:
    """The title names the protocol, seed and sizes; the summary has no ids."""
    split = make_split(FIXED, DataConfig(split_seed=3))
    assert "lesion-safe" in split.title
    assert "seed 3" in split.title
    assert f"{len(split.train)} / {len(split.val)} / {len(split.test)}" in split.title
    assert "lesions leak" in make_split(FIXED, PAPER).title
    summary = split.summary()
    assert summary["sizes"] == {part: len(split.part(part)) for part in PARTS}
    assert summary["split_hash"] == split.split_hash
    assert "NV_000_0" not in json.dumps(summary)
    whole = json.loads(split.to_json())
    assert tuple(whole["test"]) == split.test
    assert whole["split_hash"] == split.split_hash


def test_the_same_split_passes() -> None:
    """A split made again is the one of the checkpoint."""
    stored = json.loads(json.dumps(make_split(FIXED, DataConfig()).summary()))
    check_same_split(make_split(FIXED, DataConfig()), stored, source="best.pt")


def test_another_split_or_data_is_refused() -> None:
    """A changed seed, a changed label and a hash that is missing are mismatches."""
    split = make_split(FIXED, DataConfig())
    other = make_split(FIXED, DataConfig(split_seed=1)).summary()
    with pytest.raises(
        CheckpointMismatch, match=r"best\.pt was trained on another split"
    ) as caught:
        check_same_split(split, other, source="best.pt")
    assert "(data.split_seed 1, here 0)" in caught.value.message
    assert "compare runs of one split" in caught.value.fix
    assert "--set data.split_seed=1" in caught.value.fix
    copied = dataclasses.replace(FIXED.records[0], digest="0" * 32)
    changed = dataclasses.replace(FIXED, records=(copied, *FIXED.records[1:]))
    summary = make_split(changed, DataConfig()).summary()
    assert summary["split_hash"] == split.split_hash
    with pytest.raises(CheckpointMismatch, match="another data") as caught:
        check_same_split(split, {**summary, "seed": 1}, source="best.pt")
    assert "record the original data" in caught.value.fix
    older = {k: v for k, v in split.summary().items() if k != "join_duplicates"}
    apart = {**older, "protocol": "paper", "split_hash": "x"}
    with pytest.raises(CheckpointMismatch) as caught:
        check_same_split(split, apart, source="best.pt")
    assert caught.value.fix.endswith("--set data.protocol=paper --set data.join_duplicates=false")
    moved = {**split.summary(), "split_hash": "x"}  # made alike by another version
    with pytest.raises(CheckpointMismatch, match="split hash x, here") as caught:
        check_same_split(split, moved, source="best.pt")
    assert "record the original data" in caught.value.fix
    with pytest.raises(CheckpointMismatch):
        check_same_split(split, {}, source="best.pt")


@pytest.mark.skipif(not (HAM10000 / METADATA).is_file(), reason=NO_HAM10000)
def test_leaks_of_the_real_data() -> None:
    """By image, about 38% of HAM10000's test images have their lesion in training; by lesion, 0."""
    with (HAM10000 / METADATA).open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["image_id"])
    data = manifest([record(r["image_id"], r["dx"].upper(), r["lesion_id"]) for r in rows])
    records = data.by_id()

    def leaked(split: Split) -> float:
        known = {records[i].lesion_id for i in split.train}
        return sum(records[i].lesion_id in known for i in split.test) / len(split.test)

    safe = make_split(data, DataConfig())
    assert leaked(safe) == 0
    assert shared(safe, data, "lesion_id") == []
    counts = Counter(records[i].label for i in safe.test)
    for code, total in data.class_counts().items():
        assert 0.18 <= counts[code] / total <= 0.24
    assert 0.30 <= leaked(make_split(data, PAPER)) <= 0.46


# --- the publisher's own parts ---------------------------------------------------------------

OFFICIAL = DataConfig(protocol="official")


def parted(
    sizes: dict[str, int], dataset: str = "isic17", codes: tuple[str, ...] = ISIC17.codes
) -> Manifest:
    """`sizes` lesions of two images per class and part."""
    records = [
        dataclasses.replace(record(f"{part}_{code}_{i}_{j}", code, f"{part}{code}{i}"), part=part)
        for part, count in sizes.items()
        for code in codes
        for i in range(count)
        for j in "ab"
    ]
    return manifest(records, dataset=dataset)


def of_part(data: Manifest, part: str) -> set[str]:
    """Ids of a publisher's part."""
    return {r.image_id for r in data.records if r.part == part}


def test_official_with_all_parts() -> None:
    """The parts as they are, whatever seed and shares say; the title says whose they are."""
    data = parted({"train": 5, "val": 2, "test": 3})
    split = make_split(data, OFFICIAL)
    for part in PARTS:
        assert set(split.part(part)) == of_part(data, part)
    other = DataConfig(protocol="official", split_seed=7, test_fraction=0.4, val_fraction=0.4)
    assert make_split(data, other).split_hash == split.split_hash
    assert "the publisher's own parts" in split.title
    assert "30 / 12 / 18" in split.title


def of_patients(sizes: dict[str, int], images: int = 3) -> Manifest:
    """Patients with so many images, each of another lesion; `sizes` of them by class."""
    records = [
        dataclasses.replace(
            record(f"{code}_{patient:03}_{i}", code, f"{code}{patient}{i}"),
            patient_id=f"P_{code}_{patient}",
        )
        for code, count in sizes.items()
        for patient in range(count)
        for i in range(images)
    ]
    return manifest(records)


@pytest.mark.parametrize("seed", range(5))
def test_patients_stay_together(seed: int) -> None:
    """All their lesions on one side; the title says so, and the data are others by them."""
    data = of_patients({"MEL": 12, "NV": 30, "BKL": 9})
    split = make_split(data, DataConfig(split_seed=seed))
    assert shared(split, data, "patient_id") == []
    assert ", patient-safe (no patient on two sides), seed" in split.title
    for part in PARTS:
        assert all(part_counts(split, data)[part][code] for code in ("MEL", "NV", "BKL"))
    unknown = dataclasses.replace(
        data, records=tuple(dataclasses.replace(r, patient_id="") for r in data.records)
    )
    apart = make_split(unknown, DataConfig(split_seed=seed))
    assert apart.patients == 0
    assert "lesion-safe (no lesion on two sides)" in apart.title
    assert shared(apart, data, "patient_id")
    assert unknown.data_hash != data.data_hash


def test_some_patients_are_known() -> None:
    """These stay together; the title counts them."""
    data = of_patients({"MEL": 12, "NV": 30})
    some = tuple(
        dataclasses.replace(r, patient_id=r.patient_id if "_NV_" in r.patient_id else "")
        for r in data.records
    )
    data = dataclasses.replace(data, records=some)
    split = make_split(data, DataConfig())
    known = {r.image_id for r in some if r.patient_id}
    parts = {r.patient_id: set() for r in some if r.patient_id}
    for part in PARTS:
        for r in some:
            if r.image_id in known and r.image_id in split.part(part):
                parts[r.patient_id].add(part)
    assert all(len(where) == 1 for where in parts.values())
    words = "(no lesion on two sides), patients apart as far as they are named (90 of 126)"
    assert words in split.title


def test_patients_with_several_classes() -> None:
    """They go with the rarest of them; a class that a part is left without is an error."""
    data = of_patients({"NV": 40, "MEL": 8})
    mixed = tuple(
        dataclasses.replace(r, label="NV") if r.label == "MEL" and r.image_id[-1] == "0" else r
        for r in data.records
    )
    both = dataclasses.replace(data, records=mixed)
    for seed in range(5):
        split = make_split(both, DataConfig(split_seed=seed))
        assert shared(split, both, "patient_id") == []
        assert all(counts["MEL"] for counts in part_counts(split, both).values())


def test_a_class_that_no_patient_brings_to_a_part() -> None:
    """All its images are one patient's, who goes with a rarer class: an error that says so."""
    data = of_patients({"NV": 30, "DF": 3}, images=1)
    many = [
        dataclasses.replace(record(f"BKL_{i}", "BKL", f"B{i}"), patient_id="P_DF_0")
        for i in range(10)
    ]
    both = manifest([*data.records, *many])
    with pytest.raises(DataError, match="by patient, no image of BKL comes to") as caught:
        make_split(both, DataConfig())
    assert "data.split_seed" in caught.value.fix
    fewer = of_patients({"NV": 30, "DF": 2}, images=1)
    with pytest.raises(DataError, match="class DF has 2 patients: too few for train, val, test"):
        make_split(fewer, DataConfig())


def test_official_parts_that_share_patients() -> None:
    """Said as of lesions."""
    data = parted({"train": 5, "val": 2, "test": 3})
    named = tuple(
        dataclasses.replace(
            r, patient_id="P" if r.image_id in ("train_NV_0_a", "test_NV_0_a") else r.image_id
        )
        for r in data.records
    )
    data = dataclasses.replace(data, records=named)
    split = make_split(data, OFFICIAL)
    # The other image of its lesion goes with it.
    assert split.leaked == 2
    assert "(lesions or patients leak: 2 of 18 test images show one of train or val)" in split.title
    (line,) = poorly_judged(split, data)
    assert "2 of 18 test images of isic17 show a lesion or patient that is in train or val" in line


def test_official_parts_that_leak() -> None:
    """By lesion, by a copy of the file, and from val, too; each counts once."""
    data = parted({"train": 5, "val": 2, "test": 3})
    assert make_split(data, OFFICIAL).leaked == 0
    assert "leak" not in make_split(data, OFFICIAL).title
    assert poorly_judged(make_split(data, OFFICIAL), data) == []
    by_id = data.by_id()
    changes = {
        "test_MEL_0_a": {"lesion_id": "trainNV1"},
        "test_MEL_1_a": {"digest": by_id["val_NV_0_a"].digest},  # its sister is the same lesion
        "val_MEL_0_b": {"lesion_id": "trainNV1"},
    }
    changed = dataclasses.replace(
        data,
        records=tuple(
            dataclasses.replace(r, **changes.get(r.image_id, {}))  # type: ignore[arg-type]
            for r in data.records
        ),
    )
    split = make_split(changed, OFFICIAL)
    assert split.leaked == 3
    assert "own parts (lesions leak: 3 of 18 test images show one of train or val)" in split.title
    val, test = poorly_judged(split, changed)
    assert val.startswith("1 of 12 val images of isic17 show a lesion that is in train, too")
    assert test.startswith("3 of 18 test images of isic17 show a lesion that is in train or val")
    for protocol in ("lesion", "paper"):
        other = make_split(changed, DataConfig(protocol=protocol))  # type: ignore[arg-type]
        assert other.leaked == 0


def test_official_without_a_validation_part() -> None:
    """It is cut from train, by lesion and class, by seed; the test part is left alone."""
    data = parted({"train": 20, "test": 3})
    split = make_split(data, OFFICIAL)
    assert set(split.test) == of_part(data, "test")
    assert {*split.train, *split.val} == of_part(data, "train")
    assert shared(split, data, "lesion_id") == []
    counts = part_counts(split, data)
    assert counts["val"] == dict.fromkeys(ISIC17.codes, 4)
    other = make_split(data, dataclasses.replace(OFFICIAL, split_seed=1))
    assert other.test == split.test
    assert other.val != split.val


@pytest.mark.parametrize(
    ("there", "lacking"), [(("train", "val"), "test"), (("val", "test"), "train"), (("",), "train")]
)
@pytest.mark.parametrize("dataset", ["isic17", "isic18", "mine"])
def test_official_with_a_part_missing(dataset: str, there: tuple[str, ...], lacking: str) -> None:
    """Named, with how to get it, and what else can be done."""
    data = parted(dict.fromkeys(there, 5), dataset, ("MEL", "NV"))
    fix = f"biigma download {dataset} --parts {lacking}"
    if dataset == "mine":
        data = dataclasses.replace(data, codes=("MEL", "NV"))
        fix = "column split"
    with pytest.raises(DataError, match=f"{dataset} has no official {lacking} part") as caught:
        make_split(data, OFFICIAL)
    assert fix in caught.value.fix
    assert "--protocol lesion" in caught.value.fix


def test_official_of_a_binary_task_with_a_part_missing() -> None:
    """The download that helps is that of the data set it is made from."""
    data = parted({"train": 5}, "isic17-sk", ("SK", "OTHER"))
    with pytest.raises(DataError, match="isic17-sk has no official test part") as caught:
        make_split(data, OFFICIAL)
    assert "biigma download isic17 --parts test" in caught.value.fix


def test_official_with_images_in_no_part() -> None:
    """They would be lost silently: refused, with their number."""
    data = parted({"train": 5, "test": 2, "": 1})
    with pytest.raises(DataError, match="6 images of isic17 are in no part"):
        make_split(data, OFFICIAL)


def test_official_with_a_class_that_cannot_be_trained() -> None:
    """A class that stands in the test part alone is named."""
    data = parted({"train": 5, "val": 1, "test": 2})
    kept = tuple(r for r in data.records if (r.label, r.part) != ("SK", "train"))
    with pytest.raises(DataError, match="train part of isic17 has no image of SK"):
        make_split(dataclasses.replace(data, records=kept), OFFICIAL)


def test_official_parts_that_cannot_judge() -> None:
    """A val part of one class is refused; classes it lacks, and a test part of one, are told of."""
    data = parted({"train": 5, "val": 2, "test": 2})

    def without(*gone: tuple[str, str]) -> Manifest:
        kept = tuple(r for r in data.records if (r.label, r.part) not in gone)
        return dataclasses.replace(data, records=kept)

    with pytest.raises(DataError, match="val part of isic17 has images of one class alone, NV"):
        make_split(without(("MEL", "val"), ("SK", "val")), OFFICIAL)
    assert poorly_judged(make_split(data, OFFICIAL), data) == []
    poor = without(("SK", "val"), ("SK", "test"), ("NV", "test"))
    val, test = poorly_judged(make_split(poor, OFFICIAL), poor)
    assert val.startswith("the val part of isic17 has no image of SK: ")
    assert test.startswith("the test part of isic17 has images of one class alone, MEL: ")


def test_official_with_too_few_to_cut_validation_from() -> None:
    """One lesion of a class cannot stand in train and validation."""
    with pytest.raises(DataError, match=r"class MEL has 1 lesions: too few for train, val$"):
        make_split(parted({"train": 1, "test": 2}), OFFICIAL)
    assert make_split(parted({"train": 2, "test": 1}), OFFICIAL).val


@pytest.mark.parametrize("protocol", ["lesion", "paper"])
@pytest.mark.parametrize(
    ("dataset", "pooled"), [("isic18", False), ("isic19", False), ("isic17", True), ("mine", True)]
)
def test_official_parts_under_the_other_protocols(
    protocol: Any, dataset: str, pooled: bool
) -> None:
    """Official test and validation images of 2018 and 2019 are never cut up; those of 2017 are.

    The paper's pool of 2017 has its training and test images alone.
    """
    data = parted({"train": 20, "val": 5, "test": 10}, dataset, ("MEL", "NV"))
    if dataset == "mine":
        data = dataclasses.replace(data, codes=("MEL", "NV"))
    split = make_split(data, DataConfig(protocol=protocol))
    parts = ["train", "val", "test"] if pooled else ["train"]
    if (dataset, protocol) == ("isic17", "paper"):
        parts.remove("val")
    wanted = {r.image_id for r in data.records if r.part in parts}
    assert set(part_of(split)) == wanted
    assert len(wanted) == {1: 80, 2: 120, 3: 140}[len(parts)]


def test_the_papers_pool_without_the_test_images() -> None:
    """Where the official test images of 2017 are not there, its validation images stay."""
    data = parted({"train": 20, "val": 5}, "isic17-mel", ("MEL", "OTHER"))
    split = make_split(data, DataConfig(protocol="paper"))
    assert len(part_of(split)) == len(data.records) == 100


@pytest.mark.parametrize("protocol", ["lesion", "paper"])
def test_no_training_images_at_all(protocol: Any) -> None:
    """With the official test part alone there is nothing to cut."""
    data = parted({"test": 10}, "isic18", ("MEL", "NV"))
    with pytest.raises(DataError, match="isic18 has no training images") as caught:
        make_split(data, DataConfig(protocol=protocol))
    assert "biigma download isic18" in caught.value.fix


@pytest.mark.parametrize(
    ("dataset", "parts", "brings"),
    [
        ("mine", ("train", "val", "test"), True),
        ("mine", ("train", "test"), True),
        ("mine", ("train", "val"), False),
        ("mine", ("test",), False),
        ("mine", ("train", "test", ""), False),
        ("mine", ("",), False),
        ("synthetic", ("train", "val", "test"), True),
        ("isic17", ("train", "val", "test"), False),
        ("isic17-mel", ("train", "val", "test"), False),
        ("isic19", ("train", "test"), False),
    ],
)
def test_who_brings_an_own_split(dataset: str, parts: tuple[str, ...], brings: bool) -> None:
    """A user's own and the synthetic set, where every image has a part; no challenge does."""
    data = parted(dict.fromkeys(parts, 1), dataset, ("MEL",))
    assert brings_own_split(data) == brings


REAL_17 = HAM10000.parent / "isic17"


@pytest.mark.skipif(not REAL_17.is_dir(), reason="no ISIC 2017 at ../shared/data/isic17")
def test_splits_of_the_real_isic17() -> None:
    """Training and validation images are pooled as in the paper; `official` lacks its test part."""
    records = []
    for part, name in (("train", "Training"), ("val", "Validation")):
        with (REAL_17 / f"ISIC-2017_{name}_Part3_GroundTruth.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                code = "MEL" if float(row["melanoma"]) else "NV"
                code = "SK" if float(row["seborrheic_keratosis"]) else code
                records.append(dataclasses.replace(record(row["image_id"], code), part=part))
    data = manifest(records, dataset="isic17")
    for protocol in ("lesion", "paper"):
        split = make_split(data, DataConfig(protocol=protocol))  # type: ignore[arg-type]
        assert len(part_of(split)) == 2150
        assert abs(len(split.test) - 430) <= 3
        counts = part_counts(split, data)
        assert sum(counts[part]["MEL"] for part in PARTS) == 404
        assert counts["test"] == {"MEL": 81, "SK": 59, "NV": 290}
    with pytest.raises(DataError, match="isic17 has no official test part"):
        make_split(data, OFFICIAL)


def test_known_pairs_stay_together() -> None:
    """Two ids that are known to show one lesion share a part, unless a run asks otherwise."""
    base = [record(f"M{i:02}", "MEL", f"L{i}") for i in range(12)]
    first, second = KNOWN_PAIRS[0]
    apart = 0
    for seed in range(30):
        for suffix in ("", "_downsampled"):
            pair = [record(first, "MEL", "A"), record(second + suffix, "MEL", "B")]
            data = manifest(base + pair, dataset="isic19")
            joined = part_of(make_split(data, DataConfig(split_seed=seed)))
            assert joined[first] == joined[second + suffix]
            loose = part_of(make_split(data, DataConfig(split_seed=seed, join_duplicates=False)))
            apart += loose[first] != loose[second + suffix]
    assert apart


def test_the_pairs_are_pairs() -> None:
    """No image is in two pairs, so that a pair's first id can stand for both."""
    ids = [i for pair in KNOWN_PAIRS for i in pair]
    assert len(ids) == len(set(ids)) == 2 * len(KNOWN_PAIRS)
