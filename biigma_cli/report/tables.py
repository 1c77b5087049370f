"""Tables for people, drawn by rich."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from biigma_cli.metrics import Figures, Interval
    from biigma_cli.report.records import Prediction

FIGURE_NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "macro_recall": "balanced accuracy (macro-recall)",
    "macro_precision": "macro-precision",
}


def table_width(*, tty: bool) -> int:
    """Columns to draw in: the terminal's, or so many that a file or a pipe gets no folded line."""
    return shutil.get_terminal_size((100, 24)).columns if tty else 10_000


def render(*items: Table | str, width: int, colour: bool) -> str:
    """Tables and lines as text."""
    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=colour, color_system="auto" if colour else None,
        highlight=False, soft_wrap=False,
    )  # fmt: skip
    for item in items:
        console.print(Text(item) if isinstance(item, str) else item)
    return file.getvalue()


def prediction_table(
    items: Sequence[Prediction],
    names: Mapping[str, str],
    malignant: Mapping[str, bool | None],
    topk: int,
) -> Table:
    """One line per file: the answer, its probability, and the runners-up."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    # Nothing is ever cut off: names fold, and the minimum widths keep a long one from taking all.
    table.add_column("file", overflow="fold", min_width=16)
    table.add_column("answer", overflow="fold", min_width=20)
    table.add_column("p", justify="right", no_wrap=True)
    table.add_column("malignant", justify="right", no_wrap=True)
    if topk > 1:
        table.add_column("next", overflow="fold", min_width=14)
    for item in items:
        if item.probabilities is None:
            table.add_row(Text(item.path), Text(item.error or "", style="red"))
            continue
        (code, p), *rest = item.top(topk)
        style = "bold red" if malignant[code] else "bold"
        row = [
            Text(item.path),
            Text.assemble((code, style), f"  {names[code]}"),
            Text(f"{p:.1%}"),
            Text("?" if item.malignant is None else f"{item.malignant:.1%}"),
        ]
        if topk > 1:
            row.append(Text(", ".join(f"{c} {q:.1%}" for c, q in rest), style="dim"))
        table.add_row(*row)
    return table


def dataset_table(rows: Sequence[tuple[str, str, int | None, int | None, str, str]]) -> Table:
    """Data sets: name, state, images, missing, classes, licence."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("data set", no_wrap=True)
    table.add_column("state", overflow="fold", min_width=8)
    table.add_column("images", justify="right", no_wrap=True)
    table.add_column("missing", justify="right", no_wrap=True)
    table.add_column("classes", overflow="fold", min_width=16)
    table.add_column("licence", overflow="fold", min_width=8)
    for name, state, images, missing, classes, licence in rows:
        style = "" if images is not None else "dim"
        counts = ["" if n is None else f"{n:,}" for n in (images, missing)]
        table.add_row(*map(Text, (name, state, *counts, classes, licence)), style=style)
    return table


def cache_table(rows: Sequence[tuple[str, int, str, int, int, str]]) -> Table:
    """Decoded data sets: name, side, rule, images, bytes, folder."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("data set", overflow="fold")
    table.add_column("side", justify="right")
    table.add_column("resize")
    table.add_column("images", justify="right")
    table.add_column("MB", justify="right")
    table.add_column("folder", overflow="fold")
    for dataset, side, rule, images, size, folder in rows:
        cells = (dataset, str(side), rule, f"{images:,}", f"{size / 1e6:,.0f}", folder)
        table.add_row(*map(Text, cells))
    return table


def headline_table(intervals: Mapping[str, Interval], *, title: str) -> Table:
    """The headline figures with their intervals."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right")
    for key, interval in intervals.items():
        span = f"{interval.low:+.4f} .. {interval.high:+.4f}"
        value = f"{interval.value:+.4f}"
        if interval.low >= 0 and not title.startswith("difference"):
            span, value = span.replace("+", ""), value.replace("+", "")
        table.add_row(FIGURE_NAMES[key], value, span)
    return table


def class_table(figures: Figures, names: Mapping[str, str]) -> Table:
    """Precision, recall and F1 of each class."""
    table = Table(title="per class", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("class", "name"):
        table.add_column(column)
    for column in ("images", "precision", "recall", "F1"):
        table.add_column(column, justify="right")
    for c in figures.per_class:
        values = (c.precision, c.recall, c.f1) if c.support else ()
        table.add_row(c.code, names[c.code], str(c.support), *(f"{v:.4f}" for v in values))
    return table


def confusion_table(figures: Figures) -> Table:
    """Confusion matrix: rows are the truth."""
    codes = [c.code for c in figures.per_class]
    table = Table(
        title="confusion matrix (rows: truth, columns: answer)", title_justify="left",
        box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    table.add_column("")
    for code in codes:
        table.add_column(code, justify="right")
    for i, (code, row) in enumerate(zip(codes, figures.confusion, strict=True)):
        cells = [Text(str(n), style="bold" if i == j else "") for j, n in enumerate(row)]
        table.add_row(code, *cells)
    return table
