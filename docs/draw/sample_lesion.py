"""Draw `docs/img/drawn_lesion.jpg`: a made-up mole that looks like a dermoscopy photograph.

Everything is computed from a fixed seed; no photograph and no data set is involved, so the picture
is free to ship as a sample input. It is not medical evidence of anything.

The colours follow Beer and Lambert: a pixel is the light of pale skin, dimmed by exp(-amount *
absorption) for melanin and for blood. Shapes are band-limited noise and jittered-grid Voronoi
cells. The drawing is made at twice the final size and then reduced.

Run from the repository root: `python docs/draw/sample_lesion.py`
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]

TARGET = Path("docs/img/drawn_lesion.jpg")
SIZE = (600, 450)
SCALE = 2
SEED = 20

# Per channel (R, G, B): the light of skin without pigment, and what absorbs it.
SKIN = np.array([0.940, 0.805, 0.720])
MELANIN = np.array([0.66, 1.00, 1.34])
BLOOD = np.array([0.07, 1.00, 0.82])


def blur(field: Array, sigma: float) -> Array:
    """Gaussian blur with wrap-around, `sigma` in pixels of the final picture."""
    h, w = field.shape
    fy = np.fft.fftfreq(h)[:, None]
    fx = np.fft.rfftfreq(w)[None, :]
    gain = np.exp(-2 * (np.pi * sigma * SCALE) ** 2 * (fy**2 + fx**2))
    return np.fft.irfft2(np.fft.rfft2(field) * gain, s=field.shape)


def noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> Array:
    """Smooth noise with mean 0 and standard deviation 1, features about `sigma` wide."""
    field = blur(rng.standard_normal(shape), sigma)
    return (field - field.mean()) / field.std()


def octaves(
    rng: np.random.Generator, shape: tuple[int, int], coarse: float, count: int, gain: float = 0.55
) -> Array:
    """Sum of `count` noises, each half as wide as the one before and `gain` as strong."""
    total = sum(gain**i * noise(rng, shape, coarse / 2**i) for i in range(count))
    return np.asarray(total / np.std(total))


def smoothstep(x: Array, low: float, high: float) -> Array:
    """0 under `low`, 1 over `high`, smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def cells(
    rng: np.random.Generator, x: Array, y: Array, pitch: float, jitter: float = 0.8
) -> tuple[Array, Array, Array]:
    """Voronoi cells of a jittered grid.

    Returns:
        distance to the nearest point, the same to the second nearest less the first (0 on the
        borders of cells), both in units of `pitch`, and a random number in [0, 1) for each cell.
    """
    u, v = x / pitch, y / pitch
    iu, iv = np.floor(u).astype(int), np.floor(v).astype(int)
    iu0, iv0 = int(iu.min()) - 2, int(iv.min()) - 2
    rows, cols = int(iv.max()) - iv0 + 3, int(iu.max()) - iu0 + 3
    px = 0.5 + jitter * (rng.random((rows, cols)) - 0.5)
    py = 0.5 + jitter * (rng.random((rows, cols)) - 0.5)
    tag = rng.random((rows, cols))
    first = np.full(x.shape, 9.0)
    second = np.full(x.shape, 9.0)
    own = np.zeros(x.shape)
    for dv in (-2, -1, 0, 1, 2):
        for du in (-2, -1, 0, 1, 2):
            gu, gv = iu + du, iv + dv
            r, c = gv - iv0, gu - iu0
            d = np.hypot(gu + px[r, c] - u, gv + py[r, c] - v)
            nearer = d < first
            second = np.where(nearer, first, np.minimum(second, d))
            own = np.where(nearer, tag[r, c], own)
            first = np.where(nearer, d, first)
    return first, second - first, own


def hair(x: Array, y: Array, points: list[tuple[float, float]], width: float) -> Array:
    """Opacity of a hair: a quadratic curve through three control points, tapering at its end."""
    p0, p1, p2 = (np.array(p) for p in points)
    t = np.linspace(0, 1, 240)[:, None]
    curve = (1 - t) ** 2 * p0 + 2 * t * (1 - t) * p1 + t**2 * p2
    curve += 1.3 * np.column_stack([np.sin(9 * t + p1[0]), np.sin(13 * t + p1[1])])
    nearest = np.full(x.shape, 1e9)
    for i, (cx, cy) in enumerate(curve):
        radius = width * (1 - 0.65 * i / len(curve)) / 2
        x0, x1 = np.searchsorted(x[0], [cx - 8, cx + 8])
        y0, y1 = np.searchsorted(y[:, 0], [cy - 8, cy + 8])
        part = np.s_[y0:y1, x0:x1]
        d = np.hypot(x[part] - cx, y[part] - cy) - radius
        nearest[part] = np.minimum(nearest[part], d)
    return 1 - smoothstep(nearest, -0.5, 0.9)


def draw() -> Array:
    """The picture at `SCALE` times its size, `(H, W, 3)` in [0, 1]."""
    rng = np.random.default_rng(SEED)
    w, h = SIZE
    shape = (h * SCALE, w * SCALE)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]] / SCALE

    # The lesion's outline: a tilted oval, its border bent by noise of several widths.
    angle = np.deg2rad(-17)
    dx, dy = x - 306, y - 229
    u = (dx * np.cos(angle) + dy * np.sin(angle)) / 150
    v = (-dx * np.sin(angle) + dy * np.cos(angle)) / 112
    lobes = 0.060 * noise(rng, shape, 46) + 0.036 * octaves(rng, shape, 17, 3)
    radius = np.hypot(u, v * (1 + 0.10 * u)) + lobes
    softness = 0.15 + 0.045 * np.clip(noise(rng, shape, 60), -2, 2)
    mask = 1 / (1 + np.exp((radius - 0.95) / (0.42 * softness)))
    core = 1 - smoothstep(radius + 0.13 * noise(rng, shape, 24), 0.10, 0.80)
    halo = np.exp(-(np.clip(radius - 0.9, 0, None) ** 2) / 0.05)

    # Pigment network: the borders of bent Voronoi cells, broken here and there.
    bend_x, bend_y = 2.2 * noise(rng, shape, 7), 2.2 * noise(rng, shape, 7)
    bend_x += 0.6 * noise(rng, shape, 2.4)
    bend_y += 0.6 * noise(rng, shape, 2.4)
    centre, border, tag = cells(rng, x + bend_x, y + bend_y, 7.8)
    thickness = 0.20 + 0.06 * np.clip(noise(rng, shape, 20), -1.8, 1.8)
    lines = blur(np.exp(-((border / thickness) ** 2)), 0.8)
    # Round the holes, which are the tips of the dermis's papillae.
    lines = 0.62 * lines + 0.62 * smoothstep(blur(centre, 0.6), 0.26, 0.60) - 0.08
    strength = np.clip(
        0.60 + 0.26 * noise(rng, shape, 26) + 0.15 * noise(rng, shape, 5), 0.10, 1.15
    )
    ring = smoothstep(radius, 0.12, 0.55) * (1 - smoothstep(radius, 0.90, 1.16))
    network = lines * strength * (0.32 + 0.68 * ring)

    # Globules: round dots, mostly near the middle, few of the cells having one.
    distance, _, dot_tag = cells(rng, x + 0.7 * bend_x, y + 0.7 * bend_y, 8.2, jitter=0.7)
    size = 0.20 + 0.16 * (dot_tag * 7.3 % 1)
    chance = 0.12 + 0.42 * blur(core, 6) * smoothstep(noise(rng, shape, 30), -0.8, 1.0)
    globules = blur(1 - smoothstep(distance - size, 0, 0.2), 0.6)
    globules = np.clip(globules, 0, 1) * smoothstep(chance - dot_tag, 0, 0.06)

    # Pale pores within the pigment, and a mottle of many widths.
    pore, _, pore_tag = cells(rng, x, y, 42, jitter=0.95)
    pores = np.exp(-((pore / 0.085) ** 2)) * (pore_tag < 0.55)
    mottle = octaves(rng, shape, 34, 5, 0.62)
    grain = octaves(rng, shape, 3.2, 3, 0.7)

    melanin = 0.42 + 0.40 * core + 0.12 * mottle + 0.05 * grain + 0.07 * (tag - 0.5)
    melanin += 0.52 * network + 0.42 * globules
    melanin *= 1 - 0.42 * pores
    # One side is lighter, as a real mole is seldom even.
    melanin *= 1 - 0.20 * smoothstep(u + 0.4 * v + 0.22 * noise(rng, shape, 30), 0.1, 0.95)
    melanin = np.clip(melanin, 0.05, None) * mask
    melanin += 0.055 * halo * (1 + 0.5 * mottle)

    # Skin: pink patches, thin vessels hardly seen, fine furrows, pores.
    patches = octaves(rng, shape, 80, 5, 0.6)
    fine = octaves(rng, shape, 5, 4, 0.8)
    stretch = np.deg2rad(24)
    fx = x * np.cos(stretch) + y * np.sin(stretch) + 3.5 * noise(rng, shape, 9)
    fy = (-x * np.sin(stretch) + y * np.cos(stretch)) * 1.5 + 3.5 * noise(rng, shape, 9)
    _, furrow, plate = cells(rng, fx, fy, 15, jitter=0.9)
    furrows = blur(np.exp(-((furrow / 0.13) ** 2)), 0.8) * np.clip(
        0.6 + 0.5 * noise(rng, shape, 22), 0, 1.5
    )
    blood = 0.120 + 0.034 * patches + 0.015 * fine + 0.05 * halo * (1 - mask) + 0.04 * core * mask
    vein = np.abs(octaves(rng, shape, 30, 4, 0.5))
    blood += 0.07 * np.exp(-((vein / 0.045) ** 2)) * smoothstep(noise(rng, shape, 50), 0.2, 1.6)
    blood = np.clip(blood, 0.02, None)
    melanin += 0.060 + 0.014 * noise(rng, shape, 40) + 0.009 * fine + 0.010 * (plate - 0.5)
    melanin += 0.024 * furrows * (1 - 0.7 * mask) + 0.05 * pores * (1 - mask)

    melanin, blood = blur(melanin, 0.55), blur(blood, 0.9)
    light = SKIN * np.exp(-melanin[..., None] * 1.28 * MELANIN - blood[..., None] * BLOOD)

    # Deep pigment scatters blue: a faint grey veil over the darkest part.
    veil = 0.10 * blur(core * mask, 5) * smoothstep(noise(rng, shape, 26), -0.4, 1.6)
    light = light * (1 - veil[..., None]) + veil[..., None] * np.array([0.44, 0.42, 0.45])

    # Hairs, each with its soft shadow.
    for points, width, depth in (
        ([(-12, 96), (180, 70), (352, 168)], 2.5, 0.86),
        ([(612, 322), (500, 300), (398, 398)], 2.1, 0.78),
        ([(86, 462), (150, 372), (128, 300)], 1.9, 0.70),
        ([(455, -12), (470, 60), (538, 112)], 1.5, 0.62),
        ([(214, -10), (190, 24), (140, 44)], 1.3, 0.50),
    ):
        strand = hair(x, y, points, width)
        shadow = np.roll(blur(strand, 2.0), (3, 2), (0, 1))
        light *= 1 - 0.16 * shadow[..., None]
        tint = np.array([0.165, 0.110, 0.085]) * (1 + 0.25 * noise(rng, shape, 6))[..., None]
        light = light * (1 - depth * strand[..., None]) + depth * strand[..., None] * tint

    # The lens: uneven lamp, vignette, tiny glints of the contact fluid.
    lamp = 1 + 0.030 * noise(rng, shape, 120) - 0.00012 * (x - 270) - 0.00010 * (y - 210)
    r2 = ((x - w / 2) ** 2 + (y - h / 2) ** 2) / (w / 2) ** 2
    vignette = 1 - 0.11 * r2 - 0.13 * r2**2
    shine = octaves(rng, shape, 2.0, 2) * (0.008 + 0.010 * smoothstep(lamp, 0.97, 1.05))
    glints = smoothstep(noise(rng, shape, 0.85), 3.35, 4.3) * 0.30
    light = light * (lamp * vignette)[..., None] + (shine + glints)[..., None]
    return np.clip(light, 0, 1)


def main() -> None:
    """Draw, reduce, add the sensor's noise and save."""
    rng = np.random.default_rng(SEED + 1)
    light = draw()
    w, h = SIZE
    small = light.reshape(h, SCALE, w, SCALE, 3).mean((1, 3))
    small = small + rng.normal(0, 0.0075, (h, w, 1)) + rng.normal(0, 0.0045, (h, w, 3))
    pixels = (np.clip(small, 0, 1) * 255 + 0.5).astype(np.uint8)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(TARGET, quality=90, optimize=True)
    print(f"{TARGET}: {TARGET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
