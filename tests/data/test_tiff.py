"""TIFF beyond what Pillow does: grey of more than 8 bits as it is meant, and damaged data."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, TiffImagePlugin

from biigma_cli.data.preprocess import decode_image, load_image
from biigma_cli.errors import EXIT_DATA, ImageError
from tests.data.samples import encode, noise
from tests.data.test_jpeg import grain

RAMP = np.linspace(0, 255, 64)[None].repeat(64, 0)


def grey_tiff(values: npt.NDArray[np.uint16], **tags: int) -> bytes:
    """16-bit grey with tags of our own."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        info[{"photometric": 262, "orientation": 274}[name]] = value
    return encode(Image.fromarray(values), "TIFF", tiffinfo=info)


def test_white_may_be_zero() -> None:
    """A negative of 16 bits is turned, as Pillow turns one of 8."""
    values = (RAMP * 257).astype(np.uint16)
    positive = load_image(grey_tiff(values), 64)
    assert np.abs(positive[0, :, 0] - RAMP[0]).max() <= 1
    negative = load_image(grey_tiff(65535 - values, photometric=0), 64)
    assert np.abs(negative.astype(int) - positive).max() <= 1
    eight = Image.fromarray(RAMP.astype(np.uint8))
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[262] = 0
    content = encode(eight, "TIFF", tiffinfo=info)
    with Image.open(io.BytesIO(content)) as image:
        assert image.tag_v2[262] == 0  # type: ignore[attr-defined]
    assert np.abs(load_image(content, 64)[0, :, 0].astype(int) - RAMP[0]).max() <= 1


def test_twelve_bits_in_a_tiff_that_says_so() -> None:
    """Their white is 4095."""
    width = 64
    values = (RAMP / 255 * 4095).astype(np.uint16)
    packed = bytearray()
    for one, two in values.reshape(-1, 2):
        packed += bytes((one >> 4, (one & 15) << 4 | two >> 8, two & 255))
    content = raw_tiff(bytes(packed), width, bits=12)
    found = decode_image(content, 64)
    assert found.note == ""
    assert np.abs(found.pixels[0, :, 0].astype(int) - RAMP[0]).max() <= 1


def raw_tiff(data: bytes, side: int, *, bits: int) -> bytes:
    """An uncompressed grey square, by hand: Pillow writes none of 12 bits."""
    entries = [
        (256, side), (257, side), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1),
        (278, side), (279, len(data)),
    ]  # fmt: skip
    table = len(entries).to_bytes(2, "little")
    for tag, value in entries:
        table += tag.to_bytes(2, "little") + b"\x04\0\1\0\0\0" + value.to_bytes(4, "little")
    return b"II*\0" + (8 + len(data)).to_bytes(4, "little") + data + table + bytes(4)


def test_turned_grey_of_sixteen_bits() -> None:
    """The orientation is not lost on the way."""
    values = (RAMP * 257).astype(np.uint16)
    upright = load_image(grey_tiff(values), 64)
    stored = np.rot90(values, 1).copy()  # as a camera that is held so has it: 6
    assert np.array_equal(load_image(grey_tiff(stored, orientation=6), 64), upright)


def test_a_turned_png_of_sixteen_bits() -> None:
    """What is no TIFF is left alone, and keeps what says how it is turned."""
    values = (RAMP * 257).astype(np.uint16)
    exif = Image.Exif()
    exif[274] = 6
    stored = encode(Image.fromarray(np.rot90(values, 1).copy()), exif=exif)
    upright = encode(Image.fromarray(values))
    assert np.array_equal(load_image(stored, 64), load_image(upright, 64))


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("kind", ["jpeg", "tiff_adobe_deflate", "tiff_deflate"])
def test_damaged_data_are_refused(kind: str, tiled: bool) -> None:
    """Also where libtiff says nothing."""
    image = grain(200, 150)
    options: dict[str, Any] = {"compression": kind}
    if tiled:
        options["tiffinfo"] = {322: 64, 323: 64}
    whole = encode(image, "TIFF", **options)
    found = decode_image(whole, 64)
    assert found.note == ""
    assert np.array_equal(found.pixels, load_image(whole, 64))
    rng = random.Random(0)
    silent = 0
    for _ in range(20):
        at = rng.randrange(len(whole) // 5, len(whole) * 3 // 5)
        content = whole[:at] + bytes(128) + whole[at + 128 :]
        with pytest.raises(ImageError, match=r"x.tif is damaged") as caught:
            decode_image(content, 64, name="x.tif")
        assert caught.value.exit_code == EXIT_DATA
        try:
            load_image(content, 64)
        except ImageError:
            continue
        silent += 1
    assert silent  # so that this test is about what is not found without it


def test_several_pages() -> None:
    """The second page's data do not matter."""
    pages = [grain(80, 60, seed) for seed in (0, 1)]
    buffer = io.BytesIO()
    pages[0].save(
        buffer, "TIFF", compression="tiff_adobe_deflate", save_all=True, append_images=pages[1:]
    )
    content = buffer.getvalue()
    at = len(content) * 4 // 5
    spoilt = content[:at] + bytes(64) + content[at + 64 :]
    assert decode_image(spoilt, 32).note == "the first of several frames"


@pytest.mark.parametrize(
    ("image", "note"),
    [
        pytest.param(
            Image.fromarray((RAMP * 16).astype(np.uint16)),
            "its 16-bit values reach only 4080 of 65535: it may be too dark",
            id="12 bits in 16",
        ),
        pytest.param(Image.fromarray((RAMP * 257).astype(np.uint16)), "", id="16 bits"),
        pytest.param(Image.fromarray(np.zeros((9, 9), np.uint16)), "", id="black"),
        pytest.param(
            Image.fromarray((RAMP * 1e6).astype(np.int32)),
            "its whole numbers reach 255000000: from 65535 on all is white",
            id="31 bits",
        ),
        pytest.param(Image.fromarray((RAMP / 255).astype(np.float32)), "", id="parts of white"),
        pytest.param(
            Image.fromarray((RAMP / 100).astype(np.float32)),
            "its floating-point values reach 2.55: white is taken to be 255",
            id="floats beyond 1",
        ),
    ],
)
def test_doubtful_ranges_are_noted(image: Image.Image, note: str) -> None:
    """The guess may be wrong, and only the owner knows."""
    assert decode_image(encode(image, "TIFF"), 32).note == note


def test_transparency_is_noted_where_there_is_any() -> None:
    """An alpha channel that hides nothing is not worth a word."""
    image = noise(60, 40).convert("RGBA")
    assert decode_image(encode(image), 32).note == ""
    holed = image.copy()
    holed.putalpha(Image.new("L", image.size, 255))
    holed.paste((0, 0, 0, 0), (0, 0, 10, 10))
    note = "transparent parts are laid on white"
    assert decode_image(encode(holed), 32).note == note
    palette = noise(60, 40).quantize(16)
    assert decode_image(encode(palette, transparency=3), 32).note == note
    assert decode_image(encode(palette), 32).note == ""
