"""Run folders: whole, unfinished, damaged and foreign ones."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from biigma_cli.config import Config, from_dict, to_toml
from biigma_cli.errors import DataError, UsageError
from biigma_cli.report.runs import (
    RunInfo,
    config_differences,
    groups_of_runs,
    incomparable,
    list_runs,
    read_metrics,
    read_run,
    sort_runs,
)

SPLIT = {"dataset": "isic18", "protocol": "lesion", "data_hash": "d" * 64, "split_hash": "5" * 64}
F1 = (0.5, 0.7, 0.6)


def make_run(
    folder: Path,
    *,
    f1: tuple[float, ...] = F1,
    planned: int = 3,
    split: dict[str, str] = SPLIT,
    config: dict[str, Any] | None = None,
    columns: dict[str, tuple[float, ...]] | None = None,
    at: int = 1_700_000_000,
) -> Path:
    """A run folder as training leaves it; without a summary where `planned` is not reached.

    Args:
        f1: validation macro-F1 of each epoch.
        columns: further columns of `metrics.csv`, a NaN being an empty cell.
        at: when it was written.
    """
    folder.mkdir(parents=True)
    values = {"train": {"epochs": planned}, **(config or {})}
    (folder / "config.toml").write_text(to_toml(from_dict(values)))
    (folder / "split.json").write_text(json.dumps({**split, "train": ["a"], "test": ["b"]}))
    rows: list[dict[str, Any]] = []
    for i, score in enumerate(f1):
        loss = 1 / (i + 1)
        more = {k: "" if math.isnan(v[i]) else v[i] for k, v in (columns or {}).items()}
        rows.append(
            {
                "epoch": i + 1, "lr": 0.1, "loss": loss, "ce": loss, "val_accuracy": score + 0.1,
                "val_macro_f1": score, "val_macro_recall": score + 0.05,
                "val_log_loss": 1 - score, "seconds": 10.0, **more,
            }
        )  # fmt: skip
    if rows:
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    if len(f1) >= planned:
        summary = {
            "run": folder.name, "protocol": "isic18, lesion-safe", "split": split,
            "best_epoch": f1.index(max(f1)) + 1, "epochs": len(f1), "parameters": 12345,
            "seconds": 33.3,
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
    for path in folder.iterdir():
        os.utime(path, (at, at))
    return folder


def judge_run(run: Path, part: str = "test", **changes: Any) -> None:
    """What `biigma eval` leaves in a run."""
    content = {
        "n": 200, "accuracy": 0.8, "macro_f1": 0.65, "macro_recall": 0.66, "macro_precision": 0.64,
        "data_hash": "d" * 64, "split_hash": "5" * 64,
        "intervals": {"macro_f1": {"value": 0.65, "low": 0.6, "high": 0.7}}, **changes,
    }  # fmt: skip
    (run / f"eval-{part}.json").write_text(json.dumps(content))


def test_finished_run(tmp_path: Path) -> None:
    """Everything of a run that has ended."""
    run = make_run(tmp_path / "one", config={"data": {"side": 160, "split_seed": 7}})
    judge_run(run)
    info = read_run(run)
    assert (info.name, info.state, info.problem) == ("one", "finished", "")
    assert (info.epochs_done, info.epochs_planned, info.best_epoch) == (3, 3, 2)
    assert info.validation == {
        "accuracy": pytest.approx(0.8),
        "macro_f1": 0.7,
        "macro_recall": pytest.approx(0.75),
        "log_loss": pytest.approx(0.3),
    }
    assert (info.seconds, info.parameters) == (33.3, 12345)
    assert (info.data_hash, info.split_hash) == ("d" * 64, "5" * 64)
    assert (info.dataset, info.settings["data.side"]) == ("isic18", 160)
    assert info.judged["test"].figures["macro_f1"] == 0.65
    assert info.judged["test"].intervals == {"macro_f1": (0.6, 0.7)}
    plain = json.loads(json.dumps(info.to_dict(), allow_nan=False))
    assert plain["split_seed"] == 7
    assert plain["judged"]["test"]["intervals"]["macro_f1"] == [0.6, 0.7]


def test_unfinished_run(tmp_path: Path) -> None:
    """Without a summary: epochs so far, time and best of the rows, hashes of the split itself."""
    info = read_run(make_run(tmp_path / "one", f1=(0.6, 0.7, 0.7), planned=5))
    assert (info.state, info.problem) == ("unfinished", "")
    assert (info.epochs_done, info.epochs_planned) == (3, 5)
    assert info.best_epoch == 2  # the first of two equal ones, as training has it
    assert info.seconds == 30.0
    assert (info.data_hash, info.split_hash) == ("d" * 64, "5" * 64)


def test_run_that_has_just_begun(tmp_path: Path) -> None:
    """No epoch yet is no damage."""
    info = read_run(make_run(tmp_path / "one", f1=()))
    assert (info.state, info.problem, info.epochs_done) == ("unfinished", "", 0)
    assert (info.best_epoch, info.seconds, info.validation) == (None, None, {})


@pytest.mark.parametrize(("select", "best"), [("macro_f1", 2), ("log_loss", 1), ("last", 3)])
def test_epoch_kept_follows_the_setting(select: str, best: int, tmp_path: Path) -> None:
    """An unfinished run's kept epoch is that of its own rule."""
    run = make_run(tmp_path / "one", planned=9, config={"train": {"epochs": 9, "select": select}})
    text = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(text.replace(",0.5,10.0", ",0.1,10.0"))  # log loss of epoch 1
    assert read_run(run).best_epoch == best


def test_split_is_left_alone_where_the_summary_tells(tmp_path: Path) -> None:
    """The long list of ids is not read for nothing."""
    run = make_run(tmp_path / "one")
    (run / "split.json").write_text("broken")
    assert read_run(run).problem == ""
    (run / "summary.json").unlink()
    assert "split.json" in read_run(run).problem


def test_summary_without_all_epochs_is_unfinished(tmp_path: Path) -> None:
    """A summary beside too few rows does not make a run whole."""
    run = make_run(tmp_path / "one")
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    (run / "metrics.csv").write_text("".join(lines[:-1]))
    assert read_run(run).state == "unfinished"


DAMAGE = {
    "config.toml": [b"[train\n", b"\xff\xfe", b"", b"epochs = 3\n"],
    "metrics.csv": [
        b"", b"a,b\n1,2\n", b"epoch,loss\n1\n", b"epoch,loss\n1,2,3\n", b"epoch,loss\n1,x\n",
        b"epoch,loss\n2,1\n1,1\n", b"epoch,loss\nnan,1\n", b"epoch,loss\ninf,1\n",
        b"epoch,loss\n,1\n", b"\xff\xfe\x00", b"epoch,loss\n1,\x00\n", b"epoch\n" + b"1" * 200_000,
    ],
    "summary.json": [b"", b"[1]", b"{", b"\xff", b"[" * 100_000],
    "eval-test.json": [b"{}x", b'{"n": 3}', b'{"n": true, "accuracy": 1}', b"3"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, content) for name, contents in DAMAGE.items() for content in contents],
    ids=lambda v: v if isinstance(v, str) else repr(v[:20]),
)
def test_damaged_file_is_told(name: str, content: bytes, tmp_path: Path) -> None:
    """The file is named; what the other files say is there all the same."""
    run = make_run(tmp_path / "one")
    judge_run(run)
    (run / name).write_bytes(content)
    info = read_run(run)
    assert name in info.problem
    assert str(tmp_path) not in info.problem
    assert info.split_hash == "5" * 64
    assert (info.state == "damaged") == (name == "config.toml")
    assert bool(info.rows) == (name != "metrics.csv")
    json.dumps(info.to_dict(), allow_nan=False)


def test_odd_values_in_a_summary(tmp_path: Path) -> None:
    """Values of another kind are passed over, and the rows speak instead."""
    run = make_run(tmp_path / "one")
    odd = {"split": 3, "seconds": "long", "best_epoch": "two", "parameters": 10**400, "protocol": 1}
    (run / "summary.json").write_text(json.dumps(odd))
    info = read_run(run)
    assert (info.best_epoch, info.seconds, info.split_hash) == (2, 30.0, "5" * 64)
    (run / "summary.json").write_text(json.dumps({**odd, "seconds": 10**400, "best_epoch": 99}))
    assert (read_run(run).seconds, read_run(run).best_epoch) == (30.0, 2)


def test_judgement_of_another_split(tmp_path: Path) -> None:
    """A test figure that is not of this run's split is not passed off as it."""
    run = make_run(tmp_path / "one")
    judge_run(run, split_hash="6" * 64)
    assert "different splits" in read_run(run).problem
    assert read_run(run).split_hash == "5" * 64


def test_diverged_figures(tmp_path: Path) -> None:
    """NaN is a value of a run, and null in its JSON."""
    run = make_run(tmp_path / "one", f1=(math.nan, math.nan), planned=5)
    text = (run / "metrics.csv").read_text()
    assert "nan" in text
    info = read_run(run)
    assert (info.problem, info.best_epoch) == ("", None)
    json.dumps(info.to_dict(), allow_nan=False)


def test_read_metrics(tmp_path: Path) -> None:
    """Empty cells are absent; order and kind of the columns do not matter."""
    path = tmp_path / "metrics.csv"
    path.write_text("ce,epoch,ce_hybrid\n0.5,1,\n0.25,2,0.125\n")
    assert read_metrics(path) == (
        {"ce": 0.5, "epoch": 1},
        {"ce": 0.25, "epoch": 2, "ce_hybrid": 0.125},
    )
    path.write_text("ce,epoch\n0.5,1\nhigh,2\n")
    with pytest.raises(DataError, match="line 3: ce is 'high'"):
        read_metrics(path)
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path / "none.csv")


# --- lists -----------------------------------------------------------------------------------


def test_list_runs(tmp_path: Path) -> None:
    """Every folder, newest last; a foreign one is told apart; files and hidden folders are not."""
    make_run(tmp_path / "b", at=1_700_000_300)
    make_run(tmp_path / "a", at=1_700_000_400)
    make_run(tmp_path / "c", at=1_700_000_100)
    (tmp_path / "photos").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "notes.txt").write_text("")
    judge_run(tmp_path / "c")  # judging an old run does not make it new
    found = list_runs(tmp_path)
    assert [r.name for r in found] == ["photos", "c", "b", "a"]
    assert found[0].problem == "no run: it has no config.toml"
    assert found[0].state == "damaged"
    assert not any(r.problem for r in found[1:])


def test_folders_of_runs(tmp_path: Path) -> None:
    """An ablation is no damaged run: its runs stand apart; a run that lost its settings is one."""
    for name in ("full-s1", "baseline-s1"):
        make_run(tmp_path / "abl" / name)
    (tmp_path / "abl" / "table.csv").write_text("row\n")
    make_run(tmp_path / "one")
    (make_run(tmp_path / "lost") / "config.toml").unlink()
    assert {r.name: r.state for r in list_runs(tmp_path)} == {"one": "finished", "lost": "damaged"}
    ((folder, inside),) = groups_of_runs(tmp_path).items()
    assert folder == tmp_path / "abl"
    assert [(r.name, r.finished) for r in inside] == [("baseline-s1", True), ("full-s1", True)]
    assert read_run(folder).problem == "no run: it holds 2 runs"
    assert groups_of_runs(folder) == {}
    with pytest.raises(UsageError, match=r"no folder .*gone"):
        groups_of_runs(tmp_path / "gone")


def test_no_folder_of_runs(tmp_path: Path) -> None:
    """A folder that is not there, or is a file, is named."""
    with pytest.raises(UsageError, match=r"no folder .*gone"):
        list_runs(tmp_path / "gone")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file"):
        list_runs(tmp_path / "file")


def test_sort(tmp_path: Path) -> None:
    """The best, largest or newest comes last; a run without the figure comes first."""
    make_run(tmp_path / "new", f1=(0.5,), planned=1, at=1_700_000_900)
    make_run(tmp_path / "good", f1=(0.9, 0.1), planned=2, at=1_700_000_200)
    make_run(tmp_path / "begun", f1=(), at=1_700_000_300)
    runs = list_runs(tmp_path)

    def order(key: str) -> list[str]:
        return [r.name for r in sort_runs(runs, key)]

    assert order("date") == ["good", "begun", "new"]
    assert order("name") == ["begun", "good", "new"]
    assert order("macro_f1") == ["begun", "new", "good"]
    assert order("log_loss") == ["begun", "new", "good"]
    assert order("epochs") == ["begun", "new", "good"]
    with pytest.raises(UsageError, match="f1"):
        sort_runs(runs, "f1")


# --- comparison ------------------------------------------------------------------------------


def info(name: str, **settings: Any) -> RunInfo:
    """A run of which only settings matter."""
    return RunInfo(
        name=name, path=Path(name), settings={k.replace("__", "."): v for k, v in settings.items()}
    )


def test_config_differences() -> None:
    """Only keys that differ, in the order of the settings, as they are written."""
    runs = [
        info("a", model__mica=True, train__lr=1e-3, train__sides=[96, 160], train__epochs=3),
        info("b", model__mica=False, train__lr=1e-3, train__sides=[], train__epochs=3, new__key=""),
        info("c"),
    ]
    assert config_differences(runs) == [
        ("model.mica", "true", "false", "-"),
        ("train.sides", "96, 160", "none", "-"),
        ("new.key", "-", '""', "-"),
    ]
    assert config_differences(runs[:1]) == []
    assert config_differences([]) == []


def test_older_runs_have_the_settings_of_their_time(tmp_path: Path) -> None:
    """A key that a run's version did not know is filled in as for resuming, not a difference."""
    new = make_run(tmp_path / "new", config={"data": {"join_duplicates": False}})
    old = Path(shutil.copytree(new, tmp_path / "old"))
    plain = Config().to_dict()
    older = {s: dict(v) for s, v in plain.items()}
    older["train"]["epochs"] = 3
    del older["data"]["join_duplicates"], older["data"]["resize"]
    older["train"]["gone"] = 5
    (old / "config.toml").write_text(tomli_w.dumps(older))
    assert config_differences([read_run(new), read_run(old)]) == [("train.gone", "-", "5")]


def test_incomparable(tmp_path: Path) -> None:
    """Another split, another data set or an unknown one is told, with the runs it parts."""
    same = [read_run(make_run(tmp_path / n)) for n in ("a", "b")]
    assert incomparable(same) == []
    assert incomparable([]) == []
    other = read_run(make_run(tmp_path / "c", split={**SPLIT, "split_hash": "9" * 64}))
    (told,) = incomparable([*same, other])
    assert "not the same split" in told
    assert f"a, b: {'5' * 12}; c: {'9' * 12}" in told
    far = read_run(make_run(tmp_path / "d", split={**SPLIT, "data_hash": "1", "split_hash": "2"}))
    (told,) = incomparable([*same, far])
    assert "not the same data" in told
    unknown = read_run(make_run(tmp_path / "e", split={}))
    (told,) = incomparable([*same, unknown])
    assert "e: unknown" in told
