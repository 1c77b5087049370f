"""`predict --min-sensitivity` and `--suspicious-from`, and where the limits come from."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from biigma_cli.metrics import ScreeningLimit, ScreeningLimits
from biigma_cli.report.predictions import Labels, prediction
from biigma_cli.runtime.session import Predictor
from tests.cli.test_abstention import ask, stating, stripped
from tests.conftest import call
from tests.runtime.test_pipeline import toy_model

PLAIN = ScreeningLimits(
    malignant=200,
    effective=180.0,
    benign=800,
    rows=(
        ScreeningLimit(0.0, 0, 0, 0.0165),
        ScreeningLimit(0.6, 2, 200, 0.035),
        ScreeningLimit(0.7, 10, 400, 0.092),
        ScreeningLimit(0.8, 60, 790, 0.36),
    ),
).to_dict()


def rows_of(text: str) -> list[dict[str, str]]:
    """Of a CSV."""
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """One that states limits of both kinds."""
    return stating(tmp_path / "m.onnx", screening=PLAIN)


def test_the_limit_is_chosen(model: Path, pictures: Path) -> None:
    """The same rows as with `--suspicious-from` and that limit; what it did is said."""
    done = ask(model, pictures, "--min-sensitivity", "0.9", "--format", "csv")
    assert done.code == 0, done.err
    assert "suspicious from 0.7 on: of 200 malignant validation images 95.0% are" in done.err
    assert "of 800 benign ones 50.0%; at least 0.9 of the malignant with 95%" in done.err
    same = ask(model, pictures, "--suspicious-from", "0.7", "--format", "csv")
    assert same.out == done.out.replace(" min_sensitivity=0.9", "")
    rows = rows_of(done.out)
    assert {r["suspicious"] for r in rows} == {"yes", "no"}
    for row in rows:
        assert (row["suspicious"] == "yes") == (float(row["malignant_probability"]) >= 0.7)
        assert row["settings"] == "suspicious_from=0.7 min_sensitivity=0.9"
    count = sum(r["suspicious"] == "yes" for r in rows)
    assert 0 < count < 30
    assert f"{count} called suspicious" in done.err
    stricter = rows_of(ask(model, pictures, "--min-sensitivity", ".96", "--format", "csv").out)
    assert sum(r["suspicious"] == "yes" for r in stricter) > count


def test_each_form(model: Path, pictures: Path, tmp_path: Path) -> None:
    """JSON has a truth value, the table and the page say it; nothing of it where nobody asked."""
    words = (pictures, "--suspicious-from", "0.7")
    told = [json.loads(line) for line in ask(model, *words, "--format", "jsonl").out.splitlines()]
    wanted = [r["suspicious"] for r in rows_of(ask(model, *words, "--format", "csv").out)]
    assert [{True: "yes", False: "no"}[r["suspicious"]] for r in told] == wanted
    table = ask(model, *words).out
    assert "suspicious" in table.splitlines()[1]
    page = tmp_path / "page.html"
    assert ask(model, *words, "--report", page).code == 0
    text = page.read_text(encoding="utf-8")
    assert text.count('<span class="tag">suspicious</span>') == wanted.count("yes")
    assert "suspicious from a malignancy of 0.7 on" in text
    for form in ("csv", "jsonl", "table"):
        assert "suspicious" not in ask(model, pictures, "--format", form).out


def test_a_class_of_that_name(pictures: Path, tmp_path: Path) -> None:
    """A user's own class may be called so: its column stays its own, wherever it stands."""
    for codes in (["suspicious", "benign", "third"], ["benign", "third", "suspicious"]):
        own = {"classes": codes, "class_names": codes, "malignant": [None] * 3}
        target = tmp_path / "a.csv"
        done = ask(stating(tmp_path / "m.onnx", **own), pictures, "-o", target)
        assert done.code == 0, done.err
        truth = tmp_path / "truth.csv"
        names = [Path(r["path"]).stem for r in rows_of(target.read_text())]
        lines = [f"{name},{codes[i % 3]}" for i, name in enumerate(names)]
        truth.write_text("\n".join(["image,label", *lines]))
        done = call("score", target, truth, "--json", "--resamples", "0")
        assert done.code == 0, done.err
        assert set(json.loads(done.out)["classes"]) == set(codes)


def test_parquet(model: Path, pictures: Path, tmp_path: Path) -> None:
    """Texts beside figures."""
    parquet = pytest.importorskip("pyarrow.parquet")
    target = tmp_path / "a.parquet"
    assert ask(model, pictures, "--suspicious-from", "0.7", "-o", target).code == 0
    rows = parquet.read_table(target).to_pylist()
    assert {r["suspicious"] for r in rows} == {"yes", "no"}
    assert all((r["suspicious"] == "yes") == (r["malignant_probability"] >= 0.7) for r in rows)


def test_flagged() -> None:
    """Of what is no dermoscopy nothing is said."""
    labels = Labels(codes=("A", "B"), names=("A", "B"), malignant=(True, False))
    for novelty, wanted in ((0.5, True), (1.5, None), (None, True)):
        found = prediction("x", [0.8, 0.2], labels, suspicious_from=0.5, novelty=novelty)
        assert found.suspicious is wanted
    assert prediction("x", [0.8, 0.2], labels).suspicious is None
    assert prediction("x", [0.5, 0.5], labels, suspicious_from=0.5).suspicious is True


def test_with_abstention(model: Path, pictures: Path) -> None:
    """Of an image that gets no answer it is still said; the two limits do not touch."""
    done = ask(
        model, pictures, "--max-error", "0.05", "--min-sensitivity", "0.9", "--format", "csv"
    )
    assert done.code == 0, done.err
    rows = rows_of(done.out)
    unsure = [r for r in rows if r["label"] == "can't say"]
    assert unsure
    assert all(r["suspicious"] in ("yes", "no") for r in rows)
    assert rows[0]["settings"] == (
        "abstain_below=0.5 max_error=0.05 suspicious_from=0.7 min_sensitivity=0.9"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--min-sensitivity", "0"), "--min-sensitivity is 0"),
        (("--min-sensitivity", "1"), "such as 0.9"),
        (("--min-sensitivity", "nan"), "--min-sensitivity is nan"),
        (("--suspicious-from", "1.5"), "--suspicious-from is 1.5"),
        (("--suspicious-from", "nan"), "--suspicious-from is nan"),
        (("--min-sensitivity", "0.9", "--suspicious-from", "0.5"), "both --suspicious-from and"),
        (("--min-sensitivity", "0.9", "--tta"), "not of --tta"),
        (("--min-sensitivity", "0.99"), "ask for --min-sensitivity 0.98, the next"),
    ],
)
def test_what_cannot_be_promised(
    model: Path, pictures: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    """One message, and nothing is written."""
    target = tmp_path / "a.csv"
    done = ask(model, pictures, *words, "-o", target)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("fix:") == 1
    assert not target.exists()


def test_a_model_without_limits(tmp_path: Path, pictures: Path) -> None:
    """It says how to get them; damaged ones are an error of the file, for this option alone."""
    done = ask(toy_model(tmp_path / "m.onnx"), pictures, "--min-sensitivity", "0.9")
    assert done.code == 2
    assert "states no limits for --min-sensitivity" in done.err
    assert "--split val --store" in done.err
    damaged = stating(tmp_path / "d.onnx", screening={"rows": [[1]]})
    done = ask(damaged, pictures, "--min-sensitivity", ".9")
    assert done.code == 3
    assert "damaged metadata (screening)" in done.err
    assert ask(damaged, pictures, "--max-error", ".2").code == 0


def test_a_model_that_cannot_tell(tmp_path: Path, pictures: Path) -> None:
    """Where a class is not known to be malignant or benign, both options are refused."""
    path = stating(tmp_path / "m.onnx", screening=PLAIN)
    count = len(Predictor(path, device="cpu").info.classes)
    blind = stating(tmp_path / "b.onnx", screening=PLAIN, malignant=[None] * count)
    for words in (("--min-sensitivity", "0.9"), ("--suspicious-from", "0.5")):
        done = ask(blind, pictures, *words)
        assert done.code == 2
        assert "does not tell malignant from benign" in done.err


def test_resumed_with_another_limit(model: Path, pictures: Path, tmp_path: Path) -> None:
    """Rows made with another limit are refused."""
    target = tmp_path / "a.csv"
    assert ask(model, pictures, "--suspicious-from", "0.3", "-o", target).code == 0
    target.rename(tmp_path / "a.csv.part")
    done = ask(model, pictures, "--suspicious-from", "0.4", "-o", target, "--resume")
    assert done.code == 3
    assert "settings" in done.err
    assert ask(model, pictures, "--suspicious-from", "0.3", "-o", target, "--resume").code == 0


def stated(path: Path) -> dict[str, Any]:
    """What a file states."""
    found: dict[str, Any] = Predictor(path, device="cpu").info.metadata["screening"]
    return found


def test_judged_and_stored(tiny_onnx: Path, tmp_path: Path) -> None:
    """The export found them; `eval` finds the same on validation, and judges them on test."""
    path = stripped(tiny_onnx, tmp_path / "m.onnx", "screening")
    card = path.with_suffix(".md")
    assert "| at least | limit |" not in card.read_text(encoding="utf-8")
    words = ("eval", "--model", path, "--resamples", "40", "--device", "cpu", "--json")
    done = call(*words, "--split", "val", "--store")
    assert done.code == 0, done.err
    assert stated(path) == stated(tiny_onnx)
    assert card.read_text(encoding="utf-8").count("| at least | limit | sensitivity |") == 1
    found = json.loads(done.out)["malignancy"]
    assert found["malignant"] == stated(path)["malignant"]
    done = call(*words, "--split", "test")
    found = json.loads(done.out)["malignancy"]
    assert [row["min_sensitivity"] for row in found["limits"]] == [0.95, 0.9, 0.8]
    assert 0 <= found["auc"]["low"] <= found["auc"]["value"] <= found["auc"]["high"] <= 1
    assert json.loads(call(*words, "--split", "test", "--tta").out)["malignancy"]["limits"] == []
    # A file of an earlier version says nothing of it; one that was judged since does.
    assert "malignant found" not in call("models", path).out
    assert call(*words, "--split", "test", "--store").code == 0
    (told,) = json.loads(call("models", path, "--json").out)
    assert told["test"]["malignancy"] == found


def test_shown_by_eval(tiny_onnx: Path, tmp_path: Path) -> None:
    """On the terminal and on the page; of eight views the AUC alone."""
    words = ("eval", "--model", tiny_onnx, "--resamples", "40", "--device", "cpu")
    done = call(*words, "--report", tmp_path / "page")
    assert done.code == 0, done.err
    assert "suspicious from a limit on (predict --min-sensitivity)" in done.out
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert "Suspicious from a limit on; missed: malignant, and not suspicious" in page
    assert page.count("#malignancy") == 1
    over = call(*words, "--tta").out
    assert "): AUC " in over
    assert "suspicious from" not in over
