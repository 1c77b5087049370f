"""How many spoilt JPEGs are refused, with Pillow alone and as `predict` reads them, and the cost.

Each of `--images` pictures of HAM10000 is spoilt in each way at a random place (seed 0):

    python benchmarks/damaged_jpeg.py --images 300

As they are (200 x 150), saved as progressive JPEGs, and three times larger with noise. Then these
larger ones are decoded to 160 x 160, strictly and not, in turn.
"""

from __future__ import annotations

import argparse
import io
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from side_by_side import ratio

from biigma_cli.data.preprocess import decode_image
from biigma_cli.errors import ImageError

SHARED = Path(__file__).parents[1].parent / "shared" / "data" / "ham10000"
Spoil = Callable[[bytes, int, random.Random], bytes]
WAYS: dict[str, Spoil] = {
    "512 bytes set to zero": lambda c, n, _: c[:n] + bytes(512) + c[n + 512 :],
    "100 bytes left out": lambda c, n, _: c[:n] + c[n + 100 :],
    "cut, and closed by an end marker": lambda c, n, _: c[:n] + b"\xff\xd9",
    "64 random bytes": lambda c, n, rng: c[:n] + rng.randbytes(64) + c[n + 64 :],
    "one bit turned": lambda c, n, rng: c[:n] + bytes([c[n] ^ 1 << rng.randrange(8)]) + c[n + 1 :],
}


def saved(image: Image.Image, **options: object) -> bytes:
    """As a JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def progressive(content: bytes) -> bytes:
    """The same picture as a progressive JPEG."""
    return saved(Image.open(io.BytesIO(content)), quality=90, progressive=True)


def large(content: bytes) -> bytes:
    """Three times larger, with noise of 4 of 255."""
    image = Image.open(io.BytesIO(content))
    image = image.resize((3 * image.width, 3 * image.height), Image.Resampling.LANCZOS)
    noise = np.random.default_rng(0).normal(0, 4, (image.height, image.width, 3))
    return saved(Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8)))


def verdict(content: bytes) -> str:
    """What becomes of a file."""
    try:
        decode_image(content, 160, strict=False)
    except ImageError:
        return "refused by Pillow"
    try:
        return "noted" if decode_image(content, 160).note else "answered"
    except ImageError:
        return "refused"


def main() -> None:
    """The counts, then the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--data", type=Path, default=SHARED)
    options = parser.parse_args()
    paths = sorted(options.data.glob("HAM10000_images_part_*/*.jpg"))
    if not paths:
        parser.error(f"no HAM10000 images at {options.data}")
    kinds: dict[str, Callable[[bytes], bytes]] = {
        "as they are": bytes, "progressive": progressive, "600 x 450, noise": large,
    }  # fmt: skip
    verdicts = ("refused by Pillow", "refused", "noted", "answered")
    for kind, make in kinds.items():
        rng = random.Random(0)
        files = [make(path.read_bytes()) for path in rng.sample(paths, options.images)]
        print(f"\n{kind:34}" + "".join(f"{v:>19}" for v in verdicts))
        for way, spoil in {"nothing": lambda c, *_: c, **WAYS}.items():
            found = Counter(
                verdict(spoil(c, rng.randrange(c.index(b"\xff\xda") + 20, len(c) - 600), rng))
                for c in files
            )
            print(f"  {way:32}" + "".join(f"{found[v]:19}" for v in verdicts))
    rounds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(7):
        for strict, seconds in rounds.items():
            start = time.perf_counter()
            for content in files:
                decode_image(content, 160, strict=strict)
            seconds.append(time.perf_counter() - start)
    print("\n" + ratio("decoding, strict over not", rounds[True], rounds[False]).line())


if __name__ == "__main__":
    main()
