"""Background vector sampling (section 2.2, the set B, Theta and the hybrid feature)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Gather(NamedTuple):
    """How a process that holds a slice of the batch takes part in the whole batch's B.

    Attributes:
        vectors: maps this process's `(P, C)` to all processes' `(P * world, C)`, in the order of
            their ranks; differentiable, its gradient summed over the processes.
        rank: which of the equal slices of the batch is this process's.
        world: number of processes.
    """

    vectors: Callable[[Tensor], Tensor]
    rank: int
    world: int


def background_draw(
    feat_BCHW: Tensor, generator: torch.Generator | None = None, *, world: int = 1
) -> Tensor:
    """Uniform numbers in [0, 1), one per position of the whole batch, `(B * H * W * world,)`.

    Drawn on the generator's device (the CPU without one), so that a seed means the same draw on
    every device.

    Args:
        feat_BCHW: R, of this process's slice of the batch.
        world: number of slices.
    """
    b, _, h, w = feat_BCHW.shape
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.rand(b * h * w * world, generator=generator, device=device).to(feat_BCHW.device)


def sample_background(
    background_BCHW: Tensor,
    draw_P: Tensor,
    *,
    method: str = "replacement",
    gather: Gather | None = None,
    image_BEHW: Tensor | None = None,
) -> Tensor:
    """Theta: vectors of B placed at random, `(B, C, H, W)`.

    B holds the masked background vectors of the whole batch, |B| <= B * H * W, without zero
    vectors. Should B be empty, Theta is zero.

    Args:
        background_BCHW: R * M_inv.
        draw_P: numbers in [0, 1), one per position of the batch.
        method: `replacement` draws from B's non-zero vectors, with replacement; `permutation`
            orders all positions of the batch by the draw, zero vectors and all (released code).
        gather: where the batch is spread over processes. B is then that of the whole batch, and
            `draw_P` the whole batch's draw, the same in every process; each takes its own part.
        image_BEHW: where given, Theta's vectors come from here, at the positions drawn from B; not
            with `gather`.
    """
    if image_BEHW is not None and gather is not None:
        raise ValueError("an image of B is not gathered")
    b, c, h, w = background_BCHW.shape
    own = b * h * w
    vectors_PC = background_BCHW.permute(0, 2, 3, 1).reshape(own, c)
    if gather is not None:
        vectors_PC = gather.vectors(vectors_PC)
    positions = len(vectors_PC)
    if len(draw_P) != positions:
        raise ValueError(f"the draw has {len(draw_P)} numbers for {positions} positions")
    if method == "permutation":
        index_P = draw_P.argsort()
    else:
        present = (vectors_PC.detach() != 0).any(1)
        # Positions of B first, in order; no data-dependent shape, so nothing waits for a GPU.
        members = torch.argsort((~present).to(torch.uint8), stable=True)
        count = present.sum()
        place = (draw_P.float() * count).long().clamp_max(positions - 1)
        index_P = members[torch.minimum(place, (count - 1).clamp_min(0))]
    if gather is not None:
        index_P = index_P[gather.rank * own : (gather.rank + 1) * own]
    if image_BEHW is not None:
        vectors_PC = image_BEHW.permute(0, 2, 3, 1).reshape(own, -1)
    # index_select, for its gradient adds up in a fixed order; that of indexing does not on the CPU.
    return vectors_PC.index_select(0, index_P).reshape(b, h, w, -1).permute(0, 3, 1, 2)


def hybrid_feature(
    feat_BCHW: Tensor,
    map_B1HW: Tensor,
    draw_P: Tensor,
    *,
    method: str = "replacement",
    gather: Gather | None = None,
    image_BEHW: Tensor | None = None,
) -> Tensor:
    """H = M * R + M_inv * Theta, `(B, C, H, W)`.

    The vectors of B carry M_inv already and are multiplied by it again here, as the paper writes.

    Args:
        feat_BCHW: R.
        map_B1HW: M of Eq. 5; M_inv = 1 - M is Eq. 6.
        draw_P: see `background_draw`.
        gather: see `sample_background`.
        image_BEHW: R under a linear map that is the same at all positions. Where given, H under
            that map is returned in H's place: a mixture of positions is mapped by mixing their
            images.
    """
    m = map_B1HW.to(feat_BCHW.dtype)
    inverse = 1 - m
    if image_BEHW is not None:
        theta = sample_background(
            feat_BCHW.detach() * inverse.detach(),
            draw_P,
            method=method,
            gather=gather,
            image_BEHW=image_BEHW * inverse,
        )
        return m * image_BEHW + inverse * theta
    theta = sample_background(feat_BCHW * inverse, draw_P, method=method, gather=gather)
    return m * feat_BCHW + inverse * theta
