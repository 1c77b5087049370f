"""SIGINT and SIGTERM as a request that is answered between two steps."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """Whether somebody asked for the work to stop.

    Attributes:
        signum: the signal's number; None while nobody asked.
    """

    def __init__(self) -> None:
        self.signum: int | None = None

    def __bool__(self) -> bool:
        return self.signum is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as a shell gives."""
        return 128 + (self.signum or signal.SIGINT)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """SIGINT and SIGTERM set the request; a second SIGINT raises `KeyboardInterrupt` at once.

    Second means at least two seconds later: a launcher passes on what a terminal has sent to all.

    A signal that is ignored (a job in the background of a shell) stays ignored. Outside the main
    thread nothing is installed, for Python delivers signals there alone.
    """
    stop = StopRequest()

    asked_at = 0.0

    def handler(signum: int, _: FrameType | None) -> None:
        nonlocal asked_at
        if not stop:
            stop.signum, asked_at = signum, time.monotonic()
        elif signum == signal.SIGINT and time.monotonic() - asked_at > 2:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {}
    for signum in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            before[signum] = signal.signal(signum, handler)
    try:
        yield stop
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)
