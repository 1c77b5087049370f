"""The Typer app. Each command's module imports its machinery inside its function."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Annotated

import typer

from biigma_cli import __version__
from biigma_cli.cli import (
    ablate,
    audit,
    average,
    cache,
    datasets,
    doctor,
    download,
    evaluate,
    explain,
    export,
    info,
    join,
    models,
    predict,
    runs,
    score,
    train,
)

app = typer.Typer(
    name="biigma",
    help="BIIGMA-Net for dermoscopy: get data, train, judge, export, predict. "
    "For research; not a medical device.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: rich costs as much time as everything else together
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"biigma {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    del version


app.command("predict")(predict.predict)
app.command("download")(download.download)
app.add_typer(datasets.app, name="datasets")
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("explain")(explain.explain)
app.command("average")(average.average)
app.command("join")(join.join)
app.command("runs")(runs.show)
app.command("ablate")(ablate.ablate)
app.command("score")(score.score)
app.command("audit")(audit.audit)
app.command("models")(models.models)
app.command("info")(info.info)
app.command("doctor")(doctor.doctor)
app.add_typer(export.app, name="export")
app.add_typer(cache.app, name="cache")


def command_line(arguments: Sequence[str]) -> typer.Typer:
    """The app; where the first argument is a command, with that one alone.

    Typer works out the options of every command it has, which takes longer than an answer.
    """
    first = arguments[0] if arguments else ""
    commands = [c for c in app.registered_commands if c.name == first]
    groups = [g for g in app.registered_groups if g.name == first]
    if not commands and not groups:
        return app
    alone = copy.copy(app)
    alone.registered_commands, alone.registered_groups = commands, groups
    return alone
