"""Section 2.2, Eq. 6: the background set, Theta and the hybrid feature."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from biigma_cli.core.sampling import background_draw, hybrid_feature, sample_background
from tests.core.tiny import normal, seeded
from tests.reference import equations as ref

B, C, H, W = 2, 48, 5, 7
METHODS = ("replacement", "permutation")
properties = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10_000)


def features(seed: int = 0) -> Tensor:
    """R after a ReLU, with every third position dead."""
    feat = normal(B, C, H, W, seed=seed).relu()
    feat.flatten(2)[..., ::3] = 0
    return feat


def some_map(seed: int = 0) -> Tensor:
    """M in (0, 1), with some positions at exactly 1, whose background vector is zero."""
    m = torch.sigmoid(normal(B, 1, H, W, seed=seed + 50))
    m.flatten(2)[..., 1::5] = 1
    return m


def vectors(feat_BCHW: Tensor) -> set[tuple[float, ...]]:
    """All vectors of a batch, as a set."""
    return {tuple(v.tolist()) for v in feat_BCHW.permute(0, 2, 3, 1).flatten(0, 2)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(4))
def test_eq6_hybrid_matches_loops(method: str, seed: int) -> None:
    """B, Theta and H for a given draw, with zero vectors in the batch."""
    feat, m, draw = features(seed), some_map(seed), torch.rand(B * H * W, generator=seeded(seed))
    got = hybrid_feature(feat, m, draw, method=method)
    expected = ref.hybrid_section22(feat, m[:, 0], draw, method)
    assert got.shape == (B, C, H, W)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def test_methods_differ() -> None:
    """With replacement a vector may come twice; a permutation uses each once."""
    feat = normal(B, C, H, W).abs() + 0.1
    draw = torch.rand(B * H * W, generator=seeded(1))
    once = sample_background(feat, draw, method="permutation")
    again = sample_background(feat, draw, method="replacement")
    assert len(vectors(once)) == B * H * W
    assert vectors(once) == vectors(feat)
    assert len(vectors(again)) < B * H * W


@properties
@given(seed=seeds, method=st.sampled_from(METHODS))
def test_mask_one_is_the_identity(seed: int, method: str) -> None:
    """M = 1: H = R."""
    feat = features(seed)
    draw = torch.rand(B * H * W, generator=seeded(seed))
    assert torch.equal(hybrid_feature(feat, torch.ones(B, 1, H, W), draw, method=method), feat)


@properties
@given(seed=seeds, method=st.sampled_from(METHODS))
def test_mask_zero_takes_every_position_from_the_batch(seed: int, method: str) -> None:
    """M = 0: every vector of H is one of R's, and not a zero vector unless permuted."""
    feat = features(seed)
    draw = torch.rand(B * H * W, generator=seeded(seed))
    hybrid = hybrid_feature(feat, torch.zeros(B, 1, H, W), draw, method=method)
    assert vectors(hybrid) <= vectors(feat)
    assert ((0.0,) * C in vectors(hybrid)) == (method == "permutation")


def test_vectors_cross_images() -> None:
    """B is the whole batch's: an image gets vectors of the other."""
    feat = torch.ones(B, C, H, W)
    feat[1] = 2
    draw = torch.rand(B * H * W, generator=seeded(0))
    for method in METHODS:
        theta = sample_background(feat, draw, method=method)
        assert set(theta[0].unique().tolist()) == {1.0, 2.0}


def test_every_member_can_be_drawn_and_no_other() -> None:
    """The ends of [0, 1) reach the first and the last member; the shares are even."""
    feat = torch.zeros(B, 1, H, W)
    feat.view(-1)[10:15] = torch.arange(1.0, 6.0)
    top = 1 - 2**-24  # the largest float32 below 1
    draw = torch.linspace(0, top, B * H * W)
    theta = sample_background(feat, draw).flatten()
    assert theta[0] == 1
    assert theta[-1] == 5
    assert torch.bincount(theta.long(), minlength=6).tolist() == [0, 14, 14, 14, 14, 14]


def test_empty_background_gives_zero() -> None:
    """No vector left in B: Theta is zero, and nothing is NaN."""
    feat, draw = features(), torch.rand(B * H * W, generator=seeded(0))
    assert not bool(sample_background(torch.zeros(B, C, H, W), draw).any())
    dead = hybrid_feature(torch.zeros(B, C, H, W), some_map().float(), draw)
    assert not bool(dead.any())
    expected = ref.hybrid_section22(feat, torch.ones(B, H, W), draw, "replacement")
    assert torch.equal(hybrid_feature(feat, torch.ones(B, 1, H, W), draw), expected)


def test_double_masking_is_as_written() -> None:
    """A background vector is multiplied by M_inv where it is from and again where it goes."""
    feat, m = torch.ones(1, 1, 1, 2), torch.tensor([[[[0.2, 0.6]]]])
    hybrid = hybrid_feature(feat, m, torch.tensor([0.9, 0.9]))
    assert hybrid.flatten().tolist() == pytest.approx([0.2 + 0.8 * 0.4, 0.6 + 0.4 * 0.4])


def test_draw_is_reproducible() -> None:
    """A seed means a draw; one number in [0, 1) for each position of the batch."""
    feat = torch.zeros(B, C, H, W)
    draw = background_draw(feat, seeded(3))
    assert draw.shape == (B * H * W,)
    assert 0 <= float(draw.min()) <= float(draw.max()) < 1
    assert torch.equal(draw, background_draw(feat, seeded(3)))
    assert not torch.equal(draw, background_draw(feat, seeded(4)))


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck(method: str) -> None:
    """Gradients reach R and M through both terms of H."""
    feat = (normal(2, 3, 2, 3).abs() + 0.1).requires_grad_()
    m = torch.sigmoid(normal(2, 1, 2, 3, seed=9)).detach().requires_grad_()
    draw = torch.rand(12, generator=seeded(5))
    assert torch.autograd.gradcheck(
        lambda f, s: hybrid_feature(f, s, draw, method=method), (feat, m)
    )
