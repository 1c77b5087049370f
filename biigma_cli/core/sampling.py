"""Background vector sampling (section 2.2, the set B, Theta and the hybrid feature)."""

from __future__ import annotations

import torch
from torch import Tensor


def background_draw(feat_BCHW: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Uniform numbers in [0, 1), one per position of the batch, `(B * H * W,)`.

    Drawn on the generator's device (the CPU without one), so that a seed means the same draw on
    every device.
    """
    b, _, h, w = feat_BCHW.shape
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.rand(b * h * w, generator=generator, device=device).to(feat_BCHW.device)


def sample_background(
    background_BCHW: Tensor, draw_P: Tensor, *, method: str = "replacement"
) -> Tensor:
    """Theta: vectors of B placed at random, `(B, C, H, W)`.

    B holds the masked background vectors of the whole batch, |B| <= B * H * W, without zero
    vectors. Should B be empty, Theta is zero.

    Args:
        background_BCHW: R * M_inv.
        draw_P: numbers in [0, 1), one per position of the batch.
        method: `replacement` draws from B's non-zero vectors, with replacement; `permutation`
            orders all positions of the batch by the draw, zero vectors and all (released code).
    """
    b, c, h, w = background_BCHW.shape
    vectors_PC = background_BCHW.permute(0, 2, 3, 1).reshape(b * h * w, c)
    if method == "permutation":
        index_P = draw_P.argsort()
    else:
        present = (vectors_PC.detach() != 0).any(1)
        # Positions of B first, in order; no data-dependent shape, so nothing waits for a GPU.
        members = torch.argsort((~present).to(torch.uint8), stable=True)
        count = present.sum()
        place = (draw_P.float() * count).long().clamp_max(b * h * w - 1)
        index_P = members[torch.minimum(place, (count - 1).clamp_min(0))]
    # index_select, for its gradient adds up in a fixed order; that of indexing does not on the CPU.
    return vectors_PC.index_select(0, index_P).reshape(b, h, w, c).permute(0, 3, 1, 2)


def hybrid_feature(
    feat_BCHW: Tensor, map_B1HW: Tensor, draw_P: Tensor, *, method: str = "replacement"
) -> Tensor:
    """H = M * R + M_inv * Theta, `(B, C, H, W)`.

    The vectors of B carry M_inv already and are multiplied by it again here, as the paper writes.

    Args:
        feat_BCHW: R.
        map_B1HW: M of Eq. 5; M_inv = 1 - M is Eq. 6.
        draw_P: see `background_draw`.
    """
    m = map_B1HW.to(feat_BCHW.dtype)
    inverse = 1 - m
    theta = sample_background(feat_BCHW * inverse, draw_P, method=method)
    return m * feat_BCHW + inverse * theta
