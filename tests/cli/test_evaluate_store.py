"""`biigma eval --store`: an exported file states its own figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

from biigma_cli.report.card import model_card
from biigma_cli.runtime.session import Predictor
from tests.conftest import call, unsealed

FAST = ("--resamples", "40", "--device", "cpu")


def decoded(path: Path) -> dict[str, Any]:
    """A file's metadata."""
    return Predictor(path, device="cpu").info.metadata


@pytest.fixture
def lower(tiny_onnx: Path, tmp_path: Path) -> Path:
    """A file that says it is of a lower precision, with changed figures and a card."""
    proto = unsealed(tiny_onnx)
    for entry in proto.metadata_props:
        if entry.key == "export":
            entry.value = json.dumps({"precision": "fp16"})
        if entry.key == "metrics":
            figures = json.loads(entry.value)
            figures["test"]["intervals"]["accuracy"]["value"] = 0.123
            figures["val"] = figures["test"]
            entry.value = json.dumps(figures)
    path = tmp_path / "lower.onnx"
    onnx.save(proto, path)
    card = model_card("lower", decoded(path), parameters=1, megabytes=1.0, commands=["x"])
    path.with_suffix(".md").write_text(card + "\n## By hand\n\nkept\n", encoding="utf-8")
    return path


def test_the_files_own_figures(lower: Path) -> None:
    """They replace those of that part alone, in the file and in its card; all else stays."""
    before, old = onnx.load(lower), decoded(lower)
    card = lower.with_suffix(".md")
    first = card.read_text(encoding="utf-8")
    assert first.count("Of the network in float32, not of this file.") == 2
    assert "in float32: accuracy 0.123" in call("models", lower).out
    done = call("eval", "--model", lower, "--store", "--json", *FAST)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert f"saved in {lower}" in done.err
    assert f"saved in {card}" in done.err

    after, new = onnx.load(lower), decoded(lower)
    assert after.graph == before.graph
    assert {k for k in new if new[k] != old.get(k)} == {"metrics", "content_digest"}
    assert new["metrics"]["val"] == old["metrics"]["val"]
    stored = new["metrics"]["test"]
    assert stored["judged"] == "file"
    assert stored["intervals"] == found["intervals"]
    assert stored["temperature"] == found["temperature"] is not None
    assert "model" not in stored
    accuracy = found["intervals"]["accuracy"]["value"]
    assert f"images: accuracy {accuracy:.3f} (" in call("models", lower).out
    assert json.loads(call("models", lower, "--json").out)[0]["test"]["judged"] == "file"

    text = card.read_text(encoding="utf-8")
    start, rest = text.split("### test part, ")
    section, limits = rest.split("## Limits")
    assert f"| accuracy | {accuracy:.4f} |" in section
    assert "Measured with this file, calibrated." in section
    assert start == first.split("### test part, ")[0]
    assert limits == first.split("## Limits")[1]


def test_again(lower: Path) -> None:
    """The same figures twice leave the same file and card."""
    assert call("eval", "--model", lower, "--store", *FAST).code == 0
    before = [p.read_bytes() for p in (lower, lower.with_suffix(".md"))]
    assert call("eval", "--model", lower, "--store", *FAST).code == 0
    assert [p.read_bytes() for p in (lower, lower.with_suffix(".md"))] == before


def test_a_card_of_ones_own(lower: Path) -> None:
    """One without such a section is left alone, and that is said; where none is, none is made."""
    card = lower.with_suffix(".md")
    card.write_text("# mine\n", encoding="utf-8")
    done = call("eval", "--model", lower, "--store", *FAST)
    assert done.code == 0, done.err
    assert f"{card} has no section for figures" in done.err
    assert card.read_text(encoding="utf-8") == "# mine\n"
    card.unlink()
    assert call("eval", "--model", lower, "--store", *FAST).code == 0
    assert not card.exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--split", "train"), "say nothing of others"),
        (("--tta",), "not those of --tta"),
        (("--resamples", "0"), "not those of --resamples 0"),
    ],
)
def test_other_figures_are_refused(lower: Path, options: tuple[str, ...], word: str) -> None:
    """At once, and the file stays as it was."""
    before = lower.read_bytes()
    done = call("eval", "--model", lower, "--store", "--device", "cpu", *options)
    assert done.code == 2
    assert word in done.err
    assert done.err.count("fix:") == 1
    assert lower.read_bytes() == before


def test_a_run_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    """A run's figures are kept in its folder; what to do is said."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    done = call("eval", "--run", run, "--store", *FAST)
    assert done.code == 2
    assert "is no exported file" in done.err
    assert "--model FILE.onnx --store" in done.err


def test_figures_without_intervals_are_listed(lower: Path) -> None:
    """`biigma eval --resamples 0` before an export leaves a file whose figures stand alone."""
    proto = unsealed(lower)
    for entry in proto.metadata_props:
        if entry.key == "metrics":
            figures = json.loads(entry.value)
            for figure in figures["test"]["intervals"].values():
                figure.update(low=None, high=None)
            entry.value = json.dumps(figures)
    onnx.save(proto, lower)
    done = call("models", lower)
    assert done.code == 0, done.err
    assert "in float32: accuracy 0.123, macro-F1 0." in done.out
