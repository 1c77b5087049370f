"""Any image to 8-bit sRGB, and what a user should know of how.

An embedded ICC profile says what an image's numbers mean. Networks here learn from sRGB; taken as
such, Display P3 and Adobe RGB look paler than they are.
"""

from __future__ import annotations

import functools
import importlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

# Larger images change their mode in strips, so that the steps between cost no whole copies.
_STRIP = 4_000_000
# What 14 bits can hold: cameras of 12 or 14 write these into 16.
_DARK = 1 << 14
# More than the largest of printers; what is longer is no profile of a camera.
_MAX_BYTES = 4 << 20
# As far as several makers' sRGB profiles lie apart, of 255.
_ROUNDING = 4


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to RGB: 16-bit is scaled, transparency laid on white.

    Whole numbers above 255 are taken as 16-bit; floats up to 1 as parts of white.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    strips = _Strips(image)
    scale = 1.0
    if image.mode.startswith("I;16"):
        scale = 255 / 65535
    elif image.mode in ("I", "F"):
        top = max(float(_values(strip).max(initial=0)) for strip in strips)
        if top > 255:
            scale = 255 / 65535
        elif image.mode == "F" and top <= 1:
            scale = 255.0
    if len(strips) == 1:
        return _strip_to_rgb(image, scale)
    whole = Image.new("RGB", image.size)
    top = 0
    for strip in strips:
        whole.paste(_strip_to_rgb(strip, scale), (0, top))
        top += strip.height
    return whole


def remarks(image: Image.Image, *, sixteen: bool) -> str:
    """What is doubtful about how `to_rgb` takes an image; mostly empty.

    Args:
        image: decoded.
        sixteen: whether the file holds 16 bits where Pillow gives 8.
    """
    found = []
    strips = _Strips(image)
    if sixteen or image.mode.startswith("I") or image.mode == "F":
        top = max(float(_values(strip).max(initial=0)) for strip in strips)
        if sixteen:
            top = 256 * top + 255 if top else 0.0  # at most: the lower 8 bits are gone
        if sixteen or image.mode.startswith("I;16"):
            if 0 < top < _DARK:
                found.append(f"its 16-bit values reach only {top:.0f} of 65535: it may be too dark")
        elif image.mode == "I":
            if top > 65535:
                found.append(f"its whole numbers reach {top:.0f}: from 65535 on all is white")
        elif top > 1:
            white = 255 if top <= 255 else 65535
            found.append(f"its floating-point values reach {top:.4g}: white is taken to be {white}")
    # Of grey in more than 8 bits, `to_rgb` takes no notice of a transparent value.
    grey = image.mode.startswith("I") or image.mode == "F"
    if not grey and image.has_transparency_data and any(_alpha(strip) < 255 for strip in strips):
        found.append("transparent parts are laid on white")
    return "; ".join(found)


def _alpha(image: Image.Image) -> int:
    """The lowest."""
    if "A" not in image.getbands():
        image = image.convert("RGBA")
    lowest: int = image.getchannel("A").getextrema()[0]  # type: ignore[assignment]
    return lowest


class _Strips:
    """A large image in strips, cut out when asked for."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.rows = max(1, _STRIP // max(1, image.width))

    def __len__(self) -> int:
        return -(-self.image.height // self.rows)

    def __iter__(self) -> Iterator[Image.Image]:
        width, height = self.image.size
        if len(self) == 1:
            yield self.image
            return
        for top in range(0, height, self.rows):
            yield self.image.crop((0, top, width, min(height, top + self.rows)))


def _values(image: Image.Image) -> npt.NDArray[np.float32]:
    return np.nan_to_num(np.asarray(image, dtype=np.float32))


def _strip_to_rgb(image: Image.Image, scale: float) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = _values(image) * np.float32(scale)
        grey = Image.fromarray(np.clip(values, 0, 255).round().astype(np.uint8))
        return grey.convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str]:
    """An RGB image's colours in sRGB, and a note where its profile cannot be read.

    By relative colorimetry, colours outside of sRGB at its edge. Profiles of grey and of CMYK are
    left aside, as is one that is sRGB but for roundings.

    Args:
        image: 8-bit RGB.
        profile: ICC, embedded in the file the image comes from; None or empty for none.
    """
    if not profile:
        return image, ""
    try:
        if len(profile) > _MAX_BYTES:
            raise ValueError
        transform = _transform(profile)
        if transform is None:
            return image, ""
        return importlib.import_module("PIL.ImageCms").applyTransform(image, transform), ""
    except Exception:  # littlecms and Pillow raise anything at all for what is no profile
        return image, "its colour profile cannot be read: its colours are taken as sRGB"


@functools.lru_cache(maxsize=8)
def _transform(profile: bytes) -> Any:
    """To sRGB; None where there is nothing to do."""
    cms = importlib.import_module("PIL.ImageCms")
    source = cms.ImageCmsProfile(io.BytesIO(profile))
    if source.profile.xcolor_space.strip() != "RGB":
        return None
    transform = cms.buildTransform(
        source, cms.createProfile("sRGB"), "RGB", "RGB", cms.Intent.RELATIVE_COLORIMETRIC
    )
    # By what it does, not by its name: there are linear ones that call themselves sRGB.
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 9, 3)
    brought = np.asarray(cms.applyTransform(Image.fromarray(colours), transform), np.int16)
    return None if np.abs(brought - colours).max() <= _ROUNDING else transform
