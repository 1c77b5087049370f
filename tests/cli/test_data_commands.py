"""`biigma datasets`, `cache`, `download --from` and training on one's own data."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from biigma_cli.data.manifest import load_manifest, record_path
from biigma_cli.data.sources import files
from biigma_cli.storage import home as data_home
from tests.conftest import COLOURS, TINY, Outcome, call

CLASSES = ("spitz", "blue nevus", "Reed")


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder."""
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "fresh"))
    return tmp_path / "fresh"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that is opened fails the test."""

    def refuse(*_: object) -> None:
        raise AssertionError("a socket was opened")

    for name in ("connect", "connect_ex", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def paint(path: Path, colour: tuple[int, int, int], seed: int) -> None:
    """A small image around a colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    values = np.clip(rng.normal(colour, 30, (24, 32, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(values).save(path)


def paint_classes(top: Path, counts: dict[str, int]) -> Path:
    """A folder per class with so many images."""
    colours = list(COLOURS.values())
    for n, (label, count) in enumerate(counts.items()):
        for i in range(count):
            paint(top / label / f"{i}.jpg", colours[n % 7], 100 * n + i)
    return top


@pytest.fixture(scope="session")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class, six images each."""
    return paint_classes(tmp_path_factory.mktemp("mine") / "d", dict.fromkeys(CLASSES, 6))


@pytest.fixture(scope="session")
def mine_parted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train, val and test, each with a folder per class."""
    top = tmp_path_factory.mktemp("parted") / "d"
    for part, count in (("train", 5), ("val", 2), ("test", 3)):
        paint_classes(top / part, dict.fromkeys(CLASSES, count))
    return top


def refused(done: Outcome, code: int, *words: str) -> None:
    """One error with a remedy that says each of `words`, nothing on stdout, the exit code."""
    assert done.code == code, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    assert done.err.count("error:") == 1
    assert done.err.count("fix:") == 1
    for word in words:
        assert word in done.err


def nothing_in(folder: Path) -> bool:
    """Whether no file lies below a folder."""
    return not [p for p in folder.rglob("*") if p.is_file()]


def listed(*more: str | Path) -> dict[str, dict[str, Any]]:
    """`biigma datasets --json` by name."""
    done = call("datasets", "--json", *more)
    assert done.code == 0, done.err
    return {row["name"]: row for row in json.loads(done.out)}


# --- datasets --------------------------------------------------------------------------------


def test_no_data_sets(fresh: Path) -> None:
    """All that can be had, none here, and what to do next; looking writes nothing."""
    done = call("datasets")
    assert done.code == 0
    for name in ("isic17", "isic17-mel", "isic17-sk", "isic18", "isic19"):
        assert name in done.out
    assert done.out.count("not here") == 5
    assert "biigma download" in done.err
    assert {row["state"] for row in listed().values()} == {"not here"}
    assert not fresh.exists()


def test_add_list_remove(fresh: Path, mine: Path) -> None:
    """What add says, what the list says, and that only the record is removed."""
    before = sorted(mine.rglob("*"))
    done = call("datasets", "add", "spitzoid", mine, "--licence", "CC0-1.0", "--citation", "Me 1")
    assert done.code == 0, done.err
    assert "spitzoid: 18 images, all open" in done.out
    assert "classes: Reed 6, blue nevus 6, spitz 6" in done.out
    assert "licence: CC0-1.0. Please cite: Me 1" in done.out
    assert str(fresh / "datasets" / "spitzoid.json") in done.err
    row = listed()["spitzoid"]
    assert row == {
        "name": "spitzoid",
        "title": "spitzoid",
        "state": "here",
        "problem": "",
        "root": str(mine.resolve()),
        "images": 18,
        "missing": 0,
        "classes": {"Reed": 6, "blue nevus": 6, "spitz": 6},
        "parts": {},
        "licence": "CC0-1.0",
        "citation": "Me 1",
        "data_hash": load_manifest("spitzoid").data_hash,
    }
    shown = call("datasets")
    assert shown.code == 0
    for word in ("spitzoid", "here", "18", "CC0-1.0", str(mine.resolve())):
        assert word in shown.out
    assert "biigma download" not in shown.err
    gone = call("datasets", "remove", "spitzoid")
    assert (gone.code, gone.err) == (0, "")
    assert "the images were left alone" in gone.out
    assert "spitzoid" not in listed()
    assert sorted(mine.rglob("*")) == before
    refused(call("datasets", "remove", "spitzoid"), 2, "no data set 'spitzoid'")


def test_a_record_that_is_replaced(fresh: Path, mine: Path, tmp_path: Path) -> None:
    """Other content is told of with both counts; the same again, or moved, is not."""
    copy = Path(shutil.copytree(mine, tmp_path / "copy"))
    for source in (mine, mine, copy):
        done = call("datasets", "add", "own", source)
        assert done.code == 0, done.err
        assert "the record of" not in done.err
    shutil.rmtree(copy / "Reed")
    paint(copy / "spitz" / "6.jpg", (1, 2, 3), 1)
    line = "the record of own is replaced: it held 18 images (Reed 6, blue nevus 6, spitz 6), now "
    done = call("datasets", "add", "own", copy)
    assert f"{line}13 images (blue nevus 6, spitz 7)" in done.err
    assert "the record of" not in done.out
    assert len(load_manifest("own").records) == 13
    paint(copy / "spitz" / "6.jpg", (1, 2, 3), 2)
    done = call("datasets", "add", "own", copy)
    assert "it held 13 images (blue nevus 6, spitz 7), now as many, which differ" in done.err
    done = call("datasets", "add", "own", copy, "--classes", "spitz,blue nevus")
    assert "now 13 images (spitz 7, blue nevus 6)" in done.err
    record_path("own").write_text("{")
    done = call("datasets", "add", "own", copy)
    assert (done.code, "the record of" in done.err) == (0, False)


def test_a_table_that_says_more(fresh: Path, mine: Path, tmp_path: Path) -> None:
    """Of the same images another sex is other content."""
    top = Path(shutil.copytree(mine, tmp_path / "copy"))
    rows = [f"{label}/{i}.jpg,{label}" for label in CLASSES for i in range(6)]
    for sex, told in (("", False), ("male", True), ("male", False)):
        (top / "t.csv").write_text("image,label,sex\n" + "".join(f"{r},{sex}\n" for r in rows))
        done = call("datasets", "add", "t", top)
        assert done.code == 0, done.err
        assert ("the record of t is replaced" in done.err) is told


def test_add_with_classes_and_parts(fresh: Path, mine_parted: Path) -> None:
    """The order of classes as given; parts are counted."""
    done = call("datasets", "add", "p", mine_parted, "--classes", "spitz, Reed,blue nevus")
    assert done.code == 0, done.err
    assert "parts:   train 15, val 6, test 9" in done.out
    assert list(listed()["p"]["classes"]) == ["spitz", "Reed", "blue nevus"]
    assert listed()["p"]["parts"] == {"train": 15, "val": 6, "test": 9}


def test_add_a_partial_table(fresh: Path, mine: Path, tmp_path: Path) -> None:
    """Rows without an image are refused by number, or left out and counted on request."""
    top = Path(shutil.copytree(mine, tmp_path / "copy"))
    rows = "".join(f"spitz/{i}.jpg;a\nReed/{i}.jpg;b\n" for i in range(8))
    (top / "t.csv").write_text(f"image;label\n{rows}", encoding="utf-8")
    refused(call("datasets", "add", "t", top), 3, "4 of 16 rows", "spitz/6.jpg", "--allow-missing")
    assert nothing_in(fresh)
    done = call("datasets", "add", "t", top, "--allow-missing")
    assert done.code == 0, done.err
    assert "4 rows have no image" in done.err
    assert "missing: 4 labelled images are not on this machine" in done.out
    assert (listed()["t"]["state"], listed()["t"]["missing"]) == ("partial", 4)


def test_listed_states(fresh: Path, mine: Path, tmp_path: Path) -> None:
    """Damaged records and folders that are gone are told in both forms, and end well."""
    copy = Path(shutil.copytree(mine, tmp_path / "copy"))
    for name, source in (("good", mine), ("moved", copy), ("broken", mine)):
        assert call("datasets", "add", name, source).code == 0
    shutil.rmtree(copy)
    record_path("broken").write_text("{")
    states = {n: row["state"] for n, row in listed().items() if n in ("good", "moved", "broken")}
    assert states == {"good": "here", "moved": "damaged", "broken": "damaged"}
    assert "are gone from" in listed()["moved"]["problem"]
    assert "is damaged" in listed()["broken"]["problem"]
    assert "images" not in listed()["broken"]
    done = call("datasets")
    assert done.code == 0
    text = " ".join(done.out.split())
    assert "gone" in text
    assert "damaged" in text
    for name in ("good", "moved", "broken"):
        assert name in done.out
    assert call("datasets", "remove", "broken").code == 0


def test_long_names_are_not_cut_off(fresh: Path, mine: Path) -> None:
    """In a pipe the table shows every name whole."""
    name = "a-rather-long-name-of-a-data-set-of-my-own-that-goes-on-and-on"
    assert call("datasets", "add", name, mine).code == 0
    assert name in call("datasets").out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["add", "isic18", "MINE"], 2, ["isic18 is a name of biigma's own"]),
        (["add", "Big Set", "MINE"], 2, ["'Big Set'", "lower case"]),
        (["add", "../x", "MINE"], 2, ["'../x'"]),
        (["add", "x", "MINE/gone"], 3, ["nothing at", "gone"]),
        (["add", "x", "MINE/spitz"], 3, ["no folder of images", "one folder per class"]),
        (["add", "x", "MINE/spitz/0.jpg"], 3, ["0.jpg", "UTF-8"]),
        (["add", "x", "MINE", "--classes", "spitz,blue nevus,Read"], 3, ["'Reed'", "'Read'"]),
        (["add", "x", "MINE", "--classes", "spitz"], 2, ["--classes spitz"]),
        (["add", "x", "MINE", "--classes", ""], 2, ["--classes names no class"]),
        (["add", "x", "MINE", "--classes", "spitz,blue nevus,Reed,z"], 3, ["no image of z"]),
        (["remove", "isic17-mel"], 2, ["made from isic17"]),
        (["remove", "isic18"], 2, ["no data set 'isic18'"]),
        (["remove", "../secret"], 2, ["no data set"]),
        (["--data-dir", "/tmp", "remove", "x"], 2, ["--data-dir"]),
        (["--json", "remove", "x"], 2, ["--json"]),
    ],
)
def test_bad_use(
    arguments: list[str], code: int, words: list[str], fresh: Path, mine: Path
) -> None:
    """One message, the exit code, and nothing recorded."""
    given = [a.replace("MINE", str(mine)) for a in arguments]
    refused(call("datasets", *given), code, *words)
    assert not fresh.exists()


def test_a_damaged_image_of_ones_own(fresh: Path, mine: Path, tmp_path: Path) -> None:
    """Found when it is added, and nothing is recorded."""
    copy = Path(shutil.copytree(mine, tmp_path / "copy"))
    (copy / "Reed" / "3.jpg").write_bytes(b"\xff\xd8\xff")
    refused(call("datasets", "add", "x", copy), 3, "1 of 18 images", "3.jpg")
    assert nothing_in(fresh)


# --- --data-dir ------------------------------------------------------------------------------


def test_data_dir_is_used_and_does_not_leak(fresh: Path, mine: Path, tmp_path: Path) -> None:
    """Each command works in the folder named, whatever BIIGMA_HOME says, and only that once."""
    other = tmp_path / "other"
    assert call("datasets", "add", "a", mine, "--data-dir", other).code == 0
    assert (other / "datasets" / "a.json").is_file()
    assert "a" not in listed()
    assert listed("--data-dir", other)["a"]["state"] == "here"
    refused(call("datasets", "remove", "a"), 2, "no data set 'a'")
    (other / "cache" / "a-16-pad-0123456789ab").mkdir(parents=True)
    assert json.loads(call("cache", "list", "--json", "--data-dir", other).out)[0]["dataset"] == "a"
    assert json.loads(call("cache", "list", "--json").out) == []
    assert call("cache", "clear").out.startswith("removed 0 entries")
    assert call("cache", "clear", "--data-dir", other).out.startswith("removed 1 entries")
    refused(call("train", "--dataset", "a", "--runs", tmp_path / "runs"), 2, "unknown data set 'a'")
    refused(call("audit", "a"), 2, "'a'")
    assert call("audit", "a", "--json", "--data-dir", other).code in (0, 3)
    assert call("datasets", "remove", "a", "--data-dir", other).code == 0
    assert not fresh.exists()
    assert data_home() == fresh


def test_data_dir_does_not_leak_after_an_error(fresh: Path, tmp_path: Path) -> None:
    """Nor where the command failed."""
    done = call("datasets", "add", "a", tmp_path / "gone", "--data-dir", tmp_path / "other")
    refused(done, 3, "gone")
    assert data_home() == fresh
    assert not (tmp_path / "other").exists()


def test_download_into_a_data_dir(fresh: Path, tiny_ham: Path, tmp_path: Path) -> None:
    """The record goes there, and training and judging find it there."""
    other = tmp_path / "other"
    done = call("download", "isic18", "--from", tiny_ham, "--allow-missing", "--data-dir", other)
    assert done.code == 0, done.err
    assert (other / "datasets" / "isic18.json").is_file()
    refused(call("train", "--runs", tmp_path / "runs"), 3, "isic18 is not on this machine")
    assert not fresh.exists()


# --- download --------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_network")
def test_list_urls(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Address, size and checksum of each file of the parts, without a connection."""
    done = call("download", "isic17", "--list-urls")
    assert (done.code, done.err) == (0, "")
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert [row[0].rpartition("/")[2] for row in rows] == [f.name for f in files("isic17")]
    assert all(row[0].startswith("https://") and len(row) == 3 for row in rows)
    assert any(row[2].startswith("md5:") for row in rows)
    some = call("download", "isic19", "--list-urls", "--parts", "test, train")
    assert len(some.out.splitlines()) == 6
    assert len(call("download", "isic19", "--list-urls", "--parts", "test").out.splitlines()) == 3
    monkeypatch.setenv("BIIGMA_MIRROR", "http://host/isic")
    assert call("download", "isic18", "--list-urls").out.startswith("http://host/isic/2018/")
    given = call("download", "isic18", "--list-urls", "--mirror", "https://me:word@other/")
    assert given.out.startswith("https://other/2018/")
    assert "word" not in given.out
    assert not fresh.exists()


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["isic21"], ["'isic21'", "isic17, isic18, isic19", "datasets add"]),
        (["isic17-mel"], ["isic17-mel is a task on the images of isic17"]),
        (["synthetic"], ["'synthetic' cannot be downloaded"]),
        (["isic18", "--parts", "training"], ["--parts training", "train,val,test"]),
        (["isic18", "--parts", ""], ["--parts nothing"]),
        (["isic18", "--parts", ", ,"], ["--parts nothing"]),
        (["isic19", "--parts", "val", "--list-urls"], ["no part 'val'", "train, test"]),
        (["isic18", "--mirror", "ftp://x", "--list-urls"], ["--mirror", "ftp://x"]),
    ],
)
def test_bad_use_of_download(arguments: list[str], words: list[str], fresh: Path) -> None:
    """A usage error before anything is opened or written."""
    refused(call("download", *arguments), 2, *words)
    assert not fresh.exists()


def make_isic17(folder: Path) -> Path:
    """Three parts of ISIC 2017, small."""
    for part, count in (("Training", 6), ("Validation", 3), ("Test_v2", 3)):
        rows = [["image_id", "melanoma", "seborrheic_keratosis"]]
        for i in range(count):
            name = f"ISIC_{part[:2]}{i}"
            rows.append([name, f"{i % 3 == 0:.1f}", f"{i % 3 == 1:.1f}"])
            path = folder / f"ISIC-2017_{part}_Data" / f"{name}.jpg"
            paint(path, COLOURS["nv"], len(part) * 10 + i)
        path = folder / f"ISIC-2017_{part}_Part3_GroundTruth.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    return folder


@pytest.mark.usefixtures("no_network")
def test_from_an_official_layout(fresh: Path, tmp_path: Path) -> None:
    """Several folders; parts, missing images and the tasks are told."""
    folder = make_isic17(tmp_path / "data")
    images = tmp_path / "elsewhere"
    (folder / "ISIC-2017_Test_v2_Data").rename(images)
    (images / "ISIC_Te2.jpg").unlink()
    refused(call("download", "isic17", "--from", folder), 3, "found MEL 2, SK 2, NV 2", "MEL 374")
    assert nothing_in(fresh)
    some = call("download", "isic17", "--from", folder, "--from", images, "--allow-missing")
    assert some.code == 0, some.err
    assert "isic17: 11 images, all open" in some.out
    assert "missing: 1 labelled images" in some.out
    assert "parts:   train 6, val 3, test 2" in some.out
    assert "1 labelled images are not there" in some.err
    row = listed()["isic17"]
    assert (row["state"], row["missing"], row["licence"]) == ("partial", 1, "CC0-1.0")
    assert listed()["isic17-mel"]["classes"] == {"MEL": 4, "OTHER": 7}
    refused(call("download", "isic17", "--from", tmp_path / "no"), 3, "nothing at", "no")
    parts = call("download", "isic17", "--from", folder, "--parts", "test")
    refused(parts, 2, "--parts chooses what is fetched", "leave --parts out")
    assert listed()["isic17"] == row


# --- cache -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh", "no_network")
def test_a_part_does_not_replace_a_record(tiny_ham: Path) -> None:
    """Without official parts in the record, a part alone is refused before anything is fetched."""
    assert call("download", "isic18", "--from", tiny_ham, "--allow-missing").code == 0
    before = record_path("isic18").read_bytes()
    refused(call("download", "isic18", "--parts", "test", "--offline"), 2, "without official parts")
    # The whole data set may replace it: what is missing is then the archives.
    refused(call("download", "isic18", "--offline"), 3, "ISIC2018_Task3_Test_Input.zip")
    assert record_path("isic18").read_bytes() == before


def test_a_part_is_added_to_a_record(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fetched part joins the parts that were recorded from another folder."""
    copy = make_isic17(tmp_path / "elsewhere")
    (copy / "ISIC-2017_Test_v2_Part3_GroundTruth.csv").unlink()
    done = call("download", "isic17", "--from", copy, "--allow-missing")
    assert done.code == 0, done.err
    had = {r.image_id for r in load_manifest("isic17").records}

    def fetched(dataset: str, folder: Path, **options: Any) -> Path:
        images = folder / "ISIC-2017_Test_v2_Data"
        images.mkdir(parents=True)
        paint(images / "ISIC_0099999.jpg", (90, 60, 50), 1)
        (folder / "ISIC-2017_Test_v2_Part3_GroundTruth.csv").write_text(
            "image_id,melanoma,seborrheic_keratosis\nISIC_0099999,1.0,0.0\n", encoding="utf-8"
        )
        return folder

    monkeypatch.setattr("biigma_cli.data.fetch.download", fetched)
    done = call("download", "isic17", "--parts", "test", "--allow-missing")
    assert done.code == 0, done.err
    assert {r.image_id for r in load_manifest("isic17").records} == had | {"ISIC_0099999"}
    assert f"the record of isic17 is replaced: it held {len(had)} images (" in done.err
    assert f", now {len(had) + 1} images (" in done.err


def test_a_part_is_added_to_several_folders(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was recorded from a second --from stays, too: truth here, images there."""
    copy = make_isic17(tmp_path / "here")
    (copy / "ISIC-2017_Test_v2_Part3_GroundTruth.csv").unlink()
    there = tmp_path / "there"
    there.mkdir()
    (copy / "ISIC-2017_Training_Data").rename(there / "images")
    done = call("download", "isic17", "--from", copy, "--from", there, "--allow-missing")
    assert done.code == 0, done.err
    had = {r.image_id for r in load_manifest("isic17").records}
    assert len(had) == 9

    def fetched(dataset: str, folder: Path, **options: Any) -> Path:
        make_isic17(folder)
        for name in ("Training", "Validation"):
            shutil.rmtree(folder / f"ISIC-2017_{name}_Data")
            (folder / f"ISIC-2017_{name}_Part3_GroundTruth.csv").unlink()
        return folder

    monkeypatch.setattr("biigma_cli.data.fetch.download", fetched)
    done = call("download", "isic17", "--parts", "test", "--allow-missing")
    assert done.code == 0, done.err
    assert {r.image_id for r in load_manifest("isic17").records} > had


def test_an_empty_cache(fresh: Path) -> None:
    """Nothing to list, nothing to clear, nothing made."""
    done = call("cache", "list")
    assert (done.code, done.out) == (0, "")
    assert f"nothing is cached in {fresh / 'cache'}" in done.err
    assert json.loads(call("cache", "list", "--json").out) == []
    assert call("cache", "clear").out == "removed 0 entries, 0 MB\n"
    assert not fresh.exists()


def test_cache_list_and_clear(fresh: Path, mine: Path, mine_parted: Path) -> None:
    """A table, JSON, and clearing one data set's or all."""
    from biigma_cli.data.cache import build_cache, cache_path

    for name, source in (("one", mine), ("two", mine_parted)):
        assert call("datasets", "add", name, source).code == 0
        build_cache(load_manifest(name), 64, "pad")
    rows = json.loads(call("cache", "list", "--json").out)
    assert [(r["dataset"], r["side"], r["rule"], r["images"]) for r in rows] == [
        ("two", 64, "pad", 30), ("one", 64, "pad", 18),
    ]  # fmt: skip
    assert rows[1]["path"] == str(cache_path(load_manifest("one"), 64, "pad"))
    assert rows[1]["bytes"] > 18 * 64 * 64 * 3
    done = call("cache", "list")
    for word in ("one", "two", "64", "pad", "18", Path(rows[0]["path"]).name):
        assert word in done.out
    assert str(fresh / "cache") in done.err
    assert call("cache", "clear", "--dataset", "one").out.startswith("removed 1 entries, 0 MB")
    assert [r["dataset"] for r in json.loads(call("cache", "list", "--json").out)] == ["two"]
    refused(call("cache", "clear", "--dataset", "none"), 2, "unknown data set 'none'")
    assert call("cache", "clear", "--dataset", "isic18").out.startswith("removed 0 entries")
    assert call("cache", "clear").out.startswith("removed 1 entries")
    assert nothing_in(fresh / "cache")


@pytest.mark.parametrize(
    "command",
    [("datasets",), ("cache", "list"), ("cache", "clear"), ("audit", "isic18"), ("eval",)],
)
def test_a_data_folder_that_is_a_file(command: tuple[str, ...], tmp_path: Path) -> None:
    """It does not seem to be empty, nor does a folder below it."""
    (tmp_path / "file").write_bytes(b"")
    refused(call(*command, "--data-dir", tmp_path / "file"), 2, "is no folder")
    done = call(*command, "--data-dir", tmp_path / "file" / "sub")
    refused(done, 2, f"sub is no folder: {tmp_path / 'file'} is none")


@pytest.mark.parametrize(
    "command", [("datasets", "--data-dir", ""), ("download", "isic18", "--from", "")]
)
def test_an_empty_path(command: tuple[str, ...], fresh: Path) -> None:
    """It is not the folder one is in."""
    done = call(*command)
    assert done.code == 2
    assert "an empty path" in done.err
    assert not fresh.exists()


def test_cache_without_a_verb() -> None:
    """Help, not a traceback."""
    done = call("cache")
    assert "clear" in done.out + done.err
    assert "Traceback" not in done.err


# --- training on one's own data --------------------------------------------------------------


class Trained:
    """A run on an own data set, and what was said."""

    def __init__(self, run: Path, done: Outcome) -> None:
        self.run = run
        self.done = done


@pytest.fixture(scope="module")
def trained(mine_parted: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """One epoch on a set that brings its own split, in a data folder of its own."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIIGMA_HOME", str(folder / "home"))
        patch.setattr(sys, "argv", ["biigma", "train", "--dataset", "spitzoid"])
        done = call("datasets", "add", "spitzoid", mine_parted, "--licence", "CC-BY-4.0")
        assert done.code == 0, done.err
        done = call(
            *TINY, "--dataset", "spitzoid", "--epochs", "1", "--name", "own", "--runs", folder,
            "--set", "data.resize=pad", "--set", "train.batch_size=5",
        )  # fmt: skip
        assert done.code == 0, done.err
        yield Trained(folder / "own", done)


def test_own_split_is_kept_and_told(trained: Trained) -> None:
    """Without --protocol, the parts of the data set are those of the run, and it says so."""
    assert "spitzoid brings its own parts: --protocol official" in trained.done.err
    assert "the publisher's own parts" in trained.done.out
    split = json.loads((trained.run / "split.json").read_text())
    assert split["protocol"] == "official"
    for part, count in (("train", 15), ("val", 6), ("test", 9)):
        assert len(split[part]) == count
        assert all(i.startswith(f"{part}/") for i in split[part])
    assert 'protocol = "official"' in (trained.run / "config.toml").read_text()
    assert 'resize = "pad"' in (trained.run / "config.toml").read_text()
    (entry,) = json.loads(call("cache", "list", "--json").out)
    assert (entry["dataset"], entry["rule"], entry["images"]) == ("spitzoid", "pad", 30)


def test_judging_an_own_data_set(trained: Trained) -> None:
    """The test part as it was given, by the classes' own names, the protocol beside the score."""
    done = call("eval", "--run", trained.run, "--split", "test", "--device", "cpu", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert (result["n"], result["dataset"]) == (9, "spitzoid")
    assert "the publisher's own parts" in result["protocol"]
    assert [c["code"] for c in result["per_class"]] == ["Reed", "blue nevus", "spitz"]
    assert [c["support"] for c in result["per_class"]] == [3, 3, 3]
    shown = call("eval", "--run", trained.run, "--split", "test", "--device", "cpu")
    assert shown.code == 0, shown.err
    assert "blue nevus" in shown.out


def test_exporting_and_predicting_own_classes(
    trained: Trained, mine_parted: Path, tmp_path: Path
) -> None:
    """Own names in every format; malignancy, which nobody stated, is left open."""
    model = tmp_path / "own.onnx"
    done = call("export", "onnx", "--run", trained.run, "-o", model, "--images", "4")
    assert done.code == 0, done.err
    stored = {p.key: p.value for p in onnx.load(model).metadata_props}
    assert json.loads(stored["classes"]) == ["Reed", "blue nevus", "spitz"]
    assert json.loads(stored["malignant"]) == [None, None, None]
    assert json.loads(stored["preprocessing"])["resize"] == "pad-bilinear-1"
    image = mine_parted / "test" / "spitz" / "0.jpg"
    row = json.loads(call("predict", image, "--model", model, "--format", "jsonl").out)
    assert set(row["probabilities"]) == {"Reed", "blue nevus", "spitz"}
    assert row["malignant_probability"] is None
    assert row["name"] == row["label"]
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    text = call("predict", image, "--model", model, "--format", "csv").out
    (cells,) = csv.DictReader(text.splitlines())
    assert cells["malignant_probability"] == ""
    assert float(cells["blue nevus"]) == pytest.approx(row["probabilities"]["blue nevus"], abs=1e-5)
    table = call("predict", image, "--model", model, "--format", "table").out
    assert "?" in table
    assert row["label"] in table


def test_a_protocol_that_is_asked_for(trained: Trained, tmp_path: Path) -> None:
    """`--protocol`, a setting and a file all count; nothing is then changed."""
    config = tmp_path / "c.toml"
    config.write_text('[data]\nprotocol = "paper"\n')
    for given, wanted in (
        (["--protocol", "lesion"], "lesion"),
        (["--set", "data.protocol=paper"], "paper"),
        (["--config", str(config)], "paper"),
    ):
        # The backbone's file is not there: it ends after the split is chosen, before training.
        done = call(
            *TINY, "--dataset", "spitzoid", *given, "--weights", tmp_path / "no.safetensors",
            "--runs", tmp_path / "runs",
        )  # fmt: skip
        assert done.code == 3
        assert "brings its own parts" not in done.err
        shown = call("train", "--dataset", "spitzoid", *given, "--show-config")
        assert f'protocol = "{wanted}"' in shown.out
        assert "brings its own parts" not in shown.err
        told = f"--protocol {wanted}: the parts that spitzoid brings are not used"
        assert told in done.err
    assert not (tmp_path / "runs").exists()


def test_the_settings_shown_are_those_of_the_training(trained: Trained, tmp_path: Path) -> None:
    """Its own parts, too: given back as a file, they must not train on what is held out."""
    shown = call("train", "--dataset", "spitzoid", "--show-config")
    assert 'protocol = "official"' in shown.out
    config = tmp_path / "shown.toml"
    config.write_text(shown.out)
    again = call("train", "--config", config, "--show-config")
    assert again.out == shown.out
    drawn = call("train", "--dataset", "synthetic", "--show-config")
    assert 'protocol = "official"' in drawn.out
    assert 'protocol = "lesion"' in call("train", "--dataset", "isic18", "--show-config").out


def test_an_own_split_that_leaks(fresh: Path, tmp_path: Path) -> None:
    """Training and judgement say how many held-out images show a lesion that was trained on."""
    top = paint_classes(tmp_path / "d", {"common": 12, "rare": 12})
    rows = ["image,label,lesion_id,split"]
    for label in ("common", "rare"):
        for i, path in enumerate(sorted((top / label).iterdir())):
            part = ("train", "train", "val", "test")[i % 4]
            rows.append(f"{path.relative_to(top)},{label},{label}{i // 4},{part}")
    (top / "own.csv").write_text("\n".join(rows) + "\n")
    assert call("datasets", "add", "leaky", top / "own.csv").code == 0
    runs = tmp_path / "runs"
    done = call(
        *TINY, "--dataset", "leaky", "--epochs", "1", "--runs", runs, "--name", "one",
        "--set", "train.batch_size=4",
    )  # fmt: skip
    assert done.code == 0, done.err
    flat = " ".join((done.out + done.err).split())
    for part, before in (("val", "train"), ("test", "train or val")):
        assert f"6 of 6 {part} images of leaky show a lesion that is in {before}, too" in flat
    told = "own parts (lesions leak: 6 of 6 test images show one of train or val)"
    assert told in done.out
    judged = call("eval", "--run", runs / "one", "--device", "cpu", "--json")
    assert judged.code == 0, judged.err
    assert told in json.loads(judged.out)["protocol"]


def test_training_with_too_few_lesions(fresh: Path, tmp_path: Path) -> None:
    """The class is named, and no run folder is left."""
    top = paint_classes(tmp_path / "d", {"common": 9, "rare": 2})
    assert call("datasets", "add", "few", top).code == 0
    done = call(*TINY, "--dataset", "few", "--runs", tmp_path / "runs")
    refused(done, 3, "class rare has 2 lesions: too few for train, val, test")
    assert not (tmp_path / "runs").exists()


def test_parts_that_are_no_split(fresh: Path, mine_parted: Path, tmp_path: Path) -> None:
    """Held-out images are not trained on unasked."""
    top = Path(shutil.copytree(mine_parted, tmp_path / "copy"))
    shutil.rmtree(next(p for p in top.iterdir() if p.name.lower() == "test"))
    assert call("datasets", "add", "half", top).code == 0
    runs = ("--runs", tmp_path / "runs")
    refused(
        call("train", "--dataset", "half", *runs), 2, "the parts of half are no split",
        "15 in train, 6 in val, but none in test", "--protocol lesion",
    )  # fmt: skip
    assert nothing_in(tmp_path / "runs")
    refused(call("ablate", "--table2", "--dataset", "half", "--dry-run", *runs), 2, "no split")
    asked = call("ablate", "--table2", "--dataset", "half", "--dry-run", *runs, "--set",
                 "data.protocol=lesion")  # fmt: skip
    assert asked.code == 0, asked.err


def test_training_by_path_or_wrong_name(fresh: Path, mine: Path, tmp_path: Path) -> None:
    """What to do with a path, and the nearest name, are said."""
    done = call("train", "--dataset", mine, "--runs", tmp_path / "runs")
    refused(done, 2, "is a path", f"biigma datasets add NAME {mine}")
    assert call("datasets", "add", "spitzoid", mine).code == 0
    done = call("train", "--dataset", "spitsoid", "--runs", tmp_path / "runs")
    refused(done, 2, "'spitsoid'", "did you mean 'spitzoid'?")
    assert not (tmp_path / "runs").exists()


def test_training_officially_without_the_parts(fresh: Path, mine: Path, tmp_path: Path) -> None:
    """`official` where nobody gave parts."""
    assert call("datasets", "add", "spitzoid", mine).code == 0
    done = call(
        *TINY, "--dataset", "spitzoid", "--protocol", "official", "--runs", tmp_path / "runs"
    )
    refused(done, 3, "spitzoid has no official train part", "--protocol lesion")
    assert not (tmp_path / "runs").exists()


def test_the_users_own_folder_is_safe() -> None:
    """The guard of all tests: the data folder in use is a temporary one."""
    import platformdirs

    assert os.environ["BIIGMA_HOME"]
    assert not data_home().is_relative_to(platformdirs.user_data_dir("biigma"))


def test_training_on_a_part_of_the_images(fresh: Path, mine: Path, tmp_path: Path) -> None:
    """What is missing is said, and is accepted only by name."""
    table = tmp_path / "some.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "label"])
        for path in sorted(mine.rglob("*.jpg")):
            rows.writerow([path, path.parent.name])
        rows.writerow(["gone.jpg", CLASSES[0]])
    added = call("datasets", "add", "some", table, "--allow-missing")
    assert added.code == 0, added.err
    words = (*TINY, "--dataset", "some", "--epochs", "1", "--runs", tmp_path / "runs")
    refused(call(*words, "--name", "a"), 3, "1 of the", "--allow-missing")
    assert not (tmp_path / "runs").exists()
    done = call(*words, "--name", "b", "--allow-missing")
    assert done.code == 0, done.err
    assert "1 labelled images are missing" in done.err


def test_a_wrong_device_is_told_before_drawing(fresh: Path, tmp_path: Path) -> None:
    """No synthetic image is drawn for a run that cannot start."""
    words = ("train", "--dataset", "synthetic", "--weights", "none", "--runs", tmp_path / "runs")
    refused(call(*words, "--device", "cuda:97"), 4, "CUDA")
    assert nothing_in(fresh)
