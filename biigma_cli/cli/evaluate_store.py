"""`biigma eval --store`: an exported file's own figures, kept in it and in its card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from biigma_cli.cli.boundary import note

if TYPE_CHECKING:
    from biigma_cli.judge import Judgement


def check_store(path: Path, split: str, *, tta: bool, resamples: int) -> None:
    """Whether figures of this judgement can be kept in `path`.

    Raises:
        UsageError: it is no exported file, or the figures are not those it should state.
        BiigmaError: it or its card cannot be written.
    """
    from biigma_cli.errors import UsageError
    from biigma_cli.storage import check_writable

    if path.suffix.lower() != ".onnx":
        raise UsageError(
            f"--store: {path} is no exported file",
            fix="figures of a run are kept in its folder anyway; for those of its export run "
            "'biigma eval --model FILE.onnx --store'",
        )
    if split == "train":
        raise UsageError(
            "--store: figures on images it was trained on say nothing of others",
            fix="choose --split test or --split val",
        )
    if tta or not resamples:
        raise UsageError(
            f"--store keeps figures of one view with their intervals, not those of "
            f"{'--tta' if tta else '--resamples 0'}",
            fix="leave one of the two out",
        )
    check_writable(path)
    if (card := path.with_suffix(".md")).is_file():
        check_writable(card)


def store(path: Path, judged: Judgement) -> list[Path]:
    """Keep the figures in the file and in the card beside it, where there is one.

    Returns:
        what was written.
    """
    from biigma_cli.report.card import replace_figures
    from biigma_cli.runtime.stored import store_figures
    from biigma_cli.storage import atomic_write_text

    stated = judged.stated if judged.part == "val" else None
    metadata = store_figures(path, judged.part, judged.to_dict(), stated=stated)
    card = path.with_suffix(".md")
    if not card.is_file():
        return [path]
    text = replace_figures(card.read_text(encoding="utf-8"), judged.part, metadata)
    if text is None:
        note(f"{card} has no section for figures: it stays as it was")
        return [path]
    atomic_write_text(card, text)
    return [path, card]
