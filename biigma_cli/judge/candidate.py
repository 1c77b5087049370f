"""A model that can be judged: a torch checkpoint or an exported ONNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from biigma_cli.config import DataConfig, fill_older, from_dict
from biigma_cli.core.header import caveats_of
from biigma_cli.core.model import BiigmaNet
from biigma_cli.core.weights import load_checkpoint, load_model
from biigma_cli.data.preprocess import Pixels
from biigma_cli.engine.device import pick_device
from biigma_cli.engine.evaluate import predict_proba, prepare, to_batch
from biigma_cli.errors import ModelFileError, UsageError
from biigma_cli.runtime.limits import NOTHING_STATED, Stated
from biigma_cli.runtime.pipeline import VIEWS, turned
from biigma_cli.runtime.session import ModelInfo, Predictor, stated
from biigma_cli.taxonomy import lesion_class

Progress = Callable[[int, int], None]
Floats = npt.NDArray[np.float32]


class Answers(NamedTuple):
    """What a model says of each image.

    Attributes:
        proba_nY: probabilities.
        novelty_n: of its input check, above 1 for what is no dermoscopy; None where it has none.
    """

    proba_nY: Floats
    novelty_n: Floats | None = None


class Maps(NamedTuple):
    """What a model shows of each image, at its last features' resolution.

    Attributes:
        logits_nY: class scores before temperature and softmax.
        evidence_nYhw: what each position adds to each logit; None in an export by a version that
            had none.
        saliency: M, `(n, h, w)` in (0, 1), by form: `plain` and `standardised` of a checkpoint,
            the exported form alone of an ONNX model; empty where the model has no saliency block.
    """

    logits_nY: Floats
    evidence_nYhw: Floats | None
    saliency: dict[str, Floats]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model to judge.

    Attributes:
        name: to show.
        classes: class codes.
        malignant: of each class, whether it is malignant or pre-malignant; None where nobody has
            said.
        trunk: of the network, see `config.ModelConfig`.
        data: what it was trained on, its input's side and resize rule.
        split: summary of the split it was trained with.
        run: uint8 `(n, side, side, 3)` to its answers.
        maps: the same pixels to what the model shows of them.
        temperature: T that these are calibrated with; None where they are as trained.
        device: what it runs on, as torch or ONNX Runtime calls it.
        views: of each image whose mean probabilities are its answer.
        fallback: why `auto` runs on the CPU although there is a GPU; empty where it does not.
        exported: whether it is an exported file, whose answers are those that users get.
        chosen: what of it was chosen on its validation part, in words.
        caveats: what could not be found out about the images it is judged on.
        limits: those it states: when not to answer, and what to call suspicious; none of a
            checkpoint, and for another number of views than they were found with.
    """

    name: str
    classes: tuple[str, ...]
    malignant: tuple[bool | None, ...]
    trunk: str
    data: DataConfig
    split: dict[str, Any]
    run: Callable[[Pixels, Progress], Answers]
    maps: Callable[[Pixels, Progress], Maps]
    temperature: float | None = None
    device: str = ""
    views: int = 1
    fallback: str = ""
    exported: bool = False
    chosen: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    stated: Stated = NOTHING_STATED

    def over_views(self) -> Candidate:
        """One that answers as `biigma predict --tta`: the mean over the square's symmetries.

        Its maps and its input check stay those of the upright image.
        """

        def run(pixels: Pixels, progress: Progress) -> Answers:
            total, count = np.zeros(()), len(pixels)
            novelty = None
            for view in range(VIEWS):

                def told(done: int, _: int, before: int = view * count) -> None:
                    progress(before + done, VIEWS * count)

                answers = self.run(turned(pixels, view), told)
                total = total + answers.proba_nY.astype(np.float64)
                novelty = answers.novelty_n if view == 0 else novelty
            return Answers((total / VIEWS).astype(np.float32), novelty)

        return replace(self, run=run, views=VIEWS, stated=NOTHING_STATED)


def open_candidate(path: Path, device: str | torch.device) -> Candidate:
    """A checkpoint (`.safetensors`) or an exported model (`.onnx`).

    Args:
        device: for a checkpoint as `pick_device` takes it, for an exported model as `Predictor`
            does.

    Raises:
        ModelFileError: it is neither, or damaged.
        UsageError: a device that means nothing, or is of the other kind of file.
        DeviceError: a device that cannot be had.
    """
    if path.suffix == ".onnx":
        return _open_onnx(path, str(device))
    if path.suffix != ".safetensors":
        raise ModelFileError(
            f"{path} is neither a checkpoint (.safetensors) nor an exported model (.onnx)",
            fix="name a run with --run, or a file",
        )
    place = pick_device(str(device))
    checkpoint = load_checkpoint(path)
    model = prepare(load_model(checkpoint), place)

    def run(pixels: Pixels, progress: Progress) -> Answers:
        return Answers(predict_proba(model, pixels, device=place, progress=progress))

    return Candidate(
        name=str(path),
        classes=tuple(checkpoint.meta["classes"]),
        malignant=tuple(lesion_class(code).malignant for code in checkpoint.meta["classes"]),
        trunk=checkpoint.config.model.trunk,
        data=checkpoint.config.data,
        split=checkpoint.meta["split"],
        run=run,
        maps=lambda pixels, progress: _torch_maps(model, pixels, place, progress),
        device=str(place),
        chosen=_chosen(checkpoint.meta),
        caveats=tuple(caveats_of(checkpoint.meta.get("sources", []))),
    )


def _chosen(meta: dict[str, Any]) -> tuple[str, ...]:
    """What of a network, or of those that were joined, was chosen on the validation part."""
    members = meta.get("members", [])
    said = [str(m.get("selection", "")) for m in (meta, *members)]
    by = [how for how in said if how.endswith("on the validation part")]
    averaged = [how for how in by if "best of" in how]  # see `engine.interpolate.average_meta`
    # Of an average that says nothing of epochs the settings do.
    select = meta.get("config", {}).get("train", {}).get("select", "last")
    found = ["the epoch"] * (select != "last" or len(by) > len(averaged))
    return (*found, *["the share of two networks in it"] * bool(averaged))


def data_of(info: ModelInfo) -> DataConfig:
    """What an exported model was trained on, its input's side and resize rule.

    Raises `ModelFileError` where it does not say.
    """
    return from_dict(fill_older({"data": stated(info, "config", "data")})).data


def _open_onnx(path: Path, device: str) -> Candidate:
    if device == "mps":
        raise UsageError(
            f"{path} is an exported model, which cannot run on mps",
            fix="use --device coreml, cpu or auto",
        )
    predictor = Predictor(path, device=device)
    info = predictor.info

    def run(pixels: Pixels, progress: Progress) -> Answers:
        answer = predictor.ask(pixels, progress)
        return Answers(answer.probabilities_BY, answer.novelty_B)

    def maps(pixels: Pixels, progress: Progress) -> Maps:
        form = stated(info, "config", "model", "saliency")
        a = predictor.ask(pixels, progress)
        return _joined([(a.logits_BY, a.evidence_BYHW, {form: a.saliency_BHW})])

    return Candidate(
        name=str(path),
        classes=info.classes,
        malignant=info.malignant,
        trunk=str(stated(info, "config", "model", "trunk")),
        data=data_of(info),
        split=info.metadata["split"],
        run=run,
        maps=maps,
        temperature=info.temperature,
        device=predictor.provider,
        fallback=predictor.fallback,
        exported=True,
        chosen=_chosen(info.metadata),
        caveats=tuple(caveats_of(info.metadata.get("sources", []))),
        stated=Stated.of(info),
    )


@torch.inference_mode()
def _torch_maps(model: BiigmaNet, pixels: Pixels, device: torch.device, progress: Progress) -> Maps:
    model.eval()
    batches = []
    for start in range(0, len(pixels), 32):
        image = to_batch(torch.from_numpy(pixels[start : start + 32]), device)
        taps = model.taps(image)
        found = model.infer_taps(taps)
        maps: dict[str, Floats | None] = {}
        if model.saliency is not None:
            for form in ("plain", "standardised"):
                maps[form] = model.saliency(taps, form=form)[:, 0].cpu().numpy()
        batches.append((found.logits_BY.cpu().numpy(), found.evidence_BYHW.cpu().numpy(), maps))
        progress(min(start + 32, len(pixels)), len(pixels))
    return _joined(batches)


def _joined(batches: Sequence[tuple[Floats, Floats | None, dict[str, Floats | None]]]) -> Maps:
    logits, evidence, saliency = zip(*batches, strict=True)
    known = [form for form, values in saliency[0].items() if values is not None]
    return Maps(
        logits_nY=np.concatenate(logits),
        evidence_nYhw=None if evidence[0] is None else np.concatenate(evidence),
        saliency={form: np.concatenate([s[form] for s in saliency]) for form in known},
    )
