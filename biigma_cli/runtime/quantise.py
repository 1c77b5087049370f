"""int8 by static quantisation: weights per channel, activations ranged on training images."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from biigma_cli.data.preprocess import Pixels
from biigma_cli.errors import UsageError

#: Training images that activations are ranged on.
IMAGES = 256
METHOD = "int8 weights per channel, uint8 activations, biases corrected (NNCF)"
_BATCH = 8
# Names of convolutions' weights in an export: of the trunk, and of the adapters behind its taps.
_TRUNK, _ADAPTERS = "model.trunk.", "model.saliency.adapters."
# Weights of a product behind the trunk that are worth quantising: MICA's projection.
_LARGE = 1 << 16


def check_available() -> None:
    """Raises `UsageError` where NNCF is not installed."""
    import importlib.util

    try:
        found = importlib.util.find_spec("nncf") is not None
    except ValueError:  # half removed
        found = False
    if not found:
        raise UsageError(
            "--precision int8 needs the package nncf",
            fix="install it: pip install 'biigma[int8]'",
        )


def quantise(proto: onnx.ModelProto, images: Pixels) -> onnx.ModelProto:
    """A copy of a float32 export, its trunk, the map's adapters and MICA's projection in int8.

    Convolutions of inverted residuals have channels of very different ranges. Quantised as they
    are they shift their outputs' means; here each layer's bias is corrected, in order, by the
    shift seen on the images (Nagel et al. 2019, arXiv:1906.04721, section 4.2).

    Args:
        images: uint8 `(n, side, side, 3)` of the training part.

    Raises `UsageError` where NNCF is not installed.
    """
    check_available()
    batches = [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
    with _alone():
        import nncf
        from nncf.quantization.advanced_parameters import QuantizationParameters

        nncf.set_log_level(logging.ERROR)
        advanced = nncf.AdvancedQuantizationParameters(
            # CPUs without VNNI add pairs of products in 16 bits: weights of 7 bits cannot overflow.
            overflow_fix=nncf.OverflowFix.ENABLE,
            # ONNX Runtime has no convolution for inputs with a scale for each channel.
            activations_quantization_params=QuantizationParameters(per_channel=False),
        )
        result: onnx.ModelProto = nncf.quantize(
            proto,
            nncf.Dataset(batches, lambda batch: {"image": batch}),
            subset_size=len(batches),
            preset=nncf.QuantizationPreset.MIXED,
            fast_bias_correction=False,
            advanced_parameters=advanced,
            ignored_scope=nncf.IgnoredScope(names=_kept(proto)),
        )
    make_unsigned(result)
    return result


def make_unsigned(proto: onnx.ModelProto) -> None:
    """Activations in int8 become uint8, the same numbers with a zero point 128 higher.

    ONNX Runtime fuses a quantised layer only where its input and output are of one type, and runs
    it in float32 between conversions where they are not; NNCF takes int8 for what can be negative.
    """
    graph = proto.graph
    initial = {i.name: i for i in graph.initializer}
    quantised = {n.output[0] for n in graph.node if n.op_type == "QuantizeLinear"}
    points: dict[str, onnx.TensorProto] = {}
    for node in graph.node:
        of_activation = node.op_type == "DequantizeLinear" and node.input[0] in quantised
        if not of_activation and node.op_type != "QuantizeLinear":
            continue
        signed = numpy_helper.to_array(initial[node.input[2]])
        if signed.dtype == np.int8:
            name = f"{node.input[2]}_unsigned"
            value = (signed.astype(np.int16) + 128).astype(np.uint8)
            points[name] = numpy_helper.from_array(value, name)
            node.input[2] = name
    graph.initializer.extend(points.values())
    used = {name for node in graph.node for name in node.input}
    for unused in [i for i in graph.initializer if i.name not in used]:
        graph.initializer.remove(unused)
    for stale in [v for v in graph.value_info if v.name in quantised]:
        graph.value_info.remove(stale)


def _kept(proto: onnx.ModelProto) -> list[str]:
    """Nodes that stay in float32: all after the trunk, but the adapters and MICA's projection."""
    nodes = list(proto.graph.node)
    sizes = {i.name: int(np.prod(i.dims)) for i in proto.graph.initializer}
    trunk = [i for i, node in enumerate(nodes) if any(_TRUNK in name for name in node.input)]
    if not trunk:
        raise ValueError("no weights of a trunk in the graph")
    return [
        node.name
        for node in nodes[trunk[-1] + 1 :]
        if not any(_ADAPTERS in name for name in node.input)
        and (node.op_type != "MatMul" or max(sizes.get(n, 0) for n in node.input) < _LARGE)
    ]


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """NNCF without its reports to its makers, its progress bars and its words on stdout."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"  # the switch that it has for sending nothing
    # It imports torch's tools for building CUDA code, which warn where there is no CUDA.
    tools = logging.getLogger("torch.utils.cpp_extension")
    level = tools.level
    tools.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tools.setLevel(level)
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before
