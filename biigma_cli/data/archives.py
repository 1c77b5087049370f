"""Unpacking of zip archives that nobody vouches for.

Every member is checked before the first byte is written: no path may leave the target, nothing
but plain files is made, and an archive that would swell beyond reason is refused. An archive is
unpacked into a temporary folder beside the target and renamed, so what bears the target's name is
whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from biigma_cli.data.sources import human
from biigma_cli.errors import BiigmaError, DataError
from biigma_cli.storage import write_error

Progress = Callable[[int, int], None]

FLAG_ENCRYPTED = 0x1
CHUNK = 1 << 20
# What file managers leave behind; no reason to refuse to replace a folder.
LITTER = ("Thumbs.db", "desktop.ini")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds beyond which an archive counts as a bomb.

    Attributes:
        members: entries.
        ratio: unpacked bytes per packed byte, for members larger than `ratio_from` bytes.
        ratio_from: smaller members, such as tables of zeros, may have any ratio.
        growth: unpacked bytes in all, per byte of archive.
        floor: unpacked bytes in all that any archive may have.
    """

    members: int = 200_000
    ratio: float = 200.0
    ratio_from: int = 8 << 20
    growth: float = 4.0
    floor: int = 64 << 20


LIMITS = Limits()


# What zipfile raises on bytes that make no sense to it.
_NONSENSE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)


class ArchiveError(DataError):
    """An archive that is damaged, cut short or not to be trusted."""


def wanted(name: str) -> bool:
    """Whether a member of an ISIC archive is used: no superpixels, no resource forks."""
    base = name.rpartition("/")[2]
    return not (
        base.endswith("_superpixels.png") or base.startswith("._") or name.startswith("__MACOSX/")
    )


def check(
    archive: Path, *, keep: Callable[[str], bool] = wanted, limits: Limits = LIMITS
) -> dict[str, int]:
    """Sizes in bytes by path of the files that `extract` would write; reads only the directory.

    Raises:
        ArchiveError: no zip file, cut short, or one that `extract` refuses.
    """
    with _open(archive) as opened:
        return {str(p): i.file_size for p, i in _plan(opened, archive, keep, limits).items()}


def extract(
    archive: Path,
    into: Path,
    *,
    keep: Callable[[str], bool] = wanted,
    progress: Progress | None = None,
    limits: Limits = LIMITS,
) -> dict[str, int]:
    """Unpack `archive` as the folder `into`, whole or not at all.

    Where every member lies in one folder of `into`'s name, that folder is `into`. An `into` that
    is there already is replaced if it holds nothing but files of the archive.

    Args:
        keep: says for a member's name whether it is written.
        progress: called with (bytes written, bytes in all); what it raises ends the extraction.

    Returns:
        Size in bytes of each file, by its path below `into`, with `/`.

    Raises:
        ArchiveError: the archive is damaged, cut short or refused; `into` is as it was.
        DataError: `into` holds what is not from the archive.
        BiigmaError: the disk is full or cannot be written.
    """
    temporary = into.with_name(f".{into.name}.unpacking~")
    replaced = into.with_name(f".{into.name}.replaced~")
    try:
        with _open(archive) as opened:
            plan = _plan(opened, archive, keep, limits)
            plan = _without_top(plan, into.name)
            _check_replaceable(into, plan)
            into.parent.mkdir(parents=True, exist_ok=True)
            remove(temporary)
            remove(replaced)
            total = sum(i.file_size for i in plan.values())
            free = shutil.disk_usage(into.parent).free
            if total > free:
                raise OSError(errno.ENOSPC, f"{human(total)} are needed, {human(free)} are free")
            temporary.mkdir()
            done = 0
            for path, info in plan.items():
                target = temporary.joinpath(*path.parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                done = _write(opened, info, target, archive, done, total, progress)
        # One flush of the disk is much quicker than thousands of single ones.
        if hasattr(os, "sync"):
            os.sync()
        if into.exists():
            into.rename(replaced)
        temporary.rename(into)
        sync_folder(into.parent)
        remove(replaced)
    except OSError as error:
        raise disk_error(into.parent, error) from error
    finally:
        remove(temporary)
    return {str(p): i.file_size for p, i in plan.items()}


def missing_files(folder: Path, sizes: dict[str, int]) -> list[str]:
    """Paths that are not plain files of the given size below `folder`."""

    def absent(path: str) -> bool:
        try:
            found = (folder / path).lstat()
        except (OSError, ValueError):
            return True
        return not stat.S_ISREG(found.st_mode) or found.st_size != sizes[path]

    return [path for path in sizes if absent(path)]


def disk_error(path: Path, error: OSError) -> BiigmaError:
    """`write_error` of a download, which goes on where it stopped."""
    return write_error(
        path,
        error,
        full="free some space and run again: it goes on where it stopped",
        elsewhere="check the permissions, or choose another folder with --data-dir",
    )


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with all that is in it, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename survives a power cut."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _open(archive: Path) -> zipfile.ZipFile:
    with _reading(archive, "its directory"):
        return zipfile.ZipFile(archive)


@contextlib.contextmanager
def _reading(archive: Path, what: str) -> Iterator[None]:
    """Turn what bad bytes provoke into `ArchiveError`."""
    try:
        yield
    except _NONSENSE as error:
        raise _bad(archive, f"{what} is damaged or cut short ({error})") from error
    except OSError as error:
        # A jump to an offset that cannot be; anything else is the disk's fault.
        if error.errno != errno.EINVAL:
            raise
        raise _bad(archive, f"{what} is damaged ({error.strerror})") from error


def _plan(
    opened: zipfile.ZipFile, archive: Path, keep: Callable[[str], bool], limits: Limits
) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Files to write, by path; raises where any member at all is not to be trusted."""
    infos = opened.infolist()
    if len(infos) > limits.members:
        raise _bad(archive, f"it has {len(infos):,} members, more than {limits.members:,}")
    plan: dict[PurePosixPath, zipfile.ZipInfo] = {}
    seen: set[str] = set()
    folders: set[str] = set()
    for info in infos:
        path = _safe_path(info, archive)
        # File systems that ignore case or Unicode form would write one over the other.
        key = unicodedata.normalize("NFC", str(path)).casefold()
        above = {unicodedata.normalize("NFC", str(p)).casefold() for p in path.parents}
        folders |= above
        if info.is_dir():
            folders.add(key)
            continue
        if key in seen:
            raise _bad(archive, f"{info.filename!r} is in it twice")
        seen.add(key)
        ratio = info.file_size / max(info.compress_size, 1)
        if info.file_size > limits.ratio_from and ratio > limits.ratio:
            raise _bad(archive, f"{info.filename!r} would swell {ratio:.0f}-fold: a zip bomb")
        if keep(str(path)):
            plan[path] = info
    if both := seen & folders:
        raise _bad(archive, f"{min(both)!r} is a file and a folder in it")
    total = sum(i.file_size for i in plan.values())
    allowed = max(limits.floor, limits.growth * archive.stat().st_size)
    if total > allowed:
        raise _bad(
            archive, f"it would unpack to {human(total)}, more than {human(allowed)}: a zip bomb"
        )
    if not plan:
        raise _bad(archive, "it is empty")
    return plan


def _safe_path(info: zipfile.ZipInfo, archive: Path) -> PurePosixPath:
    """The member's path, which stays below wherever it is put."""
    # zipfile cuts names at NUL and may turn separators round; orig_filename is what was stored.
    name = info.orig_filename
    parts = name.removesuffix("/").split("/")
    if "\\" in name or ":" in name or any(ord(c) < 32 for c in name):
        raise _bad(archive, f"{name!r} has a character that no path here may have")
    if any(p in ("", ".", "..") for p in parts):
        raise _bad(archive, f"{name!r} would lie outside the folder")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _bad(archive, f"{name!r} is a link or a special file")
    if info.flag_bits & FLAG_ENCRYPTED:
        raise _bad(archive, f"{name!r} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _bad(archive, f"{name!r} is packed by method {info.compress_type}, not deflate")
    return PurePosixPath(*parts)


def _without_top(
    plan: dict[PurePosixPath, zipfile.ZipInfo], top: str
) -> dict[PurePosixPath, zipfile.ZipInfo]:
    if all(len(p.parts) > 1 and p.parts[0] == top for p in plan):
        return {PurePosixPath(*p.parts[1:]): i for p, i in plan.items()}
    return plan


def _check_replaceable(into: Path, plan: dict[PurePosixPath, zipfile.ZipInfo]) -> None:
    """Refuse to replace what somebody else put there."""
    if not into.exists() and not into.is_symlink():
        return
    if into.is_symlink() or not into.is_dir():
        raise DataError(f"{into} is in the way: it is no folder", fix="move it away")
    ours = {str(p) for p in plan}
    for where, folders, names in os.walk(into):
        here = Path(where)
        links = [f for f in folders if (here / f).is_symlink()]
        for name in (*links, *names):
            path = (here / name).relative_to(into).as_posix()
            if path not in ours and name not in LITTER and not name.startswith("."):
                raise DataError(
                    f"{into} would be replaced, but {path} in it is not from the archive",
                    fix="move that folder away, or choose another one with --data-dir",
                )


def _write(
    opened: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    target: Path,
    archive: Path,
    done: int,
    total: int,
    progress: Progress | None,
) -> int:
    """Unpack one member; zipfile stops at the declared size and compares the CRC."""
    written = 0
    with target.open("xb") as file:
        with _reading(archive, repr(info.filename)):
            source = opened.open(info)
        with source:
            while True:
                with _reading(archive, repr(info.filename)):
                    chunk = source.read(CHUNK)
                if not chunk:
                    break
                file.write(chunk)
                written += len(chunk)
                if progress is not None:
                    progress(done + written, total)
    if written != info.file_size:
        raise _bad(archive, f"{info.filename!r} is cut short")
    return done + written


def _bad(archive: Path, why: str) -> ArchiveError:
    return ArchiveError(
        f"{archive} cannot be unpacked: {why}",
        fix="fetch the archive again, from another source if it stays so",
    )
