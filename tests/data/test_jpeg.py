"""JPEGs of which a part is wrong: refused where an answer hangs on them, and named by the audit."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from biigma_cli.config import DataConfig
from biigma_cli.data import jpeg
from biigma_cli.data.audit import audit_manifest
from biigma_cli.data.jpeg import MAX_BYTES, check_jpeg
from biigma_cli.data.preprocess import decode_image, load_image
from biigma_cli.errors import EXIT_DATA, ImageError
from tests.data.samples import HAM10000, NO_HAM10000, digest, encode, manifest, noise, record

END = b"\xff\xd9"


def grain(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with some detail, of about the JPEG size of a real one."""
    rng = np.random.default_rng(seed)
    values = np.asarray(noise(width, height, seed), np.int16)
    values = values + rng.integers(-3, 4, (height, width, 3), dtype=np.int16)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


PLAIN = encode(grain(200, 150), "JPEG", quality=90)
HALF = len(PLAIN) // 2


def kinds() -> Iterator[dict[str, Any]]:
    """Ways to write a JPEG."""
    yield from ({}, {"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 5})
    for quality, subsampling in product((40, 98), (0, 1, 2)):
        yield {"quality": quality, "subsampling": subsampling}
    yield {"keep_rgb": True}


@pytest.mark.parametrize("options", list(kinds()), ids=str)
@pytest.mark.parametrize("size", [(200, 150), (331, 77), (1024, 641), (1, 1), (3, 900)])
def test_strict_decoding_gives_pillows_pixels(
    options: dict[str, Any], size: tuple[int, int]
) -> None:
    """Bit for bit, whether decoded whole or at a reduced scale, so that nothing else differs."""
    image = grain(*size)
    exif = Image.Exif()
    exif[0x0112] = 6
    for content in (
        encode(image, "JPEG", **options),
        encode(image, "JPEG", exif=exif, **options),
        encode(image.convert("L"), "JPEG", **{k: v for k, v in options.items() if k != "keep_rgb"}),
    ):
        for side in (16, 64, 160):
            found = decode_image(content, side)
            assert found.note == ""
            assert np.array_equal(found.pixels, load_image(content, side))


def test_the_other_decoder_is_what_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this the test above compares Pillow with itself."""
    asked = []

    def spied(content: bytes, decode: tuple[int, int] | None = None) -> jpeg.Checked:
        asked.append(decode)
        found = check_jpeg(content, decode)
        assert (found.pixels is None) == (decode is None)
        return found

    monkeypatch.setattr("biigma_cli.data.preprocess.check_jpeg", spied)
    large = encode(grain(1024, 641), "JPEG")
    for content in (PLAIN, large, encode(grain(60, 40).convert("CMYK"), "JPEG")):
        decode_image(content, 64)
    assert asked == [(200, 150), (256, 161), None]


def test_two_pictures_in_one_file() -> None:
    """Of a JPEG of several the first, as Pillow takes it."""
    buffer = io.BytesIO()
    grain(90, 70).save(buffer, "MPO", save_all=True, append_images=[grain(90, 70, seed=1)])
    found = decode_image(buffer.getvalue(), 32)
    assert found.note == ""
    assert np.array_equal(found.pixels, load_image(buffer.getvalue(), 32))


def zeros(content: bytes, at: int) -> bytes:
    """A block of a disk that was never written."""
    return content[:at] + bytes(512) + content[at + 512 :]


def gap(content: bytes, at: int) -> bytes:
    """Bytes that were lost on the way."""
    return content[:at] + content[at + 100 :]


def early_end(content: bytes, at: int) -> bytes:
    """Cut short, and closed by something that meant well."""
    return content[:at] + END


DAMAGE = (zeros, gap, early_end)


@pytest.mark.parametrize("spoil", DAMAGE)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_part_that_is_wrong_is_refused(
    spoil: Callable[[bytes, int], bytes], mode: str, progressive: bool
) -> None:
    """Wherever in the data it is; in a progressive one, a later scan's may go unseen."""
    whole = encode(grain(200, 150).convert(mode), "JPEG", quality=90, progressive=progressive)
    start = whole.index(b"\xff\xda") + 20
    rng = random.Random(1)
    refused: list[ImageError] = []
    for _ in range(20):
        content = spoil(whole, rng.randrange(start, len(whole) - 700))
        try:
            decode_image(content, 64, name="moles/1.jpg")
        except ImageError as error:
            refused.append(error)
    for error in refused:
        assert error.message.startswith("moles/1.jpg is damaged: ")
        assert (error.exit_code, error.fix) == (EXIT_DATA, "get the file again")
    assert len(refused) >= (12 if progressive else 20)


@pytest.mark.parametrize("spoil", DAMAGE)
def test_data_sets_are_read_as_pillow_reads_them(spoil: Callable[[bytes, int], bytes]) -> None:
    """One odd picture of ten thousand stops no training."""
    content = spoil(PLAIN, HALF)
    with Image.open(io.BytesIO(content)) as image:
        image.load()  # what makes the damage worth looking for
    assert load_image(content, 64).shape == (64, 64, 3)
    words = "part of the picture is wrong or missing"
    with pytest.raises(ImageError, match=words):
        decode_image(content, 64)
    assert decode_image(content, 64, strict=False).note == ""
    assert check_jpeg(content).fault.startswith(words)
    assert check_jpeg(content, (200, 150)).fault.startswith(words)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_later_scans_that_never_came(mode: str) -> None:
    """A progressive picture cut between two scans and closed: coarse, and nothing warns."""
    content = encode(grain(200, 150).convert(mode), "JPEG", progressive=True)
    scans = [n.start() for n in re.finditer(b"\xff\xda", content)]
    assert len(scans) > 3
    for scan in scans[1:]:
        cut = content[: content.rindex(b"\xff\xc4", 0, scan)] + END
        with Image.open(io.BytesIO(cut)) as image:
            image.load()
        with pytest.raises(ImageError, match="some of its scans"):
            decode_image(cut, 64)
        assert check_jpeg(cut + content).fault  # what lies behind the picture does not count
    assert decode_image(content + content[:900], 64).note == ""


def test_an_earlier_scan_that_never_came() -> None:
    """One of a progressive picture's first six, on which later ones build."""
    content = encode(grain(200, 150), "JPEG", progressive=True)
    scans = [n.start() for n in re.finditer(b"\xff\xda", content)]
    for n in range(1, 6):
        first = content.rindex(b"\xff\xc4", 0, scans[n])
        last = content.rindex(b"\xff\xc4", 0, scans[n + 1])
        last = last if last > scans[n] else scans[n + 1]  # a scan of single bits has no table
        with pytest.raises(ImageError, match="damaged"):
            decode_image(content[:first] + content[last:], 64)


def test_a_restart_interval_that_is_gone() -> None:
    """The blocks behind it stand where others belong."""
    content = encode(grain(200, 150), "JPEG", restart_marker_blocks=5)
    marks = [
        n for n in range(len(content) - 1) if content[n] == 255 and content[n + 1] & 0xF8 == 0xD0
    ]
    with pytest.raises(ImageError, match="instead of RST"):
        decode_image(content[: marks[4]] + content[marks[5] :], 64)


LONG = PLAIN[:-2] + b"0123456789abcdef" + END
NOTE = r"its data hold \d+ bytes too many: part of it may be wrong"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(LONG, id="a few bytes"),
        pytest.param(PLAIN[:-2] + bytes(512) + END, id="zeros to the end of a block"),
        pytest.param(PLAIN[:-2] + bytes(512) + END + b"hello" + END, id="and something behind it"),
    ],
)
def test_data_that_go_on_are_noted(content: bytes) -> None:
    """A picture may be whole all the same, so it is read."""
    exif = Image.Exif()
    exif[0x010E] = "markers of its own: \xff\xd9 \xff\xda"
    block = exif.tobytes()
    header = b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block
    for whole in (content, content[:2] + header + content[2:]):
        found = decode_image(whole, 64)
        assert re.fullmatch(NOTE, found.note)
        assert np.array_equal(found.pixels, load_image(PLAIN, 64))


def test_data_that_go_on_for_long_are_refused() -> None:
    """These are blocks that found no place."""
    with pytest.raises(ImageError, match=r"wrong or missing \(9\d extraneous bytes"):
        decode_image(PLAIN[:-2] + bytes(range(100)) + END, 64)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(PLAIN + b"hello" * 1000, id="something behind it"),
        pytest.param(PLAIN[:-2] + b"\xff" * 5 + END, id="padding"),
        pytest.param(PLAIN[:20] + b"zzzz" + PLAIN[20:], id="junk between the headers"),
    ],
)
def test_what_harms_no_block_is_not_mentioned(content: bytes) -> None:
    """Cameras and editors write such files."""
    found = decode_image(content, 64)
    assert found.note == ""
    assert np.array_equal(found.pixels, load_image(PLAIN, 64))


ODD_HEADERS = (
    pytest.param(
        lambda jpeg: jpeg.replace(b"JFIF\0\1\1", b"JFIF\0\7\1"), id="a version of its own"
    ),
    pytest.param(lambda jpeg: jpeg[:20] + b"zzzz" + jpeg[20:], id="junk between the headers"),
)


@pytest.mark.parametrize("odd", ODD_HEADERS)
@pytest.mark.parametrize("progressive", [False, True])
def test_an_odd_header_hides_no_damage(odd: Callable[[bytes], bytes], progressive: bool) -> None:
    """Libjpeg tells its first warning alone."""
    plain = encode(grain(200, 150), "JPEG", quality=90, progressive=progressive)
    whole = odd(plain)
    assert whole != plain
    found = decode_image(whole, 64)
    assert found.note == ""
    assert np.array_equal(found.pixels, load_image(plain, 64))
    place = whole.index(b"\xff\xda") + 2000
    for spoil in DAMAGE:
        with pytest.raises(ImageError, match="part of the picture is"):
            decode_image(spoil(whole, place), 64)


def test_without_simplejpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow reads all, and nothing is checked."""
    monkeypatch.setattr(jpeg, "_simplejpeg", lambda: None)
    assert np.array_equal(decode_image(PLAIN, 64).pixels, load_image(PLAIN, 64))
    assert decode_image(zeros(PLAIN, HALF), 64).note == ""


def test_a_huge_file_is_not_read_to_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies behind a small picture is not copied into memory without end."""
    assert MAX_BYTES < 1 << 30
    monkeypatch.setattr(jpeg, "MAX_BYTES", len(PLAIN))
    monkeypatch.setattr("biigma_cli.data.preprocess.MAX_BYTES", len(PLAIN))
    assert check_jpeg(PLAIN, (200, 150)).pixels is not None
    assert check_jpeg(PLAIN + b"x", (200, 150)).pixels is None
    assert np.array_equal(decode_image(PLAIN + bytes(1000), 64).pixels, load_image(PLAIN, 64))


def test_the_audit_names_them(tmp_path: Path) -> None:
    """As odd images: the training takes them."""
    contents = {
        "hole": zeros(PLAIN, HALF),
        "long": LONG,
        "well": encode(grain(200, 150, seed=2), "JPEG"),
    }
    records = []
    for name, content in contents.items():
        (tmp_path / f"{name}.jpg").write_bytes(content)
        records.append(replace(record(name, "NV"), digest=digest(content)))
    audit = audit_manifest(manifest(records, root=tmp_path), DataConfig())
    assert audit.unreadable == ()
    odd = {o.image_id: o.problems for o in audit.odd}
    assert set(odd) == {"hole", "long"}
    assert any("wrong or missing" in p for p in odd["hole"])
    assert any(re.fullmatch(NOTE, p) for p in odd["long"])


def test_dicom_frames_are_checked_too() -> None:
    """A JPEG in a DICOM file is one all the same."""
    pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    assert (
        np.abs(decode_image(dicom(PLAIN), 64).pixels.astype(int) - load_image(PLAIN, 64)).mean() < 1
    )
    with pytest.raises(ImageError, match=r"scan.dcm is damaged: part of the picture is wrong"):
        decode_image(dicom(zeros(PLAIN, HALF)), 64, name="scan.dcm")
    note = decode_image(dicom(LONG, frames=2), 64).note
    assert re.fullmatch(f"the first of 2 frames; {NOTE}", note)


def dicom(content: bytes, frames: int = 1) -> bytes:
    """A DICOM file that holds a JPEG, so many times."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, generate_uid

    with Image.open(io.BytesIO(content)) as image:
        width, height = image.size
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.4"  # VL photographic
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["biigma"])
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    data = FileDataset(io.BytesIO(), {}, file_meta=meta, preamble=bytes(128))
    data.Rows, data.Columns, data.NumberOfFrames = height, width, frames
    data.SamplesPerPixel, data.PlanarConfiguration = 3, 0
    data.PhotometricInterpretation = "YBR_FULL_422"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.PixelData = encapsulate([content] * frames)
    data["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.skipif(not HAM10000.is_dir(), reason=NO_HAM10000)
def test_no_picture_of_ham10000_is_suspected() -> None:
    """And nearly each that is spoilt is found, where Pillow finds none."""
    paths = sorted(HAM10000.glob("HAM10000_images_part_*/*.jpg"))
    if not paths:
        pytest.skip("no HAM10000 images at ../shared/data/ham10000 beside the repository")
    rng = random.Random(3)
    found = silent = 0
    for path in rng.sample(paths, 150):
        content = path.read_bytes()
        assert check_jpeg(content) == jpeg.Checked()
        start = content.index(b"\xff\xda") + 20
        spoilt = rng.choice(DAMAGE)(content, rng.randrange(start, len(content) - 1000))
        found += bool(check_jpeg(spoilt).fault)
        load_image(spoilt, 32)
        silent += 1
    assert silent == 150
    assert found >= 148
