"""Entry point of `biigma` and `python -m biigma_cli`."""

from __future__ import annotations

import os
import sys

from biigma_cli.errors import EXIT_FAILURE, EXIT_USAGE


def main() -> None:
    """Run the command line."""
    from biigma_cli.cli.app import command_line
    from biigma_cli.cli.boundary import note, output_lost

    try:
        command_line(sys.argv[1:])(prog_name="biigma")
    except SystemExit as end:
        named = next((a for a in sys.argv if a.startswith("-") and os.path.isfile(a)), None)  # noqa: PTH113
        if end.code == EXIT_USAGE and named and "--" not in sys.argv:
            note(f"fix:   for the file {named} write ./{named}")
        raise
    except OSError as error:  # of --help and --version, which are no commands
        if not output_lost(error):
            raise
        sys.exit(EXIT_FAILURE)


def entry() -> None:
    """`main`, left at once where nothing is left to do.

    Taking ONNX Runtime and all modules apart again is a seventh of the time of one prediction.
    """
    # Closed by whoever started us. What is written to standard output must fail, not go astray in
    # the file that is opened next.
    if sys.stdout is None:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 1)
        sys.stdout = open(1, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
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
