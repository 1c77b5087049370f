"""Colour profiles: the same colours give the same pixels, whatever space a file writes them in."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from biigma_cli.data import colour
from biigma_cli.data.preprocess import decode_image, load_image
from tests.data.samples import encode, noise, png
from tests.data.test_preprocess import dicom

UNREADABLE = "its colour profile cannot be read: its colours are taken as sRGB"


def fixed(values: Sequence[float]) -> bytes:
    """ICC's s15Fixed16Number."""
    return b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def matrix_profile(
    name: str, gamma: float, *primaries: Sequence[float], space: str = "RGB "
) -> bytes:
    """An ICC profile, version 2: red, green and blue as XYZ at D50, and one exponent for all."""
    white = (0.9642, 1.0, 0.8249)
    text = name.encode() + b"\0"
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    tags = {
        "desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78),
        "cprt": b"text" + bytes(4) + b"none\0",
        "wtpt": b"XYZ " + bytes(4) + fixed(white),
    }
    for letter, xyz in zip("rgb", primaries, strict=True):
        tags |= {f"{letter}XYZ": b"XYZ " + bytes(4) + fixed(xyz), f"{letter}TRC": curve}
    table, body = b"", b""
    for tag, value in tags.items():
        place = 132 + 12 * len(tags) + len(body)
        table += tag.encode() + struct.pack(">II", place, len(value))
        body += value + bytes(-len(value) % 4)
    size = 132 + len(table) + len(body)
    header = struct.pack(">I4xI4s4s4s", size, 0x02100000, b"mntr", space.encode(), b"XYZ ")
    header += struct.pack(">6H4s32x", 2026, 1, 1, 0, 0, 0, b"acsp") + fixed(white)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


P3 = matrix_profile(
    "Display P3", 2.2, (0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189),
    (0.15710, 0.06657, 0.78407),
)  # fmt: skip
ADOBE = matrix_profile(
    "Adobe RGB (1998)", 563 / 256, (0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087),
    (0.14919, 0.06322, 0.74457),
)  # fmt: skip
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# Of skin: within sRGB, so that the way there and back loses nothing but roundings.
SKIN = Image.fromarray(
    (np.asarray(noise(64, 48), np.float32) * 0.4 + (110, 60, 50)).astype(np.uint8)
)


def written_in(profile: bytes) -> Image.Image:
    """The same colours in another space's numbers."""
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    image = ImageCms.profileToProfile(
        SKIN, ImageCms.createProfile("sRGB"), target, ImageCms.Intent.RELATIVE_COLORIMETRIC
    )  # fmt: skip
    image.info.clear()  # the profile, which is to be written only where a test says so
    return image


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("TIFF", {}),
        ("WEBP", {"lossless": True}),
    ],
)
@pytest.mark.parametrize("profile", [P3, ADOBE], ids=["Display P3", "Adobe RGB"])
def test_the_same_colours_in_another_space(
    kind: str, options: dict[str, Any], profile: bytes
) -> None:
    """Within roundings; without the profile they would be others."""
    whole = load_image(encode(SKIN, kind, **options), 32).astype(int)
    other = written_in(profile)
    found = decode_image(encode(other, kind, icc_profile=profile, **options), 32)
    assert found.note == ""
    assert np.abs(found.pixels - whole).max() <= 3
    assert np.abs(found.pixels - whole).mean() < 0.8
    paler = load_image(encode(other, kind, **options), 32)
    assert np.abs(paler - whole).mean() > 4
    tagged = encode(other, kind, icc_profile=profile, **options)
    assert np.array_equal(load_image(tagged, 32), found.pixels)


def test_transparency_and_palettes() -> None:
    """Their colours are in the profile's space, too."""
    other = written_in(P3)
    whole = load_image(encode(SKIN), 32).astype(int)
    found = load_image(encode(other.convert("RGBA"), icc_profile=P3), 32)
    assert np.abs(found - whole).max() <= 3
    few = other.quantize(16)
    paler = load_image(encode(few), 32).astype(int)
    assert np.abs(load_image(encode(few, icc_profile=P3), 32) - paler).mean() > 4


@pytest.mark.parametrize("rule", ["squash", "crop", "pad"])
def test_every_rule(rule: str) -> None:
    """What `pad` lays around stays black."""
    whole = load_image(encode(SKIN), 32, rule=rule).astype(int)
    found = load_image(encode(written_in(P3), icc_profile=P3), 32, rule=rule)
    assert np.abs(found - whole).max() <= 3
    assert (found[0] == 0).all() == (rule == "pad")


@pytest.mark.parametrize(
    "profile",
    [
        pytest.param(SRGB, id="sRGB"),
        pytest.param(P3.replace(b"RGB ", b"GRAY"), id="grey"),
        pytest.param(P3.replace(b"RGB ", b"CMYK"), id="CMYK"),
    ],
)
def test_nothing_to_do(profile: bytes) -> None:
    """Bit for bit as without one."""
    found = decode_image(encode(SKIN, icc_profile=profile), 32)
    assert found.note == ""
    assert np.array_equal(found.pixels, load_image(encode(SKIN), 32))


def test_a_linear_space_that_is_called_srgb() -> None:
    """What it does counts, not its name."""
    linear = matrix_profile(
        "Linear sRGB", 1.0, (0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708),
        (0.14307, 0.06061, 0.71410),
    )  # fmt: skip
    other = written_in(linear)
    whole = load_image(encode(SKIN), 32).astype(int)
    assert np.abs(load_image(encode(other), 32) - whole).mean() > 20
    assert np.abs(load_image(encode(other, icc_profile=linear), 32) - whole).mean() < 2


def test_sixteen_bits_of_colour_that_use_few() -> None:
    """Pillow keeps the upper 8, so what is dark there was dark in 16."""
    values = np.linspace(0, 4095, 16 * 16 * 3).astype(np.uint16).reshape(16, 16, 3)
    for shift, note in (
        (0, "its 16-bit values reach only 4095 of 65535: it may be too dark"),
        (4, ""),
    ):
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values << shift)
        assert decode_image(png(16, 16, 16, rows), 16).note == note


@pytest.mark.parametrize(
    "profile",
    [
        pytest.param(b"no profile at all", id="text"),
        pytest.param(P3[:200], id="cut short"),
        pytest.param(P3[:128] + bytes(400), id="empty"),
        pytest.param(P3 + bytes(5 << 20), id="huge"),
    ],
)
def test_a_profile_that_is_none(profile: bytes) -> None:
    """Said, and the picture is read."""
    # Of such a PNG Pillow says itself that it is damaged.
    for kind in ("PNG", "TIFF") if len(profile) < 1 << 20 else ("TIFF",):
        found = decode_image(encode(SKIN, kind, icc_profile=profile), 32)
        assert found.note == UNREADABLE
        assert np.array_equal(found.pixels, load_image(encode(SKIN, kind), 32))


def test_dicom_says_its_space_in_a_tag() -> None:
    """As colour photographs do there."""
    whole = decode_image(encode(SKIN), 32).pixels.astype(int)
    other = np.asarray(written_in(P3))
    found = decode_image(dicom(other, ICCProfile=P3), 32)
    assert found.note == ""
    assert np.abs(found.pixels - whole).max() <= 3
    assert np.abs(decode_image(dicom(other), 32).pixels - whole).mean() > 4


def test_threads_share_a_transform() -> None:
    """Pictures are decoded in several at once."""
    colour._transform.cache_clear()
    content = encode(written_in(P3), icc_profile=P3)
    first = load_image(content, 32)
    colour._transform.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: load_image(content, 32), range(200)):
            assert np.array_equal(found, first)
    assert colour._transform.cache_info().currsize == 1
