"""Depthwise convolutions that train at full speed on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` with a group a channel; under autocast on a CPU its gradients are float32's.

    There the backward pass in bfloat16 is slower than float32's, most of all with strides
    (`benchmarks/depthwise.py`). Its input and output keep their type; parameters and their names
    are those of `nn.Conv2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or not (
            torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
        ):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float()).to(torch.get_autocast_dtype("cpu"))


def with_depthwise(module: nn.Module) -> None:
    """Put a `DepthwiseConv2d` in the place of each depthwise `nn.Conv2d` in `module`."""
    for parent in list(module.modules()):
        for name, conv in list(parent.named_children()):
            if type(conv) is nn.Conv2d and conv.groups == conv.in_channels > 1:
                fast = DepthwiseConv2d(
                    conv.in_channels,
                    conv.out_channels,
                    conv.kernel_size,  # type: ignore[arg-type]
                    stride=conv.stride,  # type: ignore[arg-type]
                    padding=conv.padding,  # type: ignore[arg-type]
                    dilation=conv.dilation,  # type: ignore[arg-type]
                    groups=conv.groups,
                    bias=conv.bias is not None,
                    device="meta",
                )
                fast.weight, fast.bias = conv.weight, conv.bias
                setattr(parent, name, fast)
