"""`biigma score`: figures on stdout, notes on stderr, and every refusal."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from biigma_cli.data.submission import write_submission
from biigma_cli.metrics import assess
from biigma_cli.report.predictions import CsvWriter, Labels, Prediction, Provenance
from tests.conftest import Outcome, call

CODES = ("MEL", "NV", "BCC")
FAST = ("--resamples", "40")


def make(folder: Path, *, seed: int = 0, n: int = 60) -> tuple[Path, Path]:
    """Predictions of some skill, and the truth with lesions of two images."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % 3
    logits = np.random.default_rng(9).normal(size=(n, 3)) + 1.5 * np.eye(3)[truth]
    logits += 0.3 * rng.normal(size=(n, 3)) * seed
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    predictions = folder / f"predictions{seed}.csv"
    write_submission(predictions, [f"I{i:02}" for i in range(n)], scores, CODES)
    labels = folder / "truth.csv"
    rows = [f"I{i:02},{CODES[c].lower()},L{i // 2}" for i, c in enumerate(truth)]
    labels.write_text("image_id,dx,lesion_id\n" + "\n".join(rows) + "\n")
    return predictions, labels


def refused(done: Outcome, *words: str, code: int = 3) -> None:
    """One error, its fix, nothing on stdout."""
    assert done.code == code, done.err
    assert done.out == ""
    assert done.err.count("error:") == 1
    assert done.err.count("fix:") == 1
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err


def test_table(tmp_path: Path) -> None:
    """All figures with intervals, per class, the confusion matrix; notes stay on stderr."""
    predictions, truth = make(tmp_path)
    done = call("score", predictions, truth, *FAST)
    assert done.code == 0, done.err
    told = " ".join(done.out.split())
    for words in ("60 images; 95% percentile intervals (ECE: basic), 40 resamples of lesions",
                  "ISIC score",
                  "macro-F1", "log loss", "Brier", "ECE", "per class", "specificity",
                  "MEL against the rest", "sensitivity at 90% specificity",
                  "specificity at 95% sensitivity", "confusion matrix", ".. "):  # fmt: skip
        assert words in told
    assert "images" not in done.err


def test_json_is_what_the_functions_say(tmp_path: Path) -> None:
    """The figures are those of `assess`, intervals and seed included."""
    predictions, truth = make(tmp_path)
    done = call("score", predictions, truth, "--json", "--seed", "3", *FAST)
    assert done.code == 0, done.err
    result = json.loads(done.out)
    scores = np.loadtxt(predictions, delimiter=",", skiprows=1, usecols=(1, 2, 3))
    groups = [f"L{i // 2}" for i in range(60)]
    wanted = assess(np.arange(60) % 3, scores, CODES, groups=groups, resamples=40, seed=3)
    assert {k: result.pop(k) for k in ("predictions", "truth")} == {
        "predictions": str(predictions),
        "truth": str(truth),
    }
    malignancy = result.pop("malignancy")
    assert malignancy["malignant"] == 40
    assert malignancy["auc"]["value"] == pytest.approx(
        roc_auc_score(np.arange(60) % 3 != 1, scores[:, 0] + scores[:, 2])
    )
    assert result == json.loads(json.dumps(wanted.to_dict()))


def test_no_resamples(tmp_path: Path) -> None:
    """Figures without intervals."""
    predictions, truth = make(tmp_path)
    done = call("score", predictions, truth, "--resamples", "0")
    assert done.code == 0, done.err
    assert " .. " not in done.out
    assert "accuracy" in done.out


def test_against(tmp_path: Path) -> None:
    """Paired differences, and the other's figures; against itself all are 0."""
    predictions, truth = make(tmp_path)
    worse, _ = make(tmp_path, seed=5)
    done = call("score", predictions, truth, "--against", worse, "--json", *FAST)
    assert done.code == 0, done.err
    result = json.loads(done.out)
    other = result["against"]
    assert other["predictions"] == str(worse)
    apart = other["difference"]["overall"]["accuracy"]
    values = [r["overall"]["accuracy"]["value"] for r in (result, other)]
    assert apart["value"] == pytest.approx(values[0] - values[1])
    assert apart["value"] > 0
    assert other["difference"]["per_class"]["NV"]["auc"]["value"] is not None
    shown = call("score", predictions, truth, "--against", predictions, *FAST)
    assert "paired differences" in shown.out
    assert "+0.0000 .. +0.0000" in shown.out


def test_groups(tmp_path: Path) -> None:
    """Without lesions images are drawn, and that is said; a file of lesions mends it."""
    predictions, truth = make(tmp_path)
    bare = tmp_path / "bare.csv"
    bare.write_text("\n".join(r.rsplit(",", 1)[0] for r in truth.read_text().splitlines()))
    loose = call("score", predictions, bare, "--json", *FAST)
    assert "no lesions known" in loose.err
    assert json.loads(loose.out)["groups"] == 60
    grouped = call("score", predictions, bare, "--groups", truth, "--json", *FAST)
    assert "no lesions known" not in grouped.err
    assert json.loads(grouped.out)["groups"] == 30


def test_a_placeholder_is_no_lesion(tmp_path: Path) -> None:
    """In the truth and with --groups: images are drawn, with intervals as without the column."""
    predictions, truth = make(tmp_path)
    bare = tmp_path / "bare.csv"
    bare.write_text("\n".join(r.rsplit(",", 1)[0] for r in truth.read_text().splitlines()))
    loose = call("score", predictions, bare, "--json", *FAST)
    head, *rows = bare.read_text().splitlines()
    said = tmp_path / "said.csv"
    said.write_text("\n".join([f"{head},lesion_id", *(f"{row},unknown" for row in rows)]))
    for words in ((said,), (bare, "--groups", said)):
        done = call("score", predictions, *words, "--json", *FAST)
        assert done.code == 0, done.err
        assert "no lesions known" in done.err
        found, wanted = json.loads(done.out), json.loads(loose.out)
        assert found["overall"] == wanted["overall"]
        assert found["groups"] == 60


@pytest.mark.parametrize(("big", "told"), [(20, False), (21, True), (60, True)])
def test_a_lesion_of_many_images(tmp_path: Path, big: int, told: bool) -> None:
    """More than 20 images and a tenth are told of, in the truth and with --groups."""
    predictions, truth = make(tmp_path)
    head, *rows = truth.read_text().splitlines()
    rows = [f"{r.rsplit(',', 1)[0]},{'none yet' if n < big else n}" for n, r in enumerate(rows)]
    truth.write_text("\n".join([head, *rows]))
    for words in ((), ("--groups", truth)):
        done = call("score", predictions, truth, *words, *FAST)
        assert done.code == 0, done.err
        line = f"lesion_id 'none yet' has {big} of 60 images, which are resampled as one"
        assert (line in done.err) is told
    assert "lesion_id" not in call("score", predictions, truth, "--resamples", "0").err


def test_the_2017_form(tmp_path: Path) -> None:
    """Two tasks with the official threshold, and the mean AUC."""
    rng = np.random.default_rng(0)
    truth, predictions = tmp_path / "truth.csv", tmp_path / "p.csv"
    head = "image_id,melanoma,seborrheic_keratosis\n"
    rows = [(i % 3 == 0, i % 3 == 1) for i in range(30)]
    truth.write_text(head + "".join(f"I{i},{m:d}.0,{k:d}.0\n" for i, (m, k) in enumerate(rows)))
    said = [(0.4 * a + 0.6 * x, 0.4 * b + 0.6 * y) for (a, b), (x, y) in
            zip(rows, rng.random((30, 2)), strict=True)]  # fmt: skip
    predictions.write_text(head + "".join(f"I{i},{m},{k}\n" for i, (m, k) in enumerate(said)))
    done = call("score", predictions, truth, "--json", "--against", predictions, *FAST)
    assert done.code == 0, done.err
    result = json.loads(done.out)
    tasks = result["tasks"]
    assert set(tasks) == {"isic17-mel", "isic17-sk"}
    assert tasks["isic17-sk"]["classes"] == ["SK", "OTHER"]
    aucs = [t["per_class"][t["classes"][0]]["auc"]["value"] for t in tasks.values()]
    assert result["mean_auc"]["value"] == pytest.approx(sum(aucs) / 2)
    assert tasks["isic17-mel"]["against"]["difference"]["overall"]["brier"]["value"] == 0
    shown = call("score", predictions, truth, *FAST).out
    for words in ("mean of the two AUCs", "melanoma against the rest", "SK against the rest",
                  "sensitivity, score > 0.5"):  # fmt: skip
        assert words in shown
    three, _ = make(tmp_path)
    refused(call("score", predictions, truth, "--against", three), "different forms")


def test_rows_that_do_not_sum_to_one(tmp_path: Path) -> None:
    """No log loss, and why; with --normalise there is one."""
    predictions, truth = make(tmp_path)
    lines = predictions.read_text().splitlines()
    lines[1] = "I00,0.9,0.9,0.9"
    predictions.write_text("\n".join(lines))
    plain = call("score", predictions, truth, "--json", *FAST)
    assert plain.code == 0
    assert "1 rows do not sum to 1" in plain.err
    overall = json.loads(plain.out)["overall"]
    assert overall["log_loss"]["value"] is None
    assert overall["log_loss"]["why"]
    assert overall["macro_auc"]["value"] > 0.5
    assert "the scores do not sum to 1" in call("score", predictions, truth, *FAST).out
    divided = call("score", predictions, truth, "--json", "--normalise", *FAST)
    assert "divided by their sums" in divided.err
    assert json.loads(divided.out)["overall"]["log_loss"]["value"] > 0
    assert "images whose top score two classes share: 1" in divided.err


def test_a_class_without_an_image(tmp_path: Path) -> None:
    """It is named, its figures are None, and macro figures leave it out."""
    predictions, truth = make(tmp_path)
    kept = [r for r in truth.read_text().splitlines() if ",bcc," not in r]
    truth.write_text("\n".join(kept))
    done = call("score", predictions, truth, "--subset", "--json", *FAST)
    assert done.code == 0, done.err
    assert "20 images are not in every file; 40 are judged" in done.err
    assert "no image of BCC: macro averages are over the other classes" in done.err
    result = json.loads(done.out)
    assert result["absent"] == ["BCC"]
    assert result["per_class"]["BCC"]["sensitivity"]["why"] == "no image of this class"
    present = [result["per_class"][c]["sensitivity"]["value"] for c in ("MEL", "NV")]
    assert result["overall"]["macro_recall"]["value"] == pytest.approx(sum(present) / 2)
    shown = call("score", predictions, truth, "--subset", *FAST)
    assert "BCC" in shown.out


def test_a_rare_class_is_pointed_out(tmp_path: Path) -> None:
    """One image of a class: resamples without it are told of."""
    predictions, truth = make(tmp_path)
    rows = truth.read_text().splitlines()
    kept = [r for i, r in enumerate(rows) if ",bcc," not in r or i == 3]
    truth.write_text("\n".join(kept))
    done = call("score", predictions, truth, "--subset", *FAST)
    assert done.code == 0, done.err
    assert "few images of BCC" in done.err


def test_the_official_image_of_no_weight(tmp_path: Path) -> None:
    """It is left out, with a note, and its row of zeros is no fault."""
    predictions, truth = make(tmp_path)
    plain = json.loads(call("score", predictions, truth, "--json", *FAST).out)
    with predictions.open("a") as file:
        file.write("ISIC_0035068,0,0,0\n")
    with truth.open("a") as file:
        file.write("ISIC_0035068,nv,L0\n")
    done = call("score", predictions, truth, "--json", *FAST)
    assert "1 images of weight 0 are left out" in done.err
    assert "sum to 1" not in done.err
    result = json.loads(done.out)
    assert result["left_out"] == 1
    assert result["overall"] == plain["overall"]


def answers(predictions: Path, settings: dict[str, float] | None = None) -> Path:
    """The same predictions as `biigma predict` writes them: I00 unsure, I01 unlike the others."""
    labels = Labels(codes=CODES, names=CODES, malignant=(True, False, True))
    writer = CsvWriter(
        labels, Provenance(model="m@1", version="1", provider="p", settings=settings or {})
    )
    odd = {"I00": "can't say", "I01": "not dermoscopy"}
    items = []
    for line in predictions.read_text().splitlines()[1:]:
        image, *cells = line.split(",")
        values = dict(zip(CODES, map(float, cells), strict=True))
        items.append(
            Prediction(
                path=f"a, b/{image}.PNG" if image != "I02" else f"C:\\pictures\\{image}.dcm",
                label=odd.get(image, "MEL"),
                probabilities=values,
                malignant=0.3,
                suspicious=True if settings else None,
                novelty=0.4,
                note="the first of several frames",
            )
        )
    path = predictions.with_name("answers.csv")
    path.write_text(writer.head() + writer.rows(items) + writer.tail(60, 0))
    return path


def test_what_predict_writes(tmp_path: Path) -> None:
    """The figures are those of the submission form; rows with an error are said, and missing."""
    predictions, truth = make(tmp_path)
    own = answers(predictions)
    results = []
    for path in (predictions, own):
        done = call("score", path, truth, "--json", *FAST)
        assert done.code == 0, done.err
        results.append(json.loads(done.out))
    assert results[0]["classes"] == results[1]["classes"] == list(CODES)
    for name, figure in results[0]["overall"].items():
        assert results[1]["overall"][name]["value"] == pytest.approx(figure["value"], abs=1e-4)
    assert call("score", own, truth, "--against", predictions, *FAST).code == 0

    lines = own.read_text().splitlines()
    lines[4] = '"a, b/I03.PNG",,,,,,,,it is damaged,m@1,1,p,'
    own.write_text("\n".join(lines))
    done = call("score", own, truth, *FAST)
    assert "answers.csv: 1 row holds an error" in done.err
    assert "no row for 1 of 60 images of the truth: I03" in done.err
    done = call("score", own, truth, "--subset", "--json", *FAST)
    assert done.code == 0, done.err
    assert json.loads(done.out)["n"] == 59

    # A spreadsheet's, with a column of one's own.
    own.write_text(
        "\n".join(f"{line};1" for line in own.read_text().replace(",", ";").splitlines())
    )
    own.write_text(own.read_text().replace("settings;1", "settings;mine").replace("a; b/", "b/"))
    done = call("score", own, truth, "--subset", "--json", *FAST)
    assert done.code == 0, done.err
    own.write_text("\n".join([lines[0], lines[4]]))
    refused(call("score", own, truth, "--subset"), "answers.csv has nothing but errors")
    refused(call("score", truth, own), "answers.csv has no column image")


def test_what_predict_writes_of_suspicion(tmp_path: Path) -> None:
    """Its column is no class, and changes nothing."""
    predictions, truth = make(tmp_path)
    plain = call("score", answers(predictions), truth, "--json", *FAST)
    own = answers(predictions, {"suspicious_from": 0.3})
    assert ",novelty,suspicious,note," in own.read_text().splitlines()[0]
    found = call("score", own, truth, "--json", *FAST)
    assert found.code == plain.code == 0, found.err
    assert json.loads(found.out)["overall"] == json.loads(plain.out)["overall"]
    assert json.loads(found.out)["classes"] == list(CODES)


def test_the_truth_names_folders(tmp_path: Path) -> None:
    """Answers of `predict` go by files' names, and are found so where only the folder differs."""
    predictions, truth = make(tmp_path)
    own = answers(predictions)
    plain = json.loads(call("score", own, truth, "--json", *FAST).out)
    # A CSV that `datasets add` takes: most images lie in a folder.
    head, *rows = truth.read_text().splitlines()
    paths = [f"img/{r.replace(',', '.jpg,', 1)}" if n > 4 else r for n, r in enumerate(rows)]
    truth.write_text("\n".join([head, *paths]))
    for subset in ((), ("--subset",)):
        for other in ((), ("--against", predictions)):
            done = call("score", own, truth, *subset, *other, "--json", *FAST)
            assert done.code == 0, done.err
            assert "55 images are found in" in done.err
            assert "(I05 for img/I05)" in done.err
            assert "in every file" not in done.err
            found = json.loads(done.out)
            assert found["overall"] == plain["overall"]
            assert done.err.count("by the names of their files alone") == 1 + bool(other)
    lesions = tmp_path / "lesions.csv"
    lesions.write_text("image_id,dx,lesion_id\n" + "\n".join(rows))
    done = call("score", own, truth, "--groups", lesions)
    refused(done, "no row for 55 of 60 images", "img/I05 and I05 differ in their folder alone")

    # Another image of that name: which one is meant is nobody's guess.
    truth.write_text("\n".join([head, *paths, "img2/I06,nv,L99"]))
    done = call("score", own, truth)
    refused(done, "no row for 2 of 61", "I06 and img2/I06 differ in their folder alone")
    assert "names without folders count where no two images share one" in done.err
    truth.write_text("\n".join([head, paths[6], "img2/I06,nv,L99"]))
    refused(call("score", own, truth, "--subset"), "no image is in", "differ in their folder alone")


def test_answers_of_files_with_one_name(tmp_path: Path) -> None:
    """They are named with their folders."""
    predictions, truth = make(tmp_path)
    own = answers(predictions)
    own.write_text(own.read_text().replace("a, b/I04.PNG", "c/I03.PNG"))
    refused(call("score", own, truth), "a, b/I03.PNG and c/I03.PNG are both called I03")


def test_limits(tmp_path: Path) -> None:
    """What a limit of `predict` does on one's own images, as counted by hand."""
    predictions, truth = make(tmp_path)
    words = ("score", predictions, truth, *FAST)
    plain = json.loads(call(*words, "--json").out)
    assert plain["malignancy"]["limits"] == []
    assert "abstention" not in plain
    done = call(*words, "--abstain-below", "0.6", "--suspicious-from", "0.5", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["overall"] == plain["overall"]
    scores = {r["image"]: r for r in csv.DictReader(predictions.read_text().splitlines())}
    labels = {
        r["image_id"]: r["dx"].upper() for r in csv.DictReader(truth.read_text().splitlines())
    }
    proba = np.array([[float(scores[i][c]) for c in CODES] for i in labels])
    bad = np.array([c != "NV" for c in CODES])
    truly = np.array([label != "NV" for label in labels.values()])
    called = proba[:, bad].sum(1) >= 0.5
    (row,) = found["malignancy"]["limits"]
    assert row["min_sensitivity"] is None
    assert row["sensitivity"]["value"] == pytest.approx(called[truly].mean())
    assert row["specificity"]["value"] == pytest.approx(1 - called[~truly].mean())
    assert row["missed"] == (~called & truly).sum()
    (kept,) = found["abstention"]
    assert kept["coverage"]["value"] == pytest.approx((proba.max(1) >= 0.6).mean())
    shown = call(*words, "--abstain-below", "0.6", "--suspicious-from", "0.5").out
    assert "can't say: answers only from a limit on" in shown
    assert "suspicious from a limit on" in shown
    for option in ("--abstain-below", "--suspicious-from"):
        for wrong in ("1.5", "-1", "nan"):
            assert call(*words, option, wrong).code == 2


def with_unk(predictions: Path, *, share: float = 0.0) -> Path:
    """The same predictions with a class UNK that takes such a share of each."""
    head, *rows = predictions.read_text().splitlines()
    cells = [row.split(",") for row in rows]
    text = [f"{i},{','.join(str(float(v) * (1 - share)) for v in vs)},{share}" for i, *vs in cells]
    path = predictions.with_name("unk.csv")
    path.write_text("\n".join([f"{head},UNK", *text]))
    return path


def test_a_class_of_unknown_kind_without_an_image(tmp_path: Path) -> None:
    """It counts as not malignant, which is said once; the figures are those without its column."""
    predictions, truth = make(tmp_path)
    options = ("--suspicious-from", "0.3", "--prevalence", "malignant=0.02", *FAST, "--json")
    plain = call("score", predictions, truth, *options)
    assert "not known" not in plain.err
    done = call("score", with_unk(predictions), truth, *options)
    assert done.code == 0, done.err
    assert done.err.count("its probability counts as not malignant") == 1
    assert "no image of UNK, of which it is not known" in done.err
    found, wanted = json.loads(done.out), json.loads(plain.out)
    assert found["malignancy"] == wanted["malignancy"]
    assert found["prevalence"]["shares"] == {**wanted["prevalence"]["shares"], "UNK": 0}
    for ours, theirs in zip(
        found["prevalence"]["calls"], wanted["prevalence"]["calls"], strict=True
    ):
        assert ours["ppv"] == pytest.approx(theirs["ppv"])

    half = json.loads(call("score", with_unk(predictions, share=0.5), truth, *options).out)
    low = json.loads(
        call("score", predictions, truth, "--suspicious-from", "0.6", *FAST, "--json").out
    )
    assert half["malignancy"]["auc"] == low["malignancy"]["auc"]
    (ours,), (theirs,) = (f["malignancy"]["limits"] for f in (half, low))
    assert ours["sensitivity"] == theirs["sensitivity"]

    # The truth of ISIC 2019 has the column, too.
    columns = "image,MEL,NV,BCC,UNK\n"
    ones = "".join(f"I{i:02},{i % 3 == 0:d},{i % 3 == 1:d},{i % 3 == 2:d},0\n" for i in range(60))
    truth.write_text(columns + ones)
    done = call("score", with_unk(predictions), truth, *options)
    assert done.code == 0, done.err
    assert json.loads(done.out)["malignancy"]["malignant"] == 40


def test_a_class_of_unknown_kind_with_images(tmp_path: Path) -> None:
    """It is named, with its images, as what is in the way; what needs it is refused."""
    predictions, truth = make(tmp_path)
    text = truth.read_text().splitlines()
    text[1] = text[1].replace(",mel,", ",UNK,")
    truth.write_text("\n".join(text))
    own = with_unk(predictions)
    done = call("score", own, truth, *FAST, "--json")
    assert done.code == 0, done.err
    assert "malignancy" not in json.loads(done.out)
    assert "malignant against benign is not judged: of UNK (1 images) it is not" in done.err
    for option, value in (("--suspicious-from", "0.3"), ("--prevalence", "malignant=0.02")):
        done = call("score", own, truth, option, value, *FAST)
        refused(done, option, "of UNK (1 images) it is not known", "--subset", code=2)
        assert "another model" not in done.err
    # As the fix says.
    truth.write_text("\n".join([text[0], *text[2:]]))
    done = call("score", own, truth, "--subset", "--suspicious-from", "0.3", *FAST)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("kept", "kind"), [((",mel,", ",bcc,"), "malignant"), ((",nv,", ",df,"), "benign")]
)
def test_images_of_one_kind(tmp_path: Path, kept: tuple[str, ...], kind: str) -> None:
    """Nothing to tell apart: no word of it, and a refusal where it is asked for."""
    predictions, truth = make(tmp_path)
    if kind == "benign":
        for path, old in ((predictions, "BCC"), (truth, "bcc")):
            path.write_text(path.read_text().replace(old, "DF"))
    head, *rows = truth.read_text().casefold().splitlines()
    truth.write_text("\n".join([head, *(r for r in rows if any(k in r for k in kept))]))
    text = predictions.read_text().replace("image", "IMAGE").casefold()
    predictions.write_text(text)
    done = call("score", predictions, truth, "--subset", *FAST)
    assert done.code == 0, done.err
    assert "malignant" not in done.err
    for option, value in (("--suspicious-from", "0.3"), ("--prevalence", "malignant=0.02")):
        done = call("score", predictions, truth, "--subset", option, value, *FAST)
        refused(done, f"needs malignant and benign images: all here are {kind}", code=2)


# --- bad input -------------------------------------------------------------------------------


def test_one_class_only(tmp_path: Path) -> None:
    """A truth of one class has nothing to judge."""
    predictions, truth = make(tmp_path)
    rows = truth.read_text().splitlines()
    truth.write_text("\n".join([rows[0], *(r for r in rows if ",nv," in r)]))
    refused(call("score", predictions, truth, "--subset"), "all 20 images are of one class, NV")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("I03,", "I03,nan#", ("predictions0.csv has 1 cells", "line 5, MEL")),
        ("I03,", "I03,1.5#", ("line 5, MEL: 1.5 is outside 0..1",)),
        ("I03,", "I03,abc#", ("line 5, MEL: 'abc' is not a number",)),
        ("I03,", "I04,0.1#", ("come more than once: I04",)),
        ("I03,", "X03,0.1#", ("no row for 1 of 60", "I03", "does not know 1 of 60", "X03")),
        ("image,MEL", "file,MEL", ("no column image",)),
        ("image,MEL", "image,XYZ", ("no column for MEL (20 images)",)),
    ],
)
def test_faults_of_the_predictions(
    tmp_path: Path, old: str, new: str, words: tuple[str, ...]
) -> None:
    """NaN, out of range, text, doubles, foreign ids, columns."""
    predictions, truth = make(tmp_path)
    lines = predictions.read_text().splitlines()
    for n, line in enumerate(lines):
        if line.startswith(old):
            id_, _, value = new.partition(",")
            cells = line.split(",")
            cells[:2] = [id_, value.rstrip("#")]
            lines[n] = ",".join(cells)
    predictions.write_text("\n".join(lines))
    refused(call("score", predictions, truth, *FAST), *words)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    """Predictions, truth, groups and the other predictions."""
    predictions, truth = make(tmp_path)
    gone = tmp_path / "gone.csv"
    refused(call("score", gone, truth), "gone.csv")
    refused(call("score", predictions, gone), "gone.csv")
    refused(call("score", predictions, truth, "--groups", gone), "gone.csv")
    refused(call("score", predictions, truth, "--against", gone), "gone.csv")


def test_groups_without_an_image(tmp_path: Path) -> None:
    """A file of lesions must know every image."""
    predictions, truth = make(tmp_path)
    groups = tmp_path / "groups.csv"
    groups.write_text("image,lesion_id\nI00,L0\n")
    done = call("score", predictions, truth, "--groups", groups)
    refused(done, "no row for 59 of 60 images", "I01, I02", "and 49 more")


def test_files_in_the_wrong_order(tmp_path: Path) -> None:
    """Scores are no truth; the fix says which file comes first."""
    predictions, _ = make(tmp_path)
    done = call("score", predictions, predictions)
    refused(done, "neither 0 nor 1", "the predictions are the first")


@pytest.mark.parametrize("option", [("--resamples", "-1"), ("--seed", "-1"), ("--resamples", "x")])
def test_usage(tmp_path: Path, option: tuple[str, str]) -> None:
    """Numbers that cannot be are usage errors."""
    predictions, truth = make(tmp_path)
    assert call("score", predictions, truth, *option).code == 2


def named(folder: Path, name: str, classes: tuple[str, ...], truth: str) -> tuple[Path, Path]:
    """Predictions with these columns, and a truth by name whose classes go round."""
    rng = np.random.default_rng(len(name))
    scores = rng.dirichlet(np.ones(len(classes)), 60)
    lines = ["image," + ",".join(classes)]
    lines += [f"I{i:02}," + ",".join(f"{v:.6f}" for v in row) for i, row in enumerate(scores)]
    (folder / name).write_text("\n".join(lines) + "\n")
    rows = [f"I{i:02},{truth.split()[i % len(truth.split())]}" for i in range(60)]
    (folder / "truth.csv").write_text("image_id,dx\n" + "\n".join(rows) + "\n")
    return folder / name, folder / "truth.csv"


def test_names_with_brackets(tmp_path: Path) -> None:
    """They are names, not markup."""
    files = named(tmp_path, "p.csv", ("grade[a]", "b[/x]"), "grade[a] b[/x]")
    done = call("score", *files, *FAST)
    assert done.code == 0, done.err
    matrix = done.out[done.out.index("confusion matrix") :]
    assert matrix.count("grade[a]") == matrix.count("b[/x]") == 2


def test_against_with_other_columns(tmp_path: Path) -> None:
    """Their order is no matter; one that lacks a column is told before the resampling."""
    first, truth = named(tmp_path, "p.csv", ("x", "y", "q", "r"), "x y")
    second, _ = named(tmp_path, "pp.csv", ("r", "y", "q", "x"), "x y")
    done = call("score", first, truth, "--against", second, *FAST)
    assert done.code == 0, done.err
    lacking, _ = named(tmp_path, "ppp.csv", ("x", "y", "q"), "x y")
    for pair in ((first, lacking), (lacking, first)):
        done = call("score", pair[0], truth, "--against", pair[1], *FAST)
        refused(done, f"{lacking} has no column for r", "0 throughout")


def test_few_resamples_say_so(tmp_path: Path) -> None:
    """No title of intervals over columns without any."""
    predictions, truth = make(tmp_path)
    done = call("score", predictions, truth, "--resamples", "5")
    assert "no intervals: 5 resamples are too few" in done.out
    assert "percentile" not in done.out


# --- other shares ----------------------------------------------------------------------------


def test_where_classes_are_rarer(tmp_path: Path) -> None:
    """PPV and NPV at the shares that are given, in the table and as JSON."""
    predictions, truth = make(tmp_path)
    words = ("--prevalence", "malignant=0.03", "--suspicious-from", "0.4", *FAST)
    done = call("score", predictions, truth, *words)
    assert done.code == 0, done.err
    told = " ".join(done.out.split())
    # A third of the images each: the two malignant classes share evenly.
    assert "where MEL 1.50%, NV 97.00%, BCC 1.50%, 3.00% malignant: 60 images, worth" in told
    for words_ in ("PPV", "1 - NPV", "the answer", "from 0.4", "malignant, on average"):
        assert words_ in told
    found = json.loads(call("score", predictions, truth, *words, "--json").out)
    rarer = found["prevalence"]
    assert rarer["malignant"] == pytest.approx(0.03)
    by_limit = rarer["calls"][1]
    here = found["malignancy"]["limits"][0]
    sens, spec = here["sensitivity"]["value"], here["specificity"]["value"]
    assert by_limit["ppv"]["value"] == pytest.approx(
        0.03 * sens / (0.03 * sens + 0.97 * (1 - spec))
    )
    assert by_limit["ppv"]["value"] < here["ppv"]["value"]
    assert list(rarer["answers"]) == ["as judged"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("MEL", ("'MEL' is no share of a class",)),
        ("", ("'' is no share of a class",)),
        ("MEL=1.5", ("'MEL=1.5' is no share",)),
        ("mel=0.1", ("the truth has no class 'mel'", "did you mean MEL?")),
        ("MEL=0.7,NV=0.7", ("the shares sum to 1.4",)),
        ("MEL=0.1,NV=0.1,BCC=0.1", ("the shares sum to 0.3",)),
    ],
)
def test_shares_that_cannot_be(tmp_path: Path, said: str, words: tuple[str, ...]) -> None:
    """One message, before anything is resampled."""
    predictions, truth = make(tmp_path)
    done = call("score", predictions, truth, "--prevalence", said)
    refused(done, *words, code=2)
    assert "resamples" not in done.err


def test_all_shares_named(tmp_path: Path) -> None:
    """What rounding leaves of their sum is no share of the classes that are not."""
    predictions, truth = make(tmp_path)
    words = ("--prevalence", "MEL=0.7,BCC=0.3", *FAST, "--json")
    done = call("score", predictions, truth, *words)
    assert done.code == 0, done.err
    found = json.loads(done.out)["prevalence"]
    assert found["shares"] == {"MEL": 0.7, "NV": 0, "BCC": 0.3}
    assert found["calls"] == []


def test_a_share_without_an_image(tmp_path: Path) -> None:
    """Nothing can be said of a class that the truth has not."""
    predictions, truth = make(tmp_path)
    lines = truth.read_text().splitlines()
    truth.write_text("\n".join(line for line in lines if ",bcc," not in line) + "\n")
    words = ("--subset", *FAST)
    said = call("score", predictions, truth, "--prevalence", "BCC=0.1", *words)
    refused(said, "the truth has no image of BCC, which would be 10.00% of all", code=2)
    fine = call("score", predictions, truth, "--prevalence", "MEL=0.1", *words)
    assert fine.code == 0, fine.err
    assert "where MEL 10.00%, NV 90.00%, BCC 0.00%" in " ".join(fine.out.split())


def test_shares_are_for_probabilities(tmp_path: Path) -> None:
    """Scores of another sum have no log loss there either."""
    predictions, truth = make(tmp_path)
    rows = predictions.read_text().splitlines()
    head, first, rest = rows[0], rows[1].split(","), rows[2:]
    first[1] = "0.99999"
    predictions.write_text("\n".join([head, ",".join(first), *rest]) + "\n")
    words = ("--prevalence", "MEL=0.1", *FAST)
    refused(call("score", predictions, truth, *words), "1 rows do not sum to 1", code=2)
    assert call("score", predictions, truth, *words, "--normalise").code == 0
