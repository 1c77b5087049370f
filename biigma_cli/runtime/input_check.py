"""Fitting the input check of a model that is being exported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from biigma_cli.core.input_check import InputCheck, fit_input_check, pool
from biigma_cli.core.model import BiigmaNet
from biigma_cli.data.augment import PRESETS, augment_batch
from biigma_cli.data.perturb import recompressed
from biigma_cli.data.preprocess import Pixels
from biigma_cli.data.synthetic.artefacts import PAINTERS

METHOD = (
    "Mahalanobis distance of the early tap's features, averaged over positions, from those of "
    "training images (probabilistic principal components), over its threshold"
)
#: Share of validation views that may be flagged.
FALSE_ALARMS = 0.01
#: Training images that it is fitted on, at most.
IMAGES = 2500
#: Training and validation images that it takes, at least, to state its false alarms.
FEWEST = 100
#: Each image as it is, as each strength of augmentation shows it, with an artefact painted on, and
#: compressed: other cameras, lights and sharpness, hair, ink, dark corners or the blocks of a small
#: JPEG are no other kind of picture.
FITTED_VIEWS = ("none", "standard", "strong", "painted", "compressed")
JUDGED_VIEWS = ("none", "standard")
_BATCH = 32
# Radius, in half sides.
_DISC = 0.45
# Of JPEG, lowest and highest.
_QUALITY = (20, 80)


@dataclass(frozen=True, kw_only=True)
class FittedCheck:
    """An input check and how it was found.

    Attributes:
        module: with its limit set.
        train: images that it was fitted on, each in `FITTED_VIEWS`.
        validation: images that its limit was set on, each in `JUDGED_VIEWS`.
        flagged: share of the validation images, as they are, that lie above the limit.
        scale: what the module's limit is multiplied by in the file.
    """

    module: InputCheck
    train: int
    validation: int
    flagged: float
    scale: float = 1.0

    def summary(self) -> str:
        """One line to show."""
        return (
            f"input check fitted on {self.train} training images: it flags {self.flagged:.1%} of "
            f"{self.validation} validation images"
        )

    def to_dict(self) -> dict[str, Any]:
        """As it stands in an exported model's metadata."""
        return {
            "output": "novelty: above 1 the image is not like the training images",
            "method": METHOD,
            "components": self.module.axes_CK.shape[1],
            "threshold": float(self.module.limit) * self.scale,
            "train": {"n": self.train, "views": list(FITTED_VIEWS)},
            "validation": {
                "n": self.validation,
                "views": list(JUDGED_VIEWS),
                "false_alarms": FALSE_ALARMS,
                "flagged": self.flagged,
            },
        }


def fit_check(
    model: BiigmaNet,
    train: Pixels,
    validation: Pixels,
    *,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> FittedCheck:
    """Fit on training images, set the limit on validation images.

    Args:
        train: uint8 `(n, side, side, 3)`; at most `IMAGES` make it worth the time.
        validation: the same form; `FALSE_ALARMS` of their views lie above the limit.
    """
    model = model.eval().to(device).to(memory_format=torch.channels_last)
    total = len(train) * len(FITTED_VIEWS) + len(validation) * len(JUDGED_VIEWS)
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    fitted = [_pooled(model, train, view, device, told) for view in FITTED_VIEWS]
    check = fit_input_check(torch.cat(fitted))
    judged = [_pooled(model, validation, view, device, told) for view in JUDGED_VIEWS]
    distances = [check.distance(features) for features in judged]
    check.limit.copy_(torch.quantile(torch.cat(distances).double(), 1 - FALSE_ALARMS))
    return FittedCheck(
        module=check,
        train=len(train),
        validation=len(validation),
        flagged=float((distances[0] > check.limit).double().mean()),
    )


def judged_views(pixels: Pixels) -> Iterator[Pixels]:
    """Batches of the views that a limit is set on."""
    for view in JUDGED_VIEWS:
        yield from _views(pixels, view)


def _views(pixels: Pixels, view: str) -> Iterator[Pixels]:
    """One view of each image, in batches; the same ones each time."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, len(pixels), _BATCH):
        batch = pixels[start : start + _BATCH]
        if view == "painted":
            batch = np.stack([_painted(image, start + i) for i, image in enumerate(batch)])
        elif view == "compressed":
            batch = np.stack([_compressed(image, start + i) for i, image in enumerate(batch)])
        elif view != "none":
            image = torch.from_numpy(batch).permute(0, 3, 1, 2).float()
            image = augment_batch(image, generator, PRESETS[view]).clamp(0, 255)
            batch = image.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        yield batch


def _painted(image: Pixels, seed: int) -> Pixels:
    """With one artefact on it, clear of a disc in the middle, where its lesion is taken to be."""
    rng = np.random.default_rng(seed)
    planes = np.ascontiguousarray(image.transpose(2, 0, 1)) * np.float32(1 / 255)
    at = (np.arange(len(image), dtype=np.float32) + 0.5) * (2 / len(image)) - 1
    level = np.asarray(_DISC - np.hypot(at[:, None], at[None, :]), dtype=np.float32)
    PAINTERS[sorted(PAINTERS)[int(rng.integers(len(PAINTERS)))]](rng, planes, level)
    return (planes.transpose(1, 2, 0) * 255).round().clip(0, 255).astype(np.uint8)


def _compressed(image: Pixels, seed: int) -> Pixels:
    low, high = _QUALITY
    return recompressed(image, int(np.random.default_rng(seed).integers(low, high + 1)))


@torch.inference_mode()
def _pooled(
    model: BiigmaNet,
    pixels: Pixels,
    view: str,
    device: torch.device,
    told: Callable[[int], None],
) -> Tensor:
    """Pooled early features `(n, C)` of one view of each image, on the CPU."""
    rows = []
    for batch in _views(pixels, view):
        image = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2)
        image = image.to(torch.float32, memory_format=torch.channels_last)
        rows.append(pool(model.early(image)).cpu())
        told(len(batch))
    return torch.cat(rows).clone()
