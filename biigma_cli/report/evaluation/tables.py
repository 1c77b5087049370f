"""Published results and subgroups as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from biigma_cli.metrics import Assessment, Figure
from biigma_cli.metrics.subgroups import ONE_CLASS, Subgroup
from biigma_cli.report.published import Published


def published_table(
    assessed: Assessment, rows: Sequence[Published], *, protocol: str, binary: bool
) -> Table:
    """Ours first, then the published results, each with its protocol; fits 80 columns.

    Args:
        protocol: ours, in words.
        binary: the first class is asked for, the second is all others.
    """
    table = Table(
        title="published results, each with its protocol", title_justify="left",
        box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    table.add_column("method and protocol", overflow="fold", max_width=38 if binary else 46)
    heads = ["acc.", "macro-F1", "bal. acc.", *(["sens."] if binary else [])]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    own: list[float | None] = [
        assessed.overall[name].value for name in ("accuracy", "macro_f1", "macro_recall")
    ]
    if binary:
        own.append(assessed.per_class[assessed.codes[0]]["sensitivity"].value)
    _add(table, "ours", protocol, own, "bold")
    for row in rows:
        values = [row.accuracy, row.macro_f1, row.macro_recall]
        if binary:
            values.append(row.sensitivity)
        remark = f"; {row.remark}" if row.remark else ""
        _add(table, row.method, f"{row.protocol}{remark} [{row.source}]", values, "")
    return table


def _add(
    table: Table, method: str, protocol: str, values: Sequence[float | None], style: str
) -> None:
    cells = [Text("-" if v is None else f"{v:.4f}", style=style) for v in values]
    table.add_row(Text.assemble((method, style), (f"\n  {protocol}", "dim")), *cells)


def subgroup_tables(rows: Sequence[Subgroup], *, asked: str | None) -> list[Table]:
    """Two tables, which fit 80 columns: all classes, and the class asked for."""
    tables = [
        _subgroup_table(
            f"by {', '.join(dict.fromkeys(row.by for row in rows))}",
            rows,
            {"accuracy": "accuracy", "macro_recall": "balanced acc.", "macro_f1": "macro-F1"},
            ("images", "lesions"),
        )
    ]
    if asked is not None:
        names = {"sensitivity": f"sensitivity to {asked}", "specificity": f"specificity to {asked}"}
        tables.append(
            _subgroup_table(f"the same, {asked} against the rest", rows, names, (asked, "others"))
        )
    return tables


def _subgroup_table(
    title: str, rows: Sequence[Subgroup], names: dict[str, str], counted: tuple[str, str]
) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("", overflow="fold")
    for head in (*counted, *names.values()):
        table.add_column(Text(head), justify="right")
    before = ""
    for row in rows:
        counts = (
            (row.images, row.lesions)
            if counted[0] == "images"
            else (row.positives, row.images - row.positives)
        )
        cells = [_cell(row.figures[name]) for name in names]
        by = row.by if row.by != before else ""
        table.add_row(by, Text(row.value), *map(str, counts), *cells)
        before = row.by
    return table


def _cell(figure: Figure) -> Text:
    if figure.value is None:
        # The reasons in full are in the note beneath and in the JSON.
        return Text("one class" if figure.why == ONE_CLASS else "too few", style="dim")
    span = "" if figure.low is None else f"\n{figure.low:.3f}..{figure.high:.3f}"
    return Text.assemble(f"{figure.value:.3f}", (span, "dim"))
