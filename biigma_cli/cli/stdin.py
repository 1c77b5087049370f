"""Standard input as a command reads it."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from biigma_cli.runtime.inputs import Source


def open_stdin() -> BinaryIO:
    """Standard input, unbuffered: a thread that waits in its buffer would trouble the exit."""
    if sys.stdin is None:
        from biigma_cli.errors import UsageError

        raise UsageError("standard input is closed", fix="name files instead of -")
    try:
        return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)
    except (OSError, ValueError, AttributeError):  # no file behind it
        return sys.stdin.buffer


def is_stdin(path: Path) -> bool:
    """Whether standard input is read from a file, and `path` is that file."""
    try:
        own = os.fstat(sys.stdin.fileno())
        return stat.S_ISREG(own.st_mode) and os.path.samestat(own, path.stat())
    except (OSError, ValueError, AttributeError):  # closed, or no file behind it
        return False


def any_of(sources: Iterator[Source], file: str = "") -> Iterator[Source]:
    """What standard input or the list `file` gives, which must not be nothing."""
    from biigma_cli.errors import DataError

    empty = True
    for source in sources:
        empty = False
        yield source
    if empty and file:
        raise DataError(f"no name in {file}", fix="give it names of files, one a line")
    if empty:
        raise DataError(
            "no image and no name on standard input", fix="give it an image, or names of files"
        )
