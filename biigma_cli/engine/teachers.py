"""Distillation: the mean answer of networks trained on the same split (Hinton et al., 2015)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from biigma_cli.core.sources import Source, merged
from biigma_cli.core.weights import Checkpoint, check_classes, load_checkpoint, load_model
from biigma_cli.data.augment import resize_batch
from biigma_cli.data.manifest import Manifest
from biigma_cli.data.preprocess import Pixels
from biigma_cli.data.splits import Split, check_same_split
from biigma_cli.engine.evaluate import prepare, to_batch
from biigma_cli.engine.provenance import ancestry, check_unseen, line_of, run_of
from biigma_cli.errors import CheckpointMismatch
from biigma_cli.runtime.session import Predictor, find_network
from biigma_cli.storage import content_digest

_BATCH = 64


class _Teacher(NamedTuple):
    """One network.

    Attributes:
        answer: float images `(B, 3, side, side)` in [0, 255] to probabilities `(B, Y)`, float32.
        side: that it takes.
        rule: by which its own images became that square.
    """

    answer: Callable[[Tensor], Tensor]
    side: int
    rule: str


class Teachers:
    """Trained networks that answer for the student's own augmented images.

    Each sees the very view the student sees, unless `train.teacher_view` says otherwise: answers
    for other views of the image ask the student to ignore what it is shown.

    Attributes:
        digests: of each teacher's file, by its name: a resumed run must have the same ones.
        ancestors: the teachers and what is behind them (`provenance.line_of`).
        sources: the data that they have learnt from.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        manifest: Manifest,
        split: Split,
        device: torch.device,
        rule: str | None = None,
    ) -> None:
        """Load them.

        Args:
            names: checkpoints, exported models, or names of shipped ones.
            manifest: of the images that they will see.
            split: of those.
            rule: the resize rule of the views that they will see; None where each is asked `once`,
                by its own.

        Raises:
            ModelFileError: no such file, or neither of the two.
            CheckpointMismatch: other classes, another resize rule, or trained on another split,
                whose training part may hold images that are test images here.
            DeviceError: an exported model cannot run on the device.
        """
        self._teachers: list[_Teacher] = []
        classes = list(manifest.taxonomy.codes)
        self.digests: dict[str, str] = {}
        self.ancestors: list[dict[str, Any]] = []
        self.sources: list[Source] = []
        for name in names:
            path = find_network(name)
            opened = _exported if path.suffix == ".onnx" else _trained
            teacher, said = opened(path, classes, device)
            check_same_split(split, said.meta["split"], source=name)
            learnt_from = check_unseen(split, manifest, name, said)
            if rule not in (None, teacher.rule):
                raise CheckpointMismatch(
                    f"{name} knows images resized by {teacher.rule}, and would see them by {rule}",
                    fix=f"set train.teacher_view=once, or data.resize={teacher.rule}",
                )
            self._teachers.append(teacher)
            self.ancestors = ancestry(self.ancestors, line_of(run_of(path), said))
            self.sources = merged(self.sources, learnt_from)
            self.digests[name] = content_digest(path.read_bytes())

    def __bool__(self) -> bool:
        return bool(self._teachers)

    def once(
        self,
        load: Callable[[int, str], Pixels],
        device: torch.device,
        progress: Callable[[int, int], None],
    ) -> Tensor:
        """Mean probabilities, `(N, Y)` on the CPU, for images as they are.

        Args:
            load: the images as uint8 `(N, S, S, 3)`, by the side S and the resize rule.
        """
        answers = []
        for done, teacher in enumerate(self._teachers):
            pixels_NSS3 = load(teacher.side, teacher.rule)
            count, rows = len(pixels_NSS3), []
            for start in range(0, count, _BATCH):
                batch = torch.from_numpy(pixels_NSS3[start : start + _BATCH])
                rows.append(self._ask(teacher, to_batch(batch, device)).cpu())
                progress(done * count + start + len(batch), len(self._teachers) * count)
            answers.append(torch.cat(rows))
        return torch.stack(answers).mean(0)

    def __call__(self, image_B3SS: Tensor) -> Tensor:
        """Mean probabilities, `(B, Y)` in float32, for float images in [0, 255]."""
        return torch.stack([self._ask(teacher, image_B3SS) for teacher in self._teachers]).mean(0)

    @torch.no_grad()
    def _ask(self, teacher: _Teacher, image_B3SS: Tensor) -> Tensor:
        return teacher.answer(resize_batch(image_B3SS, teacher.side))


def _trained(path: Path, classes: list[str], device: torch.device) -> tuple[_Teacher, Checkpoint]:
    """A checkpoint, and what it says of itself."""
    checkpoint = load_checkpoint(path)
    model = prepare(load_model(checkpoint, classes=classes), device).eval()

    def answer(image_B3SS: Tensor) -> Tensor:
        proba: Tensor = model(image_B3SS).logits_BY.float().softmax(1)
        return proba

    data = checkpoint.config.data
    return _Teacher(answer, data.side, data.resize), checkpoint


def _exported(path: Path, classes: list[str], device: torch.device) -> tuple[_Teacher, Checkpoint]:
    """An exported model, and what it says of itself."""
    predictor = Predictor(path, device="auto" if device.type == "mps" else str(device))
    info = predictor.info
    check_classes(list(info.classes), classes, source=str(path))

    def answer(image_B3SS: Tensor) -> Tensor:
        pixels_BSS3 = image_B3SS.round().clamp(0, 255).to("cpu", torch.uint8).permute(0, 2, 3, 1)
        logits_BY = predictor(pixels_BSS3.contiguous().numpy()).logits_BY
        return torch.from_numpy(logits_BY).to(device).softmax(1)

    return _Teacher(answer, info.side, info.rule), Checkpoint({}, info.metadata)
