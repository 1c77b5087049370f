"""What `biigma predict` prints."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import ImageOps

from biigma_cli import __version__
from tests.conftest import call
from tests.data.samples import skin

CODES = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
MALIGNANT = {"MEL", "BCC", "AKIEC"}


@pytest.fixture(scope="module")
def answers(tiny_onnx: Path, tiny_ham: Path) -> dict[str, str]:
    """The same five images in each machine-readable form."""
    files = sorted(tiny_ham.rglob("*.jpg"))[::15][:5]
    shown = {}
    for form in ("json", "jsonl", "csv"):
        done = call(
            "predict", *files, "--model", tiny_onnx, "--format", form, "--topk", "2",
            "--device", "cpu", "-b", "2",
        )  # fmt: skip
        assert done.code == 0, done.err
        assert "not a medical device" in done.err
        shown[form] = done.out
    return shown


def test_formats_agree(answers: dict[str, str]) -> None:
    """JSON, JSON lines and CSV hold the same paths, answers and figures."""
    whole = json.loads(answers["json"])["predictions"]
    lines = [json.loads(line) for line in answers["jsonl"].splitlines()]
    rows = list(csv.DictReader(io.StringIO(answers["csv"])))
    assert len(whole) == 5
    assert lines == whole
    for item, row in zip(whole, rows, strict=True):
        assert (row["path"], row["label"], row["error"]) == (item["path"], item["label"], "")
        assert {c: float(row[c]) for c in CODES} == pytest.approx(item["probabilities"], abs=1e-6)
        assert float(row["malignant_probability"]) == pytest.approx(
            item["malignant_probability"], abs=1e-6
        )


def test_figures_are_consistent(answers: dict[str, str]) -> None:
    """Probabilities sum to 1; label, top and the malignant sum follow from them."""
    for item in json.loads(answers["json"])["predictions"]:
        p = item["probabilities"]
        assert list(p) == CODES
        assert sum(p.values()) == pytest.approx(1, abs=1e-5)
        best = sorted(p.values(), reverse=True)
        assert [t["probability"] for t in item["top"]] == best[:2]
        assert item["label"] == item["top"][0]["label"]
        assert p[item["label"]] == item["probability"] == best[0]
        malignant = sum(v for c, v in p.items() if c in MALIGNANT)
        assert item["malignant_probability"] == pytest.approx(malignant, abs=1e-5)


def test_model_is_named(answers: dict[str, str], tiny_onnx: Path) -> None:
    """Each record names the model; the JSON form adds protocol, licence and disclaimer."""
    whole = json.loads(answers["json"])
    digits = hashlib.sha256(tiny_onnx.read_bytes()).hexdigest()[:12]
    for records in (whole["predictions"], csv.DictReader(io.StringIO(answers["csv"]))):
        made = {(r["model"], r["version"], r["provider"]) for r in records}
        assert made == {(f"tiny@{digits}", __version__, "CPUExecutionProvider")}
    assert whole["model"]["name"] == "tiny"
    assert whole["model"]["id"] == f"tiny@{digits}"
    assert whole["summary"] == {"answered": 5, "failed": 0}
    assert "lesion-safe" in whole["model"]["protocol"]
    assert whole["model"]["licence"] == "CC-BY-NC-4.0"
    assert "medical device" in whole["disclaimer"]


def test_table(tiny_onnx: Path, picture: Path) -> None:
    """The table names file and answer; notes stay on stderr; no colour codes without a terminal."""
    done = call("predict", picture, "--model", tiny_onnx)
    assert done.code == 0
    assert "ISIC_0000000" in done.out.replace("\n", "")
    assert "medical device" not in done.out
    assert "\033" not in done.out


def test_topk_above_the_classes(tiny_onnx: Path, picture: Path) -> None:
    """More classes than there are gives all of them."""
    done = call("predict", picture, "--model", tiny_onnx, "--format", "jsonl", "--topk", "99")
    assert sorted(t["label"] for t in json.loads(done.out)["top"]) == sorted(CODES)


def test_folder(tiny_onnx: Path, tiny_ham: Path) -> None:
    """A folder stands for the images below it, in order."""
    done = call("predict", tiny_ham, "--model", tiny_onnx, "--format", "csv")
    paths = [r["path"] for r in csv.DictReader(io.StringIO(done.out))]
    assert paths == [str(p) for p in sorted(tiny_ham.rglob("*.jpg"))]


def test_output_file(tiny_onnx: Path, picture: Path, tmp_path: Path) -> None:
    """-o writes what stdout would have had, whole, and leaves nothing else behind."""
    target = tmp_path / "new" / "out.csv"
    common = ("predict", picture, "--model", tiny_onnx, "--format", "csv")
    done = call(*common, "-o", target)
    assert (done.code, done.out) == (0, "")
    assert target.read_text() == call(*common, "-o", "-").out
    assert list(target.parent.iterdir()) == [target]
    assert target.stat().st_mode & 0o444


def test_model_from_the_environment(
    tiny_onnx: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BIIGMA_MODEL stands in for --model."""
    monkeypatch.setenv("BIIGMA_MODEL", str(tiny_onnx))
    answer = json.loads(call("predict", picture, "--format", "jsonl").out)
    assert answer["model"].startswith("tiny@")


def test_predict_loads_no_torch(
    tiny_onnx: Path, picture: Path, bare_environment: dict[str, str]
) -> None:
    """A whole prediction in a fresh process, without torch."""
    script = f"""
import sys
from biigma_cli.__main__ import main
sys.argv = ["biigma", "predict", {str(picture)!r}, "--model", {str(tiny_onnx)!r}]
try:
    main()
except SystemExit as end:
    assert end.code in (0, None), end.code
assert "onnxruntime" in sys.modules
loaded = {{"torch", "torchvision", "sklearn"}} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=bare_environment
    )
    assert done.returncode == 0, done.stderr
    assert "ISIC_0000000" in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_reader_gone(tiny_onnx: Path, picture: Path, bare_environment: dict[str, str]) -> None:
    """A reader that closes the pipe (`| head`) causes no traceback."""
    process = subprocess.Popen(
        [sys.executable, "-m", "biigma_cli", "predict", str(picture), "--model", str(tiny_onnx),
         "--format", "jsonl"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=bare_environment,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    told = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    assert "Traceback" not in told
    assert "Exception ignored" not in told


def test_a_border_is_left_out(tiny_onnx: Path, tmp_path: Path) -> None:
    """The answer is the bare picture's and a note says so; kept, it is another, and recorded."""
    bare = skin(90, 60)
    bare.save(tmp_path / "bare.png")
    ImageOps.expand(bare, (30, 20, 0, 0), "black").save(tmp_path / "framed.png")
    common = ("--model", tiny_onnx, "--device", "cpu", "--format", "jsonl")
    done = call("predict", tmp_path / "bare.png", tmp_path / "framed.png", *common)
    assert done.code == 0, done.err
    plain, framed = (json.loads(line) for line in done.out.splitlines())
    assert framed["probabilities"] == plain["probabilities"]
    assert framed["note"] == "a black border was left out (44% of the picture)"
    assert "note" not in plain
    done = call("predict", tmp_path / "framed.png", "--keep-border", *common)
    kept = json.loads(done.out)
    assert kept["probabilities"] != framed["probabilities"]
    assert "note" not in kept
    assert kept["settings"] == {**framed["settings"], "keep_border": 1}


def test_resuming_with_and_without_borders(tiny_onnx: Path, tmp_path: Path) -> None:
    """Rows of the one are none of the other's."""
    (tmp_path / "in").mkdir()
    skin(90, 60).save(tmp_path / "in" / "one.png")
    common = ("--model", tiny_onnx, "--device", "cpu", "-o", tmp_path / "out.csv")
    assert call("predict", tmp_path / "in", *common).code == 0
    done = call("predict", tmp_path / "in", *common, "--resume", "--keep-border")
    assert done.code == 3
    assert "settings none, not keep_border=1" in done.err
