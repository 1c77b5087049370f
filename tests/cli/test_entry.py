"""How the process of a command ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
@pytest.mark.parametrize("arguments", ["predict gone.jpg", "explain gone.jpg", "models resnet"])
def test_standard_error_that_is_closed(arguments: str) -> None:
    """What would have been said there is lost, and is not taken for a result."""
    command = f"{sys.executable} -m biigma_cli {arguments} --model none 2>&-"
    if arguments.startswith("models"):
        command = command.replace(" --model none", "")
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (3, b"")
