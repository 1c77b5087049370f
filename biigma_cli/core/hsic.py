"""Independence between heads (section 2.1, Eq. 1-3).

For one image, head k gives N = H * W vectors r_j in R^D. With the RBF Gram matrix
K[i, j] = exp(-|r_i - r_j|^2 / (2 sigma^2)) and the centring matrix C = I - 1/N,

    HSIC(k1, k2) = Tr[K1 C K2 C] / N^2                                              (Eq. 2)

Since C is symmetric and idempotent, Tr[K1 C K2 C] = sum((C K1 C) * (C K2 C)): each head's Gram
matrix is built and centred once, and all K^2 pairs are one batched product. The Gram matrices are
tiny beside the features, so what costs is each pass over those: distances and their gradient are
one product each (`squared_distances`).

Eq. 1 speaks of mean-normalised features; an RBF kernel does not change under a shift, so removing
the mean changes nothing but rounding, for the better, and is done for that reason.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_EPS = 1e-12
# Where half of all pairs of positions coincide, as under a ReLU that is mostly silent, their median
# distance is 0, and the kernel's gradient, exactly 0 in sum, is rounding times 1 / sigma^2. So
# sigma^2 is this share of the mean squared distance at least.
_FLOOR = 1e-3
# Mean squared distance below which a head's positions are alike.
_ALIKE = 1e-8


class Independence(NamedTuple):
    """The criterion and what to log beside it.

    Attributes:
        value: scalar, the first term of Eq. 3; 0 for `none`.
        pairs_KK: criterion for each ordered pair, mean over the batch, detached.
        kernel_mean: mean off-diagonal kernel value over heads and images, detached: near 0 the
            kernel is saturated (an identity matrix), and HSIC has no gradient.
        cosine_KK: mean cosine similarity of the heads' vectors (Fig. 3), detached.
        sigma_K: bandwidth used by each head, detached.
    """

    value: Tensor
    pairs_KK: Tensor
    kernel_mean: Tensor
    cosine_KK: Tensor
    sigma_K: Tensor


class _SquaredDistances(torch.autograd.Function):
    """Squared distances with their gradient in closed form.

    With S = G + G^T for the gradient G of the distances, that of the vectors is
    2 (diag(S 1) - S) R: one product instead of the two, and the passes around them, that automatic
    differentiation of the Gram matrix would take.
    """

    @staticmethod
    def forward(ctx: Any, vectors_BKND: Tensor) -> Tensor:
        # Contiguous whatever the input's strides: a batched product would copy otherwise.
        centred = torch.empty_like(vectors_BKND, memory_format=torch.contiguous_format)
        torch.sub(vectors_BKND, vectors_BKND.mean(2, keepdim=True), out=centred)
        ctx.save_for_backward(centred)
        gram = centred @ centred.mT
        norms = gram.diagonal(dim1=-2, dim2=-1)
        d2 = (norms[..., :, None] + norms[..., None, :]).sub_(gram, alpha=2).clamp_min_(0)
        d2.diagonal(dim1=-2, dim2=-1).zero_()
        return d2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (centred,) = ctx.saved_tensors
        (grad_BKNN,) = grads
        laplacian = -2 * (grad_BKNN + grad_BKNN.mT)
        diagonal = laplacian.diagonal(dim1=-2, dim2=-1)
        diagonal.sub_(laplacian.sum(-1))
        # Rows of the Laplacian sum to zero, so the means taken off in the forward pass do not
        # matter. Nor does the clamp: where it acts, two vectors are equal.
        result: Tensor = laplacian @ centred
        return result


def squared_distances(vectors_BKND: Tensor) -> Tensor:
    """|r_i - r_j|^2 within each head, `(B, K, N, N)`, never negative, zero on the diagonal.

    Differentiable once.
    """
    result: Tensor = _SquaredDistances.apply(vectors_BKND)
    return result


def median_bandwidth(d2_BKNN: Tensor) -> Tensor:
    """Median heuristic: each head's median distance between positions, over the batch, `(K,)`.

    At least 3% of their root mean square distance; 1 where all are alike. Detached: the bandwidth
    follows the features and gives them no gradient.
    """
    n = d2_BKNN.shape[-1]
    if n == 1:  # no pair of positions: any bandwidth will do
        return d2_BKNN.new_ones(d2_BKNN.shape[1])
    # Each pair of positions once: the median of half as many numbers is the same.
    rows, columns = torch.triu_indices(n, n, 1, device=d2_BKNN.device)
    pairs = d2_BKNN.detach().flatten(2).index_select(2, rows * n + columns)
    per_head = pairs.transpose(0, 1).flatten(1)  # (K, B * N * (N - 1) / 2)
    mean = per_head.mean(dim=1)
    square = torch.maximum(per_head.median(dim=1).values, _FLOOR * mean)
    return square.where(mean > _ALIKE, 1.0).sqrt()


def centre(kernel_BKNN: Tensor) -> Tensor:
    """C K C for symmetric K, by subtracting means instead of multiplying by C."""
    rows = kernel_BKNN.mean(-1, keepdim=True)
    return kernel_BKNN - rows - rows.mT + rows.mean(-2, keepdim=True)


def u_centre(kernel_BKNN: Tensor) -> Tensor:
    """U-centred kernel (Szekely and Rizzo, 2014): zero diagonal, each row sums to zero."""
    n = kernel_BKNN.shape[-1]
    eye = torch.eye(n, dtype=torch.bool, device=kernel_BKNN.device)
    off = kernel_BKNN.masked_fill(eye, 0.0)
    rows = off.sum(-1, keepdim=True)
    total = rows.sum(-2, keepdim=True)
    centred = off - (rows + rows.mT) / (n - 2) + total / ((n - 1) * (n - 2))
    return centred.masked_fill(eye, 0.0)


def pairwise_hsic(
    d2_BKNN: Tensor, sigma_K: Tensor, *, estimator: str = "biased"
) -> tuple[Tensor, Tensor]:
    """Eq. 2 for all head pairs of each image.

    Args:
        estimator: `biased` is Eq. 2. `unbiased` (Song et al., 2012) leaves the diagonals out and
            divides by N (N - 3): Eq. 2 counts every position's likeness to itself, which for few
            positions in many channels is most of its value whether heads depend or not.

    Returns:
        `(B, K, K)` HSIC values, and the `(B, K, N, N)` kernels.

    Raises:
        ValueError: `unbiased` with fewer than four positions.
    """
    n = d2_BKNN.shape[-1]
    kernel = torch.exp(-d2_BKNN / (2 * sigma_K.square())[:, None, None])
    if estimator == "biased":
        flat = centre(kernel).flatten(2)  # (B, K, N * N)
        return flat @ flat.mT / n**2, kernel
    if n < 4:
        raise ValueError(f"the unbiased estimator needs 4 positions, there are {n}")
    flat = u_centre(kernel).flatten(2)
    return flat @ flat.mT / (n * (n - 3)), kernel


def head_cosine(vectors_BKND: Tensor) -> Tensor:
    """Mean over positions of the cosine between heads' vectors, `(B, K, K)` (Fig. 3)."""
    b, k, n, d = vectors_BKND.shape
    # A K x K product at each position; no copy where the features lie channels last.
    stacked = vectors_BKND.transpose(1, 2).reshape(b * n, k, d)
    dot = stacked @ stacked.mT
    norms = dot.diagonal(dim1=-2, dim2=-1).clamp_min(_EPS**2).sqrt()
    cosine = dot / norms[:, :, None] / norms[:, None, :]
    return cosine.view(b, n, k, k).mean(1)


def independence(
    heads_BKDHW: Tensor,
    *,
    criterion: str = "hsic",
    sigma: float = 1.0,
    bandwidth: str = "fixed",
    pairs: str = "ordered_mean",
    estimator: str = "biased",
) -> Independence:
    """First term of Eq. 3 over the gated head features.

    Computed in float32 (or float64 for float64 input) whatever the autocast state.

    Args:
        heads_BKDHW: R_proj^k for all heads.
        criterion: `hsic`; `cka`, which is HSIC(k1, k2) / sqrt(HSIC(k1, k1) HSIC(k2, k2)), free of
            scale; `cosine`, the paper's ablation; or `none`.
        sigma: bandwidth where `bandwidth` is `fixed`.
        bandwidth: `fixed` or `median`.
        pairs: `ordered_mean`: sum over ordered pairs i != j, divided by K^2 (Eq. 3);
            `unordered_sum`: sum over i < j (released code).
        estimator: `biased` or `unbiased`, see `pairwise_hsic`.
    """
    with torch.autocast(heads_BKDHW.device.type, enabled=False):
        dtype = torch.promote_types(heads_BKDHW.dtype, torch.float32)
        vectors = heads_BKDHW.to(dtype).flatten(3).mT  # (B, K, N, D), a view
        k, n = vectors.shape[1:3]
        with torch.set_grad_enabled(torch.is_grad_enabled() and criterion in ("hsic", "cka")):
            d2 = squared_distances(vectors)
            if bandwidth == "median":
                sigma_K = median_bandwidth(d2)
            else:
                sigma_K = torch.full((k,), sigma, dtype=dtype, device=d2.device)
            hsic_BKK, kernel = pairwise_hsic(d2, sigma_K, estimator=estimator)
        with torch.set_grad_enabled(torch.is_grad_enabled() and criterion == "cosine"):
            cosine_BKK = head_cosine(vectors)
        if criterion == "cka":
            own = hsic_BKK.diagonal(dim1=-2, dim2=-1).clamp_min(_EPS)
            value_BKK = hsic_BKK / (own[..., :, None] * own[..., None, :]).sqrt()
        elif criterion == "cosine":
            value_BKK = cosine_BKK
        else:
            value_BKK = hsic_BKK
        pairs_KK = value_BKK.mean(0)
        # HSIC is never negative, its unbiased estimate may be. Below zero there is nothing left to
        # remove: pushing on would make the heads each other's opposites, and so dependent again.
        penalty_KK = pairs_KK.clamp_min(0) if estimator == "unbiased" else pairs_KK
        eye = torch.eye(k, dtype=torch.bool, device=d2.device)
        ordered_sum = penalty_KK.masked_fill(eye, 0.0).sum()
        value = ordered_sum / k**2 if pairs == "ordered_mean" else ordered_sum / 2
        if criterion == "none":
            value = torch.zeros_like(value)
        off_diagonal = (kernel.detach().sum((-2, -1)) - n) / max(n * (n - 1), 1)
        return Independence(
            value=value,
            pairs_KK=pairs_KK.detach(),
            kernel_mean=off_diagonal.mean(),
            cosine_KK=cosine_BKK.detach().mean(0),
            sigma_K=sigma_K,
        )
