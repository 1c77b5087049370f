"""Whether an image looks like those the network was trained on at all.

Not in the paper. The answer of a network to a picture of another kind is a class like any other,
often a sure one. Early features, averaged over positions, tell such pictures apart far better than
the last ones, which keep only what separates the classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class InputCheck(nn.Module):
    """Novelty of an image: distance of its early features from the training images', 1 the limit.

    The distance is Mahalanobis' under a probabilistic principal component model (Tipping and
    Bishop 1999, doi:10.1111/1467-9868.00196; for other pictures Lee et al. 2018,
    arXiv:1807.03888): with standardised features z, components v_k of variance l_k and the mean
    variance s of the other directions,

        d = sum_k (v_k z)^2 / l_k + |z - sum_k v_k (v_k z)|^2 / s.

    Args:
        channels: C of the early tap.
        components: K.
    """

    mean_C: Tensor
    scale_C: Tensor
    axes_CK: Tensor
    weight_K: Tensor
    rest: Tensor
    limit: Tensor

    def __init__(self, channels: int, components: int) -> None:
        super().__init__()
        self.register_buffer("mean_C", torch.zeros(channels))
        self.register_buffer("scale_C", torch.ones(channels))
        self.register_buffer("axes_CK", torch.zeros(channels, components))
        self.register_buffer("weight_K", torch.ones(components))
        self.register_buffer("rest", torch.ones(()))
        self.register_buffer("limit", torch.ones(()))

    def forward(self, early_BCHW: Tensor) -> Tensor:
        """Novelty `(B,)` of early taps; above 1 an image is none of the known kind."""
        return self.distance(pool(early_BCHW)) / self.limit

    def distance(self, pooled_BC: Tensor) -> Tensor:
        """d of pooled features, `(B,)`."""
        z_BC = (pooled_BC - self.mean_C) * self.scale_C
        p_BK = z_BC @ self.axes_CK
        rest_BC = z_BC - p_BK @ self.axes_CK.T
        return (p_BK.square() * self.weight_K).sum(1) + rest_BC.square().sum(1) * self.rest


def pool(early_BCHW: Tensor) -> Tensor:
    """Mean over positions in float32, `(B, C)`."""
    return early_BCHW.float().mean((2, 3))


def fit_input_check(pooled_nC: Tensor, *, components: int | None = None) -> InputCheck:
    """The check of training images' pooled features `(n, C)`; its limit is yet to be set.

    Args:
        components: K; default half the channels.

    Raises `ValueError` for fewer than two images.
    """
    n, channels = pooled_nC.shape
    if n < 2:
        raise ValueError(f"{n} images fit no covariance")
    components = components or max(1, channels // 2)
    features = pooled_nC.double()
    mean = features.mean(0)
    deviation = features.std(0, unbiased=False)
    # A channel that hardly moves says nothing, and must not be blown up to say everything.
    floor = 1e-3 * features.std(unbiased=False) + 1e-12
    scale = 1 / (deviation + floor)
    z = (features - mean) * scale
    variance, axes = torch.linalg.eigh(z.T @ z / n)  # ascending
    # Fewer images than channels leave directions without any variance.
    variance = variance.clamp_min(1e-6 * float(variance[-1]) + 1e-12)
    check = InputCheck(channels, components)
    check.mean_C.copy_(mean)
    check.scale_C.copy_(scale)
    check.axes_CK.copy_(axes[:, -components:])
    check.weight_K.copy_(1 / variance[-components:])
    if components < channels:
        check.rest.copy_(1 / variance[:-components].mean())
    return check
