"""Published results: copied right, never without their protocol, marked where they cannot be."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score

from biigma_cli.metrics import assess
from biigma_cli.report.evaluation.tables import published_table
from biigma_cli.report.published import TABLE1, Published, comparability, published_for
from biigma_cli.report.tables import render
from biigma_cli.taxonomy import TAXONOMIES


def test_every_row_has_its_protocol_and_source() -> None:
    """And a figure, of a data set that there is."""
    for row in TABLE1:
        assert row.protocol
        assert row.source
        assert row.dataset in TAXONOMIES
        values = (row.accuracy, row.macro_f1, row.macro_recall, row.macro_precision)
        known = [v for v in (*values, row.sensitivity) if v is not None]
        assert known
        assert all(0 < v < 1 for v in known)
    keys = [(row.dataset, row.method, row.protocol) for row in TABLE1]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("dataset", "rows"),
    [("isic17", 1), ("isic17-mel", 4), ("isic17-sk", 3), ("isic18", 10), ("isic19", 7)],
)
def test_the_papers_own_row_comes_first(dataset: str, rows: int) -> None:
    """All of a data set's, and of no other's."""
    found = published_for(dataset)
    assert len(found) == rows
    assert found[0].method == "BIIGMA-Net (paper)"
    assert "random 80:20 by image" in found[0].protocol
    assert "test part" in found[0].protocol
    assert published_for("own") == ()


def test_copied_to_the_digit() -> None:
    """F1, accuracy, recall and precision of the paper's own rows."""
    own = {
        row.dataset: (row.macro_f1, row.accuracy, row.macro_recall, row.macro_precision)
        for row in TABLE1
        if row.method == "BIIGMA-Net (paper)"
    }
    assert own == {
        "isic17": (0.7203, 0.7921, 0.7116, None),
        "isic17-mel": (0.7933, 0.8486, 0.7675, 0.7001),
        "isic17-sk": (0.8044, 0.9092, 0.8428, 0.7784),
        "isic18": (0.8220, 0.8833, 0.8094, 0.8351),
        "isic19": (0.8052, 0.8853, 0.8130, 0.7975),
    }


def test_what_cannot_be_is_marked() -> None:
    """Macro-F1 above what its recall and precision allow; and only that."""
    impossible = [(row.dataset, row.method) for row in TABLE1 if row.impossible]
    assert impossible == [
        ("isic17-mel", "BIIGMA-Net (paper)"),
        ("isic18", "Wang et al. [18]"),
    ]
    row = published_for("isic17-mel")[0]
    assert row.highest_f1 == pytest.approx(0.7323, abs=5e-5)
    assert "impossible" in row.remark
    assert "at most 0.7323, not 0.7933" in row.remark
    assert json.loads(json.dumps(row.to_dict()))["impossible"] is True


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_the_bound_holds(pairs: list[tuple[int, int]]) -> None:
    """No answers to any labels have a macro-F1 above it."""
    truth, answer = np.array(pairs).T
    present = np.unique(truth)
    recall, precision, f1 = (
        float(score(truth, answer, labels=present, average="macro", zero_division=0))
        for score in (recall_score, precision_score, f1_score)
    )
    row = Published(
        dataset="isic18", method="any", protocol="any", kind="", source="any",
        macro_f1=f1, macro_recall=recall, macro_precision=precision,
    )  # fmt: skip
    assert not row.impossible
    if row.highest_f1 is not None:
        assert f1 <= row.highest_f1 + 1e-12


def test_comparability() -> None:
    """Only what is of the same kind of split, and only on the test part, is said to be near."""
    rows = published_for("isic18")
    assert "Not comparable" in comparability(rows, "lesion", "test")
    assert "Not comparable" in comparability(rows, "paper", "val")
    paper = comparability(rows, "paper", "test")
    assert "BIIGMA-Net (paper)" in paper
    assert "not the same images" in paper
    assert "PanDerm" not in paper
    official = comparability(rows, "official", "test")
    assert "MetaOptima" in official
    assert "BIIGMA-Net" not in official
    # The official test part of 2019 has a class that ours leaves out.
    assert "Not comparable" in comparability(published_for("isic19"), "official", "test")


def test_table_shows_protocols() -> None:
    """Ours first; each row's protocol below its name; 80 columns."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 60)
    score = np.clip(rng.random(60) / 2 + label / 4, 0, 1)
    own = assess(label, np.stack([1 - score, score], 1), ("MEL", "OTHER"), resamples=0)
    rows = published_for("isic17-mel")
    table = published_table(own, rows, protocol="our protocol", binary=True)
    text = render(table, width=80, colour=False)
    flat = " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
    assert flat.index("ours") < flat.index("our protocol") < flat.index("BIIGMA-Net (paper)")
    assert flat.count("which does not say by which") == 3
    assert "impossible" in flat
    assert f"{own.overall['accuracy'].value:.4f}" in flat
