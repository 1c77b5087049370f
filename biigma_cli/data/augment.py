"""Augmentation of whole batches on the device, each image with its own random numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_batch(image_B3SS: Tensor, side: int) -> Tensor:
    """Antialiased resize of float images to `(B, 3, side, side)`."""
    if image_B3SS.shape[-1] == side:
        return image_B3SS
    return F.interpolate(image_B3SS, (side, side), mode="bilinear", antialias=True)


def random_affine(batch: int, generator: torch.Generator) -> Tensor:
    """Per-sample 2 x 3 matrices: flips, any rotation, scale, aspect and shift.

    Dermoscopy has no up or down, so rotations cover the circle. Scale is 0.8 to 1.25, aspect
    0.87 to 1.15 (both log-uniform), shift up to 5% of the side.
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, generator=generator)

    angle = uniform(-math.pi, math.pi)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    scale = uniform(-math.log(1.25), math.log(1.25)).exp()
    aspect = uniform(-0.14, 0.14).mul(0.5).exp()
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = (
        torch.stack((cos * aspect * flip, -sin / aspect, uniform(-0.1, 0.1)), 1),
        torch.stack((sin * aspect * flip, cos / aspect, uniform(-0.1, 0.1)), 1),
    )
    return torch.stack(rows, 1)


def augment_batch(image_B3SS: Tensor, generator: torch.Generator) -> Tensor:
    """Geometry and colour, for float images in [0, 255]; the range is kept.

    Colour: brightness and contrast +-25%, saturation +-30%, and a cast of +-8% per channel, for
    cameras and light sources differ more than skins do.

    Args:
        generator: a CPU generator, so that a seed means the same on every device.
    """
    b = image_B3SS.shape[0]
    device = image_B3SS.device
    theta = random_affine(b, generator).to(device)
    grid = F.affine_grid(theta, list(image_B3SS.shape), align_corners=False)
    x = F.grid_sample(
        image_B3SS, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    amounts = (2 * torch.rand(b, 6, generator=generator) - 1).to(device)
    brightness, contrast, saturation = (
        (1 + a * amounts[:, i]).view(b, 1, 1, 1) for i, a in enumerate((0.25, 0.25, 0.3))
    )
    cast = (1 + 0.08 * amounts[:, 3:]).view(b, 3, 1, 1)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * saturation
    mean = grey.mean((2, 3), keepdim=True)
    return ((x - mean) * contrast + mean * brightness).mul(cast).clamp(0, 255)
