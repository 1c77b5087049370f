"""`biigma eval`: figures of a model on a part it was not trained on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from biigma_cli.cli.boundary import boundary, note
from biigma_cli.cli.options import DataDirOption, DeviceOption, RunsOption

if TYPE_CHECKING:
    from rich.table import Table


@boundary
def evaluate(
    split: Annotated[
        str, typer.Option("--split", help="Part to judge on: test, val or train.")
    ] = "test",
    run: Annotated[
        Path | None, typer.Option("--run", help="Run folder; its best checkpoint is judged.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Checkpoint, exported .onnx, or name of a shipped model."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", help="Second run, checkpoint or .onnx: paired differences are added."
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Everything as JSON on stdout.")] = False,
    device: DeviceOption = "auto",
    runs: RunsOption = Path("runs"),
    data_dir: DataDirOption = None,
) -> None:
    """Judge a model on images it never saw.

    Accuracy, macro-F1, balanced accuracy and macro-precision, per class, and the confusion matrix.
    Each figure has a bootstrap interval (2,000 resamples of lesions), and the protocol stands
    above the table. Without --run and --model: the newest run in runs/, else the shipped model.
    """
    from biigma_cli.cli.progress import Progress
    from biigma_cli.data.splits import PARTS
    from biigma_cli.errors import UsageError
    from biigma_cli.runtime.session import find_model

    if split not in PARTS:
        raise UsageError(f"unknown --split {split!r}", fix=f"choose one of: {', '.join(PARTS)}")
    if run is not None and model is not None:
        raise UsageError("both --run and --model are given", fix="leave one of them out")
    if run is None and model is None:
        run = newest_run(runs)
        note(f"judging {run or 'the shipped model'}")
    if run is not None:
        path = best_checkpoint(run)
    else:
        path = Path(model or "")
        if path.suffix != ".safetensors":
            path = find_model(model)

    from biigma_cli.engine.device import pick_device
    from biigma_cli.judge import judge, open_candidate

    torch_device = pick_device(device)
    candidate = open_candidate(path, torch_device)
    second = None
    if against is not None:
        other = best_checkpoint(against) if against.is_dir() else against
        second = open_candidate(other, torch_device)

    from biigma_cli.data.datasets import load_dataset

    with Progress("drawing", "images") as drawing:
        manifest = load_dataset(candidate.data, progress=drawing)
    with Progress("decoding", "images") as decoding, Progress("judging", "images") as running:
        result = judge(
            candidate, manifest, split, against=second, decoding=decoding, running=running,
            warn=note,
        )  # fmt: skip
    if run is not None:
        from biigma_cli.storage import write_json

        write_json(run / f"eval-{split}.json", result)
    if json_:
        import json

        typer.echo(json.dumps(result, indent=2))
    else:
        typer.echo(_tables(result), nl=False)
    if run is not None:
        note(f"saved in {run / f'eval-{split}.json'}")


def newest_run(runs: Path) -> Path | None:
    """The run with the newest best checkpoint, or None."""
    found = list(runs.glob("*/weights/best.safetensors"))
    return max(found, key=lambda p: p.stat().st_mtime).parent.parent if found else None


def best_checkpoint(run: Path) -> Path:
    """Best checkpoint of a run folder. Raises `UsageError` where there is none."""
    from biigma_cli.errors import UsageError

    path = run / "weights" / "best.safetensors"
    if not path.is_file():
        raise UsageError(
            f"{run} has no weights/best.safetensors", fix="name a run folder made by biigma train"
        )
    return path


def _tables(result: dict[str, Any]) -> str:
    from biigma_cli.metrics import ClassFigures, Figures, Interval
    from biigma_cli.report.tables import (
        class_table,
        confusion_table,
        headline_table,
        render,
        table_width,
    )
    from biigma_cli.taxonomy import lesion_class

    names = {c["code"]: lesion_class(c["code"]).name for c in result["per_class"]}
    figures = Figures(
        **{k: result[k] for k in ("n", "accuracy", "macro_f1", "macro_recall", "macro_precision",
                                  "confusion", "absent")},
        per_class=tuple(ClassFigures(**c) for c in result["per_class"]),
    )  # fmt: skip
    items: list[Table | str] = [
        f"model:    {result['model']}",
        f"protocol: {result['protocol']}",
        f"part:     {result['part']}, {result['n']} images",
        headline_table(
            {k: Interval(**v) for k, v in result["intervals"].items()},
            title=f"{result['part']} part; {result['bootstrap']}",
        ),
        class_table(figures, names),
        confusion_table(figures),
    ]
    if "against" in result:
        items.append(
            headline_table(
                {k: Interval(**v) for k, v in result["against"]["difference"].items()},
                title=f"difference to {result['against']['model']} (this minus that, paired)",
            )
        )
    if figures.absent:
        items.append(f"not in this part, left out of macro averages: {', '.join(figures.absent)}")
    tty = sys.stdout.isatty()
    return render(*items, width=table_width(tty=tty), colour=tty)
