"""Colours of another space than sRGB, such as a phone's Display P3, brought to sRGB.

An embedded ICC profile says what an image's numbers mean. Networks here learn from sRGB; taken as
such, Display P3 and Adobe RGB look paler than they are.
"""

from __future__ import annotations

import functools
import importlib
import io
from typing import Any

from PIL import Image

# More than the largest of printers; what is longer is no profile of a camera.
_MAX_BYTES = 4 << 20


def to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str]:
    """An RGB image's colours in sRGB, and a note where its profile cannot be read.

    By relative colorimetry, colours outside of sRGB at its edge. Profiles of grey and of CMYK are
    left aside, as is one that calls itself sRGB.

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
    if "srgb" in cms.getProfileDescription(source).lower():
        return None
    return cms.buildTransform(
        source, cms.createProfile("sRGB"), "RGB", "RGB", cms.Intent.RELATIVE_COLORIMETRIC
    )
