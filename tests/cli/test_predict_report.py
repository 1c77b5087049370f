"""`biigma predict --report` and `--saliency`: the page, the pictures, and what they must not do."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from biigma_cli.cli.predict_pictures import picture_name
from biigma_cli.report import prediction_page
from biigma_cli.runtime.session import find_model
from tests.cli.test_predict_streams import left, posix, predict, start
from tests.conftest import Outcome, call
from tests.data.samples import encode, noise
from tests.report.browser import Browser, find_browser
from tests.report.pages import Page
from tests.report.test_evaluation_page import CONTRAST, STATE
from tests.runtime.test_pipeline import toy_model

# With both maps; its answers do not matter here.
SHIPPED = find_model(None)
HOSTILE = '"><img src=x onerror=alert(1)>&amp;.png'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures of growing redness, so of growing malignancy, and a damaged one."""
    path = tmp_path_factory.mktemp("pictures")
    for i in range(9):
        pixels = np.full((20, 30, 3), (25 * i, 90, 25 * i), np.uint8)
        Image.fromarray(pixels).save(path / f"{i:02}.png")
    (path / "07x.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return path


def names_on(page: Path) -> list[str]:
    """Files whose pictures are shown, in order."""
    alts = [a["alt"] or "" for a in Page(page.read_text("utf-8")).all("img")]
    return [alt.split(",")[0] for alt in alts if "answered" in alt]


def text_of(page: Path) -> str:
    """What a reader reads."""
    return " ".join(Page(page.read_text("utf-8")).text.split())


# --- the page --------------------------------------------------------------------------------


def test_page(toy: Path, folder: Path, tmp_path: Path) -> None:
    """The rows' answers, the most malignant first; counts, the error, what made it."""
    page = tmp_path / "new" / "page.html"
    done = predict(toy, folder, "-o", tmp_path / "a.csv", "--report", page, "--abstain-below", ".4")
    assert done.code == 5
    assert f"page in {page}" in done.err
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    good = [r for r in rows if not r["error"]]
    ranked = sorted(good, key=lambda r: -float(r["malignant_probability"]))
    assert names_on(page) == [Path(r["path"]).name for r in ranked]
    assert names_on(page)[0] == "08.png"
    text = text_of(page)
    labels = [r["label"] for r in good]
    assert 0 < labels.count("can't say") < 9
    assert text.count("can't say") == 2 + labels.count("can't say")  # a tile, a row of the table
    assert "10 files answered by toy@" in text
    assert "1 file could not be read." in text
    assert "07x.png is damaged" in text or "07x.png is not an image" in text
    assert "CPUExecutionProvider" in text
    assert "no answer below 0.4" in text
    assert text.lower().count("not a medical device") == 2
    assert "30 x 20 pixels" in text
    assert "left out" not in text


def test_few_pictures(
    toy: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only so many are held, the most malignant, whatever their order; all are counted."""
    held = []
    plain = prediction_page.PredictionPage.add

    def add(self: prediction_page.PredictionPage, *arguments: object) -> None:
        plain(self, *arguments)  # type: ignore[arg-type]
        held.append(len(self._heap))

    monkeypatch.setattr(prediction_page.PredictionPage, "add", add)
    monkeypatch.setattr(prediction_page, "LISTED", 1)
    files = sorted(folder.glob("0?.png"))
    for order in (files, files[::-1]):
        page = tmp_path / "page.html"
        gone = [tmp_path / f"gone{i}.png" for i in range(3)]
        done = predict(toy, *order, *gone, "--report", page, "--report-images", "3")
        assert done.code == 5
        assert names_on(page) == ["08.png", "07.png", "06.png"]
        text = text_of(page)
        assert "highest first. The first 3 are shown, 6 are left out" in text
        assert "<dt>answered</dt><dd>9</dd>" in page.read_text("utf-8")
        assert "3 files could not be read. The first 1 are listed." in text
        assert text.count("gone") == 1
    assert max(held) == 3


def test_equals_in_order(toy: Path, folder: Path, tmp_path: Path) -> None:
    """Of equally malignant ones the first that came are kept."""
    names = [tmp_path / f"{c}.png" for c in "dcba"]
    for name in names:
        name.write_bytes((folder / "03.png").read_bytes())
    page = tmp_path / "page.html"
    assert predict(toy, *names, "-b", "1", "--report", page, "--report-images", "2").code == 0
    assert names_on(page) == ["d.png", "c.png"]


def test_unknown_malignancy(folder: Path, tmp_path: Path) -> None:
    """A model that does not say what is malignant: by the answer's probability, and said so."""
    model = toy_model(tmp_path / "toy.onnx", malignant=[None, None, None])
    page = tmp_path / "page.html"
    done = predict(
        model, *sorted(folder.glob("0?.png")), "--report", page, "-o", tmp_path / "a.csv"
    )
    assert done.code == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    best = [max(float(r[c]) for c in ("MEL", "NV", "BCC")) for r in rows]
    order = sorted(range(9), key=lambda i: -best[i])
    assert names_on(page) == [Path(rows[i]["path"]).name for i in order]
    assert "does not say which of its classes are malignant" in text_of(page)
    assert "Malignancy" not in text_of(page)


@posix
def test_hostile_names(toy: Path, folder: Path, tmp_path: Path) -> None:
    """Names with HTML in them, control characters or no UTF-8 are words on the page."""
    images = tmp_path / "in"
    images.mkdir()
    names = [HOSTILE.replace("/", ""), "a\n\u202eb.png", os.fsdecode(b"\xff.png")]
    for name in names:
        (images / name).write_bytes((folder / "01.png").read_bytes())
    (images / f"bad{HOSTILE}").write_bytes(b"x")
    page = tmp_path / "page.html"
    assert predict(toy, images, "--report", page).code == 5
    found = Page(page.read_text("utf-8"))
    assert found.open == []
    assert found.all("script") == []
    assert all((a.get("src") or "").startswith("data:") for a in found.all("img"))
    assert not any(k.startswith("on") for _, attributes in found.tags for k in attributes)
    assert HOSTILE in found.text
    assert "\u202e" not in found.text
    assert "\\udcff.png" in found.text


def test_an_image_on_stdin(toy: Path, folder: Path, tmp_path: Path) -> None:
    """It is shown, too."""
    page = tmp_path / "page.html"
    image = (folder / "02.png").read_bytes()
    assert predict(toy, "-", "--report", page, stdin=image).code == 0
    assert len(Page(page.read_text("utf-8")).all("img")) == 1
    assert "30 x 20 pixels" in text_of(page)


def test_a_file_gone_meanwhile(
    toy: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the network saw is shown instead."""
    from biigma_cli.cli import predict as command

    image = tmp_path / "a.png"
    image.write_bytes((folder / "02.png").read_bytes())
    plain = command._record

    def record(*arguments: object) -> object:
        image.unlink()
        return plain(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(command, "_record", record)
    assert predict(toy, image, "--report", tmp_path / "page.html").code == 0
    assert "the file is gone" in text_of(tmp_path / "page.html")


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_resumed(toy: Path, folder: Path, tmp_path: Path, form: str) -> None:
    """Earlier answers are counted from their rows, and not shown; the page says so."""
    target, page = tmp_path / f"a.{form}", tmp_path / "page.html"
    common = ("-b", "1", "-o", target, "--report", page)
    assert predict(toy, folder, *common).code == 5
    whole = text_of(page)
    lines = target.read_bytes().splitlines(keepends=True)
    head = 1 if form == "csv" else 0
    target.unlink()
    target.with_name(f"a.{form}.part").write_bytes(b"".join(lines[: head + 9]))  # 00 to 07, 07x
    assert predict(toy, folder, *common, "--resume").code == 5
    text = text_of(page)
    assert names_on(page) == ["08.png"]
    assert "9 files were answered in an earlier run" in text
    assert "1 file could not be read, 1 of them in the earlier run" in text
    assert "left out" not in text

    def summary(words: str) -> str:
        return words[words.index("Images by answer") : words.index("Answers Sorted")]

    assert summary(text) == summary(whole)


def test_resumed_with_nothing_new(toy: Path, folder: Path, tmp_path: Path) -> None:
    """The page of the run that answered has the pictures, so it stays."""
    target, page = tmp_path / "a.csv", tmp_path / "page.html"
    common = (folder, "-o", target, "--report", page)
    assert predict(toy, *common).code == 5
    whole = page.read_bytes()
    done = predict(toy, *common, "--resume")
    assert done.code == 5
    assert page.read_bytes() == whole
    page.unlink()
    assert predict(toy, *common, "--resume").code == 5
    assert "were answered in an earlier run" in text_of(page)


def test_nothing_could_be_read(toy: Path, tmp_path: Path) -> None:
    """As no rows are left, no page is."""
    page = tmp_path / "page.html"
    page.write_text("older")
    assert predict(toy, "gone.png", "gone2.png", "--report", page).code == 3
    assert page.read_text() == "older"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--report", "a.jpg"], ".html"),
        (["--report-images", "3"], "add --report FILE.html"),
        (["--report", "{here}/folder.html"], "is a folder"),
        (["--report", "{here}/a.html", "-o", "{here}/../{name}/a.html", "--format", "csv"], "-o"),
        (["--report", "/dev/null/a.html"], "cannot write"),
        (["--saliency", "{here}/file"], "no folder"),
        (["--saliency", "/dev/null/maps"], "cannot write"),
    ],
)
def test_refused(toy: Path, folder: Path, tmp_path: Path, arguments: list[str], word: str) -> None:
    """Before any work, with nothing written."""
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").write_text("")
    given = [a.format(here=tmp_path, name=tmp_path.name) for a in arguments]
    done = predict(toy, folder, *given)
    assert done.code == 2
    assert word in done.err
    assert "fix:" in done.err
    assert left(tmp_path) == ["file", "folder.html"]


@posix
def test_interrupted(toy: Path, folder: Path, tmp_path: Path) -> None:
    """Ctrl-C: the rows stay in their part, of the page there is nothing."""
    page = tmp_path / "page.html"
    page.write_text("older")
    process = start(toy, "-", "-o", tmp_path / "a.csv", "--report", page)
    assert process.stdin is not None
    process.stdin.write(os.fsencode(folder / "00.png") + b"\n")
    process.stdin.flush()
    part = tmp_path / "a.csv.part"
    for _ in range(900):
        if part.exists() and part.read_bytes().count(b"\n") == 2:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in told
    assert left(tmp_path) == ["a.csv.part", "page.html"]
    assert page.read_text() == "older"


def test_a_page_that_cannot_be_written(
    toy: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message; the rows are whole."""
    plain = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if target.suffix == ".html":
            raise OSError(28, "No space left on device")
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    page = tmp_path / "page.html"
    done = predict(toy, folder, "-o", tmp_path / "a.csv", "--report", page)
    assert done.code == 1
    assert f"cannot write {page}: No space left" in done.err
    assert left(tmp_path) == ["a.csv"]
    assert len(list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))) == 10


# --- the pictures ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tiny_ham: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Two images of one name and a bad one, drawn into the folder that is classified."""
    top = tmp_path_factory.mktemp("drawn")
    first, second = sorted(tiny_ham.rglob("*.jpg"))[:2]
    for name, image in (("a", first), ("b", second)):
        (top / name).mkdir()
        (top / name / "same.jpg").write_bytes(image.read_bytes())
    (top / "bad.png").write_bytes(b"x")
    command = ("predict", top, "--model", SHIPPED, "--device", "cpu", "--saliency", top / "maps")
    page = top / "page.html"
    done = call(*command, "-o", top / "a.jsonl", "--report", page, "--tta")
    # A second run finds no more images than the first.
    again = call(*command, "--format", "csv")
    assert len(list(csv.DictReader(again.out.splitlines()))) == 3
    return top, done


def test_overlays(drawn: tuple[Path, Outcome]) -> None:
    """One for each answer, named in its record and by its path; three panels wide."""
    top, done = drawn
    assert done.code == 5
    assert f"pictures in {top / 'maps'}" in done.err
    rows = [json.loads(line) for line in (top / "a.jsonl").read_text().splitlines()]
    named = {Path(r["path"]): r.get("picture") for r in rows}
    assert named[top / "bad.png"] is None
    for path in (top / "a" / "same.jpg", top / "b" / "same.jpg"):
        picture = named[path]
        assert picture == str(top / "maps" / picture_name(str(path)))
        assert Path(picture).name.startswith("same-")
        with Image.open(picture) as image:
            assert image.width > 2.5 * image.height / 1.5
    assert len(left(top / "maps")) == 2


def test_maps_on_the_page(drawn: tuple[Path, Outcome]) -> None:
    """Image, evidence and M of each; with --tta it says of which view."""
    page = Page((drawn[0] / "page.html").read_text("utf-8"))
    alts = [a["alt"] or "" for a in page.all("img")]
    assert len(alts) == 6
    assert sum("evidence for" in alt for alt in alts) == 2
    assert sum("saliency map M" in alt for alt in alts) == 2
    assert "averages eight views" in page.text
    assert "averaged over 8 views" in page.text
    assert "64 x 48 pixels" in page.text


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One for all checks."""
    program = find_browser()
    if program is None:
        pytest.skip("no chromium on this machine")
    with Browser(program, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_in_a_browser(drawn: tuple[Path, Outcome], browser: Browser) -> None:
    """Both schemes, a wide screen and a phone: no error, no missing picture, no sideways scroll."""
    colours = set()
    for width in (1200, 390):
        for dark in (False, True):
            browser.open(drawn[0] / "page.html", width=width, dark=dark)
            state = browser.evaluate(STATE)
            assert state["scroll"] <= state["width"], (width, state)
            assert (state["broken"], state["outside"], state["images"]) == (0, 0, 6), state
            colours.add(state["page"])
            assert [c for c in browser.evaluate(CONTRAST) if c[1] < 4.5] == []
            told = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
            assert [e for e in browser.events if e.get("method") in told] == []
    assert len(colours) == 2


def test_for_a_screen_reader(drawn: tuple[Path, Outcome]) -> None:
    """Landmarks, headings in order, words for pictures, ids that are found."""
    page = Page((drawn[0] / "page.html").read_text("utf-8"))
    names = [name for name, _ in page.tags]
    assert page.open == []
    assert [names.count(n) for n in ("header", "nav", "main", "footer", "h1")] == [1] * 5
    levels = [int(n[1]) for n in names if n in ("h1", "h2", "h3")]
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert all(a.get("alt") for a in page.all("img"))
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    assert {(a["href"] or "")[1:] for a in page.all("a")} <= set(ids)


def test_names_need_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same from any folder, another for any other file, and never too long."""
    monkeypatch.chdir(tmp_path)
    here = picture_name(str(tmp_path / "a.jpg"))
    assert picture_name("a.jpg") == picture_name("./x/../a.jpg") == here
    names = {picture_name(p) for p in ("a.jpg", "a.png", "x/a.jpg", "A.jpg", "-")}
    assert len(names) == 5
    for long in ("x" * 251 + ".jpg", "\u00e9" * 125 + ".jpg", "\u9ed2" * 83 + ".jpg"):
        name = picture_name(long)
        assert len(os.fsencode(name)) <= 230
        name.encode()
    assert os.fsencode(picture_name(os.fsdecode(b"\xff" * 250))).endswith(b".png")


def test_no_input_is_overwritten(drawn: tuple[Path, Outcome], tmp_path: Path) -> None:
    """A picture of ours is refused as an image, named alone or in a list."""
    top = drawn[0]
    ours = sorted((top / "maps").iterdir())[0]
    before = ours.read_bytes()
    common = ("--model", SHIPPED, "--device", "cpu", "--saliency", top / "maps")
    done = call("predict", ours, *common)
    assert done.code == 2
    assert "--saliency writes to" in done.err
    (tmp_path / "list").write_text(f"{ours}\n")
    done = call("predict", "--from-list", tmp_path / "list", *common)
    assert done.code == 3
    assert "--saliency writes to" in done.err
    assert ours.read_bytes() == before


def test_a_picture_that_cannot_be_written(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message; what was answered before stays, and is gone on with."""
    from biigma_cli.report import overlay

    images = [tmp_path / f"{i}.jpg" for i in range(3)]
    for image in images:
        image.write_bytes(picture.read_bytes())
    target, maps = tmp_path / "a.csv", tmp_path / "maps"
    plain = overlay.atomic_write_bytes

    def full(path: Path, data: bytes) -> None:
        if path.name.startswith("2-"):
            from biigma_cli.errors import BiigmaError

            raise BiigmaError(f"cannot write {path}: No space left on device", fix="free some")
        plain(path, data)

    command = (
        "predict", *images, "--model", SHIPPED, "--device", "cpu", "-b", "1", "-o", target,
        "--saliency", maps,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlay, "atomic_write_bytes", full)
        done = call(*command)
    assert done.code == 1
    assert done.err.count("error:") == 1
    assert "No space left" in done.err
    assert "--resume goes on with it" in done.err
    assert (tmp_path / "a.csv.part").read_text().count("\n") == 3
    stamps = {p.name: p.stat().st_mtime_ns for p in maps.iterdir()}
    done = call(*command, "--resume")
    assert done.code == 0
    assert len(left(maps)) == 3
    assert {n: (maps / n).stat().st_mtime_ns for n in stamps} == stamps


def test_no_picture_is_drawn(picture: Path, tmp_path: Path) -> None:
    """Where all is answered already, or nothing could be read, it does not say where they are."""
    common = ("predict", picture, "--model", SHIPPED, "--device", "cpu", "-o", tmp_path / "a.csv")
    assert call(*common).code == 0
    done = call(*common, "--resume", "--saliency", tmp_path / "maps")
    assert done.code == 0, done.err
    assert "no picture was drawn: nothing new was answered" in done.err
    assert "pictures in" not in done.err
    assert not (tmp_path / "maps").exists()


def test_a_model_without_maps(toy: Path, folder: Path, tmp_path: Path) -> None:
    """Pictures of nothing are refused; the page is still of use."""
    done = predict(toy, folder, "--saliency", tmp_path / "maps")
    assert done.code == 3
    assert "no saliency map" in done.err
    assert left(tmp_path) == []


def test_uneven_list(toy: Path, tmp_path: Path) -> None:
    """Pictures of any shape keep it."""
    (tmp_path / "wide.png").write_bytes(encode(noise(400, 20)))
    page = tmp_path / "page.html"
    assert predict(toy, tmp_path / "wide.png", "--report", page).code == 0
    (image,) = Page(page.read_text("utf-8")).all("img")
    assert (image["width"], image["height"]) == ("240", "12")


def test_no_page_of_nothing(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older page is not passed off for one of today's: a folder that was emptied meanwhile."""
    monkeypatch.setattr("biigma_cli.runtime.inputs.expand", lambda *_, **__: iter(()))
    page = tmp_path / "r.html"
    done = call("predict", "--model", toy, "--device", "cpu", tmp_path, "--report", page)
    assert done.code == 0, done.err
    assert "page in" not in done.err
    assert "was not written" in done.err
    assert not page.exists()
