"""A checkpoint to one ONNX file, written only after its answers were compared with torch's."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from biigma_cli import __version__
from biigma_cli.core.model import BiigmaNet
from biigma_cli.core.weights import Checkpoint, load_model
from biigma_cli.data.preprocess import RESIZE_MEANS, RESIZE_RULES, Pixels
from biigma_cli.metrics import Ints
from biigma_cli.runtime.calibration import Calibration, fit_calibration
from biigma_cli.runtime.parity import FP32_TOLERANCE, Parity, compare, compare_maps
from biigma_cli.runtime.session import FORMAT, Predictor
from biigma_cli.storage import atomic_write_bytes, without_folders
from biigma_cli.taxonomy import lesion_class

OPSET = 18
DISCLAIMER = "For research use only. Not a medical device."


class _Graph(nn.Module):
    """What is exported: uint8 NHWC in; probabilities, logits, evidence and saliency map out."""

    def __init__(self, model: BiigmaNet, temperature: float | None = None) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        result = self.model.infer(image.permute(0, 3, 1, 2).float())
        logits = result.logits_BY
        scaled = logits if self.temperature is None else logits / self.temperature
        outputs = (scaled.softmax(1), logits, result.evidence_BYHW)
        return outputs if result.map_B1HW is None else (*outputs, result.map_B1HW[:, 0])


def export_onnx(
    checkpoint: Checkpoint,
    path: Path,
    images: Pixels,
    *,
    source: str,
    metrics: dict[str, Any] | None = None,
    calibration: Calibration | None = None,
    tolerance: float = FP32_TOLERANCE,
) -> Parity:
    """Export the R branch in float32 with a dynamic batch, and prove it.

    Args:
        images: uint8 `(n, side, side, 3)` to compare torch and ONNX Runtime on.
        source: what those images are, for the proof.
        metrics: figures to store in the metadata, each set with its protocol.
        calibration: its temperature goes into the graph, on both sides of the comparison; None
            leaves the probabilities as trained.

    Returns:
        the comparison, whose largest difference is at most `tolerance`.

    Raises:
        ParityError: they differ by more; nothing is written.
    """
    model = load_model(checkpoint).float()
    graph = _Graph(model, None if calibration is None else calibration.temperature).eval()
    side = checkpoint.config.data.side
    names = ["probabilities", "logits", "evidence"] + (["saliency"] if model.saliency else [])
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=names,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
    if program is None:  # only so for the old exporter
        raise RuntimeError("torch.onnx.export gave no program")
    proto = program.model_proto
    _drop_doc_strings(proto)
    del proto.metadata_props[:]
    for key, value in metadata(checkpoint, metrics, calibration).items():
        proto.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(proto, full_check=True)
    data = proto.SerializeToString()
    with tempfile.TemporaryDirectory() as folder:
        # Compared through a file and our own session class: what users will run.
        trial = Path(folder) / "model.onnx"
        trial.write_bytes(data)
        exported = _run(Predictor(trial, device="cpu"), images)
    wanted = dict(zip(names, _outputs(graph, images, torch.device("cpu")), strict=True))
    parity = compare(
        wanted["probabilities"], exported["probabilities"], source=source, tolerance=tolerance
    )
    for name in names[2:]:
        compare_maps(name, wanted[name], exported[name])
    atomic_write_bytes(path, data)
    return parity


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
) -> dict[str, str]:
    """Metadata of an exported model: JSON values under plain keys, listed in docs/models.md."""
    meta = checkpoint.meta
    config = checkpoint.config
    lesions = [lesion_class(code) for code in meta["classes"]]
    rule = config.data.resize
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
        "licence": meta["licence"],
        "citation": meta["citation"],
        "disclaimer": DISCLAIMER,
        "dataset": config.data.dataset,
        "protocol": meta["protocol"],
        "split": meta["split"],
        "selection": meta["selection"],
        "epoch": meta["epoch"],
        "validation": meta["validation"],
        "metrics": metrics or {},
        **({} if calibration is None else {"calibration": calibration.to_dict()}),
        "config": settings,
        "versions": {**meta["versions"], "export": __version__},
    }
    return {"biigma_format": FORMAT, **{k: json.dumps(v) for k, v in values.items()}}


def _run(predictor: Predictor, images: Pixels) -> dict[str, npt.NDArray[np.float32]]:
    # Odd batches, so that a batch size baked into the graph cannot go unseen.
    batches = [images[:1], images[1:4], *(images[i : i + 32] for i in range(4, len(images), 32))]
    answers = [predictor(b) for b in batches if len(b)]
    found: dict[str, list[npt.NDArray[np.float32] | None]] = {
        "probabilities": [a.probabilities_BY for a in answers],
        "evidence": [a.evidence_BYHW for a in answers],
        "saliency": [a.saliency_BHW for a in answers],
    }
    return {
        name: np.concatenate([p for p in parts if p is not None])
        for name, parts in found.items()
        if parts[0] is not None
    }


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


def _drop_doc_strings(proto: onnx.ModelProto) -> None:
    """Remove stack traces of the exporting machine: they hold its paths."""
    graph = proto.graph
    for item in (proto, graph, *graph.node, *graph.initializer, *graph.value_info):
        item.ClearField("doc_string")
    for node in (*graph.node, graph):
        del node.metadata_props[:]
    for value in (*graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del value.metadata_props[:]


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
