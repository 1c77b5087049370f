"""Pairs that are alike, the threshold, and lesion ids joined over pairs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from biigma_cli.config import DataConfig
from biigma_cli.data.alike import (
    AlikePair,
    AlikeSearch,
    alike_pairs,
    chance_threshold,
)
from biigma_cli.data.audit import audit_manifest, joined_troubles, lesion_table
from biigma_cli.data.custom import read_custom
from biigma_cli.data.manifest import Record
from tests.data.samples import manifest, record


def unit(count: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocked_search_is_the_plain_one(block: int) -> None:
    whole, middle = unit(23, 0), unit(23, 1)
    offset = np.random.default_rng(2).uniform(0, 0.3, 23).astype(np.float32)
    expected = {}
    for i in range(23):
        for j in range(i + 1, 23):
            cosine = max(whole[i] @ whole[j], whole[i] @ middle[j], middle[i] @ whole[j])
            value = float(cosine - offset[i] - offset[j])
            if value >= 0.2:
                expected[i, j] = value
    told: list[tuple[int, int]] = []
    found = {}
    for i_p, j_p, value_p in alike_pairs(
        whole,
        middle,
        offset,
        threshold=0.2,
        block=block,
        progress=lambda done, total: told.append((done, total)),
    ):
        for i, j, value in zip(i_p, j_p, value_p, strict=True):
            found[int(i), int(j)] = float(value)
    assert len(expected) > 10
    assert found.keys() == expected.keys()
    assert all(found[k] == pytest.approx(expected[k], abs=1e-5) for k in expected)
    assert told[0] == (0, 23)
    assert told[-1] == (23, 23)


def test_the_threshold_lets_few_pairs_by_chance() -> None:
    table = [(0.0, 0.1), (0.1, 1e-4), (0.2, 5e-5), (0.3, 0.0)]
    # 2001 pictures are 2,001,000 pairs; a fortieth of the pictures is 50 pairs: only none will do.
    assert chance_threshold(table, 2001) == (0.3, 0.0)
    assert chance_threshold(table, 1000) == (0.2, pytest.approx(24.975))
    assert chance_threshold(table, 500) == (0.1, pytest.approx(12.475))
    # Of few pictures one pair in 10,000, at most.
    assert chance_threshold(table, 4) == (0.1, pytest.approx(6e-4))
    # Where even the last value is reached too often it is taken, and the number said.
    assert chance_threshold([(0.0, 0.5)], 101) == (0.0, pytest.approx(2525))
    assert chance_threshold(table, 1) == (0.1, 0.0)


def search(*pairs: tuple[str, str]) -> AlikeSearch:
    return AlikeSearch(
        pairs=tuple(
            AlikePair(first=a, second=b, likeness=0.5, same_lesion=None, same_label=True)
            for a, b in pairs
        ),
        threshold=0.1,
        by_chance=0.0,
        compared=0,
        source="a test",
    )


def records(**lesions: str) -> list[Record]:
    return [
        Record(image_id=k, path=f"{k}.png", label="NV", lesion_id=v, digest=k)
        for k, v in lesions.items()
    ]


def test_lesions_are_joined_over_pairs() -> None:
    found = search(("b", "c"), ("c", "d"), ("f", "g"), ("x", "y"))
    lesion = found.lesions(records(a="L1", b="", c="", d="L1", e="", f="", g="", x="L2", y="L3"))
    assert lesion == {
        "a": "L1",
        "b": "L1",
        "c": "L1",
        "d": "L1",
        "e": "",
        "f": "like f",
        "g": "like f",
        "x": "L2",
        "y": "L2",
    }
    alone = search().lesions(records(a="L1", b="L1", c=""))
    assert alone == {"a": "L1", "b": "L1", "c": ""}


def test_the_table_is_a_data_set_with_these_lesions(tmp_path: Path) -> None:
    pictures = tmp_path / "the pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for name in "abcdef":
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(pictures / f"{name}.png")
    own = [
        dataclasses.replace(record(n, label), path=f"{n}.png", lesion_id=lesion, age=age)
        for n, label, lesion, age in (
            ("a", "MEL", "", "50"),
            ("b", "NV", "L1", ""),
            ("c", "NV", "", ""),
            ("d", "MEL", "", ""),
            ("e", "NV", "L1", ""),
            ("f", "MEL", "", ""),
        )
    ]
    whole = manifest(own, root=pictures)
    folder = tmp_path / "tables"
    folder.mkdir()
    audit = audit_manifest(whole, DataConfig(dataset=whole.dataset, protocol="paper"))
    audit = dataclasses.replace(audit, alike=search(("a", "d"), ("c", "e")))
    text = lesion_table(audit, folder)
    (folder / "joined.csv").write_text(text)
    assert text.splitlines()[0] == '"image","label","lesion_id","age"'
    read = read_custom("joined", folder / "joined.csv")
    lesion = {Path(r.path).stem: r.lesion_id for r in read.records}
    assert lesion == {"a": "like a", "d": "like a", "b": "L1", "c": "L1", "e": "L1", "f": ""}
    assert {Path(r.path).stem: r.label for r in read.records}["d"] == "MEL"
    assert joined_troubles(audit) == [
        "too few lesions for a split are left of MEL, NV: look at the pairs, and take joined ids "
        "back where they are of two lesions"
    ]
    # Through a link the paths still lead there.
    link = tmp_path / "deeper" / "linked"
    link.parent.mkdir()
    link.symlink_to(folder)
    assert len(read_custom("linked", link / "joined.csv").records) == 6
    # What cannot be read is left out, and said.
    sizes = {k: v for k, v in audit.sizes.items() if k != "d"}
    mixed = dataclasses.replace(audit, sizes=sizes, alike=search(("a", "b")))
    assert "/d.png" not in lesion_table(mixed, folder)
    assert joined_troubles(mixed)[:2] == [
        "1 images that cannot be read are left out of the table",
        "1 lesions in it have images with different labels",
    ]


def test_what_stands_on_two_sides(tmp_path: Path) -> None:
    """Counted as by hand; a copy of a picture leaks what the picture does."""
    rng = np.random.default_rng(0)
    names = [f"p{n:02}" for n in range(30)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / f"{name}.png")
    own = [record(n, "NV" if k % 2 else "MEL", path=f"{n}.png") for k, n in enumerate(names)]
    audit = audit_manifest(manifest(own, root=tmp_path), DataConfig(protocol="paper"))
    parts = audit.part_of()["paper"]
    train, test, val = ([n for n in names if parts[n] == p] for p in ("train", "test", "val"))
    pairs = [(train[0], test[0]), (test[0], train[1]), (test[1], val[0]), (train[2], train[3])]
    found = dataclasses.replace(audit, alike=search(*pairs))
    assert [(p.first, p.second) for p in found.alike_across("paper")] == pairs[:3]
    assert (found.alike_in_train("paper").images, found.alike_in_train("paper").of) == (
        1,
        len(test),
    )
    # test[2] is the file of train[2], whose partner is in train: now it leaks, twice over.
    twins = [
        dataclasses.replace(r, digest="twin") if r.image_id in (train[2], test[2]) else r
        for r in own
    ]
    doubled = dataclasses.replace(
        found,
        manifest=dataclasses.replace(found.manifest, records=tuple(twins)),
        identical=((train[2], test[2]),),
    )
    assert [(p.first, p.second) for p in doubled.alike_across("paper")] == pairs
    assert doubled.alike_in_train("paper").images == 2
    assert doubled.alike is not None
    lesion = doubled.alike.lesions(twins)
    assert lesion[test[2]] == lesion[train[2]] == lesion[train[3]] != ""
    assert found.alike_in_train("lesion").images <= 1
    assert dataclasses.replace(audit, alike=None).alike_across("paper") == ()
