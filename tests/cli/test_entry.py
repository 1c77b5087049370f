"""How the process of a command ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import call

PROGRAM = """
import atexit, sys, threading, time
from biigma_cli import __main__ as entry
class Kept:
    def __del__(self):
        print("taken apart")
kept = Kept()
atexit.register(print, "at exit")
def main():
    print("answer")
    EXTRA
    sys.exit(CODE)
entry.main = main
sys.argv = ["biigma", "COMMAND"]
entry.entry()
"""


@pytest.mark.parametrize(
    ("command", "extra", "code", "said"),
    [
        ("predict", "pass", "5", ["answer", "at exit"]),
        ("predict", "pass", "None", ["answer", "at exit"]),
        ("eval", "pass", "5", ["answer", "at exit", "taken apart"]),
        ("predict", "threading.Thread(target=time.sleep, args=(0.3,)).start()", "5",
         ["answer", "at exit", "taken apart"]),
        ("predict", "pass", "'words'", ["answer", "at exit", "taken apart"]),
    ],
)  # fmt: skip
def test_prediction_leaves_at_once(command: str, extra: str, code: str, said: list[str]) -> None:
    """All is written, what others asked for is done; nothing is taken apart for its own sake."""
    program = PROGRAM.replace("EXTRA", extra).replace("CODE", code).replace("COMMAND", command)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == said, done.stderr
    assert done.returncode == {"5": 5, "None": 0, "'words'": 1}[code]


@pytest.mark.skipif(sys.platform == "win32", reason="a shell's redirection")
@pytest.mark.parametrize(
    ("redirection", "reason"), [(">&-", "it is closed"), (">/dev/full", "No space left on device")]
)
@pytest.mark.parametrize("arguments", ["--version", "--help", "score -h", "models", "datasets"])
def test_standard_output_that_cannot_be_written(
    arguments: str, redirection: str, reason: str, tmp_path: Path
) -> None:
    """An error for every command, and for what is none; never silence, never a traceback."""
    command = f"{sys.executable} -m biigma_cli {arguments} {redirection}"
    env = {**os.environ, "BIIGMA_HOME": str(tmp_path)}
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, env=env)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "none is here yet" not in line]
    assert lines[0] == f"error: cannot write standard output: {reason}"
    assert [line[:4] for line in lines[1:]] == ["fix:"]


@pytest.mark.skipif(sys.platform == "win32", reason="a shell's redirection")
def test_closed_streams_take_no_file(tmp_path: Path) -> None:
    """What is opened next does not become standard output: nothing is written into it."""
    program = (
        "from biigma_cli import __main__ as entry\n"
        "def main():\n"
        "    file = open('file', 'w')\n"
        "    assert file.fileno() > 1\n"
        "    import os; os.system('echo astray')\n"
        "entry.main = main\n"
        "entry.entry()\n"
    )
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(f"{sys.executable} program.py >&- 2>&- <&-", shell=True, cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == ""


def test_a_file_whose_name_begins_with_a_dash(tmp_path: Path) -> None:
    """It looks like an option; what to write instead is said."""
    (tmp_path / "-dash.jpg").write_bytes(b"")
    command = [sys.executable, "-m", "biigma_cli", "predict", "-dash.jpg"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "fix:   for the file -dash.jpg write ./-dash.jpg"


@pytest.mark.skipif(sys.platform == "win32", reason="a shell's redirection")
@pytest.mark.parametrize("arguments", ["predict gone.jpg", "explain gone.jpg", "models resnet"])
def test_standard_error_that_is_closed(arguments: str) -> None:
    """What would have been said there is lost, and is not taken for a result."""
    command = f"{sys.executable} -m biigma_cli {arguments} --model none 2>&-"
    if arguments.startswith("models"):
        command = command.replace(" --model none", "")
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (3, b"")


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no /dev/stdout")
def test_standard_output_by_name(tiny_onnx: Path, picture: Path) -> None:
    """A pipe behind `/dev/stdout` is written to; it has no path of its own."""
    words = [sys.executable, "-m", "biigma_cli", "predict", str(picture), "--device", "cpu"]
    words += ["--model", str(tiny_onnx), "-o"]
    done = subprocess.run(
        [*words, "/dev/stdout", "--format", "csv"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith(str(picture))
    done = subprocess.run(
        [*words, os.devnull, "--format", "csv", "--report", "/dev/stdout"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("<!doctype html>")


@pytest.mark.parametrize(
    "words",
    [
        ("audit", "isic18", "--report", ""),
        ("datasets", "add", "z", ""),
        ("predict", "a.jpg", "--saliency", ""),
        ("explain", "a.jpg", "-o", ""),
        ("explain", "a.jpg", "--maps", ""),
    ],
)
def test_an_empty_path_is_none(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a variable that is not set; not the folder one is in."""
    monkeypatch.chdir(tmp_path)
    done = call(*words)
    assert done.code == 2
    assert "an empty path" in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--html", "--table"])
def test_a_slash_says_folder(option: str, tmp_path: Path) -> None:
    """A file is not written there."""
    target = f"{tmp_path}/a.{option[2:].replace('table', 'csv')}/"
    done = call("audit", "isic18", "--same-lesion", option, target)
    assert done.code == 2
    assert "is a folder: give a file name" in done.err
