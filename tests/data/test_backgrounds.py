"""Lesions on the backgrounds of other training images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from biigma_cli.data.backgrounds import (
    Backgrounds,
    Swap,
    draw_swap,
    load_backgrounds,
    swap_backgrounds,
)
from biigma_cli.data.images import Part, load_part
from biigma_cli.data.manifest import Manifest
from biigma_cli.data.perturb.fill import on_background, without_lesion
from biigma_cli.data.synthetic import SyntheticOptions, plan, render_clean
from biigma_cli.errors import DataError
from tests.data.samples import digest, encode, manifest, record

SIDE = 64
COUNT = 5
BARE = 2  # the place of the image without a mask


def scene(folder: Path, *, masks: bool = True) -> Manifest:
    """Synthetic lesions on clean skin; one has no mask."""
    records = []
    for n, sample in enumerate(plan(SyntheticOptions(count=60, side=SIDE))[:COUNT]):
        pixels, lesion = render_clean(sample, SIDE)
        name = f"s{n}"
        content = encode(Image.fromarray(pixels))
        (folder / f"{name}.png").write_bytes(content)
        mask = f"{name}_mask.png" if masks and n != BARE else ""
        if mask:
            Image.fromarray(lesion).save(folder / mask)
        entry = record(name, "NV", path=f"{name}.png")
        records.append(dataclasses.replace(entry, digest=digest(content), mask=mask))
    return manifest(records, root=folder)


@pytest.fixture
def data(tmp_path: Path) -> Manifest:
    """See `scene`."""
    return scene(tmp_path)


@pytest.fixture
def part(data: Manifest) -> Part:
    """All its images."""
    return load_part(data, [r.image_id for r in data.records], SIDE)


@pytest.fixture
def backgrounds(data: Manifest, part: Part) -> Backgrounds:
    """Of all of them."""
    return load_backgrounds(data, part)


def float_images(part: Part) -> torch.Tensor:
    """As a training step has them."""
    return torch.from_numpy(part.pixels).permute(0, 3, 1, 2).float()


def lesion_of(data: Manifest, n: int) -> np.ndarray:
    """Of the n-th image, as it was drawn."""
    return np.asarray(Image.open(data.root / data.records[n].mask)) > 0


def onto(n: int, donor: int, tint: float) -> Swap:
    """The n-th image onto the background in a row, the others where they are."""
    which = torch.arange(COUNT) == n
    return Swap(which, torch.full((COUNT,), donor), torch.full((COUNT,), tint))


def test_load(data: Manifest, part: Part, backgrounds: Backgrounds) -> None:
    """A row for each image with a mask, in which the lesion is painted over."""
    told: list[tuple[int, int]] = []
    again = load_backgrounds(data, part, progress=lambda *done: told.append(done))
    assert told == [(n, COUNT - 1) for n in range(1, COUNT)]
    assert all(torch.equal(a, b) for a, b in zip(again, backgrounds, strict=True))
    assert backgrounds.row_N.tolist() == [0, 1, -1, 2, 3]
    for n, row in enumerate(backgrounds.row_N.tolist()):
        if row < 0:
            continue
        lesion, picture = lesion_of(data, n), part.pixels[n]
        expected = without_lesion(picture.astype(np.float32), lesion)
        filled = backgrounds.filled_MSS3[row].numpy()
        assert np.abs(filled - expected).max() <= 0.5
        # Lesions are darker than skin.
        skin = picture[~lesion].mean()
        assert skin - filled[lesion].mean() < 0.3 * (skin - picture[lesion].mean())
        kept = backgrounds.kept_MSS[row].numpy()
        assert (kept[lesion] == 255).all()
        assert (kept == 0).any()


def test_swap(data: Manifest, part: Part, backgrounds: Backgrounds) -> None:
    """As the judge of background invariance does it; what is not chosen stays as it is."""
    image = float_images(part)
    before = image.clone()
    swapped = swap_backgrounds(image, torch.arange(COUNT), onto(0, 3, 0.0), backgrounds)
    assert torch.equal(image, before)
    assert torch.equal(swapped[1:], image[1:])
    lesion = lesion_of(data, 0)
    own = swapped[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(own[lesion], part.pixels[0][lesion])
    filled = backgrounds.filled_MSS3[3].numpy().astype(np.float32)
    expected = on_background(part.pixels[0].astype(np.float32), lesion, filled)
    assert np.abs(own - expected).max() < 1  # the share that stays is in 255ths
    far = backgrounds.kept_MSS[0].numpy() == 0
    np.testing.assert_array_equal(own[far], filled[far])


def test_tint(part: Part, backgrounds: Backgrounds) -> None:
    """Another background comes as far as is said towards the mean colour of the own one."""
    image, index = float_images(part), torch.arange(COUNT)
    far = backgrounds.kept_MSS[0] == 0
    plain, half, whole = (
        swap_backgrounds(image, index, onto(0, 3, tint), backgrounds)[0][:, far]
        for tint in (0.0, 0.5, 1.0)
    )
    own, donor = (backgrounds.filled_MSS3[n].float().mean((0, 1)) for n in (0, 3))
    assert (own - donor).abs().max() > 2
    inside = (whole > 0) & (whole < 255)  # not cut off at the ends of the range
    expected = (own - donor)[:, None].expand_as(plain)
    torch.testing.assert_close((whole - plain)[inside], expected[inside], atol=1e-3, rtol=0)
    torch.testing.assert_close((half - plain)[inside], expected[inside] / 2, atol=1e-3, rtol=0)


@pytest.mark.parametrize("index", [[0, -1, 2, -1, -1], [2] * COUNT])
def test_images_without_a_mask_stay(part: Part, backgrounds: Backgrounds, index: list[int]) -> None:
    """As those of other data sets do, whose place is -1; the last row is not taken for theirs."""
    image = float_images(part)
    every = Swap(torch.ones(COUNT, dtype=torch.bool), torch.full((COUNT,), 3), torch.zeros(COUNT))
    swapped = swap_backgrounds(image, torch.tensor(index), every, backgrounds)
    moved = [not torch.equal(a, b) for a, b in zip(swapped, image, strict=True)]
    assert moved == [i not in (-1, BARE) for i in index]
    if not any(moved):
        assert swapped is image


def test_memory_format(part: Part, backgrounds: Backgrounds) -> None:
    """That of the input, and the same values."""
    image = float_images(part)
    last = image.contiguous(memory_format=torch.channels_last)
    a, b = (
        swap_backgrounds(x, torch.arange(COUNT), onto(0, 3, 0.5), backgrounds)
        for x in (image.contiguous(), last)
    )
    assert torch.equal(a, b)
    assert a.is_contiguous()
    assert b.is_contiguous(memory_format=torch.channels_last)


def test_draw() -> None:
    """The share asked for, any donor, and the same for the same seed; a part is a part."""
    first, again = (draw_swap(4000, 0.3, 7, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert abs(first.which_B.float().mean() - 0.3) < 0.03
    assert torch.bincount(first.donor_B, minlength=7).min() > 400
    assert first.donor_B.max() == 6
    assert abs(first.tint_B.mean() - 0.5) < 0.03
    third = first.part(slice(2000, 3000))
    assert torch.equal(third.donor_B, first.donor_B[2000:3000])
    assert not draw_swap(100, 0.0, 7, torch.Generator()).which_B.any()
    assert draw_swap(100, 1.0, 7, torch.Generator()).which_B.all()


def test_no_masks(tmp_path: Path) -> None:
    """Said in one message."""
    bare = scene(tmp_path, masks=False)
    with pytest.raises(DataError, match="has a lesion mask on record"):
        load_backgrounds(bare, load_part(bare, [r.image_id for r in bare.records], SIDE))
