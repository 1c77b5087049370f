"""A small synthetic data set, a network trained on it and its export, each made once."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

# Before torch is imported: tests side by side share the cores, children inherit it.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    _WORKERS = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _WORKERS)))

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from typer.testing import CliRunner

from biigma_cli.core.digest import KEY
from biigma_cli.core.weights import load_checkpoint, load_model, model_state, save_checkpoint
from biigma_cli.data.images import load_part
from biigma_cli.data.manifest import load_manifest
from biigma_cli.data.splits import make_split
from biigma_cli.engine.evaluate import predict_proba
from tests.core.tiny import settle_norms

# A shell that starts the tests in the background has SIGINT ignored, and every child would inherit
# that; with a handler here, children start with the default, as in a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Lesions per class in the synthetic set; every fourth lesion has two images.
LESIONS = {"mel": 10, "nv": 16, "bcc": 8, "akiec": 8, "bkl": 10, "df": 6, "vasc": 6}
COLOURS = {
    "mel": (60, 40, 40), "nv": (150, 100, 70), "bcc": (220, 150, 150), "akiec": (210, 110, 90),
    "bkl": (170, 140, 90), "df": (190, 160, 140), "vasc": (160, 30, 60),
}  # fmt: skip

# What makes the light preset small enough to train in seconds.
TINY = (
    "train", "--preset", "light", "--weights", "none", "--device", "cpu",
    "--set", "data.side=64", "--set", "train.sides=[]", "--set", "train.side_epochs=[]",
    "--set", "train.batch_size=8", "--set", "train.sampling_start_epoch=1",
    "--set", "train.precision=fp32", "--set", "model.projection_channels=16",
    "--set", "model.adapter_channels=8", "--set", "train.ema=0.5", "--set", "train.lr=0.005",
)  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`: each worker holds torch and makes the session's fixtures for itself."""
    return min(os.cpu_count() or 1, 8)


class Outcome(NamedTuple):
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


def call(*arguments: str | Path) -> Outcome:
    """Run the command line in this process."""
    from biigma_cli.cli.app import app

    words = [str(a) for a in arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["biigma", *words])  # checkpoints record it
        result = CliRunner().invoke(app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def unsealed(path: Path) -> onnx.ModelProto:
    """An exported file to be changed: without its digest, which would refuse that."""
    proto = onnx.load(path)
    kept = [entry for entry in proto.metadata_props if entry.key != KEY]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    return proto


def make_ham(folder: Path, *, seed: int = 0) -> Path:
    """A folder laid out like HAM10000: 64x48 noise around each class's colour."""
    rng = np.random.default_rng(seed)
    images = folder / "HAM10000_images_part_1"
    images.mkdir(parents=True)
    rows = []
    lesion = 0
    for code, count in LESIONS.items():
        for _ in range(count):
            lesion += 1
            for _ in range(2 if lesion % 4 == 0 else 1):
                name = f"ISIC_{len(rows):07}"
                coarse = rng.normal(COLOURS[code], 30, (6, 8, 3)).repeat(8, 0).repeat(8, 1)
                pixels = np.clip(coarse + rng.normal(0, 10, (48, 64, 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(images / f"{name}.jpg", quality=90)
                rows.append({"lesion_id": f"HAM_{lesion:07}", "image_id": name, "dx": code})
    with (folder / "HAM10000_metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["lesion_id", "image_id", "dx"])
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test writes to the user's data folder, or heeds the user's mirror."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIIGMA_HOME", str(tmp_path_factory.mktemp("guard")))
        for name in ("BIIGMA_MIRROR", "BIIGMA_OFFLINE", "BIIGMA_MODEL"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def tiny_ham(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the synthetic data set."""
    return make_ham(tmp_path_factory.mktemp("ham") / "HAM10000")


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_ham: Path) -> Iterator[Path]:
    """A data folder of its own, in which the synthetic set is recorded."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIIGMA_HOME", str(folder))
        done = call("download", "isic18", "--from", tiny_ham, "--allow-missing")
        assert done.code == 0, done.err
        yield folder


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs that fixtures make."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def tiny_run(home: Path, tiny_runs: Path) -> Path:
    """A run of two epochs on the synthetic set; not to be changed by a test.

    After so few steps batch norm's statistics make every answer the same, so those of the best
    checkpoint are set to a batch's: figures and parity are then about answers that differ. The head
    is scaled so that the temperature of its validation part is 2, which rounding cannot push to an
    end of the range.
    """
    done = call(*TINY, "--epochs", "2", "--name", "tiny", "--runs", tiny_runs)
    assert done.code == 0, done.err
    best = tiny_runs / "tiny" / "weights" / "best.safetensors"
    stored = load_checkpoint(best)
    manifest = load_manifest("isic18")
    ids = make_split(manifest, stored.config.data).train[::3]
    batch = torch.from_numpy(load_part(manifest, ids, stored.config.data.side).pixels)
    model = load_model(stored)
    settle_norms(model, batch.permute(0, 3, 1, 2).float())
    val = load_part(manifest, make_split(manifest, stored.config.data).val, stored.config.data.side)
    proba = predict_proba(model.eval(), val.pixels, device=torch.device("cpu"))
    logit = np.log(proba.astype(np.float64))
    own = logit[np.arange(len(logit)), val.labels]
    sign = 1 if (own - logit.mean(1)).mean() > 0 else -1  # better than a guess, or its opposite

    def log_loss(log_scale: float) -> float:
        scaled = sign * np.exp(log_scale) * logit
        return float((logsumexp(scaled, axis=1) - scaled[np.arange(len(own)), val.labels]).mean())

    best_scale = sign * np.exp(minimize_scalar(log_loss, bounds=(-9, 9), method="bounded").x)
    with torch.no_grad():
        for tensor in (model.head.weight, model.head.bias):
            tensor.mul_(2 * best_scale)
    save_checkpoint(best, model_state(model), stored.meta)
    return tiny_runs / "tiny"


@pytest.fixture(scope="session")
def tiny_eval(tiny_run: Path) -> dict[str, Any]:
    """The run's figures on the test part."""
    done = call("eval", "--run", tiny_run, "--split", "test", "--device", "cpu", "--json")
    assert done.code == 0, done.err
    return dict(json.loads(done.out))


@pytest.fixture(scope="session")
def tiny_onnx(
    tiny_run: Path, tiny_eval: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run's export with its figures, alone in a folder; not to be changed by a test."""
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    done = call("export", "onnx", "--run", tiny_run, "-o", path, "--images", "8")
    assert done.code == 0, done.err
    (tiny_run / "proof.txt").write_text(done.out, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def other_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder in which other images are recorded under the same name."""
    folder = tmp_path_factory.mktemp("other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIIGMA_HOME", str(folder))
        images = make_ham(folder / "HAM10000", seed=1)
        done = call("download", "isic18", "--from", images, "--allow-missing")
        assert done.code == 0, done.err
    return folder


@pytest.fixture
def run_copy(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the trained run that a test may change."""
    return Path(shutil.copytree(tiny_run, tmp_path / "copy"))


@pytest.fixture
def picture(tiny_ham: Path) -> Path:
    """One good image."""
    return sorted((tiny_ham / "HAM10000_images_part_1").glob("*.jpg"))[0]


@pytest.fixture(scope="session")
def bare_environment(home: Path) -> dict[str, str]:
    """Environment for a command in a process of its own: no colour."""
    return {**os.environ, "BIIGMA_HOME": str(home), "NO_COLOR": "1"}
