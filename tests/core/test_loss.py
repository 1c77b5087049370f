"""Eq. 3 (weights), 8 and 9: the loss and its terms."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from biigma_cli.config import LossConfig, ModelConfig
from biigma_cli.core.hsic import independence
from biigma_cli.core.loss import (
    Criterion,
    class_weights,
    map_distance,
    projection_l2,
    weighted_cross_entropy,
)
from biigma_cli.core.mica import MICA
from biigma_cli.core.model import BiigmaNet, Output
from tests.core.tiny import normal
from tests.reference import equations as ref

B, C, H, W, K, D, Y = 6, 48, 5, 7, 3, 11, 7
COUNTS = [1113, 6705, 514, 327, 1099, 0, 142]
TARGET = [1, 0, 6, 1, 3, 1]
POWERS = {"inverse": 1.0, "inverse_sqrt": 0.5, "none": 0.0}


def case(*, hybrid: bool = True, mica: bool = True) -> tuple[Output, BiigmaNet]:
    """An output of the network with random figures, and a stand-in that lends its MICA."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = MICA(C, heads=K, projection_channels=D, reduction=4)
    heads = block(normal(B, C, H, W).float()) if mica else None
    output = Output(
        logits_BY=normal(B, Y, seed=1).float().requires_grad_(),
        hybrid_logits_BY=normal(B, Y, seed=2).float().requires_grad_() if hybrid else None,
        heads=heads,
        map_B1HW=torch.sigmoid(normal(B, 1, H, W, seed=3)).float() if hybrid else None,
    )
    return output, cast(BiigmaNet, SimpleNamespace(mica=block if mica else None))


def criterion(loss: LossConfig | None = None, **model: Any) -> Criterion:
    """The criterion with ISIC-2018-like counts."""
    return Criterion(loss or LossConfig(), ModelConfig(**model), torch.tensor(COUNTS))


# --- class weights -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(POWERS))
def test_class_weights_match_reference(kind: str) -> None:
    """Inverse frequency, its root and none; an absent class gets 0."""
    weights = class_weights(torch.tensor(COUNTS), kind)
    assert weights.tolist() == pytest.approx(ref.inverse_frequency(COUNTS, POWERS[kind]), rel=1e-5)
    assert float(weights[5]) == 0


def test_class_weights_by_hand() -> None:
    """Counts 1 and 3: weights 2 and 2/3, so that (2 + 3 * 2/3) / 4 = 1."""
    assert class_weights(torch.tensor([1, 3]), "inverse").tolist() == pytest.approx([2, 2 / 3])
    assert class_weights(torch.tensor([1, 3]), "none").tolist() == [1, 1]


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(0, 20_000), min_size=2, max_size=9).filter(any),
    kind=st.sampled_from(list(POWERS)),
)
def test_class_weights_have_mean_one_over_samples(counts: list[int], kind: str) -> None:
    """The loss keeps its scale whatever the imbalance."""
    weights = class_weights(torch.tensor(counts), kind).tolist()
    mean = sum(w * n for w, n in zip(weights, counts, strict=True)) / sum(counts)
    assert mean == pytest.approx(1, rel=1e-4)
    assert all((w == 0) == (n == 0) for w, n in zip(weights, counts, strict=True))


# --- cross-entropy -----------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_eq8_cross_entropy_matches_loops(smoothing: float) -> None:
    """Weighted, divided by the number of samples."""
    logits, weights = 3 * normal(B, Y), ref.inverse_frequency(COUNTS, 1.0)
    got = weighted_cross_entropy(
        logits, torch.tensor(TARGET), torch.tensor(weights), label_smoothing=smoothing
    )
    expected = ref.weighted_cross_entropy_eq8(logits, TARGET, weights, smoothing)
    assert float(got) == pytest.approx(expected, rel=1e-6)


def test_eq8_divides_by_samples_not_by_weights() -> None:
    """torch's own reduction, which divides by the sum of weights, gives another figure."""
    logits, target = normal(B, Y), torch.tensor(TARGET)
    weights = class_weights(torch.tensor(COUNTS), "inverse").double()
    torch_own = torch.nn.functional.cross_entropy(logits, target, weight=weights)
    ours = weighted_cross_entropy(logits, target, weights)
    assert float(ours) == pytest.approx(float(torch_own * weights[target].sum() / B))
    assert abs(float(ours - torch_own)) > 0.1


def test_eq8_gradcheck() -> None:
    """Analytic against numeric gradients in float64."""
    logits, weights = normal(B, Y).requires_grad_(), class_weights(torch.tensor(COUNTS), "inverse")
    assert torch.autograd.gradcheck(
        lambda t: weighted_cross_entropy(t, torch.tensor(TARGET), weights), (logits,)
    )


def test_cross_entropy_is_float32_under_autocast() -> None:
    """bf16 logits are widened first."""
    logits, weights = normal(B, Y).bfloat16(), torch.ones(Y)
    with torch.autocast("cpu", torch.bfloat16):
        got = weighted_cross_entropy(logits, torch.tensor(TARGET), weights)
    assert got.dtype == torch.float32
    expected = ref.weighted_cross_entropy_eq8(logits, TARGET, [1.0] * Y)
    assert float(got) == pytest.approx(expected, rel=1e-5)


# --- other terms -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["mean_square", "norm"])
def test_eq3_l2_matches_loops(form: str) -> None:
    """Both forms."""
    weight = normal(D, C, 1, 1)
    assert float(projection_l2(weight, form)) == pytest.approx(ref.l2_eq3(weight, form), rel=1e-5)


def test_map_distance_matches_loops() -> None:
    """RMS distance of M and the product of the heads' maps."""
    m, gated = torch.sigmoid(normal(B, 1, H, W)), normal(B, K, D, H, W, seed=1)
    expected = ref.map_distance(m[:, 0], gated)
    assert float(map_distance(m, gated)) == pytest.approx(expected, rel=1e-5)


# --- total -------------------------------------------------------------------------------------

ALL_ON = LossConfig(
    original=0.7,
    hybrid=1.3,
    independence=2.0,
    l2=0.4,
    map_distance=0.6,
    consistency_kl=0.9,
    label_smoothing=0.05,
)


def expected_terms(output: Output, model: BiigmaNet, config: LossConfig) -> dict[str, float]:
    """Every term by the loops."""
    assert output.heads is not None
    assert output.hybrid_logits_BY is not None
    assert output.map_B1HW is not None
    assert model.mica is not None
    kind = config.class_weights
    counts = [TARGET.count(y) for y in range(Y)] if kind == "batch" else COUNTS
    weights = ref.inverse_frequency(counts, {"batch": 1.0, **POWERS}[kind])
    first, second = output.logits_BY.detach(), output.hybrid_logits_BY.detach()
    gated = output.heads.gated().detach()
    table, _ = ref.criterion_pairs(gated, "hsic", [2.0] * K)
    smoothing = config.label_smoothing
    return {
        "ce": ref.weighted_cross_entropy_eq8(first, TARGET, weights, smoothing),
        "ce_hybrid": ref.weighted_cross_entropy_eq8(second, TARGET, weights, smoothing),
        "consistency_kl": ref.consistency_kl(first, second),
        "independence": ref.independence_eq3(table, "ordered_mean"),
        "l2": ref.l2_eq3(model.mica.project.weight.detach(), config.l2_form),
        "map_distance": ref.map_distance(output.map_B1HW[:, 0], gated),
    }


@pytest.mark.parametrize("kind", ["inverse", "inverse_sqrt", "batch", "none"])
def test_eq9_total_is_the_weighted_sum_of_all_terms(kind: str) -> None:
    """Every term on, each with a weight of its own."""
    config = LossConfig(**{**vars_of(ALL_ON), "class_weights": kind})
    output, model = case()
    loss = criterion(config, sigma=2.0)(output, torch.tensor(TARGET), model)
    expected = expected_terms(output, model, config)
    weights = {name: vars_of(config)[RENAMED.get(name, name)] for name in expected}
    assert {k: float(v) for k, v in loss.terms.items()} == pytest.approx(expected, rel=1e-4)
    assert float(loss.total.detach()) == pytest.approx(ref.total_eq9(expected, weights), rel=1e-4)
    assert not any(t.requires_grad for t in loss.terms.values())


RENAMED = {"ce": "original", "ce_hybrid": "hybrid"}


def vars_of(config: LossConfig) -> dict[str, Any]:
    """A config's fields as a dict."""
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_eq8_eq9_default_is_the_paper() -> None:
    """Default weights: both cross-entropies, the criterion and the L2 term, each once."""
    output, model = case()
    loss = criterion(sigma=2.0)(output, torch.tensor(TARGET), model)
    expected = expected_terms(output, model, LossConfig())
    paper = {k: expected[k] for k in ("ce", "ce_hybrid", "independence", "l2")}
    assert {k: float(v) for k, v in loss.terms.items()} == pytest.approx(paper, rel=1e-4)
    assert float(loss.total.detach()) == pytest.approx(sum(paper.values()), rel=1e-4)


@pytest.mark.parametrize(
    ("model", "hybrid", "mica", "present"),
    [
        ({}, True, True, {"ce", "ce_hybrid", "independence", "l2", "map_distance"}),
        ({}, False, True, {"ce", "independence", "l2"}),
        ({"criterion": "none"}, True, True, {"ce", "ce_hybrid", "map_distance"}),
        ({"criterion": "none"}, False, True, {"ce"}),
        ({"mica": False}, True, False, {"ce", "ce_hybrid"}),
        ({"mica": False, "sampling": False}, False, False, {"ce"}),
    ],
)
def test_terms_present_as_configured(
    model: dict[str, Any], hybrid: bool, mica: bool, present: set[str]
) -> None:
    """A term that is off is absent, and the KL term comes and goes with the hybrid branch."""
    output, net = case(hybrid=hybrid, mica=mica)
    for kl in (0.0, 0.5):
        loss = criterion(LossConfig(map_distance=0.3, consistency_kl=kl), **model)(
            output, torch.tensor(TARGET), net
        )
        assert set(loss.terms) == present | ({"consistency_kl"} if kl and hybrid else set())
        assert (loss.independence is None) == (not mica)
    plain = criterion(**model)(output, torch.tensor(TARGET), net)
    assert "map_distance" not in plain.terms


@pytest.mark.parametrize("kind", ["hsic", "cka", "cosine"])
@pytest.mark.parametrize("bandwidth", ["fixed", "median"])
@pytest.mark.parametrize("pairs", ["ordered_mean", "unordered_sum"])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_criterion_settings_reach_the_loss(
    kind: str, bandwidth: str, pairs: str, estimator: str
) -> None:
    """What the model config asks for is what is added."""
    output, model = case()
    assert output.heads is not None
    settings_ = {"criterion": kind, "bandwidth": bandwidth, "pairs": pairs, "sigma": 3.0}
    settings_["estimator"] = estimator
    loss = criterion(**settings_)(output, torch.tensor(TARGET), model)
    expected = independence(output.heads.gated(), **settings_)  # type: ignore[arg-type]
    assert float(loss.terms["independence"]) == pytest.approx(
        float(expected.value.detach()), rel=1e-6
    )
    assert loss.independence is not None
    torch.testing.assert_close(loss.independence.pairs_KK, expected.pairs_KK)


def test_each_term_sends_its_gradient() -> None:
    """The total moves both branches' logits, and the heads' weights through the criterion."""
    output, model = case()
    loss = criterion(LossConfig(l2=0.0), sigma=5.0)(output, torch.tensor(TARGET), model)
    assert model.mica is not None
    wanted: list[Tensor] = [output.logits_BY, model.mica.project.weight]
    assert output.hybrid_logits_BY is not None
    wanted.append(output.hybrid_logits_BY)
    for gradient in torch.autograd.grad(loss.total, wanted):
        assert float(gradient.abs().max()) > 0
