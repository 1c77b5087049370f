"""`biigma models`: what ships, and what a file says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import onnx

from biigma_cli.runtime.session import DEFAULT_MODEL
from tests.conftest import call


def test_all_that_ship() -> None:
    """Each with its size, precision, classes, figures beside their protocol, and check."""
    shown = call("models").out
    assert f"{DEFAULT_MODEL} (default)\n  float32, 15.8 MB" in shown
    assert f"{DEFAULT_MODEL}-int8\n  int8, 4.5 MB" in shown
    assert "classes: MEL, NV, BCC, AKIEC, BKL, DF, VASC" in shown
    assert "test part, 2006 images: accuracy 0.814 (0.792-0.836), macro-F1 0.702" in shown
    assert "test part, 2006 images, in float32: accuracy 0.814" in shown
    assert shown.count("lesion-safe") == shown.count("input check: flags 0.5% of 1007") == 2
    found = {m["name"]: m for m in json.loads(call("models", "--json").out)}
    assert [m["default"] for m in found.values()].count(True) == 1
    assert found[f"{DEFAULT_MODEL}-int8"]["precision"] == "int8"
    assert found[DEFAULT_MODEL]["id"].startswith(f"{DEFAULT_MODEL}@")


def test_a_file(tiny_onnx: Path, tmp_path: Path) -> None:
    """A user's own export; one without figures says so; what is no model is refused."""
    shown = call("models", tiny_onnx).out
    assert shown.startswith("tiny\n  float32, ")
    assert "(default)" not in shown
    assert "no input check" in shown
    proto = onnx.load(tiny_onnx)
    for item in proto.metadata_props:
        if item.key == "metrics":
            item.value = "{}"
    onnx.save(proto, tmp_path / "bare.onnx")
    assert "no test figures" in call("models", tmp_path / "bare.onnx").out
    done = call("models", "resnet")
    assert done.code == 3
    assert DEFAULT_MODEL in done.err
