"""One training at a time in a run folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from biigma_cli.engine.lock import LOCK, held
from biigma_cli.errors import RunBusy
from tests.conftest import call


def test_a_second_training_is_refused(tiny_run: Path) -> None:
    """While a process holds the run; not once it was killed."""
    before = (tiny_run / "weights" / "last.safetensors").read_bytes()
    body = (
        "import sys, time; from pathlib import Path; from biigma_cli.engine.lock import held\n"
        "with held(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", body, str(tiny_run)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RunBusy, match="another process"), held(tiny_run):
            pass
        done = call("train", "--resume", tiny_run, "--device", "cpu")
        assert done.code == 2
        assert "is being trained by another process" in done.err
        assert (tiny_run / "weights" / "last.safetensors").read_bytes() == before
    finally:
        process.kill()
        process.communicate()
    with held(tiny_run):
        assert (tiny_run / LOCK).exists()


def test_nothing_is_left_of_what_never_began(tmp_path: Path) -> None:
    """A training that ends before its first file leaves no folder; one with files keeps them."""
    with held(tmp_path / "runs" / "a"):
        assert (tmp_path / "runs" / "a").is_dir()
    assert not (tmp_path / "runs").exists()
    with held(tmp_path):  # it was there before
        pass
    assert tmp_path.is_dir()
    with held(tmp_path / "b"):
        (tmp_path / "b" / "config.toml").touch()
    assert (tmp_path / "b" / "config.toml").exists()
