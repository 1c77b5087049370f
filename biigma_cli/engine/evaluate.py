"""Probabilities of a network for decoded images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from biigma_cli.core.model import BiigmaNet
from biigma_cli.data.preprocess import Pixels
from biigma_cli.metrics import evaluate


def to_batch(pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 `(B, S, S, 3)` to float `(B, 3, S, S)` in [0, 255], channels last."""
    moved = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2)
    return moved.to(torch.float32, memory_format=torch.channels_last)


def prepare(model: BiigmaNet, device: torch.device) -> BiigmaNet:
    """On the device, convolutions channels last."""
    return model.to(device).to(memory_format=torch.channels_last)


def validation_figures(
    label_n: npt.NDArray[np.int64], proba_nY: npt.NDArray[np.float32], codes: list[str]
) -> dict[str, float]:
    """What epochs and networks are chosen by: the headline and the log loss, as `val_NAME`."""
    figures = evaluate(label_n, proba_nY.argmax(1), codes)
    picked_n = np.clip(proba_nY[np.arange(len(proba_nY)), label_n], 1e-12, 1)
    return {
        **{f"val_{name}": value for name, value in figures.headline().items()},
        "val_log_loss": float(-np.log(picked_n).mean()),
    }


@torch.inference_mode()
def predict_proba(
    model: BiigmaNet,
    pixels: Pixels,
    *,
    device: torch.device,
    batch_size: int = 64,
    precision: str = "fp32",
    progress: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.float32]:
    """Softmax of the original branch for uint8 `(n, S, S, 3)`: `(n, Y)`, in eval mode."""
    was_training = model.training
    model.eval()
    result = []
    for start in range(0, len(pixels), batch_size):
        batch = torch.from_numpy(pixels[start : start + batch_size])
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(to_batch(batch, device)).logits_BY
        result.append(logits.float().softmax(1).cpu().numpy())
        if progress:
            progress(min(start + batch_size, len(pixels)), len(pixels))
    model.train(was_training)
    return np.concatenate(result)
