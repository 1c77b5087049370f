"""Lesions taken out of pictures and put into others.

Pictures are float32 `(side, side, 3)` in [0, 255], masks bool `(side, side)`; lengths are shares of
the side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from biigma_cli.data.mirror import mirrored
from biigma_cli.data.perturb.masks import Mask

RGB = npt.NDArray[np.float32]  # (side, side, 3)
Field = npt.NDArray[np.float32]  # (side, side)

# A lesion's fringe reaches a little beyond its mask: it goes with the lesion.
FRINGE = 0.06
# Over this far outside the mask a picture passes into the other's background.
SEAM = 0.06
# Structure finer than this is texture, which is carried into a hole; coarser is shading.
_TEXTURE = 0.02
# Below this in all channels lies no skin: dark corners, bars.
_BLACK = 40


def outside_distance(lesion: Mask) -> Field:
    """Distance to the lesion, 0 inside, in shares of the side."""
    from scipy.ndimage import distance_transform_edt  # type: ignore[import-untyped]

    return np.asarray(distance_transform_edt(~lesion) / len(lesion), dtype=np.float32)


def level_of(lesion: Mask) -> Field:
    """Signed distance to the outline in half sides, positive inside: painters keep clear of it."""
    from scipy.ndimage import distance_transform_edt

    inside = distance_transform_edt(lesion) - distance_transform_edt(~lesion)
    return np.asarray(inside * (2 / len(lesion)), dtype=np.float32)


def kept_share(lesion: Mask) -> Field:
    """How much of a picture stays on another background: 1 in the lesion, 0 beyond its seam."""
    away = outside_distance(lesion) * np.float32(1 / SEAM)
    keep = np.clip(1 - away, 0, 1)
    return np.asarray(keep * keep * (3 - 2 * keep), dtype=np.float32)


def on_background(picture: RGB, lesion: Mask, background: RGB) -> RGB:
    """The lesion, every pixel of it as it was, on another background, with a soft seam around."""
    keep = kept_share(lesion)[..., None]
    return np.asarray(background + keep * (picture - background), dtype=np.float32)


def skin_mean(picture: RGB, lesion: Mask) -> npt.NDArray[np.float32]:
    """Mean colour `(3,)` of what lies outside lesion and fringe, dark corners and bars apart."""
    skin = ~_hole(lesion)
    lit = skin & (picture.max(2) >= _BLACK)
    return np.asarray(picture[lit if lit.any() else skin].mean(0), dtype=np.float32)


def without_lesion(picture: RGB, lesion: Mask) -> RGB:
    """The lesion and its fringe inpainted: shading from around it, texture mirrored at its edge."""
    from scipy.ndimage import gaussian_filter

    hole = _hole(lesion)
    if not hole.any():
        return picture.copy()
    side = len(hole)
    known = (~hole).astype(np.float32)
    sigma = (_TEXTURE * side, _TEXTURE * side)
    weight = gaussian_filter(known, sigma, truncate=3)
    blurred = gaussian_filter(picture * known[..., None], (*sigma, 0), truncate=3)
    coarse = blurred / np.maximum(weight, 1e-3)[..., None]
    texture = (picture - coarse) * known[..., None]
    shading = _spread(coarse, known)
    found = mirrored(hole)
    # Where that is no skin either, the texture is 0 there, and the shading stands alone.
    filled = shading + texture[tuple(found.places)]
    edge = np.clip(found.distance / (0.01 * side), 0, 1).astype(np.float32)[..., None]
    return np.asarray(picture + edge * (np.clip(filled, 0, 255) - picture), dtype=np.float32)


def _hole(lesion: Mask) -> Mask:
    """Lesion and fringe; the lesion alone where the two leave next to nothing."""
    wide = outside_distance(lesion) <= FRINGE
    return np.asarray(lesion if wide.mean() > 0.98 else wide)


def _spread(values: RGB, known: Field) -> RGB:
    """`values` where known, elsewhere filled smoothly from there (push-pull over halved sizes)."""
    from scipy.ndimage import uniform_filter

    side = len(known)
    filled = _push_pull(values, known)
    hole = known == 0
    # What is left of the halved grids' squares is smoothed away, wide first.
    for width in (side // 12, side // 20, side // 32):
        smooth = uniform_filter(filled, (max(3, width | 1), max(3, width | 1), 1))
        filled[hole] = smooth[hole]
    return filled


def _push_pull(values: RGB, weight: Field) -> RGB:
    height, width = weight.shape
    if min(height, width) <= 1:
        total = max(float(weight.sum()), 1e-6)
        mean = (values * weight[..., None]).sum((0, 1)) / total
        return np.where(weight[..., None] > 0, values, mean).astype(np.float32)
    odd = ((0, height % 2), (0, width % 2))
    weight_even = np.pad(weight, odd)
    values_even = np.pad(values * weight[..., None], (*odd, (0, 0)))
    rows, columns = weight_even.shape[0] // 2, weight_even.shape[1] // 2
    total = weight_even.reshape(rows, 2, columns, 2).sum((1, 3))
    summed = values_even.reshape(rows, 2, columns, 2, 3).sum((1, 3))
    half: RGB = _push_pull(
        (summed / np.maximum(total, 1e-6)[..., None]).astype(np.float32),
        np.minimum(total, 1).astype(np.float32),
    )
    up = _doubled(_doubled(half, 0), 1)[:height, :width]
    mixed: Any = up + weight[..., None] * (values - up)
    return np.asarray(mixed, dtype=np.float32)


def _doubled(values: RGB, axis: int) -> RGB:
    """Twice as long along an axis, linear between centres."""
    values = np.moveaxis(values, axis, 0)
    before = np.concatenate([values[:1], values[:-1]])
    after = np.concatenate([values[1:], values[-1:]])
    twice = np.stack([values + (before - values) / 4, values + (after - values) / 4], 1)
    joined = twice.reshape(-1, *values.shape[1:]).astype(np.float32)
    return np.moveaxis(joined, 0, axis)
