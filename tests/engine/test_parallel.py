"""Several processes that train together: the same curve, one death for all, a restart."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from biigma_cli.core.weights import load_checkpoint, load_model
from biigma_cli.data.images import load_part
from biigma_cli.data.manifest import load_manifest
from biigma_cli.data.splits import make_split
from biigma_cli.engine.evaluate import predict_proba, validation_figures
from tests.conftest import TINY, call

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or not torch.distributed.is_gloo_available(),
    reason="needs POSIX signals and gloo",
)

# One loss for all sizes of groups: no dropout, one bandwidth for all, and no floor under the
# mean of a slice, which the unbiased estimator has. The steps are tiny: AdamW's first ones are the
# signs of gradients, which turns rounding into whole steps. That gradients agree is tested in
# float64, in test_distributed.
SAME = (
    *TINY, "--epochs", "2", "--set", "model.dropout=0.0", "--set", "model.criterion=hsic",
    "--set", "model.bandwidth=fixed", "--set", "model.estimator=biased",
    "--set", "train.lr=1e-6", "--sync-bn", "--gather-background",
)  # fmt: skip


def start(
    arguments: list[str], environment: dict[str, str], *, before: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, *before, "-m", "biigma_cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )


def column(run: Path, name: str) -> list[float]:
    """A column of `metrics.csv`."""
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def workers_of(pid: int) -> list[int]:
    """Processes that the launcher has started, in order of rank."""
    found = subprocess.run(
        ["pgrep", "-P", str(pid), "-f", "biigma_cli"], capture_output=True, text=True, check=False
    )
    return sorted(int(p) for p in found.stdout.split())


@pytest.fixture(scope="module")
def alone(bare_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training in one process."""
    runs = tmp_path_factory.mktemp("alone")
    process = start([*SAME, "--runs", str(runs), "--name", "a"], bare_environment)
    _, told = process.communicate(timeout=250)
    assert process.returncode == 0, told
    return runs / "a"


@pytest.fixture(scope="module")
def together(bare_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in two processes with half the batch each."""
    runs = tmp_path_factory.mktemp("together")
    process = start([*SAME, "--devices", "2", "--runs", str(runs), "--name", "t"], bare_environment)
    out, told = process.communicate(timeout=250)
    assert process.returncode == 0, told
    # One process tells, not two.
    assert told.count("epoch 1/2") == 1
    assert out.count("best epoch") == 1
    assert "on 2 processes" in told
    return runs / "t"


def test_the_curve_is_the_same(alone: Path, together: Path) -> None:
    """The loss, before and after sampling begins, within 1e-4; its parts nearly so."""
    for name in ("loss", "val_log_loss"):
        assert column(together, name) == pytest.approx(column(alone, name), rel=1e-4), name
    for name in ("ce", "ce_hybrid", "independence"):
        assert column(together, name) == pytest.approx(column(alone, name), rel=2e-4), name
    ours, theirs = (load_checkpoint(r / "weights" / "last.safetensors") for r in (together, alone))
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert ours.meta["processes"] == 2


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_what_is_judged_is_what_is_kept(
    ema: float, home: Path, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    """The stored log loss is that of the stored network, though each process has norms of its own.

    They are far from the data's after so few steps, and so answer otherwise.
    """
    process = start(
        [*TINY, "--epochs", "1", "--devices", "2", "--runs", str(tmp_path), "--name", "n",
         "--set", f"train.ema={ema}"],
        bare_environment,
    )  # fmt: skip
    _, told = process.communicate(timeout=250)
    assert process.returncode == 0, told
    stored = load_checkpoint(tmp_path / "n" / "weights" / "best.safetensors")
    manifest = load_manifest("isic18")
    part = load_part(
        manifest, make_split(manifest, stored.config.data).val, stored.config.data.side
    )
    proba = predict_proba(load_model(stored), part.pixels, device=torch.device("cpu"))
    again = validation_figures(part.labels, proba, stored.meta["classes"])
    assert again["val_log_loss"] == pytest.approx(
        stored.meta["validation"]["val_log_loss"], rel=1e-6
    )


def test_a_killed_process_ends_all_and_the_run_goes_on(
    bare_environment: dict[str, str], tmp_path: Path
) -> None:
    """One clear message, no process left behind, and a run that can be resumed."""
    run = tmp_path / "k"
    process = start(
        [*SAME, "--epochs", "30", "--set", "train.checkpoint_minutes=1e-9",
         "--devices", "2", "--runs", str(tmp_path), "--name", "k"],
        bare_environment,
    )  # fmt: skip
    limit = time.monotonic() + 200
    while not (run / "weights" / "previous.safetensors").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit
        time.sleep(0.1)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    _, told = process.communicate(timeout=120)
    assert process.returncode not in (0, None)
    assert "Traceback" not in told
    assert "another process of the training ended" in told
    assert "--resume" in told
    assert "was killed by SIGKILL; the others were ended" in told
    assert not [p for p in workers if Path(f"/proc/{p}").exists()]
    before = load_checkpoint(run / "weights" / "last.safetensors").meta["state"]
    again = start(["train", "--resume", str(run), "--device", "cpu"], bare_environment)
    limit = time.monotonic() + 200
    while (
        load_checkpoint(run / "weights" / "last.safetensors").meta["state"]["epoch"]
        <= before["epoch"]
    ):
        assert again.poll() is None, again.communicate()[1]
        assert time.monotonic() < limit
        time.sleep(0.2)
    again.kill()
    again.communicate()


def test_a_restart_goes_on_by_itself(
    bare_environment: dict[str, str], tmp_path: Path, alone: Path
) -> None:
    """With --max-restarts a killed process costs seconds; the curve stays the same."""
    run = tmp_path / "r"
    process = start(
        [*SAME, "--set", "train.checkpoint_minutes=1e-9", "--devices", "2", "--max-restarts", "2",
         "--runs", str(tmp_path), "--name", "r"],
        bare_environment,
    )  # fmt: skip
    limit = time.monotonic() + 200
    while not (run / "weights" / "previous.safetensors").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit
        time.sleep(0.05)
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    _, told = process.communicate(timeout=250)
    assert process.returncode == 0, told
    assert "starting again from the newest checkpoint (1 of 2)" in told
    assert "resumed" in told
    assert column(run, "loss") == pytest.approx(column(alone, "loss"), rel=1e-4)


def test_torchrun_does_not_overwrite_a_run(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is taken is refused under torchrun, too; and there must be a name."""
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    before = (tiny_run / "weights" / "last.safetensors").read_bytes()
    done = call(*TINY, "--runs", tiny_run.parent, "--name", tiny_run.name)
    assert done.code == 2
    assert "holds a run already" in done.err
    assert (tiny_run / "weights" / "last.safetensors").read_bytes() == before
    done = call(*TINY, "--runs", tiny_run.parent)
    assert done.code == 2
    assert "give --name" in done.err
