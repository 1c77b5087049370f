"""`biigma explain`: its figures, its files and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image, ImageOps
from typer.testing import CliRunner

from biigma_cli.cli import explain as command
from biigma_cli.cli import explain_records
from biigma_cli.core.weights import load_checkpoint
from biigma_cli.data.preprocess import load_image
from biigma_cli.errors import BiigmaError, ModelFileError
from biigma_cli.judge import open_candidate
from biigma_cli.report import explanation
from biigma_cli.runtime.inputs import Source
from biigma_cli.runtime.session import Predictor
from tests.conftest import Outcome, call, unsealed
from tests.data.samples import skin

CODES = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]


def refused(done: Outcome, *words: str, code: int) -> None:
    """One error, its fix, nothing on stdout."""
    assert done.code == code, done.err
    assert done.out == ""
    assert done.err.count("error:") == 1
    assert done.err.count("fix:") == 1
    for word in words:
        assert word in done.err


@pytest.fixture(scope="module")
def files(tiny_ham: Path) -> list[Path]:
    """Two images."""
    return sorted(tiny_ham.rglob("*.jpg"))[5:40:20]


@pytest.fixture(scope="module")
def bare_onnx(tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As an earlier version exported it: without evidence."""
    model = unsealed(tiny_onnx)
    kept = [output for output in model.graph.output if output.name != "evidence"]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    path = tmp_path_factory.mktemp("bare") / "bare.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def explained(
    tiny_run: Path, tiny_onnx: Path, files: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the export and its checkpoint say of the same images; a mask on the left half."""
    folder = tmp_path_factory.mktemp("explained")
    for path in files:
        with Image.open(path) as image:
            half = np.zeros(image.size[::-1], np.uint8)
        half[:, : half.shape[1] // 2] = 255
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(half).save(folder / "masks" / f"{path.stem}_segmentation.png")
    told = {"folder": folder}
    for name, model in (("onnx", ("--model", tiny_onnx)), ("run", ("--run", tiny_run))):
        done = call(
            "explain", *files, *model, "--json", "--mask", folder / "masks", "-o", folder / name,
            "--maps", folder / name / "raw", "--device", "cpu",
        )  # fmt: skip
        assert done.code == 0, done.err
        told[name] = json.loads(done.out)
    return told


def test_sums(explained: dict[str, Any], tiny_run: Path) -> None:
    """The bias that is left over is the head's own, for each image and both kinds of model."""
    stored = load_checkpoint(tiny_run / "weights" / "best.safetensors")
    bias = stored.tensors["model.head.bias"].tolist()
    for name in ("onnx", "run"):
        assert len(explained[name]["explanations"]) == 2
        for item in explained[name]["explanations"]:
            own = item["evidence"]
            assert (
                own["class"]
                == item["label"]
                == max(item["probabilities"], key=item["probabilities"].__getitem__)
            )
            assert own["bias"] == pytest.approx(bias[CODES.index(own["class"])], abs=1e-3)
            assert own["sum"] + own["bias"] == pytest.approx(own["logit"])
            assert own["for"] + own["against_it"] == pytest.approx(own["sum"])
            assert own["inside"] + own["outside"] == pytest.approx(own["sum"])
            assert 0 < own["share_inside"] < 1
            assert item["lesion_area"] == pytest.approx(0.5, abs=0.02)
            assert item["saliency"]["low"] <= item["saliency"]["mean"] <= item["saliency"]["high"]


def test_both_kinds_of_model_agree(explained: dict[str, Any]) -> None:
    """Maps and figures of the export are those of its checkpoint; the temperature is its own."""
    first, second = explained["onnx"], explained["run"]
    assert first["model"]["temperature"] is not None
    assert second["model"]["temperature"] is None
    for a, b in zip(first["explanations"], second["explanations"], strict=True):
        assert a["label"] == b["label"]
        for part in ("saliency", "evidence"):
            for name, value in a[part].items():
                other = b[part][name]
                assert value == (pytest.approx(other, abs=2e-3) if name != "class" else other)
        with np.load(a["maps"]) as x, np.load(b["maps"]) as y:
            assert set(x) == set(y)
            np.testing.assert_allclose(x["evidence"], y["evidence"], atol=1e-3)
            np.testing.assert_allclose(x["saliency"], y["saliency"], atol=1e-3)


def test_raw_maps(explained: dict[str, Any], tiny_onnx: Path, files: list[Path]) -> None:
    """They are the model's own outputs, and say where they lie."""
    predictor = Predictor(tiny_onnx, device="cpu")
    for path, item in zip(files, explained["onnx"]["explanations"], strict=True):
        answer = predictor(load_image(path, predictor.info.side)[None])
        with np.load(item["maps"]) as raw:
            assert list(raw["classes"]) == CODES
            np.testing.assert_allclose(raw["evidence"], answer.evidence_BYHW[0], atol=1e-4)
            np.testing.assert_allclose(raw["saliency"], answer.saliency_BHW[0], atol=1e-4)
            np.testing.assert_allclose(raw["logits"], answer.logits_BY[0], atol=1e-4)
            assert raw["size"].tolist() == [64, 48]
            assert raw["square"].tolist() == [0, 0, 64, 48]
            assert raw["first_centre"] == 0.5


def test_pictures(explained: dict[str, Any]) -> None:
    """One for each image, of three panels, and nothing else."""
    items = explained["run"]["explanations"]
    paths = [Path(item["picture"]) for item in items]
    folder = explained["folder"] / "run"
    assert sorted(p for p in folder.iterdir() if p.is_file()) == sorted(paths)
    for path in paths:
        with Image.open(path) as image:
            assert image.width > 1500
            assert np.asarray(image.convert("L")).std() > 10


def test_contrast(tiny_onnx: Path, files: list[Path], tmp_path: Path) -> None:
    """The difference of two classes' evidence; names in any case; SVG."""
    common = ("explain", files[0], "--model", tiny_onnx, "--what", "evidence", "--json", "--format",
              "svg", "-o", tmp_path)  # fmt: skip
    told = {}
    for name, option in (
        ("both", ("--contrast", "bkl, MEL")), ("bkl", ("--class", "bkl")),
        ("mel", ("--class", "MEL")),
    ):  # fmt: skip
        done = call(*common, *option)
        assert done.code == 0, done.err
        told[name] = json.loads(done.out)["explanations"][0]["evidence"]
        if name == "both":
            drawn = (tmp_path / f"{files[0].stem}.svg").read_text()
    assert (told["both"]["class"], told["both"]["against"]) == ("BKL", "MEL")
    for figure in ("logit", "bias", "sum"):
        assert told["both"][figure] == pytest.approx(
            told["bkl"][figure] - told["mel"][figure], abs=1e-9
        )
    assert "adds to logit BKL - logit MEL, per position of 2 x 2" in drawn
    assert "Saliency" not in drawn


def test_lines(tiny_onnx: Path, files: list[Path], tmp_path: Path) -> None:
    """A line for each file, in order; the rest is on stderr."""
    done = call("explain", *files, "--model", tiny_onnx, "-o", tmp_path)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert len(lines) == 2
    for line, path in zip(lines, files, strict=True):
        assert line.startswith(f"{path}: ")
        assert line.endswith(f"; {tmp_path / path.stem}.png")
        assert "evidence for " in line
    assert "not a medical device" in done.err


def test_same_names(tiny_onnx: Path, files: list[Path], tmp_path: Path) -> None:
    """Each input has a picture of its own; those of an earlier run are replaced, not explained."""
    for name in ("a/x.jpg", "b/X.jpg", "b/x-2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(files[0], tmp_path / name)
    out = tmp_path / "out"
    for _ in range(2):
        done = call("explain", tmp_path, "--model", tiny_onnx, "-o", out, "--what", "saliency")
        assert done.code == 0, done.err
        assert sorted(p.name for p in out.iterdir()) == ["X-3.png", "x-2.png", "x.png"]
        assert [line.split("; ")[-1] for line in done.out.splitlines()] == [
            str(out / name) for name in ("x.png", "X-3.png", "x-2.png")
        ]


def test_a_bad_file_among_others(tiny_onnx: Path, files: list[Path], tmp_path: Path) -> None:
    """It costs its own line."""
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(files[0].read_bytes()[:500])
    common = ("--model", tiny_onnx, "-o", tmp_path / "out", "--what", "saliency")
    done = call("explain", files[0], bad, tmp_path / "gone.png", files[1], "--json", *common)
    assert done.code == 5, done.err
    items = json.loads(done.out)["explanations"]
    assert ["error" in item for item in items] == [False, True, True, False]
    assert "bad.jpg" in items[1]["error"]
    assert "2 ok, 2 failed" in done.err
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert json.loads(done.out)["summary"] == {"explained": 2, "failed": 2, "left": 0}
    refused(call("explain", bad, *common), "bad.jpg", code=3)
    done = call("explain", bad, tmp_path / "gone.png", "--json", *common)
    assert done.code == 3
    assert done.out == ""
    assert "none of 2 images could be explained" in done.err


def test_without_evidence(bare_onnx: Path, files: list[Path], tmp_path: Path) -> None:
    """An earlier export says how to get it, and still shows its saliency map."""
    common = ("explain", files[0], "--model", bare_onnx, "-o", tmp_path / "out")
    refused(call(*common), "gives no evidence", "export onnx", "--what saliency", code=3)
    assert not (tmp_path / "out").exists()
    done = call(*common, "--what", "saliency")
    assert done.code == 0, done.err
    assert "evidence for" not in done.out


@pytest.mark.parametrize("lost", ["", "model", "data", "trunk"])
def test_metadata_without_its_config(
    tiny_onnx: Path, files: list[Path], tmp_path: Path, lost: str
) -> None:
    """The missing part is named, by `explain` and where a model is judged."""
    proto = unsealed(tiny_onnx)
    entry = next(p for p in proto.metadata_props if p.key == "config")
    config = json.loads(entry.value)
    config.pop(lost, None)
    config["model"] = config.get("model") and {
        k: v for k, v in config["model"].items() if k != lost
    }
    entry.value = json.dumps(config)
    if not lost:
        proto.metadata_props.remove(entry)
    path = tmp_path / "odd.onnx"
    onnx.save(proto, path)
    if lost != "data":
        done = call("explain", files[0], "--model", path, "-o", tmp_path, "--device", "cpu")
        refused(done, "odd.onnx does not say its config", lost, code=3)
    with pytest.raises(ModelFileError, match=rf"odd\.onnx does not say its config.*{lost}"):
        open_candidate(path, torch.device("cpu"))


def test_a_graph_that_is_not_what_it_says(
    tiny_onnx: Path, files: list[Path], tmp_path: Path
) -> None:
    """`explain` looks before the first image, as `predict` does."""
    proto = unsealed(tiny_onnx)
    entry = next(p for p in proto.metadata_props if p.key == "class_names")
    entry.value = json.dumps(json.loads(entry.value)[:-1])
    path = tmp_path / "odd.onnx"
    onnx.save(proto, path)
    done = call("explain", files[0], "--model", path, "-o", tmp_path, "--device", "cpu")
    refused(done, "odd.onnx is damaged", "different lengths", code=3)


def test_masks(tiny_onnx: Path, files: list[Path], tmp_path: Path) -> None:
    """Of another shape, empty, missing or several images' one: said; 0 and 1 do as well as 255, and
    a lesion drawn on nothing."""
    common = ("--model", tiny_onnx, "-o", tmp_path / "out", "--what", "saliency", "--json")
    shares = {}
    for name, white in (("wide", 255), ("empty", 0), ("one", 1), ("full", 255)):
        values = np.zeros((48, 96 if name == "wide" else 64), np.uint8)
        values[:20] = white
        Image.fromarray(values).save(tmp_path / f"{name}.png")
        done = call("explain", files[0], "--mask", tmp_path / f"{name}.png", *common)
        if name == "wide":
            refused(done, "mask 96x48, picture 64x48 pixels", code=3)
        elif name == "empty":
            refused(done, "shows no lesion", code=3)
        else:
            assert done.code == 0, done.err
            shares[name] = json.loads(done.out)["explanations"][0]["saliency"]["share_inside"]
    drawn = np.zeros((48, 64, 4), np.uint8)
    drawn[:20] = 255
    Image.fromarray(drawn).save(tmp_path / "alpha.png")
    done = call("explain", files[0], "--mask", tmp_path / "alpha.png", *common)
    shares["alpha"] = json.loads(done.out)["explanations"][0]["saliency"]["share_inside"]
    assert shares["one"] == pytest.approx(shares["full"], abs=0.01)
    assert shares["alpha"] == pytest.approx(shares["full"], abs=0.01)
    (tmp_path / "none").mkdir()
    done = call("explain", files[0], "--mask", tmp_path / "none", *common)
    lacking = f"{tmp_path / 'none'} holds no mask of {files[0]}: neither {files[0].stem}_segm"
    refused(done, lacking, f"nor {files[0].stem}.png", code=3)
    (tmp_path / "text.png").write_text("no picture")
    done = call("explain", files[0], "--mask", tmp_path / "text.png", *common)
    refused(done, "text.png is not an image", "give a JPEG, PNG", code=3)
    done = call("explain", *files, "--mask", tmp_path / "one.png", *common)
    refused(done, "one mask for 2 images", code=2)


def test_a_picture_for_a_mask(tiny_onnx: Path, files: list[Path], tmp_path: Path) -> None:
    """Another photograph, the image itself, and a folder of such: refused, nothing is drawn."""
    common = ("--model", tiny_onnx, "-o", tmp_path / "out")
    for mask in files[::-1]:
        done = call("explain", files[0], "--mask", mask, *common)
        refused(done, f"{mask.name} is a picture, not a lesion mask", "black beside it", code=3)
    (tmp_path / "masks").mkdir()
    with Image.open(files[1]) as image:
        image.convert("L").save(tmp_path / "masks" / f"{files[0].stem}.png")
    half = np.zeros((48, 64), np.uint8)
    half[:, :32] = 255
    Image.fromarray(half).save(tmp_path / "masks" / f"{files[1].stem}.png")
    assert not (tmp_path / "out").exists()
    done = call("explain", *files, "--mask", tmp_path / "masks", *common)
    assert done.code == 5, done.err
    assert f"{files[0].stem}.png is a picture, not a lesion mask" in done.err
    assert [p.stem for p in (tmp_path / "out").iterdir()] == [files[1].stem]


def test_a_mask_that_is_all_lesion(tiny_onnx: Path, files: list[Path], tmp_path: Path) -> None:
    """Said in the line and the JSON; no share of what lies inside is given."""
    Image.new("L", (64, 48), 255).save(tmp_path / "full.png")
    ask = (
        "explain", files[0], "--model", tiny_onnx, "-o", tmp_path / "out", "--mask",
        tmp_path / "full.png",
    )  # fmt: skip
    words = "the mask shows nothing but lesion"
    done = call(*ask)
    assert done.code == 0, done.err
    assert f"; {words}" in done.out
    (item,) = json.loads(call(*ask, "--json").out)["explanations"]
    assert item["note"].startswith(words)
    assert item["lesion_area"] == 1
    assert item["evidence"]["share_inside"] is None
    assert item["saliency"]["share_inside"] is None
    assert item["evidence"]["inside"] == pytest.approx(item["evidence"]["sum"])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--what", "all"), "--what 'all'"),
        (("--format", "pdf"), "--format 'pdf'"),
        (("--class", "MEL", "--contrast", "MEL,NV"), "both --class and --contrast"),
        (("--class", "XYZ"), "no class 'XYZ'"),
        (("--contrast", "MEL"), "does not name two classes"),
        (("--contrast", "MEL,mel"), "names one class twice"),
        (("--what", "saliency", "--class", "MEL"), "the same for every class"),
        (("--run", "r", "--model", "m"), "both --run and --model"),
        (("-",), "- stands for stdin, alone"),
    ],
)
def test_options(
    tiny_onnx: Path, picture: Path, tmp_path: Path, options: tuple[str, ...], word: str
) -> None:
    """Refused before anything is read."""
    model = () if "--model" in options else ("--model", tiny_onnx)
    refused(call("explain", picture, *model, "-o", tmp_path / "out", *options), word, code=2)
    assert not (tmp_path / "out").exists()


def test_targets(tiny_onnx: Path, picture: Path, tmp_path: Path) -> None:
    """No input is replaced, and where nothing can be written is said before the work."""
    own = tmp_path / "x.png"
    with Image.open(picture) as image:
        image.save(own)
    before = own.read_bytes()
    common = ("explain", own, "--model", tiny_onnx)
    refused(call(*common, "-o", tmp_path), "would be replaced", code=2)
    assert own.read_bytes() == before
    refused(call(*common, "-o", own), "cannot write", code=2)
    refused(call(*common, "-o", tmp_path / "o", "--maps", own), "cannot write", code=2)


def test_what_the_input_check_flags(picture: Path, tmp_path: Path) -> None:
    """Answered as `predict` does, in the JSON, the line and the picture; the option puts it off."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::8] = 255
    other = tmp_path / "stripes.gif"
    still = Image.fromarray(stripes)
    still.save(other, save_all=True, append_images=[still.rotate(90)])
    common = (other, "--model", "biigma-edge-isic18", "--device", "cpu")
    told = json.loads(call("predict", *common, "--format", "json").out)["predictions"][0]
    ask = ("explain", *common, "-o", tmp_path / "out", "--format", "svg")
    done = call(*ask, "--json")
    assert done.code == 0, done.err
    (item,) = json.loads(done.out)["explanations"]
    assert item["label"] == "not dermoscopy"
    for key in ("label", "name", "probability", "probabilities", "novelty", "note"):
        assert item[key] == told[key], key
    assert "1 of 1 flagged as not dermoscopy" in done.err
    best = max(item["probabilities"], key=item["probabilities"].__getitem__)
    drawn = (tmp_path / "out" / "stripes.svg").read_text(encoding="utf-8")
    assert f"Answer: not dermoscopy ({best}, " in drawn
    line = call(*ask).out
    assert f"stripes.gif: not dermoscopy ({best}?) " in line
    assert "the first of several frames" in line
    off = json.loads(call(*ask, "--json", "--no-input-check").out)["explanations"][0]
    assert off["label"] == best
    assert "novelty" not in off


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_links_in_a_circle(tiny_onnx: Path, picture: Path, tmp_path: Path) -> None:
    """A link to itself costs its own line; a name with a null byte, too."""
    shutil.copy(picture, tmp_path / "a.jpg")
    (tmp_path / "b.jpg").symlink_to("b.jpg")
    done = call("explain", tmp_path, "--model", tiny_onnx, "-o", tmp_path / "out")
    assert done.code == 5, done.err
    assert "b.jpg" in done.err
    refused(call("explain", "a\0.jpg", "--model", tiny_onnx, "-o", tmp_path / "out"), code=2)


@pytest.mark.skipif(os.name == "nt", reason="POSIX lengths")
def test_long_names(tiny_onnx: Path, picture: Path, tmp_path: Path) -> None:
    """As long as names may be, in letters of three bytes: cut, then numbered."""
    for end in ("x", "y"):
        shutil.copy(picture, tmp_path / f"{'黒' * 81}xxxxxx{end}.jpg")
    (tmp_path / "masks").mkdir()
    common = ("--model", tiny_onnx, "--maps", tmp_path / "out")
    done = call("explain", tmp_path, *common, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == sorted(f"{'黒' * 66}{n}.{k}" for n in ("", "-2") for k in ("npz", "png"))
    done = call("explain", tmp_path, *common, "-o", tmp_path / "out", "--mask", tmp_path / "masks")
    assert done.code == 3
    assert "Traceback" not in done.err


@pytest.mark.skipif(os.name == "nt", reason="names of any bytes")
def test_odd_names(tiny_onnx: Path, picture: Path, tmp_path: Path) -> None:
    """A name that is no text, and one that is a formula and a line of its own."""
    names = [os.fsdecode(b"\xff\xfe.jpg"), "a$\\frac$\nb.jpg"]
    for name in names:
        shutil.copy(picture, tmp_path / name)
    done = call(
        "explain", *(tmp_path / n for n in names), "--model", tiny_onnx, "-o", tmp_path / "out",
        "--what", "saliency",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 2
    assert len(list((tmp_path / "out").iterdir())) == 2


# --- standard input --------------------------------------------------------------------------


def piped(stdin: bytes, *arguments: str | Path) -> Outcome:
    """`biigma explain -` in this process."""
    from biigma_cli.cli.app import app

    result = CliRunner().invoke(app, ["explain", "-", *map(str, arguments)], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def test_an_image_on_stdin(tiny_onnx: Path, files: list[Path], tmp_path: Path) -> None:
    """The figures and maps of the file, under the name that `predict` has for it."""
    half = np.zeros((48, 64), np.uint8)
    half[:, :32] = 255
    Image.fromarray(half).save(tmp_path / "half.png")
    common = ("--model", tiny_onnx, "--mask", tmp_path / "half.png", "--maps", tmp_path / "raw")
    told = call("explain", files[0], *common, "-o", tmp_path / "a", "--json")
    content = files[0].read_bytes()
    done = piped(content, *common, "-o", tmp_path / "b", "--json")
    assert done.code == 0, done.err
    (wanted,) = json.loads(told.out)["explanations"]
    (item,) = json.loads(done.out)["explanations"]
    assert item.pop("path") == "-"
    assert item.pop("picture") == str(tmp_path / "b" / "stdin.png")
    assert item.pop("maps") == str(tmp_path / "raw" / "stdin.npz")
    assert item == {k: v for k, v in wanted.items() if k not in ("path", "picture", "maps")}
    with Image.open(tmp_path / "b" / "stdin.png") as drawn:
        drawn.load()
    done = piped(content, "--model", tiny_onnx, "-o", tmp_path / "b")
    assert done.out.startswith("-: ")
    assert done.out.endswith(f"; {tmp_path / 'b' / 'stdin.png'}\n")


def test_a_list_on_stdin(tiny_onnx: Path, files: list[Path], tmp_path: Path) -> None:
    """Names, one a line, in their order."""
    names = [*files[::-1], tmp_path / "gone.jpg"]
    done = piped("\n".join(map(str, names)).encode(), "--model", tiny_onnx, "-o", tmp_path)
    assert done.code == 5, done.err
    assert [line.split(": ")[0] for line in done.out.splitlines()] == [str(p) for p in names[:2]]
    assert "gone.jpg" in done.err


def test_stdin_that_cannot_be(tiny_onnx: Path, files: list[Path], tmp_path: Path) -> None:
    """One message each."""
    common = ("--model", tiny_onnx, "-o", tmp_path / "out")
    content = files[0].read_bytes()
    refused(piped(b"", *common), "no image and no name on standard input", code=3)
    refused(piped(content[:500], *common), "the image on stdin is damaged", code=3)
    refused(piped(b"\x01\x02", *common), "neither an image", code=3)
    refused(piped(content, *common, "--mask", tmp_path), "no name to find its mask by", code=2)
    (tmp_path / "out").mkdir()
    own = tmp_path / "out" / "stdin.png"
    with Image.open(files[0]) as image:
        image.save(own)
    before = own.read_bytes()
    with own.open("rb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "biigma_cli", "explain", "-", *map(str, common)],
            stdin=file, capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 2
    assert "would be replaced" in done.stderr
    assert own.read_bytes() == before


# --- cut short -------------------------------------------------------------------------------


def cut_at_third(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Do something once the third picture is drawn."""
    plain = explanation.draw_explanation
    drawn: list[Path] = []

    def draw(*args: Any, **options: Any) -> None:
        plain(*args, **options)
        drawn.append(args[3])
        if len(drawn) == 3:
            act()

    monkeypatch.setattr(explanation, "draw_explanation", draw)


@pytest.fixture
def many(files: list[Path], tmp_path: Path) -> Path:
    """A folder of twenty images."""
    (tmp_path / "many").mkdir()
    for i in range(20):
        shutil.copy(files[0], tmp_path / "many" / f"{i:02}.jpg")
    return tmp_path / "many"


@pytest.mark.parametrize("form", ["lines", "json"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(
    tiny_onnx: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    form: str, number: int, code: int,
) -> None:  # fmt: skip
    """What was drawn is told, all of it and no more; the document is closed."""
    cut_at_third(monkeypatch, lambda: signal.raise_signal(number))
    ask = ("explain", many, "--model", tiny_onnx, "-o", tmp_path / "out")
    done = call(*ask, *["--json"] * (form == "json"))
    assert done.code == code
    assert "interrupted" in done.err
    assert "3 of 20 images explained" in done.err
    drawn = sorted(str(p) for p in (tmp_path / "out").iterdir())
    assert len(drawn) == 3
    if form == "lines":
        assert [line.split("; ")[-1] for line in done.out.splitlines()] == drawn
    else:
        told = json.loads(done.out)
        assert [item["picture"] for item in told["explanations"]] == drawn
        assert told["summary"] == {"explained": 3, "failed": 0, "left": 17}


def test_interrupted_before_the_first(
    tiny_onnx: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty document is one, too."""
    plain = explain_records.load

    def load(source: Source, *rest: Any, **options: Any) -> Any:
        if source.name.endswith("01.jpg"):
            os.kill(os.getpid(), signal.SIGINT)
        return plain(source, *rest, **options)

    monkeypatch.setattr(command, "load", load)
    done = call("explain", many, "--model", tiny_onnx, "-o", tmp_path / "out", "--json")
    assert done.code == 130
    told = json.loads(done.out)
    assert told["explanations"] == []
    assert told["summary"] == {"explained": 0, "failed": 0, "left": 20}
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name == "nt", reason="SIGHUP")
def test_the_terminal_is_closed(
    tiny_onnx: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document is closed then, too."""
    cut_at_third(monkeypatch, lambda: signal.raise_signal(signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests were begun with
    try:
        done = call("explain", many, "--model", tiny_onnx, "-o", tmp_path / "out", "--json")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert done.code == 129
    assert json.loads(done.out)["summary"]["explained"] == 2


def test_a_full_disk(
    tiny_onnx: Path, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message, and the document holds what was made before it."""

    def fail() -> None:
        raise BiigmaError("cannot write it: No space left on device", fix="free some")

    cut_at_third(monkeypatch, fail)
    done = call("explain", many, "--model", tiny_onnx, "-o", tmp_path / "out", "--json")
    assert done.code == 1
    assert done.err.count("error:") == 1
    assert len(json.loads(done.out)["explanations"]) == 2


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_lines_come_as_they_are_made(tiny_onnx: Path, many: Path, tmp_path: Path) -> None:
    """The first can be read while the rest is drawn, through a pipe; Ctrl-C then loses none."""
    out = tmp_path / "out"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "biigma_cli", "explain", str(many), "--model", str(tiny_onnx),
            "-o", str(out), "--device", "cpu",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.startswith(f"{many / '00.jpg'}: ")
    assert len(list(out.iterdir())) < 20
    process.send_signal(signal.SIGINT)
    rest, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert 1 + len(rest.splitlines()) == len(list(out.iterdir())) < 20


def test_no_torch(
    tiny_onnx: Path, picture: Path, tmp_path: Path, bare_environment: dict[str, str]
) -> None:
    """An exported model explains itself without torch."""
    arguments = ["biigma", "explain", str(picture), "--model", str(tiny_onnx), "-o", str(tmp_path)]
    script = f"""
import sys
from biigma_cli.__main__ import main
sys.argv = {arguments!r}
try:
    main()
except SystemExit as end:
    assert end.code in (0, None), end.code
loaded = {{"torch", "torchvision", "sklearn"}} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=bare_environment
    )
    assert done.returncode == 0, done.stderr


def test_a_border_is_left_out(tiny_onnx: Path, tmp_path: Path) -> None:
    """Figures, maps and picture are those of the bare one; the mask is of the whole."""
    bare = skin(96, 64)
    lesion = np.zeros((64, 96), np.uint8)
    lesion[10:50, 20:60] = 255
    told = {}
    for name, widths in (("bare", (0, 0, 0, 0)), ("framed", (24, 16, 40, 8))):
        ImageOps.expand(bare, widths, "black").save(tmp_path / f"{name}.png")
        mask = ImageOps.expand(Image.fromarray(lesion), widths, 0)
        mask.save(tmp_path / f"{name}-mask.png")
        done = call(
            "explain", tmp_path / f"{name}.png", "--model", tiny_onnx, "--device", "cpu", "--json",
            "--mask", tmp_path / f"{name}-mask.png", "-o", tmp_path / "out", "--maps",
            tmp_path / "raw",
        )  # fmt: skip
        assert done.code == 0, done.err
        (told[name],) = json.loads(done.out)["explanations"]
    for key in ("probabilities", "evidence", "saliency", "lesion_area"):
        assert told["framed"][key] == told["bare"][key]
    assert "part" not in told["bare"]
    assert told["framed"]["part"] == pytest.approx(
        [24 / 160, 16 / 88, 120 / 160, 80 / 88], abs=1e-6
    )
    assert told["framed"]["corners_filled"] is False
    assert told["framed"]["note"] == "a black border was left out (56% of the picture)"
    with (
        np.load(tmp_path / "raw" / "bare.npz") as one,
        np.load(tmp_path / "raw" / "framed.npz") as other,
    ):
        assert one["part"].tolist() == [0, 0, 1, 1]
        assert other["part"].tolist() == pytest.approx(told["framed"]["part"], abs=1e-6)
        for key in set(one) - {"part"}:
            assert np.array_equal(one[key], other[key])
    with (
        Image.open(tmp_path / "out" / "bare.png") as drawn,
        Image.open(tmp_path / "out" / "framed.png") as again,
    ):
        assert drawn.width == again.width
        assert drawn.height < again.height  # a line says what was left out
    done = call(
        "explain", tmp_path / "framed.png", "--keep-border", "--model", tiny_onnx, "--device",
        "cpu", "--json", "-o", tmp_path / "out",
    )  # fmt: skip
    (kept,) = json.loads(done.out)["explanations"]
    assert kept["probabilities"] != told["bare"]["probabilities"]
    assert "part" not in kept
