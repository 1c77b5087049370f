"""The one preprocessing: a file to a uint8 RGB square, with Pillow and numpy, never torch.

Training, evaluation and export call `load_image`, `predict` and `explain` `decode_image`, which is
the same but for what it refuses, so they cannot differ. The network itself scales and normalises
(see `core.model`), in torch and in the exported graph alike.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import math
import os
import stat
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from biigma_cli.data.colour import remarks, to_rgb, to_srgb
from biigma_cli.data.frame import WHOLE, Framed, Part, fill_corners, find_frame
from biigma_cli.data.jpeg import MAX_BYTES, check_jpeg, refuse_damaged
from biigma_cli.data.magic import HEAD, looks_like_dicom, looks_like_image
from biigma_cli.data.tiff import check_tiff, grey_as_meant
from biigma_cli.errors import ImageError
from biigma_cli.storage import is_folder

T = TypeVar("T")
R = TypeVar("R")
Pixels = npt.NDArray[np.uint8]

# Rule -> the name written into every exported model; a change of rule needs a new name.
RESIZE_RULES: dict[str, str] = {
    "squash": "squash-bilinear-1",
    "crop": "crop-bilinear-1",
    "pad": "pad-bilinear-1",
}
RESIZE_MEANS = {
    "squash": "whole image squashed to a square",
    "crop": "short side scaled to the side, the centre square kept",
    "pad": "long side scaled to the side, centred on black",
}

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Those that swap width and height.
_LYING = tuple(_TURNS[orientation] for orientation in (5, 6, 7, 8))
# Tags of width and height.
_TIFF_SIZE = (256, 257)
# A side for which no JPEG is decoded at a reduced scale.
_NO_DRAFT = 32768

MAX_PIXELS = 100_000_000
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.simplefilter("error", Image.DecompressionBombWarning)
# Pillow's remarks on odd tags help nobody: what matters is raised.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())

# A picture of which a side is shorter than the network's by this factor is told to be small.
_SMALL = 3
# So far the channels of a grey picture may lie apart, but for a few pixels: what JPEG leaves.
_GREY, _FEW = 8, 0.01

# Decoded at the same time by all threads together; a larger image is decoded alone.
PIXELS_AT_ONCE = 64_000_000
# A progressive JPEG is decoded once per scan: ten are usual, thousands an attack.
_MAX_SCANS = 200

READABLE = "JPEG, PNG, TIFF, BMP, WebP, GIF or DICOM"


class Decoded(NamedTuple):
    """An image as the network takes it.

    Attributes:
        pixels: `(side, side, 3)` uint8 RGB.
        note: what a user should know of it, such as that other frames were left out; mostly empty.
        part: of the upright image, which they show.
    """

    pixels: Pixels
    note: str
    part: Part = WHOLE


def load_image(
    source: Path | bytes,
    side: int,
    *,
    rule: str = "squash",
    name: str | None = None,
    part: Part = WHOLE,
) -> Pixels:
    """`decode_image` without its note, and as data sets are read: not strict."""
    return decode_image(source, side, rule=rule, name=name, strict=False, part=part).pixels


def decode_image(
    source: Path | bytes,
    side: int,
    *,
    rule: str = "squash",
    name: str | None = None,
    strict: bool = True,
    part: Part | None = WHOLE,
    doubts: bool = False,
) -> Decoded:
    """Decode, upright by EXIF, to sRGB, resized to `(side, side, 3)` with antialiasing.

    JPEGs much larger than needed are decoded at a reduced scale, never under twice the side; this
    changes pixels by less than 1 of 255 on average. Of an animation or a file of several pages the
    first is taken, and said in the note.

    Args:
        source: a file, or the bytes of one.
        rule: `squash` (aspect ratio given up: the paper's), `crop` (short side to `side`, centre
            kept) or `pad` (long side to `side`, on black).
        name: what to call it in errors; default: the path.
        strict: refuse a JPEG of which a part is wrong or missing, see `jpeg.check_jpeg`, and note
            where one may be, and what is doubtful of its colours; otherwise such a part is grey, or
            whatever comes of it.
        part: of the upright image to take; None for what a border of one colour leaves, and the
            corners of a round field filled (see `frame`), which the note then says.
        doubts: note, too, where an image is small or without colours, and answers are worse.

    Raises:
        ImageError: it is missing, empty, no image, damaged, or larger than `MAX_PIXELS`.
    """
    if rule not in RESIZE_RULES:
        raise KeyError(rule)
    label = name or (shown(str(source)) if isinstance(source, Path) else "the image")
    with _open(source, label) as file, _told(file, label):
        decode = functools.partial(
            _decode, file, side, rule, label, strict=strict, part=part, doubts=doubts
        )
        decoded = decode(fine=math.ceil(side / (part or WHOLE).narrowest))
        if isinstance(decoded, int):  # a border is known only once it has been seen
            decoded = decode(fine=decoded)
        assert isinstance(decoded, Decoded)
        return decoded


@contextlib.contextmanager
def _told(file: BinaryIO, label: str) -> Iterator[None]:
    """Whatever is raised while an image is read is an `ImageError`, so that a batch goes on."""
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_large(label) from None
    except UnidentifiedImageError:
        file.seek(0)
        if looks_like_image(file.read(HEAD)):
            raise ImageError(
                f"{label} is damaged, or cut short: it begins as an image and cannot be read",
                fix="get the file again",
            ) from None
        raise ImageError(
            f"{label} is not an image that can be read here", fix=f"give a {READABLE} file"
        ) from None
    except Exception as error:  # Pillow raises anything at all for damaged files, by format
        raise ImageError(
            f"{label} is damaged: {error or type(error).__name__}", fix="get the file again"
        ) from error


def _decode(
    file: BinaryIO,
    side: int,
    rule: str,
    label: str,
    *,
    strict: bool,
    part: Part | None,
    doubts: bool,
    fine: int,
) -> Decoded | int:
    """As `decode_image`, at a scale at which the whole image is at least twice `fine`.

    Where too little for `side` is found within a border: how fine it should be.
    """
    file.seek(0)
    image, note, full = _read(file, fine, label)
    profile = image.info.get("icc_profile")
    with image, _room(image.width * image.height):
        reduced = image.size != full
        halved = _keeps_upper_bits(image)
        decoded, doubt = _pixels(image, file, label, strict=strict)
        unsure = remarks(decoded, sixteen=halved) if strict else ""
        rgb = to_rgb(_upright(decoded))
        framed = find_frame(rgb) if part is None else Framed(part, "")
        if framed.part != WHOLE:
            coarse = reduced and min(framed.part.size(rgb.size)) < 2 * side
            if part is None and coarse and fine == side:
                return math.ceil(side / framed.part.narrowest)
            rgb = rgb.crop(framed.part.pixels(rgb.size))
        inner = _resized(rgb, side, rule)
        share = 0.0
        if framed.part.filled or (part is None and not framed.bare):
            pixels, share = fill_corners(np.asarray(inner), known=framed.part.filled)
            inner = Image.fromarray(pixels)
        square, odd = to_srgb(_padded(inner, side), profile)
        found = [note, doubt, unsure, odd, framed.note]
        if share:
            found.append(f"the corners beside a round field of view were filled ({share:.0%})")
        if doubts:
            found += [_smallness(rgb.size, side), _greyness(square)]
        taken = framed.part._replace(filled=share > 0)
        return Decoded(np.array(square), "; ".join(filter(None, found)), taken)


def _smallness(size: tuple[int, int], side: int) -> str:
    if min(size) * _SMALL >= side:
        return ""
    return f"only {size[0]} x {size[1]} pixels: more answers are wrong for so small a picture"


def _greyness(square: Image.Image) -> str:
    """What is said of a picture without colours; one of a single colour is another matter."""
    pixels = np.asarray(square, np.int16)
    colours = np.ptp(pixels, axis=2) > _GREY
    if colours.mean() > _FEW or np.ptp(pixels) <= _GREY:
        return ""
    return "it has no colours: more answers are wrong, and fewer malignant lesions are found"


class Header(NamedTuple):
    """What an image's header says.

    Attributes:
        kind: Pillow's name of its format, or `DICOM`.
        mode: Pillow's.
        size: width and height as it is shown.
        orientation: EXIF's, 1 (upright) where it says nothing that can be read.
    """

    kind: str
    mode: str
    size: tuple[int, int]
    orientation: int


def upright_size(source: Path | bytes) -> tuple[int, int]:
    """Width and height of an image as it is shown. Raises `ImageError` as `decode_image`."""
    return read_header(source).size


def read_header(source: Path | bytes, *, name: str | None = None) -> Header:
    """An image's header; a DICOM file is decoded. Raises `ImageError` as `decode_image`."""
    label = name or (shown(str(source)) if isinstance(source, Path) else "the image")
    with opened(source, label) as image:
        width, height = image.size
        tags = getattr(image, "tag_v2", None)
        if image.format == "TIFF" and tags is not None:
            # Of a TIFF Pillow gives the size as it is shown; here it is as it is stored.
            width, height = (int(tags[tag]) for tag in _TIFF_SIZE)
        orientation = _orientation(image)
        if _TURNS.get(orientation) in _LYING:
            width, height = height, width
        # A JPEG of several pictures is still a JPEG.
        kind = "JPEG" if image.format == "MPO" else image.format or "DICOM"
        return Header(kind, image.mode, (width, height), orientation)


@contextlib.contextmanager
def opened(source: Path | bytes, name: str) -> Iterator[Image.Image]:
    """An image at full size, not turned. Raises `ImageError` whatever is raised inside."""
    with _open(source, name) as file, _told(file, name):
        image, _, _ = _read(file, _NO_DRAFT, name)
        with image:
            yield image


def shown(name: str) -> str:
    """A file name to print: control characters and undecodable bytes as escapes.

    So a name can neither forge lines nor drive a terminal; letters of any script stay.
    """
    if name.isprintable():
        return name
    return "".join(_escaped(c) if _hidden(c) else c for c in name)


def _hidden(c: str) -> bool:
    code = ord(c)
    return (
        code < 0x20
        or 0x7F <= code < 0xA0
        or code in (0x2028, 0x2029)
        or 0x202A <= code <= 0x202E  # these turn the direction of what follows
        or 0x2066 <= code <= 0x2069
        or 0xD800 <= code < 0xE000
    )


def _escaped(c: str) -> str:
    return c.encode("unicode_escape").decode("ascii")


def too_large(label: str) -> ImageError:
    """The error for an image of more than `MAX_PIXELS`."""
    return ImageError(
        f"{label} claims more than {MAX_PIXELS // 1_000_000} megapixels",
        fix="scale it down first",
    )


def _open(source: Path | bytes, label: str) -> BinaryIO:
    """The source as a file. Raises `ImageError` where there is none that can be read."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        # Without O_NONBLOCK a named pipe would keep us until somebody writes to it.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(source, flags)
        try:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError
            if not stat.S_ISREG(mode):
                raise ImageError(f"{label} is a device or a pipe", fix="name a file")
            # A file object rather than a path: Pillow maps paths into memory, and then a file cut
            # short meanwhile ends the process.
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise
    except FileNotFoundError:
        raise ImageError(f"no file at {label}", fix="check the path") from None
    except IsADirectoryError:
        raise ImageError(f"{label} is a folder", fix="name a file") from None
    except PermissionError:
        if os.name == "nt" and is_folder(source):  # how Windows says it
            raise ImageError(f"{label} is a folder", fix="name a file") from None
        raise ImageError(f"no permission to read {label}", fix="change its permissions") from None
    except (OSError, ValueError) as error:  # a name too long, a loop of links, a null in the name
        why = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"cannot open {label}: {why}", fix="check the path") from error


def _read(file: BinaryIO, side: int, label: str) -> tuple[Image.Image, str, tuple[int, int]]:
    """The image, not decoded yet where its format permits, a note, and its size in the file."""
    head = file.read(HEAD)
    if not head:
        raise ImageError(f"{label} is empty", fix="get the file again")
    file.seek(0)
    if looks_like_dicom(head):
        from biigma_cli.data.dicom import read_dicom

        image, note = read_dicom(file, label)
        return image, note, image.size
    # Named, so that no plug-in for other formats, some of which run programs, is ever tried.
    image = Image.open(file, formats=FORMATS)
    note = ""
    # A JPEG's further pictures are previews and depth maps.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        note = "the first of several frames"
    full = image.size
    image.draft("RGB", (2 * side, 2 * side))
    return image, note, full


def _pixels(
    image: Image.Image, file: BinaryIO, label: str, *, strict: bool
) -> tuple[Image.Image, str]:
    """The image decoded, and a note on what may be wrong with it. `strict` as of `decode_image`."""
    note = ""
    if image.format == "TIFF":
        _silence_libtiff()
        if strict:
            refuse_damaged(check_tiff(image, file), label)
    elif image.format in ("JPEG", "MPO"):
        _refuse_many_scans(image, file, label)
        if strict:
            image, note = _whole_jpeg(image, file, label)
    image.load()
    return grey_as_meant(image), note


def _keeps_upper_bits(image: Image.Image) -> bool:
    """Whether a file that is not decoded yet holds 16 bits of which Pillow gives 8."""
    tiles = getattr(image, "tile", ()) if image.format in ("PNG", "TIFF") else ()
    return not image.mode.startswith("I;") and any(";16" in str(tile.args) for tile in tiles)


def _refuse_many_scans(image: Image.Image, file: BinaryIO, label: str) -> None:
    if not image.info.get("progressive") and not image.info.get("progression"):
        return
    place = file.tell()
    file.seek(0)
    scans, tail = 0, b""
    while chunk := file.read(1 << 20):
        scans += (tail + chunk).count(b"\xff\xda")
        tail = chunk[-1:]
    file.seek(place)
    if scans > _MAX_SCANS:
        raise ImageError(f"{label} has {scans} scans to decode", fix="save it as a plain JPEG")


def _whole_jpeg(image: Image.Image, file: BinaryIO, label: str) -> tuple[Image.Image, str]:
    """The same picture, decoded and upright where simplejpeg can do it, and a note.

    Raises `ImageError` where a part is wrong or missing.
    """
    place = file.tell()
    file.seek(0)
    content = file.read(MAX_BYTES + 1)
    file.seek(place)
    # Pillow has other modes to itself, such as CMYK as Adobe stores it.
    checked = check_jpeg(content, image.size if image.mode == "RGB" else None)
    refuse_damaged(checked, label)
    if checked.pixels is None:
        return image, checked.note
    return _upright(Image.fromarray(checked.pixels), said_of=image), checked.note


@functools.cache
def _silence_libtiff() -> None:
    """Keep libtiff from writing its own messages to stderr; Pillow raises what matters."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # it may be linked in where none can reach
        library = ctypes.CDLL(importlib.import_module("PIL._imaging").__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            handler = getattr(library, name)
            handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            handler(None)


class _Room:
    """Pixels that are being decoded now, by all threads."""

    def __init__(self) -> None:
        self.used = 0
        self.changed = threading.Condition()


_ROOM = _Room()


@contextlib.contextmanager
def _room(pixels: int) -> Iterator[None]:
    """Wait until so many pixels fit beside those that others decode; too many go alone."""
    if pixels > MAX_PIXELS:
        raise Image.DecompressionBombError
    with _ROOM.changed:
        _ROOM.changed.wait_for(lambda: not _ROOM.used or _ROOM.used + pixels <= PIXELS_AT_ONCE)
        _ROOM.used += pixels
    try:
        yield
    finally:
        with _ROOM.changed:
            _ROOM.used -= pixels
            _ROOM.changed.notify_all()


def _resized(image: Image.Image, side: int, rule: str) -> Image.Image:
    """By a rule of `RESIZE_RULES`; what `pad` adds is left to `_padded`."""
    # Pillow's bilinear filter widens when it shrinks: that is the antialiasing.
    how = Image.Resampling.BILINEAR
    width, height = image.size
    if rule == "squash":
        return image.resize((side, side), how)
    if rule == "crop":
        # Equal to scaling the whole and then cutting, without scaling what is cut away.
        short = min(width, height)
        left, top = (width - short) / 2, (height - short) / 2
        return image.resize((side, side), how, box=(left, top, left + short, top + short))
    scale = side / max(width, height)
    return image.resize((max(1, round(width * scale)), max(1, round(height * scale))), how)


def _padded(image: Image.Image, side: int) -> Image.Image:
    """In the middle of a black square, where it is none itself."""
    if image.size == (side, side):
        return image
    canvas = Image.new("RGB", (side, side))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def _upright(image: Image.Image, *, said_of: Image.Image | None = None) -> Image.Image:
    """Turned as its EXIF orientation says, or that of the file it was decoded from.

    Not `ImageOps.exif_transpose`: that writes the EXIF anew, and fails where any tag is ill-typed.
    """
    turn = _turn(image if said_of is None else said_of)
    return image if turn is None else image.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What its EXIF orientation asks for."""
    return _TURNS.get(_orientation(image))


def _orientation(image: Image.Image) -> int:
    """As EXIF has it; 1 where the tag, or the whole header, is none that can be read."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a header that is none; the pixels are decoded by themselves
        return 1
    return orientation if isinstance(orientation, int) else 1


def map_threads(
    function: Callable[[T], R], items: Iterable[T], *, threads: int, ahead: int = 64
) -> Iterator[R]:
    """`map` over a thread pool, in order, with at most `ahead` results waiting.

    Pillow lets go of the interpreter lock while it decodes, so threads scale. An exception of
    `function` is raised at its item's turn.
    """
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
