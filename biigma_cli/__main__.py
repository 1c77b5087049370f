"""Entry point of `biigma` and `python -m biigma_cli`."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from biigma_cli.cli.app import app

    app(prog_name="biigma")


if __name__ == "__main__":
    main()
