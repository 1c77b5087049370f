"""`biigma average`: what lies between two runs, and what it refuses to average."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from biigma_cli.core.weights import Checkpoint, load_checkpoint, load_model, save_checkpoint
from biigma_cli.data.images import load_part
from biigma_cli.data.manifest import load_manifest
from biigma_cli.data.splits import make_split
from biigma_cli.engine.evaluate import predict_proba
from biigma_cli.engine.interpolate import between
from biigma_cli.metrics import evaluate
from tests.conftest import TINY, Outcome, call


def best(run: Path) -> Checkpoint:
    """A run's best checkpoint."""
    return load_checkpoint(run / "weights" / "best.safetensors")


@pytest.fixture(scope="module")
def pair(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and one whose weights have moved on from it."""
    folder = tmp_path_factory.mktemp("pair")
    first, second = folder / "first", folder / "second"
    for run in (first, second):
        shutil.copytree(tiny_run, run)
    checkpoint = best(second)
    noise = torch.Generator().manual_seed(0)
    moved = {
        k: v + 0.3 * v.std() * torch.randn(v.shape, generator=noise) if v.ndim > 1 else v
        for k, v in checkpoint.tensors.items()
    }
    meta = {**checkpoint.meta, "extra": [{"dataset": "other"}], "command": "biigma train more"}
    save_checkpoint(second / "weights" / "best.safetensors", moved, meta)
    return first, second


def run_of(pair: tuple[Path, Path], folder: Path, *more: str) -> Outcome:
    """The command on the two, into `folder`/mean."""
    return call("average", *pair, "--name", "mean", "--runs", folder, "--device", "cpu", *more)


def refused(done: Outcome, *words: str, code: int = 2) -> None:
    """One error with its fix, nothing on stdout."""
    assert done.code == code, done.err
    assert done.out == ""
    assert done.err.count("error:") == done.err.count("fix:") == 1
    for word in words:
        assert word in done.err


@pytest.mark.parametrize("name", ["", " ", "..", "../mean", "a/b", "a\\b"])
def test_names_that_are_no_folder(pair: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    """Nothing is written into the folder of all runs, or beside it."""
    done = call("average", *pair, "--name", name, "--runs", tmp_path / "runs", "--device", "cpu")
    refused(done, "cannot be a run's name")
    refused(call(*TINY, "--name", name, "--runs", tmp_path / "runs"), "cannot be a run's name")
    assert not list(tmp_path.iterdir())


def test_strangers_are_told_of(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The average of two networks of different beginnings is none."""
    words = "does not say that it was begun from"
    assert words in run_of(pair, tmp_path / "a").err
    first, second = best(pair[0]), best(pair[1])
    heir = shutil.copytree(pair[1], tmp_path / "heir")
    line = [{"run": "first", "command": first.meta["command"], "versions": {}}]
    save_checkpoint(
        heir / "weights" / "best.safetensors", second.tensors, {**second.meta, "ancestors": line}
    )
    done = run_of((pair[0], heir), tmp_path / "b")
    assert done.code == 0, done.err
    assert words not in done.err


def test_between(pair: tuple[Path, Path]) -> None:
    """The ends are the two networks, the middle their mean; counters are the second's."""
    first, second = best(pair[0]), best(pair[1])
    for share, same in ((0.0, first), (1.0, second)):
        for key, value in between(first, second, share).items():
            if value.is_floating_point():
                torch.testing.assert_close(value, same.tensors[key])
    for key, value in between(first, second, 0.5).items():
        if value.is_floating_point():
            mean = (first.tensors[key] + second.tensors[key]) / 2
            torch.testing.assert_close(value, mean)


@pytest.mark.parametrize("select", ["macro_f1", "log_loss"])
def test_validation_chooses(pair: tuple[Path, Path], tmp_path: Path, select: str) -> None:
    """Figures of each share are those of that network on the validation part; the best is kept."""
    shares = (0.0, 0.5, 1.0)
    options = [word for share in shares for word in ("--share", str(share))]
    done = run_of(pair, tmp_path, *options, "--select", select)
    assert done.code == 0, done.err
    first, second = best(pair[0]), best(pair[1])
    data = second.config.data
    manifest = load_manifest(data.dataset)
    part = load_part(manifest, make_split(manifest, data).val, data.side, rule=data.resize)
    told = re.findall(r"^ ?(\d\.\d\d) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)(.*)$", done.out, re.M)
    assert [float(row[0]) for row in told] == list(shares)
    scores = []
    for share, row in zip(shares, told, strict=True):
        model = load_model(Checkpoint(between(first, second, share), second.meta))
        proba = predict_proba(model, part.pixels, device=torch.device("cpu"))
        figures = evaluate(part.labels, proba.argmax(1), list(second.meta["classes"]))
        loss = -np.log(np.clip(proba[np.arange(len(proba)), part.labels], 1e-12, 1)).mean()
        assert float(row[1]) == pytest.approx(figures.macro_f1, abs=1e-4)
        assert float(row[2]) == pytest.approx(figures.accuracy, abs=1e-4)
        assert float(row[4]) == pytest.approx(loss, abs=1e-3)
        scores.append(figures.macro_f1 if select == "macro_f1" else -loss)
    chosen = int(np.argmax(scores))
    assert [bool(row[5].strip()) for row in told] == [i == chosen for i in range(3)]
    written = best(tmp_path / "mean")
    for key, value in between(first, second, shares[chosen]).items():
        assert torch.equal(written.tensors[key], value)
    assert written.meta["average"]["share"] == shares[chosen]
    assert f"best of 3 by {select}" in written.meta["selection"]
    assert written.meta["extra"] == [{"dataset": "other"}]
    assert [e["command"] for e in written.meta["ancestors"]][-1] == "biigma train more"
    assert [e["run"] for e in written.meta["ancestors"]] == [p.name for p in pair]
    assert written.meta["versions"]["torch"] == torch.__version__
    assert not [p for p in (tmp_path / "mean").rglob("*") if p.name.endswith("~")]


def test_it_is_a_run(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """It can be judged, listed and averaged again, and is not written over."""
    assert run_of(pair, tmp_path, "--share", "0.5").code == 0
    done = call("eval", "--run", tmp_path / "mean", "--json", "--resamples", "0", "--device", "cpu")
    assert done.code == 0, done.err
    assert json.loads(done.out)["n"] > 0
    listed = call("runs", "--runs", tmp_path)
    assert listed.code == 0, listed.err
    refused(run_of(pair, tmp_path), "holds a run already")


def test_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Another split, other classes, another network or side; a share beyond; no such rule."""
    changes = {
        "different splits": {"split": {"data_hash": "x", "split_hash": "y"}},
        "classes differ": {"classes": list("abcdefg")},
        "model.heads is": {"config": {"model": {"heads": 2}}},
        "their input is": {"config": {"data": {"side": 96}}},
    }
    for words, change in changes.items():
        other = tmp_path / words.replace(" ", "-").replace(".", "-")
        shutil.copytree(pair[1], other)
        checkpoint = best(other)
        meta = json.loads(json.dumps(checkpoint.meta))
        for key, value in change.items():
            if key == "config":
                for section, values in value.items():
                    meta["config"][section] |= values
            else:
                meta[key] = value
        save_checkpoint(other / "weights" / "best.safetensors", checkpoint.tensors, meta)
        refused(run_of((pair[0], other), tmp_path), "cannot be averaged", words, code=3)
    refused(run_of(pair, tmp_path, "--share", "1.5"), "outside 0 to 1")
    refused(run_of(pair, tmp_path, "--select", "accuracy"), "unknown --select")
    refused(run_of((pair[0], tmp_path), tmp_path), "no weights/best.safetensors")
    cut = tmp_path / "cut.safetensors"
    whole = (pair[1] / "weights" / "best.safetensors").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    refused(run_of((pair[0], cut), tmp_path), "is not a readable checkpoint", code=3)
    assert not (tmp_path / "mean").exists()
