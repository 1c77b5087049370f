"""Whole parts of a data set decoded into one uint8 array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from biigma_cli.data.cache import build_cache, decode_records, open_cache
from biigma_cli.data.manifest import Manifest
from biigma_cli.data.preprocess import Pixels
from biigma_cli.errors import BiigmaError, DataError


class Part(NamedTuple):
    """Decoded images of one part.

    Attributes:
        ids: image ids.
        pixels: `(n, side, side, 3)` uint8 RGB.
        labels: `(n,)` class indices.
        groups: lesion of each image, the image id where unknown.
    """

    ids: tuple[str, ...]
    pixels: Pixels
    labels: npt.NDArray[np.int64]
    groups: tuple[str, ...]


def load_part(
    manifest: Manifest,
    ids: Sequence[str],
    side: int,
    *,
    rule: str = "squash",
    build: bool = False,
    progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Part:
    """The images `ids`, from the decoded cache where it is there, else from their files.

    Args:
        rule: resize rule, see `preprocess.load_image`.
        build: make the cache of the whole data set first where it is not there. A data folder
            that cannot be written, or is full, costs a word to `warn`, not the work.

    Raises `DataError` where a file is gone, damaged, or not the one that was recorded.
    """
    records = manifest.by_id()
    chosen = [records[i] for i in ids]
    whole = open_cache(manifest, side, rule)
    if whole is None and build:
        try:
            whole = build_cache(manifest, side, rule, progress=progress)
        except DataError:
            raise
        except BiigmaError as error:
            if warn:
                warn(f"no decoded cache ({error.message}); decoding in memory")
    if whole is not None:
        place = {r.image_id: i for i, r in enumerate(manifest.records)}
        pixels = whole[np.array([place[i] for i in ids], np.intp)]
    else:
        pixels = np.empty((len(chosen), side, side, 3), np.uint8)
        for i, image in enumerate(decode_records(manifest, chosen, side, rule)):
            pixels[i] = image
            if progress:
                progress(i + 1, len(chosen))
    codes = manifest.taxonomy
    return Part(
        ids=tuple(ids),
        pixels=np.asarray(pixels),
        labels=np.array([codes.index(r.label) for r in chosen], np.int64),
        groups=tuple(r.lesion_id or r.image_id for r in chosen),
    )
