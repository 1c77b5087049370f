"""Spreads, paired differences and what is printed of them, by hand-worked figures."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from pathlib import Path

import pytest

from biigma_cli.errors import DataError, UsageError
from biigma_cli.report.ablation import (
    Ablation,
    AblationRow,
    Measure,
    RunFigures,
    ablation_tables,
    differences,
    draw_ablation,
    published_difference,
    spread,
    to_csv,
    to_markdown,
)
from biigma_cli.report.published import TABLE2, TABLE2_PROTOCOL
from biigma_cli.report.tables import render

MEASURES = (
    Measure(name="macro_f1", title="macro-F1", main=True),
    Measure(name="accuracy", title="accuracy"),
)


def row(name: str, f1: dict[int, float], **more: object) -> AblationRow:
    """A row whose accuracy is its macro-F1 plus 0.1."""
    runs = tuple(
        RunFigures(
            seed=s, values={"macro_f1": v, "accuracy": v + 0.1}, kernel_mean=1e-9, head_cosine=0.25,
            seconds=90,
        )
        for s, v in f1.items()
    )  # fmt: skip
    published = TABLE2["isic18"].get(name, {})
    return AblationRow(name=name, title=f"the {name}", runs=runs, published=published, **more)  # type: ignore[arg-type]


FULL = row("full", {1: 0.50, 2: 0.60, 3: 0.70})
BASE = row("baseline", {1: 0.47, 3: 0.66}, lacking={2: "unfinished, 1 of 4 epochs"})
TWIN = row("heads-3", {1: 0.50, 2: 0.60, 3: 0.70}, same_as="full")
OURS = row("cka", {}, lacking={1: "not trained", 2: "not trained", 3: "not trained"})
ABLATION = Ablation(
    title="Ablation", setup="a trunk at 64", protocols=("lesion-safe, seed 1",), seeds=(1, 2, 3),
    measures=MEASURES, reference=FULL, rows=(BASE, TWIN, FULL, OURS),
    published_protocol=TABLE2_PROTOCOL,
)  # fmt: skip


def text_of(ablation: Ablation, width: int = 80) -> str:
    """As the terminal shows it."""
    return render(*ablation_tables(ablation), width=width, colour=False)


def test_spread() -> None:
    """Mean, sd with n - 1, ends; a single value has no sd; no value has nothing."""
    found = spread([0.1, 0.2, 0.6])
    assert found is not None
    assert found == pytest.approx((0.3, math.sqrt((0.04 + 0.01 + 0.09) / 2), 0.1, 0.6, 3))
    alone = spread([0.5])
    assert alone is not None
    assert math.isnan(alone.sd)
    assert spread([]) is None


def test_differences_are_paired_by_seed() -> None:
    """Only seeds that both have; the reference, under whatever name, has none to itself."""
    assert differences(BASE, FULL, "macro_f1") == pytest.approx({1: -0.03, 3: -0.04})
    assert differences(FULL, FULL, "macro_f1") == {}
    assert differences(TWIN, FULL, "macro_f1") == {}
    assert differences(OURS, FULL, "macro_f1") == {}
    # Unpaired it would be 0.565 - 0.6: the missing seed must not count.
    paired = spread(differences(BASE, FULL, "macro_f1").values())
    assert paired is not None
    assert paired.mean == pytest.approx(-0.035)


def test_published_difference() -> None:
    """The paper's own: -0.0964 for its baseline; none for ours."""
    assert published_difference(BASE, FULL, "macro_f1") == pytest.approx(-0.0964)
    assert published_difference(FULL, FULL, "macro_f1") is None
    assert published_difference(OURS, FULL, "macro_f1") is None


def test_a_twin_speaks_for_a_row_that_is_not_shown() -> None:
    """Why its runs are lacking is told once: by the row itself where that is there."""
    lost = {"lacking": {2: "failed: the loss is nan"}}
    twin = row("heads-3", {1: 0.5}, same_as="full", **lost)
    full = row("full", {1: 0.5}, **lost)
    for rows in ((twin,), (twin, full)):
        shown = text_of(dataclasses.replace(ABLATION, rows=rows))
        assert shown.count("failed: the loss is nan") == 1, rows


def test_tables() -> None:
    """Levels, differences, counts, what is lacking; nothing over 80 columns, nothing cut."""
    shown = text_of(ABLATION)
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    assert "partial: 5 of 9 runs" in shown  # the twin's are the full row's
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "baseline 2/3 0.565 ± 0.134 0.726" in lines
    assert "baseline 2 -0.035 ± 0.007 -0.040 -0.030 -0.096" in lines
    assert "heads-3 = full 3 0.600 ± 0.100 0.822" in lines
    assert "full 3 1e-09 ± 0 0.25 ± 0 1.5" in lines
    assert "baseline, seed 2: unfinished, 1 of 4 epochs" in lines
    assert "cka, seed 1, 2, 3: not trained" in lines


def test_published_never_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever there is a published value there is its protocol; without one, neither."""
    from biigma_cli.report import ablation

    written: list[str] = []
    monkeypatch.setattr(ablation, "write", lambda *a, **_: written.append(a[3]))
    draw_ablation(ABLATION, tmp_path / "a.svg")
    words = ("random 80:20 by image", "DenseNet-121 at 224", "on the test part")
    assert all(w in " ".join(written) for w in words)
    for text in (text_of(ABLATION, 10_000), to_markdown(ABLATION), to_csv(ABLATION)):
        assert all(w in text for w in words)
        assert "0.726" in text or "0.7256" in text
    bare = dataclasses.replace(
        ABLATION, published_protocol="",
        rows=tuple(dataclasses.replace(r, published={}) for r in ABLATION.rows),
        reference=dataclasses.replace(FULL, published={}),
    )  # fmt: skip
    for text in (text_of(bare), to_markdown(bare), to_csv(bare)):
        assert "published" not in text


def test_csv_holds_every_value() -> None:
    """Each seed's value, and the figures of the tables; an absent one is an empty cell."""
    lines = {line["row"]: line for line in csv.DictReader(io.StringIO(to_csv(ABLATION)))}
    base = lines["baseline"]
    assert (base["macro_f1_seed1"], base["macro_f1_seed2"], base["macro_f1_seed3"]) == (
        "0.47", "", "0.66"
    )  # fmt: skip
    assert float(base["macro_f1_minus_full_mean"]) == pytest.approx(-0.035)
    assert float(base["macro_f1_minus_full_min"]) == pytest.approx(-0.04)
    assert float(base["accuracy_mean"]) == pytest.approx(0.665)
    assert float(base["accuracy_published"]) == 0.8431
    assert (base["runs"], base["seeds"]) == ("2", "1 3")
    assert base["lacking"] == "seed 2: unfinished, 1 of 4 epochs"
    assert lines["full"]["macro_f1_minus_full_mean"] == ""
    assert lines["cka"]["macro_f1_mean"] == ""
    assert lines["heads-3"]["same_as"] == "full"
    assert float(lines["full"]["seconds"]) == 90


def test_markdown_is_a_table() -> None:
    """Every line of a table has as many cells as its header."""
    widths: list[set[int]] = [set()]
    for line in to_markdown(ABLATION).splitlines():
        if line.startswith("|"):
            widths[-1].add(line.count("|"))
        elif widths[-1]:
            widths.append(set())
    assert [len(w) for w in widths if w] == [1, 1, 1, 1]


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_figure(tmp_path: Path, kind: str) -> None:
    """It is drawn, the same each time, and nothing else is left in the folder."""
    path = tmp_path / f"figure.{kind}"
    draw_ablation(ABLATION, path)
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG" if kind == "png" else b"<?xml")
    draw_ablation(ABLATION, path)
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


def test_figure_shows_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dots at the seeds' values, bars at means, hollow marks at published ones; no empty row."""
    from matplotlib.axes import Axes

    drawn: dict[str, list[list[float]]] = {}
    plain = Axes.plot

    def spy(self: Axes, x: list[float], *rest: object, **style: object) -> object:
        drawn.setdefault(str(style["label"]), []).append(list(x))
        return plain(self, x, *rest, **style)  # type: ignore[arg-type]

    monkeypatch.setattr(Axes, "plot", spy)
    draw_ablation(ABLATION, tmp_path / "a.svg")
    three = [0.5, 0.6, 0.7]
    assert drawn["a seed"][0] == [0.47, 0.66, *three, *three]
    assert drawn["a seed"][1] == pytest.approx([-0.03, -0.04])
    assert drawn["mean"][0] == pytest.approx([0.565, 0.6, 0.6])
    assert drawn["published, by another protocol"][0] == [0.7256, 0.8220, 0.8220]
    assert drawn["published, by another protocol"][1] == pytest.approx([-0.0964, 0])


def test_figure_refusals(tmp_path: Path) -> None:
    """Another ending; no run at all."""
    with pytest.raises(UsageError):
        draw_ablation(ABLATION, tmp_path / "a.pdf")
    with pytest.raises(DataError):
        draw_ablation(dataclasses.replace(ABLATION, rows=(OURS,)), tmp_path / "a.svg")
    assert list(tmp_path.iterdir()) == []


def test_table2_as_published() -> None:
    """All 14 rows for the three data sets; spot values of the paper; one known contradiction."""
    assert {name: len(rows) for name, rows in TABLE2.items()} == {
        "isic17": 14, "isic18": 14, "isic19": 14,
    }  # fmt: skip
    assert TABLE2["isic18"]["no-independence"] == {
        "macro_f1": 0.7869, "accuracy": 0.8738, "macro_recall": 0.7627,
    }  # fmt: skip
    for name, sigma in (("isic17", "sigma-2"), ("isic18", "sigma-1"), ("isic19", "sigma-1")):
        assert TABLE2[name]["full"] == TABLE2[name][sigma]
    assert TABLE2["isic18"]["full"] == TABLE2["isic18"]["heads-3"]
    assert TABLE2["isic19"]["full"] != TABLE2["isic19"]["heads-3"]
