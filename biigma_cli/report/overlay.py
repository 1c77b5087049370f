"""What a network shows of a picture, laid over the picture.

Dimension letters: H, W rows and columns of a picture; h, w those of a map; S the side of the square
that the network takes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from biigma_cli.data.preprocess import Pixels
from biigma_cli.report.style import (
    GREY,
    picture_kind,
    save,
    style,
    write,
)
from biigma_cli.storage import atomic_write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.floating]

# Widest spread of values that is still drawn as nearly one colour.
_LEAST_RANGE = 0.05
# Opacity of the strongest signed value, and of all others.
_SIGNED, _PLAIN = 0.75, 0.6


class Frame(NamedTuple):
    """How a map lies on a picture.

    Attributes:
        size: the picture's (width, height) in pixels, upright.
        side: S.
        rule: how the picture became the square, see `data.preprocess.load_image`.
        first_centre: see `config.FIRST_CENTRE`; None centres each position in its cell.
    """

    size: tuple[int, int]
    side: int
    rule: str
    first_centre: float | None = None


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One map to draw.

    Attributes:
        title: stands above it.
        legend: what its values are, with their unit; stands under the colours.
        map_hw: `(h, w)`.
        signed: colours that diverge from zero, else a sequence from lowest to highest.
    """

    title: str
    legend: str
    map_hw: Floats = field(repr=False)
    signed: bool


def square_box(frame: Frame) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the network's square, in the picture's pixels.

    It is the picture itself under `squash`, lies inside it under `crop` and reaches beyond it under
    `pad`.
    """
    width, height = frame.size
    if frame.rule == "squash":
        return 0, 0, width, height
    if frame.rule == "crop":
        short = min(width, height)
        left, top = (width - short) / 2, (height - short) / 2
        return left, top, left + short, top + short
    if frame.rule != "pad":
        raise KeyError(frame.rule)
    # With the rounding of preprocess: the inner picture is a whole number of pixels.
    side = frame.side
    scale = side / max(width, height)
    inner = [max(1, round(length * scale)) for length in frame.size]
    before = [(side - length) // 2 for length in inner]
    pixel = [length / i for length, i in zip(frame.size, inner, strict=True)]
    left, top = (-b * p for b, p in zip(before, pixel, strict=True))
    return left, top, left + side * pixel[0], top + side * pixel[1]


def lay(map_hw: Floats, frame: Frame, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """The map at each pixel of the picture, bilinear between the positions' centres.

    Bilinear, as it never leaves the range of the values: a cubic would draw evidence of a sign that
    no position has.

    Args:
        shape: (H, W) to draw it in; the picture's own or a smaller one of the same aspect.

    Returns:
        `(H, W)`; NaN where no position lies: outside of what `crop` keeps, and more than half a
        step beyond the last position.
    """
    left, top, right, bottom = square_box(frame)
    width, height = frame.size
    rows, own_H = _weights(map_hw.shape[0], shape[0], frame, height, top, bottom)
    columns, own_W = _weights(map_hw.shape[1], shape[1], frame, width, left, right)
    laid = rows @ np.asarray(map_hw, np.float64) @ columns.T
    laid[~(own_H[:, None] & own_W)] = np.nan
    return laid


def _weights(
    cells: int, pixels: int, frame: Frame, length: float, low: float, high: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Weight of each position at each pixel of one axis, `(pixels, cells)`, and where any lies."""
    in_picture = (np.arange(pixels) + 0.5) * length / pixels
    return _hats((in_picture - low) / (high - low) * frame.side, cells, frame)


def _hats(
    in_square: Floats, cells: int, frame: Frame
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The same for places along one axis of the square, in its pixels."""
    stride = frame.side / cells
    first = stride / 2 if frame.first_centre is None else frame.first_centre
    centres = first + stride * np.arange(cells)
    low, high = max(0.0, first - stride / 2), min(float(frame.side), centres[-1] + stride / 2)
    hats = np.stack([np.interp(in_square, centres, row) for row in np.eye(cells)], 1)
    return hats, (in_square >= low) & (in_square <= high)


def inside(lesion_SS: Floats, frame: Frame, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """How much of each position's spot, as `lay` draws it, lies on the lesion.

    Args:
        lesion_SS: share of lesion in each pixel of the network's square, in [0, 1].
        shape: (h, w) of the map.

    Returns:
        `(h, w)` in [0, 1]: a map times it, summed, is the part of the map's sum on the lesion.
    """
    pixels = np.arange(frame.side) + 0.5
    rows, columns = (hats * own[:, None] for hats, own in (_hats(pixels, c, frame) for c in shape))
    spots = np.outer(rows.sum(0), columns.sum(0))
    return np.asarray(rows.T @ lesion_SS @ columns / spots)


def value_range(values: Floats, *, signed: bool) -> tuple[float, float]:
    """Values of the first and the last colour.

    Signed ones are as far from zero on both sides. Others span what there is, but never less than
    0.05, so that a map which is even looks even.
    """
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if signed:
        most = max(abs(low), abs(high)) or 1.0
        return -most, most
    short = max(0.0, _LEAST_RANGE - (high - low)) / 2
    return low - short, high + short


def blend(grey: Floats, values: Floats, *, signed: bool, limits: tuple[float, float]) -> Floats:
    """Colours of the values over a grey picture, RGB in [0, 1].

    The sequence is cividis (Nunez et al. 2018), even in lightness to all eyes. Signed values are
    blue and red, the ends of Moreland's diverging table (2009), as opaque as they are far from
    zero: the picture shows where nothing is said, and equal steps look equal on any grey.

    Args:
        grey: of the picture, in [0, 1].
        values: of the same shape; NaN shows the picture paled.
    """
    from matplotlib import colormaps

    low, high = limits
    at = np.clip((np.where(np.isnan(values), low, values) - low) / (high - low), 0, 1)
    # Moreland's middle is lighter than the picture: to pass it would make weak values glow.
    colour = colormaps["coolwarm"](np.round(at)) if signed else colormaps["cividis"](at)
    opacity = (_SIGNED * np.abs(2 * at - 1) if signed else np.full_like(at, _PLAIN))[..., None]
    mixed = grey[..., None] * (1 - opacity) + colour[..., :3] * opacity
    paled = np.repeat(0.75 + 0.25 * grey[..., None], 3, axis=-1)
    return np.asarray(np.where(np.isnan(values)[..., None], paled, mixed))


def draw_overlay(
    picture: Pixels,
    layers: Sequence[Layer],
    frame: Frame,
    path: Path,
    *,
    title: str,
    subtitle: str,
    probabilities: Sequence[str] = (),
    notes: Sequence[str] = (),
    lesion_HW: npt.NDArray[np.bool_] | None = None,
) -> None:
    """The picture, and beside it each map over the picture in grey, with its legend.

    Where no position lies the picture is pale, and a note says so.

    Args:
        picture: `(H, W, 3)`, upright; in the aspect of `frame.size`, at any scale.
        path: `.svg` or `.png`; replaced as a whole or not at all.
        probabilities: lines under the picture.
        notes: sentences for the foot.
        lesion_HW: a mask of the picture's shape, whose outline is drawn.

    Raises:
        UsageError: another ending.
        BiigmaError: the file cannot be written.
    """
    kind = picture_kind(path, "overlay.svg")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Inches.
    margin, panel, gap, heading, foot = 0.12, 3.5, 0.2, 0.85, 0.8
    width = 2 * margin + panel + len(layers) * (panel + gap)
    tall = float(np.clip(panel * picture.shape[0] / picture.shape[1], 1.0, 1.6 * panel))
    laid = [lay(layer.map_hw, frame, picture.shape[:2]) for layer in layers]
    if any(np.isnan(values).any() for values in laid):
        notes = [*notes, "No position lies where the picture is pale."]
    # A character of 7 points is about 0.056 inches wide.
    lines = textwrap.wrap(" ".join(notes), int((width - 2 * margin) / 0.056))
    height = heading + tall + foot + 0.14 * len(lines) + 0.1
    with style():
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        left = margin / width
        # 11 points bold are about 0.1 inches a character, 9 points 0.07.
        write(
            figure, left, 1 - 0.1 / height, shortened(title, int((width - 2 * margin) / 0.1)),
            size=11, weight="bold",
        )  # fmt: skip
        told = shortened(subtitle, int((width - 2 * margin) / 0.07))
        write(figure, left, 1 - 0.34 / height, told, color=GREY)
        grey = lightness(picture)
        base = (height - heading - tall) / height
        for i in range(len(layers) + 1):
            x = (margin + i * (panel + gap)) / width
            axis = figure.add_axes((x, base, panel / width, tall / height))
            name = "Picture" if i == 0 else layers[i - 1].title
            write(figure, x, 1 - 0.62 / height, shortened(name, 46), size=10)
            if i == 0:
                _show(axis, picture, lesion_HW, kind)
                for j, line in enumerate(probabilities):
                    write(figure, x, base - (0.09 + 0.17 * j) / height, shortened(line, 50))
                continue
            layer = layers[i - 1]
            # Of the map itself, not of what a crop leaves of it.
            limits = value_range(layer.map_hw, signed=layer.signed)
            _show(
                axis, blend(grey, laid[i - 1], signed=layer.signed, limits=limits), lesion_HW, kind
            )
            bar = (x, base - 0.24 / height, panel / width, 0.14 / height)
            _legend(figure, bar, layer, limits, kind)
        for j, line in enumerate(lines):
            at = (0.08 + 0.14 * (len(lines) - j)) / height
            write(figure, left, at, line, size=7, color=GREY)
        content = save(figure, kind)
    atomic_write_bytes(path, content)


def shortened(text: str, most: int) -> str:
    """`text`, its middle left out where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    tail = max(1, most // 2)
    return f"{text[: max(1, most - tail - 3)]}...{text[-tail:]}"


def lightness(picture: Pixels) -> npt.NDArray[np.float64]:
    """A picture's, in [0, 1], drawn together so that colours can be told on black and on white."""
    luma = picture.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) / 255
    return np.asarray(0.25 + 0.7 * luma)


def _show(
    axis: Axes, image: npt.NDArray[np.generic], lesion_HW: npt.NDArray[np.bool_] | None, kind: str
) -> None:
    # In an SVG the pixels stay as they are; else they would be thinned to the page's 72 dpi.
    axis.imshow(image, interpolation="none" if kind == "svg" else "antialiased")
    axis.set_axis_off()
    axis.set_anchor("NW")
    if lesion_HW is not None and lesion_HW.any() and not lesion_HW.all():
        # Beyond the edge there is no lesion: the outline closes where it is cut off.
        framed = np.pad(lesion_HW.astype(np.float64), 1)
        y, x = (np.arange(-1, n + 1) for n in lesion_HW.shape)
        for colour, line in (("white", 2.4), ("black", 1.0)):
            axis.contour(x, y, framed, levels=[0.5], colors=colour, linewidths=line)
        axis.set_xlim(-0.5, lesion_HW.shape[1] - 0.5)
        axis.set_ylim(lesion_HW.shape[0] - 0.5, -0.5)


def _legend(
    figure: Figure,
    place: tuple[float, float, float, float],
    layer: Layer,
    limits: tuple[float, float],
    kind: str,
) -> None:
    """The colours as they look on a middle grey, with values."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis = figure.add_axes(place)
    values = np.linspace(*limits, 256)[None]
    colours = blend(np.full(values.shape, 0.6), values, signed=layer.signed, limits=limits)
    axis.imshow(
        colours, extent=(*limits, 0, 1), aspect="auto",
        interpolation="none" if kind == "svg" else "antialiased",
    )  # fmt: skip
    axis.grid(visible=False)
    axis.set_yticks([])
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, min_n_ticks=3))
    sign = "+" if layer.signed else ""
    axis.xaxis.set_major_formatter(
        FuncFormatter(lambda v, _: "0" if layer.signed and abs(v) < 1e-9 else f"{v:{sign}.3g}")
    )
    axis.tick_params(labelsize=8, length=2.5, pad=2)
    axis.set_xlabel(shortened(layer.legend, 56), labelpad=2, parse_math=False)
    axis.spines[:].set_visible(False)
