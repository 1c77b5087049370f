"""Random fields and brushes on a square canvas, the stuff all layers are made of.

Coordinates run from -1 to 1 over the canvas, y downwards; lengths are in half sides. A field drawn
at another side is the same field sampled more coarsely or finely.

Only sums, products, quotients and square roots are taken of whole arrays, and no array is summed
up: these round alike on every processor, where numpy's `exp`, `sin` or `mean` may not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Field = npt.NDArray[np.float32]  # (side, side)

_BILINEAR = Image.Resampling.BILINEAR
_SUPER = 3  # strokes are drawn this much larger, then averaged


def axes(side: int) -> tuple[Field, Field]:
    """x as (1, side) and y as (side, 1)."""
    line = ((np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / side)) - 1
    return line[None, :], line[:, None]


def noise(rng: np.random.Generator, side: int, cells: float) -> Field:
    """Smooth noise of mean 0 and deviation about 0.7 with `cells` random values across."""
    grid = rng.standard_normal((math.ceil(cells) + 4,) * 2, dtype=np.float32)
    at = (np.arange(side, dtype=np.float64) + 0.5) * (cells / side)
    whole = at.astype(np.intp)
    t = (at - whole).astype(np.float32)[:, None]
    # Catmull-Rom in one direction, then the other; rows are gathered whole, which makes it fast.
    weights = (
        ((2 - t) * t - 1) * t / 2,
        ((3 * t - 5) * t * t + 2) / 2,
        ((4 - 3 * t) * t + 1) * t / 2,
        (t - 1) * t * t / 2,
    )
    rows = grid
    for _ in range(2):
        lines = np.ascontiguousarray(rows.T)
        rows = np.take(lines, whole, axis=0)
        rows *= weights[0]
        for i in (1, 2, 3):
            part = np.take(lines, whole + i, axis=0)
            part *= weights[i]
            rows += part
    return rows


def fractal(
    rng: np.random.Generator, side: int, cells: float, octaves: int, gain: float = 0.55
) -> Field:
    """Sum of `octaves` of noise, each twice as fine and `gain` times as strong."""
    total = noise(rng, side, cells)
    for octave in range(1, octaves):
        if cells * 2**octave > side:  # finer than pixels: a camera would average it away
            break
        total += np.float32(gain**octave) * noise(rng, side, cells * 2**octave)
    return total


def streaky(
    rng: np.random.Generator, side: int, along: float, across: float, angle: float
) -> Field:
    """Noise stretched in one direction: `along` and `across` values per canvas width."""
    reach = 1.5
    shape = (math.ceil(across * reach) + 4, math.ceil(along * reach) + 4)
    grid = rng.standard_normal(shape, dtype=np.float32)
    c, s = math.cos(angle) / side, math.sin(angle) / side
    matrix = (
        along * c, along * s, shape[1] / 2 - along * (c + s) * side / 2,
        -across * s, across * c, shape[0] / 2 - across * (c - s) * side / 2,
    )  # fmt: skip
    image = Image.fromarray(grid)
    return np.array(image.transform((side, side), Image.Transform.AFFINE, matrix, _BILINEAR))


def step(value: Any, low: float, high: float) -> Any:
    """Smooth step: 0 at `low`, 1 at `high`; `low` may be the larger."""
    t = (value - low) * np.float32(1 / (high - low))
    np.maximum(t, 0, out=t)
    np.minimum(t, 1, out=t)
    smooth = t * -2
    smooth += 3
    smooth *= t
    smooth *= t
    return smooth


def ridge(value: Field, width: float) -> Field:
    """Lines along the zeros of a noise field, 1 on the line and 0 from `width` on."""
    return np.asarray(step(np.abs(value), width, 0.0), dtype=np.float32)


def absorb(density: Field) -> Field:
    """Share of light left behind an optical density: (1 + d/8)^-8, which is close to exp(-d)."""
    base = 1 + np.maximum(density, 0) * np.float32(1 / 8)
    base *= base
    base *= base
    base *= base
    return np.asarray(1 / base, dtype=np.float32)


def lattice(x: Field, y: Field, cell: float, angle: float) -> Field:
    """A honeycomb: -1.5 at its corners, about -1 on its edges, up to 3 in the middle of its holes.

    Args:
        x: abscissas, bent by the caller to taste; (side, side).
        y: ordinates.
        cell: distance of neighbouring holes.
        angle: turn in radians.
    """
    total = np.zeros(np.broadcast(x, y).shape, np.float32)
    for i in range(3):
        turn = angle + i * math.pi / 3
        scale = 2 / (math.sqrt(3) * cell)
        t = x * np.float32(math.cos(turn) * scale) + y * np.float32(math.sin(turn) * scale)
        # A cosine made of two parabolas.
        t += np.float32(0.25)
        t -= np.rint(t)
        total += t * (8 - 16 * np.abs(t))
    return total


def spot(
    field: Field,
    at: tuple[float, float],
    radii: tuple[float, float],
    angle: float,
    value: float,
    soft: float = 0.5,
) -> None:
    """Lay an ellipse into `field` in place, by maximum; `soft` is the share of it that fades."""
    side = field.shape[0]
    reach = max(radii)
    left, right = (round((at[0] + d + 1) * side / 2) for d in (-reach, reach))
    top, bottom = (round((at[1] + d + 1) * side / 2) for d in (-reach, reach))
    left, top = max(left - 1, 0), max(top - 1, 0)
    right, bottom = min(right + 1, side), min(bottom + 1, side)
    if left >= right or top >= bottom:
        return
    dx = (np.arange(left, right, dtype=np.float32)[None, :] + 0.5) * (2 / side) - (1 + at[0])
    dy = (np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5) * (2 / side) - (1 + at[1])
    c, s = math.cos(angle), math.sin(angle)
    # A spot finer than a pixel is widened to one and paled by as much.
    wide = [max(r, 1.0 / side) for r in radii]
    value *= radii[0] * radii[1] / (wide[0] * wide[1])
    u, v = (dx * c + dy * s) / wide[0], (dy * c - dx * s) / wide[1]
    shape = step(np.sqrt(u * u + v * v), 1.0, 1.0 - soft) * np.float32(value)
    window = field[top:bottom, left:right]
    np.maximum(window, shape, out=window)


class Strokes:
    """Lines of changing width on a canvas, drawn large and averaged down."""

    def __init__(self, side: int) -> None:
        self.side = side
        self._image = Image.new("L", (side * _SUPER, side * _SUPER))
        self._draw = ImageDraw.Draw(self._image)

    def line(
        self, points: Sequence[tuple[float, float]], widths: Sequence[float], value: float = 1.0
    ) -> None:
        """A polyline; `widths` in half sides, one for each point."""
        scale = self.side * _SUPER / 2
        for (x0, y0), (x1, y1), width in zip(points, points[1:], widths, strict=False):
            pixels = width * scale
            ink = round(255 * value * min(1.0, pixels))
            ends = ((x0 + 1) * scale, (y0 + 1) * scale, (x1 + 1) * scale, (y1 + 1) * scale)
            whole = max(1, round(pixels))
            self._draw.line(ends, fill=ink, width=whole)
            if whole > 2:  # round joints
                r = whole / 2 - 0.5
                self._draw.ellipse((ends[2] - r, ends[3] - r, ends[2] + r, ends[3] + r), fill=ink)

    def polygon(self, points: Sequence[tuple[float, float]], value: float = 1.0) -> None:
        """A filled shape."""
        scale = self.side * _SUPER / 2
        flat = [((x + 1) * scale, (y + 1) * scale) for x, y in points]
        self._draw.polygon(flat, fill=round(255 * value))

    def field(self) -> Field:
        """What was drawn, in [0, 1]."""
        small = np.asarray(self._image.reduce(_SUPER), dtype=np.float32)
        return small * np.float32(1 / 255)


def curve(
    rng: np.random.Generator,
    start: tuple[float, float],
    angle: float,
    length: float,
    *,
    bend: float,
    wobble: float,
    steps: int,
) -> list[tuple[float, float]]:
    """Points of a line that sets out at `angle`, turns by `bend` over its length and wobbles."""
    x, y = start
    points = [start]
    turns = rng.standard_normal(steps) * wobble
    for turn in turns:
        angle += bend / steps + float(turn)
        x += math.cos(angle) * length / steps
        y += math.sin(angle) * length / steps
        points.append((x, y))
    return points
