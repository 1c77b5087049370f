"""Decoding: orientation, modes, sizes, and every way a file can be bad."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from biigma_cli.data import colour, preprocess
from biigma_cli.data.magic import looks_like_image
from biigma_cli.data.preprocess import (
    MAX_PIXELS,
    decode_image,
    load_image,
    map_threads,
    upright_size,
)
from biigma_cli.errors import EXIT_DATA, ImageError
from tests.data.samples import encode, noise, oriented, pixels, png

Transpose = Image.Transpose
# How a camera that is held so stores an upright scene.
STORED = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}


def orientation(value: int) -> Image.Exif:
    """EXIF data with nothing but an orientation."""
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no pixels."""
    return png(width, height, 8, bytes(16))


# --- what comes out --------------------------------------------------------------------------


@pytest.mark.parametrize("value", STORED)
def test_exif_orientation_is_honoured(value: int) -> None:
    """However the camera was held, the same upright pixels come out."""
    upright = noise(40, 24)
    how = STORED[value]
    stored = upright if how is None else upright.transpose(how)
    turned = load_image(encode(stored, exif=orientation(value)), 16)
    assert np.array_equal(turned, load_image(encode(upright), 16))


def test_orientation_matters_to_the_sample() -> None:
    """The scene above is not the same in any two orientations."""
    scenes = {
        load_image(encode(noise(40, 24), exif=orientation(value)), 16).tobytes() for value in STORED
    }
    assert len(scenes) == len(STORED)


def test_orientation_of_a_jpeg_decoded_at_reduced_scale() -> None:
    """EXIF survives the reduced decoding of a large JPEG."""
    upright = noise(640, 480)
    stored = encode(upright.transpose(Transpose.ROTATE_90), "JPEG", quality=95, exif=orientation(6))
    expected = load_image(encode(upright), 32).astype(int)
    assert np.abs(load_image(stored, 32) - expected).mean() < 3


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("LA", (0, 255), (0, 0, 0)),
        ("LA", (0, 51), (204, 204, 204)),
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 255, 51), (204, 204, 255)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 25700, (100, 100, 100)),
        ("1", 1, (255, 255, 255)),
        ("1", 0, (0, 0, 0)),
    ],
)
def test_modes_become_rgb(
    mode: str, colour: int | tuple[int, ...], expected: tuple[int, int, int]
) -> None:
    """Each mode Pillow finds in a PNG, transparency laid on white, 16 bits scaled to 8."""
    image = load_image(encode(Image.new(mode, (9, 7), colour)), 8)
    assert image.shape == (8, 8, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - expected).max() <= 1


def test_cmyk() -> None:
    """Inks become light: no cyan, full magenta and yellow is red."""
    image = load_image(encode(Image.new("CMYK", (9, 7), (0, 255, 255, 0)), "TIFF"), 8)
    assert image.shape == (8, 8, 3)
    assert (image == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette(kind: str) -> None:
    """A palette is looked up; its transparent entry is white, whatever colour it has."""
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 40, 80, 120, 255, 0, 0])
    image.paste(2, (4, 0, 8, 8))
    opaque = load_image(encode(image, kind), 8)
    assert (opaque[:, :4] == (40, 80, 120)).all()
    assert (opaque[:, 4:] == (255, 0, 0)).all()
    clear = load_image(encode(image, kind, transparency=1), 8)
    assert (clear[:, :4] == 255).all()
    assert (clear[:, 4:] == (255, 0, 0)).all()


def test_sixteen_bit_floats_and_integers_keep_their_order() -> None:
    """A 16-bit ramp stays a ramp over the whole range; a float image of bytes is not scaled."""
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(64, 0)
    row = load_image(encode(Image.fromarray(ramp)), 64)[0, :, 0].astype(int)
    assert row[0] == 0
    assert row[-1] == 255
    assert (np.diff(row) >= 3).all()
    floats = Image.fromarray(np.full((8, 8), 77.0, np.float32))
    assert (load_image(encode(floats, "TIFF"), 8) == 77).all()


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000), (2, 5000)])
def test_odd_sizes_are_squashed(size: tuple[int, int]) -> None:
    """One pixel, one row, one column: a square of that colour."""
    image = load_image(encode(Image.new("RGB", size, (9, 90, 200))), 24)
    assert image.shape == (24, 24, 3)
    assert (image == (9, 90, 200)).all()


def test_the_whole_image_is_squashed() -> None:
    """The aspect ratio is given up; nothing is cropped."""
    wide = Image.new("RGB", (400, 100), (0, 0, 0))
    wide.paste((255, 255, 255), (0, 0, 100, 100))
    image = load_image(encode(wide), 40)
    assert (image[:, :9] > 250).all()
    assert (image[:, 11:] < 5).all()


def test_shrinking_is_antialiased() -> None:
    """One-pixel stripes become grey, not black or white."""
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 255
    image = load_image(encode(Image.fromarray(stripes)), 16)
    assert np.abs(image.astype(int) - 128).max() < 4


def test_a_large_jpeg_is_decoded_at_reduced_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than the full size, never under twice the side, and nearly the same pixels."""
    content = encode(noise(1600, 1200), "JPEG", quality=92)
    sizes: list[tuple[int, int]] = []
    to_rgb = colour.to_rgb

    def spy(image: Image.Image) -> Image.Image:
        sizes.append(image.size)
        return to_rgb(image)

    monkeypatch.setattr(preprocess, "to_rgb", spy)
    quick = load_image(content, 64)
    assert 128 <= min(sizes[0]) < 1200
    with Image.open(io.BytesIO(content)) as image:
        full = pixels(image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR))
    difference = np.abs(quick.astype(int) - full)
    assert difference.mean() < 1
    assert difference.max() < 12


# --- resize rules ----------------------------------------------------------------------------


def flag(width: int, height: int, bars: int) -> Image.Image:
    """Vertical bars of equal width in rising red, constant from top to bottom."""
    columns = np.arange(width) * bars // width
    values = np.zeros((height, width, 3), np.uint8)
    values[:, :, 0] = columns * 255 // (bars - 1)
    values[:, :, 2] = 90
    return Image.fromarray(values)


def test_rules_agree_on_squares() -> None:
    """Nothing is cropped or padded there."""
    content = encode(noise(50, 50))
    squash = load_image(content, 16, rule="squash")
    assert np.array_equal(squash, load_image(content, 16))
    for rule in ("crop", "pad"):
        assert np.array_equal(load_image(content, 16, rule=rule), squash)


@pytest.mark.parametrize("turned", [False, True])
def test_crop_keeps_the_centre(turned: bool) -> None:
    """The short side is whole, the long one loses the same at both ends; shapes are kept."""
    image = flag(60, 20, 3)
    if turned:
        image = image.transpose(Transpose.ROTATE_270)
    cropped = load_image(encode(image), 10, rule="crop")
    assert cropped.shape == (10, 10, 3)
    assert (cropped[1:-1, 1:-1, 0] == 127).all()  # the middle bar alone
    # As if the whole were scaled first and its centre cut out then.
    scaled = image.resize((10, 30) if turned else (30, 10), Image.Resampling.BILINEAR)
    centre = (0, 10, 10, 20) if turned else (10, 0, 20, 10)
    assert np.array_equal(cropped, pixels(scaled.crop(centre)))


@pytest.mark.parametrize("turned", [False, True])
def test_pad_keeps_everything(turned: bool) -> None:
    """The long side is whole, on black, in the middle; shapes are kept."""
    image = flag(60, 20, 3)
    if turned:
        image = image.transpose(Transpose.ROTATE_270)
    padded = load_image(encode(image), 30, rule="pad")
    if turned:
        padded = padded.transpose(1, 0, 2)
    assert (padded[:10] == 0).all()
    assert (padded[20:] == 0).all()
    inner = padded[10:20]
    assert (inner[:, :, 2] == 90).all()
    assert (np.abs(inner[:, [0, 14, 29], 0].astype(int) - [0, 127, 255]) <= 1).all()


def test_a_circle_stays_round_but_for_squash() -> None:
    """What each rule does to proportions: width over height of a disc in a 2:1 image."""
    yy, xx = np.mgrid[:100, :200]
    disc = (((xx - 100) ** 2 + (yy - 50) ** 2) < 40**2).astype(np.uint8) * 255
    ratios = {}
    for rule in preprocess.RESIZE_RULES:
        image = load_image(encode(Image.fromarray(disc)), 64, rule=rule)[:, :, 0] > 127
        ratios[rule] = image.any(0).sum() / image.any(1).sum()
    assert ratios == {
        "squash": pytest.approx(0.5, abs=0.05),
        "crop": pytest.approx(1, abs=0.05),
        "pad": pytest.approx(1, abs=0.05),
    }


@pytest.mark.parametrize("rule", preprocess.RESIZE_RULES)
@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000), (2, 5000), (7, 7), (31, 33)])
def test_every_rule_makes_a_square(rule: str, size: tuple[int, int]) -> None:
    """One pixel, one row, one column; where there is picture it has the picture's colour."""
    image = load_image(encode(Image.new("RGB", size, (9, 90, 200))), 24, rule=rule)
    assert (image.shape, image.dtype) == ((24, 24, 3), np.uint8)
    picture = (image == (9, 90, 200)).all(axis=2)
    assert picture.any()
    if rule != "pad":
        assert picture.all()
    assert (picture | (image == 0).all(axis=2)).all()


@pytest.mark.parametrize("rule", preprocess.RESIZE_RULES)
def test_every_rule_is_antialiased(rule: str) -> None:
    """One-pixel stripes become grey, not black or white."""
    stripes = np.zeros((256, 512), np.uint8)
    stripes[:, ::2] = 255
    image = load_image(encode(Image.fromarray(stripes)), 16, rule=rule).astype(int)
    inner = image[4:12] if rule == "pad" else image
    assert np.abs(inner - 128).max() < 4


@pytest.mark.parametrize("rule", preprocess.RESIZE_RULES)
def test_orientation_comes_before_the_rule(rule: str) -> None:
    """However the camera was held, the same square comes out."""
    upright = noise(48, 24)
    wanted = load_image(encode(upright), 16, rule=rule)
    for value, how in STORED.items():
        stored = upright if how is None else upright.transpose(how)
        turned = load_image(encode(stored, exif=orientation(value)), 16, rule=rule)
        assert np.array_equal(turned, wanted)


@pytest.mark.parametrize("rule", ["crop", "pad"])
def test_reduced_decoding_under_every_rule(rule: str) -> None:
    """A large JPEG decoded at a reduced scale looks as the whole one does."""
    image = noise(1600, 1200)
    quick = load_image(encode(image, "JPEG", quality=92), 64, rule=rule).astype(int)
    assert np.abs(quick - load_image(encode(image), 64, rule=rule)).mean() < 2


def test_an_unknown_rule() -> None:
    """A mistake of the caller is not taken for another rule, nor for a damaged image."""
    with pytest.raises(KeyError, match="stretch"):
        load_image(encode(noise(8, 8)), 8, rule="stretch")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF"])
def test_bytes_and_path_agree(tmp_path: Path, kind: str) -> None:
    """A file and its bytes give the same pixels, and those of the picture."""
    content = encode(noise(50, 40), kind)
    path = tmp_path / "image"
    path.write_bytes(content)
    image = load_image(path, 32)
    assert np.array_equal(image, load_image(content, 32))
    expected = load_image(encode(noise(50, 40)), 32)
    assert np.abs(image.astype(int) - expected).mean() < 12


# --- what is refused -------------------------------------------------------------------------


def refused(path: Path, *words: str) -> ImageError:
    """The error for `path`, with its name, all `words`, a remedy and exit code 3."""
    with pytest.raises(ImageError) as caught:
        load_image(path, 16)
    error = caught.value
    assert str(path) in error.message
    for word in words:
        assert word in error.message
    assert error.fix
    assert error.exit_code == EXIT_DATA == 3
    return error


def test_missing_file(tmp_path: Path) -> None:
    """It says that there is none."""
    refused(tmp_path / "none.jpg", "no file")


def test_folder(tmp_path: Path) -> None:
    """It says that it is a folder."""
    refused(tmp_path, "folder")


def test_forbidden_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not be read is not called damaged."""

    def deny(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(preprocess.os, "open", deny)
    refused(tmp_path / "secret.jpg", "permission")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "bad.jpg is empty"),
        (b"hello, I am no picture\n" * 40, "not an image"),
        (bytes(1000), "not an image"),
        (encode(noise(200, 150), "JPEG")[:1500], "damaged"),
        (encode(noise(200, 150), "PNG")[:1500], "damaged"),
        (encode(noise(64, 64), "BMP")[:1500], "damaged"),
        (encode(noise(64, 64), "JPEG")[:3], "damaged, or cut short"),
        (encode(noise(64, 64), "TIFF")[:8], "damaged"),
        (png_header(60000, 60000), "megapixels"),
        (png_header(17000, 17000), "megapixels"),
        (png_header(64, 64), "damaged"),
    ],
    ids=[
        "empty", "text", "zeros", "cut-jpeg", "cut-png", "cut-bmp", "stub", "tiff-stub",
        "bomb", "big", "hollow",
    ],
)  # fmt: skip
def test_bad_content(tmp_path: Path, content: bytes, word: str) -> None:
    """Each kind of bad content has its own words."""
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    refused(path, word)


def test_bad_bytes_take_the_name_given() -> None:
    """Bytes have no path: the name given, or a plain noun."""
    with pytest.raises(ImageError, match="upload 7 is not an image"):
        load_image(b"no", 16, name="upload 7")
    with pytest.raises(ImageError, match="the image is not an image"):
        load_image(b"no", 16)


def test_an_image_just_over_the_limit_is_refused_outside_pytest() -> None:
    """Pillow only warns between once and twice the limit: the module makes that an error."""
    script = (
        "import sys\n"
        "from biigma_cli.data.preprocess import load_image\n"
        "from biigma_cli.errors import ImageError\n"
        "try:\n"
        "    load_image(sys.stdin.buffer.read(), 16)\n"
        "except ImageError as error:\n"
        "    print(error)\n"
    )
    side = int((1.2 * MAX_PIXELS) ** 0.5)
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=png_header(side, side),
        capture_output=True,
        check=True,
    )
    assert b"claims more than 100 megapixels" in done.stdout
    assert done.stderr == b""


def mutants() -> Iterator[tuple[str, bytes]]:
    """Small files of each kind with a few bytes changed, dropped, doubled or cut off."""
    rng = random.Random(20)
    image = noise(31, 24)
    exif = orientation(6)
    palette = image.quantize(16)
    files = {
        "JPEG": encode(image, "JPEG"),
        "JPEG with EXIF": encode(image, "JPEG", exif=exif),
        "progressive JPEG": encode(image, "JPEG", progressive=True),
        "PNG": encode(image, exif=exif),
        "palette PNG": encode(palette, transparency=3),
        "16-bit PNG": encode(Image.new("I;16", (31, 24), 4000)),
        "BMP": encode(image, "BMP"),
        "TIFF": encode(image, "TIFF"),
        "LZW TIFF": encode(image, "TIFF", compression="tiff_lzw"),
        "WebP": encode(image, "WEBP"),
        "GIF": encode(palette, "GIF"),
    }
    for name, content in files.items():
        for _ in range(16):
            data = bytearray(content)
            reach = len(data) if rng.random() < 0.4 else min(len(data), 120)
            for _ in range(rng.choice((1, 1, 2, 5))):
                data[rng.randrange(reach)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
            cut = rng.randrange(len(data))
            match rng.randrange(6):
                case 0:
                    del data[cut:]
                case 1:
                    del data[cut : cut + 9]
                case 2:
                    data[cut:cut] = data[cut : cut + 9]
            yield name, bytes(data)


def test_mutated_files_give_an_image_or_an_image_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is done to a file, nothing but `ImageError` is ever raised."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)  # no huge images, for speed
    read = refusals = unnamed = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's remarks on odd tags
        for name, content in mutants():
            try:
                image = load_image(content, 16, name=name)
            except ImageError as error:
                unnamed += name not in error.message
                refusals += 1
            else:
                assert image.shape == (16, 16, 3)
                assert image.dtype == np.uint8
                read += 1
    assert read > 30
    assert refusals > 30
    assert unnamed == 0


@pytest.mark.parametrize("tag", [0x0100, 0x011A])
def test_an_ill_typed_exif_tag_beside_the_orientation(tag: int) -> None:
    """Text where EXIF wants a number, in a photo to be turned: an image, or `ImageError`."""
    entries = ((tag, 2, 4, b"abc\0"), (0x0112, 3, 1, b"\x06\0\0\0"))
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    for entry in entries:
        block += struct.pack("<HHI4s", *entry)
    content = encode(noise(40, 24), "JPEG", exif=block + bytes(4))
    try:
        image = load_image(content, 16)
    except ImageError:
        return
    assert image.shape == (16, 16, 3)


# --- DICOM -------------------------------------------------------------------------------------


def dicom(values: npt.NDArray[Any], **tags: Any) -> bytes:
    """A DICOM file of `(H, W)`, `(H, W, 3)` or `(frames, H, W, 3)` pixels."""
    pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.4"  # VL photographic
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["biigma"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(io.BytesIO(), {}, file_meta=meta, preamble=bytes(128))
    colour = values.shape[-1] == 3
    if values.ndim == 4:
        data.NumberOfFrames = len(values)
    height, width = values.shape[-3:-1] if colour else values.shape[-2:]
    data.Rows, data.Columns = height, width
    data.SamplesPerPixel = 3 if colour else 1
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8 * values.dtype.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = 0
    data.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_colour_dicom_is_what_the_same_png_gives() -> None:
    """The same pixels, whatever holds them."""
    image = noise(40, 30)
    assert np.array_equal(
        decode_image(dicom(np.asarray(image)), 16).pixels, decode_image(encode(image), 16).pixels
    )


@pytest.mark.parametrize(
    ("meta", "implicit"),
    [(True, False), (False, False), (False, True)],
    ids=["meta group", "explicit", "implicit"],
)
def test_dicom_without_its_preamble(meta: bool, implicit: bool) -> None:
    """As old archives have it; told by its first element."""
    image = noise(20, 20)
    content = dicom(np.asarray(image), SpecificCharacterSet="ISO_IR 100")
    bare = content[132:]
    if not meta:
        import pydicom

        data = pydicom.dcmread(io.BytesIO(content))
        file = io.BytesIO()
        pydicom.dcmwrite(
            file,
            pydicom.Dataset(data),
            implicit_vr=implicit,
            little_endian=True,
            force_encoding=True,
        )
        bare = file.getvalue()
    assert bare[128:132] != b"DICM"
    assert looks_like_image(bare)
    wanted = decode_image(encode(image), 16).pixels
    assert np.array_equal(decode_image(bare, 16).pixels, wanted)


def test_the_first_frame_of_a_dicom() -> None:
    """Taken, and said."""
    frames = np.stack([np.asarray(noise(20, 20, seed=i)) for i in range(3)])
    pixels, note, _ = decode_image(dicom(frames), 16)
    assert note == "the first of 3 frames"
    assert np.array_equal(pixels, decode_image(encode(noise(20, 20, seed=0)), 16).pixels)


def test_grey_dicom_uses_the_whole_range() -> None:
    """12 bits become 8; MONOCHROME1 is turned."""
    ramp = np.linspace(100, 4000, 16).astype(np.uint16)[None].repeat(16, 0)
    row = decode_image(dicom(ramp), 16).pixels[0, :, 0].astype(int)
    assert (row[0], row[-1]) == (0, 255)
    assert (np.diff(row) > 0).all()
    turned = decode_image(dicom(ramp, PhotometricInterpretation="MONOCHROME1"), 16)
    assert np.array_equal(turned.pixels[0, :, 0], 255 - row)


def lut(values: list[int], bits: int) -> Any:
    """A table of a DICOM file."""
    from pydicom.dataset import Dataset

    table = Dataset()
    table.LUTDescriptor = [len(values), 0, bits]
    table["LUTDescriptor"].VR = "US"
    table.LUTData = values
    table["LUTData"].VR = "US"
    return table


@pytest.mark.parametrize("stored", [8, 16])
def test_a_window_that_does_nothing(stored: int) -> None:
    """Nor does a scale: the picture is that of the same PNG, though it has no black in it."""
    grey = np.asarray(noise(20, 20).convert("L")) // 2 + 40
    wanted = decode_image(encode(Image.fromarray(grey)), 16).pixels
    values = grey.astype(f"uint{stored}")
    whole = {"BitsStored": 8, "HighBit": 7}
    for tags in (
        {}, {"WindowCenter": 128, "WindowWidth": 256},
        {"VOILUTSequence": [lut(list(range(256)), 8)]},
        {"VOILUTSequence": [lut([257 * i for i in range(256)], 16)]},
        {"RescaleSlope": 2, "RescaleIntercept": -9},
        {"RescaleSlope": 2, "RescaleIntercept": -9, "WindowCenter": 246.5, "WindowWidth": 511,
         "VOILUTFunction": "LINEAR"},
        {"ModalityLUTSequence": [lut([257 * i for i in range(256)], 16)], "WindowCenter": 32768,
         "WindowWidth": 65536} if stored == 16 else {},
    ):  # fmt: skip
        found = decode_image(dicom(values, **whole, **tags), 16).pixels
        assert np.abs(found.astype(int) - wanted).max() <= 1, tags


def test_a_window_is_kept() -> None:
    """Its edges are black and white, whatever the picture holds; sign and scale are heeded."""
    ramp = np.linspace(1000, 3000, 16)[None].repeat(16, 0)
    twelve = {"BitsStored": 12, "HighBit": 11}
    whole = {"WindowCenter": 2048, "WindowWidth": 4096}
    for values, tags in (
        (ramp.astype(np.uint16), whole),
        ((ramp - 2048).astype(np.int16), {"PixelRepresentation": 1, "WindowCenter": 0,
                                          "WindowWidth": 4096}),
        ((4095 - ramp).astype(np.uint16), {**whole, "RescaleSlope": -1, "RescaleIntercept": 4095}),
    ):  # fmt: skip
        row = decode_image(dicom(values, **twelve, **tags), 16).pixels[0, :, 0]
        assert np.abs(row - ramp[0] / 4095 * 255).max() < 1, tags
    half = decode_image(
        dicom(ramp.astype(np.uint16), **twelve, WindowCenter=2000, WindowWidth=1000), 16
    ).pixels[0, :, 0]
    assert (half[:4] == 0).all()
    assert (half[-4:] == 255).all()


def test_dicom_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file cut short, one without a picture, one too large."""
    content = dicom(np.asarray(noise(20, 20)))
    with pytest.raises(ImageError, match=r"scan.dcm .*cannot be decoded"):
        decode_image(content[:-300], 16, name="scan.dcm")
    with pytest.raises(ImageError, match="without a picture"):
        decode_image(content[: content.rindex(b"OW") - 4], 16)
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 300)
    with pytest.raises(ImageError, match="megapixels"):
        decode_image(content, 16)


def test_without_pydicom(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line to install it with."""
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImageError, match="pydicom is missing") as caught:
        decode_image(bytes(128) + b"DICM" + bytes(40), 16)
    assert caught.value.fix == 'pip install "biigma[dicom]"'


# --- threads ---------------------------------------------------------------------------------


def test_map_threads_keeps_the_order() -> None:
    """Results come in the items' order, though the first takes longest."""
    last = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert last.wait(10)
        if item == 3:
            last.set()
        return item * item

    assert list(map_threads(work, range(100), threads=4)) == [i * i for i in range(100)]


@pytest.mark.parametrize("items", [0, 1, 63, 64, 65])
def test_map_threads_loses_nothing(items: int) -> None:
    """Fewer, as many and more items than the look-ahead."""
    assert list(map_threads(str, range(items), threads=2)) == [str(i) for i in range(items)]


def test_map_threads_looks_only_so_far_ahead() -> None:
    """No more than `ahead` items are taken beyond those handed out."""
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for i in range(1000):
            taken += 1
            yield i

    results = map_threads(str, items(), threads=2, ahead=5)
    assert taken == 0
    for handed_out in range(1, 20):
        next(results)
        assert handed_out <= taken <= handed_out + 5
    results.close()  # type: ignore[attr-defined]
    assert taken < 30


def test_map_threads_raises_at_the_items_turn() -> None:
    """Earlier results come first, then the exception."""

    def work(item: int) -> int:
        if item == 3:
            raise LookupError("three")
        return item

    results = map_threads(work, range(10), threads=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LookupError, match="three"):
        next(results)


def test_map_threads_cancels_what_waits_when_closed() -> None:
    """Closed early, it ends the running item and starts no other."""
    begun: list[int] = []
    gate = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item:
            gate.wait(10)
        return item

    results = map_threads(work, range(100), threads=1, ahead=8)
    assert next(results) == 0
    timer = threading.Timer(0.3, gate.set)
    timer.start()
    results.close()  # type: ignore[attr-defined]
    timer.join()
    assert set(begun) <= {0, 1}


# --- size ------------------------------------------------------------------------------------


def test_upright_size(tmp_path: Path) -> None:
    """As the decoded picture lies, whatever stands in the tag: 9 and words turn nothing."""
    for number, value in enumerate((1, 2, 3, 4, 5, 6, 7, 8, 9, 0, "6", "no")):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(encode(noise(40, 24), "JPEG", exif=oriented(value)))
        assert upright_size(path) == ((24, 40) if value in (5, 6, 7, 8) else (40, 24)), value
        assert load_image(path, 16).shape == (16, 16, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_upright_size_is_the_shown_one(kind: str, orientation: int, tmp_path: Path) -> None:
    """Of every format, whether Pillow counts its header's size before turning it or after."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.img"
    Image.new("RGB", (60, 20), (200, 150, 120)).save(path, kind, exif=exif)
    wanted = (20, 60) if orientation in (6, 8) else (60, 20)
    assert upright_size(path) == wanted
    with preprocess.opened(path, "a.img") as image:
        image.load()
        assert preprocess._upright(image).size == wanted


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0garbagegarbage", b"Exif\0\0II"])
def test_an_exif_header_that_is_none(kind: str, exif: bytes) -> None:
    """It asks for no turn; the pixels are sound."""
    plain, odd = io.BytesIO(), io.BytesIO()
    picture = noise(40, 30, 3)
    picture.save(plain, kind, lossless=True)
    picture.save(odd, kind, lossless=True, exif=exif)
    np.testing.assert_array_equal(load_image(odd.getvalue(), 32), load_image(plain.getvalue(), 32))


def test_upright_size_of_a_large_jpeg(tmp_path: Path) -> None:
    """Not that of a reduced scale."""
    path = tmp_path / "large.jpg"
    path.write_bytes(encode(Image.new("RGB", (3000, 2000)), "JPEG"))
    assert upright_size(path) == (3000, 2000)


def test_upright_size_of_dicom(tmp_path: Path) -> None:
    """Of its first frame."""
    path = tmp_path / "a.dcm"
    path.write_bytes(dicom(np.asarray(noise(40, 24))))
    assert upright_size(path) == (40, 24)


def test_upright_size_of_no_image(tmp_path: Path) -> None:
    """An error as in decoding."""
    path = tmp_path / "a.jpg"
    path.write_bytes(b"no picture")
    for file, words in ((path, "not an image"), (tmp_path / "gone.jpg", "no file at")):
        with pytest.raises(ImageError, match=words):
            upright_size(file)
