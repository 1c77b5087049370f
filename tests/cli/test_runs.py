"""`biigma runs`: the list, the comparison, JSON, curves, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from biigma_cli.cli import runs as command
from tests.conftest import call
from tests.report.test_runs import SPLIT, judge_run, make_run

OTHER = {**SPLIT, "split_hash": "9" * 64}


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Runs `low`, `high` and `begun`, in that order of time, and a folder that is no run."""
    folder = tmp_path / "runs"
    make_run(folder / "low", f1=(0.4, 0.5, 0.45), at=1_700_000_100)
    make_run(
        folder / "high", f1=(0.8,), planned=1, at=1_700_000_200,
        config={"train": {"epochs": 1, "lr": 0.5}},
    )  # fmt: skip
    make_run(folder / "begun", f1=(0.7,), planned=9, at=1_700_000_300)
    (folder / "photos").mkdir()
    return folder


def lines_of(text: str, *names: str) -> list[list[str]]:
    """Words of the table's rows that begin with one of the names."""
    rows = [line.split() for line in text.splitlines()]
    return [row for row in rows if row and row[0] in names]


def test_list(three: Path) -> None:
    """Figures at the kept epoch, newest last; the foreign folder is told and spoils nothing."""
    done = call("runs", "--runs", three)
    assert done.code == 0, done.err
    assert lines_of(done.out, "low", "high", "begun", "photos") == [
        ["photos", "damaged"],
        ["low", "0.5000", "0.6000", "2", "3", "0:33", "finished"],
        ["high", "0.8000", "0.9000", "1", "1", "0:33", "finished"],
        ["begun", "0.7000", "0.8000", "1", "1/9", "0:10", "unfinished"],
    ]
    assert "validation part of isic18, lesion" in done.out
    assert "photos: no run: it has no config.toml" in done.err
    assert "warning" not in done.err


def test_list_of_several_data_sets(three: Path) -> None:
    """Each line then says its data, and that figures do not compare."""
    config = {"train": {"epochs": 3}, "data": {"dataset": "isic17"}}
    make_run(three / "else", config=config, split={**OTHER, "data_hash": "8" * 64})
    done = call("runs", "--runs", three)
    assert lines_of(done.out, "else")[0][1:3] == ["isic17,", "lesion"]
    assert "warning: not the same data" in done.err
    assert "else: 888888888888" in done.err


def test_sort(three: Path) -> None:
    """--sort orders the list; an unknown key is a usage error that names the others."""
    done = call("runs", "--runs", three, "--sort", "macro_f1")
    names = [row[0] for row in lines_of(done.out, "low", "high", "begun", "photos")]
    assert names == ["photos", "low", "begun", "high"]
    for more in ([], ["low"]):
        refused = call("runs", "--runs", three, "--sort", "f1", *more)
        assert (refused.code, refused.out) == (2, "")
        assert "macro_f1" in refused.err


def test_list_as_json(three: Path) -> None:
    """The list is one JSON array on stdout."""
    found = json.loads(call("runs", "--runs", three, "--json").out)
    assert [r["name"] for r in found] == ["photos", "low", "high", "begun"]
    assert [r["state"] for r in found] == ["damaged", "finished", "finished", "unfinished"]
    assert found[1]["validation"]["macro_f1"] == 0.5
    assert found[1]["settings"]["train.epochs"] == 3


def test_an_ablation_beside_runs(three: Path) -> None:
    """It is told as what it is, with how to list its runs, and spoils neither list nor JSON."""
    make_run(three / "abl" / "full-s1")
    make_run(three / "abl" / "full-s2", f1=(0.5,), planned=2)
    make_run(three / "more" / "one")
    done = call("runs", "--runs", three)
    assert [row[0] for row in lines_of(done.out, "abl", "more", "photos", "low")] == [
        "photos", "low",
    ]  # fmt: skip
    wanted = f"abl: an ablation, 1 of 2 runs finished; list them: biigma runs --runs {three}/abl"
    assert f"{three}/{wanted}\n" in done.err
    assert f"{three}/more: a folder of runs, 1 of 1 runs finished; list them" in done.err
    assert "photos: no run: it has no config.toml" in done.err
    found = json.loads(call("runs", "--runs", three, "--json").out)
    assert [r["name"] for r in found] == ["photos", "low", "high", "begun"]
    named = call("runs", "abl", "--runs", three)
    assert (named.code, named.out) == (3, "")
    assert "abl: no run: it holds 2 runs" in named.err
    inside = call("runs", "--runs", three / "abl")
    assert [row[0] for row in lines_of(inside.out, "full-s1", "full-s2")] == ["full-s1", "full-s2"]


def test_only_an_ablation(tmp_path: Path) -> None:
    """Nobody is told that there is no run yet."""
    make_run(tmp_path / "abl" / "full-s1")
    done = call("runs", "--runs", tmp_path)
    assert (done.code, done.out) == (0, "")
    assert "an ablation, 1 of 1 runs" in done.err
    assert "no run in" not in done.err


def test_no_runs(tmp_path: Path) -> None:
    """No folder is an error, an empty one is none."""
    done = call("runs", "--runs", tmp_path / "gone")
    assert (done.code, done.out) == (2, "")
    assert "gone" in done.err
    assert "biigma train" in done.err
    done = call("runs", "--runs", tmp_path)
    assert (done.code, done.out) == (0, "")
    assert "no run in" in done.err
    assert call("runs", "--runs", tmp_path, "--json").out == "[]\n"


def test_comparison(three: Path) -> None:
    """Figures side by side in the order given, test figures where judged, settings that differ."""
    judge_run(three / "low")
    done = call("runs", "low", "high", "--runs", three)
    assert done.code == 0, done.err
    rows = [" ".join(line.split()) for line in done.out.splitlines()]
    for row in (
        "run low high",
        "split hash 555555555555 555555555555",
        "best epoch 2 of 3 1 of 1",
        "macro-F1 0.5000 0.8000",
        "log loss 0.5000 0.2000",
        "images 200 -",
        "macro-F1 0.6500 -",
        "0.6000..0.7000",
        "train.epochs 3 1",
        "train.lr 0.0001 0.5",
    ):
        assert row in rows
    assert not any(row.startswith("train.seed") for row in rows)
    assert "warning" not in done.err


def test_comparison_follows_sort(three: Path) -> None:
    """--sort orders the columns, too."""
    done = call("runs", "high", "low", "--runs", three, "--sort", "macro_f1")
    assert "run low high" in [" ".join(line.split()) for line in done.out.splitlines()]


def test_equal_settings_are_said(three: Path) -> None:
    """Two runs of one recipe, and one run alone."""
    make_run(three / "again")
    assert "settings: no difference" in call("runs", "low", "again", "--runs", three).out
    assert "settings" not in call("runs", "low", "--runs", three).out


def test_other_split_is_warned_of(three: Path) -> None:
    """Loudly on stderr, and in the JSON."""
    make_run(three / "other", split=OTHER)
    done = call("runs", "low", "other", "--runs", three)
    assert done.code == 0
    assert "warning: not the same split, so figures do not compare" in done.err
    found = json.loads(call("runs", "low", "other", "--runs", three, "--json").out)
    assert found["comparable"] is False
    assert "other: 999999999999" in found["warnings"][0]


def test_comparison_as_json(three: Path) -> None:
    """Runs and the settings that differ, as values."""
    found = json.loads(call("runs", "low", "high", "--runs", three, "--json").out)
    assert (found["comparable"], found["warnings"]) == (True, [])
    assert [r["name"] for r in found["runs"]] == ["low", "high"]
    assert found["differences"] == {
        "train.epochs": {"low": 3, "high": 1},
        "train.lr": {"low": 0.0001, "high": 0.5},
    }


def test_paths_and_names(three: Path, tmp_path: Path) -> None:
    """A run may be a path; the same one twice is one; equal names are told apart by their paths."""
    make_run(tmp_path / "elsewhere" / "low")
    done = call("runs", "low", three / "low", tmp_path / "elsewhere" / "low", "--runs", three,
                "--json")  # fmt: skip
    names = [r["name"] for r in json.loads(done.out)["runs"]]
    assert names == [str(three / "low"), str(tmp_path / "elsewhere" / "low")]


def test_unknown_run(three: Path) -> None:
    """All that are not there are named, with the nearest that is."""
    done = call("runs", "low", "hihg", "nowhere", "--runs", three)
    assert (done.code, done.out) == (2, "")
    assert "hihg, nowhere" in done.err
    assert "did you mean high" in done.err


def test_damaged_runs(three: Path) -> None:
    """The good ones are compared and the exit code says that one is damaged; none good is 3."""
    (three / "high" / "config.toml").write_text("[")
    done = call("runs", "low", "high", "--runs", three)
    assert done.code == 5
    assert "0.5000" in done.out
    assert "1 runs read, 1 damaged: high: config.toml cannot be read" in done.err
    done = call("runs", "high", "photos", "--runs", three)
    assert (done.code, done.out) == (3, "")
    assert "photos" in done.err
    assert "Traceback" not in done.err


def test_curves(three: Path, tmp_path: Path) -> None:
    """The named runs in one picture."""
    out = tmp_path / "out.svg"
    done = call("runs", "low", "high", "--runs", three, "--curves", out)
    assert done.code == 0, done.err
    assert f"curves: {out}" in done.err
    text = out.read_text()
    assert "<!-- low -->" in text
    assert "<!-- high -->" in text


def test_curves_refused(three: Path, tmp_path: Path) -> None:
    """Without runs, in another format or in no place to write: before anything is said."""
    for names, out in (([], "a.svg"), (["low"], "a.gif"), (["low"], "runs/low/config.toml/a.svg")):
        done = call("runs", *names, "--runs", three, "--curves", tmp_path / out)
        assert (done.code, done.out) == (2, ""), out
        assert not (tmp_path / out).exists()


@pytest.mark.parametrize("names", [[], ["long", "low", "high", "begun"]], ids=["list", "compare"])
def test_narrow_terminal(names: list[str], three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 80 columns no line is longer and no figure is cut or folded; piped, no name is."""
    long = "20261122-191122-plain-light-again"
    make_run(three / long, config={"train": {"epochs": 3, "init": "runs/x/" * 20}})
    judge_run(three / long)
    given = [long if name == "long" else name for name in names]
    piped = call("runs", *given, "--runs", three).out
    assert long in piped
    monkeypatch.setattr(command, "_width", lambda: 80)
    narrow = call("runs", *given, "--runs", three).out
    assert max(len(line) for line in narrow.splitlines()) <= 80
    for word in piped.split():
        if word[0].isdecimal() and len(word) < 15:
            assert word in narrow.split(), word


def test_loads_nothing_heavy(three: Path) -> None:
    """Listing and comparing do without torch, ONNX Runtime, scikit-learn and matplotlib."""
    script = f"""
import sys
from biigma_cli.__main__ import main
for names in ([], ["low", "high"]):
    sys.argv = ["biigma", "runs", *names, "--runs", {str(three)!r}]
    try:
        main()
    except SystemExit as end:
        assert not end.code
heavy = {{"torch", "onnxruntime", "sklearn", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr


def test_real_run(tiny_run: Path) -> None:
    """A run as training leaves it is read without a complaint."""
    (found,) = json.loads(call("runs", tiny_run, "--json").out)["runs"]
    assert (found["state"], found["problem"]) == ("finished", "")
    assert (found["epochs_done"], found["epochs_planned"]) == (2, 2)
    assert 0 <= found["validation"]["macro_f1"] <= 1
    assert found["seconds"] > 0
    assert len(found["split_hash"]) == 64
