"""What Pillow leaves undone of TIFF: grey of 9 to 16 bits, and the check of compressed data."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from biigma_cli.data.jpeg import MAX_BYTES, Checked, check_jpeg

_BITS, _COMPRESSION, _PHOTOMETRIC, _JPEG_TABLES = 258, 259, 262, 347
# Of strips, else of tiles: where they are, and how long.
_PIECES = ((273, 279), (324, 325))
_WHITE_IS_ZERO = 0
_JPEG = 7
_DEFLATE = (8, 32946)


def grey_as_meant(image: Image.Image) -> Image.Image:
    """Grey of 9 to 16 bits as 16 bits with high for bright; other images as they are.

    Pillow gives the numbers as they are stored, though fewer bits leave most of 16 unused, and
    though the file may say that white is zero.

    Args:
        image: decoded.
    """
    tags = _tags(image)
    if not tags or not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.uint16)
    bits = int(_all(tags.get(_BITS, 16))[0])
    if 8 < bits < 16:
        top = (1 << bits) - 1
        values = (values.clip(max=top).astype(np.uint32) * 65535 // top).astype(np.uint16)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = 65535 - values
    return Image.fromarray(values)


def check_tiff(image: Image.Image, file: BinaryIO) -> Checked:
    """What is wrong with the JPEG or deflated data of a TIFF's first picture.

    Libtiff does not look at what is wrong in the middle of JPEG data, nor at the check sums of
    deflated ones. Others than these two have none.

    Args:
        image: not decoded yet.
        file: the one it is read from, left where it was.
    """
    tags = _tags(image)
    compression = tags.get(_COMPRESSION)
    if compression != _JPEG and compression not in _DEFLATE:
        return Checked()
    tables = tags.get(_JPEG_TABLES, b"")
    place = file.tell()
    try:
        for piece in _pieces(tags, file):
            if compression == _JPEG:
                # The tables are a JPEG without a picture, each piece one without tables.
                checked = check_jpeg(bytes(tables)[:-2] + piece[2:] if tables else piece)
            else:
                checked = Checked(fault="" if _inflates(piece) else "its check sums do not agree")
            if checked.fault:
                return checked
    finally:
        file.seek(place)
    return Checked()


def _pieces(tags: Any, file: BinaryIO) -> Iterator[bytes]:
    for offsets, counts in _PIECES:
        if offsets in tags and counts in tags:
            for offset, count in zip(_all(tags[offsets]), _all(tags[counts]), strict=False):
                if int(count) <= MAX_BYTES:
                    file.seek(int(offset))
                    yield file.read(int(count))
            return


def _inflates(data: bytes) -> bool:
    """Whether deflated data end, and their check sum agrees."""
    stream = zlib.decompressobj()
    try:
        while data:
            stream.decompress(data, 1 << 20)
            data = stream.unconsumed_tail
    except zlib.error:
        return False
    return stream.eof


def _all(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", None) or {}
