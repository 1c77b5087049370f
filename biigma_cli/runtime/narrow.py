"""Weights stored in float16, computed in float32."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from biigma_cli.errors import ParityError

# Elements from which a tensor is worth a node of its own.
_LARGE = 1024
# What an initializer's name gets where it is float32 again.
_AGAIN = ".float32"


def halve_weights(proto: onnx.ModelProto, *, spared: str) -> None:
    """Store the large weights of a float32 export in float16, in place.

    A cast behind each makes it float32 again. ONNX Runtime does that once, when it opens the file,
    so that inference costs what float32 costs: CPUs have no float16 arithmetic to gain by.

    Args:
        spared: an output that shall stay as it is: weights that serve it alone are not touched.

    Raises `ParityError` where a weight is not finite in float16.
    """
    graph = proto.graph
    if any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute):
        raise ValueError("weights within a branch or a loop would not be found")
    serving = _serving(graph, {o.name for o in graph.output if o.name != spared})
    chosen = {
        i.name: i
        for i in graph.initializer
        if i.name in serving - {o.name for o in graph.output}
        and i.data_type == onnx.TensorProto.FLOAT
        and int(np.prod(i.dims)) >= _LARGE
    }
    for node in graph.node:
        for at, name in enumerate(node.input):
            if name in chosen:
                node.input[at] = name + _AGAIN
    casts = []
    for name, held in chosen.items():
        with np.errstate(over="ignore"):
            half = numpy_helper.to_array(held).astype(np.float16)
        if not np.isfinite(half).all():
            raise ParityError(
                f"{name} holds a weight beyond float16's range",
                fix="nothing was written; export fp32",
            )
        held.CopyFrom(numpy_helper.from_array(half, name))
        casts.append(
            onnx.helper.make_node(
                "Cast", [name], [name + _AGAIN], name=f"cast {name}", to=onnx.TensorProto.FLOAT
            )
        )
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    for stale in [v for v in graph.value_info if v.name in chosen]:
        graph.value_info.remove(stale)


def _serving(graph: onnx.GraphProto, outputs: set[str]) -> set[str]:
    """Names of all that these outputs hang on."""
    found = set(outputs)
    for node in reversed(graph.node):  # in the order of computation, as ONNX demands
        if found & set(node.output):
            found |= set(node.input) - {""}  # an optional one that was left out
    return found
