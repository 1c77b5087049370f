"""What is to be drawn: classes, lesions, parts and background artefacts, before any pixel.

Every random choice comes from a stream of its own, keyed by the seed, an index and a purpose (see
`stream`). Changing the dial therefore changes the artefacts' names and nothing else.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from biigma_cli.errors import UsageError
from biigma_cli.taxonomy import ISIC18

TestBackground = Literal["independent", "reversed"]
Part = Literal["train", "val", "test"]

PARTS: tuple[Part, ...] = get_args(Part)

# Share of the images per class, in logit order: NV leads as in life, but every class can be learnt.
SHARES = {
    "MEL": 0.17, "NV": 0.30, "BCC": 0.13, "AKIEC": 0.10, "BKL": 0.16, "DF": 0.07, "VASC": 0.07,
}  # fmt: skip

# The artefact each class meets more often as the dial goes up.
OWN_ARTEFACT = {
    "MEL": "ruler", "NV": "hair", "BCC": "ink", "AKIEC": "gel", "BKL": "corners", "DF": "sticker",
    "VASC": "flash",
}  # fmt: skip
ARTEFACTS = tuple(OWN_ARTEFACT[code] for code in ISIC18.codes)

# A derangement: each class meets the artefact of the class three places on.
REVERSED_ARTEFACT = {
    code: ARTEFACTS[(i + 3) % len(ARTEFACTS)] for i, code in enumerate(ISIC18.codes)
}

# Bounds in degrees of the six usual groups of the individual typology angle, very light to dark.
ITA_GROUPS = ((55, 68), (41, 55), (28, 41), (10, 28), (-30, 10), (-58, -30))

SIDES = (32, 1024)
MIN_COUNT = 60
MAX_COUNT = 1_000_000

# How many lesions have two and three images.
_TWO, _THREE = 0.10, 0.05

# Purposes of the random streams.
_GROUPS, _PARTS, _ORDER, _ITA, _ARTEFACT, LOOK, PHOTO, PAINT_ARTEFACT = range(8)


@dataclass(frozen=True, kw_only=True)
class SyntheticOptions:
    """Everything that says what a synthetic data set holds.

    Attributes:
        count: images, over all parts.
        seed: equal seeds and options give equal images.
        side: height and width in pixels.
        background_bias: the dial r in [0, 1]. In train and val an image carries its class's own
            artefact with probability r; otherwise the artefact is drawn uniformly from all seven,
            that one included. So class and artefact agree with probability r + (1 - r) / 7: by
            chance alone at r = 0, always at r = 1.
        test_background: `independent`: in test the artefact is drawn uniformly whatever r is;
            `reversed`: with probability r it is that of another class, by `REVERSED_ARTEFACT`,
            otherwise uniform, so class and artefact agree with probability (1 - r) / 7.
        test_fraction: share of each class's images in test.
        val_fraction: share of each class's images in val.

    Raises:
        UsageError: a value is out of its range.
    """

    count: int = 2000
    seed: int = 0
    side: int = 224
    background_bias: float = 0.0
    test_background: TestBackground = "independent"
    test_fraction: float = 0.25
    val_fraction: float = 0.1

    def __post_init__(self) -> None:
        for name, low, high in (
            ("count", MIN_COUNT, MAX_COUNT),
            ("seed", 0, 2**63 - 1),
            ("side", *SIDES),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise UsageError(
                    f"synthetic {name} is {value!r}", fix=f"give a whole number, {low} to {high}"
                )
        _check_share("background_bias", self.background_bias, 0.0, 1.0)
        _check_share("test_fraction", self.test_fraction, 0.05, 0.6)
        _check_share("val_fraction", self.val_fraction, 0.02, 0.3)
        if self.test_background not in get_args(TestBackground):
            raise UsageError(
                f"synthetic test_background is {self.test_background!r}",
                fix=f"choose one of: {', '.join(get_args(TestBackground))}",
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def _check_share(name: str, value: object, low: float, high: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and low <= value <= high):  # type: ignore[arg-type,operator]
        raise UsageError(
            f"synthetic {name} is {value!r}", fix=f"give a number from {low:g} to {high:g}"
        )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image to be drawn; it holds all that `render` needs but the side.

    Attributes:
        image_id: such as `SYN_0000001`.
        lesion_id: such as `SYL_0000001`; images of one lesion share it.
        label: class code.
        part: train, val or test.
        ita: individual typology angle of the skin in degrees, about -58 (dark) to 68 (very light).
        artefact: one of `ARTEFACTS`.
        seed: the data set's.
        lesion: number of the lesion; with `seed` it keys the lesion's look.
        photo: number of the image; with `seed` it keys pose, skin, light and the artefact's shape.
    """

    image_id: str
    lesion_id: str
    label: str
    part: Part
    ita: float
    artefact: str
    seed: int
    lesion: int
    photo: int


def stream(seed: int, index: int, purpose: int) -> np.random.Generator:
    """A generator that depends on its three keys alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, index, purpose))))


def plan(options: SyntheticOptions) -> tuple[Sample, ...]:
    """All samples in order of image id: pure, and the same for the same options.

    About 15% of the lesions have two or three images (other pose, light, skin and artefact), never
    in two parts. Every class stands in every part.
    """
    seed = options.seed
    lesions: list[tuple[str, Part, int]] = []  # class, part, images
    for i, (code, images) in enumerate(_class_counts(options.count).items()):
        sizes = _lesion_sizes(images, stream(seed, i, _GROUPS))
        parts = _deal(sizes, options, stream(seed, i, _PARTS))
        lesions += [(code, part, size) for part, size in zip(parts, sizes, strict=True)]
    samples: list[Sample] = []
    order = stream(seed, 0, _ORDER).permutation(len(lesions))
    for number, position in enumerate(order, start=1):
        code, part, size = lesions[position]
        rng = stream(seed, number, _ITA)
        low, high = ITA_GROUPS[int(rng.integers(len(ITA_GROUPS)))]
        ita = round(float(rng.uniform(low, high)), 1)
        for _ in range(size):
            photo = len(samples) + 1
            samples.append(
                Sample(
                    image_id=f"SYN_{photo:07}",
                    lesion_id=f"SYL_{number:07}",
                    label=code,
                    part=part,
                    ita=ita,
                    artefact=_artefact(code, part, photo, options),
                    seed=seed,
                    lesion=number,
                    photo=photo,
                )
            )
    return tuple(samples)


def _artefact(code: str, part: Part, photo: int, options: SyntheticOptions) -> str:
    rng = stream(options.seed, photo, _ARTEFACT)
    # Both numbers are drawn whatever r is, so that a turn of the dial moves as few as possible.
    biased = float(rng.random()) < options.background_bias
    other = ARTEFACTS[int(rng.integers(len(ARTEFACTS)))]
    if part != "test":
        return OWN_ARTEFACT[code] if biased else other
    if options.test_background == "reversed" and biased:
        return REVERSED_ARTEFACT[code]
    return other


def _class_counts(count: int) -> dict[str, int]:
    """Images per class by largest remainder."""
    exact = {code: SHARES[code] * count for code in ISIC18.codes}
    counts = {code: int(value) for code, value in exact.items()}
    by_rest = sorted(ISIC18.codes, key=lambda code: counts[code] - exact[code])
    for code in by_rest[: count - sum(counts.values())]:
        counts[code] += 1
    return counts


def _lesion_sizes(images: int, rng: np.random.Generator) -> list[int]:
    """Images per lesion of one class; at least one lesion for each part."""
    sizes: list[int] = []
    while images:
        draw = float(rng.random())
        size = 3 if draw < _THREE else 2 if draw < _THREE + _TWO else 1
        still_needed = max(0, len(PARTS) - len(sizes) - 1)
        sizes.append(min(size, images - still_needed))
        images -= sizes[-1]
    return sizes


def _deal(sizes: list[int], options: SyntheticOptions, rng: np.random.Generator) -> list[Part]:
    """A part for each lesion of one class: test first, then val, each at least one lesion."""
    parts: list[Part] = ["train"] * len(sizes)
    rest = [int(i) for i in rng.permutation(len(sizes))]
    total = sum(sizes)
    quotas: tuple[tuple[Part, float, int], ...] = (
        ("test", options.test_fraction, 2),
        ("val", options.val_fraction, 1),
    )
    for part, share, reserved in quotas:
        taken = 0
        while len(rest) > reserved and (taken == 0 or taken < round(share * total)):
            lesion = rest.pop()
            parts[lesion] = part
            taken += sizes[lesion]
    return parts


def agreement(samples: tuple[Sample, ...]) -> dict[str, float]:
    """Share of images in each part whose artefact is their class's own."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for sample in samples:
        hits[sample.part].append(OWN_ARTEFACT[sample.label] == sample.artefact)
    return {part: sum(hits[part]) / len(hits[part]) for part in PARTS if hits[part]}
