"""Where in a picture the skin is: a border is left out, the corners of a round field are filled.

Cameras with a round field of view leave black around the skin, bars that make a picture square,
screenshots and scans black or white, which says nothing of the lesion. Networks trained on pictures
that fill their frame take them for another kind of picture, and answer worse:
`benchmarks/borders.py`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from biigma_cli.data.mirror import mirrored

RGB = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

# A line of a border: its median, and all but a few of its pixels, are at most or at least so many
# of 255.
_BLACK, _DARK = 30, 40
_WHITE, _LIGHT = 250, 245
# Dust, a hair, what JPEG leaves: share of a line's pixels.
_FEW = 0.02
# A border of another colour begins with a line that keeps so near to it, and where JPEG leaves
# rings it strays so far; what is further away is something else.
_FLAT, _STRAY, _OTHER = 5, 16, 24
# Skin is never so even; of such a border less must be different from what lies behind it.
_EVEN, _MOST = 1, 0.75
# Over-exposed skin is white, too, and smooth skin is plain, but both give way to the lesion little
# by little: such a border must end in a line so much of which is something else, so soon behind it
# (as a share of the axis). JPEG mixes colours within so many pixels.
_SHARP, _SOON, _BLOCK = 0.9, 0.015, 16
# A caption may interrupt a black bar for so much of the axis.
_CAPTION = 0.12
# A border that is narrower at each side, as a share of the axis, is left alone: no answer changes.
_NARROW = 0.007
# What is left must be so much of each side, and so many pixels; else it is a dark picture.
_LEAST, _LEAST_PIXELS = 0.25, 32
# Lines are judged by about so many of their pixels, read by so many at a time.
_SAMPLES, _BAND = 512, 16
# Of a picture with a longer side every so many pixels are enough.
_LARGE = 2048

# Corners count that cover so much of a picture: a circle that fits a square leaves 0.21. Networks
# know smaller ones from their training images, and answer no better without them. Where there is
# more beyond the corners than skin, it is a picture of another kind.
_CORNERS, _MOST_CORNERS = 0.15, 0.6
# Share of the side by which a corner's pixels are near it.
_CORNER = 0.02
# A field of view is convex: so much of its hull. A lesion that reaches into a corner leaves less.
_CONVEX = 0.97
# The edge of a field is soft. Shares of the side: what is filled at least beside a corner, how far
# it may reach where the picture is darker than so much of the field's median, and then beyond.
_EDGE, _SOFT, _DIM, _SEAM = 0.025, 0.08, 0.75, 0.0125


class Part(NamedTuple):
    """A part of a picture, as shares of its width and height, upright, from the upper left.

    Attributes:
        filled: whether the corners beside a round field of view are filled, see `fill_corners`.
    """

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0
    filled: bool = False

    @property
    def share(self) -> float:
        """Of the picture's area."""
        return (self.right - self.left) * (self.bottom - self.top)

    @property
    def narrowest(self) -> float:
        """The lesser of its shares of the width and of the height."""
        return min(self.right - self.left, self.bottom - self.top)

    def pixels(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Left, upper, right and lower edge in a picture of (width, height); never empty."""
        left, right = _edges(self.left, self.right, size[0])
        top, bottom = _edges(self.top, self.bottom, size[1])
        return left, top, right, bottom

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Its own width and height in a picture of (width, height)."""
        left, top, right, bottom = self.pixels(size)
        return right - left, bottom - top


WHOLE = Part()


class _Kind(NamedTuple):
    """What a border is of: `black`, `white`, or `plain`, of any `colour` (RGB); empty if none.

    Attributes:
        even: whether a plain one is so at its edge as no camera leaves it.
    """

    name: str = ""
    colour: tuple[int, ...] = ()
    even: bool = False


_BLACK_BORDER, _WHITE_BORDER = _Kind("black"), _Kind("white")


class Framed(NamedTuple):
    """What lies within a picture's border.

    Attributes:
        part: `WHOLE` where there is no border.
        note: what was left out, for a user; mostly empty.
        bare: whether too little is left within a border for it to be left out.
    """

    part: Part
    note: str
    bare: bool = False


def find_frame(image: Image.Image) -> Framed:
    """The part of an upright RGB picture that a border of one colour leaves.

    The border may have another width at each side, and another colour. Of a round field of view
    on black what remains is the rectangle around it; on white it is left as it is, for it cannot
    be told from a lesion on over-exposed skin.
    """
    if max(image.size) > _LARGE:
        image = image.resize(_reduced(image.size), Image.Resampling.NEAREST)
    width, height = image.size
    skin: set[tuple[int, str]] = set()
    while True:
        box, kinds, bare = _border(image, skin)
        ends = [
            _sharp_end(image, box, side, of[-1]) if of and not bare else 0
            for side, of in enumerate(kinds)
        ]
        found = _skin(kinds, ends, bare=bare)
        if not found:
            break
        skin |= found
    # Up to its end JPEG has mixed a plain border's colour into the skin's.
    for side, of in enumerate(kinds):
        if of and of[-1].name == "plain":
            box[side] += ends[side] * (1 if side < 2 else -1)
    if bare or _too_small(box, image.size):
        return Framed(WHOLE, "", bare=True)
    names = set()
    for side, edge in enumerate((0, 0, width, height)):
        if abs(box[side] - edge) >= _NARROW * (width, height)[side % 2]:
            # Plain lines beside black ones are its blurred or noisy edge.
            own = {kind.name for kind in kinds[side]}
            names |= own - {"plain"} or own
    if not names:
        return Framed(WHOLE, "")
    part = Part(box[0] / width, box[1] / height, box[2] / width, box[3] / height)
    told = f"a {' and '.join(sorted(names))} border was left out"
    return Framed(part, f"{told} ({1 - part.share:.0%} of the picture)")


def _border(
    image: Image.Image, skin: set[tuple[int, str]]
) -> tuple[list[int], list[list[_Kind]], bool]:
    """The box within the border, what each side's is of, and whether too little is in the box.

    Args:
        skin: sides, and names of what is skin there.
    """
    width, height = image.size
    box: list[int] = [0, 0, width, height]
    kinds: list[list[_Kind]] = [[], [], [], []]
    # A line that is no border's from edge to edge may be one within the borders beside it.
    moved = True
    while moved:
        moved = False
        for side in range(4):
            edge, kind = _advance(image, box, side, skin)
            if edge != box[side]:
                box[side], moved = edge, True
                kinds[side].append(kind)
            if _too_small(box, image.size):
                return box, kinds, True
    return box, kinds, False


def _skin(kinds: list[list[_Kind]], ends: list[int], *, bare: bool) -> set[tuple[int, str]]:
    """Sides, and names of what was taken for a border there and does not end as one."""
    found = set()
    for side, of in enumerate(kinds):
        name = of[-1].name if of else ""
        if name == "plain" and (bare or ends[side] < 0):
            found.add((side, "plain"))
        if name == "white" and not bare and ends[side] < 0:
            # Where one side is over-exposed, all may be.
            found |= {(side, "white") for side in range(4)}
    return found


def _too_small(box: list[int], size: tuple[int, int]) -> bool:
    return box[2] - box[0] < _least(size[0]) or box[3] - box[1] < _least(size[1])


def _reduced(size: tuple[int, int]) -> tuple[int, int]:
    step = math.ceil(max(size) / _LARGE)
    return max(1, size[0] // step), max(1, size[1] // step)


def _least(length: int) -> float:
    return max(_LEAST * length, min(_LEAST_PIXELS, length))


def _edges(low: float, high: float, length: int) -> tuple[int, int]:
    # Shares of whole pixels come back as these pixels; at another scale as the nearest.
    first = min(max(0, round(low * length)), length - 1)
    return first, max(first + 1, min(length, round(high * length)))


def _advance(
    image: Image.Image, box: list[int], side: int, skin: set[tuple[int, str]]
) -> tuple[int, _Kind]:
    """Where the border at a side (left, upper, right, lower) ends within `box`, and its kind."""
    edge, step = box[side], 1 if side < 2 else -1
    first = _ahead(image, box, side, edge, 1)
    kind = _kind(first[0]) if len(first) else _Kind()
    if not kind.name or (side, kind.name) in skin:
        return edge, _Kind()
    while len(lines := _ahead(image, box, side, edge, _BAND)):
        ends = [place for place, line in enumerate(lines) if not _is_of(kind, line)]
        edge += step * (ends[0] if ends else len(lines))
        if ends:
            behind = _caption(image, box, side, edge) if kind.name == "black" else 0
            if not behind:
                break
            edge += step * behind
    return edge, kind


def _caption(image: Image.Image, box: list[int], side: int, edge: int) -> int:
    """Lines from `edge` on that interrupt a black bar, which goes on behind; 0 where none does."""
    length = image.size[side % 2]
    ahead = _ahead(image, box, side, edge, round(_CAPTION * length))
    black = [_is_of(_BLACK_BORDER, line) for line in ahead]
    run = max(2, math.ceil(_NARROW * length))
    for place in range(1, len(black) - run + 1):
        if all(black[place : place + run]):
            # What is written is mostly black still; skin is not.
            dark = np.mean([_dark(line).mean() for line in ahead[:place]])
            return place if dark > 1 - _SHARP / 2 else 0
    return 0


def _sharp_end(image: Image.Image, box: list[int], side: int, kind: _Kind) -> int:
    """Lines behind a white or plain border up to the first of something else; -1 if it is far.

    0 for a black one, which may end as it likes.
    """
    if kind.name == "black":
        return 0
    soon = math.ceil(_SOON * image.size[side % 2])
    if kind.name == "plain":
        soon = max(soon, _BLOCK)
    ahead = _ahead(image, box, side, box[side], soon + 1)
    if kind.name == "white":
        sharp = (~_light(ahead)).mean(1) >= _SHARP
    else:
        far, most = (_STRAY, _MOST) if kind.even else (_OTHER, _SHARP)
        sharp = (_apart(ahead, kind.colour) > far).mean(1) >= most
    return int(sharp.argmax()) if sharp.any() else -1


def _ahead(image: Image.Image, box: list[int], side: int, edge: int, count: int) -> RGB:
    """Up to `count` lines from `edge` on, inwards."""
    axis = side % 2
    left = box[axis + 2] - edge if side < 2 else edge - box[axis]
    count = min(count, left)
    if not count:
        return np.empty((0, 1, 3), np.uint8)
    first = edge if side < 2 else edge - count
    return _lines(image, box, axis, first, count)[:: 1 if side < 2 else -1]


def _lines(image: Image.Image, box: list[int], axis: int, first: int, count: int) -> RGB:
    """`count` columns (axis 0) or rows from `first` on, within `box`: `(count, n, 3)`."""
    around = list(box)
    around[axis], around[axis + 2] = first, first + count
    pixels = np.asarray(image.crop((around[0], around[1], around[2], around[3])))
    lines = pixels.swapaxes(0, 1) if axis == 0 else pixels
    return lines[:, :: max(1, math.ceil(lines.shape[1] / _SAMPLES))]


def _kind(line_n3: RGB) -> _Kind:
    """Of which kind of border this may be the first line."""
    for kind in (_BLACK_BORDER, _WHITE_BORDER):
        if _is_of(kind, line_n3):
            return kind
    middle = len(line_n3) // 2
    colour = tuple(np.partition(line_n3, middle, axis=0)[middle].tolist())
    apart = _apart(line_n3, colour)
    if (apart > _FLAT).mean() > _FEW:
        return _Kind()
    return _Kind("plain", colour, even=bool((apart > _EVEN).mean() <= _FEW))


def _is_of(kind: _Kind, line_n3: RGB) -> bool:
    """Whether a line goes on with such a border."""
    if kind.name == "black":
        brightest = line_n3.max(1)
        return bool((brightest > _DARK).mean() <= _FEW and np.median(brightest) <= _BLACK)
    if kind.name == "white":
        darkest = line_n3.min(1)
        return bool((darkest < _LIGHT).mean() <= _FEW and np.median(darkest) >= _WHITE)
    return bool((_apart(line_n3, kind.colour) > _STRAY).mean() <= _FEW)


def _apart(pixels: RGB, colour: tuple[int, ...]) -> npt.NDArray[np.int16]:
    """How far each pixel is from a colour, in the channel where it is furthest."""
    return np.asarray(np.abs(pixels - np.array(colour, np.int16)).max(-1))


def fill_corners(pixels_HW3: RGB, *, known: bool = False) -> tuple[RGB, float]:
    """A picture with the black beside its round field of view filled, and the share that was.

    Each pixel takes the colour that lies as far within the field's edge as it lies beyond: skin
    mirrored, so that neither the shape of the field nor a made-up colour is there to be seen. All
    four corners must be black, and the field convex.

    Args:
        pixels_HW3: uint8 RGB.
        known: whether it is known to have such corners, at another scale; else they are filled
            only where they are large.
    """
    if not all(_dark(corner).any() for corner in _corners(pixels_HW3)):
        return pixels_HW3, 0.0
    from scipy import ndimage  # type: ignore[import-untyped]

    black = _touching_corners(_dark(pixels_HW3))
    share = float(black.mean())
    if not (0 if known else _CORNERS) < share < _MOST_CORNERS:
        return pixels_HW3, 0.0
    side = max(pixels_HW3.shape[:2])
    # What is written into the black is no skin either.
    regions, count = ndimage.label(~black)
    sizes = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    beyond = regions != 1 + int(sizes.argmax())
    if not known and not _convex(~beyond):
        return pixels_HW3, 0.0
    hole = _grown(beyond, _EDGE * side)
    # A field that touches the picture's edge is soft there, too.
    near = _grown(np.pad(beyond, 1, constant_values=True), _SOFT * side)[1:-1, 1:-1]
    brightness = pixels_HW3.max(2)
    dim = beyond | (near & (brightness < _DIM * np.median(brightness[~beyond])))
    hole |= _grown(ndimage.binary_propagation(beyond, mask=dim), _SEAM * side)
    if hole.all():
        return pixels_HW3, 0.0
    found = mirrored(hole)
    # Of a narrow field the place may lie beyond its other edge.
    rows, columns = np.where(hole[tuple(found.places)], found.nearest, found.places)
    return pixels_HW3[rows, columns], share


def _dark(pixels: RGB) -> Bools:
    return np.asarray(pixels.max(-1) <= _DARK)


def _light(pixels: RGB) -> Bools:
    return np.asarray(pixels.min(-1) >= _LIGHT)


def _convex(region: Bools) -> bool:
    """Whether a region, the gaps in it filled, is most of its convex hull."""
    from scipy import ndimage, spatial

    region = ndimage.binary_fill_holes(region)
    rows = np.flatnonzero(region.any(1))
    if len(rows) < 3:
        return False
    # A row's ends, as edges of pixels.
    first, last = region[rows].argmax(1), region.shape[1] - region[rows, ::-1].argmax(1)
    edges = np.concatenate(
        [np.stack([rows + down, x], 1) for down in (0, 1) for x in (first, last)]
    )
    return bool(region.sum() >= _CONVEX * spatial.ConvexHull(edges).volume)


def _corners(picture: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Views of its four corners: a thin frame around a round field may stand there."""
    near = max(1, round(_CORNER * max(picture.shape[:2])))
    return [picture[y, x] for y in np.s_[:near, -near:] for x in np.s_[:near, -near:]]


def _touching_corners(mask: Bools) -> Bools:
    from scipy import ndimage

    seeds = np.zeros_like(mask)
    for corner in _corners(seeds):
        corner[:] = True
    return np.asarray(ndimage.binary_propagation(seeds & mask, mask=mask))


def _grown(mask: Bools, pixels: float) -> Bools:
    from scipy import ndimage

    return np.asarray(ndimage.distance_transform_edt(~mask) <= pixels) if mask.any() else mask
