"""The search for pictures of one lesion, with the metric that ships."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from biigma_cli.config import DataConfig, ModelConfig
from biigma_cli.core.likeness import LesionMetric, Views
from biigma_cli.data.alike import AlikeSearch
from biigma_cli.data.ham10000 import METADATA, read_ham10000
from biigma_cli.data.manifest import Manifest
from biigma_cli.data.splits import make_split
from biigma_cli.errors import ModelFileError
from biigma_cli.judge.same_lesion import (
    features,
    fitted,
    same_lesion,
    shipped_metric,
    shipped_views,
)
from tests.data.samples import HAM10000, NO_HAM10000, manifest, record
from tests.data.test_audit import moles, nearer, skin

CPU = torch.device("cpu")


def search(data: Manifest, metric: LesionMetric | None = None) -> AlikeSearch:
    shipped = shipped_metric()
    return same_lesion(
        data,
        [r.image_id for r in data.records],
        metric=metric or shipped,
        views=shipped_views(shipped, CPU),
        threads=1,
    )


def drawn(folder: Path) -> Manifest:
    """Twelve drawn lesions; the first four again: nearer, lit and framed otherwise."""
    pictures = {f"p{n:02}": picture for n, picture in enumerate(moles(12))}
    for n in range(4):
        pictures[f"q{n:02}"] = ImageEnhance.Brightness(nearer(pictures[f"p{n:02}"])).enhance(0.9)
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.jpg", quality=92)
    return manifest(
        [record(name, "NV", path=f"{name}.jpg") for name in sorted(pictures)], root=folder
    )


def test_lesions_taken_from_nearer_are_found(tmp_path: Path) -> None:
    found = search(drawn(tmp_path))
    pairs = {(p.first, p.second) for p in found.pairs}
    assert {(f"p{n:02}", f"q{n:02}") for n in range(4)} <= pairs
    best = {(p.first, p.second) for p in found.pairs[:4]}
    assert best == {(f"p{n:02}", f"q{n:02}") for n in range(4)}
    assert found.compared == 16
    assert [p.likeness for p in found.pairs] == sorted(p.likeness for p in found.pairs)[::-1]
    assert all(p.likeness >= found.threshold for p in found.pairs)
    assert {p.same_lesion for p in found.pairs} == {None}


def test_identical_files_are_compared_once_and_ids_are_told(tmp_path: Path) -> None:
    data = drawn(tmp_path)
    records = [dataclasses.replace(r, lesion_id=f"L{r.image_id[1:]}") for r in data.records]
    copy = dataclasses.replace(records[0], image_id="z", label="MEL")
    found = search(dataclasses.replace(data, records=(*records, copy)))
    assert found.compared == 16
    assert not any("z" in (p.first, p.second) for p in found.pairs)
    assert {p.same_lesion for p in found.pairs[:4]} == {True}
    assert all(p.same_label for p in found.pairs)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_next_to_nothing_to_compare(tmp_path: Path, count: int) -> None:
    data = drawn(tmp_path)
    found = search(dataclasses.replace(data, records=data.records[:count]))
    assert (found.pairs, found.compared) == ((), count)
    assert found.by_chance <= 0.05


def test_a_picture_that_has_gone(tmp_path: Path) -> None:
    data = drawn(tmp_path)
    (tmp_path / "p03.jpg").unlink()
    found = search(data)
    assert found.compared == 15
    assert {(p.first, p.second) for p in found.pairs[:3]} == {
        (f"p{n:02}", f"q{n:02}") for n in range(3)
    }


@pytest.mark.parametrize("stated", [{}, {"chance": []}, {"chance": [["a", 1]]}, {"chance": 3}])
def test_a_metric_that_states_no_chance(tmp_path: Path, stated: dict[str, object]) -> None:
    metric = dataclasses.replace(shipped_metric(), stated=stated)
    with pytest.raises(ModelFileError, match=r"chance|alike"):
        search(drawn(tmp_path), metric)


def test_a_fit_keeps_one_picture_a_lesion(tmp_path: Path) -> None:
    folder = tmp_path
    for n in range(20):
        Image.fromarray(np.asarray(skin(n // 2, 64, 64))).save(folder / f"{n}.png")
    config = ModelConfig(trunk="mobilenet_v2", weights="none")
    torch.manual_seed(0)
    paths = [folder / f"{n}.png" for n in range(20)]
    told: list[tuple[int, int]] = []
    (folder / "7.png").write_bytes(b"no picture")
    whole, middle, kept = features(
        Views(config, CPU), paths, 64, threads=1, progress=lambda d, t: told.append((d, t))
    )
    assert told[0] == (0, 20)
    assert told[-1] == (20, 20)
    assert kept == [n for n in range(20) if n != 7]
    lesion = np.array(kept) // 2
    metric = fitted(config, 64, whole, middle, lesion, cohort=7)
    assert metric.cohort_MK.shape[0] == 7
    assert metric.projection_CK.shape == (192 + 576, min(128, 192 + 576))
    assert len(np.unique(metric.cohort_MK.round(4), axis=0)) == 7
    whole_metric = fitted(config, 64, whole, middle, lesion)
    assert len(whole_metric.cohort_MK) == 10


@pytest.mark.skipif(not (HAM10000 / METADATA).is_file(), reason=NO_HAM10000)
def test_held_out_lesions_of_ham10000() -> None:
    """Lesions that neither the trunk nor the metric has seen are found by their pictures alone."""
    whole = read_ham10000(HAM10000)
    split = make_split(whole, DataConfig(join_duplicates=False))
    records = whole.by_id()
    by_lesion = defaultdict(list)
    for image_id in split.part("test"):
        by_lesion[records[image_id].lesion_id].append(records[image_id])
    several = [v[:2] for v in by_lesion.values() if len(v) > 1][:50]
    single = [v for v in by_lesion.values() if len(v) == 1][:100]
    chosen = sorted((r for v in several + single for r in v), key=lambda r: r.image_id)
    lesion = {r.image_id: r.lesion_id for r in chosen}
    # Nothing but the pictures can tell.
    blind = tuple(dataclasses.replace(r, lesion_id="", label="NV") for r in chosen)
    found = search(dataclasses.replace(whole, records=blind))
    right = sum(lesion[p.first] == lesion[p.second] for p in found.pairs)
    # Of few pictures more is found than is stated of the whole test part, 96% right and 66% found.
    assert right >= 0.7 * len(several)
    assert right >= 0.8 * len(found.pairs)
