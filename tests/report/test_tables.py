"""Tables in terminals of any width: what does not fit folds, and nothing is lost."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from biigma_cli.metrics import Assessment, assess
from biigma_cli.report.predictions import Labels, Prediction, TableWriter, prediction
from biigma_cli.report.tables import assessment_tables, render
from biigma_cli.taxonomy import ISIC18, lesion_class

CODES = ISIC18.codes
LABELS = Labels(
    codes=CODES,
    names=tuple(c.name for c in ISIC18.classes),
    malignant=tuple(c.malignant for c in ISIC18.classes),
)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def answers(*, noted: bool) -> list[Prediction]:
    """Files with a long name, of any answer, each figure another; the last is an error."""
    rng = np.random.default_rng(0)
    found = [
        prediction(
            f"a/folder of pictures/below/another/ISIC_{i:07}.jpg",
            np.round(rng.dirichlet(np.ones(7)), 4).tolist(),
            LABELS,
            abstain_below=0.4,
            novelty=1.5 if i == 2 else 0.5,
            note="the first of several frames" if noted and i % 2 else "",
        )
        for i in range(6)
    ]
    return [*found, Prediction(path="x.png", error="x.png is damaged: image file is truncated")]


@pytest.mark.parametrize("noted", [False, True])
@pytest.mark.parametrize("width", [120, 80, 72, 60, 40, 24])
def test_every_figure_of_an_answer(
    monkeypatch: pytest.MonkeyPatch, width: int, noted: bool
) -> None:
    """As often as in a file, where there is room for all; names and errors whole."""
    items = answers(noted=noted)
    plain = TableWriter(LABELS, 3, colour=False)
    wanted = plain.rows(items) + plain.tail(6, 1)
    monkeypatch.setenv("COLUMNS", str(width))
    writer = TableWriter(LABELS, 3, colour=True)
    out = COLOUR.sub("", writer.rows(items) + writer.tail(6, 1))
    assert max(map(len, out.splitlines())) <= width
    figures = re.compile(r"\d+\.\d%")
    assert Counter(figures.findall(out)) == Counter(figures.findall(wanted))
    assert len(figures.findall(out)) == 6 * 4
    assert out.count("several") == 3 * noted
    for word in ("dermoscopy", "can't", "truncated"):
        assert out.count(word) == wanted.count(word) > 0
    is_table = width >= 80 or (width == 72 and not noted)
    assert (out.count("malignant") == 1) == is_table
    if width in (60, 40):
        letters = re.sub(r"\s+", "", out)
        assert all(re.sub(r"\s", "", item.path) in letters for item in items)


@pytest.fixture(scope="module")
def assessed() -> Assessment:
    """Of the seven classes, with intervals."""
    scores = np.random.default_rng(0).dirichlet(np.ones(7), 140)
    return assess(np.arange(140) % 7, scores, CODES, resamples=40)


@pytest.mark.parametrize("width", [80, 72, 66, 60, 45])
def test_every_figure_of_an_assessment(assessed: Assessment, width: int) -> None:
    """Classes stay whole, figures too, each in its place."""
    items = assessment_tables(assessed, title="title")
    wanted = render(*assessment_tables(assessed, title="title"), width=1000, colour=False)
    out = render(*items, width=width, colour=False)
    assert max(map(len, out.splitlines())) <= width
    assert "…" not in out
    if width < 60:
        assert Counter(re.sub(r"\D", "", out)) == Counter(re.sub(r"\D", "", wanted))
        return
    figures = re.compile(r"[01]\.\d{3,4}\b")
    assert Counter(figures.findall(out)) == Counter(figures.findall(wanted))
    for code in CODES:
        assert len(re.findall(rf"(?m)^ {code}\b", out)) == 3
    name = lesion_class("AKIEC").name.split()
    assert all(word in out for word in name)


def test_a_long_class(assessed: Assessment) -> None:
    """It folds, and leaves the figures their room."""
    code = "a class that somebody has given a name of many words"
    scores = np.random.default_rng(0).dirichlet(np.ones(2), 40)
    items = assessment_tables(
        assess(np.arange(40) % 2, scores, (code, "b"), resamples=40), title=""
    )
    out = render(*items, width=80, colour=False)
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    assert len(re.findall(r"\d\.\d{3}\.\.", out)) == 2 * 6


def test_a_dumb_terminal_has_the_width_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich takes such a one for 80 columns wide, and would cut off what fits."""
    monkeypatch.setenv("TERM", "dumb")
    path = "/a/rather/long/path/" + "x" * 100 + "/00.png"
    assert path in render(path, width=200, colour=True)
    assert max(map(len, render(path, width=200, colour=True).splitlines())) > 100
