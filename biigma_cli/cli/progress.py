"""Progress on stderr: a live bar with rate and ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Self, TextIO


def is_dumb() -> bool:
    """Whether the terminal says of itself that it knows no colours and rewrites no line."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def takes_escapes(stream: TextIO) -> bool:
    """Whether a stream is a terminal that has colours and lines that are written anew."""
    return stream.isatty() and not is_dumb()


class Progress:
    """One task of known length.

    Args:
        title: what is being done.
        unit: what is counted, such as `images`.
        every: seconds between plain lines where stderr is no terminal.
    """

    def __init__(self, title: str, unit: str, *, every: float = 10.0) -> None:
        self.title = title
        self.unit = unit
        self.every = every
        self.live = takes_escapes(sys.stderr)
        self.started = time.monotonic()
        self.shown = self.started if not self.live else 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self.shown < (0.1 if self.live else self.every):
            return
        self.shown = now
        rate = done / max(now - self.started, 1e-9)
        left = clock((total - done) / rate) if rate else "?"
        line = f"{self.title}: {done}/{total} {self.unit}, {rate:.0f}/s, {left} left"
        if self.live:
            sys.stderr.write(f"\r\033[K{line}")
        elif done < total or now - self.started > self.every:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def clear(self) -> None:
        """Take the live line away, where something else is to be written."""
        if self.live:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()


def clock(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
