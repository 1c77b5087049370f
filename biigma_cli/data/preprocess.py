"""The one preprocessing: a file to a uint8 RGB square, with Pillow and numpy, never torch.

Training, evaluation, export and `predict` all call `load_image`, so they cannot differ. The
network itself scales and normalises (see `core.model`), in torch and in the exported graph alike.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from biigma_cli.errors import ImageError

T = TypeVar("T")
R = TypeVar("R")
Pixels = npt.NDArray[np.uint8]

# Rule -> the name written into every exported model; a change of rule needs a new name.
RESIZE_RULES: dict[str, str] = {
    "squash": "squash-bilinear-1",
    "crop": "crop-bilinear-1",
    "pad": "pad-bilinear-1",
}
RESIZE_MEANS = {
    "squash": "whole image squashed to a square",
    "crop": "short side scaled to the side, the centre square kept",
    "pad": "long side scaled to the side, centred on black",
}

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

MAX_PIXELS = 200_000_000
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.simplefilter("error", Image.DecompressionBombWarning)


def load_image(
    source: Path | bytes, side: int, *, rule: str = "squash", name: str | None = None
) -> Pixels:
    """Decode, upright by EXIF, to RGB, resized to `(side, side, 3)` with antialiasing.

    JPEGs much larger than needed are decoded at a reduced scale, never under twice the side.

    Args:
        source: a file, or the bytes of one.
        rule: `squash` (aspect ratio given up: the paper's), `crop` (short side to `side`, centre
            kept) or `pad` (long side to `side`, on black).
        name: what to call it in errors; default: the path.

    Raises:
        ImageError: it is missing, empty, no image, damaged, or larger than `MAX_PIXELS`.
    """
    label = name or (str(source) if isinstance(source, Path) else "the image")
    try:
        with _open(source) as image:
            image.draft("RGB", (2 * side, 2 * side))
            image.load()
            return np.array(_square(to_rgb(_upright(image)), side, rule))
    except FileNotFoundError:
        raise ImageError(f"no file at {label}", fix="check the path") from None
    except IsADirectoryError:
        raise ImageError(f"{label} is a folder", fix="name a file") from None
    except PermissionError:
        raise ImageError(f"no permission to read {label}", fix="change its permissions") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(
            f"{label} claims more than {MAX_PIXELS // 1_000_000} megapixels",
            fix="scale it down first",
        ) from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{label} is not an image Pillow can read", fix="give a JPEG, PNG, TIFF, BMP or WebP"
        ) from None
    except (
        OSError, ValueError, SyntaxError, EOFError, MemoryError, OverflowError, TypeError,
        struct.error,
    ) as error:  # fmt: skip
        # Pillow raises any of these for damaged files, by format.
        raise ImageError(
            f"{label} is damaged: {error or type(error).__name__}", fix="get the file again"
        ) from error


def _square(image: Image.Image, side: int, rule: str) -> Image.Image:
    """Resized by a rule of `RESIZE_RULES`."""
    # Pillow's bilinear filter widens when it shrinks: that is the antialiasing.
    how = Image.Resampling.BILINEAR
    if rule == "squash":
        return image.resize((side, side), how)
    width, height = image.size
    if rule == "crop":
        # Equal to scaling the whole and then cutting, without scaling what is cut away.
        short = min(width, height)
        left, top = (width - short) / 2, (height - short) / 2
        return image.resize((side, side), how, box=(left, top, left + short, top + short))
    if rule != "pad":
        raise KeyError(rule)
    scale = side / max(width, height)
    inner = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), how)
    canvas = Image.new("RGB", (side, side))
    canvas.paste(inner, ((side - inner.width) // 2, (side - inner.height) // 2))
    return canvas


def _open(source: Path | bytes) -> Image.Image:
    file: Path | BinaryIO = source if isinstance(source, Path) else io.BytesIO(source)
    # Named, so that no plug-in for other formats, some of which run programs, is ever tried.
    return Image.open(file, formats=FORMATS)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says.

    Not `ImageOps.exif_transpose`: that writes the EXIF anew, and fails where any tag is ill-typed.
    """
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to RGB: 16-bit is scaled, transparency laid on white."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float32))
        # I;16 is 16-bit by name; I and F may hold either.
        wide = image.mode.startswith("I;16") or values.max(initial=0) > 255
        values *= 255 / 65535 if wide else 1
        grey = Image.fromarray(np.clip(values, 0, 255).round().astype(np.uint8))
        return grey.convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def map_threads(
    function: Callable[[T], R], items: Iterable[T], *, threads: int, ahead: int = 64
) -> Iterator[R]:
    """`map` over a thread pool, in order, with at most `ahead` results waiting.

    Pillow lets go of the interpreter lock while it decodes, so threads scale. An exception of
    `function` is raised at its item's turn.
    """
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
