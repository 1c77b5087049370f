"""Fig. 2: the wiring, both branches, inference and what the config alone reaches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from biigma_cli.config import LossConfig
from biigma_cli.core.loss import Criterion
from biigma_cli.core.model import BiigmaNet
from biigma_cli.core.sampling import background_draw, hybrid_feature
from biigma_cli.core.taps import Taps
from tests.core.tiny import images, normal, seeded, tiny_net
from tests.reference import equations as ref

SIDE = 96  # 3 x 3 positions
X = images(2, SIDE, seed=1)
TAPS = Taps(
    normal(2, 192, 12, 12, seed=1).float().relu(),
    normal(2, 576, 6, 6, seed=2).float().relu(),
    normal(2, 1280, 3, 3, seed=3).float().relu(),
)


@pytest.fixture(scope="module")
def net() -> BiigmaNet:
    """The full network with settled batch norm; treat as read-only."""
    return tiny_net(side=SIDE)


def reference_logits(net: BiigmaNet, feat_BCHW: Tensor) -> Tensor:
    """G(MICA(feature)) by the loops, from the network's weights."""
    assert net.mica is not None
    ca = ref.mica_eq4(
        feat_BCHW,
        list(net.mica.project.weight.detach().split(net.mica.channels)),
        list(net.mica.squeeze_KSD.detach()),
        list(net.mica.excite_KDS.detach()),
    )
    return ref.classify(ca, net.head.weight.detach(), net.head.bias.detach())


def reference_map(net: BiigmaNet, image_B3SS: Tensor) -> Tensor:
    """M by the loops, from the network's taps and adapter weights."""
    assert net.saliency is not None
    adapted = []
    taps = net.trunk(image_B3SS / 255)
    for module, tap, factor in zip(net.saliency.adapters, taps, (4, 2, 1), strict=True):
        weight, bias = module.weight.detach(), module.bias.detach()
        adapted.append(ref.adapter(tap.detach(), factor, "max", weight, bias))
    return ref.saliency_eq5(torch.cat(adapted, 1), "low_variance", "plain")


@torch.no_grad()
def test_original_branch_matches_loops(net: BiigmaNet) -> None:
    """Logits of G(R^CA), from pixels in [0, 255]."""
    out = net(X)
    expected = reference_logits(net, net.trunk(X / 255).last)
    assert float(expected.std(0).mean()) > 1e-3
    torch.testing.assert_close(out.logits_BY.double(), expected, rtol=1e-4, atol=1e-5)
    assert out.hybrid_logits_BY is None
    assert out.map_B1HW is None


@torch.no_grad()
@pytest.mark.parametrize("draw", ["replacement", "permutation"])
def test_eq7_hybrid_goes_through_the_same_mica_and_head(draw: str) -> None:
    """With a given draw, the hybrid logits are those of the same weights on H."""
    net = tiny_net(side=SIDE, draw=draw)
    feat = net.trunk(X / 255).last
    numbers = background_draw(feat, seeded(5))
    out = net(X, sample=True, draw_P=numbers)
    hybrid = ref.hybrid_section22(feat, reference_map(net, X), numbers, draw)
    expected = reference_logits(net, hybrid)
    assert out.hybrid_logits_BY is not None
    torch.testing.assert_close(out.hybrid_logits_BY.double(), expected, rtol=1e-4, atol=1e-5)
    assert float((out.hybrid_logits_BY - out.logits_BY).abs().max()) > 1e-3


@torch.no_grad()
def test_map_matches_loops_and_does_not_depend_on_the_batch(net: BiigmaNet) -> None:
    """M of the whole network; an image's map is the same alone and in a batch."""
    batch = images(5, SIDE, seed=3)
    together = net.infer(batch).map_B1HW
    assert together is not None
    assert together.shape == (5, 1, 3, 3)
    expected = reference_map(net, batch)
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(together[:, 0].double(), expected, rtol=1e-4, atol=1e-5)
    for i in range(5):
        alone = net.infer(batch[i : i + 1]).map_B1HW
        assert alone is not None
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_infer_is_the_original_branch(net: BiigmaNet) -> None:
    """Sampling is skipped at inference: same logits as forward without and with sampling."""
    inferred = net.infer(X)
    plain, sampled = net(X), net(X, sample=True, generator=seeded(0))
    torch.testing.assert_close(inferred.logits_BY, plain.logits_BY, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(inferred.logits_BY, sampled.logits_BY, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(inferred.map_B1HW, sampled.map_B1HW, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_plain_form_gives_the_same_logits(net: BiigmaNet) -> None:
    """Gated map, concatenated, pooled, linear: the shortcut's logits to 1e-5."""
    out = net(X)
    assert out.heads is not None
    plain = net.head(out.heads.concatenated().mean((2, 3)))
    torch.testing.assert_close(out.logits_BY, plain, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_generator_makes_draws_reproducible(net: BiigmaNet) -> None:
    """The same seed, the same hybrid branch; another seed, another."""
    one, two, other = (net(X, sample=True, generator=seeded(s)) for s in (1, 1, 2))
    torch.testing.assert_close(one.hybrid_logits_BY, two.hybrid_logits_BY, rtol=1e-5, atol=1e-6)
    assert float((one.hybrid_logits_BY - other.hybrid_logits_BY).abs().max()) > 1e-4
    draw = background_draw(torch.zeros(2, 1, 3, 3), seeded(1))
    given = net(X, sample=True, draw_P=draw)
    torch.testing.assert_close(given.hybrid_logits_BY, one.hybrid_logits_BY, rtol=1e-5, atol=1e-6)


def test_hybrid_branch_trains_trunk_adapters_and_heads(net: BiigmaNet) -> None:
    """The hybrid logits alone send gradients to every part."""
    out = net(X, sample=True, generator=seeded(0))
    assert out.hybrid_logits_BY is not None
    names = [
        "trunk.features.0.0.weight",
        "saliency.adapters.0.weight",
        "mica.project.weight",
        "head.weight",
    ]
    parameters = dict(net.named_parameters())
    grads = torch.autograd.grad(out.hybrid_logits_BY.square().sum(), [parameters[n] for n in names])
    for name, gradient in zip(names, grads, strict=True):
        assert float(gradient.abs().max()) > 0, name


@pytest.mark.parametrize("kind", ["unit", "imagenet", "symmetric"])
@torch.no_grad()
def test_normalisation_is_part_of_the_network(kind: str) -> None:
    """(x / 255 - mean) / std, by hand."""
    mean, std = {
        "unit": ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
        "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        "symmetric": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    }[kind]
    net = tiny_net(normalisation=kind)
    seen: list[Tensor] = []
    net.trunk.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net.infer(X[:1])
    expected = torch.empty_like(X[:1])
    for c in range(3):
        expected[:, c] = (X[:1, c] / 255 - mean[c]) / std[c]
    torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-5)


def test_normalisation_must_be_resolved() -> None:
    """`auto` is the caller's to resolve."""
    with pytest.raises(ValueError, match="resolve"):
        tiny_net(normalisation="auto")


@torch.no_grad()
def test_dropout_acts_in_training_only() -> None:
    """Dropout before the head: off in eval mode, on in train mode."""
    net = tiny_net(dropout=0.5, side=SIDE)
    torch.testing.assert_close(net(X).logits_BY, net(X).logits_BY, rtol=1e-5, atol=1e-6)
    net.dropout.train()
    assert float((net(X).logits_BY - net(X).logits_BY).abs().max()) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("adapters", ["conv_max", "max", "avg"])
@pytest.mark.parametrize("prune", ["low_variance", "high_variance", "none"])
@pytest.mark.parametrize("form", ["plain", "standardised"])
def test_saliency_settings_reach_the_map(adapters: str, prune: str, form: str) -> None:
    """What the config asks for is what `infer` returns."""
    net = tiny_net(adapters=adapters, prune=prune, saliency=form)
    net.trunk.forward = lambda _: TAPS  # type: ignore[method-assign]
    adapted = []
    assert net.saliency is not None
    for module, tap, factor in zip(net.saliency.adapters, TAPS, (4, 2, 1), strict=True):
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        assert (weight is None) == (adapters != "conv_max")
        pooling = "avg" if adapters == "avg" else "max"
        adapted.append(ref.adapter(tap, factor, pooling, weight, bias))
    expected = ref.saliency_eq5(torch.cat(adapted, 1), prune, form)
    got = net.infer(X).map_B1HW
    assert got is not None
    torch.testing.assert_close(got[:, 0].double(), expected, rtol=1e-4, atol=1e-5)


# --- what the config alone reaches -------------------------------------------------------------


def parts(net: BiigmaNet) -> set[str]:
    """Top-level modules that hold parameters."""
    return {name.split(".")[0] for name, _ in net.named_parameters()}


def terms(net: BiigmaNet) -> set[str]:
    """Names of the loss terms of a training step, with sampling where the network has it."""
    out = net(X, sample=net.config.sampling)
    loss = Criterion(LossConfig(), net.config, torch.tensor([5, 4, 3, 2, 1, 1, 1]))
    return set(loss(out, torch.tensor([0, 3]), net).terms)


@torch.no_grad()
def test_config_reaches_the_baseline() -> None:
    """Table 2, row 1: trunk, pooling, linear; no parameter or term of the paper."""
    net = tiny_net(mica=False, sampling=False, criterion="none", side=SIDE)
    assert net.config.baseline
    assert parts(net) == {"trunk", "head"}
    assert terms(net) == {"ce"}
    feat = net.trunk(X / 255).last
    by_hand = ref.classify(feat, net.head.weight, net.head.bias)
    torch.testing.assert_close(net(X).logits_BY.double(), by_hand, rtol=1e-4, atol=1e-5)
    assert net.infer(X).map_B1HW is None
    with pytest.raises(ValueError, match="sampling"):
        net(X, sample=True)


@torch.no_grad()
@pytest.mark.parametrize(
    ("changes", "expected_parts", "expected_terms"),
    [
        ({}, {"trunk", "saliency", "mica", "head"}, {"ce", "ce_hybrid", "independence", "l2"}),
        ({"mica": False}, {"trunk", "saliency", "head"}, {"ce", "ce_hybrid"}),
        ({"sampling": False}, {"trunk", "mica", "head"}, {"ce", "independence", "l2"}),
        ({"criterion": "none"}, {"trunk", "saliency", "mica", "head"}, {"ce", "ce_hybrid"}),
        (
            {"criterion": "cosine"},
            {"trunk", "saliency", "mica", "head"},
            {"ce", "ce_hybrid", "independence", "l2"},
        ),
    ],
    ids=["full", "without-mica", "without-sampling", "without-independence", "cosine"],
)
def test_config_reaches_table2(
    changes: dict[str, Any], expected_parts: set[str], expected_terms: set[str]
) -> None:
    """Each row of the ablation has the modules and the loss terms it should."""
    net = tiny_net(**changes)
    assert parts(net) == expected_parts
    assert terms(net) == expected_terms


@torch.no_grad()
@pytest.mark.parametrize("heads", [1, 2, 3, 4])
def test_config_reaches_table2_heads(heads: int) -> None:
    """K from 1 to 4; the head takes K * D features."""
    net = tiny_net(heads=heads)
    out = net(X)
    assert out.heads is not None
    assert out.heads.gated().shape == (2, heads, 24, 3, 3)
    assert net.head.in_features == heads * 24
    assert terms(net) == {"ce", "ce_hybrid", "independence", "l2"}


@torch.no_grad()
def test_config_reaches_table2_sigma(net: BiigmaNet) -> None:
    """Each sigma of the ablation gives another criterion."""
    values = set()
    for sigma in (0.5, 1.0, 2.0, 4.0):
        model = tiny_net(sigma=sigma, side=SIDE)
        loss = Criterion(LossConfig(), model.config, torch.ones(7))
        values.add(
            round(float(loss(model(X), torch.tensor([0, 3]), model).terms["independence"]), 9)
        )
    assert len(values) == 4


def test_paper_sizes() -> None:
    """DenseNet-121 at 224: three heads of 1024 channels, SE width 64, adapters of 256."""
    with torch.device("meta"):
        net = tiny_net(8, trunk="densenet121", projection_channels=0, adapter_channels=256, heads=3)
        out = net.infer(torch.empty(2, 3, 224, 224))
    assert net.mica is not None
    assert net.mica.project.weight.shape == (3 * 1024, 1024, 1, 1)
    assert net.mica.squeeze_KSD.shape == (3, 64, 1024)
    assert net.head.weight.shape == (8, 3 * 1024)
    assert out.logits_BY.shape == (2, 8)
    assert out.map_B1HW is not None
    assert out.map_B1HW.shape == (2, 1, 7, 7)


@pytest.mark.parametrize("draw", ["replacement", "permutation"])
def test_hybrid_branch_mixes_projections(draw: str) -> None:
    """Mixing R's projections is projecting the mixture: logits and gradients of Eq. 7, float64."""
    model = tiny_net(side=96, draw=draw).double()
    image = images(3, 96).double()
    draw_P = torch.rand(3 * 9, generator=seeded(4), dtype=torch.float64)

    def gradients(logits: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        logits.square().sum().backward()
        return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}

    fast = model(image, sample=True, draw_P=draw_P).hybrid_logits_BY
    assert fast is not None
    fast_gradients = gradients(fast)
    taps = model.trunk(image * model.pixel_scale + model.pixel_shift)
    assert model.saliency is not None
    hybrid = hybrid_feature(taps.last, model.saliency(taps), draw_P, method=draw)
    plain = model.classify(hybrid)[0]
    torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-12)
    plain_gradients = gradients(plain)
    assert fast_gradients.keys() == plain_gradients.keys()
    assert any(k.startswith("saliency") for k in plain_gradients)
    for key, gradient in plain_gradients.items():
        torch.testing.assert_close(fast_gradients[key], gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("mica", [True, False])
def test_evidence_sums_to_the_logits(mica: bool) -> None:
    """Summed over positions, evidence is the logit less the bias, for both heads, in float64."""
    model = tiny_net(side=96, mica=mica, sampling=mica).double()
    torch.nn.init.normal_(model.head.bias)
    with torch.no_grad():
        out = model.infer(images(3, 96).double())
    assert out.evidence_BYHW.shape == (3, 7, 3, 3)
    assert out.evidence_BYHW.flatten(2).std(2).min() > 0  # it varies over the image
    torch.testing.assert_close(
        out.evidence_BYHW.sum((2, 3)) + model.head.bias, out.logits_BY, rtol=1e-12, atol=1e-12
    )


def test_form_of_the_map_can_be_asked_for() -> None:
    """The other form of M from the same network; per image both order the positions alike."""
    model = tiny_net(side=96, saliency="plain")
    with torch.no_grad():
        taps = model.taps(images(2, 96))
        assert model.saliency is not None
        plain, other = (model.saliency(taps, form=form) for form in ("plain", "standardised"))
        own = model.infer(images(2, 96)).map_B1HW
    assert own is not None
    assert torch.equal(plain, own)
    assert not torch.allclose(plain, other)
    assert torch.equal(plain.flatten(1).argsort(1), other.flatten(1).argsort(1))
