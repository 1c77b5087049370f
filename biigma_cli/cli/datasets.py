"""`biigma datasets`: what is on this machine, and a user's own data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from biigma_cli.cli.boundary import boundary, note
from biigma_cli.cli.options import AllowMissingOption, DataDirOption, JsonOption, given_path

if TYPE_CHECKING:
    from biigma_cli.data.datasets import Status

app = typer.Typer(
    help="List the data sets; add your own.",
    invoke_without_command=True,
    rich_markup_mode=None,
)


@app.callback()
@boundary
def show(
    context: typer.Context,
    json_: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """List the data sets: what is here, what is missing, classes, counts, licence.

    'biigma datasets add NAME PATH' records your own images, 'biigma datasets remove NAME' forgets
    a record.
    """
    if context.invoked_subcommand is not None:
        if json_ or data_dir is not None:
            from biigma_cli.errors import UsageError

            raise UsageError(
                f"--json and --data-dir are not for before {context.invoked_subcommand}",
                fix=f"write: biigma datasets {context.invoked_subcommand} ... --data-dir DIR",
            )
        return
    from biigma_cli.data.datasets import statuses
    from biigma_cli.storage import check_home

    check_home()
    found = statuses()
    if json_:
        import json

        typer.echo(json.dumps([_plain(s) for s in found], indent=2))
        return
    from biigma_cli.report.tables import dataset_table, render, table_width

    tty = sys.stdout.isatty()
    rows = [
        (
            s.name,
            s.problem or s.state,
            len(s.manifest.records) if s.manifest else None,
            s.manifest.missing if s.manifest else None,
            ", ".join(f"{c} {n}" for c, n in s.manifest.class_counts().items())
            if s.manifest
            else "",
            s.manifest.licence if s.manifest else "",
        )
        for s in found
    ]
    typer.echo(render(dataset_table(rows), width=table_width(tty=tty), colour=tty), nl=False)
    for status in found:
        if status.manifest is not None:
            typer.echo(f"{status.name}: {status.manifest.root}")
    if not any(s.manifest for s in found):
        note("none is here yet: biigma download isic18")


@app.command("add")
@boundary
def add(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            parser=given_path,
            help="A folder with one folder per class (or train/val/test with a folder per class), "
            "or a CSV with image, label and, if you like, lesion_id, patient_id, split, mask, age, "
            "sex, site.",
        ),
    ],
    classes: Annotated[
        str | None, typer.Option("--classes", help="Classes in their order, separated by commas.")
    ] = None,
    licence: Annotated[str, typer.Option("--licence", help="Licence of the images.")] = "unknown",
    citation: Annotated[str, typer.Option("--citation", help="What to cite.")] = "",
    allow_missing: AllowMissingOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Check your own images and record where they lie. Nothing is copied."""
    from biigma_cli.cli.download import show_recorded
    from biigma_cli.cli.progress import Progress
    from biigma_cli.data.custom import read_custom
    from biigma_cli.errors import UsageError

    codes = [c for c in (classes or "").split(",") if c.strip()]
    if classes is not None and not codes:
        raise UsageError("--classes names no class", fix="write them as MEL,NV, or leave it out")
    with Progress("checking", "images") as progress:
        manifest = read_custom(
            name,
            source,
            classes=codes,
            licence=licence,
            citation=citation,
            allow_missing=allow_missing,
            progress=progress,
            warn=note,
        )
    show_recorded(manifest)


@app.command("remove")
@boundary
def remove(
    name: Annotated[str, typer.Argument(help="A recorded data set.")],
    data_dir: DataDirOption = None,
) -> None:
    """Forget a data set. Its images stay where they are."""
    from biigma_cli.data.datasets import forget

    typer.echo(f"removed {forget(name)}; the images were left alone")


def _plain(status: Status) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "name": status.name,
        "title": status.title,
        "state": status.state,
        "problem": status.problem,
    }
    manifest = status.manifest
    if manifest is not None:
        plain |= {
            "root": str(manifest.root),
            "images": len(manifest.records),
            "missing": manifest.missing,
            "classes": manifest.class_counts(),
            "parts": {
                part: n
                for part in ("train", "val", "test")
                if (n := sum(r.part == part for r in manifest.records))
            },
            "licence": manifest.licence,
            "citation": manifest.citation,
            "data_hash": manifest.data_hash,
        }
    return plain
