"""Decoded images of a data set, kept as one memory-mapped uint8 array on disk.

One folder per (data set's content, side, resize rule, Pillow version), under the data folder:
`cache/NAME-SIDE-RULE-KEY/` with `pixels.npy` `(n, side, side, 3)`, `files.npy` (size and time of
each file when it was decoded) and `meta.json`. It appears by a rename, whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import tokenize
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL

from biigma_cli.data.manifest import Manifest, Record, check_known
from biigma_cli.data.preprocess import RESIZE_RULES, Pixels, load_image, map_threads
from biigma_cli.errors import BiigmaError, DataError
from biigma_cli.storage import (
    atomic_write_bytes,
    available_cpus,
    content_digest,
    home,
    make_readable,
    write_error,
    write_json,
)
from biigma_cli.taxonomy import SYNTHETIC, base_of

FORMAT = "biigma-cache-2"
# NAME-SIDE-RULE-KEY; with a dot before and something behind while it is made.
_ENTRY = re.compile(
    r"\.?(?P<name>(?P<dataset>.+)-(?P<side>\d+)-(?P<rule>[a-z]+)-[0-9a-f]{12})(\..*~)?"
)
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """A decoded data set on disk.

    Attributes:
        path: its folder.
        images: how many; 0 where it is damaged, was never finished, or is just being made.
        size: bytes on disk.
        used: when it was last read, in seconds since 1970.
    """

    path: Path
    dataset: str
    side: int
    rule: str
    images: int
    size: int
    used: float


def cache_root() -> Path:
    """Where all entries lie."""
    return home() / "cache"


def cache_path(manifest: Manifest, side: int, rule: str) -> Path:
    """The entry's folder, by content: another image, side, rule or decoder is another entry."""
    content = hashlib.sha256()
    for record in manifest.records:  # not the labels: a relabelled set shares its pixels
        content.update(f"{record.image_id}\t{record.digest}\n".encode())
    content.update(f"{side}\t{RESIZE_RULES[rule]}\tPillow {PIL.__version__}\t{FORMAT}".encode())
    base = base_of(manifest.dataset)
    return cache_root() / f"{base}-{side}-{rule}-{content.hexdigest()[:12]}"


def open_cache(manifest: Manifest, side: int, rule: str) -> Pixels | None:
    """The whole data set's pixels, memory-mapped, in order of the records; None where not cached.

    Files that were touched since are hashed again, once.

    Raises `DataError` where a file is gone or has changed since it was recorded.
    """
    path = cache_path(manifest, side, rule)
    count = len(manifest.records)
    pixels = _load(path / "pixels.npy", (count, side, side, 3), np.uint8)
    stamps = _load(path / "files.npy", (count, 2), np.int64)
    if pixels is None or stamps is None:
        return None
    now = _stamps(manifest)
    touched = (stamps != now).any(axis=1).nonzero()[0]
    for i in touched:
        read_record_file(manifest, manifest.records[i])
    with contextlib.suppress(OSError, BiigmaError):  # another's, or on a read-only disk
        if touched.size:
            _save_stamps(path / "files.npy", now)
        os.utime(path)
    return pixels


def _load(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any] | None:
    """An array file, memory-mapped; None where it is not there, damaged, or another one."""
    try:
        # Not `np.load`: that takes other formats, too, by their first bytes.
        array = np.lib.format.open_memmap(path, mode="r")
        whole = array.offset + array.nbytes == path.stat().st_size
    except (OSError, ValueError, EOFError, TypeError, SyntaxError, tokenize.TokenError):
        return None
    same = (array.shape, array.dtype) == (shape, dtype) and array.flags.c_contiguous
    return array if whole and same else None


def build_cache(
    manifest: Manifest, side: int, rule: str, *, progress: Progress | None = None
) -> Pixels:
    """Decode the whole data set on all cores, once, and open it.

    Two processes that want the same entry wait for one another. Killed at any time, nothing that
    looks whole is left.

    Raises:
        DataError: an image is gone, damaged, or not the one that was recorded.
        BiigmaError: the data folder cannot be written, or has too little room.
    """
    from filelock import FileLock

    path = cache_path(manifest, side, rule)
    size = len(manifest.records) * side * side * 3
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            found = open_cache(manifest, side, rule)
            if found is not None:
                return found
            for left in path.parent.glob(f".{path.name}.*~"):
                shutil.rmtree(left, ignore_errors=True)  # of a process that was killed
            free = shutil.disk_usage(path.parent).free
            if free < size * 1.02 + 2**20:
                raise BiigmaError(
                    f"the decoded images need {size / 1e9:.2f} GB in {path.parent}, and "
                    f"{free / 1e9:.2f} GB are free",
                    fix="free some space (biigma cache clear), or set BIIGMA_HOME elsewhere",
                )
            temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix="~"))
            try:
                _decode_into(temporary, manifest, side, rule, progress)
                make_readable(temporary)
                if path.exists():  # damaged: open_cache would not have it
                    shutil.rmtree(path)
                temporary.rename(path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, NotImplementedError) as error:  # the latter: no locks on this file system
        cause = error if isinstance(error, OSError) else OSError(str(error))
        raise write_error(
            path,
            cause,
            full="free some space, or set BIIGMA_HOME to a folder you may write to",
            elsewhere="set BIIGMA_HOME to a folder you may write to",
        ) from error
    done = open_cache(manifest, side, rule)
    if done is None:
        raise BiigmaError(f"{path} vanished while it was made", fix="run it again")
    return done


def _decode_into(
    folder: Path, manifest: Manifest, side: int, rule: str, progress: Progress | None
) -> None:
    count = len(manifest.records)
    # Before decoding: a file changed meanwhile then has another stamp, and is hashed again.
    stamps = _stamps(manifest)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, side, side, 3)}
    # Written, not mapped: a mapped file on a full disk ends the process by a signal.
    with (folder / "pixels.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        decoded = decode_records(manifest, manifest.records, side, rule)
        for i, image in enumerate(decoded):
            file.write(image.tobytes())
            if progress:
                progress(i + 1, count)
        file.flush()
        os.fsync(file.fileno())
    _save_stamps(folder / "files.npy", stamps)
    write_json(
        folder / "meta.json",
        {
            "format": FORMAT,
            "dataset": base_of(manifest.dataset),
            "side": side,
            "rule": RESIZE_RULES[rule],
            "images": count,
            "pillow": PIL.__version__,
        },
    )


def _save_stamps(path: Path, stamps: npt.NDArray[np.int64]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, stamps)
    atomic_write_bytes(path, buffer.getvalue())


def decode_records(manifest: Manifest, records: Sequence[Record], side: int, rule: str) -> Any:
    """Decode files one after another's order, on all cores; an iterator of `(side, side, 3)`."""

    def decode(record: Record) -> Pixels:
        content = read_record_file(manifest, record)
        return load_image(content, side, rule=rule, name=str(manifest.root / record.path))

    return map_threads(decode, records, threads=available_cpus())


def read_record_file(manifest: Manifest, record: Record) -> bytes:
    """The bytes of a recorded image.

    Raises `DataError` where the file is gone or not the one that was recorded.
    """
    path = manifest.root / record.path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}", fix=recorded_again(manifest)
        ) from error
    if content_digest(content) != record.digest:
        raise DataError(f"{path} has changed since it was recorded", fix=recorded_again(manifest))
    return content


def recorded_again(manifest: Manifest) -> str:
    """The fix for a data set whose files are no longer those that were recorded."""
    if manifest.dataset == SYNTHETIC.dataset:
        return f"remove {manifest.root}; it is drawn again when it is needed"
    if manifest.codes:
        return f"record it again: biigma datasets add {manifest.dataset} {manifest.root}"
    base = base_of(manifest.dataset)
    return f"record it again: biigma download {base} --from {manifest.root}"


def _stamps(manifest: Manifest) -> npt.NDArray[np.int64]:
    """`(n, 2)`: size in bytes and time of change in ns of each file; -1 where it is gone."""
    stamps = np.full((len(manifest.records), 2), -1, np.int64)
    root = str(manifest.root)
    for i, record in enumerate(manifest.records):
        with contextlib.suppress(OSError):
            status = os.stat(os.path.join(root, record.path))  # noqa: PTH116, PTH118  (three times faster)
            stamps[i] = status.st_size, status.st_mtime_ns
    return stamps


def cache_entries() -> list[CacheEntry]:
    """All entries, the largest first."""
    entries = []
    for path in cache_root().glob("*"):
        told = _ENTRY.fullmatch(path.name)
        if told is None or not path.is_dir():
            continue  # not ours
        try:
            meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
            images = int(meta["images"])
        except (OSError, ValueError, KeyError, TypeError):
            images = 0
        size = 0
        used = 0.0
        with contextlib.suppress(OSError):  # it may be renamed or removed meanwhile
            used = path.stat().st_mtime
            size = sum(f.stat().st_size for f in path.iterdir())
        entries.append(
            CacheEntry(
                path=path,
                dataset=told["dataset"],
                side=int(told["side"]),
                rule=told["rule"],
                images=images,
                size=size,
                used=used,
            )
        )
    return sorted(entries, key=lambda e: (-e.size, e.path.name))


def clear_cache(dataset: str | None = None) -> list[CacheEntry]:
    """Remove all entries, or those of one data set; returns what was removed.

    An entry that is just being made is waited for and then removed. Nothing else that lies there
    is touched.

    Raises:
        UsageError: there is no such data set, and nothing of it is cached.
        BiigmaError: one may not be removed, when the others are.
    """
    from filelock import FileLock

    wanted = base_of(dataset) if dataset is not None else None
    entries = cache_entries()
    if wanted is not None and wanted not in {e.dataset for e in entries}:
        check_known(wanted)
    gone, failed = [], []
    for entry in entries:
        if wanted is not None and entry.dataset != wanted:
            continue
        told = _ENTRY.fullmatch(entry.path.name)
        whole = cache_root() / told["name"] if told else entry.path
        try:
            with FileLock(f"{whole}.lock"):
                for path in {entry.path, whole}:
                    with contextlib.suppress(FileNotFoundError):
                        if path.is_symlink():  # somebody's own: where it leads to stays
                            path.unlink()
                        else:
                            shutil.rmtree(path)
                Path(f"{whole}.lock").unlink(missing_ok=True)
        except (OSError, NotImplementedError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            failed.append(f"{entry.path}: {reason or error}")
            continue
        gone.append(entry)
    if failed:
        raise BiigmaError(
            f"cannot remove {'; '.join(failed)}"
            + (f" ({len(gone)} others are removed)" if gone else ""),
            fix="change their permissions" if len(failed) > 1 else "change its permissions",
        )
    return gone
