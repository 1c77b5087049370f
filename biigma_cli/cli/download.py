"""`biigma download`: get a data set onto this machine, or record a copy that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from biigma_cli.cli.boundary import boundary, note


@boundary
def download(
    dataset: Annotated[str, typer.Argument(help="Data set: isic18 (HAM10000).")],
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="DIR",
            help="Take an existing copy (Kaggle or Dataverse layout). Nothing is copied.",
        ),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Accept a partial copy.")
    ] = False,
) -> None:
    """Check a data set and record where it lies.

    Every image is opened, counts and classes are compared with the published ones.
    """
    from biigma_cli.cli.progress import Progress
    from biigma_cli.data.ham10000 import read_ham10000
    from biigma_cli.data.manifest import save_manifest
    from biigma_cli.errors import UsageError
    from biigma_cli.taxonomy import taxonomy

    if taxonomy(dataset).dataset != "isic18":
        raise UsageError(
            f"{dataset} cannot be recorded yet", fix="this version takes isic18 (HAM10000)"
        )
    if from_ is None:
        raise UsageError(
            "fetching from the ISIC archive is not built yet",
            fix="get HAM10000 from Harvard Dataverse (doi:10.7910/DVN/DBW86T) or Kaggle, unpack "
            "it, and run: biigma download isic18 --from FOLDER",
        )
    with Progress("checking", "images") as progress:
        manifest = read_ham10000(from_, allow_missing=allow_missing, progress=progress, warn=note)
    path = save_manifest(manifest)
    counts = ", ".join(f"{code} {n}" for code, n in manifest.class_counts().items())
    lesions = len({r.lesion_id for r in manifest.records})
    typer.echo(f"{dataset}: {len(manifest.records)} images of {lesions} lesions, all open")
    typer.echo(f"classes: {counts}")
    typer.echo(f"images:  {manifest.root} (left where they are)")
    typer.echo(f"licence: {manifest.licence}. Please cite: {manifest.citation}")
    note(f"recorded in {path}")
