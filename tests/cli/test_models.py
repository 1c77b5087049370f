"""`biigma models`: what ships, and what a file says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from biigma_cli.runtime import session
from biigma_cli.runtime.session import DEFAULT_MODEL
from tests.conftest import call, unsealed
from tests.runtime.test_pipeline import toy_model


def test_all_that_ship() -> None:
    """Each with its size, precision, classes, figures beside their protocol, and check."""
    shown = call("models").out
    assert f"{DEFAULT_MODEL} (default)\n  mixed precisions, 15.9 MB" in shown
    assert "the mean of 2 networks: lite0-corners, biigma-light-isic18" in shown
    assert "biigma-light-isic18\n  float32, 15.8 MB" in shown
    assert "biigma-edge-isic18\n  int8, 4.6 MB" in shown
    assert "biigma-lite0-isic17\n  float16 weights, 10.4 MB, images of 224 x 224" in shown
    assert "biigma-light-isic17\n  int8, 4.5 MB, images of 224 x 224, CC-BY-NC-4.0" in shown
    assert "classes: MEL, NV, BCC, AKIEC, BKL, DF, VASC" in shown
    assert "classes: MEL, SK, NV" in shown
    assert "classes: SK, OTHER" in shown
    assert "test part, 2006 images: accuracy 0.823 (0.801-0.844), macro-F1 0.710" in shown
    assert "test part, 2006 images: accuracy 0.819 (0.798-0.840), macro-F1 0.710" in shown
    assert "test part, 2006 images: accuracy 0.811 (0.789-0.833), macro-F1 0.691" in shown
    assert "test part, 2006 images: accuracy 0.802 (0.779-0.824), macro-F1 0.662" in shown
    assert "test part, 430 images: accuracy 0.747" in shown
    assert "test part, 2006 images: accuracy 0.768" in shown
    assert "test part, 430 images: accuracy 0.777" in shown
    assert "with --max-error 0.05: 52% (3.5%), 0.1: 71% (7.8%), 0.15: 87% (12.8%), 0.2: " in shown
    assert shown.count("answered of the test part (of these wrong) with --max-error") == 8
    assert shown.count("lesion-safe") == shown.count("input check: flags ") == 8
    assert shown.count("has also learnt from images of: isic17") == 5
    assert shown.count("has also learnt from images of: isic18") == 3
    found = {m["name"]: m for m in json.loads(call("models", "--json").out)}
    assert [m["default"] for m in found.values()].count(True) == 1
    assert found["biigma-edge-isic18"]["precision"] == "int8"
    assert found["biigma-light-isic17"]["sources"] == ["isic17", "isic18"]
    assert found[DEFAULT_MODEL]["id"].startswith(f"{DEFAULT_MODEL}@")


def test_a_file(tiny_onnx: Path, tmp_path: Path) -> None:
    """A user's own export; one without figures says so; what is no model is refused."""
    shown = call("models", tiny_onnx).out
    assert shown.startswith("tiny\n  float32, ")
    assert "(default)" not in shown
    assert "no input check" in shown
    proto = unsealed(tiny_onnx)
    for item in proto.metadata_props:
        if item.key == "metrics":
            item.value = "{}"
    onnx.save(proto, tmp_path / "bare.onnx")
    assert "no test figures" in call("models", tmp_path / "bare.onnx").out
    done = call("models", "resnet")
    assert done.code == 3
    assert DEFAULT_MODEL in done.err


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": "abc"}, {"classes": ["MEL", "MEL", "NV"]}, {"classes": ["MEL", "", "NV"]},
        {"classes": ["MEL", 3, "NV"]}, {"classes": {"MEL": 1, "NV": 2, "BCC": 3}},
        {"class_names": "abc"}, {"malignant": "abc"}, {"export": []}, {"input_check": [1]},
        {"input_check": {}}, {"input_check": {"validation": 3}}, {"metrics": []},
        {"metrics": {"test": {"n": 3}}}, {"members": 3}, {"sources": [{}]},
        {"metrics": {"test": {"n": 3, "intervals": {
            k: {"value": "x", "low": None} for k in ("accuracy", "macro_f1", "macro_recall")}}}},
    ],
)  # fmt: skip
def test_damaged_metadata(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Whatever is wrong in it: one message."""
    done = call("models", toy_model(tmp_path / "odd.onnx", **changes))
    assert (done.code, done.out) == (3, "")
    assert f"{tmp_path / 'odd.onnx'} has damaged metadata: " in done.err


def test_one_that_is_damaged_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are listed, it is named with what brings it back, and the exit code says so."""
    for name in ("good", "bad"):
        toy_model(tmp_path / f"{name}.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"junk")
    monkeypatch.setattr(session, "models_dir", lambda: tmp_path)
    for more in ((), ("--json",)):
        done = call("models", *more)
        assert done.code == 5
        assert "good" in done.out
        assert "bad" not in done.out
        assert f"{tmp_path / 'bad.onnx'} is not a model" in done.err
        assert "1 of 2 models cannot be used" in done.err
        assert "force-reinstall" in done.err
