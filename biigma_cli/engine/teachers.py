"""Distillation: the mean answer of networks trained on the same split (Hinton et al., 2015)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from biigma_cli.core.sources import Source, joined, sources_of
from biigma_cli.core.weights import load_checkpoint, load_model
from biigma_cli.data.augment import resize_batch
from biigma_cli.data.preprocess import Pixels
from biigma_cli.data.splits import Split, check_same_split
from biigma_cli.engine.evaluate import prepare, to_batch
from biigma_cli.engine.provenance import ancestry, line_of, run_of
from biigma_cli.storage import content_digest

_BATCH = 64


class Teachers:
    """Trained networks that answer for the student's own augmented images.

    Each sees the very view the student sees, unless `train.teacher_view` says otherwise: answers
    for other views of the image ask the student to ignore what it is shown.

    Attributes:
        digests: of each teacher's file, by its path: a resumed run must have the same ones.
        ancestors: the teachers and what is behind them (`provenance.line_of`).
        sources: the data that they have learnt from.
    """

    def __init__(
        self, paths: Sequence[str], *, classes: list[str], split: Split, device: torch.device
    ) -> None:
        """Load them.

        Raises:
            ModelFileError: no such file, or no checkpoint.
            CheckpointMismatch: other classes, or trained on another split, whose training part may
                hold images that are test images here.
        """
        self.models = []
        self.sides = []
        self.digests: dict[str, str] = {}
        self.ancestors: list[dict[str, Any]] = []
        self.sources: list[Source] = []
        for path in paths:
            checkpoint = load_checkpoint(Path(path))
            check_same_split(split, checkpoint.meta["split"], source=path)
            self.models.append(prepare(load_model(checkpoint, classes=classes), device).eval())
            self.sides.append(checkpoint.config.data.side)
            line = line_of(run_of(Path(path)), checkpoint)
            self.ancestors = ancestry(self.ancestors, line)
            self.sources = joined(self.sources, sources_of(checkpoint))
            self.digests[path] = content_digest(Path(path).read_bytes())

    def __bool__(self) -> bool:
        return bool(self.models)

    def once(
        self, pixels_NSS3: Pixels, device: torch.device, progress: Callable[[int, int], None]
    ) -> Tensor:
        """Mean probabilities, `(N, Y)` on the CPU, for images as they are, uint8."""
        answers = []
        for start in range(0, len(pixels_NSS3), _BATCH):
            batch = torch.from_numpy(pixels_NSS3[start : start + _BATCH])
            answers.append(self(to_batch(batch, device)).cpu())
            progress(start + len(batch), len(pixels_NSS3))
        return torch.cat(answers)

    @torch.no_grad()
    def __call__(self, image_B3SS: Tensor) -> Tensor:
        """Mean probabilities, `(B, Y)` in float32, for float images in [0, 255]."""
        answers = [
            model(resize_batch(image_B3SS, side)).logits_BY.float().softmax(1)
            for model, side in zip(self.models, self.sides, strict=True)
        ]
        return torch.stack(answers).mean(0)
