"""kill -9 at many moments of one training: it ends as if nothing had happened.

A fork server imports torch once; each attempt is a fork of it, killed by itself at a drawn moment:
after a step, within validation, or while a file is being written.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from biigma_cli import config as cfg
from biigma_cli.core.weights import load_checkpoint
from biigma_cli.data.manifest import Manifest, load_manifest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")

KILLS = 24


def settings() -> cfg.Config:
    """Twelve short epochs, more than the kills let pass, with a checkpoint after each step."""
    values: dict[str, dict[str, Any]] = {
        "model": {"weights": "none", "projection_channels": 8, "adapter_channels": 4},
        "data": {"side": 64},
        "train": {
            "epochs": 12, "batch_size": 8, "precision": "fp32", "sampling_start_epoch": 1,
            "checkpoint_minutes": 1e-9,
        },
    }  # fmt: skip
    return cfg.from_dict(values, cfg.preset("light"))


def attempt(manifest: Manifest, run: Path, kind: str, countdown: int) -> None:
    """Train or go on, and die at the given moment: the `countdown`-th of its `kind`."""
    from biigma_cli.engine.events import PhaseEvent, StepEvent
    from biigma_cli.engine.train import train

    torch.set_num_threads(1)
    left = [countdown]

    def tick(*_: object) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_event(event: object) -> None:
        if kind == "step" and isinstance(event, StepEvent):
            tick()
        if kind == "validation" and isinstance(event, PhaseEvent) and event.phase == "validation":
            tick()

    if kind in ("fsync", "replace", "link"):
        # In the middle of writing: before the data is safe, before a file takes its place, before
        # the old checkpoint has its second name.
        where: Any = Path if kind == "replace" else os
        real = getattr(where, kind)

        def deadly(*arguments: Any, **options: Any) -> Any:
            tick()
            return real(*arguments, **options)

        setattr(where, kind, deadly)
    last = run / "weights" / "last.safetensors"
    train(
        settings(), manifest, run,
        device=torch.device("cpu"), resume=last.is_file(), on_event=on_event,
    )  # fmt: skip


def test_killed_at_many_moments(home: Path, tmp_path: Path) -> None:
    """Twenty-four kills, then the end: every tensor as in the run that nobody disturbed."""
    manifest = load_manifest("isic18")
    kept = []
    for code in manifest.taxonomy.codes:
        own = [r for r in manifest.records if r.label == code]
        lesions = list(dict.fromkeys(r.lesion_id for r in own))[:5]
        kept += [r for r in own if r.lesion_id in lesions]
    small = dataclasses.replace(manifest, records=tuple(sorted(kept, key=lambda r: r.image_id)))

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["biigma_cli.engine.train", "tests.engine.test_killed"])

    def go(run: Path, kind: str = "", countdown: int = 0) -> int | None:
        process = context.Process(target=attempt, args=(small, run, kind, countdown))
        process.start()
        process.join()
        return process.exitcode

    whole, run = tmp_path / "whole", tmp_path / "run"
    assert go(whole) == 0
    draws = random.Random(7)
    kinds = ["step", "validation", "fsync", "replace", "link"]
    for i in range(KILLS):
        kind = kinds[i % len(kinds)]
        code = go(run, kind, 1 if kind == "validation" else draws.randint(1, 3))
        assert code == -signal.SIGKILL, (i, kind)
    assert go(run) == 0
    for name in ("best", "last"):
        ours, theirs = (
            load_checkpoint(r / "weights" / f"{name}.safetensors") for r in (run, whole)
        )
        assert ours.tensors.keys() == theirs.tensors.keys()
        differing = [k for k in ours.tensors if not torch.equal(ours.tensors[k], theirs.tensors[k])]
        assert not differing
        assert ours.meta["epoch"] == theirs.meta["epoch"]
