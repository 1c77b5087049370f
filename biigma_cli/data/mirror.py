"""Holes in a picture, and what is mirrored into them at their edge."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.signedinteger[Any]]  # (2, H, W), row and column


class Mirrored(NamedTuple):
    """Where each pixel of a hole takes from; others from themselves.

    Attributes:
        places: as far beyond the hole's edge as the pixel lies within. At the picture's edge back
            again; so of a hole larger than what is around it, it may lie in the hole.
        nearest: the next pixel that lies in no hole.
        distance: to that, in pixels; 0 outside.
    """

    places: Places
    nearest: Places
    distance: npt.NDArray[np.float64]


def mirrored(hole_HW: npt.NDArray[np.bool_]) -> Mirrored:
    """Of a hole that is not the whole picture, and somewhere is one."""
    from scipy.ndimage import distance_transform_edt  # type: ignore[import-untyped]

    distance, nearest = distance_transform_edt(hole_HW, return_indices=True)
    last = np.array(hole_HW.shape)[:, None, None] - 1
    places = np.abs(2 * nearest - np.indices(hole_HW.shape))
    places = np.clip(last - np.abs(last - places), 0, last)
    return Mirrored(places, nearest, distance)
