"""What a border around dermoscopy does to a model's answers, kept and left out, side by side.

    python benchmarks/borders.py [--model NAME ...] [--split val] [--images 300]

Draws borders around, or a round field over, images of the model's own part, enlarged to 600 pixels
and saved as JPEG of quality 90, and classifies each twice: with `keep_border`, and as `predict`
does without. Prints accuracy, the share of most probable classes that are those of the bare image,
and the share that the input check flags.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterator

import numpy as np
from elsewhere import CHANGES as ELSEWHERE
from input_check import own_part
from PIL import Image, ImageDraw, ImageOps

from biigma_cli.errors import BiigmaError
from biigma_cli.runtime.inputs import Source
from biigma_cli.runtime.pipeline import Result, classify
from biigma_cli.runtime.session import Predictor, find_model

WIDTH = 600
SIDES_CUT = ELSEWHERE["square, sides cut"]
Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def border(across: float, down: float, colour: str) -> Change:
    """One of these shares of the picture's width, at its sides and above and below."""

    def change(image: Image.Image, _: np.random.Generator) -> Image.Image:
        x, y = round(across * image.width), round(down * image.width)
        return ImageOps.expand(image, (x, y, x, y), colour)

    return change


def field(radius: float, colour: int, *, noise: float = 0, soft: float = 0.01) -> Change:
    """A round field of view of this radius, in half heights, somewhere near the middle."""

    def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        w, h = image.size
        x, y = (np.arange(n) - n / 2 - rng.uniform(-0.05, 0.05) * n for n in (w, h))
        beyond = np.hypot(x[None], y[:, None]) / (h / 2) - radius
        inside = 1 / (1 + np.exp(np.clip(beyond / soft, -50, 50)))
        outside = colour + noise * rng.standard_normal((h, w, 3))
        mixed = inside[..., None] * np.asarray(image) + (1 - inside[..., None]) * outside
        return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))

    return change


def squared(change: Change) -> Change:
    """The middle square of what another gives."""
    return lambda image, rng: SIDES_CUT(change(image, rng))


def captioned(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Black bars, with a caption in the lower one."""
    framed = border(0, 0.1, "black")(image, rng)
    ImageDraw.Draw(framed).text((20, framed.height - 45), "2024-03-05 x20", "white", font_size=24)
    return framed


CHANGES: dict[str, Change] = {
    "black border, 1%": border(0.01, 0.01, "black"),
    "black border, 4%": border(0.04, 0.04, "black"),
    "black border, 20%": border(0.2, 0.2, "black"),
    "white border, 20%": border(0.2, 0.2, "white"),
    "black bars above and below, 12.5%": border(0, 0.125, "black"),
    "black bars at the sides, 12.5%": border(0.125, 0, "black"),
    "round field as high as the picture": field(1.0, 0),
    "the same, dim and noisy beside it": field(1.0, 16, noise=5, soft=0.03),
    "round field, 0.8 of the height": field(0.8, 0),
    "the same, cut to its square": squared(field(1.0, 0)),
    "round field on white": field(0.95, 255),
    "dark corners, field as wide": field(4 / 3, 0),
    "grey border, 10%": border(0.1, 0.1, "grey"),
    "dark grey border, 10%": border(0.1, 0.1, "#2b2b2b"),
    "blue border, 4%": border(0.04, 0.04, "#1f4e9c"),
    "black bars with a caption": captioned,
}


def drawn(image: Image.Image, change: Change | None, number: int) -> Source:
    """The picture as a file's bytes."""
    height = round(WIDTH * image.height / image.width)
    image = image.resize((WIDTH, height), Image.Resampling.BICUBIC)
    if change is not None:
        image = change(image, np.random.default_rng(number))
    file = io.BytesIO()
    image.save(file, "jpeg", quality=90)
    return Source(str(number), file.getvalue())


def answers(
    predictor: Predictor, images: list[Image.Image], change: Change | None, *, keep: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Most probable class of each, and whether it is flagged."""

    def sources() -> Iterator[Source]:
        for number, image in enumerate(images):
            yield drawn(image, change, number)

    found: list[Result] = []
    for batch in classify(predictor, sources(), keep_border=keep):
        found += batch
    best = [-1 if r.probabilities_Y is None else int(r.probabilities_Y.argmax()) for r in found]
    return np.array(best), np.array([(r.novelty or 0) > 1 for r in found])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append")
    parser.add_argument("--split", default="val", choices=("train", "val", "test"))
    parser.add_argument("--images", type=int, default=300)
    options = parser.parse_args()
    for name in options.model or [None]:
        predictor = Predictor(find_model(name))
        try:
            manifest, records = own_part(predictor, options.split)
        except BiigmaError as error:
            sys.exit(error.message)
        records = records[: options.images]
        images = [Image.open(manifest.root / r.path).convert("RGB") for r in records]
        truth = np.array([predictor.info.classes.index(r.label) for r in records])
        print(f"{predictor.info.name}, {len(images)} images: accuracy / same class / flagged")
        bare, flagged = answers(predictor, images, None, keep=True)
        print(f"{'as it is':36s} {(bare == truth).mean():.3f}   -     {flagged.mean():6.1%}")
        for what, change in CHANGES.items():
            told = []
            for keep in (True, False):
                best, flagged = answers(predictor, images, change, keep=keep)
                right, same = (best == truth).mean(), (best == bare).mean()
                told.append(f"{right:.3f} {same:6.1%} {flagged.mean():6.1%}")
            print(f"{what:36s} {told[0]}   without: {told[1]}", flush=True)


if __name__ == "__main__":
    main()
