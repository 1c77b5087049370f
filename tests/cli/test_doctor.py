"""`biigma doctor`: what is shown, exit codes, JSON, and that nothing heavy is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from biigma_cli.runtime import doctor
from biigma_cli.runtime.doctor import FORMAT, Check
from biigma_cli.runtime.session import shipped_models
from tests.conftest import call

GOOD = Check(name="python", state="ok", found="3.11")
ODD = Check(name="data folder", state="warning", found="/home/\udcff\u00e9", why="odd", fix="move")
BAD = Check(name="models", state="problem", found="none", why="none is shipped", fix="get one")


def finds(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> None:
    """Let these be all findings."""

    def diagnose() -> Iterator[Check]:
        yield from checks

    monkeypatch.setattr(doctor, "diagnose", diagnose)


def test_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """A problem ends in 1; why and fix stand below."""
    finds(monkeypatch, GOOD, ODD, BAD)
    done = call("doctor")
    assert done.code == 1
    lines = done.out.splitlines()
    assert lines[0] == "ok       python: 3.11"
    assert "problem  models: none" in lines
    assert "         why: none is shipped" in lines
    assert "         fix: get one" in lines
    assert lines[-1] == "1 ok, 1 warning, 1 problem"
    assert "\\udcff" in done.out
    assert "\033" not in done.out


def test_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning alone ends in 0, with --json, too."""
    finds(monkeypatch, GOOD, ODD)
    assert call("doctor").code == 0
    done = call("doctor", "--json")
    found = json.loads(done.out)
    assert done.code == 0
    assert found["format"] == FORMAT
    assert found["healthy"] is True
    assert found["counts"] == {"ok": 1, "warning": 1, "problem": 0}
    assert found["checks"][1]["fix"] == "move"
    finds(monkeypatch, BAD)
    done = call("doctor", "--json")
    assert (done.code, json.loads(done.out)["healthy"]) == (1, False)


def test_what_every_command_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package without which nothing starts: a message, no traceback."""
    monkeypatch.delitem(sys.modules, "biigma_cli.storage")
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    done = call("doctor")
    assert done.code == 1
    assert "biigma cannot start" in done.err
    assert "platformdirs" in done.err


def test_this_installation(tmp_path: Path) -> None:
    """The real checks: each has its parts, the shipped models answer, nothing is written."""
    done = call("doctor", "--json", "--data-dir", tmp_path / "data")
    found = json.loads(done.out)
    checks = {c["name"]: c for c in found["checks"]}
    assert done.code == (0 if found["healthy"] else 1)
    assert checks["data folder"]["facts"]["path"] == str(tmp_path / "data")
    assert checks["onnxruntime"]["state"] == "ok"
    for path in shipped_models():
        assert checks[f"model {path.stem}"]["state"] == "ok", checks
    assert all(c["why"] and c["fix"] for c in checks.values() if c["state"] != "ok")
    assert not list(tmp_path.iterdir())


def test_nothing_heavy_is_loaded(tmp_path: Path) -> None:
    """Native code stays in the other process; torch is not loaded at all."""
    script = """
import sys
from biigma_cli.runtime import doctor
def start(): raise OSError("none")
checks = list(doctor.diagnose(start=start))
assert len(checks) > 10
heavy = {"torch", "torchvision", "onnxruntime", "openvino"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
