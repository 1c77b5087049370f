"""What is wrong with a data set, and what its splits leak.

Near-duplicates are photographs that agree after any of the 8 flips and quarter turns, a change of
size, of aspect ratio, of compression or of exposure, and a shift of up to 6% of the side. Other
crops and angles of one lesion are not found, and are not meant to be: for these there is
`judge.same_lesion`. The search has two steps:

1. Candidates. The image is made grey, 64 x 64, and normalised locally: minus its Gaussian blur
   (4 pixels), over its local standard deviation (6 pixels), faded out towards the rim, where the
   ring of the dermatoscope lies. Of that the lowest 16 x 16 DCT coefficients are kept, at unit
   length. The coefficients of the 8 orientations follow from those of one by a transpose and signs,
   so all pairs are compared by 8 blocked matrix products. Candidates reach `CANDIDATE`.
2. Confirmation. The same normalisation at a finer scale (2 and 4 pixels), all 64 x 64 pixels; the
   highest correlation over shifts of up to 4 pixels reaches `NEAR`.

Why not a plain perceptual hash: most dermoscopic images are one dark blob on light skin. Of the
50 million pairs of HAM10000, 1.8 million lie within 16 bits of each other by a 64-bit DCT hash over
8 orientations, and thousands of different lesions exceed 0.9 in correlation of their thumbnails.
After the local normalisation the blob counts no more than a hair does.

How the thresholds were set: by looking at contact sheets of HAM10000 (images of 200 x 150). Of its
pairs with different lesion ids, the four above 0.65 (ISIC_0025226/ISIC_0030074 at 0.97,
ISIC_0027027/ISIC_0029036, ISIC_0027636/ISIC_0027994, ISIC_0029152/ISIC_0033173 at 0.72) each show
one lesion in nearly the same frame; the next lie at 0.64 to 0.60, and all but one of the ten looked
at are different lesions. Of the pairs with one lesion id above 0.65, all that were looked at (those
under 0.75) are nearly the same frame; from 0.6 downward other angles come in. So `NEAR` is 0.65.
Candidates at 0.75 are 20,000 there, and hold the four and 184 of the 208 pairs of one lesion that a
wider search confirmed: near-duplicates are found mostly, not all.
"""

from __future__ import annotations

import csv
import io
import os
import typing
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from biigma_cli.config import DataConfig
from biigma_cli.data.alike import AlikePair, AlikeSearch
from biigma_cli.data.jpeg import check_jpeg
from biigma_cli.data.manifest import Manifest, Record
from biigma_cli.data.preprocess import load_image, map_threads, read_header
from biigma_cli.data.scan import begin_table, composed
from biigma_cli.data.splits import PARTS, PROTOCOLS, Split, make_split, part_counts
from biigma_cli.errors import DataError, ImageError
from biigma_cli.storage import available_cpus, content_digest, is_file, is_there

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

SIDE = 64  # pixels of the grey thumbnail
LOW = 16  # DCT coefficients kept along each axis
SHIFT = 4  # pixels of SIDE that a near-duplicate may be shifted by
CANDIDATE = 0.75
NEAR = 0.65
# Root mean square of the fine local normalisation under which a picture shows nothing; HAM10000's
# lowest is 0.26.
PLAIN = 0.12

# Orientations as (transpose, flip rows, flip columns), done in this order, and what they are.
TURNS = {
    (False, False, False): "same way up",
    (False, False, True): "mirrored left to right",
    (False, True, False): "mirrored top to bottom",
    (False, True, True): "turned by 180 degrees",
    (True, False, False): "transposed",
    (True, False, True): "turned by 90 degrees clockwise",
    (True, True, False): "turned by 90 degrees anticlockwise",
    (True, True, True): "transposed and turned by 180 degrees",
}

_SUFFIXES = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF",
    ".bmp": "BMP", ".webp": "WEBP", ".gif": "GIF",
}  # fmt: skip
_ID_COLUMNS = ("image_id", "image", "isic_id")


@dataclass(frozen=True, kw_only=True)
class NearPair:
    """Two files with nearly the same picture; not byte-identical.

    Attributes:
        first, second: image ids; `first` comes first in the manifest.
        correlation: of the locally normalised thumbnails, `NEAR` to 1.
        turn: how the second must be turned to lie on the first; a value of `TURNS`.
        same_lesion: whether they share a lesion id; None where either has none.
        same_label: whether they share a class.
    """

    first: str
    second: str
    correlation: float
    turn: str
    same_lesion: bool | None
    same_label: bool


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """Images that should agree on their class and do not.

    Attributes:
        kind: `identical` bytes, `near` duplicates, or of one `lesion`.
        lesion_id: of the lesion; empty for the other kinds.
        images: image ids.
        labels: class code of each.
    """

    kind: str
    lesion_id: str
    images: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class OddImage:
    """An image that can be read, and what is unusual about it."""

    image_id: str
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A recorded image that cannot be read; `missing` where there is no file at all."""

    image_id: str
    path: str
    error: str
    missing: bool


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Images of a part whose lesion is also in other parts.

    Attributes:
        images: how many they are.
        of: images in the part.
    """

    images: int
    of: int

    @property
    def share(self) -> float:
        """As a share of the part, 0 to 1."""
        return self.images / self.of if self.of else 0.0


@dataclass(frozen=True, kw_only=True)
class ProtocolAudit:
    """One way of splitting, and what it leaks.

    Attributes:
        split: the split itself.
        counts: images per class in each part.
        empty: classes without an image in a part, by part; classes the data set lacks left out.
        lesions_across: lesions with images in more than one part.
        test_in_train, val_in_train: images whose lesion is also in train.
        test_in_rest: test images whose lesion is in train or validation, that is, on the other
            side of the first cut.
        identical_across: groups of byte-identical files in more than one part.
        near_across: near-duplicate pairs in two parts, as indices into `Audit.near`.
    """

    split: Split
    counts: dict[str, dict[str, int]]
    empty: dict[str, tuple[str, ...]]
    lesions_across: tuple[str, ...]
    test_in_train: Shared
    test_in_rest: Shared
    val_in_train: Shared
    identical_across: tuple[tuple[str, ...], ...]
    near_across: tuple[int, ...]

    @property
    def leaks(self) -> bool:
        """Whether any lesion, file or picture stands on two sides."""
        return bool(self.lesions_across or self.identical_across or self.near_across)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Everything found.

    Attributes:
        manifest: what was looked at.
        sizes: (width, height) of each readable image, upright, by id.
        lesions: distinct lesion ids.
        without_lesion: images that have none.
        class_lesions: lesions per class; an image without lesion id counts as one.
        few: classes that are empty or have fewer than 3 lesions.
        protocols: by name, those that can be made.
        unavailable: why the others cannot, by name.
        identical: groups of ids with the same bytes.
        near: near-duplicates, most alike first.
        conflicts: label conflicts.
        odd: unusual images.
        unreadable: missing and damaged ones.
        rows_without_image: what the data set's own CSV files below the root name and is no image,
            by file.
        strangers: image files below the root that are no records, relative to it.
        alike: pictures that are probably of one lesion; None where they were not searched for.
    """

    manifest: Manifest
    sizes: dict[str, tuple[int, int]]
    lesions: int
    without_lesion: int
    class_lesions: dict[str, int]
    few: tuple[str, ...]
    protocols: dict[str, ProtocolAudit]
    unavailable: dict[str, str]
    identical: tuple[tuple[str, ...], ...]
    near: tuple[NearPair, ...]
    conflicts: tuple[Conflict, ...]
    odd: tuple[OddImage, ...]
    unreadable: tuple[Unreadable, ...]
    rows_without_image: dict[str, tuple[str, ...]]
    strangers: tuple[str, ...]
    alike: AlikeSearch | None = None

    def alike_across(self, protocol: str) -> tuple[AlikePair, ...]:
        """Pairs of `alike` that stand on two sides of a split."""
        part_of, copies = self.part_of()[protocol], self._copies
        pairs = self.alike.pairs if self.alike is not None else ()
        return tuple(
            p
            for p in pairs
            if len({part_of[i] for i in copies[p.first] + copies[p.second] if i in part_of}) > 1
        )

    def alike_in_train(self, protocol: str) -> Shared:
        """Test images that are alike to one in train, or the same file."""
        part_of, copies = self.part_of()[protocol], self._copies
        pairs = self.alike.pairs if self.alike is not None else ()
        groups = [copies[p.first] + copies[p.second] for p in pairs]
        found = set()
        for group in [*groups, *(list(g) for g in self.identical)]:
            if any(part_of.get(i) == "train" for i in group):
                found |= {i for i in group if part_of.get(i) == "test"}
        return Shared(images=len(found), of=len(self.protocols[protocol].split.part("test")))

    @cached_property
    def _copies(self) -> dict[str, list[str]]:
        """Images with the bytes of each image, itself among them."""
        by_digest: dict[str, list[str]] = defaultdict(list)
        for record in self.manifest.records:
            by_digest[record.digest].append(record.image_id)
        return {r.image_id: by_digest[r.digest] for r in self.manifest.records}

    def part_of(self) -> dict[str, dict[str, str]]:
        """Part of each image id, by protocol."""
        return self._part_of

    @cached_property
    def _part_of(self) -> dict[str, dict[str, str]]:
        return {
            name: {i: part for part in PARTS for i in p.split.part(part)}
            for name, p in self.protocols.items()
        }

    def failures(self, protocol: str) -> list[str]:
        """What a strict audit does not let pass, one line each; empty where all is well."""
        lines = []
        chosen = self.protocols.get(protocol)
        if chosen is None:
            lines.append(f"there is no {protocol} split: {self.unavailable[protocol]}")
        elif chosen.leaks:
            lines.append(
                f"{len(chosen.lesions_across)} lesions, {len(chosen.identical_across)} groups of "
                f"identical files and {len(chosen.near_across)} near-duplicate pairs stand on two "
                f"sides of the {protocol} split"
            )
        if self.unreadable:
            lines.append(f"{len(self.unreadable)} images cannot be read")
        if self.conflicts:
            lines.append(f"{len(self.conflicts)} label conflicts")
        return lines


def audit_manifest(
    manifest: Manifest,
    config: DataConfig,
    *,
    threads: int | None = None,
    reading: Callable[[int, int], None] | None = None,
    comparing: Callable[[int, int], None] | None = None,
) -> Audit:
    """Read every image once, compare all pairs, and make every split.

    Memory: about 15 KiB an image.

    Args:
        config: seed and shares of the splits; all protocols are tried.
        threads: that decode; default: one per core.
        reading: called with (images read, images in all).
        comparing: called with (images compared with all others, images in all).

    """
    splits: dict[str, Split] = {}
    unavailable: dict[str, str] = {}
    for name in PROTOCOLS:
        try:
            splits[name] = make_split(
                manifest, replace(config, dataset=manifest.dataset, protocol=name)
            )
        except DataError as error:  # a finding like the others
            unavailable[name] = error.message

    records = manifest.records
    grey = np.zeros((len(records), SIDE, SIDE), np.uint8)
    sizes: dict[str, tuple[int, int]] = {}
    problems: dict[str, list[str]] = {}
    unreadable: list[Unreadable] = []
    workers = threads or available_cpus()
    scans = map_threads(lambda r: _scan(manifest.root / r.path, r), records, threads=workers)
    for i, (record, found) in enumerate(zip(records, scans, strict=True)):
        if isinstance(found, Unreadable):
            unreadable.append(found)
        else:
            grey[i] = found.grey
            sizes[record.image_id] = found.size
            problems[record.image_id] = found.problems
        if reading:
            reading(i + 1, len(records))
    for image_id, text in _odd_sizes(sizes):
        problems[image_id].append(text)

    identical = _groups((r.digest, r.image_id) for r in records)
    near = _near_pairs(records, grey, comparing)
    class_lesions = _class_lesions(manifest)
    return Audit(
        manifest=manifest,
        sizes=sizes,
        lesions=len({r.lesion_id for r in records} - {""}),
        without_lesion=sum(not r.lesion_id for r in records),
        class_lesions=class_lesions,
        few=tuple(code for code, n in class_lesions.items() if n < len(PARTS)),
        protocols={n: _protocol(manifest, s, identical, near) for n, s in splits.items()},
        unavailable=unavailable,
        identical=identical,
        near=near,
        conflicts=_conflicts(manifest, identical, near),
        odd=tuple(OddImage(image_id=i, problems=tuple(p)) for i, p in problems.items() if p),
        unreadable=tuple(unreadable),
        rows_without_image=_rows_without_image(manifest),
        strangers=_strangers(manifest),
    )


# --- one image -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Scan:
    grey: npt.NDArray[np.uint8]
    size: tuple[int, int]
    problems: list[str]


def _scan(path: Path, record: Record) -> _Scan | Unreadable:
    """Read one file once: its thumbnail, its size, and what is unusual about it alone."""
    try:
        content = path.read_bytes()
        square = load_image(content, SIDE, name=str(path))
        kind, mode, size, orientation = read_header(content, name=str(path))
    except FileNotFoundError:
        return Unreadable(
            image_id=record.image_id, path=record.path, error="no such file", missing=True
        )
    except (ImageError, OSError) as error:
        text = error.message if isinstance(error, ImageError) else error.strerror or str(error)
        return Unreadable(image_id=record.image_id, path=record.path, error=text, missing=False)
    problems = []
    if content_digest(content) != record.digest:
        problems.append("changed since it was recorded")
    if _SUFFIXES.get(path.suffix.lower(), kind) != kind:
        problems.append(f"{kind} under the name {path.suffix}")
    if mode != "RGB":
        problems.append(f"mode {mode}, not RGB")
    if orientation not in (0, 1):
        problems.append(f"EXIF orientation {orientation}")
    if kind == "JPEG":
        checked = check_jpeg(content)
        problems += filter(None, (checked.fault, checked.note))
    values = square.astype(np.float32)
    mean, spread = float(values.mean()), float(values.std((0, 1)).max())
    if mean < 12:
        problems.append("black or nearly so")
    elif mean > 245:
        problems.append("white or nearly so")
    elif spread < 3:
        problems.append("one colour or nearly so")
    weighted = values @ np.array([0.299, 0.587, 0.114], np.float32)
    return _Scan(grey=weighted.round().astype(np.uint8), size=size, problems=problems)


def _odd_sizes(sizes: dict[str, tuple[int, int]]) -> Iterator[tuple[str, str]]:
    """Images much smaller than most, or of a rare aspect ratio (under 5% within 15% of it)."""
    if not sizes:
        return
    width_height = np.array(list(sizes.values()), np.float64)
    short = width_height.min(1)
    aspect = width_height.max(1) / short
    typical = float(np.median(short))
    ordered = np.sort(aspect)
    alike = np.searchsorted(ordered, aspect * 1.15, "right") - np.searchsorted(
        ordered, aspect / 1.15, "left"
    )
    for n, (image_id, (width, height)) in enumerate(sizes.items()):
        if short[n] < typical / 3:
            yield image_id, f"small: {width} x {height}"
        if alike[n] < 0.05 * len(sizes):
            yield image_id, f"unusual aspect ratio: {width} x {height}"


# --- near-duplicates -------------------------------------------------------------------------


def describe(grey_NSS: npt.NDArray[np.uint8]) -> tuple[Floats, npt.NDArray[np.float16]]:
    """What pairs are compared by: see the module's docstring.

    Args:
        grey_NSS: thumbnails of `SIDE` x `SIDE` pixels.

    Returns:
        DCT coefficients (N, LOW, LOW) and detail (N, SIDE, SIDE), each image's at unit length; all
        zero for a picture without structure, which is then like no other.
    """
    count = len(grey_NSS)
    coefficients = np.zeros((count, LOW, LOW), np.float32)
    detail = np.zeros((count, SIDE, SIDE), np.float16)
    place = np.arange(SIDE)
    basis = np.cos(np.pi * np.outer(np.arange(LOW), 2 * place + 1) / (2 * SIDE)).astype(np.float32)
    for start in range(0, count, 256):
        block = grey_NSS[start : start + 256].astype(np.float32)
        fine = _local(block, 2, 4)
        plain = np.sqrt((fine**2).mean((1, 2))) < PLAIN
        coarse = basis @ _local(block, 4, 6) @ basis.T
        coefficients[start : start + 256] = _unit(coarse, plain)
        detail[start : start + 256] = _unit(fine, plain)
    return coefficients, detail


def candidate_pairs(
    coefficients_NLL: Floats,
    *,
    threshold: float = CANDIDATE,
    block: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Pairs i < j whose coefficients have a product of at least `threshold` in any orientation.

    Each yield holds what one block of rows gives: i, j, and the orientation of j as an index into
    `TURNS`; a pair stands once for each orientation that reaches the threshold. Memory: `block` x N
    floats.
    """
    count = len(coefficients_NLL)
    flat = coefficients_NLL.reshape(count, -1)
    if progress:
        progress(0, count)
    for start in range(0, count, block):
        rows = coefficients_NLL[start : start + block]
        found: list[tuple[Ints, Ints, Ints]] = []
        for turn, how in enumerate(TURNS):
            # Turning the rows by the inverse is the same as turning every column.
            turned = _turn_coefficients(rows, _inverse(how)).reshape(len(rows), -1)
            i, j = np.nonzero(turned @ flat[start:].T >= threshold)
            upper = j > i
            i, j = i[upper] + start, j[upper] + start
            found.append((i, j, np.full(len(i), turn, np.int64)))
        yield typing.cast(
            tuple[Ints, Ints, Ints],
            tuple(np.concatenate(column) for column in zip(*found, strict=True)),
        )
        if progress:
            progress(min(start + block, count), count)


def best_shift(first_NSS: npt.NDArray[Any], second_NSS: npt.NDArray[Any]) -> Floats:
    """Highest correlation (N,) of unit-length pictures over shifts of up to `SHIFT` pixels."""
    side = first_NSS.shape[-1]
    spectra = [np.fft.rfft2(x.astype(np.float32)) for x in (first_NSS, second_NSS)]
    product = np.fft.irfft2(spectra[0] * spectra[1].conj(), s=(side, side))
    near_zero = np.arange(-SHIFT, SHIFT + 1)
    best: Floats = product[:, near_zero[:, None], near_zero].max((1, 2)).astype(np.float32)
    return best


def _near_pairs(
    records: Sequence[Record],
    grey: npt.NDArray[np.uint8],
    progress: Callable[[int, int], None] | None,
) -> tuple[NearPair, ...]:
    """Confirmed pairs, most alike first; of byte-identical files only the first is compared."""
    first_of: dict[str, int] = {}
    for n, record in enumerate(records):
        first_of.setdefault(record.digest, n)
    kept = np.array(sorted(first_of.values()), np.int64)
    coefficients, detail = describe(grey[kept])
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for i, j, turn in candidate_pairs(coefficients, progress=progress):
        for number, how in enumerate(TURNS):
            chosen = np.nonzero(turn == number)[0]
            for start in range(0, len(chosen), 1024):
                part = chosen[start : start + 1024]
                turned = turn_pixels(detail[j[part]], how)
                likeness = best_shift(detail[i[part]], turned)
                for a, b, r in zip(i[part], j[part], likeness, strict=True):
                    key = (int(kept[a]), int(kept[b]))
                    if r >= NEAR and float(r) > best.get(key, (0.0, 0))[0]:
                        best[key] = (float(r), number)
    names = list(TURNS.values())
    pairs = []
    for (a, b), (r, number) in best.items():
        one, two = records[a], records[b]
        pairs.append(
            NearPair(
                first=one.image_id,
                second=two.image_id,
                correlation=min(r, 1.0),
                turn=names[number],
                same_lesion=one.shares_lesion(two),
                same_label=one.label == two.label,
            )
        )
    return tuple(sorted(pairs, key=lambda p: (-p.correlation, p.first, p.second)))


def turn_pixels(images_NSS: npt.NDArray[Any], how: tuple[bool, bool, bool]) -> npt.NDArray[Any]:
    """Pictures turned by a key of `TURNS`."""
    transpose, rows, columns = how
    if transpose:
        images_NSS = images_NSS.swapaxes(1, 2)
    return images_NSS[:, :: -1 if rows else 1, :: -1 if columns else 1]


def _turn_coefficients(coefficients_NLL: Floats, how: tuple[bool, bool, bool]) -> Floats:
    """DCT coefficients of the turned pictures: a flip negates every odd frequency."""
    transpose, rows, columns = how
    if transpose:
        coefficients_NLL = coefficients_NLL.swapaxes(1, 2)
    odd = np.where(np.arange(coefficients_NLL.shape[-1]) % 2, -1, 1).astype(np.float32)
    if rows:
        coefficients_NLL = coefficients_NLL * odd[:, None]
    return coefficients_NLL * odd if columns else coefficients_NLL


def _inverse(how: tuple[bool, bool, bool]) -> tuple[bool, bool, bool]:
    transpose, rows, columns = how
    return (transpose, columns, rows) if transpose else how


def _local(grey_NSS: Floats, inner: float, outer: float) -> Floats:
    """Minus the blur, over the local spread, faded out between 0.7 and 1 of the half side."""
    residue: Floats = grey_NSS - _blur(grey_NSS, inner)
    spread: Floats = np.sqrt(np.maximum(_blur(residue * residue, outer), 0))
    # Two grey levels: about the noise of JPEG, which must not be blown up where nothing else is.
    residue /= spread + 2
    centre = np.arange(SIDE) - (SIDE - 1) / 2
    radius = np.hypot(centre[:, None], centre) / (SIDE / 2)
    residue *= np.clip((1 - radius) / 0.3, 0, 1).astype(np.float32)
    residue -= residue.mean((1, 2), keepdims=True)
    return residue


def _blur(images_NSS: Floats, sigma: float) -> Floats:
    """Gaussian blur with mirrored edges."""
    reach = round(3 * sigma)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    matrix = np.zeros((SIDE, SIDE))
    for row in range(SIDE):
        at = np.abs(row + offsets + 0.5)  # mirrored at both ends, the edge pixel once more
        at = np.where(at > SIDE, 2 * SIDE - at, at) - 0.5
        np.add.at(matrix[row], at.round().astype(int), weights / weights.sum())
    kernel: Floats = matrix.astype(np.float32)
    blurred: Floats = np.matmul(np.matmul(kernel, images_NSS), kernel.T)
    return blurred


def _unit(values_NXX: npt.NDArray[Any], plain_N: npt.NDArray[np.bool_]) -> Floats:
    """Each picture at unit length; zero where there is no structure."""
    length = np.sqrt((values_NXX**2).sum((1, 2), keepdims=True))
    empty = plain_N[:, None, None] | (length == 0)
    scaled: Floats = (np.where(empty, 0, values_NXX) / np.where(empty, 1, length)).astype(
        np.float32
    )
    return scaled


# --- records and splits ----------------------------------------------------------------------


def _groups(pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, ...], ...]:
    """Values that share a key, where there are at least two."""
    grouped = defaultdict(list)
    for key, value in pairs:
        grouped[key].append(value)
    return tuple(tuple(group) for group in grouped.values() if len(group) > 1)


def _class_lesions(manifest: Manifest) -> dict[str, int]:
    lesions: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for r in manifest.records:
        # Told apart, in case a lesion is called like another's image.
        lesions[r.label].add(("lesion", r.lesion_id) if r.lesion_id else ("image", r.image_id))
    return {code: len(lesions[code]) for code in manifest.taxonomy.codes}


def _protocol(
    manifest: Manifest,
    split: Split,
    identical: tuple[tuple[str, ...], ...],
    near: tuple[NearPair, ...],
) -> ProtocolAudit:
    lesion = {r.image_id: r.lesion_id for r in manifest.records}
    part_of = {i: part for part in PARTS for i in split.part(part)}
    parts_of: dict[str, set[str]] = defaultdict(set)
    for image_id, part in part_of.items():
        if lesion[image_id]:
            parts_of[lesion[image_id]].add(part)

    def across(images: Iterable[str]) -> bool:
        return len({part_of[i] for i in images if i in part_of}) > 1

    def shared(part: str, *others: str) -> Shared:
        ids = split.part(part)
        known = sum(not parts_of[lesion[i]].isdisjoint(others) for i in ids if lesion[i])
        return Shared(images=known, of=len(ids))

    counts = part_counts(split, manifest)
    present = [code for code, n in manifest.class_counts().items() if n]
    return ProtocolAudit(
        split=split,
        counts=counts,
        empty={p: tuple(c for c in present if not counts[p][c]) for p in PARTS},
        lesions_across=tuple(sorted(k for k, parts in parts_of.items() if len(parts) > 1)),
        test_in_train=shared("test", "train"),
        test_in_rest=shared("test", "train", "val"),
        val_in_train=shared("val", "train"),
        identical_across=tuple(group for group in identical if across(group)),
        near_across=tuple(n for n, pair in enumerate(near) if across((pair.first, pair.second))),
    )


def _conflicts(
    manifest: Manifest, identical: tuple[tuple[str, ...], ...], near: tuple[NearPair, ...]
) -> tuple[Conflict, ...]:
    label = {r.image_id: r.label for r in manifest.records}
    lesion = {r.image_id: r.lesion_id for r in manifest.records}
    one_lesion = _groups((r.lesion_id, r.image_id) for r in manifest.records if r.lesion_id)
    suspects = [
        *(("identical", "", group) for group in identical),
        *(("near", "", (pair.first, pair.second)) for pair in near),
        *(("lesion", lesion[group[0]], group) for group in one_lesion),
    ]
    return tuple(
        Conflict(kind=kind, lesion_id=key, images=ids, labels=tuple(label[i] for i in ids))
        for kind, key, ids in suspects
        if len({label[i] for i in ids}) > 1
    )


# --- the folder ------------------------------------------------------------------------------


def _recorded(manifest: Manifest) -> set[str]:
    """Paths of the records and of their masks, as the walk below names them."""
    paths = [r.path for r in manifest.records]
    paths += [r.mask for r in manifest.records if r.mask]
    return {os.path.normpath(manifest.root / p) for p in paths}


def _strangers(manifest: Manifest) -> tuple[str, ...]:
    """Image files below the root that are no records, masks or superpixels; links not followed."""
    recorded = _recorded(manifest)
    found = []
    for path in _walk(manifest.root):
        relative = path.relative_to(manifest.root)
        if path.suffix.lower() not in _SUFFIXES or os.path.normpath(path) in recorded:
            continue
        name = path.name.lower()
        folders = "/".join(relative.parts[:-1]).lower()
        mask = name.endswith(".png") and ("segmentation" in folders or "mask" in folders)
        if not mask and not name.endswith("_superpixels.png"):
            found.append(relative.as_posix())
    return tuple(sorted(found))


def _rows_without_image(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Cells of the data set's own CSV files below the root, in a column of images, that name
    neither a record nor a file.

    A table counts as its own where it names half of the records, or half of its cells name records:
    any other that lies there speaks of other images.
    """
    root = manifest.root
    records = _names((r.image_id, root / r.path) for r in manifest.records)
    files, tables = [], []
    for path in _walk(root):
        if path.suffix.lower() in _SUFFIXES:
            files.append((path.name, path))
        elif path.suffix.lower() == ".csv":
            tables.append(path)
    there = _names(files)
    result = {}
    for table in sorted(tables):
        cells = _image_cells(table)
        paths = {c: [os.path.normpath(f / c) for f in (table.parent, root)] for c in cells}
        forms = {c: [composed(name) for name in (*paths[c], c)] for c in cells}
        known = {c: [records[f] for f in forms[c] if f in records] for c in cells}
        named = {c: ids[0] for c, ids in known.items() if ids}
        if 2 * len(set(named.values())) < len(manifest.records) and 2 * len(named) < len(cells):
            continue
        missing = tuple(
            c
            for c in cells
            if c not in named
            and not any(f in there for f in forms[c])
            # Elsewhere, or below a link to a folder.
            and not any(is_file(path) for path in paths[c])
        )
        if missing:
            result[table.relative_to(root).as_posix()] = missing
    return result


def _names(images: Iterable[tuple[str, Path]]) -> dict[str, str]:
    """What tables may call images, (id, file) each, and the id meant: by the whole path, the id
    or the file's name; the suffix may be left out.
    """
    whole = [(image_id, Path(os.path.normpath(file))) for image_id, file in images]
    found: dict[str, str] = {}
    # Paths first: of two files with the same name, each is told by its own.
    for image_id, file in whole:
        for form in (file, file.with_suffix("")):
            found.setdefault(composed(str(form)), image_id)
    for image_id, file in whole:
        for name in (image_id, file.name, file.stem):
            found.setdefault(composed(name), image_id)
    return found


def _image_cells(table: Path) -> list[str]:
    """What a CSV has in its column of images, each once; empty where there is none."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            separator, _ = begin_table(file)
            reader = csv.DictReader(file, delimiter=separator)
            column = next((c for c in _ID_COLUMNS if c in (reader.fieldnames or ())), None)
            cells = [(row[column] or "").strip() for row in reader] if column else []
    except (OSError, UnicodeDecodeError, csv.Error):
        return []  # some other table; the metadata proper was read when it was recorded
    return [cell for cell in dict.fromkeys(cells) if cell]


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


def odd_kinds(audit: Audit) -> dict[str, int]:
    """How many images have each kind of oddity, commonest first; sizes and modes put together."""
    counts = Counter(p.split(":")[0] for image in audit.odd for p in image.problems)
    return dict(counts.most_common())


def lesion_table(audit: Audit, folder: Path) -> str:
    """A CSV that `custom.read_custom` reads, lesion ids joined over the pairs found.

    Images that cannot be read are left out.

    Args:
        audit: with `alike`.
        folder: that the table is to lie in, links resolved; paths are relative to it where that
            can be.
    """
    assert audit.alike is not None
    manifest = audit.manifest
    lesion = audit.alike.lesions(manifest.records)
    records = [r for r in manifest.records if r.image_id in audit.sizes]
    columns: dict[str, Callable[[Record], str]] = {
        "image": lambda r: _relative(manifest.root / r.path, folder),
        "label": lambda r: r.label,
        "lesion_id": lambda r: lesion[r.image_id],
        "patient_id": lambda r: r.patient_id,
        "split": lambda r: r.part,
        "mask": lambda r: _relative(manifest.root / r.mask, folder) if r.mask else "",
        "age": lambda r: r.age,
        "sex": lambda r: r.sex,
        "site": lambda r: r.site,
    }
    kept = {
        name: value
        for name, value in columns.items()
        if name in ("image", "label", "lesion_id") or any(map(value, records))
    }
    text = io.StringIO()
    # All quoted: a file's name may hold a line's end of any kind.
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(kept)
    writer.writerows([value(r) for value in kept.values()] for r in records)
    return text.getvalue()


def may_be_replaced(path: Path) -> bool:
    """Whether nothing is there, or a file that begins as `lesion_table` does.

    A device or a pipe is no place for paths that are relative to the table's folder.
    """
    if not is_file(path):
        return not is_there(path)
    begin = ",".join(f'"{name}"' for name in ("image", "label", "lesion_id")).encode()
    try:
        with path.open("rb") as file:
            return file.read(len(begin)) == begin
    except OSError:
        return False


def joined_troubles(audit: Audit) -> list[str]:
    """What is to be said of the lesions that `lesion_table` joins, one line each."""
    assert audit.alike is not None
    lesion = audit.alike.lesions(audit.manifest.records)
    labels: dict[str, set[str]] = defaultdict(set)
    lesions: dict[str, set[str]] = defaultdict(set)
    before: dict[str, set[str]] = defaultdict(set)
    for r in audit.manifest.records:
        if r.image_id in audit.sizes:
            before[r.label].add(r.lesion_id or f"image {r.image_id}")
            if lesion[r.image_id]:
                labels[lesion[r.image_id]].add(r.label)
            lesions[r.label].add(lesion[r.image_id] or f"image {r.image_id}")
    lines = []
    if left := len(audit.manifest.records) - len(audit.sizes):
        lines.append(f"{left} images that cannot be read are left out of the table")
    if mixed := sum(len(v) > 1 for v in labels.values()):
        lines.append(f"{mixed} lesions in it have images with different labels")
    few = [c for c, v in lesions.items() if len(v) < len(PARTS) and len(v) < len(before[c])]
    if few:
        lines.append(
            f"too few lesions for a split are left of {', '.join(sorted(few))}: look at the pairs, "
            "and take joined ids back where they are of two lesions"
        )
    return lines


def _relative(path: Path, folder: Path) -> str:
    """From a folder, with forward slashes; whole where they lie on different drives."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path.as_posix()
