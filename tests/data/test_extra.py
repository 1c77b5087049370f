"""Other data sets' training images: which join, under which class, and which never do."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from biigma_cli.config import DataConfig
from biigma_cli.data import extra as extra_module
from biigma_cli.data.custom import read_custom
from biigma_cli.data.extra import add_extra, find_extra
from biigma_cli.data.images import load_part
from biigma_cli.data.manifest import Manifest, Record, load_manifest, save_manifest
from biigma_cli.data.splits import make_split
from biigma_cli.errors import DataError, UsageError
from biigma_cli.taxonomy import ISIC17, ISIC18, ISIC19, TAXONOMIES, counterpart
from tests.data.samples import encode, noise

CONFIG = DataConfig(dataset="main", side=32, extra=("other",))


def recorded(name: str, folder: Path) -> Manifest:
    """A folder per class as a data set of that name."""
    manifest = read_custom(name, folder)
    save_manifest(manifest)
    return manifest


def filled(top: Path, classes: dict[str, int], start: int) -> Path:
    """So many different pictures of each class, ids counted from `start`."""
    for code, count in classes.items():
        (top / code).mkdir(parents=True)
        for _ in range(count):
            (top / code / f"ISIC_{start:07}.png").write_bytes(encode(noise(40, 40, start), "PNG"))
            start += 1
    return top


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """Three classes of 20; beside it `other`: other classes, one unknown, and shared images."""
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "home"))
    manifest = recorded("main", filled(tmp_path / "main", {"MEL": 20, "NV": 20, "BKL": 20}, 0))
    other = filled(tmp_path / "other", {"MEL": 10, "NV": 30, "SK": 20, "scar": 10}, 1000)
    for i, own in enumerate(sorted((tmp_path / "main" / "NV").iterdir())):
        if i < 8:  # the same bytes under another name
            shutil.copy(own, other / "NV" / f"copy{i}.png")
        else:  # the same id, other bytes
            (other / "NV" / own.name).write_bytes(encode(noise(40, 40, 9000 + i), "PNG"))
    recorded("other", other)
    return manifest


def test_the_training_part_alone_joins(main: Manifest) -> None:
    """What the other set's own split tests and validates on stays unseen, known images, too."""
    (extra,) = find_extra(main, CONFIG)
    other = load_manifest("other")
    split = make_split(other, dataclasses.replace(CONFIG, dataset="other", extra=()))
    assert extra.split.split_hash == split.split_hash
    assert set(extra.ids) < set(split.train)
    records = other.by_id()
    shared = {r.digest for r in main.records}
    own = {r.image_id for r in main.records}
    assert not {records[i].digest for i in extra.ids} & shared
    assert not set(extra.ids) & own
    assert not {records[i].label for i in extra.ids} & {"scar"}
    expected = [
        i for i in split.train
        if records[i].digest not in shared and i not in own and records[i].label != "scar"
    ]  # fmt: skip
    assert list(extra.ids) == expected
    assert extra.classless == {"scar": sum(records[i].label == "scar" for i in split.train)}
    assert extra.known == len(split.train) - len(expected) - extra.classless["scar"] > 0
    told = extra.summary()
    assert told["images"] == len(expected) == sum(told["classes"].values())
    assert set(told["classes"]) == {"MEL", "NV", "SK"}


def archive(name: str, *rows: tuple[str, str, str, str]) -> Manifest:
    """A recorded set of (image id, label, lesion id, digest), with no files behind it."""
    records = tuple(
        Record(image_id=i, path=f"{i}.jpg", label=label, lesion_id=lesion, digest=digest)
        for i, label, lesion, digest in sorted(rows)
    )
    return Manifest(
        dataset=name, root=Path.cwd(), records=records, licence="", citation="",
        codes=("MEL", "NV") if name not in TAXONOMIES else (),
    )  # fmt: skip


def many(start: int, count: int, suffix: str = "", lesion: str = "") -> list[Any]:
    """Half melanomas, half nevi, ids and bytes of their own."""
    return [
        (f"ISIC_{i:07}{suffix}", ("MEL", "NV")[i % 2], lesion and f"{lesion}_{i}", f"{i}{suffix}")
        for i in range(start, start + count)
    ]


def joined(main: Manifest, other: Manifest, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Ids that join `main` from `other`."""
    monkeypatch.setattr(extra_module, "load_manifest", lambda _: other)
    (found,) = find_extra(main, DataConfig(dataset=main.dataset, extra=(other.dataset,)))
    assert found.known == len(found.split.train) - len(found.ids)
    return set(found.ids)


def test_downsampled_copies_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """ISIC 2019 holds pictures of ISIC 2017 under a longer id, and in other bytes."""
    rows = many(0, 60)
    copies = [(f"{i}_downsampled", label, "", f"{digest}x") for i, label, _, digest in rows]
    for main, other in (
        (archive("isic17", *rows), archive("isic19", *copies, *many(1000, 60))),
        (archive("isic19", *copies), archive("isic17", *rows, *many(1000, 60))),
    ):
        ids = joined(main, other, monkeypatch)
        assert ids
        assert all(i >= "ISIC_0001000" for i in ids)


def test_other_images_of_a_lesion_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """ISIC 2017 names no lesions, ISIC 2019 does: what shares one with a known image stays out."""
    rows = many(0, 60)
    again = [(i, label, f"BCN_{i}", digest) for i, label, _, digest in rows]
    second = [(f"ISIC_{i + 500:07}", row[1], row[2], f"{i}b") for i, row in enumerate(again)]
    other = archive("isic19", *again, *second, *many(1000, 60, lesion="BCN_own"))
    ids = joined(archive("isic17", *rows), other, monkeypatch)
    assert ids
    assert all(i >= "ISIC_0001000" for i in ids)
    # Named on both sides, though no image is the same.
    named = archive("isic18", *again)
    ids = joined(named, archive("isic19", *second, *many(1000, 60, lesion="BCN_own")), monkeypatch)
    assert ids
    assert all(i >= "ISIC_0001000" for i in ids)


def test_ids_of_ones_own_mean_nothing_elsewhere(tmp_path: Path, monkeypatch: Any) -> None:
    """Two folders with files counted from 1: other pictures, which all may join."""
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "home"))
    for name, start in (("a", 0), ("b", 500)):
        for code in ("MEL", "NV"):
            (tmp_path / name / code).mkdir(parents=True)
            for i in range(12):
                content = encode(noise(40, 40, start := start + 1), "PNG")
                (tmp_path / name / code / f"{i:03}.png").write_bytes(content)
    a = recorded("a", tmp_path / "a")
    recorded("b", tmp_path / "b")
    (found,) = find_extra(a, DataConfig(dataset="a", side=32, extra=("b",)))
    assert (found.known, found.ids) == (0, found.split.train)


def test_parts_of_ones_own_are_kept(tmp_path: Path, monkeypatch: Any) -> None:
    """A set with a test part lends its training part; one whose parts are no split is refused."""
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "home"))
    a = recorded("a", filled(tmp_path / "a", {"MEL": 12, "NV": 12}, 0))
    for i, part in enumerate(("train", "test")):
        filled(tmp_path / "b" / part, {"MEL": 8, "NV": 8}, 100 + 100 * i)
    recorded("b", tmp_path / "b")
    (found,) = find_extra(a, DataConfig(dataset="a", side=32, extra=("b",)))
    assert found.ids
    assert all(i.startswith("train/") for i in found.ids)
    (tmp_path / "b" / "test").rename(tmp_path / "b" / "val")
    recorded("c", tmp_path / "b")
    with pytest.raises(UsageError, match="parts of c are no split: 16 in train, 16 in val") as e:
        find_extra(a, DataConfig(dataset="a", side=32, extra=("c",)))
    assert "none in test" in e.value.message


def test_labels_and_pixels(main: Manifest) -> None:
    """Behind the own images, seborrheic keratoses among the benign ones; nothing else changes."""
    split = make_split(main, CONFIG)
    part = load_part(main, split.train, 32)
    extras = find_extra(main, CONFIG)
    joined = add_extra(part, main, extras, CONFIG)
    n = len(part.ids)
    assert joined.ids[:n] == part.ids
    np.testing.assert_array_equal(joined.pixels[:n], part.pixels)
    np.testing.assert_array_equal(joined.labels[:n], part.labels)
    assert joined.ids[n:] == extras[0].ids
    records = load_manifest("other").by_id()
    names = {"MEL": "MEL", "NV": "NV", "SK": "BKL"}
    codes = [main.taxonomy.codes[i] for i in joined.labels[n:]]
    assert codes == [names[records[i].label] for i in extras[0].ids]
    own = load_part(load_manifest("other"), extras[0].ids, 32)
    np.testing.assert_array_equal(joined.pixels[n:], own.pixels)
    assert add_extra(part, main, [], CONFIG) is part


def test_the_own_split_is_the_same(main: Manifest) -> None:
    """With or without: parts and hash, so that models stay comparable."""
    without = make_split(main, dataclasses.replace(CONFIG, extra=()))
    assert make_split(main, CONFIG).split_hash == without.split_hash


def test_nothing_to_join(main: Manifest, tmp_path: Path) -> None:
    """A set without a class in common, or whose images are all known, is refused by name."""
    recorded("scars", filled(tmp_path / "scars", {"scar": 12, "burn": 12}, 5000))
    config = dataclasses.replace(CONFIG, extra=("scars",))
    with pytest.raises(DataError, match="no training image of scars can join main") as caught:
        find_extra(main, config)
    assert "have no class in it" in caught.value.message
    recorded("again", tmp_path / "main")
    with pytest.raises(DataError, match="are its own"):
        find_extra(main, dataclasses.replace(CONFIG, extra=("again",)))
    with pytest.raises(UsageError, match="unknown data set 'absent'"):
        find_extra(main, dataclasses.replace(CONFIG, extra=("absent",)))


@pytest.mark.parametrize("order", [("first", "second"), ("second", "first")])
def test_what_one_set_holds_out_no_other_brings(
    order: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sets with images in common, each split by itself: both keep their test parts unseen."""
    sets = {
        "main": archive("main", *many(0, 40)),
        "first": archive("first", *many(100, 80)),
        "second": archive("second", *many(120, 80)),
    }
    monkeypatch.setattr(extra_module, "load_manifest", sets.__getitem__)
    found = find_extra(sets["main"], DataConfig(dataset="main", extra=order))
    held = {i for extra in found for i in (*extra.split.val, *extra.split.test)}
    brought = [i for extra in found for i in extra.ids]
    assert len(brought) == len(set(brought))
    assert not held & set(brought)
    shared = {r.image_id for r in sets["first"].records} & {
        r.image_id for r in sets["second"].records
    }
    # Not by leaving everything out that both have.
    assert shared & set(brought)
    assert shared & held & set(found[0].split.train)
    for extra in found:
        assert len(extra.ids) + extra.known == len(extra.split.train)


@pytest.mark.parametrize("extra", [("main",), ("other", "other"), ("synthetic",)])
def test_refused_settings(extra: tuple[str, ...]) -> None:
    """The data set itself, one twice, or the drawn one."""
    with pytest.raises(UsageError, match=r"data\.extra"):
        DataConfig(dataset="main", extra=extra)


def test_counterparts() -> None:
    """By code, or the one that the other challenge uses; a wider class is no narrower one."""
    assert [counterpart(code, ISIC18) for code in ISIC17.codes] == ["MEL", "BKL", "NV"]
    assert counterpart("AK", ISIC18) == "AKIEC"
    assert counterpart("AKIEC", ISIC19) == "AK"
    assert counterpart("SCC", ISIC18) is None
    assert counterpart("BKL", ISIC17) is None
