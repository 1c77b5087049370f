"""The one place where errors become messages and exit codes."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec

import typer

from biigma_cli.cli.progress import takes_escapes
from biigma_cli.errors import EXIT_FAILURE, EXIT_INTERRUPTED, BiigmaError

P = ParamSpec("P")
# What a write is refused with for want of space.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def boundary(function: Callable[P, None]) -> Callable[P, None]:
    """A command whose `BiigmaError`s and Ctrl-C end in one message on stderr and an exit code."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        from biigma_cli.storage import using_home

        try:
            with using_home(kwargs.get("data_dir")):  # type: ignore[arg-type]
                function(*args, **kwargs)
            sys.stdout.flush()
        except BiigmaError as error:
            say_error(error)
            raise typer.Exit(error.exit_code) from None
        except Ended as end:
            print(f"interrupted by {end}", file=sys.stderr)  # noqa: T201
            raise typer.Exit(128 + end.signum) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)  # noqa: T201
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except OSError as error:
            if not output_lost(error):
                raise
            raise typer.Exit(EXIT_FAILURE) from None

    return wrapped


def output_lost(error: OSError) -> bool:
    """Whether standard output cannot be written; says so, but where its reader has gone (`| head`).

    What writes files has its own messages.
    """
    from biigma_cli.storage import stdout_closed

    gone = isinstance(error, BrokenPipeError)
    closed = error.errno == errno.EBADF and stdout_closed()
    if not gone and not closed and error.errno not in _FULL:
        return False
    # Let the final flush say nothing.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not gone:
        reason = "it is closed" if closed else error.strerror
        fix = (
            "redirect it to a file, or to /dev/null"
            if closed
            else "free some space, or write elsewhere"
        )
        say_error(BiigmaError(f"cannot write standard output: {reason}", fix=fix))
    return True


class Ended(KeyboardInterrupt):
    """SIGTERM or SIGHUP; with 128 added its number is the exit code, as a shell gives."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Ended`, so that the work ends as on Ctrl-C; further ones are
    ignored.

    One that is ignored already (`nohup`) stays ignored. Outside the main thread nothing is
    installed, for Python delivers signals there alone.
    """
    terminals = [s.fileno() for s in (sys.stdout, sys.stderr) if s is not None and s.isatty()]
    taken: list[int] = []

    def handler(signum: int, _: object) -> None:
        for number in taken:
            signal.signal(number, signal.SIG_IGN)
        for number in terminals:
            if not os.isatty(number):  # closed, and whatever is said there is an error
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        raise Ended(signum)

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, handler)
                taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def say_error(error: BiigmaError) -> None:
    """`error: ...` and `fix: ...` on stderr, in colour on a terminal."""
    bold, dim, off = ("\033[1;31m", "\033[2m", "\033[0m") if _colour() else ("", "", "")
    print(f"{bold}error:{off} {error.message}", file=sys.stderr)  # noqa: T201
    if error.fix:
        print(f"{dim}fix:{off}   {error.fix}", file=sys.stderr)  # noqa: T201


def note(text: str) -> None:
    """One line on stderr, where it does not mix with results."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def _colour() -> bool:
    return takes_escapes(sys.stderr) and "NO_COLOR" not in os.environ
