"""Encoded pictures, records and manifests shared by the tests of `biigma_cli.data`."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from biigma_cli.data.manifest import Manifest, Record

HAM10000 = Path(__file__).parents[2].parent / "shared" / "data" / "ham10000"
NO_HAM10000 = "no HAM10000 metadata at ../shared/data/ham10000 beside the repository"


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, bits: int, rows: bytes) -> bytes:
    """A PNG in RGB, by hand: of a size, with so many bits, and rows that may be others."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth random colours, so that JPEG keeps them and every place differs."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def skin(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth random colours without black or white."""
    values = np.asarray(noise(width, height, seed), np.float32)
    return Image.fromarray((90 + values * 0.4).astype(np.uint8))


def pixels(source: Image.Image) -> npt.NDArray[np.uint8]:
    """An image's pixels as an array."""
    return np.asarray(source, dtype=np.uint8)


def digest(content: bytes) -> str:
    """What a record says of a file's bytes."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def record(
    image_id: str, label: str, lesion_id: str = "", content: str | None = None, path: str = ""
) -> Record:
    """A record without a file; `content` stands for its bytes, default its id."""
    return Record(
        image_id=image_id,
        path=path or f"{image_id}.jpg",
        label=label,
        lesion_id=lesion_id,
        digest=digest((content or image_id).encode()),
    )


def manifest(records: Sequence[Record], dataset: str = "isic18", root: Path = Path()) -> Manifest:
    """A manifest of `records`, in the order given."""
    return Manifest(
        dataset=dataset, root=root, records=tuple(records), licence="CC0-1.0", citation="Nobody"
    )


def oriented(value: int | str) -> bytes:
    """EXIF data with nothing but an orientation: a number, or a word of at most three letters."""
    if isinstance(value, int):
        entry = struct.pack("<HHIHH", 0x0112, 3, 1, value, 0)
    else:
        entry = struct.pack("<HHI4s", 0x0112, 2, len(value) + 1, value.encode())
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
