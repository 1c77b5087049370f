"""Backgrounds without their lesions, to put other lesions on while training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from biigma_cli.data.images import Part
from biigma_cli.data.manifest import Manifest
from biigma_cli.data.masks import Laid, refuse_unusable
from biigma_cli.data.perturb.fill import kept_share, without_lesion
from biigma_cli.data.perturb.kinds import to_levels
from biigma_cli.data.perturb.masks import lesion_masks, no_mask
from biigma_cli.data.preprocess import map_threads
from biigma_cli.storage import available_cpus, content_digest, sha256_lines


class Backgrounds(NamedTuple):
    """Of the images of a part that have a usable lesion mask; on the CPU.

    Attributes:
        row_N: of each image of the part its row in the others, int64; -1 without a mask.
        filled_MSS3: uint8 pictures, lesion and fringe inpainted.
        kept_MSS: uint8, the share of a picture that stays when it comes onto another background:
            255 in the lesion, falling to 0 over its seam.
        colour_M3: float32 means of the pictures without their lesions.
    """

    row_N: Tensor
    filled_MSS3: Tensor
    kept_MSS: Tensor
    colour_M3: Tensor


class Swap(NamedTuple):
    """Which images of a batch come onto another background, and onto whose.

    Attributes:
        which_B: bool.
        donor_B: rows of `Backgrounds.filled_MSS3`, int64.
        tint_B: how far the donor's mean colour comes to that of the picture's own background: 0 to
            1, float32. Skin and light differ, and a lesion's seam would tell that it was moved.
    """

    which_B: Tensor
    donor_B: Tensor
    tint_B: Tensor

    def part(self, which: slice) -> Swap:
        """Of some of the images."""
        return Swap(*(t[which] for t in self))


def load_backgrounds(
    manifest: Manifest,
    part: Part,
    *,
    rule: str = "squash",
    progress: Callable[[int, int], None] | None = None,
) -> Backgrounds:
    """Take the lesions out of a part's pictures, at the side that they are decoded to.

    About 25 ms an image of 160 pixels on a CPU core, and 4 bytes of memory a pixel.

    Args:
        part: images of `manifest`.
        rule: the resize rule by which they were decoded.
        progress: called with (images done, images in all).

    Raises:
        DataError: no image has a usable mask; masks have another aspect than their picture, are
            gone or damaged.
    """
    side = part.pixels.shape[1]
    masks = lesion_masks(manifest, part.ids, side, rule=rule)
    place = {image: n for n, image in enumerate(part.ids)}
    filled = np.empty((len(masks.ids), side, side, 3), np.uint8)
    kept = np.empty((len(masks.ids), side, side), np.uint8)
    colour = np.empty((len(masks.ids), 3), np.float32)
    row = np.full(len(part.ids), -1)

    def fill(image: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        lesion = masks[image]
        empty = without_lesion(part.pixels[place[image]].astype(np.float32), lesion)
        return to_levels(empty), to_levels(255 * kept_share(lesion))

    found = map_threads(fill, masks.ids, threads=available_cpus())
    for n, (image, (empty, share)) in enumerate(zip(masks.ids, found, strict=True)):
        filled[n], kept[n], row[place[image]] = empty, share, n
        colour[n] = empty.mean((0, 1))
        if progress:
            progress(n + 1, len(masks.ids))
    return Backgrounds(*(torch.from_numpy(a) for a in (row, filled, kept, colour)))


def check_masks(manifest: Manifest, ids: Sequence[str]) -> None:
    """Raise `DataError` where none of the images has a mask on record: before they are decoded."""
    records = manifest.by_id()
    if not any(records[i].mask for i in ids):
        raise no_mask(len(ids), manifest.dataset)


def masks_digest(manifest: Manifest, ids: Sequence[str]) -> str:
    """One digest of the images' lesion masks, by the bytes of their files and in that order.

    Raises `DataError` that names the first that cannot be read.
    """
    records = manifest.by_id()
    unread: dict[str, Laid] = {}

    def digest(image: str) -> str:
        mask = records[image].mask
        if not mask:
            return f"{image}:"
        try:
            return f"{image}:{content_digest((manifest.root / mask).read_bytes())}"
        except OSError as error:
            damage = f"cannot read {manifest.root / mask}: {error.strerror or error}"
            unread[image] = Laid(damage=damage)
            return ""

    lines = list(map_threads(digest, ids, threads=available_cpus()))
    refuse_unusable(unread, manifest)
    return sha256_lines(lines)


def draw_swap(batch: int, share: float, donors: int, generator: torch.Generator) -> Swap:
    """Each image is moved with probability `share`, onto the background of any of `donors`."""
    unit = torch.rand(batch, 2, generator=generator)
    donor_B = torch.randint(donors, (batch,), generator=generator)
    return Swap(unit[:, 0] < share, donor_B, unit[:, 1])


@torch.no_grad()
def swap_backgrounds(
    image_B3SS: Tensor, index_B: Tensor, swap: Swap, backgrounds: Backgrounds
) -> Tensor:
    """The images chosen, those without a mask apart, on their donors' backgrounds.

    Lesions stay where they are, pixel for pixel, and pass into the new background over a soft
    seam, as in `perturb.fill.on_background`; its colour comes some way towards that of the old.

    Args:
        image_B3SS: float images in [0, 255], of the side of the backgrounds.
        index_B: their places in the part, on the CPU; -1 for images of other parts, which have no
            mask.
        swap: of as many images.

    Returns:
        a new tensor in the memory format of the input; the input itself where none is moved.
    """
    row_B = torch.where(index_B < 0, -1, backgrounds.row_N[index_B.clamp_min(0)])
    moved = torch.nonzero(swap.which_B & (row_B >= 0)).flatten()
    if not len(moved):
        return image_B3SS
    device = image_B3SS.device
    own_M, donor_M = row_B[moved], swap.donor_B[moved]
    away_M3 = backgrounds.colour_M3[own_M] - backgrounds.colour_M3[donor_M]
    shift_M311 = (swap.tint_B[moved, None] * away_M3)[:, :, None, None].to(device)
    filled_MSS3 = backgrounds.filled_MSS3[donor_M].to(device)
    onto_M3SS = filled_MSS3.permute(0, 3, 1, 2).to(image_B3SS.dtype)
    onto_M3SS = (onto_M3SS + shift_M311).clamp_(0, 255)
    share_M1SS = backgrounds.kept_MSS[own_M].to(device)[:, None].to(image_B3SS.dtype) / 255
    at = moved.to(device)
    swapped = image_B3SS.clone()
    swapped[at] = torch.lerp(onto_M3SS, image_B3SS[at], share_M1SS)
    return swapped
