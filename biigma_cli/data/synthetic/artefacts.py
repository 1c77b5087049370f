"""What lies on the skin or in the light path, and has nothing to do with the lesion.

Each painter takes a stream of its own, the image to paint on in place, float32 `(3, side, side)` in
about [0, 1], and the lesion's level (positive inside, in half sides), which it keeps clear of;
hair may cross.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from biigma_cli.data.synthetic.fields import (
    Field,
    Strokes,
    axes,
    curve,
    fractal,
    noise,
    ridge,
    spot,
    step,
)

RGB = npt.NDArray[np.float32]
Painter = Callable[[np.random.Generator, RGB, Field], None]
Colour = tuple[float, float, float]


def _clear(level: Field, gap: float = 0.04) -> Field:
    """1 at least `gap` away from the lesion, 0 on it."""
    return np.asarray(step(level, 0.0, -gap), dtype=np.float32)


def _multiply(image: RGB, amount: Field, colour: Colour) -> None:
    """Tint as ink and shade do: `colour` is what is left of the light at full amount."""
    for channel, value in enumerate(colour):
        image[channel] *= 1 - amount * np.float32(1 - value)


def _cover(image: RGB, amount: Field, colour: Colour, shading: Field | float = 1.0) -> None:
    """Lay an opaque colour over."""
    for channel, value in enumerate(colour):
        image[channel] += amount * (np.float32(value) * shading - image[channel])


def _hair(rng: np.random.Generator, image: RGB, level: Field) -> None:  # noqa: ARG001
    side = image.shape[1]
    pale = rng.random() < 0.22
    short = rng.random() < 0.3  # stubble
    main = float(rng.uniform(0, 2 * math.pi))
    strokes, shade = Strokes(side), Strokes(side)
    count = int(rng.uniform(26, 60)) if short else int(rng.uniform(7, 24))
    for _ in range(count):
        angle = main + float(rng.normal()) * 0.45
        start = (float(rng.uniform(-1.1, 1.1)), float(rng.uniform(-1.1, 1.1)))
        length = float(rng.uniform(0.08, 0.22) if short else rng.uniform(0.5, 1.7))
        bend = float(rng.normal()) * (0.25 if short else 0.8)
        steps = 5 if short else 16
        points = curve(rng, start, angle, length, bend=bend, wobble=0.02, steps=steps)
        thick = float(rng.uniform(0.009, 0.02))
        widths = [thick * (1 - 0.75 * (i / steps) ** 2) for i in range(steps)]
        strokes.line(points, widths, float(rng.uniform(0.65, 1.0)))
        offset = [(x + 0.012, y + 0.014) for x, y in points]
        shade.line(offset, [2 * w for w in widths], 0.5)
    _multiply(image, 0.22 * shade.field(), (0.5, 0.4, 0.4))
    colour = (0.86, 0.82, 0.80) if pale else (0.17, 0.11, 0.10)
    if not pale and rng.random() < 0.35:
        colour = (0.36, 0.23, 0.16)
    _cover(image, strokes.field() * np.float32(0.55 if pale else 0.88), colour)


def _ruler(rng: np.random.Generator, image: RGB, level: Field) -> None:
    side = image.shape[1]
    edge = float(rng.uniform(0.70, 0.95))  # distance of the scale from the middle
    turn = int(rng.integers(4)) * math.pi / 2 + float(rng.normal()) * 0.12
    gap = float(rng.uniform(0.055, 0.12))
    first = float(rng.uniform(-1.5, -1.4))
    strokes = Strokes(side)
    c, s = math.cos(turn), math.sin(turn)

    def at(u: float, v: float) -> tuple[float, float]:
        return u * c - v * s, u * s + v * c

    faint = float(rng.uniform(0.6, 1.0))
    width = float(rng.uniform(0.010, 0.016))
    for i in range(int(3 / gap)):
        u = first + gap * i
        long = 0.16 if i % 10 == 0 else 0.12 if i % 5 == 0 else 0.075
        strokes.line([at(u, edge - long), at(u, edge)], [width], faint)
    if rng.random() < 0.7:
        strokes.line([at(-1.6, edge), at(1.6, edge)], [width], faint)
    marks = strokes.field() * (0.85 + 0.2 * noise(rng, side, 40))
    colour = (0.13, 0.12, 0.15) if rng.random() < 0.8 else (0.15, 0.2, 0.45)
    _cover(image, np.clip(np.float32(0.85) * marks, 0, 1) * _clear(level), colour)


def _ink(rng: np.random.Generator, image: RGB, level: Field) -> None:
    """Gentian violet from a skin marker: strokes that soak into the creases."""
    side = image.shape[1]
    strokes = Strokes(side)
    for _ in range(int(rng.integers(1, 3))):
        around = float(rng.uniform(0, 2 * math.pi))
        far = float(rng.uniform(0.66, 0.92))
        start = (far * math.cos(around), far * math.sin(around))
        angle = around + math.pi / 2 + float(rng.normal()) * 0.5
        points = curve(rng, start, angle, float(rng.uniform(0.4, 1.1)), bend=float(rng.normal()),
                       wobble=0.08, steps=14)  # fmt: skip
        thick = float(rng.uniform(0.05, 0.14))
        strokes.line(points, [thick] * 14, float(rng.uniform(0.7, 1.0)))
    drawn = np.asarray(Image.fromarray(strokes.field()).resize((48, 48)).resize((side, side), 3))
    soaked = drawn * (0.95 + 0.16 * fractal(rng, side, 12, 4, 0.7)) + 0.2 * strokes.field()
    amount = step(soaked, 0.05, 1.2) * _clear(level)
    colour: Colour = (0.28, 0.16, 0.58) if rng.random() < 0.7 else (0.16, 0.30, 0.62)
    _multiply(image, np.clip(amount, 0, 1), colour)


def _gel(rng: np.random.Generator, image: RGB, level: Field) -> None:
    """Bubbles in the immersion gel: a dark rim, a bright crescent, a clear middle."""
    side = image.shape[1]
    x, y = axes(side)
    clear = _clear(level, 0.08)
    toward = float(rng.uniform(0, 2 * math.pi))
    cx, cy = math.cos(toward), math.sin(toward)
    dark = np.zeros((side, side), np.float32)
    bright = np.zeros((side, side), np.float32)
    for i in range(int(rng.uniform(10, 34))):
        px, py = (float(rng.uniform(-1, 1)) for _ in range(2))
        r = float(rng.uniform(0.08, 0.22) if i < 4 else rng.uniform(0.02, 0.075))
        dx, dy = x - px, y - py
        away = np.sqrt(dx * dx + dy * dy) * np.float32(1 / r)
        rim = np.maximum(0, 1 - np.abs(away - 0.93) * np.float32(max(3.0, 9 * r / 0.1)))
        lit = step((dx * cx + dy * cy) * np.float32(1 / r), -0.1, 0.9)
        np.maximum(dark, rim * (1 - 0.8 * lit), out=dark)
        np.maximum(bright, rim * lit, out=bright)
        spot(bright, (px + 0.5 * r * cx, py + 0.5 * r * cy), (0.12 * r, 0.12 * r), 0, 0.9, 0.8)
    _multiply(image, 0.5 * dark * clear, (0.35, 0.3, 0.32))
    _cover(image, 0.6 * bright * clear, (0.97, 0.95, 0.96))


def _corners(rng: np.random.Generator, image: RGB, level: Field) -> None:
    """The round field of view of a dermatoscope."""
    x, y = axes(image.shape[1])
    px, py = (float(rng.normal()) * 0.05 for _ in range(2))
    r = float(rng.uniform(1.0, 1.16))
    away = np.sqrt((x - px) ** 2 + (y - py) ** 2)
    soft = float(rng.uniform(0.02, 0.09))
    black = step(away, r - soft, r + soft) * _clear(level)
    shade = step(away, r - 0.5, r) * _clear(level, 0.2)
    _multiply(image, 0.25 * shade, (0.4, 0.4, 0.45))
    _cover(image, black, (0.025, 0.02, 0.025))


def _sticker(rng: np.random.Generator, image: RGB, level: Field) -> None:
    """A coloured patch stuck beside the lesion, partly in view."""
    side = image.shape[1]
    x, y = axes(side)
    angle = float(rng.uniform(0, 2 * math.pi))
    far = float(rng.uniform(0.95, 1.25))
    size = float(rng.uniform(0.34, 0.55))
    dx = x - far * math.cos(angle) + 0.01 * noise(rng, side, 5)
    dy = y - far * math.sin(angle) + 0.01 * noise(rng, side, 5)
    away = np.sqrt(dx * dx + dy * dy)
    if rng.random() < 0.3:
        turn = angle + float(rng.normal()) * 0.3
        u, v = dx * math.cos(turn) + dy * math.sin(turn), dy * math.cos(turn) - dx * math.sin(turn)
        away = np.maximum(np.abs(u), np.abs(v) * 0.7)
    palette = ((0.36, 0.47, 0.66), (0.86, 0.77, 0.45), (0.45, 0.60, 0.48), (0.82, 0.52, 0.44))
    colour = palette[int(rng.integers(len(palette)))]
    clear = _clear(level, 0.02)
    _multiply(image, 0.45 * step(away, size + 0.07, size - 0.02) * clear, (0.45, 0.38, 0.38))
    paper = (
        0.86 + 0.035 * fractal(rng, side, 12, 4, 0.8) + 0.1 * noise(rng, side, 2)
        + 0.16 * step(away, size - 0.03, size)
    )  # fmt: skip
    _cover(image, step(away, size + 0.008, size - 0.008) * clear, colour, paper)


def _flash(rng: np.random.Generator, image: RGB, level: Field) -> None:
    """Light thrown straight back by moist skin: a hazy glare with sharp glints."""
    side = image.shape[1]
    x, y = axes(side)
    angle = float(rng.uniform(0, 2 * math.pi))
    far = float(rng.uniform(0.62, 0.9))
    dx, dy = x - far * math.cos(angle), y - far * math.sin(angle)
    size = float(rng.uniform(0.28, 0.5))
    glare = step(np.sqrt(dx * dx + dy * dy) + 0.1 * noise(rng, side, 5), size, 0.0)
    clear = _clear(level, 0.1)
    _cover(image, 0.4 * glare * clear, (1.0, 0.99, 1.0))
    glints = ridge(fractal(rng, side, 22, 2), 0.16) * step(noise(rng, side, 30), 0.0, 0.9)
    glints = glints * step(glare, 0.02, 0.5) * float(rng.uniform(0.6, 1.0))
    glints += 0.55 * step(glare, 0.7, 1.0) * step(noise(rng, side, 9), -0.5, 0.9)
    _cover(image, np.clip(glints, 0, 0.95) * clear, (1.08, 1.08, 1.1))


PAINTERS: dict[str, Painter] = {
    "ruler": _ruler, "hair": _hair, "ink": _ink, "gel": _gel, "corners": _corners,
    "sticker": _sticker, "flash": _flash,
}  # fmt: skip
