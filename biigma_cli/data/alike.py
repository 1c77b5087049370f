"""Pictures that probably show one lesion under different names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from biigma_cli.data.manifest import Record
from biigma_cli.data.splits import joined, known_keys

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.intp]

#: Pairs of different lesions that are put up with, for each picture compared; and of all such pairs
#: the share, which is what counts where pictures are few.
CHANCE, CHANCE_SHARE = 1 / 40, 1 / 10_000


@dataclass(frozen=True, kw_only=True)
class AlikePair:
    """Two pictures that are probably of one lesion.

    Attributes:
        first, second: image ids; `first` comes first in the manifest.
        likeness: above the search's threshold; see `core.likeness`.
        same_lesion: whether they share a lesion id; None where either has none.
        same_label: whether they share a class.
    """

    first: str
    second: str
    likeness: float
    same_lesion: bool | None
    same_label: bool


@dataclass(frozen=True, kw_only=True)
class AlikeSearch:
    """All pairs found, most alike first.

    Attributes:
        pairs: those that reach the threshold; of identical files the first stands for all.
        threshold: of likeness.
        by_chance: pairs of different lesions that would reach it among so many pictures, as the
            metric's own were.
        compared: pictures.
        source: what `by_chance` was measured on.
    """

    pairs: tuple[AlikePair, ...]
    threshold: float
    by_chance: float
    compared: int
    source: str

    def lesions(self, records: Sequence[Record]) -> dict[str, str]:
        """Lesion of each image, pairs joined: its own id, the first found, or none ("").

        Images with one lesion id stay together, and so do identical files and the two of each pair;
        a group that holds several known ids takes the first of them in order of the records.
        """
        place = {r.image_id: n for n, r in enumerate(records)}
        keys = [known_keys(r) for r in records]
        for n, pair in enumerate(self.pairs):
            for image_id in (pair.first, pair.second):
                keys[place[image_id]].append(("pair", str(n)))
        named: dict[str, str] = {}
        for group in joined(keys):
            known = next((records[n].lesion_id for n in group if records[n].lesion_id), "")
            name = known or (f"like {records[group[0]].image_id}" if len(group) > 1 else "")
            named |= {records[n].image_id: name for n in group}
        return named


def chance_threshold(table: Sequence[tuple[float, float]], count: int) -> tuple[float, float]:
    """Least likeness at which so many pictures give few enough pairs by chance, and how many.

    Args:
        table: likeness and the share of pairs of different lesions that reach it, ascending in
            likeness.
        count: pictures compared.
    """
    pairs = count * (count - 1) / 2
    for likeness, share in table:
        if share <= CHANCE_SHARE and share * pairs <= CHANCE * count:
            return likeness, share * pairs
    likeness, share = table[-1]
    return likeness, share * pairs


def alike_pairs(
    whole_NK: Floats,
    middle_NK: Floats,
    offset_N: Floats,
    *,
    threshold: float,
    block: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[Ints, Ints, Floats]]:
    """Pairs i < j whose likeness reaches the threshold, block by block of rows.

    Args:
        whole_NK, middle_NK: projections of the pictures and of their middles, at unit length.
        offset_N: what each takes off its likenesses.

    Memory: three times `block` x N floats.
    """
    count = len(whole_NK)
    if progress:
        progress(0, count)
    for start in range(0, count, block):
        likeness = likenesses(whole_NK, middle_NK, offset_N, slice(start, start + block), start)
        i, j = np.nonzero(likeness >= threshold)
        upper = j > i
        i, j = i[upper], j[upper]
        yield i + start, j + start, likeness[i, j]
        if progress:
            progress(min(start + block, count), count)


def likenesses(
    whole_NK: Floats, middle_NK: Floats, offset_N: Floats, rows: slice, first: int = 0
) -> Floats:
    """Likeness of some pictures to all from `first` on, `(rows, N - first)`."""
    whole, middle = whole_NK[rows], middle_NK[rows]
    cosine = np.maximum(whole @ whole_NK[first:].T, whole @ middle_NK[first:].T)
    np.maximum(cosine, middle @ whole_NK[first:].T, out=cosine)
    likeness: Floats = cosine - offset_N[rows, None] - offset_N[None, first:]
    return likeness
