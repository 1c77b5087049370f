"""Weights stored in fewer bits, computed in float32.

Nodes behind each make it float32 again. ONNX Runtime runs those once, when it opens the file, so
that inference costs what float32 costs: CPUs have no float16 arithmetic to gain by, and where
activations stay float32 rounding costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from biigma_cli.errors import ParityError

# Elements from which a tensor is worth a node of its own.
_LARGE = 1024
# Elements to a channel from which a scale for each is little beside them.
_LONG = 32
# And from which int8 and a scale are at all less than float16: a depthwise kernel of 3 x 3 has 9.
_SHORT = 8
# What an initializer's name gets where it is float32 again, and what its scales are called.
_AGAIN, _SCALE, _COUNTS = ".float32", ".scale", ".counts"

Floats = npt.NDArray[np.float32]


class _Stored(NamedTuple):
    """What takes a weight's place: initializers, and nodes that give it back."""

    held: list[onnx.TensorProto]
    nodes: list[onnx.NodeProto]


def halve_weights(proto: onnx.ModelProto, *, spared: str = "") -> None:
    """Store the large weights of a float32 graph in float16, in place.

    Args:
        spared: an output that shall stay as it is: weights that serve it alone are not touched.

    Raises `ParityError` where a weight is not finite in float16.
    """
    _store(proto, _besides(proto.graph, spared), _halved)


def round_weights(proto: onnx.ModelProto, *, spared: str = "", depthwise: bool = False) -> None:
    """Store the large weights of a float32 graph in int8, in place.

    A channel's weights are whole multiples, -127 to 127, of a scale of its own, the largest
    absolute value over 127 (symmetric and per channel, Krishnamoorthi 2018). A channel is a row or
    a column, whichever loses less. Short channels, those of depthwise convolutions, become float16,
    and so does what serves the spared output.

    Args:
        spared: an output whose own weights are not rounded to int8.
        depthwise: round each depthwise kernel, too, by a scale of its own: still smaller.

    Raises `ParityError` where a weight is not finite, or not in float16.
    """
    besides = _besides(proto.graph, spared)
    own = serving(proto.graph, {spared}) - besides
    _store(proto, besides, partial(_rounded, least=_SHORT if depthwise else _LONG))
    _store(proto, own, _halved)


def widen_weights(proto: onnx.ModelProto) -> None:
    """Undo `halve_weights`, in place, but for what was rounded away."""
    graph = proto.graph
    halves = {i.name: i for i in graph.initializer if i.data_type == onnx.TensorProto.FLOAT16}
    casts = [
        node
        for node in graph.node
        if node.op_type == "Cast"
        and node.input[0] in halves
        and node.output[0] == node.input[0] + _AGAIN
    ]
    back = {node.output[0]: node.input[0] for node in casts}
    for node in casts:
        graph.node.remove(node)
    for node in graph.node:
        node.input[:] = [back.get(name, name) for name in node.input]
    for name in back.values():
        value = numpy_helper.to_array(halves[name]).astype(np.float32)
        halves[name].CopyFrom(numpy_helper.from_array(value, name))


def hold_once(proto: onnx.ModelProto) -> None:
    """Drop constants that are the transpose of another, in place; a node gives them back.

    Exporting folds a matrix that is used both ways into two. ONNX Runtime folds the node again,
    once, when it opens the file: nothing is computed otherwise.
    """
    graph = proto.graph
    outputs = {o.name for o in graph.output}
    kept: dict[bytes, tuple[str, npt.NDArray[np.generic]]] = {}
    before: list[onnx.NodeProto] = []
    for held in list(graph.initializer):
        if len(held.dims) != 2 or int(np.prod(held.dims)) < _LARGE:
            continue
        value = numpy_helper.to_array(held)
        twin = kept.get(value.T.tobytes())
        if twin is None or twin[1].shape != value.T.shape or twin[1].dtype != value.dtype:
            kept[value.tobytes()] = (held.name, value)
        elif held.name not in outputs:
            before.append(
                onnx.helper.make_node(
                    "Transpose", [twin[0]], [held.name], name=f"transpose {held.name}", perm=[1, 0]
                )
            )
            graph.initializer.remove(held)
    nodes = [*before, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _besides(graph: onnx.GraphProto, spared: str) -> set[str]:
    """Names of all that serves another output than that."""
    return serving(graph, {o.name for o in graph.output if o.name != spared})


def _store(
    proto: onnx.ModelProto, among: set[str], stored: Callable[[str, Floats], _Stored]
) -> None:
    """Store anew what is large among these names, but no output."""
    graph = proto.graph
    if any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute):
        raise ValueError("weights within a branch or a loop would not be found")
    chosen = {
        i.name: i
        for i in graph.initializer
        if i.name in among - {o.name for o in graph.output}
        and i.data_type == onnx.TensorProto.FLOAT
        and int(np.prod(i.dims)) >= _LARGE
    }
    for node in graph.node:
        for at, name in enumerate(node.input):
            if name in chosen:
                node.input[at] = name + _AGAIN
    before: list[onnx.NodeProto] = []
    for name, weight in chosen.items():
        found = stored(name, numpy_helper.to_array(weight))
        graph.initializer.remove(weight)
        graph.initializer.extend(found.held)
        before += found.nodes
    nodes = [*before, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    for stale in [v for v in graph.value_info if v.name in chosen]:
        graph.value_info.remove(stale)


def _halved(name: str, weight: Floats) -> _Stored:
    with np.errstate(over="ignore"):
        half = weight.astype(np.float16)
    if not np.isfinite(half).all():
        raise ParityError(
            f"{name} holds a weight beyond float16's range",
            fix="nothing was written; leave it in float32 (fp32, as-is)",
        )
    return _Stored([numpy_helper.from_array(half, name)], [_cast(name, name + _AGAIN)])


def _rounded(name: str, weight: Floats, *, least: int) -> _Stored:
    if not np.isfinite(weight).all():
        raise ParityError(
            f"{name} holds a weight that is not finite", fix="nothing was written; train again"
        )
    # Of a convolution outputs and inputs; its rows and columns hold all channels.
    axes = [a for a in range(min(2, weight.ndim)) if 1 < weight.shape[a] <= weight.size // least]
    if not axes:
        return _halved(name, weight)

    def along(axis: int) -> tuple[npt.NDArray[np.int8], Floats, float]:
        others = tuple(a for a in range(weight.ndim) if a != axis)
        scale = np.maximum(np.abs(weight).max(others, keepdims=True) / 127, np.float32(1e-30))
        counts = np.rint(weight / scale).astype(np.int8)
        return counts, scale, float(np.square(weight - counts * scale).sum())

    counts, scale, _ = min((along(axis) for axis in axes), key=lambda found: found[2])
    scales, cast = name + _SCALE, name + _COUNTS
    return _Stored(
        [numpy_helper.from_array(counts, name), numpy_helper.from_array(scale, scales)],
        [
            _cast(name, cast),
            onnx.helper.make_node("Mul", [cast, scales], [name + _AGAIN], name=f"scale {name}"),
        ],
    )


def _cast(name: str, output: str) -> onnx.NodeProto:
    return onnx.helper.make_node(
        "Cast", [name], [output], name=f"cast {name}", to=onnx.TensorProto.FLOAT
    )


def serving(graph: onnx.GraphProto, outputs: set[str]) -> set[str]:
    """Names of all that these outputs hang on."""
    found = set(outputs)
    for node in reversed(graph.node):  # in the order of computation, as ONNX demands
        if found & set(node.output):
            found |= set(node.input) - {""}  # an optional one that was left out
    return found


#: Precision -> what stores a graph's weights so.
NARROW: dict[str, Callable[..., None]] = {
    "fp16-weights": halve_weights,
    "int8-weights": round_weights,
    "int8-all-weights": partial(round_weights, depthwise=True),
}
