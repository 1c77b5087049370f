"""Training curves: what is drawn, that nothing overlaps, and the same bytes each time."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from biigma_cli.errors import BiigmaError, DataError, UsageError
from biigma_cli.report import curves
from biigma_cli.report.curves import compare_curves, draw_curves, spread
from biigma_cli.report.runs import read_run
from biigma_cli.report.style import style
from tests.report.test_runs import SPLIT, make_run

NAN = math.nan
HEADS = {
    "loss": (1.5, 2.2, 2.0), "ce": (1.4, 1.1, 1.0), "ce_hybrid": (NAN, 1.1, 1.0),
    "independence": (0.6, 0.01, 0.004), "l2": (0.0015, 0.0015, 0.0015),
    "kernel_mean": (0.6, 0.5, 0.5), "head_cosine": (0.3, 0.1, 0.1),
}  # fmt: skip


def words(svg: Path) -> set[str]:
    """Every text of the picture: they are drawn as outlines, each named in a comment."""
    return set(re.findall(r"<!-- (.*?) -->", svg.read_text()))


def test_run_with_heads(tmp_path: Path) -> None:
    """All panels, every recorded term by its name, the kept epoch; and nothing but two files."""
    run = make_run(tmp_path / "o$n$e", columns=HEADS)
    before = set(run.iterdir())
    paths = draw_curves(run)
    assert paths == [run / "curves.svg", run / "curves.png"]
    assert set(run.iterdir()) - before == set(paths)
    assert words(run / "curves.svg") >= {
        "o$n$e", "isic18; epoch 2 of 3 is kept: validation macro-F1 0.7000",
        "Training loss, terms unweighted", "total", "cross-entropy", "cross-entropy, hybrid",
        "Smaller loss terms, unweighted, log scale", "independence", "projection L2",
        "Validation", "macro-F1", "accuracy", "balanced accuracy", "Validation log loss",
        "Heads", "kernel mean", "head cosine", "Learning rate", "epoch",
    }  # fmt: skip
    with Image.open(run / "curves.png") as image:
        image.load()
        assert min(image.size) > 800
        assert len(image.getcolors(1 << 24)) > 50


def test_plain_run(tmp_path: Path) -> None:
    """What was not recorded has no panel; total and cross-entropy are one line where they agree."""
    run = make_run(tmp_path / "one")
    draw_curves(run)
    found = words(run / "curves.svg")
    assert "total = cross-entropy" in found
    assert not found & {"Heads", "cross-entropy", "projection L2"}
    assert not any(w.startswith("Smaller") for w in found)


def test_values_are_those_of_the_file(tmp_path: Path) -> None:
    """Each line holds its column's values, an empty cell being a gap."""
    info = read_run(make_run(tmp_path / "one", columns=HEADS))
    panels = {panel.title: panel for panel in curves._run_panels(info)}
    loss = {line.label: line.points for line in panels["Training loss, terms unweighted"].lines}
    assert loss["total"] == [(1, 1.5), (2, 2.2), (3, 2.0)]
    assert math.isnan(loss["cross-entropy, hybrid"][0][1])
    assert loss["cross-entropy, hybrid"][1:] == [(2, 1.1), (3, 1.0)]
    assert panels["Validation"].chosen == 2
    assert {line.best for line in panels["Validation"].lines} == {2}
    assert len({line.colour for line in panels["Validation"].lines}) == 3


def test_negative_terms_are_not_on_a_log_scale(tmp_path: Path) -> None:
    """An unbiased estimate may fall below zero; it must not vanish from the picture."""
    columns = {**HEADS, "independence": (0.6, 0.01, -0.004)}
    panels = curves._run_panels(read_run(make_run(tmp_path / "one", columns=columns)))
    (panel,) = [p for p in panels if p.title.startswith("Smaller")]
    assert panel.title == "Smaller loss terms, unweighted"
    assert not panel.log


@pytest.mark.parametrize(
    "columns",
    [
        {"loss": (NAN,), "ce": (NAN,), "lr": (NAN,), "independence": (0.0,)},
        dict.fromkeys(("val_macro_f1", "val_accuracy", "val_macro_recall"), (NAN,)),
        {"loss": (math.inf,), "ce": (-1.0,), "val_log_loss": (NAN,)},
    ],
    ids=["no losses", "no validation", "infinite"],
)
def test_one_epoch(columns: dict[str, tuple[float, ...]], tmp_path: Path) -> None:
    """One epoch is points, and missing columns are left out."""
    run = make_run(tmp_path / "one", f1=(0.5,), planned=1, columns=columns)
    draw_curves(run)
    with Image.open(run / "curves.png") as image:
        image.load()
        assert len(image.getcolors(1 << 24)) > 20


def test_nothing_but_epochs(tmp_path: Path) -> None:
    """A file with no figure at all is refused rather than drawn empty."""
    run = make_run(tmp_path / "one")
    (run / "metrics.csv").write_text("epoch,side\n1,64\n")
    with pytest.raises(DataError, match="nothing to draw"):
        draw_curves(run)


def test_same_bytes(tmp_path: Path) -> None:
    """Twice the same pictures, without a date, whatever the user's own settings."""
    first = make_run(tmp_path / "a" / "run")
    second = make_run(tmp_path / "b" / "run")
    draw_curves(first)
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 20, "svg.hashsalt": "x"}):
        draw_curves(second)
    for name in ("curves.svg", "curves.png"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert "<dc:date>" not in (first / "curves.svg").read_text()


def test_labels_do_not_overlap(tmp_path: Path) -> None:
    """Lines that end at one point have names above one another, all within the picture."""
    run = make_run(
        tmp_path / "one",
        columns={
            "val_macro_recall": (0.5, 0.6, 0.6),
            "val_accuracy": (0.5, 0.6, 0.6001),
            **dict.fromkeys(("loss", "ce_hybrid", "distillation"), (1.0, 1.0, 1.0)),
        },
    )
    info = read_run(run)
    panels = curves._run_panels(info)
    with style():
        figure = curves._figure(panels, title="one", subtitle="two")
        labels = {line.label for panel in panels for line in panel.lines if line.label}
        for axis in figure.axes:
            texts = [t for t in axis.texts if t.get_text() in labels]
            boxes = sorted((t.get_window_extent() for t in texts), key=lambda box: box.y0)
            for below, above in pairwise(boxes):
                assert below.y1 <= above.y0 + 0.5
            for box in boxes:
                assert box.x0 >= axis.bbox.x1
                assert box.x1 <= figure.bbox.x1
        assert sum(len(axis.texts) for axis in figure.axes) == 7


@given(
    st.lists(st.floats(-5, 5), max_size=8),
    st.floats(0.01, 1),
)
def test_spread(positions: list[float], gap: float) -> None:
    """Apart by the gap, in the same order, around the same mean; untouched where they were."""
    placed = spread(positions, gap)
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    for i, j in pairwise(order):
        assert placed[j] - placed[i] >= gap - 1e-9
        assert positions[i] <= positions[j]
    assert sum(placed) == pytest.approx(sum(positions), abs=1e-6)
    if all(positions[j] - positions[i] >= gap for i, j in pairwise(order)):
        assert placed == positions


# --- comparison ------------------------------------------------------------------------------


def test_comparison(tmp_path: Path) -> None:
    """One panel a figure, every run named; heads where one of the runs has them."""
    runs = [make_run(tmp_path / "a", columns=HEADS), make_run(tmp_path / "b")]
    compare_curves(runs, tmp_path / "out.svg")
    found = words(tmp_path / "out.svg")
    assert found >= {
        "a", "b", "Training cross-entropy", "Validation macro-F1", "Validation accuracy",
        "Validation balanced accuracy", "Validation log loss", "Learning rate", "Heads: cosine",
    }  # fmt: skip
    assert not any("do not compare" in w for w in found)
    lines = curves._legend_lines([read_run(r) for r in runs * 10])
    looks = [(line.colour, str(line.dashes)) for line in lines]
    assert len(set(looks)) == 20


def test_comparison_of_other_splits_says_so(tmp_path: Path) -> None:
    """The picture itself carries the warning."""
    other = make_run(tmp_path / "b", split={**SPLIT, "split_hash": "9" * 64})
    compare_curves([make_run(tmp_path / "a"), other], tmp_path / "out.svg")
    assert "not the same split, so figures do not compare" in words(tmp_path / "out.svg")


def test_odd_names(tmp_path: Path) -> None:
    """Formula signs, a leading underscore and letters that the font lacks are harmless."""
    runs = [make_run(tmp_path / name) for name in ("_a", r"$\frac$", "夜")]
    compare_curves(runs, tmp_path / "out.svg")
    assert words(tmp_path / "out.svg") >= {" _a", r"$\frac$", "夜"}


def test_names_and_format(tmp_path: Path) -> None:
    """The ending decides on the format, in either case; names may be given."""
    run = make_run(tmp_path / "a")
    compare_curves([run], tmp_path / "out.PNG")
    with Image.open(tmp_path / "out.PNG") as image:
        assert image.format == "PNG"
    compare_curves([run, run], tmp_path / "out.svg", names=["first", "second"])
    assert words(tmp_path / "out.svg") >= {"first", "second"}


def test_refusals(tmp_path: Path) -> None:
    """Another format, no epoch, damage, no place to write: told, and nothing is left behind."""
    run = make_run(tmp_path / "a")
    with pytest.raises(UsageError, match=r"out\.gif"):
        compare_curves([run], tmp_path / "out.gif")
    with pytest.raises(UsageError, match="no run"):
        compare_curves([], tmp_path / "out.svg")
    begun = make_run(tmp_path / "begun", f1=())
    with pytest.raises(DataError, match="begun has no finished epoch"):
        draw_curves(begun)
    (begun / "metrics.csv").write_text("epoch\nx\n")
    with pytest.raises(DataError, match="epoch is 'x'"):
        compare_curves([run, begun], tmp_path / "out.svg")
    with pytest.raises(BiigmaError, match="cannot write"):
        compare_curves([run], run / "config.toml" / "out.svg")
    assert not (tmp_path / "out.svg").exists()
    assert not (begun / "curves.svg").exists()
