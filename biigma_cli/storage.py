"""Folders, atomic writes, hashes, and the cores there are."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, Any

import platformdirs

from biigma_cli.errors import BiigmaError, UsageError

_chosen: list[Path] = []
# Where writing fails so, it would elsewhere work.
_WRONG_PLACE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ELOOP, errno.EINVAL,
)  # fmt: skip


def home() -> Path:
    """Data folder: the one in use, else `BIIGMA_HOME`, else the platform's own.

    It is made by whoever writes to it.
    """
    if _chosen:
        return _chosen[-1]
    named = os.environ.get("BIIGMA_HOME")
    if not named:
        return Path(platformdirs.user_data_dir("biigma"))
    # Set by other than a shell, a leading `~` is nobody's yet; unknown users keep theirs.
    return Path(os.path.expanduser(named))  # noqa: PTH111


def check_home() -> None:
    """Raise `UsageError` where `home()` is no folder and cannot become one.

    What it holds would seem to be nothing.
    """
    there = next((p for p in (home(), *home().parents) if is_there(p)), None)
    if there is not None and not is_folder(there):
        below = "" if there == home() else f": {there} is none"
        raise UsageError(
            f"the data folder {home()} is no folder{below}", fix="check --data-dir or BIIGMA_HOME"
        )


@contextlib.contextmanager
def using_home(path: Path | None) -> Iterator[None]:
    """`home()` is `path` within; None changes nothing."""
    if path is None:
        yield
        return
    try:
        _chosen.append(path.expanduser().resolve())
    except (OSError, RuntimeError) as error:  # nobody's home; a link to itself
        raise UsageError(
            f"{path} cannot be the data folder: {error}", fix="check --data-dir"
        ) from error
    try:
        yield
    finally:
        _chosen.pop()


def is_offline() -> bool:
    """Whether `BIIGMA_OFFLINE` forbids connections."""
    return os.environ.get("BIIGMA_OFFLINE", "") not in ("", "0")


def available_cpus() -> int:
    """Cores this process may use: its affinity, and at most the quota of its control groups."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = cgroup_cpus(Path("/"))
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cgroup_cpus(root: Path) -> float | None:
    """Cores' worth of time that control groups (v2's `cpu.max`, v1's CFS quota) allow here.

    The least over the process's group and those around it; None without a limit, or where there
    are no control groups. `root` holds `proc` and `sys`.
    """
    quotas = (_cgroup_quota(group) for group in cgroup_folders(root, "cpu"))
    return min((q for q in quotas if q is not None), default=None)


def cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Folders that may limit this process, of its control group and those around it, v1 and v2.

    Not all of them need be there. `root` holds `proc` and `sys`.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        inside = PurePosixPath(path.lstrip("/"))
        if controllers and controller not in controllers.split(","):
            continue
        names = (controllers, controller) if controllers else (".", "unified")
        for name in names:
            # In a container the path may be the host's, and the tree its own: hence its top, too.
            for group in (inside, *inside.parents):
                yield mount / name / group


def _cgroup_quota(group: Path) -> float | None:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text(encoding="utf-8")
            period = (group / "cpu.cfs_period_us").read_text(encoding="utf-8")
        cores = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # `max` is no number: no limit
        return None
    return cores if cores > 0 else None


def models_dir() -> Path:
    """Folder of the shipped models: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "models"
    return installed if installed.is_dir() else package.parent / "models"


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write to a temporary file beside `path`, flush to disk, then rename over it.

    A link is followed and stays; a device or a pipe is written to as it is.

    Raises `BiigmaError` where the folder cannot be written or the disk is full; what was at `path`
    is then still there, and the temporary file is gone.
    """
    temporary: str | None = None
    target = Path(real_path(path))
    try:
        if is_special(path):  # a pipe behind /dev/stdout has no path of its own
            path.write_bytes(data)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        # Cut, so that a name which just fits the file system still does.
        prefix = f".{cut_name(target.name, 40)}."
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=prefix, suffix="~")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        make_readable(Path(temporary))
        Path(temporary).replace(target)
    except BrokenPipeError:  # whoever read a pipe has gone
        raise
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                Path(temporary).unlink()


def cut_name(name: str, size: int) -> str:
    """A file's name, or its first `size` bytes, by which file systems count."""
    raw = os.fsencode(name)
    if len(raw) <= size:
        return name
    # A letter that was cut through is left out.
    return raw[:size].decode("utf-8", "ignore")


def write_error(
    path: Path | str, error: OSError, *, full: str = "", elsewhere: str = ""
) -> BiigmaError:
    """What to raise where `path` cannot be written.

    A `UsageError` where it is the place that is wrong, a `BiigmaError` where the disk is full or
    broken.

    Args:
        full: what to do where there is no room.
        elsewhere: what to do where it is the place that is wrong.
    """
    message = f"cannot write {path}: {error.strerror or error}"
    if error.errno == errno.ENAMETOOLONG:
        return UsageError(message, fix="choose a shorter name")
    if error.errno in _WRONG_PLACE:
        return UsageError(message, fix=elsewhere or "choose a place you may write to")
    return BiigmaError(message, fix=full or "free some space or choose another folder")


def stdout_closed() -> bool:
    """Whether standard output was closed by whoever started us."""
    try:
        os.write(sys.stdout.fileno(), b"")
    except OSError as error:  # a stream that is no file says so here, too
        return error.errno == errno.EBADF
    return False


def lock(file: IO[Any]) -> bool:
    """Whether an open file is now locked for this process alone; False: another one's.

    It is free again when the file is closed, after a kill too. Where the system or the file system
    has no locks, every file is one's own.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def make_readable(path: Path) -> None:
    """Give a file or folder the usual mode: those of `tempfile` are private, results are not."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def atomic_write_text(path: Path, text: str) -> None:
    """`atomic_write_bytes` in UTF-8."""
    atomic_write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, atomically."""
    atomic_write_text(path, json.dumps(value, indent=2) + "\n")


def without_folders(text: str) -> str:
    """`text` with the paths in it shortened to what says something to others.

    A checkpoint keeps its run, `RUN/weights/best.safetensors`; any other path its last part.
    """

    def short(found: re.Match[str]) -> str:
        parts = PurePath(found[0]).parts
        return "/".join(
            parts[-3:] if parts[-2:-1] == ("weights",) and len(parts) > 2 else parts[-1:]
        )

    return re.sub(r"""[^\s"',=\[\]]*/[^\s"',=\[\]]*""", short, text)


def is_there(path: Path | str) -> bool:
    """Whether a path exists, as far as may be seen. Unlike `Path.exists` it never raises."""
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: Path | str) -> bool:
    """Whether there is a file. Unlike `Path.is_file` it never raises."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path | str) -> bool:
    """Whether there is a folder. Unlike `Path.is_dir` it never raises."""
    return os.path.isdir(path)  # noqa: PTH112


def real_path(path: Path | str) -> str:
    """Where a path leads, links followed. Unlike `Path.resolve` it never raises."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return str(path)


def is_special(path: Path) -> bool:
    """Whether a device or a pipe is there, which must not be replaced by a file."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def check_writable(path: Path) -> None:
    """Raise `UsageError` now rather than after the work, where `path` cannot be written."""
    if is_folder(path):
        raise UsageError(f"{path} is a folder", fix="give a file name")
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # to be made, or looked into below
    except (OSError, ValueError) as error:  # a name too long, or one with a null
        why = error.strerror if isinstance(error, OSError) else error
        long = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG
        fix = f"choose {'a shorter' if long else 'another'} name"
        raise UsageError(f"cannot write {path}: {why}", fix=fix) from None
    if is_special(path):  # nothing is made beside it
        if not os.access(path, os.W_OK):
            raise UsageError(f"cannot write {path}", fix="choose a place you may write to")
        return
    folder = path.parent
    while not is_there(folder) and folder != folder.parent:
        folder = folder.parent
    if (
        not is_folder(folder)
        or not os.access(folder, os.W_OK | os.X_OK)
        or (is_there(path) and not os.access(path, os.W_OK))
    ):
        raise UsageError(f"cannot write {path}", fix="choose a place you may write to")


def content_digest(content: bytes) -> str:
    """Hex BLAKE2b-128 of a file's bytes, as records of images hold it."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def sha256_lines(lines: Iterable[str]) -> str:
    """Hex SHA-256 of the lines, each ended by a newline."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
        digest.update(b"\n")
    return digest.hexdigest()
