"""Help of every command, the version, and that none of it loads torch."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import typer.main
from typer.testing import CliRunner

from biigma_cli import __version__
from biigma_cli.cli.app import app, command_line
from tests.conftest import call

COMMANDS = [
    [], ["predict"], ["download"], ["train"], ["eval"], ["info"], ["export"], ["export", "onnx"],
    ["audit"], ["datasets"], ["datasets", "add"], ["datasets", "remove"], ["cache"],
    ["cache", "list"], ["cache", "clear"], ["score"], ["models"], ["runs"], ["ablate"], ["explain"],
    ["doctor"], ["average"], ["join"],
]  # fmt: skip


def squeezed(text: str) -> str:
    """Letters and signs only: no boxes, no white space."""
    return re.sub(r"[\s\u2500-\u257f]", "", text)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c) or "root")
def test_help_shows_every_option(command: list[str]) -> None:
    """`--help` ends well and holds each option's name and help in full."""
    wide = {"COLUMNS": "240", "NO_COLOR": "1"}
    shown = CliRunner().invoke(app, [*command, "--help"], env=wide)
    assert shown.exit_code == 0
    text = squeezed(shown.stdout)
    node = typer.main.get_command(app)
    for name in command:
        node = node.commands[name]  # type: ignore[attr-defined]
    assert node.help
    for parameter in node.params:
        if parameter.name == "help" or parameter.param_type_name != "option":
            continue
        assert any(option in text for option in parameter.opts), parameter.name
        told = getattr(parameter, "help", None)
        assert told, f"{parameter.name} has no help"
        assert squeezed(told) in text, parameter.name


@pytest.mark.parametrize("command", COMMANDS[1:], ids=" ".join)
def test_a_command_alone(command: list[str]) -> None:
    """What `biigma` starts with a command named first is that command, in the same words."""
    alone = command_line([*command, "--help"])
    assert len(alone.registered_commands) + len(alone.registered_groups) == 1
    each = [CliRunner().invoke(a, [*command, "--help"], prog_name="biigma") for a in (app, alone)]
    assert each[0].stdout == each[1].stdout
    assert each[0].exit_code == each[1].exit_code == 0


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["nonsense"], ["--", "info"]])
def test_all_commands(arguments: list[str]) -> None:
    """Anything but a command first has them all to choose from."""
    assert command_line(arguments) is app


def test_every_command_is_tested() -> None:
    """A new command must come into the list above."""
    root = typer.main.get_command(app)
    names = set(root.commands)  # type: ignore[attr-defined]
    assert names == {c[0] for c in COMMANDS if c}


def test_version() -> None:
    """The version, and nothing else."""
    assert call("--version").out == f"biigma {__version__}\n"


def test_no_arguments_show_help() -> None:
    """Without a command there is help, not an error message."""
    done = call()
    text = done.out + done.err
    assert "Usage" in text
    assert "predict" in text


def test_unknown_command() -> None:
    """An unknown command is a usage error."""
    done = call("classify")
    assert done.code == 2
    assert "classify" in done.err


def test_help_loads_no_torch() -> None:
    """Help of every command in a fresh process, without torch or ONNX Runtime."""
    script = f"""
import sys
from biigma_cli.__main__ import main
for command in {COMMANDS!r}:
    sys.argv = ["biigma", *command, "--help"]
    try:
        main()
    except SystemExit as end:
        assert end.code == 0, command
heavy = {{"torch", "onnxruntime", "onnx", "sklearn"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
