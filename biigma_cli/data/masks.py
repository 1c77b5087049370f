"""Lesion masks of a part, laid over the square that the network sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from biigma_cli.data.cache import recorded_again
from biigma_cli.data.colour import to_rgb
from biigma_cli.data.frame import WHOLE, Part
from biigma_cli.data.manifest import Manifest, Record
from biigma_cli.data.preprocess import (
    _upright,
    map_threads,
    opened,
    upright_size,
)
from biigma_cli.data.scan import first
from biigma_cli.errors import DataError, ImageError, MaskError
from biigma_cli.storage import available_cpus

Bools = npt.NDArray[np.bool_]
Span = tuple[float, float]

# Black and white as JPEG and smoothing leave them: so far from 0 and 255.
_NEAR = 32
# Shares of a mask's pixels that may be neither, as the edges of a coarse or blurred one are, and
# that may have colours. None of the 10,015 photographs of HAM10000 stays below both, in grey 23 do.
_MOST_GREY = 0.3
_MOST_COLOUR = 0.05
# A lesion of one colour on black is a mask, too: how far its pixels are from that colour, and the
# share of the picture that may be farther; of a photograph it is 0.138 and more.
_ONE_COLOUR = 8
_MOST_OTHER = 0.1
# Pixels by which that is judged; of a larger mask every so many rows and columns.
_JUDGED = 1_000_000


class Masks(NamedTuple):
    """Masks that can be judged by, and what was left out.

    Attributes:
        ids: images whose mask shows a lesion and something beside it, in the order asked for.
        cover_nhw: share of each cell that the lesion covers, 0 to 1.
        centre_nhw: whether each cell's centre lies in the lesion.
        missing: images without a recorded mask.
        empty: images whose mask shows no lesion within the square.
        full: images whose mask shows nothing but lesion within the square.
        pictures: images that have a picture for a mask.
    """

    ids: tuple[str, ...]
    cover_nhw: npt.NDArray[np.float32]
    centre_nhw: Bools
    missing: tuple[str, ...]
    empty: tuple[str, ...]
    full: tuple[str, ...]
    pictures: tuple[str, ...]


class Laid(NamedTuple):
    """One mask over the square, or what is wrong with it."""

    cover_hw: npt.NDArray[np.float32] | None = None
    centre_hw: Bools | None = None
    full: bool = False
    damage: str = ""
    shape: str = ""
    picture: bool = False


def load_masks(
    manifest: Manifest,
    ids: Sequence[str],
    side: int,
    *,
    rule: str = "squash",
    cells: tuple[int, int] | None = None,
    first_centre: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Masks:
    """The lesion masks of the images `ids`, moved as `preprocess.load_image` moves the images.

    A mask may be larger or smaller than its picture, as long as it has its shape. Cover is exact:
    the area of the lesion's pixels within the cell, not a smoothed picture of it. What `pad` adds
    belongs to no lesion; what `crop` cuts off does not count.

    Values above the middle of the range are lesion; in a mask of 0 and 1 those of 1. Transparent
    pixels are none.

    Args:
        side: of the square, in pixels.
        rule: resize rule, see `preprocess.load_image`.
        cells: rows and columns to divide the square into; default: `side` of each.
        first_centre: where the first row's and column's centre lies, in pixels of the square, see
            `config.FIRST_CENTRE`; the others follow in steps of side / cells. Of a cell that
            reaches beyond the square the part within counts. Default: an even grid.
        progress: called with (masks done, masks in all).

    Raises:
        DataError: no image has a recorded mask; recorded masks are gone or cannot be read; masks
            have another aspect than their picture. The first ten offenders are named.
    """
    rows, columns = cells or (side, side)
    edges = (cell_edges(rows, side, first_centre), cell_edges(columns, side, first_centre))
    records = manifest.by_id()
    chosen = [records[i] for i in ids if records[i].mask]
    missing = tuple(i for i in ids if not records[i].mask)
    if not chosen:
        raise DataError(
            f"none of the {len(ids)} images has a lesion mask in the record of {manifest.dataset}",
            fix="put masks called ID_segmentation.png beside the images, or name them in the "
            f"column 'mask'; then {recorded_again(manifest)}",
        )

    def lay(record: Record) -> Laid:
        return lay_mask(manifest.root, record, side, rule, edges)

    laid: dict[str, Laid] = {}
    found = map_threads(lay, chosen, threads=available_cpus())
    for record, one in zip(chosen, found, strict=True):
        laid[record.image_id] = one
        if progress:
            progress(len(laid), len(chosen))
    refuse_unusable(laid, manifest)
    covers = {i: one.cover_hw for i, one in laid.items() if one.cover_hw is not None}
    empty = tuple(i for i, cover in covers.items() if not cover.any())
    full = tuple(i for i, one in laid.items() if one.full)
    pictures = tuple(i for i, one in laid.items() if one.picture)
    told_nothing = {*empty, *full, *pictures}
    kept = [i for i in laid if i not in told_nothing]
    cover = np.zeros((len(kept), rows, columns), np.float32)
    centre = np.zeros((len(kept), rows, columns), np.bool_)
    for n, i in enumerate(kept):
        cover[n] = covers[i]
        centre[n] = laid[i].centre_hw
    return Masks(tuple(kept), cover, centre, missing, empty, full, pictures)


def refuse_unusable(laid: Mapping[str, Laid], manifest: Manifest) -> None:
    """Raise `DataError` that names the first masks that cannot be read or have another shape."""
    damaged = [i for i, one in laid.items() if one.damage]
    if damaged:
        raise DataError(
            f"{len(damaged)} lesion masks cannot be used: {first(damaged)}; of the first: "
            f"{laid[damaged[0]].damage}",
            fix=f"get them again, or take them away and {recorded_again(manifest)}",
        )
    odd = [i for i, one in laid.items() if one.shape]
    if odd:
        raise DataError(
            f"{len(odd)} lesion masks have another shape than their picture: {first(odd)}; of the "
            f"first: {laid[odd[0]].shape}",
            fix="give masks of the whole picture, at any scale, turned as it is shown",
        )


class Edges(NamedTuple):
    """Cells along one side of the square: where each begins, is centred and ends, in pixels."""

    low: npt.NDArray[np.floating]
    centre: npt.NDArray[np.floating]
    high: npt.NDArray[np.floating]


def cell_edges(cells: int, side: int, first_centre: float | None = None) -> Edges:
    """See `load_masks`."""
    step = side / cells
    centre = (step / 2 if first_centre is None else first_centre) + step * np.arange(cells)
    low, high = np.clip(centre - step / 2, 0, side), np.clip(centre + step / 2, 0, side)
    return Edges(low, centre, high)


def lay_mask(root: Path, record: Record, side: int, rule: str, edges: tuple[Edges, Edges]) -> Laid:
    """One mask over the square, or what is wrong with it."""
    name = f"{root / record.mask}, the mask of {record.image_id}"
    try:
        width, height = upright_size(root / record.path)
        lesion = read_lesion(root / record.mask, name)
    except ImageError as error:
        return Laid(damage=error.message)
    except MaskError:
        return Laid(picture=True)
    return lay_lesion(lesion, (width, height), side, rule, edges)


def lay_lesion(
    lesion: Bools,
    size: tuple[int, int],
    side: int,
    rule: str,
    edges: tuple[Edges, Edges],
    *,
    part: Part = WHOLE,
) -> Laid:
    """A mask that was read, upright `(H, W)` at any scale, over the square of its picture.

    Args:
        size: the picture's width and height, upright, in pixels.
        part: of the picture that became the square; the mask is of the whole.
    """
    width, height = size
    tall, wide = lesion.shape
    # One pixel is what rounding to a scale may cost.
    if min(abs(tall - height * wide / width), abs(wide - width * tall / height)) > 1:
        return Laid(shape=f"mask {wide}x{tall}, picture {width}x{height} pixels")
    left, top, right, bottom = part.pixels(size)
    seen_x, seen_y = _spans(right - left, bottom - top, side, rule)
    across, down = _beyond(seen_x, left, right, width), _beyond(seen_y, top, bottom, height)
    over_y = _overlap(tall, down, edges[0], seen_y)
    over_x = _overlap(wide, across, edges[1], seen_x)
    cover = over_y @ lesion.astype(np.float64) @ over_x.T
    frame = np.outer(over_y.sum(1), over_x.sum(1))
    y, x = _centres(tall, down, edges[0], seen_y), _centres(wide, across, edges[1], seen_x)
    inside = (y >= 0)[:, None] & (x >= 0)
    return Laid(
        cover_hw=np.clip(cover, 0, 1).astype(np.float32),
        centre_hw=lesion[np.ix_(y, x)] & inside,
        full=bool(cover.any() and (cover >= frame - 1e-9).all()),
    )


def read_lesion(path: Path, name: str) -> Bools:
    """True in the lesion, `(height, width)`, upright.

    Raises:
        ImageError: a bad file.
        MaskError: a picture that is no mask.
    """
    with opened(path, name) as stored:
        stored.load()
        image = _upright(stored)
        if image.has_transparency_data:  # on black: where nothing is drawn there is no lesion
            drawn = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", drawn.size, "black"), drawn)
        pixels: npt.NDArray[np.uint8] = np.asarray(to_rgb(image))
    value = _by_channel(np.maximum, pixels)
    lesion: Bools = value > (127 if value.max() > 1 else 0)
    step = max(1, math.isqrt(lesion.size // _JUDGED))
    some = np.s_[::step, ::step]
    _refuse_picture(pixels[some], value[some], lesion[some], name)
    return lesion


def _refuse_picture(
    pixels_HW3: npt.NDArray[np.uint8], value: npt.NDArray[np.uint8], lesion: Bools, name: str
) -> None:
    """Raise `MaskError` where this is neither black and white nor one colour on black."""
    least = _by_channel(np.minimum, pixels_HW3)
    black = value <= _NEAR
    neither = 1 - float((black | (least >= 255 - _NEAR)).mean())
    if neither <= _MOST_GREY and float((value - least > _NEAR).mean()) <= _MOST_COLOUR:
        return
    if lesion.any() and black.any():
        drawn = pixels_HW3[lesion].astype(np.int16)
        apart = _by_channel(np.maximum, np.abs(drawn - np.median(drawn, axis=0).astype(np.int16)))
        if (~(black | lesion)).mean() + (apart > _ONE_COLOUR).sum() / lesion.size <= _MOST_OTHER:
            return
    raise MaskError(
        f"{name} is a picture, not a lesion mask: {neither:.0%} of its pixels are neither black "
        "nor white",
        fix="give a mask that is white where the lesion is and black beside it",
    )


def _by_channel(function: np.ufunc, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Reduce the last axis; of three channels numpy's own way takes ten times as long."""
    red, green, blue = (values[..., c] for c in range(3))
    found: npt.NDArray[Any] = function(function(red, green), blue)
    return found


def _spans(width: int, height: int, side: int, rule: str) -> tuple[Span, Span]:
    """From where to where a picture reaches in the square, across and down, in its pixels."""
    if rule == "squash":
        return (0, side), (0, side)
    if rule == "crop":
        scale = side / min(width, height)
        over, under = ((n * scale - side) / 2 for n in (width, height))
        return (-over, side + over), (-under, side + under)
    if rule != "pad":
        raise KeyError(rule)
    scale = side / max(width, height)
    spans = []
    for n in (width, height):
        inner = max(1, round(n * scale))
        spans.append(((side - inner) // 2, (side - inner) // 2 + inner))
    return spans[0], spans[1]


def _beyond(seen: Span, first: int, last: int, length: int) -> Span:
    """The span of all `length` pixels of a row whose part from `first` to `last` spans `seen`."""
    unit = (seen[1] - seen[0]) / (last - first)
    return seen[0] - first * unit, seen[1] + (length - last) * unit


def _overlap(pixels: int, span: Span, cells: Edges, seen: Span) -> npt.NDArray[np.float64]:
    """Share of each cell's length that each pixel of a row covers, `(cells, pixels)`."""
    pixel = np.clip(np.linspace(*span, pixels + 1), *seen)
    low = np.maximum(cells.low[:, None], pixel[:-1])
    high = np.minimum(cells.high[:, None], pixel[1:])
    return np.asarray(np.clip(high - low, 0, None) / (cells.high - cells.low)[:, None])


def _centres(pixels: int, span: Span, cells: Edges, seen: Span) -> npt.NDArray[np.intp]:
    """The pixel of a row in which each cell's centre lies; -1 where it lies beside the picture."""
    share = (cells.centre - span[0]) / (span[1] - span[0])
    pixel = np.floor(share * pixels).astype(np.intp)
    inside = (cells.centre >= seen[0]) & (cells.centre <= seen[1])
    return np.where(inside & (pixel >= 0) & (pixel < pixels), pixel, -1)
