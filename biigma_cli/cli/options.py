"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def given_path(text: str) -> Path:
    """A path from the command line; an empty one, as of a variable that is not set, is none.

    `Path` would take it for the folder one is in.
    """
    if not text:
        raise typer.BadParameter("an empty path; a variable that is not set?")
    return Path(text)


def file_path(text: str) -> Path:
    """`given_path` of a file that is to be written; a slash at its end, which `Path` drops, says
    that a folder is meant.
    """
    if text.endswith(("/", os.sep)):
        raise typer.BadParameter(f"{text} is a folder: give a file name")
    return given_path(text)


DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        parser=given_path,
        help="Data folder.  [default: $BIIGMA_HOME]",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
RunsOption = Annotated[
    Path, typer.Option("--runs", parser=given_path, metavar="DIR", help="Folder of all runs.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="As JSON on stdout.")]
AllowMissingOption = Annotated[bool, typer.Option("--allow-missing", help="Accept a partial copy.")]
KeepBorderOption = Annotated[
    bool,
    typer.Option(
        "--keep-border",
        help="Take pictures as they are. Else a border of one colour is left out, and the black "
        "corners beside a round field are filled.",
    ),
]
InputCheckOption = Annotated[
    bool,
    typer.Option(
        "--input-check/--no-input-check",
        help='Answer "not dermoscopy" where an image is unlike the training images.',
    ),
]
