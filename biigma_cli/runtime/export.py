"""A checkpoint to one ONNX file, written only after its answers were compared with torch's."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from biigma_cli import __version__
from biigma_cli.config import Precision
from biigma_cli.core.header import EXPORTED
from biigma_cli.core.input_check import InputCheck
from biigma_cli.core.model import BiigmaNet
from biigma_cli.core.sources import joint_citation, joint_licence, sources_of
from biigma_cli.core.weights import Checkpoint, load_model
from biigma_cli.data.images import Part
from biigma_cli.data.preprocess import RESIZE_MEANS, RESIZE_RULES, Pixels
from biigma_cli.errors import ParityError
from biigma_cli.metrics import Ints
from biigma_cli.runtime.calibration import Calibration, fit_calibration
from biigma_cli.runtime.input_check import FittedCheck
from biigma_cli.runtime.limits import Stated
from biigma_cli.runtime.narrow import NARROW, hold_once
from biigma_cli.runtime.parity import (
    FP32_TOLERANCE,
    LARGEST_LOSS,
    AccuracyChange,
    Parity,
    compare,
    compare_maps,
)
from biigma_cli.runtime.proto import finished, novelty_limit, scale_constant, trial
from biigma_cli.runtime.quantise import METHOD as QUANTISATION
from biigma_cli.runtime.quantise import quantise
from biigma_cli.runtime.session import Predictor, whole
from biigma_cli.storage import atomic_write_bytes, without_folders
from biigma_cli.taxonomy import lesion_class

OPSET = 18
REQUIRED_OUTPUTS = ("probabilities", "logits")
DISCLAIMER = "For research use only. Not a medical device."


class _Graph(nn.Module):
    """What is exported: uint8 NHWC in; the named outputs out.

    With `half` the network's weights and activations are float16; the normalisation, the map's
    variances, the input check and what comes after the logits stay float32.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: BiigmaNet,
        temperature: float | None = None,
        *,
        check: InputCheck | None = None,
        outputs: Sequence[str] = (),
        half: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.outputs = tuple(outputs) or available_outputs(model, check)
        self.register_buffer("scale", model.pixel_scale, persistent=False)
        self.register_buffer("shift", model.pixel_shift, persistent=False)
        self.model = copy.deepcopy(model).half() if half else model
        self.check = check
        self.dtype = torch.float16 if half else torch.float32

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        pixels = image.permute(0, 3, 1, 2).float() * self.scale + self.shift
        taps = self.model.trunk(pixels.to(self.dtype))
        result = self.model.infer_taps(taps)
        logits = result.logits_BY.float()
        scaled = logits if self.temperature is None else logits / self.temperature
        found = {
            "probabilities": scaled.softmax(1),
            "logits": logits,
            "evidence": result.evidence_BYHW.float(),
        }
        if result.map_B1HW is not None:
            found["saliency"] = result.map_B1HW[:, 0]
        if self.check is not None:
            found["novelty"] = self.check(taps.early)
        return tuple(found[name] for name in self.outputs)


def available_outputs(model: BiigmaNet, check: InputCheck | None = None) -> tuple[str, ...]:
    """Names of what can be exported, in the order of the graph's outputs."""
    names = ["probabilities", "logits", "evidence"]
    return (*names, *["saliency"] * bool(model.saliency), *["novelty"] * (check is not None))


class Exported(NamedTuple):
    """What an export proved.

    Attributes:
        parity: of its probabilities with torch's in float32.
        accuracy: what a lower precision does to the validation part; None in float32, and where
            there is no validation part.
        check: the input check as the file has it.
        limits: found on the validation part; None where that was not given.
    """

    parity: Parity
    accuracy: AccuracyChange | None
    check: FittedCheck | None = None
    stated: Stated | None = None


def export_onnx(
    checkpoint: Checkpoint,
    path: Path,
    images: Pixels,
    *,
    source: str,
    labels: Ints | None = None,
    metrics: dict[str, Any] | None = None,
    calibration: Calibration | None = None,
    check: FittedCheck | None = None,
    precision: Precision = "fp32",
    outputs: Sequence[str] | None = None,
    train: Pixels | None = None,
    validation: Part | None = None,
    force: bool = False,
    tolerance: float = FP32_TOLERANCE,
) -> Exported:
    """Export the R branch with a dynamic batch, and prove it.

    Args:
        images: uint8 `(n, side, side, 3)` to compare torch and ONNX Runtime on.
        source: what those images are, for the proof.
        labels: of `images`, `(n,)`, where these are the whole validation part: what a lower
            precision costs is measured on them.
        metrics: figures to store in the metadata, each set with its protocol.
        calibration: its temperature goes into the graph, on both sides of the comparison; None
            leaves the probabilities as trained.
        check: gives the output `novelty`. Below float32 its limit is set again, on `images` as the
            file itself sees them: features of fewer bits lie elsewhere.
        outputs: of those that `available_outputs` gives; `probabilities` and `logits` are always
            among them. Default: all.
        train: images of the training part, `(n, side, side, 3)`; int8 needs them.
        validation: the whole part, on which the limits of "can't say" and of what is suspicious
            are found; None: the file states none. Where `labels` are given, `images` must be its.
        force: write even what loses more than `LARGEST_LOSS`, or a loss that cannot be measured.

    Returns:
        what was proven: in float32 a largest difference of at most `tolerance`.

    Raises:
        ParityError: a difference or a loss is larger than allowed, or a weight beyond float16's
            range; nothing is written.
        UsageError: int8 without NNCF.
    """
    model = load_model(checkpoint).float().eval()
    module = None if check is None else check.module
    temperature = None if calibration is None else calibration.temperature
    names = [
        name
        for name in available_outputs(model, module)
        if outputs is None or name in outputs or name in REQUIRED_OUTPUTS
    ]
    graph = _Graph(model, temperature, check=module, outputs=names).eval()
    shown = graph
    if precision == "fp16":
        shown = _Graph(model, temperature, check=module, outputs=names, half=True).eval()
    proto = _to_proto(shown, checkpoint.config.data.side, names)
    if precision == "int8":
        if train is None:
            raise ValueError("int8 needs training images")
        proto = quantise(proto, train)
    if precision in NARROW:
        NARROW[precision](proto, spared="novelty")
        hold_once(proto)
    about: dict[str, Any] = {"precision": precision}
    if precision == "int8" and train is not None:
        about["quantisation"] = {"method": QUANTISATION, "train": len(train)}
    values = metadata(checkpoint, metrics, calibration, check=check, export=about)
    if check is not None and precision != "fp32":
        limit = trial(proto, values, lambda p: novelty_limit(p, images))
        scale_constant(proto, "check.limit", limit)
        check = dataclasses.replace(check, scale=limit)
    exported = trial(proto, values, lambda p: _run(p, images))
    if check is not None and labels is not None:
        check = dataclasses.replace(check, flagged=float((exported["novelty"] > 1).mean()))
    wanted = dict(zip(names, _outputs(graph, images, torch.device("cpu")), strict=True))
    before, after = wanted["probabilities"], exported["probabilities"]
    accuracy = None
    if precision == "fp32":
        parity = compare(before, after, source=source, tolerance=tolerance)
        for name in names[2:]:
            compare_maps(name, wanted[name], exported[name])
    else:
        # Far apart only where something broke, such as float16's range.
        parity = compare(before, after, source=source, tolerance=1.0)
        if labels is not None:
            accuracy = AccuracyChange.measure(labels, before, after)
            if accuracy.loss > LARGEST_LOSS and not force:
                raise ParityError(
                    f"{precision} loses too much: {accuracy.summary()}; at most "
                    f"{100 * LARGEST_LOSS:g} points are allowed",
                    fix="nothing was written; export "
                    f"{'fp16-weights' if precision.startswith('int8') else 'fp32'}, or add --force",
                )
            about["accuracy"] = accuracy._asdict()
        elif not force:
            raise ParityError(
                f"what {precision} loses cannot be measured: the validation images are not here",
                fix="nothing was written; get the data set (biigma download), export fp32, or add "
                "--force",
            )
    about["parity"] = parity._asdict()
    found = None
    if validation is not None:
        said = exported
        if labels is None:
            said = trial(proto, values, lambda p: _run(p, validation.pixels))
        found = Stated.find(
            validation.labels, said["probabilities"],
            [lesion_class(code).malignant for code in checkpoint.meta["classes"]],
            validation.groups, flagged_n=said["novelty"] > 1 if "novelty" in said else None,
        )  # fmt: skip
    values = metadata(checkpoint, metrics, calibration, check=check, export=about, stated=found)
    atomic_write_bytes(path, finished(proto, values))
    return Exported(parity, accuracy, check, found)


def _to_proto(graph: nn.Module, side: int, names: Sequence[str]) -> onnx.ModelProto:
    """The graph by torch's exporter, constants folded, without traces of this machine."""
    from onnxscript.optimizer import fold_constants

    # In place or not is one graph, but the exporter takes in-place operations apart, slowly.
    for module in graph.modules():
        if isinstance(module, nn.ReLU | nn.ReLU6):
            module.inplace = False
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            graph,
            (torch.zeros(2, side, side, 3, dtype=torch.uint8),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=list(names),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
        if program is None:  # only so for the old exporter
            raise RuntimeError("torch.onnx.export gave no program")
        proto: onnx.ModelProto = program.model_proto
        # Weights that are turned in the graph are turned here; the default limits spare them.
        fold_constants(proto, input_size_limit=1 << 28, output_size_limit=1 << 28)
    return proto


def calibrate(
    checkpoint: Checkpoint,
    images: Pixels,
    label_n: Ints,
    *,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration | None:
    """Fit the temperature on a validation part, uint8 `(n, side, side, 3)` and `(n,)` labels.

    None where no temperature is best, see `fit_calibration`.
    """
    graph = _Graph(load_model(checkpoint).float()).eval().to(device)
    return fit_calibration(_outputs(graph, images, device, progress)[1], label_n)


def metadata(
    checkpoint: Checkpoint,
    metrics: dict[str, Any] | None,
    calibration: Calibration | None = None,
    *,
    check: FittedCheck | None = None,
    export: dict[str, Any] | None = None,
    stated: Stated | None = None,
) -> dict[str, str]:
    """Metadata of an exported model: JSON values under plain keys, listed in docs/models.md."""
    meta = checkpoint.meta
    config = checkpoint.config
    lesions = [lesion_class(code) for code in meta["classes"]]
    rule = config.data.resize
    sources = sources_of(checkpoint)
    settings = config.to_dict()
    # No one's folders.
    settings["model"]["weights"] = without_folders(config.model.weights)
    settings["train"]["init"] = without_folders(config.train.init)
    settings["train"]["teachers"] = [without_folders(t) for t in config.train.teachers]
    values = {
        "classes": meta["classes"],
        "class_names": [c.name for c in lesions],
        "malignant": [c.malignant for c in lesions],
        "preprocessing": {
            "input": "image: uint8, (batch, side, side, 3), RGB",
            "side": config.data.side,
            "resize": RESIZE_RULES[rule],
            "resize_means": f"EXIF orientation applied, {RESIZE_MEANS[rule]}, "
            "Pillow bilinear with antialiasing",
            "normalisation": f"{config.model.normalisation}, inside the graph",
        },
        "licence": joint_licence(sources),
        "citation": joint_citation(sources),
        "disclaimer": DISCLAIMER,
        "dataset": config.data.dataset,
        "protocol": meta["protocol"],
        "split": meta["split"],
        "extra": meta.get("extra", []),
        "sources": sources,
        "selection": meta["selection"],
        "epoch": meta["epoch"],
        "validation": meta["validation"],
        "metrics": metrics or {},
        **({} if calibration is None else {"calibration": calibration.to_dict()}),
        **({} if check is None else {"input_check": check.to_dict()}),
        **({} if stated is None else stated.to_metadata()),
        "export": export or {"precision": "fp32"},
        "config": settings,
        "command": meta.get("command", ""),
        "ancestors": meta.get("ancestors", []),
        "versions": {**meta["versions"], "export": __version__},
    }
    return {"biigma_format": EXPORTED, **{k: json.dumps(v) for k, v in values.items()}}


def _run(predictor: Predictor, images: Pixels) -> dict[str, npt.NDArray[np.float32]]:
    # Odd batches, so that a batch size baked into the graph cannot go unseen.
    batches = [images[:1], images[1:4], *(images[i : i + 32] for i in range(4, len(images), 32))]
    answer = whole(predictor(batch) for batch in batches if len(batch))
    found = {
        "probabilities": answer.probabilities_BY,
        "evidence": answer.evidence_BYHW,
        "saliency": answer.saliency_BHW,
        "novelty": answer.novelty_B,
    }
    return {name: values for name, values in found.items() if values is not None}


@torch.inference_mode()
def _outputs(
    graph: nn.Module,
    images: Pixels,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> list[npt.NDArray[np.float32]]:
    """Torch's own, in the order of the graph's outputs: probabilities, logits, evidence, M."""
    batches = []
    for start in range(0, len(images), 32):
        batch = torch.from_numpy(images[start : start + 32]).to(device)
        batches.append([output.cpu().numpy() for output in graph(batch)])
        if progress:
            progress(min(start + 32, len(images)), len(images))
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporter chatter off: it says nothing a user could act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
