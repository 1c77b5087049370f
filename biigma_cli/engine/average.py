"""Exponential moving average of a network's weights."""

from __future__ import annotations

import torch

from biigma_cli.core.model import BiigmaNet
from biigma_cli.engine.evaluate import prepare


class Average:
    """Average of all floating tensors of a model, norms' statistics included.

    Args:
        decay: of the average, per step.
    """

    def __init__(self, model: BiigmaNet, decay: float) -> None:
        self.decay = decay
        self.tensors = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: BiigmaNet, step: int) -> None:
        """Take in the weights after `step`, 0-based over the whole run."""
        # Early on the average would be mostly the initial weights: shorten its memory.
        decay = min(self.decay, (1 + step) / (10 + step))
        floats, news = [], []
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                floats.append(self.tensors[key])
                news.append(value.detach())
            else:
                self.tensors[key].copy_(value)
        torch._foreach_lerp_(floats, news, 1 - decay)

    def network(self, model: BiigmaNet) -> BiigmaNet:
        """A copy of `model`, in eval mode, that holds the averaged weights."""
        copy = BiigmaNet(model.config, model.head.out_features, load_weights=False)
        copy.load_state_dict(self.tensors)
        return prepare(copy, next(model.parameters()).device).eval()
