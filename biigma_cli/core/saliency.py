"""Spatial attention from early exits (section 2.2, Eq. 5-6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biigma_cli.core.taps import Taps


class Saliency(nn.Module):
    """Adapters, channel pruning and the map M.

    Args:
        channels: channels of the three taps.
        adapters: `conv_max` (paper: 1x1 convolution + max-pool), `max` or `avg` (pooling only).
        adapter_channels: output channels of each 1x1 convolution.
        prune: `low_variance` removes channels whose variance over positions is under the mean
            variance of all channels; `high_variance` the others (the formula as printed, a typo);
            `none` removes none.
        form: `plain` (Eq. 5) or `standardised`.
    """

    def __init__(
        self,
        channels: tuple[int, int, int],
        *,
        adapters: str = "conv_max",
        adapter_channels: int = 256,
        prune: str = "low_variance",
        form: str = "plain",
    ) -> None:
        super().__init__()
        self.pooling = "avg" if adapters == "avg" else "max"
        self.prune = prune
        self.form = form
        self.adapters = nn.ModuleList(
            nn.Conv2d(c, adapter_channels, 1) if adapters == "conv_max" else nn.Identity()
            for c in channels
        )

    def forward(self, taps: Taps, *, form: str | None = None) -> Tensor:
        """M in (0, 1), `(B, 1, H, W)`, at the last tap's resolution; `form` in place of its own."""
        pooled = []
        for adapter, tap in zip(self.adapters, taps, strict=True):
            x = adapter(tap)
            factor = tap.shape[-1] // taps.last.shape[-1]
            if factor > 1:
                x = F.avg_pool2d(x, factor) if self.pooling == "avg" else F.max_pool2d(x, factor)
            pooled.append(x)
        return saliency_map(torch.cat(pooled, 1), prune=self.prune, form=form or self.form)


def saliency_map(stack_BCHW: Tensor, *, prune: str = "low_variance", form: str = "plain") -> Tensor:
    """Pruning, Eq. 5 and, on demand, standardisation.

    The variance is taken over the positions of each image, so that the map of an image does not
    depend on its batch.

    Args:
        stack_BCHW: S~, the concatenated adapter outputs.

    Returns:
        M, `(B, 1, H, W)`.
    """
    stack = stack_BCHW.to(torch.promote_types(stack_BCHW.dtype, torch.float32))
    if prune == "none":
        mean = stack.mean(1, keepdim=True)
    else:
        # Not `var`, which is many times slower over positions that lie outside the channels.
        fixed = stack.detach()
        centred = fixed - fixed.mean((2, 3), keepdim=True)
        variance = centred.square_().mean((2, 3))  # (B, C)
        # With equal variances, rounding must not lift the mean above them all.
        above = variance >= variance.mean(1, keepdim=True) * (1 - 1e-5)
        keep = (above if prune == "low_variance" else ~above).to(stack.dtype)
        # Not a matrix product: autocast would run that in bf16, too coarse a mean.
        mean = (stack * keep[:, :, None, None]).sum(1, keepdim=True)
        mean = mean / keep.sum(1).clamp_min(1)[:, None, None, None]
    if form == "standardised":
        level = mean - mean.mean((2, 3), keepdim=True)
        mean = level * torch.rsqrt(level.square().mean((2, 3), keepdim=True) + 1e-6)
    return torch.sigmoid(mean)
