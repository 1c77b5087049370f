"""An ONNX graph on its way into a file."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
from onnx import numpy_helper

from biigma_cli.core.digest import KEY, seal
from biigma_cli.data.preprocess import Pixels
from biigma_cli.runtime.input_check import FALSE_ALARMS, judged_views
from biigma_cli.runtime.session import Predictor, whole
from biigma_cli.storage import write_error

_T = TypeVar("_T")


def finished(proto: onnx.ModelProto, values: dict[str, str]) -> bytes:
    """A model file's content, checked, without traces of this machine."""
    _drop_traces(proto)
    del proto.metadata_props[:]
    for key, value in values.items():
        proto.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(proto, full_check=True)
    return sealed(proto)


def sealed(proto: onnx.ModelProto) -> bytes:
    """What is written of a model of ours, with the digest of just that in its metadata."""
    kept = [entry for entry in proto.metadata_props if entry.key != KEY]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    return seal(proto.SerializeToString())


def trial(proto: onnx.ModelProto, values: dict[str, str], run: Callable[[Predictor], _T]) -> _T:
    """Ask it through a file and our own session class: what users will run.

    Raises `BiigmaError` where there is no room for the file.
    """
    content = finished(proto, values)
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            path = Path(folder) / "model.onnx"
            path.write_bytes(content)
        except OSError as error:
            raise write_error(
                "the temporary folder", error, full="free some space, or set TMPDIR",
                elsewhere="set TMPDIR to a folder you may write to",
            ) from error  # fmt: skip
        return run(Predictor(path, device="cpu"))


def novelty_limit(predictor: Predictor, images: Pixels) -> float:
    """Novelty that `FALSE_ALARMS` of the images' views exceed, as the file itself gives it."""
    novelty = whole(map(predictor, judged_views(images))).novelty_B
    assert novelty is not None
    return float(np.quantile(novelty.astype(np.float64), 1 - FALSE_ALARMS))


def scale_constant(proto: onnx.ModelProto, name: str, factor: float) -> None:
    """Multiply an initializer in place."""
    (held,) = (i for i in proto.graph.initializer if i.name == name)
    value = numpy_helper.to_array(held) * factor
    held.CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))


def _drop_traces(proto: onnx.ModelProto) -> None:
    """Remove stack traces of the exporting machine: they hold its paths."""
    graph = proto.graph
    for item in (proto, graph, *graph.node, *graph.initializer, *graph.value_info):
        item.ClearField("doc_string")
    for node in (*graph.node, graph):
        del node.metadata_props[:]
    for value in (*graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del value.metadata_props[:]
