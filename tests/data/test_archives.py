"""Unpacking: what is refused, and what is left behind."""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from biigma_cli.data import archives
from biigma_cli.data.archives import ArchiveError, Limits, check, extract, missing_files
from biigma_cli.errors import BiigmaError, DataError
from tests.data.hostile_server import make_zip, noise


def saved(folder: Path, content: bytes, name: str = "Some_Input.zip") -> Path:
    """An archive on disk, in a folder of its own."""
    path = folder / "from" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def tree(folder: Path) -> dict[str, bytes | None]:
    """Content by path of all that is below `folder`; None for folders."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


def with_entry(name: str, *, mode: int = 0, flag: int = 0, content: bytes = b"evil") -> bytes:
    """A zip with a good member and one that is chosen."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("good.jpg", b"good")
        info = zipfile.ZipInfo(name)
        info.filename = name  # the constructor normalises separators
        info.external_attr = mode << 16
        archive.writestr(info, content)
    data = bytearray(buffer.getvalue())
    if flag:
        at = data.rindex(b"PK\x01\x02")
        data[at + 8 : at + 10] = struct.pack("<H", flag)
    return bytes(data)


def test_unpacks_and_skips(tmp_path: Path) -> None:
    """A folder of the archive's name is not doubled; superpixels and resource forks are left."""
    path = saved(
        tmp_path,
        make_zip(
            {
                "Some_Input/": b"",
                "Some_Input/A.jpg": b"a",
                "Some_Input/deep/Ü.jpg": b"bb",
                "Some_Input/A_superpixels.png": b"no",
                "__MACOSX/Some_Input/._A.jpg": b"no",
                "Some_Input/._A.jpg": b"no",
            }
        ),
    )
    seen: list[tuple[int, int]] = []
    into = tmp_path / "to" / "Some_Input"
    sizes = extract(path, into, progress=lambda d, t: seen.append((d, t)))
    assert tree(tmp_path / "to") == {
        "Some_Input": None,
        "Some_Input/A.jpg": b"a",
        "Some_Input/deep": None,
        "Some_Input/deep/Ü.jpg": b"bb",
    }
    assert sizes == {"A.jpg": 1, "deep/Ü.jpg": 2}
    assert seen == [(1, 3), (3, 3)]
    assert missing_files(into, sizes) == []


def test_another_top_folder_stays(tmp_path: Path) -> None:
    """Only the archive's own name is taken off; files beside it keep everything in place."""
    into = tmp_path / "Some_Input"
    extract(saved(tmp_path, make_zip({"Other/A.jpg": b"a"})), into)
    assert set(tree(into)) == {"Other", "Other/A.jpg"}
    mixed = make_zip({"More/A.jpg": b"a", "README.txt": b"r"})
    extract(saved(tmp_path, mixed, "More.zip"), tmp_path / "More")
    assert set(tree(tmp_path / "More")) == {"More", "More/A.jpg", "README.txt"}


LINK, FIFO, DEVICE = stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644, stat.S_IFBLK | 0o644


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (with_entry("../evil.jpg"), "outside"),
        (with_entry("a/../../evil.jpg"), "outside"),
        (with_entry("/evil.jpg"), "outside"),
        (with_entry("a//evil.jpg"), "outside"),
        (with_entry("./evil.jpg"), "outside"),
        (with_entry(".."), "outside"),
        (with_entry("C:evil.jpg"), "character"),
        (with_entry("C:/evil.jpg"), "character"),
        (with_entry("..\\evil.jpg"), "character"),
        (with_entry("\\\\host\\evil.jpg"), "character"),
        (with_entry("a\nb.jpg"), "character"),
        (with_entry("link.jpg", mode=LINK, content=b"/etc/passwd"), "link"),
        (with_entry("fifo", mode=FIFO), "special"),
        (with_entry("device", mode=DEVICE), "special"),
        (with_entry("secret.jpg", flag=0x1), "encrypted"),
        (with_entry("GOOD.jpg"), "twice"),
        (with_entry("good.jpg/evil.jpg"), "a file and a folder"),
        (make_zip({}), "empty"),
        (make_zip({"x_superpixels.png": b"x"}), "empty"),
        (make_zip({"zeros.jpg": bytes(9 << 20)}), "bomb"),
        (b"", "directory is damaged"),
        (b"PK\x03\x04 but no more", "directory is damaged"),
        (b"<html>log in first</html>", "directory is damaged"),
    ],
)
def test_refused(tmp_path: Path, content: bytes, why: str) -> None:
    """Before a byte is written, by `check` as by `extract`; nothing is left anywhere."""
    path = saved(tmp_path, content)
    before = tree(tmp_path)
    for attempt in (lambda: check(path), lambda: extract(path, tmp_path / "to" / "Some_Input")):
        with pytest.raises(ArchiveError, match=why) as caught:
            attempt()
        assert path.name in caught.value.message
        assert caught.value.fix
        assert caught.value.exit_code == 3
    assert tree(tmp_path) == before


def test_hidden_nul_is_seen(tmp_path: Path) -> None:
    """zipfile cuts names at NUL; what was stored is judged."""
    data = with_entry("evil.jpgXtail").replace(b"evil.jpgXtail", b"evil.jpg\0tail")
    with pytest.raises(ArchiveError, match="character"):
        check(saved(tmp_path, data))


def test_same_name_twice(tmp_path: Path) -> None:
    """Also in another Unicode form, which some file systems take for the same."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("a.jpg", b"1")
        archive.writestr("a.jpg", b"2")
    with pytest.raises(ArchiveError, match="twice"):
        check(saved(tmp_path, buffer.getvalue()))
    with pytest.raises(ArchiveError, match="twice"):
        check(saved(tmp_path, make_zip({"\u00e9.jpg": b"1", "e\u0301.jpg": b"2"})))


def test_limits(tmp_path: Path) -> None:
    """Too many members, too much in all; a table of zeros may have its ratio."""
    path = saved(tmp_path, make_zip({"a": noise(5000, 1), "b": noise(5000, 2)}))
    with pytest.raises(ArchiveError, match="2 members"):
        check(path, limits=Limits(members=1))
    with pytest.raises(ArchiveError, match="bomb"):
        check(path, limits=Limits(floor=100, growth=0.5))
    table = saved(tmp_path, make_zip({"truth.csv": b"0.0,1.0\n" * 50_000}), "T.zip")
    assert check(table) == {"truth.csv": 400_000}


def broken(kind: str) -> bytes:
    """A zip whose directory is good and whose content is not."""
    data = bytearray(make_zip({"A.jpg": noise(3000, 1), "B.jpg": noise(3000, 2)}))
    if kind == "crc":
        data[data.index(b"B.jpg") + 5 + 1500] ^= 1
    elif kind == "size":
        at = data.index(b"PK\x01\x02")
        data[at + 24 : at + 28] = struct.pack("<I", 4000)
    else:
        at = data.index(b"B.jpg")
        data[at : at + 5] = b"C.jpg"
    return bytes(data)


@pytest.mark.parametrize("kind", ["crc", "size", "name"])
def test_damaged_inside(tmp_path: Path, kind: str) -> None:
    """Members that do not fit their CRC, size or local header leave nothing; the target stays."""
    path = saved(tmp_path, broken(kind))
    into = tmp_path / "to" / "Some_Input"
    into.mkdir(parents=True)
    (into / "A.jpg").write_bytes(b"old")
    with pytest.raises(ArchiveError, match=r"[AB]\.jpg"):
        extract(path, into)
    assert tree(tmp_path / "to") == {"Some_Input": None, "Some_Input/A.jpg": b"old"}


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    """Wherever a zip is cut, it is told from a whole one."""
    whole = make_zip({"A.jpg": noise(2000, 1), "B.jpg": noise(500, 2)})
    for length in range(0, len(whole), 37):
        with pytest.raises(ArchiveError):
            extract(saved(tmp_path, whole[:length]), tmp_path / "to" / "x")
    assert not (tmp_path / "to" / "x").exists()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_flipped_bytes_never_escape(tmp_path: Path, data: st.DataObject) -> None:
    """With any few bytes changed it is unpacked right, or refused; nothing else is touched."""
    members = {"d/A.jpg": noise(300, 1), "d/B.jpg": b"b" * 300}
    content = bytearray(make_zip(members))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = saved(tmp_path, bytes(content))
    into = tmp_path / "to" / "Flipped"
    archives.remove(into)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            extract(path, into)
        except ArchiveError:
            assert not into.exists()
    outside = {p for p in tree(tmp_path) if not p.startswith("to/Flipped")}
    assert outside <= {"from", "from/Some_Input.zip", "to"}


def test_interruption_leaves_nothing(tmp_path: Path) -> None:
    """What the callback raises passes through; the rerun starts from nothing and is whole."""
    path = saved(tmp_path, make_zip({"A.jpg": b"a", "B.jpg": b"b"}))
    into = tmp_path / "to" / "Some_Input"

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(path, into, progress=interrupt)
    assert tree(tmp_path / "to") == {}
    extract(path, into)
    assert set(tree(into)) == {"A.jpg", "B.jpg"}


def test_leftovers_of_a_killed_run(tmp_path: Path) -> None:
    """Temporary folders are started afresh; one that is a link is not followed."""
    path = saved(tmp_path, make_zip({"A.jpg": b"a"}))
    into = tmp_path / "to" / "Some_Input"
    stale = into.with_name(".Some_Input.unpacking~")
    stale.mkdir(parents=True)
    (stale / "Z.jpg").write_bytes(b"half")
    extract(path, into)
    assert set(tree(tmp_path / "to")) == {"Some_Input", "Some_Input/A.jpg"}
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_bytes(b"p")
    stale.symlink_to(victim)
    extract(path, into)
    assert tree(victim) == {"precious": b"p"}
    assert not stale.is_symlink()


def test_what_is_not_ours_is_not_replaced(tmp_path: Path) -> None:
    """An older copy is replaced; a folder that holds anything else is not, nor a link."""
    path = saved(tmp_path, make_zip({"A.jpg": b"a", "B.jpg": b"b"}))
    into = tmp_path / "to" / "Some_Input"
    into.mkdir(parents=True)
    (into / "A.jpg").write_bytes(b"stale")
    (into / ".DS_Store").write_bytes(b"x")
    extract(path, into)
    assert tree(into) == {"A.jpg": b"a", "B.jpg": b"b"}
    (into / "notes.txt").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"notes\.txt"):
        extract(path, into)
    assert (into / "notes.txt").read_bytes() == b"mine"
    link = tmp_path / "to" / "Link"
    link.symlink_to(into)
    with pytest.raises(DataError, match="in the way"):
        extract(path, link)


def test_missing_files(tmp_path: Path) -> None:
    """Absent, of another size, a link in its place."""
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"22")
    (tmp_path / "c").symlink_to(tmp_path / "a")
    sizes = {"a": 1, "b": 1, "c": 1, "d/e": 1}
    assert missing_files(tmp_path, sizes) == ["b", "c", "d/e"]


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before writing where it is known, and cleaned up where it comes in between."""
    path = saved(tmp_path, make_zip({"A.jpg": noise(5000, 1)}))
    into = tmp_path / "to" / "Some_Input"

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(BiigmaError, match="No space left") as caught:
        extract(path, into, progress=fail)
    assert "free some space" in caught.value.fix
    assert tree(tmp_path / "to") == {}
    usage = archives.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: usage._replace(free=4999))
    with pytest.raises(BiigmaError, match=r"5\.0 KB are needed, 5\.0 KB are free"):
        extract(path, into)
