"""`biigma cache`: decoded images kept on disk."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from biigma_cli.cli.boundary import boundary, note
from biigma_cli.cli.options import DataDirOption, JsonOption

app = typer.Typer(
    help="List or clear the decoded images kept on disk.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
@boundary
def show(json_: JsonOption = False, data_dir: DataDirOption = None) -> None:
    """List the decoded data sets, the largest first."""
    from biigma_cli.data.cache import cache_entries, cache_root
    from biigma_cli.storage import check_home

    check_home()
    entries = cache_entries()
    if json_:
        import json

        plain = [
            {
                "path": str(e.path), "dataset": e.dataset, "side": e.side, "rule": e.rule,
                "images": e.images, "bytes": e.size,
            }
            for e in entries
        ]  # fmt: skip
        typer.echo(json.dumps(plain, indent=2))
        return
    if not entries:
        note(f"nothing is cached in {cache_root()}")
        return
    from biigma_cli.report.tables import cache_table, render, table_width

    tty = sys.stdout.isatty()
    rows = [(e.dataset, e.side, e.rule, e.images, e.size, e.path.name) for e in entries]
    typer.echo(render(cache_table(rows), width=table_width(tty=tty), colour=tty), nl=False)
    note(f"in {cache_root()}")


@app.command("clear")
@boundary
def clear(
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Only this data set's.  [default: all]")
    ] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Remove decoded images. They are made again when they are needed."""
    from biigma_cli.data.cache import clear_cache
    from biigma_cli.storage import check_home

    check_home()
    gone = clear_cache(dataset)
    typer.echo(f"removed {len(gone)} entries, {sum(e.size for e in gone) / 1e6:.0f} MB")
