"""The exported file: one file, the same answers as torch, its metadata, nothing of this machine."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from biigma_cli.cli.export import _parity_images
from biigma_cli.core.weights import Checkpoint, load_checkpoint, load_model
from biigma_cli.data.images import load_part
from biigma_cli.data.manifest import load_manifest
from biigma_cli.data.preprocess import Pixels, load_image
from biigma_cli.data.splits import make_split
from biigma_cli.engine.evaluate import predict_proba
from biigma_cli.errors import DeviceError, ModelFileError, ParityError, UsageError
from biigma_cli.runtime.export import export_onnx, metadata
from biigma_cli.runtime.parity import compare
from biigma_cli.runtime.session import DEFAULT_MODEL, Predictor, find_model
from tests.conftest import call

CODES = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]


@pytest.fixture(scope="module")
def checkpoint(tiny_run: Path) -> Checkpoint:
    """The run's best."""
    return load_checkpoint(tiny_run / "weights" / "best.safetensors")


@pytest.fixture(scope="module")
def pixels(checkpoint: Checkpoint) -> Pixels:
    """Five validation images."""
    manifest = load_manifest("isic18")
    ids = make_split(manifest, checkpoint.config.data).val[:5]
    return load_part(manifest, ids, 64).pixels


@pytest.fixture(scope="module")
def session(tiny_onnx: Path) -> Any:
    """The file in plain ONNX Runtime, as anyone would open it."""
    return onnxruntime.InferenceSession(str(tiny_onnx), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def stored(session: Any) -> dict[str, Any]:
    """Its metadata, decoded."""
    values = dict(session.get_modelmeta().custom_metadata_map)
    assert values.pop("biigma_format") == "biigma-onnx-1"
    return {k: json.loads(v) for k, v in values.items()}


# --- the file --------------------------------------------------------------------------------


def test_one_file(tiny_onnx: Path) -> None:
    """Weights are inside: nothing lies beside it."""
    assert list(tiny_onnx.parent.iterdir()) == [tiny_onnx]
    proto = onnx.load(tiny_onnx, load_external_data=False)
    assert not [i.name for i in proto.graph.initializer if i.data_location]
    onnx.checker.check_model(proto, full_check=True)


def test_proof_is_printed(tiny_run: Path, tiny_onnx: Path) -> None:
    """The export says on which images it was proven, and how closely."""
    told = (tiny_run / "proof.txt").read_text()
    found = re.search(r"parity on 8 validation images: max \|dp\| (\S+),.* same decision 8/8", told)
    assert found, told
    assert float(found[1]) <= 1e-4


def test_nothing_of_this_machine(tiny_onnx: Path, tiny_run: Path, tiny_ham: Path) -> None:
    """No folder of the exporting machine stands in the file."""
    content = tiny_onnx.read_bytes()
    folders = [
        Path(__file__).resolve().parents[2], Path.home(), Path(tempfile.gettempdir()),
        Path(sys.prefix), Path(torch.__file__).parents[1], tiny_run, tiny_ham,
    ]  # fmt: skip
    for folder in folders:
        if len(folder.parts) > 1:
            assert f"{folder}/".encode() not in content, folder
    for word in (b"site-packages", b"stack_trace", b'.py"', tiny_run.parent.name.encode() + b"/"):
        assert word not in content, word


def test_weights_path_is_not_stored(checkpoint: Checkpoint) -> None:
    """Of a local weights file only the name is kept."""
    config = {**checkpoint.meta["config"]}
    config["model"] = {**config["model"], "weights": "/private/somebody/trunk.safetensors"}
    values = metadata(Checkpoint({}, {**checkpoint.meta, "config": config}), None)
    assert "somebody" not in json.dumps(values)
    assert json.loads(values["config"])["model"]["weights"] == "trunk.safetensors"


def test_metadata(
    stored: dict[str, Any], checkpoint: Checkpoint, tiny_eval: dict[str, Any]
) -> None:
    """Classes, preprocessing, licence, split, protocol, figures, settings, versions, disclaimer."""
    assert stored["classes"] == CODES
    assert stored["class_names"][:2] == ["melanoma", "melanocytic nevus"]
    assert stored["malignant"] == [True, False, True, True, False, False, False]
    assert stored["preprocessing"]["side"] == 64
    assert "uint8" in stored["preprocessing"]["input"]
    assert stored["preprocessing"]["normalisation"] == "unit, inside the graph"
    assert stored["licence"] == "CC-BY-NC-4.0"
    assert "10.1038/sdata.2018.161" in stored["citation"]
    assert stored["disclaimer"] == "For research use only. Not a medical device."
    assert stored["dataset"] == "isic18"
    assert stored["split"] == checkpoint.meta["split"]
    assert "lesion-safe" in stored["protocol"]
    assert stored["validation"] == checkpoint.meta["validation"]
    assert stored["epoch"] == checkpoint.meta["epoch"]
    assert stored["config"]["data"]["side"] == 64
    assert {"biigma", "torch", "export"} <= set(stored["versions"])
    figures = stored["metrics"]["test"]
    assert figures["macro_f1"] == tiny_eval["macro_f1"]
    assert figures["protocol"] == stored["protocol"]
    assert "model" not in figures


# --- its answers -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_any_batch_size(count: int, session: Any, pixels: Pixels, checkpoint: Checkpoint) -> None:
    """uint8 NHWC in any number gives torch's probabilities; logits agree with them."""
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(uint8)", [64, 64, 3])
    probabilities, logits = session.run(["probabilities", "logits"], {"image": pixels[:count]})
    assert probabilities.shape == logits.shape == (count, 7)
    wanted = predict_proba(load_model(checkpoint), pixels[:count], device=torch.device("cpu"))
    np.testing.assert_allclose(probabilities, wanted, atol=1e-4)
    softmax = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(probabilities, softmax / softmax.sum(1, keepdims=True), atol=1e-6)


def test_answers_depend_on_the_image(session: Any, pixels: Pixels) -> None:
    """The agreement above means something: images get different answers."""
    (probabilities,) = session.run(["probabilities"], {"image": pixels})
    assert np.ptp(probabilities, axis=0).max() > 1e-3


def test_saliency(tiny_onnx: Path, pixels: Pixels) -> None:
    """The map M comes out, one value in (0, 1) for each position, and varies."""
    answer = Predictor(tiny_onnx, device="cpu")(pixels)
    assert answer.saliency_BHW is not None
    assert answer.saliency_BHW.shape == (5, 2, 2)
    assert np.all((answer.saliency_BHW > 0) & (answer.saliency_BHW < 1))
    assert np.ptp(answer.saliency_BHW) > 1e-3


def test_predict_equals_torch(tiny_onnx: Path, picture: Path, checkpoint: Checkpoint) -> None:
    """From the file on disk to the printed figure: what torch gives for the same image."""
    done = call("predict", picture, "--model", tiny_onnx, "--format", "jsonl", "--device", "cpu")
    printed = json.loads(done.out)["probabilities"]
    image = load_image(picture, 64)[None].copy()
    wanted = predict_proba(load_model(checkpoint), image, device=torch.device("cpu"))[0]
    assert list(printed.values()) == pytest.approx(wanted.tolist(), abs=1e-4)


def test_eval_of_export_equals_eval_of_run(
    tiny_onnx: Path, tiny_run: Path, tiny_eval: dict[str, Any]
) -> None:
    """Judged on the same part, file and checkpoint have the same figures and differ by nothing."""
    best = tiny_run / "weights" / "best.safetensors"
    done = call("eval", "--model", tiny_onnx, "--against", best, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    for key in ("n", "accuracy", "macro_f1", "confusion", "per_class", "intervals", "split_hash"):
        assert result[key] == tiny_eval[key], key
    spans = result["against"]["difference"].values()
    assert {(s["value"], s["low"], s["high"]) for s in spans} == {(0.0, 0.0, 0.0)}


def test_eval_table(tiny_run: Path, tiny_eval: dict[str, Any]) -> None:
    """The protocol stands above the figures, and the run keeps them."""
    done = call("eval", "--run", tiny_run, "--device", "cpu")
    assert done.code == 0, done.err
    assert done.out.index("protocol: isic18, lesion-safe") < done.out.index("macro-F1")
    assert "2000 resamples of lesions" in done.out
    assert json.loads((tiny_run / "eval-test.json").read_text()) == tiny_eval


# --- the proof -------------------------------------------------------------------------------


def test_no_parity_writes_nothing(
    tiny_onnx: Path,
    checkpoint: Checkpoint,
    pixels: Pixels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Above the tolerance there is an error and no file; an older file stays."""
    # The graph that was exported once already: exporting it is the slow part.
    program = SimpleNamespace(model_proto=onnx.load(tiny_onnx))
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: program)
    old = tmp_path / "old.onnx"
    old.write_bytes(b"kept")
    for path in (tmp_path / "new.onnx", old):
        with pytest.raises(ParityError, match="disagree: parity on 5 drawn"):
            export_onnx(checkpoint, path, pixels, source="drawn", tolerance=-1)
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_bytes() == b"kept"


def test_export_finds_a_wrong_graph(
    tiny_onnx: Path,
    checkpoint: Checkpoint,
    pixels: Pixels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A graph with other weights than the checkpoint's is found by the proof."""
    proto = onnx.load(tiny_onnx)
    head = next(i for i in proto.graph.initializer if list(i.dims) == [7])
    bias = onnx.numpy_helper.to_array(head) + np.arange(7, dtype=np.float32)
    head.CopyFrom(onnx.numpy_helper.from_array(bias, head.name))
    program = SimpleNamespace(model_proto=proto)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: program)
    with pytest.raises(ParityError, match=r"at most 0\.0001 is allowed"):
        export_onnx(checkpoint, tmp_path / "new.onnx", pixels, source="images")
    assert not list(tmp_path.iterdir())


def test_parity_figures() -> None:
    """Largest and mean difference and equal decisions; NaN never passes."""
    first = np.array([[0.6, 0.4], [0.5, 0.5]], np.float32)
    second = np.array([[0.4, 0.6], [0.5, 0.5]], np.float32)
    parity = compare(first, second, source="rows", tolerance=1)
    assert parity.max_difference == pytest.approx(0.2)
    assert parity.mean_difference == pytest.approx(0.1)
    assert (parity.images, parity.same_decision) == (2, 1)
    with pytest.raises(ParityError):
        compare(first, second, source="rows")
    with pytest.raises(ParityError):
        compare(first, np.full_like(first, np.nan), source="rows", tolerance=1)


def test_drawn_patterns_where_the_data_is_not(
    checkpoint: Checkpoint, other_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With other data on this machine the proof is made on patterns, and says so."""
    assert _parity_images(checkpoint.config, checkpoint.meta, 3)[1] == "validation images"
    monkeypatch.setenv("BIIGMA_HOME", str(other_home))
    drawn, source = _parity_images(checkpoint.config, checkpoint.meta, 3)
    assert source == "drawn patterns"
    assert (drawn.shape, drawn.dtype) == ((3, 64, 64, 3), np.uint8)
    assert drawn.std() > 20


# --- finding and opening ---------------------------------------------------------------------


def test_find_model(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file given goes before BIIGMA_MODEL, which goes before the shipped default."""
    other = tmp_path / "other.onnx"
    other.write_bytes(tiny_onnx.read_bytes())
    monkeypatch.setenv("BIIGMA_MODEL", str(other))
    assert find_model(None) == other
    assert find_model(str(tiny_onnx)) == tiny_onnx


def test_find_shipped_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Shipped models are found by name, and listed where a name is unknown."""
    from biigma_cli.runtime import session as module

    shipped = tmp_path / f"{DEFAULT_MODEL}.onnx"
    shipped.write_bytes(b"")
    monkeypatch.setattr(module, "models_dir", lambda: tmp_path)
    monkeypatch.delenv("BIIGMA_MODEL", raising=False)
    assert find_model(None) == find_model(DEFAULT_MODEL) == shipped
    with pytest.raises(ModelFileError, match="no model 'nothing'") as caught:
        find_model("nothing")
    assert DEFAULT_MODEL in caught.value.fix
    with pytest.raises(ModelFileError, match="is a folder"):
        find_model(str(tmp_path))


def test_predictor_devices(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA is refused where no driver answers; an unknown device is a usage error."""
    from biigma_cli.runtime import session as module

    monkeypatch.setattr(module, "_has_gpu", lambda: False)
    assert Predictor(tiny_onnx).provider == "CPUExecutionProvider"
    with pytest.raises(DeviceError, match="CUDA"):
        Predictor(tiny_onnx, device="cuda")
    with pytest.raises(UsageError, match="unknown device"):
        Predictor(tiny_onnx, device="mps")


def test_other_resize_rule(tiny_onnx: Path, tmp_path: Path) -> None:
    """A model that wants another preprocessing is refused rather than fed wrongly."""
    proto = onnx.load(tiny_onnx)
    entry = next(p for p in proto.metadata_props if p.key == "preprocessing")
    entry.value = json.dumps({**json.loads(entry.value), "resize": "crop-9"})
    onnx.save(proto, tmp_path / "other.onnx")
    with pytest.raises(ModelFileError, match="'crop-9'"):
        Predictor(tmp_path / "other.onnx", device="cpu")
