"""Figures apart by sex, age and site."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from biigma_cli.data.manifest import Manifest, Record
from biigma_cli.data.splits import Split
from biigma_cli.errors import DataError
from biigma_cli.judge import Judgement
from biigma_cli.judge.subgroups import LEAK, age_band, judge_subgroups
from biigma_cli.metrics import assess, score_weight
from biigma_cli.metrics.subgroups import SUBGROUP_FIGURES, Subgroup, assess_subgroups

CODES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


def by_value(rows: tuple[Subgroup, ...]) -> dict[tuple[str, str], Subgroup]:
    """Rows by variable and value."""
    return {(row.by, row.value): row for row in rows}


@pytest.mark.parametrize(
    ("age", "band"),
    [
        ("0.0", "<30"), ("29", "<30"), ("29.9", "<30"), ("30", "30-44"), ("44.0", "30-44"),
        ("45", "45-59"), ("60", "60-74"), ("75", "75+"), ("85+", "unknown"), ("", "unknown"),
        ("nan", "unknown"), ("-5", "unknown"), ("999", "unknown"), ("inf", "unknown"),
    ],
)  # fmt: skip
def test_age_bands(age: str, band: str) -> None:
    """Bands begin at their first year; what is no age is unknown."""
    assert age_band(age) == band


def test_by_hand() -> None:
    """Twelve lesions of each of two values, counted by hand."""
    # a: 10 MEL of which 8 are found, 10 NV of which 9 are; b: 20 MEL, all found, 1 NV, not.
    label = np.array([0] * 10 + [1] * 10 + [0] * 20 + [1])
    answer = np.array([0] * 8 + [1] * 2 + [1] * 9 + [0] + [0] * 20 + [0])
    values = ["a"] * 20 + ["b"] * 21
    groups = [f"L{i}" for i in range(41)]
    rows = assess_subgroups(
        label, answer, CODES, {"sex": values}, groups=groups, asked="MEL", resamples=200
    )
    a, b = rows
    assert (a.images, a.lesions, a.positives, a.classes) == (20, 20, 10, ("MEL", "NV"))
    found = {name: a.figures[name].value for name in SUBGROUP_FIGURES}
    assert found == pytest.approx(
        {
            "accuracy": 17 / 20,
            "macro_recall": (8 / 10 + 9 / 10) / 2,
            "macro_f1": (2 * 8 / (10 + 9) + 2 * 9 / (10 + 11)) / 2,
            "sensitivity": 8 / 10,
            "specificity": 9 / 10,
        }
    )
    for figure in a.figures.values():
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low <= figure.value <= figure.high
    assert b.figures["accuracy"].value == pytest.approx(20 / 21)
    assert b.figures["sensitivity"].value is None
    assert b.figures["sensitivity"].why == "fewer than 10 other lesions"


def test_too_small() -> None:
    """Few lesions give no figure, few positives no sensitivity, one class no macro average."""
    label = np.array([0] * 9 + [1] * 30 + [0] * 3 + [1] * 20)
    values = ["few"] * 9 + ["one"] * 30 + ["rest"] * 23
    rows = assess_subgroups(
        label, label, CODES, {"site": values}, groups=[str(i) for i in range(62)],
        asked="MEL", resamples=50,
    )  # fmt: skip
    few, one, rest = rows
    assert {f.why for f in few.figures.values()} == {"fewer than 10 lesions"}
    assert one.figures["accuracy"].value == 1
    assert one.figures["macro_f1"].why == "one class only"
    assert one.figures["sensitivity"].why == "fewer than 10 positive lesions"
    assert rest.figures["macro_f1"].value == 1
    assert rest.figures["specificity"].value is None


def test_one_lesion_is_drawn_as_a_whole() -> None:
    """Thirty images of three lesions are three."""
    label = np.arange(30) % 2
    rows = assess_subgroups(
        label, label, CODES, {"sex": ["a"] * 30}, groups=[str(i // 10) for i in range(30)],
        asked="MEL", resamples=50,
    )  # fmt: skip
    assert rows[0].lesions == 3
    assert rows[0].figures["accuracy"].why == "fewer than 10 lesions"


def test_positives_are_counted_in_lesions() -> None:
    """Many images of few lesions are few; a lesion with both kinds counts for both."""
    few = np.array([0] * 30 + [1] * 20)
    lesions = [f"P{i % 3}" for i in range(30)] + [f"N{i}" for i in range(20)]
    mixed = np.array([0, 1] * 25)
    pairs = [f"M{i // 2 % 10}" for i in range(50)]
    rows = [
        assess_subgroups(
            label, label, CODES, {"sex": ["a"] * 50}, groups=groups, asked=asked, resamples=50
        )[0]
        for label, groups, asked in (
            (few, lesions, "MEL"),
            (few, lesions, "NV"),
            (mixed, pairs, "MEL"),
        )
    ]
    assert rows[0].positives == 30
    assert rows[0].figures["accuracy"].value == 1
    assert rows[0].figures["sensitivity"].why == "fewer than 10 positive lesions"
    assert rows[1].figures["specificity"].why == "fewer than 10 other lesions"
    assert rows[2].figures["sensitivity"].value == rows[2].figures["specificity"].value == 1


def test_one_subgroup_of_all_agrees_with_assess() -> None:
    """The same figures and the same intervals, as the resamples are the same."""
    rng = np.random.default_rng(3)
    label = rng.integers(0, 7, 300)
    proba = rng.dirichlet(np.ones(7), 300)
    proba[np.arange(300), label] += 0.4
    proba /= proba.sum(1, keepdims=True)
    groups = [str(i // 2) for i in range(300)]
    whole = assess(label, proba, CODES, groups=groups, resamples=100)
    row = assess_subgroups(
        label, proba.argmax(1), CODES, {"sex": ["a"] * 300}, groups=groups, asked="MEL",
        resamples=100,
    )[0]  # fmt: skip
    for name in SUBGROUP_FIGURES:
        other = whole.overall.get(name) or whole.per_class["MEL"][name]
        for end in ("value", "low", "high"):
            assert getattr(row.figures[name], end) == pytest.approx(getattr(other, end)), name


def test_lengths_must_match() -> None:
    """An error, not a broadcast."""
    with pytest.raises(DataError, match="not of the same images"):
        assess_subgroups(
            np.array([0, 1]), np.array([0, 1]), CODES, {"sex": ["a"]}, groups=["x", "y"], asked=None
        )


@pytest.fixture(scope="module")
def judged() -> tuple[Judgement, Manifest]:
    """Eighty images whose sex and age are told, in many ways, and whose site is not."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 7, 80)
    proba = rng.dirichlet(np.ones(7), 80).astype(np.float32)
    ids = (*(f"I{i:03}" for i in range(79)), "ISIC_0035068")
    sexes = ["male", " Female ", "unknown", "female"]
    records = tuple(
        Record(
            image_id=image, path=f"{image}.jpg", label=CODES[label[i]], lesion_id=f"L{i // 2}",
            digest="0", sex=sexes[i % 4], age="80.0" if i < 40 else "", site="",
        )
        for i, image in enumerate(ids)
    )  # fmt: skip
    manifest = Manifest(
        dataset="isic18", root=Path("images"), records=records, licence="", citation=""
    )
    split = Split(
        dataset="isic18", variant="", protocol="lesion", join_duplicates=False, seed=0,
        test_fraction=0.2, val_fraction=0.1, data_hash="d", train=(), val=(), test=ids,
    )  # fmt: skip
    groups = [r.lesion_id for r in records]
    own = assess(label, proba, CODES, groups=groups, counted=score_weight(ids), resamples=50)
    made = Judgement(
        model="m", temperature=None, split=split, part="test", ids=ids, label_n=label,
        proba_nY=proba, lesions=True, assessment=own,
    )  # fmt: skip
    return made, manifest


def test_from_the_manifest(judged: tuple[Judgement, Manifest]) -> None:
    """Ways of writing are one value, the unknown come last, and what nobody said is named."""
    found = judge_subgroups(*judged, resamples=50)
    assert [(row.by, row.value) for row in found.rows] == [
        ("sex", "female"), ("sex", "male"), ("sex", "unknown"), ("age", "75+"), ("age", "unknown"),
    ]  # fmt: skip
    assert found.absent == ("site",)
    assert found.asked == "MEL"
    rows = by_value(found.rows)
    # The image of weight 0 is the last, a woman's.
    assert rows["sex", "female"].images == 39
    assert rows["sex", "male"].images == 20
    assert sum(row.images for row in found.rows if row.by == "age") == 79
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["absent"] == ["site"]
    assert plain["rows"][0]["value"] == "female"


def test_ways_of_writing_a_sex(judged: tuple[Judgement, Manifest]) -> None:
    """Letter and word are one sex; the words for "unknown" are those of any column."""
    made, manifest = judged
    ways = ["M", "male", " Man", "f", "Female", "WOMAN ", "?", "#N/A", "unk", "intersex"]
    records = tuple(
        dataclasses.replace(r, sex=ways[i % 10], site="m") for i, r in enumerate(manifest.records)
    )
    found = judge_subgroups(made, dataclasses.replace(manifest, records=records), resamples=0)
    counts = {row.value: row.images for row in found.rows if row.by == "sex"}
    # The image of weight 0 is the last, of another sex.
    assert counts == {"male": 24, "female": 24, "unknown": 24, "intersex": 7}
    assert [row.value for row in found.rows if row.by == "site"] == ["m"]


def test_leak(judged: tuple[Judgement, Manifest]) -> None:
    """Where lesions lie on both sides, those are apart from the rest; where none does, no word."""
    made, manifest = judged
    other = dataclasses.replace(manifest.records[0], image_id="T1", lesion_id="L3")
    single = dataclasses.replace(manifest.records[0], image_id="T2", lesion_id="")
    unsaid = [dataclasses.replace(r, lesion_id="") for r in manifest.records[-3:]]
    more = dataclasses.replace(manifest, records=(*manifest.records[:-3], *unsaid, other, single))
    for train, leaks in ((("T2",), False), (("T1", "T2"), True)):
        split = dataclasses.replace(made.split, train=train)
        found = judge_subgroups(dataclasses.replace(made, split=split), more, resamples=0)
        rows = {row.value: row.images for row in found.rows if row.by == LEAK}
        # The last image has weight 0.
        assert rows == ({"yes": 2, "no": 75, "unknown": 2} if leaks else {})
        assert found.absent == ("site",)
    on_train = dataclasses.replace(made, split=split, part="train")
    assert all(row.by != LEAK for row in judge_subgroups(on_train, more, resamples=0).rows)


def test_nothing_known(judged: tuple[Judgement, Manifest]) -> None:
    """No subgroup, and all three named."""
    made, manifest = judged
    bare = tuple(dataclasses.replace(r, sex="", age="", site="unknown") for r in manifest.records)
    found = judge_subgroups(made, dataclasses.replace(manifest, records=bare), resamples=0)
    assert found.rows == ()
    assert found.absent == ("sex", "age", "site")
