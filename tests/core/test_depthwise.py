"""Depthwise convolutions: the same numbers, in float32 where bfloat16 would be slow."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from biigma_cli.core.backbone import TRUNKS
from biigma_cli.core.depthwise import DepthwiseConv2d, with_depthwise


def test_which_are_replaced() -> None:
    """Depthwise ones alone; weights, names and settings stay."""
    net = nn.Sequential(
        nn.Conv2d(6, 12, 1), nn.Conv2d(12, 12, 5, stride=2, padding=1, dilation=2, groups=12),
        nn.Conv2d(12, 8, 3, groups=4), nn.Conv2d(1, 1, 3),
    )  # fmt: skip
    before = copy.deepcopy(net)
    x = torch.randn(2, 6, 17, 19)
    with_depthwise(net)
    assert [type(m) is DepthwiseConv2d for m in net] == [False, True, False, False]
    assert {k: v.shape for k, v in net.state_dict().items()} == {
        k: v.shape for k, v in before.state_dict().items()
    }
    torch.testing.assert_close(net[:3](x), before[:3](x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0"])
def test_trunks_use_them(name: str) -> None:
    """In all of their inverted residuals, and nowhere a plain depthwise convolution is left."""
    convs = [m for m in TRUNKS[name]().modules() if isinstance(m, nn.Conv2d)]
    depthwise = [m for m in convs if m.groups > 1]
    assert len(depthwise) in (16, 17)
    assert all(isinstance(m, DepthwiseConv2d) for m in depthwise)


def test_under_autocast() -> None:
    """bfloat16 comes and goes; what is computed between, gradients included, is float32's."""
    torch.manual_seed(0)
    conv = DepthwiseConv2d(12, 12, 3, stride=2, padding=1, groups=12, bias=False)
    plain = nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=12, bias=False)
    plain.load_state_dict(conv.state_dict())
    x = torch.randn(2, 12, 17, 19).to(torch.bfloat16)
    own, other = x.clone().requires_grad_(), x.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(own)
    z = plain(other)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, z.to(torch.bfloat16))
    y.float().square().sum().backward()
    y.detach().float().mul(2).mul(z).sum().backward()
    assert own.grad is not None
    assert own.grad.dtype == torch.bfloat16
    assert torch.equal(own.grad, other.grad.to(torch.bfloat16))
    torch.testing.assert_close(conv.weight.grad, plain.weight.grad, rtol=1e-5, atol=1e-5)


def test_elsewhere_it_is_torchs() -> None:
    """Without gradients, and without autocast."""
    conv = DepthwiseConv2d(12, 12, 3, padding=1, groups=12)
    plain = nn.Conv2d(12, 12, 3, padding=1, groups=12)
    plain.load_state_dict(conv.state_dict())
    x = torch.randn(2, 12, 9, 9)
    assert torch.equal(conv(x), plain(x))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv(x), plain(x))
