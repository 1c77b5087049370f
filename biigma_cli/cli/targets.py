"""Where a command may write a model and its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from biigma_cli.errors import UsageError
from biigma_cli.storage import is_special, real_path


def check_run_name(name: str) -> None:
    """Raise `UsageError` where a run's name would not be a folder in that of the runs."""
    if not name.strip() or name in (".", "..") or PurePath(name).name != name or "\\" in name:
        raise UsageError(
            f"--name {name!r} cannot be a run's name",
            fix="give a name without slashes; the folder of runs is --runs",
        )


def check_distinct(targets: Mapping[str, Path | None], sources: Sequence[Path]) -> None:
    """Raise `UsageError` where two outputs are one file, or one is what is read.

    Args:
        targets: by option; None where it was not given.
        sources: files that are read.
    """
    read = {real_path(path) for path in sources}
    taken: dict[str, str] = {}
    for option, path in targets.items():
        if path is None:
            continue
        place = real_path(path)
        if place in read:
            raise UsageError(
                f"{option} {path} would take the place of a file that is read",
                fix="choose another name",
            )
        if place in taken:
            raise UsageError(
                f"{taken[place]} and {option} are both {path}", fix="give each a name of its own"
            )
        taken[place] = option


def check_ending(option: str, path: Path | None, *endings: str) -> None:
    """Raise `UsageError` where a file that is to be written is not named for what it will be.

    An image or a table that is named by mistake is not written over then.

    Args:
        endings: those accepted, in lower case; the first is the one advised.
    """
    if path is None or is_special(path):
        return
    if path.suffix.lower() not in endings:
        raise UsageError(
            f"{option} {path} is no {endings[0]} file", fix=f"give a name that ends in {endings[0]}"
        )


def check_targets(output: Path, card: Path | None, sources: Sequence[Path]) -> None:
    """Raise `UsageError` where what is written would take the place of something else.

    Args:
        sources: the networks that `output` is made of.
    """
    check_ending("-o", output, ".onnx")
    if real_path(output) in [real_path(path) for path in sources]:
        raise UsageError(
            f"-o {output} is one of the networks it is made of", fix="choose another name"
        )
    check_ending("--card", card, ".md", ".markdown")
