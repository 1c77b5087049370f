"""Lesion masks of many images at a network's input side, one bit per pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from biigma_cli.data.manifest import Manifest
from biigma_cli.data.masks import Laid, cell_edges, lay_mask, refuse_unusable
from biigma_cli.data.preprocess import map_threads
from biigma_cli.errors import DataError
from biigma_cli.storage import available_cpus

Mask = npt.NDArray[np.bool_]  # (side, side), True inside the lesion

# A picture that shows less skin than this has no background to speak of, and none to give away.
LEAST_BACKGROUND = 0.05


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
        pictures: images that have a picture for a mask.
    """

    side: int
    ids: tuple[str, ...]
    area: dict[str, float]
    missing: tuple[str, ...]
    empty: tuple[str, ...]
    filled: tuple[str, ...]
    pictures: tuple[str, ...]
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
        DataError: no image has a usable mask; masks have another aspect than their picture, are
            gone or damaged (the first ten are named).
    """
    records = manifest.by_id()
    with_mask = [records[i] for i in ids if records[i].mask]
    missing = tuple(i for i in ids if not records[i].mask)
    if not with_mask:
        raise no_mask(len(missing), manifest.dataset)
    edges = cell_edges(side, side)
    read = map_threads(
        lambda record: lay_mask(manifest.root, record, side, rule, (edges, edges)),
        with_mask, threads=available_cpus(),
    )  # fmt: skip
    bits: dict[str, npt.NDArray[np.uint8]] = {}
    area: dict[str, float] = {}
    unread: dict[str, Laid] = {}
    for done, (record, found) in enumerate(zip(with_mask, read, strict=True), start=1):
        if found.cover_hw is None:
            unread[record.image_id] = found
        else:
            inside = found.cover_hw > 0.5
            bits[record.image_id] = np.packbits(inside)
            area[record.image_id] = float(inside.mean())
        if progress:
            progress(done, len(with_mask))
    refuse_unusable(unread, manifest)
    empty = tuple(i for i, share in area.items() if share == 0)
    filled = tuple(i for i, share in area.items() if share > 1 - LEAST_BACKGROUND)
    pictures = tuple(i for i, one in unread.items() if one.picture)
    unusable = {*empty, *filled}
    usable = tuple(i for i in area if i not in unusable)
    if not usable:
        raise DataError(
            f"none of {len(with_mask)} lesion masks can be used: {len(empty)} are empty, "
            f"{len(filled)} fill their picture, {len(pictures)} are pictures themselves",
            fix="check that masks are white on black",
        )
    return LesionMasks(
        side=side,
        ids=usable,
        area={i: area[i] for i in usable},
        missing=missing,
        empty=empty,
        filled=filled,
        pictures=pictures,
        _bits={i: bits[i] for i in usable},
    )


def no_mask(images: int, dataset: str) -> DataError:
    """The error for images none of which has a mask."""
    return DataError(
        f"none of {images} images of {dataset} has a lesion mask on record",
        fix="record the data set again with its masks beside the images (a record made by an "
        "earlier version holds none)",
    )
