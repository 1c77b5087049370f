"""`biigma eval`: what it prints, writes and refuses."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from biigma_cli.config import DataConfig
from biigma_cli.core.weights import load_checkpoint, save_checkpoint
from biigma_cli.data.manifest import load_manifest
from biigma_cli.data.splits import make_split
from biigma_cli.data.submission import read_predictions
from biigma_cli.errors import CheckpointMismatch, DeviceError
from biigma_cli.judge import judge, open_candidate
from biigma_cli.judge.candidate import _chosen
from biigma_cli.metrics import OVERALL, PER_CLASS, at_prevalence
from biigma_cli.runtime.session import Predictor
from tests.conftest import Outcome, call

CODES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
FAST = ("--resamples", "40", "--device", "cpu")


def refused(done: Outcome, *words: str, code: int = 3) -> None:
    """One error, its fix, nothing on stdout."""
    assert done.code == code, done.err
    assert done.out == ""
    assert done.err.count("error:") == 1
    assert done.err.count("fix:") == 1
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err


# --- figures ---------------------------------------------------------------------------------


def test_tables(tiny_run: Path, tiny_onnx: Path) -> None:
    """The protocol first, then the most important figures; 80 columns; what was judged is said."""
    done = call("eval", "--model", tiny_onnx, *FAST)
    assert done.code == 0, done.err
    places = [
        done.out.index(words)
        for words in (
            "protocol: isic18, lesion-safe", "calibrated probabilities (T = ",
            "40 resamples of lesions", "accuracy", "ISIC score", "calibration error (ECE",
            "MEL against the rest", "sensitivity at 90% specificity", "per class, answers",
            "per class, against the rest", "melanocytic nevus", "confusion matrix",
        )
    ]  # fmt: skip
    assert places == sorted(places)
    _, _, body = done.out.partition("part:     test, ")
    assert max(map(len, body.splitlines())) <= 80
    raw = call("eval", "--model", tiny_run / "weights" / "best.safetensors", *FAST)
    assert "probabilities as trained (not calibrated)" in raw.out
    assert "calibrated probabilities" not in raw.out


@pytest.mark.parametrize("limit", [0.5, 1.0, 2.0])
def test_what_the_input_check_flags(
    tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    """Count, share with its interval, and the accuracy of the rest: as counted by hand."""
    plain = Predictor.__call__
    novelties: list[np.ndarray] = []

    def told(self: Predictor, pixels: np.ndarray, **options: Any) -> Any:
        """Pictures by brightness: the median one lies at `limit` of its limit."""
        novelties.append(pixels.mean((1, 2, 3)) / 128 / limit)
        return plain(self, pixels, **options)._replace(novelty_B=novelties[-1])

    monkeypatch.setattr(Predictor, "__call__", told)
    table = tmp_path / "answers.csv"
    done = call(
        "eval", "--model", tiny_onnx, "--json", "--resamples", "0", "--predictions-out", table
    )
    assert done.code == 0, done.err
    found = json.loads(done.out)["input_check"]
    flagged = np.concatenate(novelties) > 1
    answers = read_predictions(table)
    records = load_manifest("isic18").by_id()
    right = [
        CODES[scores.argmax()] == records[image].label
        for image, scores in zip(answers.ids, answers.score_nY, strict=True)
    ]
    assert (found["n"], found["flagged"]) == (len(flagged), flagged.sum())
    assert found["share"] == flagged.mean()
    assert 0 <= found["low"] <= found["share"] <= found["high"] <= 1
    if flagged.all():
        assert found["accuracy"] is None
    else:
        assert found["accuracy"] == pytest.approx(np.array(right)[~flagged].mean())
    monkeypatch.undo()
    text = call("eval", "--model", tiny_onnx, "--resamples", "0").out
    own = Predictor(tiny_onnx, device="cpu").info.metadata.get("input_check")
    assert ("taken for no dermoscopy" in text) == (own is not None)


def test_json_is_complete(tiny_eval: dict[str, Any]) -> None:
    """Every figure with its interval, overall and per class; the headline as it always was."""
    whole = tiny_eval["assessment"]
    assert tuple(whole["overall"]) == OVERALL
    assert tuple(whole["per_class"]) == CODES
    for figures in whole["per_class"].values():
        assert set(figures) == {"support", *PER_CLASS}
    for figure in whole["overall"].values():
        assert figure["low"] <= figure["high"]
    assert (
        tiny_eval["bootstrap"] == "95% percentile intervals (ECE: basic), 2000 resamples of lesions"
    )
    assert tiny_eval["temperature"] is None
    for name, figure in tiny_eval["intervals"].items():
        assert figure == whole["overall"][name]
        assert tiny_eval[name] == figure["value"]
    assert tiny_eval["confusion"] == whole["confusion"]


def test_predictions_out(
    tiny_run: Path, tiny_ham: Path, tmp_path: Path, tiny_eval: dict[str, Any]
) -> None:
    """The file is in the submission form, and `score` finds the same figures in it."""
    path = tmp_path / "new" / "p.csv"
    done = call("eval", "--run", tiny_run, "--predictions-out", path, "--json", "--device", "cpu")
    assert done.code == 0, done.err
    assert f"saved in {path}" in done.err
    assert json.loads(done.out) == tiny_eval
    assert list(path.parent.iterdir()) == [path]
    assert path.read_text().splitlines()[0] == "image," + ",".join(CODES)
    assert set(read_predictions(path).ids) == set(load_split(tiny_run)["test"])
    scored = call("score", path, tiny_ham / "HAM10000_metadata.csv", "--subset", "--json")
    assert scored.code == 0, scored.err
    found = json.loads(scored.out)
    assert found["confusion"] == tiny_eval["confusion"]
    for name, figure in tiny_eval["assessment"]["overall"].items():
        for end in ("value", "low", "high"):
            assert found["overall"][name][end] == pytest.approx(figure[end], abs=1e-6), name


def load_split(run: Path) -> dict[str, list[str]]:
    """The run's parts."""
    return dict(json.loads((run / "split.json").read_text()))


def test_views(tiny_onnx: Path, run_copy: Path, tmp_path: Path) -> None:
    """--tta judges what `predict --tta` answers, says so, and leaves the run's own figures be."""
    table, diagram = tmp_path / "answers.csv", tmp_path / "r.svg"
    words = ("eval", "--model", tiny_onnx, "--resamples", "0")
    done = call(*words, "--tta", "--json", "--predictions-out", table, "--reliability", diagram)
    assert done.code == 0, done.err
    assert json.loads(done.out)["views"] == 8
    assert "Mean of 8 views: ECE" in diagram.read_text()
    judged = read_predictions(table)
    manifest = load_manifest("isic18")
    records = manifest.by_id()
    files = [manifest.root / records[image].path for image in judged.ids]
    done = call("predict", *files, "--tta", "--model", tiny_onnx, "--format", "json")
    assert done.code == 0, done.err
    told = json.loads(done.out)["predictions"]
    answers = [[entry["probabilities"][code] for code in CODES] for entry in told]
    np.testing.assert_allclose(judged.score_nY, answers, atol=2e-4)
    plain = call(*words, "--json")
    assert json.loads(plain.out)["views"] == 1
    kept = {p.name: p.read_bytes() for p in run_copy.glob("eval-*.json")}
    done = call("eval", "--run", run_copy, "--tta", *FAST)
    assert done.code == 0, done.err
    assert "(not calibrated), the mean of 8 views" in done.out
    assert {p.name: p.read_bytes() for p in run_copy.glob("eval-*.json")} == kept
    candidate = open_candidate(run_copy / "weights" / "best.safetensors", "cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    steps: list[tuple[int, int]] = []
    mean = candidate.over_views().run(pixels, lambda *at: steps.append(at)).proba_nY
    views = [np.rot90(p, k, (1, 2)) for p in (pixels, pixels[:, :, ::-1]) for k in range(4)]
    alone = [candidate.run(np.ascontiguousarray(v), lambda *_: None).proba_nY for v in views]
    np.testing.assert_allclose(mean, np.mean(alone, 0), atol=1e-6)
    assert np.abs(mean - alone[0]).max() > 1e-4
    assert steps[-1] == (24, 24)
    assert steps == sorted(steps)


def test_reliability(tiny_run: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    """Before and after for a calibrated model, one diagram for a checkpoint."""
    both, one = tmp_path / "both.svg", tmp_path / "one.svg"
    done = call("eval", "--model", tiny_onnx, "--reliability", both, *FAST)
    assert done.code == 0, done.err
    best = tiny_run / "weights" / "best.safetensors"
    assert call("eval", "--model", best, "--reliability", one, *FAST).code == 0
    axes = [p.read_text().count('id="axes_') for p in (both, one)]
    assert axes == [2, 1]
    # Text is drawn as shapes, with its words in a comment beside.
    told = both.read_text()
    before, after = re.findall(
        r"<!-- (?:As trained|Calibrated, T = [\d.]+): ECE ([\d.]+) -->", told
    )
    assert f"As trained: ECE {before}" in one.read_text()
    assert before != after


def test_no_resamples(tiny_onnx: Path) -> None:
    """Figures without intervals."""
    done = call("eval", "--model", tiny_onnx, "--resamples", "0", "--device", "cpu")
    assert done.code == 0, done.err
    assert " .. " not in done.out
    assert "resamples" not in done.out
    assert "accuracy" in done.out


def test_a_run_keeps_its_intervals(run_copy: Path) -> None:
    """A quick look without resamples takes them from nobody."""
    file = run_copy / "eval-test.json"
    command = ("eval", "--run", run_copy, "--device", "cpu", "--resamples")
    assert call(*command, "40").code == 0
    before = file.read_text()
    done = call(*command, "0")
    assert done.code == 0, done.err
    assert f"{file} keeps its intervals" in done.err
    assert file.read_text() == before
    assert call(*command, "30").code == 0
    assert json.loads(file.read_text())["assessment"]["resamples"] == 30
    for damage in ({"assessment": [3]}, {"assessment": {"resamples": "many"}}):
        file.write_text(json.dumps({**json.loads(before), **damage}))
        assert call(*command, "0").code == 0
        assert json.loads(file.read_text())["assessment"]["resamples"] == 0


def test_the_part_it_was_calibrated_on(tiny_onnx: Path) -> None:
    """Its own validation part flatters a calibrated model: said."""
    done = call("eval", "--model", tiny_onnx, "--split", "val", *FAST)
    assert "the temperature was fitted on this part" in done.err


def test_parts_that_were_not_kept_from_it(tiny_run: Path, tmp_path: Path) -> None:
    """What was trained on, and what the epoch was chosen on: said in notes, JSON and report."""
    trained, chosen = "the network was trained on these images", "the epoch was chosen on this part"
    command = ("eval", "--model", tiny_run / "weights" / "best.safetensors", "--json", *FAST)
    for part, said, other in (("train", trained, chosen), ("val", chosen, trained)):
        done = call(*command, "--split", part, "--report", tmp_path / part)
        assert done.code == 0, done.err
        page = (tmp_path / part / "index.html").read_text()
        for told in (done.err, "\n".join(json.loads(done.out)["notes"]), page):
            assert said in told
            assert other not in told
    done = call(*command)
    assert not any(line in done.err + done.out for line in (trained, chosen))


@pytest.mark.parametrize(
    ("meta", "chosen"),
    [
        ({"selection": "none: the last epoch"}, ()),
        ({"selection": "macro_f1 on the validation part"}, ("the epoch",)),
        ({"selection": "0.5 of the way from a to b"}, ()),
        (
            {
                "selection": "0.5 of the way from a to b, best of 6 by macro_f1 on the validation "
                "part",
                "config": {"train": {"select": "log_loss"}},
            },
            ("the epoch", "the share of two networks in it"),
        ),
        (
            {
                "selection": "none: the mean of 2 networks",
                "members": [{"selection": "log loss on the validation part"}, {}],
                "config": {"train": {"select": "last"}},
            },
            ("the epoch",),
        ),
    ],
)
def test_what_was_chosen_on_validation(meta: dict[str, Any], chosen: tuple[str, ...]) -> None:
    """Epochs, and the share of an average, of a network and of those that were joined."""
    assert _chosen(meta) == chosen


# --- devices ---------------------------------------------------------------------------------


def test_openvino(tiny_onnx: Path, tmp_path: Path) -> None:
    """An exported model is judged where it is asked to run; answers as on ONNX Runtime."""
    pytest.importorskip("openvino")
    proba = {}
    for device, name in (("cpu", "CPUExecutionProvider"), ("openvino", "OpenVINO")):
        path = tmp_path / f"{device}.csv"
        done = call(
            "eval", "--model", tiny_onnx, "--json", "--resamples", "0", "--device", device,
            "--predictions-out", path,
        )  # fmt: skip
        assert done.code == 0, done.err
        assert json.loads(done.out)["device"] == name
        proba[device] = read_predictions(path).score_nY
    np.testing.assert_allclose(proba["openvino"], proba["cpu"], atol=1e-4)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", "tensorrt", "coreml", "openvino"])
def test_exported_models_run_where_predict_runs_them(
    tiny_onnx: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name reaches the session as it was given."""
    asked = []

    def there_is_none(path: Path, *, device: str) -> None:
        asked.append((path, device))
        raise DeviceError("not here", fix="use --device cpu")

    monkeypatch.setattr("biigma_cli.judge.candidate.Predictor", there_is_none)
    done = call("eval", "--model", tiny_onnx, "--device", device)
    refused(done, "not here", code=4)
    assert asked == [(tiny_onnx, device)]


@pytest.mark.parametrize("device", ["tensorrt", "coreml", "openvino"])
def test_checkpoints_run_in_torch(tiny_run: Path, tiny_onnx: Path, device: str) -> None:
    """As the model, and as the one that an export is compared with."""
    words = (f"{device} runs exported models", "biigma export onnx")
    refused(call("eval", "--run", tiny_run, "--device", device), *words, code=2)
    if device == "openvino":
        pytest.importorskip("openvino")
        done = call("eval", "--model", tiny_onnx, "--against", tiny_run, "--device", device)
        refused(done, *words, code=2)


def test_exported_models_have_no_mps(tiny_onnx: Path) -> None:
    """torch's alone."""
    done = call("eval", "--model", tiny_onnx, "--device", "mps")
    refused(done, "cannot run on mps", "coreml", code=2)


def test_against_a_shipped_model(
    tiny_run: Path, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name; a name that does not ship is refused with those that do."""
    monkeypatch.setattr("biigma_cli.runtime.session.models_dir", lambda: tiny_onnx.parent)
    done = call("eval", "--run", tiny_run, "--against", tiny_onnx.stem, *FAST)
    assert done.code == 0, done.err
    told = "".join(done.out.split())  # a long path is broken into lines
    assert f"minus{tiny_onnx}".replace(" ", "") in told
    assert "paireddifferences" in told
    done = call("eval", "--run", tiny_run, "--against", "biigma-nothing", *FAST)
    refused(done, "no model 'biigma-nothing'", tiny_onnx.stem, code=3)


def test_a_gpu_that_is_not_used(tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` on the CPU of a machine with a GPU is said, with the cause."""

    def lacking(path: Path, *, device: str) -> Predictor:
        predictor = Predictor(path, device="cpu")
        predictor.fallback = "libcudnn.so.9 is missing"
        return predictor

    monkeypatch.setattr("biigma_cli.judge.candidate.Predictor", lacking)
    done = call("eval", "--model", tiny_onnx, "--resamples", "0")
    assert done.code == 0, done.err
    assert "is not on the GPU: libcudnn.so.9 is missing" in done.err


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "name", "word"),
    [
        ("--reliability", "a.pdf", "neither .svg nor .png"),
        ("--reliability", "folder.png", "is a folder"),
        ("--predictions-out", "folder.csv", "is a folder"),
        ("--predictions-out", "a.png", "is no .csv file"),
        ("--predictions-out", "plain/a.csv", "plain"),
    ],
)
def test_targets(tiny_run: Path, tmp_path: Path, option: str, name: str, word: str) -> None:
    """Where nothing can be written is said before the work."""
    for folder in ("folder.png", "folder.csv"):
        (tmp_path / folder).mkdir()
    (tmp_path / "plain").write_text("")
    refused(call("eval", "--run", tiny_run, option, tmp_path / name), word, code=2)
    refused(call("eval", "--run", tiny_run, option, tmp_path / name, "--json"), word, code=2)


def test_outputs_that_would_replace_each_other(
    tiny_run: Path, tiny_onnx: Path, tmp_path: Path
) -> None:
    """Or the model that is judged, its card, or a run's stored figures: said before the work."""
    model = tmp_path / "m.onnx"
    shutil.copy(tiny_onnx, model)
    before = model.read_bytes()
    words = "a file that is read"
    link = tmp_path / "link.csv"

    def linked(to: Path) -> tuple[str, Path]:
        """A table by its name, and in truth the file."""
        link.unlink(missing_ok=True)
        link.symlink_to(to)
        return "--predictions-out", link

    for name in ("m.onnx", "m.md"):
        done = call("eval", "--model", model, "--predictions-out", tmp_path / name, *FAST)
        refused(done, f"--predictions-out {tmp_path / name} is no .csv file", code=2)
        done = call("eval", "--model", model, *linked(tmp_path / name), *FAST)
        refused(done, f"--predictions-out {link}", words, code=2)
    target = linked(tiny_run / "eval-test.json")
    refused(call("eval", "--run", tiny_run, *target, *FAST), words, code=2)
    refused(
        call("eval", "--model", tiny_onnx, "--against", model, *linked(model), *FAST),
        words, code=2,
    )  # fmt: skip
    both = tmp_path / "h.svg"
    done = call("eval", "--run", tiny_run, "--heads", both, "--reliability", both, *FAST)
    refused(done, "--reliability and --heads are both", code=2)
    assert model.read_bytes() == before
    assert not both.exists()


@pytest.fixture
def own(tiny_run: Path, tiny_ham: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Records a data set of one's own, and gives the tiny network to judge on it.

    Train and val have one image of each class; `test` says the labels of the test part.
    """

    def make(test: Sequence[str], *, lesions: bool = False, head: float | None = None) -> Path:
        monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "home"))
        folder = tmp_path / "own"
        folder.mkdir()
        rows = [(c, part) for part in ("train", "val") for c in CODES] + [(c, "test") for c in test]
        lines = ["image,label,split" + ",lesion_id" * lesions]
        for i, (image, (code, part)) in enumerate(
            zip(sorted(tiny_ham.rglob("*.jpg")), rows, strict=False)
        ):
            # The last is called as the official image of weight 0.
            name = "ISIC_0035068.jpg" if i == len(rows) - 1 else image.name
            shutil.copy(image, folder / name)
            lines.append(f"{name},{code},{part}" + f",{part}{i // 2}" * lesions)
        (folder / "labels.csv").write_text("\n".join(lines))
        classes = ("--classes", ",".join(CODES))
        done = call("datasets", "add", "own", folder / "labels.csv", *classes)
        assert done.code == 0, done.err
        stored = load_checkpoint(tiny_run / "weights" / "best.safetensors")
        config = stored.meta["config"]
        config = {**config, "data": {**config["data"], "dataset": "own", "protocol": "official"}}
        split = make_split(
            load_manifest("own"), DataConfig(dataset="own", protocol="official", side=64)
        )
        tensors = dict(stored.tensors)
        if head is not None:
            name = next(k for k in tensors if k.startswith("model.head") and k.endswith("bias"))
            tensors[name] = torch.full_like(tensors[name], head)
        path = tmp_path / "own.safetensors"
        save_checkpoint(path, tensors, {**stored.meta, "config": config, "split": split.summary()})
        return path

    return make


def test_a_part_without_a_class(own: Any) -> None:
    """It is named, its figures are not defined, and macro figures leave it out."""
    model = own(["MEL", "NV", "MEL", "NV", "BKL", "NV", "NV"])
    done = call("eval", "--model", model, "--json", *FAST)
    assert done.code == 0, done.err
    assert "no image of BCC, AKIEC, DF, VASC: macro averages are over the other" in done.err
    result = json.loads(done.out)
    assert result["absent"] == ["BCC", "AKIEC", "DF", "VASC"]
    per_class = result["assessment"]["per_class"]
    assert per_class["DF"]["sensitivity"] == {
        "value": None, "low": None, "high": None, "why": "no image of this class",
    }  # fmt: skip
    recalls = [per_class[c]["sensitivity"]["value"] for c in ("MEL", "NV", "BKL")]
    assert result["macro_recall"] == pytest.approx(sum(recalls) / 3)
    assert re.search("few images of .*BKL: some resamples have none", done.err)
    shown = call("eval", "--model", model, *FAST)
    assert shown.code == 0, shown.err
    assert re.search(r"^ DF +0 +- ", shown.out, re.MULTILINE)


def test_one_class_only(own: Any, tmp_path: Path) -> None:
    """There is nothing to tell apart; nothing is written."""
    model = own(["NV"] * 4)
    target = tmp_path / "p.csv"
    done = call("eval", "--model", model, "--predictions-out", target, *FAST)
    refused(done, "all 3 images are of one class, NV", "two classes at least")
    assert not target.exists()


@pytest.mark.parametrize("lesions", [True, False])
def test_lesions(own: Any, lesions: bool) -> None:
    """Where no lesion is known images are drawn, and that is said."""
    model = own(["MEL", "MEL", "NV", "NV", "BCC", "BCC", "NV"], lesions=lesions)
    done = call("eval", "--model", model, *FAST)
    assert done.code == 0, done.err
    assert ("no lesions known, so images are resampled" in done.err) is not lesions
    assert ("40 resamples of lesions" in done.out) is lesions
    assert ("40 resamples of images" in done.out) is not lesions


def test_the_official_image_of_no_weight(own: Any, tmp_path: Path) -> None:
    """It does not count, but has its row in the predictions."""
    model = own(["MEL", "NV", "BCC", "NV"])
    target = tmp_path / "p.csv"
    done = call("eval", "--model", model, "--predictions-out", target, *FAST)
    assert "1 images of weight 0 are left out" in done.err
    assert "test, 3 images" in done.out
    assert "ISIC_0035068" in read_predictions(target).ids
    assert len(read_predictions(target).ids) == 4


def test_a_model_that_gives_nan(own: Any) -> None:
    """No figure is made of it."""
    refused(call("eval", "--model", own(["MEL", "NV", "BCC"], head=np.nan), *FAST), "NaN")


def test_a_second_model_of_other_classes(home: Path, tiny_run: Path) -> None:
    """Refused before either is run."""
    candidate = open_candidate(tiny_run / "weights" / "best.safetensors", torch.device("cpu"))

    def run(*_: Any) -> Any:
        raise AssertionError("run")

    first, second = (
        dataclasses.replace(candidate, name="m", classes=classes, run=run)
        for classes in (CODES, CODES[::-1])
    )
    with pytest.raises(CheckpointMismatch, match="VASC, DF"):
        judge(first, load_manifest("isic18"), "test", against=second)


def test_binary_task() -> None:
    """Of the paper's binary tasks the table shows the paper's columns, the JSON holds them."""
    from biigma_cli.cli.evaluate import _tables
    from biigma_cli.data.splits import Split
    from biigma_cli.judge import Judgement
    from biigma_cli.metrics import assess

    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    proba = rng.dirichlet((1, 1), 40).astype(np.float32)
    split = Split(
        dataset="isic17-mel", variant="", protocol="official", join_duplicates=False, seed=0,
        test_fraction=0.2, val_fraction=0.1, data_hash="d", train=(), val=(), test=(),
    )  # fmt: skip
    own = assess(labels, proba, ("MEL", "OTHER"), resamples=30)
    judged = Judgement(
        model="m", temperature=None, split=split, part="test", ids=(), label_n=labels,
        proba_nY=proba, lesions=False, assessment=own,
    )  # fmt: skip
    columns = judged.to_dict()["paper_columns"]
    assert columns["recall"]["value"] == own.overall["macro_recall"].value
    assert columns["sensitivity"]["value"] == own.per_class["MEL"]["sensitivity"].value
    shown = _tables(judged)
    for words in ("columns of the paper's Table 1", "sensitivity to MEL", "score > 0.5"):
        assert words in shown
    assert shown.index("macro-F1") < shown.index("the paper's Table 1") < shown.index("per class")


# --- other shares ----------------------------------------------------------------------------


def test_where_classes_are_rarer(tiny_onnx: Path, tmp_path: Path) -> None:
    """The classes' shares are asked for; what the part is like stays what it is."""
    page = tmp_path / "page"
    words = ("--prevalence", "malignant=0.02", *FAST)
    done = call("eval", "--model", tiny_onnx, *words, "--report", page)
    assert done.code == 0, done.err
    told = " ".join(done.out.split())
    assert "2.00% malignant" in told
    assert "1 - NPV" in told
    text = (page / "index.html").read_text(encoding="utf-8")
    assert "Where classes have other shares" in text
    assert "2.00% malignant" in text
    whole = json.loads(call("eval", "--model", tiny_onnx, *words, "--json").out)
    plain = json.loads(call("eval", "--model", tiny_onnx, *FAST, "--json").out)
    rarer = whole.pop("prevalence")
    assert whole == plain
    assert rarer["malignant"] == pytest.approx(0.02)
    assert rarer["images"] == plain["assessment"]["n"]
    recalls = {c: plain["assessment"]["per_class"][c]["sensitivity"]["value"] for c in CODES}
    assert rarer["answers"]["as judged"]["accuracy"]["value"] == pytest.approx(
        sum(share * recalls[code] for code, share in rarer["shares"].items())
    )
    # It states no class shares, or they are used.
    stated = Predictor(tiny_onnx, device="cpu").info.metadata.get("prior")
    assert ("corrected" in rarer["answers"]) == (stated is not None)
    if stated is not None:
        table = tmp_path / "p.csv"
        assert call("eval", "--model", tiny_onnx, *FAST, "--predictions-out", table).code == 0
        answers, records = read_predictions(table), load_manifest("isic18").by_id()
        label = np.array([CODES.index(records[i].label) for i in answers.ids])
        share = np.array([rarer["shares"][code] for code in CODES])
        new = at_prevalence(answers.score_nY, share / np.array(stated["implied"]))
        loss = -np.log(new[np.arange(len(label)), label])
        wanted = sum(s * loss[label == c].mean() for c, s in enumerate(share))
        found = rarer["answers"]["corrected"]["log_loss"]["value"]
        assert found == pytest.approx(wanted, abs=1e-3)


def test_a_runs_judgement_is_of_the_part_alone(tiny_run: Path) -> None:
    """What was asked for other shares is not kept in its place."""
    done = call("eval", "--run", tiny_run, "--prevalence", "MEL=0.3", *FAST)
    assert done.code == 0, done.err
    stored = json.loads((tiny_run / "eval-test.json").read_text(encoding="utf-8"))
    assert "prevalence" not in stored


def test_shares_that_cannot_be(tiny_onnx: Path, tmp_path: Path) -> None:
    """Refused before anything is judged."""
    for said, words in (
        ("MEL=x", "'MEL=x' is no share of a class"),
        ("NEV=0.1", "did you mean NV?"),
        ("malignant=0.1,MEL=0.1", "malignant goes with no other class"),
    ):
        done = call("eval", "--model", tiny_onnx, "--prevalence", said, *FAST)
        refused(done, words, code=2)
