"""`biigma doctor`: what is wrong with this installation, and how to mend it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from biigma_cli.cli.boundary import boundary, say_error
from biigma_cli.cli.options import DataDirOption, JsonOption
from biigma_cli.cli.progress import takes_escapes
from biigma_cli.errors import EXIT_FAILURE, BiigmaError

if TYPE_CHECKING:
    from biigma_cli.runtime.doctor import Check

COLOURS = {"ok": "32", "warning": "33", "problem": "1;31"}


def doctor(json_: JsonOption = False, data_dir: DataDirOption = None) -> None:
    """Look for what is wrong here: packages, GPU, models, data.

    Looked at are settings, too. Each check ends in ok, warning or problem, with the remedy. The
    exit code is 1 where there is a problem, else 0. No connection is opened.
    """
    try:
        _doctor(json_=json_, data_dir=data_dir)
    except ImportError as error:  # of what every command needs
        say_error(
            BiigmaError(
                f"biigma cannot start: {error}", fix="run: pip install --force-reinstall biigma"
            )
        )
        raise typer.Exit(EXIT_FAILURE) from None


@boundary
def _doctor(json_: bool, data_dir: Path | None) -> None:
    import contextlib

    from biigma_cli import __version__
    from biigma_cli.runtime.doctor import FORMAT, diagnose

    checks: list[Check] = []
    with contextlib.closing(diagnose()) as found:
        for check in found:
            checks.append(check)
            if not json_:
                _say(_text(check))
    counts = {state: sum(c.state == state for c in checks) for state in COLOURS}
    if json_:
        import dataclasses
        import json

        whole = {
            "format": FORMAT,
            "biigma": __version__,
            "healthy": not counts["problem"],
            "counts": counts,
            "checks": [dataclasses.asdict(c) for c in checks],
        }
        typer.echo(json.dumps(whole, indent=2))
    else:
        warnings = "warning" if counts["warning"] == 1 else "warnings"
        problems = "problem" if counts["problem"] == 1 else "problems"
        _say(f"\n{counts['ok']} ok, {counts['warning']} {warnings}, {counts['problem']} {problems}")
    if counts["problem"]:
        raise typer.Exit(EXIT_FAILURE)


def _text(check: Check) -> str:
    state = f"{check.state:<8}"
    if takes_escapes(sys.stdout) and "NO_COLOR" not in os.environ:
        state = f"\033[{COLOURS[check.state]}m{state}\033[0m"
    lines = [f"{state} {check.name}: {check.found}"]
    lines += [f"{'':9}why: {check.why}"] if check.why else []
    lines += [f"{'':9}fix: {check.fix}"] if check.fix else []
    return "\n".join(lines)


def _say(text: str) -> None:
    """To stdout, whatever it can show: a path need not be text."""
    encoding = sys.stdout.encoding or "utf-8"
    typer.echo(text.encode(encoding, "backslashreplace").decode(encoding))
