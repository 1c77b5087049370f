"""Entry point of `biigma` and `python -m biigma_cli`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    from biigma_cli.cli.app import command_line

    command_line(sys.argv[1:])(prog_name="biigma")


if __name__ == "__main__":
    main()
