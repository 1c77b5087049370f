"""Bad input: one clear message, the right exit code, no traceback, nothing half-written."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from biigma_cli.core.weights import load_checkpoint, save_checkpoint
from biigma_cli.errors import UsageError
from tests.conftest import TINY, Outcome, call, unsealed

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def refused(done: Outcome, code: int, *words: str) -> None:
    """One `error:` line that says each of `words`, nothing on stdout, and the exit code."""
    assert done.code == code, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    assert done.err.count("error:") == 1
    for word in words:
        assert word in done.err


def files_below(folder: Path) -> set[Path]:
    """Every file below a folder."""
    return {p for p in folder.rglob("*") if p.is_file()}


# --- predict ---------------------------------------------------------------------------------


@pytest.fixture
def truncated(picture: Path, tmp_path: Path) -> Path:
    """A JPEG cut in the middle."""
    path = tmp_path / "cut.jpg"
    content = picture.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def test_missing_image(tiny_onnx: Path, tmp_path: Path) -> None:
    """A file that is not there is named."""
    done = call("predict", tmp_path / "gone.jpg", "--model", tiny_onnx)
    refused(done, 3, "gone.jpg")


def test_text_named_jpg(tiny_onnx: Path, tmp_path: Path) -> None:
    """Text is no image, whatever its name."""
    path = tmp_path / "text.jpg"
    path.write_text("hello")
    refused(call("predict", path, "--model", tiny_onnx), 3, "text.jpg", "not an image")


def test_truncated_jpeg(tiny_onnx: Path, truncated: Path) -> None:
    """Half a picture gets no answer."""
    refused(call("predict", truncated, "--model", tiny_onnx), 3, "cut.jpg", "damaged")


def test_empty_folder(tiny_onnx: Path, tmp_path: Path) -> None:
    """A folder without images is an error, not an empty answer."""
    (tmp_path / "notes.txt").write_text("none here")
    refused(call("predict", tmp_path, "--model", tiny_onnx), 3, "no image in the folder")


def test_some_damaged(tiny_onnx: Path, picture: Path, truncated: Path) -> None:
    """The good ones are answered, in order, and the exit code says that some failed."""
    done = call("predict", picture, truncated, picture, "--model", tiny_onnx, "--format", "jsonl")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 5
    assert [Path(r["path"]).name for r in rows] == [picture.name, "cut.jpg", picture.name]
    assert "damaged" in rows[1]["error"]
    assert "label" not in rows[1]
    assert rows[0]["probabilities"] == pytest.approx(rows[2]["probabilities"], abs=1e-5)
    assert "2 ok, 1 failed" in done.err
    assert "Traceback" not in done.err


def test_all_damaged(tiny_onnx: Path, truncated: Path, tmp_path: Path) -> None:
    """No answer at all is a failure, and an older result stays."""
    target = tmp_path / "old.csv"
    target.write_text("kept")
    done = call("predict", truncated, tmp_path / "gone.jpg", "--model", tiny_onnx, "-o", target)
    assert done.code == 3
    assert done.out == ""
    assert "none of 2 images" in done.err
    assert "cut.jpg" in done.err
    assert "gone.jpg" in done.err
    assert target.read_text() == "kept"


def test_unknown_format(tiny_onnx: Path, picture: Path) -> None:
    """The known formats are listed."""
    done = call("predict", picture, "--model", tiny_onnx, "--format", "xml")
    refused(done, 2, "'xml'", "jsonl")


def test_missing_model(picture: Path, tmp_path: Path) -> None:
    """A model that is not there is named."""
    refused(call("predict", picture, "--model", tmp_path / "no.onnx"), 3, "no.onnx")


def test_truncated_model(tiny_onnx: Path, picture: Path, tmp_path: Path) -> None:
    """A model cut short cannot be loaded."""
    path = tmp_path / "cut.onnx"
    path.write_bytes(tiny_onnx.read_bytes()[:100_000])
    refused(call("predict", picture, "--model", path), 3, "cut.onnx")


def test_model_that_is_text(picture: Path, tmp_path: Path) -> None:
    """Nor can text."""
    path = tmp_path / "text.onnx"
    path.write_text("not a model\n" * 50)
    refused(call("predict", picture, "--model", path), 3, "text.onnx")


def foreign_model(path: Path) -> Path:
    """A valid ONNX model that biigma did not export."""
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "g", *([i] for i in info)
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def test_foreign_model(picture: Path, tmp_path: Path) -> None:
    """Someone else's model is told apart from a broken one."""
    path = foreign_model(tmp_path / "theirs.onnx")
    refused(call("predict", picture, "--model", path), 3, "not one exported by biigma")


def test_model_with_damaged_metadata(tiny_onnx: Path, picture: Path, tmp_path: Path) -> None:
    """Metadata that is no JSON is an error of the file."""
    proto = unsealed(tiny_onnx)
    next(p for p in proto.metadata_props if p.key == "classes").value = "[oops"
    onnx.save(proto, tmp_path / "odd.onnx")
    refused(call("predict", picture, "--model", tmp_path / "odd.onnx"), 3, "damaged metadata")


def test_unknown_device(tiny_onnx: Path, picture: Path, tiny_run: Path, tmp_path: Path) -> None:
    """A device that means nothing is a usage error in every command."""
    done = call("predict", picture, "--model", tiny_onnx, "--device", "gpu")
    refused(done, 2, "'gpu'", "cuda")
    refused(call("eval", "--run", tiny_run, "--device", "gpu"), 2, "'gpu'")
    refused(call(*TINY, "--device", "gpu", "--runs", tmp_path, "--name", "a"), 2, "'gpu'")
    assert not files_below(tmp_path)


@without_cuda
def test_no_cuda(tiny_onnx: Path, picture: Path, tiny_run: Path, tmp_path: Path) -> None:
    """CUDA that is asked for and not there stops before any work."""
    refused(call("predict", picture, "--model", tiny_onnx, "--device", "cuda"), 4, "CUDA")
    refused(call("eval", "--run", tiny_run, "--device", "cuda"), 4, "CUDA")
    refused(call(*TINY, "--device", "cuda", "--runs", tmp_path, "--name", "a"), 4, "CUDA")
    assert not files_below(tmp_path)


def test_output_is_a_folder(tiny_onnx: Path, picture: Path, tmp_path: Path) -> None:
    """A folder is no place for one file."""
    done = call("predict", picture, "--model", tiny_onnx, "-o", tmp_path)
    refused(done, 2, "is a folder")
    assert not files_below(tmp_path)


@pytest.mark.parametrize("command", ["predict", "explain"])
def test_an_empty_name(command: str, tiny_onnx: Path, picture: Path, tmp_path: Path) -> None:
    """What a script's variable leaves that was never set: no folder, and nothing is begun."""
    done = call(command, picture, "", "--model", tiny_onnx, "-o", tmp_path / "out.json")
    refused(done, 2, "the name of an image is empty")
    assert not files_below(tmp_path)


def test_output_called_like_a_folder(tiny_onnx: Path, picture: Path, tmp_path: Path) -> None:
    """A slash at the end says that a folder is meant, there or not."""
    done = call("predict", picture, "--model", tiny_onnx, "--format", "csv", "-o", f"{tmp_path}/a/")
    assert done.code == 2
    assert "/a/ is a folder" in done.err
    assert not files_below(tmp_path)


def test_output_below_a_file(tiny_onnx: Path, picture: Path, tmp_path: Path) -> None:
    """A file cannot hold files: said before the work."""
    (tmp_path / "plain").write_text("")
    done = call("predict", picture, "--model", tiny_onnx, "-o", tmp_path / "plain" / "out.csv")
    refused(done, 2, "plain")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_output_where_one_may_not_write(tiny_onnx: Path, picture: Path, tmp_path: Path) -> None:
    """No permission is said before the work."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    done = call("predict", picture, "--model", tiny_onnx, "-o", locked / "out.csv")
    refused(done, 2, "cannot write")


LONG = "x" * 300


def test_names_that_cannot_be(tiny_onnx: Path, picture: Path, tmp_path: Path) -> None:
    """A name that no file system takes, or the home of nobody, is an error as any other."""
    page = tmp_path / f"{LONG}.jpg"
    refused(call("predict", page, "--model", tiny_onnx), 3, "cannot open", "too long")
    done = call("predict", picture, page, picture, "--model", tiny_onnx, "--format", "csv")
    assert (done.code, done.out.count("\n")) == (5, 4)
    for more in (("-o", f"{LONG}.csv"), ("--saliency", LONG), ("-o", f"{LONG}.parquet")):
        done = call("predict", picture, "--model", tiny_onnx, more[0], tmp_path / more[1])
        assert done.code in (1, 2), done.err
        assert "Traceback" not in done.err
        assert done.err.count("error:") == 1
    for name in (f"{LONG}.onnx", "~nosuchuser/x.onnx"):
        refused(call("predict", picture, "--model", name), 3, "no model")
    assert not files_below(tmp_path)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv")
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="not root")
def test_a_folder_one_may_not_enter(tiny_onnx: Path, picture: Path, tmp_path: Path) -> None:
    """One image in it costs its own row."""
    shut = tmp_path / "shut"
    shut.mkdir()
    shutil.copy(picture, shut / "a.jpg")
    os.chown(shut, 65534, 65534)
    shut.chmod(0o700)
    words = ["predict", picture, shut / "a.jpg", "--model", tiny_onnx, "--format", "csv"]
    done = subprocess.run(
        ["setpriv", "--bounding-set=-dac_override,-dac_read_search", sys.executable, "-m",
         "biigma_cli", *map(str, words), "--device", "cpu"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr
    assert "no permission to read" in done.stdout


def test_output_over_an_input(tiny_onnx: Path, picture: Path, tmp_path: Path) -> None:
    """Images, lists and models are never written over; a pattern behind -o names an image."""
    image = Path(shutil.copy(picture, tmp_path / "a.jpg"))
    model = Path(shutil.copy(tiny_onnx, tmp_path / "m.onnx"))
    plain = Path(shutil.copy(tiny_onnx, tmp_path / "model"))
    names = tmp_path / "names.txt"
    names.write_text(f"{image}\n")
    before = {p: p.read_bytes() for p in files_below(tmp_path)}
    for words, said in (
        ((image, "--model", model, "-o", image), "name of an image"),
        ((image, "--model", model, "-o", tmp_path / "new.PNG"), "name of an image"),
        ((image, "--model", model, "-o", model), "name of a model"),
        ((image, "--model", plain, "-o", plain), "the file of --model"),
        (("--from-list", names, "--model", model, "-o", names), "the file of --from-list"),
    ):
        refused(call("predict", *words), 2, said)
    assert {p: p.read_bytes() for p in files_below(tmp_path)} == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("> /dev/full", 1, "cannot write standard output"),
        (">&-", 1, "standard output is closed"),
        ("-o /dev/stdout >&-", 1, "standard output is closed"),
        ("- <&-", 2, "standard input is closed"),
    ],
)
def test_streams_that_are_shut(
    tiny_onnx: Path, picture: Path, end: str, code: int, said: str
) -> None:
    """A full disk behind the shell's `>`, and streams that were closed."""
    image = "" if end.startswith("- ") else shlex.quote(str(picture))
    line = f"{shlex.quote(sys.executable)} -m biigma_cli predict {image} --model "
    line += f"{shlex.quote(str(tiny_onnx))} --device cpu --format csv {end}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


# --- download --------------------------------------------------------------------------------


@pytest.fixture
def ham_copy(tiny_ham: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the data set to spoil, with an empty data folder."""
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "home"))
    return Path(shutil.copytree(tiny_ham, tmp_path / "ham"))


def spoil(folder: Path, column: str, value: str, *, rename: bool = False) -> None:
    """Change the first row's cell, or the column's name."""
    path = folder / "HAM10000_metadata.csv"
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    rows[0 if rename else 1][rows[0].index(column)] = value
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def download(folder: Path, *more: str) -> Outcome:
    """`biigma download isic18 --from folder`."""
    return call("download", "isic18", "--from", folder, *more)


def nothing_recorded() -> bool:
    """Whether the data folder is still empty."""
    return not files_below(Path(os.environ["BIIGMA_HOME"]))


def test_download_missing_folder(ham_copy: Path) -> None:
    """A folder that is not there."""
    refused(download(ham_copy / "nowhere"), 3, "nowhere")
    assert nothing_recorded()


def test_download_without_metadata(ham_copy: Path) -> None:
    """A folder that holds no metadata."""
    (ham_copy / "HAM10000_metadata.csv").unlink()
    refused(download(ham_copy), 3, "HAM10000_metadata.csv")


def test_download_missing_column(ham_copy: Path) -> None:
    """A missing column is named, with those that are there."""
    spoil(ham_copy, "dx", "diagnosis", rename=True)
    refused(download(ham_copy, "--allow-missing"), 3, "no column dx", "diagnosis")
    assert nothing_recorded()


def test_download_row_without_image(ham_copy: Path) -> None:
    """A row whose image is not there is named, and left out only on request."""
    sorted(ham_copy.rglob("*.jpg"))[3].unlink()
    refused(download(ham_copy), 3, "1 rows", "ISIC_0000003")
    assert nothing_recorded()
    assert download(ham_copy, "--allow-missing").code == 0


def test_download_other_counts(ham_copy: Path) -> None:
    """Counts that are not HAM10000's are refused without --allow-missing."""
    refused(download(ham_copy), 3, "class counts differ", "NV 6705")


def test_download_unknown_class(ham_copy: Path) -> None:
    """An unknown class is named with its line and the nearest known one."""
    spoil(ham_copy, "dx", "mell")
    refused(download(ham_copy, "--allow-missing"), 3, "line 2", "'mell'", "did you mean 'mel'")
    assert nothing_recorded()


def test_download_damaged_image(ham_copy: Path) -> None:
    """Every image is opened, so a damaged one is found now."""
    path = sorted(ham_copy.rglob("*.jpg"))[5]
    path.write_bytes(path.read_bytes()[:300])
    refused(download(ham_copy, "--allow-missing"), 3, "1 of", "ISIC_0000005")
    assert nothing_recorded()


def test_download_unknown_dataset(ham_copy: Path) -> None:
    """The known data sets are listed."""
    refused(call("download", "isic21", "--from", ham_copy), 2, "'isic21'", "isic18")


def test_download_offline(ham_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, no socket is opened; where the files lie is said, and how to take a copy."""

    def refuse(*_: object) -> None:
        raise AssertionError("a socket was opened")

    for name in ("connect", "connect_ex", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for more in (["--offline"], []):
        refused(call("download", "isic18", *more), 3, "ISIC2018_Task3_Training_Input.zip", "--from")
        left = files_below(Path(os.environ["BIIGMA_HOME"]))
        assert {Path(f).name for f in left} <= {".download.lock"}
        monkeypatch.setenv("BIIGMA_OFFLINE", "1")


# --- train -----------------------------------------------------------------------------------


def test_train_unrecorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without data there is no run folder either."""
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "empty"))
    done = call(*TINY, "--epochs", "1", "--runs", tmp_path / "runs", "--name", "a")
    refused(done, 3, "isic18", "biigma download")
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("command", ["models", "models --json", "train --show-config"])
def test_a_full_disk_behind_any_command(command: str) -> None:
    """Whether it is told while writing or at the end."""
    line = f"{shlex.quote(sys.executable)} -m biigma_cli {command} > /dev/full"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write standard output: No space left")
    assert done.stderr.count("\n") == 2


def test_train_says_which_epoch_it_keeps(home: Path, tmp_path: Path) -> None:
    """Not "best" where it is the last by rule."""
    for select, word in (("last", "last"), ("log_loss", "best")):
        done = call(
            *TINY, "--epochs", "1", "--set", f"train.select={select}", "--name", select,
            "--set", "train.sampling_start_epoch=0", "--runs", tmp_path,
        )  # fmt: skip
        assert done.code == 0, done.err
        assert done.out.startswith(f"{word} epoch 1: validation macro-F1 ")


def test_train_tells_when_the_hybrid_branch_joins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier than the preset says where its epochs are too few; never, where asked for."""
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "empty"))
    never = "the saliency map stays random"
    for more, word in (
        (["--epochs", "4"], "joins after 1 of 4 epochs (the preset says 4)"),
        (["--epochs", "4", "--set", "train.sampling_start_epoch=4"], never),
        (["--epochs", "8"], ""),
        (["--epochs", "4", "--preset", "plain-light"], ""),
    ):
        done = call("train", "--runs", tmp_path / "runs", *more)
        assert done.code == 3
        assert word in done.err
        assert ("hybrid" in done.err) == bool(word)


def test_train_tells_of_settings_without_effect(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the user, from wherever they came, under the settings as they are in the end."""
    monkeypatch.setattr("biigma_cli.data.splits.own_parts_meant", lambda _: True)

    def no_training(*_: object, **__: object) -> None:
        raise UsageError("so far only")

    monkeypatch.setattr("biigma_cli.engine.train.train", no_training)
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nmix_alpha = 0.3\naugment = true\n")
    for more, told in (
        ([], []),
        (["--config", file], ["train.mix_alpha (train.mix is none)"]),
        (["--config", file, "--set", "train.mix=both"], []),
        (["--preset", "plain-light", "--set", "model.sigma=2.0", "--set", "data.test_fraction=0.3"],
         ["model.sigma (model.mica is off)", "data.test_fraction (data.protocol is official)"]),
        (["--set", "data.test_fraction=0.3", "--protocol", "lesion"], []),
    ):  # fmt: skip
        done = call("train", "--runs", tmp_path / "runs", "--device", "cpu", *more)
        refused(done, 2, "so far only", *told)
        lines = [text for text in done.err.splitlines() if "without effect" in text]
        assert lines == [f"warning: without effect here: {', '.join(told)}"] * bool(told)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "ligth"], ["'ligth'", "did you mean 'light'"]),
        (["--set", "train.epoch=3"], ["train.epoch", "nearest: train.epochs"]),
        (["--set", "loss.hybird=1"], ["nearest: loss.hybrid"]),
        (["--set", "train.epochs=many"], ["train.epochs", "whole number"]),
        (["--set", "epochs"], ["no assignment"]),
        (["--set", "data.side=100"], ["data.side is 100", "multiple of 32"]),
        (["--epochs", "0"], ["epochs is 0"]),
        (["--protocol", "lesions"], ["data.protocol", "did you mean 'lesion'"]),
        (["--dataset", "isic20"], ["'isic20'", "isic18"]),
        (["--config", "nowhere.toml"], ["nowhere.toml"]),
        (["--seed", str(10**20)], ["seed is 1000"]),
        (["--set", "train.lr=1" + "0" * 400], ["train.lr", "a smaller number"]),
        (["--set", "train.lr=1" + "0" * 5000], ["train.lr", "expected a number"]),
        (["--set", "train.balance=110"], ["train.balance is 110", "all classes alike"]),
        (["--epochs", "5", "--set", "train.epochs=3"], ["--epochs and --set train.epochs=3"]),
        (["--background-bias", "0.9"], ["--background-bias", "not for isic18", "synthetic"]),
        (["--set", "data.background_bias=0.9"], ["data.background_bias", "not for isic18"]),
    ],
)
def test_train_settings(arguments: list[str], words: list[str], home: Path, tmp_path: Path) -> None:
    """A setting that cannot be is named, with the nearest that can."""
    refused(call("train", "--runs", tmp_path, *arguments), 2, *words)
    assert not files_below(tmp_path)


def test_weights_missing(home: Path, tmp_path: Path) -> None:
    """A weights file that is not there leaves no run folder."""
    done = call(*TINY, "--weights", tmp_path / "no.safetensors", "--runs", tmp_path / "runs")
    refused(done, 3, "no.safetensors")
    assert not (tmp_path / "runs").exists()


def test_weights_not_safetensors(home: Path, tmp_path: Path) -> None:
    """Nor does a file of another kind."""
    path = tmp_path / "weights.safetensors"
    path.write_text("pickle?")
    done = call(*TINY, "--weights", path, "--runs", tmp_path / "runs")
    refused(done, 3, "weights.safetensors", "not a readable safetensors")
    assert not (tmp_path / "runs").exists()


def test_weights_of_another_trunk(home: Path, tmp_path: Path) -> None:
    """Weights that do not fit are refused, not loaded in part, and leave no weights."""
    path = tmp_path / "dense.safetensors"
    save_file({"features.conv0.weight": torch.zeros(64, 3, 7, 7)}, path)
    done = call(*TINY, "--weights", path, "--runs", tmp_path / "runs", "--name", "a")
    assert done.code == 3
    assert "does not fit mobilenet_v2" in done.err
    assert "Traceback" not in done.err
    assert not list(tmp_path.rglob("weights/*"))


def test_run_name_taken(tiny_run: Path) -> None:
    """A run is never written over."""
    before = (tiny_run / "weights" / "last.safetensors").stat().st_mtime_ns
    done = call(*TINY, "--epochs", "1", "--runs", tiny_run.parent, "--name", tiny_run.name)
    refused(done, 2, "holds a run already")
    assert (tiny_run / "weights" / "last.safetensors").stat().st_mtime_ns == before


def test_resume_of_no_run(home: Path, tmp_path: Path) -> None:
    """A folder without a run."""
    refused(call("train", "--resume", tmp_path), 2, "no run folder")


def test_runs_by_name(tiny_run: Path, tiny_runs: Path) -> None:
    """As `biigma runs` takes them."""
    done = call("train", "--resume", tiny_run.name, "--runs", tiny_runs, "--epochs", "3")
    refused(done, 2, "keeps its settings")  # so it was found


def test_resume_with_settings(tiny_run: Path) -> None:
    """A resumed run keeps its settings."""
    for more in (("--epochs", "9"), ("--preset", "light")):
        refused(call("train", "--resume", tiny_run, *more), 2, "keeps its settings")
    refused(call("train", "--resume", tiny_run, "--name", "b"), 2, "keeps its name")
    refused(call(*TINY, "--max-restarts", "2"), 2, "--max-restarts is for several processes")


def test_a_run_that_never_wrote_is_none(home: Path, tmp_path: Path) -> None:
    """Its name can be taken again: there is nothing to go on from, and nothing to lose."""
    (tmp_path / "a" / "weights").mkdir(parents=True)
    done = call(*TINY, "--epochs", "1", "--runs", tmp_path, "--name", "a")
    assert done.code == 0, done.err


def test_resume_without_checkpoint(run_copy: Path) -> None:
    """Nothing to go on from."""
    shutil.rmtree(run_copy / "weights")
    refused(
        call("train", "--resume", run_copy, "--device", "cpu"), 3, "no checkpoint to go on from"
    )


def test_resume_with_other_data(
    run_copy: Path, other_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data that changed since is refused, and the run stays as it was."""
    monkeypatch.setenv("BIIGMA_HOME", str(other_home))
    before = {p: p.read_bytes() for p in files_below(run_copy)}
    refused(call("train", "--resume", run_copy, "--device", "cpu"), 3, "data_hash")
    assert {p: p.read_bytes() for p in files_below(run_copy)} == before


def test_resume_with_edited_config(run_copy: Path) -> None:
    """So is a config that was edited; the setting is named."""
    path = run_copy / "config.toml"
    path.write_text(path.read_text().replace("heads = 3", "heads = 2"))
    done = call("train", "--resume", run_copy, "--device", "cpu")
    refused(done, 3, "model.heads: 3 -> 2")


# --- eval ------------------------------------------------------------------------------------


def test_eval_unknown_split(tiny_run: Path) -> None:
    """The known parts are listed."""
    refused(call("eval", "--run", tiny_run, "--split", "dev"), 2, "'dev'", "train, val, test")


def test_eval_run_and_model(tiny_run: Path, tiny_onnx: Path) -> None:
    """One thing is judged at a time."""
    refused(call("eval", "--run", tiny_run, "--model", tiny_onnx), 2, "both")


def test_eval_run_without_checkpoint(home: Path, tmp_path: Path) -> None:
    """A folder without weights."""
    refused(call("eval", "--run", tmp_path), 2, "best.safetensors")


def test_eval_missing_checkpoint(home: Path, tmp_path: Path) -> None:
    """A checkpoint file that is not there."""
    done = call("eval", "--model", tmp_path / "no.safetensors", "--device", "cpu")
    refused(done, 3, "no.safetensors")


def test_eval_damaged_checkpoint(tiny_run: Path, tmp_path: Path) -> None:
    """A checkpoint cut short."""
    path = tmp_path / "cut.safetensors"
    path.write_bytes((tiny_run / "weights" / "best.safetensors").read_bytes()[:5000])
    refused(call("eval", "--model", path, "--device", "cpu"), 3, "cut.safetensors")


def test_eval_other_classes(tiny_run: Path, tmp_path: Path) -> None:
    """Classes in another order would give wrong figures: refused."""
    stored = load_checkpoint(tiny_run / "weights" / "best.safetensors")
    path = tmp_path / "other.safetensors"
    save_checkpoint(path, stored.tensors, {**stored.meta, "classes": stored.meta["classes"][::-1]})
    done = call("eval", "--model", path, "--device", "cpu")
    refused(done, 3, "VASC, DF", "MEL, NV")


def test_eval_fewer_classes(tiny_run: Path, tmp_path: Path) -> None:
    """A checkpoint whose classes do not fit its tensors."""
    stored = load_checkpoint(tiny_run / "weights" / "best.safetensors")
    path = tmp_path / "fewer.safetensors"
    save_checkpoint(path, stored.tensors, {**stored.meta, "classes": ["MEL", "SK", "NV"]})
    refused(call("eval", "--model", path, "--device", "cpu"), 3, "do not fit")


def test_eval_changed_data(
    tiny_run: Path, tiny_onnx: Path, other_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Test images of other data may have been seen in training: refused for run and export."""
    before = files_below(tiny_run)
    monkeypatch.setenv("BIIGMA_HOME", str(other_home))
    refused(call("eval", "--run", tiny_run, "--split", "val", "--device", "cpu"), 3, "another data")
    refused(call("eval", "--model", tiny_onnx, "--device", "cpu"), 3, "another data")
    assert files_below(tiny_run) == before


def test_eval_changed_image(
    tiny_run: Path, tiny_ham: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image edited after it was recorded is found by its bytes."""
    folder = Path(shutil.copytree(tiny_ham, tmp_path / "ham"))
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "home"))
    assert download(folder, "--allow-missing").code == 0
    name = json.loads((tiny_run / "split.json").read_text())["val"][0]
    path = next(folder.rglob(f"{name}.jpg"))
    path.write_bytes(path.read_bytes() + b"\0")
    done = call("eval", "--run", tiny_run, "--split", "val", "--device", "cpu")
    refused(done, 3, name, "changed since it was recorded")
    assert not (tiny_run / "eval-val.json").exists()


# --- export ----------------------------------------------------------------------------------


def test_export_without_runs(home: Path, tmp_path: Path) -> None:
    """No run, nothing to export."""
    refused(call("export", "onnx", "--runs", tmp_path / "none"), 2, "no run in")
    assert not files_below(tmp_path)


def test_export_run_and_checkpoint(tiny_run: Path) -> None:
    """One or the other."""
    file = tiny_run / "weights" / "best.safetensors"
    refused(call("export", "onnx", "--run", tiny_run, "--checkpoint", file), 2, "both")


def test_export_to_a_folder(tiny_run: Path, tmp_path: Path) -> None:
    """The target is checked before the work."""
    refused(call("export", "onnx", "--run", tiny_run, "-o", tmp_path), 2, "is a folder")


def test_export_over_what_it_is_made_of(tiny_run: Path, tmp_path: Path) -> None:
    """Neither the checkpoint nor the new model is lost to a slip."""
    file = Path(shutil.copy(tiny_run / "weights" / "best.safetensors", tmp_path))
    before = file.read_bytes()
    export = ("export", "onnx", "--checkpoint", file)
    refused(call(*export, "-o", file), 2, "is no .onnx file")
    new = tmp_path / "new.onnx"
    refused(call(*export, "-o", new, "--card", new), 2, "is no .md file")
    refused(call(*export, "-o", new, "--card", file), 2, "is no .md file")
    settings = tmp_path / "config.toml"
    settings.write_text("[train]\n")
    refused(call(*export, "-o", new, "--card", settings), 2, "is no .md file")
    assert settings.read_text() == "[train]\n"
    assert file.read_bytes() == before
    assert not new.exists()


def test_export_of_figures_that_are_not_its_own(run_copy: Path) -> None:
    """Those of an older checkpoint, of other data, and damaged ones are left out, with a word."""
    figures = run_copy / "eval-test.json"
    done = call("eval", "--run", run_copy, "--device", "cpu", "--resamples", "0")
    assert done.code == 0, done.err
    good = figures.read_text()
    best = run_copy / "weights" / "best.safetensors"
    export = ("export", "onnx", "--checkpoint", best, "--no-input-check", "--device", "cpu")

    def stored() -> dict[str, object]:
        made = onnx.load(run_copy / "model.onnx")
        held = {p.key: p.value for p in made.metadata_props}
        return dict(json.loads(held["metrics"]))

    done = call(*export)  # beside the run, as with --run
    assert done.code == 0, done.err
    assert list(stored()) == ["test"]
    for text in ("{", good.replace('"data_hash": "', '"data_hash": "x')):
        figures.write_text(text)
        done = call(*export)
        assert done.code == 0, done.err
        assert "its figures are left out" in done.err
        assert stored() == {}
    figures.write_text(good)
    later = figures.stat().st_mtime + 5
    os.utime(best, (later, later))
    done = call(*export)
    assert "of an earlier state of this run" in done.err
    assert stored() == {}


def test_export_foreign_checkpoint(home: Path, tmp_path: Path) -> None:
    """Tensors that biigma did not write."""
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    done = call("export", "onnx", "--checkpoint", tmp_path / "x.safetensors")
    refused(done, 3, "not written by biigma")
    assert not (tmp_path / "model.onnx").exists()
