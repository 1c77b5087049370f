"""Draw `docs/img/method.svg`: how BIIGMA-Net is trained, and what of it predicts.

The figure is written out as SVG by hand, so that every box lies where it is put. Needs
`docs/img/drawn_lesion.jpg` (see `sample_lesion.py`), of which a small copy is embedded.

Run from the repository root: `python docs/draw/method_figure.py`
"""

from __future__ import annotations

import base64
import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PHOTO = Path("docs/img/drawn_lesion.jpg")
TARGET = Path("docs/img/method.svg")
WIDTH, HEIGHT = 1120, 664
FONT = "'Inter','Segoe UI','Helvetica Neue',Helvetica,Arial,sans-serif"

INK, SOFT, LINE = "#1f2937", "#5b6675", "#cbd3dd"
BLUE, ORANGE, ROSE, GREY = "#2563eb", "#c2570c", "#be2f63", "#64748b"
HEADS = ("#0f766e", "#6d4bc4", "#a16207")

# Shade of the surroundings of each image of the batch, and of its lesion.
SKINS = ((236, 190, 176), (150, 190, 232), (160, 212, 172), (200, 178, 232))
LESION = (112, 66, 44)

TOP = 132  # height of the original branch
LOW = 486  # height of the hybrid branch
CELLS = 7


class Svg:
    """Lines of an SVG file, with a method for each shape the figure needs."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, text: str) -> None:
        """Append raw SVG."""
        self.lines.append(text)

    def box(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        *,
        fill: str = "#fff",
        stroke: str = LINE,
        r: float = 8,
        width: float = 1.2,
    ) -> None:
        """Rounded rectangle."""
        self.add(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{r:g}" fill="{fill}" '
            f'stroke="{stroke}" stroke-width="{width:g}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 14,
        fill: str = INK,
        weight: int = 400,
        anchor: str = "middle",
        turn: float = 0,
    ) -> None:
        """One line of text; `<i>` and `</i>` in it set symbols in italics."""
        body = text.replace("<i>", '<tspan font-style="italic">').replace("</i>", "</tspan>")
        rotate = f' transform="rotate({turn:g} {x:g} {y:g})"' if turn else ""
        self.add(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{fill}" '
            f'font-weight="{weight}" text-anchor="{anchor}"{rotate}>{body}</text>'
        )

    def path(
        self,
        d: str,
        color: str,
        *,
        dashed: bool = False,
        arrow: bool = True,
        width: float = 2,
    ) -> None:
        """Open path, with an arrow head at its end."""
        head = f' marker-end="url(#tip{color[1:]})"' if arrow else ""
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        self.add(
            f'<path d="{d}" fill="none" stroke="{color}" stroke-width="{width:g}" '
            f'stroke-linejoin="round"{dash}{head}/>'
        )

    def pill(self, cx: float, cy: float, w: float, text: str, color: str, h: float = 28) -> None:
        """Coloured capsule with white text."""
        self.box(cx - w / 2, cy - h / 2, w, h, fill=color, stroke="none", r=h / 2)
        self.text(cx, cy + 4.6, text, size=13, fill="#fff", weight=600)

    def badge(self, x: float, y: float, letter: str) -> None:
        """Round mark that names a part of the figure."""
        self.add(f'<circle cx="{x:g}" cy="{y:g}" r="12" fill="{INK}"/>')
        self.text(x, y + 5, letter, size=14, fill="#fff", weight=700)

    def grid(self, x: float, y: float, side: float, colors: np.ndarray) -> None:
        """`CELLS` x `CELLS` squares, one for each position of a feature map."""
        step = side / CELLS
        gap = 1 if side > 60 else 0.6
        for row in range(CELLS):
            for col in range(CELLS):
                r, g, b = (int(v) for v in colors[row, col])
                self.add(
                    f'<rect x="{x + col * step:.2f}" y="{y + row * step:.2f}" '
                    f'width="{step - gap:.2f}" height="{step - gap:.2f}" rx="1.2" '
                    f'fill="#{r:02x}{g:02x}{b:02x}"/>'
                )


def lesion_mask(angle: float, shift: tuple[float, float], size: tuple[float, float]) -> np.ndarray:
    """How much of each cell is lesion, `(CELLS, CELLS)` in [0, 1]."""
    row, col = np.mgrid[0:CELLS, 0:CELLS] - (CELLS - 1) / 2
    x, y = col - shift[0], row - shift[1]
    u = (x * np.cos(angle) + y * np.sin(angle)) / size[0]
    v = (-x * np.sin(angle) + y * np.cos(angle)) / size[1]
    return np.asarray(1 / (1 + np.exp(7 * (np.hypot(u, v) - 1))))


def mix(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """`share` of a and the rest of b."""
    return share[..., None] * a + (1 - share[..., None]) * b


def features(rng: np.random.Generator) -> dict[str, Any]:
    """Colours of every grid: what the arithmetic of the method does to cells of plain colour."""
    masks = [
        lesion_mask(-0.3, (0.05, 0.0), (2.35, 1.75)),
        lesion_mask(0.6, (0.4, -0.3), (1.9, 1.5)),
        lesion_mask(1.2, (-0.4, 0.3), (2.1, 1.4)),
        lesion_mask(0.0, (0.2, 0.4), (1.7, 1.7)),
    ]
    full, rest, pool = [], [], []
    white = np.array([250.0, 250.0, 250.0])
    for mask, skin in zip(masks, SKINS, strict=True):
        shade = rng.uniform(-13, 13, (CELLS, CELLS, 1))
        around = np.clip(np.array(skin) + shade, 0, 255)
        dark = np.clip(np.array(LESION) + rng.uniform(-18, 22, (CELLS, CELLS, 1)), 0, 255)
        full.append(mix(dark, around, mask))
        rest.append(mix(np.broadcast_to(white, around.shape), around, mask))
        pool.extend(around[mask < 0.25])
    draw = np.array(pool)[rng.integers(0, len(pool), (CELLS, CELLS))]
    low, high = np.array([226.0, 232.0, 240.0]), np.array([15.0, 82.0, 96.0])
    return {
        "R": full[0],
        "rest": rest,
        "pool": np.array(pool)[rng.permutation(len(pool))[:30]],
        "theta": draw,
        "hybrid": mix(full[0], draw, masks[0]),
        "M": mix(np.broadcast_to(high, draw.shape), np.broadcast_to(low, draw.shape), masks[0]),
    }


def thumbnail() -> str:
    """The drawn lesion as a small square, as a data address."""
    with Image.open(PHOTO) as photo:
        w, h = photo.size
        side = min(w, h)
        left = (w - side) // 2
        small = photo.crop((left, 0, left + side, side)).resize((200, 200), Image.Resampling.BOX)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def hexa(color: tuple[int, int, int]) -> str:
    """`#rrggbb` of a colour."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def draw_trunk(s: Svg, f: dict[str, Any]) -> None:
    """Batch, trunk with its taps, and R."""
    for i in (3, 2, 1):
        x, y = 28 + 9 * i, TOP - 44 - 9 * i
        s.box(x, y, 96, 96, fill=hexa(SKINS[i]), stroke="#fff", r=7, width=1.5)
    s.add(
        '<clipPath id="front"><rect x="28" y="88" width="96" height="96" rx="7"/></clipPath>'
        f'<image href="{thumbnail()}" x="28" y="88" width="96" height="96" '
        'clip-path="url(#front)"/>'
    )
    s.box(28, 88, 96, 96, fill="none", stroke="#fff", r=7, width=1.5)
    s.text(90, 207, "batch of images", size=14, weight=600)

    s.path(f"M152 {TOP}H179", BLUE, width=3)
    s.box(182, 24, 206, 192, fill="#f4f7fb", r=12)
    s.text(285, 52, "Trunk: DenseNet-121", size=15.5, weight=700)
    for i, (half, name) in enumerate(((46, "1/8"), (34, "1/16"), (23, "1/32"))):
        cx = 221 + 64 * i
        s.box(cx - 21, TOP - half, 42, 2 * half, fill="#dbe6f8", stroke="#8fb0e6", r=5)
        s.text(cx, TOP + 5, name, size=13, fill="#1e4a9c", weight=600)
        if i < 2:
            s.path(f"M{cx + 21} {TOP}H{cx + 41}", BLUE, width=2)
    s.path(f"M388 {TOP}H421", BLUE, width=3)
    s.text(466, 78, "<i>R</i>", size=17, weight=700)
    s.grid(424, TOP - 42, 84, f["R"])


def draw_saliency(s: Svg, f: dict[str, Any]) -> None:
    """Part a: the map M."""
    s.box(24, 246, 372, 314, fill="#fbfaf7", r=12)
    s.badge(50, 274, "a")
    for i, line in enumerate(("Where is", "the lesion?")):
        s.text(38, 310 + 20 * i, line, size=15.5, weight=700, anchor="start")
    for i, line in enumerate(
        (
            "Early and late",
            "features make one",
            "map, meant to be",
            "high on the lesion",
            "and low around it.",
        )
    ):
        s.text(38, 358 + 18 * i, line, size=13.5, fill=SOFT, anchor="start")
    for i, (half, pool) in enumerate(((46, "pool ÷4"), (34, "pool ÷2"), (23, ""))):
        cx = 221 + 64 * i
        s.add(f'<circle cx="{cx}" cy="{TOP + half}" r="3.5" fill="{ORANGE}"/>')
        s.path(f"M{cx} {TOP + half}V271", ORANGE, dashed=True)
        s.box(cx - 31, 274, 62, 42, r=6)
        if pool:
            s.text(cx, 292, "1×1 conv", size=12.5)
            s.text(cx, 308, pool, size=12.5)
        else:
            s.text(cx, 300, "1×1 conv", size=12.5)
        s.path(f"M{cx} 316V337", ORANGE, dashed=True)
    s.box(182, 340, 206, 66, r=6)
    for i, line in enumerate(
        ("concatenate channels,", "drop those that vary least,", "mean, sigmoid")
    ):
        s.text(285, 359 + 18 * i, line, size=13)
    s.path(f"M285 406V{LOW - 45}", ORANGE, dashed=True)
    s.grid(243, LOW - 42, 84, f["M"])
    s.text(228, LOW + 6, "<i>M</i>", size=17, weight=700, anchor="end")


def draw_sampling(s: Svg, f: dict[str, Any]) -> None:
    """Part b: background vectors, B, Theta and the hybrid feature."""
    s.box(412, 246, 292, 314, fill="#fbfaf7", r=12)
    # R comes down the left side: to the masked features, and to the sum.
    s.path(f"M440 {TOP + 44}V{LOW - 14}H466", ORANGE, dashed=True)
    s.path("M440 313H464", ORANGE, dashed=True)
    s.badge(474, 274, "b")
    s.text(494, 279.5, "Swap the surroundings", size=15.5, weight=700, anchor="start")
    for i, colors in enumerate(f["rest"]):
        s.grid(468 + 56 * i, 292, 42, colors)
    s.text(543, 353, "<i>R</i> · (1 − <i>M</i>) of every image", size=13, fill=SOFT)

    s.path("M657 337V364", ORANGE, dashed=True)
    s.box(588, 367, 104, 58, r=6)
    for i, color in enumerate(f["pool"]):
        r, g, b = (int(v) for v in color)
        s.add(
            f'<rect x="{596 + 9 * (i % 10):g}" y="{375 + 9 * (i // 10):g}" width="7.6" '
            f'height="7.6" rx="1.6" fill="#{r:02x}{g:02x}{b:02x}"/>'
        )
    s.text(640, 418, "set <i>B</i>", size=14, weight=700)
    s.path("M588 396H546", ORANGE, dashed=True)
    s.text(566, 387, "draw", size=12.5, fill=SOFT)
    s.grid(478, 365, 64, f["theta"])
    s.text(470, 402, "<i>Θ</i>", size=17, weight=700, anchor="end")

    s.path(f"M510 430V{LOW - 33}", ORANGE, dashed=True)
    s.path(f"M327 {LOW + 14}H466", ORANGE, dashed=True)
    s.box(469, LOW - 30, 108, 60, r=8, stroke=ORANGE, width=1.6)
    s.text(523, LOW - 6, "<i>M</i> · <i>R</i>", size=14.5, weight=600)
    s.text(523, LOW + 16, "+ (1 − <i>M</i>) · <i>Θ</i>", size=14.5, weight=600)
    s.path(f"M577 {LOW}H601", ORANGE, dashed=True)
    s.grid(604, LOW - 42, 84, f["hybrid"])
    s.text(642, LOW + 62, "hybrid feature", size=14, weight=600)


def draw_heads(s: Svg) -> None:
    """Part c: the shared heads, the shared classifier, and what comes out."""
    left, right = 732, 926
    s.box(left, 24, right - left, 536, fill="#f4f7fb", r=12)
    s.badge(left + 24, 52, "c")
    s.text(left + 44, 50, "The same heads", size=15.5, weight=700, anchor="start")
    s.text(left + 44, 69, "for both: MICA", size=15.5, weight=700, anchor="start")
    s.path(f"M508 {TOP}H{left - 3}", BLUE, width=3)
    s.path(f"M688 {LOW}H{left - 3}", ORANGE, dashed=True)

    centres = (208, 309, 410)
    x0, x1 = left + 36, right - 36
    for inner, outer, color, start, dashed, off in (
        (left + 24, right - 24, BLUE, TOP, False, -7),
        (left + 13, right - 13, ORANGE, LOW, True, 7),
    ):
        width = 2.6 if color == BLUE else 2
        far = centres[-1] if start == TOP else centres[0]
        for edge, rail, chip in ((left, inner, x0), (right, outer, x1)):
            s.path(
                f"M{edge} {start}H{rail}V{far + off}",
                color,
                dashed=dashed,
                arrow=False,
                width=width,
            )
            for cy in centres:
                a, b = (rail, chip) if edge == left else (chip, rail)
                s.path(f"M{a} {cy + off}H{b}", color, dashed=dashed, arrow=False, width=width)
    cx = (left + right) / 2
    for k, (cy, color) in enumerate(zip(centres, HEADS, strict=True)):
        s.box(x0, cy - 31, x1 - x0, 62, stroke=color, width=2)
        name = "head <i>K</i>" if k == 2 else f"head {k + 1}"
        s.text(cx, cy - 12, name, size=14, weight=700, fill=color)
        s.text(cx, cy + 6, "1×1 conv, ReLU,", size=13)
        s.text(cx, cy + 22, "SE gate", size=13)
    for upper, lower in pairwise(centres):
        middle = (upper + lower) / 2
        s.path(f"M{cx} {middle - 10}V{upper + 34}", ROSE, width=1.6)
        s.path(f"M{cx} {middle + 10}V{lower - 34}", ROSE, width=1.6)
        s.pill(cx, middle, 72, "HSIC", ROSE, h=20)
    s.text(cx, 530, "HSIC pushes every two", size=13, fill=ROSE, weight=600)
    s.text(cx, 547, "heads to independence", size=13, fill=ROSE, weight=600)

    s.path(f"M{right} {TOP}H951", BLUE, width=3)
    s.path(f"M{right} {LOW}H951", ORANGE, dashed=True)
    s.box(954, TOP - 40, 48, LOW - TOP + 80, fill="#f4f7fb", r=10)
    s.text(974, (TOP + LOW) / 2, "same linear head", size=15.5, weight=700, turn=-90)
    s.text(992, (TOP + LOW) / 2, "after average pooling", size=13, fill=SOFT, turn=-90)

    s.path(f"M1002 {TOP}H1019", BLUE, width=3)
    s.box(1022, TOP - 38, 74, 76, r=8, stroke=BLUE, width=1.8)
    for i, height in enumerate((9, 46, 14, 6, 10, 5, 7)):
        fill = BLUE if i == 1 else "#a9c3f2"
        s.add(
            f'<rect x="{1030 + 8.5 * i:g}" y="{TOP + 28 - height}" width="6.5" '
            f'height="{height}" rx="1.5" fill="{fill}"/>'
        )
    s.text(1059, TOP - 48, "prediction", size=14, weight=700, fill=BLUE)
    s.path(f"M1059 {TOP + 38}V{TOP + 61}", GREY, dashed=True)
    s.pill(1059, TOP + 78, 74, "loss", BLUE)
    s.path(f"M1002 {LOW}H1019", ORANGE, dashed=True)
    s.pill(1059, LOW, 74, "loss", ORANGE)
    for i, line in enumerate(("same lesion,", "so the same", "label")):
        s.text(1059, LOW - 62 + 17 * i, line, size=13, fill=SOFT)


def draw_footer(s: Svg) -> None:
    """The sum of the losses, and what the two kinds of line mean."""
    y = 611
    s.add(f'<path d="M24 580H{WIDTH - 24}" stroke="{LINE}" stroke-width="1.2"/>')
    s.text(24, y + 5, "Loss =", size=15.5, weight=700, anchor="start")
    x = 90.0
    for i, (text, w, color) in enumerate(
        (
            ("cross-entropy", 122, BLUE),
            ("cross-entropy, hybrid", 176, ORANGE),
            ("HSIC between heads", 166, ROSE),
            ("L2 of the 1×1 convs", 158, GREY),
        )
    ):
        if i:
            s.text(x + 13, y + 6, "+", size=18, weight=600)
            x += 26
        s.pill(x + w / 2, y, w, text, color)
        x += w
    s.text(
        90,
        y + 36,
        "Cross-entropies are weighted by class; the hybrid branch joins after the first epochs.",
        size=13,
        fill=SOFT,
        anchor="start",
    )
    s.path(f"M824 {y}H866", BLUE, width=3)
    s.text(877, y + 5, "prediction takes this path alone", size=13.5, anchor="start")
    s.path(f"M824 {y + 31}H866", ORANGE, dashed=True)
    s.text(877, y + 36, "training adds these", size=13.5, anchor="start")


def main() -> None:
    """Draw everything and write the file."""
    s = Svg()
    s.add(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="{FONT}" role="img" '
        'aria-labelledby="title desc">'
    )
    s.add('<title id="title">How BIIGMA-Net is trained</title>')
    s.add(
        '<desc id="desc">A trunk gives the feature R. Its three taps make a map M of the lesion. '
        "Background vectors of all images of the batch fill the set B, from which Theta is drawn; "
        "M times R plus one minus M times Theta is the hybrid feature. R and the hybrid go through "
        "the same independent heads and the same linear head; each has a loss. Prediction takes "
        "the path of R alone.</desc>"
    )
    s.add("<defs>")
    for color in (BLUE, ORANGE, ROSE, GREY):
        s.add(
            f'<marker id="tip{color[1:]}" viewBox="0 0 10 10" refX="7" refY="5" '
            'markerWidth="11" markerHeight="11" markerUnits="userSpaceOnUse" orient="auto">'
            f'<path d="M0 0L10 5L0 10z" fill="{color}"/></marker>'
        )
    s.add("</defs>")
    s.box(0.75, 0.75, WIDTH - 1.5, HEIGHT - 1.5, stroke="#d5dbe3", r=16, width=1.5)
    f = features(np.random.default_rng(4))
    draw_trunk(s, f)
    draw_saliency(s, f)
    draw_sampling(s, f)
    draw_heads(s)
    draw_footer(s)
    s.add("</svg>")
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text("\n".join(s.lines) + "\n", encoding="utf-8")
    print(f"{TARGET}: {TARGET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
