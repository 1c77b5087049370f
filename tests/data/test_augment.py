"""Resizing and augmentation of batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from biigma_cli.data.augment import augment_batch, random_affine, resize_batch


def seeded(seed: int) -> torch.Generator:
    """A CPU generator of its own."""
    return torch.Generator().manual_seed(seed)


def batch(count: int, side: int, seed: int = 0) -> Tensor:
    """Smooth random images in [0, 255]."""
    coarse = torch.rand(count, 3, 5, 5, generator=seeded(seed))
    return 255 * torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")


def test_resize_to_the_same_side_is_the_identity() -> None:
    """Nothing is touched where nothing is to be done."""
    images = batch(2, 32)
    assert torch.equal(resize_batch(images, 32), images)


def test_resize_is_antialiased() -> None:
    """The shape is right, the mean stays, and fine stripes become grey."""
    images = batch(2, 64)
    small = resize_batch(images, 24)
    assert small.shape == (2, 3, 24, 24)
    assert (small.mean((2, 3)) - images.mean((2, 3))).abs().max() < 1.5
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 255
    grey = resize_batch(stripes, 16)
    assert (grey - 127.5).abs().max() < 12


def test_shape_and_range_are_kept() -> None:
    """Black and white corners stay within [0, 255] and finite."""
    images = (batch(16, 24) > 127).float() * 255
    out = augment_batch(images, seeded(0))
    assert out.shape == images.shape
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    assert out.min() >= 0
    assert out.max() <= 255
    assert out.std() > 20


def test_the_input_is_left_alone() -> None:
    """The batch that comes in is not written to."""
    images = batch(4, 24)
    before = images.clone()
    augment_batch(images, seeded(0))
    assert torch.equal(images, before)


def test_a_seed_says_everything() -> None:
    """Equal seeds give equal batches, whatever the global generator does."""
    images = batch(4, 24)
    torch.manual_seed(1)
    one = augment_batch(images, seeded(5))
    torch.manual_seed(2)
    assert torch.equal(augment_batch(images, seeded(5)), one)
    assert not torch.allclose(augment_batch(images, seeded(6)), one)


def test_each_sample_has_its_own_numbers() -> None:
    """Copies of one image all come out different, and so do batches of one generator."""
    images = batch(1, 24).repeat(6, 1, 1, 1)
    generator = seeded(0)
    out = augment_batch(images, generator)
    distance = torch.cdist(out.flatten(1), out.flatten(1)) + 1e9 * torch.eye(6)
    assert distance.min() > 100
    assert (augment_batch(images, generator) - out).abs().mean() > 1


def test_affine_matrices_are_within_bounds() -> None:
    """Scale, aspect and shift within what is documented, and near both ends of it."""
    theta = random_affine(4000, seeded(0)).double()
    assert theta.shape == (4000, 2, 3)
    linear = theta[:, :, :2]
    area = torch.linalg.det(linear).abs()
    assert area.min() >= 0.8**2 - 1e-6
    assert area.max() <= 1.25**2 + 1e-6
    assert area.min() < 0.66
    assert area.max() > 1.5
    columns = linear.norm(dim=1)
    aspect = columns[:, 0] / columns[:, 1]
    assert aspect.min() >= math.exp(-0.14) - 1e-6
    assert aspect.max() <= math.exp(0.14) + 1e-6
    assert aspect.max() > 1.14
    assert theta[:, :, 2].abs().max() <= 0.2  # a tenth of the side, which runs from -1 to 1
    assert theta[:, :, 2].abs().max() > 0.09


def test_flips_and_rotations_of_all_kinds_occur() -> None:
    """About half are mirrored, and every eighth of the circle is met."""
    linear = random_affine(4000, seeded(1))[:, :, :2]
    mirrored = (torch.linalg.det(linear) < 0).float().mean()
    assert 0.45 < mirrored < 0.55
    angle = torch.atan2(-linear[:, 0, 1], linear[:, 1, 1])
    assert (torch.histc(angle, 8, -math.pi, math.pi) > 400).all()


def test_a_constant_image_stays_constant() -> None:
    """Geometry shows no border: only each image's colour changes, within its bounds."""
    out = augment_batch(torch.full((32, 3, 20, 20), 100.0), seeded(0))
    assert out.std((2, 3)).max() < 1e-2
    level = out.mean((2, 3))
    assert level.min() >= 100 * 0.75 * 0.92 - 0.1
    assert level.max() <= 100 * 1.25 * 1.08 + 0.1
    assert level.mean(1).std() > 5
    assert (level.amax(1) / level.amin(1)).max() > 1.05


def test_labels_of_an_image_survive() -> None:
    """A bright spot in the middle stays near the middle, so the lesion is not lost."""
    images = torch.full((64, 3, 41, 41), 50.0)
    images[:, :, 16:25, 16:25] = 150
    out = augment_batch(images, seeded(3)).mean(1)
    middle = out[:, 14:27, 14:27].amax((1, 2))
    rim = out[:, 0].mean(1)
    assert (middle > 1.5 * rim).all()
