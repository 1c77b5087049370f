"""`biigma predict` on streams: lists, standard input, resuming, and being cut short."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from typer.testing import CliRunner

from biigma_cli import storage
from biigma_cli.cli import predict as command
from biigma_cli.errors import DataError, UsageError
from biigma_cli.report import predictions
from biigma_cli.runtime.pipeline import model_id
from biigma_cli.runtime.session import Predictor
from tests.conftest import Outcome, call
from tests.data.samples import encode, noise
from tests.runtime.test_pipeline import CODES, toy_model

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX file names, pipes and signals")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty pictures, of which number 7 is damaged."""
    path = tmp_path_factory.mktemp("pictures")
    for i in range(30):
        (path / f"{i:02}.png").write_bytes(encode(noise(20, 20, seed=i)))
    (path / "07.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return path


def predict(toy: Path, *arguments: str | Path, stdin: bytes = b"") -> Outcome:
    """`biigma predict` in this process."""
    from biigma_cli.cli.app import app

    result = CliRunner().invoke(
        app,
        ["predict", "--model", str(toy), "--device", "cpu", *map(str, arguments)],
        input=stdin,
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def writer_of(toy: Path) -> predictions.CsvWriter:
    """As `predict` makes it for that model."""
    info = Predictor(toy, device="cpu").info
    labels = predictions.Labels(
        codes=info.classes, names=info.class_names, malignant=info.malignant
    )
    made = predictions.Provenance(model=model_id(toy), version="", provider="")
    return predictions.CsvWriter(labels, made)


def left(folder: Path) -> list[str]:
    """Names of what is in a folder."""
    return sorted(p.name for p in folder.iterdir())


def rows(text: str) -> list[dict[str, str]]:
    """A CSV's."""
    return list(csv.DictReader(io.StringIO(text)))


# --- what goes in ----------------------------------------------------------------------------


@pytest.mark.parametrize("separator", ["\n", "\0"])
def test_a_list_gives_what_the_folder_gives(
    toy: Path, folder: Path, tmp_path: Path, separator: str
) -> None:
    """From stdin by `-`, from `--from-list` by file or stdin, and as a quoted pattern."""
    wanted = predict(toy, folder, "--format", "csv")
    assert wanted.code == 5
    names = separator.join(sorted(str(p) for p in folder.iterdir()))
    (tmp_path / "list").write_text(names)
    for arguments, stdin in (
        (["-"], names), (["--from-list", "-"], names), (["--from-list", tmp_path / "list"], ""),
        ([folder / "*.png"], ""),
    ):  # fmt: skip
        done = predict(toy, *arguments, "--format", "csv", stdin=stdin.encode())
        assert (done.code, done.out) == (5, wanted.out)
    assert len(rows(wanted.out)) == 30


def test_an_image_on_stdin(toy: Path, folder: Path) -> None:
    """`-` takes the bytes of an image, too."""
    image = folder / "00.png"
    wanted = rows(predict(toy, image, "--format", "csv").out)[0]
    (row,) = rows(predict(toy, "-", "--format", "csv", stdin=image.read_bytes()).out)
    assert row == {**wanted, "path": "-"}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "nothing to classify"),
        (["-", "a.jpg"], "alone"),
        (["a.jpg", "--from-list", "-"], "both"),
        (["a.jpg", "--abstain-below", "1.5"], "abstain-below"),
        (["a.jpg", "--resume"], "-o FILE"),
        (["a.jpg", "--resume", "-o", "x.json"], "csv, jsonl or parquet"),
    ],
)
def test_what_cannot_be_asked(toy: Path, arguments: list[str], word: str) -> None:
    """Said before the model is opened."""
    done = predict(toy, *arguments)
    assert done.code == 2
    assert word in done.err
    assert done.out == ""


def test_a_list_that_is_not_there(toy: Path) -> None:
    """A missing list is an error of the data."""
    done = predict(toy, "--from-list", "nowhere.txt")
    assert done.code == 3
    assert "nowhere.txt" in done.err


@posix
def test_strange_names(toy: Path, folder: Path, tmp_path: Path) -> None:
    """Any script, line ends, bytes that are no UTF-8, 255 bytes: each form gives the name back."""
    picture = (folder / "00.png").read_bytes()
    wanted = ["меланома 黒.png", 'a\nb,"c".png', "x" * 251 + ".png", "\x1b[2J.png", "=1+1.png"]
    raw = b"\xff\xfe.png"
    for name in wanted:
        (tmp_path / name).write_bytes(picture)
    try:
        (tmp_path / os.fsdecode(raw)).write_bytes(picture)
        wanted.append(os.fsdecode(raw))
    except OSError:
        pass  # a file system that takes only UTF-8
    done = predict(toy, tmp_path, "--format", "jsonl")
    assert done.code == 0
    found = {Path(json.loads(line)["path"]).name for line in done.out.splitlines()}
    assert found == set(wanted)
    answers = rows(predict(toy, tmp_path, "--format", "csv").out)
    told = {r["path"].removeprefix(f"{tmp_path}{os.sep}") for r in answers}
    assert told == {n.encode("utf-8", "backslashreplace").decode() for n in wanted}
    assert "\x1b" not in predict(toy, tmp_path).out


@posix
def test_pipes_loops_and_long_names(toy: Path, folder: Path, tmp_path: Path) -> None:
    """What is no plain file costs its own row, at once."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    odd = [
        tmp_path / "pipe.jpg",
        tmp_path / "loop.jpg",
        tmp_path / ("y" * 300),
        tmp_path,
        "/dev/null",
    ]
    lines = b"\n".join(os.fsencode(p) for p in [*odd, folder / "00.png"])
    done = predict(toy, "-", "--format", "csv", stdin=lines)
    assert done.code == 5
    errors = [r["error"] for r in rows(done.out)]
    for error, word in zip(
        errors, ("pipe", "links", "too long", "folder", "device", ""), strict=True
    ):
        assert word in error
        assert bool(word) == bool(error)


def test_a_file_that_vanishes(toy: Path, folder: Path, tmp_path: Path) -> None:
    """Named, then gone: its row says so."""
    names = [folder / "00.png", tmp_path / "was-here.png", folder / "01.png"]
    done = predict(toy, "-", "--format", "jsonl", stdin=b"\n".join(os.fsencode(n) for n in names))
    assert ["error" in json.loads(line) for line in done.out.splitlines()] == [False, True, False]


# --- what comes out --------------------------------------------------------------------------


def test_abstaining(toy: Path, folder: Path) -> None:
    """The answer changes, the figures stay; without a class that sure, everything is left open."""
    images = [folder / "00.png", folder / "01.png"]
    plain = [json.loads(x) for x in predict(toy, *images, "--format", "jsonl").out.splitlines()]
    between = str(sum(p["probability"] for p in plain) / 2)
    done = predict(toy, *images, "--format", "jsonl", "--abstain-below", between)
    for before, after in zip(plain, map(json.loads, done.out.splitlines()), strict=True):
        unsure = before["probability"] < float(between)
        assert after["label"] == ("can't say" if unsure else before["label"])
        assert after["probabilities"] == before["probabilities"]
    assert "can't say" in done.out
    table = predict(toy, *images, "--abstain-below", "1").out
    assert table.count("can't say") == 2


def test_the_first_frame_is_said(toy: Path, tmp_path: Path) -> None:
    """In the record of an animation, and nowhere else."""
    frames = [noise(20, 20, seed=i) for i in range(3)]
    for kind in ("gif", "webp", "tiff", "png"):
        frames[0].save(tmp_path / f"moving.{kind}", save_all=True, append_images=frames[1:])
        frames[0].save(tmp_path / f"still.{kind}")
    for row in rows(predict(toy, tmp_path, "--format", "csv").out):
        moving = "moving" in Path(row["path"]).name
        assert row["note"] == ("the first of several frames" if moving else "")
    assert predict(toy, tmp_path).out.count("several frames") == 4


def test_the_form_follows_the_name(toy: Path, folder: Path, tmp_path: Path) -> None:
    """`-o NAME.csv` is a CSV, unless a form is named."""
    for name, begin in (
        ("a.csv", "path,label"),
        ("a.jsonl", '{"path"'),
        ("a.json", '{\n  "model"'),
    ):
        assert predict(toy, folder / "00.png", "-o", tmp_path / name).code == 0
        assert (tmp_path / name).read_text().startswith(begin)


def test_an_ending_that_is_no_format(toy: Path, folder: Path, tmp_path: Path) -> None:
    """A table is no spreadsheet; names without an ending and of texts take one."""
    for name in ("a.xlsx", "a.csv.gz", "a.2024"):
        done = predict(toy, folder / "00.png", "-o", tmp_path / name)
        assert done.code == 2
        assert "end it in .csv, .json, .jsonl, .parquet" in done.err
    assert left(tmp_path) == []
    for name in ("a", "a.TXT", "a.log", "a.md"):
        assert predict(toy, folder / "00.png", "-o", tmp_path / name).code == 0
        assert "answer" in (tmp_path / name).read_text()
    assert predict(toy, folder / "00.png", "--format", "csv", "-o", tmp_path / "a.xlsx").code == 0


@pytest.mark.parametrize("stdin", [b"", b"\n\r\n"])
def test_nothing_on_standard_input(toy: Path, tmp_path: Path, stdin: bytes) -> None:
    """No answers are no success."""
    done = predict(toy, "-", "-o", tmp_path / "out.csv", stdin=stdin)
    assert done.code == 3
    assert "no image and no name on standard input" in done.err
    assert left(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"\n\r\n", b"\xef\xbb\xbf\n"])
def test_an_empty_list(toy: Path, tmp_path: Path, content: bytes) -> None:
    """By `--from-list`, too."""
    names = tmp_path / "names"
    names.write_bytes(content)
    for place, word in ((names, f"no name in {names}"), ("-", "no name on standard input")):
        done = predict(toy, "--from-list", place, "-o", tmp_path / "out.csv", stdin=content)
        assert (done.code, done.out) == (3, "")
        assert word in done.err
    assert left(tmp_path) == ["names"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_an_image_in_place_of_a_list(toy: Path, tmp_path: Path, kind: str) -> None:
    """One message, not a row for every piece of it; so for what else is no list."""
    names = tmp_path / "names"
    for content, word in (
        (encode(noise(64, 64), kind), "is an image, not a list of names"),
        (b"%PDF-1.7\n\x01\x02", "holds control characters"),
    ):
        names.write_bytes(content)
        for place, what in ((names, str(names)), ("-", "standard input")):
            done = predict(toy, "--from-list", place, "--format", "csv", stdin=content)
            assert (done.code, done.out) == (3, "")
            assert f"{what} {word}" in done.err
            assert done.err.isprintable() or done.err.replace("\n", "").isprintable()


def test_an_empty_image(toy: Path, folder: Path, tmp_path: Path) -> None:
    """It says so, and the remedy names where each form has the error."""
    (tmp_path / "no.png").touch()
    for form, where in (("csv", "column"), ("jsonl", "field"), ("json", "field")):
        done = predict(toy, tmp_path / "no.png", folder / "00.png", "--format", form)
        assert done.code == 5
        assert "no.png is empty" in done.out
        assert f"the error {where} says why" in done.err


def test_many_tables(toy: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long tables come in blocks, so that none is held whole."""
    monkeypatch.setattr("biigma_cli.report.predictions.BLOCK", 7)
    out = predict(toy, folder).out
    assert out.count("answer") == 5
    assert all(f"{i:02}.png" in out for i in range(30))


class _Cut(io.RawIOBase):
    """Names, and then Ctrl-C, or whatever else ends a list."""

    def __init__(self, names: list[Path], end: BaseException) -> None:
        self.pieces = [b"".join(os.fsencode(n) + b"\n" for n in names)]
        self.end = end

    def read(self, _: int = -1) -> bytes:
        """A piece."""
        if not self.pieces:
            raise self.end
        return self.pieces.pop()


@pytest.mark.parametrize(
    ("end", "code"), [(KeyboardInterrupt(), 130), (DataError("torn", fix="mend it"), 3)]
)
@pytest.mark.parametrize("names", [["00.png", "07.png", "01.png"], ["07.png"]])
def test_a_table_that_is_cut_short(
    toy: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    end: BaseException, code: int, names: list[str],
) -> None:  # fmt: skip
    """What was answered is shown, failures too; a document is ended, and says that it was cut."""
    monkeypatch.setattr(command, "open_stdin", lambda: _Cut([folder / n for n in names], end))
    done = predict(toy, "-")
    assert done.code == code
    assert all(done.out.count(f"{n} ") >= 1 for n in names)
    if names == ["07.png"]:
        return
    done = predict(toy, "-", "--format", "json")
    assert done.code == code
    whole = json.loads(done.out)
    assert [Path(p["path"]).name for p in whole["predictions"]] == names
    assert whole["summary"] == {"answered": 2, "failed": 1, "interrupted": True}
    for name in ("out.txt", "out.json"):
        done = predict(toy, "-", "-o", tmp_path / name)
        assert (done.code, done.out, left(tmp_path)) == (code, "", [])
    assert "--format jsonl keeps what was answered" in done.err


@posix
@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_terminal_is_not_kept_waiting(toy: Path, folder: Path, term: str) -> None:
    """Rows come while more names may, and the line of progress does not stand in their way.

    A terminal that knows no escapes gets none.
    """
    pty = pytest.importorskip("pty")
    own, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "biigma_cli", "predict", "--model", toy, "--device", "cpu", "-"],
        stdin=subprocess.PIPE, stdout=terminal, stderr=terminal,
        env={**os.environ, "TERM": term, "COLUMNS": "200"},  # a long path is not folded
    )  # fmt: skip
    os.close(terminal)
    assert process.stdin is not None
    told = b""
    for image, stop in ((folder / "00.png", b"00.png"), (folder / "01.png", b"01.png")):
        process.stdin.write(os.fsencode(image) + b"\n")
        process.stdin.flush()
        while stop not in told:
            assert select.select([own], [], [], 120)[0]
            told += os.read(own, 4096)
    assert process.poll() is None
    process.stdin.close()
    with contextlib.suppress(OSError):  # Linux says so that the other end is closed
        while more := os.read(own, 4096):
            told += more
    assert process.wait(60) == 0
    if term == "dumb":
        assert b"\x1b" not in told
    else:
        assert told.count(b"\r\x1b[K") >= 2
    assert told.count(b"0.png") == told.count(b"1.png") == 1
    os.close(own)


def test_only_failures_leave_an_older_result(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is said; where there are more of them than are held back, they are the result."""
    monkeypatch.setattr(command, "HELD", 3)
    target = tmp_path / "old.csv"
    target.write_text("kept")
    done = predict(toy, *[f"gone{i}.png" for i in range(3)], "-o", target)
    assert done.code == 3
    assert "none of 3" in done.err
    assert "see the lines above" in done.err
    assert all(f"gone{i}.png" in done.err for i in range(3))
    assert target.read_text() == "kept"
    assert left(tmp_path) == ["old.csv"]
    for form in ("csv", "jsonl", "json", "table"):
        target = tmp_path / f"old.{form}"
        done = predict(toy, *[f"gone{i}.png" for i in range(9)], "--format", form, "-o", target)
        assert done.code == 3
        assert "none of 9" in done.err
        assert "see the lines above" not in done.err
        where = "answer column" if form == "table" else "error column"
        assert f"the {'error field' if 'json' in form else where} says why" in done.err
        assert all(f"gone{i}.png" in target.read_text() for i in range(9))
    assert left(tmp_path) == ["old.csv", "old.json", "old.jsonl", "old.table"]
    assert [bool(r["error"]) for r in rows((tmp_path / "old.csv").read_text())] == [True] * 9
    done = predict(toy, *[f"gone{i}.png" for i in range(9)], "--format", "json")
    assert done.code == 3
    assert len(json.loads(done.out)["predictions"]) == 9


@pytest.mark.parametrize("count", [1, 3])
def test_only_failures_for_a_program(toy: Path, tmp_path: Path, count: int) -> None:
    """Who reads standard output gets a record of each, and a table has no row."""
    gone = [f"gone{i}.png" for i in range(count)]
    for form in ("json", "jsonl", "csv", "table"):
        done = predict(toy, *gone, "--format", form)
        assert done.code == 3
        if form == "table":
            assert done.out == ""
        elif form == "csv":
            assert [row["path"] for row in rows(done.out)] == gone
            assert all(row["error"] for row in rows(done.out))
        else:
            lines = [json.loads(line) for line in done.out.splitlines()] if form == "jsonl" else []
            found = lines or json.loads(done.out)["predictions"]
            assert [item["path"] for item in found] == gone
            assert all("no file" in item["error"] for item in found)


@posix
def test_devices_are_not_replaced(toy: Path, folder: Path) -> None:
    """`-o /dev/null` writes there; it is not renamed over."""
    assert predict(toy, folder / "00.png", "--format", "csv", "-o", "/dev/null").code == 0
    assert not Path(os.devnull).is_file()


@pytest.mark.parametrize("arguments", [["PICTURE"], ["-"], ["--from-list", "-"]])
def test_no_picture_or_list_is_replaced(
    toy: Path, folder: Path, tmp_path: Path, arguments: list[str]
) -> None:
    """Whatever its name says: pictures of cameras and scanners often have no ending."""
    for name, content in (("IM_1", (folder / "00.png").read_bytes()), ("list", b"IM_2\n")):
        (tmp_path / name).write_bytes(content)
        image = str(folder / "00.png") if arguments == ["PICTURE"] else arguments[0]
        with (tmp_path / name).open("rb") as stdin:
            done = subprocess.run(
                [sys.executable, "-m", "biigma_cli", "predict", "--model", toy, "--format", "csv",
                 image, *arguments[1:], "-o", tmp_path / name],
                stdin=stdin, capture_output=True,
            )  # fmt: skip
        if arguments == ["PICTURE"] and name == "list":
            assert done.returncode == 0  # an older result
            continue
        assert done.returncode == 2
        assert b"image" in done.stderr or b"standard input" in done.stderr
        assert (tmp_path / name).read_bytes() == content
        assert left(tmp_path) == sorted({name, "IM_1"})


def test_what_is_classified_is_not_replaced(toy: Path, folder: Path, tmp_path: Path) -> None:
    """By another path or by a link, and though it is no image."""
    (tmp_path / "odd").write_bytes(b"odd")
    (tmp_path / "link").symlink_to("odd")
    for image, target in (("odd", "odd"), ("link", "odd"), ("odd", "link")):
        done = predict(
            toy, folder / "00.png", tmp_path / image, "--format", "csv", "-o", tmp_path / target
        )
        assert done.code == 2
        assert "IMAGE, too" in done.err
        assert left(tmp_path) == ["link", "odd"]


# --- going on --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("place", ["out", "out.part"])
def test_resumed_equals_uninterrupted(
    toy: Path, folder: Path, tmp_path: Path, form: str, place: str
) -> None:
    """Cut at any byte, the rest is done and only the rest; nothing is left beside the result."""
    target = tmp_path / f"out.{form}"
    # One image a batch, and so the same rounding however many are left.
    common = ("-b", "1", "--format", form, "-o", target)
    assert predict(toy, folder, *common).code == 5
    whole = target.read_bytes()
    partial = tmp_path / place.replace("out", f"out.{form}", 1)
    for cut in (0, 10, len(whole) // 3, len(whole) * 2 // 3, len(whole) - 1, len(whole)):
        target.unlink()
        partial.write_bytes(whole[:cut])
        done = predict(toy, folder, *common, "--resume")
        assert done.code == 5
        assert "29 ok, 1 failed" in done.err
        assert target.read_bytes() == whole
        assert left(tmp_path) == [target.name]


def test_another_image_on_stdin(toy: Path, folder: Path, tmp_path: Path) -> None:
    """Its answer is not that of the one before, which has no other name."""
    target = tmp_path / "out.csv"
    first, second = ((folder / n).read_bytes() for n in ("00.png", "01.png"))
    assert predict(toy, "-", "-o", target, stdin=first).code == 0
    whole = target.read_bytes()
    done = predict(toy, "-", "-o", target, "--resume", stdin=second)
    assert done.code == 2
    assert "an image on standard input cannot be told" in done.err
    assert [p for p in left(tmp_path) if not p.endswith(".part")] == ["out.csv"]
    assert target.read_bytes() == whole


def test_files_that_have_changed_since(toy: Path, folder: Path, tmp_path: Path) -> None:
    """They keep their rows, and their number is said."""
    target = tmp_path / "out.csv"
    assert predict(toy, folder, "-o", target).code == 5
    whole = target.read_bytes()
    done = predict(toy, folder, "-o", target, "--resume")
    assert "have changed" not in done.err
    later = target.stat().st_mtime + 10
    for name in ("03.png", "04.png"):
        os.utime(folder / name, (later, later))
    done = predict(toy, folder, "-o", target, "--resume")
    assert "2 files have changed since they were answered" in done.err
    assert target.read_bytes() == whole


def test_settings_that_differ_by_little(toy: Path, folder: Path, tmp_path: Path) -> None:
    """A limit is told from another whatever digit they differ in."""
    target = tmp_path / "out.csv"
    assert predict(toy, folder, "-o", target, "--abstain-below", "0.12345678").code == 5
    assert rows(target.read_text())[0]["settings"] == "abstain_below=0.12345678"
    done = predict(toy, folder, "-o", target, "--resume", "--abstain-below", "0.12345699")
    assert done.code == 3
    assert "settings" in done.err


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("more", [0, 1, 3])
def test_resumed_failures_are_kept(toy: Path, tmp_path: Path, form: str, more: int) -> None:
    """A part of nothing but errors is finished, though nothing else comes either."""
    gone = [f"gone{i}.png" for i in range(5)]
    target = tmp_path / f"out.{form}"
    part = tmp_path / f"out.{form}.part"
    common = ("--format", form, "-o", target)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "HELD", 1)
        assert predict(toy, *gone[: 5 - more], *common).code == 3
    target.replace(part)
    done = predict(toy, *gone, *common, "--resume")
    assert done.code == 3
    assert "none of 5" in done.err
    assert f"the error {'field' if form == 'jsonl' else 'column'} says why" in done.err
    text = target.read_text()
    assert [text.count(name) > 0 for name in gone] == [True] * 5
    assert left(tmp_path) == [target.name]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("place", ["out", "out.part"])
def test_what_failed_is_tried_again(
    toy: Path, folder: Path, tmp_path: Path, form: str, place: str
) -> None:
    """Only where it is asked for; of a whole result and of a part, a torn row at its end."""
    late = tmp_path / "late.png"
    target = tmp_path / f"out.{form}"
    common = (
        late,
        folder / "07.png",
        folder / "00.png",
        folder / "01.png",
        "-b",
        "1",
        "-o",
        target,
    )
    assert predict(toy, *common).code == 5
    wanted = target.read_text()
    late.write_bytes((folder / "02.png").read_bytes())
    done = predict(toy, *common, "--resume")
    assert done.code == 5
    assert "4 files are answered already, 2 of them with an error, which stays" in done.err
    assert target.read_text() == wanted
    target.replace(partial := tmp_path / place.replace("out", target.name, 1))
    partial.write_bytes(partial.read_bytes()[:-9])
    done = predict(toy, *common, "--resume", "--retry-failed")
    assert done.code == 5
    assert "1 file is answered already\n2 failed before and are tried again" in done.err
    assert "3 ok, 1 failed" in done.err
    assert left(tmp_path) == ["late.png", target.name]
    text = target.read_text()
    found = rows(text) if form == "csv" else [json.loads(line) for line in text.splitlines()]
    assert [(Path(r["path"]).name, bool(r.get("error"))) for r in found] == [
        ("00.png", False), ("late.png", False), ("07.png", True), ("01.png", False)
    ]  # fmt: skip
    assert predict(toy, *common, "--retry-failed").code == 2


@posix
def test_every_line_end_in_a_name(toy: Path, folder: Path, tmp_path: Path) -> None:
    """What else ends a line than a line feed: the forms are whole, and a run can be resumed."""
    ends = ["\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"]
    images = tmp_path / "in"
    images.mkdir()
    names = sorted(str(images / f"a{end}b.png") for end in ends)
    for name in names:
        Path(name).write_bytes((folder / "00.png").read_bytes())
    told = json.loads(predict(toy, images, "--format", "json").out)
    assert [p["path"] for p in told["predictions"]] == names
    for form in ("csv", "jsonl"):
        target = tmp_path / f"out.{form}"
        assert predict(toy, images, "-b", "1", "-o", target).code == 0
        whole = target.read_bytes()
        target.write_bytes(whole[:-5])
        done = predict(toy, images, "-b", "1", "-o", target, "--resume")
        assert (done.code, done.out) == (0, "")
        assert "7 files are answered already" in done.err
        assert target.read_bytes() == whole
        if form == "csv":
            with target.open(newline="", encoding="utf-8") as file:
                assert [r["path"] for r in csv.DictReader(file)] == names


def test_a_torn_quotation(toy: Path, folder: Path, tmp_path: Path) -> None:
    """A row cut within a name that holds a line end is no whole row."""
    name = tmp_path / "in" / "a\nb.png"
    name.parent.mkdir()
    name.write_bytes((folder / "00.png").read_bytes())
    target = tmp_path / "out.csv"
    images = (folder / "01.png", name, folder / "02.png")
    assert predict(toy, *images, "-b", "1", "-o", target).code == 0
    whole = target.read_bytes()
    at = whole.index(b"a\nb.png")
    for cut in (at + 1, at + 2, at + 4):
        target.write_bytes(whole[:cut])
        assert predict(toy, *images, "-b", "1", "-o", target, "--resume").code == 0
        assert target.read_bytes() == whole


def test_a_file_named_twice_is_answered_twice(toy: Path, folder: Path, tmp_path: Path) -> None:
    """Rows are counted, not only their names."""
    image = folder / "00.png"
    target = tmp_path / "out.csv"
    assert predict(toy, image, "-o", target).code == 0
    assert predict(toy, image, image, folder / "01.png", "-o", target, "--resume").code == 0
    paths = [r["path"] for r in rows(target.read_text())]
    assert paths == [str(image), str(image), str(folder / "01.png")]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_what_is_not_gone_on_with(toy: Path, folder: Path, tmp_path: Path, form: str) -> None:
    """Another model's answers, other settings' and other files are refused, and left alone."""
    target = tmp_path / f"out.{form}"
    image = folder / "00.png"
    other = toy_model(tmp_path / "toy.onnx", scale=3)
    for text in (predict(other, image, "--format", form).out,
                 predict(toy, image, "--format", form, "--tta").out,
                 "image,MEL\na,1\n"):  # fmt: skip
        target.write_text(text)
        done = predict(toy, folder, "-o", target, "--resume")
        assert done.code == 3
        assert str(target) in done.err
        assert target.read_text() == text
        assert left(tmp_path) == sorted([target.name, "toy.onnx"])


@pytest.fixture
def table(toy: Path, folder: Path, tmp_path: Path) -> Path:
    """Three answers, one of them an error, as Parquet."""
    pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    target = tmp_path / "out.parquet"
    names = [folder / n for n in ("00.png", "07.png", "01.png")]
    assert predict(toy, *names, "-o", target).code == 5
    return target


def parquet_rows(path: Path) -> list[dict[str, Any]]:
    from pyarrow import parquet

    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return rows


def test_whole_parquet_is_gone_on_with(toy: Path, folder: Path, table: Path) -> None:
    """Its rows stay to the last digit, and what is new comes behind them."""
    before = parquet_rows(table)
    done = predict(toy, folder / "00.png", folder / "02.png", "-o", table, "--resume")
    assert done.code == 5
    assert "3 files are answered already" in done.err
    after = parquet_rows(table)
    assert after[:3] == before
    assert [Path(r["path"]).name for r in after] == ["00.png", "07.png", "01.png", "02.png"]
    assert predict(toy, folder / "00.png", "-o", table, "--resume", "--retry-failed").code == 0
    assert [Path(r["path"]).name for r in parquet_rows(table)] == ["00.png", "01.png", "02.png"]
    assert left(table.parent) == [table.name]


@pytest.mark.parametrize("content", [b"my notes", b"PAR1", b"", b"cut", b"foreign", b"other"])
def test_parquet_that_is_not_gone_on_with(
    toy: Path, folder: Path, table: Path, content: bytes
) -> None:
    """Other files, damaged ones, and rows of other settings are left as they are."""
    more: tuple[str, ...] = ()
    if content == b"cut":
        table.write_bytes(table.read_bytes()[:-300])
    elif content == b"foreign":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"path": ["a"], "label": ["b"]}), table)
    elif content == b"other":
        more = ("--keep-border",)
    else:
        table.write_bytes(content)
    before = table.read_bytes()
    done = predict(toy, folder / "02.png", "-o", table, "--resume", *more)
    assert done.code == 3
    assert str(table) in done.err
    assert "settings" in done.err if more else "no Parquet file of predictions" in done.err
    assert table.read_bytes() == before
    assert left(table.parent) == [table.name]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_what_is_no_result_at_all(toy: Path, folder: Path, tmp_path: Path, form: str) -> None:
    """A line without an end may be a torn row, but not any: it stays, and is shown harmlessly."""
    target = tmp_path / f"out.{form}"
    for text in ("precious notes", "pre\x1b[31mcious", "{}"):
        target.write_text(text)
        done = predict(toy, folder, "-o", target, "--resume")
        assert done.code == 3
        assert "\x1b" not in done.err
        assert target.read_text() == text


@pytest.mark.parametrize("saved", ["crlf", "bom"])
def test_a_csv_that_another_program_saved(
    toy: Path, folder: Path, tmp_path: Path, saved: str
) -> None:
    """As spreadsheets do: said so, for its columns are right."""
    target = tmp_path / "out.csv"
    assert predict(toy, folder / "00.png", "-o", target).code == 0
    whole = target.read_bytes()
    target.write_bytes(
        whole.replace(b"\n", b"\r\n") if saved == "crlf" else b"\xef\xbb\xbf" + whole
    )
    done = predict(toy, folder, "-o", target, "--resume")
    assert done.code == 3
    assert "saved by another program" in done.err


def test_an_older_part_is_not_overwritten(toy: Path, folder: Path, tmp_path: Path) -> None:
    """Hours of work are not lost by leaving out a word."""
    (tmp_path / "out.csv.part").write_text("path,")
    done = predict(toy, folder, "-o", tmp_path / "out.csv")
    assert done.code == 2
    assert "--resume" in done.err
    assert left(tmp_path) == ["out.csv.part"]


# --- in a process of its own -----------------------------------------------------------------


def start(toy: Path, *arguments: str | Path) -> subprocess.Popen[bytes]:
    """`biigma predict` with pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "biigma_cli", "predict", "--model", toy, "--device", "cpu",
         *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def answering(toy: Path, folder: Path, target: Path) -> subprocess.Popen[bytes]:
    """`biigma predict -` that has answered one image, alone in `target`'s folder, and waits."""
    process = start(toy, "-", "-o", target)
    assert process.stdin is not None
    process.stdin.write(os.fsencode(folder / "00.png") + b"\n")
    process.stdin.flush()
    for _ in range(600):
        if any(b"00.png" in p.read_bytes() for p in target.parent.iterdir()):
            break
        time.sleep(0.1)
    return process


@contextlib.contextmanager
def on_hangup(action: signal.Handlers) -> Iterator[None]:
    """What processes begun meanwhile do on SIGHUP, whatever these tests were begun with."""
    before = signal.signal(signal.SIGHUP, action)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@posix
def test_interrupted_and_resumed(toy: Path, folder: Path, tmp_path: Path) -> None:
    """Ctrl-C while it waits for more names: what was answered stays, and is gone on with."""
    target = tmp_path / "out.csv"
    process = start(toy, "-", "-o", target)
    assert process.stdin is not None
    process.stdin.write(b"".join(os.fsencode(folder / f"{i:02}.png") + b"\n" for i in range(5)))
    process.stdin.flush()
    part = tmp_path / "out.csv.part"
    for _ in range(600):
        if part.exists() and part.read_bytes().count(b"\n") == 6:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted" in told
    assert b"--resume" in told
    assert b"Traceback" not in told
    assert b"Fatal" not in told
    assert left(tmp_path) == ["out.csv.part"]
    done = predict(toy, folder, "-o", target, "--resume")
    assert "5 files are answered already" in done.err
    assert [r["path"] for r in rows(target.read_text())] == sorted(str(p) for p in folder.iterdir())


@posix
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize("form", ["csv", "json"])
def test_ended_by_a_signal(
    toy: Path, folder: Path, tmp_path: Path, name: str, code: int, form: str
) -> None:
    """As on Ctrl-C: what can be gone on with stays, and nothing else."""
    with on_hangup(signal.SIG_DFL):
        process = answering(toy, folder, tmp_path / f"out.{form}")
    process.send_signal(getattr(signal, name))
    _, told = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"interrupted by {name}".encode() in told
    assert b"Traceback" not in told
    assert (b"--resume goes on with it" in told) == (form == "csv")
    assert left(tmp_path) == ["out.csv.part"] * (form == "csv")


@posix
def test_a_hangup_that_is_ignored(toy: Path, folder: Path, tmp_path: Path) -> None:
    """`nohup` is heeded."""
    with on_hangup(signal.SIG_IGN):
        process = answering(toy, folder, tmp_path / "out.csv")
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert left(tmp_path) == ["out.csv"]


@posix
def test_a_terminal_that_is_closed(toy: Path, folder: Path, tmp_path: Path) -> None:
    """Nobody is there to be told, and the end is as clean."""
    pty = pytest.importorskip("pty")
    names = tmp_path / "names"
    os.mkfifo(names)
    with on_hangup(signal.SIG_DFL):
        child, terminal = pty.fork()
        if not child:
            words = ["--model", toy, "--from-list", names, "-o", tmp_path / "out.csv"]
            os.execv(sys.executable, [sys.executable, "-m", "biigma_cli", "predict", *words])
    with names.open("wb", buffering=0) as file:
        file.write(os.fsencode(folder / "00.png") + b"\n")
        part = tmp_path / "out.csv.part"
        for _ in range(600):
            if part.exists() and part.read_bytes().count(b"\n") == 2:
                break
            time.sleep(0.1)
        os.close(terminal)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    assert left(tmp_path) == ["names", "out.csv.part"]


@posix
def test_two_runs_of_one_output(toy: Path, folder: Path, tmp_path: Path) -> None:
    """The second is refused while the first lives, whether it goes on or begins, and leaves the
    first's part alone; what a killed one leaves can be gone on with."""
    target = tmp_path / "new" / "out.csv"
    process = start(toy, "-", "-o", target)
    assert process.stdin is not None
    process.stdin.write(os.fsencode(folder / "00.png") + b"\n")
    process.stdin.flush()
    part = target.with_name("out.csv.part")
    for _ in range(600):
        if part.exists() and part.read_bytes().count(b"\n") == 2:
            break
        time.sleep(0.1)
    before = part.read_bytes()
    for more in ([], ["--resume"]):
        done = predict(toy, folder, "-o", target, *more)
        assert done.code == 2
        assert f"another biigma predict is writing {target}" in done.err
        assert part.read_bytes() == before
    process.kill()
    process.communicate()
    assert "--resume" in predict(toy, folder, "-o", target).err
    done = predict(toy, folder, "-o", target, "--resume")
    assert "1 file is answered already" in done.err
    assert len(rows(target.read_text())) == 30
    assert left(target.parent) == ["out.csv"]


@posix
def test_a_part_that_was_just_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening and locking, another run gives it its name: nothing is written to that."""
    target = tmp_path / "out.csv"
    other = predictions.Output(target, keep=True)
    other.write("other")

    def lock(file: IO[Any]) -> bool:
        if other.file is not None:
            other.finish()
        return storage.lock(file)

    monkeypatch.setattr(predictions, "lock", lock)
    with predictions.Output(target, keep=True) as sink:
        sink.write("own")
        assert target.read_text() == "other"
        sink.finish()
    assert target.read_text() == "own"
    assert left(tmp_path) == ["out.csv"]


@posix
def test_a_continued_result_is_locked(tmp_path: Path, toy: Path, folder: Path) -> None:
    """Its copy takes the part's place, and the lock with it."""
    target = tmp_path / "out.csv"
    assert predict(toy, folder / "00.png", "-o", target).code == 0
    writer = writer_of(toy)
    with predictions.Output(target, keep=True, resume=True) as sink:
        assert len(sink.resume(writer)) == 1
        with pytest.raises(UsageError, match="another biigma predict"):
            predictions.Output(target, keep=True, resume=True)
    assert left(tmp_path) == ["out.csv", "out.csv.part"]


def test_nothing_is_left_of_what_never_began(toy: Path, folder: Path, tmp_path: Path) -> None:
    """No empty part, no folder."""
    target = tmp_path / "new" / "deep" / "out.csv"
    assert predict(tmp_path / "none.onnx", folder, "-o", target).code == 3
    assert predict(toy, tmp_path / "gone.png", "-o", target).code == 3
    assert predict(toy, tmp_path, "-o", target).code == 3
    assert left(tmp_path) == []


@posix
def test_a_closed_pipe(toy: Path, folder: Path) -> None:
    """`| head -1` of an endless list: it ends, and says nothing."""
    process = start(toy, "-", "--format", "csv")
    assert process.stdin is not None
    assert process.stdout is not None
    line = os.fsencode(folder / "00.png") + b"\n"
    process.stdin.write(line * 40)
    process.stdin.flush()
    assert process.stdout.readline().startswith(b"path,label")
    process.stdout.close()
    with contextlib.suppress(BrokenPipeError):
        for _ in range(100_000):
            process.stdin.write(line)
    assert process.stderr is not None
    told = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 1
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    assert b"Traceback" not in told
    assert b"Exception ignored" not in told


# --- progress --------------------------------------------------------------------------------


def test_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Plain lines at intervals; time left once the number is known."""
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(command.time, "monotonic", lambda: float(next(clock)))
    counted = threading.Event()

    def count(stop: object) -> int:
        counted.wait(60)
        return 100

    with command.StreamProgress(count, before=10) as progress:
        progress(22)
        progress(34)
        assert progress._counter is not None
        counted.set()
        progress._counter.join()
        progress(46)
        progress(58)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["classifying: 34 images, 2/s", "classifying: 58/100 images, 2/s, 0:21 left"]


def test_codes_are_columns(toy: Path, folder: Path) -> None:
    """Every class, in the model's order."""
    header = predict(toy, folder / "00.png", "--format", "csv").out.splitlines()[0].split(",")
    assert [c for c in header if c in CODES] == CODES
    assert call("predict", "--help").code == 0
