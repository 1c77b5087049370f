"""Exports in fp16 and int8, with an input check, with chosen outputs; and what is refused."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from biigma_cli.core.weights import load_checkpoint, load_model
from biigma_cli.data.images import Part
from biigma_cli.errors import ModelFileError, ParityError
from biigma_cli.runtime import input_check, narrow, parity, quantise
from biigma_cli.runtime.session import Predictor
from tests.conftest import Outcome, call, unsealed


def exported(run: Path, path: Path, *words: str | Path) -> Outcome:
    """`biigma export onnx`, with a check for so small a data set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(input_check, "FEWEST", 5)
        return call("export", "onnx", "--run", run, "-o", path, "--images", "8", *words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the exports lie."""
    return tmp_path_factory.mktemp("precisions")


@pytest.fixture(scope="module")
def checked(tiny_run: Path, folder: Path) -> Path:
    """float32 with an input check."""
    done = exported(tiny_run, folder / "checked.onnx")
    assert done.code == 0, done.err
    assert "input check fitted on" in done.out
    return folder / "checked.onnx"


@pytest.fixture(scope="module")
def int8(tiny_run: Path, folder: Path) -> tuple[Path, Outcome]:
    """int8 with an input check."""
    done = exported(
        tiny_run, folder / "int8.onnx", "--precision", "int8", "--force",
        "--card", folder / "int8.md",
    )  # fmt: skip
    assert done.code == 0, done.err
    return folder / "int8.onnx", done


@pytest.fixture(scope="module")
def part(tiny_run: Path) -> Part:
    """The validation part."""
    from biigma_cli.cli.export import _part

    found = _part(load_checkpoint(tiny_run / "weights" / "best.safetensors"), "val", None)
    assert found is not None
    return found


def about(path: Path) -> dict[str, Any]:
    """Its metadata."""
    return Predictor(path, device="cpu").info.metadata


# --- input check -----------------------------------------------------------------------------


def test_novelty_is_torchs(checked: Path, tiny_run: Path, part: Part) -> None:
    """The graph's novelty is that of a check fitted again in torch, and stands in the metadata."""
    from biigma_cli.cli.export import _part

    checkpoint = load_checkpoint(tiny_run / "weights" / "best.safetensors")
    train = _part(checkpoint, "train", None)
    assert train is not None
    order = np.random.default_rng(0).permutation(len(train.pixels))[: input_check.IMAGES]
    import torch

    model = load_model(checkpoint).float()
    fitted = input_check.fit_check(
        model, train.pixels[order], part.pixels, device=torch.device("cpu")
    )
    image = torch.from_numpy(part.pixels.copy()).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        wanted = fitted.module(model.early(image)).numpy()
    found = Predictor(checked, device="cpu")(part.pixels).novelty_B
    assert found is not None
    np.testing.assert_allclose(found, wanted, rtol=1e-2)
    stated = about(checked)["input_check"]
    assert stated["threshold"] == pytest.approx(float(fitted.module.limit), rel=1e-2)
    assert stated["validation"]["flagged"] == pytest.approx((found > 1).mean(), abs=0.06)


def test_predict_says_it(checked: Path, picture: Path, tmp_path: Path) -> None:
    """Stripes are flagged, an image of the data set is not; the option puts it off, and says so."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 255
    other = tmp_path / "stripes.png"
    Image.fromarray(stripes).save(other)
    ask = ("predict", picture, other, "--model", checked, "--device", "cpu", "--format", "jsonl")
    done = call(*ask)
    assert done.code == 0, done.err
    own, strange = (json.loads(line) for line in done.out.splitlines())
    assert own["label"] in own["probabilities"]
    assert own["novelty"] <= 1
    assert strange["label"] == "not dermoscopy"
    assert strange["novelty"] > 1
    assert sum(strange["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert "1 of 2 flagged as not dermoscopy" in done.err
    rows = ("predict", "--model", checked, "--device", "cpu", "-o", tmp_path / "a.csv")
    done = call(*rows, other, "--suspicious-from", "0.5")
    told = "1 of 1 flagged as not dermoscopy: unlike the images it was trained on"
    assert f"{told}, and not judged for suspicion" in done.err
    for again in range(2):  # what an earlier run flagged counts, too
        done = call(*rows, other, picture, "--suspicious-from", "0.5", "--resume")
        assert done.code == 0, (again, done.err)
        assert "1 of 2 flagged as not dermoscopy" in done.err
    off = call(*ask, "--no-input-check")
    strange = json.loads(off.out.splitlines()[1])
    assert strange["label"] in strange["probabilities"]
    assert "novelty" not in strange
    assert strange["settings"] == {"input_check": 0}
    shown = call(*ask[:-1], "table").out
    assert "not dermoscopy" in " ".join(shown.split())
    _, row = csv.DictReader(call(*ask[:-1], "csv").out.splitlines())
    assert float(row["novelty"]) > 1


def test_without_a_check_it_is_said(tiny_onnx: Path, picture: Path) -> None:
    """A model that cannot tell says so."""
    done = call("predict", picture, "--model", tiny_onnx, "--device", "cpu")
    assert "no input check" in done.err


def test_metadata_that_differs_is_damaged(checked: Path, tmp_path: Path) -> None:
    """A file that promises a check and has none is not used."""
    proto = unsealed(checked)
    (place,) = (i for i, o in enumerate(proto.graph.output) if o.name == "novelty")
    del proto.graph.output[place]
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match="differ on an input check"):
        Predictor(tmp_path / "m.onnx", device="cpu")


# --- precisions ------------------------------------------------------------------------------


def test_int8(int8: tuple[Path, Outcome], checked: Path, part: Part) -> None:
    """Weights are int8, the file is small, the answers are nearly the same, and it says so."""
    path, done = int8
    assert "-o int8.onnx --precision int8 --force\n" in path.with_suffix(".md").read_text(
        encoding="utf-8"
    )
    assert path.stat().st_size < 0.45 * checked.stat().st_size
    proto = onnx.load(path)
    kinds = [i.data_type for i in proto.graph.initializer if np.prod(i.dims) > 10_000]
    assert kinds.count(onnx.TensorProto.INT8) > 10
    dims = {i.name: i.dims for i in proto.graph.initializer}
    scales = [
        n.input[1] for n in proto.graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] in dims
    ]  # fmt: skip
    assert max(np.prod(dims[s]) for s in scales) > 100  # one scale a channel
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    assert names == ["probabilities", "logits", "evidence", "saliency", "novelty"]
    before = Predictor(checked, device="cpu")(part.pixels)
    after = Predictor(path, device="cpu")(part.pixels)
    # The answers of so little training lie too close together to be counted.
    assert np.corrcoef(before.logits_BY.ravel(), after.logits_BY.ravel())[0, 1] > 0.95
    assert 0 < np.abs(before.probabilities_BY - after.probabilities_BY).mean() < 0.1
    stated = about(path)["export"]
    assert stated["precision"] == "int8"
    assert stated["parity"]["images"] == len(part.pixels)
    both = [
        np.mean([right[part.labels == y].mean() for y in np.unique(part.labels)])
        for right in (
            before.probabilities_BY.argmax(1) == part.labels,
            after.probabilities_BY.argmax(1) == part.labels,
        )
    ]
    assert stated["accuracy"]["balanced_accuracy"] == pytest.approx(both)
    assert "balanced accuracy" in done.out
    novelty = after.novelty_B
    assert novelty is not None
    assert (novelty > 1).mean() <= 0.1


def test_the_limit_that_is_stated(
    checked: Path, int8: tuple[Path, Outcome], fp16: Path, halved: Path, rounded: Path, part: Part
) -> None:
    """It is the file's own, and so is the share of the validation images above it."""
    for path in (checked, int8[0], fp16, halved, rounded):
        stated = about(path)["input_check"]
        held = {i.name: i for i in onnx.load(path).graph.initializer}["check.limit"]
        assert stated["threshold"] == pytest.approx(float(onnx.numpy_helper.to_array(held)))
        novelty = Predictor(path, device="cpu")(part.pixels).novelty_B
        assert novelty is not None
        assert stated["validation"]["flagged"] == pytest.approx((novelty > 1).mean(), abs=1e-9)


@pytest.fixture(scope="module")
def fp16(tiny_run: Path, folder: Path) -> Path:
    """float16 with an input check."""
    path = folder / "fp16.onnx"
    done = exported(tiny_run, path, "--precision", "fp16", "--force")
    assert done.code == 0, done.err
    return path


def test_fp16(fp16: Path, checked: Path, part: Part) -> None:
    """Half the size, float32 at both ends, the same answers within float16's rounding."""
    assert fp16.stat().st_size < 0.6 * checked.stat().st_size
    proto = onnx.load(fp16)
    kinds = {i.data_type for i in proto.graph.initializer if np.prod(i.dims) > 10_000}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert {o.type.tensor_type.elem_type for o in proto.graph.output} == {onnx.TensorProto.FLOAT}
    before = Predictor(checked, device="cpu")(part.pixels)
    after = Predictor(fp16, device="cpu")(part.pixels)
    assert np.abs(before.probabilities_BY - after.probabilities_BY).max() < 0.05
    np.testing.assert_allclose(after.novelty_B, before.novelty_B, rtol=0.05)
    assert about(fp16)["export"]["precision"] == "fp16"


def narrowed(run: Path, folder: Path, name: str, precision: str) -> Path:
    """An export with an input check and a card."""
    path = folder / f"{name}.onnx"
    card = ("--card", path.with_suffix(".md"))
    done = exported(run, path, "--precision", precision, "--force", *card)
    assert done.code == 0, done.err
    return path


@pytest.fixture(scope="module")
def halved(tiny_run: Path, folder: Path) -> Path:
    """Weights in float16."""
    return narrowed(tiny_run, folder, "halved", "fp16-weights")


@pytest.fixture(scope="module")
def rounded(tiny_run: Path, folder: Path) -> Path:
    """Weights in int8."""
    return narrowed(tiny_run, folder, "rounded", "int8-weights")


def test_fp16_weights(halved: Path, checked: Path, part: Part, tmp_path: Path) -> None:
    """Half the size, the same answers but for rounding; the input check's own stay float32."""
    assert halved.stat().st_size < 0.56 * checked.stat().st_size
    before = Predictor(checked, device="cpu")(part.pixels)
    after = Predictor(halved, device="cpu")(part.pixels)
    assert 0 < np.abs(before.logits_BY - after.logits_BY).max() < 0.01
    np.testing.assert_allclose(after.novelty_B, before.novelty_B, rtol=0.01)
    held = {i.name: i for i in onnx.load(halved).graph.initializer}
    large = {n: i.data_type for n, i in held.items() if np.prod(i.dims) >= 1024}
    # The axes of its components, and their transpose.
    spared = {n for n, kind in large.items() if kind == onnx.TensorProto.FLOAT}
    assert "check.axes_CK" in spared
    assert {tuple(sorted(held[n].dims)) for n in spared} == {
        tuple(sorted(held["check.axes_CK"].dims))
    }
    assert sum(kind == onnx.TensorProto.FLOAT16 for kind in large.values()) > 50
    assert about(halved)["export"]["precision"] == "fp16-weights"
    card = halved.with_suffix(".md").read_text(encoding="utf-8")
    assert "MB as ONNX (float16 weights)" in card
    assert "stored in float16; what is computed is computed in float32" in card


@pytest.mark.parametrize("name", ["halved", "rounded"])
def test_narrow_weights_are_float32_once_opened(
    name: str, checked: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """ONNX Runtime runs the very nodes of the float32 file: nothing is left for each image."""
    stored: Path = request.getfixturevalue(name)

    def opened(path: Path) -> list[str]:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / path.name)
        # The levels beyond fuse and lay out by the CPU, and say that their file is for this one.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(tmp_path / path.name).graph
        kinds = {i.data_type for i in graph.initializer}
        assert not kinds & {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8}
        return sorted(n.op_type for n in graph.node)

    assert opened(stored) == opened(checked)


def test_int8_weights(rounded: Path, checked: Path, part: Part) -> None:
    """A third of the size at most, nearly the same answers, the input check's own in float16."""
    assert rounded.stat().st_size < 0.35 * checked.stat().st_size
    before = Predictor(checked, device="cpu")(part.pixels)
    after = Predictor(rounded, device="cpu")(part.pixels)
    assert np.corrcoef(before.logits_BY.ravel(), after.logits_BY.ravel())[0, 1] > 0.995
    np.testing.assert_allclose(after.novelty_B, before.novelty_B, rtol=0.1)
    held = {i.name: i for i in onnx.load(rounded).graph.initializer}
    kinds = {n: i.data_type for n, i in held.items() if np.prod(i.dims) >= 1024}
    assert kinds["check.axes_CK"] == onnx.TensorProto.FLOAT16
    # Depthwise kernels are too short for a scale each.
    depthwise = {n for n in kinds if list(held[n].dims[1:]) == [1, 3, 3]}
    assert {kinds[n] for n in depthwise} == {onnx.TensorProto.FLOAT16}
    assert sum(kind == onnx.TensorProto.INT8 for kind in kinds.values()) > 30
    assert about(rounded)["export"]["precision"] == "int8-weights"
    card = rounded.with_suffix(".md").read_text(encoding="utf-8")
    assert "MB as ONNX (int8 weights)" in card
    assert "stored in int8; what is computed is computed in float32" in card


def test_int8_all_weights(rounded: Path, checked: Path, part: Part) -> None:
    """Each depthwise kernel has a scale of its own, and the file is smaller still."""
    proto = unsealed(checked)
    narrow.NARROW["int8-all-weights"](proto, spared="novelty")
    onnx.checker.check_model(proto, full_check=True)
    held = {i.name: i for i in proto.graph.initializer}
    depthwise = [n for n in held if list(held[n].dims[1:]) == [1, 3, 3] and n + ".scale" in held]
    assert len(depthwise) > 5
    for name in depthwise:
        assert held[name].data_type == onnx.TensorProto.INT8
        assert list(held[name + ".scale"].dims) == [held[name].dims[0], 1, 1, 1]
    narrow.hold_once(proto)
    assert proto.ByteSize() < rounded.stat().st_size
    path = checked.with_name("all.onnx")
    path.write_bytes(proto.SerializeToString())
    before = Predictor(checked, device="cpu")(part.pixels)
    after = Predictor(path, device="cpu")(part.pixels)
    assert np.corrcoef(before.logits_BY.ravel(), after.logits_BY.ravel())[0, 1] > 0.99
    np.testing.assert_allclose(after.novelty_B, before.novelty_B, rtol=0.1)


def products(outputs: dict[str, list[str]], value: float = 0.5) -> onnx.ModelProto:
    """A graph whose outputs are x times each of the weights `(40, 40)` named, in turn."""
    info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    nodes = []
    for output, weights in outputs.items():
        names = ["x", *(f"{output}{i}" for i in range(1, len(weights))), output]
        nodes += [
            onnx.helper.make_node("MatMul", [before, weight], [after])
            for before, weight, after in zip(names[:-1], weights, names[1:], strict=True)
        ]
    filled = np.full((40, 40), value, np.float32)
    held = dict.fromkeys(w for weights in outputs.values() for w in weights)
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [info("x", kind, [1, 40])],
        [info(name, kind, [1, 40]) for name in outputs],
        [onnx.numpy_helper.from_array(filled, name) for name in held],
    )
    return onnx.helper.make_model(graph)


def halves(proto: onnx.ModelProto) -> set[str]:
    """Names of what is held in float16; the model is checked first."""
    onnx.checker.check_model(proto, full_check=True)
    kind = onnx.TensorProto.FLOAT16
    return {i.name for i in proto.graph.initializer if i.data_type == kind}


def test_which_weights_are_halved() -> None:
    """Those that serve the spared output alone are not, the shared ones are."""
    proto = products({"logits": ["a", "shared"], "novelty": ["shared", "b"]})
    narrow.halve_weights(proto, spared="novelty")
    assert halves(proto) == {"a", "shared"}
    proto = products({"logits": ["a"]})
    narrow.halve_weights(proto, spared="novelty")
    assert halves(proto) == {"a"}
    # A weight that is given out as it is has to stay what it is.
    proto = products({"logits": ["a", "b"]})
    proto.graph.output.append(
        onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [40, 40])
    )
    narrow.halve_weights(proto, spared="novelty")
    assert halves(proto) == {"b"}


def test_fp16_weights_out_of_range() -> None:
    """A weight of 70,000 is no float16: named, and nothing is written."""
    with pytest.raises(ParityError, match="huge holds a weight beyond") as caught:
        narrow.halve_weights(products({"logits": ["huge"]}, 7e4), spared="novelty")
    assert "leave it in float32" in caught.value.fix


def test_rounding_takes_the_better_side() -> None:
    """A scale for each row where rows differ, for each column where columns do; never off by more
    than half a step."""
    rng = np.random.default_rng(0)
    for axis in (0, 1):
        proto = products({"logits": ["w"]})
        sizes = np.expand_dims(10.0 ** np.linspace(-3, 1, 40), 1 - axis)
        weight = (rng.normal(size=(40, 40)) * sizes).astype(np.float32)
        proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
        narrow.round_weights(proto)
        onnx.checker.check_model(proto, full_check=True)
        held = {i.name: onnx.numpy_helper.to_array(i) for i in proto.graph.initializer}
        assert held["w"].dtype == np.int8
        step = held["w.scale"]
        assert step.shape == ((40, 1) if axis == 0 else (1, 40))
        assert (np.abs(held["w"] * step - weight) <= 0.501 * step).all()
        assert (np.abs(held["w"]).max(1 - axis) == 127).all()
    with pytest.raises(ParityError, match="w holds a weight that is not finite"):
        narrow.round_weights(products({"logits": ["w"]}, float("inf")))
    # All zeros, which have no largest value.
    proto = products({"logits": ["w"]}, 0.0)
    narrow.round_weights(proto)
    (counts, _) = (onnx.numpy_helper.to_array(i) for i in proto.graph.initializer)
    assert not counts.any()


def test_halves_widen_again(checked: Path, halved: Path) -> None:
    """Under the names they had, rounded to float16; the graph is the float32 one again."""
    full, proto = onnx.load(checked), onnx.load(halved)
    narrow.hold_once(full)
    narrow.widen_weights(proto)
    onnx.checker.check_model(proto, full_check=True)
    assert [n.op_type for n in proto.graph.node] == [n.op_type for n in full.graph.node]
    assert [list(n.input) for n in proto.graph.node] == [list(n.input) for n in full.graph.node]
    wide = {i.name: onnx.numpy_helper.to_array(i) for i in proto.graph.initializer}
    for held in full.graph.initializer:
        if held.name != "check.limit":
            before = onnx.numpy_helper.to_array(held)
            np.testing.assert_allclose(wide[held.name], before, rtol=1e-3, atol=1e-6)


def test_a_transpose_is_held_once() -> None:
    """A constant used both ways is one, and a node; others of the same size, or given out, stay."""
    rng = np.random.default_rng(0)
    proto = products({"logits": ["a", "b", "c"]})
    proto.ir_version, proto.opset_import[0].version = 10, 20  # ONNX Runtime lags behind
    values = {name: rng.normal(size=(40, 40)).astype(np.float32) for name in "ac"}
    values["b"] = values["a"].T.copy()
    for held in proto.graph.initializer:
        held.CopyFrom(onnx.numpy_helper.from_array(values[held.name], held.name))
    x = rng.normal(size=(1, 40)).astype(np.float32)

    def said(proto: onnx.ModelProto) -> np.ndarray:
        onnx.checker.check_model(proto, full_check=True)
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        return np.asarray(session.run(["logits"], {"x": x})[0])

    before = said(proto)
    given = onnx.ModelProto()
    given.CopyFrom(proto)
    given.graph.output.append(
        onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [40, 40])
    )
    narrow.hold_once(given)
    assert {i.name for i in given.graph.initializer} == {"a", "b", "c"}
    narrow.hold_once(proto)
    assert {i.name for i in proto.graph.initializer} == {"a", "c"}
    assert [n.op_type for n in proto.graph.node].count("Transpose") == 1
    np.testing.assert_array_equal(said(proto), before)


def test_a_loss_writes_nothing(
    tiny_run: Path, fp16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than half a point of balanced accuracy is refused, unless forced."""
    from biigma_cli.runtime import export

    real = parity.AccuracyChange.measure
    monkeypatch.setattr(
        export.AccuracyChange,
        "measure",
        lambda *a: real(*a)._replace(balanced_accuracy=(0.7, 0.6949)),
    )
    # The graph that was exported once already: exporting it is the slow part.
    monkeypatch.setattr(export, "_to_proto", lambda *_: onnx.load(fp16))
    path = tmp_path / "m.onnx"
    done = exported(tiny_run, path, "--precision", "fp16")
    assert done.code == 1
    assert "fp16 loses too much" in done.err
    assert "0.7000 -> 0.6949 (-0.51 points)" in done.err
    assert not list(tmp_path.iterdir())
    done = exported(tiny_run, path, "--precision", "fp16", "--force")
    assert done.code == 0, done.err
    assert about(path)["export"]["accuracy"]["balanced_accuracy"] == [0.7, 0.6949]


def test_a_loss_that_cannot_be_measured(
    tiny_run: Path, fp16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the validation images nothing is written, unless forced; the card then says so."""
    from biigma_cli.runtime import export

    def without_check(*_: object) -> onnx.ModelProto:
        """The graph that was exported once already: exporting it is the slow part."""
        proto = onnx.load(fp16)
        kept = [output for output in proto.graph.output if output.name != "novelty"]
        del proto.graph.output[:]
        proto.graph.output.extend(kept)
        return proto

    monkeypatch.setattr(export, "_to_proto", without_check)
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "home"))
    path, card = tmp_path / "m.onnx", tmp_path / "m.md"
    words = ("--precision", "fp16", "--no-input-check", "--card", card)
    done = exported(tiny_run, path, *words)
    assert done.code == 1
    assert "what fp16 loses cannot be measured: the validation images are not here" in done.err
    assert not path.exists()
    assert not card.exists()
    done = exported(tiny_run, path, *words, "--force")
    assert done.code == 0, done.err
    assert "accuracy" not in about(path)["export"]
    assert "loses was **not measured**" in card.read_text(encoding="utf-8")


def test_measure() -> None:
    """Balanced accuracy over the classes that are there, accuracy, and the loss."""
    labels = np.array([0, 0, 0, 1])
    right = np.eye(3, dtype=np.float32)[labels]
    wrong = np.eye(3, dtype=np.float32)[[0, 0, 2, 1]]
    found = parity.AccuracyChange.measure(labels, right, wrong)
    assert found.balanced_accuracy == pytest.approx((1, (2 / 3 + 1) / 2))
    assert found.accuracy == (1, 0.75)
    assert found.loss == pytest.approx(1 / 6)


def test_outputs_are_chosen(tiny_run: Path, tmp_path: Path) -> None:
    """Only what was asked for, beside probabilities and logits.

    Of less than a hundred images no check's false alarms could be stated: the export says so.
    """
    path = tmp_path / "m.onnx"
    done = call(
        "export", "onnx", "--run", tiny_run, "-o", path, "--outputs", "novelty,evidence",
        "--no-calibrate",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "no input check: it takes 100" in done.err
    names = [o.name for o in onnx.load(path).graph.output]
    assert names == ["probabilities", "logits", "evidence"]
    assert "input_check" not in about(path)


def test_what_cannot_be(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown names and a missing package are said before anything is done."""
    path = tmp_path / "m.onnx"
    done = exported(tiny_run, path, "--precision", "int4")
    assert (
        done.code,
        "choose one of: fp32, fp16, fp16-weights, int8-weights, int8-all-weights, int8" in done.err,
    ) == (2, True)
    done = exported(tiny_run, path, "--outputs", "salency")
    assert (done.code, "did you mean saliency?" in done.err) == (2, True)
    monkeypatch.setitem(sys.modules, "nncf", None)
    done = exported(tiny_run, path, "--precision", "int8")
    assert (done.code, "pip install 'biigma[int8]'" in done.err) == (2, True)
    monkeypatch.undo()
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "empty"))
    done = exported(tiny_run, path, "--precision", "int8")
    assert (done.code, "training images, which are not all here" in done.err) == (3, True)
    assert not path.exists()


def test_activations_become_unsigned() -> None:
    """The same numbers by a zero point 128 higher; weights, which come ready, stay as they are."""
    from onnx import TensorProto, helper, numpy_helper

    constants = {
        "step": np.float32(0.1), "zero": np.int8(-5), "left": np.int8(1),
        "weights": np.array([[-128, 3, 127]], np.int8),
        "weight_step": np.float32(0.5), "weight_zero": np.int8(0),
    }  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["y"]),
            helper.make_node("DequantizeLinear", ["weights", "weight_step", "weight_zero"], ["w"]),
            helper.make_node("Add", ["y", "w"], ["sum"]),
        ],
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["rows", 3])],
        [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
        value_info=[helper.make_tensor_value_info("q", TensorProto.INT8, ["rows", 3])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    x = np.linspace(-20, 20, 999, dtype=np.float32).reshape(-1, 3)

    def run() -> Any:
        onnx.checker.check_model(proto, full_check=True)
        session = onnxruntime.InferenceSession(proto.SerializeToString())
        return session.run(["sum"], {"x": x})[0]

    before = run()
    quantise.make_unsigned(proto)
    np.testing.assert_array_equal(run(), before)
    initial = {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}
    points = [initial[node.input[2]] for node in proto.graph.node if len(node.input) == 3]
    assert [(p.dtype.name, int(p)) for p in points] == [("uint8", 123), ("uint8", 123), ("int8", 0)]
    assert not {"zero", "left"} & set(initial)


def test_quantised_layers_run_in_int8(int8: tuple[Path, Outcome], tmp_path: Path) -> None:
    """ONNX Runtime makes integer convolutions of all but those at the taps and of the adapters."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(int8[0], options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert kinds.count("QLinearConv") == 50
    assert sum(kind.endswith("Conv") for kind in kinds) == 55


def test_nncf_is_asked_to_be_silent(int8: tuple[Path, Outcome]) -> None:
    """Nothing of it on stdout, and its environment is left as it was."""
    import os

    _, done = int8
    assert len(done.out.splitlines()) == 8, done.out
    assert "NNCF_CI" not in os.environ
    assert quantise.METHOD in about(int8[0])["export"]["quantisation"]["method"]
