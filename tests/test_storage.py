"""Folders, atomic writes and hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import sys
import threading
from pathlib import Path

import platformdirs
import pytest

from biigma_cli.errors import EXIT_FAILURE, EXIT_USAGE, BiigmaError, UsageError
from biigma_cli.storage import (
    atomic_write_bytes,
    atomic_write_text,
    check_writable,
    home,
    models_dir,
    sha256_lines,
    without_folders,
    write_error,
    write_json,
)

needs_permissions = pytest.mark.skipif(
    sys.platform == "win32" or (hasattr(os, "geteuid") and os.geteuid() == 0),
    reason="the superuser may write anywhere",
)


def full_disk(descriptor: int) -> None:
    """`os.fsync` of a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(descriptor: int) -> None:
    """`os.fsync` when the user gives up."""
    raise KeyboardInterrupt


# --- atomic writes ---------------------------------------------------------------------------


def test_a_new_file_in_new_folders(tmp_path: Path) -> None:
    """Folders are made, and nothing but the file is in them."""
    path = tmp_path / "a" / "b" / "c.bin"
    atomic_write_bytes(path, b"\x00\r\n\xff")
    assert path.read_bytes() == b"\x00\r\n\xff"
    assert list(path.parent.iterdir()) == [path]


def test_the_whole_file_is_replaced(tmp_path: Path) -> None:
    """A shorter content leaves nothing of the longer; who has the old file open keeps it."""
    path = tmp_path / "file"
    atomic_write_bytes(path, b"long" * 1000)
    with path.open("rb") as old:
        atomic_write_bytes(path, b"new")
        assert path.read_bytes() == b"new"
        if sys.platform != "win32":
            assert old.read() == b"long" * 1000
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One clear error, the old content still there, the temporary file gone."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(BiigmaError) as caught:
        atomic_write_bytes(path, b"new")
    assert str(path) in caught.value.message
    assert os.strerror(errno.ENOSPC) in caught.value.message
    assert caught.value.fix
    assert caught.value.exit_code == EXIT_FAILURE
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.ENOSPC, EXIT_FAILURE, "free some space"),
        (errno.EIO, EXIT_FAILURE, "free some space"),
        (errno.EROFS, EXIT_USAGE, "a place you may write to"),
        (errno.EACCES, EXIT_USAGE, "a place you may write to"),
        (errno.ENOTDIR, EXIT_USAGE, "a place you may write to"),
        (errno.ENAMETOOLONG, EXIT_USAGE, "a shorter name"),
    ],
)
def test_what_to_do_where_nothing_can_be_written(number: int, code: int, words: str) -> None:
    """A full disk wants space and is a failure; a wrong place wants another and is a usage."""
    found = write_error("there", OSError(number, os.strerror(number)))
    assert found.exit_code == code
    assert words in found.fix
    assert found.message == f"cannot write there: {os.strerror(number)}"


def test_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted half-way: the old content, and no temporary file."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_target_is_a_folder(tmp_path: Path) -> None:
    """A folder is not replaced, and no temporary file stays beside it."""
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(BiigmaError, match="cannot write"):
        atomic_write_bytes(target, b"new")
    assert target.is_dir()
    assert list(tmp_path.iterdir()) == [target]


def test_below_a_file(tmp_path: Path) -> None:
    """A file where a folder is wanted is one clear error."""
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(BiigmaError, match="cannot write"):
        atomic_write_bytes(tmp_path / "file" / "below", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


@needs_permissions
def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    """No permission is one clear error, and the old content stays."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(BiigmaError, match="cannot write"):
            atomic_write_bytes(path, b"new")
        with pytest.raises(UsageError, match="cannot write"):
            check_writable(tmp_path / "other")
    finally:
        tmp_path.chmod(0o700)
    assert path.read_bytes() == b"old"


@pytest.mark.skipif(sys.platform == "win32", reason="no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    """Files are as readable as any other, and the umask is left as it was."""
    path = tmp_path / "file"
    before = os.umask(umask)
    try:
        atomic_write_bytes(path, b"new")
    finally:
        assert os.umask(before) == umask
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_links_and_devices_stay(tmp_path: Path) -> None:
    """A link is written through, a pipe into, and neither becomes a file."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    for content in (b"one", b"two"):
        atomic_write_bytes(link, content)
        assert link.is_symlink()
        assert (tmp_path / "real").read_bytes() == content
    if not hasattr(os, "mkfifo"):
        return
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_writable(pipe)
        atomic_write_bytes(pipe, b"three")
        assert os.read(reader, 10) == b"three"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "pipe", "real"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX lengths")
def test_names_as_long_as_they_may_be(tmp_path: Path) -> None:
    """Counted in bytes: the temporary name is no longer than the file's."""
    for name in ("x" * 255, "黒" * 85):
        atomic_write_bytes(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"
    for write in (check_writable, lambda path: atomic_write_bytes(path, b"x")):
        with pytest.raises(BiigmaError, match="too long") as caught:
            write(tmp_path / ("x" * 256))
        assert caught.value.fix == "choose a shorter name"


def test_text_and_json(tmp_path: Path) -> None:
    """Text is UTF-8 with its own line ends; JSON is indented and ends with a newline."""
    atomic_write_text(tmp_path / "text", "Größe\n")
    assert (tmp_path / "text").read_bytes() == "Größe\n".encode()
    write_json(tmp_path / "json", {"a": [1, None]})
    text = (tmp_path / "json").read_text()
    assert text.startswith('{\n  "a"')
    assert text.endswith("}\n")
    assert json.loads(text) == {"a": [1, None]}


# --- checks and folders ----------------------------------------------------------------------


def test_what_can_be_written_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New files, files to be replaced, and folders to be made, without making any."""
    (tmp_path / "old").write_bytes(b"old")
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "new", tmp_path / "old", tmp_path / "a" / "b" / "c", Path("bare")):
        check_writable(path)
    assert list(tmp_path.iterdir()) == [tmp_path / "old"]
    assert (tmp_path / "old").read_bytes() == b"old"


def test_a_folder_is_no_file_name(tmp_path: Path) -> None:
    """A usage error before the work."""
    with pytest.raises(UsageError, match="is a folder") as caught:
        check_writable(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert caught.value.exit_code == EXIT_USAGE


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, and a file, that may not be written to."""
    (tmp_path / "old").write_bytes(b"old")
    denied = tmp_path

    def access(path: Path, mode: int) -> bool:
        return not (Path(path) == denied and mode & os.W_OK)

    monkeypatch.setattr(os, "access", access)
    for path in (tmp_path / "new", tmp_path / "a" / "b"):
        with pytest.raises(UsageError, match="cannot write"):
            check_writable(path)
    denied = tmp_path / "old"
    check_writable(tmp_path / "new")
    with pytest.raises(UsageError, match="cannot write"):
        check_writable(denied)


def test_below_a_file_is_refused_before_the_work(tmp_path: Path) -> None:
    """A path below a file can never be written."""
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(UsageError):
        check_writable(tmp_path / "file" / "below")


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`BIIGMA_HOME` where it is set to something, else the platform's folder; not made."""
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "mine"))
    assert home() == tmp_path / "mine"
    assert not home().exists()
    default = Path(platformdirs.user_data_dir("biigma"))
    monkeypatch.setenv("BIIGMA_HOME", "")
    assert home() == default
    monkeypatch.delenv("BIIGMA_HOME")
    assert home() == default


def test_home_of_a_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A `~` that no shell has seen."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("BIIGMA_HOME", "~/data")
    assert home() == tmp_path / "data"


def test_models_dir() -> None:
    """The shipped models' folder is named `models`, in the package or beside it."""
    import biigma_cli

    package = Path(biigma_cli.__file__).resolve().parent
    assert models_dir() in (package / "models", package.parent / "models")


def test_sha256_lines() -> None:
    """Each line is ended, so that lines cannot run into each other."""
    assert sha256_lines(["a", "é"]) == hashlib.sha256("a\né\n".encode()).hexdigest()
    assert sha256_lines(["ab"]) != sha256_lines(["a", "b"])
    assert sha256_lines([]) == hashlib.sha256().hexdigest()


@pytest.mark.parametrize(
    ("text", "shortened"),
    [
        ("train.lr=1e-3", "train.lr=1e-3"),
        ("/home/me/net.safetensors", "net.safetensors"),
        ("../runs/a/weights/best.safetensors", "a/weights/best.safetensors"),
        (
            'train.teachers=["/x/a/weights/best.safetensors", "b/weights/last.safetensors"]',
            'train.teachers=["a/weights/best.safetensors", "b/weights/last.safetensors"]',
        ),
        ("--runs=/mnt/disk", "--runs=disk"),
        ("", ""),
    ],
)
def test_paths_are_shortened(text: str, shortened: str) -> None:
    """Nobody's folders, but enough to tell one run's checkpoint from another's."""
    assert without_folders(text) == shortened


def test_a_reader_that_has_gone(tmp_path: Path) -> None:
    """Of a pipe: no disk is full, and the command ends as it does behind `| head`."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    threading.Timer(0.2, os.close, (reader,)).start()
    with pytest.raises(BrokenPipeError):
        atomic_write_bytes(pipe, bytes(1 << 20))
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]
