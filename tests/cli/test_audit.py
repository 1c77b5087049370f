"""`biigma audit`: tables, JSON, the contact sheet, exit codes."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from biigma_cli.data.audit import may_be_replaced
from biigma_cli.data.manifest import load_manifest, save_manifest
from biigma_cli.judge import same_lesion
from biigma_cli.storage import using_home
from tests.cli.test_data_commands import paint_classes
from tests.conftest import call
from tests.data.test_audit import moles, nearer, plant
from tests.report.pages import Page

# How a table of this command begins: one that may be replaced.
OLDER = '"image","label","lesion_id"\n'
HOSTILE = '"><script>alert(1)</script>'


@pytest.fixture(scope="module")
def planted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the planted set, one of whose lesions has a hostile name."""
    folder = tmp_path_factory.mktemp("audit")
    data = plant(folder / "images")
    records = [
        dataclasses.replace(r, lesion_id=HOSTILE) if r.lesion_id == "L01" else r
        for r in data.records
    ]
    with using_home(folder / "home"):
        save_manifest(
            dataclasses.replace(data, records=tuple(records), citation="<i>Nobody</i> & others")
        )
    return folder


@pytest.fixture
def planted_home(planted_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the data folder of every command of the test."""
    monkeypatch.setenv("BIIGMA_HOME", str(planted_folder / "home"))
    return planted_folder


@pytest.fixture(scope="module")
def reported(planted_folder: Path) -> Path:
    """A folder with the report of the planted set."""
    report = planted_folder / "report"
    home = planted_folder / "home"
    done = call("audit", "isic17", "--report", report, "--limit", "50", "--data-dir", home)
    assert done.code == 0, done.err
    return report


def test_tables(planted_home: Path) -> None:
    """Every finding is on stdout, and nothing else."""
    done = call("audit", "isic17")
    assert done.code == 0, done.err
    for words in (
        "1 group", "5 pairs", "4 conflicts", "1 damaged, 1 missing", "base_03, mirrored",
        "lesions on two sides", "test images whose lesion is in train", "PNG under the name .jpg",
        "stranger.jpg", "ghost", "no official split",
    ):  # fmt: skip
        assert words in done.out, words
    assert "error" not in done.err


def test_limit_shortens_tables_and_not_json(planted_home: Path) -> None:
    """A row per kind, and how many there are; JSON has them all."""
    done = call("audit", "isic17", "--limit", "1")
    assert "the first 1 of 5" in done.out
    assert "base_03, mirrored" in done.out  # the worst comes first
    whole = json.loads(call("audit", "isic17", "--limit", "0", "--json").out)
    assert len(whole["near_duplicates"]["pairs"]) == 5


def test_without_lesion_ids_no_zero_is_claimed(tmp_path: Path) -> None:
    """What cannot be known is said to be unknown."""
    data = plant(tmp_path / "images")
    records = tuple(dataclasses.replace(r, lesion_id="") for r in data.records)
    with using_home(tmp_path / "home"):
        save_manifest(dataclasses.replace(data, records=records))
        done = call("audit", "isic17")
    rows = [line for line in done.out.splitlines() if line.strip().startswith("lesions on two")]
    assert len(rows) == 1
    assert rows[0].count("no lesion ids") == 2


def test_json(reported: Path) -> None:
    """The same findings as plain values, with stable keys."""
    whole: dict[str, Any] = json.loads((reported / "audit.json").read_text(encoding="utf-8"))
    assert set(whole) == {
        "format", "dataset", "root", "data_hash", "licence", "images", "lesions",
        "images_without_lesion_id", "classes", "classes_too_small", "protocols",
        "protocols_unavailable", "identical", "near_duplicates", "same_lesion", "label_conflicts",
        "unreadable", "odd", "metadata_without_image", "images_without_metadata",
    }  # fmt: skip
    assert whole["format"] == "biigma-audit-1"
    assert set(whole["protocols"]) == {"lesion", "paper"}
    paper = whole["protocols"]["paper"]
    assert set(paper) == {
        "title", "split", "counts", "empty_classes", "lesions_across", "test_lesion_in_train",
        "test_lesion_in_train_or_val", "val_lesion_in_train", "identical_across", "near_across",
    }  # fmt: skip
    assert set(paper["test_lesion_in_train"]) == {"images", "of", "share"}
    pair = whole["near_duplicates"]["pairs"][0]
    assert set(pair) == {
        "images", "correlation", "second_is", "same_lesion", "same_label", "parts"
    }  # fmt: skip
    assert set(pair["parts"]) == {"lesion", "paper"}
    assert whole["near_duplicates"]["count"] == 5
    assert whole["near_duplicates"]["different_labels"] == 1
    assert {u["image"] for u in whole["unreadable"]} == {"cut", "gone"}
    assert whole["metadata_without_image"] == {"labels.csv": ["ghost"]}


def test_html_is_well_formed_and_stands_alone(reported: Path) -> None:
    """Tags match; pictures are inside, decode, and have a text each; no address of anything."""
    text = (reported / "audit.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert not re.search(r"https?://|url\(|@import|<link|<script|\bon\w+=", text)
    pictures = [a for tag, a in page.tags if tag == "img"]
    assert len(pictures) > 15
    for attributes in pictures:
        assert attributes["alt"]
        head, coded = (attributes["src"] or "").split(",", 1)
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(coded))) as image:
            assert (str(image.width), str(image.height)) == (
                attributes["width"],
                attributes["height"],
            )
    assert any(a.get("name") == "viewport" for _, a in page.tags)
    assert "prefers-color-scheme: dark" in text


def test_html_shows_the_findings(reported: Path) -> None:
    """Each section, its pictures' ids and what is wrong with them."""
    page = Page((reported / "audit.html").read_text(encoding="utf-8"))
    for words in (
        "Byte-identical files", "Near-duplicates", "Label conflicts", "Unreadable images",
        "Odd images", "different labels", "different lesion ids", "mirrored left to right",
        "no picture", "stranger.jpg", "ghost",
    ):  # fmt: skip
        assert words in page.text, words


def test_hostile_names_are_text(reported: Path) -> None:
    """Names and citations from the data are shown, not run."""
    text = (reported / "audit.html").read_text(encoding="utf-8")
    page = Page(text)
    assert HOSTILE in page.text
    assert "<script" not in text
    assert "<i>Nobody</i> & others" in page.text
    assert "i" not in {tag for tag, _ in page.tags}


def test_strict(planted_home: Path) -> None:
    """Exit 1 with the reasons on stderr and the table all the same; 0 without --strict."""
    done = call("audit", "isic17", "--strict", "--protocol", "paper")
    assert done.code == 1
    assert "2 images cannot be read" in done.err
    assert "4 label conflicts" in done.err
    assert "findings" in done.out


def test_strict_lets_a_clean_set_pass(home: Path) -> None:
    """No leak, no conflict, no damage: 0."""
    done = call("audit", "isic18", "--strict", "--data-dir", home)
    assert done.code == 0, done.err
    assert "near-duplicates" in done.out
    leaky = call("audit", "isic18", "--strict", "--protocol", "paper", "--data-dir", home)
    assert leaky.code == 1
    assert "two sides of the paper split" in leaky.err


def test_strict_fails_parts_that_are_no_split(tmp_path: Path) -> None:
    """`train` refuses them without `--protocol`; by one that is asked for they are judged."""
    top = tmp_path / "images"
    paint_classes(top, {"MEL": 12, "NV": 12})
    lines = ["image,label,split"]
    for n, path in enumerate(sorted(top.rglob("*.jpg"))):
        part = "test" if n % 4 == 0 else ""
        lines.append(f"{path.relative_to(top).as_posix()},{path.parent.name},{part}")
    table = top / "labels.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with using_home(tmp_path / "home"):
        assert call("datasets", "add", "own", table).code == 0
        done = call("audit", "own", "--strict")
        assert done.code == 1
        assert "strict: the parts of own are no split" in done.err
        assert "train asks for --protocol" in done.err
        assert call("audit", "own").code == 0
        assert call("audit", "own", "--strict", "--protocol", "lesion").code == 0


def test_strict_fails_a_validation_part_of_one_class(tmp_path: Path) -> None:
    """`train` refuses it with the same words."""
    for part, classes in {"train": ("MEL", "NV"), "val": ("NV",), "test": ("MEL", "NV")}.items():
        paint_classes(tmp_path / "images" / part, dict.fromkeys(classes, 4))
    with using_home(tmp_path / "home"):
        assert call("datasets", "add", "own", tmp_path / "images").code == 0
        done = call("audit", "own", "--strict")
        assert done.code == 1
        said = "the val part of own has images of one class alone, NV"
        assert f"strict: there is no official split: {said}" in done.err
        done = call("train", "--dataset", "own", "--runs", tmp_path / "runs")
        assert done.code == 3
        assert f"error: {said}" in done.err
        assert not (tmp_path / "runs").exists()


def test_strict_judges_what_train_takes(tmp_path: Path) -> None:
    """A set with parts of its own is trained by them: a leak between them fails."""
    top = tmp_path / "images"
    paint_classes(top, {"MEL": 12, "NV": 12})
    lines = ["image,label,lesion_id,split"]
    for n, path in enumerate(sorted(top.rglob("*.jpg"))):
        name = path.relative_to(top).as_posix()
        part = ("train", "train", "test")[n % 3]
        lines.append(f"{name},{path.parent.name},L{n if n > 2 else 0},{part}")
    table = top / "labels.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with using_home(tmp_path / "home"):
        done = call("datasets", "add", "own", table)
        assert done.code == 0, done.err
        done = call("audit", "own", "--strict")
        assert done.code == 1, done.err
        assert "two sides of the official split" in done.err
        assert call("audit", "own", "--strict", "--protocol", "lesion").code == 0


def test_whatever_can_be_recorded_can_be_audited(tmp_path: Path) -> None:
    """Broken EXIF headers ask for nothing; a turned TIFF has the size of a turned JPEG."""
    top = tmp_path / "images"
    paint_classes(top, {"MEL": 40, "NV": 40})
    turned = Image.Exif()
    turned[0x0112] = 6
    tall = Image.new("RGB", (160, 30), (90, 60, 50))
    for name in ("MEL/turned.jpg", "NV/t.tif"):
        tall.save(top / name, exif=turned)
    tall.save(top / "NV" / "broken.png", exif=b"Exif\0\0MM")
    with using_home(tmp_path / "home"):
        done = call("datasets", "add", "own", top)
        assert done.code == 0, done.err
        done = call("audit", "own", "--json")
    assert done.code == 0, done.err
    odd = {o["image"]: " ".join(o["problems"]) for o in json.loads(done.out)["odd"]}
    assert "30 x 160" in odd["MEL/turned"]
    assert "30 x 160" in odd["NV/t"]
    assert "160 x 30" in odd["NV/broken"]


def test_a_class_too_small_for_any_split(tmp_path: Path) -> None:
    """It is told with all other findings, in text, page and JSON; --strict and --protocol fail."""
    top = tmp_path / "images"
    paint_classes(top, {"MEL": 2, "NV": 12})
    (top / "NV" / "copy.jpg").write_bytes(sorted((top / "MEL").iterdir())[0].read_bytes())
    page = tmp_path / "page.html"
    with using_home(tmp_path / "home"):
        done = call("datasets", "add", "own", top)
        assert done.code == 0, done.err
        done = call("audit", "own", "--html", page)
        assert done.code == 0, done.err
        whole = json.loads(call("audit", "own", "--json").out)
        strict = call("audit", "own", "--strict")
        asked = call("audit", "own", "--protocol", "lesion")
    for words in ("fewer than 3 lesions", "no lesion split: class MEL has 2", "1 group"):
        assert words in done.out, words
    assert "across the parts" not in done.out
    text = Page(page.read_text(encoding="utf-8"))
    assert text.open == []
    assert "No lesion split: class MEL has 2" in text.text
    assert whole["protocols"] == {}
    assert whole["classes_too_small"] == ["MEL"]
    assert (strict.code, asked.code) == (1, 3)
    assert "there is no lesion split" in strict.err
    assert "MEL has 2" in asked.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nonsense",), 2, "nonsense"),
        (("isic19",), 3, "isic19"),
        (("isic17", "--protocol", "none"), 2, "--protocol"),
        (("isic17", "--protocol", "official"), 3, "official"),
        (("isic17", "--test-fraction", "0.9"), 2, "--test-fraction"),
        (("isic17", "--html", f"{__file__}/audit.html"), 2, "cannot write"),
        (("isic17", "--html", "."), 2, "folder"),
    ],
)
def test_refused(planted_home: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    """One message, the right exit code, and nothing on stdout."""
    done = call("audit", *arguments)
    assert done.code == code, done.err
    assert done.out == ""
    assert done.err.count("error:") == 1
    assert words in done.err


@pytest.mark.parametrize("option", ["--html", "--table"])
def test_no_image_is_written_over(planted_home: Path, option: str) -> None:
    """Named by mistake it is refused, and stays as it is."""
    picture = sorted((planted_home / "images").rglob("*.jpg"))[0]
    before = picture.read_bytes()
    done = call("audit", "isic17", "--same-lesion", option, picture)
    assert (done.code, done.out) == (2, "")
    assert f"{option} {picture} is no" in done.err
    assert picture.read_bytes() == before


def test_a_table_is_not_written_over(searched: Path, tmp_path: Path) -> None:
    """But for one of this command: a data set's own metadata may lie anywhere."""
    own = tmp_path / "labels.csv"
    own.write_text("image,label,lesion_id\n")
    home = searched / "home"
    done = call("audit", "moles", "--same-lesion", "--table", own, "--data-dir", home)
    assert (done.code, done.out) == (2, "")
    assert "is no table of this command" in done.err
    assert own.read_text() == "image,label,lesion_id\n"
    assert may_be_replaced(searched / "joined.csv")
    assert may_be_replaced(tmp_path / "new.csv")
    assert not may_be_replaced(Path(os.devnull))


def test_report_is_no_folder(planted_home: Path, tmp_path: Path) -> None:
    """A file in the report's place is refused before the work, and stays."""
    path = tmp_path / "taken"
    path.write_text("mine")
    done = call("audit", "isic17", "--report", path)
    assert done.code == 2
    assert "no folder" in done.err
    assert path.read_text() == "mine"


# --- pictures of one lesion ------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with a lesion taken again from nearer, labelled otherwise, and its search's reports."""
    folder = tmp_path_factory.mktemp("searched")
    pictures = folder / "pictures"
    drawn = moles(9)
    for n, picture in enumerate(drawn):
        path = pictures / ("NV" if n % 2 else "MEL") / f"p{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=92)
    nearer(drawn[2]).save(pictures / "NV" / "again.jpg", quality=92)
    (pictures / "NV" / "broken.jpg").write_bytes((pictures / "NV" / "p1.jpg").read_bytes())
    home = folder / "home"
    done = call("datasets", "add", "moles", pictures, "--data-dir", home)
    assert done.code == 0, done.err
    (pictures / "NV" / "broken.jpg").write_bytes(b"no picture any more")
    done = call(
        *("audit", "moles", "--same-lesion", "--device", "cpu", "--data-dir", home),
        *("--report", folder / "report", "--table", folder / "joined.csv"),
    )
    assert done.code == 0, done.err
    (folder / "out.txt").write_text(done.out)
    (folder / "err.txt").write_text(done.err)
    return folder


def test_same_lesion_is_told(searched: Path) -> None:
    """The pair is in JSON, text and page; the picture that cannot be read stops nothing."""
    found = json.loads((searched / "report" / "audit.json").read_text())
    alike = found["same_lesion"]
    pair = alike["pairs"][0]
    assert sorted(Path(i).name for i in pair["images"]) == ["again", "p2"]
    assert (pair["same_lesion"], pair["same_label"]) == (None, False)
    assert alike["compared"] == 10
    assert alike["count"] == len(alike["pairs"]) == alike["lesion_unknown"]
    assert pair["likeness"] >= alike["threshold"]
    assert "HAM10000" in alike["measured_on"]
    assert len(found["unreadable"]) == 1
    parts = pair["parts"]["lesion"]
    across = alike["across"]["lesion"]
    assert (pair["images"] in across) == (parts[0] != parts[1])
    leaked = alike["test_lesion_probably_in_train"]["lesion"]
    assert leaked["images"] >= (set(parts) == {"test", "train"})
    text = (searched / "out.txt").read_text()
    assert "probably one lesion" in text
    assert "test images probably with their lesion in train" in text
    page = (searched / "report" / "audit.html").read_text()
    assert "Probably one lesion" in page
    assert "looking" not in text  # progress is on stderr


def test_the_joined_table_is_a_data_set(searched: Path, tmp_path: Path) -> None:
    """The two have one lesion id in it; labels stay what they were."""
    home = tmp_path / "home"
    assert "1 images that cannot be read are left out" in (searched / "err.txt").read_text()
    done = call("datasets", "add", "joined", searched / "joined.csv", "--data-dir", home)
    assert done.code == 0, done.err
    with using_home(home):
        recorded = load_manifest("joined")
    lesion = {Path(r.path).stem: r.lesion_id for r in recorded.records}
    assert len(lesion) == 10
    assert lesion["again"] == lesion["p2"] != ""
    label = {Path(r.path).stem: r.label for r in recorded.records}
    assert (label["again"], label["p2"]) == ("NV", "MEL")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--table", "t.csv"), 2, "--table goes with --same-lesion"),
        (("--device", "cpu"), 2, "--device goes with --same-lesion"),
        (("--same-lesion", "--device", "openvino"), 2, "openvino"),
        (("--same-lesion", "--device", "nonsense"), 2, "nonsense"),
        (("--same-lesion", "--table", "."), 2, "folder"),
    ],
)
def test_same_lesion_refused(
    planted_home: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = call("audit", "isic17", *arguments)
    assert (done.code, done.out) == (code, "")
    assert done.err.count("error:") == 1
    assert words in done.err


def test_same_lesion_interrupted(
    planted_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in mid-search: 130, and what was there before stays as it was."""
    table, report = tmp_path / "t.csv", tmp_path / "report"
    table.write_text(OLDER)

    def stopped(*_: object, progress: Callable[[int, int], None], **__: object) -> None:
        progress(1, 4)
        raise KeyboardInterrupt

    monkeypatch.setattr(same_lesion, "features", stopped)
    done = call("audit", "isic17", "--same-lesion", "--table", table, "--report", report)
    assert (done.code, done.out) == (130, "")
    assert "Traceback" not in done.err
    assert table.read_text() == OLDER
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_a_table_among_the_images_is_refused(planted_home: Path) -> None:
    """It would be read as the data set itself."""
    done = call("audit", "isic17", "--same-lesion", "--table", planted_home / "images" / "t.csv")
    assert (done.code, done.out) == (2, "")
    assert "among the images" in done.err
    assert not (planted_home / "images" / "t.csv").exists()


def test_a_damaged_metric_is_one_message(
    planted_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(same_lesion, "SHIPPED", "none.safetensors")
    done = call("audit", "isic17", "--same-lesion")
    assert done.code == 3
    assert done.err.count("error:") == 1
    assert "install biigma again" in done.err
