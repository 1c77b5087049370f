"""Tables for people, drawn by rich."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from biigma_cli.metrics import HALVES, HEADLINE, OVERALL, POINTS, TITLES, paper_columns
from biigma_cli.taxonomy import lesion_class

if TYPE_CHECKING:
    from biigma_cli.metrics import Assessment, Difference, Figure, Figures

FIGURE_NAMES = {name: TITLES[name] for name in HEADLINE}
ABSTENTION_COLUMNS = ("at most", "limit", "answered", "of these wrong", "missed")
SCREENING_COLUMNS = ("at least", "limit", "sensitivity", "specificity", "PPV", "missed")
NO_LESIONS = (
    "no lesions known, so images are resampled; where lesions have several images, intervals are "
    "then too narrow"
)


def table_width(*, tty: bool) -> int:
    """Columns to draw in: the terminal's, or so many that a file or a pipe gets no folded line."""
    return shutil.get_terminal_size((100, 24)).columns if tty else 10_000


def render(*items: Table | str, width: int, colour: bool) -> str:
    """Tables and lines as text."""
    file = io.StringIO()
    console = Console(
        # Without a height, rich takes the width of a dumb terminal for 80.
        file=file, width=width, height=25, force_terminal=colour,
        color_system="auto" if colour else None, highlight=False, soft_wrap=False,
    )  # fmt: skip
    for item in items:
        if isinstance(item, Table) and not fit(item, width):
            fit(item, width, crowded=True)
        console.print(Text(item) if isinstance(item, str) else item)
    return file.getvalue()


def fit(table: Table, width: int, *, crowded: bool = False) -> bool:
    """Give each column a width so that nothing is cut off: what is too wide folds.

    Rich would lose cells here, or columns. The widest give way first, none below its `min_width`
    (default 8), and those with `no_wrap` not at all; with `crowded` all may, down to 1.

    Args:
        table: of `box.SIMPLE_HEAD` without `pad_edge`, and of texts.

    Returns:
        Whether it fits; if not, nothing was changed.
    """
    natural = [_natural(column) for column in table.columns]
    least = [
        1 if crowded else n if c.no_wrap else min(n, c.min_width or 8)
        for c, n in zip(table.columns, natural, strict=True)
    ]
    _, right, _, left = table.padding
    room = width - 2 - (left + 1 + right) * (len(natural) - 1)
    if sum(natural) <= room or sum(least) > room:
        return sum(natural) <= room
    widths = natural
    while sum(widths) > room:
        widest = max((i for i, w in enumerate(widths) if w > least[i]), key=widths.__getitem__)
        widths[widest] -= 1
    for column, w in zip(table.columns, widths, strict=True):
        column.width, column.no_wrap, column.overflow = w, False, "fold"
    return True


def _natural(column: Column) -> int:
    """Width of a column in which nothing folds."""
    texts = [str(cell) for cell in (column.header, *column.cells)]
    widest = max(cell_len(line) for text in texts for line in text.split("\n"))
    widest = max(widest, column.min_width or 1)
    return min(widest, column.max_width or widest)


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


def assessment_tables(
    assessed: Assessment,
    *,
    title: str,
    binary: bool = False,
    difference: Difference | None = None,
    against: str = "",
) -> list[Table]:
    """All figures, the most important first; each table fits 80 columns.

    Args:
        title: of the first table.
        binary: the first class is asked for, the second is all others.
        difference: to the model `against`.
    """
    tables = [figure_table({TITLES[n]: assessed.overall[n] for n in OVERALL}, title=title)]
    if difference is not None:
        apart = {TITLES[n]: difference.overall[n] for n in OVERALL}
        tables.append(
            figure_table(apart, title=f"minus {against} (paired differences)", signed=True)
        )
    asked = assessed.codes[0] if binary else "MEL"
    if asked in assessed.codes and asked not in assessed.figures.absent:
        shown = (*HALVES, *POINTS) if binary else POINTS
        points = {TITLES[n]: assessed.per_class[asked][n] for n in shown}
        tables.append(figure_table(points, title=f"{asked} against the rest"))
    return [*tables, *class_figures_tables(assessed), confusion_table(assessed.figures)]


def paper_table(assessed: Assessment) -> Table:
    """The columns of the paper's Table 1 for a binary task."""
    code = assessed.codes[0]
    names = {
        "f1": "F1, macro",
        "accuracy": "accuracy",
        "recall": "recall, macro",
        "precision": "precision, macro",
        "sensitivity": f"sensitivity to {code}",
        "specificity": f"specificity to {code}",
        "auc": f"AUC of {code}",
    }
    columns = {names[key]: figure for key, figure in paper_columns(assessed).items()}
    return figure_table(columns, title="columns of the paper's Table 1")


def remarks(assessed: Assessment) -> list[str]:
    """What the reader must know of how it was judged, a line each."""
    told = []
    if assessed.left_out:
        told.append(f"{assessed.left_out} images of weight 0 are left out")
    if assessed.figures.absent:
        absent = ", ".join(assessed.figures.absent)
        told.append(f"no image of {absent}: macro averages are over the other classes")
    if assessed.ties:
        told.append(
            f"images whose top score two classes share: {assessed.ties}; the ISIC score counts "
            "them as wrong, the other figures take the first of the classes"
        )
    if assessed.rare:
        told.append(
            f"few images of {', '.join(assessed.rare)}: some resamples have none, and their macro "
            "averages are over the other classes"
        )
    return told


def figure_table(figures: Mapping[str, Figure], *, title: str, signed: bool = False) -> Table:
    """Figures by what they are called, with their intervals; `signed` for differences."""
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right")
    form = "+.4f" if signed else ".4f"
    for name, figure in figures.items():
        if figure.value is None:
            table.add_row(Text(name), "-", figure.why)
        elif figure.low is None:
            table.add_row(Text(name), f"{figure.value:{form}}", "")
        else:
            span = f"{figure.low:{form}} .. {figure.high:{form}}"
            table.add_row(Text(name), f"{figure.value:{form}}", span)
    return table


def abstention_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What declining to answer does, from `judge.abstention.Abstention.to_dict`."""
    title = (
        "can't say: answers only from a limit on (predict --max-error)\n"
        "at most: errors asked for; missed: malignant, and called benign"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ABSTENTION_COLUMNS:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*map(Text, abstention_cells(row)))
    return table


def abstention_cells(row: Mapping[str, Any]) -> list[str]:
    """A row of `ABSTENTION_COLUMNS`."""
    threshold = row["threshold"]
    missed = f"{row['missed']} of {row['malignant']}" if row["malignant"] else "-"
    limit = "none" if threshold is None else f"{threshold:.2f}"
    return [_asked(row["max_error"]), limit, _share(row["coverage"]), _share(row["error"]), missed]


def malignancy_title(found: Mapping[str, Any]) -> str:
    """Of `judge.screening.Malignancy.to_dict`: what was told apart, and how well."""
    auc = found["auc"]
    span = "" if auc["low"] is None else f" ({auc['low']:.3f}-{auc['high']:.3f})"
    out = (found["flagged_malignant"], found["flagged_benign"])
    but = f", without {out[0]} and {out[1]} flagged as no dermoscopy" if any(out) else ""
    return (
        f"malignant ({found['malignant']}) against benign ({found['benign']}){but}: "
        f"AUC {auc['value']:.3f}{span}"
    )


def screening_table(found: Mapping[str, Any]) -> Table | str:
    """What calling images suspicious does, from `judge.screening.Malignancy.to_dict`."""
    if not found["limits"]:
        return malignancy_title(found) + "\n"
    title = (
        f"{malignancy_title(found)}\nsuspicious from a limit on (predict --min-sensitivity)\n"
        "at least: sensitivity asked for; missed: malignant, and not suspicious"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in SCREENING_COLUMNS:
        table.add_column(name, justify="right")
    for row in found["limits"]:
        table.add_row(*map(Text, screening_cells(row)))
    return table


def screening_cells(row: Mapping[str, Any]) -> list[str]:
    """A row of `SCREENING_COLUMNS`."""
    asked, threshold = _asked(row["min_sensitivity"]), row["threshold"]
    if threshold is None:
        return [asked, "none", "-", "-", "-", "-"]
    shares = [_share(row[name]) for name in ("sensitivity", "specificity", "ppv")]
    return [asked, f"{threshold:g}", *shares, str(row["missed"])]


def _asked(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _share(figure: Mapping[str, Any]) -> str:
    """In percent, with its interval."""
    if figure["value"] is None:
        return "-"
    span = ""
    if figure["low"] is not None:
        span = f" ({100 * figure['low']:.1f}-{100 * figure['high']:.1f})"
    return f"{100 * figure['value']:.1f}%{span}"


def class_figures_tables(assessed: Assessment) -> list[Table]:
    """A row per class, each figure over its interval; in two tables, which fit 80 columns."""
    tables = []
    for title, names in (
        ("per class, answers", ("sensitivity", "specificity", "precision", "f1")),
        ("per class, against the rest", ("auc", "ap")),
    ):
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        longest = max(len(c.code) for c in assessed.figures.per_class)
        table.add_column("class", overflow="fold", no_wrap=longest <= 12)
        if "auc" in names:  # where there is room
            table.add_column("name", overflow="fold", max_width=29)
        table.add_column("images", justify="right", no_wrap=True)
        for name in names:
            table.add_column(TITLES[name], justify="right")
        for c in assessed.figures.per_class:
            known = lesion_class(c.code).name
            words = [Text(known if known != c.code else "")] if "auc" in names else []
            cells = [_cell(assessed.per_class[c.code][name]) for name in names]
            table.add_row(Text(c.code), *words, str(c.support), *cells)
        tables.append(table)
    return tables


def _cell(figure: Figure) -> Text:
    if figure.value is None:
        return Text("-")
    span = "" if figure.low is None else f"\n{figure.low:.3f}.. {figure.high:.3f}"  # may fold
    return Text.assemble(f"{figure.value:.3f}", (span, "dim"))


def confusion_table(figures: Figures) -> Table:
    """Confusion matrix: rows are the truth."""
    codes = [c.code for c in figures.per_class]
    table = Table(
        title="confusion matrix (rows: truth, columns: answer)", title_justify="left",
        box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    table.add_column("")
    for code in codes:
        table.add_column(Text(code), justify="right")
    for i, (code, row) in enumerate(zip(codes, figures.confusion, strict=True)):
        cells = [Text(str(n), style="bold" if i == j else "") for j, n in enumerate(row)]
        table.add_row(Text(code), *cells)
    return table
