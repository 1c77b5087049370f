"""A data set of one's own whose images the network that training begins from may have seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from biigma_cli.core.weights import load_checkpoint
from biigma_cli.data.manifest import load_manifest
from biigma_cli.data.splits import make_split
from tests.conftest import TINY, call


@pytest.fixture
def mine(home: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images that the tiny network was trained on, recorded as one's own beside its data set."""
    shutil.copytree(home / "datasets", tmp_path / "home" / "datasets")
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "home"))
    manifest = load_manifest("isic18")
    split = make_split(manifest, load_checkpoint(best(tiny_run)).config.data)
    records = manifest.by_id()
    for code in ("MEL", "NV"):
        folder = tmp_path / "mine" / code
        folder.mkdir(parents=True)
        for image in [i for i in split.train if records[i].label == code][:6]:
            shutil.copy(manifest.root / records[image].path, folder)
    assert call("datasets", "add", "mine", tmp_path / "mine").code == 0
    return tmp_path / "mine"


def best(run: Path) -> Path:
    """Its chosen network."""
    return run / "weights" / "best.safetensors"


def test_refused_where_they_can_be_compared(mine: Path, tiny_run: Path, tmp_path: Path) -> None:
    """Beside the data set that the trunk was trained on: counted and named, nothing written."""
    done = call(*TINY, "--dataset", "mine", "--weights", best(tiny_run), "--runs", tmp_path / "r")
    assert done.code == 3
    assert "has learnt from isic18, and 4 of the 4 validation and test images of mine" in done.err
    assert "put them into the train part" in done.err
    assert not (tmp_path / "r").exists()


def test_told_where_they_cannot_be_compared(
    mine: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without that data set: at training, in judgements, in the file and its card."""
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "elsewhere"))
    assert call("datasets", "add", "mine", mine).code == 0
    words = [*TINY, "--weights", best(tiny_run), "--dataset", "mine", "--epochs", "1"]
    done = call(*words, "--name", "own", "--runs", tmp_path)
    assert done.code == 0, done.err
    said = (
        "4 of the 4 validation and test images of mine have ISIC ids and may have been seen in "
        "training: a network behind this one has learnt from isic18"
    )
    assert f"warning: {said}" in done.err
    run, card = tmp_path / "own", tmp_path / "card.md"
    assert said in (run / "train.log").read_text()
    done = call("eval", "--run", run, "--json", "--resamples", "0", "--device", "cpu")
    assert done.code == 0, done.err
    assert said in done.err
    assert any(line.startswith(said) for line in json.loads(done.out)["notes"])
    model = tmp_path / "own.onnx"
    done = call("export", "onnx", "--run", run, "-o", model, "--card", card, "--device", "cpu")
    assert done.code == 0, done.err
    assert f"warning: {said}" in done.err
    assert f"- not known: {said}" in card.read_text()
    page = tmp_path / "page"
    done = call("eval", "--model", model, "--report", page, "--resamples", "0", "--device", "cpu")
    assert done.code == 0, done.err
    assert said in done.err
    assert said in (page / "index.html").read_text()
