"""Whole parts of a data set decoded into one uint8 array."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from biigma_cli.data.manifest import Manifest, Record
from biigma_cli.data.preprocess import Pixels, load_image, map_threads
from biigma_cli.errors import DataError


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
    progress: Callable[[int, int], None] | None = None,
) -> Part:
    """Decode the images `ids` on all cores.

    Raises `DataError` where a file is gone, damaged, or not the one that was recorded.
    """
    records = manifest.by_id()
    chosen = [records[i] for i in ids]
    pixels = np.empty((len(chosen), side, side, 3), np.uint8)

    def decode(record: Record) -> Pixels:
        path = manifest.root / record.path
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"cannot read {path}: {error.strerror}",
                fix=f"run 'biigma download {manifest.dataset} --from FOLDER' again",
            ) from error
        if hashlib.blake2b(content, digest_size=16).hexdigest() != record.digest:
            raise DataError(
                f"{path} has changed since it was recorded",
                fix=f"run 'biigma download {manifest.dataset} --from {manifest.root}' again",
            )
        return load_image(content, side, name=str(path))

    for i, image in enumerate(map_threads(decode, chosen, threads=os.cpu_count() or 1)):
        pixels[i] = image
        if progress:
            progress(i + 1, len(chosen))
    codes = manifest.taxonomy
    return Part(
        ids=tuple(ids),
        pixels=pixels,
        labels=np.array([codes.index(r.label) for r in chosen], np.int64),
        groups=tuple(r.lesion_id or r.image_id for r in chosen),
    )
