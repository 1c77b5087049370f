"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Data folder.  [default: $BIIGMA_HOME]"),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder of all runs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="As JSON on stdout.")]
AllowMissingOption = Annotated[bool, typer.Option("--allow-missing", help="Accept a partial copy.")]
InputCheckOption = Annotated[
    bool,
    typer.Option(
        "--input-check/--no-input-check",
        help='Answer "not dermoscopy" where an image is unlike the training images.',
    ),
]
