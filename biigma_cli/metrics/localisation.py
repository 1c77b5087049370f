"""How well maps show where the lesion is, beside maps that know nothing.

Dimension letters: n images, h x w cells of a map, F columns of figures, G groups (lesions), b
resamples of a block.

Each figure is of one image, then averaged:

* pointing: whether the centre of the map's highest cell lies in the lesion (the pointing game of
  Zhang et al., 2018, without its margin). Where several cells are highest it is the share of them
  whose centre does, which is what a random choice among them would give.
* energy: share of the map's sum that lies in the lesion. Of a map with signs the positive part.
* lift: energy over the lesion's share of the square: 1 is what a uniform map has.
* auc: probability that a random pixel of the lesion has a higher value than a random pixel beside
  it, an equal one counting a half.

All are at the map's own resolution, each cell counted as lesion and as background by the share of
it that is either. That is exactly the pixelwise figure of the map with every pixel at its cell's
value; to enlarge the map smoothly first would score the interpolation, too, and one could choose it
to please. It also means that no map has an AUC of 1 where the lesion's edge runs through cells: the
reference `mask` has the highest that the resolution allows.

Lesions lie in the middle of their pictures, so that a map which always points there does well. It
stands beside as `centre`, a Gaussian of a quarter of the side (its pointing and AUC are those of a
Gaussian of any width), and so does each map's difference from it: what does not beat it shows the
lesion no better than pointing at the middle of any picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from biigma_cli.errors import DataError
from biigma_cli.metrics.assess import Figure, plain_figures, with_interval
from biigma_cli.metrics.confusion import Floats, Ints, resample_weights
from biigma_cli.metrics.ranks import ratio
from biigma_cli.metrics.subgroups import FEW, FEWEST_LESIONS

LOCALISATION = ("pointing", "energy", "lift", "auc")
LOCALISATION_TITLES = {
    "pointing": "pointing game",
    "energy": "energy inside",
    "lift": "energy/area",
    "auc": "pixel AUC",
}
#: Figures of the order of a map's cells alone.
RANKED = ("pointing", "auc")
#: Maps that every other stands beside.
REFERENCES = ("centre", "uniform", "mask")
#: Standard deviation of the reference `centre`, as a share of the side.
CENTRE_SPREAD = 0.25

Bools = npt.NDArray[np.bool_]
Map = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Localisation:
    """Figures of one kind of map.

    Attributes:
        overall: means over all images, by the names in `LOCALISATION`.
        over_centre: means of the paired differences from the reference `centre`.
        per_class: as `overall`, over the images of each class.
        per_class_over_centre: as `over_centre`, over the images of each class.
        without_energy: images without a positive value, which `energy` and `lift` leave out.
    """

    overall: Mapping[str, Figure]
    over_centre: Mapping[str, Figure]
    per_class: Mapping[str, Mapping[str, Figure]]
    per_class_over_centre: Mapping[str, Mapping[str, Figure]]
    without_energy: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return {
            "overall": plain_figures(self.overall),
            "over_centre": plain_figures(self.over_centre),
            "per_class": {code: plain_figures(figures) for code, figures in self.per_class.items()},
            "per_class_over_centre": {
                code: plain_figures(figures) for code, figures in self.per_class_over_centre.items()
            },
            "without_energy": self.without_energy,
        }


def localise(
    maps: Mapping[str, Map],
    cover_nhw: Map,
    centre_nhw: Bools,
    label_n: Ints,
    codes: Sequence[str],
    *,
    order_of: Mapping[str, str] | None = None,
    shift: float = 0.0,
    groups: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Localisation]:
    """All figures of each map and of `REFERENCES`, with 95% intervals over resampled groups.

    A figure of a class that fewer than `FEWEST_LESIONS` groups have gets no interval.

    Args:
        maps: `(n, h, w)`, by name; higher is more.
        cover_nhw: share of each cell that the lesion covers; each image's is neither 0 nor 1
            throughout.
        centre_nhw: whether each cell's centre lies in the lesion.
        label_n: `(n,)` class indices.
        codes: the class codes.
        order_of: map -> another, of which it is a rising function: its `RANKED` figures are taken
            from that one, so that rounding to equal values cannot make them differ.
        shift: how far the cells lie beyond an even grid's, in cells, for the reference `centre`.
        groups: lesion of each image: images of one lesion are drawn together. None: each its own.
        resamples: 0 gives figures without intervals.
        progress: called with (resamples done, resamples in all).

    Raises `DataError` where there is no image, or a map holds NaN or infinity.
    """
    n = len(cover_nhw)
    if n == 0:
        raise DataError("no image has a mask to judge maps by", fix="choose another part")
    for name, values in maps.items():
        bad = int((~np.isfinite(values)).any((1, 2)).sum())
        if bad:
            raise DataError(
                f"{bad} of {n} maps ({name}) hold NaN or infinity", fix="check the model"
            )
    if groups is None:
        groups = [str(i) for i in range(n)]
    group_n = np.unique(np.asarray(groups), return_inverse=True)[1]
    whole = {**maps, **reference_maps(cover_nhw, shift)}
    found = {
        name: np.stack([*map_figures(values, cover_nhw, centre_nhw).values()], 1)
        for name, values in whole.items()
    }
    ranked = [LOCALISATION.index(name) for name in RANKED]
    for name, other in (order_of or {}).items():
        found[name][:, ranked] = found[other][:, ranked]
    # Blocks of columns: each map's figures, then each map's differences from the centre.
    blocks = [*found.values(), *(values - found["centre"] for values in found.values())]
    value_nF = np.concatenate(blocks, 1)
    is_class_nY = label_n[:, None] == np.arange(len(codes))
    # All images, then those of each class.
    by_class = [value_nF]
    by_class += [np.where(is_n[:, None], value_nF, np.nan) for is_n in is_class_nY.T]
    mean_F, draws_rF, groups_F = _resampled_means(
        np.concatenate(by_class, 1), group_n, resamples, seed, progress
    )
    shape = (1 + len(codes), 2, len(found), len(LOCALISATION))
    mean = mean_F.reshape(shape)
    draws = draws_rF.reshape(-1, *shape)
    lesions = groups_F.reshape(shape)
    there = [True, *is_class_nY.any(0)]

    def figures(row: int, kind: int, which: int) -> dict[str, Figure]:
        told: dict[str, Figure] = {}
        for i, name in enumerate(LOCALISATION):
            place = (row, kind, which, i)
            if np.isnan(mean[place]):
                why = "not defined for any image" if there[row] else "no image of this class"
                told[name] = Figure(value=None, why=why)
            elif resamples == 0:
                told[name] = Figure(value=float(mean[place]))
            elif row and lesions[place] < FEWEST_LESIONS:
                told[name] = Figure(value=float(mean[place]), why=FEW)
            else:
                told[name] = with_interval(mean[place], draws[(slice(None), *place)])
        return told

    return {
        name: Localisation(
            overall=figures(0, 0, which),
            over_centre=figures(0, 1, which),
            per_class={code: figures(1 + c, 0, which) for c, code in enumerate(codes)},
            per_class_over_centre={code: figures(1 + c, 1, which) for c, code in enumerate(codes)},
            without_energy=int(np.isnan(values[:, LOCALISATION.index("energy")]).sum()),
        )
        for which, (name, values) in enumerate(found.items())
    }


def reference_maps(cover_nhw: Map, shift: float = 0.0) -> dict[str, Floats]:
    """The maps `REFERENCES`, `(n, h, w)`: a centred Gaussian, a uniform map, the cover itself."""
    n, h, w = cover_nhw.shape
    # Distances squared in cells: exact, so that cells equally far from the middle are equal.
    y, x = (2 * np.arange(size) - (size - 1) + 2 * shift for size in (h, w))
    far = (y[:, None] * w) ** 2 + (x * h) ** 2  # from the middle, in 1 / (2 h w) of the side
    gaussian = np.exp(-far / (2 * (CENTRE_SPREAD * 2 * h * w) ** 2))
    return {
        "centre": np.broadcast_to(gaussian, (n, h, w)),
        "uniform": np.ones((n, h, w)),
        "mask": np.asarray(cover_nhw, np.float64),
    }


def map_figures(map_nhw: Map, cover_nhw: Map, centre_nhw: Bools) -> dict[str, Floats]:
    """`(n,)` of each figure in `LOCALISATION`; NaN where one is not defined for an image.

    `energy` and `lift` are not where no value is positive, `auc` is not where the cover is 0 or 1
    throughout, `lift` not where it is 0 throughout.
    """
    value = np.asarray(map_nhw, np.float64).reshape(len(map_nhw), -1)
    cover = np.asarray(cover_nhw, np.float64).reshape(value.shape)
    centre = centre_nhw.reshape(value.shape)
    highest = value == value.max(1, keepdims=True)
    positive = np.clip(value, 0, None)
    energy = ratio((positive * cover).sum(1), positive.sum(1))
    return {
        "pointing": (highest & centre).sum(1) / highest.sum(1),
        "energy": energy,
        "lift": ratio(energy, cover.mean(1)),
        "auc": np.array([_auc(v, c) for v, c in zip(value, cover, strict=True)], np.float64),
    }


def _auc(value_c: Floats, cover_c: Floats) -> float:
    """Of one map over its cells, each both positive and negative by its cover."""
    inside, outside = cover_c.sum(), (1 - cover_c).sum()
    if inside <= 0 or outside <= 0:
        return float("nan")
    _, level = np.unique(value_c, return_inverse=True)
    hit = np.bincount(level, cover_c)
    miss = np.bincount(level, 1 - cover_c)
    below = np.cumsum(miss) - miss / 2
    return float(hit @ below / (inside * outside))


def _resampled_means(
    value_nF: Floats,
    group_n: npt.NDArray[np.intp],
    resamples: int,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[Floats, Floats, Ints]:
    """Mean of each column over the images that have a value, in each resample, and their groups."""
    count = int(group_n.max()) + 1
    there = ~np.isnan(value_nF)
    sums, counts = np.zeros((2, count, value_nF.shape[1]))
    np.add.at(sums, group_n, np.where(there, value_nF, 0))
    np.add.at(counts, group_n, there)
    draws = []
    done = 0
    for weights in resample_weights(count, resamples, seed):
        draws.append(ratio(weights @ sums, weights @ counts))
        done += len(weights)
        if progress:
            progress(done, resamples)
    mean = ratio(sums.sum(0), counts.sum(0))
    return mean, np.concatenate(draws or [mean[None][:0]]), (counts > 0).sum(0)
