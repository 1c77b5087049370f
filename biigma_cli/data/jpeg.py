"""JPEG data that are wrong in the middle, which Pillow decodes without a word.

libjpeg goes on with grey or shifted blocks where data are missing or garbled, and only warns.
Pillow keeps its warnings to itself, simplejpeg (of the same libjpeg-turbo) does not. Of HAM10000's
pictures with 512 bytes set to zero, or 100 left out, Pillow refuses none; libjpeg warns of each.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from biigma_cli.errors import ImageError

# A JPEG of so many bytes is mostly something else; it is not read into memory to be checked.
MAX_BYTES = 1 << 28

# libjpeg's warnings (its jerror.h) that mean wrong or missing blocks; others are about headers.
_WRONG = re.compile(
    "premature end of data segment|bad (Huffman|arithmetic) code|instead of RST"
    "|inconsistent progression",
    re.IGNORECASE,
)
# Of the markers those that stand behind a scan or within one: EOI, RST, and the next scan's.
_LEFT = re.compile(r"(\d+) extraneous bytes before marker 0x(d[0-7]|d9|da|c4)")
# One that begins something; those within a scan, stuffed bytes and padding do not.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_SCAN, _END = b"\xff\xda", b"\xff\xd9"
_ADOBE = b"\xff\xee"
# Application data and comments.
_TEXTS = (*(bytes((0xFF, code)) for code in range(0xE0, 0xF0)), b"\xff\xfe")
_LACKING = "part of the picture is missing (some of its scans)"
# Frames of Huffman and of arithmetic coding.
_PROGRESSIVE = (b"\xff\xc2", b"\xff\xca")
# Cameras leave a few bytes behind the last block; many are what blocks did not take that should.
_FEW = 32
_UNENDED = re.compile("premature end of JPEG file", re.IGNORECASE)


class Checked(NamedTuple):
    """What libjpeg says of JPEG data.

    Attributes:
        pixels: `(H, W, 3)` uint8 RGB as Pillow would decode them, where that was asked for and all
            is well.
        fault: why part of the picture is certainly wrong or missing; mostly empty.
        note: why part of it may be; mostly empty.
    """

    pixels: npt.NDArray[np.uint8] | None = None
    fault: str = ""
    note: str = ""


def check_jpeg(content: bytes, decode: tuple[int, int] | None = None) -> Checked:
    """Decode JPEG data and tell what is wrong with them.

    Nothing is told of more than `MAX_BYTES`, or where simplejpeg is missing.

    Args:
        content: a JPEG file; what follows its first picture does not matter.
        decode: (width, height) to decode at, its own size or that divided by 2, 4 or 8 and rounded
            up. Without it the picture is only checked, which is faster.
    """
    library = _simplejpeg()
    if library is None or len(content) > MAX_BYTES:
        return Checked()
    width, height = decode or (1, 1)
    try:
        pixels = library.decode_jpeg(
            content,
            "RGB" if decode else "GRAY",  # grey can be had of every kind
            min_width=width,  # the smallest scale of no less: of 1 x 1, an eighth
            min_height=height,
        )
    except ValueError as error:
        return _verdict(str(error), content) or _behind_header(content)
    if _lacks_scans(content):
        return Checked(fault=_LACKING)
    return Checked(pixels if decode and pixels.shape == (height, width, 3) else None)


def _behind_header(content: bytes) -> Checked:
    """The same without what may be odd in the header: libjpeg tells one warning alone."""
    library = _simplejpeg()
    bare = _bare(content)
    try:
        library.decode_jpeg(bare, "GRAY", min_width=1, min_height=1)
    except ValueError as error:
        return _verdict(str(error), bare) or Checked()
    return Checked(fault=_LACKING) if _lacks_scans(bare) else Checked()


def _bare(content: bytes) -> bytes:
    """A JPEG without application data, comments and stray bytes before its first scan."""
    kept = [content[:2]]
    for marker, place, body in _segments(content):
        if marker in (_SCAN, _END):
            return b"".join((*kept, content[place:]))
        # Adobe's says which colours these are.
        if marker == _ADOBE or marker not in _TEXTS:
            kept.append(marker + (len(body) + 2).to_bytes(2, "big") + body)
    return content


def _verdict(warning: str, content: bytes) -> Checked | None:
    """What a warning means; None where it says nothing of the picture."""
    warning = warning.removeprefix("Corrupt JPEG data: ")
    left = _LEFT.search(warning)
    count = int(left[1]) if left else 0
    wrong = _WRONG.search(warning) or count > _FEW
    if wrong and not (left and left[2] == "d9" and _padded(content, count)):
        return Checked(fault=f"part of the picture is wrong or missing ({warning})")
    if left:
        return Checked(note=f"its data hold {count} bytes too many: part of it may be wrong")
    if _UNENDED.search(warning):
        return Checked(note="no end marker: it may be cut short")
    return None  # not for libjpeg to judge: Pillow reads it or refuses it


def _lacks_scans(content: bytes) -> bool:
    """Whether of a progressive JPEG not each bit of each coefficient has come.

    Libjpeg takes what has come for a coarse picture, and hardly ever warns.
    """
    with contextlib.suppress(LookupError, ValueError):  # a header that is odd, but good enough
        return _unsent(content)
    return False


def _unsent(content: bytes) -> bool:
    lowest: dict[int, list[int]] = {}  # the last bit that has come of 64 coefficients, by component
    for marker, _, body in _segments(content):
        if marker in _PROGRESSIVE:
            lowest = {component: [1] * 64 for component in body[6::3]}
        elif marker == _SCAN and not lowest:
            return False
        elif marker == _SCAN:
            count = body[0]
            first, last, bits = body[1 + 2 * count : 4 + 2 * count]
            before, bits = bits >> 4, bits & 15
            for component in body[1 : 1 + 2 * count : 2]:
                # It refines what an earlier scan has left at just that bit.
                if before and {*lowest[component][first : last + 1]} != {before}:
                    return True
                lowest[component][first : last + 1] = [bits] * (last + 1 - first)
    return any(any(bits) for bits in lowest.values())


def _padded(content: bytes, count: int) -> bool:
    """Whether the last `count` bytes before the picture's end marker are all the same."""
    end = next((place for marker, place, _ in _segments(content) if marker == _END), 0)
    return len(set(content[max(end - count, 0) : end])) == 1


def _segments(content: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Markers of the first picture, where each stands, and what its header says; the end's last."""
    place = 2
    while found := _MARKER.search(content, place):
        place = found.end()
        length = 0 if found[0] == _END else int.from_bytes(content[place : place + 2], "big")
        yield found[0], found.start(), content[place + 2 : place + length]
        if found[0] == _END:
            return
        place += length


def refuse_damaged(checked: Checked, label: str) -> None:
    """Raise `ImageError` where a part of what is called `label` is certainly wrong."""
    if checked.fault:
        raise ImageError(f"{label} is damaged: {checked.fault}", fix="get the file again")


@functools.cache
def _simplejpeg() -> Any:
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None
