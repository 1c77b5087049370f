"""Pairs that are alike, the threshold, and lesion ids joined over pairs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from biigma_cli.data.alike import (
    CHANCE,
    AlikePair,
    AlikeSearch,
    alike_pairs,
    chance_threshold,
)
from biigma_cli.data.audit import lesion_table
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
    table = [(0.0, 0.1), (0.1, 0.01), (0.2, 0.001), (0.3, 0.0)]
    # 1001 pictures are 500,500 pairs; a fortieth of the pictures is 25 pairs: only none will do.
    assert chance_threshold(table, 1001) == (0.3, 0.0)
    assert chance_threshold(table, 40) == (0.2, pytest.approx(0.78))
    assert chance_threshold(table, 4)[0] == 0.1
    # Where even the last value is reached too often it is taken, and the number said.
    assert chance_threshold([(0.0, 0.5)], 101) == (0.0, pytest.approx(2525))
    assert chance_threshold(table, 1) == (0.0, 0.0)
    assert pytest.approx(0.025) == CHANCE


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
            ("f", "NV", "", ""),
        )
    ]
    whole = manifest(own, root=pictures)
    folder = tmp_path / "tables"
    folder.mkdir()
    text = lesion_table(whole, search(("a", "d"), ("c", "e")), folder)
    (folder / "joined.csv").write_text(text)
    assert text.splitlines()[0] == "image,label,lesion_id,age"
    read = read_custom("joined", folder / "joined.csv")
    lesion = {Path(r.path).stem: r.lesion_id for r in read.records}
    assert lesion == {"a": "like a", "d": "like a", "b": "L1", "c": "L1", "e": "L1", "f": ""}
    assert {Path(r.path).stem: r.label for r in read.records}["d"] == "MEL"
