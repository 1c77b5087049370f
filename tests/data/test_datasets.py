"""What is on this machine: every state a data set can be in, drawing, forgetting."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import pytest

from biigma_cli.config import DataConfig
from biigma_cli.data import datasets, synthetic
from biigma_cli.data.datasets import Status, forget, load_dataset, statuses
from biigma_cli.data.manifest import Manifest, load_manifest, record_path, save_manifest
from biigma_cli.errors import EXIT_FAILURE, BiigmaError, DataError, UsageError
from biigma_cli.taxonomy import TAXONOMIES
from tests.data.samples import manifest, record

KNOWN = ["isic17", "isic17-mel", "isic17-sk", "isic18", "isic19"]


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of each test's own."""
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def state(name: str) -> Status:
    """What is known of one data set."""
    return {s.name: s for s in statuses()}[name]


def isic17(root: Path, *parts: str, missing: int = 0) -> Manifest:
    """Recorded ISIC 2017 with an image in each of the parts."""
    records = [
        dataclasses.replace(record(f"I{i}", code), part=part)
        for i, (part, code) in enumerate(zip(parts, ("MEL", "SK", "NV"), strict=False))
    ]
    made = dataclasses.replace(manifest(records, dataset="isic17", root=root), missing=missing)
    save_manifest(made)
    return made


def mine(root: Path) -> Manifest:
    """A recorded set of a user's own."""
    made = manifest([record("a", "x"), record("b", "y")], dataset="mine", root=root)
    made = dataclasses.replace(made, codes=("y", "x"))
    save_manifest(made)
    return made


# --- states ----------------------------------------------------------------------------------


def test_nothing_is_here(data_folder: Path) -> None:
    """All known names, none of them here; looking makes no folder."""
    found = statuses()
    assert [s.name for s in found] == KNOWN
    assert {s.state for s in found} == {"not here"}
    assert all(s.manifest is None and not s.problem for s in found)
    assert [s.title for s in found] == [TAXONOMIES[n].title for n in KNOWN]
    assert not data_folder.exists()


@pytest.mark.parametrize(
    ("parts", "missing", "expected"),
    [
        (("train", "val", "test"), 0, "here"),
        (("train", "val"), 0, "here, no test part"),
        (("train",), 0, "here, no test or val part"),
        (("train", "val", "test"), 7, "partial"),
        (("train", "val"), 7, "partial, no test part"),
        (("", ""), 0, "here"),
    ],
)
def test_here_or_in_part(
    parts: tuple[str, ...], missing: int, expected: str, tmp_path: Path
) -> None:
    """Missing images make it partial, and official parts that are absent are named."""
    made = isic17(tmp_path, *parts, missing=missing)
    status = state("isic17")
    assert (status.state, status.problem, status.manifest) == (expected, "", made)
    assert state("isic18").state == "not here"


def test_binary_tasks_follow(tmp_path: Path) -> None:
    """They are here with the data set they are made from, in their own classes."""
    isic17(tmp_path, "train", "val", "test")
    for name, positive in (("isic17-mel", "MEL"), ("isic17-sk", "SK")):
        status = state(name)
        assert status.state.startswith("here")
        assert status.manifest is not None
        assert status.manifest.class_counts() == {positive: 1, "OTHER": 2}


def test_own_data_sets_come_last(tmp_path: Path) -> None:
    """With their classes in the order recorded."""
    made = mine(tmp_path)
    assert [s.name for s in statuses()] == [*KNOWN, "mine"]
    status = state("mine")
    assert (status.title, status.state, status.manifest) == ("mine", "here", made)
    assert made.class_counts() == {"y": 1, "x": 1}


def test_the_folder_is_gone(tmp_path: Path) -> None:
    """The record alone is no data set, nor are the tasks made from it."""
    for make, names in ((mine, ["mine"]), (isic17, ["isic17", "isic17-mel", "isic17-sk"])):
        root = tmp_path / "images"
        root.mkdir()
        make(root)
        root.rmdir()
        for name in names:
            status = state(name)
            assert (status.state, status.manifest) == ("damaged", None)
            assert f"are gone from {root}" in status.problem
    assert state("isic18").state == "not here"


@pytest.mark.parametrize("content", ["", "[]", '{"format": "x"}', "\x00\xff", '{"format": 1}'])
def test_a_damaged_record(content: str, tmp_path: Path) -> None:
    """It is told, and the others are listed all the same."""
    made = isic17(tmp_path, "train", "val", "test")
    mine(tmp_path)
    record_path("mine").write_text(content, encoding="latin-1")
    status = state("mine")
    assert (status.state, status.manifest) == ("damaged", None)
    assert str(record_path("mine")) in status.problem
    assert state("isic17").manifest == made


def test_a_record_under_another_name(tmp_path: Path) -> None:
    """A record copied by hand is not taken for another data set."""
    mine(tmp_path)
    shutil.copy(record_path("mine"), record_path("yours"))
    assert state("yours").problem.endswith("it holds 'mine'")
    assert state("mine").state == "here"


def test_foreign_files_are_no_records(tmp_path: Path) -> None:
    """Temporary files and folders beside the records do not matter."""
    mine(tmp_path)
    folder = record_path("x").parent
    (folder / ".mine.json.abc~").touch()
    (folder / "notes.txt").touch()
    assert [s.name for s in statuses()] == [*KNOWN, "mine"]


# --- forgetting ------------------------------------------------------------------------------


def test_forget(tmp_path: Path) -> None:
    """The record goes, the images stay."""
    (tmp_path / "a.jpg").touch()
    mine(tmp_path)
    assert forget("mine") == record_path("mine")
    assert not record_path("mine").exists()
    assert (tmp_path / "a.jpg").exists()
    with pytest.raises(UsageError, match="no data set 'mine' is recorded"):
        forget("mine")


def test_forget_a_damaged_record(tmp_path: Path) -> None:
    """So that it can be recorded anew."""
    mine(tmp_path)
    record_path("mine").write_text("")
    forget("mine")
    assert not record_path("mine").exists()


def test_forget_a_task(tmp_path: Path) -> None:
    """It has no record of its own; which one it has is said."""
    isic17(tmp_path, "train", "val", "test")
    with pytest.raises(UsageError, match="isic17-sk is made from isic17") as caught:
        forget("isic17-sk")
    assert caught.value.fix == "biigma datasets remove isic17"
    assert record_path("isic17").exists()


def test_forget_no_file_elsewhere(tmp_path: Path, data_folder: Path) -> None:
    """A path is no name, even where it leads to a JSON file."""
    mine(tmp_path)
    (tmp_path / "precious.json").write_text("{}")
    for name in (str(tmp_path / "precious"), "../../precious", "../datasets/mine"):
        with pytest.raises(UsageError, match="no data set"):
            forget(name)
    assert (tmp_path / "precious.json").exists()
    assert record_path("mine").exists()


def test_forget_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, and the record is still there."""
    mine(tmp_path)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(BiigmaError, match=r"cannot remove .*Permission denied") as caught:
        forget("mine")
    assert caught.value.exit_code == EXIT_FAILURE


# --- loading ---------------------------------------------------------------------------------


def test_load_by_settings(tmp_path: Path) -> None:
    """By the name in a run's settings."""
    made = mine(tmp_path)
    assert load_dataset(DataConfig(dataset="mine")) == made
    with pytest.raises(DataError, match="isic19 is not on this machine"):
        load_dataset(DataConfig(dataset="isic19"))


def test_the_synthetic_set(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn once, recorded under the name of its settings, listed, loaded by that, forgotten."""
    one_process = functools.partial(synthetic.write_synthetic, workers=1)
    monkeypatch.setattr(synthetic, "write_synthetic", one_process)
    settings = DataConfig(dataset="synthetic", synthetic_count=70)
    calls: list[tuple[int, int]] = []
    drawn = load_dataset(settings, progress=lambda *done: calls.append(done))
    assert len(drawn.records) == 70
    assert calls[-1] == (70, 70)
    assert {r.part for r in drawn.records} == {"train", "val", "test"}
    assert all((drawn.root / r.mask).is_file() for r in drawn.records)
    assert drawn.dataset == "synthetic"
    (name,) = (s.name for s in statuses() if s.name not in KNOWN)
    assert drawn.root == data_folder.resolve() / "data" / name
    assert (state(name).state, state(name).manifest) == ("here", drawn)
    assert load_manifest(name) == drawn

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("its images are checked again")

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "check_images", refuse)
        assert load_dataset(settings) == drawn
    record_path(name).unlink()
    assert load_dataset(settings) == drawn  # from its own table, without drawing
    record_path(name).write_text("{}")
    with pytest.raises(DataError, match="is damaged") as caught:
        load_dataset(settings)
    assert str(record_path(name)) in caught.value.fix
    forget(name)
    assert name not in {s.name for s in statuses()}


def test_the_synthetic_set_before_it_is_drawn() -> None:
    """It cannot be downloaded."""
    with pytest.raises(DataError, match="synthetic is not on this machine") as caught:
        load_manifest("synthetic")
    assert "download" not in caught.value.fix
    assert "--dataset synthetic" in caught.value.fix


def test_records_are_json(tmp_path: Path) -> None:
    """Anyone can read them: fields are named once, then one row an image."""
    mine(tmp_path)
    stored = json.loads(record_path("mine").read_text())
    assert stored["codes"] == ["y", "x"]
    place = stored["fields"].index("label")
    assert [row[place] for row in stored["records"]] == ["x", "y"]
