"""The launcher: exit codes, signals, restarts, and what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from biigma_cli.engine import launch as launching
from biigma_cli.engine.launch import launch, run_processes
from biigma_cli.errors import UsageError

# Workers that do not import torch, so that they start at once.
BEGIN = """
import os, signal, sys, time
from pathlib import Path
rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
def wait_for(name):
    while not (folder / name).exists():
        time.sleep(0.01)
"""


def command(body: str, folder: Path) -> list[str]:
    """A worker's command."""
    return [sys.executable, "-I", "-S", "-c", BEGIN + body, str(folder)]


def written(folder: Path) -> dict[str, str]:
    """What the workers left."""
    return {p.name: p.read_text() for p in sorted(folder.iterdir())}


def test_two_workers_add_up(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They find each other by `joined`, share the cores out, and nothing is said."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launching, "available_cpus", lambda: 7)
    before = dict(os.environ)
    body = """
import torch
from biigma_cli.engine.distributed import joined, sum_over_ranks
with joined("cpu") as ranks:
    total = sum_over_ranks(torch.tensor(10 ** ranks.rank)).item()
    Path(sys.argv[1], str(ranks.rank)).write_text(f"{total} {os.environ['OMP_NUM_THREADS']}")
"""
    program = [sys.executable, "-c", BEGIN + body, str(tmp_path)]
    assert run_processes(2, program) == 0
    assert written(tmp_path) == {"0": "11 3", "1": "11 3"}
    assert dict(os.environ) == before
    assert capfd.readouterr() == ("", "")


def test_the_program_and_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """`launch` runs this package with the arguments given."""
    ran: list[object] = []
    monkeypatch.setattr(launching, "run_processes", lambda *a, **k: ran.append((a, k)) or 0)
    assert launch(3, ["train", "--devices", "3"], max_restarts=2, say=print) == 0
    program = [sys.executable, "-m", "biigma_cli", "train", "--devices", "3"]
    assert ran == [((3, program), {"max_restarts": 2, "say": print})]


def test_arguments_arrive_as_they_are(tmp_path: Path) -> None:
    """Also those that the launcher would take for its own macros."""
    odd = ["${local_rank}", "$$", "a b", "$HOME", ""]
    body = "(folder / str(rank)).write_text(repr(sys.argv[2:]))"
    assert run_processes(1, [*command(body, tmp_path), *odd]) == 0
    assert written(tmp_path) == {"0": repr(odd)}


@pytest.mark.parametrize(("failing", "lines"), [(0, 0), (1, 1)])
def test_a_failing_worker_ends_all(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], failing: int, lines: int
) -> None:
    """Its exit code is the result; the others get SIGTERM. The first rank speaks for itself."""
    body = f"""
def told(*_):
    (folder / "told").touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, told)
if rank == {failing}:
    wait_for("other")
    sys.exit(7)
(folder / "other").touch()
wait_for("never")
"""
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    assert run_processes(2, command(body, tmp_path)) == 7
    assert set(written(tmp_path)) == {"other", "told"}
    said = capfd.readouterr().err.splitlines()
    assert len(said) == lines
    for line in said:
        assert line.startswith("error: process 1 of 2 (PID ")
        assert "exit code 7" in line
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_the_cause_is_told_from_its_consequences(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A rank that ended because the other was lost is not the one to blame."""
    body = """
(folder / str(rank)).touch()
wait_for(str(1 - rank))
sys.exit(6 if rank == 0 else 3)
"""
    assert run_processes(2, command(body, tmp_path)) in (3, 6)
    # Above it is chance whether both are seen in one look; this is the rule if they are.
    failures = [launching.ProcessFailure(r, 1, code, "") for r, code in enumerate((6, -15, 3, 7))]
    assert launching._cause(failures).exitcode == 3
    assert launching._cause(failures[:2]).exitcode == 6
    assert "Traceback" not in capfd.readouterr().err


def test_a_killed_worker_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One line that names process and signal; the code is the shell's for it."""
    body = """
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
wait_for("never")
"""
    assert run_processes(2, command(body, tmp_path)) == 137
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: process 1 of 2 (PID ")
    assert "was killed by SIGKILL" in line


def test_a_restart_sees_its_number(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One rank is killed in the first two attempts, the third succeeds; no more are made."""
    body = """
attempt = os.environ["BIIGMA_RESTART"]
(folder / f"{rank}-{attempt}").touch()
if attempt != "2":
    wait_for(f"0-{attempt}"); wait_for(f"1-{attempt}")
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for("never")
"""
    assert run_processes(2, command(body, tmp_path), max_restarts=5) == 0
    assert set(written(tmp_path)) == {f"{r}-{a}" for r in (0, 1) for a in (0, 1, 2)}
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 4
    assert "was killed by SIGKILL" in said[0]
    assert said[1] == "starting again from the newest checkpoint (1 of 5)"
    assert said[3] == "starting again from the newest checkpoint (2 of 5)"
    assert "BIIGMA_RESTART" not in os.environ


def test_restarts_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What is killed each time is started again so often, and no oftener."""
    body = """
(folder / os.environ["BIIGMA_RESTART"]).touch()
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_processes(1, command(body, tmp_path), max_restarts=1) == 137
    assert set(written(tmp_path)) == {"0", "1"}
    assert capfd.readouterr().err.count("starting again") == 1


def test_an_error_is_not_tried_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A mistake in the data would be made again."""
    body = """
(folder / os.environ["BIIGMA_RESTART"]).touch()
sys.exit(3)
"""
    assert run_processes(1, command(body, tmp_path), max_restarts=3) == 3
    assert set(written(tmp_path)) == {"0"}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_workers(tmp_path: Path, number: signal.Signals) -> None:
    """They get it once, have time to write, and the launcher ends with the shell's code for it."""
    body = f"""
def told(*_):
    time.sleep(0.5)  # a checkpoint
    with (folder / f"told {{rank}}").open("a") as file:
        file.write("once ")
    sys.exit({128 + number})
signal.signal({int(number)}, told)
(folder / f"ready {{rank}}").touch()
wait_for("never")
"""
    program = (
        "import sys\n"
        "from biigma_cli.engine.launch import run_processes\n"
        "sys.exit(run_processes(2, sys.argv[1:]))"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", program, *command(body, tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while not {"ready 0", "ready 1"} <= set(written(tmp_path)):
            assert launcher.poll() is None
            time.sleep(0.05)
        # As Ctrl-C in a terminal: to the whole group of the launcher.
        os.killpg(launcher.pid, number)
        _, err = launcher.communicate(timeout=100)
    finally:
        launcher.kill()
    assert launcher.returncode == 128 + number
    assert err == ""
    told = {name: text for name, text in written(tmp_path).items() if name.startswith("told")}
    assert told == {"told 0": "once ", "told 1": "once "}


@pytest.mark.parametrize(("devices", "restarts"), [(0, 0), (-1, 0), (1, -1)])
def test_numbers_that_cannot_be(devices: int, restarts: int) -> None:
    """Said before anything starts."""
    with pytest.raises(UsageError, match="cannot start"):
        launch(devices, ["train"], max_restarts=restarts)
