"""`predict --prevalence`, and where a model's class shares come from."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from biigma_cli.cli.predict_pictures import Pictures
from biigma_cli.cli.prevalence import parse_shares
from biigma_cli.metrics import ClassPrior, at_prevalence
from biigma_cli.report.card import model_card
from biigma_cli.runtime.limits import Stated
from biigma_cli.runtime.session import Predictor
from biigma_cli.runtime.stored import store_figures
from tests.cli.test_abstention import ask, stating, stripped
from tests.cli.test_screening import PLAIN as SCREENING
from tests.conftest import call
from tests.runtime.test_pipeline import CODES, toy_model

PRIOR = ClassPrior(images=1000, shares=(0.1, 0.7, 0.2), implied=(0.2, 0.5, 0.3))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """One that states class shares, and limits."""
    return stating(tmp_path / "m.onnx", prior=PRIOR.to_dict(), screening=SCREENING)


def rows_of(text: str) -> list[dict[str, str]]:
    """Of a CSV."""
    return list(csv.DictReader(io.StringIO(text)))


def figures(rows: list[dict[str, str]]) -> np.ndarray:
    """Probabilities of a CSV's rows."""
    return np.array([[float(row[code]) for code in CODES] for row in rows])


def test_probabilities_and_answers(model: Path, pictures: Path) -> None:
    """Each is Bayes' rule on the model's own; answer and malignant probability follow."""
    own = rows_of(ask(model, pictures, "--format", "csv").out)
    done = ask(model, pictures, "--prevalence", "MEL=0.01, BCC=0.9", "--format", "csv")
    assert done.code == 0, done.err
    rows = rows_of(done.out)
    wanted = at_prevalence(figures(own), PRIOR.weights((0.01, 0.09, 0.9)))
    assert figures(rows) == pytest.approx(wanted, abs=2e-5)
    assert [r["label"] for r in rows] == [CODES[i] for i in wanted.argmax(1)]
    assert [r["label"] for r in rows] != [r["label"] for r in own]
    for row, p in zip(rows, wanted, strict=True):
        assert float(row["malignant_probability"]) == pytest.approx(p[0] + p[2], abs=2e-5)
        assert row["settings"] == "prevalence_MEL=0.01 prevalence_BCC=0.9"
    assert "probabilities where MEL 1.00%, NV 9.00%, BCC 90.00%" in done.err
    assert "validation images are MEL 10.00%, NV 70.00%, BCC 20.00%" in done.err


def test_all_malignant_classes(model: Path, pictures: Path) -> None:
    """Together; within them and the others as in the data."""
    done = ask(model, pictures, "--prevalence", "malignant=0.03", "--format", "csv")
    same = ask(model, pictures, "--prevalence", "MEL=0.01,BCC=0.02", "--format", "csv")
    assert figures(rows_of(done.out)) == pytest.approx(figures(rows_of(same.out)), abs=2e-5)
    assert rows_of(done.out)[0]["settings"] == "prevalence_malignant=0.03"


def test_suspicion(model: Path, pictures: Path) -> None:
    """A promised sensitivity is of the model's own probabilities; a limit by hand of those said."""
    words = ("--prevalence", "malignant=0.002", "--format", "csv")
    own = rows_of(ask(model, pictures, "--min-sensitivity", "0.9", "--format", "csv").out)
    done = ask(model, pictures, "--min-sensitivity", "0.9", *words)
    assert "judged by the model's own probabilities, not by these" in done.err
    kept = rows_of(done.out)
    assert [r["suspicious"] for r in kept] == [r["suspicious"] for r in own]
    assert "yes" in {r["suspicious"] for r in kept}
    by_hand = rows_of(ask(model, pictures, "--suspicious-from", "0.7", *words).out)
    assert {r["suspicious"] for r in by_hand} == {"no"}


def test_a_promise_holds_for_the_mix_of_malignant_classes(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    """One class is found more often than another, so their shares of each other must stay."""
    page = tmp_path / "page.html"
    promised = ("--min-sensitivity", "0.9", "--format", "csv")
    for mix in ("MEL=0.001,BCC=0.001", "MEL=0.02", "BCC=0"):
        done = ask(model, pictures, "--prevalence", mix, *promised)
        assert done.code == 2, done.err
        assert done.out == ""
        assert "they have of each other on the validation images, not for others" in done.err
        assert "--prevalence malignant=" in done.err
        assert ask(model, pictures, "--prevalence", mix, "--format", "csv").code == 0
    # In the data BCC is twice as frequent as MEL; without any there is nothing to miss.
    for mix in ("MEL=0.01,BCC=0.02", "NV=0.9", "malignant=0", "malignant=0.9"):
        done = ask(model, pictures, "--prevalence", mix, *promised, "--report", page)
        assert done.code == 0, done.err
        assert "of at least 90.0% and is of the model&#39;s own probabilities" in page.read_text()


def test_what_answers_alone_miss_is_said(model: Path, pictures: Path) -> None:
    """Where malignant images are rarer and nothing else looks for them."""
    words = "so the rarer malignant images are, the more of them are called benign"
    for mix, more, said in (
        ("malignant=0.02", (), True),
        ("malignant=0.02", ("--min-sensitivity", "0.9"), False),
        ("malignant=0.02", ("--suspicious-from", "0.1"), False),
        ("malignant=0.6", (), False),
    ):
        done = ask(model, pictures, "--prevalence", mix, *more, "--format", "csv")
        assert done.code == 0, done.err
        assert (words in done.err) == said, (mix, more)


def test_spellings(model: Path, pictures: Path) -> None:
    """Rows of the same shares say the same, and a slip gets the name that was meant."""
    one = ask(model, pictures, "--prevalence", "BCC=-0,MEL=0.1", "--format", "csv")
    two = ask(model, pictures, "--prevalence", "MEL=0.1,BCC=0", "--format", "csv")
    assert one.code == 0, one.err
    assert one.out == two.out
    assert ",-0" not in one.out
    assert "-0.00%" not in one.err
    for wrong, meant in (("Malignant", "malignant"), ("malignent", "malignant"), ("mel", "MEL")):
        done = ask(model, pictures, "--prevalence", f"{wrong}=0.1")
        assert done.code == 2
        assert f"did you mean {meant}?" in done.err
    done = ask(model, pictures, "--prevalence", "XYZ=0.1")
    assert "choose from: MEL, NV, BCC, malignant" in done.err
    done = ask(model, pictures, "--prevalence", "MEL=0.3,NV=0.5,BCC=0.200003")
    assert "the shares sum to 1.000003" in done.err


def test_each_form(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page and the pictures show the answer that the row has."""
    page = tmp_path / "page.html"
    drawn: list[str] = []
    plain = Pictures.add

    def told(self: Pictures, items: Any, results: Any) -> Any:
        """The class whose evidence is drawn is the most probable one of what comes here."""
        drawn.extend(CODES[int(r.probabilities_Y.argmax())] for r in results)
        return plain(self, items, results)

    monkeypatch.setattr(Pictures, "add", told)
    words = ("--prevalence", "MEL=0.01,BCC=0.9")
    done = ask(model, pictures, *words, "--report", page, "--format", "jsonl")
    assert done.code == 0, done.err
    told_rows = [json.loads(line) for line in done.out.splitlines()]
    assert drawn == [row["label"] for row in told_rows]
    text = page.read_text(encoding="utf-8")
    assert "a prevalence of MEL 0.01, a prevalence of BCC 0.9" in text
    for row in told_rows:
        assert f"answered {row['label']}" in text
        assert row["settings"] == {"prevalence_MEL": 0.01, "prevalence_BCC": 0.9}


def test_given_several_times(model: Path, pictures: Path) -> None:
    """As if all were given at once."""
    once = ask(model, pictures, "--prevalence", "MEL=0.01,BCC=0.9", "--format", "csv")
    several = ask(
        model, pictures, "--prevalence", "MEL=0.01", "--prevalence", "BCC=0.9", "--format", "csv"
    )
    assert (several.code, several.out) == (0, once.out)


def test_a_code_with_a_comma() -> None:
    """Commas stand between classes only behind a share."""
    assert parse_shares(["a, b=0.1,c=0.2"]) == {"a, b": 0.1, "c": 0.2}
    assert parse_shares(["c=0.2, a, b, c = 0.1"]) == {"c": 0.2, "a, b, c": 0.1}
    assert parse_shares(["a=b=0.1"]) == {"a=b": 0.1}


def test_resumed_with_other_shares(model: Path, pictures: Path, tmp_path: Path) -> None:
    """Rows made for others are refused."""
    target = tmp_path / "a.csv"
    assert ask(model, pictures, "--prevalence", "MEL=0.1", "-o", target).code == 0
    target.rename(tmp_path / "a.csv.part")
    done = ask(model, pictures, "--prevalence", "MEL=0.2", "-o", target, "--resume")
    assert done.code == 3
    assert "settings" in done.err
    assert ask(model, pictures, "--prevalence", "MEL=0.1", "-o", target, "--resume").code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("MEL",), "'MEL' is no share of a class"),
        (("",), "'' is no share of a class"),
        (("MEL=1%",), "'MEL=1%'"),
        (("MEL=1.5",), "shares from 0 to 1"),
        (("MEL=nan",), "'MEL=nan'"),
        (("MEL=.1,MEL=.2",), "names MEL twice"),
        (("MEL=.1", "--prevalence", "MEL=.1"), "names MEL twice"),
        (("MEL=.1,",), "'' is no share of a class"),
        (("MEL=.1,,NV=.2",), "no class ',NV'"),
        (("mel=.1",), "did you mean MEL?"),
        (("XYZ=.1",), "choose from: MEL, NV, BCC"),
        (("MEL=.6,NV=.6",), "the shares sum to 1.2"),
        (("MEL=.1,NV=.1,BCC=.1",), "the shares sum to 0.3"),
        (("malignant=.1,MEL=.1",), "malignant goes with no other class"),
        (("MEL=.1", "--tta"), "not those of --tta"),
        (("MEL=.1", "--max-error", "0.2"), "limits of --max-error"),
    ],
)
def test_what_cannot_be(
    model: Path, pictures: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    """One message, and nothing is written."""
    target = tmp_path / "a.csv"
    done = ask(model, pictures, "--prevalence", *words, "-o", target)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("fix:") == 1
    assert not target.exists()


def test_a_model_without_shares(tmp_path: Path, pictures: Path) -> None:
    """It says how to get them; damaged ones are an error of the file, for this option alone."""
    done = ask(toy_model(tmp_path / "m.onnx"), pictures, "--prevalence", "MEL=0.1")
    assert done.code == 2
    assert "states no class shares" in done.err
    assert "--split val --store" in done.err
    short = ClassPrior(images=9, shares=(0.5, 0.5), implied=(0.5, 0.5)).to_dict()
    for wrong in ({"shares": 1}, short):
        damaged = toy_model(tmp_path / "d.onnx", prior=wrong)
        done = ask(damaged, pictures, "--prevalence", "MEL=0.1")
        assert done.code == 3
        assert "damaged metadata (prior)" in done.err
        assert ask(damaged, pictures).code == 0


def test_a_model_that_cannot_tell(tmp_path: Path, pictures: Path) -> None:
    """Shares of classes are taken, one of the malignant is not."""
    blind = toy_model(tmp_path / "b.onnx", prior=PRIOR.to_dict(), malignant=[None] * 3)
    assert ask(blind, pictures, "--prevalence", "MEL=0.1").code == 0
    done = ask(blind, pictures, "--prevalence", "malignant=0.1")
    assert done.code == 2
    assert "does not tell malignant from benign" in done.err


def test_stored(tiny_onnx: Path, tmp_path: Path) -> None:
    """The export found them; `eval --split val --store` finds the same, and the card shows them."""
    wanted = Predictor(tiny_onnx, device="cpu").info.metadata["prior"]
    assert ClassPrior.from_dict(wanted).images > 0
    path = stripped(tiny_onnx, tmp_path / "m.onnx", "prior")
    said = Predictor(path, device="cpu").info.metadata
    card = model_card("m", said, parameters=1, megabytes=1.0, commands=[])
    path.with_suffix(".md").write_text(card, encoding="utf-8")
    done = call("eval", "--model", path, "--split", "val", "--store", "--resamples", "20")
    assert done.code == 0, done.err
    found = Predictor(path, device="cpu").info.metadata["prior"]
    assert found["shares"] == wanted["shares"]
    assert found["implied"] == pytest.approx(wanted["implied"], rel=1e-3)
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert "| class | share | implied |" in card
    assert f"{found['implied'][0]:.3f}" in card


def test_what_is_flagged_has_no_part_in_it() -> None:
    """Shares and what the probabilities stand for are those of the images that get an answer."""
    rng = np.random.default_rng(2)
    label = np.arange(90) % 3
    proba = rng.dirichlet((1, 1, 1), 90)
    flagged = label * (np.arange(90) < 60) == 1
    groups = [str(i) for i in range(90)]
    found = Stated.find(label, proba, (True, False, True), groups, flagged_n=flagged).prior
    kept = Stated.find(
        label[~flagged], proba[~flagged], (True, False, True),
        [g for g, f in zip(groups, flagged, strict=True) if not f], flagged_n=None,
    ).prior  # fmt: skip
    assert found is not None
    assert found.images == 70
    assert found == kept


def test_stored_anew_without_shares(model: Path) -> None:
    """What is no longer found does not stay in the file."""
    assert "prior" in Predictor(model, device="cpu").info.metadata
    kept = store_figures(model, "val", {}, stated=None)
    assert {"prior", "screening"} <= kept.keys()
    left = store_figures(model, "val", {}, stated=Stated())
    assert not {"prior", "screening"} & left.keys()
    assert not {"prior", "screening"} & Predictor(model, device="cpu").info.metadata.keys()
