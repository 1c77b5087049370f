"""Multi-head independence-guided channel attention (section 2.1, Fig. 1, Eq. 4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Heads(NamedTuple):
    """What K heads make of one feature map, before the gates are applied.

    The gated feature R_proj^k is `projected * gate`; most users need only `pooled`.

    Attributes:
        projected_BKDHW: ReLU(1x1 conv(R)), not yet gated.
        gate_BKD: squeeze-and-excitation gates in (0, 1).
        pooled_BKD: global average of R_proj^k.
    """

    projected_BKDHW: Tensor
    gate_BKD: Tensor
    pooled_BKD: Tensor

    def gated(self) -> Tensor:
        """R_proj^k for all heads, `(B, K, D, H, W)`."""
        return self.projected_BKDHW * self.gate_BKD[..., None, None]

    def concatenated(self) -> Tensor:
        """R^CA of Eq. 4, `(B, K * D, H, W)`."""
        return self.gated().flatten(1, 2)


class MICA(nn.Module):
    """K projection heads: 1x1 convolution (no bias) + ReLU + squeeze-and-excitation.

    All heads are one convolution and two batched products, not a loop. The gate does not depend on
    the position, so the average of the gated map is the gate times the average of the map:
    mean(g * P) = g * mean(P), and mean(P) is what the squeeze computes anyway. Logits therefore
    never need the gated map (`Heads.pooled_BKD`); only the independence criterion does.

    The convolution is computed as a matrix product over positions, channels innermost. So the mean,
    the rectifier and the criterion, and all their gradients, find the features in one layout,
    whatever that of the input; a mean over a channels-last map sends back a gradient of the other
    layout.

    Args:
        in_channels: C.
        heads: K.
        projection_channels: D.
        reduction: of the excitation's hidden layer, at least one unit.
    """

    def __init__(
        self, in_channels: int, *, heads: int, projection_channels: int, reduction: int
    ) -> None:
        super().__init__()
        self.heads = heads
        self.channels = projection_channels
        hidden = max(1, projection_channels // reduction)
        self.project = nn.Conv2d(in_channels, heads * projection_channels, 1, bias=False)
        self.squeeze_KSD = nn.Parameter(torch.empty(heads, hidden, projection_channels))
        self.excite_KDS = nn.Parameter(torch.empty(heads, projection_channels, hidden))
        nn.init.kaiming_normal_(self.project.weight, nonlinearity="relu")
        for head in range(heads):
            nn.init.kaiming_normal_(self.squeeze_KSD[head], nonlinearity="relu")
            nn.init.xavier_normal_(self.excite_KDS[head])

    def forward(self, feat_BCHW: Tensor) -> Heads:
        """Project, squeeze and excite `(B, C, H, W)`."""
        return self.attend(self.project_positions(feat_BCHW))

    def project_positions(self, feat_BCHW: Tensor) -> Tensor:
        """The heads' 1x1 convolution before its ReLU, `(B, H, W, K * D)`.

        Linear, and the same at all positions: any mixture of a feature map's positions is projected
        by mixing the projections in its place.
        """
        return F.linear(feat_BCHW.permute(0, 2, 3, 1), self.project.weight.flatten(1))

    def attend(self, projected_BHWE: Tensor) -> Heads:
        """ReLU, squeeze and excite what `project_positions` gives, E = K * D."""
        projected = F.relu(projected_BHWE)
        b, h, w, _ = projected.shape
        pooled_BKD = projected.mean((1, 2)).view(b, self.heads, self.channels)
        hidden_BKS = F.relu(torch.einsum("bkd,ksd->bks", pooled_BKD, self.squeeze_KSD))
        gate_BKD = torch.sigmoid(torch.einsum("bks,kds->bkd", hidden_BKS, self.excite_KDS))
        return Heads(
            projected_BKDHW=projected.view(b, h, w, self.heads, self.channels).permute(
                0, 3, 4, 1, 2
            ),
            gate_BKD=gate_BKD,
            pooled_BKD=pooled_BKD * gate_BKD,
        )
