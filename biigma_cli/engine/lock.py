"""One training at a time in a run folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock

from biigma_cli.errors import RunBusy
from biigma_cli.storage import write_error

LOCK = ".lock"


@contextlib.contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold a run folder, made where it is not there; freed by the system after a kill, too.

    Raises:
        RunBusy: another process holds it.
        BiigmaError: it cannot be written.
    """
    lock = filelock.FileLock(run / LOCK)
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise RunBusy(
            f"{run} is being trained by another process",
            fix="wait until that has ended, or stop it; or choose another --name",
        ) from None
    except OSError as error:
        raise write_error(run, error, elsewhere="choose another folder with --runs") from error
    try:
        yield
    finally:
        # Where nothing came of it, nothing is left; while it is still held, so that no other can
        # have begun in between.
        with contextlib.suppress(OSError):
            if [p.name for p in run.iterdir()] == [LOCK]:
                (run / LOCK).unlink()
                for folder in made:
                    folder.rmdir()
        lock.release()
