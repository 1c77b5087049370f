"""`biigma train`: train a network and choose its best epoch on the validation part."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from biigma_cli.cli.boundary import boundary, note
from biigma_cli.cli.options import AllowMissingOption, DataDirOption, DeviceOption, RunsOption

if TYPE_CHECKING:
    from biigma_cli.engine.train import Event


@boundary
def train(
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="Recorded data set.  [default: the preset's, isic18]"),
    ] = None,
    preset: Annotated[
        str,
        typer.Option("--preset", help="light (MobileNetV2 at 160), plain-light, or paper-isic18."),
    ] = "light",
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
            "--weights", help="Backbone: imagenet (torchvision's download), none, or a file."
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
    device: DeviceOption = "auto",
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

    The best epoch is the one with the highest macro-F1 on the validation part; the test part is
    never looked at. Ctrl-C or a crash loses the current epoch at most: go on with
    --resume RUN.
    """
    from biigma_cli import config as cfg
    from biigma_cli.errors import DataError, UsageError

    chosen_protocol = False
    if resume is not None:
        saved = resume / "config.toml"
        if not saved.is_file():
            raise UsageError(f"{resume} is no run folder", fix="name a folder under runs/")
        if any(v is not None for v in (config, set_, weights, dataset, protocol, background_bias,
                                       epochs, seed, batch_size)):  # fmt: skip
            raise UsageError(
                "a resumed run keeps its settings", fix="leave all settings out with --resume"
            )
        settings = cfg.from_dict(cfg.fill_older(cfg.read_toml(saved)))
        run = resume
    else:
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
            "train": {"epochs": epochs, "batch_size": batch_size, "seed": seed},
        }
        given = cfg.parse_assignments(set_ or [])
        for section, values in short.items():
            chosen = {k: v for k, v in values.items() if v is not None}
            given[section] = {**chosen, **given.get(section, {})}
        if "epochs" in given["train"] and "sides" not in given["train"]:
            given["train"] |= cfg.stretch_phases(settings.train, given["train"]["epochs"])
        settings = cfg.from_dict(given, settings)
        chosen_protocol = "protocol" in given["data"] or "protocol" in from_file.get("data", {})
        run = runs / (name or time.strftime("%Y%m%d-%H%M%S-") + preset)
    if show_config:
        typer.echo(cfg.to_toml(settings), nl=False)
        return
    if resume is None and (run / "weights").exists():
        raise UsageError(
            f"{run} holds a run already", fix=f"choose another --name, or --resume {run}"
        )

    from biigma_cli.cli.progress import Progress
    from biigma_cli.data.datasets import load_dataset
    from biigma_cli.data.splits import brings_own_split
    from biigma_cli.engine.device import pick_device

    torch_device = pick_device(device)  # before any work, such as drawing a data set
    with Progress("drawing", "images") as drawing:
        manifest = load_dataset(settings.data, progress=drawing)
    if manifest.missing:
        there = len(manifest.records)
        if not allow_missing and resume is None:
            raise DataError(
                f"{manifest.missing} of the {manifest.missing + there} labelled images of "
                f"{manifest.dataset} are not on this machine",
                fix="complete it, or train on the rest with --allow-missing",
            )
        note(f"{manifest.missing} labelled images are missing; training on the other {there}")
    if not chosen_protocol and resume is None and brings_own_split(manifest):
        note(f"{manifest.dataset} brings its own parts: --protocol official")
        data = dataclasses.replace(settings.data, protocol="official")
        settings = dataclasses.replace(settings, data=data)
    from biigma_cli.engine import train as engine

    last = run / "weights" / "last.safetensors"
    if resume is not None and not last.is_file():
        raise UsageError(f"{run} has no finished epoch", fix="start it again under another name")
    display = _Display(run)
    try:
        summary = engine.train(
            settings,
            manifest,
            run,
            device=torch_device,
            resume=resume is not None,
            command=_command(),
            on_event=display,
        )
    except KeyboardInterrupt:
        display.line("")
        how = f"biigma train --resume {run}" if last.is_file() else "no epoch was finished"
        note(f"stopped; go on with: {how}")
        raise
    typer.echo(
        f"best epoch {summary['best_epoch']}: validation macro-F1 "
        f"{summary['best_val_macro_f1']:.4f} ({summary['protocol']})"
    )
    typer.echo(f"checkpoint: {run / 'weights' / 'best.safetensors'}")
    typer.echo(f"next: biigma eval --run {run} --split test")


def _command() -> str:
    """The command as it was given, without anyone's folders: it goes into checkpoints."""
    words = [w if w.startswith("-") or "/" not in w else Path(w).name for w in sys.argv[1:]]
    return shlex.join(["biigma", *words])


class _Display:
    """Shows events on stderr and keeps them in the run's log."""

    def __init__(self, run: Path) -> None:
        self.live = sys.stderr.isatty()
        self.log = run / "train.log"
        self.shown = time.monotonic()
        self.epoch_began: float | None = None
        self.durations: list[float] = []

    def __call__(self, event: Event) -> None:
        from biigma_cli.cli.progress import clock
        from biigma_cli.engine.train import EpochEvent, LoadEvent, NoteEvent

        if isinstance(event, NoteEvent):
            self.line(event.text)
        elif isinstance(event, LoadEvent):
            if event.done < event.total:
                self.transient(f"decoding: {event.done}/{event.total} images")
        elif isinstance(event, EpochEvent):
            row = event.row
            self.line(
                f"epoch {event.epoch}/{event.epochs}  {row['side']} px  "
                f"loss {row['loss']:.4f}  val: macro-F1 {row['val_macro_f1']:.4f}, "
                f"accuracy {row['val_accuracy']:.4f}, balanced {row['val_macro_recall']:.4f}  "
                f"{row['images_per_s']:.0f} images/s, {clock(row['seconds'])}"
                + ("  best" if event.best else "")
            )
        else:
            terms = ", ".join(f"{k} {v:.3f}" for k, v in event.terms.items())
            rest = (event.steps - event.step) / event.steps + event.epochs - event.epoch
            elapsed = event.step / event.steps
            now = time.monotonic()
            if event.step == 1 or self.epoch_began is None:
                self.epoch_began = now
            per_epoch = (now - self.epoch_began) / elapsed
            self.transient(
                f"epoch {event.epoch}/{event.epochs}  step {event.step}/{event.steps}  "
                f"loss {event.loss:.3f} ({terms})  {event.images_per_s:.0f} images/s  "
                f"about {clock(per_epoch * rest)} left"
            )

    def transient(self, text: str) -> None:
        """A line that the next one replaces; every 30 s a plain one where there is no terminal."""
        now = time.monotonic()
        if now - self.shown < (0.2 if self.live else 30):
            return
        self.shown = now
        sys.stderr.write(f"\r\033[K{text}" if self.live else text + "\n")
        sys.stderr.flush()

    def line(self, text: str) -> None:
        """A line that stays, also in the log."""
        sys.stderr.write(f"\r\033[K{text}\n" if self.live else text + "\n")
        sys.stderr.flush()
        if text and self.log.parent.is_dir():
            with self.log.open("a", encoding="utf-8") as file:
                file.write(time.strftime("%Y-%m-%d %H:%M:%S ") + text + "\n")
