"""Several recipes over several seeds: as tables, CSV, Markdown and a figure.

Runs of one seed share their split, so a row is compared with the reference row seed by seed: the
spread of that paired difference is what says whether a row matters, not the rows' own spreads.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from biigma_cli.errors import DataError
from biigma_cli.report.style import (
    COLOURS,
    GREY,
    picture_kind,
    save,
    style,
    write,
)
from biigma_cli.storage import atomic_write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A figure that rows are compared by.

    Attributes:
        name: key of the values, such as `macro_f1`.
        title: for people.
        main: it has a table and a panel of its own; the others share a table.
    """

    name: str
    title: str
    main: bool = False


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """One judged run.

    Attributes:
        seed: of its split (or data) and training.
        values: figure by measure's name, as fractions.
        kernel_mean: mean off-diagonal value of the heads' kernels over the last epoch (0:
            saturated, an identity matrix; 1: no spread); None without heads.
        head_cosine: mean cosine similarity of different heads over the last epoch; None likewise.
        seconds: of training and validation.
    """

    seed: int
    values: Mapping[str, float]
    kernel_mean: float | None = None
    head_cosine: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class AblationRow:
    """One recipe.

    Attributes:
        name: as `--rows` takes it.
        title: for people.
        runs: the judged ones, by seed.
        same_as: row whose runs these are, as its settings are the same; "" for none.
        lacking: why a seed that was asked for has no figures.
        published: value by measure's name; stands nowhere without the ablation's
            `published_protocol`.
    """

    name: str
    title: str
    runs: tuple[RunFigures, ...]
    same_as: str = ""
    lacking: Mapping[int, str] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Its name, and whose runs it shows."""
        return f"{self.name} = {self.same_as}" if self.same_as else self.name

    def values(self, measure: str) -> dict[int, float]:
        """A measure's value by seed."""
        return {r.seed: r.values[measure] for r in self.runs if measure in r.values}


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Everything that tables and figure show.

    Attributes:
        title: heading.
        setup: trunk, side, epochs and what was judged, in a line.
        protocols: how the judged parts were drawn, a line each.
        seeds: that were asked for.
        measures: in the order they are shown; at least one is `main`.
        reference: the row that others are compared with.
        rows: in the order they are shown.
        published_protocol: of all published values; "" where there are none.
        seed_note: what differs from seed to seed, in words.
    """

    title: str
    setup: str
    protocols: tuple[str, ...]
    seeds: tuple[int, ...]
    measures: tuple[Measure, ...]
    reference: AblationRow
    rows: tuple[AblationRow, ...]
    published_protocol: str = ""
    seed_note: str = ""

    @property
    def counts(self) -> tuple[int, int]:
        """Judged runs that are shown, and those asked for; shared ones count once."""
        own = [row for row in self.rows if not row.same_as]
        shared = {row.same_as for row in self.rows} - {row.name for row in own} - {""}
        own += [next(r for r in self.rows if r.same_as == name) for name in sorted(shared)]
        return sum(len(row.runs) for row in own), len(own) * len(self.seeds)


class Spread(NamedTuple):
    """Values over seeds; `sd` has n - 1 below, and is NaN for a single value."""

    mean: float
    sd: float
    low: float
    high: float
    n: int


def spread(values: Iterable[float]) -> Spread | None:
    """None where there is no value."""
    known = list(values)
    if not known:
        return None
    sd = statistics.stdev(known) if len(known) > 1 else math.nan
    return Spread(statistics.fmean(known), sd, min(known), max(known), len(known))


def differences(row: AblationRow, reference: AblationRow, measure: str) -> dict[int, float]:
    """Row minus reference for each seed that both have; empty for the reference itself."""
    if reference.name in (row.name, row.same_as):
        return {}
    base = reference.values(measure)
    return {s: v - base[s] for s, v in row.values(measure).items() if s in base}


def published_difference(row: AblationRow, reference: AblationRow, measure: str) -> float | None:
    """The published value minus the reference's; None without one, or for the reference."""
    if row.name == reference.name or measure not in reference.published:
        return None
    value = row.published.get(measure)
    return None if value is None else value - reference.published[measure]


# --- tables ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Grid:
    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def ablation_tables(ablation: Ablation) -> list[Table | str]:
    """Heading, tables (each fits 80 columns) and notes, for `tables.render`."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    items: list[Table | str] = [*_heading(ablation), ""]
    for grid in _grids(ablation):
        table = Table(
            title=Text(grid.title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0), pad_edge=False,
        )  # fmt: skip
        for i, name in enumerate(grid.header):
            table.add_column(Text(name), justify="right" if i else "left", no_wrap=True)
        for line in grid.lines:
            table.add_row(*map(Text, line))
        items.append(table)
    return [*items, *_notes(ablation)]


def to_markdown(ablation: Ablation) -> str:
    """The same as Markdown."""
    heading, *rest = _heading(ablation)
    parts = [f"# {heading}", *rest]
    for grid in _grids(ablation):
        lines = [grid.header, ("---",) + ("---:",) * (len(grid.header) - 1), *grid.lines]
        table = "\n".join(
            "| " + " | ".join(c.replace("|", "\\|").replace("*", "\\*") for c in line) + " |"
            for line in lines
        )
        parts += [f"## {grid.title}", table]
    notes = [note.replace("*", "\\*") for note in _notes(ablation)]
    return "\n\n".join([*parts, *notes]) + "\n"


def _heading(ablation: Ablation) -> list[str]:
    done, planned = ablation.counts
    partial = "" if done == planned else f" -- partial: {done} of {planned} runs"
    return [ablation.title + partial, ablation.setup, *ablation.protocols]


def _grids(ablation: Ablation) -> list[_Grid]:
    main = [m for m in ablation.measures if m.main]
    others = [m for m in ablation.measures if not m.main]
    grids = [_levels(ablation, main), *(_paired(ablation, m) for m in main)]
    if others:
        grids.append(_levels(ablation, others))
    return [*grids, _training_grid(ablation)]


def _paired(ablation: Ablation, measure: Measure) -> _Grid:
    reference = ablation.reference
    published = any(measure.name in row.published for row in ablation.rows)
    lines = []
    for row in ablation.rows:
        if row.name == reference.name:
            continue
        found = spread(differences(row, reference, measure.name).values())
        several = found is not None and found.n > 1
        line = [
            row.label,
            str(found.n if found else 0),
            _level(found, signed=True),
            f"{found.low:+.3f}" if found and several else "",
            f"{found.high:+.3f}" if found and several else "",
        ]
        if published:
            gap = published_difference(row, reference, measure.name)
            line.append("" if gap is None else f"{gap:+.3f}")
        lines.append(tuple(line))
    return _Grid(
        title=f"{measure.title}, minus {reference.name} of the same seed",
        header=("row", "n", "mean ± sd", "least", "most", *(["published*"] if published else [])),
        lines=tuple(lines),
    )


def _levels(ablation: Ablation, measures: Sequence[Measure]) -> _Grid:
    header, columns = ["row", "n"], []
    for m in measures:
        header.append(m.title)
        columns.append([_level(spread(row.values(m.name).values())) for row in ablation.rows])
        if any(m.name in row.published for row in ablation.rows):
            header.append("published*")
            values = [row.published.get(m.name) for row in ablation.rows]
            columns.append(["" if v is None else f"{v:.3f}" for v in values])
    first = [(row.label, _count(row, ablation)) for row in ablation.rows]
    lines = [(*a, *b) for a, b in zip(first, zip(*columns, strict=True), strict=True)]
    return _Grid(title="mean ± sd over seeds", header=tuple(header), lines=tuple(lines))


def _training_grid(ablation: Ablation) -> _Grid:
    lines = []
    for row in ablation.rows:
        kernel = spread(r.kernel_mean for r in row.runs if r.kernel_mean is not None)
        cosine = spread(r.head_cosine for r in row.runs if r.head_cosine is not None)
        seconds = spread(r.seconds for r in row.runs if r.seconds is not None)
        lines.append(
            (
                row.label,
                _count(row, ablation),
                *("" if s is None else _small(s) for s in (kernel, cosine)),
                "" if seconds is None else f"{seconds.mean / 60:.1f}",
            )
        )
    return _Grid(
        title="training: kernel and heads in its last epoch, minutes in all",
        header=("row", "n", "kernel mean", "head cosine", "minutes"),
        lines=tuple(lines),
    )


def _notes(ablation: Ablation) -> list[str]:
    notes = [
        f"n: judged runs, one a seed. {ablation.seed_note}sd: with n - 1. "
        "kernel mean: off the diagonal; near 0 it is saturated, and HSIC has no gradient."
    ]
    if ablation.published_protocol:
        notes.append(f"* {ablation.published_protocol}.")
    shown = {row.name for row in ablation.rows}
    for row in ablation.rows:
        reasons: dict[str, list[int]] = {}
        for seed, why in row.lacking.items():
            reasons.setdefault(why, []).append(seed)
        for why, seeds in reasons.items() if row.same_as not in shown else ():
            notes.append(f"{row.name}, seed {', '.join(map(str, seeds))}: {why}")
    return notes


def _count(row: AblationRow, ablation: Ablation) -> str:
    n, asked = len(row.runs), len(ablation.seeds)
    return str(n) if n == asked else f"{n}/{asked}"


def _level(found: Spread | None, *, signed: bool = False) -> str:
    if found is None:
        return ""
    mean = f"{found.mean:+.3f}" if signed else f"{found.mean:.3f}"
    return mean + ("" if found.n < 2 else f" ± {found.sd:.3f}")


def _small(found: Spread) -> str:
    """Kernel means may be 1e-9: significant digits, not decimals."""
    return f"{found.mean:.2g}" + ("" if found.n < 2 else f" ± {found.sd:.1g}")


def to_csv(ablation: Ablation) -> str:
    """A line a row: means, spreads, paired differences, published values, each seed's value."""
    reference = ablation.reference
    lines = []
    for row in ablation.rows:
        line: dict[str, Any] = {
            "row": row.name,
            "title": row.title,
            "same_as": row.same_as,
            "runs": len(row.runs),
            "seeds": " ".join(str(r.seed) for r in row.runs),
        }
        for m in (m.name for m in ablation.measures):
            found = spread(row.values(m).values())
            paired = spread(differences(row, reference, m).values())
            minus = f"{m}_minus_{reference.name}"
            line[f"{m}_mean"] = found and found.mean
            line[f"{m}_sd"] = found and found.sd
            line[f"{minus}_mean"] = paired and paired.mean
            line[f"{minus}_sd"] = paired and paired.sd
            line[f"{minus}_min"] = paired and paired.low
            line[f"{minus}_max"] = paired and paired.high
            if ablation.published_protocol:
                line[f"{m}_published"] = row.published.get(m)
            for seed in ablation.seeds:
                line[f"{m}_seed{seed}"] = row.values(m).get(seed)
        for name in ("kernel_mean", "head_cosine", "seconds"):
            known = (getattr(r, name) for r in row.runs)
            found = spread(v for v in known if v is not None)
            line[name] = found and found.mean
        line["lacking"] = "; ".join(f"seed {s}: {why}" for s, why in row.lacking.items())
        if ablation.published_protocol:
            line["published_protocol"] = ablation.published_protocol if row.published else ""
        lines.append({k: _cell(v) for k, v in line.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else value


# --- the figure ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Panel:
    title: str
    dots: list[list[float]]  # by row
    published: list[float | None]
    zero: float | None  # where the reference stands


def draw_ablation(ablation: Ablation, path: Path) -> None:
    """A line a row: a dot for each seed, a bar at the mean, a hollow mark where published.

    One panel for each main measure; where there is one alone, beside it the paired difference from
    the reference. Rows without a run are left out.

    Args:
        path: `.svg` or `.png`; replaced as a whole or not at all.

    Raises:
        UsageError: another ending.
        DataError: no row has a run.
        BiigmaError: the file cannot be written.
    """
    kind = picture_kind(path, "figure.svg")
    rows = [row for row in ablation.rows if row.runs]
    if not rows:
        raise DataError("there is nothing to draw: no run was judged", fix="train some first")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = _panels(ablation, rows)
    width = 2.2 + 3.6 * len(panels)
    letters = int(width / 0.062)
    done, planned = ablation.counts
    partial = "" if done == planned else f" Partial: {done} of {planned} runs."
    below = textwrap.wrap(f"{ablation.setup}.{partial} {ablation.seed_note.strip()}", letters)
    if ablation.published_protocol:
        below += textwrap.wrap(f"Hollow: {ablation.published_protocol}.", letters)
    heading, foot = 0.4, 0.45 + 0.16 * len(below)
    height = heading + foot + 0.75 + 0.24 * len(rows)
    with style():
        engine = ConstrainedLayoutEngine(
            rect=(0, foot / height, 1, 1 - (heading + foot) / height), w_pad=0.1, h_pad=0.05
        )
        figure = Figure(figsize=(width, height), layout=engine)
        FigureCanvasAgg(figure)
        left = 0.1 / width
        write(figure, left, 1 - 0.1 / height, ablation.title, size=11, weight="bold")
        for i, line in enumerate(below):
            top = (0.1 + 0.16 * (len(below) - i)) / height
            write(figure, left, top, line, color=GREY, size=8)
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axis, panel in zip(axes, panels, strict=True):
            _draw(axis, panel)
        axes[0].set_yticks(range(len(rows)), [_title(row) for row in rows])
        axes[0].set_ylim(len(rows) - 0.4, -0.6)  # the first row on top
        several = len(panels) > 1 and panels[1].zero != 0
        if several:  # the same measure under other conditions: on the same scale
            low = min(axis.get_xlim()[0] for axis in axes)
            high = max(axis.get_xlim()[1] for axis in axes)
            margin = 0.02 * (high - low)
            for axis in axes:
                axis.set_xlim(low - margin, high + margin)
        handles, labels = axes[0].get_legend_handles_labels()
        legend = figure.legend(
            handles, labels, loc="lower left", frameon=False, labelcolor=GREY, handlelength=1.4,
            bbox_to_anchor=(left, (foot - 0.24) / height), ncols=4, borderaxespad=0, borderpad=0,
        )  # fmt: skip
        legend.set_in_layout(False)
        content = save(figure, kind)
    atomic_write_bytes(path, content)


def _title(row: AblationRow) -> str:
    return f"{row.title} (= {row.same_as})" if row.same_as else row.title


def _panels(ablation: Ablation, rows: Sequence[AblationRow]) -> list[_Panel]:
    reference = ablation.reference
    main = [m for m in ablation.measures if m.main]
    panels = []
    for m in main:
        base = spread(reference.values(m.name).values())
        panels.append(
            _Panel(
                title=m.title,
                dots=[list(row.values(m.name).values()) for row in rows],
                published=[row.published.get(m.name) for row in rows],
                zero=base.mean if base else None,
            )
        )
    if len(main) == 1:
        name = main[0].name
        panels.append(
            _Panel(
                title=f"minus {reference.title}, same seed",
                dots=[list(differences(row, reference, name).values()) for row in rows],
                published=[published_difference(row, reference, name) for row in rows],
                zero=0,
            )
        )
    return panels


def _draw(axis: Axes, panel: _Panel) -> None:
    axis.set_title(panel.title)
    axis.grid(visible=True, axis="x")
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    if panel.zero is not None:
        axis.axvline(panel.zero, color="#999999", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    places = [i for i, dots in enumerate(panel.dots) if dots]
    axis.hlines(
        places, [min(panel.dots[i]) for i in places], [max(panel.dots[i]) for i in places],
        color=COLOURS[0], linewidth=1, alpha=0.6, zorder=2,
    )  # fmt: skip
    axis.plot(
        [v for dots in panel.dots for v in dots],
        [i for i, dots in enumerate(panel.dots) for _ in dots],
        color=COLOURS[0], marker="o", markersize=4, linestyle="", alpha=0.75, label="a seed",
    )  # fmt: skip
    axis.plot(
        [statistics.fmean(panel.dots[i]) for i in places], places,
        color=COLOURS[1], marker="|", markersize=11, markeredgewidth=2, linestyle="",
        label="mean", zorder=4,
    )  # fmt: skip
    known = [(v, i) for i, v in enumerate(panel.published) if v is not None]
    if known:
        axis.plot(
            [v for v, _ in known], [i for _, i in known], color=COLOURS[6], marker="D",
            markersize=5, markerfacecolor="none", linestyle="",
            label="published, by another protocol",
        )  # fmt: skip


__all__ = [
    "Ablation", "AblationRow", "Measure", "RunFigures", "Spread", "ablation_tables", "differences",
    "draw_ablation", "published_difference", "spread", "to_csv", "to_markdown",
]  # fmt: skip
