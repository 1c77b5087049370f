"""Eq. 1-3: independence between heads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from biigma_cli.core.hsic import Independence, centre, independence, squared_distances
from tests.core.tiny import normal, seeded
from tests.reference import equations as ref

B, K, D, H, W = 2, 3, 11, 5, 7
CRITERIA = ("hsic", "cka", "cosine")
properties = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10_000)
scales = st.sampled_from([0.05, 1.0, 30.0])


def heads(seed: int = 0, scale: float = 0.3) -> Tensor:
    """Head features `(B, K, D, H, W)`, float64, with heads 0 and 1 dependent."""
    x = normal(B, K, D, H, W, seed=seed)
    x[:, 1] = x[:, 0].flip(1).tanh() + 0.3 * x[:, 1]
    return scale * x


@pytest.mark.parametrize("dims", [(4, 9), (D, 6)])
def test_eq1_cross_covariance_is_the_centred_product(dims: tuple[int, int]) -> None:
    """With a linear kernel the centred product is |Eq. 1|_F^2."""
    one, two = (normal(H * W, d, seed=d) for d in dims)
    value = (centre(one @ one.T) * centre(two @ two.T)).sum() / (H * W) ** 2
    assert float(value) == pytest.approx(
        float(ref.cross_covariance_eq1(one, two).square().sum()), rel=1e-10
    )


def test_eq1_kernel_features_give_eq2() -> None:
    """|Eq. 1|_F^2 on phi, found by Cholesky from K = phi phi^T, is Eq. 2."""
    x = heads()[:1, :2]
    grams = [ref.rbf_gram(ref.positions(h), 1.0) for h in x[0]]
    phi = [torch.linalg.cholesky(g + 1e-12 * torch.eye(H * W)) for g in grams]
    expected = float(ref.cross_covariance_eq1(phi[0], phi[1]).square().sum())
    assert expected == pytest.approx(ref.hsic_eq2(*grams), rel=1e-6)
    assert float(independence(x).pairs_KK[0, 1]) == pytest.approx(expected, rel=1e-6)


def test_squared_distances_match_loops() -> None:
    """Never negative, zero on the diagonal, right off it, far from the origin too."""
    x = heads()[:, :, :, 0].mT + 1000  # (B, K, W, D)
    d2 = squared_distances(x)
    assert d2.shape == (B, K, W, W)
    for b in range(B):
        for k in range(K):
            for i in range(W):
                for j in range(W):
                    expected = float((x[b, k, i] - x[b, k, j]).square().sum())
                    assert float(d2[b, k, i, j]) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert bool((d2.diagonal(dim1=-2, dim2=-1) == 0).all())
    assert bool((squared_distances(x.float()) >= 0).all())


@pytest.mark.parametrize("last", [False, True])
def test_gradient_of_squared_distances_is_that_of_the_differences(last: bool) -> None:
    """The closed form against plain automatic differentiation, for both layouts of the features."""
    x = heads()[:, :, :, 0] + 5
    x = (x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 1, 3) if last else x.mT).clone()
    x[0, 0, 1] = x[0, 0, 0]  # equal vectors: distance and gradient 0
    x.requires_grad_()
    aim = normal(B, K, W, W, seed=1)  # not symmetric
    direct = (x[:, :, :, None] - x[:, :, None]).square().sum(-1)
    (expected,) = torch.autograd.grad((direct * aim).sum(), x)
    (got,) = torch.autograd.grad((squared_distances(x) * aim).sum(), x)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert torch.autograd.gradcheck(squared_distances, (x[:1, :2, :4].detach().requires_grad_(),))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_layout_of_the_features_changes_nothing(criterion: str) -> None:
    """Channels innermost, as MICA gives them, or positions innermost."""
    x = heads().requires_grad_()
    y = heads().permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2).requires_grad_()
    one, two = (independence(t, criterion=criterion, bandwidth="median") for t in (x, y))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
    (left,), (right,) = (torch.autograd.grad(r.value, t) for r, t in ((one, x), (two, y)))
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_eq2_pairs_match_loops(criterion: str, sigma: float) -> None:
    """Every ordered pair, the kernel mean and the cosine table against the loops."""
    x = heads()
    result = independence(x, criterion=criterion, sigma=sigma)
    expected, kernel_mean = ref.criterion_pairs(x, criterion, [sigma] * K)
    cosine, _ = ref.criterion_pairs(x, "cosine", [sigma] * K)
    torch.testing.assert_close(result.pairs_KK, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(result.cosine_KK, cosine, rtol=1e-9, atol=1e-12)
    assert float(result.kernel_mean) == pytest.approx(kernel_mean, rel=1e-9)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("pairs", ["ordered_mean", "unordered_sum"])
@pytest.mark.parametrize("bandwidth", ["fixed", "median"])
def test_eq3_value_matches_loops(criterion: str, pairs: str, bandwidth: str) -> None:
    """Both readings of the sum, both bandwidths, all criteria."""
    x = heads(scale=3.0)
    sigma_K = [1.5] * K
    if bandwidth == "median":
        sigma_K = [
            ref.median_distance(torch.stack([ref.positions(image[k]) for image in x]))
            for k in range(K)
        ]
    table, _ = ref.criterion_pairs(x, criterion, sigma_K)
    result = independence(x, criterion=criterion, sigma=1.5, bandwidth=bandwidth, pairs=pairs)
    assert result.sigma_K.tolist() == pytest.approx(sigma_K, rel=1e-9)
    assert float(result.value) == pytest.approx(ref.independence_eq3(table, pairs), rel=1e-9)


@pytest.mark.parametrize("criterion", ["hsic", "cka"])
@pytest.mark.parametrize("pairs", ["ordered_mean", "unordered_sum"])
def test_unbiased_estimator_matches_loops(criterion: str, pairs: str) -> None:
    """Song et al.'s three sums; a pair under zero adds nothing to the value."""
    x = heads(seed=5, scale=1.0)
    result = independence(x, criterion=criterion, sigma=3.0, pairs=pairs, estimator="unbiased")
    table, _ = ref.criterion_pairs(x, criterion, [3.0] * K, "unbiased")
    assert float(table.min()) < 0
    torch.testing.assert_close(result.pairs_KK, table, rtol=1e-8, atol=1e-12)
    expected = ref.independence_eq3(table.clamp(min=0), pairs)
    assert float(result.value) == pytest.approx(expected, rel=1e-8)


def test_unbiased_estimator_is_zero_on_average_for_independent_heads() -> None:
    """Few positions in many channels: Eq. 2 is far above zero, the unbiased estimate is not."""
    x = normal(200, 2, 64, 3, 3, seed=6)
    biased, unbiased = (
        float(independence(x, criterion="cka", bandwidth="median", estimator=e).pairs_KK[0, 1])
        for e in ("biased", "unbiased")
    )
    assert biased > 0.5
    assert abs(unbiased) < 0.05


def test_unbiased_estimator_needs_four_positions() -> None:
    """N (N - 3) would divide by zero."""
    with pytest.raises(ValueError, match="4 positions"):
        independence(normal(B, K, D, 1, 3), estimator="unbiased")


def test_eq3_forms_differ_by_k_squared_over_two() -> None:
    """Symmetric pairs: the released code's sum is K^2 / 2 times the paper's."""
    x = heads()
    ordered, unordered = (
        float(independence(x, pairs=p).value) for p in ("ordered_mean", "unordered_sum")
    )
    assert unordered == pytest.approx(ordered * K**2 / 2, rel=1e-12)


def test_criterion_none_is_zero_but_still_logs() -> None:
    """`none` has value 0 and keeps the HSIC table for the log."""
    x = heads()
    off, on = independence(x, criterion="none"), independence(x)
    assert float(off.value) == 0
    torch.testing.assert_close(off.pairs_KK, on.pairs_KK, rtol=0, atol=0)


def test_one_head_has_no_pair() -> None:
    """K = 1: the value is 0 for every criterion."""
    for criterion in CRITERIA:
        assert float(independence(heads()[:, :1], criterion=criterion).value) == 0


# --- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("criterion", "estimator"), [*((c, "biased") for c in CRITERIA), ("hsic", "unbiased")]
)
@pytest.mark.parametrize("pairs", ["ordered_mean", "unordered_sum"])
def test_gradcheck_fixed_bandwidth(criterion: str, pairs: str, estimator: str) -> None:
    """Analytic against numeric gradients in float64."""
    x = normal(2, 3, 5, 2, 3, seed=4)
    x[:, 1] = x[:, 0] + 0.5 * x[:, 1]
    x.requires_grad_()

    def value(t: Tensor) -> Tensor:
        return independence(
            t, criterion=criterion, sigma=2.0, pairs=pairs, estimator=estimator
        ).value

    assert torch.autograd.gradcheck(value, (x,))
    (gradient,) = torch.autograd.grad(value(x), x)
    assert float(gradient.abs().max()) > 1e-4


@pytest.mark.parametrize("criterion", ["hsic", "cka"])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("silent", [0.8, 0.97, 1.0])
def test_a_silent_head_gives_no_gradient_of_rounding(
    silent: float, estimator: str, criterion: str
) -> None:
    """Where most positions of a head are equal, as a ReLU leaves them, float32 is as float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 3, 64, 5, 5, generator=generator, dtype=torch.float64)
    x[:, 1] *= torch.rand(4, 1, 5, 5, generator=generator) >= silent
    x[:, 1] += 3 * (silent == 1)
    found = []
    for kind in (torch.float64, torch.float32):
        own = x.to(kind).requires_grad_()
        result = independence(own, criterion=criterion, bandwidth="median", estimator=estimator)
        found.append(torch.autograd.grad(result.value, own)[0].double())
    assert float((found[0] - found[1]).abs().max()) < 1e-3


@pytest.mark.parametrize("criterion", ["hsic", "cka"])
def test_median_bandwidth_is_detached(criterion: str) -> None:
    """The gradient is that of the criterion at the median as a fixed bandwidth."""
    # Every head scaled to the same median, so that one fixed bandwidth suits all.
    sigma = 1.7
    x = heads()
    own = independence(x, bandwidth="median").sigma_K
    x = (x * (sigma / own)[:, None, None, None]).requires_grad_()
    median = independence(x, criterion=criterion, bandwidth="median")
    assert median.sigma_K.tolist() == pytest.approx([sigma] * K, rel=1e-12)
    fixed = independence(x, criterion=criterion, sigma=sigma)
    assert not median.sigma_K.requires_grad
    got, expected = (torch.autograd.grad(r.value, x)[0] for r in (median, fixed))
    assert float(expected.abs().max()) > 1e-6
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-15)


def test_logged_figures_carry_no_gradient() -> None:
    """Only `value` does; and not where the criterion is `none`."""
    x = heads().requires_grad_()
    for criterion in (*CRITERIA, "none"):
        result = independence(x, criterion=criterion)
        assert result.value.requires_grad == (criterion != "none")
        for figure in (result.pairs_KK, result.kernel_mean, result.cosine_KK, result.sigma_K):
            assert not figure.requires_grad


def test_dead_heads_have_finite_gradients() -> None:
    """A head that is zero everywhere, and one that is zero at most positions."""
    for alive in (0, 8):
        x = heads().float().relu()
        x[:, 2].flatten(2)[..., alive:] = 0
        x.requires_grad_()
        for criterion in CRITERIA:
            for bandwidth in ("fixed", "median"):
                value = independence(x, criterion=criterion, bandwidth=bandwidth).value
                (gradient,) = torch.autograd.grad(value, x)
                assert bool(gradient.isfinite().all()), (alive, criterion, bandwidth)


# --- properties --------------------------------------------------------------------------------


@properties
@given(seed=seeds, scale=scales, bandwidth=st.sampled_from(["fixed", "median"]))
def test_hsic_is_symmetric_and_not_negative(seed: int, scale: float, bandwidth: str) -> None:
    """HSIC(a, b) = HSIC(b, a) >= 0."""
    pairs = independence(heads(seed, scale), bandwidth=bandwidth).pairs_KK
    torch.testing.assert_close(pairs, pairs.T, rtol=1e-12, atol=1e-15)
    assert float(pairs.min()) >= -1e-12


@properties
@given(seed=seeds, constant=st.floats(-50, 50), bandwidth=st.sampled_from(["fixed", "median"]))
def test_constant_head_has_no_dependence(seed: int, constant: float, bandwidth: str) -> None:
    """HSIC and CKA with a head that is the same at every position are 0."""
    x = heads(seed)
    x[:, 1] = constant
    for criterion in ("hsic", "cka"):
        pairs = independence(x, criterion=criterion, bandwidth=bandwidth).pairs_KK
        assert float(pairs[1].abs().max()) < 1e-9
        assert float(pairs[0, 2]) > 1e-6


@properties
@given(seed=seeds, scale=scales, criterion=st.sampled_from(CRITERIA))
def test_joint_permutation_of_positions_changes_nothing(
    seed: int, scale: float, criterion: str
) -> None:
    """All heads permuted alike: same value; one head alone: another value."""
    x = heads(seed, scale).flatten(3)
    order = torch.randperm(H * W, generator=seeded(seed))
    plain = independence(x.unflatten(3, (H, W)), criterion=criterion, bandwidth="median")
    joint = independence(
        x[..., order].unflatten(3, (H, W)), criterion=criterion, bandwidth="median"
    )
    torch.testing.assert_close(joint.pairs_KK, plain.pairs_KK, rtol=1e-9, atol=1e-13)
    x[:, 1] = x[:, 1][..., order]
    alone = independence(x.unflatten(3, (H, W)), criterion=criterion, bandwidth="median")
    assert abs(float(alone.pairs_KK[0, 1] - plain.pairs_KK[0, 1])) > 1e-6


@properties
@given(seed=seeds, shift=st.floats(-100, 100))
def test_shift_of_all_vectors_changes_nothing(seed: int, shift: float) -> None:
    """Mean normalisation (Eq. 1) is a no-op under an RBF kernel."""
    x = heads(seed)
    offset = shift * normal(1, K, D, 1, 1, seed=seed)
    torch.testing.assert_close(
        independence(x + offset).pairs_KK, independence(x).pairs_KK, rtol=1e-8, atol=1e-12
    )


@properties
@given(seed=seeds, scale=scales, bandwidth=st.sampled_from(["fixed", "median"]))
def test_cka_lies_in_unit_interval(seed: int, scale: float, bandwidth: str) -> None:
    """0 <= CKA <= 1, and 1 for a head with itself or its copy."""
    x = heads(seed, scale)
    x[:, 2] = x[:, 0]
    pairs = independence(x, criterion="cka", bandwidth=bandwidth).pairs_KK
    assert float(pairs.min()) >= -1e-12
    assert float(pairs.max()) <= 1 + 1e-9
    assert pairs.diagonal().tolist() == pytest.approx([1.0] * K, rel=1e-9)
    assert float(pairs[0, 2]) == pytest.approx(1.0, rel=1e-9)


@properties
@given(seed=seeds, factor=st.floats(0.01, 1000))
def test_median_bandwidth_makes_the_criterion_scale_free(seed: int, factor: float) -> None:
    """HSIC and CKA of scaled features are those of the features."""
    x = heads(seed)
    for criterion in ("hsic", "cka"):
        plain = independence(x, criterion=criterion, bandwidth="median")
        scaled = independence(factor * x, criterion=criterion, bandwidth="median")
        torch.testing.assert_close(scaled.pairs_KK, plain.pairs_KK, rtol=1e-7, atol=1e-12)
        torch.testing.assert_close(scaled.sigma_K, factor * plain.sigma_K, rtol=1e-9, atol=0)


# --- precision ---------------------------------------------------------------------------------


def agree(one: Independence, two: Independence) -> None:
    """Field by field, in dtype too, but for float32's last digits."""
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("bandwidth", ["fixed", "median"])
def test_float32_under_bf16_autocast(criterion: str, bandwidth: str) -> None:
    """Autocast changes nothing; bf16 input is computed in float32."""
    x = heads().float()
    expected = independence(x, criterion=criterion, bandwidth=bandwidth)
    assert expected.value.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        agree(independence(x, criterion=criterion, bandwidth=bandwidth), expected)
        half = independence(x.bfloat16(), criterion=criterion, bandwidth=bandwidth)
    agree(half, independence(x.bfloat16().float(), criterion=criterion, bandwidth=bandwidth))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_float32_is_close_to_float64(criterion: str) -> None:
    """At the size of the real heads, 384 channels at 5 x 5 positions."""
    x = normal(2, 3, 384, 5, 5, seed=2).relu()
    double = independence(x, criterion=criterion, bandwidth="median")
    single = independence(x.float(), criterion=criterion, bandwidth="median")
    torch.testing.assert_close(single.pairs_KK.double(), double.pairs_KK, rtol=1e-4, atol=1e-6)


# --- saturation --------------------------------------------------------------------------------


def wide_heads() -> Tensor:
    """What the paper's heads look like to the kernel: 1024 ReLU'd channels at 7 x 7 positions."""
    return normal(2, 3, 1024, 7, 7, seed=3).float().relu().requires_grad_()


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0, 4.0])
def test_fixed_bandwidth_saturates_in_1024_dimensions(sigma: float) -> None:
    """HSIC sits at (n - 1) / n^2 with no gradient, whatever the features (Table 2's sigmas)."""
    x, n = wide_heads(), 49
    result = independence(x, sigma=sigma)
    off = ~torch.eye(3, dtype=torch.bool)
    assert result.pairs_KK[off].tolist() == pytest.approx([(n - 1) / n**2] * 6, abs=1e-6)
    assert float(result.kernel_mean) < 1e-6
    (gradient,) = torch.autograd.grad(result.value, x)
    assert float(gradient.abs().max()) < 1e-9


@pytest.mark.parametrize("criterion", ["hsic", "cka"])
def test_median_bandwidth_does_not_saturate(criterion: str) -> None:
    """The same features: kernel values near exp(-1/2) and a gradient to follow."""
    x = wide_heads()
    result = independence(x, criterion=criterion, bandwidth="median")
    assert 0.4 < float(result.kernel_mean) < 0.8
    (gradient,) = torch.autograd.grad(result.value, x)
    (dead,) = torch.autograd.grad(independence(x).value, x)
    assert float(gradient.norm()) > 1e-6
    assert float(gradient.norm()) > 1e6 * float(dead.norm())


def test_one_position_has_no_dependence() -> None:
    """Side 32 leaves a single position: nothing to compare, so the value is 0."""
    x = normal(2, 3, 11, 1, 1)
    assert float(independence(x).value) == 0
    assert float(independence(x, criterion="cka").value) == 0


def test_one_position_with_median_bandwidth() -> None:
    """The same with the adaptive bandwidth."""
    assert float(independence(normal(2, 3, 11, 1, 1), bandwidth="median").value) == 0
