"""`biigma train`: train a network; which epoch is kept, the validation part decides."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from biigma_cli.cli.boundary import boundary, note
from biigma_cli.cli.options import AllowMissingOption, DataDirOption, DeviceOption, RunsOption
from biigma_cli.cli.run_folders import run_folder

if TYPE_CHECKING:
    from biigma_cli.config import Config
    from biigma_cli.data.manifest import Manifest
    from biigma_cli.engine.distributed import Ranks
    from biigma_cli.engine.events import Event

#: How the epoch that is kept is called, by `train.select`.
KEPT = {"macro_f1": "best", "log_loss": "best", "last": "last"}


@boundary
def train(
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="Recorded data set.  [default: the preset's, isic18]"),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="light (MobileNetV2 at 160), best (DenseNet-121, our recipe), paper-isic17, "
            "paper-isic18, paper-isic19, paper-light (what ablate takes), or plain-light.  "
            "[default: light]",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file laid over the preset.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting, e.g. train.epochs=8."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help="Backbone: imagenet (the published ones), none, a file, or that of a "
            "checkpoint or an exported model.",
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            help="Split: lesion (no leak), paper (by image) or official.  [default: lesion; "
            "official where the data set brings its own parts]",
        ),
    ] = None,
    background_bias: Annotated[
        float | None,
        typer.Option(
            "--background-bias",
            metavar="R",
            help="With --dataset synthetic: probability that class and background agree in "
            "training.",
        ),
    ] = None,
    allow_missing: AllowMissingOption = False,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Passes over the data.")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", "-b", help="Images a step.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the training.")] = None,
    compile_: Annotated[
        bool | None,
        typer.Option(
            "--compile",
            help="Compile the trunk (torch.compile); often faster on a GPU.",
            show_default="off",
        ),
    ] = None,
    gather_background: Annotated[
        bool | None,
        typer.Option(
            "--gather-background",
            help="With several processes: background vectors from all of them.",
            show_default="off",
        ),
    ] = None,
    sync_bn: Annotated[
        bool | None,
        typer.Option(
            "--sync-bn",
            help="With several processes: batch norm over all of them.",
            show_default="off",
        ),
    ] = None,
    device: DeviceOption = "auto",
    devices: Annotated[
        int,
        typer.Option(
            "--devices",
            metavar="N",
            min=1,
            help="Processes on this machine, one per GPU (or sharing the CPU).",
        ),
    ] = 1,
    max_restarts: Annotated[
        int,
        typer.Option(
            "--max-restarts",
            metavar="N",
            min=0,
            help="With --devices: times that the training is started again from its newest "
            "checkpoint after a process was killed.",
        ),
    ] = 0,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write a TensorBoard log into the run.")
    ] = False,
    name: Annotated[
        str | None, typer.Option("--name", help="Run folder's name.  [default: date and preset]")
    ] = None,
    runs: RunsOption = Path("runs"),
    data_dir: DataDirOption = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN", help="Go on with an interrupted run."),
    ] = None,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print the resolved settings and stop.")
    ] = False,
) -> None:
    """Train, choosing the epoch on validation.

    The epoch kept is the one with the highest macro-F1 on the validation part, or what the
    preset's or your train.select says: lowest log_loss, or the last. The test part is never
    looked at. Ctrl-C writes a checkpoint and stops; a crash loses the minutes since the
    last one: go on with --resume RUN. On several machines: torchrun ... -m biigma_cli train.
    """
    from biigma_cli import config as cfg
    from biigma_cli.cli.targets import check_run_name
    from biigma_cli.errors import UsageError

    # Set by torchrun, and by --devices, which uses its launcher.
    launched = "RANK" in os.environ
    if name is not None:
        check_run_name(name)
    # The first is torchrun's, the second that of --devices.
    counts = ("TORCHELASTIC_RESTART_COUNT", "BIIGMA_RESTART")
    restarted = launched and any(os.environ.get(name, "0") != "0" for name in counts)
    if launched and resume is None:
        if name is None:
            raise UsageError("torchrun's processes need one name for their run", fix="give --name")
        if restarted and (runs / name / "weights" / "last.safetensors").is_file():
            resume = runs / name
    elif resume is not None and name is not None and not launched:
        raise UsageError("a resumed run keeps its name", fix="leave --name out with --resume")
    if max_restarts and devices == 1 and not launched:
        raise UsageError("--max-restarts is for several processes", fix="add --devices")
    chosen_keys: dict[str, None] = {}
    # Of several processes the first alone tells, and looks: it is the one that begins the folder.
    first = os.environ.get("RANK", "0") == "0"
    if resume is not None:
        resume = run_folder(resume, runs)
        saved = resume / "config.toml"
        if not saved.is_file():
            raise UsageError(
                f"{resume} is no run folder, nor a run in {runs}", fix="biigma runs lists them"
            )
        if not restarted and any(v is not None for v in (
            preset, config, set_, weights, dataset, protocol, background_bias, epochs, seed,
            batch_size, compile_, gather_background, sync_bn,
        )):  # fmt: skip
            raise UsageError(
                "a resumed run keeps its settings", fix="leave all settings out with --resume"
            )
        settings = cfg.from_dict(cfg.fill_older(cfg.read_toml(saved)))
        run = resume
    else:
        preset = preset or "light"
        settings = cfg.preset(preset)
        from_file = cfg.read_toml(config) if config is not None else {}
        settings = cfg.from_dict(from_file, settings)
        short: dict[str, dict[str, object]] = {
            "model": {"weights": weights},
            "data": {
                "dataset": dataset,
                "protocol": protocol,
                "background_bias": background_bias,
            },
            "train": {
                "epochs": epochs,
                "batch_size": batch_size,
                "seed": seed,
                "compile": None if compile_ is None else "default" if compile_ else "no",
                "gather_background": gather_background,
                "sync_bn": sync_bn,
            },
        }
        given = cfg.parse_assignments(set_ or [])
        for section, values in short.items():
            chosen = {k: v for k, v in values.items() if v is not None}
            for key, value in chosen.items():
                if given.get(section, {}).get(key, value) != value:
                    raise UsageError(
                        f"--{key.replace('_', '-')} and --set {section}.{key}="
                        f"{given[section][key]} contradict each other",
                        fix="give one of them",
                    )
            given[section] = {**chosen, **given.get(section, {})}
        planned_start = settings.train.sampling_start_epoch
        meant = given["train"].get("sampling_start_epoch", planned_start)
        settings = cfg.resolve(
            given, settings, planned=cfg.preset(preset).train,
            start_given="sampling_start_epoch" in from_file.get("train", {}),
        )  # fmt: skip
        hushed = show_config or not first or (devices > 1 and not launched)
        _tell_sampling_start(settings, meant, quiet=hushed)
        chosen_keys = dict.fromkeys(
            f"{section}.{key}"
            for values in (from_file, given)
            for section, keys in values.items()
            for key in keys
        )
        if "data.protocol" not in chosen_keys:
            settings = _own_parts(settings, may_lack=show_config, quiet=hushed)
        run = runs / (name or time.strftime("%Y%m%d-%H%M%S-") + preset)
    if show_config:
        typer.echo(cfg.to_toml(settings), nl=False)
        return
    if resume is None and not restarted and first and any((run / "weights").glob("*.safetensors")):
        raise UsageError(
            f"{run} holds a run already", fix=f"choose another --name, or --resume {run}"
        )

    if devices > 1 and not launched:
        from biigma_cli.engine.launch import launch

        arguments = sys.argv[1:] if resume is not None or name else [
            *sys.argv[1:], "--name", run.name
        ]  # fmt: skip
        raise typer.Exit(launch(devices, arguments, max_restarts=max_restarts))
    from biigma_cli.engine.distributed import joined

    with joined(device) as ranks:
        _train(
            settings, run, ranks, resume=resume is not None, chosen=tuple(chosen_keys),
            allow_missing=allow_missing, tensorboard=tensorboard,
        )  # fmt: skip


def _own_parts(settings: Config, *, may_lack: bool, quiet: bool) -> Config:
    """By the data set's own parts, where it brings some and nothing else was asked for.

    Args:
        may_lack: whether the data set need not be on this machine.
    """
    from biigma_cli.data.splits import own_parts_meant
    from biigma_cli.errors import DataError

    try:
        if not own_parts_meant(settings.data.dataset):
            return settings
    except DataError:
        if may_lack:
            return settings
        raise
    if not quiet:
        note(f"{settings.data.dataset} brings its own parts: --protocol official")
    data = dataclasses.replace(settings.data, protocol="official")
    return dataclasses.replace(settings, data=data)


def _tell_sampling_start(settings: Config, meant: int, *, quiet: bool) -> None:
    start, epochs = settings.train.sampling_start_epoch, settings.train.epochs
    if quiet or not settings.model.sampling:
        return
    if start != meant:
        note(f"the hybrid branch joins after {start} of {epochs} epochs (the preset says {meant})")
    elif start >= epochs:
        note(
            f"warning: train.sampling_start_epoch is {start}: in {epochs} epochs the hybrid branch "
            "is never trained, and the saliency map stays random"
        )


def _train(
    settings: Config,
    run: Path,
    ranks: Ranks,
    *,
    resume: bool,
    chosen: tuple[str, ...],
    allow_missing: bool,
    tensorboard: bool,
) -> None:
    """What each process does; the first alone tells.

    Args:
        chosen: settings that the user gave, each as `section.key`.
    """
    from biigma_cli.config import without_effect
    from biigma_cli.data.splits import brings_own_split
    from biigma_cli.engine import train as engine
    from biigma_cli.engine.interrupt import stop_on_signals

    manifest = _data(settings, ranks, may_miss=allow_missing or resume)
    own = settings.data.protocol == "official" or not brings_own_split(manifest)
    if not own and ranks.is_main:
        note(
            f"--protocol {settings.data.protocol}: the parts that {manifest.dataset} brings are "
            "not used, all its images are cut anew"
        )
    idle = without_effect(settings, chosen)
    if idle and ranks.is_main:
        note(f"warning: without effect here: {', '.join(idle)}")
    with (
        _told(run, ranks, tensorboard=tensorboard) as on_event,
        stop_on_signals() as stop,
    ):
        summary = engine.train(
            settings,
            manifest,
            run,
            device=ranks.device,
            ranks=ranks,
            resume=resume,
            command=command_given(),
            stop=stop,
            on_event=on_event,
        )
    if not ranks.is_main:
        return
    from biigma_cli.report.curves import draw_curves

    typer.echo(
        f"{KEPT[settings.train.select]} epoch {summary['best_epoch']}: validation macro-F1 "
        f"{summary['best_val_macro_f1']:.4f} ({summary['protocol']})"
    )
    typer.echo(f"checkpoint: {run / 'weights' / 'best.safetensors'}")
    typer.echo(f"curves: {draw_curves(run)[0]}")
    typer.echo(f"next: biigma eval --run {run} --split test")


def _data(settings: Config, ranks: Ranks, *, may_miss: bool) -> Manifest:
    """The data set, drawn first where it is synthetic; refused where images are missing."""
    from biigma_cli.cli.progress import Progress
    from biigma_cli.data.datasets import load_dataset
    from biigma_cli.errors import DataError

    if ranks.is_main:
        with Progress("drawing", "images") as drawing:
            manifest = load_dataset(settings.data, progress=drawing)
    else:
        manifest = load_dataset(settings.data)
    if manifest.missing:
        there = len(manifest.records)
        if not may_miss:
            raise DataError(
                f"{manifest.missing} of the {manifest.missing + there} labelled images of "
                f"{manifest.dataset} are not on this machine",
                fix="complete it, or train on the rest with --allow-missing",
            )
        if ranks.is_main:
            note(f"{manifest.missing} labelled images are missing; training on the other {there}")
    return manifest


@contextlib.contextmanager
def _told(run: Path, ranks: Ranks, *, tensorboard: bool) -> Iterator[Callable[[Event], None]]:
    """Where events go: the display, and TensorBoard where it is asked for."""
    from biigma_cli.cli.training_display import TrainingDisplay
    from biigma_cli.engine.events import EpochEvent, StepEvent

    log = None
    if not ranks.is_main:
        yield lambda _: None
        return
    if tensorboard:
        from biigma_cli.report.tensorboard import TensorBoardLog

        log = TensorBoardLog(run / "tensorboard")

    with TrainingDisplay(run) as display:

        def on_event(event: Event) -> None:
            display(event)
            if log is None:
                return
            if isinstance(event, StepEvent):
                at = (event.epoch - 1) * event.steps + event.step
                log.step({"loss": event.loss, "lr": event.lr, **event.terms}, at)
            elif isinstance(event, EpochEvent):
                log.epoch(event.row, event.epoch)

        try:
            yield on_event
        finally:
            if log is not None:
                log.close()


def command_given() -> str:
    """The command as it was given, without anyone's folders: it goes into checkpoints."""
    from biigma_cli.storage import without_folders

    return shlex.join(["biigma", *(without_folders(w) for w in sys.argv[1:])])
