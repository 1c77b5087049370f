"""`biigma runs`: list the runs there are, and compare some of them."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from biigma_cli.cli.boundary import boundary, note
from biigma_cli.cli.options import JsonOption, RunsOption

if TYPE_CHECKING:
    from rich.table import Table

    from biigma_cli.report.runs import RunInfo


@boundary
def show(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Runs to compare: names below --runs, or folders."),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            metavar="KEY",
            help="date, name, epochs, seconds, or a validation figure: macro_f1, accuracy, "
            "macro_recall, log_loss. The best or newest comes last.  "
            "[default: date; as given where runs are named]",
        ),
    ] = None,
    curves: Annotated[
        Path | None,
        typer.Option("--curves", metavar="FILE", help="Draw the named runs' curves: .svg or .png."),
    ] = None,
    json_: JsonOption = False,
    runs: RunsOption = Path("runs"),
) -> None:
    """List the runs, or compare the named ones.

    Compared are their figures, and the settings that differ. Figures of the list are of the
    validation part, at the epoch chosen there. Those of the test part are shown where runs are
    compared and 'biigma eval' has judged them. Runs on different data or splits are told apart:
    their figures do not compare.
    """
    from biigma_cli.errors import UsageError
    from biigma_cli.report.runs import SORT_KEYS, groups_of_runs, list_runs, sort_runs

    if sort is not None and sort not in SORT_KEYS:
        raise UsageError(f"unknown --sort {sort!r}", fix=f"choose one of: {', '.join(SORT_KEYS)}")
    if names:
        _compare(_named(names, runs), sort, curves, json_=json_)
        return
    if curves is not None:
        raise UsageError(
            "--curves needs the runs to draw", fix=f"write: biigma runs A B --curves {curves}"
        )
    found = sort_runs(list_runs(runs), sort or "date")
    groups = groups_of_runs(runs)
    if json_:
        _say_json([run.to_dict() for run in found])
    elif found:
        _say(_list_table(found))
    elif not groups:
        note(f"no run in {runs} yet: biigma train")
    for folder, inside in groups.items():
        _tell_group(folder, inside)
    for run in found:
        if run.problem:
            note(f"{run.path}: {run.problem}")
    _warn(found)


def _tell_group(folder: Path, inside: Sequence[RunInfo]) -> None:
    """Say on stderr what a folder of runs is, and how to list them."""
    ablation = all(re.fullmatch(r".+-s\d+", run.name) for run in inside)  # ROW-sSEED
    finished = sum(run.finished for run in inside)
    note(
        f"{folder}: {'an ablation' if ablation else 'a folder of runs'}, {finished} of "
        f"{len(inside)} runs finished; list them: "
        f"{shlex.join(['biigma', 'runs', '--runs', str(folder)])}"
    )


def _compare(found: list[RunInfo], sort: str | None, curves: Path | None, *, json_: bool) -> None:
    from biigma_cli.errors import DataError, PartialFailure
    from biigma_cli.report.runs import config_differences, incomparable, sort_runs
    from biigma_cli.report.style import picture_kind
    from biigma_cli.storage import check_writable

    if curves is not None:
        picture_kind(curves, "curves.svg")
        check_writable(curves)
    if sort is not None:
        found = sort_runs(found, sort)
    good = [run for run in found if run.settings]
    if not good:
        told = "; ".join(f"{run.path}: {run.problem}" for run in found)
        raise DataError(told, fix="name run folders made by biigma train")
    differences = config_differences(good)
    if json_:
        _say_json(
            {
                "comparable": not incomparable(good),
                "warnings": incomparable(good),
                "runs": [run.to_dict() for run in found],
                "differences": {
                    key: {run.name: run.settings.get(key) for run in good}
                    for key, *_ in differences
                },
            }
        )
    else:
        _say(*_comparison_tables(good, differences))
    _warn(good)
    if curves is not None:
        from biigma_cli.report.curves import compare_curves

        compare_curves([run.path for run in good], curves, names=[run.name for run in good])
        note(f"curves: {curves}")
    troubled = [run for run in found if run.problem]
    if troubled:
        raise PartialFailure(
            f"{len(found) - len(troubled)} runs read, {len(troubled)} damaged: "
            + "; ".join(f"{run.name}: {run.problem}" for run in troubled),
            fix="put the files back, or leave these runs out",
        )


def _named(names: Sequence[str], runs: Path) -> list[RunInfo]:
    """The runs by name or path, each once. Raises `UsageError` naming all that are not there."""
    import dataclasses
    import difflib

    from biigma_cli.errors import UsageError
    from biigma_cli.report.runs import read_run

    paths: dict[Path, str] = {}
    absent = []
    for name in names:
        path = next((p for p in (runs / name, Path(name)) if p.is_dir()), None)
        if path is None:
            absent.append(name)
        else:
            paths.setdefault(path.resolve(), str(path))
    if absent:
        there = [p.name for p in runs.iterdir() if p.is_dir()] if runs.is_dir() else []
        near = [n for a in absent for n in difflib.get_close_matches(a, there, n=1)]
        raise UsageError(
            f"no run {', '.join(absent)}, neither in {runs} nor as a folder",
            fix=f"did you mean {', '.join(near)}?" if near else "see which there are: biigma runs",
        )
    found = [read_run(Path(path)) for path in paths.values()]
    folders = [run.name for run in found]
    return [
        dataclasses.replace(run, name=str(run.path)) if folders.count(run.name) > 1 else run
        for run in found
    ]


def _say(*items: Table | str) -> None:
    from biigma_cli.report.tables import render

    typer.echo(render(*items, width=_width(), colour=sys.stdout.isatty()), nl=False)


def _width() -> int:
    from biigma_cli.report.tables import table_width

    return table_width(tty=sys.stdout.isatty())


def _say_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=2, default=str))


def _warn(found: Sequence[RunInfo]) -> None:
    """Say on stderr what makes figures of these runs differ in meaning."""
    from biigma_cli.report.runs import incomparable

    for reason in incomparable([run for run in found if run.epochs_done]):
        note(f"warning: {reason}")


def _empty_table(title: str = "") -> Table:
    from rich import box
    from rich.table import Table

    return Table(
        title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
        pad_edge=False,
    )  # fmt: skip


def _list_table(found: Sequence[RunInfo]) -> Table:
    from rich.text import Text

    from biigma_cli.cli.progress import clock

    kinds = {_data(run) for run in found if run.settings}
    several = len(kinds) > 1
    title = "validation part" + (f" of {kinds.pop()}" if len(kinds) == 1 else "")
    table = _empty_table(f"{title}, at the best epoch")
    table.add_column("run", overflow="fold", min_width=12)
    if several:
        table.add_column("data", overflow="fold", min_width=6)
    for column in ("macro-F1", "accuracy", "best", "epochs", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for run in found:
        epochs = str(run.epochs_done)
        if run.epochs_planned is not None and run.epochs_done != run.epochs_planned:
            epochs += f"/{run.epochs_planned}"
        cells = [
            run.name,
            *([_data(run)] if several else []),
            _figure(run.validation.get("macro_f1")),
            _figure(run.validation.get("accuracy")),
            str(run.best_epoch or ""),
            epochs if run.settings else "",
            "" if run.seconds is None else clock(run.seconds),
            "damaged" if run.problem else run.state,
        ]
        table.add_row(*map(Text, cells), style="" if run.finished and not run.problem else "dim")
    return table


def _comparison_tables(
    found: Sequence[RunInfo], differences: Sequence[tuple[str, ...]]
) -> list[Table | str]:
    """Figures, then settings; in several blocks where the runs do not fit side by side."""
    from rich.text import Text

    rows = _comparison_rows(found)
    items: list[Table | str] = []
    for title, lines in (("", rows), ("settings that differ", differences)):
        if not lines:
            continue
        narrowest = 12 if title else 14  # no figure is ever folded
        label = max(len(line[0]) for line in lines)
        column = max(narrowest, min(20, max(len(run.name) for run in found)))
        count = max(1, (_width() - label - 2) // (column + 2))
        for start in range(0, len(found), count):
            table = _empty_table(title)
            table.add_column("key" if title else "run", no_wrap=True)
            for run in found[start : start + count]:
                table.add_column(
                    Text(run.name),
                    overflow="fold",
                    min_width=narrowest,
                    justify="left" if title else "right",
                )
            for name, *cells in lines:
                table.add_row(*map(Text, (name, *cells[start : start + count])))
            items.append(table)
    if len(found) > 1 and not differences:
        items.append("settings: no difference")
    return items


def _comparison_rows(found: Sequence[RunInfo]) -> list[tuple[str, ...]]:
    from biigma_cli.cli.progress import clock
    from biigma_cli.report.tables import FIGURE_NAMES

    names = {**FIGURE_NAMES, "macro_recall": "balanced accuracy", "log_loss": "log loss"}
    shown = ("macro_f1", "accuracy", "macro_recall", "macro_precision", "log_loss")

    def best(run: RunInfo) -> str:
        return f"{run.best_epoch or '-'} of {run.epochs_done}"

    def state(run: RunInfo) -> str:
        if run.finished or run.epochs_planned is None:
            return run.state
        return f"{run.state}, {run.epochs_done}/{run.epochs_planned}"

    rows: list[tuple[str, ...]] = [
        ("data", *map(_data, found)),
        ("split hash", *(run.split_hash[:12] or "unknown" for run in found)),
        ("state", *map(state, found)),
        ("best epoch", *map(best, found)),
        ("time", *("-" if run.seconds is None else clock(run.seconds) for run in found)),
        ("parameters", *(f"{run.parameters:,}" if run.parameters else "-" for run in found)),
        ("validation, at that epoch", *("" for _ in found)),
    ]
    for key in shown:
        cells = [_figure(run.validation.get(key)) for run in found]
        if any(cells):
            rows.append((f"  {names[key]}", *(cell or "-" for cell in cells)))
    if not any("test" in run.judged for run in found):
        return rows
    rows.append(("test, with 95% intervals", *("" for _ in found)))
    tests = [run.judged.get("test") for run in found]
    rows.append(("  images", *(str(t.n) if t else "-" for t in tests)))
    for key in shown:
        cells = [_figure(t.figures.get(key)) if t else "" for t in tests]
        if any(cells):
            rows.append((f"  {names[key]}", *(cell or "-" for cell in cells)))
            spans = [t.intervals.get(key) if t else None for t in tests]
            rows.append(("", *(f"{s[0]:.4f}..{s[1]:.4f}" if s else "" for s in spans)))
    return rows


def _data(run: RunInfo) -> str:
    return f"{run.dataset}, {run.settings.get('data.protocol')}" if run.settings else ""


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
