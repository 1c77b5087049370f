"""`biigma ablate`: the paper's Table 2, our recipe or the shortcut test, over several seeds."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from biigma_cli.cli.boundary import boundary, note
from biigma_cli.cli.options import AllowMissingOption, DataDirOption, DeviceOption, RunsOption

if TYPE_CHECKING:
    import torch

    from biigma_cli.data.manifest import Manifest
    from biigma_cli.judge.study import Kind, Planned, Study
    from biigma_cli.report.ablation import Ablation


@boundary
def ablate(
    table2: Annotated[
        bool, typer.Option("--table2", help="The rows of the paper's Table 2, and ours.")
    ] = False,
    recipe: Annotated[
        bool,
        typer.Option(
            "--recipe",
            help="Each choice of our own recipe taken back, or another put in its place; judged on "
            "validation.",
        ),
    ] = False,
    shortcut: Annotated[
        bool,
        typer.Option(
            "--shortcut",
            help="Train on synthetic images whose background tells the class; judge with that "
            "bias kept, gone and reversed. 8 epochs, the hybrid branch after 2.",
        ),
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="Recipe that the row 'full' is.  [default: paper-light; of --recipe light]",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="Not of --shortcut.  [default: the preset's, isic18]"),
    ] = None,
    seeds: Annotated[
        str,
        typer.Option("--seeds", help="Each of the training and of the split (or the drawn data)."),
    ] = "1,2,3",
    rows: Annotated[
        str, typer.Option("--rows", help="Names, such as baseline,full.", show_default="all")
    ] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting, for all rows."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help="Backbone: imagenet, none, or a file.  [default: the preset's; with --no-train "
            "that of the runs]",
        ),
    ] = None,
    background_bias: Annotated[
        float,
        typer.Option(
            "--background-bias",
            metavar="R",
            help="Of --shortcut: probability that class and background agree in training.",
        ),
    ] = 0.9,
    split: Annotated[
        str, typer.Option("--split", help="Part that --table2 is judged on: test or val.")
    ] = "test",
    no_train: Annotated[
        bool, typer.Option("--no-train", help="Only judge and tabulate what is there.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the runs, and what is left to do, and stop.")
    ] = False,
    allow_missing: AllowMissingOption = False,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            help="Folder in --runs.  [default: ablation- (or recipe-) and the data set, or "
            "shortcut-synthetic]",
        ),
    ] = None,
    device: DeviceOption = "auto",
    runs: RunsOption = Path("runs"),
    data_dir: DataDirOption = None,
) -> None:
    """Train, judge and compare the network with parts of it left out.

    Each row and seed is a run of its own in runs/NAME/ROW-sSEED: finished ones are taken,
    interrupted ones resumed, missing ones trained. A seed is that of the split, too, so rows are
    compared on the same images. The table, mean and spread over seeds and the paired difference,
    goes to stdout and with a figure to runs/NAME. A diverged run is kept as failed, and the rest
    goes on (exit 5). Published values are by another protocol, which stands with them.
    """
    from biigma_cli.errors import UsageError
    from biigma_cli.storage import check_writable

    kinds: dict[Kind, bool] = {"table2": table2, "recipe": recipe, "shortcut": shortcut}
    asked = [kind for kind, wanted in kinds.items() if wanted]
    if len(asked) != 1:
        raise UsageError(
            "what is to be ablated?", fix="give --table2, --recipe or --shortcut, one of them"
        )
    (kind,) = asked
    if split not in ("test", "val"):
        raise UsageError(f"unknown --split {split!r}", fix="choose test or val")
    if kind != "table2" and split != "test":
        raise UsageError("--split is for --table2", fix="leave it out")

    from biigma_cli.judge.ablation import check_settings, stored_weights
    from biigma_cli.judge.study import PRESETS, make_study, plan

    if name is None:
        from biigma_cli.config import preset as preset_of

        own = dataset or preset_of(preset or PRESETS[kind]).data.dataset
        first = "recipe" if kind == "recipe" else "ablation"
        name = "shortcut-synthetic" if kind == "shortcut" else f"{first}-{own}"
    folder = runs / name
    if weights is None and no_train:
        weights = stored_weights(folder)
    study = make_study(
        kind, folder=folder, preset_name=preset, dataset=dataset, settings=set_ or [],
        weights=weights, background_bias=background_bias, rows=rows, seeds=seeds, part=split,
    )  # fmt: skip
    planned = plan(study)
    check_settings(planned)
    if dry_run:
        _show_plan(study, planned)
        return
    check_writable(folder / "table.csv")

    from biigma_cli.engine.device import pick_device

    notes = _work(
        study, planned, pick_device(device), train=not no_train, allow_missing=allow_missing
    )
    _report(study, notes)


def _work(
    study: Study,
    planned: Sequence[Planned],
    device: torch.device,
    *,
    train: bool,
    allow_missing: bool,
) -> dict[Path, str]:
    """Train and judge what is left; returns why runs are not finished, by folder."""
    from biigma_cli.errors import Interrupted
    from biigma_cli.judge.ablation import judge_run, stored_judgement
    from biigma_cli.report.runs import read_run

    notes: dict[Path, str] = {}
    for i, p in enumerate(planned, 1):
        at = f"{p.row.name}, seed {p.seed} ({i} of {len(planned)})"
        if train and not read_run(p.path).finished:
            note(f"training {at}")
            try:
                why = _train(study, p, device, allow_missing=allow_missing)
            except Interrupted as error:
                raise Interrupted(
                    f"{at}: {error.message}",
                    fix=f"go on with the same command: {shlex.join(['biigma', *sys.argv[1:]])}",
                    exit_code=error.exit_code,
                ) from error
            if why:
                note(f"{p.row.name}, seed {p.seed}: {why}")
                notes[p.path] = why
        if not read_run(p.path).finished:
            continue
        for condition in study.conditions:
            if stored_judgement(p, condition) is not None:
                continue
            note(f"judging {at}, {condition.title}")
            with ExitStack() as stack:
                judge_run(
                    p, condition, device=device, load=_load, warn=note,
                    decoding=_bar(stack, "decoding"), running=_bar(stack, "judging"),
                )  # fmt: skip
    return notes


def _bar(stack: ExitStack, title: str) -> Callable[[int, int], None]:
    """Progress whose clock starts with its work."""
    from biigma_cli.cli.progress import Progress

    shown: list[Progress] = []

    def report(done: int, total: int) -> None:
        if not shown:
            shown.append(stack.enter_context(Progress(title, "images")))
        shown[0](done, total)

    return report


def _load(data: object) -> Manifest:
    """The data set, drawn first where it is synthetic."""
    from biigma_cli.cli.progress import Progress
    from biigma_cli.config import DataConfig
    from biigma_cli.data.datasets import load_dataset

    assert isinstance(data, DataConfig)
    with Progress("drawing", "images") as drawing:
        return load_dataset(data, progress=drawing)


def _train(study: Study, planned: Planned, device: torch.device, *, allow_missing: bool) -> str:
    """Finish one run; returns why it is not finished, "" where it is."""
    from biigma_cli.cli.training_display import TrainingDisplay
    from biigma_cli.engine.interrupt import stop_on_signals
    from biigma_cli.errors import DataError
    from biigma_cli.judge.ablation import complete
    from biigma_cli.report.curves import draw_curves

    manifest = _load(planned.config.data)
    if manifest.missing and not allow_missing:
        raise DataError(
            f"{manifest.missing} of the {manifest.missing + len(manifest.records)} labelled images "
            f"of {manifest.dataset} are not on this machine",
            fix="complete it, or train on the rest with --allow-missing",
        )
    with TrainingDisplay(planned.path) as display, stop_on_signals() as stop:
        why = complete(study, planned, manifest, device=device, stop=stop, on_event=display)
    if not why:
        draw_curves(planned.path)
    return why


def _show_plan(study: Study, planned: Sequence[Planned]) -> None:
    from biigma_cli.cli.progress import clock
    from biigma_cli.judge.ablation import failure, progress_of, stored_judgement
    from biigma_cli.judge.study import train_arguments
    from biigma_cli.report.runs import read_run

    seconds, left = [], 0
    for p in planned:
        info = read_run(p.path)
        if info.finished:
            judged = all(stored_judgement(p, c) is not None for c in study.conditions)
            state = "finished, judged" if judged else "finished, not judged"
            if info.seconds is not None:
                seconds.append(info.seconds)
        elif failure(p.path):
            state = f"failed: {failure(p.path)}"
        else:
            left += 1
            begun = bool(info.settings)
            state = f"unfinished, {progress_of(info)}" if begun else "not trained"
        typer.echo(f"{p.path}: {state}")
        if not info.settings:
            typer.echo(f"  {shlex.join(['biigma', *train_arguments(study, p)])}")
    typer.echo(f"{len(planned)} runs, {left} to train")
    if seconds and left:
        mean = sum(seconds) / len(seconds)
        typer.echo(f"finished ones took {clock(mean)} on average: about {clock(left * mean)} to go")


def _report(study: Study, notes: dict[Path, str]) -> None:
    from biigma_cli.errors import PartialFailure
    from biigma_cli.judge.ablation import collect
    from biigma_cli.report.ablation import ablation_tables, draw_ablation, to_csv, to_markdown
    from biigma_cli.report.tables import render, table_width
    from biigma_cli.storage import atomic_write_text

    found = collect(study, notes)
    atomic_write_text(study.folder / "table.csv", to_csv(found))
    atomic_write_text(study.folder / "table.md", to_markdown(found))
    for kind in ("svg", "png"):
        draw_ablation(found, study.folder / f"figure.{kind}")
    tty = sys.stdout.isatty()
    items = ablation_tables(found)
    typer.echo(render(*items, width=table_width(tty=tty), colour=tty), nl=False)
    note(f"saved in {study.folder}: table.csv, table.md, figure.svg, figure.png")
    failed = _failed(found)
    if failed:
        done, planned = found.counts
        raise PartialFailure(
            f"{done} of {planned} runs judged; failed: {', '.join(failed)}",
            fix="see the notes under the table; to train one again, remove its folder",
        )


def _failed(found: Ablation) -> list[str]:
    shown = {row.name for row in found.rows}
    return [
        f"{row.same_as or row.name}-s{seed}"
        for row in found.rows
        if row.same_as not in shown
        for seed, why in row.lacking.items()
        if why.startswith("failed")
    ]
