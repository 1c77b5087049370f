"""Where a command may write a model and its card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from biigma_cli.errors import UsageError


def check_targets(output: Path, card: Path | None, sources: Sequence[Path]) -> None:
    """Raise `UsageError` where what is written would take the place of something else.

    Args:
        sources: the networks that `output` is made of.
    """
    if output.suffix != ".onnx":
        raise UsageError(f"-o {output} is no .onnx file", fix="give its name that ending")
    if output.resolve() in [path.resolve() for path in sources]:
        raise UsageError(
            f"-o {output} is one of the networks it is made of", fix="choose another name"
        )
    if card is not None and card.suffix in (".onnx", ".safetensors"):
        raise UsageError(f"--card {card} would be Markdown", fix="choose a name that ends in .md")
