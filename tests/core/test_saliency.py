"""Section 2.2, Eq. 5: adapters, channel pruning and the map."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from biigma_cli.core.saliency import Saliency, saliency_map
from biigma_cli.core.taps import Taps
from tests.core.tiny import normal
from tests.reference import equations as ref

B, C, H, W = 2, 48, 5, 7
CHANNELS = (13, 17, 19)
PRUNES = ("low_variance", "high_variance", "none")
FORMS = ("plain", "standardised")


def stack(seed: int = 0) -> Tensor:
    """S~ with variances that differ between channels and images."""
    scale = 0.2 + normal(B, C, 1, 1, seed=seed + 1).abs()
    return normal(B, C, H, W, seed=seed) * scale + normal(B, C, 1, 1, seed=seed + 2)


def taps(count: int = B, seed: int = 0) -> Taps:
    """Post-ReLU taps of strides 8, 16 and 32 on a grid that is not square."""
    shapes = zip(CHANNELS, (4, 2, 1), strict=True)
    return Taps(*(normal(count, c, f * H, f * W, seed=seed + c).relu() for c, f in shapes))


@pytest.mark.parametrize("prune", PRUNES)
@pytest.mark.parametrize("form", FORMS)
def test_eq5_matches_loops(prune: str, form: str) -> None:
    """All prunings, both forms."""
    s = stack()
    kept = [len(ref.pruned_channels(image, prune)) for image in s]
    assert all(0 < k < C for k in kept) or prune == "none"
    m = saliency_map(s, prune=prune, form=form)
    assert m.shape == (B, 1, H, W)
    torch.testing.assert_close(m[:, 0], ref.saliency_eq5(s, prune, form), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("prune", PRUNES)
def test_channels_last_far_from_zero(prune: str) -> None:
    """The layout of a running network, in float32, with means far above the spread."""
    s = (stack() + 100).float()
    given = s.contiguous(memory_format=torch.channels_last)
    got = saliency_map(given, prune=prune, form="standardised")
    expected = ref.saliency_eq5(s, prune, "standardised").float()
    torch.testing.assert_close(got[:, 0], expected, rtol=1e-3, atol=1e-4)


def test_low_and_high_variance_are_complements() -> None:
    """The reading taken removes the channels that the formula as printed keeps."""
    image = stack()[0]
    low, high = (ref.pruned_channels(image, p) for p in ("low_variance", "high_variance"))
    assert sorted(low + high) == list(range(C))
    flat = torch.zeros(1, 3, H, W, dtype=torch.float64)
    flat[0, 0] = normal(H, W)  # the only channel that varies
    flat[0, 1:] = 5.0
    kept = saliency_map(flat, prune="low_variance")
    torch.testing.assert_close(kept[0, 0], torch.sigmoid(flat[0, 0]), rtol=1e-12, atol=0)
    removed = saliency_map(flat, prune="high_variance")
    torch.testing.assert_close(removed, torch.full_like(removed, 1 / (1 + 2.718281828459045**-5)))


@pytest.mark.parametrize("adapters", ["conv_max", "max", "avg"])
@pytest.mark.parametrize("prune", PRUNES)
@pytest.mark.parametrize("form", FORMS)
def test_adapters_match_loops(adapters: str, prune: str, form: str) -> None:
    """1x1 convolution and pooling by 4, 2 and 1, stacked in the order of the taps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = Saliency(CHANNELS, adapters=adapters, adapter_channels=11, prune=prune, form=form)
    block = block.double()
    t = taps()
    adapted = []
    for module, tap, factor in zip(block.adapters, t, (4, 2, 1), strict=True):
        weight, bias = (
            (module.weight.detach(), module.bias.detach())
            if isinstance(module, torch.nn.Conv2d)
            else (None, None)
        )
        adapted.append(
            ref.adapter(tap, factor, "avg" if adapters == "avg" else "max", weight, bias)
        )
    expected = ref.saliency_eq5(torch.cat(adapted, 1), prune, form)
    torch.testing.assert_close(block(t)[:, 0], expected, rtol=1e-10, atol=1e-12)


def test_pooling_only_adapters_have_no_parameters() -> None:
    """The released code's adapters learn nothing; the paper's are three 1x1 convolutions."""
    assert not list(Saliency(CHANNELS, adapters="max").parameters())
    shapes = [tuple(p.shape) for p in Saliency(CHANNELS, adapter_channels=11).parameters()]
    assert shapes == [s for c in CHANNELS for s in ((11, c, 1, 1), (11,))]


def test_standardised_map_has_zero_mean_and_unit_variance_before_the_sigmoid() -> None:
    """Per image, whatever the features' level and spread."""
    logit = saliency_map(100 + 0.3 * stack(), form="standardised").logit()
    torch.testing.assert_close(logit.mean((2, 3)), torch.zeros(B, 1).double(), atol=1e-9, rtol=0)
    variance = logit.var((2, 3), correction=0)
    torch.testing.assert_close(variance, torch.ones(B, 1).double(), atol=1e-3, rtol=0)


def test_plain_map_of_relu_features_is_flat_and_standardised_is_not() -> None:
    """The plain map never falls under 0.5 and hardly varies; the standardised one does both."""
    s = stack().relu()
    plain, standardised = saliency_map(s), saliency_map(s, form="standardised")
    assert float(plain.min()) >= 0.5
    assert float(plain.std()) < 0.1
    assert float(standardised.min()) < 0.3
    assert float(standardised.max()) > 0.7


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    prune=st.sampled_from(PRUNES),
    form=st.sampled_from(FORMS),
)
def test_map_does_not_depend_on_the_batch(seed: int, prune: str, form: str) -> None:
    """An image alone has the map it has beside others."""
    s = stack(seed)
    together = saliency_map(s, prune=prune, form=form)
    for i in range(B):
        alone = saliency_map(s[i : i + 1], prune=prune, form=form)
        torch.testing.assert_close(alone[0], together[i], rtol=1e-12, atol=1e-14)
    assert float(together.min()) > 0
    assert float(together.max()) < 1


@pytest.mark.parametrize("channels", [3, 16, 48])
def test_equal_variances_remove_nothing(channels: int) -> None:
    """No channel lies under the mean variance, so all stay, in float32 too."""
    for seed in range(20):
        one = normal(1, 1, H, W, seed=seed).float()
        m = saliency_map(one.expand(1, channels, H, W))
        torch.testing.assert_close(m, torch.sigmoid(one), rtol=1e-5, atol=1e-6)


def test_one_position_removes_nothing() -> None:
    """Side 32 leaves one position, so no channel varies and all stay."""
    s = normal(B, C, 1, 1)
    torch.testing.assert_close(saliency_map(s), torch.sigmoid(s.mean(1, keepdim=True)))


@pytest.mark.parametrize("form", FORMS)
def test_constant_image_has_a_constant_map(form: str) -> None:
    """No variance anywhere: finite, the same everywhere, with a finite gradient."""
    s = torch.full((1, 3, H, W), 2.0, requires_grad=True)
    m = saliency_map(s, form=form)
    expected = torch.sigmoid(torch.tensor(2.0 if form == "plain" else 0.0))
    torch.testing.assert_close(m, expected.expand_as(m))
    (gradient,) = torch.autograd.grad(m.sum(), s)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prune", ["none", "low_variance", "high_variance"])
def test_float32_under_bf16_autocast(form: str, prune: str) -> None:
    """Autocast does not touch the map of a float32 stack."""
    s = stack().float()
    expected = saliency_map(s, prune=prune, form=form)
    with torch.autocast("cpu", torch.bfloat16):
        got = saliency_map(s, prune=prune, form=form)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form: str) -> None:
    """Gradients pass through the map; the choice of channels gives none."""
    s = stack()[:, :6, :2, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: saliency_map(t, form=form), (s,))
