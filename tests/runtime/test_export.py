"""The exported file: one file, the same answers as torch, its metadata, nothing of this machine."""

from __future__ import annotations

import errno
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

from biigma_cli.cli.export import _calibrate, _parity_images, _part
from biigma_cli.core.weights import Checkpoint, load_checkpoint, load_model, save_checkpoint
from biigma_cli.data.images import Part, load_part
from biigma_cli.data.manifest import load_manifest
from biigma_cli.data.preprocess import Pixels, load_image
from biigma_cli.data.splits import make_split
from biigma_cli.engine.evaluate import predict_proba
from biigma_cli.errors import (
    BiigmaError,
    DeviceError,
    ModelFileError,
    ParityError,
    UsageError,
)
from biigma_cli.metrics import HEADLINE, apply_temperature
from biigma_cli.report.card import model_card
from biigma_cli.runtime.calibration import Calibration, Sureness, fit_calibration
from biigma_cli.runtime.export import _Graph, calibrate, export_onnx, metadata
from biigma_cli.runtime.parity import compare, compare_maps
from biigma_cli.runtime.session import DEFAULT_MODEL, Predictor, find_model
from tests.conftest import call, unsealed

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


@pytest.fixture(scope="module")
def calibration(stored: dict[str, Any]) -> Calibration:
    """The file's, as it was when it was exported."""
    found = stored["calibration"]
    before, after = (Sureness(**found[key]) for key in ("before", "after"))
    temperature, images = found["temperature"], found["n"]
    return Calibration(temperature=temperature, images=images, before=before, after=after)


def answers(checkpoint: Checkpoint, pixels: Pixels, temperature: float) -> Any:
    """Torch's probabilities at a temperature, worked out outside any graph."""
    raw = predict_proba(load_model(checkpoint), pixels, device=torch.device("cpu"))
    return apply_temperature(raw, temperature)


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
    assert figures["temperature"] is None
    assert figures["assessment"] == tiny_eval["assessment"]


# --- its answers -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_any_batch_size(
    count: int, session: Any, pixels: Pixels, checkpoint: Checkpoint, calibration: Calibration
) -> None:
    """uint8 NHWC in any number gives torch's probabilities over T; logits stay as trained."""
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(uint8)", [64, 64, 3])
    probabilities, logits, evidence = session.run(
        ["probabilities", "logits", "evidence"], {"image": pixels[:count]}
    )
    bias = (logits - evidence.sum((2, 3))).astype(np.float64)
    np.testing.assert_allclose(bias, np.broadcast_to(bias[:1], bias.shape), atol=1e-4)
    assert evidence.std((2, 3)).min() > 0
    assert probabilities.shape == logits.shape == (count, 7)
    wanted = answers(checkpoint, pixels[:count], calibration.temperature)
    np.testing.assert_allclose(probabilities, wanted, atol=1e-4)
    raised = np.exp(logits / calibration.temperature)
    np.testing.assert_allclose(probabilities, raised / raised.sum(1, keepdims=True), atol=1e-6)
    raised = np.exp(logits)
    as_trained = answers(checkpoint, pixels[:count], 1)
    np.testing.assert_allclose(raised / raised.sum(1, keepdims=True), as_trained, atol=1e-4)
    assert (probabilities.argmax(1) == logits.argmax(1)).all()


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


def test_predict_equals_torch(
    tiny_onnx: Path, picture: Path, checkpoint: Checkpoint, calibration: Calibration
) -> None:
    """From the file on disk to the printed figure: what torch gives for the same image, over T."""
    done = call("predict", picture, "--model", tiny_onnx, "--format", "jsonl", "--device", "cpu")
    printed = json.loads(done.out)["probabilities"]
    image = load_image(picture, 64)[None].copy()
    wanted = answers(checkpoint, image, calibration.temperature)[0]
    assert list(printed.values()) == pytest.approx(wanted.tolist(), abs=1e-4)


def test_eval_of_export_equals_eval_of_run(
    tiny_onnx: Path, tiny_run: Path, tiny_eval: dict[str, Any], calibration: Calibration
) -> None:
    """Judged on the same part, file and checkpoint give the same answers: all figures of answers
    agree and differ by nothing. Calibration shows in those of probabilities alone, and is said.
    """
    best = tiny_run / "weights" / "best.safetensors"
    done = call("eval", "--model", tiny_onnx, "--against", best, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    for key in ("n", "accuracy", "macro_f1", "confusion", "per_class", "intervals", "split_hash"):
        assert result[key] == tiny_eval[key], key
    assert result["temperature"] == calibration.temperature
    other = result["against"]
    assert other["temperature"] is None
    assert other["assessment"]["confusion"] == tiny_eval["assessment"]["confusion"]
    assert "one of the two models is calibrated" in done.err
    apart = other["difference"]["overall"]
    assert {apart[n][end] for n in HEADLINE for end in ("value", "low", "high")} == {0.0}
    gained = result["assessment"]["overall"]["log_loss"]["value"]
    gained -= tiny_eval["assessment"]["overall"]["log_loss"]["value"]
    assert apart["log_loss"]["value"] == pytest.approx(gained, abs=1e-5)
    assert abs(gained) > 1e-3


def test_eval_table(tiny_run: Path, tiny_eval: dict[str, Any]) -> None:
    """The protocol stands above the figures, and the run keeps them."""
    done = call("eval", "--run", tiny_run, "--device", "cpu")
    assert done.code == 0, done.err
    assert done.out.index("protocol: isic18, lesion-safe") < done.out.index("macro-F1")
    assert "2000 resamples of lesions" in done.out
    kept = {k: v for k, v in tiny_eval.items() if k not in ("published", "subgroups", "notes")}
    assert json.loads((tiny_run / "eval-test.json").read_text()) == kept


# --- the proof -------------------------------------------------------------------------------


def test_no_parity_writes_nothing(
    tiny_onnx: Path,
    checkpoint: Checkpoint,
    pixels: Pixels,
    calibration: Calibration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Above the tolerance there is an error and no file; an older file stays."""
    # The graph that was exported once already: exporting it is the slow part.
    program = SimpleNamespace(model_proto=onnx.load(tiny_onnx))
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: program)
    given: dict[str, Any] = {"source": "drawn", "calibration": calibration}
    old = tmp_path / "old.onnx"
    old.write_bytes(b"kept")
    for path in (tmp_path / "new.onnx", old):
        with pytest.raises(ParityError, match="disagree: parity on 5 drawn"):
            export_onnx(checkpoint, path, pixels, tolerance=-1, **given)
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_bytes() == b"kept"
    assert export_onnx(checkpoint, old, pixels, **given).parity.same_decision == 5


def test_no_room_for_a_trial(
    tiny_onnx: Path, checkpoint: Checkpoint, pixels: Pixels, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A full or missing temporary folder is named as such, and nothing is written."""
    program = SimpleNamespace(model_proto=onnx.load(tiny_onnx))
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: program)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(BiigmaError, match="temporary folder: No space left") as caught:
            export_onnx(checkpoint, tmp_path / "new.onnx", pixels, source="images")
    assert "TMPDIR" in caught.value.fix
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(BiigmaError, match="temporary folder: No such file"):
        export_onnx(checkpoint, tmp_path / "new.onnx", pixels, source="images")
    assert not list(tmp_path.iterdir())


def test_another_temperature_is_found(
    tiny_onnx: Path,
    checkpoint: Checkpoint,
    pixels: Pixels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A graph with a temperature that torch does not apply is no match."""
    program = SimpleNamespace(model_proto=onnx.load(tiny_onnx))
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: program)
    with pytest.raises(ParityError, match="disagree"):
        export_onnx(checkpoint, tmp_path / "new.onnx", pixels, source="images")
    assert not list(tmp_path.iterdir())


def test_export_finds_a_wrong_graph(
    tiny_onnx: Path,
    checkpoint: Checkpoint,
    pixels: Pixels,
    calibration: Calibration,
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
        export_onnx(
            checkpoint, tmp_path / "new.onnx", pixels, source="images", calibration=calibration
        )
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


def test_maps_that_differ() -> None:
    """By more than a thousandth of the largest value, or by NaN."""
    first = np.array([[[[0.0, -2.0], [1.0, 0.5]]]], np.float32)
    compare_maps("evidence", first, first + 0.0019)
    for wrong in (first + 0.0021, np.full_like(first, np.nan)):
        with pytest.raises(ParityError, match="evidence by up to"):
            compare_maps("evidence", first, wrong)


def test_drawn_patterns_where_the_data_is_not(
    checkpoint: Checkpoint,
    other_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With other data on this machine there is no calibration; the proof is made on patterns."""
    part = _part(checkpoint, "val", 3)
    assert part is not None
    assert len(part.ids) == 3
    assert _parity_images(part, 64, 2)[1] == "validation images"
    assert len(_parity_images(part, 64, 2)[0]) == 2
    monkeypatch.setenv("BIIGMA_HOME", str(other_home))
    assert _part(checkpoint, "val", 3) is None
    assert "not calibrated, no input check, and proven on drawn patterns" in capsys.readouterr().err
    drawn, source = _parity_images(None, 64, 3)
    assert source == "drawn patterns"
    assert (drawn.shape, drawn.dtype) == ((3, 64, 64, 3), np.uint8)
    assert drawn.std() > 20


# --- calibration -----------------------------------------------------------------------------


def test_the_temperature_is_that_of_the_whole_validation_part(
    session: Any, calibration: Calibration, checkpoint: Checkpoint, tiny_run: Path
) -> None:
    """From the logits that the file itself gives for those images; log loss falls."""
    part = _part(checkpoint, "val", None)
    assert part is not None
    assert calibration.images == len(part.ids) == checkpoint.meta["split"]["sizes"]["val"]
    (logits,) = session.run(["logits"], {"image": part.pixels})
    found = fit_calibration(logits, part.labels)
    assert found is not None
    assert found.temperature == pytest.approx(calibration.temperature, rel=1e-3)
    assert found.after.log_loss == pytest.approx(calibration.after.log_loss, abs=1e-4)
    assert abs(calibration.temperature - 1) > 0.05
    assert calibration.after.log_loss < calibration.before.log_loss
    assert calibration.summary() in (tiny_run / "proof.txt").read_text()


def test_without_calibration(
    checkpoint: Checkpoint, pixels: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--no-calibrate fits nothing and says so; the graph is then a plain softmax."""
    from biigma_cli.runtime import export as module

    given: dict[str, Any] = {}

    def export(*arguments: Any, **more: Any) -> Any:
        given.update(more, images=arguments[2])
        arguments[1].write_bytes(b"")
        ones = np.ones((1, 2), np.float32)
        return module.Exported(compare(ones, ones, source="images"), None)

    def fit(*_: Any, **__: Any) -> None:
        raise AssertionError("calibrated")

    monkeypatch.setattr(module, "export_onnx", export)
    monkeypatch.setattr(module, "calibrate", fit)
    file = tmp_path / "x.safetensors"
    save_checkpoint(file, checkpoint.tensors, checkpoint.meta)
    done = call("export", "onnx", "--checkpoint", file, "--no-calibrate", "--images", "2")
    assert done.code == 0, done.err
    assert given["calibration"] is None
    assert len(given["images"]) == 2
    assert "not calibrated" in done.out
    assert "calibration" not in metadata(checkpoint, None)
    with torch.inference_mode():
        p, logits = _Graph(load_model(checkpoint))(torch.from_numpy(pixels))[:2]
    np.testing.assert_allclose(p.numpy(), logits.softmax(1).numpy(), atol=1e-7)


def test_no_temperature_is_best(
    checkpoint: Checkpoint, pixels: Pixels, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part on which every answer is right gives none, which is said."""
    device = torch.device("cpu")
    right = predict_proba(load_model(checkpoint), pixels, device=device).argmax(1)
    assert calibrate(checkpoint, pixels, right, device=device) is None
    part = Part(ids=("a",) * 5, pixels=pixels, labels=right, groups=("a",) * 5)
    assert _calibrate(checkpoint, part, device) is None
    assert "no temperature is best" in capsys.readouterr().err


@pytest.mark.parametrize("value", [0, -1.5, "warm", None, "NaN"])
def test_damaged_temperature(tiny_onnx: Path, tmp_path: Path, value: Any) -> None:
    """A temperature that cannot be is a fault of the file."""
    proto = unsealed(tiny_onnx)
    entry = next(p for p in proto.metadata_props if p.key == "calibration")
    entry.value = json.dumps({**json.loads(entry.value), "temperature": value})
    onnx.save(proto, tmp_path / "odd.onnx")
    with pytest.raises(ModelFileError, match="damaged metadata"):
        Predictor(tmp_path / "odd.onnx", device="cpu")


def test_predict_says_so(tiny_onnx: Path, picture: Path, calibration: Calibration) -> None:
    """The note names T, the JSON form holds it."""
    done = call("predict", picture, "--model", tiny_onnx, "--format", "json", "--device", "cpu")
    assert f"calibrated (T = {calibration.temperature:.3f})" in done.err
    assert json.loads(done.out)["model"]["temperature"] == calibration.temperature


def test_card(stored: dict[str, Any], calibration: Calibration) -> None:
    """The card has the calibration and all figures; without, it warns of the probabilities."""

    def card(metadata: dict[str, Any]) -> str:
        return model_card("tiny", metadata, parameters=1, megabytes=1.0, commands=["x"])

    text = card(stored)
    assert f"T = {calibration.temperature:.4f}, fitted on the {calibration.images}" in text
    for value in (*calibration.before, *calibration.after):
        assert f"| {value:.4f} |" in text
    for name in ("macro_auc", "brier"):
        assert f"{stored['metrics']['test']['assessment']['overall'][name]['value']:.4f}" in text
    assert "sensitivity at 95% specificity" in text
    assert "are not calibrated" not in text
    older = {k: v for k, v in stored.items() if k != "calibration"}
    test = {k: v for k, v in stored["metrics"]["test"].items() if k != "assessment"}
    plain = card({**older, "metrics": {"test": test}})
    assert "are not calibrated" in plain
    assert "Brier" not in plain
    assert f"| macro-F1 | {test['macro_f1']:.4f} |" in plain
    assert "also trained on" not in text
    joined = {
        "dataset": "other", "protocol": "lesion-safe, seed 7", "data_hash": "abc",
        "split_hash": "d", "images": 12, "classes": {"NV": 8, "SK": 4}, "known": 1, "classless": {},
        "licence": "CC0-1.0", "citation": "The Others.",
    }  # fmt: skip
    text = card({**stored, "extra": [joined], "sources": [*stored["sources"], joined]})
    for words in (
        "12 images of other (8 NV, 4 SK)",
        "lesion-safe, seed 7",
        "The Others.",
        "CC0-1.0",
        "and one data set, other.",
        'never "healthy"',
    ):
        assert words in text


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
    proto = unsealed(tiny_onnx)
    entry = next(p for p in proto.metadata_props if p.key == "preprocessing")
    entry.value = json.dumps({**json.loads(entry.value), "resize": "crop-9"})
    onnx.save(proto, tmp_path / "other.onnx")
    with pytest.raises(ModelFileError, match="'crop-9'"):
        Predictor(tmp_path / "other.onnx", device="cpu")
