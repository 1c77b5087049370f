"""A synthetic data set on disk: whole or not at all, the same at any number of workers."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import io
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from typing import Any

from filelock import FileLock
from PIL import Image, ImageDraw, ImageFont

from biigma_cli.data.synthetic.plan import Sample, SyntheticOptions, plan
from biigma_cli.data.synthetic.render import render
from biigma_cli.errors import BiigmaError, DataError, UsageError
from biigma_cli.storage import (
    atomic_write_bytes,
    atomic_write_text,
    available_cpus,
    make_readable,
    write_error,
)
from biigma_cli.taxonomy import ISIC18

# A change of any pixel, name or column needs a new number.
FORMAT = "biigma-synthetic-1"

COLUMNS = ("image", "label", "lesion_id", "split", "mask", "ita", "artefact")

_CHUNK = 8  # images per task: short enough to stop soon, long enough to be worth a message


def write_synthetic(
    options: SyntheticOptions,
    folder: Path,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw a data set into `folder` and return it.

    `images/ID.jpg` (quality 95, full chroma), `masks/ID.png` (1 bit, white = lesion),
    `metadata.csv` (`COLUMNS`; image and mask are paths relative to `folder`) and `options.json`.
    All is written into a hidden folder beside it, which is then renamed. A folder that already
    holds the same data set is kept and returned at once. Two processes take turns.

    Args:
        workers: processes; default: one for each core this process may use. With 1 all is done
            here.
        progress: called with images done and images in all.

    Raises:
        UsageError: `folder` is a file, or holds something else.
        DataError: `folder` holds this data set, but parts of it are missing.
        BiigmaError: it cannot be written, or the disk is full; nothing is left behind.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"{workers} workers", fix="give 1 or more")
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 -- a link in the way stays a link
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.parent / f".{folder.name}.lock"
        with FileLock(lock):
            try:
                return _write_locked(options, folder, workers, progress or _silent)
            finally:
                # Still held: whoever waits finds its file unlinked and takes a new one.
                with contextlib.suppress(OSError):
                    lock.unlink()
    except BrokenProcessPool as error:
        raise BiigmaError(
            f"a process drawing {folder} was ended from outside",
            fix="free some memory or use fewer workers, and run it again",
        ) from error
    except OSError as error:
        raise write_error(folder, error) from error


def read_options(folder: Path) -> dict[str, Any] | None:
    """What `options.json` says, or None where `folder` holds no synthetic data set."""
    try:
        stored = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stored if isinstance(stored, dict) and "format" in stored else None


def _write_locked(
    options: SyntheticOptions,
    folder: Path,
    workers: int | None,
    progress: Callable[[int, int], None],
) -> Path:
    prefix = f".{folder.name}.drawing-"
    for leftover in folder.parent.iterdir():
        # Nobody else holds the lock: whoever made it was killed.
        if leftover.name.startswith(prefix):
            shutil.rmtree(leftover, ignore_errors=True)
    if folder.is_symlink() or folder.exists():
        if _is_complete(options, folder):
            return folder
        folder.rmdir()  # known to be empty
    samples = plan(options)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix))
    try:
        for name in ("images", "masks"):
            (temporary / name).mkdir()
        chunks = [samples[i : i + _CHUNK] for i in range(0, len(samples), _CHUNK)]
        done = 0
        for drawn in _draw_all(chunks, temporary, options.side, workers or available_cpus()):
            done += drawn
            progress(done, len(samples))
        atomic_write_text(temporary / "metadata.csv", _metadata(samples))
        atomic_write_text(temporary / "options.json", _description(options))
        make_readable(temporary)
        if hasattr(os, "sync"):
            os.sync()  # once, in place of two thousand single flushes
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _is_complete(options: SyntheticOptions, folder: Path) -> bool:
    """Whether the data set is there already; False where the folder is empty."""
    if not folder.is_dir() or folder.is_symlink():
        raise UsageError(f"{folder} is no folder", fix="choose another name")
    stored = read_options(folder)
    if stored is None:
        if any(folder.iterdir()):
            raise UsageError(
                f"{folder} holds something else", fix="choose a new or an empty folder"
            )
        return False
    wanted = json.loads(_description(options))
    if stored != wanted:
        names = sorted(k for k in {*stored, *wanted} if stored.get(k) != wanted.get(k))
        told = ", ".join(f"{k} {stored.get(k)!r} (not {wanted.get(k)!r})" for k in names)
        raise UsageError(
            f"{folder} holds another synthetic data set: {told}",
            fix="choose another folder, or delete this one",
        )
    for name in ("images", "masks"):
        files = (folder / name).iterdir() if (folder / name).is_dir() else iter(())
        whole = sum(file.stat().st_size > 0 for file in files)
        if whole != options.count:
            raise DataError(
                f"{folder / name} holds {whole} files where {options.count} were drawn",
                fix="delete the folder and run it again",
            )
    if not (folder / "metadata.csv").is_file():
        raise DataError(f"{folder} has no metadata.csv", fix="delete it and run it again")
    return True


def _silent(done: int, total: int) -> None:
    """No progress."""


def _metadata(samples: tuple[Sample, ...]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for s in samples:
        writer.writerow(
            (f"images/{s.image_id}.jpg", s.label, s.lesion_id, s.part, f"masks/{s.image_id}.png",
             f"{s.ita:.1f}", s.artefact)
        )  # fmt: skip
    return buffer.getvalue()


def _description(options: SyntheticOptions) -> str:
    return json.dumps({"format": FORMAT, **options.to_dict()}, indent=2) + "\n"


def _draw_all(
    chunks: list[tuple[Sample, ...]], folder: Path, side: int, workers: int
) -> Iterator[int]:
    """Draw all chunks, here or in other processes; yields how many images each one gave."""
    workers = min(workers, len(chunks))
    if workers == 1:
        for chunk in chunks:
            yield _draw(chunk, folder, side)
        return
    # Spawned, not forked: forking a process with threads, as torch's, may hang.
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        waiting = iter(chunks)
        running: set[Future[int]] = set()
        for chunk in waiting:
            with _no_interrupt():
                running.add(pool.submit(_draw, chunk, folder, side))
            if len(running) < 3 * workers:
                continue
            ready, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in ready)
        while running:
            ready, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in ready)
    finally:
        # Waits for the tasks under way, so that nobody writes after the folder has gone.
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Hold Ctrl-C back: a worker started here inherits that, and never sees it from birth on."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it even where it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _keep_memory()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _keep_memory() -> None:
    """Have glibc keep freed memory: fresh pages for each layer cost a sixth of the time."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, 256 << 20)  # M_TRIM_THRESHOLD
        mallopt(-2, 16 << 20)  # M_TOP_PAD
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its greatest


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _draw(samples: tuple[Sample, ...], folder: Path, side: int) -> int:
    for sample in samples:
        pixels, mask = render(sample, side)
        # Encoded in memory first: Pillow itself does not say that a disk is full.
        jpeg, png = io.BytesIO(), io.BytesIO()
        Image.fromarray(pixels).save(jpeg, "JPEG", quality=95, subsampling=0)
        Image.fromarray(mask).save(png, "PNG", compress_level=6)
        (folder / "images" / f"{sample.image_id}.jpg").write_bytes(jpeg.getvalue())
        (folder / "masks" / f"{sample.image_id}.png").write_bytes(png.getvalue())
    return len(samples)


def contact_sheet(
    options: SyntheticOptions, per_class: int = 6, *, path: Path | None = None
) -> Image.Image:
    """A labelled grid: one row per class, `per_class` images of different lesions each.

    Args:
        per_class: columns; fewer where a class has not as many lesions.
        path: a PNG to write it to as well.
    """
    if per_class < 1:
        raise UsageError(f"{per_class} images per class", fix="give 1 or more")
    side, margin = options.side, max(4, options.side // 40)
    rows: dict[str, dict[str, Sample]] = {code: {} for code in ISIC18.codes}
    for sample in plan(options):
        rows[sample.label].setdefault(sample.lesion_id, sample)
    font = ImageFont.load_default(size=max(10, side // 12))
    left = max(int(font.getlength(code)) for code in rows) + 2 * margin
    size = (left + per_class * (side + margin), margin + len(rows) * (side + margin))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, (code, lesions) in enumerate(rows.items()):
        top = margin + row * (side + margin)
        draw.text((margin, top + side // 2), code, fill="black", font=font, anchor="lm")
        for column, sample in enumerate(list(lesions.values())[:per_class]):
            pixels, _ = render(sample, side)
            sheet.paste(Image.fromarray(pixels), (left + column * (side + margin), top))
    if path is not None:
        buffer = io.BytesIO()
        sheet.save(buffer, "PNG")
        atomic_write_bytes(path, buffer.getvalue())
    return sheet
