"""How models fare on pictures as other cameras, crops and archives have them, side by side.

    python benchmarks/elsewhere.py [--model NAME ...] [--split val] [--images 500]

For each model: its own part as it is, then each picture at another resolution, framing, light or
compression (accuracy, macro-F1, share of answers that stay, share flagged by the input check; what
its limits of `predict --max-error 0.1` and `--min-sensitivity 0.9` then do, where it states any:
share answered and of these wrong, malignant images found and benign ones spared); and the same part
of ISIC 2017, where that is recorded here, as dermoscopy from elsewhere: melanoma
against nevus against seborrheic keratosis, decided between the probabilities of MEL, NV and BKL. It
is ISIC 2017's own lesion-safe split, seed 0, whose training part `data.extra` may have joined.

Compare models on the validation part: a model chosen by this table on the test part has seen it.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from input_check import own_part
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from biigma_cli.config import DataConfig
from biigma_cli.data.manifest import Manifest, load_manifest
from biigma_cli.data.preprocess import load_image
from biigma_cli.data.splits import make_split
from biigma_cli.errors import BiigmaError
from biigma_cli.metrics import malignancy, malignant_classes
from biigma_cli.metrics.selective import sureness
from biigma_cli.runtime.limits import Stated
from biigma_cli.runtime.session import Predictor, find_model

SHARED = {"MEL": "MEL", "NV": "NV", "SK": "BKL"}
#: Promises that are tried.
MAX_ERROR, MIN_SENSITIVITY = 0.1, 0.9
Change = Callable[[Image.Image], Image.Image]


def compressed(image: Image.Image, quality: int) -> Image.Image:
    """After a JPEG of this quality."""
    file = io.BytesIO()
    image.save(file, "jpeg", quality=quality)
    return Image.open(file).convert("RGB")


def scaled(image: Image.Image, factor: float) -> Image.Image:
    """At another resolution."""
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS)


def framed(image: Image.Image, factor: float) -> Image.Image:
    """Nearer (above 1), or further away with the border mirrored."""
    w, h = image.size
    if factor > 1:
        x, y = w * (1 - 1 / factor) / 2, h * (1 - 1 / factor) / 2
        return image.crop((round(x), round(y), round(w - x), round(h - y)))
    x, y = round(w * (1 / factor - 1) / 2), round(h * (1 / factor - 1) / 2)
    pixels = np.pad(np.asarray(image), ((y, y), (x, x), (0, 0)), mode="symmetric")
    return Image.fromarray(pixels)


def tinted(image: Image.Image, red: float, blue: float) -> Image.Image:
    """Under another light."""
    return Image.fromarray(
        (np.asarray(image) * np.array([red, 1, blue])).clip(0, 255).astype(np.uint8)
    )


def dark_corners(image: Image.Image) -> Image.Image:
    """In the round field of a dermoscope."""
    y, x = np.mgrid[-1 : 1 : image.height * 1j, -1 : 1 : image.width * 1j]
    inside = 1 / (1 + np.exp(40 * (np.hypot(x, y) - 1.05)))
    return Image.fromarray((np.asarray(image) * inside[..., None]).astype(np.uint8))


CHANGES: dict[str, Change] = {
    "as it is": lambda image: image,
    "three times larger, JPEG 90": lambda image: compressed(scaled(image, 3), 90),
    "half the resolution": lambda image: scaled(image, 0.5),
    "blur, 1 pixel": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "sharpened": lambda image: image.filter(ImageFilter.UnsharpMask(2, 150, 0)),
    "JPEG 30": lambda image: compressed(image, 30),
    "nearer, 1.33": lambda image: framed(image, 1.33),
    "further away, 0.75": lambda image: framed(image, 0.75),
    "square, sides cut": lambda image: image.crop(
        ((image.width - image.height) // 2, 0, (image.width + image.height) // 2, image.height)
    ),
    "upside down": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "warmer": lambda image: tinted(image, 1.1, 0.88),
    "cooler": lambda image: tinted(image, 0.9, 1.12),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.25),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "dark corners": dark_corners,
}


def answers(
    predictor: Predictor, paths: list[Path], change: Change
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `(n, Y)`, and `(n,)` which the input check flags (none without one)."""
    rows, novelty = [], []
    side, rule = predictor.info.side, predictor.info.rule
    for start in range(0, len(paths), 32):
        pixels = []
        for path in paths[start : start + 32]:
            with Image.open(path) as image:
                file = io.BytesIO()
                change(image.convert("RGB")).save(file, "bmp")
            pixels.append(load_image(file.getvalue(), side, rule=rule))
        answer = predictor(np.stack(pixels))
        rows.append(answer.probabilities_BY)
        novelty.append(np.zeros(len(pixels)) if answer.novelty_B is None else answer.novelty_B)
    return np.concatenate(rows), np.concatenate(novelty) > 1


def promises(
    predictor: Predictor, labels: np.ndarray, proba: np.ndarray, flagged: np.ndarray
) -> str:
    """What the model's limits do: answered and wrong, found and spared."""
    info = predictor.info
    found = Stated.of(info)
    limit = None if found.abstention is None else found.abstention.at_most(MAX_ERROR)
    told = f"{'-':>9} {'-':>7}"
    if limit is not None:
        given = sureness(proba, flagged) >= limit.threshold
        wrong = (proba.argmax(1) != labels)[given].mean() if given.any() else float("nan")
        told = f"{given.mean():9.1%} {wrong:7.1%}"
    own = None if found.screening is None else found.screening.at_least(MIN_SENSITIVITY)
    malignant = malignant_classes(info.malignant)
    if own is None or malignant is None:
        return f"{told} {'-':>7} {'-':>7}"
    called = malignancy(proba, malignant) >= own.threshold
    is_malignant = malignant[labels]
    hit, spared = called[is_malignant & ~flagged], ~called[~is_malignant & ~flagged]
    return f"{told} {hit.mean():7.1%} {spared.mean():7.1%}"


def report_changes(predictor: Predictor, split: str, count: int) -> None:
    """The table of changes, on about `count` images, evenly spaced."""
    manifest, records = own_part(predictor, split)
    records = records[:: max(1, len(records) // count)]
    paths = [manifest.root / r.path for r in records]
    labels = np.array([predictor.info.classes.index(r.label) for r in records])
    print(
        f"{'change':28} {'accuracy':>9} {'macro-F1':>9} {'unchanged':>10} {'flagged':>8} "
        f"{'answered':>9} {'wrong':>7} {'found':>7} {'spared':>7}"
    )
    first: np.ndarray | None = None
    for name, change in CHANGES.items():
        proba, flagged = answers(predictor, paths, change)
        answer = proba.argmax(1)
        first = answer if first is None else first
        macro_f1 = f1_score(labels, answer, average="macro", zero_division=0)
        print(
            f"{name:28} {(answer == labels).mean():9.3f} {macro_f1:9.3f} "
            f"{(answer == first).mean():10.1%} {flagged.mean():8.1%} "
            f"{promises(predictor, labels, proba, flagged)}",
            flush=True,
        )


def report_isic17(predictor: Predictor, manifest: Manifest, split: str) -> None:
    """Three classes that both archives have."""
    codes = list(predictor.info.classes)
    if not set(SHARED.values()) <= set(codes):
        print(f"ISIC 2017 asks for {', '.join(SHARED.values())}, which {codes} are not")
        return
    columns = [codes.index(code) for code in SHARED.values()]
    records = manifest.by_id()
    part = make_split(manifest, DataConfig(dataset=manifest.dataset)).part(split)
    known = [records[i] for i in part if records[i].label in SHARED]
    labels = np.array([list(SHARED).index(r.label) for r in known])
    proba, flagged = answers(predictor, [manifest.root / r.path for r in known], lambda i: i)
    three = proba[:, columns]
    answer = three.argmax(1)
    auc = roc_auc_score(labels == 0, three[:, 0] / three.sum(1))
    macro_f1 = f1_score(labels, answer, average="macro")
    print(
        f"ISIC 2017, {split} part, {len(known)} images, MEL/NV/BKL: accuracy "
        f"{(answer == labels).mean():.3f}, macro-F1 {macro_f1:.3f}, balanced accuracy "
        f"{balanced_accuracy_score(labels, answer):.3f}, melanoma AUC {auc:.3f}, "
        f"flagged {flagged.mean():.1%}\n"
        f"its limits there, among all {len(codes)} classes: answered, wrong, found, spared "
        f"{promises(predictor, np.array(columns)[labels], proba, flagged)}",
        flush=True,
    )


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", action="append", help="repeatable [default: the shipped one]")
    parser.add_argument("--split", default="val", choices=["val", "test"])
    parser.add_argument("--images", type=int, default=500)
    options = parser.parse_args()
    for name in options.model or [None]:
        predictor = Predictor(find_model(name), device="cpu")
        print(f"\n{predictor.info.name}, {options.split} part")
        try:
            report_changes(predictor, options.split, options.images)
        except BiigmaError as error:
            print(f"no {options.split} part here: {error.message}", file=sys.stderr)
        try:
            report_isic17(predictor, load_manifest("isic17"), options.split)
        except BiigmaError as error:
            print(f"no ISIC 2017 here: {error.message}", file=sys.stderr)


if __name__ == "__main__":
    main()
