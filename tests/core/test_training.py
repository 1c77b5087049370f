"""Whole training steps: a golden loss curve, and a batch learnt by heart."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from biigma_cli.config import LossConfig
from biigma_cli.core.loss import Criterion
from biigma_cli.core.taps import Taps
from tests.core.tiny import normal, seeded, settle_norms, tiny_net

GOLDEN = Path(__file__).with_name("golden_loss.json")
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"sigma": 2.0},
    "light": {
        "criterion": "cka",
        "bandwidth": "median",
        "saliency": "standardised",
    },
}


def loss_curve(**changes: Any) -> dict[str, list[float]]:
    """Every term over 20 steps of SGD on the paper's parts, in float32, above given taps.

    A random trunk is chaotic: a change in the seventh digit of the images moves the twentieth loss
    by a tenth, so no curve of it could be compared between two machines.
    """
    net = tiny_net(3, heads=3, **changes)
    target = torch.arange(6) % 3
    criterion = Criterion(LossConfig(), net.config, torch.tensor([3, 2, 1]))
    optimizer = torch.optim.SGD(
        [p for n, p in net.named_parameters() if not n.startswith("trunk.")], lr=0.05
    )
    sizes = zip(net.trunk.channels, (12, 6, 3), strict=True)
    taps = Taps(*(normal(6, c, n, n, seed=n).float().relu() for c, n in sizes))
    net.trunk.forward = lambda _: taps  # type: ignore[method-assign]
    image, generator = torch.zeros(6, 3, 96, 96), seeded(0)
    curve: dict[str, list[float]] = {"total": []}
    for _ in range(20):
        loss = criterion(net(image, sample=True, generator=generator), target, net)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        curve["total"].append(loss.total.item())
        for name, term in loss.terms.items():
            curve.setdefault(name, []).append(term.item())
    return curve


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_golden_loss_curve(variant: str) -> None:
    """A refactor must leave 20 steps as they were.

    Where a change is meant to move them, regenerate golden_loss.json with
    `BIIGMA_REGENERATE_GOLDEN=1 python -m pytest tests/core/test_training.py -k golden`.
    """
    curve = loss_curve(**VARIANTS[variant])
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    if os.environ.get("BIIGMA_REGENERATE_GOLDEN"):
        golden[variant] = {k: [float(f"{v:.7g}") for v in values] for k, values in curve.items()}
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    assert set(curve) == set(golden[variant])
    for name, values in golden[variant].items():
        assert curve[name] == pytest.approx(values, rel=1e-3, abs=1e-5), name
    assert curve["total"][-1] < 0.95 * curve["total"][0]


def test_overfits_random_images() -> None:
    """32 images of noise with random labels, learnt by heart by the full network.

    Accuracy is counted in eval mode, with batch norm's running statistics set to those of the
    final weights: what the trained network would answer.
    """
    net = tiny_net(7)
    g = seeded(11)
    x = 255 * torch.rand(32, 3, 64, 64, generator=g)
    target = torch.randint(7, (32,), generator=g)
    criterion = Criterion(LossConfig(), net.config, torch.bincount(target, minlength=7))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    net.train()
    for _ in range(60):
        out = net(x, sample=True, generator=g)
        loss = criterion(out, target, net)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        if float(loss.terms["ce"]) < 0.05:
            break
    settle_norms(net, x)
    net.eval()
    with torch.no_grad():
        answer = net.infer(x).logits_BY.argmax(1)
    assert torch.equal(answer, target)
