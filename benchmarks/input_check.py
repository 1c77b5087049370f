"""How often a model's input check flags dermoscopy, and how often pictures of another kind.

Prints each set's flag rate with its 95% interval (Wilson) and quantiles of the novelty:

    python benchmarks/input_check.py [--model NAME] [--split test] [KIND=FOLDER ...]

Sets: the model's own part of its data set, where that is recorded here; pictures drawn by this
script; photographs that come with installed Python packages (scikit-image, scikit-learn,
matplotlib); and the pictures in folders of yours, under a name of yours.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from biigma_cli.config import fill_older, from_dict
from biigma_cli.data.datasets import load_dataset
from biigma_cli.data.manifest import Manifest, Record
from biigma_cli.data.splits import check_same_split, make_split
from biigma_cli.errors import BiigmaError
from biigma_cli.metrics.calibration import wilson
from biigma_cli.runtime.inputs import Source, expand
from biigma_cli.runtime.pipeline import classify
from biigma_cli.runtime.session import Predictor, find_model, stated

PACKAGES = {"skimage": "data", "sklearn": "datasets/images", "matplotlib": "mpl-data/sample_data"}
COUNT = 40


def drawn() -> Iterator[tuple[str, Source]]:
    """Pictures of kinds that need no file: set's name and picture."""
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        level = round(255 * i / (COUNT - 1))
        hue = rng.integers(0, 256, 3)
        x, y = np.meshgrid(np.linspace(0, 1, 600), np.linspace(0, 1, 450))
        ramp = (x * rng.random() + y * rng.random())[..., None] * hue
        coarse = rng.integers(0, 256, (int(rng.integers(3, 40)),) * 2 + (3,), np.uint8)
        yield "flat grey, black to white", picture(np.full((450, 600, 3), level, np.uint8))
        yield "flat colour", picture(np.broadcast_to(hue, (450, 600, 3)).astype(np.uint8))
        yield "colour ramp", picture(ramp.clip(0, 255).astype(np.uint8))
        yield "noise, fine", picture(rng.integers(0, 256, (450, 600, 3), np.uint8))
        yield (
            "noise, coarse",
            picture(
                np.asarray(Image.fromarray(coarse).resize((600, 450), Image.Resampling.BICUBIC))
            ),
        )
        yield "page of text", picture(page(rng))
        yield "shapes", picture(shapes(rng))


def page(rng: np.random.Generator) -> np.ndarray:
    """Black words on white, or the other way round."""
    paper, ink = ("white", "black") if rng.random() < 0.7 else ("black", "white")
    image = Image.new("RGB", (600, 450), paper)
    draw = ImageDraw.Draw(image)
    for y in range(20, 420, int(rng.integers(14, 34))):
        words = [
            "".join(rng.choice(list("abcdefghilmnorstu"), rng.integers(2, 9))) for _ in "12345678"
        ]
        draw.text((20, y), " ".join(words), fill=ink, font_size=float(rng.integers(10, 24)))
    return np.asarray(image)


def shapes(rng: np.random.Generator) -> np.ndarray:
    """Coloured circles, boxes and lines."""
    image = Image.new("RGB", (600, 450), tuple(int(c) for c in rng.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(1, 12))):
        x, y, r = rng.integers(0, 600), rng.integers(0, 450), rng.integers(10, 150)
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        box = (int(x - r), int(y - r), int(x + r), int(y + r))
        (draw.ellipse, draw.rectangle, draw.line)[rng.integers(0, 3)](box, fill=colour)
    return np.asarray(image)


def picture(pixels: np.ndarray) -> Source:
    """A picture as a file's bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return Source("drawn", file.getvalue())


def packaged() -> Iterator[tuple[str, Source]]:
    """Pictures that come with packages that are installed."""
    for package, below in PACKAGES.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        folder = Path(spec.origin).parent / below
        for source in expand([str(folder)], warn=lambda _: None):
            yield f"pictures in {package}", source


def own_part(predictor: Predictor, split: str) -> tuple[Manifest, list[Record]]:
    """The model's own data set and the images of a part of it; raises where they are not here."""
    data = from_dict(fill_older({"data": stated(predictor.info, "config", "data")})).data
    manifest = load_dataset(data)
    parts = make_split(manifest, data)
    check_same_split(parts, predictor.info.metadata["split"], source="the model")
    records = manifest.by_id()
    return manifest, [records[name] for name in parts.part(split)]


def own(predictor: Predictor, split: str) -> Iterator[tuple[str, Source]]:
    """The model's own part, where it is here."""
    try:
        manifest, records = own_part(predictor, split)
    except BiigmaError as error:
        print(f"no {split} part here: {error.message}", file=sys.stderr)
        return
    for record in records:
        path = manifest.root / record.path
        yield f"{manifest.dataset}, {split} part", Source(str(path), path)


def measure(predictor: Predictor, items: Iterable[tuple[str, Source]]) -> None:
    """Print a line for each set."""
    names: list[str] = []

    def sources() -> Iterator[Source]:
        for name, source in items:
            names.append(name)
            yield source

    found: dict[str, list[float]] = {}
    place = 0
    for batch in classify(predictor, sources()):
        for result in batch:
            if result.novelty is not None:
                found.setdefault(names[place], []).append(result.novelty)
            place += 1
    for name, values in found.items():
        flagged = sum(v > 1 for v in values)
        low, high = wilson(flagged / len(values), len(values))
        a, b, c = np.quantile(values, [0.05, 0.5, 0.95])
        print(
            f"{name:32s} {flagged:5d} of {len(values):5d} flagged, {flagged / len(values):6.1%} "
            f"({low:.1%} to {high:.1%}); novelty {a:.2f} {b:.2f} {c:.2f}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    parser.add_argument("folders", nargs="*", metavar="KIND=FOLDER")
    options = parser.parse_args()
    predictor = Predictor(find_model(options.model))
    if not predictor.info.input_check:
        sys.exit(f"{predictor.info.path} has no input check")
    print("novelty: its 5%, 50% and 95% quantiles; above 1 is flagged")
    measure(predictor, own(predictor, options.split))
    for given in options.folders:
        name, _, folder = given.rpartition("=")
        measure(predictor, ((name or folder, s) for s in expand([folder], warn=lambda _: None)))
    measure(predictor, packaged())
    measure(predictor, drawn())


if __name__ == "__main__":
    main()
