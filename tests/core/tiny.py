"""Small networks and inputs shared by the tests of `biigma_cli.core`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from biigma_cli.config import ModelConfig
from biigma_cli.core.model import BiigmaNet


def seeded(seed: int) -> torch.Generator:
    """A CPU generator of its own."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float64 numbers."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def images(count: int, side: int, seed: int = 0) -> Tensor:
    """Random blotches with noise in [0, 255], float32, so that taps vary over the image."""
    g = seeded(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=g)
    smooth = torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")
    return 255 * (0.8 * smooth + 0.2 * torch.rand(count, 3, side, side, generator=g))


def tiny_config(**changes: Any) -> ModelConfig:
    """The full network on MobileNetV2, with narrow heads and adapters."""
    settings: dict[str, Any] = {
        "trunk": "mobilenet_v2",
        "weights": "none",
        "normalisation": "unit",
        "projection_channels": 24,
        "adapter_channels": 11,
    }
    return ModelConfig(**(settings | changes))


def tiny_net(
    classes: int = 7, *, seed: int = 0, side: int | None = None, **changes: Any
) -> BiigmaNet:
    """A seeded network in eval mode.

    Args:
        side: where given, batch norm settles on a batch of that side first: the taps of a fresh
            network in eval mode hardly vary.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BiigmaNet(tiny_config(**changes), classes)
    if side is not None:
        settle_norms(model, images(8, side, seed=99))
    return model.eval()


def settle_norms(model: BiigmaNet, image_B3SS: Tensor) -> None:
    """Set batch norm's running statistics to those of one batch."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    training = model.training
    model.train()
    with torch.no_grad():
        model(image_B3SS)
    for norm in norms:
        norm.momentum = 0.1
    model.train(training)
