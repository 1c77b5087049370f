"""From a sample to pixels: lesion, skin and light, then the artefact, then the camera."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from biigma_cli.data.synthetic.artefacts import PAINTERS
from biigma_cli.data.synthetic.fields import (
    Field,
    absorb,
    axes,
    fractal,
    noise,
    ridge,
    step,
    streaky,
)
from biigma_cli.data.synthetic.lesion import REACH, Canvas, paint_lesion
from biigma_cli.data.synthetic.plan import LOOK, PAINT_ARTEFACT, PHOTO, Sample, stream

Pixels = npt.NDArray[np.uint8]  # (side, side, 3)
Mask = npt.NDArray[np.bool_]  # (side, side)

# Optical density per unit of pigment in R, G, B of sRGB, by eye and from the medians of lesions and
# of the skin around them.
DENSITY = {
    "brown": (0.50, 1.00, 1.20),
    "black": (1.15, 1.20, 1.10),
    "blue": (0.86, 0.62, 0.40),
    "red": (0.17, 0.92, 0.70),
    "purple": (0.72, 1.00, 0.38),
    "yellow": (0.05, 0.22, 0.75),
}
WHITE = (0.97, 0.90, 0.93)

# Smaller images are painted larger and averaged down, so that fine structures do not alias.
_MIN_SIDE = 128


def render(sample: Sample, side: int) -> tuple[Pixels, Mask]:
    """The image, uint8 `(side, side, 3)` RGB, and its lesion mask, bool `(side, side)`.

    Depends on the two arguments alone.
    """
    return _render(sample, side, artefact=True)


def render_clean(sample: Sample, side: int) -> tuple[Pixels, Mask]:
    """As `render`, without the artefact: what lies under it."""
    return _render(sample, side, artefact=False)


def skin_colour(ita: float) -> tuple[float, float, float]:
    """sRGB in [0, 1] of skin with this typology angle, ITA = atan((L* - 50) / b*) in degrees.

    b* is set so that lightness and chroma go together as in skin; a* grows a little as L* falls.
    """
    b = 8.0 + 10.0 * max(0.0, 1 - ((ita - 15) / 80) ** 2)
    lightness = 50 + b * math.tan(math.radians(ita))
    return lab_to_srgb(lightness, 11.0 + 2.5 * max(0.0, 1 - ((ita - 15) / 60) ** 2), b)


def lab_to_srgb(lightness: float, a: float, b: float) -> tuple[float, float, float]:
    """CIELAB (D65) to sRGB in [0, 1], clipped."""
    fy = (lightness + 16) / 116
    xyz = []
    for f, white in ((fy + a / 500, 0.95047), (fy, 1.0), (fy - b / 200, 1.08883)):
        xyz.append(white * (f**3 if f > 6 / 29 else (f - 16 / 116) * 3 * (6 / 29) ** 2))
    x, y, z = xyz
    linear = (
        3.2406 * x - 1.5372 * y - 0.4986 * z,
        -0.9689 * x + 1.8758 * y + 0.0415 * z,
        0.0557 * x - 0.2040 * y + 1.0570 * z,
    )
    red, green, blue = (
        12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055
        for v in (min(max(v, 0.0), 1.0) for v in linear)
    )
    return red, green, blue


def _render(sample: Sample, side: int, *, artefact: bool) -> tuple[Pixels, Mask]:
    factor = -(-_MIN_SIDE // side)
    large = side * factor
    lesion = paint_lesion(stream(sample.seed, sample.lesion, LOOK), sample.label, large)
    rng = stream(sample.seed, sample.photo, PHOTO)
    level, maps = _pose(lesion, rng)
    mask = level > 0
    image = _expose(rng, sample, maps, large)
    if artefact:
        own = stream(sample.seed, sample.photo, PAINT_ARTEFACT)
        PAINTERS[sample.artefact](own, image, level)
    return _camera(rng, image, factor), _shrink(mask, factor)


def _pose(lesion: Canvas, rng: np.random.Generator) -> tuple[Field, dict[str, Field]]:
    """Turned, scaled and shifted: level and pigment maps in the photo's frame."""
    side = lesion.side
    angle = float(rng.uniform(0, 2 * math.pi))
    scale = float(rng.uniform(0.88, 1.12))
    free = max(0.0, 0.96 - scale * min(REACH, 1.5 * lesion.radius)) * 0.8
    shift_x, shift_y = (float(rng.uniform(-free, free)) for _ in range(2))
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    c, s = math.cos(angle) / scale, math.sin(angle) / scale
    half = side / 2
    x0, y0 = half * (1 + shift_x), half * (1 + shift_y)
    matrix = (
        c, s, half - c * x0 - s * y0,
        -s * mirror, c * mirror, half + mirror * (s * x0 - c * y0),
    )  # fmt: skip

    def moved(values: npt.NDArray[Any], fill: float) -> Field:
        image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
        turned = image.transform(
            (side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill
        )
        return np.asarray(turned, dtype=np.float32)

    maps = {}
    for name in Canvas.PIGMENTS:
        values = getattr(lesion, name)
        if values.any():
            maps[name] = moved(values, 0.0)
    return moved(lesion.level, -1.0), maps


def _expose(
    rng: np.random.Generator, sample: Sample, maps: dict[str, Field], side: int
) -> npt.NDArray[np.float32]:
    """Skin with the lesion in it under the dermatoscope's light: (3, side, side) in [0, 1]."""
    x, y = axes(side)

    def uniform(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    # Skin: mottled blood and pigment, creases, pores.
    red = uniform(0.015, 0.06) * fractal(rng, side, 5, 4, 0.75)
    brown = uniform(0.01, 0.03) * fractal(rng, side, 4, 5, 0.8)
    vessels = ridge(fractal(rng, side, uniform(9, 15), 2), 0.16)
    red += uniform(0.0, 0.12) * vessels * step(noise(rng, side, 3), -0.4, 1.0)
    angle = uniform(0, math.pi)
    along = uniform(5, 9)
    creases = ridge(streaky(rng, side, along, uniform(30, 45), angle), 0.3)
    creases += ridge(streaky(rng, side, along, uniform(30, 45), angle + uniform(0.9, 1.6)), 0.3)
    brown += uniform(0.0, 0.035) * creases
    fine = noise(rng, side, uniform(45, 75))
    brown -= uniform(0.01, 0.035) * fine
    if uniform(0, 1) < 0.35:
        brown += uniform(0.06, 0.28) * step(fractal(rng, side, uniform(6, 14), 3), 0.4, 2.2)
    pores = step(noise(rng, side, uniform(35, 50)), 0.9, 1.5)
    pale = uniform(0.0, 0.07) * pores
    # Light: uneven, from one side, darker towards the rim; a camera's own white balance.
    toward = uniform(0, 2 * math.pi)
    light = (
        uniform(0.98, 1.14)
        * (1.14 - 0.0022 * (sample.ita + 60))
        * (
            1
            + uniform(0, 0.07) * (x * math.cos(toward) + y * math.sin(toward))
            + 0.025 * noise(rng, side, 2)
            - uniform(0.02, 0.16) * (x * x + y * y) * 0.5
        )
    )
    pinkness, blueness = uniform(-0.3, 1.0), uniform(-0.2, 1.0)
    tone = max(0.0, min(1.0, (sample.ita + 60) / 90))
    balance = (1.0 + 0.02 * pinkness, 1.0 - 0.05 * pinkness, 1.0 + 0.24 * blueness * tone)

    maps = dict(maps)
    white = np.clip(maps.pop("white", np.float32(0)) + pale, 0, 0.85)
    maps["red"] = maps.get("red", np.float32(0)) + red
    maps["brown"] = maps.get("brown", np.float32(0)) + brown
    base = skin_colour(sample.ita)
    image = np.empty((3, side, side), np.float32)
    lowest = 0.25  # skin's own maps go below zero where it is paler than its mean
    for channel in range(3):
        density = np.full((side, side), lowest, np.float32)
        for name, values in maps.items():
            density += np.float32(DENSITY[name][channel]) * values
        left = absorb(density) * np.float32((1 + lowest / 8) ** 8 * base[channel])
        # Scattered light passes the epidermis, too: white is never whiter than skin allows.
        glow = np.float32(WHITE[channel] * (0.35 + 0.65 * base[channel] ** 0.5))
        left += white * (glow - left)
        image[channel] = left * light * np.float32(balance[channel])
    return image


def _camera(rng: np.random.Generator, image: npt.NDArray[np.float32], factor: int) -> Pixels:
    """Highlights rolled off, sensor noise, a little blur, eight bits."""
    side = image.shape[1]
    soft = float(rng.uniform(0.0014, 0.0034)) * side
    grain = float(rng.uniform(0.004, 0.013))
    # Above 0.8 the curve bends, as a camera's does.
    bright = np.maximum(image - np.float32(0.8), 0)
    image = np.minimum(image, np.float32(0.8))
    image += bright / (1 + bright * np.float32(2.6))
    noise_ = np.float32(grain) * rng.standard_normal((side, side), dtype=np.float32)
    image += noise_
    for channel in range(3):  # colour noise, weaker
        image[channel] += np.float32(0.5) * np.roll(noise_, 17 * (channel + 1), axis=0)
    image *= 255
    image += np.float32(0.5)
    bytes_ = np.clip(image, 0, 255, out=image).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(bytes_.transpose(1, 2, 0))).filter(
        ImageFilter.GaussianBlur(soft)
    )
    return np.array(picture.reduce(factor) if factor > 1 else picture)


def _shrink(mask: Mask, factor: int) -> Mask:
    """Majority of each block of `factor` x `factor`."""
    if factor == 1:
        return mask
    side = mask.shape[0] // factor
    votes = mask.reshape(side, factor, side, factor).sum((1, 3))
    return np.asarray(2 * votes > factor * factor)
