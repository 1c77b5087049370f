"""Several exported networks as one: the mean of what they say, in one ONNX file.

Networks that were trained apart err apart; their mean answer is better than each, for as much work
as all together (Lakshminarayanan et al., NeurIPS 2017). What is averaged are the logits. So the
evidence stays exact: the mean of the members' evidence maps sums, with the bias, to the logit.

Dimension letters: n images; Y classes; h, w rows and columns of a map.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from biigma_cli import __version__
from biigma_cli.config import FIRST_CENTRE
from biigma_cli.core.header import EXPORTED
from biigma_cli.core.sources import Source, joint_citation, joint_licence
from biigma_cli.data.preprocess import Pixels
from biigma_cli.data.splits import same_split
from biigma_cli.errors import CheckpointMismatch, ModelFileError, ParityError, UsageError
from biigma_cli.metrics import Ints
from biigma_cli.runtime.calibration import Calibration, fit_calibration, softmax
from biigma_cli.runtime.input_check import FALSE_ALARMS, JUDGED_VIEWS
from biigma_cli.runtime.limits import Stated
from biigma_cli.runtime.narrow import NARROW, hold_once, serving, widen_weights
from biigma_cli.runtime.parity import (
    FP32_TOLERANCE,
    LARGEST_LOSS,
    AccuracyChange,
    Parity,
    compare,
    compare_maps,
)
from biigma_cli.runtime.proto import finished, novelty_limit, scale_constant, trial
from biigma_cli.runtime.session import Answer, ModelInfo, Predictor, read_checked, stated
from biigma_cli.storage import atomic_write_bytes

Floats = npt.NDArray[np.float32]

#: How a member's weights can be stored anew; `as-is` leaves them.
STORED = ("as-is", *NARROW)
_MAPS = ("evidence", "saliency")
# What a model must say of itself beyond `session.REQUIRED_KEYS`.
_NEEDED = (
    ("disclaimer",), ("dataset",), ("protocol",), ("preprocessing", "normalisation"),
    ("split", "split_hash"), ("config", "data"), ("config", "model", "trunk"),
)  # fmt: skip
_METHOD = "mean of the members' novelty over its threshold; theirs: {}"


class Joined(NamedTuple):
    """What was proven of a joined file.

    Attributes:
        said: what the file says of the validation part.
        parity: of its probabilities with the mean of its members' own answers.
        accuracy: what storing the weights in fewer bits does to that mean on the validation part.
        calibration: its temperature; None where no temperature is best.
        parameters: weights of its networks.
        left_out: maps and checks that some members lack, and so it does.
        limits: found on the validation part.
    """

    said: Answer
    parity: Parity
    accuracy: AccuracyChange
    calibration: Calibration | None
    parameters: int
    left_out: tuple[str, ...]
    stated: Stated


def check_joinable(models: Sequence[ModelInfo]) -> None:
    """Refuse what has no mean.

    Raises:
        UsageError: fewer than two models, or one twice.
        CheckpointMismatch: other classes, another split (one has seen what the other is judged on),
            another input or form of M; or one is itself joined.
        ModelFileError: a file does not say what has to be known of it.
    """
    if len(models) < 2:
        raise UsageError("one model alone cannot be joined", fix="name two or more")
    first = models[0]
    paths = [model.path.resolve() for model in models]
    if len(set(paths)) < len(paths):
        raise UsageError("a model is named twice", fix="name each once")
    for model in models:
        if "members" in model.metadata:
            names = ", ".join(str(member["name"]) for member in model.metadata["members"])
            raise CheckpointMismatch(
                f"{model.name} is itself joined, of {names}", fix="name its members instead"
            )
        for keys in _NEEDED:
            stated(model, *keys)
    for model in models[1:]:
        apart = []
        if model.classes != first.classes:
            apart.append("their classes differ")
        if not same_split(model.metadata["split"], first.metadata["split"]):
            apart.append("they were trained on different splits")
        if (model.side, model.rule) != (first.side, first.rule):
            apart.append(
                f"their input is {first.side} ({first.rule}) and {model.side} ({model.rule})"
            )
        forms = [stated(m, "config", "model", "saliency") for m in (first, model)]
        if forms[0] != forms[1]:
            apart.append(f"their saliency maps are {forms[0]} and {forms[1]}")
        if apart:
            raise CheckpointMismatch(
                f"{first.name} and {model.name} cannot be joined: {'; '.join(apart)}",
                fix="join models of the same classes, split and side: train one of them again with "
                "the other's data settings",
            )


def shares(cells: int, side: int, first_centre: float | None) -> npt.NDArray[np.float64]:
    """How much of each of a map's rows goes to each row of an even grid, `(cells, cells)`.

    Trunks centre their positions differently (`config.FIRST_CENTRE`), up to a whole cell apart.
    Each row is shared out between the two even ones it lies between; beyond the edge it stays at
    the edge. Each of the sums is 1: what is shared out is kept.
    """
    stride = side / cells
    first = stride / 2 if first_centre is None else first_centre
    at = (first + stride * np.arange(cells)) / stride - 0.5
    share = np.zeros((cells, cells))
    for i, place in enumerate(at):
        low = int(np.floor(place))
        for j, weight in ((low, low + 1 - place), (low + 1, place - low)):
            share[i, min(max(j, 0), cells - 1)] += weight
    return share


def _maps(answer: Answer) -> dict[str, Floats]:
    """What there is of an answer's maps, by name."""
    maps = {"evidence": answer.evidence_BYHW, "saliency": answer.saliency_BHW}
    return {name: found for name, found in maps.items() if found is not None}


def join_onnx(
    models: Sequence[Predictor],
    path: Path,
    images: Pixels,
    label_n: Ints,
    said: Sequence[Answer],
    *,
    groups: Sequence[str],
    stored: Sequence[str],
    describe: Mapping[str, Any],
    sources: Sequence[Source],
    members: Sequence[Mapping[str, Any]],
    force: bool = False,
) -> Joined:
    """Write one file that answers with the mean of the models' logits, and prove it.

    Its maps are the means of theirs, on an even grid where their trunks differ; its probabilities
    are calibrated anew, and the limits of its input check, of "can't say" and of what is suspicious
    are found anew, all on the validation part.

    Args:
        models: as `check_joinable` lets pass.
        images: the validation part, uint8 `(n, side, side, 3)`.
        label_n: its labels, `(n,)`.
        said: what each model says of it.
        groups: lesion of each image.
        stored: of each model one of `STORED`; see `stored_as`.
        describe: metadata that is the caller's to know: `command`, `ancestors`, `versions`.
        sources: the data that all have learnt from.
        members: of each what is to be kept of it; its `precision` is added.
        force: write even what loses more than `LARGEST_LOSS`.

    Raises:
        ModelFileError: files of different ONNX operator sets.
        ParityError: the file answers otherwise than its members' mean, or storing the weights anew
            loses too much; nothing is written.
        BiigmaError: it cannot be written.
    """
    infos = [model.info for model in models]
    precisions = [stored_as(info, how) for info, how in zip(infos, stored, strict=True)]
    outputs = [{o.name for o in model.session.get_outputs()} for model in models]
    optional = [name for name in (*_MAPS, "novelty") if any(name in own for own in outputs)]
    given = [name for name in optional if all(name in own for own in outputs)]
    logits_nY = np.stack([s.logits_BY for s in said]).astype(np.float64).mean(0)
    calibration = fit_calibration(logits_nY, label_n)
    temperature = 1.0 if calibration is None else calibration.temperature
    maps = [_maps(answer) for answer in said]
    grids = {name: maps[0][name].shape[-2:] for name in _MAPS if name in given}
    proto, moves = _graph(infos, precisions, given, grids, temperature)
    about: dict[str, Any] = {"precision": _common(precisions)}
    values = _metadata(infos, about, describe, sources)
    values["members"] = [
        {**member, "precision": precision}
        for member, precision in zip(members, precisions, strict=True)
    ]
    if calibration is not None:
        values["calibration"] = calibration.to_dict()
    if "novelty" in given:
        check = _joint_check([info.metadata["input_check"] for info in infos], len(images))
        values["input_check"] = check
        limit = trial(proto, _encoded(values), lambda p: novelty_limit(p, images))
        scale_constant(proto, "novelty.scale", 1 / limit)
        check["threshold"] = limit
    own = trial(proto, _encoded(values), lambda p: p.ask(images))
    if own.novelty_B is not None:
        values["input_check"]["validation"]["flagged"] = float((own.novelty_B > 1).mean())
    before = softmax(logits_nY / temperature).astype(np.float32)
    after = own.probabilities_BY
    same = precisions == [info.precision for info in infos]
    parity = compare(
        before, after, source="validation images",
        tolerance=FP32_TOLERANCE if same else 1.0, who="the joined file and its members",
    )  # fmt: skip
    if same:
        for name, found in _maps(own).items():
            mean = _mean_map([own_maps[name] for own_maps in maps], moves[name])
            compare_maps(name, mean, found, who="the joined file and its members")
    accuracy = AccuracyChange.measure(label_n, before, after)
    if accuracy.loss > LARGEST_LOSS and not force:
        raise ParityError(
            f"storing the weights anew loses too much: {accuracy.summary()}; at most "
            f"{100 * LARGEST_LOSS:g} points are allowed",
            fix="nothing was written; choose another --precision, or add --force",
        )
    about |= {"accuracy": accuracy._asdict(), "parity": parity._asdict()}
    flagged_n = None if own.novelty_B is None else own.novelty_B > 1
    kept = Stated.find(label_n, after, infos[0].malignant, groups, flagged_n=flagged_n)
    values |= kept.to_metadata()
    atomic_write_bytes(path, finished(proto, _encoded(values)))
    return Joined(
        own, parity, accuracy, calibration, _parameters(proto),
        tuple(name for name in optional if name not in given), kept,
    )  # fmt: skip


class _Parts:
    """Nodes and weights of a graph that is being put together."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.held: list[onnx.TensorProto] = []

    def take(self, graph: onnx.GraphProto) -> None:
        """All of another graph."""
        self.nodes += graph.node
        self.held += graph.initializer

    def node(self, kind: str, inputs: Sequence[str], output: str, **options: Any) -> None:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **options))

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        self.held.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name


def _graph(
    infos: Sequence[ModelInfo],
    precisions: Sequence[str],
    given: Sequence[str],
    grids: Mapping[str, tuple[int, ...]],
    temperature: float,
) -> tuple[onnx.ModelProto, dict[str, list[tuple[Floats, Floats] | None]]]:
    """All graphs in one, and by map what moves each member's onto the common grid."""
    parts = _Parts()
    protos = [
        _member(i, info, precision, given)
        for i, (info, precision) in enumerate(zip(infos, precisions, strict=True))
    ]
    sets = {tuple(sorted((o.domain, o.version) for o in proto.opset_import)) for proto in protos}
    if len(sets) > 1:
        raise ModelFileError(
            f"{' and '.join(info.name for info in infos)} use different ONNX operator sets",
            fix="export them again with one version of biigma",
        )
    for proto in protos:
        parts.take(proto.graph)
    members = range(len(infos))
    parts.node("Mean", [f"{i}/logits" for i in members], "logits", name="mean logits")
    parts.node("Div", ["logits", parts.constant("temperature", temperature)], "scaled")
    parts.node("Softmax", ["scaled"], "probabilities", axis=1)
    moves = {name: _add_map(parts, name, grid, infos) for name, grid in grids.items()}
    if "novelty" in given:
        every = [f"{i}/novelty" for i in members]
        parts.node("Mean", every, "novelty.mean", name="mean novelty")
        scale = parts.constant("novelty.scale", 1.0)
        parts.node("Mul", ["novelty.mean", scale], "novelty")
    side, classes = infos[0].side, len(infos[0].classes)
    shapes: dict[str, list[str | int]] = {
        "probabilities": ["batch", classes],
        "logits": ["batch", classes],
        "evidence": ["batch", classes, *grids.get("evidence", ())],
        "saliency": ["batch", *grids.get("saliency", ())],
        "novelty": ["batch"],
    }
    tensor, kinds = helper.make_tensor_value_info, onnx.TensorProto
    graph = helper.make_graph(
        parts.nodes,
        "joined",
        [tensor("image", kinds.UINT8, ["batch", side, side, 3])],
        [
            tensor(name, kinds.FLOAT, shape)
            for name, shape in shapes.items()
            if name in ("probabilities", "logits", *given)
        ],
        parts.held,
    )
    proto = helper.make_model(
        graph, opset_imports=protos[0].opset_import, producer_name="biigma",
        producer_version=__version__, ir_version=max(p.ir_version for p in protos),
    )  # fmt: skip
    return proto, moves


def _member(i: int, info: ModelInfo, precision: str, given: Sequence[str]) -> onnx.ModelProto:
    """The i-th network as the joined file stores it, its names its own, image and outputs apart."""
    proto = onnx.load_from_string(read_checked(info.path))
    _store_anew(proto, info, precision)
    _keep(proto.graph, {"logits", *given})
    hold_once(proto)
    _prefix(proto.graph, f"{i}/")
    return proto


def _add_map(
    parts: _Parts, name: str, grid: tuple[int, ...], infos: Sequence[ModelInfo]
) -> list[tuple[Floats, Floats] | None]:
    """The mean of a map; members of different trunks are moved onto an even grid before.

    Returns what moves each member's.
    """
    trunks = [str(stated(info, "config", "model", "trunk")) for info in infos]
    side, alike = infos[0].side, len(set(trunks)) == 1
    moves = [None if alike else _moves(name, grid, side, trunk) for trunk in trunks]
    maps = []
    for i, move in enumerate(moves):
        own = f"{i}/{name}"
        if move is not None:
            down, across = (
                parts.constant(f"{own}.{axis}.shares", matrix)
                for axis, matrix in zip(("rows", "columns"), move, strict=True)
            )
            for pair, moved in (
                ((down, own), f"{own}.rows"),
                ((f"{own}.rows", across), f"{own}.columns"),
            ):
                parts.node("MatMul", pair, moved, name=f"move {moved}")
            own = f"{own}.columns"
        maps.append(own)
    parts.node("Mean", maps, name, name=f"mean {name}")
    return moves


def _moves(name: str, grid: tuple[int, ...], side: int, trunk: str) -> tuple[Floats, Floats]:
    """Matrices `(h, h)` and `(w, w)` that, before and behind a map, put it on an even grid.

    Evidence is shared out, so that its sum stays; M, a value at each place, is averaged.
    """
    found = []
    for cells in grid:
        share = shares(cells, side, FIRST_CENTRE.get(trunk)).T  # (to, from)
        found.append(share if name == "evidence" else share / share.sum(1, keepdims=True))
    return found[0].astype(np.float32), found[1].T.astype(np.float32)


def _mean_map(maps: Sequence[Floats], moves: Sequence[tuple[Floats, Floats] | None]) -> Floats:
    moved = [
        m if move is None else move[0] @ m @ move[1] for m, move in zip(maps, moves, strict=True)
    ]
    mean: Floats = np.stack(moved).astype(np.float64).mean(0).astype(np.float32)
    return mean


def stored_as(info: ModelInfo, how: str) -> str:
    """Precision of a member in the joined file, `how` being one of `STORED`.

    What is not float32 or `fp16-weights` stays as it is.
    """
    now = info.precision
    return how if how != "as-is" and now in ("fp32", "fp16-weights") else now


def _store_anew(proto: onnx.ModelProto, info: ModelInfo, precision: str) -> None:
    if precision == info.precision:
        return
    widen_weights(proto)
    NARROW[precision](proto, spared="novelty")


def _common(precisions: Sequence[str]) -> str:
    return precisions[0] if len(set(precisions)) == 1 else "mixed"


def _keep(graph: onnx.GraphProto, outputs: set[str]) -> None:
    """Drop what serves other outputs alone, and all stated shapes."""
    needed = serving(graph, outputs)
    nodes = [node for node in graph.node if set(node.output) & needed]
    held = [i for i in graph.initializer if i.name in needed]
    for field, kept in ((graph.node, nodes), (graph.initializer, held)):
        del field[:]
        field.extend(kept)
    del graph.value_info[:]


def _prefix(graph: onnx.GraphProto, prefix: str) -> None:
    """Give all names but the input's a prefix."""

    def own(name: str) -> str:
        return name if name in ("", "image") else prefix + name

    for node in graph.node:
        node.name = prefix + node.name
        node.input[:] = [own(name) for name in node.input]
        node.output[:] = [own(name) for name in node.output]
    for held in graph.initializer:
        held.name = own(held.name)


def _parameters(proto: onnx.ModelProto) -> int:
    """Weights and biases of the networks that make the logits; no scales of stored weights."""
    graph = proto.graph
    kinds = ("QuantizeLinear", "DequantizeLinear")
    scales = {name for node in graph.node if node.op_type in kinds for name in node.input[1:]}
    needed = serving(graph, {"logits"})
    return sum(
        int(np.prod(i.dims))
        for i in graph.initializer
        if i.name in needed - scales and not i.name.endswith(".scale") and np.prod(i.dims) > 8
    )


def _joint_check(checks: Sequence[dict[str, Any]], images: int) -> dict[str, Any]:
    """The members' input checks as one; of their fitting what all have in common."""
    first = checks[0]
    common = [v for v in first["train"]["views"] if all(v in c["train"]["views"] for c in checks)]
    return {
        "output": first["output"],
        "method": _METHOD.format(first["method"]),
        "train": {"n": min(c["train"]["n"] for c in checks), "views": common},
        "validation": {
            "n": images, "views": list(JUDGED_VIEWS), "false_alarms": FALSE_ALARMS, "flagged": 0.0,
        },
    }  # fmt: skip


def _metadata(
    infos: Sequence[ModelInfo],
    about: dict[str, Any],
    describe: Mapping[str, Any],
    sources: Sequence[Source],
) -> dict[str, Any]:
    """As of an export: the first's where they agree, all of theirs where they do not."""
    first = infos[0].metadata
    trunks = dict.fromkeys(str(stated(info, "config", "model", "trunk")) for info in infos)
    ways = dict.fromkeys(info.metadata["preprocessing"]["normalisation"] for info in infos)
    extra = {
        (entry["dataset"], entry.get("split_hash")): entry
        for info in infos
        for entry in info.metadata.get("extra", [])
    }
    config = {**first["config"], "model": {**first["config"]["model"], "trunk": "+".join(trunks)}}
    return {
        **{
            key: first[key]
            for key in ("classes", "class_names", "malignant", "disclaimer", "dataset", "protocol",
                        "split")
        },
        "preprocessing": {**first["preprocessing"], "normalisation": "; ".join(ways)},
        "licence": joint_licence(sources),
        "citation": joint_citation(sources),
        "extra": list(extra.values()),
        "sources": list(sources),
        "selection": f"none: the mean of {len(infos)} networks",
        "epoch": None,
        "validation": {},
        "metrics": {},
        "export": about,
        "config": config,
        **describe,
    }  # fmt: skip


def _encoded(values: Mapping[str, Any]) -> dict[str, str]:
    return {"biigma_format": EXPORTED, **{k: json.dumps(v) for k, v in values.items()}}
