"""The lesion: what dermatologists look for, drawn from class-conditional distributions.

A lesion is a set of pigment maps in its own pose. `LOOKS` says how often and how strongly each
class shows each structure; classes share structures, so that no single one gives the class away.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from biigma_cli.data.synthetic.fields import (
    Field,
    Strokes,
    axes,
    curve,
    fractal,
    lattice,
    ridge,
    spot,
    step,
)

Range = tuple[float, float]

# No lesion leaves this radius around the middle of its canvas.
REACH = 0.84


@dataclass(frozen=True, kw_only=True)
class Look:
    """Distributions of one class: ranges are uniform, chances are of a structure being there.

    Attributes:
        radius: in half sides.
        elongation: long over short axis.
        irregular: how far the outline departs from an ellipse.
        asymmetry: how unevenly the pigment lies.
        edge: width of the border in half sides.
        melanin: brown pigment, as optical density in green.
        reds: haemoglobin, likewise.
        patchy: share of the pigment that comes in patches.
        chances: structure to probability; the order is that of painting.
    """

    radius: Range
    elongation: Range
    irregular: Range
    asymmetry: Range
    edge: Range
    melanin: Range
    reds: Range
    patchy: Range
    chances: dict[str, float] = field(default_factory=dict)


LOOKS = {
    "MEL": Look(
        radius=(0.32, 0.58), elongation=(1.05, 1.6), irregular=(0.35, 0.8), asymmetry=(0.4, 1.0),
        edge=(0.06, 0.2), melanin=(0.45, 1.2), reds=(0.02, 0.45), patchy=(0.45, 0.9),
        chances={
            "atypical_network": 0.7, "network": 0.06, "globules": 0.5, "dots": 0.55, "blotch": 0.7,
            "streaks": 0.5, "veil": 0.65, "regression": 0.4, "dotted_vessels": 0.12, "milia": 0.04,
        },
    ),
    "NV": Look(
        radius=(0.24, 0.54), elongation=(1.0, 1.4), irregular=(0.06, 0.35), asymmetry=(0.0, 0.35),
        edge=(0.1, 0.34), melanin=(0.35, 1.0), reds=(0.0, 0.38), patchy=(0.1, 0.4),
        chances={
            "network": 0.62, "atypical_network": 0.06, "globules": 0.3, "dots": 0.2, "blotch": 0.1,
            "dark_middle": 0.45, "streaks": 0.05, "veil": 0.04, "milia": 0.04,
        },
    ),
    "BCC": Look(
        radius=(0.26, 0.54), elongation=(1.0, 1.5), irregular=(0.2, 0.6), asymmetry=(0.2, 0.8),
        edge=(0.12, 0.36), melanin=(0.02, 0.25), reds=(0.08, 0.36), patchy=(0.3, 0.8),
        chances={
            "pearl": 0.6, "nests": 0.65, "leaves": 0.35, "arborising_vessels": 0.8, "ulcer": 0.35,
            "white_lines": 0.35, "milia": 0.08, "dots": 0.15,
        },
    ),
    "AKIEC": Look(
        radius=(0.34, 0.58), elongation=(1.0, 1.5), irregular=(0.3, 0.75), asymmetry=(0.2, 0.8),
        edge=(0.2, 0.5), melanin=(0.03, 0.38), reds=(0.12, 0.42), patchy=(0.5, 0.95),
        chances={
            "strawberry": 0.7, "scale": 0.7, "dotted_vessels": 0.4, "ulcer": 0.12,
            "atypical_network": 0.08, "dots": 0.2,
        },
    ),
    "BKL": Look(
        radius=(0.28, 0.58), elongation=(1.0, 1.6), irregular=(0.2, 0.6), asymmetry=(0.1, 0.7),
        edge=(0.04, 0.15), melanin=(0.25, 0.85), reds=(0.0, 0.3), patchy=(0.25, 0.7),
        chances={
            "keratin": 0.65, "moth_eaten": 0.55, "ridges": 0.5, "milia": 0.7, "comedones": 0.6,
            "network": 0.1, "dots": 0.12, "scale": 0.12, "blotch": 0.1, "veil": 0.05,
        },
    ),
    "DF": Look(
        radius=(0.28, 0.52), elongation=(1.0, 1.3), irregular=(0.1, 0.35), asymmetry=(0.0, 0.4),
        edge=(0.25, 0.55), melanin=(0.22, 0.55), reds=(0.05, 0.32), patchy=(0.15, 0.5),
        chances={
            "delicate_network": 0.8, "white_patch": 0.85, "dotted_vessels": 0.2, "scale": 0.08,
            "white_lines": 0.2,
        },
    ),
    "VASC": Look(
        radius=(0.2, 0.5), elongation=(1.0, 1.35), irregular=(0.1, 0.35), asymmetry=(0.0, 0.5),
        edge=(0.06, 0.2), melanin=(0.0, 0.12), reds=(0.6, 1.3), patchy=(0.05, 0.4),
        chances={"lacunae": 0.75, "venous": 0.45, "thrombus": 0.25, "veil": 0.08, "dots": 0.05},
    ),
}  # fmt: skip


class Canvas:
    """A lesion in the making.

    Attributes:
        level: about the distance in half sides to the outline, positive inside; (side, side).
        inside: 1 within, 0 without, soft over the lesion's edge.
        brown: melanin near the surface.
        black: melanin in the horny layer.
        blue: melanin deep down, blue-grey by scattering.
        red: oxygenated blood.
        purple: venous blood.
        yellow: keratin and serum.
        white: scar, scale and cysts: share of light scattered back.
    """

    PIGMENTS = ("brown", "black", "blue", "red", "purple", "yellow", "white")

    def __init__(self, rng: np.random.Generator, look: Look, side: int) -> None:
        self.rng = rng
        self.side = side
        self.x, self.y = axes(side)
        self.radius = self.draw(look.radius)
        self.edge = self.draw(look.edge) * (0.5 + self.radius)
        self.melanin = self.draw(look.melanin)
        self.reds = self.draw(look.reds)
        self.patchy = self.draw(look.patchy)
        self.asymmetry = self.draw(look.asymmetry)
        self.brown, self.black, self.blue, self.red, self.purple, self.yellow, self.white = (
            np.zeros((side, side), np.float32) for _ in range(7)
        )
        self._outline(self.draw(look.elongation), self.draw(look.irregular))

    def draw(self, bounds: Range) -> float:
        """Uniform within bounds."""
        return float(self.rng.uniform(*bounds))

    def noise(self, size: float, octaves: int = 1) -> Field:
        """Noise whose features measure `size` half sides."""
        return fractal(self.rng, self.side, 2 / size, octaves)

    def _outline(self, elongation: float, irregular: float) -> None:
        turn = self.draw((0, math.pi))
        c, s = math.cos(turn), math.sin(turn)
        bend = 0.35 * self.radius * irregular
        x = self.x + bend * self.noise(0.9 * self.radius)
        y = self.y + bend * self.noise(0.9 * self.radius)
        stretch = math.sqrt(elongation)
        u, v = (x * c + y * s) / stretch, (y * c - x * s) * stretch
        away = np.sqrt(u * u + v * v)
        self.level = self.radius - away
        self.level += (0.05 + 0.2 * irregular) * self.radius * self.noise(0.55 * self.radius)
        rough = (0.012 + 0.05 * irregular) * (0.3 + self.radius)
        self.level += rough * self.noise(0.09, 3)
        r = np.sqrt(self.x * self.x + self.y * self.y)
        self.level -= 4 * step(r, 0.78 * REACH, 1.15 * REACH)
        # The border is sharp here and soft there.
        width = self.edge * (0.75 + 0.5 * step(self.noise(1.2 * self.radius), -0.9, 0.9))
        # Pigment thins out in grains, not in a clean ramp.
        ragged = self.level + (0.008 + 0.09 * self.edge) * self.noise(0.1, 3)
        self.inside = step(ragged / width, -0.5, 0.75)
        self.depth = np.clip(self.level / self.radius, 0, 1)

    def place(self, low: float = 0.0, high: float = 0.9) -> tuple[float, float]:
        """A random spot within the lesion, between these shares of the way to the border."""
        for _ in range(20):
            angle = self.draw((0, 2 * math.pi))
            far = self.radius * math.sqrt(self.draw((low * low, high * high)))
            at = (far * math.cos(angle), far * math.sin(angle))
            if self.level_at(at) > 0.02:
                break
        return at

    def level_at(self, at: tuple[float, float]) -> float:
        """The level at a point, or -1 off the canvas."""
        column, row = (int((v + 1) * self.side / 2) for v in at)
        if not (0 <= column < self.side and 0 <= row < self.side):
            return -1.0
        return float(self.level[row, column])

    def border(self, angle: float) -> tuple[float, float]:
        """The outermost point of the outline in a direction."""
        c, s = math.cos(angle), math.sin(angle)
        best = 0.1
        for i in range(1, 60):
            far = REACH * i / 50
            if self.level_at((far * c, far * s)) > 0:
                best = far
        return best * c, best * s

    def sector(self, spread: float) -> Field:
        """1 on one side of the lesion, 0 on the other, with a soft front that wanders."""
        angle = self.draw((0, 2 * math.pi))
        front = self.x * math.cos(angle) + self.y * math.sin(angle)
        front = front / self.radius + 0.5 * self.noise(0.6 * self.radius)
        return np.asarray(step(front, spread - 0.5, spread + 0.5), dtype=np.float32)

    def net(self, *, cell: Range, bend: float, line: float) -> Field:
        """The lines of a pigment network: 1 on a line, 0 in a hole."""
        size = self.draw(cell)
        warp = 0.42 * size * bend
        x = self.x + warp * self.noise(2.6 * size) + 2 * warp * self.noise(8 * size)
        y = self.y + warp * self.noise(2.6 * size) + 2 * warp * self.noise(8 * size)
        comb = lattice(x, y, size, self.draw((0, math.pi)))
        # Lines vary in width with place.
        comb += np.float32(0.5 * bend) * self.noise(3 * size)
        comb += np.float32(0.35) * self.noise(0.7 * size)
        return np.asarray(step(comb, line + 1.1, line - 1.0), dtype=np.float32)


def _base(c: Canvas) -> None:
    """Pigment and blood that fill the outline."""
    patches = step(c.noise(0.5 * c.radius, 4), -0.9, 1.1)
    grain = 1 + 0.14 * c.noise(0.05, 3) + 0.2 * c.noise(0.22, 2)
    uneven = 1 - 0.6 * c.asymmetry * c.sector(0.1)
    fill = c.inside * (1 - c.patchy + 1.3 * c.patchy * patches) * grain
    c.brown += c.melanin * fill * uneven * (0.6 + 0.6 * c.depth)
    flush = step(c.noise(0.6 * c.radius, 3), -1.0, 1.0)
    c.red += c.reds * c.inside * (0.55 + 0.75 * flush) * (1 + 0.12 * c.noise(0.04))
    # Skin around a lesion is often a little red.
    c.red += 0.10 * c.draw((0, 1)) * step(c.level, -0.22, 0.05)


def _network(c: Canvas) -> None:
    strength = c.draw((0.25, 0.8)) * (0.25 + 0.6 * c.melanin)
    net = c.net(cell=(0.05, 0.072), bend=1.15, line=-0.25)
    fade = c.inside * step(c.noise(0.3, 2), -0.9, 0.8) * (1 - 0.5 * c.depth)
    c.brown *= 1 - 0.2 * fade
    c.brown += strength * net * fade


def _atypical_network(c: Canvas) -> None:
    strength = c.draw((0.35, 0.9)) * (0.3 + 0.55 * c.melanin)
    net = c.net(cell=(0.06, 0.1), bend=2.2, line=-0.1)
    where = c.inside * step(c.noise(0.5 * c.radius, 3), -0.35, 0.7)
    c.brown += 1.2 * strength * net * where
    c.black += 0.35 * strength * net * where * step(c.noise(0.3), 0.0, 0.9)


def _delicate_network(c: Canvas) -> None:
    net = c.net(cell=(0.045, 0.062), bend=1.2, line=-0.45)
    rim = c.inside * step(c.depth, 0.85, 0.25)
    c.brown *= 1 - 0.3 * rim
    c.brown += c.draw((0.15, 0.42)) * net * rim * step(c.noise(0.3), -1.0, 0.5)


def _globules(c: Canvas) -> None:
    size = c.draw((0.04, 0.065))
    blobs = step(c.noise(size), 0.42, 0.85)
    where = c.inside * (c.sector(0.0) if c.asymmetry > 0.45 else step(c.depth, 0.75, 0.2))
    where = where if c.draw((0, 1)) < 0.6 else c.inside
    c.brown += c.draw((0.45, 0.95)) * blobs * where


def _dots(c: Canvas) -> None:
    for _ in range(int(c.draw((8, 45)))):
        r = c.draw((0.009, 0.019))
        at = c.place(0.2, 1.0)
        spot(c.black, at, (r, r * c.draw((0.8, 1.3))), c.draw((0, 3)), c.draw((0.4, 1.3)), 0.8)


def _blotch(c: Canvas) -> None:
    """Structureless black-brown, off the middle."""
    middle = c.place(0.1, 0.6)
    x = c.x - middle[0] + 0.12 * c.noise(0.25)
    y = c.y - middle[1] + 0.12 * c.noise(0.25)
    size = c.radius * c.draw((0.3, 0.65))
    shape = step(np.sqrt(x * x + y * y) + 0.05 * c.noise(0.07, 2), size, 0.4 * size) * c.inside
    c.brown += c.draw((0.4, 1.0)) * shape
    c.black += c.draw((0.25, 1.1)) * shape


def _dark_middle(c: Canvas) -> None:
    c.brown += c.draw((0.2, 0.6)) * step(c.depth + 0.12 * c.noise(0.2, 2), 0.35, 0.85) * c.inside


def _streaks(c: Canvas) -> None:
    """Radial streaming and pseudopods along a part of the border."""
    strokes = Strokes(c.side)
    around = 1.0 if c.asymmetry < 0.25 else c.draw((0.2, 0.6))
    first = c.draw((0, 2 * math.pi))
    for _ in range(int(c.draw((18, 42)) * around)):
        angle = first + 2 * math.pi * around * float(c.rng.random())
        x, y = c.border(angle)
        length = c.draw((0.05, 0.15))
        start = (x - 0.06 * math.cos(angle), y - 0.06 * math.sin(angle))
        points = curve(c.rng, start, angle, length, bend=c.draw((-0.5, 0.5)), wobble=0.1, steps=5)
        thick = c.draw((0.014, 0.032))
        strokes.line(points, [thick * (1 - 0.13 * i) for i in range(5)], c.draw((0.25, 0.8)))
        if c.draw((0, 1)) < 0.3:
            spot(c.brown, points[-1], (0.6 * thick,) * 2, 0.0, 0.9, 0.7)
    lines = strokes.field()
    c.brown += (0.35 + 0.6 * c.melanin) * lines
    c.black += 0.25 * lines
    c.level = np.where(lines > 0.35, np.maximum(c.level, 0.01), c.level)


def _veil(c: Canvas) -> None:
    """Blue-white veil: confluent, structureless, over a part."""
    shape = step(c.noise(0.6 * c.radius, 4) + 0.6 * c.depth, 0.0, 1.25) * step(c.depth, 0.08, 0.4)
    shape = shape * c.draw((0.5, 1.0))
    c.brown *= 1 - 0.65 * shape
    c.black *= 1 - 0.3 * shape
    c.blue += c.draw((0.5, 1.3)) * shape
    c.white += c.draw((0.03, 0.12)) * shape


def _regression(c: Canvas) -> None:
    """Scar-like white with grey pepper."""
    shape = step(c.noise(0.5 * c.radius, 4) + 0.35 * c.sector(0.1), 0.2, 1.3) * c.inside
    c.brown *= 1 - 0.8 * shape
    c.black *= 1 - 0.7 * shape
    c.white += c.draw((0.15, 0.4)) * shape
    c.blue += 0.55 * shape * step(c.noise(0.028), 0.5, 1.0)


def _milia(c: Canvas) -> None:
    """Milia-like cysts: small, round, white or yellowish, a little blurred."""
    for _ in range(int(c.draw((5, 26)))):
        r = c.draw((0.014, 0.036))
        at = c.place(0.0, 0.92)
        angle = c.draw((0, 3))
        spot(c.white, at, (r, r * c.draw((0.75, 1.1))), angle, c.draw((0.3, 0.65)), 0.85)
        spot(c.yellow, at, (1.2 * r, 1.2 * r), angle, c.draw((0, 0.35)), 0.9)


def _comedones(c: Canvas) -> None:
    """Comedo-like openings: dark plugs, larger than dots, often with a pale rim."""
    for _ in range(int(c.draw((4, 18)))):
        r = c.draw((0.018, 0.045))
        at = c.place(0.0, 0.88)
        radii = (r, r * c.draw((0.6, 0.95)))
        angle = c.draw((0, 3))
        spot(c.brown, at, radii, angle, c.draw((0.9, 1.6)), 0.6)
        spot(c.black, at, (0.7 * radii[0], 0.7 * radii[1]), angle, c.draw((0.2, 0.9)), 0.7)
        spot(c.yellow, at, (1.5 * radii[0], 1.5 * radii[1]), angle, 0.4, 0.5)


def _keratin(c: Canvas) -> None:
    """A waxy yellow to grey cast."""
    waxy = c.inside * (0.5 + 0.5 * step(c.noise(0.4, 2), -0.8, 0.8))
    c.yellow += c.draw((0.15, 0.65)) * waxy
    c.blue += c.draw((0.0, 0.2)) * waxy


def _moth_eaten(c: Canvas) -> None:
    """Bites out of the border: the outline itself ends sharply."""
    bites = step(c.noise(0.13), 0.55, 1.0) * step(c.depth, 0.55, 0.1)
    for pigment in (c.brown, c.yellow, c.red):
        pigment *= 1 - 0.8 * bites
    c.brown += 0.28 * step(c.level, 0.0, 0.02) * step(c.level, 0.08, 0.02)


def _ridges(c: Canvas) -> None:
    """Gyri and sulci, or the parallel lines of a fingerprint."""
    size = c.draw((0.06, 0.13))
    bent = c.noise(size) + 0.7 * c.noise(2 * size)
    bent += 0.25 * c.noise(0.4 * size, 2)
    grooves = ridge(bent, c.draw((0.4, 0.8))) * step(c.noise(0.3), -1.0, 0.7)
    c.brown += c.draw((0.2, 0.65)) * grooves * c.inside
    c.yellow += 0.2 * (1 - grooves) * c.inside
    c.white += 0.07 * step(bent, 0.5, 1.1) * c.inside


def _pearl(c: Canvas) -> None:
    """Translucent pinkish white."""
    shape = c.inside * step(c.noise(0.4, 2), -0.7, 0.8)
    c.white += c.draw((0.06, 0.2)) * shape
    c.purple += c.draw((0.02, 0.14)) * shape


def _nests(c: Canvas) -> None:
    """Blue-grey ovoid nests and globules."""
    cover = np.zeros_like(c.blue)
    strength = c.draw((0.45, 1.0))
    for _ in range(int(c.draw((2, 11)))):
        r = c.draw((0.045, 0.19))
        spot(
            cover, c.place(0.0, 0.85), (r, r * c.draw((0.5, 0.9))), c.draw((0, 3)),
            c.draw((0.5, 1.0)), 0.9,
        )  # fmt: skip
    cover = cover * step(cover + 0.25 * c.noise(0.07, 3), 0.0, 1.0)
    c.blue += strength * cover
    c.brown += c.draw((0.1, 0.55)) * cover


def _leaves(c: Canvas) -> None:
    """Leaf-like areas: brown to grey-blue lobes from the edge inward."""
    strength = c.draw((0.5, 1.0))
    for _ in range(int(c.draw((2, 5)))):
        root = c.draw((0, 2 * math.pi))
        x, y = c.border(root)
        x, y = 0.86 * x, 0.86 * y
        for lobe in range(int(c.draw((3, 6)))):
            angle = root + (lobe - 2) * c.draw((0.25, 0.45))
            long = c.draw((0.045, 0.085))
            at = (x + 0.6 * long * math.cos(angle), y + 0.6 * long * math.sin(angle))
            spot(c.brown, at, (long, 0.42 * long), angle, strength, 0.8)
            spot(c.blue, at, (long, 0.42 * long), angle, 0.5 * strength, 0.9)


def _arborising_vessels(c: Canvas) -> None:
    """Bright-red trunks that branch into ever finer vessels, in focus."""
    strokes = Strokes(c.side)
    for _ in range(int(c.draw((2, 5)))):
        angle = c.draw((0, 2 * math.pi))
        x, y = c.border(angle)
        heading = angle + math.pi + c.draw((-0.7, 0.7))
        _branch(c, strokes, (x * 0.98, y * 0.98), heading, c.draw((0.3, 0.6)) * c.radius * 2,
                c.draw((0.010, 0.019)), 3)  # fmt: skip
    vessels = strokes.field() * step(c.level, -0.06, 0.03)
    c.red += c.draw((0.35, 0.85)) * vessels
    c.purple += 0.12 * vessels


def _branch(
    c: Canvas,
    strokes: Strokes,
    start: tuple[float, float],
    angle: float,
    length: float,
    width: float,
    order: int,
) -> None:
    steps = 9
    points = curve(c.rng, start, angle, length, bend=c.draw((-0.9, 0.9)), wobble=0.24, steps=steps)
    widths = [width * (1 - 0.06 * i) for i in range(steps)]
    strokes.line(points, widths, c.draw((0.45, 1.0)))
    if order == 0:
        return
    for _ in range(int(c.draw((2, 4.5)))):
        at = int(c.draw((2, steps)))
        side = 1 if c.draw((0, 1)) < 0.5 else -1
        _branch(c, strokes, points[at], angle + side * c.draw((0.4, 1.0)), 0.6 * length,
                0.66 * width, order - 1)  # fmt: skip


def _dotted_vessels(c: Canvas) -> None:
    """Dotted and coiled (glomerular) vessels in clusters."""
    where = c.inside * step(c.noise(0.3), -0.2, 0.6)
    c.red += c.draw((0.5, 1.1)) * step(c.noise(0.03), 0.55, 1.0) * where


def _ulcer(c: Canvas) -> None:
    """A sore: blood, serum and crust, wet in the middle."""
    middle = c.place(0.0, 0.55)
    size = c.draw((0.07, 0.18))
    x = c.x - middle[0] + 0.05 * c.noise(0.12)
    y = c.y - middle[1] + 0.05 * c.noise(0.12)
    away = np.sqrt(x * x + y * y) + 0.015 * c.noise(0.04, 2)
    shape = step(away, size, 0.6 * size)
    crust = shape * step(c.noise(0.1, 2), -0.4, 0.7)
    c.red += c.draw((0.7, 1.3)) * shape
    c.yellow += c.draw((0.3, 1.2)) * crust
    c.brown += c.draw((0.1, 0.8)) * crust


def _white_lines(c: Canvas) -> None:
    """Shiny white lines, at right angles, as polarised light shows them."""
    strokes = Strokes(c.side)
    turn = c.draw((0, math.pi))
    for _ in range(int(c.draw((8, 22)))):
        angle = turn + (math.pi / 2 if c.draw((0, 1)) < 0.5 else 0.0) + c.draw((-0.15, 0.15))
        points = curve(c.rng, c.place(0.0, 0.7), angle, c.draw((0.05, 0.14)), bend=0.2, wobble=0.05,
                       steps=3)  # fmt: skip
        strokes.line(points, (0.012, 0.014, 0.008), c.draw((0.4, 0.9)))
    c.white += c.draw((0.15, 0.32)) * strokes.field() * c.inside


def _strawberry(c: Canvas) -> None:
    """Red pseudonetwork around pale follicles with yellowish plugs."""
    size = c.draw((0.075, 0.12))
    warp = 0.55 * size
    x = c.x + warp * c.noise(2 * size) + 2 * warp * c.noise(7 * size)
    y = c.y + warp * c.noise(2 * size) + 2 * warp * c.noise(7 * size)
    comb = lattice(x, y, size, c.draw((0, math.pi)))
    where = c.inside * step(c.noise(0.5 * c.radius, 2), -0.7, 0.5)
    comb = comb + 0.5 * c.noise(0.8 * size) + 0.5 * c.noise(3 * size)
    rings = step(comb, 1.6, -0.2) * where
    plugs = step(comb, 1.5, 2.8) * where
    c.red += c.draw((0.12, 0.45)) * rings
    c.red *= 1 - 0.5 * plugs
    c.white += c.draw((0.03, 0.22)) * plugs
    c.yellow += c.draw((0.05, 0.3)) * plugs


def _scale(c: Canvas) -> None:
    """Flakes: white to yellow, with ragged rims."""
    flakes = step(c.noise(0.16, 4) + 0.5 * c.noise(0.5), 0.5, 1.3) * c.inside
    rims = ridge(c.noise(0.09, 3), 0.2) * flakes
    c.white += c.draw((0.15, 0.4)) * flakes + 0.25 * rims
    c.yellow += c.draw((0.0, 0.5)) * flakes
    c.brown *= 1 - 0.5 * flakes


def _white_patch(c: Canvas) -> None:
    """The scar-like middle of a dermatofibroma."""
    size = c.draw((0.35, 0.62)) * c.radius
    x = c.x + c.draw((-0.12, 0.12)) * c.radius + 0.12 * c.radius * c.noise(0.2)
    y = c.y + c.draw((-0.12, 0.12)) * c.radius + 0.12 * c.radius * c.noise(0.2)
    away = np.sqrt(x * x + y * y) + 0.03 * c.noise(0.06, 2)
    shape = step(away, 1.5 * size, 0.1 * size) * (0.6 + 0.5 * step(c.noise(0.09, 3), -0.9, 0.9))
    c.brown *= 1 - 0.8 * shape
    c.red *= 1 - 0.35 * shape
    c.white += c.draw((0.12, 0.38)) * shape


def _lacunae(c: Canvas) -> None:
    """Red to blue-red lagoons parted by pale septa."""
    count = int(c.draw((9, 34)))
    reach = 1.15 * c.radius
    px, py = (c.rng.uniform(-reach, reach, count).astype(np.float32) for _ in range(2))
    x = c.x + 0.05 * c.noise(0.16, 2)
    y = c.y + 0.05 * c.noise(0.16, 2)
    first = np.full((c.side, c.side), 9.0, np.float32)
    second = first.copy()
    tone = np.zeros_like(first)
    tones = c.rng.random(count, dtype=np.float32)
    for i in range(count):
        dx, dy = x - px[i], y - py[i]
        away = dx * dx + dy * dy
        nearer = away < first
        second = np.where(nearer, first, np.minimum(second, away))
        tone = np.where(nearer, tones[i], tone)
        first = np.where(nearer, away, first)
    gap = np.sqrt(second) - np.sqrt(first)
    septa = step(gap + 0.03 * c.noise(0.06, 2), c.draw((0.06, 0.13)), -0.02)
    cells = c.inside * (1 - septa)
    c.red *= 1 - 0.4 * septa
    tone = tone + 0.5 * c.noise(0.12, 3)
    c.red += c.draw((0.3, 0.9)) * cells * np.clip(0.4 + 0.8 * tone, 0, 2)
    c.purple += c.draw((0.0, 0.7)) * cells * step(tone, 0.35, 0.9)
    c.white += c.draw((0.03, 0.2)) * septa * c.inside


def _venous(c: Canvas) -> None:
    c.purple += c.draw((0.3, 1.1)) * c.inside * (0.6 + 0.5 * step(c.noise(0.4, 2), -0.8, 0.8))
    c.red *= 0.75


def _thrombus(c: Canvas) -> None:
    shape = step(c.noise(0.3, 2) + 0.4 * c.depth, 0.35, 0.9) * c.inside
    c.purple += 1.1 * shape
    c.black += c.draw((0.2, 0.9)) * shape


STRUCTURES: dict[str, Callable[[Canvas], None]] = {
    name[1:]: function
    for name, function in list(globals().items())
    if name in {f"_{s}" for look in LOOKS.values() for s in look.chances}
}


def paint_lesion(rng: np.random.Generator, label: str, side: int) -> Canvas:
    """A lesion of class `label` in its own pose, in the middle of a canvas."""
    look = LOOKS[label]
    canvas = Canvas(rng, look, side)
    _base(canvas)
    for name, chance in look.chances.items():
        # One child stream each, so that a structure's own draws shift no other's.
        canvas.rng = rng.spawn(1)[0]
        if canvas.draw((0, 1)) < chance:
            STRUCTURES[name](canvas)
    return canvas
