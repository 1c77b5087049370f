"""A checkpoint to one ONNX file, written only after its answers were compared with torch's."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
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
from biigma_cli.runtime.parity import FP32_TOLERANCE, Parity, compare
from biigma_cli.runtime.session import FORMAT, Predictor
from biigma_cli.storage import atomic_write_bytes
from biigma_cli.taxonomy import lesion_class

OPSET = 18
DISCLAIMER = "For research use only. Not a medical device."


class _Graph(nn.Module):
    """What is exported: uint8 NHWC in; probabilities, logits and the saliency map out."""

    def __init__(self, model: BiigmaNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        result = self.model.infer(image.permute(0, 3, 1, 2).float())
        outputs = (result.logits_BY.softmax(1), result.logits_BY)
        return outputs if result.map_B1HW is None else (*outputs, result.map_B1HW[:, 0])


def export_onnx(
    checkpoint: Checkpoint,
    path: Path,
    images: Pixels,
    *,
    source: str,
    metrics: dict[str, Any] | None = None,
    tolerance: float = FP32_TOLERANCE,
) -> Parity:
    """Export the R branch in float32 with a dynamic batch, and prove it.

    Args:
        images: uint8 `(n, side, side, 3)` to compare torch and ONNX Runtime on.
        source: what those images are, for the proof.
        metrics: figures to store in the metadata, each set with its protocol.

    Returns:
        the comparison, whose largest difference is at most `tolerance`.

    Raises:
        ParityError: they differ by more; nothing is written.
    """
    model = load_model(checkpoint).float()
    graph = _Graph(model).eval()
    side = checkpoint.config.data.side
    names = ["probabilities", "logits"] + (["saliency"] if model.saliency else [])
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
    for key, value in metadata(checkpoint, metrics).items():
        proto.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(proto, full_check=True)
    data = proto.SerializeToString()
    with tempfile.TemporaryDirectory() as folder:
        # Compared through a file and our own session class: what users will run.
        trial = Path(folder) / "model.onnx"
        trial.write_bytes(data)
        exported = _run(Predictor(trial, device="cpu"), images)
    parity = compare(_torch_probabilities(graph, images), exported, source=source,
                     tolerance=tolerance)  # fmt: skip
    atomic_write_bytes(path, data)
    return parity


def metadata(checkpoint: Checkpoint, metrics: dict[str, Any] | None) -> dict[str, str]:
    """Metadata of an exported model: JSON values under plain keys, listed in docs/models.md."""
    meta = checkpoint.meta
    config = checkpoint.config
    lesions = [lesion_class(code) for code in meta["classes"]]
    rule = config.data.resize
    settings = config.to_dict()
    settings["model"]["weights"] = Path(config.model.weights).name  # no one's folders
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
        "config": settings,
        "versions": {**meta["versions"], "export": __version__},
    }
    return {"biigma_format": FORMAT, **{k: json.dumps(v) for k, v in values.items()}}


def _run(predictor: Predictor, images: Pixels) -> npt.NDArray[np.float32]:
    # Odd batches, so that a batch size baked into the graph cannot go unseen.
    batches = [images[:1], images[1:4], *(images[i : i + 32] for i in range(4, len(images), 32))]
    return np.concatenate([predictor(b).probabilities_BY for b in batches if len(b)])


@torch.inference_mode()
def _torch_probabilities(graph: nn.Module, images: Pixels) -> npt.NDArray[np.float32]:
    batches = (images[i : i + 32] for i in range(0, len(images), 32))
    return np.concatenate([graph(torch.from_numpy(b))[0].numpy() for b in batches])


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
