"""What a trunk gives: feature maps at three strides."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Taps(NamedTuple):
    """Feature maps at strides 8, 16 and 32, all after a ReLU.

    Attributes:
        early: `(B, C1, 4H, 4W)`.
        middle: `(B, C2, 2H, 2W)`.
        last: `(B, C, H, W)`, the paper's R.
    """

    early: Tensor
    middle: Tensor
    last: Tensor
