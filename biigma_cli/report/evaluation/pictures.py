"""Small pictures of single images, with what a model shows of them laid on top."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from biigma_cli.data.preprocess import Pixels
from biigma_cli.report.overlay import Frame, _grey, blend, lay, value_range

#: Longer side of a picture, in pixels.
LONGEST = 176
_Map = npt.NDArray[np.floating[Any]]

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


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A wrong answer.

    Attributes:
        image_id: the archive's.
        lesion_id: "" where unknown.
        truth: class code.
        answer: class code.
        p_truth: probability of the truth.
        p_answer: probability of the answer.
        pictures: the image, then its maps.
    """

    image_id: str
    lesion_id: str
    truth: str
    answer: str
    p_truth: float
    p_answer: float
    pictures: tuple[Picture, ...] = ()


def mistake_pictures(
    picture: Pixels,
    frame: Frame,
    *,
    image_id: str,
    truth: str,
    answer: str,
    contrast_hw: _Map | None = None,
    saliency: Mapping[str, _Map] | None = None,
) -> tuple[Picture, ...]:
    """A small image, and on it what the model shows of it.

    Args:
        picture: `(H, W, 3)` uint8, see `thumbnail_size`.
        frame: how the model's maps lie on the picture.
        contrast_hw: evidence for the answer less evidence for the truth, in logits per position.
        saliency: M in (0, 1), by form; see `Candidate.maps`.
    """
    shown = [_picture(picture, "image", f"{image_id}, which is {truth}")]

    def lay_on(map_hw: _Map, *, signed: bool, limits: tuple[float, float]) -> Pixels:
        laid = lay(map_hw, frame, picture.shape[:2])
        mixed = blend(_grey(picture), laid, signed=signed, limits=limits)
        return np.asarray(np.clip(255 * mixed, 0, 255), np.uint8)

    if contrast_hw is not None:
        low, high = value_range(contrast_hw, signed=True)
        shown.append(
            _picture(
                lay_on(contrast_hw, signed=True, limits=(low, high)),
                f"evidence, up to {high:.2g}",
                f"{image_id}: evidence for {answer} over {truth}; red speaks for {answer}, blue "
                f"for {truth}",
            )
        )
    for form, map_hw in (saliency or {}).items():
        low, high = float(map_hw.min()), float(map_hw.max())
        shown.append(
            _picture(
                lay_on(map_hw, signed=False, limits=(0, 1)),
                f"M, {form}: {low:.2f} to {high:.2f}",
                f"{image_id}: saliency map M, {form}, from {low:.2f} to {high:.2f}",
            )
        )
    return tuple(shown)


def thumbnail_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a picture whose longer side is `LONGEST`."""
    scale = LONGEST / max(size)
    width, height = (max(1, round(length * scale)) for length in size)
    return width, height


def colour_bar(name: str) -> str:
    """A colour table as the value of a CSS gradient, left to right."""
    import matplotlib as mpl

    stops = [mpl.colors.to_hex(c) for c in mpl.colormaps[name](np.linspace(0, 1, 9))]
    return f"linear-gradient(to right, {', '.join(stops)})"


def _picture(pixels: Pixels, caption: str, alt: str) -> Picture:
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
