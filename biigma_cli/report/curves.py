"""Training curves, drawn by matplotlib without a window."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from biigma_cli.errors import DataError, UsageError
from biigma_cli.report.runs import RunInfo, incomparable, read_run
from biigma_cli.report.style import COLOURS, FORMATS, GREY, picture_kind, save, style, write
from biigma_cli.storage import atomic_write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

# Broken lines let one that lies beneath be seen.
_DASHES = ("-", (0, (4, 1.3)), (0, (1.5, 1)), (0, (6, 1.3, 1.5, 1.3)))

# Columns of metrics.csv and what they are called in a picture.
_VALIDATION = {
    "val_macro_f1": "macro-F1",
    "val_macro_recall": "balanced accuracy",
    "val_accuracy": "accuracy",
}
_TERMS = {
    "ce": "cross-entropy",
    "ce_hybrid": "cross-entropy, hybrid",
    "distillation": "distillation",
    "independence": "independence",
    "l2": "projection L2",
    "map_distance": "map distance",
    "consistency_kl": "consistency KL",
}
_HEADS = {"kernel_mean": "kernel mean", "head_cosine": "head cosine"}


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One line of a panel.

    Attributes:
        label: stands at its right end; "" where title or legend name it.
        dashes: line style of matplotlib.
        points: (epoch, value), value finite or NaN.
        best: epoch to mark with a dot.
    """

    label: str
    points: list[tuple[float, float]]
    colour: str
    dashes: Any = "-"
    best: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """One set of axes.

    Attributes:
        chosen: epoch to mark with an upright line.
        log: values on a logarithmic axis.
    """

    title: str
    lines: list[_Line]
    chosen: int | None = None
    log: bool = False


def draw_curves(run: Path) -> list[Path]:
    """Write `curves.svg` and `curves.png` into a run folder and return their paths.

    Total loss and its unweighted terms, validation figures with the kept epoch, validation log
    loss, learning rate, and what the heads do; what the run did not record is left out.

    Raises `DataError` where the run has no finished epoch or its `metrics.csv` is damaged, and
    `BiigmaError` where the folder cannot be written.
    """
    info = _with_rows(run)
    planned = f" of {info.epochs_planned}" if info.epochs_planned else ""
    words = [info.dataset] if info.dataset else []
    if info.best_epoch is not None and "macro_f1" in info.validation:
        words.append(
            f"epoch {info.best_epoch}{planned} is kept: "
            f"validation macro-F1 {info.validation['macro_f1']:.4f}"
        )
    if not info.finished:
        words.append(f"unfinished, {info.epochs_done}{planned} epochs done")
    panels = _run_panels(info)
    with style():
        figure = _figure(panels, title=info.name, subtitle="; ".join(words))
        contents = [(run / f"curves.{kind}", save(figure, kind)) for kind in FORMATS]
    for path, content in contents:
        atomic_write_bytes(path, content)
    return [path for path, _ in contents]


def compare_curves(runs: Sequence[Path], out: Path, *, names: Sequence[str] = ()) -> None:
    """Draw several runs into one picture, a panel a figure and a line a run.

    Args:
        runs: run folders; a run without a finished epoch is an error.
        out: `.svg` or `.png`; replaced as a whole or not at all.
        names: of the runs in the legend; empty takes those of the folders.

    Raises `UsageError` for another ending, else as `draw_curves`.
    """
    kind = picture_kind(out, "curves.svg")
    if not runs:
        raise UsageError("no run to draw", fix="name at least one run")
    infos = [_with_rows(run) for run in runs]
    if names:
        infos = [dataclasses.replace(i, name=name) for i, name in zip(infos, names, strict=True)]
    with style():
        figure = _figure(
            _comparison_panels(infos),
            title="",
            subtitle="; ".join(incomparable(infos)).split(" (")[0],
            legend=_legend_lines(infos),
        )
        content = save(figure, kind)
    atomic_write_bytes(out, content)


def _with_rows(run: Path) -> RunInfo:
    info = read_run(run)
    if not info.rows:
        why = f": {info.problem}" if info.problem else ""
        raise DataError(
            f"{run} has no finished epoch to draw{why}", fix="name a run that has finished an epoch"
        )
    return info


# --- what is drawn ---------------------------------------------------------------------------


def _points(info: RunInfo, column: str) -> list[tuple[float, float]]:
    """Values of a column, NaN where a row has none; empty where no row has one."""
    values = [row.get(column, math.nan) for row in info.rows]
    finite = [v if math.isfinite(v) else math.nan for v in values]
    if all(math.isnan(v) for v in finite):
        return []
    return [(row["epoch"], v) for row, v in zip(info.rows, finite, strict=True)]


def _lines(info: RunInfo, columns: dict[str, str], *, best: int | None = None) -> list[_Line]:
    found = [(label, p) for name, label in columns.items() if (p := _points(info, name))]
    return [
        _Line(
            label=label,
            points=points,
            colour=COLOURS[i % len(COLOURS)],
            dashes=_DASHES[i % len(_DASHES)],
            best=best,
        )
        for i, (label, points) in enumerate(found)
    ]


def _run_panels(info: RunInfo) -> list[_Panel]:
    best = info.best_epoch
    total = _points(info, "loss")
    # A term of thousandths is a flat line beside the total: such terms get axes of their own.
    top = _highest(total) if total else math.inf
    small = [name for name in _TERMS if _highest(_points(info, name)) < 0.5 * top]
    large = {"loss": "total", **{k: v for k, v in _TERMS.items() if k not in small}}
    if _points(info, "ce") == total:  # with nothing but cross-entropy they are one line
        large.pop("ce", None)
        large["loss"] = "total = cross-entropy"
    minor = _lines(info, {k: v for k, v in _TERMS.items() if k in small})
    values = [v for line in minor for _, v in line.points if not math.isnan(v)]
    spread = bool(values) and min(values) > 0 and max(values) > 30 * min(values)
    panels = [
        _Panel(title="Training loss, terms unweighted", lines=_lines(info, large)),
        _Panel(
            title="Smaller loss terms, unweighted" + (", log scale" if spread else ""),
            lines=minor, log=spread,
        ),
        _Panel(title="Validation", lines=_lines(info, _VALIDATION, best=best), chosen=best),
        _Panel(
            title="Validation log loss", lines=_lines(info, {"val_log_loss": ""}, best=best),
            chosen=best,
        ),
        _Panel(title="Heads", lines=_lines(info, _HEADS)),
        _Panel(title="Learning rate", lines=_lines(info, {"lr": ""})),
    ]  # fmt: skip
    return [p for p in panels if p.lines]


def _comparison_panels(infos: Sequence[RunInfo]) -> list[_Panel]:
    # Totals are of different terms; the cross-entropy of the branch that answers is in every run.
    columns = {
        "ce": "Training cross-entropy",
        "val_macro_f1": "Validation macro-F1",
        "val_accuracy": "Validation accuracy",
        "val_macro_recall": "Validation balanced accuracy",
        "val_log_loss": "Validation log loss",
        "lr": "Learning rate",
        "kernel_mean": "Heads: kernel mean",
        "head_cosine": "Heads: cosine",
    }
    panels = []
    for column, title in columns.items():
        lines = [
            _Line(
                label="",
                points=points,
                colour=line.colour,
                dashes=line.dashes,
                best=info.best_epoch if column.startswith("val_") else None,
            )
            for info, line in zip(infos, _legend_lines(infos), strict=True)
            if (points := _points(info, column))
        ]
        panels.append(_Panel(title=title, lines=lines))
    return [p for p in panels if p.lines]


def _legend_lines(infos: Sequence[RunInfo]) -> list[_Line]:
    return [
        _Line(
            label=info.name,
            points=[],
            colour=COLOURS[i % len(COLOURS)],
            dashes=_DASHES[i % len(_DASHES)],
        )
        for i, info in enumerate(infos)
    ]


def _highest(points: list[tuple[float, float]]) -> float:
    return max((v for _, v in points if not math.isnan(v)), default=math.inf)


# --- how -------------------------------------------------------------------------------------


def _figure(
    panels: Sequence[_Panel], *, title: str, subtitle: str, legend: Sequence[_Line] = ()
) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if not panels:
        raise DataError("there is nothing to draw", fix="metrics.csv holds no figure that is drawn")
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    # Inches, from the top: the heading, then the panels.
    # A letter takes about 0.08 inches, the piece of line before a name 0.7.
    longest = max((len(line.label) for line in legend), default=0)
    per_row = max(1, min(3, int((5 * columns - 0.2) / (0.7 + 0.08 * longest))))
    heading = 0.27 * (bool(title) + bool(subtitle)) + 0.25 * math.ceil(len(legend) / per_row)
    height = 0.15 + heading + 2.6 * rows
    engine = ConstrainedLayoutEngine(
        rect=(0, 0, 1, 1 - (heading + 0.1) / height), w_pad=0.1, h_pad=0.1
    )
    figure = Figure(figsize=(5.0 * columns, height), layout=engine)
    FigureCanvasAgg(figure)
    left, top = 0.1 / figure.get_figwidth(), 1 - 0.1 / height
    if title:
        write(figure, left, top, title, size=12, weight="bold")
        top -= 0.27 / height
    if subtitle:
        write(figure, left, top, subtitle, color=GREY)
        top -= 0.27 / height
    if legend:
        _add_legend(figure, legend, per_row, (left, top))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    labels = []
    for axis, panel in zip(axes, panels, strict=False):
        _draw(axis, panel)
        labels.append(_add_labels(axis, panel))
    for axis in axes[len(panels) :]:
        axis.remove()
    engine.execute(figure)  # gives everything its place, once for all formats
    figure.set_layout_engine("none")
    for axis, panel, own in zip(axes, panels, labels, strict=False):
        _place_labels(axis, panel, own)
    return figure


def _add_legend(
    figure: Figure, lines: Sequence[_Line], per_row: int, corner: tuple[float, float]
) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=line.colour, linestyle=line.dashes) for line in lines]
    # A label that begins with an underscore would be left out.
    labels = [f" {line.label}" if line.label.startswith("_") else line.label for line in lines]
    legend = figure.legend(
        handles, labels, loc="upper left", bbox_to_anchor=corner, ncols=per_row, frameon=False,
        borderaxespad=0, borderpad=0, handlelength=3,
    )  # fmt: skip
    legend.set_in_layout(False)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _draw(axis: Axes, panel: _Panel) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_title(panel.title)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    if panel.log:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    epochs = [x for line in panel.lines for x, _ in line.points]
    if min(epochs) == max(epochs):
        axis.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    else:
        axis.set_xlim(min(epochs), max(epochs))
    if panel.chosen is not None:
        axis.axvline(panel.chosen, color="#bbbbbb", linewidth=0.8, zorder=1)
    for line in panel.lines:
        xs, ys = zip(*line.points, strict=True)
        single = sum(not math.isnan(y) for y in ys) == 1
        axis.plot(
            xs, ys, color=line.colour, linestyle=line.dashes, marker="o" if single else "",
            clip_on=False,
        )  # fmt: skip
        marked = [(x, y) for x, y in line.points if x == line.best and not math.isnan(y)]
        for x, y in marked:
            axis.plot(x, y, color=line.colour, marker="o", clip_on=False)


def _add_labels(axis: Axes, panel: _Panel) -> list[Text]:
    """Name each line at the right edge; the heights come when the axes have their place."""
    return [
        axis.text(
            1.035, 0.5, line.label, color=line.colour, transform=axis.transAxes, va="center",
            parse_math=False,
        )
        for line in panel.lines
        if line.label
    ]  # fmt: skip


def _place_labels(axis: Axes, panel: _Panel, labels: Sequence[Text]) -> None:
    """Move each label to the end of its line, apart where ends lie close together."""
    if not labels:
        return
    to_axes = axis.transData + axis.transAxes.inverted()
    ends = []
    for line in panel.lines:
        x, y = [(x, y) for x, y in line.points if not math.isnan(y)][-1]
        ends.append(float(to_axes.transform((x, y))[1]))
    points = axis.bbox.height * 72 / axis.get_figure(root=True).dpi  # type: ignore[union-attr]
    for label, y in zip(labels, spread(ends, 12 / points), strict=True):
        label.set_y(y)


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Positions moved as little as needed to be at least `gap` apart, in the same order."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    blocks: list[list[int]] = []  # neighbours that touch; each is centred on its own mean

    def centre(block: list[int]) -> float:
        return sum(positions[i] for i in block) / len(block)

    for i in order:
        blocks.append([i])
        while len(blocks) > 1:
            below, above = blocks[-2:]
            if centre(above) - centre(below) >= gap * (len(above) + len(below)) / 2:
                break
            blocks[-2:] = [below + above]
    placed = list(positions)
    for block in blocks:
        for rank, i in enumerate(block):
            if len(block) > 1:
                placed[i] = centre(block) + (rank - (len(block) - 1) / 2) * gap
    return placed
