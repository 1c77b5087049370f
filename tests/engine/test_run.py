"""What a training run leaves behind, and that it goes on exactly where it stopped."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from biigma_cli import config as cfg
from biigma_cli.core.weights import Checkpoint, load_checkpoint, load_model
from biigma_cli.data import augment, extra
from biigma_cli.data.cache import build_cache, cache_path
from biigma_cli.data.manifest import Manifest, load_manifest
from biigma_cli.data.splits import make_split
from biigma_cli.engine import checkpoints
from biigma_cli.engine import train as engine
from biigma_cli.engine.evaluate import predict_proba
from biigma_cli.engine.events import EpochEvent, Event, NoteEvent, PhaseEvent, StepEvent
from biigma_cli.engine.interrupt import StopRequest
from biigma_cli.engine.teachers import Teachers
from biigma_cli.engine.train import train
from biigma_cli.errors import (
    BiigmaError,
    CheckpointMismatch,
    DataError,
    Interrupted,
    ModelFileError,
    TrainingDiverged,
    UsageError,
)
from biigma_cli.report.runs import read_metrics
from biigma_cli.runtime.export import export_onnx
from tests.conftest import TINY, call

CPU = torch.device("cpu")
TIMING = ("seconds", "images_per_s", "data_wait")


def settings(**changes: Any) -> cfg.Config:
    """Three epochs of the whole recipe, small."""
    values: dict[str, dict[str, Any]] = {
        "model": {"weights": "none", "projection_channels": 16, "adapter_channels": 8},
        "data": {"side": 64},
        "train": {
            "epochs": 3, "batch_size": 8, "sides": [], "side_epochs": [], "precision": "fp32",
            "sampling_start_epoch": 1, **changes,
        },
    }  # fmt: skip
    return cfg.from_dict(values, cfg.preset("light"))


@pytest.fixture(scope="module")
def small(home: Path) -> Manifest:
    """The first five lesions of each class."""
    manifest = load_manifest("isic18")
    kept = []
    for code in manifest.taxonomy.codes:
        own = [r for r in manifest.records if r.label == code]
        lesions = list(dict.fromkeys(r.lesion_id for r in own))[:5]
        kept += [r for r in own if r.lesion_id in lesions]
    return dataclasses.replace(manifest, records=tuple(sorted(kept, key=lambda r: r.image_id)))


class Whole(NamedTuple):
    """An uninterrupted run, and what happened in it."""

    run: Path
    summary: dict[str, Any]
    events: list[Event]
    loaded: list[tuple[str, ...]]


@pytest.fixture(scope="module")
def whole(small: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Three epochs without a break; the images of every part loaded are noted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    loaded: list[tuple[str, ...]] = []
    events: list[Event] = []
    load_part = engine.load_part

    def noted(manifest: Manifest, ids: tuple[str, ...], *more: Any, **options: Any) -> Any:
        loaded.append(ids)
        return load_part(manifest, ids, *more, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "load_part", noted)
        summary = train(settings(), small, run, device=CPU, on_event=events.append)
    return Whole(run, summary, events, loaded)


def rows_of(run: Path) -> list[dict[str, str]]:
    """`metrics.csv`."""
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def same(first: Checkpoint, second: Checkpoint) -> None:
    """Every tensor (weights, optimizer, average) equal to the last bit."""
    assert first.tensors.keys() == second.tensors.keys()
    assert any(k.startswith("optim.") for k in first.tensors)
    differing = [k for k in first.tensors if not torch.equal(first.tensors[k], second.tensors[k])]
    assert not differing


def last(run: Path) -> Checkpoint:
    """A run's last checkpoint."""
    return load_checkpoint(run / "weights" / "last.safetensors")


# --- what a run leaves -----------------------------------------------------------------------


def test_run_folder(tiny_run: Path) -> None:
    """All files that a run is said to leave, and no temporary one."""
    names = {p.relative_to(tiny_run).as_posix() for p in tiny_run.rglob("*") if p.is_file()}
    wanted = {
        "config.toml", "split.json", "metrics.csv", "summary.json", "train.log",
        "weights/best.safetensors", "weights/last.safetensors",
    }  # fmt: skip
    assert wanted <= names
    assert not [n for n in names if n.endswith("~")]


def test_metrics_file(tiny_run: Path) -> None:
    """One row an epoch, with every loss term; the hybrid one from the epoch it joins."""
    first, second = rows_of(tiny_run)
    assert next(iter(first)) == "epoch"
    assert (first["epoch"], second["epoch"]) == ("1", "2")
    for row in (first, second):
        for name in ("loss", "ce", "independence", "l2", "val_macro_f1", "val_accuracy",
                     "val_macro_recall", "val_macro_precision", "val_log_loss", "lr"):  # fmt: skip
            assert math.isfinite(float(row[name])), name
    assert first["ce_hybrid"] == ""
    assert float(second["ce_hybrid"]) > 0


def test_metrics_file_is_exact(whole: Whole) -> None:
    """Numbers read from it are those that were told and kept, to the last bit."""
    told = [event.row for event in whole.events if isinstance(event, EpochEvent)]
    read = read_metrics(whole.run / "metrics.csv")
    assert [dict(row) for row in read] == told == last(whole.run).meta["state"]["rows"]
    best = load_checkpoint(whole.run / "weights" / "best.safetensors").meta["validation"]
    chosen = read[whole.summary["best_epoch"] - 1]
    assert {key: chosen[key] for key in best} == best


def test_config_file(tiny_run: Path) -> None:
    """The resolved settings: read again they are those of the checkpoint."""
    stored = cfg.from_dict(cfg.read_toml(tiny_run / "config.toml"))
    assert stored == last(tiny_run).config
    assert (stored.data.side, stored.train.epochs) == (64, 2)
    assert stored.model.normalisation == "unit"


def test_split_file(tiny_run: Path, home: Path) -> None:
    """The split's ids: three parts without overlap that make the data set, and its hash."""
    stored = json.loads((tiny_run / "split.json").read_text())
    parts = [set(stored[p]) for p in ("train", "val", "test")]
    manifest = load_manifest("isic18")
    assert sum(len(p) for p in parts) == len(set.union(*parts)) == len(manifest.records)
    assert stored["split_hash"] == make_split(manifest, last(tiny_run).config.data).split_hash


def test_log(tiny_run: Path) -> None:
    """The log has a line for each epoch."""
    text = (tiny_run / "train.log").read_text()
    assert "epoch 1/2" in text
    assert "epoch 2/2" in text


def test_test_part_is_never_loaded(whole: Whole, small: Manifest) -> None:
    """Training loads the training and validation parts, whole, and nothing else."""
    split = make_split(small, settings().data)
    assert whole.loaded == [split.train, split.val]
    assert split.test


@pytest.mark.parametrize("part", ["test", "train"])
def test_pixels_of_the_test_part_change_nothing(
    part: str, whole: Whole, small: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every test image of the cache replaced by noise, the first epoch is the same.

    With one training image replaced it is not: the noise is where training would find it.
    """
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "home"))
    build_cache(small, 64, "squash")
    spoilt = set(make_split(small, settings().data).part(part)[: None if part == "test" else 1])
    pixels = np.load(cache_path(small, 64, "squash") / "pixels.npy", mmap_mode="r+")
    for row, record in enumerate(small.records):
        if record.image_id in spoilt:
            pixels[row] = np.random.default_rng(row).integers(0, 256, pixels[row].shape)
    pixels.flush()
    with pytest.raises(KeyboardInterrupt):
        train(settings(), small, tmp_path / "run", device=CPU, on_event=stopper(2, 1))
    ours, theirs = (
        {k: v for k, v in rows_of(run)[0].items() if v and k not in TIMING}
        for run in (tmp_path / "run", whole.run)
    )
    assert (ours == theirs) == (part == "test")


def test_best_epoch(whole: Whole) -> None:
    """The best epoch is the first with the highest validation macro-F1, in every file."""
    scores = [float(row["val_macro_f1"]) for row in rows_of(whole.run)]
    best = load_checkpoint(whole.run / "weights" / "best.safetensors")
    assert whole.summary["best_epoch"] == best.meta["epoch"] == scores.index(max(scores)) + 1
    assert whole.summary["best_val_macro_f1"] == max(scores)
    assert best.meta["validation"]["val_macro_f1"] == whole.summary["best_val_macro_f1"]
    assert json.loads((whole.run / "summary.json").read_text()) == whole.summary


def test_best_holds_the_average(whole: Whole) -> None:
    """What is kept as best is what was judged: the averaged weights of that epoch."""
    best = load_checkpoint(whole.run / "weights" / "best.safetensors")
    end = last(whole.run)
    assert not any(k.startswith(("optim.", "ema.")) for k in best.tensors)
    if best.meta["epoch"] == end.meta["epoch"]:
        for key, tensor in best.tensors.items():
            assert torch.equal(tensor, end.tensors["ema." + key.removeprefix("model.")])
    raw = [k for k in best.tensors if not torch.equal(best.tensors[k], end.tensors[k])]
    assert raw


def test_events(whole: Whole) -> None:
    """Loading, a note of the device, then for each epoch its steps and its row."""
    epochs = [e for e in whole.events if isinstance(e, EpochEvent)]
    steps = [e for e in whole.events if isinstance(e, StepEvent)]
    assert [e.epoch for e in epochs] == [1, 2, 3]
    assert [e.step for e in steps] == [*range(1, steps[0].steps + 1)] * 3
    phases = [(e.phase, e.done, e.total) for e in whole.events if isinstance(e, PhaseEvent)]
    assert phases[-1] == ("validation", phases[-1][2], phases[-1][2])
    assert any("cpu in fp32" in e.text for e in whole.events if isinstance(e, NoteEvent))
    assert epochs[0].best
    assert max(e.epoch for e in epochs if e.best) == whole.summary["best_epoch"]


# --- going on --------------------------------------------------------------------------------


def stopper(epoch: int, step: int) -> Callable[[Event], None]:
    """Ctrl-C after a step."""

    def on_event(event: Event) -> None:
        if isinstance(event, StepEvent) and (event.epoch, event.step) == (epoch, step):
            raise KeyboardInterrupt

    return on_event


@pytest.mark.parametrize("finished", [1, 2])
def test_resumed_run_is_the_same(
    finished: int, whole: Whole, small: Manifest, tmp_path: Path
) -> None:
    """Stopped in the middle of an epoch and resumed: the same weights to the last bit."""
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(settings(), small, run, device=CPU, on_event=stopper(finished + 1, 2))
    assert last(run).meta["epoch"] == finished
    assert not (run / "summary.json").exists()
    torch.manual_seed(12345)  # the state of the global generator must not matter
    summary = train(settings(), small, run, device=CPU, resume=True)
    same(last(run), last(whole.run))
    assert [*rows_of(run)[0]] == [*rows_of(whole.run)[0]]
    for ours, theirs in zip(rows_of(run), rows_of(whole.run), strict=True):
        assert {k: v for k, v in ours.items() if k not in TIMING} == {
            k: v for k, v in theirs.items() if k not in TIMING
        }
    assert summary["best_epoch"] == whole.summary["best_epoch"]
    best, wanted = (
        load_checkpoint(r / "weights" / "best.safetensors").tensors for r in (run, whole.run)
    )
    assert all(torch.equal(best[k], wanted[k]) for k in wanted)


def asker(stop: StopRequest, epoch: int, step: int) -> Callable[[Event], None]:
    """A request to stop after a step; step 0 means within the validation of the epoch."""
    seen = [0]

    def on_event(event: Event) -> None:
        if isinstance(event, StepEvent):
            seen[0] = event.epoch
            if (event.epoch, event.step) == (epoch, step):
                stop.signum = signal.SIGINT
        elif isinstance(event, PhaseEvent) and (seen[0], step) == (epoch, 0):
            stop.signum = signal.SIGINT

    return on_event


@pytest.mark.parametrize(("epoch", "step"), [(1, 1), (1, 3), (2, 0), (3, 2)])
def test_stopped_on_request(
    epoch: int, step: int, whole: Whole, small: Manifest, tmp_path: Path
) -> None:
    """Asked to stop in an epoch or in validation, a run goes on from that very step."""
    run, stop = tmp_path / "run", StopRequest()
    with pytest.raises(Interrupted) as caught:
        train(settings(), small, run, device=CPU, stop=stop, on_event=asker(stop, epoch, step))
    assert caught.value.exit_code == 130
    state = last(run).meta["state"]
    assert state["epoch"] == epoch - 1
    assert state["step"] == step or not step
    steps: list[int] = []

    def count(event: Event) -> None:
        if isinstance(event, StepEvent):
            steps.append(event.step)

    summary = train(settings(), small, run, device=CPU, resume=True, on_event=count)
    total = sum(isinstance(e, StepEvent) for e in whole.events)
    per_epoch = total // 3
    assert len(steps) == total - (epoch - 1) * per_epoch - (step or per_epoch)
    same(last(run), last(whole.run))
    assert summary["best_epoch"] == whole.summary["best_epoch"]
    for ours, theirs in zip(rows_of(run), rows_of(whole.run), strict=True):
        assert {k: v for k, v in ours.items() if k not in TIMING} == {
            k: v for k, v in theirs.items() if k not in TIMING
        }


def test_stopped_while_decoding(small: Manifest, tmp_path: Path, monkeypatch: Any) -> None:
    """Ctrl-C is not kept waiting by the decoding of thousands of images."""
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "home"))
    stop = StopRequest()
    stop.signum = signal.SIGTERM
    with pytest.raises(Interrupted, match="nothing to go on from") as caught:
        train(settings(), small, tmp_path / "run", device=CPU, stop=stop)
    assert caught.value.exit_code == 143


def test_checkpoints_by_the_clock(whole: Whole, small: Manifest, tmp_path: Path) -> None:
    """With a checkpoint after every step, a crash loses one step; the last two are kept."""
    often = settings(checkpoint_minutes=1e-9)
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(often, small, run, device=CPU, on_event=stopper(2, 3))
    assert (last(run).meta["state"]["epoch"], last(run).meta["state"]["step"]) == (1, 2)
    previous = load_checkpoint(run / "weights" / "previous.safetensors")
    assert previous.meta["state"]["step"] == 1
    # The newest one damaged: the one before it serves.
    newest = run / "weights" / "last.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1000])
    told: list[Event] = []
    train(often, small, run, device=CPU, resume=True, on_event=told.append)
    texts = [e.text for e in told if isinstance(e, NoteEvent)]
    assert "resumed in epoch 2 after step 1 from previous.safetensors" in texts
    same(last(run), last(whole.run))


def test_a_damaged_checkpoint_replaces_none(
    small: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed from the one before it, a disk that is full leaves that one, and names it."""
    often = settings(checkpoint_minutes=1e-9)
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(often, small, run, device=CPU, on_event=stopper(2, 3))
    newest, previous = (run / "weights" / f"{n}.safetensors" for n in ("last", "previous"))
    newest.write_bytes(newest.read_bytes()[:-1000])
    before = previous.read_bytes()

    def full(*_: Any) -> None:
        raise BiigmaError("cannot write: no space left", fix="free some space")

    monkeypatch.setattr(checkpoints, "save_checkpoint", full)
    with pytest.raises(BiigmaError, match="no space left") as caught:
        train(often, small, run, device=CPU, resume=True)
    assert f"the checkpoint before it, {previous}, is whole" in caught.value.message
    assert f"--resume {run}" in caught.value.fix
    assert previous.read_bytes() == before
    assert not isinstance(caught.value, UsageError)

    def unwritable(*_: Any) -> None:
        raise UsageError("cannot write: read-only file system", fix="choose another place")

    monkeypatch.setattr(checkpoints, "save_checkpoint", unwritable)
    with pytest.raises(UsageError, match="read-only file system") as caught:
        train(often, small, run, device=CPU, resume=True)
    assert f"make it writable, then: biigma train --resume {run}" in caught.value.fix
    monkeypatch.undo()
    with pytest.raises(KeyboardInterrupt):
        train(often, small, run, device=CPU, resume=True, on_event=stopper(2, 3))
    # The new one is whole, and the damaged one did not become the one before it.
    assert load_checkpoint(newest).meta["state"]["step"] > 1
    assert load_checkpoint(previous).meta["state"]["step"] >= 1


def test_a_lost_best_is_told_of(whole: Whole, small: Manifest, tmp_path: Path) -> None:
    """Another is chosen of the epochs to come; where none comes, it is an error."""
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(settings(), small, run, device=CPU, on_event=stopper(2, 1))
    best = run / "weights" / "best.safetensors"
    best.unlink()
    told: list[Event] = []
    summary = train(settings(), small, run, device=CPU, resume=True, on_event=told.append)
    texts = [e.text for e in told if isinstance(e, NoteEvent)]
    assert any("the best so far, is lost; the best of the epochs to come" in t for t in texts)
    assert summary["best_epoch"] > 1
    assert load_checkpoint(best).meta["epoch"] == summary["best_epoch"]
    best.write_bytes(best.read_bytes()[:100])
    with pytest.raises(ModelFileError, match="no epoch is left to choose from"):
        train(settings(), small, run, device=CPU, resume=True)


def test_best_of_an_epoch_that_the_state_does_not_know(
    small: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between `best` and `last`, a run does not take one epoch's file for another's.

    Where the epoch done again is the same, so is all that follows; where it comes out worse, as it
    can on a GPU, what is named is what is kept.
    """
    config, runs = settings(select="log_loss"), (tmp_path / "whole", tmp_path / "run")
    worse = [0.0]
    figures = engine.validation_figures

    def scored(*known: Any) -> dict[str, float]:
        epoch = next(scores)
        return {**figures(*known), "val_log_loss": 3.0 - epoch + worse[0] * (epoch == 2)}

    monkeypatch.setattr(engine, "validation_figures", scored)
    scores = iter((1, 2, 3))
    wanted = train(config, small, runs[0], device=CPU)

    def save(path: Path, *rest: Any) -> None:
        checkpoints.save_checkpoint(path, *rest)
        if rest[1]["epoch"] == 2:
            raise KeyboardInterrupt

    scores = iter((1, 2))
    with monkeypatch.context() as patch:
        patch.setattr(engine, "save_checkpoint", save)
        with pytest.raises(KeyboardInterrupt):
            train(config, small, runs[1], device=CPU)
    best = runs[1] / "weights" / "best.safetensors"
    assert (load_checkpoint(best).meta["epoch"], last(runs[1]).meta["epoch"]) == (2, 1)
    again = Path(shutil.copytree(runs[1], tmp_path / "again"))
    told: list[Event] = []
    scores = iter((2, 3))
    summary = train(config, small, runs[1], device=CPU, resume=True, on_event=told.append)
    text = f"{best} is of epoch 2: the network of epoch 1, the best so far, is lost"
    assert any(text in e.text for e in told if isinstance(e, NoteEvent))
    assert summary["best_epoch"] == wanted["best_epoch"] == 3
    same(last(runs[1]), last(runs[0]))
    # The second epoch comes out worse than the first, and the third no better.
    worse[0], scores = 9.0, iter((2, -9))
    summary = train(config, small, again, device=CPU, resume=True)
    kept = load_checkpoint(again / "weights" / "best.safetensors").meta
    assert summary["best_epoch"] == kept["epoch"] == 2
    assert float(rows_of(again)[1]["val_log_loss"]) == kept["validation"]["val_log_loss"] == 10.0


def test_full_disk_in_mid_run(
    whole: Whole, small: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that cannot be written ends the run, which goes on from the one before."""
    run = tmp_path / "run"
    save, saved = checkpoints.save_checkpoint, []

    def fails(path: Path, *rest: Any) -> None:
        saved.append(path)
        if len(saved) == 5:
            raise BiigmaError(f"cannot write {path}: No space left on device", fix="free some")
        save(path, *rest)

    often = settings(checkpoint_minutes=1e-9)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_checkpoint", fails)
        with pytest.raises(BiigmaError, match=r"No space left.*is whole") as caught:
            train(often, small, run, device=CPU)
    assert f"biigma train --resume {run}" in caught.value.fix
    train(often, small, run, device=CPU, resume=True)
    same(last(run), last(whole.run))


def test_stopped_in_the_first_epoch(small: Manifest, tmp_path: Path) -> None:
    """Nothing is there to go on from, and no weights that look as if."""
    with pytest.raises(KeyboardInterrupt):
        train(settings(), small, tmp_path / "run", device=CPU, on_event=stopper(1, 1))
    assert not (tmp_path / "run" / "weights").exists()


def test_resume_checks_settings_and_data(whole: Whole, small: Manifest) -> None:
    """Another rate or another label is refused, each named."""
    with pytest.raises(CheckpointMismatch, match=r"train\.lr: 0\.001 -> 0\.5"):
        train(settings(lr=0.5), small, whole.run, device=CPU, resume=True)
    first, *others = small.records
    changed = dataclasses.replace(
        small, records=(dataclasses.replace(first, digest="0" * 32), *others)
    )
    with pytest.raises(CheckpointMismatch, match="data_hash"):
        train(settings(), changed, whole.run, device=CPU, resume=True)


def test_another_seed_trains_otherwise(whole: Whole, small: Manifest, tmp_path: Path) -> None:
    """The comparison above can fail: one other seed gives other weights."""
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(settings(seed=1), small, run, device=CPU, on_event=stopper(2, 1))
    assert rows_of(run)[0]["loss"] != rows_of(whole.run)[0]["loss"]


def test_diverged(small: Manifest, tmp_path: Path) -> None:
    """A loss that is no number stops at once and names the moment and the batch's images."""
    run = tmp_path / "run"
    wanted = r"epoch 1, step \d+; no checkpoint was written"
    with pytest.raises(TrainingDiverged, match=wanted) as caught:
        train(settings(lr=1e30, grad_clip=0.0), small, run, device=CPU)
    named = set(
        caught.value.message.split("images of the batch: ")[1].split(" and ")[0].split(", ")
    )
    assert len(named) == 8
    assert named <= set(make_split(small, settings().data).train)
    assert not (run / "weights").exists()


def test_diverging_loss(small: Manifest, tmp_path: Path) -> None:
    """A loss that explodes stops before it is a NaN, and names the checkpoint that is good."""
    often = settings(lr=30.0, grad_clip=0.0, checkpoint_minutes=1e-9, epochs=50)
    with pytest.raises(TrainingDiverged, match=r"last\.safetensors") as caught:
        train(often, small, tmp_path / "run", device=CPU)
    loss = float(caught.value.message.split("the loss is ")[1].split(" ")[0])
    assert not loss <= 100
    assert all(torch.isfinite(t).all() for t in last(tmp_path / "run").tensors.values())


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_last_step_diverges(small: Manifest, tmp_path: Path, ema: float) -> None:
    """A network that the only step spoils, which no loss has seen yet, is not kept."""
    config = settings(
        epochs=1, batch_size=24, lr=1e30, grad_clip=0.0, ema=ema, schedule="constant"
    )  # fmt: skip
    steps: list[Event] = []
    with pytest.raises(TrainingDiverged, match=r"not finite in epoch 1 after step 1; no check"):
        train(config, small, tmp_path / "run", device=CPU, on_event=steps.append)
    assert sum(isinstance(e, StepEvent) for e in steps) == 1
    assert not (tmp_path / "run" / "weights").exists()


@pytest.mark.parametrize("often", [0.0, 1e-9])
@pytest.mark.parametrize("select", ["last", "macro_f1"])
def test_weights_that_are_not_finite_are_not_written(
    select: str, often: float, small: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where neither loss nor answers show it; the run goes on from what is named."""
    run, config = tmp_path / "run", settings(epochs=2, select=select, checkpoint_minutes=often)
    plain = engine.Stepper.__call__

    def spoiling(self: Any, *batch: Any, epoch: int, step: int, steps: int, size: int) -> Any:
        done = plain(self, *batch, epoch=epoch, step=step, steps=steps, size=size)
        if (epoch, step) == (1, steps - 1):
            next(self.model.saliency.parameters()).data.flatten()[0] = math.nan
        return done

    with monkeypatch.context() as patch:
        patch.setattr(engine.Stepper, "__call__", spoiling)
        with pytest.raises(TrainingDiverged, match=r"weights are not finite in epoch 2") as caught:
            train(config, small, run, device=CPU)
    named = run / "weights" / "last.safetensors"
    assert f"the last good checkpoint is {named}" in caught.value.message
    for path in run.glob("weights/*"):
        assert all(t.isfinite().all() for t in load_checkpoint(path).tensors.values())
    best = load_checkpoint(run / "weights" / "best.safetensors")
    assert best.meta["epoch"] == last(run).meta["epoch"] == 1
    train(config, small, run, device=CPU, resume=True)
    assert last(run).meta["epoch"] == 2


def test_going_on_from_before_weights_that_are_not_finite(
    whole: Whole, small: Manifest, tmp_path: Path
) -> None:
    """As older versions wrote them; the newest checkpoint that is finite serves."""
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(settings(checkpoint_minutes=1e-9), small, run, device=CPU, on_event=stopper(2, 3))
    newest = last(run)
    newest.tensors["model.head.bias"][0] = math.nan
    checkpoints.save_checkpoint(run / "weights" / "last.safetensors", *newest)
    told: list[Event] = []
    train(
        settings(checkpoint_minutes=1e-9), small, run,
        device=CPU, resume=True, on_event=told.append,
    )  # fmt: skip
    assert any("from previous.safetensors" in e.text for e in told if isinstance(e, NoteEvent))
    same(last(run), last(whole.run))


@pytest.mark.parametrize("select", ["log_loss", "last"])
def test_other_rules_of_selection(select: str, small: Manifest, tmp_path: Path) -> None:
    """The epoch with the lowest log loss, or the last one, is the one that is kept."""
    run = tmp_path / "run"
    summary = train(settings(select=select), small, run, device=CPU)
    losses = [float(row["val_log_loss"]) for row in rows_of(run)]
    wanted = {"log_loss": losses.index(min(losses)) + 1, "last": 3}[select]
    best = load_checkpoint(run / "weights" / "best.safetensors")
    assert summary["best_epoch"] == best.meta["epoch"] == wanted


def test_distillation(whole: Whole, small: Manifest, tmp_path: Path) -> None:
    """A network taught by another one comes closer to it than one that is not."""
    teacher = whole.run / "weights" / "best.safetensors"

    def taught(weight: float) -> float:
        config = cfg.from_dict(
            {
                "train": {"teachers": [str(teacher)] if weight else []},
                "loss": {"distillation": weight, "original": 0.1},
            },
            settings(epochs=2, seed=5),
        )
        run = tmp_path / str(weight)
        train(config, small, run, device=CPU)
        if weight:
            assert float(rows_of(run)[0]["distillation"]) > 0
        part = engine.load_part(small, make_split(small, config.data).val, 64)
        ours, theirs = (
            predict_proba(load_model(load_checkpoint(p)), part.pixels, device=CPU)
            for p in (run / "weights" / "best.safetensors", teacher)
        )
        return float(np.abs(ours - theirs).mean())

    assert taught(20.0) < taught(0.0)


def test_teachers_must_be_the_same(whole: Whole, small: Manifest, tmp_path: Path) -> None:
    """A teacher's file that changed is refused on resuming, by name."""
    teacher = tmp_path / "teacher.safetensors"
    shutil.copy(whole.run / "weights" / "best.safetensors", teacher)
    config = cfg.from_dict(
        {"train": {"teachers": [str(teacher)]}, "loss": {"distillation": 1.0}}, settings()
    )
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config, small, run, device=CPU, on_event=stopper(2, 1))
    shutil.copy(whole.run / "weights" / "last.safetensors", teacher)
    with pytest.raises(CheckpointMismatch, match=r"teacher .*teacher\.safetensors"):
        train(config, small, run, device=CPU, resume=True)


def test_teachers_may_see_a_clean_view(
    whole: Whole, small: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turned and coloured as the student's, but as sharp as the picture; else the very same."""
    seen: dict[str, list[torch.Tensor]] = {}
    plain = engine.Teachers.__call__
    for view in ("same", "clean"):
        for strength in ("standard", "strong"):
            views = seen.setdefault(f"{view} {strength}", [])

            def noted(self: Any, image: torch.Tensor, views: Any = views) -> torch.Tensor:
                views.append(image.clone())
                return plain(self, image)

            monkeypatch.setattr(engine.Teachers, "__call__", noted)
            config = cfg.from_dict(
                {
                    "train": {
                        "teachers": [str(whole.run / "weights" / "best.safetensors")],
                        "teacher_view": view, "augment_strength": strength,
                    },
                    "loss": {"distillation": 1.0},
                },
                settings(epochs=1, seed=5),
            )  # fmt: skip
            train(config, small, tmp_path / f"{view}-{strength}", device=CPU)
    for same, clean in zip(seen["same standard"], seen["clean standard"], strict=True):
        assert torch.equal(same, clean)
    softened = 0
    for same, clean in zip(seen["same strong"], seen["clean strong"], strict=True):
        assert same.shape == clean.shape
        # The picture is the same one: what differs is fine detail, noise, and dark corners, which
        # never reach the middle half.
        edge = same.shape[-1] // 4
        middles = [v[..., edge:-edge, edge:-edge] for v in (same, clean)]
        coarse = [torch.nn.functional.avg_pool2d(v, 8).flatten() for v in middles]
        assert torch.corrcoef(torch.stack(coarse))[0, 1] > 0.9
        softened += int((same - clean).abs().mean() > 0.5)
    assert softened == len(seen["same strong"])


def test_teachers_see_their_own_resize_rule(whole: Whole, small: Manifest, tmp_path: Path) -> None:
    """Other views are refused before anything is written, unless each is asked by its own."""
    best = load_checkpoint(whole.run / "weights" / "best.safetensors")
    data = best.meta["config"]["data"]
    best.meta["config"] |= {"data": {**data, "resize": "crop"}}
    teacher = tmp_path / "crop.safetensors"
    checkpoints.save_checkpoint(teacher, *best)

    def taught(view: str, rule: str) -> None:
        given = {
            "data": {"resize": rule}, "loss": {"distillation": 1.0},
            "train": {"teachers": [str(teacher)], "teacher_view": view},
        }  # fmt: skip
        config = cfg.from_dict(given, settings(epochs=1))
        train(config, small, tmp_path / f"{view} {rule}", device=CPU)

    for view in ("same", "clean"):
        with pytest.raises(CheckpointMismatch, match=r"by crop, and would .* by squash") as caught:
            taught(view, "squash")
        assert caught.value.fix == "set train.teacher_view=once, or data.resize=crop"
        assert not (tmp_path / f"{view} squash").exists()
    taught("once", "squash")
    taught("same", "crop")


@pytest.mark.parametrize("mix", ["none", "mixup"])
def test_teachers_may_be_asked_once(
    whole: Whole, small: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mix: str
) -> None:
    """For each image as it is, before the first step; mixed as the images are."""
    teacher = whole.run / "weights" / "best.safetensors"
    config = cfg.from_dict(
        {
            "train": {"teachers": [str(teacher)], "teacher_view": "once", "mix": mix},
            "loss": {"distillation": 1.0},
        },
        settings(epochs=2, mix_probability=1.0),
    )
    asked: list[int] = []
    plain = engine.Teachers._ask

    def noted(self: Any, one: Any, image: torch.Tensor) -> torch.Tensor:
        asked.append(len(image))
        return plain(self, one, image)

    told: list[tuple[torch.Tensor, torch.Tensor, Any]] = []
    answers = engine.Stepper._answers

    def kept(self: Any, batch: Any, view: torch.Tensor, mixed: Any) -> torch.Tensor | None:
        found = answers(self, batch, view, mixed)
        assert found is not None
        told.append((batch.pixels_BSS3.clone(), found.clone(), mixed))
        return found

    monkeypatch.setattr(engine.Teachers, "_ask", noted)
    monkeypatch.setattr(engine.Stepper, "_answers", kept)
    events: list[Event] = []
    train(config, small, tmp_path / "run", device=CPU, on_event=events.append)
    count = len(make_split(small, config.data).train)
    assert sum(asked) == count
    assert float(rows_of(tmp_path / "run")[1]["distillation"]) > 0
    phases = [e for e in events if isinstance(e, PhaseEvent) and e.phase == "teachers"]
    assert (phases[-1].done, phases[-1].total) == (count, count)
    network = load_model(load_checkpoint(teacher))
    for pixels, found, mixed in told:
        expected = torch.from_numpy(predict_proba(network, pixels.numpy(), device=CPU))
        if mixed is not None:
            lam = mixed.lam_B[:, None]
            expected = lam * expected + (1 - lam) * expected[mixed.partner_B]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert any(mixed is not None and (mixed.lam_B < 1).any() for _, _, mixed in told) == (
        mix == "mixup"
    )


def test_teachers_may_be_exported(whole: Whole, small: Manifest, tmp_path: Path) -> None:
    """An exported model answers as its checkpoint does, and what is behind it goes with it."""
    best = whole.run / "weights" / "best.safetensors"
    split = make_split(small, settings().data)
    part = engine.load_part(small, split.val, 64)
    exported = tmp_path / "shipped.onnx"
    export_onnx(load_checkpoint(best), exported, part.pixels, source="validation images")
    views = torch.rand(5, 3, 48, 48, generator=torch.Generator().manual_seed(0)) * 255

    def opened(path: Path) -> Teachers:
        return Teachers([str(path)], manifest=small, split=split, device=CPU)

    ours, theirs = opened(exported), opened(best)
    # Exported models take whole numbers, at their own side.
    views = augment.resize_batch(views, 64).round().clamp(0, 255)
    torch.testing.assert_close(ours(views), theirs(views), atol=1e-4, rtol=1e-3)
    assert ours.sources == theirs.sources
    command = {"command": "", "run": "shipped"}
    assert [{k: e[k] for k in command} for e in ours.ancestors] == [command]
    config = cfg.from_dict(
        {
            "train": {"teachers": [str(exported)], "teacher_view": "once"},
            "loss": {"distillation": 1.0},
        },
        settings(epochs=1),
    )
    train(config, small, tmp_path / "run", device=CPU)
    assert float(rows_of(tmp_path / "run")[0]["distillation"]) > 0
    other = make_split(small, dataclasses.replace(settings().data, split_seed=7))
    with pytest.raises(CheckpointMismatch, match="another split"):
        Teachers([str(exported)], manifest=small, split=other, device=CPU)
    few = dataclasses.replace(small, codes=small.taxonomy.codes[:3])
    with pytest.raises(CheckpointMismatch, match=r"shipped\.onnx has 7 classes"):
        Teachers([str(exported)], manifest=few, split=split, device=CPU)
    with pytest.raises(ModelFileError, match="no model 'nobody'"):
        opened(Path("nobody"))


def test_teachers_see_their_own_side(whole: Whole, small: Manifest, tmp_path: Path) -> None:
    """Asked once, they get the files decoded at their side, not the student's pixels enlarged."""
    teacher = whole.run / "weights" / "best.safetensors"
    config = cfg.from_dict(
        {
            "data": {"side": 96},
            "train": {"teachers": [str(teacher)], "teacher_view": "once"},
            "loss": {"distillation": 1.0},
        },
        settings(epochs=1),
    )
    asked: list[torch.Tensor] = []
    plain = Teachers._ask

    def noted(self: Any, one: Any, image: torch.Tensor) -> torch.Tensor:
        asked.append(image)
        return plain(self, one, image)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teachers, "_ask", noted)
        train(config, small, tmp_path / "run", device=CPU)
    whole_part = engine.load_part(small, make_split(small, config.data).train, 64)
    expected = torch.from_numpy(whole_part.pixels).permute(0, 3, 1, 2).float()
    assert torch.equal(torch.cat(asked), expected)


@pytest.mark.parametrize("resumed", [False, True])
def test_stop_while_teachers_are_asked(
    whole: Whole, small: Manifest, tmp_path: Path, resumed: bool
) -> None:
    """Before the first step there is nothing to keep; a resumed run keeps its checkpoint."""
    config = cfg.from_dict(
        {
            "train": {
                "teachers": [str(whole.run / "weights" / "best.safetensors")],
                "teacher_view": "once",
            },
            "loss": {"distillation": 1.0},
        },
        settings(),
    )
    run = tmp_path / "run"
    if resumed:
        with pytest.raises(KeyboardInterrupt):
            train(config, small, run, device=CPU, on_event=stopper(2, 1))
    before = {p.name: p.read_bytes() for p in run.glob("weights/*")}
    stop = StopRequest()

    def on_event(event: Event) -> None:
        if isinstance(event, PhaseEvent) and event.phase == "teachers":
            stop.signum = signal.SIGTERM

    with pytest.raises(Interrupted) as caught:
        train(config, small, run, device=CPU, resume=resumed, stop=stop, on_event=on_event)
    assert caught.value.exit_code == 143
    assert {p.name: p.read_bytes() for p in run.glob("weights/*")} == before
    if resumed:
        assert "the checkpoint is as it was" in caught.value.message
        assert caught.value.fix == f"go on with: biigma train --resume {run}"
        train(config, small, run, device=CPU, resume=True)
    else:
        assert "nothing to go on from" in caught.value.message
    assert bool(before) == resumed


@pytest.fixture(scope="module")
def masked(small: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The same images, each with a lesion mask: a quarter of it in the middle."""
    mask = tmp_path_factory.mktemp("masks") / "lesion.png"
    lesion = np.zeros((48, 64), np.bool_)
    lesion[12:36, 16:48] = True
    Image.fromarray(lesion).save(mask)
    records = tuple(dataclasses.replace(r, mask=str(mask)) for r in small.records)
    return dataclasses.replace(small, records=records)


def test_other_backgrounds(
    whole: Whole, small: Manifest, masked: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Around the lesion alone the picture is another; teachers see the clean one; it is the same
    when it is resumed, and without it nothing changes.
    """
    config = cfg.from_dict(
        {
            "train": {
                "teachers": [str(whole.run / "weights" / "best.safetensors")],
                "teacher_view": "clean", "augment": False, "backgrounds": 1.0,
            },
            "loss": {"distillation": 1.0},
        },
        settings(epochs=2),
    )  # fmt: skip
    pictures, views = [], []
    network, teachers = engine.BiigmaNet.forward, Teachers.__call__

    def seen(self: Any, image: torch.Tensor, **options: Any) -> Any:
        if self.training:
            pictures.append(image.clone())
        return network(self, image, **options)

    def asked(self: Any, image: torch.Tensor) -> torch.Tensor:
        views.append(image.clone())
        return teachers(self, image)

    monkeypatch.setattr(engine.BiigmaNet, "forward", seen)
    monkeypatch.setattr(Teachers, "__call__", asked)
    events: list[Event] = []
    train(config, masked, tmp_path / "run", device=CPU, on_event=events.append)
    pixels = torch.from_numpy(
        engine.load_part(small, make_split(small, config.data).train, 64).pixels
    )
    known = {p.numpy().tobytes() for p in pixels}
    assert pictures
    for picture, view in zip(pictures, views, strict=True):
        assert all(v.permute(1, 2, 0).byte().numpy().tobytes() in known for v in view)
        changed = (picture != view).any(1)
        assert not changed[:, 16:48, 16:48].any()
        # A picture may be its own donor.
        assert changed.flatten(1).float().mean(1).median() > 0.4
    count = len(make_split(small, config.data).train)
    phases = [e for e in events if isinstance(e, PhaseEvent) and e.phase == "backgrounds"]
    assert (phases[-1].done, phases[-1].total) == (count, count)
    texts = [e.text for e in events if isinstance(e, NoteEvent)]
    assert f"{count} of {count} train images have a lesion mask to go by" in texts
    resumed = tmp_path / "resumed"
    with pytest.raises(KeyboardInterrupt):
        train(config, masked, resumed, device=CPU, on_event=stopper(2, 1))
    train(config, masked, resumed, device=CPU, resume=True)
    same(last(tmp_path / "run"), last(resumed))
    monkeypatch.undo()
    train(settings(), masked, tmp_path / "off", device=CPU)
    same(last(whole.run), last(tmp_path / "off"))


def test_masks_must_be_the_same(masked: Manifest, tmp_path: Path) -> None:
    """One that changed is refused on resuming; of those that are not used nothing is asked, nor
    where an older version wrote the checkpoint.
    """
    split = make_split(masked, settings().data)
    records = masked.by_id()
    for image in (split.train[0], split.test[0]):
        mask = tmp_path / f"{image}.png"
        shutil.copy(records[image].mask, mask)
        records[image] = dataclasses.replace(records[image], mask=str(mask))
    masked = dataclasses.replace(masked, records=tuple(records.values()))
    config, run = settings(epochs=2, backgrounds=0.5), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config, masked, run, device=CPU, on_event=stopper(2, 1))
    older = Path(shutil.copytree(run, tmp_path / "older"))

    def changed(image: str) -> None:
        with Image.open(records[image].mask) as mask:
            lesion = np.array(mask)
        lesion[0, 0] ^= True
        Image.fromarray(lesion).save(records[image].mask)

    changed(split.test[0])
    stop = StopRequest()
    stop.signum = signal.SIGINT
    with pytest.raises(Interrupted):
        train(config, masked, run, device=CPU, resume=True, stop=stop)
    changed(split.train[0])
    with pytest.raises(CheckpointMismatch, match=r"\n  lesion masks: \w{12} -> \w{12}$"):
        train(config, masked, run, device=CPU, resume=True)
    found = last(older)
    del found.meta["masks"]
    checkpoints.save_checkpoint(older / "weights" / "last.safetensors", *found)
    train(config, masked, older, device=CPU, resume=True)
    Path(records[split.train[0]].mask).unlink()
    with pytest.raises(DataError, match=r"1 lesion masks cannot be used.*No such file"):
        train(config, masked, run, device=CPU, resume=True)


def test_other_data_are_named_before_their_masks_or_teachers(
    whole: Whole, masked: Manifest, small: Manifest, tmp_path: Path
) -> None:
    """A record that was replaced by one without masks, and of which no teacher knows."""
    config = cfg.from_dict(
        {
            "train": {"teachers": [str(whole.run / "weights" / "best.safetensors")]},
            "loss": {"distillation": 1.0},
        },
        settings(epochs=2, backgrounds=0.5),
    )
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config, masked, run, device=CPU, on_event=stopper(2, 1))
    bare = tuple(dataclasses.replace(r, digest=f"{i:032}") for i, r in enumerate(small.records))
    other = dataclasses.replace(small, records=bare)
    with pytest.raises(CheckpointMismatch, match=r"other settings or data:\n  data_hash: "):
        train(config, other, run, device=CPU, resume=True)
    # Where the data are the same the masks are what is wrong.
    with pytest.raises(DataError, match="has a lesion mask on record"):
        train(config, small, run, device=CPU, resume=True)


def test_parts_that_judge_poorly_are_told_of(small: Manifest, tmp_path: Path) -> None:
    """A class without a validation image, and a test part of one class."""
    seen: Counter[str] = Counter()
    records = []
    for r in small.records:
        part = ("val", "test", "train")[min(seen[r.label], 2)]
        seen[r.label] += 1
        if (part == "test" and r.label != "NV") or (part, r.label) == ("val", "DF"):
            part = "train"
        records.append(dataclasses.replace(r, part=part, lesion_id=""))
    parted = dataclasses.replace(small, dataset="own", codes=small.taxonomy.codes)
    parted = dataclasses.replace(parted, records=tuple(records))
    config = cfg.from_dict({"data": {"protocol": "official"}}, settings(epochs=1))
    events: list[Event] = []

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, StepEvent):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, parted, tmp_path / "run", device=CPU, on_event=on_event)
    told = [e.text for e in events if isinstance(e, NoteEvent)]
    assert any(t.startswith("warning: the val part of own has no image of DF") for t in told)
    assert any(t.startswith("warning: the test part of own has images of one") for t in told)


def test_other_backgrounds_need_masks(
    small: Manifest, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before anything is decoded or written."""
    loaded: list[Any] = []
    monkeypatch.setattr(engine, "load_part", lambda *a, **_: loaded.append(a))
    done = call(*TINY, "--set", "train.backgrounds=0.5", "--name", "bare", "--runs", tmp_path)
    assert done.code == 3
    assert "has a lesion mask on record" in done.err
    assert "fix:" in done.err
    assert not loaded
    assert not list(tmp_path.rglob("*.toml"))


def test_stop_while_lesions_are_taken_out(masked: Manifest, tmp_path: Path) -> None:
    """As while images are decoded."""
    stop = StopRequest()

    def on_event(event: Event) -> None:
        if isinstance(event, PhaseEvent) and event.phase == "backgrounds":
            stop.signum = signal.SIGINT

    with pytest.raises(Interrupted, match="nothing to go on from"):
        train(
            settings(backgrounds=0.5), masked, tmp_path / "run", device=CPU, stop=stop,
            on_event=on_event,
        )  # fmt: skip


def test_extra_data(
    whole: Whole, small: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another set's training images are trained on; the checkpoint says so; a change is refused."""
    records = load_manifest("isic18").records
    own = {r.image_id for r in small.records}
    left = [r for r in records if r.image_id not in own]
    codes = ("SK", "NV")
    lesions = sorted({r.lesion_id for r in left})
    others = [dataclasses.replace(r, label=codes[lesions.index(r.lesion_id) % 2]) for r in left]
    other = dataclasses.replace(small, dataset="other", records=tuple(others), codes=codes)
    monkeypatch.setattr(extra, "load_manifest", lambda name: {"other": other}[name])
    config = cfg.from_dict(
        {
            "data": {"extra": ["other"]},
            "train": {"teachers": [str(whole.run / "weights" / "best.safetensors")]},
            "loss": {"distillation": 1.0},
        },
        settings(epochs=1),
    )
    run, events = tmp_path / "student", []
    owned: list[float] = []
    plain = engine.Stepper.__call__

    def noted(self: Any, batch: Any, **options: Any) -> Any:
        owned.extend(batch.own_B.tolist())
        return plain(self, batch, **options)

    monkeypatch.setattr(engine.Stepper, "__call__", noted)
    train(config, small, run, device=CPU, on_event=events.append)
    (told,) = last(run).meta["extra"]
    joined = make_split(other, dataclasses.replace(config.data, dataset="other", extra=())).train
    assert told["images"] == len(joined)
    assert any(f"{len(joined)} training images of other join" in str(e) for e in events)
    assert 0 < owned.count(False) <= len(joined)
    assert 0 < owned.count(True) <= len(make_split(small, config.data).train)
    assert last(run).meta["split"] == last(whole.run).meta["split"]
    assert [entry["run"] for entry in last(run).meta["ancestors"]] == ["run"]
    assert last(whole.run).meta["ancestors"] == []
    fewer = dataclasses.replace(other, records=tuple(others[:-5]))
    monkeypatch.setattr(extra, "load_manifest", lambda name: {"other": fewer}[name])
    with pytest.raises(CheckpointMismatch, match=r"data\.extra, other: "):
        train(config, small, run, device=CPU, resume=True)


@pytest.mark.parametrize("begin", ["init", "weights"])
def test_from_another_run(whole: Whole, small: Manifest, tmp_path: Path, begin: str) -> None:
    """Weights, normalisation, ancestors and sources are those of the other run."""
    first = str(whole.run / "weights" / "best.safetensors")
    begun = {"train": {"init": first}} if begin == "init" else {"model": {"weights": first}}
    config = cfg.from_dict(begun, settings(epochs=1, lr=1e-30, ema=0.0))
    run = tmp_path / "next"
    train(config, small, run, device=CPU, command="biigma train next")
    meta, before = last(run).meta, last(whole.run).meta
    assert meta["config"]["model"]["normalisation"] == "unit"
    assert [entry["run"] for entry in meta["ancestors"]] == ["run"]
    assert meta["ancestors"][0]["versions"] == before["versions"]
    assert meta["sources"] == before["sources"]
    assert len(meta["sources"]) == 1
    assert meta["licence"] == small.licence
    ours, theirs = (load_checkpoint(r / "weights" / "best.safetensors") for r in (run, whole.run))
    names = [k for k in ours.tensors if k.startswith("model.") and k.endswith("weight")]
    same = {k for k in names if torch.equal(ours.tensors[k], theirs.tensors[k])}
    trunk = {k for k in names if k.startswith("model.trunk.")}
    assert trunk <= same
    assert (same == set(names)) == (begin == "init")
    other = cfg.from_dict({"data": {"split_seed": 5}}, config)
    with pytest.raises(CheckpointMismatch):
        train(other, small, tmp_path / "leak", device=CPU)
    if begin == "init":
        scaled = cfg.from_dict({"model": {"normalisation": "imagenet"}}, config)
        with pytest.raises(CheckpointMismatch, match="takes its input as unit, not imagenet"):
            train(scaled, small, tmp_path / "scaled", device=CPU)


# --- killed processes ------------------------------------------------------------------------

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


def start(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """`biigma` in a process of its own, with as many threads as this one."""
    return subprocess.Popen(
        [sys.executable, "-m", "biigma_cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until the process has written `path`."""
    limit = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.fixture(scope="module")
def killed(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings of `tiny_run`, killed at a random moment of the second epoch."""
    for _ in range(5):
        runs = tmp_path_factory.mktemp("killed")
        process = start(
            [*TINY, "--epochs", "2", "--runs", str(runs), "--name", "killed"], {**os.environ}
        )
        wait_for(runs / "killed" / "weights" / "last.safetensors", process)
        time.sleep(random.uniform(0, 0.5))
        process.kill()
        process.communicate()
        # A fast machine can be through the second epoch by then.
        if last(runs / "killed").meta["epoch"] == 1:
            assert not (runs / "killed" / "summary.json").exists()
            return runs / "killed"
    pytest.fail("the second epoch was always over")


@posix
def test_killed_run_goes_on(killed: Path, tiny_run: Path, tmp_path: Path) -> None:
    """kill -9 loses the current epoch at most; the end is that of the uninterrupted run."""
    run = Path(shutil.copytree(killed, tmp_path / "run"))
    done = call("train", "--resume", run, "--device", "cpu")
    assert done.code == 0, done.err
    assert "resumed after epoch 1" in done.err
    same(last(run), last(tiny_run))
    assert len(rows_of(run)) == 2


@posix
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run(
    how: signal.Signals,
    killed: Path,
    tiny_run: Path,
    tmp_path: Path,
    bare_environment: dict[str, str],
) -> None:
    """Ctrl-C and SIGTERM write a checkpoint, name the command to go on with, and lose nothing."""
    run = Path(shutil.copytree(killed, tmp_path / "run"))
    before = (run / "weights" / "last.safetensors").read_bytes()
    lines = len((run / "train.log").read_text().splitlines())
    process = start(["train", "--resume", str(run), "--device", "cpu"], bare_environment)
    limit = time.monotonic() + 200
    while "resumed after" not in "".join((run / "train.log").read_text().splitlines()[lines:]):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(how)
    out, told = process.communicate(timeout=100)
    assert process.returncode == 128 + how, told
    assert out == ""
    assert f"biigma train --resume {run}" in told
    assert "a checkpoint was written" in told
    assert "Traceback" not in told
    assert (run / "weights" / "last.safetensors").read_bytes() != before
    assert (run / "weights" / "previous.safetensors").read_bytes() == before
    done = call("train", "--resume", run, "--device", "cpu")
    assert done.code == 0, done.err
    same(last(run), last(tiny_run))
