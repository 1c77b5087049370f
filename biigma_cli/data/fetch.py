"""Download of the challenge archives over bad lines, through proxies, or from a folder.

Below the data set's folder: `archives/NAME.part` grows (with `NAME.part.json` saying which version
of which file it is), is checked, renamed to `archives/NAME` and unpacked into `STEM/`; single files
move up into the folder itself. `complete.json` gets an entry per file as its last step, so what
has none is done again, and a killed process leaves nothing that passes for whole.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import hashlib
import json
import os
import queue
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from biigma_cli.data.archives import (
    ArchiveError,
    check,
    disk_error,
    extract,
    missing_files,
    remove,
    sync_folder,
)
from biigma_cli.data.sources import (
    LICENCES,
    PARTS,
    RemoteFile,
    base_urls,
    files,
    human,
    without_password,
)
from biigma_cli.errors import BiigmaError, DataError, UsageError
from biigma_cli.storage import atomic_write_text, is_file, is_offline, write_json

if TYPE_CHECKING:
    import requests

FORMAT = "biigma-download-1"
MARKER = "complete.json"
LOCK = ".download.lock"

# Attempts at one address that brought the file no byte further than it ever was.
ATTEMPTS = 6
BACKOFF_S = 1.0
BACKOFF_CAP_S = 60.0
RETRY_AFTER_CAP_S = 300.0
TIMEOUT_S = (15.0, 60.0)  # connect; silence between two reads
CHUNK = 1 << 18
EVENT_EVERY_S = 0.1
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
CA_VARIABLES = "REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE or SSL_CERT_FILE"
PROXY_VARIABLES = "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY"


@dataclass(frozen=True, kw_only=True)
class Step:
    """How far one file is.

    Attributes:
        name: the file.
        phase: what is being done with it.
        done: bytes.
        total: bytes; None where the server does not say.
    """

    name: str
    phase: Literal["download", "verify", "unpack"]
    done: int
    total: int | None


@dataclass(frozen=True, kw_only=True)
class Note:
    """One line for people: a wait, a retry, another mirror; or a warning to be kept."""

    name: str
    text: str
    warning: bool = False


Event = Step | Note


class _Stopped(Exception):
    """The main thread wants the workers to end."""


class _DisplayFailed(Exception):
    """The caller's callback raised; not to be taken for a failure of the disk or the line."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Retry(Exception):
    """This attempt failed, the next may not."""

    def __init__(self, why: str, *, after: float | None = None, fatal_if_new: bool = False) -> None:
        super().__init__(why)
        self.after = after
        # Of no use to try again where the address has never answered.
        self.fatal_if_new = fatal_if_new


class _Unusable(Exception):
    """This address will not give the file."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What the steps of one run share."""

    folder: Path
    bases: tuple[str, ...]
    accept_checksum: bool
    keep_archives: bool
    emit: Callable[[Event], None]
    stop: threading.Event = field(default_factory=threading.Event)
    responses: set[Any] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def archives(self) -> Path:
        return self.folder / "archives"

    def step(self, name: str, phase: Literal["download", "verify", "unpack"]) -> _Meter:
        return _Meter(self, name, phase)

    def note(self, file: RemoteFile, text: str, *, warning: bool = False) -> None:
        self.emit(Note(name=file.name, text=text, warning=warning))


class _Meter:
    """Progress of one phase, told a few times a second; ends it where the run is stopped."""

    def __init__(
        self, run: _Run, name: str, phase: Literal["download", "verify", "unpack"]
    ) -> None:
        self.run, self.name, self.phase = run, name, phase
        self.told = 0.0

    def __call__(self, done: int, total: int | None) -> None:
        if self.run.stop.is_set():
            raise _Stopped
        now = time.monotonic()
        if now - self.told >= EVENT_EVERY_S or done == total:
            self.told = now
            self.run.emit(Step(name=self.name, phase=self.phase, done=done, total=total))


def download(
    dataset: str,
    folder: Path,
    *,
    parts: Collection[str] = PARTS,
    mirror: str | None = None,
    accept_checksum: bool = False,
    parallel: int = 3,
    offline: bool = False,
    keep_archives: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> Path:
    """Fetch, verify and unpack the files of a data set; what is there already is left alone.

    Args:
        dataset: `isic17`, `isic18` or `isic19`.
        folder: the data set's own folder; made where missing.
        parts: of the challenge: `train`, `val`, `test`.
        mirror: base address used in place of the ISIC hosts; holds `<year>/<file>`.
        accept_checksum: take a file whose checksum differs, if a single source gives that checksum.
        parallel: files at a time.
        offline: open no socket; `BIIGMA_OFFLINE` does the same.
        keep_archives: leave the zip files in `folder/archives` after unpacking.
        on_event: called from any thread, but never from two at once.

    Returns:
        `folder`: each zip as a folder of its name, each single file, `LICENSE.txt`,
        `ATTRIBUTION.txt`, and `complete.json`.

    Raises:
        UsageError: unknown data set or part, a mirror or a CA variable that cannot be.
        DataError: a file cannot be had, or is not what it should be; nothing bad is left in place.
        BiigmaError: too little room, or the folder cannot be written.
        KeyboardInterrupt: also on SIGTERM; parts stay, and the next run goes on with them.
    """
    wanted = files(dataset, parts)
    bases = base_urls(mirror)
    if parallel < 1:
        raise UsageError(f"{parallel} files at a time cannot be", fix="give 1 or more")
    folder = folder.expanduser().absolute()
    whole = not _open_files(folder, wanted, None) and _notices_there(folder, dataset)
    if whole and not _leftovers(folder, wanted) and not _litter(folder):
        # Also from a disk that can only be read, where no lock could be had.
        return folder
    offline = offline or is_offline()
    run = _run(folder, () if offline else bases, accept_checksum, keep_archives, on_event)
    with _sigterm_as_interrupt(), _locked(run):
        todo = _open_files(folder, wanted, run)
        if offline:
            absent = [f for f in todo if not (run.archives / f.name).is_file()]
            if absent:
                raise _not_here(dataset, folder, absent, bases)
        _check_room(run, todo)
        _in_threads(run, todo, parallel, lambda f: _fetch_and_place(run, f))
        _write_notices(folder, dataset)
        for path in _leftovers(folder, wanted):
            remove(path)
        with contextlib.suppress(OSError):
            run.archives.rmdir()
    return folder


def find_archives(dataset: str, source: Path) -> dict[str, Path]:
    """Files of the data set as they are handed out, in `source` or its `<year>` folder, by name.

    Empty where no zip is among them: then `source` holds an unpacked copy, if anything.
    """
    source = source.expanduser()
    found: dict[str, Path] = {}
    for file in files(dataset):
        for path in (source / file.name, source / file.path, source / "archives" / file.name):
            if is_file(path):
                found[file.name] = path
                break
    return found if any(name.endswith(".zip") for name in found) else {}


def place_archives(
    dataset: str,
    source: Path,
    folder: Path,
    *,
    parts: Collection[str] | None = None,
    accept_checksum: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> Path:
    """Verify and unpack archives that lie in `source`; opens no socket, changes nothing there.

    Args:
        parts: all of their files must be there; None takes whatever is there.

    Raises and returns as `download` does.
    """
    wanted = files(dataset, PARTS if parts is None else parts)
    folder = folder.expanduser().absolute()
    found = find_archives(dataset, source)
    absent = [f for f in wanted if f.name not in found]
    if not found or (absent and parts is not None):
        raise _not_here(dataset, source, absent, base_urls())
    run = _run(folder, (), accept_checksum, True, on_event)
    with _sigterm_as_interrupt(), _locked(run):
        todo = [f for f in _open_files(folder, wanted, run) if f.name in found]
        _check_room(run, todo, fetch=False)

        def place(file: RemoteFile) -> None:
            path = found[file.name]
            digest = _verify(run, file, path)
            if not file.is_zip:
                run.archives.mkdir(parents=True, exist_ok=True)
                copy = run.archives / f"{file.name}.part"
                shutil.copyfile(path, copy)
                path = copy
            _place(run, file, path, digest, str(found[file.name]))

        _in_threads(run, todo, 1, place)
        _write_notices(folder, dataset)
    return folder


def _run(
    folder: Path,
    bases: tuple[str, ...],
    accept_checksum: bool,
    keep_archives: bool,
    on_event: Callable[[Event], None] | None,
) -> _Run:
    telling = threading.Lock()

    def emit(event: Event) -> None:
        if on_event is not None:
            with telling:
                try:
                    on_event(event)
                except Exception as error:
                    raise _DisplayFailed(error) from error

    return _Run(
        folder=folder,
        bases=bases,
        accept_checksum=accept_checksum,
        keep_archives=keep_archives,
        emit=emit,
    )


# -- what is there ------------------------------------------------------------------------------


def _entries(folder: Path) -> dict[str, Any]:
    """Entries of `complete.json` by file name; none where it is missing or damaged."""
    try:
        stored = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        if stored["format"] == FORMAT:
            return dict(stored["files"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {}


def _open_files(folder: Path, wanted: tuple[RemoteFile, ...], run: _Run | None) -> list[RemoteFile]:
    """Files that are not in place, whole, as recorded; says on `run` what has gone."""
    entries = _entries(folder)
    todo = []
    for file in wanted:
        entry = entries.get(file.name)
        try:
            gone = missing_files(folder, entry["contents"]) if entry else [file.name]
        except (TypeError, KeyError, AttributeError):
            gone = [file.name]
        if gone:
            todo.append(file)
            if entry and run is not None:
                run.note(
                    file, f"{len(gone)} of its files are missing or changed, such as {gone[0]}"
                )
    return todo


def _leftovers(folder: Path, wanted: tuple[RemoteFile, ...]) -> list[Path]:
    """What a killed run could not remove any more: archives and parts of files in place."""
    entries, found = _entries(folder), []
    for file in wanted:
        if file.name in entries:
            part = folder / "archives" / f"{file.name}.part"
            spent = [part, _sidecar_path(part)]
            if not entries[file.name].get("archive_kept"):
                spent.append(folder / "archives" / file.name)
            found += [path for path in spent if path.exists()]
    return found


def _litter(folder: Path) -> list[Path]:
    """Temporary files and folders of killed runs; to be removed only under the lock."""
    return [*folder.glob(".*~"), *(folder / "archives").glob(".*~")]


def _record(run: _Run, file: RemoteFile, entry: dict[str, Any]) -> None:
    with run.lock:
        entries = _entries(run.folder) | {file.name: entry}
        write_json(
            run.folder / MARKER,
            {"format": FORMAT, "files": {name: entries[name] for name in sorted(entries)}},
        )


def _notices_there(folder: Path, dataset: str) -> bool:
    return all((folder / name).is_file() for name in _notices(dataset))


def _notices(dataset: str) -> dict[str, str]:
    licence = LICENCES[dataset]
    return {"LICENSE.txt": licence.notice, "ATTRIBUTION.txt": licence.attribution}


def _write_notices(folder: Path, dataset: str) -> None:
    for name, text in _notices(dataset).items():
        atomic_write_text(folder / name, text)


def _not_here(
    dataset: str, looked: Path, absent: list[RemoteFile], bases: tuple[str, ...]
) -> DataError:
    base = without_password(bases[0])
    rows = "\n".join(f"  {base}/{f.path} ({f.size_text})" for f in absent)
    return DataError(
        f"{len(absent)} files of {dataset} are not in {looked}, and the network is not used:\n"
        f"{rows}",
        fix=f"fetch them elsewhere, put them into one folder, and run: "
        f"biigma download {dataset} --from DIR",
    )


def _check_room(run: _Run, todo: list[RemoteFile], *, fetch: bool = True) -> None:
    """Raise before the first byte where the disk cannot hold what is to come."""
    need = 0
    for file in todo:
        need += file.unpacked_size
        if fetch and not (run.archives / file.name).is_file():
            need += max(0, (file.size or file.approx_size) - _size(_part(run, file)))
    free = shutil.disk_usage(run.folder).free
    if need > free:
        raise BiigmaError(
            f"{run.folder} has {human(free)} free, and about {human(need)} are needed "
            "(archives and what they unpack to)",
            fix=f"free {human(need - free)}, or choose another disk with --data-dir",
        )


def _part(run: _Run, file: RemoteFile) -> Path:
    return run.archives / f"{file.name}.part"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


# -- one process, its threads, and how they end ---------------------------------------------------


@contextlib.contextmanager
def _locked(run: _Run) -> Iterator[None]:
    """Hold the folder's lock; the system frees it even where the process is killed."""
    import filelock

    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(run.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            text = f"another process is at {run.folder}: waiting for it to end"
            run.emit(Note(name="", text=text))
            lock.acquire(poll_interval=0.2)
    except OSError as error:
        raise disk_error(run.folder, error) from error
    try:
        for path in _litter(run.folder):
            remove(path)
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """End on SIGTERM as on Ctrl-C: threads stopped, temporary folders removed."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _in_threads(
    run: _Run, todo: list[RemoteFile], parallel: int, work: Callable[[RemoteFile], None]
) -> None:
    """Do `work` for each file; the first error stops all and is raised.

    Plain daemon threads rather than an executor, whose threads are joined at exit: one that hangs
    in a name look-up must not keep an interrupted process alive.
    """
    waiting: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
    for file in todo:
        waiting.put(file)
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def loop() -> None:
        try:
            while not run.stop.is_set():
                try:
                    file = waiting.get_nowait()
                except queue.Empty:
                    break
                work(file)
        except BaseException as error:
            # Once all are told to stop, an error is but an echo of that.
            ended.put(_Stopped() if run.stop.is_set() else error)
        else:
            ended.put(None)

    threads = [
        threading.Thread(target=loop, name=f"download-{i}", daemon=True)
        for i in range(min(parallel, len(todo)))
    ]
    try:
        for thread in threads:
            thread.start()
        for _ in threads:
            # A wait with a timeout lets signals through on every platform.
            while True:
                with contextlib.suppress(queue.Empty):
                    error = ended.get(timeout=0.2)
                    break
            if isinstance(error, _DisplayFailed):
                raise error.cause
            if isinstance(error, OSError):
                raise disk_error(run.folder, error) from error
            if error is not None:
                raise error
    except BaseException:
        _halt(run)
        deadline = time.monotonic() + 1.0
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        raise


def _halt(run: _Run) -> None:
    """Wake every thread, also those that wait for bytes."""
    run.stop.set()
    with run.lock:
        for response in run.responses:
            # The response may just have ended by itself.
            with contextlib.suppress(Exception):
                response.raw.shutdown()


def pause(stop: threading.Event, seconds: float) -> None:
    """Wait, but not beyond the run's end."""
    if stop.wait(seconds):
        raise _Stopped


# -- one file -------------------------------------------------------------------------------------


def _fetch_and_place(run: _Run, file: RemoteFile) -> None:
    run.archives.mkdir(parents=True, exist_ok=True)
    target, part = run.archives / file.name, _part(run, file)
    digest = ""
    if target.is_file():
        # Verified by a run that was killed before it was unpacked, or put there by hand.
        try:
            digest = _verify(run, file, target)
        except DataError as error:
            if not run.bases:
                raise
            run.note(file, f"{error.message}; fetching it again")
            target.unlink()
    if not digest:
        digest = _obtain(run, file)
        with part.open("rb+") as handle:
            os.fsync(handle.fileno())
        part.replace(target)
        sync_folder(run.archives)
    url = str(_sidecar(part).get("url", ""))
    try:
        _place(run, file, target, digest, url)
    except ArchiveError:
        # Not to be taken for whole by the next run.
        remove(target)
        raise
    # Now, not at the end: the room may be needed for the next file.
    for path in _leftovers(run.folder, (file,)):
        remove(path)


def _obtain(run: _Run, file: RemoteFile) -> str:
    """A whole and verified `.part`; its SHA-256."""
    for last in (False, True):
        resumed = _transfer(run, file)
        try:
            return _verify(run, file, _part(run, file))
        except DataError as error:
            remove(_part(run, file))
            if last or not resumed:
                raise
            # Pieces of several attempts, perhaps of several versions: give it one clean chance.
            run.note(file, f"{error.message}; starting again from zero")
    raise AssertionError


def _place(run: _Run, file: RemoteFile, path: Path, digest: str, url: str) -> None:
    """Unpack or move a verified file to where it is used, then record it."""
    size = _size(path)
    if file.is_zip:
        stem = file.name.removesuffix(".zip")
        inside = extract(path, run.folder / stem, progress=run.step(file.name, "unpack"))
        contents = {f"{stem}/{name}": count for name, count in inside.items()}
    else:
        with path.open("rb+") as handle:
            os.fsync(handle.fileno())
        path.replace(run.folder / file.name)
        sync_folder(run.folder)
        contents = {file.name: size}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    _record(
        run,
        file,
        {
            "url": url,
            "size": size,
            "sha256": digest,
            "expected": file.checksum,
            "archive_kept": run.keep_archives,
            "time": now,
            "contents": contents,
        },
    )


def _verify(run: _Run, file: RemoteFile, path: Path) -> str:
    """Compare size, checksum and structure with what is known; the file's SHA-256 in hex.

    Raises:
        DataError: with the expected and the actual value.
    """
    size = _size(path)
    if file.size is not None and size != file.size:
        _mismatch(run, file, path, "size in bytes", f"{file.size}", f"{size}")
    kind, _, expected = file.checksum.partition(":")
    digests = {"sha256": hashlib.sha256()}
    if kind:
        digests.setdefault(kind, hashlib.new(kind, usedforsecurity=False))
    meter, done = run.step(file.name, "verify"), 0
    try:
        with path.open("rb") as handle:
            while chunk := handle.read(1 << 20):
                for digest in digests.values():
                    digest.update(chunk)
                done += len(chunk)
                meter(done, size)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", fix="check the disk") from error
    if kind and digests[kind].hexdigest() != expected:
        _mismatch(run, file, path, kind, expected, digests[kind].hexdigest())
    if file.is_zip:
        check(path)
    elif not kind:
        _check_table(path)
    return digests["sha256"].hexdigest()


def _check_table(path: Path) -> None:
    """Raise `DataError` where a CSV that nothing vouches for is another kind of file."""
    with path.open("rb") as file:
        line = file.readline(4096).decode("utf-8-sig", "replace").strip()
    if not line.lower().startswith("image") or "," not in line:
        raise DataError(
            f"{path} is no table of images: it begins with {line[:60]!r}",
            fix="fetch it again, or from another source with --mirror URL",
        )


def _mismatch(
    run: _Run, file: RemoteFile, path: Path, what: str, expected: str, actual: str
) -> None:
    """Raise, or warn where the expected value rests on one source and the user accepts that."""
    text = f"{path} has another {what}: expected {expected}, got {actual}"
    if not file.single_source:
        raise DataError(text, fix="fetch it again, or from another source with --mirror URL")
    text += "; a single source gives the expected value"
    if not run.accept_checksum:
        raise DataError(
            text,
            fix="fetch it again; if it stays so and you trust the source, --accept-checksum "
            "accepts it",
        )
    run.note(file, f"{text}, accepted", warning=True)


# -- over HTTP ------------------------------------------------------------------------------------


def _sidecar_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _sidecar(part: Path) -> dict[str, Any]:
    """Where the bytes of `part` come from: url, etag, last_modified, total."""
    try:
        stored = json.loads(_sidecar_path(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _transfer(run: _Run, file: RemoteFile) -> bool:
    """Bring `file` into its `.part`, from the first address that gives it.

    Returns:
        Whether any of its bytes come from an earlier attempt.
    """
    import requests

    reasons = []
    with requests.Session() as session:
        session.headers.update({"Accept-Encoding": "identity", "User-Agent": "biigma"})
        for base in run.bases:
            url = f"{base}/{file.path}"
            try:
                return _from_address(run, file, session, url)
            except _Unusable as error:
                reasons.append(f"{without_password(url)}: {error}")
                if base != run.bases[-1]:
                    run.note(file, f"{reasons[-1]}; trying the next address")
    raise DataError(
        "\n  ".join([f"cannot download {file.name}:", *reasons]),
        fix="run again later: it goes on where it stopped; or fetch it by other means "
        "(--list-urls) and use --from DIR",
    )


def _from_address(run: _Run, file: RemoteFile, session: requests.Session, url: str) -> bool:
    """`_attempt` until it succeeds or brings nothing more."""
    part = _part(run, file)
    furthest, failures = _size(part), 0
    while True:
        try:
            return _attempt(run, file, session, url)
        except _Retry as error:
            now = _size(part)
            # Only what the file never had counts as progress: a line that always drops, or a
            # server that always starts at zero, must come to an end.
            failures = 0 if now > furthest else failures + 1
            furthest = max(furthest, now)
            if failures >= ATTEMPTS or (error.fatal_if_new and furthest == 0):
                tries = f" ({failures} attempts without progress)" if failures > 1 else ""
                raise _Unusable(f"{error}{tries}") from error
            wait = min(BACKOFF_CAP_S, BACKOFF_S * 2 ** max(0, failures - 1))
            wait *= random.uniform(0.5, 1.0)
            if error.after is not None:
                wait = min(RETRY_AFTER_CAP_S, max(0.0, error.after))
            run.note(file, f"{error}; trying again in {wait:.0f} s, from {human(now)} on")
            pause(run.stop, wait)


def _attempt(run: _Run, file: RemoteFile, session: requests.Session, url: str) -> bool:
    """One request; returns whether bytes that were there before were kept.

    Raises:
        _Retry, _Unusable: as the answer deserves.
    """
    part = _part(run, file)
    offset, side = _size(part), _sidecar(part)
    headers = _resume_headers(file, side, offset, url)
    if headers and offset == side.get("total"):
        return True
    response = _request(session, url, headers)
    with run.lock:
        run.responses.add(response)
    try:
        if run.stop.is_set():
            raise _Stopped
        _judge(response)
        if response.status_code in (206, 416):
            total = _continued(response, side, offset if headers else 0, part)
        else:
            total, offset = _length(response), 0
        _check_offer(run, file, total)
        if offset == 0:
            _begin(part, url, response, total)
        _receive(run, file, response, part, offset, total)
    finally:
        with run.lock:
            run.responses.discard(response)
        response.close()
    return offset > 0


def _resume_headers(
    file: RemoteFile, side: dict[str, Any], offset: int, url: str
) -> dict[str, str]:
    """Headers that ask for the rest only; none where the pieces might not fit."""
    if not offset or not (file.checksum or file.is_zip) or offset > side.get("total", offset):
        return {}
    headers = {"Range": f"bytes={offset}-"}
    etag = side.get("etag", "")
    # A weak ETag does not promise equal bytes.
    validator = etag if etag and not etag.startswith("W/") else side.get("last_modified", "")
    if validator and side.get("url") == without_password(url):
        return headers | {"If-Range": validator}
    # Another address, or one that names no version: the checksum will tell.
    return headers if file.checksum and "total" in side else {}


def _request(session: requests.Session, url: str, headers: dict[str, str]) -> requests.Response:
    """GET, with every way to fail told apart."""
    import requests
    from urllib3.exceptions import NameResolutionError

    try:
        return session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S, verify=_ca())
    except requests.exceptions.SSLError as error:
        raise _Unusable(
            f"the secure connection failed ({_plain(error)}); where a proxy or a mirror has a "
            f"certificate of its own, name its CA file in {CA_VARIABLES}"
        ) from error
    except requests.exceptions.InvalidProxyURL as error:
        raise UsageError(f"bad proxy: {error}", fix=f"look at {PROXY_VARIABLES}") from error
    except requests.exceptions.InvalidSchema as error:
        raise UsageError(
            f"{error}", fix=f"look at {PROXY_VARIABLES}; SOCKS needs: pip install requests[socks]"
        ) from error
    except requests.exceptions.ProxyError as error:
        raise _Retry(
            f"the proxy cannot be used ({_plain(error)}); look at {PROXY_VARIABLES}"
        ) from error
    except requests.exceptions.Timeout as error:
        raise _Retry("no answer in time") from error
    except requests.exceptions.ConnectionError as error:
        reason = getattr(error.args[0] if error.args else None, "reason", None)
        if isinstance(reason, NameResolutionError):
            raise _Retry(
                "its host name cannot be resolved: no network, or a proxy is needed (set "
                "HTTPS_PROXY)",
                fatal_if_new=True,
            ) from error
        raise _Retry(f"no connection ({_plain(error)})") from error
    except requests.exceptions.RequestException as error:
        raise _Unusable(_plain(error)) from error
    except OSError as error:
        # How requests says that a CA file is not there.
        raise UsageError(f"{error}", fix=f"look at {CA_VARIABLES}") from error


def _ca() -> str | bool:
    """CA file or folder; requests looks at its own two variables by itself."""
    if os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE"):
        return True
    return os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR") or True


def _judge(response: requests.Response) -> None:
    """Raise unless the answer is the file or a piece of it (or 416, judged later)."""
    hops = [r.url for r in (*response.history, response)]
    if hops[0].startswith("https:") and not all(u.startswith("https:") for u in hops):
        raise _Unusable("it redirects from https to http")
    status = response.status_code
    if status in TRANSIENT:
        raise _Retry(
            f"the server answered {status} {response.reason}",
            after=_retry_after(response.headers.get("Retry-After", "")),
        )
    if status not in (200, 206, 416):
        hint = f"; look at {PROXY_VARIABLES}" if status == 407 else ""
        raise _Unusable(f"the server answered {status} {response.reason}{hint}")
    if status == 416:
        return
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise _Unusable("a web page came in place of the file, perhaps a proxy's or log-in page")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise _Unusable("the file came re-encoded, perhaps by a proxy")


def _retry_after(text: str) -> float | None:
    """Seconds to wait, of either form of Retry-After."""
    if text.strip().isdecimal():
        return float(text)
    try:
        then = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=datetime.UTC)
    return (then - datetime.datetime.now(datetime.UTC)).total_seconds()


def _length(response: requests.Response) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _continued(
    response: requests.Response, side: dict[str, Any], offset: int, part: Path
) -> int | None:
    """Bytes of the whole file, where the answer fits what is there; else start from zero."""
    known = side.get("total")
    content_range = response.headers.get("Content-Range", "").strip()
    if response.status_code == 206 and offset:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", content_range)
        if match and int(match[1]) == offset:
            total = None if match[3] == "*" else int(match[3])
            etag = response.headers.get("ETag")
            moved = side.get("url") == without_password(response.request.url or "") and (
                etag is not None and bool(side.get("etag")) and etag != side["etag"]
            )
            length = _length(response)
            to_the_end = total is None or int(match[2]) == total - 1
            fits = length is None or length == int(match[2]) - offset + 1
            if not moved and fits and to_the_end and known in (None, total):
                return total
        why = "the file has changed meanwhile, or the piece sent does not fit"
    elif content_range == f"bytes */{offset}" and offset and known in (None, offset):
        # Nothing is left to send: the next look finds the part complete.
        write_json(_sidecar_path(part), side | {"total": offset})
        raise _Retry("the file is complete already", after=0.0)
    else:
        why = "the piece asked for cannot be had"
    remove(part)
    raise _Retry(f"{why}: starting from zero")


def _check_offer(run: _Run, file: RemoteFile, total: int | None) -> None:
    """Tell a wrong size before gigabytes of it come."""
    accepted = file.single_source and run.accept_checksum
    if total is not None and file.size is not None and total != file.size and not accepted:
        raise _Unusable(f"it offers {total} bytes, expected {file.size}")


def _begin(part: Path, url: str, response: requests.Response, total: int | None) -> None:
    """Empty the part, then say what will be in it: bytes never stand under another's name."""
    try:
        part.write_bytes(b"")
    except OSError as error:
        raise disk_error(part, error) from error
    side: dict[str, Any] = {
        "url": without_password(url),
        "etag": response.headers.get("ETag", ""),
        "last_modified": response.headers.get("Last-Modified", ""),
    }
    write_json(_sidecar_path(part), side if total is None else side | {"total": total})


def _receive(
    run: _Run,
    file: RemoteFile,
    response: requests.Response,
    part: Path,
    offset: int,
    total: int | None,
) -> None:
    """Append the body to the part; every byte that came is kept, whatever happens then."""
    from urllib3.exceptions import HTTPError

    meter = run.step(file.name, "download")
    try:
        with part.open("ab") as handle:
            while True:
                meter(offset, total)
                try:
                    # read1 hands out what has come, where read would wait for a full chunk and
                    # lose it when the line drops.
                    chunk = response.raw.read1(CHUNK, decode_content=False)
                except (HTTPError, OSError) as error:
                    raise _Retry(f"the connection broke ({_plain(error)})") from error
                if not chunk:
                    break
                handle.write(chunk)
                offset += len(chunk)
    except OSError as error:
        raise disk_error(part, error) from error
    if total is not None and offset < total:
        raise _Retry(f"the connection ended after {human(offset)} of {human(total)}")


def _plain(error: BaseException) -> str:
    """The innermost reason, without the wrappers' object addresses."""
    inner: Any = error
    for _ in range(6):
        following = getattr(inner, "reason", None)
        if not isinstance(following, BaseException):
            following = next((a for a in inner.args if isinstance(a, BaseException)), None)
        if following is None:
            break
        inner = following
    text = str(inner)
    text = re.sub(r"<[^<>]* at 0x[0-9a-f]+>:? ?", "", text)
    return text or type(inner).__name__
