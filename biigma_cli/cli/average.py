"""`biigma average`: a network between two of one lineage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from biigma_cli.cli.boundary import boundary, note
from biigma_cli.cli.options import DataDirOption, DeviceOption, RunsOption


@boundary
def average(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="Run folder, or its checkpoint.")],
    second: Annotated[
        Path, typer.Argument(metavar="SECOND", help="A run begun from it, with train.init.")
    ],
    name: Annotated[str, typer.Option("--name", help="Run folder that is written.")],
    share: Annotated[
        list[float] | None,
        typer.Option(
            "--share",
            help="Of the second's weights, from 0 to 1; given several times, validation chooses.  "
            "[default: 0, 0.25, 0.5, 0.75, 1]",
        ),
    ] = None,
    select: Annotated[
        str, typer.Option("--select", help="What validation chooses by: macro_f1 or log_loss.")
    ] = "macro_f1",
    device: DeviceOption = "auto",
    runs: RunsOption = Path("runs"),
    data_dir: DataDirOption = None,
) -> None:
    """Average the weights of two runs, as the validation part says.

    The share of each is chosen there. For a network that was trained further for other pictures
    (--set data.extra, strong augmentation): between the two lies one that keeps most of both. The
    test part is not looked at.
    """
    from biigma_cli.cli.progress import Progress
    from biigma_cli.cli.run_folders import best_checkpoint, run_folder
    from biigma_cli.cli.targets import check_run_name
    from biigma_cli.cli.train import command_given
    from biigma_cli.config import to_toml
    from biigma_cli.core.weights import load_checkpoint, save_checkpoint
    from biigma_cli.data.datasets import load_dataset
    from biigma_cli.data.images import load_part
    from biigma_cli.data.splits import check_same_split, make_split
    from biigma_cli.engine.device import pick_device
    from biigma_cli.engine.interpolate import (
        average_meta,
        best_of,
        between,
        check_alike,
        judge_shares,
    )
    from biigma_cli.engine.provenance import run_of
    from biigma_cli.errors import UsageError
    from biigma_cli.storage import atomic_write_text, without_folders

    shares = share or [0, 0.25, 0.5, 0.75, 1]
    if not all(0 <= s <= 1 for s in shares):
        raise UsageError("--share lies outside 0 to 1", fix="give shares such as --share 0.5")
    if select not in ("macro_f1", "log_loss"):
        raise UsageError(f"unknown --select {select!r}", fix="choose macro_f1 or log_loss")
    check_run_name(name)
    run = runs / name
    if any((run / "weights").glob("*.safetensors")):
        raise UsageError(f"{run} holds a run already", fix="choose another --name")
    place = pick_device(device)
    given = [run_folder(p, runs) for p in (first, second)]
    paths = [best_checkpoint(p) if p.is_dir() else p for p in given]
    early, late = (load_checkpoint(p) for p in paths)
    names = (without_folders(str(first)), without_folders(str(second)))
    check_alike(early, late, names)
    own = early.meta.get("command", "")
    if own and own not in [a.get("command") for a in late.meta.get("ancestors", [])]:
        note(
            f"warning: {names[1]} does not say that it was begun from {names[0]}; between networks "
            "of different beginnings lies none that is good"
        )
    data = late.config.data
    manifest = load_dataset(data)
    split = make_split(manifest, data)
    check_same_split(split, late.meta["split"], source=names[1])
    with Progress("decoding", "images") as decoding:
        part = load_part(
            manifest, split.val, data.side, rule=data.resize, build=True, progress=decoding,
            warn=note,
        )  # fmt: skip
    with Progress("judging", "images") as judging:
        rows = judge_shares(early, late, shares, part, device=place, progress=judging)
    chosen = best_of(rows, select)
    typer.echo(f"{split.title}\nvalidation part, {len(part.ids)} images")
    typer.echo("share  macro-F1  accuracy  balanced  log loss")
    for row in rows:
        f = row.figures
        typer.echo(
            f"{row.share:5.2f}  {f['val_macro_f1']:8.4f}  {f['val_accuracy']:8.4f}  "
            f"{f['val_macro_recall']:8.4f}  {f['val_log_loss']:8.4f}"
            + ("  chosen" if row is chosen else "")
        )
    meta = average_meta(
        early,
        late,
        chosen,
        rows,
        names=names,
        runs=(run_of(paths[0]), run_of(paths[1])),
        select=select,
        command=command_given(),
    )
    target = run / "weights" / "best.safetensors"
    save_checkpoint(target, between(early, late, chosen.share), meta)
    atomic_write_text(run / "config.toml", to_toml(late.config))
    atomic_write_text(run / "split.json", split.to_json())
    typer.echo(f"checkpoint: {target}")
    note(f"next: biigma eval --run {run} --split test")
