"""Augmentation of whole batches on the device, each image with its own random numbers.

Drawing and applying are apart. `draw` takes a CPU generator and gives the numbers of a whole batch;
`apply` is a pure function of images and numbers. So a seed means the same on every device, and each
process of a distributed run draws for the global batch and applies its own part:

    draws = draw(STANDARD, global_batch, generator).part(slice(start, stop))
    image = apply(image, draws, STANDARD)

Letters: B images, S their side in pixels, R the lower side an image is brought down to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from biigma_cli.errors import UsageError

# Least and greatest value of each setting.
BOUNDS: dict[str, tuple[float, float]] = {
    "rotate": (0, 180),
    "scale": (1, 4),
    "aspect": (1, 2),
    "shift": (0, 0.5),
    "brightness": (0, 0.9),
    "contrast": (0, 0.9),
    "saturation": (0, 1),
    "cast": (0, 0.5),
    "hue": (0, 180),
    "corners": (0, 1),
    "blur": (0, 20),
    "resolution": (1, 16),
    "sharpen": (0, 4),
    "noise": (0, 100),
    "compression": (0, 99),
}


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How far each transform may go; at its least value a transform costs nothing.

    The defaults are the standard strength. `BOUNDS` has the range of each number.

    Attributes:
        rotate: largest turn either way, in degrees; 180 covers the circle, for dermoscopy has no
            up or down.
        flip: mirror half of the images.
        scale: largest magnification; log-uniform in [1 / scale, scale].
        aspect: largest ratio of width to height; log-uniform in [1 / aspect, aspect].
        shift: largest shift along each axis, as a share of the side.
        brightness: the image's mean is multiplied by 1 +- this.
        contrast: deviations from the mean are multiplied by 1 +- this.
        saturation: deviations from grey are multiplied by 1 +- this.
        cast: each channel is multiplied by 1 +- this: light sources and cameras differ.
        hue: largest turn about the grey axis of RGB, in degrees.
        corners: the round, dark-edged field of a dermoscope: in half sides its radius is sqrt(2),
            which touches the corners, less up to this. Half of the images have none; of the others
            the field's middle, width over height and the softness of its edge differ.
        blur: largest sigma of a Gaussian blur, in pixels of the batch. Half of the images stay
            sharp, the others are uniform in [0, blur]; so it is with the next four.
        resolution: largest factor by which the resolution is brought down and up again.
        sharpen: largest amount of unsharp masking along each axis, as many cameras and programs
            do; by a Gaussian of 1 to 2 pixels.
        noise: largest standard deviation of noise, in levels of 255.
        compression: how far the quality of JPEG falls below 100, by libjpeg's scale.
    """

    rotate: float = 180.0
    flip: bool = True
    scale: float = 1.25
    aspect: float = 1.15
    shift: float = 0.05
    brightness: float = 0.25
    contrast: float = 0.25
    saturation: float = 0.3
    cast: float = 0.08
    hue: float = 0.0
    corners: float = 0.0
    blur: float = 0.0
    resolution: float = 1.0
    sharpen: float = 0.0
    noise: float = 0.0
    compression: float = 0.0

    def __post_init__(self) -> None:
        """Check all settings.

        Raises:
            UsageError: names every setting out of bounds.
        """
        wrong = [
            f"{name} is {getattr(self, name)}, not in [{low}, {high}]"
            for name, (low, high) in BOUNDS.items()
            if not low <= getattr(self, name) <= high
        ]
        if wrong:
            raise UsageError(
                f"augmentation: {'; '.join(wrong)}", fix="set each within the range given"
            )

    @property
    def moves(self) -> bool:
        """Whether the geometry changes."""
        still = not self.rotate and not self.flip and not self.shift
        return not (still and self.scale == 1 and self.aspect == 1)

    @property
    def recolours(self) -> bool:
        """Whether colours change."""
        return any((self.brightness, self.contrast, self.saturation, self.cast, self.hue))

    @property
    def softens(self) -> bool:
        """Whether blur, a lower resolution or sharpening changes detail."""
        return self.blur > 0 or self.resolution > 1 or self.sharpen > 0


STANDARD = Augmentation()
"""Geometry and colour."""

STRONG = Augmentation(
    scale=1.5,
    aspect=1.25,
    shift=0.1,
    brightness=0.3,
    contrast=0.3,
    saturation=0.35,
    cast=0.1,
    hue=4.0,
    corners=0.5,
    blur=1.5,
    resolution=3.0,
    sharpen=1.0,
    noise=10.0,
    compression=75.0,
)
"""Further each way; with dark corners, blur, lower resolutions, sharpening, noise and JPEG, as
other cameras have."""

NONE = Augmentation(
    rotate=0, flip=False, scale=1, aspect=1, shift=0,
    brightness=0, contrast=0, saturation=0, cast=0,
)  # fmt: skip
"""Leaves images alone."""

PRESETS = {"none": NONE, "standard": STANDARD, "strong": STRONG}


class Draws(NamedTuple):
    """Random numbers of a batch, all float32, one row per image.

    Attributes:
        theta_B23: output to input coordinates, both in [-1, 1], as `F.affine_grid` has them.
        colour_B33: matrix applied to each pixel's (R, G, B).
        lift_B3: multiple of the image's mean level that is added to each channel.
        field_B5: of the round field: middle (x, y), radii along x and y, in half sides from the
            image's middle; then the width of its edge, as a share of the radii.
        blur_B: sigma in pixels.
        shrink_B: factor by which the resolution is brought down, at least 1.
        sharpen_B: amount of unsharp masking.
        radius_B: sigma of its Gaussian in pixels.
        noise_B: standard deviation in levels.
        seed_B: of the noise: a whole number under 2^24.
        quality_B: of JPEG, 1 to 100; at 100 there is no compression at all.
    """

    theta_B23: Tensor
    colour_B33: Tensor
    lift_B3: Tensor
    field_B5: Tensor
    blur_B: Tensor
    shrink_B: Tensor
    sharpen_B: Tensor
    radius_B: Tensor
    noise_B: Tensor
    seed_B: Tensor
    quality_B: Tensor

    def part(self, which: slice) -> Draws:
        """The draws of some of the images."""
        return Draws(*(t[which] for t in self))

    def to(self, device: torch.device) -> Draws:
        """On a device, in one transfer."""
        if self.theta_B23.device == device:
            return self
        packed = torch.cat([t.flatten(1) if t.ndim > 1 else t[:, None] for t in self], 1)
        packed = packed.to(device, non_blocking=True)
        columns = torch.split(packed, [t[0].numel() for t in self], 1)
        return Draws(*(c.reshape(t.shape) for c, t in zip(columns, self, strict=True)))


def draw(settings: Augmentation, batch: int, generator: torch.Generator) -> Draws:
    """Numbers for a batch; every transform has its own, whether or not the others are on.

    Args:
        generator: a CPU generator, so that a seed means the same on every device.
    """
    unit = torch.rand(batch, 19, generator=generator)
    signed = 2 * unit - 1
    # Nothing for half of the images, uniform for the others.
    half = signed.relu()
    colour_B33, lift_B3 = colour_matrix(
        brightness=1 + settings.brightness * signed[:, 6],
        contrast=1 + settings.contrast * signed[:, 7],
        saturation=1 + settings.saturation * signed[:, 8],
        hue=settings.hue * signed[:, 9],
        cast_B3=1 + settings.cast * signed[:, 10:13],
    )
    # From a generator of its own, so that the numbers of the first ones stay what they always were.
    late_B2 = torch.rand(
        batch, 2, generator=torch.Generator().manual_seed(int(unit[0, 18] * 2**24))
    )
    return Draws(
        theta_B23=affine_matrix(
            angle=settings.rotate * signed[:, 0],
            mirrored=unit[:, 1] < (0.5 if settings.flip else 0.0),
            scale=(math.log(settings.scale) * signed[:, 2]).exp(),
            aspect=(math.log(settings.aspect) * signed[:, 3]).exp(),
            shift_B2=settings.shift * signed[:, 4:6],
        ),
        colour_B33=colour_B33,
        lift_B3=lift_B3,
        field_B5=_draw_field(settings.corners, batch, generator),
        blur_B=settings.blur * half[:, 13],
        shrink_B=(math.log(settings.resolution) * half[:, 14]).exp(),
        sharpen_B=settings.sharpen * half[:, 17],
        radius_B=1 + late_B2[:, 1],
        noise_B=settings.noise * half[:, 15],
        seed_B=(unit[:, 16] * 2**24).floor(),
        quality_B=100 - settings.compression * (2 * late_B2[:, 0] - 1).relu(),
    )


def _draw_field(corners: float, batch: int, generator: torch.Generator) -> Tensor:
    """`Draws.field_B5`; from numbers of its own, so that the other transforms' stay what they were
    before there was this one. Where it is off there is nothing to draw.
    """
    none_15 = torch.tensor([_NO_FIELD])
    if not corners:
        return none_15.repeat(batch, 1)
    unit = torch.rand(batch, 5, generator=generator)
    signed = 2 * unit - 1
    radius_B = math.sqrt(2) - corners * signed[:, 0].relu()
    # A circle in a picture of 4:3 is an ellipse in the square it is squashed to.
    stretch_B = (math.log(4 / 3) / 2 * signed[:, 1]).exp()
    field_B5 = torch.stack(
        (0.1 * signed[:, 2], 0.1 * signed[:, 3], radius_B / stretch_B, radius_B * stretch_B,
         0.02 + 0.13 * unit[:, 4]), 1,
    )  # fmt: skip
    return torch.where((signed[:, 0] > 0)[:, None], field_B5, none_15)


# Far beyond the corners.
_NO_FIELD = (0.0, 0.0, 9.0, 9.0, 0.1)


def affine_matrix(
    *, angle: Tensor, mirrored: Tensor, scale: Tensor, aspect: Tensor, shift_B2: Tensor
) -> Tensor:
    """Matrices from output to input coordinates, `(B, 2, 3)`.

    Args:
        angle: degrees, `(B,)`; anticlockwise as the output is seen.
        mirrored: `(B,)`, bool: left and right of the output swapped.
        scale: magnification, `(B,)`.
        aspect: width over height of what was a square, `(B,)`.
        shift_B2: of the point that comes to the middle, in sides along x and y.
    """
    turn = angle.deg2rad()
    across = torch.where(mirrored, -1.0, 1.0) / (scale * aspect.sqrt())
    down = aspect.sqrt() / scale
    x = torch.stack((turn.cos() * across, -turn.sin() * down, 2 * shift_B2[:, 0]), 1)
    y = torch.stack((turn.sin() * across, turn.cos() * down, 2 * shift_B2[:, 1]), 1)
    return torch.stack((x, y), 1)


def colour_matrix(
    *, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor, cast_B3: Tensor
) -> tuple[Tensor, Tensor]:
    """Saturation, hue, contrast, brightness and cast, in this order, as one affine map.

    A pixel p of an image of mean level m becomes `matrix @ p + lift * m`. All arguments but `hue`,
    which is in degrees, are factors, `(B,)` and `(B, 3)`.

    Returns:
        matrices `(B, 3, 3)` and lifts `(B, 3)`.
    """
    grey = torch.full((3, 3), 1 / 3)
    # Right-hand rotation about (1, 1, 1): red turns towards green.
    axis = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turn = hue.deg2rad()[:, None, None]
    # Rotation and saturation act on deviations from grey alone, and so go together.
    chroma = saturation[:, None, None] * (turn.cos() * (torch.eye(3) - grey) + turn.sin() * axis)
    matrix_B33 = cast_B3[:, :, None] * contrast[:, None, None] * (grey + chroma)
    return matrix_B33, cast_B3 * (brightness - contrast)[:, None]


@torch.no_grad()
def apply(image_B3SS: Tensor, draws: Draws, settings: Augmentation = STANDARD) -> Tensor:
    """Transform each image by its own row of `draws`; beyond the border, images are mirrored.

    Geometry, then the field, softness, colour, noise, compression: a scene before a camera, and its
    file. Each image is alone:
    a part of a batch gives what the whole gives, to within rounding. The host never waits for the
    device. Mixing is apart, see `mix_images`.

    Args:
        image_B3SS: float images in [0, 255], in any memory format.
        draws: of as many images, on any device; best moved there ahead with `Draws.to`.
        settings: those the draws were made with: transforms that are off there are left out.

    Returns:
        float32 images in [0, 255], `(B, 3, S, S)`, in the memory format of the input; the input
        itself where nothing is to be done.

    Raises:
        ValueError: not as many draws as images.
    """
    b, _, side, _ = image_B3SS.shape
    if len(draws.blur_B) != b:
        raise ValueError(f"{len(draws.blur_B)} draws for {b} images")
    changed = settings.moves or settings.softens or settings.recolours
    if not (changed or settings.corners or settings.noise or settings.compression):
        return image_B3SS.float()
    draws = draws.to(image_B3SS.device)
    # Autocast would round levels to bfloat16, of 8 bits.
    with torch.autocast(image_B3SS.device.type, enabled=False):
        # Planes are twice as fast to sample from as channels last.
        x = image_B3SS.float().contiguous()
        if settings.moves:
            grid = _grid(draws.theta_B23, side)
            x = F.grid_sample(
                x, grid, mode="bilinear", padding_mode="reflection", align_corners=False
            )
        if settings.corners:
            x = x * _field(draws.field_B5, side)[:, None]
        if settings.softens:
            x = _soften(x, draws, settings)
        if settings.recolours:
            lift_B31 = draws.lift_B3[:, :, None] * x.mean((1, 2, 3))[:, None, None]
            x = torch.bmm(draws.colour_B33, x.view(b, 3, side**2)).add_(lift_B31).view_as(x)
        if settings.noise:
            x = torch.addcmul(x, draws.noise_B[:, None, None, None], _noise(draws.seed_B, side))
        x = x.clamp(0, 255)
        if settings.compression:
            x = compress(x, draws.quality_B)
    if image_B3SS.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous(memory_format=torch.channels_last)
    return x


def augment_batch(
    image_B3SS: Tensor, generator: torch.Generator, settings: Augmentation = STANDARD
) -> Tensor:
    """`draw` and `apply` in one, for a batch that no other process shares."""
    return apply(image_B3SS, draw(settings, len(image_B3SS), generator), settings)


def resize_batch(image_B3SS: Tensor, side: int) -> Tensor:
    """Antialiased resize of float images to `(B, 3, side, side)`."""
    if image_B3SS.shape[-1] == side:
        return image_B3SS
    return F.interpolate(image_B3SS, (side, side), mode="bilinear", antialias=True)


def _grid(theta_B23: Tensor, side: int) -> Tensor:
    """What `F.affine_grid` gives for pixel centres, `(B, S, S, 2)`, ten times as fast on a CPU."""
    centre_S = (2 * torch.arange(side, device=theta_B23.device) + 1) / side - 1
    x_B2S = theta_B23[:, :, 0, None] * centre_S
    y_B2S = theta_B23[:, :, 1, None] * centre_S + theta_B23[:, :, 2, None]
    return (x_B2S[:, :, None, :] + y_B2S[:, :, :, None]).permute(0, 2, 3, 1)


def _field(field_B5: Tensor, side: int) -> Tensor:
    """What is seen through the round field, `(B, S, S)` in [0, 1]."""
    at_S = (2 * torch.arange(side, device=field_B5.device) + 1) / side - 1
    x_B1, y_B1, across_B1, down_B1, edge_B1 = field_B5[:, :, None].unbind(1)
    x_BS, y_BS = (at_S - x_B1) / across_B1, (at_S - y_B1) / down_B1
    distance_BSS = torch.hypot(x_BS[:, None, :], y_BS[:, :, None])
    return ((1 - distance_BSS) / edge_B1[:, :, None] + 0.5).clamp_(0, 1)


def _soften(image_B3SS: Tensor, draws: Draws, settings: Augmentation) -> Tensor:
    """Blur, then a lower resolution and back, then sharpening, in contiguous images.

    All are linear along each axis, so each image has one (S, S) matrix M for them and becomes
    M X M^T: two batched products, whatever the sigmas and factors. A grouped convolution of a
    fixed width would be faster for a small blur alone; the resolution would need two more
    samplings of the batch, which together cost more than this.
    """
    b, c, side, _ = image_B3SS.shape
    steps = []
    if settings.blur:
        steps.append(_blur_matrix(draws.blur_B, side))
    if settings.resolution > 1:
        steps.append(_resolution_matrix(draws.shrink_B, side))
    if settings.sharpen:
        steps.append(_sharpen_matrix(draws.sharpen_B, draws.radius_B, side))
    matrix_BSS = steps[0]
    for step_BSS in steps[1:]:
        matrix_BSS = torch.bmm(step_BSS, matrix_BSS)
    x = torch.bmm(image_B3SS.view(b, c * side, side), matrix_BSS.transpose(1, 2))
    return torch.matmul(matrix_BSS[:, None], x.view(b, c, side, side))


def _blur_matrix(sigma_B: Tensor, side: int) -> Tensor:
    """Gaussian blur of a line mirrored at its ends, `(B, S, S)`; the identity for sigma 0."""
    at = torch.arange(2 * side, device=sigma_B.device)
    rate_B1 = -0.5 / sigma_B.clamp_min(1e-2).square()[:, None]
    # By distance; far down, exp would be slow and is nothing.
    weight_BD = (rate_B1 * at.square()).clamp_min(-60).exp()
    to, source = at[:side, None], at[None, :side]
    # The source pixel itself and its two mirror images.
    distances = ((source - to).abs(), source + to + 1, 2 * side - 1 - source - to)
    total = sum(weight_BD.index_select(1, d.flatten()) for d in distances)
    weight_BSS = torch.as_tensor(total).view(-1, side, side)
    return weight_BSS / weight_BSS.sum(2, keepdim=True)


def _resolution_matrix(shrink_B: Tensor, side: int) -> Tensor:
    """Antialiased bilinear reduction to R = round(S / shrink) and back, `(B, S, S)`."""
    at = torch.arange(side, device=shrink_B.device, dtype=torch.float32)
    lower_B11 = (side / shrink_B).round().clamp_(1, side)[:, None, None]
    factor_B11 = side / lower_B11
    # (B, S, S): rows beyond R are not used.
    centre = (at[:, None] + 0.5) * factor_B11 - 0.5
    down = (1 - (at - centre).abs() / factor_B11).relu()
    down = down / down.sum(2, keepdim=True).clamp_min(1e-6)
    where = ((at[:, None] + 0.5) / factor_B11 - 0.5).clamp_min(0).minimum(lower_B11 - 1)
    up = (1 - (at - where).abs()).relu()
    return torch.bmm(up, down)


def _sharpen_matrix(amount_B: Tensor, radius_B: Tensor, side: int) -> Tensor:
    """Unsharp masking of a line, `(B, S, S)`: itself plus `amount` of what a blur takes away."""
    same_SS = torch.eye(side, device=amount_B.device)
    away_BSS = same_SS - _blur_matrix(radius_B, side)
    return same_SS + amount_B[:, None, None] * away_BSS


def _noise(seed_B: Tensor, side: int) -> Tensor:
    """Bell-shaped noise of mean 0 and standard deviation 1, `(B, 3, S, S)`, from seeds alone.

    A hash of (seed, pixel) instead of a generator: images stay independent of their neighbours,
    and no process draws the noise of the others' images. Four bytes of the hash are added up, which
    is within 3.46 standard deviations and close to a Gaussian. The hash is the "lowbias32" of
    C. Wellons' hash prospector, two rounds, on wrapping 32-bit integers.
    """
    pixel = torch.arange(3 * side * side, dtype=torch.int32, device=seed_B.device)
    h = pixel.mul_(-1640531535) + seed_B.to(torch.int32).mul_(747796405)[:, None]
    # A shift repeats the sign, which is masked off again.
    h.bitwise_xor_((h >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D)
    h.bitwise_xor_((h >> 15).bitwise_and_(0x1FFFF)).mul_(0x846CA68B - 2**32)
    h.bitwise_xor_((h >> 16).bitwise_and_(0xFFFF))
    # Bytes are added in pairs: two sums of 16 bits in each integer.
    pairs = (h >> 8).bitwise_and_(0x00FF00FF).add_(h.bitwise_and_(0x00FF00FF))
    total = (pairs >> 16).add_(pairs.bitwise_and_(0xFFFF))  # at most 1020
    std = math.sqrt(4 * (256**2 - 1) / 12)
    return total.to(torch.float32).sub_(510).mul_(1 / std).view(-1, 3, side, side)


# Quantisation of luma and chroma at quality 50: ITU-T T.81, tables K.1 and K.2.
_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99,
    24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99,
    *(32 * (99,)),
)  # fmt: skip
# RGB to luma and the two chroma channels (ITU-T T.871, without its offset of 128).
_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


@lru_cache
def _jpeg_constants(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """To luma and chroma, back, both tables, cosines. Copied once: a copy makes the host wait."""
    ycc_33 = torch.tensor(_YCC, dtype=torch.float64)
    at = torch.arange(8, dtype=torch.float64)
    dct_88 = torch.cos((2 * at + 1) * at[:, None] * math.pi / 16) / 2
    dct_88[0] = math.sqrt(1 / 8)
    tables_264 = torch.tensor((_LUMA, _CHROMA))
    found = (ycc_33, torch.linalg.inv(ycc_33), tables_264, dct_88)
    to_33, back_33, tables_264, dct_88 = (t.to(device, torch.float32) for t in found)
    return to_33, back_33, tables_264, dct_88


@torch.no_grad()
def compress(image_B3SS: Tensor, quality_B: Tensor) -> Tensor:
    """What baseline JPEG gives back, colours at half the resolution, without writing a file.

    A cosine transform of blocks of 8 x 8, rounded to libjpeg's tables for each image's quality
    (ITU-T T.81). Two levels or so from libjpeg's own pixels, whose arithmetic is of whole numbers.

    Args:
        image_B3SS: float32 images in [0, 255], contiguous, of any side.
        quality_B: 1 to 100; at 100 an image is left as it is.

    Returns:
        images in [0, 255] of the same shape.
    """
    side, device = image_B3SS.shape[-1], image_B3SS.device
    more = -side % 16
    x = F.pad(image_B3SS, (0, more, 0, more), mode="replicate") if more else image_B3SS
    b, _, padded, _ = x.shape
    to_33, back_33, tables_264, dct_88 = _jpeg_constants(device)
    x = torch.matmul(to_33, x.reshape(b, 3, -1)).view(b, 3, padded, padded)
    scale_B1 = torch.where(quality_B < 50, 5000 / quality_B, 200 - 2 * quality_B)[:, None]
    luma_B64, chroma_B64 = (((t * scale_B1 + 50) / 100).floor().clamp(1, 255) for t in tables_264)
    luma = _quantised(x[:, :1] - 128, luma_B64, dct_88) + 128
    chroma = _quantised(F.avg_pool2d(x[:, 1:], 2), chroma_B64, dct_88)
    x = torch.cat((luma, F.interpolate(chroma, scale_factor=2.0, mode="bilinear")), 1)
    x = torch.matmul(back_33, x.view(b, 3, -1)).view(b, 3, padded, padded)
    x = x[:, :, :side, :side].clamp(0, 255)
    return torch.where((quality_B < 100)[:, None, None, None], x, image_B3SS)


def _quantised(plane_BCSS: Tensor, table_B64: Tensor, dct_88: Tensor) -> Tensor:
    """Blocks of 8 x 8, their cosine coefficients rounded to multiples of the table's steps."""
    b, c, side, _ = plane_BCSS.shape
    blocks = plane_BCSS.view(b, c, side // 8, 8, side // 8, 8).transpose(3, 4)
    step = table_B64.view(b, 1, 1, 1, 8, 8)
    counts = ((dct_88 @ blocks @ dct_88.T) / step).round()
    return (dct_88.T @ (counts * step) @ dct_88).transpose(3, 4).reshape(b, c, side, side)


class Mix(NamedTuple):
    """Which image each image is mixed with, and how.

    The caller mixes targets alike: `lam_B * loss(own) + (1 - lam_B) * loss(partner_B's)`.

    Attributes:
        partner_B: index of the other image in the batch, int64.
        lam_B: weight of the image itself, float32; 1 where it is left alone.
        cut_B: bool: the other image fills a box; elsewhere the two are blended.
        box_B4: int64 (top, bottom, left, right) in pixels, the second and fourth not included;
            empty where nothing is cut.
    """

    partner_B: Tensor
    lam_B: Tensor
    cut_B: Tensor
    box_B4: Tensor

    def part(self, which: slice) -> Mix:
        """Of a run of the images, whose indices start at 0 again.

        An image whose partner lies outside is left alone: none where `which` starts and ends at an
        even index.
        """
        start, stop, _ = which.indices(len(self.lam_B))
        partner_B, lam_B, cut_B, box_B4 = (t[start:stop] for t in self)
        with_B = (partner_B >= start) & (partner_B < stop)
        index_B = torch.arange(stop - start, device=partner_B.device)
        return Mix(
            torch.where(with_B, partner_B - start, index_B),
            torch.where(with_B, lam_B, 1.0),
            cut_B & with_B,
            box_B4 * with_B[:, None],
        )

    def to(self, device: torch.device) -> Mix:
        """On a device."""
        return Mix(*(t.to(device, non_blocking=True) for t in self))


def draw_mix(
    batch: int,
    side: int,
    generator: torch.Generator,
    *,
    kind: Literal["none", "mixup", "cutmix", "both"],
    alpha: float = 1.0,
    probability: float = 1.0,
) -> Mix:
    """Partners and weights for a batch of images of a side.

    Neighbours are mixed with each other: 0 and 1, 2 and 3, and so on, each with a weight of its
    own; a last odd one is left alone. Batches are in random order, so a neighbour is as random as
    any other, and parts of a batch can be mixed apart, on devices that do not see each other's
    images.

    With cutmix, the box has a share 1 - lam of the image, its middle anywhere, and what lies
    outside is lost: `lam_B` is that of the box really cut, in whole pixels.

    Args:
        generator: a CPU generator.
        kind: `mixup` (Zhang et al., 2018), `cutmix` (Yun et al., 2019), `both`: one or the other
            by the toss of a coin for each image, or `none`.
        alpha: both parameters of the beta distribution of lam, above 0.
        probability: share of the images that are mixed at all.
    """
    from scipy.special import betaincinv  # type: ignore[import-untyped]

    unit = torch.rand(batch, 5, generator=generator, dtype=torch.float64)
    # The inverse distribution function, for torch's own sampler takes no generator.
    lam_B = torch.from_numpy(betaincinv(alpha, alpha, unit[:, 0].numpy()))
    mixed_B = unit[:, 1] < (0.0 if kind == "none" else probability)
    index_B = torch.arange(batch)
    partner_B = index_B ^ 1
    if batch % 2:
        partner_B[-1] = batch - 1
        mixed_B[-1] = False
    cut_B = mixed_B & (unit[:, 2] < {"cutmix": 1.0, "both": 0.5}.get(kind, 0.0))
    half_B1 = (1 - lam_B).sqrt()[:, None] * side / 2
    middle_B2 = unit[:, 3:] * side
    low_B2 = (middle_B2 - half_B1).round().clamp(0, side)
    high_B2 = (middle_B2 + half_B1).round().clamp(0, side)
    box_B4 = torch.stack((low_B2, high_B2), 2).flatten(1).long() * cut_B[:, None]
    area_B = (box_B4[:, 1] - box_B4[:, 0]) * (box_B4[:, 3] - box_B4[:, 2])
    lam_B = torch.where(cut_B, 1 - area_B.double() / side**2, torch.where(mixed_B, lam_B, 1.0))
    return Mix(partner_B, lam_B.float(), cut_B, box_B4)


@torch.no_grad()
def mix_images(image_B3SS: Tensor, mix: Mix) -> Tensor:
    """Mix images of the side the numbers were drawn for; nothing waits for the device.

    Returns:
        new images, `(B, 3, S, S)`, in the memory format of the input.
    """
    side = image_B3SS.shape[-1]
    mix = mix.to(image_B3SS.device)
    at = torch.arange(side, device=image_B3SS.device)
    top, bottom, left, right = mix.box_B4[:, :, None].unbind(1)
    rows_BS, columns_BS = (at >= top) & (at < bottom), (at >= left) & (at < right)
    inside_B1SS = (rows_BS[:, :, None] & columns_BS[:, None, :])[:, None]
    blend_B111 = torch.where(mix.cut_B, 1.0, mix.lam_B)[:, None, None, None]
    own_B1SS = torch.where(inside_B1SS, 0.0, blend_B111).to(image_B3SS.dtype)
    # lerp gives either end exactly.
    return torch.lerp(image_B3SS[mix.partner_B], image_B3SS, own_B1SS)
