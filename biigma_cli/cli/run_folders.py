"""Runs by path or by name."""

from __future__ import annotations

from pathlib import Path

from biigma_cli.storage import is_there


def newest_run(runs: Path) -> Path | None:
    """The run with the newest best checkpoint, or None."""
    found = list(runs.glob("*/weights/best.safetensors"))
    return max(found, key=lambda p: p.stat().st_mtime).parent.parent if found else None


def run_folder(run: Path, runs: Path = Path("runs")) -> Path:
    """A run given by its folder, else by its name in `runs`; as given where it is neither."""
    return runs / run if not is_there(run) and (runs / run).is_dir() else run


def best_checkpoint(run: Path) -> Path:
    """Best checkpoint of a run folder. Raises `UsageError` where there is none."""
    from biigma_cli.errors import UsageError

    path = run / "weights" / "best.safetensors"
    if not path.is_file():
        raise UsageError(
            f"{run} has no weights/best.safetensors",
            fix="name a run made by biigma train; biigma runs lists them",
        )
    return path
