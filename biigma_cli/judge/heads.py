"""How alike a network's heads are on one part of a data set (Fig. 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from biigma_cli.core.hsic import head_cosine
from biigma_cli.core.model import BiigmaNet
from biigma_cli.core.weights import load_checkpoint, load_model
from biigma_cli.data.images import load_part
from biigma_cli.data.manifest import Manifest
from biigma_cli.data.preprocess import Pixels
from biigma_cli.engine.device import pick_device
from biigma_cli.engine.evaluate import prepare, to_batch
from biigma_cli.errors import ModelFileError
from biigma_cli.judge.candidate import Candidate, Progress
from biigma_cli.judge.judgement import split_of
from biigma_cli.metrics import Floats


@dataclass(frozen=True, kw_only=True)
class HeadSimilarity:
    """Mean cosine similarity between K heads over the images of a part.

    Features follow a rectifier, so none is negative and no cosine either: heads that have nothing
    in common still have a cosine well above 0. Nor does channel d of one head belong to channel d
    of another. `chance_KK` is what remains when the channels of each head are put in random order,
    the mean over all orders: what lies above it is likeness by channel.

    Attributes:
        model: its name.
        part: `train`, `val` or `test`.
        images: in it.
        pooled_KK: of the heads' globally averaged features, which the classifier sees.
        positions_KK: of their features at each position, the mean over positions; as training
            logs it. A position where a head is silent counts as 0, with itself, too.
        chance_KK: as `pooled_KK`, channels in random order. Its diagonal is two such orders of one
            head.
    """

    model: str
    part: str
    images: int
    pooled_KK: Floats
    positions_KK: Floats
    chance_KK: Floats

    @property
    def means(self) -> dict[str, float]:
        """Mean of each matrix over pairs of different heads."""
        return {
            "pooled": between(self.pooled_KK),
            "positions": between(self.positions_KK),
            "chance": between(self.chance_KK),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return {
            "model": self.model,
            "part": self.part,
            "images": self.images,
            "pooled": self.pooled_KK.tolist(),
            "positions": self.positions_KK.tolist(),
            "chance": self.chance_KK.tolist(),
            "mean_between_heads": self.means,
        }


def between(matrix_KK: Floats) -> float:
    """Mean of a symmetric matrix off its diagonal."""
    return float(matrix_KK[np.triu_indices(len(matrix_KK), 1)].mean())


def open_heads(path: Path, device: str) -> BiigmaNet:
    """The network of a checkpoint, to compare its heads.

    Raises `ModelFileError` for an exported model, and for a network with fewer than two heads;
    as `pick_device` for the device.
    """
    if path.suffix != ".safetensors":
        raise ModelFileError(
            f"{path} gives answers and maps, not its heads' features",
            fix="name the run or the checkpoint (.safetensors) it was exported from",
        )
    model = prepare(load_model(load_checkpoint(path)), pick_device(device))
    if model.mica is None:
        raise ModelFileError(
            f"{path} was trained without heads (model.mica = false)",
            fix="choose a model with two heads or more",
        )
    if model.mica.heads < 2:
        raise ModelFileError(
            f"{path} has one head: there is nothing to compare",
            fix="choose a model with two heads or more",
        )
    return model


def judge_heads(
    candidate: Candidate,
    model: BiigmaNet,
    manifest: Manifest,
    part_name: str,
    *,
    device: torch.device,
    decoding: Progress = lambda *_: None,
    running: Progress = lambda *_: None,
    warn: Callable[[str], None] = lambda _: None,
) -> HeadSimilarity:
    """The matrices of a model on a part of its own split.

    Args:
        candidate: what the model was trained on.
        model: its network, from `open_heads`.

    Raises:
        CheckpointMismatch: classes, data or split are not those the model was trained with.
        DataError: an image is gone or has changed.
    """
    split = split_of(candidate, manifest)
    data = candidate.data
    part = load_part(
        manifest, split.part(part_name), data.side, rule=data.resize, build=True,
        progress=decoding, warn=warn,
    )  # fmt: skip
    running(0, len(part.ids))
    pooled, positions, chance = head_similarity(model, part.pixels, device, progress=running)
    return HeadSimilarity(
        model=candidate.name,
        part=part_name,
        images=len(part.ids),
        pooled_KK=pooled,
        positions_KK=positions,
        chance_KK=chance,
    )


@torch.inference_mode()
def head_similarity(
    model: BiigmaNet, pixels: Pixels, device: torch.device, *, progress: Progress = lambda *_: None
) -> tuple[Floats, Floats, Floats]:
    """Pooled, positionwise and chance cosines `(K, K)`, means over uint8 `(n, S, S, 3)`."""
    model.eval()
    assert model.mica is not None
    k = model.mica.heads
    sums = np.zeros((3, k, k))
    for start in range(0, len(pixels), 32):
        image = to_batch(torch.from_numpy(pixels[start : start + 32]), device)
        heads = model(image).heads
        pooled_BKD = heads.pooled_BKD
        # Over all orders of one head's channels a product is that of the two heads' means.
        flat_BKD = pooled_BKD.mean(2, keepdim=True).expand_as(pooled_BKD)
        norm_BK = pooled_BKD.square().sum(2).clamp_min(1e-24).sqrt()
        chance_BKK = (flat_BKD @ flat_BKD.mT) / norm_BK[:, :, None] / norm_BK[:, None, :]
        for i, cosine_BKK in enumerate(
            (
                head_cosine(pooled_BKD[:, :, None]),
                head_cosine(heads.gated().flatten(3).mT),
                chance_BKK,
            )
        ):
            sums[i] += cosine_BKK.double().sum(0).cpu().numpy()
        progress(min(start + 32, len(pixels)), len(pixels))
    pooled, positions, chance = sums / len(pixels)
    return pooled, positions, chance
