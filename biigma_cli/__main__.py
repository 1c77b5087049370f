"""Entry point of `biigma` and `python -m biigma_cli`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line."""
    from biigma_cli.cli.app import command_line

    command_line(sys.argv[1:])(prog_name="biigma")


def entry() -> None:
    """`main`, left at once where nothing is left to do.

    Taking ONNX Runtime and all modules apart again is a seventh of the time of one prediction.
    """
    if sys.stderr is None:  # closed by whoever started us
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    try:
        main()
    except SystemExit as end:
        if sys.argv[1:2] == ["predict"] and isinstance(end.code, int | None):
            _leave(end.code or 0)
        raise


def _leave(code: int) -> None:
    """End the process, its output written; not where threads or workers are to be waited for."""
    import atexit
    import threading

    if "ray" in sys.modules or any(
        t is not threading.current_thread() and not t.daemon for t in threading.enumerate()
    ):
        return
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # closed by whoever started us
                stream.flush()
    except (OSError, ValueError):  # the interpreter's own way says so
        return
    os._exit(code)


if __name__ == "__main__":
    entry()
