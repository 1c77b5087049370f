"""Small pictures for pages, as data URIs, and a model's maps laid on them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from biigma_cli.data.preprocess import Pixels
from biigma_cli.report.overlay import Frame, blend, lay, lightness

#: Longer side of a picture, in pixels.
LONGEST = 176
Map = npt.NDArray[np.floating[Any]]

#: Colour tables of `report.overlay.blend`: signed evidence, and the saliency map.
EVIDENCE, SALIENCY = "coolwarm", "cividis"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A JPEG as a data URI, with what stands beneath it and what it shows, in words."""

    source: str
    width: int
    height: int
    caption: str
    alt: str


def jpeg_picture(pixels: Pixels, caption: str, alt: str) -> Picture:
    """Of `(H, W, 3)` as it is."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    coded = base64.b64encode(file.getvalue()).decode()
    height, width, _ = pixels.shape
    return Picture(
        source=f"data:image/jpeg;base64,{coded}",
        width=width,
        height=height,
        caption=caption,
        alt=alt,
    )


def laid_over(
    picture: Pixels, map_hw: Map, frame: Frame, *, signed: bool, limits: tuple[float, float]
) -> Pixels:
    """The picture in grey under a map's colours, see `report.overlay.blend`."""
    laid = lay(map_hw, frame, picture.shape[:2])
    mixed = blend(lightness(picture), laid, signed=signed, limits=limits)
    return np.asarray(np.clip(255 * mixed, 0, 255), np.uint8)


def thumbnail_size(size: tuple[int, int], longest: int = LONGEST) -> tuple[int, int]:
    """(width, height) of a picture whose longer side is `longest`."""
    scale = longest / max(size)
    width, height = (max(1, round(length * scale)) for length in size)
    return width, height


def colour_bar(name: str) -> str:
    """A colour table as the value of a CSS gradient, left to right."""
    import matplotlib as mpl

    stops = [mpl.colors.to_hex(c) for c in mpl.colormaps[name](np.linspace(0, 1, 9))]
    return f"linear-gradient(to right, {', '.join(stops)})"
