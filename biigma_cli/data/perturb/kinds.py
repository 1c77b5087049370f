"""What is done to a picture, and how strongly.

Pictures are perturbed at the network's own input: uint8 `(side, side, 3)` as the one preprocessing
makes them, from the decoded cache. All sizes are relative to the side, so hair is as thick against
the lesion at any side, and every model of that side sees the very same pixels; at the archive's
own sizes an artefact would depend on the size at which somebody stored the picture. The price: JPEG
and blur are those of the small picture, not those of a camera.

Every random choice comes from a stream keyed by seed, image id and perturbation, so a picture is
the same in whatever order, company or part it is asked for. The strengths of one perturbation share
their stream: a stronger one adds to the weaker.
"""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageFilter

from biigma_cli.data.perturb.fill import (
    RGB,
    Field,
    level_of,
    on_background,
    skin_mean,
    without_lesion,
)
from biigma_cli.data.perturb.masks import Mask
from biigma_cli.data.preprocess import Pixels
from biigma_cli.data.synthetic.artefacts import PAINTERS

STRENGTHS = ("mild", "clear", "strong")

# Opacity of the painting and how often the painter is called, by strength; calls never get fewer.
_PAINTED = {
    "hair": ((0.5, 1), (1.0, 1), (1.0, 3)),
    "ruler": ((0.45, 1), (1.0, 1), (1.0, 3)),
    "ink": ((0.45, 1), (1.0, 1), (1.0, 3)),
    "gel": ((1.0, 1), (1.0, 2), (1.0, 4)),
    "corners": ((0.4, 1), (1.0, 1), (1.0, 4)),
}
# Largest shift of a channel, as a logarithm.
_CAST = (0.05, 0.1, 0.2)
_QUALITY = (30, 15, 8)
# Deviation of the Gaussian, share of the side.
_BLUR = (0.004, 0.009, 0.018)


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """One way to change a picture.

    Attributes:
        name: key in results.
        title: for people.
        group: key of `GROUPS`.
        strengths: how many; 1 where it is done or not done.
        donor: whether it takes another picture's background: `same` class, `other` class, or "".
    """

    name: str
    title: str
    group: str
    strengths: int = 3
    donor: str = ""

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the strengths; one empty name where there is but one."""
        return STRENGTHS if self.strengths == 3 else ("",)


GROUPS = {
    "background": "another's background",
    "painted": "painted beside it",
    "whole": "whole picture",
    "controls": "controls",
}
#: What of the picture is changed, and whether answers should be, by key of `GROUPS`.
GROUP_NOTES = {
    "background": "The lesion stays as it is; around it lies the background of another lesion's "
    "picture. Answers should not change.",
    "painted": "Painted beside the lesion, which stays as it is; only hair lies over the lesion as "
    "well. Answers should not change.",
    "whole": "The whole picture changes, the lesion with it. Answers should not change.",
    "controls": "Flat background: the lesion stays as it is, on the mean colour of its own skin. "
    "Lesion removed: skin lies where the lesion was, and here answers should change.",
}

PERTURBATIONS: dict[str, Perturbation] = {
    p.name: p
    for p in (
        Perturbation(
            name="background-same", title="donor, same class", group="background",
            strengths=1, donor="same",
        ),
        Perturbation(
            name="background-other", title="donor, other class", group="background",
            strengths=1, donor="other",
        ),
        *(Perturbation(name=n, title=t, group="painted") for n, t in (
            ("hair", "hair"), ("ruler", "ruler"), ("ink", "ink"), ("gel", "gel bubbles"),
            ("corners", "dark corners"),
        )),
        *(Perturbation(name=n, title=t, group="whole") for n, t in (
            ("colour", "colour cast"), ("jpeg", "JPEG"), ("blur", "blur"),
        )),
        Perturbation(
            name="skin-mean", title="flat background", group="controls", strengths=1
        ),
        Perturbation(
            name="lesion-removed", title="lesion removed", group="controls", strengths=1
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A picture with its lesion.

    Attributes:
        image_id: keys the random streams.
        pixels: uint8 `(side, side, 3)` RGB.
        lesion: bool `(side, side)`, True inside.
    """

    image_id: str
    pixels: Pixels
    lesion: Mask

    @cached_property
    def picture(self) -> RGB:
        """The pixels as float32."""
        return self.pixels.astype(np.float32)

    @cached_property
    def level(self) -> Field:
        """Signed distance to the outline, in half sides, positive inside."""
        return level_of(self.lesion)


def stream(seed: int, image_id: str, purpose: str) -> np.random.Generator:
    """A generator that depends on its three keys alone."""
    digest = hashlib.blake2b(f"{seed}\t{image_id}\t{purpose}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest)))


def perturb(
    name: str, scene: Scene, *, seed: int = 0, donor: Scene | None = None
) -> tuple[Pixels, ...]:
    """Changed copies of a picture, one for each strength, the mildest first.

    Args:
        name: key of `PERTURBATIONS`.
        donor: whose background is taken, for those that take one; of the same side.

    Returns:
        uint8 `(side, side, 3)` each. Of backgrounds, and of what is painted but for hair, the
        lesion's pixels are those of the scene.
    """
    kind = PERTURBATIONS[name]
    if kind.donor:
        if donor is None:
            raise ValueError(f"{name} takes a donor")
        filled = without_lesion(donor.picture, donor.lesion)
        return (to_levels(on_background(scene.picture, scene.lesion, filled)),)
    if name == "skin-mean":
        plain = np.empty_like(scene.picture)
        plain[:] = skin_mean(scene.picture, scene.lesion)
        return (to_levels(on_background(scene.picture, scene.lesion, plain)),)
    if name == "lesion-removed":
        return (to_levels(without_lesion(scene.picture, scene.lesion)),)
    if name == "jpeg":
        return tuple(recompressed(scene.pixels, quality) for quality in _QUALITY)
    if name == "blur":
        return tuple(_blurred(scene.pixels, size * len(scene.pixels)) for size in _BLUR)
    rng = stream(seed, scene.image_id, name)
    if name == "colour":
        hue = float(rng.uniform(0, 2 * math.pi))
        return tuple(_cast(scene.picture, hue, size) for size in _CAST)
    clean = np.ascontiguousarray(scene.picture.transpose(2, 0, 1)) * np.float32(1 / 255)
    painted = clean.copy()
    calls, steps = 0, []
    for opacity, times in _PAINTED[name]:
        while calls < times:
            PAINTERS[name](rng, painted, scene.level)
            calls += 1
        mixed: RGB = (clean + np.float32(opacity) * (painted - clean)).astype(np.float32)
        steps.append(to_levels(mixed.transpose(1, 2, 0) * np.float32(255)))
    return tuple(steps)


def _cast(picture: RGB, hue: float, size: float) -> Pixels:
    """Light of another colour: gains whose product is 1, the farthest from 1 by `exp(size)`."""
    gains = np.cos(hue + np.array([0, 2, 4]) * math.pi / 3)
    gains = np.exp(size * gains / np.abs(gains).max())
    return to_levels(np.asarray(picture * gains, dtype=np.float32))


def recompressed(pixels: Pixels, quality: int) -> Pixels:
    """As a JPEG of that quality gives it back."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))


def _blurred(pixels: Pixels, deviation: float) -> Pixels:
    return np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(deviation)))


def to_levels(picture: RGB) -> Pixels:
    """Rounded to uint8, cut off at 0 and 255."""
    rounded: Pixels = np.clip(picture + np.float32(0.5), 0, 255).astype(np.uint8)
    return rounded
