"""Eq. 4: multi-head channel attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from biigma_cli.core.mica import MICA
from tests.core.tiny import normal
from tests.reference import equations as ref

B, C, H, W = 2, 48, 5, 7


def block(heads: int = 3, channels: int = 20, reduction: int = 4, seed: int = 0) -> MICA:
    """A float64 MICA block."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MICA(C, heads=heads, projection_channels=channels, reduction=reduction).double()


def reference(mica: MICA, feat_BCHW: Tensor) -> Tensor:
    """R^CA by the loop over heads, from the block's own weights."""
    return ref.mica_eq4(
        feat_BCHW,
        list(mica.project.weight.detach().split(mica.channels)),
        list(mica.squeeze_KSD.detach()),
        list(mica.excite_KDS.detach()),
    )


@pytest.mark.parametrize("heads", [1, 2, 3, 4])
@pytest.mark.parametrize(("channels", "reduction"), [(20, 4), (48, 16), (6, 16)])
def test_eq4_matches_loop_over_heads(heads: int, channels: int, reduction: int) -> None:
    """R^CA, the pooled shortcut and the shapes; the last case has one hidden unit."""
    mica, feat = block(heads, channels, reduction), normal(B, C, H, W, seed=1)
    assert mica.squeeze_KSD.shape == (heads, max(1, channels // reduction), channels)
    out = mica(feat)
    expected = reference(mica, feat)
    assert expected.shape == (B, heads * channels, H, W)
    torch.testing.assert_close(out.concatenated(), expected, rtol=1e-10, atol=1e-12)
    assert out.gated().shape == (B, heads, channels, H, W)
    torch.testing.assert_close(out.gated().flatten(1, 2), out.concatenated(), rtol=0, atol=0)
    torch.testing.assert_close(
        out.pooled_BKD.flatten(1), expected.mean((2, 3)), rtol=1e-10, atol=1e-12
    )


def test_pooled_shortcut_gives_the_same_logits() -> None:
    """Gated map, concatenated, pooled and classified equals the shortcut, in float32."""
    mica, feat = block().float(), normal(B, C, H, W, seed=2).float()
    head = torch.nn.Linear(60, 7)
    out = mica(feat)
    plain = head(out.concatenated().mean((2, 3)))
    torch.testing.assert_close(head(out.pooled_BKD.flatten(1)), plain, rtol=1e-5, atol=1e-5)


def test_shortcut_has_the_same_gradients() -> None:
    """Training by the shortcut moves the weights as training by the gated map would."""
    mica, feat = block(), normal(B, C, H, W, seed=3)
    aim = normal(60, seed=4)
    parameters = list(mica.parameters())
    short = torch.autograd.grad((mica(feat).pooled_BKD.flatten(1) @ aim).sum(), parameters)
    plain = torch.autograd.grad((mica(feat).concatenated().mean((2, 3)) @ aim).sum(), parameters)
    for a, b in zip(short, plain, strict=True):
        assert float(b.abs().max()) > 0
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layout_of_the_input_changes_nothing(layout: torch.memory_format) -> None:
    """Value and gradient; the gated maps lie channels innermost either way."""
    mica, feat = block(), normal(B, C, H, W, seed=6)
    given = feat.clone(memory_format=layout).requires_grad_()
    gated = mica(given).gated()
    assert gated.permute(0, 3, 4, 1, 2).is_contiguous()
    torch.testing.assert_close(gated.flatten(1, 2), reference(mica, feat), rtol=1e-10, atol=1e-12)
    plain = feat.clone().requires_grad_()
    aim = normal(B, 60, H, W, seed=7)
    (expected,) = torch.autograd.grad((by_convolution(mica, plain) * aim).sum(), plain)
    (got,) = torch.autograd.grad((gated.flatten(1, 2) * aim).sum(), given)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def by_convolution(mica: MICA, feat_BCHW: Tensor) -> Tensor:
    """R^CA with torch's own convolution for the projection."""
    maps = mica.project(feat_BCHW).relu().unflatten(1, (mica.heads, mica.channels))
    pooled = maps.mean((3, 4))
    hidden = torch.einsum("bkd,ksd->bks", pooled, mica.squeeze_KSD).relu()
    gate = torch.einsum("bks,kds->bkd", hidden, mica.excite_KDS).sigmoid()
    return (maps * gate[..., None, None]).flatten(1, 2)


def test_projecting_a_mixture_of_positions_is_mixing_their_projections() -> None:
    """The projection is linear and the same everywhere; what follows it takes either."""
    mica, feat = block(), normal(B, C, H, W, seed=8)
    share, order = torch.rand(B, 1, H, W, dtype=torch.float64), torch.randperm(H * W)

    def mixed(x: Tensor) -> Tensor:
        moved = x.flatten(2)[..., order].unflatten(2, (H, W))
        return share * x + (1 - share) * moved

    expected = mica(mixed(feat))
    projected = mica.project_positions(feat).permute(0, 3, 1, 2)
    got = mica.attend(mixed(projected).permute(0, 2, 3, 1))
    torch.testing.assert_close(got.gated(), expected.gated(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got.pooled_BKD, expected.pooled_BKD, rtol=1e-10, atol=1e-12)


def test_heads_are_independent_of_each_other() -> None:
    """Changing one head's weights leaves the others' features alone."""
    mica, feat = block(), normal(B, C, H, W, seed=5)
    before = mica(feat).gated()
    with torch.no_grad():
        mica.project.weight[20:40] += 0.1
        mica.excite_KDS[1] += 0.1
    after = mica(feat).gated()
    torch.testing.assert_close(before[:, [0, 2]], after[:, [0, 2]], rtol=1e-12, atol=1e-14)
    assert not torch.allclose(before[:, 1], after[:, 1])


def test_projection_has_no_bias_and_heads_differ() -> None:
    """No bias (released code); heads start at different weights."""
    mica = block()
    assert mica.project.bias is None
    one, two, three = mica.project.weight.split(20)
    assert not torch.equal(one, two)
    assert not torch.equal(two, three)
    assert {name for name, _ in mica.named_parameters()} == {
        "project.weight",
        "squeeze_KSD",
        "excite_KDS",
    }
