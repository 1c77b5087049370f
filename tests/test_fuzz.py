"""Any file thrown at `biigma predict`: over a thousand damaged ones, made here."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import random
import re
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from biigma_cli.data import colour, preprocess
from biigma_cli.data.preprocess import Pixels, decode_image
from biigma_cli.errors import ImageError
from tests.data.samples import encode, noise
from tests.data.test_preprocess import dicom
from tests.runtime.test_pipeline import toy_model

# KiB: what is decoded at once, at Pillow's four bytes a pixel, and the rest of the work.
MEMORY = (4 * preprocess.PIXELS_AT_ONCE >> 10) + 250 * 1024

# The command, which leaves its own status behind. The usage that the system reports of a child
# counts the memory of the parent that it was forked from.
MEASURED = """
import atexit, sys
from pathlib import Path
target = sys.argv.pop(1)
own = Path("/proc/self/status")
if own.exists():
    atexit.register(lambda: Path(target).write_bytes(own.read_bytes()))
from biigma_cli.__main__ import main
main()
"""


def exif(value: int = 6) -> Image.Exif:
    """EXIF data with an orientation."""
    data = Image.Exif()
    data[0x0112] = value
    return data


def originals() -> dict[str, bytes]:
    """Small sound files of every format, in the usual and the odd modes."""
    image = noise(40, 31)
    palette = image.quantize(16)
    frames = [noise(24, 20, seed=i) for i in range(3)]
    several = {"save_all": True, "append_images": frames[1:]}
    grey16 = Image.fromarray(np.arange(40 * 31, dtype=np.uint16).reshape(31, 40) * 50)
    rgba = image.convert("RGBA")
    rgba.putalpha(128)
    files = {
        "jpeg": encode(image, "JPEG", exif=exif()),
        "jpeg-progressive": encode(image, "JPEG", progressive=True),
        "jpeg-grey": encode(image.convert("L"), "JPEG"),
        "jpeg-cmyk": encode(image.convert("CMYK"), "JPEG"),
        "jpeg-large": encode(noise(1300, 1000), "JPEG", quality=30),
        "png": encode(image, exif=exif(3)),
        "png-palette": encode(palette, transparency=3),
        "png-16": encode(grey16),
        "png-alpha": encode(rgba),
        "png-bits": encode(image.convert("1")),
        "png-la": encode(image.convert("LA")),
        "png-moving": encode(frames[0], "PNG", **several),
        "tiff": encode(image, "TIFF"),
        "tiff-lzw": encode(image, "TIFF", compression="tiff_lzw"),
        "tiff-deflate": encode(image, "TIFF", compression="tiff_adobe_deflate"),
        "tiff-jpeg": encode(image, "TIFF", compression="jpeg"),
        "tiff-pages": encode(frames[0], "TIFF", **several),
        "tiff-cmyk": encode(image.convert("CMYK"), "TIFF"),
        "tiff-float": encode(image.convert("F"), "TIFF"),
        "tiff-int": encode(image.convert("I"), "TIFF"),
        "tiff-lab": encode(Image.new("LAB", (9, 9), (1, 2, 3)), "TIFF"),
        "bmp": encode(image, "BMP"),
        "bmp-palette": encode(palette, "BMP"),
        "bmp-bits": encode(image.convert("1"), "BMP"),
        "webp": encode(image, "WEBP"),
        "webp-lossless": encode(rgba, "WEBP", lossless=True),
        "webp-moving": encode(frames[0], "WEBP", **several),
        "gif": encode(palette, "GIF"),
        "gif-moving": encode(frames[0], "GIF", **several),
    }
    if importlib.util.find_spec("pydicom"):
        files["dicom"] = dicom(np.asarray(image))
        files["dicom-grey"] = dicom(np.asarray(image.convert("L")))
    return files


def png(
    width: int, height: int, data: bytes = bytes(16), *, depth: int = 8, kind: int = 2
) -> bytes:
    """A PNG whose header may lie."""

    def chunk(name: bytes, body: bytes) -> bytes:
        whole = name + body
        return struct.pack(">I", len(body)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"".join((
        b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(data, 9)),
        chunk(b"IEND", b""),
    ))  # fmt: skip


def resized(content: bytes, kind: str, width: int, height: int) -> bytes:
    """A sound file whose header is made to claim another size."""
    data = bytearray(content)
    if kind == "JPEG":
        at = next(i for m in (b"\xff\xc0", b"\xff\xc2") if (i := content.find(m)) >= 0)
        struct.pack_into(">HH", data, at + 5, min(height, 65535), min(width, 65535))
    elif kind == "BMP":
        struct.pack_into("<ii", data, 18, width, height)
    elif kind == "GIF":
        struct.pack_into("<HH", data, 6, min(width, 65535), min(height, 65535))
    elif kind == "TIFF":
        at = int.from_bytes(data[4:8], "little")
        for i in range(int.from_bytes(data[at : at + 2], "little")):
            tag = int.from_bytes(data[at + 2 + 12 * i : at + 4 + 12 * i], "little")
            if tag in (256, 257):
                struct.pack_into("<HIi", data, at + 4 + 12 * i, 4, 1, (width, height)[tag - 256])
    return bytes(data)


def made() -> Iterator[tuple[str, bytes]]:
    """Files that are wrong by design."""
    yield "empty.jpg", b""
    yield "null.jpg", bytes(5000)
    yield "text.png", b"I am no picture\n" * 99
    yield "html.jpg", b"<!DOCTYPE html><html><body>404</body></html>"
    yield "pdf.jpg", b"%PDF-1.7\n" + bytes(300)
    yield "eps.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    yield "one.png", encode(Image.new("RGB", (1, 1), "red"))
    yield "row.png", encode(Image.new("RGB", (20000, 1), "red"))
    yield "column.png", encode(Image.new("RGB", (1, 20000), "red"))
    yield "column.jpg", encode(Image.new("RGB", (1, 20000), "red"), "JPEG")
    yield "bomb.png", png(30000, 30000, bytes(20_000_000))
    yield "bomb1.png", png(30000, 30000, bytes(20_000_000), depth=1, kind=0)
    yield "most.png", png(2**31 - 1, 2**31 - 1)
    yield "nothing.png", png(0, 0)
    yield "hollow.png", png(10000, 10000)
    yield "dicom.dcm", bytes(128) + b"DICM" + bytes(99)
    yield "deflated.dcm", bytes(128) + b"DICM" + b"1.2.840.10008.1.2.1.99" + bytes(99)
    image = noise(40, 31)
    for kind in ("JPEG", "BMP", "GIF", "TIFF"):
        for width, height in ((30000, 30000), (1, 20000), (65535, 65535), (0, 0), (-1, -1)):
            with contextlib.suppress(struct.error):
                yield (
                    f"lie{width}x{height}.{kind}.jpg",
                    resized(encode(image, kind), kind, width, height),
                )
    scan = encode(image, "JPEG", progressive=True)
    first = scan.index(b"\xff\xda")
    yield "scans.jpg", scan[:first] + scan[first:-2] * 300 + b"\xff\xd9"
    own = bytearray(encode(image, "TIFF"))
    at = int.from_bytes(own[4:8], "little")
    entries = int.from_bytes(own[at : at + 2], "little")
    struct.pack_into("<I", own, at + 2 + 12 * entries, at)
    yield "circle.tiff", bytes(own)


def mutant(content: bytes, rng: random.Random) -> bytes:
    """A file with bits flipped, bytes changed, pieces cut, doubled or nulled."""
    data = bytearray(content)
    reach = len(data) if rng.random() < 0.5 else min(len(data), 150)
    at = rng.randrange(reach)
    match rng.randrange(8):
        case 0:
            del data[at:]
        case 1:
            del data[at : at + rng.randrange(1, 40)]
        case 2:
            data[at:at] = data[at : at + 40]
        case 3:
            data[at : at + rng.randrange(1, 60)] = bytes(rng.randrange(1, 60))
        case 4:
            size = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4)))
            data[at : at + 4] = size
        case 5:
            for _ in range(rng.choice((1, 3, 30))):
                data[rng.randrange(reach)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        case _:
            for _ in range(rng.choice((1, 2, 8))):
                data[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    return bytes(data)


def corpus() -> Iterator[tuple[str, bytes]]:
    """Names and contents, the same at every call."""
    rng = random.Random(6)
    sound = originals()
    yield from made()
    for name, content in sound.items():
        yield f"sound-{name}.jpg", content
        for i in range(36):
            yield f"{name}-{i}.jpg", mutant(content, rng)
    heads = list(sound.values())
    for i in range(40):  # one format's beginning on another's body
        front, back = rng.sample(heads, 2)
        yield f"chimera-{i}.jpg", front[: rng.randrange(2, 200)] + back[rng.randrange(200) :]


@pytest.mark.timeout(240)
def test_over_a_thousand_damaged_files(tmp_path: Path) -> None:
    """Each gets its own row; nothing else is said, and memory stays bounded."""
    folder = tmp_path / "files"
    folder.mkdir()
    wanted = {}
    for name, content in corpus():
        (folder / name).write_bytes(content)
        wanted[str(folder / name)] = name
    assert len(wanted) >= 1000
    out, told, status = (tmp_path / name for name in ("out.jsonl", "err.txt", "status"))
    with told.open("wb") as err:
        process = subprocess.run(
            [sys.executable, "-c", MEASURED, str(status), "predict", str(folder), "-o", str(out),
             "-j", "2", "--model", str(toy_model(tmp_path / "toy.onnx")), "--device", "cpu"],
            stderr=err,
            check=False,
        )  # fmt: skip
    if status.exists():
        (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
        assert int(peak) < MEMORY
    said = told.read_text()
    assert process.returncode == 5, said
    lines = said.splitlines()
    assert len(lines) == sum(
        line.startswith(("model ", "this model has no input check", "classifying: ",
                         "for research", "error: ", "fix: "))
        for line in lines
    ), said  # fmt: skip
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["path"] for r in rows] == sorted(wanted)
    answered = {wanted[r["path"]] for r in rows if "error" not in r}
    assert 100 < len(answered) < len(rows) - 100
    unread = {f"sound-{n}.jpg" for n in ("tiff-lab", "dicom", "dicom-grey")}
    assert {n for n in wanted.values() if n.startswith("sound-")} - unread <= answered
    assert {"one.png", "row.png", "column.png", "column.jpg", "circle.tiff"} <= answered
    refused = {"bomb.png", "bomb1.png", "most.png", "scans.jpg", "deflated.dcm", "hollow.png"}
    assert not refused & answered


SOUND = originals()


def tried(content: bytes) -> Pixels | ImageError:
    """The image, as `predict` takes it, or why there is none."""
    try:
        return decode_image(content, 16, name="upload", part=None, doubts=True).pixels
    except ImageError as error:
        return error


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(SOUND)),
    st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=6)), max_size=5),
    st.one_of(st.none(), st.integers(0, 4000)),
)
def test_any_change_gives_an_image_or_an_image_error(
    name: str, changes: list[tuple[int, bytes]], end: int | None
) -> None:
    """Nothing but `ImageError` is raised, and it names the file."""
    data = bytearray(SOUND[name])
    for at, new in changes:
        data[at % len(data) : at % len(data) + len(new)] = new
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # remarks on odd tags
        result = tried(bytes(data[:end]))
    if isinstance(result, ImageError):
        assert "upload" in result.message
        assert result.fix
    else:
        assert (result.shape, result.dtype) == ((16, 16, 3), np.uint8)


@given(st.binary(max_size=300), st.sampled_from([c[:140] for c in SOUND.values()] + [b""]))
@settings(max_examples=150, deadline=None)
def test_any_bytes(tail: bytes, head: bytes) -> None:
    """Behind any beginning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with contextlib.suppress(ImageError):
            decode_image(head + tail, 16, part=None, doubts=True)


def test_large_images_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together, threads decode at most so many pixels; a larger image goes alone."""
    import threading

    content = encode(noise(60, 60))
    monkeypatch.setattr(preprocess, "PIXELS_AT_ONCE", 8000)
    seen: list[int] = []
    to_rgb = colour.to_rgb

    def spy(image: Image.Image) -> Image.Image:
        seen.append(preprocess._ROOM.used)
        return to_rgb(image)

    monkeypatch.setattr(preprocess, "to_rgb", spy)
    large = encode(noise(100, 100))
    threads = [threading.Thread(target=decode_image, args=(c, 16)) for c in [content, large] * 8]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 16
    assert set(seen) <= {3600, 7200, 10000}
    assert preprocess._ROOM.used == 0


def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large image of an odd mode is the same, changed whole or in strips."""
    rng = np.random.default_rng(0)
    rgba = Image.fromarray(rng.integers(0, 256, (33, 20, 4), dtype=np.uint8))
    samples = [
        rgba, rgba.convert("LA"), rgba.convert("L"), rgba.convert("RGB").quantize(9),
        Image.fromarray(rng.integers(0, 65536, (33, 20), dtype=np.uint16)),
        Image.fromarray(rng.random((33, 20), dtype=np.float32)),
        Image.fromarray(rng.random((33, 20), dtype=np.float32) * 60000),
        rgba.convert("RGB").convert("CMYK"),
    ]  # fmt: skip
    samples[3].info["transparency"] = 2
    whole = [np.asarray(colour.to_rgb(s)) for s in samples]
    monkeypatch.setattr(colour, "_STRIP", 20 * 7)
    for sample, wanted in zip(samples, whole, strict=True):
        assert np.array_equal(colour.to_rgb(sample), wanted)
        assert len(np.unique(wanted)) > 5


def test_buffers_are_bytes() -> None:
    """The corpus is the same at every call."""
    again = corpus()
    for (name, content), (other, same) in zip(corpus(), again, strict=True):
        assert name == other
        assert io.BytesIO(content).getbuffer() == same
