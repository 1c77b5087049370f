"""Lesion masks of many images at a network's input side, one bit per pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from biigma_cli.data.manifest import Manifest, Record
from biigma_cli.data.preprocess import FORMATS, load_image, map_threads
from biigma_cli.errors import DataError
from biigma_cli.storage import available_cpus

Mask = npt.NDArray[np.bool_]  # (side, side), True inside the lesion

# A picture that shows less skin than this has no background to speak of, and none to give away.
LEAST_BACKGROUND = 0.05
_NAMED = 10
# Orientations of EXIF that turn width into height.
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True, kw_only=True)
class LesionMasks:
    """The masks of a part.

    Attributes:
        side: of each mask.
        ids: images with a usable mask, in the order asked for.
        area: share of the picture that is lesion, by id.
        missing: images without a mask.
        empty: images whose mask marks nothing.
        filled: images whose mask leaves less than `LEAST_BACKGROUND` of the picture.
    """

    side: int
    ids: tuple[str, ...]
    area: dict[str, float]
    missing: tuple[str, ...]
    empty: tuple[str, ...]
    filled: tuple[str, ...]
    _bits: dict[str, npt.NDArray[np.uint8]] = field(repr=False)

    def __getitem__(self, image_id: str) -> Mask:
        """bool `(side, side)`, True inside the lesion."""
        flat = np.unpackbits(self._bits[image_id], count=self.side * self.side)
        return flat.reshape(self.side, self.side).astype(np.bool_)


def lesion_masks(
    manifest: Manifest,
    ids: Sequence[str],
    side: int,
    *,
    rule: str = "squash",
    progress: Callable[[int, int], None] | None = None,
) -> LesionMasks:
    """The masks of the images `ids`, resized as their pictures are and cut at one half.

    The memory is `side * side / 8` bytes a mask.

    Raises:
        DataError: no image has a usable mask; a mask is not of its picture's size (the first ten
            are named); a mask is gone or damaged.
    """
    records = manifest.by_id()
    with_mask = [records[i] for i in ids if records[i].mask]
    missing = tuple(i for i in ids if not records[i].mask)
    if not with_mask:
        raise no_mask(len(missing), manifest.dataset)
    bits: dict[str, npt.NDArray[np.uint8]] = {}
    area: dict[str, float] = {}
    other_size: list[str] = []
    read = map_threads(
        lambda record: _read(manifest.root, record, side, rule),
        with_mask, threads=available_cpus(),
    )  # fmt: skip
    for done, (record, found) in enumerate(zip(with_mask, read, strict=True), start=1):
        if isinstance(found, str):
            other_size.append(f"{record.image_id} ({found})")
        else:
            bits[record.image_id] = np.packbits(found)
            area[record.image_id] = float(found.mean())
        if progress:
            progress(done, len(with_mask))
    if other_size:
        more = len(other_size) - _NAMED
        raise DataError(
            f"{len(other_size)} lesion masks are not of their picture's size: "
            + ", ".join(other_size[:_NAMED])
            + (f" and {more} more" if more > 0 else ""),
            fix="get masks and pictures of one release, or resize the masks",
        )
    empty = tuple(i for i, share in area.items() if share == 0)
    filled = tuple(i for i, share in area.items() if share > 1 - LEAST_BACKGROUND)
    unusable = {*empty, *filled}
    usable = tuple(i for i in area if i not in unusable)
    if not usable:
        raise DataError(
            f"none of {len(area)} lesion masks can be used: {len(empty)} are empty, {len(filled)} "
            "fill their picture",
            fix="check that masks are white on black",
        )
    return LesionMasks(
        side=side,
        ids=usable,
        area={i: area[i] for i in usable},
        missing=missing,
        empty=empty,
        filled=filled,
        _bits={i: bits[i] for i in usable},
    )


def no_mask(images: int, dataset: str) -> DataError:
    """The error for images none of which has a mask."""
    return DataError(
        f"none of {images} images of {dataset} has a lesion mask on record",
        fix="record the data set again with its masks beside the images (a record made by an "
        "earlier version holds none)",
    )


def _read(root: Path, record: Record, side: int, rule: str) -> Mask | str:
    """The mask, or the two sizes where they differ."""
    mask, picture = root / record.mask, root / record.path
    own, size = _upright_size(mask), _upright_size(picture)
    if own is not None and size is not None and own != size:
        return f"mask {own[0]}x{own[1]}, picture {size[0]}x{size[1]}"
    grey = load_image(mask, side, rule=rule, name=f"{mask}, the mask of {record.image_id}")[..., 0]
    # Some write 0 and 1 instead of 0 and 255.
    return np.asarray(grey > grey.max() / 2)


def _upright_size(path: Path) -> tuple[int, int] | None:
    """Width and height from the header; None where it cannot be read, which decoding explains."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) in _SIDEWAYS
    except Exception:  # damaged files make Pillow raise anything; decoding says what
        return None
    return (height, width) if turned else (width, height)
