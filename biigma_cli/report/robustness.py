"""What perturbations did to a model's answers: tables, a figure, and the pictures themselves."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich import box
from rich.table import Table
from rich.text import Text

from biigma_cli.data.perturb import GROUPS, PERTURBATIONS, Effect, Measures
from biigma_cli.data.preprocess import Pixels
from biigma_cli.errors import UsageError
from biigma_cli.metrics import Figure
from biigma_cli.report.style import (
    COLOURS,
    GREY,
    HEADING,
    headed_figure,
    picture_kind,
    save,
    style,
)
from biigma_cli.storage import atomic_write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Smallest side of a picture on the contact sheet, in pixels.
_THUMB = 128
_COLUMNS = 3


# --- tables ----------------------------------------------------------------------------------


def effect_table(
    effects: Sequence[Effect],
    *,
    title: str,
    differences: Sequence[Mapping[str, Measures]] = (),
) -> Table:
    """A line per perturbation and strength; in each group the worst perturbation first.

    Answers unchanged are in per cent, accuracy lost in points of it, p(true) from 0 to 1.

    Args:
        differences: shown in place of the effects' own figures, in their order.
    """
    table = Table(
        title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
        pad_edge=False,
    )  # fmt: skip
    table.add_column("", overflow="fold", min_width=21)
    for name in ("unchanged, %", "accuracy lost", "p(true) shift"):
        table.add_column(name, justify="right", overflow="fold")
    shown = [d["overall"] for d in differences] or [e.overall for e in effects]
    measures = dict(zip(((e.name, e.strength) for e in effects), shown, strict=True))
    signed = "+" if differences else ""
    for group, words in GROUPS.items():
        table.add_row(Text(words, style="bold"))
        for name in _worst_first(effects, group):
            kind = PERTURBATIONS[name]
            for strength, step in enumerate(kind.steps, start=1):
                of = measures[name, strength]
                table.add_row(
                    Text(f" {kind.title}" + (f", {step}" if step else "")),
                    _cell(of.unchanged, f"{signed}.1f", 100),
                    _cell(of.accuracy_drop, "+.1f", 100),
                    _cell(of.p_true_shift, "+.2f", 1),
                )
    return table


def class_table(effects: Sequence[Effect], codes: Sequence[str]) -> Table:
    """Share of unchanged answers by true class, of each perturbation at its strongest."""
    table = Table(
        title="unchanged answers by true class, %, at the strongest", title_justify="left",
        box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    table.add_column("", overflow="fold")
    there = [code for code in codes if any(code in e.support for e in effects)]
    most = {code: max(e.support.get(code, 0) for e in effects) for code in there}
    for code in there:
        table.add_column(Text(code), justify="right", no_wrap=True)
    table.add_column("mean", justify="right", no_wrap=True)
    table.add_row(Text("images", style="dim"), *(Text(str(most[c]), style="dim") for c in there))
    strongest = {e.name: e for e in effects}  # the last of each name
    for group in GROUPS:
        for name in _worst_first(effects, group):
            effect = strongest[name]
            cells = [
                _percent(effect.per_class[c].unchanged if c in effect.per_class else None)
                for c in there
            ]
            table.add_row(Text(PERTURBATIONS[name].title), *cells, _percent(effect.macro.unchanged))
    return table


def _worst_first(effects: Sequence[Effect], group: str) -> list[str]:
    """Names of a group's perturbations, the one that changes most answers first."""
    lowest: dict[str, float] = {}
    for e in effects:
        if PERTURBATIONS[e.name].group == group:
            share = e.overall.unchanged.value
            lowest[e.name] = min(lowest.get(e.name, 2.0), 2.0 if share is None else share)
    return sorted(lowest, key=lambda name: lowest[name])


def _cell(figure: Figure, form: str, scale: float) -> Text:
    if figure.value is None:
        return Text("-")

    def shown(value: float) -> str:
        return f"{value * scale:{form}}".replace("100.0", "100")

    if figure.low is None or figure.high is None:
        return Text(shown(figure.value))
    span = f"{shown(figure.low)}..{shown(figure.high)}"
    return Text.assemble(shown(figure.value), (f" {span}", "dim"))


def _percent(figure: Figure | None) -> Text:
    return Text("-" if figure is None or figure.value is None else f"{100 * figure.value:.0f}")


# --- figure ----------------------------------------------------------------------------------


def draw_robustness(
    series: Mapping[str, Sequence[Effect]], path: Path, *, title: str, subtitle: str
) -> None:
    """Share of unchanged answers, a panel for each perturbation that has strengths.

    Those that have none share the first panel. Bars are 95% intervals.

    Args:
        series: effects by the name of a model, one or two.
        path: `.svg` or `.png`; replaced as a whole or not at all.

    Raises:
        UsageError: another ending.
        BiigmaError: the file cannot be written.
    """
    kind = picture_kind(path, "robustness.svg")
    graded = [p for p in PERTURBATIONS.values() if p.strengths > 1]
    plain = [p for p in PERTURBATIONS.values() if p.strengths == 1]
    panels: list[tuple[str, list[tuple[str, int]], list[str]]] = [
        ("Background, controls", [(p.name, 1) for p in plain], [_SHORT[p.name] for p in plain])
    ]
    for p in graded:
        keys = [(p.name, s + 1) for s in range(p.strengths)]
        panels.append((p.title[0].upper() + p.title[1:], keys, list(p.steps)))
    rows = -(-len(panels) // _COLUMNS)
    with style():
        # Inches, from the top: the heading, the panels, the legend where there is one.
        width, height = 3.1 * _COLUMNS, HEADING + 2.15 * rows + 0.3 * (len(series) > 1)
        figure = headed_figure(width, height, title=title, subtitle=subtitle)
        axes = figure.subplots(rows, _COLUMNS, squeeze=False, sharey=True).ravel()
        for axis, (name, keys, steps) in zip(axes, panels, strict=False):
            axis.set_title(name)
            _panel(axis, series, keys, steps, joined=name != panels[0][0])
        for axis in axes[len(panels) :]:
            axis.remove()
        for row in range(rows):
            axes[row * _COLUMNS].set_ylabel("answers unchanged")
        if len(series) > 1:
            legend = figure.legend(
                *axes[0].get_legend_handles_labels(), loc="outside lower left", frameon=False,
                ncols=len(series), labelcolor=GREY,
            )  # fmt: skip
            for text in legend.get_texts():
                text.set_parse_math(False)
        content = save(figure, kind)
    atomic_write_bytes(path, content)


_SHORT = {
    "background-same": "same\nclass", "background-other": "other\nclass",
    "skin-mean": "flat", "lesion-removed": "lesion\nremoved",
}  # fmt: skip


def _panel(
    axis: Axes,
    series: Mapping[str, Sequence[Effect]],
    keys: Sequence[tuple[str, int]],
    steps: Sequence[str],
    *,
    joined: bool,
) -> None:
    from matplotlib.ticker import PercentFormatter

    for k, (model, effects) in enumerate(series.items()):
        found = {(e.name, e.strength): e.overall.unchanged for e in effects}
        x = np.arange(len(keys)) + 0.14 * (k - (len(series) - 1) / 2)
        y = np.array([_or_nan(found[key].value) for key in keys])
        low = np.array([_or_nan(found[key].low) for key in keys])
        high = np.array([_or_nan(found[key].high) for key in keys])
        axis.vlines(x, low, high, color=COLOURS[k], linewidth=1.2, zorder=2)
        axis.plot(
            x, y, color=COLOURS[k], marker="os"[k % 2], linestyle="-" if joined else "",
            linewidth=1, zorder=3, clip_on=False,
            label=f" {model}" if model.startswith("_") else model,
        )  # fmt: skip
    axis.set_xticks(range(len(keys)), steps)
    axis.set_xlim(-0.5, len(keys) - 0.5)
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter(PercentFormatter(1))


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


# --- contact sheet ---------------------------------------------------------------------------


class SheetImage(NamedTuple):
    """One image of the contact sheet.

    Attributes:
        title: what to write above it.
        pixels: as it is, uint8 `(side, side, 3)`.
        outlined: with the lesion's outline drawn in.
        pictures: perturbation to its strengths, and `NAME donor` to the donor as it is.
    """

    title: str
    pixels: Pixels
    outlined: Pixels
    pictures: Mapping[str, Sequence[Pixels]]


_Row = Callable[[SheetImage], Sequence[tuple[str, Pixels]]]


def outlined(pixels: Pixels, level: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Pixels:
    """A green line where the lesion ends; `level` is the signed distance in half sides."""
    line = np.abs(level) < 3 / len(pixels)
    return np.where(line[..., None], np.array([0, 220, 60], np.uint8), pixels)


def draw_sheet(images: Sequence[SheetImage], path: Path) -> None:
    """All perturbations of a few images: a row each, three columns an image.

    Args:
        path: `.png`; replaced as a whole or not at all.

    Raises:
        UsageError: another ending.
        BiigmaError: the file cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path} is no .png", fix="name the file perturbed.png")

    def donor(name: str) -> _Row:
        def cells(image: SheetImage) -> list[tuple[str, Pixels]]:
            if name not in image.pictures:
                return []
            return [
                ("donor", image.pictures[f"{name} donor"][0]),
                ("its background", image.pictures[name][0]),
            ]

        return cells

    def graded(name: str) -> _Row:
        return lambda image: list(zip(PERTURBATIONS[name].steps, image.pictures[name], strict=True))

    def plain(image: SheetImage) -> list[tuple[str, Pixels]]:
        return [("as it is", image.pixels), ("mask", image.outlined)]

    def controls(image: SheetImage) -> list[tuple[str, Pixels]]:
        names = [p.name for p in PERTURBATIONS.values() if p.group == "controls"]
        return [(PERTURBATIONS[n].title, image.pictures[n][0]) for n in names]

    rows: list[tuple[str, _Row]] = [("", plain)]
    rows += [(p.title, donor(p.name)) for p in PERTURBATIONS.values() if p.donor]
    rows.append(("controls", controls))
    rows += [(p.title, graded(p.name)) for p in PERTURBATIONS.values() if p.strengths > 1]
    size = max(_THUMB, images[0].pixels.shape[0])
    font = ImageFont.load_default(size=13)
    words, gap, line = 150, 6, 18
    block = 3 * (size + gap) + 2 * gap
    head = line + gap
    sheet = Image.new(
        "RGB", (words + len(images) * block, head + len(rows) * (size + line + gap)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for column, image in enumerate(images):
        left = words + column * block
        draw.text((left, gap // 2), image.title, fill="black", font=font)
        for row, (title, cells) in enumerate(rows):
            top = head + row * (size + line + gap)
            if column == 0:
                wrapped = title.replace("donor, ", "donor,\n")
                draw.text((gap, top + line), wrapped, fill="black", font=font)
            for place, (caption, pixels) in enumerate(cells(image)):
                at = left + place * (size + gap)
                draw.text((at, top + 1), caption, fill="#6b6b6b", font=font)
                picture = Image.fromarray(pixels)
                if picture.width != size:
                    picture = picture.resize((size, size), Image.Resampling.NEAREST)
                sheet.paste(picture, (at, top + line))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    atomic_write_bytes(path, buffer.getvalue())
