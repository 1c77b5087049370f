"""Lesion masks over the network's square: where each pixel lands, and what cannot be judged by."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFilter

from biigma_cli.data.ham10000 import masks_by_id
from biigma_cli.data.manifest import Manifest
from biigma_cli.data.masks import load_masks, read_lesion
from biigma_cli.data.preprocess import RESIZE_RULES, load_image
from biigma_cli.errors import DataError, MaskError
from tests.data.samples import HAM10000, NO_HAM10000, encode, manifest, noise, record


class Shelf:
    """A folder of pictures and masks that grows by `add`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.masks: list[str] = []

    def add(
        self,
        mask: Image.Image | bytes | None,
        *,
        picture: Image.Image | bytes | None = None,
        kind: str = "png",
    ) -> str:
        """The id of a picture with that mask, None for no mask."""
        name = f"P{len(self.masks):02}"
        if picture is None:
            picture = noise(*(mask.size if isinstance(mask, Image.Image) else (80, 60)))
        content = picture if isinstance(picture, bytes) else encode(picture, "JPEG")
        (self.root / f"{name}.jpg").write_bytes(content)
        path = ""
        if mask is not None:
            path = f"{name}_segmentation.{kind}"
            made = mask if isinstance(mask, bytes) else encode(mask, kind.upper())
            (self.root / path).write_bytes(made)
        self.masks.append(path)
        return name

    @property
    def manifest(self) -> Manifest:
        """What was added."""
        records = [
            dataclasses.replace(record(f"P{i:02}", "NV"), mask=mask)
            for i, mask in enumerate(self.masks)
        ]
        return manifest(records, root=self.root)

    @property
    def ids(self) -> tuple[str, ...]:
        """Of all."""
        return tuple(r.image_id for r in self.manifest.records)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """An empty one."""
    return Shelf(tmp_path)


def box(width: int, height: int, left: int, top: int, right: int, bottom: int) -> Image.Image:
    """A mask with one rectangle of lesion."""
    lesion = np.zeros((height, width), np.uint8)
    lesion[top:bottom, left:right] = 255
    return Image.fromarray(lesion)


def disc(width: int, height: int, radius: int) -> npt.NDArray[np.bool_]:
    """A round lesion in the middle."""
    y, x = np.ogrid[:height, :width]
    return np.asarray(np.hypot(y - height / 2, x - width / 2) < radius)


def cover(shelf: Shelf, side: int, cells: tuple[int, int], rule: str) -> npt.NDArray[np.float32]:
    """Of the only image."""
    return load_masks(shelf.manifest, shelf.ids, side, rule=rule, cells=cells).cover_nhw[0]


# --- where it lands --------------------------------------------------------------------------


def test_squash_by_hand(shelf: Shelf) -> None:
    """Six columns of lesion of ten, all rows but the first two of eight, on two rows of five."""
    shelf.add(box(10, 8, 3, 2, 9, 8))
    expected = np.outer([0.5, 1], [0, 0.5, 1, 1, 0.5])
    assert cover(shelf, 32, (2, 5), "squash") == pytest.approx(expected)


def test_cells_that_cut_pixels(shelf: Shelf) -> None:
    """Four columns in three cells: a pixel that two cells share counts by its parts."""
    shelf.add(box(4, 4, 1, 0, 2, 4))
    expected = np.tile([0.25, 0.5, 0], (3, 1))
    assert cover(shelf, 48, (3, 3), "squash") == pytest.approx(expected, abs=1e-6)


def test_positions_beside_an_even_grid(shelf: Shelf) -> None:
    """Centres at 0 and 16 of 32 pixels: of the first cell the half within the square counts."""
    shelf.add(box(8, 8, 0, 0, 3, 8))  # the left 12 of 32 pixels
    found = load_masks(shelf.manifest, shelf.ids, 32, cells=(2, 2), first_centre=0.0)
    assert found.cover_nhw[0] == pytest.approx(np.tile([1, 0.25], (2, 1)))
    assert found.centre_nhw[0].tolist() == [[True, False]] * 2


def test_positions_beside_an_even_grid_the_other_way(shelf: Shelf) -> None:
    """Centres at 16 and 32 of 32 pixels: of the last cell the half within the square counts."""
    shelf.add(box(8, 8, 5, 0, 8, 8))  # the right 12 of 32 pixels
    found = load_masks(shelf.manifest, shelf.ids, 32, cells=(2, 2), first_centre=16.0)
    assert found.cover_nhw[0] == pytest.approx(np.tile([0.25, 1], (2, 1)))


def test_crop_by_hand(shelf: Shelf) -> None:
    """Of 12x8 the middle 8x8 is left, so two columns go on each side."""
    shelf.add(box(12, 8, 0, 0, 4, 8))
    expected = np.tile([1, 0, 0, 0], (2, 1))
    assert cover(shelf, 16, (2, 4), "crop") == pytest.approx(expected)


def test_pad_by_hand(shelf: Shelf) -> None:
    """12x6 lies in the middle half of the square; nothing above and below it is lesion."""
    shelf.add(box(12, 6, 6, 0, 12, 6))
    expected = np.zeros((4, 4))
    expected[1:3, 2:] = 1
    assert cover(shelf, 24, (4, 4), "pad") == pytest.approx(expected)


@pytest.mark.parametrize("rule", RESIZE_RULES)
@pytest.mark.parametrize("size", [(61, 40), (40, 61)])
def test_as_the_image(shelf: Shelf, rule: str, size: tuple[int, int]) -> None:
    """A mask goes where `load_image` puts a picture of it, up to that one's smoothing."""
    lesion = np.asarray(noise(*size, seed=3).convert("L")) > 128
    mask = Image.fromarray((lesion * 255).astype(np.uint8))
    shelf.add(mask)
    found = load_masks(shelf.manifest, shelf.ids, 20, rule=rule)
    image = load_image(encode(mask), 20, rule=rule)[..., 0] / 255
    apart = np.abs(found.cover_nhw[0] - image)
    assert apart.mean() < 0.06
    for moved in (np.roll(image, 1, 0), np.roll(image, 1, 1), image[::-1], image[:, ::-1]):
        assert np.abs(found.cover_nhw[0] - moved).mean() > 1.5 * apart.mean()


@pytest.mark.parametrize("rule", RESIZE_RULES)
def test_cover_is_the_lesions_area(shelf: Shelf, rule: str) -> None:
    """Whatever the cells, they hold the same area in all; centres follow the mask."""
    shelf.add(box(60, 45, 20, 11, 41, 37))
    areas = []
    for cells in ((5, 5), (7, 3), (160, 160)):
        found = load_masks(shelf.manifest, shelf.ids, 160, rule=rule, cells=cells)
        areas.append(float(found.cover_nhw.mean()))
        assert not found.centre_nhw[found.cover_nhw == 0].any()
        assert found.centre_nhw[found.cover_nhw > 1 - 1e-6].all()
    assert areas == pytest.approx([areas[0]] * 3, rel=1e-4)


def test_centres_by_hand(shelf: Shelf) -> None:
    """The centre decides, not the cover: 0.6 of the left cell is lesion, and its centre is not."""
    lesion = np.ones((4, 20), np.uint8)
    lesion[:, 4:8] = 0
    shelf.add(Image.fromarray(lesion * 255))
    found = load_masks(shelf.manifest, shelf.ids, 32, cells=(1, 2))
    assert found.cover_nhw[0] == pytest.approx(np.array([[0.6, 1]]))
    assert found.centre_nhw[0].tolist() == [[False, True]]


def test_scale_does_not_matter(shelf: Shelf) -> None:
    """A mask twice as fine as its picture, or half as fine, or rounded, says the same."""
    for width, height in ((160, 120), (80, 60), (40, 30)):
        fine = box(8, 6, 2, 2, 6, 4).resize((width, height), Image.Resampling.NEAREST)
        shelf.add(fine, picture=noise(80, 60))
    shelf.add(box(77, 58, 10, 10, 30, 30), picture=noise(511, 384))
    found = load_masks(shelf.manifest, shelf.ids, 64, rule="crop", cells=(4, 4))
    assert len(found.ids) == 4
    assert found.cover_nhw[0] == pytest.approx(found.cover_nhw[1])
    assert found.cover_nhw[0] == pytest.approx(found.cover_nhw[2])


def test_turned_pictures(shelf: Shelf) -> None:
    """A mask is of the picture as it is shown; its own orientation is heeded, too."""
    upright = box(60, 80, 0, 0, 30, 80)
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = encode(noise(80, 60), "JPEG", exif=exif)
    shelf.add(upright, picture=picture)
    shelf.add(encode(lying, "PNG", exif=exif), picture=picture)
    found = load_masks(shelf.manifest, shelf.ids, 32, cells=(2, 2))
    for one in found.cover_nhw:
        assert one.tolist() == [[1, 0], [1, 0]]
    shelf.add(lying, picture=picture)
    with pytest.raises(DataError, match=r"1 lesion masks have another shape .* P02; of the first"):
        load_masks(shelf.manifest, shelf.ids, 32)


def test_codings(shelf: Shelf) -> None:
    """1-bit, 0/255, 0/1, 16-bit, palette, colours, transparent around, JPEG: the same lesion."""
    grey = box(16, 16, 4, 4, 12, 12)
    bit = np.asarray(grey) > 0
    palette = grey.convert("P")
    dark_red = grey.convert("P")
    dark_red.putpalette([0, 0, 0] * 255 + [128, 0, 0])
    red = Image.fromarray(np.stack([bit * 255, bit * 0, bit * 0], 2).astype(np.uint8))
    clear = Image.fromarray(np.stack([np.full(bit.shape, 255), bit * 255], 2).astype(np.uint8))
    for mask in (
        grey.convert("1"), grey, Image.fromarray(bit.astype(np.uint8)),
        Image.fromarray(bit.astype(np.uint16) * 65535), palette, dark_red, red, clear,
    ):  # fmt: skip
        shelf.add(mask, picture=noise(16, 16))
    shelf.add(grey, kind="jpeg")
    shelf.add(encode(grey.convert("RGB"), "JPEG", quality=60), picture=noise(16, 16))
    found = load_masks(shelf.manifest, shelf.ids, 32, cells=(4, 4))
    expected = np.zeros((4, 4))
    expected[1:3, 1:3] = 1
    assert found.ids == shelf.ids
    for name, one in zip(found.ids, found.cover_nhw, strict=True):
        assert one == pytest.approx(expected, abs=0.02), name


# --- what cannot be judged by ----------------------------------------------------------------


def test_left_out(shelf: Shelf) -> None:
    """No mask, no lesion, nothing but lesion, lesion that the crop cuts off: named, not judged."""
    good = shelf.add(box(80, 60, 30, 20, 50, 40))
    none = shelf.add(None)
    empty = shelf.add(box(80, 60, 0, 0, 0, 0))
    full = shelf.add(box(80, 60, 0, 0, 80, 60))
    gone = shelf.add(box(80, 60, 0, 0, 8, 60))
    rest = shelf.add(box(80, 60, 10, 0, 70, 60))
    told: list[tuple[int, int]] = []
    found = load_masks(
        shelf.manifest, shelf.ids, 32, rule="crop", progress=lambda *p: told.append(p)
    )
    assert found.ids == (good,)
    assert (found.missing, found.empty, found.full) == ((none,), (empty, gone), (full, rest))
    assert told == [(i, 5) for i in range(1, 6)]
    assert found.cover_nhw.shape == found.centre_nhw.shape == (1, 32, 32)
    squashed = load_masks(shelf.manifest, shelf.ids, 32)
    assert squashed.ids == (good, gone, rest)
    padded = load_masks(shelf.manifest, shelf.ids, 32, rule="pad")
    assert padded.full == (full,)


def test_edges_that_are_neither(shelf: Shelf) -> None:
    """A mask that was made small, blurred or compressed hard is still one."""
    large = Image.fromarray(255 * disc(600, 450, 160).astype(np.uint8))
    small = large.resize((24, 18), Image.Resampling.BILINEAR)
    for mask in (
        small, small.resize((600, 450), Image.Resampling.BICUBIC),
        large.filter(ImageFilter.GaussianBlur(6)),
    ):  # fmt: skip
        shelf.add(mask, picture=noise(80, 60))
    shelf.add(encode(large, "JPEG", quality=5), picture=noise(80, 60))
    found = load_masks(shelf.manifest, shelf.ids, 32)
    assert found.ids == shelf.ids
    share = np.pi * 160**2 / (600 * 450)
    assert found.cover_nhw.mean((1, 2)) == pytest.approx(share, rel=0.06)


def test_pictures(shelf: Shelf) -> None:
    """A picture is no mask, in colour or in grey, nor is skin alone: left out, no error."""
    good = shelf.add(box(80, 60, 30, 20, 50, 40))
    photo, black = noise(80, 60, seed=1), Image.new("RGB", (80, 60), "black")
    bad = [
        shelf.add(photo),
        shelf.add(photo.convert("L")),
        shelf.add(encode(photo, "JPEG"), picture=encode(photo, "JPEG")),
        shelf.add(Image.new("RGB", (80, 60), (210, 160, 140))),
        shelf.add(Image.new("L", (80, 60), 140)),
        shelf.add(Image.composite(black, photo, box(80, 60, 0, 0, 40, 60))),
    ]
    found = load_masks(shelf.manifest, shelf.ids, 32)
    assert found.ids == (good,)
    assert found.pictures == tuple(bad)
    assert (found.missing, found.empty, found.full) == ((), (), ())
    path = shelf.root / shelf.masks[1]
    with pytest.raises(MaskError) as caught:
        read_lesion(path, "m.png")
    assert re.fullmatch(
        r"m\.png is a picture, not a lesion mask: \d+% of its pixels are neither black nor white",
        caught.value.message,
    )
    assert "white where the lesion is" in caught.value.fix


@pytest.mark.skipif(not HAM10000.is_dir(), reason=NO_HAM10000)
def test_photographs_and_masks_of_ham10000() -> None:
    """The real ones are told apart."""
    for path in sorted(HAM10000.glob("HAM10000_images*/*.jpg"))[::500]:
        with pytest.raises(MaskError):
            read_lesion(path, path.name)
    for path in sorted((HAM10000 / "HAM10000_segmentations_lesion_tschandl").glob("*.png"))[::250]:
        assert read_lesion(path, path.name).any()


def test_in_the_order_asked_for(shelf: Shelf) -> None:
    """Not in that of the records."""
    shelf.add(box(8, 8, 0, 0, 4, 8))
    shelf.add(box(8, 8, 4, 0, 8, 8))
    found = load_masks(shelf.manifest, shelf.ids[::-1], 32, cells=(1, 2))
    assert found.ids == ("P01", "P00")
    assert found.cover_nhw[:, 0].tolist() == [[0, 1], [1, 0]]


def test_another_shape(shelf: Shelf) -> None:
    """The first ten are named, the rest counted, the sizes of one shown."""
    shelf.add(box(80, 60, 0, 0, 40, 60))
    for _ in range(12):
        shelf.add(box(60, 60, 0, 0, 40, 60), picture=noise(80, 60))
    with pytest.raises(DataError) as caught:
        load_masks(shelf.manifest, shelf.ids, 32)
    listed = ", ".join(f"P{i:02}" for i in range(1, 11))
    assert caught.value.message == (
        f"12 lesion masks have another shape than their picture: {listed} and 2 more; of the "
        "first: mask 60x60, picture 80x60 pixels"
    )
    assert caught.value.fix


def test_unreadable(shelf: Shelf) -> None:
    """A torn file, no image, one that is gone: an error, not fewer images."""
    whole = encode(noise(80, 60), "PNG")
    shelf.add(box(80, 60, 0, 0, 40, 60))
    shelf.add(whole[: len(whole) // 2])
    shelf.add(b"not an image")
    shelf.add(box(80, 60, 0, 0, 40, 60))
    (shelf.root / shelf.masks[3]).unlink()
    with pytest.raises(DataError) as caught:
        load_masks(shelf.manifest, shelf.ids, 32)
    assert caught.value.message.startswith("3 lesion masks cannot be used: P01, P02, P03; of the")
    assert shelf.masks[1] in caught.value.message
    assert "biigma download isic18" in caught.value.fix


def test_no_masks_at_all(shelf: Shelf) -> None:
    """Said with what to do."""
    shelf.add(None)
    with pytest.raises(DataError, match="none of the 1 images has a lesion mask") as caught:
        load_masks(shelf.manifest, shelf.ids, 32)
    assert "_segmentation.png" in caught.value.fix


@pytest.mark.skipif(not HAM10000.is_dir(), reason=NO_HAM10000)
def test_ham10000() -> None:
    """Some of the real ones: the right lesion covers the right share."""
    ids = ["ISIC_0024306", "ISIC_0024307", "ISIC_0030000"]
    masks = masks_by_id([HAM10000 / "HAM10000_segmentations_lesion_tschandl"])
    folders = {p.stem: p for i in ids for p in HAM10000.glob(f"*/{i}.jpg")}
    records = [
        dataclasses.replace(record(i, "NV", path=str(folders[i])), mask=str(masks[i])) for i in ids
    ]
    found = load_masks(manifest(records, root=HAM10000), ids, 160, cells=(5, 5))
    assert found.ids == tuple(ids)
    for i, one in zip(ids, found.cover_nhw, strict=True):
        with Image.open(masks[i]) as image:
            share = np.asarray(image.convert("L")).mean() / 255
        assert one.mean() == pytest.approx(share, abs=1e-5)
