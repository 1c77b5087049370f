"""Resizing, augmentation and mixing of batches."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Literal, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage, stats
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional as F

from biigma_cli.data.augment import (
    BOUNDS,
    NONE,
    PRESETS,
    STANDARD,
    STRONG,
    Augmentation,
    Draws,
    Mix,
    affine_matrix,
    apply,
    augment_batch,
    colour_matrix,
    draw,
    draw_mix,
    mix_images,
    resize_batch,
)
from biigma_cli.errors import UsageError

Kind = Literal["none", "mixup", "cutmix", "both"]
MIXING = ("mixup", "cutmix", "both")


def seeded(seed: int) -> torch.Generator:
    """A CPU generator of its own."""
    return torch.Generator().manual_seed(seed)


def batch(count: int, side: int, seed: int = 0) -> Tensor:
    """Smooth random images in [0, 255]."""
    coarse = torch.rand(count, 3, 5, 5, generator=seeded(seed))
    return 255 * torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")


def still(count: int) -> Draws:
    """Draws that change nothing."""
    one, nothing = torch.ones(count), torch.zeros(count)
    return Draws(
        theta_B23=torch.eye(2, 3).repeat(count, 1, 1),
        colour_B33=torch.eye(3).repeat(count, 1, 1),
        lift_B3=torch.zeros(count, 3),
        field_B5=torch.tensor([0.0, 0.0, 9.0, 9.0, 0.1]).repeat(count, 1),
        blur_B=nothing,
        shrink_B=one,
        sharpen_B=nothing,
        radius_B=one,
        noise_B=nothing,
        seed_B=nothing,
        quality_B=100 * one,
    )


def placed(
    count: int,
    *,
    angle: float = 0,
    mirrored: bool = False,
    scale: float = 1,
    aspect: float = 1,
    shift: tuple[float, float] = (0, 0),
) -> Draws:
    """Draws with this geometry for all images and nothing else."""
    theta = affine_matrix(
        angle=torch.full((count,), float(angle)),
        mirrored=torch.full((count,), mirrored),
        scale=torch.full((count,), float(scale)),
        aspect=torch.full((count,), float(aspect)),
        shift_B2=torch.tensor(shift).repeat(count, 1),
    )
    return still(count)._replace(theta_B23=theta)


def coloured(count: int, **factors: float) -> Draws:
    """Draws with these colour factors for all images and nothing else."""
    full = {
        name: torch.full((count,), float(factors.get(name, name != "hue")))
        for name in ("brightness", "contrast", "saturation", "hue")
    }
    matrix, lift = colour_matrix(**full, cast_B3=torch.ones(count, 3))
    return still(count)._replace(colour_B33=matrix, lift_B3=lift)


# Resizing


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


# Settings


def test_every_setting_out_of_bounds_is_named() -> None:
    """All at once, with the bounds."""
    with pytest.raises(UsageError) as caught:
        Augmentation(scale=0.5, shift=0.7, blur=math.nan)
    for piece in ("scale is 0.5, not in [1, 4]", "shift is 0.7", "blur is nan"):
        assert piece in caught.value.message
    assert "contrast" not in caught.value.message
    assert caught.value.fix


def test_every_number_has_bounds() -> None:
    """A setting added without bounds would go unchecked."""
    assert {f.name for f in dataclasses.fields(Augmentation)} - {"flip"} == set(BOUNDS)


def test_strong_goes_further_than_standard() -> None:
    """No setting is weaker, and those that are off in the standard are on."""
    for name in BOUNDS:
        assert getattr(STRONG, name) >= getattr(STANDARD, name), name
    for name in ("scale", "corners", "blur", "resolution", "sharpen", "noise", "compression"):
        assert getattr(STRONG, name) > getattr(STANDARD, name), name


# Drawing


numbers = {
    name: st.floats(low, min(high, {"shift": 0.3, "hue": 60.0}.get(name, high)))
    for name, (low, high) in BOUNDS.items()
}


@settings(deadline=None, max_examples=60)
@given(
    chosen=st.builds(Augmentation, flip=st.booleans(), **numbers),
    seed=st.integers(0, 2**40),
    count=st.integers(1, 17),
)
def test_draws_are_within_the_settings(chosen: Augmentation, seed: int, count: int) -> None:
    """Whatever the settings, what is drawn keeps to them."""
    drawn = draw(chosen, count, seeded(seed))
    assert all(len(t) == count and t.isfinite().all() and t.dtype == torch.float32 for t in drawn)
    near = 1 + 1e-5
    linear = drawn.theta_B23[:, :, :2].double()
    determinant = torch.linalg.det(linear)
    assert (determinant.abs() <= chosen.scale**2 * near).all()
    assert (determinant.abs() >= 1 / (chosen.scale**2 * near)).all()
    if not chosen.flip:
        assert (determinant > 0).all()
    columns = linear.norm(dim=1)
    ratio = columns[:, 1] / columns[:, 0]
    assert (torch.maximum(ratio, 1 / ratio) <= chosen.aspect * near).all()
    # The second column has the angle, whether mirrored or not.
    angle = torch.atan2(-linear[:, 0, 1], linear[:, 1, 1]).rad2deg().abs()
    assert (angle <= chosen.rotate + 1e-3).all()
    assert (drawn.theta_B23[:, :, 2].abs() <= 2 * chosen.shift * near).all()
    assert (drawn.blur_B >= 0).all()
    assert (drawn.blur_B <= chosen.blur).all()
    assert (drawn.shrink_B >= 1).all()
    assert (drawn.shrink_B <= chosen.resolution * near).all()
    assert (drawn.noise_B >= 0).all()
    assert (drawn.noise_B <= chosen.noise).all()
    assert (drawn.quality_B >= 100 - chosen.compression).all()
    assert (drawn.quality_B <= 100).all()
    assert (drawn.radius_B >= 1).all()
    assert (drawn.radius_B <= 2).all()
    assert torch.equal(drawn.seed_B, drawn.seed_B.floor())
    middle, radii, edge = drawn.field_B5.split((2, 2, 1), 1)
    assert (middle.abs() <= 0.1).all()
    assert (radii.prod(1).sqrt() >= (math.sqrt(2) - chosen.corners) / near).all()
    assert ((radii[:, 1] / radii[:, 0]).log().abs() <= math.log(4 / 3) * near).all()
    assert (edge > 0).all()
    # What happens to grey of the image's own level.
    grey = drawn.colour_B33.sum(2) + drawn.lift_B3
    most = (1 + chosen.brightness) * (1 + chosen.cast) + 1e-4
    assert (grey <= most).all()
    assert (grey >= (1 - chosen.brightness) * (1 - chosen.cast) - 1e-4).all()


def test_draws_reach_their_bounds_evenly() -> None:
    """Each quantity is spread as documented (Kolmogorov-Smirnov, at a fixed seed)."""
    drawn = draw(STRONG, 4000, seeded(0))
    linear = drawn.theta_B23[:, :, :2].double()
    scale = torch.linalg.det(linear).abs().rsqrt().log() / math.log(STRONG.scale)
    columns = linear.norm(dim=1)
    aspect = (columns[:, 1] / columns[:, 0]).log() / math.log(STRONG.aspect)
    angle = torch.atan2(-linear[:, 0, 1], linear[:, 1, 1]) / math.pi
    shift = drawn.theta_B23[:, :, 2] / (2 * STRONG.shift)
    symmetric = {"scale": scale, "aspect": aspect, "angle": angle, "x": shift[:, 0]}
    symmetric["y"] = shift[:, 1]
    for name, values in symmetric.items():
        assert stats.kstest(values.numpy(), "uniform", (-1, 2)).pvalue > 1e-3, name
    softer = {
        "blur": drawn.blur_B / STRONG.blur,
        "resolution": drawn.shrink_B.log() / math.log(STRONG.resolution),
        "sharpen": drawn.sharpen_B / STRONG.sharpen,
        "noise": drawn.noise_B / STRONG.noise,
        "compression": (100 - drawn.quality_B) / STRONG.compression,
    }
    for name, values in softer.items():
        assert 0.47 < (values == 0).double().mean() < 0.53, name
        assert stats.kstest(values[values > 0].numpy(), "uniform").pvalue > 1e-3, name
    assert stats.kstest(drawn.radius_B.numpy(), "uniform", (1, 1)).pvalue > 1e-3
    radius = drawn.field_B5[:, 2:4].prod(1).sqrt()
    assert 0.47 < (radius == 9).double().mean() < 0.53
    inward = (math.sqrt(2) - radius[radius < 9]) / STRONG.corners
    assert stats.kstest(inward.numpy(), "uniform").pvalue > 1e-3
    assert 0.47 < (torch.linalg.det(linear) < 0).double().mean() < 0.53
    assert len(drawn.seed_B.unique()) > 3990


def test_quantities_are_drawn_apart() -> None:
    """No two of them go together."""
    drawn = draw(STRONG, 4000, seeded(0))
    linear = drawn.theta_B23[:, :, :2]
    columns = linear.norm(dim=1)
    quantities = torch.stack(
        [
            torch.atan2(-linear[:, 0, 1], linear[:, 1, 1]),
            torch.linalg.det(linear).sign(),
            torch.linalg.det(linear).abs().log(),
            columns[:, 1] / columns[:, 0],
            *drawn.theta_B23[:, :, 2].T,
            drawn.lift_B3.mean(1),
            drawn.colour_B33[:, 0, 2],
            drawn.blur_B,
            drawn.shrink_B,
            drawn.sharpen_B,
            drawn.noise_B,
            drawn.seed_B,
            drawn.field_B5[:, 2].clamp(max=1.5),
            drawn.quality_B,
            drawn.radius_B,
        ]
    )
    apart = torch.corrcoef(quantities) - torch.eye(len(quantities))
    assert apart.abs().max() < 0.07


def test_a_transform_does_not_change_the_numbers_of_another() -> None:
    """Turning one off leaves the others as they were, so that settings can be compared."""
    one = draw(STRONG, 5, seeded(2))
    other = draw(dataclasses.replace(STRONG, blur=0, rotate=0, flip=False), 5, seeded(2))
    assert other.blur_B.max() == 0
    assert not torch.equal(one.theta_B23, other.theta_B23)
    for name in ("colour_B33", "lift_B3", "field_B5", "shrink_B", "sharpen_B", "noise_B", "seed_B"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    plain = draw(dataclasses.replace(STRONG, corners=0), 5, seeded(2))
    for name in (name for name in one._fields if name != "field_B5"):
        assert torch.equal(getattr(one, name), getattr(plain, name)), name


def test_a_round_field() -> None:
    """An ellipse about its own middle is left as it is; outside is black, between them an edge."""
    images = torch.full((2, 3, 64, 64), 200.0)
    drawn = still(2)
    drawn.field_B5[1] = torch.tensor([0.1, -0.05, 0.9, 1.1, 0.1])
    chosen = dataclasses.replace(NONE, corners=0.5)
    out = apply(images, drawn, chosen)
    assert torch.equal(out[0], images[0])
    assert apply(images, drawn, NONE) is images
    for row, column in ((0, 0), (63, 63), (20, 33), (1, 33), (30, 61), (62, 40)):
        x, y = (2 * column + 1) / 64 - 1, (2 * row + 1) / 64 - 1
        distance = math.hypot((x - 0.1) / 0.9, (y + 0.05) / 1.1)
        expected = 200 * min(max((1 - distance) / 0.1 + 0.5, 0), 1)
        assert out[1, 0, row, column].item() == pytest.approx(expected, abs=0.01)
    assert out[1, :, 0, 0].max() == 0
    assert out[1, :, 32, 35].min() == 200


def test_the_global_generator_is_left_alone() -> None:
    """Neither read nor moved on by drawing or applying."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    augment_batch(batch(2, 16), seeded(0), STRONG)
    draw_mix(4, 16, seeded(0), kind="both")
    assert torch.equal(torch.get_rng_state(), state)


# Applying


def test_no_augmentation_is_the_identity() -> None:
    """Where all is off, images come out as they went in, bit for bit."""
    images = batch(3, 20)
    assert torch.equal(augment_batch(images, seeded(0), NONE), images)


def test_draws_that_change_nothing_are_the_identity() -> None:
    """Through every transform, to within rounding."""
    images = batch(3, 21)
    out = apply(images, still(3), STRONG)
    torch.testing.assert_close(out, images, atol=2e-3, rtol=0)


@pytest.mark.parametrize("quarters", [-1, 0, 1, 2])
def test_a_quarter_turn(quarters: int) -> None:
    """Equal to torch's own."""
    images = batch(2, 22)
    out = apply(images, placed(2, angle=90 * quarters), STANDARD)
    torch.testing.assert_close(out, images.rot90(quarters, (2, 3)), atol=5e-3, rtol=0)


def test_a_mirror() -> None:
    """Left and right change places; then turned, as torch does it."""
    images = batch(2, 22)
    out = apply(images, placed(2, mirrored=True), STANDARD)
    torch.testing.assert_close(out, images.flip(3), atol=5e-3, rtol=0)
    out = apply(images, placed(2, mirrored=True, angle=90), STANDARD)
    torch.testing.assert_close(out, images.rot90(1, (2, 3)).flip(3), atol=5e-3, rtol=0)


def test_scale_and_aspect_are_magnifications() -> None:
    """A square of 16 pixels comes out as wide and as high as they say."""
    images = torch.zeros(1, 3, 64, 64)
    images[:, :, 24:40, 24:40] = 100
    out = apply(images, placed(1, scale=1.5, aspect=1.44), STANDARD)[0, 0]
    assert out[32].sum() / 100 == pytest.approx(16 * 1.5 * 1.2, abs=0.2)
    assert out[:, 32].sum() / 100 == pytest.approx(16 * 1.5 / 1.2, abs=0.2)


def test_a_shift_is_a_share_of_the_side() -> None:
    """By whole pixels, along x and y; what comes in is mirrored, not black."""
    images = batch(1, 20) + 1
    out = apply(images, placed(1, shift=(0.1, -0.05)), STANDARD)
    expected = F.pad(images, (2, 2, 2, 2), mode="replicate")
    torch.testing.assert_close(
        out[:, :, 1:, :-2], expected[:, :, 2:21, 4:22].clamp(0, 255), atol=5e-3, rtol=0
    )
    torch.testing.assert_close(out[:, :, 1:, -2:], images[:, :, :-1, [-1, -2]], atol=5e-3, rtol=0)


def test_the_grid_is_that_of_torch() -> None:
    """The fast grid equals `F.affine_grid`."""
    images = batch(5, 23)
    drawn = still(5)._replace(theta_B23=draw(STRONG, 5, seeded(1)).theta_B23)
    grid = F.affine_grid(drawn.theta_B23, list(images.shape), align_corners=False)
    expected = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    torch.testing.assert_close(apply(images, drawn, STANDARD), expected, atol=5e-3, rtol=0)


def test_colour_is_what_it_says() -> None:
    """The one matrix equals the transforms one after the other."""
    images = 80 + 0.3 * batch(4, 12)
    drawn = draw(STANDARD, 4, seeded(3))
    signed = 2 * torch.rand(4, 19, generator=seeded(3)) - 1
    grey = images.mean(1, keepdim=True)
    mean = grey.mean((2, 3), keepdim=True)
    brightness, contrast, saturation = (
        (1 + amount * signed[:, column]).view(4, 1, 1, 1)
        for column, amount in ((6, 0.25), (7, 0.25), (8, 0.3))
    )
    expected = grey + (images - grey) * saturation
    expected = (expected - mean) * contrast + mean * brightness
    expected = expected * (1 + 0.08 * signed[:, 10:13]).view(4, 3, 1, 1)
    out = apply(images, still(4)._replace(colour_B33=drawn.colour_B33, lift_B3=drawn.lift_B3))
    torch.testing.assert_close(out, expected.clamp(0, 255), atol=5e-3, rtol=0)


def test_hue_turns_about_grey() -> None:
    """A third of the circle sends red to green; grey and the mean over channels stay."""
    red = torch.tensor([150.0, 60, 60]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    out = apply(red, coloured(1, hue=120), STRONG)
    torch.testing.assert_close(out, red.roll(1, 1), atol=1e-3, rtol=0)
    images = 80 + 0.3 * batch(2, 8)
    turned = apply(images, coloured(2, hue=25), STRONG)
    torch.testing.assert_close(turned.mean(1), images.mean(1), atol=1e-3, rtol=0)
    assert (turned - images).abs().max() > 5
    assert (apply(images, coloured(2, saturation=0), STRONG).std(1) < 1e-3).all()


@pytest.mark.parametrize("sigma", [0.3, 0.8, 1.5, 4.0])
def test_blur_is_that_of_scipy(sigma: float) -> None:
    """A Gaussian, images mirrored at their borders; an image beside it has its own sigma."""
    images = 255 * torch.rand(2, 3, 25, 25, generator=seeded(0))
    drawn = still(2)._replace(blur_B=torch.tensor([sigma, 0.0]))
    out = apply(images, drawn, dataclasses.replace(NONE, blur=4))
    expected = ndimage.gaussian_filter(
        images[0].double().numpy(), (0, sigma, sigma), mode="reflect", truncate=8
    )
    np.testing.assert_allclose(out[0].numpy(), expected, atol=5e-3)
    torch.testing.assert_close(out[1], images[1], atol=2e-3, rtol=0)


@pytest.mark.parametrize(("side", "factor"), [(24, 2.0), (25, 3.1), (23, 1.2), (16, 16.0)])
def test_lower_resolution_is_that_of_torch(side: int, factor: float) -> None:
    """Antialiased reduction and bilinear enlargement; the image beside it keeps its own."""
    images = 255 * torch.rand(2, 3, side, side, generator=seeded(0))
    drawn = still(2)._replace(shrink_B=torch.tensor([factor, 1.0]))
    out = apply(images, drawn, dataclasses.replace(NONE, resolution=16))
    small = resize_batch(images[:1], round(side / factor))
    expected = F.interpolate(small, (side, side), mode="bilinear")
    torch.testing.assert_close(out[:1], expected, atol=5e-3, rtol=0)
    torch.testing.assert_close(out[1:], images[1:], atol=2e-3, rtol=0)


@pytest.mark.parametrize(("amount", "radius"), [(0.3, 1.0), (1.0, 1.0), (1.0, 1.8), (3.0, 1.3)])
def test_sharpening_is_unsharp_masking_along_each_axis(amount: float, radius: float) -> None:
    """What a Gaussian takes away is added; the image beside it is left alone."""
    images = 100 + 20 * torch.rand(2, 3, 25, 25, generator=seeded(0))
    drawn = still(2)._replace(
        sharpen_B=torch.tensor([amount, 0.0]), radius_B=torch.tensor([radius, 1.5])
    )
    out = apply(images, drawn, dataclasses.replace(NONE, sharpen=4))
    expected = images[0].double().numpy()
    for axis in (1, 2):
        away = expected - ndimage.gaussian_filter1d(
            expected, radius, axis, mode="reflect", truncate=8
        )
        expected = expected + amount * away
    np.testing.assert_allclose(out[0].numpy(), expected.clip(0, 255), atol=5e-3)
    assert out[0].std() > 1.1 * images[0].std()
    torch.testing.assert_close(out[1], images[1], atol=2e-3, rtol=0)


def test_blur_comes_before_the_lower_resolution() -> None:
    """Optics before the sensor, and both before sharpening, where all are on."""
    images = 255 * torch.rand(1, 3, 24, 24, generator=seeded(0))
    drawn = still(1)._replace(blur_B=torch.tensor([1.5]), shrink_B=torch.tensor([2.0]))
    drawn = drawn._replace(sharpen_B=torch.tensor([0.7]))
    both = apply(images, drawn, STRONG)
    blurred = apply(images, drawn, dataclasses.replace(NONE, blur=4))
    lower = apply(blurred, drawn, dataclasses.replace(NONE, resolution=4))
    expected = apply(lower, drawn, dataclasses.replace(NONE, sharpen=4))
    torch.testing.assert_close(both, expected, atol=5e-3, rtol=0)


@pytest.mark.parametrize("side", [32, 57, 160])
@pytest.mark.parametrize("quality", [5, 30, 49, 50, 75, 85])
def test_compression_is_that_of_libjpeg(side: int, quality: int) -> None:
    """Within a level or so of what a file gives back, on average, and nearer to that than to the
    picture by far; the image beside it keeps every bit."""
    noise = 6 * torch.randn(2, 1, side, side, generator=seeded(1))
    images = (batch(2, side) + noise).round().clamp(0, 255)
    out = apply(
        images,
        still(2)._replace(quality_B=torch.tensor([float(quality), 100.0])),
        dataclasses.replace(NONE, compression=99),
    )
    file = io.BytesIO()
    pixels = images[0].permute(1, 2, 0).to(torch.uint8).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float()
    apart = (out[0] - expected).abs().mean()
    assert apart < 1.5
    assert apart < 0.4 * (expected - images[0]).abs().mean()
    assert torch.equal(out[1], images[1])


def test_noise_is_bell_shaped_and_white() -> None:
    """Moments of a Gaussian, and no trace of a neighbour, a channel or another image."""
    images = torch.full((4, 3, 128, 128), 127.0)
    drawn = still(4)._replace(noise_B=torch.full((4,), 10.0), seed_B=torch.tensor([0.0, 1, 2, 9e6]))
    noise = (apply(images, drawn, dataclasses.replace(NONE, noise=10)) - 127) / 10
    each = noise.flatten(1).double()
    assert each.mean(1).abs().max() < 0.02
    assert (each.std(1) - 1).abs().max() < 0.02
    kurtosis = (each**4).mean(1) / each.var(1) ** 2
    assert ((kurtosis > 2.6) & (kurtosis < 2.8)).all()  # 2.7 for a sum of four uniform numbers
    assert 3 < each.abs().max() < 3.47
    for axis in (1, 2, 3):
        together = (noise * noise.roll(1, axis)).mean((1, 2, 3))
        assert together.abs().max() < 0.02, axis
    assert (torch.corrcoef(each) - torch.eye(4)).abs().max() < 0.02


def test_noise_is_the_hash_it_says() -> None:
    """Unsigned integers of numpy give the same bytes, bit for bit."""
    side, seeds = 9, [0, 5, 2**24 - 1]
    h = np.arange(3 * side**2, dtype=np.uint32) * np.uint32(2654435761)
    h = h + (np.array(seeds, dtype=np.uint32) * np.uint32(747796405))[:, None]
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    total = h.view(np.uint8).reshape(3, 3, side, side, 4).sum(-1).astype(np.float64)
    expected = 127 + 20 * (total - 510) / math.sqrt(65535 / 3)
    drawn = still(3)._replace(noise_B=torch.full((3,), 20.0), seed_B=torch.tensor(seeds).float())
    out = apply(torch.full((3, 3, side, side), 127.0), drawn, dataclasses.replace(NONE, noise=20))
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("name", list(PRESETS))
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shape_range_and_layout_are_kept(name: str, layout: torch.memory_format) -> None:
    """Black and white images stay within [0, 255], finite, float32, and in their layout."""
    images = ((batch(16, 24) > 127).float() * 255).contiguous(memory_format=layout)
    out = augment_batch(images, seeded(0), PRESETS[name])
    assert out.shape == images.shape
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=layout)
    assert out.isfinite().all()
    assert out.min() >= 0
    assert out.max() <= 255
    assert out.std() > 20


def test_layout_does_not_change_the_result() -> None:
    """Channels last and planes give the same numbers, bit for bit."""
    images = batch(4, 24)
    last = images.contiguous(memory_format=torch.channels_last)
    drawn = draw(STRONG, 4, seeded(1))
    assert torch.equal(apply(images, drawn, STRONG), apply(last, drawn, STRONG))


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_input_is_left_alone(name: str) -> None:
    """The batch that comes in is not written to, nor are the draws."""
    images = batch(4, 24)
    drawn = draw(PRESETS[name], 4, seeded(0))
    before, drawn_before = images.clone(), [t.clone() for t in drawn]
    apply(images, drawn, PRESETS[name])
    assert torch.equal(images, before)
    assert all(torch.equal(one, other) for one, other in zip(drawn, drawn_before, strict=True))


@pytest.mark.parametrize("transform", ["moves", "softens", "recolours", "noise"])
def test_a_transform_alone_does_not_write_to_the_input(transform: str) -> None:
    """Nor where it is the only one, and the first to touch the batch."""
    only = {
        "moves": dataclasses.replace(NONE, rotate=180),
        "softens": dataclasses.replace(NONE, blur=2, resolution=2),
        "recolours": dataclasses.replace(NONE, brightness=0.5),
        "noise": dataclasses.replace(NONE, noise=10),
    }[transform]
    images = batch(8, 24)
    before = images.clone()
    out = augment_batch(images, seeded(0), only)
    assert torch.equal(images, before)
    assert not torch.equal(out, before)


@pytest.mark.parametrize("name", ["standard", "strong"])
def test_a_part_alone_equals_the_part_of_the_whole(name: str) -> None:
    """Halves, thirds and single images come out as in the whole batch, to within rounding.

    Not bit for bit: sums over an image may be cut up otherwise for another batch size.
    """
    images = batch(6, 33)
    drawn = draw(PRESETS[name], 6, seeded(4))
    whole = apply(images, drawn, PRESETS[name])
    for size in (3, 2, 1):
        parts = [
            apply(images[i : i + size], drawn.part(slice(i, i + size)), PRESETS[name])
            for i in range(0, 6, size)
        ]
        torch.testing.assert_close(torch.cat(parts), whole, atol=2e-3, rtol=0)
    every_other = apply(images[1::2], drawn.part(slice(1, None, 2)), PRESETS[name])
    torch.testing.assert_close(every_other, whole[1::2], atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["standard", "strong"])
def test_a_seed_says_everything(name: str) -> None:
    """Equal seeds give equal batches, whatever the global generator does."""
    images = batch(4, 24)
    torch.manual_seed(1)
    one = augment_batch(images, seeded(5), PRESETS[name])
    torch.manual_seed(2)
    assert torch.equal(augment_batch(images, seeded(5), PRESETS[name]), one)
    assert not torch.allclose(augment_batch(images, seeded(6), PRESETS[name]), one)


def test_each_sample_has_its_own_numbers() -> None:
    """Copies of one image all come out different, and so do batches of one generator."""
    images = batch(1, 24).repeat(6, 1, 1, 1)
    generator = seeded(0)
    out = augment_batch(images, generator)
    distance = torch.cdist(out.flatten(1), out.flatten(1)) + 1e9 * torch.eye(6)
    assert distance.min() > 100
    assert (augment_batch(images, generator) - out).abs().mean() > 1


def test_as_many_draws_as_images() -> None:
    """A batch and the draws of another do not silently broadcast."""
    with pytest.raises(ValueError, match="1 draws for 3 images"):
        apply(batch(3, 8), draw(STANDARD, 1, seeded(0)))


def test_autocast_does_not_round() -> None:
    """Levels keep more than the 8 bits of bfloat16."""
    images = batch(2, 24)
    drawn = draw(STRONG, 2, seeded(0))
    with torch.autocast("cpu", torch.bfloat16):
        inside = apply(images, drawn, STRONG)
    assert torch.equal(inside, apply(images, drawn, STRONG))


def test_the_host_never_waits() -> None:
    """On tensors without values, nothing asks for one, and no shape hangs on one."""
    real = draw(STRONG, 4, seeded(0))
    apply(torch.zeros(4, 3, 24, 24), real, STRONG)  # what is made once for each device
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        drawn = Draws(*map(fake.from_tensor, real))
        images = torch.empty(4, 3, 24, 24).contiguous(memory_format=torch.channels_last)
        out = apply(images, drawn, STRONG)
        assert out.shape == images.shape
        mix = Mix(*map(fake.from_tensor, draw_real_mix()))
        assert mix_images(out, mix).shape == images.shape
        with pytest.raises(DataDependentOutputException):
            drawn.blur_B.max().item()  # what would be noticed


def draw_real_mix() -> Mix:
    """Numbers with values, whatever mode is on."""
    from torch.utils._mode_utils import no_dispatch

    with no_dispatch():
        return draw_mix(4, 24, seeded(0), kind="both")


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


# Mixing


@settings(deadline=None, max_examples=80)
@given(
    kind=st.sampled_from(get_args(Kind)),
    count=st.integers(1, 12),
    side=st.integers(1, 40),
    alpha=st.floats(0.05, 20),
    probability=st.floats(0, 1),
    seed=st.integers(0, 2**40),
)
def test_mixing_is_what_it_says(
    kind: Kind, count: int, side: int, alpha: float, probability: float, seed: int
) -> None:
    """Boxes lie within the image, lam is the share really left, and pixels follow."""
    mix = draw_mix(count, side, seeded(seed), kind=kind, alpha=alpha, probability=probability)
    images = batch(count, side, seed=seed % 1000)
    out = mix_images(images, mix)
    assert mix.lam_B.dtype == torch.float32
    for i in range(count):
        top, bottom, left, right = mix.box_B4[i].tolist()
        lam, partner = float(mix.lam_B[i]), int(mix.partner_B[i])
        assert 0 <= top <= bottom <= side
        assert 0 <= left <= right <= side
        assert 0 <= lam <= 1
        assert partner == (i if i == count - 1 and count % 2 else i ^ 1)
        if mix.cut_B[i]:
            assert kind in ("cutmix", "both")
            expected = images[i].clone()
            expected[:, top:bottom, left:right] = images[partner][:, top:bottom, left:right]
            assert torch.equal(out[i], expected)
            assert lam == np.float32(1 - (bottom - top) * (right - left) / side**2)
        else:
            assert (top, bottom, left, right) == (0, 0, 0, 0)
            blend = lam * images[i].double() + (1 - lam) * images[partner].double()
            torch.testing.assert_close(out[i].double(), blend, atol=1e-3, rtol=0)
            if kind in ("none", "cutmix"):
                assert lam == 1
        if lam == 1:
            assert torch.equal(out[i], images[i])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_lam_has_a_beta_distribution(alpha: float) -> None:
    """In mixup, per image, with both parameters alpha (Kolmogorov-Smirnov)."""
    lam = draw_mix(4000, 32, seeded(0), kind="mixup", alpha=alpha).lam_B
    assert stats.kstest(lam.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    assert torch.corrcoef(lam.view(-1, 2).T)[0, 1].abs() < 0.07


def test_boxes_are_cut_anywhere() -> None:
    """Unclipped boxes are square, of share 1 - lam, and every quarter is met as often."""
    mix = draw_mix(8000, 1000, seeded(0), kind="cutmix")
    top, bottom, left, right = mix.box_B4.unbind(1)
    inner = (top > 0) & (left > 0) & (bottom < 1000) & (right < 1000)
    assert inner.sum() > 1000
    assert ((bottom - top) - (right - left))[inner].abs().max() <= 1
    for low, high in ((top, bottom), (left, right)):
        assert 0.47 < ((low + high)[inner] < 1000).double().mean() < 0.53
    # E[1 - lam] of boxes that are clipped is under the half of those that are not.
    assert 0.2 < 1 - mix.lam_B.mean() < 0.5


def test_both_and_probability() -> None:
    """A coin for each image between the two, and the share asked for left alone."""
    mix = draw_mix(4000, 64, seeded(0), kind="both", probability=0.6)
    cut = mix.cut_B.double().mean()
    blended = (~mix.cut_B & (mix.lam_B < 1)).double().mean()
    assert 0.27 < cut < 0.33
    assert 0.27 < blended < 0.33
    for kind in get_args(Kind):
        nothing = draw_mix(100, 64, seeded(0), kind=kind, probability=0)
        assert (nothing.lam_B == 1).all()
        assert not nothing.cut_B.any()


@pytest.mark.parametrize("kind", MIXING)
def test_halves_are_mixed_as_the_whole(kind: Kind) -> None:
    """Parts of even size give bit for bit what the whole gives, without each other's images."""
    images = batch(10, 24)
    mix = draw_mix(10, 24, seeded(1), kind=kind)
    whole = mix_images(images, mix)
    assert not torch.equal(whole, images)
    for cut in (2, 4, 6):
        parts = [
            mix_images(images[:cut], mix.part(slice(0, cut))),
            mix_images(images[cut:], mix.part(slice(cut, None))),
        ]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("kind", MIXING)
def test_an_image_parted_from_its_partner_is_left_alone(kind: Kind) -> None:
    """The others of an odd part are mixed as ever."""
    images = batch(6, 24)
    mix = draw_mix(6, 24, seeded(1), kind=kind)
    part = mix.part(slice(1, 5))
    assert part.partner_B.tolist() == [0, 2, 1, 3]
    assert part.lam_B[[0, 3]].tolist() == [1, 1]
    out = mix_images(images[1:5], part)
    whole = mix_images(images, mix)
    assert torch.equal(out[[0, 3]], images[[1, 4]])
    assert torch.equal(out[1:3], whole[2:4])


def test_mixing_keeps_layout_and_input() -> None:
    """Channels last stays so, and the batch that comes in is not written to."""
    images = batch(4, 24).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    out = mix_images(images, draw_mix(4, 24, seeded(0), kind="both"))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)
