"""Maps against masks for a model, and `biigma eval --saliency`."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from biigma_cli.cli.evaluate_maps import Insight
from biigma_cli.data.manifest import Manifest, load_manifest, save_manifest
from biigma_cli.data.preprocess import Pixels
from biigma_cli.errors import DataError, ModelFileError
from biigma_cli.judge import Candidate, Maps, open_candidate
from biigma_cli.judge.judgement import split_of
from biigma_cli.judge.saliency import judge_saliency
from biigma_cli.metrics.localisation import LOCALISATION, RANKED, REFERENCES
from tests.conftest import call

GRID = (2, 2)  # a side of 64, a stride of 32


@pytest.fixture(scope="module")
def candidate(tiny_run: Path) -> Candidate:
    """The tiny checkpoint."""
    return open_candidate(tiny_run / "weights" / "best.safetensors", torch.device("cpu"))


@pytest.fixture(scope="module")
def masked(
    candidate: Candidate, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Manifest, dict[str, Image.Image]]:
    """The tiny data set, lesions in one quarter of each picture of the test part.

    Of its images one has no mask, the next one without lesion, the next one without skin.
    """
    folder = tmp_path_factory.mktemp("masks")
    manifest = load_manifest("isic18")
    test = split_of(candidate, manifest).test
    drawn: dict[str, Image.Image] = {}
    paths: dict[str, str] = {}
    for i, image in enumerate(test):
        lesion = np.zeros((48, 64), np.uint8)
        row, column = (i // 2) % 2, i % 2
        lesion[24 * row : 24 * row + 24, 32 * column : 32 * column + 32] = 255
        lesion[...] = {1: 0, 2: 255}.get(i, lesion)
        if i == 0:
            continue
        drawn[image] = Image.fromarray(lesion)
        paths[image] = str(folder / f"{image}_segmentation.png")
        drawn[image].save(paths[image])
    records = tuple(
        dataclasses.replace(r, mask=paths.get(r.image_id, "")) for r in manifest.records
    )
    return dataclasses.replace(manifest, records=records), drawn


@pytest.fixture
def masked_home(
    masked: tuple[Manifest, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A data folder in which that data set is recorded."""
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "home"))
    save_manifest(masked[0])
    return tmp_path / "home"


def quarters(drawn: dict[str, Image.Image], ids: list[str]) -> np.ndarray[Any, Any]:
    """`(n, 2, 2)`: 1 where the lesion is."""
    return np.stack([np.asarray(drawn[i].resize(GRID, Image.Resampling.BOX)) / 255.0 for i in ids])


# --- what is judged --------------------------------------------------------------------------


def test_which_map_is_which(candidate: Candidate, masked: tuple[Manifest, Any]) -> None:
    """Evidence of the answer and of the true class, each against its own image's mask."""
    manifest, drawn = masked
    test = split_of(candidate, manifest).test
    used = list(test[3:])
    inside = quarters(drawn, used)
    records = manifest.by_id()
    labels = [candidate.classes.index(records[i].label) for i in used]
    answers = [(label + 1) % 7 for label in labels]
    calls: list[int] = []

    def maps(pixels: Pixels, progress: Any) -> Maps:
        calls.append(len(pixels))
        n = len(pixels)
        logits = np.zeros((n, 7), np.float32)
        evidence = np.full((n, 7, *GRID), -1, np.float32)
        for i in range(n):
            logits[i, answers[i]] = 1
            evidence[i, answers[i]] = inside[i]  # points at the lesion
            evidence[i, labels[i]] = 1 - inside[i]  # at all else
        progress(n, n)
        return Maps(logits, evidence, {"plain": (0.25 + 0.5 * inside).astype(np.float32)})

    # A trunk whose positions are centred in an even grid's cells.
    even = dataclasses.replace(candidate, maps=maps, trunk="densenet121")
    found = judge_saliency(even, manifest, "test", resamples=40)
    assert calls == [1, len(used)]  # the first to learn the grid
    assert tuple(found.maps) == ("answer", "truth", "plain", *REFERENCES)
    values = {
        name: [one.overall[f].value for f in LOCALISATION] for name, one in found.maps.items()
    }
    assert values["answer"] == pytest.approx([1, 1, 4, 1])
    assert values["truth"] == pytest.approx([0, 0, 0, 0])
    assert values["plain"] == pytest.approx([1, 0.5, 2, 1])
    assert values["uniform"] == values["centre"] == pytest.approx([0.25, 0.25, 1, 0.5])
    assert values["mask"] == pytest.approx([1, 1, 4, 1])
    assert found.maps["answer"].over_centre["pointing"].value == pytest.approx(0.75)
    assert (found.images, found.grid, found.area) == (len(used), GRID, pytest.approx(0.25))
    assert (found.missing, found.empty, found.full, found.left_out) == (1, 1, 1, 0)
    assert sum(found.class_counts.values()) == len(used)
    assert found.groups == len({records[i].lesion_id for i in used})
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["left_out"] == {
        "without_mask": 1, "empty_mask": 1, "full_mask": 1, "picture_for_mask": 0, "weight_0": 0,
    }  # fmt: skip
    told = Insight(saliency=dataclasses.replace(found, pictures=2)).notes()
    assert told[0].endswith(", 2 images with a picture for a mask")
    assert plain["maps"]["answer"]["overall"]["auc"]["value"] == 1
    assert plain["plain_and_standardised_rank_alike"] is False  # there is but one


def test_both_forms(candidate: Candidate, masked: tuple[Manifest, Any]) -> None:
    """M's two forms order the cells alike up to equals, and share their figures of rank."""
    seen: list[Maps] = []

    def maps(pixels: Pixels, progress: Any) -> Maps:
        seen.append(candidate.maps(pixels, progress))
        return seen[-1]

    found = judge_saliency(
        dataclasses.replace(candidate, maps=maps), masked[0], "test", resamples=40
    )
    plain, standardised = (
        seen[-1].saliency[form].reshape(found.images, -1) for form in ("plain", "standardised")
    )
    order = standardised.argsort(1)
    assert (np.diff(np.take_along_axis(plain, order, 1), axis=1) >= -1e-6).all()
    own = found.maps["plain"].overall, found.maps["standardised"].overall
    assert {name for name in LOCALISATION if own[0][name] == own[1][name]} == set(RANKED)
    assert found.to_dict()["plain_and_standardised_rank_alike"] is True
    assert found.bootstrap == "95% percentile intervals, 40 resamples of lesions"


def test_no_saliency_block(candidate: Candidate, masked: tuple[Manifest, Any]) -> None:
    """Evidence alone is judged."""

    def maps(pixels: Pixels, progress: Any) -> Maps:
        return candidate.maps(pixels, progress)._replace(saliency={})

    bare = dataclasses.replace(candidate, maps=maps)
    found = judge_saliency(bare, masked[0], "test", resamples=0)
    assert tuple(found.maps) == ("answer", "truth", *REFERENCES)


def test_no_maps(candidate: Candidate, masked: tuple[Manifest, Any]) -> None:
    """An old export has none; nothing is made up."""

    def maps(pixels: Pixels, progress: Any) -> Maps:
        return Maps(np.zeros((len(pixels), 7), np.float32), None, {})

    with pytest.raises(ModelFileError, match="neither evidence nor saliency"):
        judge_saliency(dataclasses.replace(candidate, maps=maps), masked[0], "test")


def test_nan(candidate: Candidate, masked: tuple[Manifest, Any]) -> None:
    """No figure is made of it."""

    def maps(pixels: Pixels, progress: Any) -> Maps:
        found = candidate.maps(pixels, progress)
        return found._replace(logits_nY=found.logits_nY * 0, saliency={
            "plain": np.full_like(found.saliency["plain"], np.nan)
        })  # fmt: skip

    with pytest.raises(DataError, match=r"maps \(plain\) hold NaN"):
        judge_saliency(dataclasses.replace(candidate, maps=maps), masked[0], "test")


def test_no_usable_mask(candidate: Candidate, masked: tuple[Manifest, Any]) -> None:
    """Empty and full ones and pictures alone: said, with their numbers."""
    manifest = masked[0]
    test = split_of(candidate, manifest).test
    records = tuple(
        dataclasses.replace(r, mask=r.path if r.image_id == test[3] else "")
        if r.image_id not in test[1:3]
        else r
        for r in manifest.records
    )
    with pytest.raises(DataError, match="1 are empty, 1 full, 1 no masks but pictures"):
        judge_saliency(candidate, dataclasses.replace(manifest, records=records), "test")


# --- the command -----------------------------------------------------------------------------


def test_command(masked_home: Path, run_copy: Path, tmp_path: Path) -> None:
    """Tables of 80 columns after the figures; what was left out on stderr; in the run's record."""
    done = call("eval", "--run", run_copy, "--saliency", "--resamples", "40", "--device", "cpu")
    assert done.code == 0, done.err
    assert (
        "left out of the figures of maps: 1 images with no mask, 1 images with a mask without "
        "lesion, 1 images with a mask without skin"
    ) in done.err
    _, figures, tables = done.out.partition("maps of 2x2 cells against lesion masks")
    assert "confusion matrix" in done.out[: -len(tables)]
    assert figures
    for words in (
        "evidence, answer", "M, plain", "M, standardised", "(centre prior)",
        "minus the centre prior", "pointing game by class", "pixel AUC by class",
        "keeps the order of its cells",
    ):  # fmt: skip
        assert words in tables
    # Classes of fewer than 10 lesions have values without intervals.
    assert tables.count("..") > 30
    # After the rest of the first title, and before what else is told.
    body = [line for line in tables.splitlines()[1:] if "the paper" not in line]
    assert max(map(len, body)) <= 80
    assert tables.count("as plain") == 4  # two figures, in two tables
    stored = json.loads((run_copy / "eval-test.json").read_text())["saliency"]
    assert set(stored["maps"]) == {"answer", "truth", "plain", "standardised", *REFERENCES}
    assert stored["images"] == sum(stored["classes"].values())
    # Figures alone, judged again, leave it there; another checkpoint's do not.
    again = ("eval", "--run", run_copy, "--resamples", "0", "--device", "cpu")
    assert call(*again).code == 0
    assert json.loads((run_copy / "eval-test.json").read_text())["saliency"] == stored
    best = run_copy / "weights" / "best.safetensors"
    later = (run_copy / "eval-test.json").stat().st_mtime + 5
    os.utime(best, (later, later))
    assert call(*again).code == 0
    assert "saliency" not in json.loads((run_copy / "eval-test.json").read_text())


def test_an_export(masked_home: Path, tiny_onnx: Path) -> None:
    """The exported form of M alone; as JSON."""
    done = call(
        "eval", "--model", tiny_onnx, "--saliency", "--json", "--resamples", "0", "--device", "cpu"
    )
    assert done.code == 0, done.err
    found = json.loads(done.out)["saliency"]
    assert len({"plain", "standardised"} & set(found["maps"])) == 1
    assert found["maps"]["answer"]["overall"]["auc"]["low"] is None


def test_masks_that_are_not_recorded(home: Path, tiny_onnx: Path) -> None:
    """Said before the model is judged."""
    done = call("eval", "--model", tiny_onnx, "--saliency", "--device", "cpu")
    assert done.code == 3
    assert done.out == ""
    assert "has a lesion mask in the record of isic18" in done.err
    assert done.err.count("fix:") == 1
