"""The training loop. It prints nothing: it calls `on_event`, which the command line displays."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from biigma_cli.config import Config, to_toml
from biigma_cli.core.backbone import resolve_normalisation
from biigma_cli.core.exported import exported_file, settle_norms
from biigma_cli.core.header import caveats_of
from biigma_cli.core.loss import Criterion
from biigma_cli.core.model import BiigmaNet
from biigma_cli.core.sources import (
    Source,
    as_source,
    joint_citation,
    joint_licence,
    merged,
    sources_of,
)
from biigma_cli.core.weights import (
    Checkpoint,
    load_checkpoint,
    load_into,
    model_state,
    save_checkpoint,
)
from biigma_cli.data.augment import resize_batch
from biigma_cli.data.backgrounds import Backgrounds, check_masks, load_backgrounds, masks_digest
from biigma_cli.data.extra import add_extra, find_extra
from biigma_cli.data.images import Part, load_part
from biigma_cli.data.manifest import Manifest
from biigma_cli.data.preprocess import Pixels
from biigma_cli.data.splits import Split, check_same_split, make_split, poorly_judged
from biigma_cli.engine import distributed
from biigma_cli.engine.average import Average
from biigma_cli.engine.checkpoints import (
    Row,
    RunFiles,
    State,
    check_resumable,
    finite_weights,
    restore,
    training_tensors,
)
from biigma_cli.engine.device import device_name, memory_in_use, pick_precision
from biigma_cli.engine.distributed import Ranks
from biigma_cli.engine.evaluate import predict_proba, prepare, to_batch, validation_figures
from biigma_cli.engine.events import EpochEvent, Event, NoteEvent, PhaseEvent, StepEvent
from biigma_cli.engine.feed import Batch, Feed, epoch_batches
from biigma_cli.engine.interrupt import StopRequest
from biigma_cli.engine.lock import held
from biigma_cli.engine.provenance import (
    ancestry,
    check_unseen,
    line_of,
    run_of,
    trunk_source,
    versions,
)
from biigma_cli.engine.schedule import learning_rate, side_at
from biigma_cli.engine.step import Stepper, build_optimizer
from biigma_cli.engine.teachers import Teachers
from biigma_cli.errors import (
    BiigmaError,
    CheckpointMismatch,
    Interrupted,
    ModelFileError,
    TrainingDiverged,
    UsageError,
)
from biigma_cli.storage import atomic_write_text, write_json

SetUp = Literal["decoding", "backgrounds", "teachers"]

SELECTION = {
    "macro_f1": "macro_f1 on the validation part",
    "log_loss": "log loss on the validation part",
    "last": "none: the last epoch",
}

# A loss that grew to this many times the first one will not come back.
DIVERGED = 100.0

# Images whose statistics the batch norms of an exported trunk begin with.
SETTLING = 256

# Reading a number off a GPU makes it wait, so there the figures are read once in so many steps.
READ_EVERY_CUDA = 10


def train(
    config: Config,
    manifest: Manifest,
    run: Path,
    *,
    device: torch.device,
    ranks: Ranks | None = None,
    resume: bool = False,
    command: str = "",
    stop: StopRequest | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> dict[str, Any]:
    """Train, choosing the epoch by `train.select` on the validation part.

    The test part is cut off and never decoded here. The run folder gets `config.toml`,
    `split.json`, `metrics.csv`, `weights/best.safetensors`, `weights/last.safetensors` and
    `weights/previous.safetensors` (the whole state, twice) and, at the end, `summary.json`, each
    written whole or not at all. Killed at any time, a run goes on from its newest checkpoint with
    `resume`, in the middle of an epoch too, and on the CPU ends with the same weights to the bit.

    With several `ranks`, each takes its slice of every batch (`train.batch_size` is that of all
    together) and the first alone writes and tells.

    Args:
        ranks: this process among those that train together; None for a single one on `device`.
        stop: asked for between two steps and within validation; when set, a checkpoint is written
            and `Interrupted` raised.

    Returns:
        the summary.

    Raises:
        TrainingDiverged: the loss became NaN, infinite or `DIVERGED` times the first one, or the
            weights or what they answer on validation did not stay finite; names the batch, where
            it is the loss, and the last good checkpoint.
        CheckpointMismatch: `resume` with another config, data set, split, lesion masks or teachers.
        Interrupted: on a request to stop.
        RunBusy: another process is training in that folder.
        BiigmaError: a checkpoint could not be written; the one before is whole.
    """
    ranks = ranks or Ranks.single(device)
    run_files = RunFiles(run)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model,
            normalisation=_normalisation(config),  # type: ignore[arg-type]
        ),
    )
    tell = on_event if ranks.is_main else _silent
    with held(run) if ranks.is_main else contextlib.nullcontext():
        return _Training(
            config, manifest, run_files, ranks, resume=resume, command=command,
            stop=StopRequest() if stop is None else stop, tell=tell,
        ).run()  # fmt: skip


def _silent(_: Event) -> None:
    """What the other ranks tell."""


def _normalisation(config: Config) -> str:
    """That of the network or the backbone weights it begins with, unless one is chosen."""
    if config.model.normalisation == "auto" and config.train.init:
        return load_checkpoint(Path(config.train.init), tensors=False).config.model.normalisation
    return resolve_normalisation(config.model)


class _Training:
    """One training, from its first step to its last."""

    def __init__(
        self,
        config: Config,
        manifest: Manifest,
        files: RunFiles,
        ranks: Ranks,
        *,
        resume: bool,
        command: str,
        stop: StopRequest,
        tell: Callable[[Event], None],
    ) -> None:
        self.config, self.manifest, self.files, self.ranks = config, manifest, files, ranks
        self.stop, self.tell = stop, tell
        self.device = device = ranks.device
        self.codes = list(manifest.taxonomy.codes)
        self.split = make_split(manifest, config.data)
        with distributed.shared_errors():
            self.extras = find_extra(manifest, config.data)
        self.joined = [extra.summary() for extra in self.extras]
        if ranks.world > 1:
            _check_for_ranks(config, self.split, self.joined, ranks)
        # Read by one: the others need not see its disk.
        found: tuple[Checkpoint, Path] | None = None
        if resume:
            found = distributed.broadcast_object(files.newest() if ranks.is_main else None)
        self.last: Checkpoint | None
        self.last, source = found if found else (None, Path())
        if self.last is not None:
            # Before teachers and masks are looked at: of other data they would say something else.
            check_resumable(self.last, config, self.split, extra=self.joined)
        self.command = (self.last.meta.get("command") if self.last else None) or command
        # Built before anything is written or decoded: weights that do not fit end it here.
        with distributed.shared_errors():  # not all may have the data that teachers learnt from
            self.teachers = Teachers(
                config.train.teachers, manifest=manifest, split=self.split, device=device,
                rule=None if config.train.teacher_view == "once" else config.data.resize,
            )  # fmt: skip
        self.ancestors = self.teachers.ancestors
        # As they are now: a commit or an edit in the checkout does not change what runs.
        self.versions = versions(config.model)
        self.masks = ""
        if config.train.backgrounds:
            with distributed.shared_errors():
                check_masks(manifest, self.split.train)
                self.masks = masks_digest(manifest, self.split.train)
        if self.last is not None:
            check_resumable(
                self.last, config, self.split, self.teachers.digests, self.joined, self.masks
            )
        self.model = self._build()
        if ranks.is_main:
            atomic_write_text(files.run / "config.toml", to_toml(config))
            atomic_write_text(files.run / "split.json", self.split.to_json())

        with distributed.shared_errors():
            self.train_part, self.val_part = self._load("train"), self._load("val")
            own = len(self.train_part.ids)
            backgrounds = self._backgrounds()
            self.train_part = self._with_extra(self.train_part)
        self.precision = pick_precision(config.train.precision, device)
        with_others = f" on {ranks.world} processes" if ranks.world > 1 else ""
        tell(NoteEvent(text=f"training on {device} in {self.precision}{with_others}"))
        for line in poorly_judged(self.split, manifest):
            tell(NoteEvent(text=f"warning: {line}"))
        for caveat in caveats_of(self.sources):
            tell(NoteEvent(text=f"warning: {caveat}; record it and train again to know"))
        counts = torch.from_numpy(np.bincount(self.train_part.labels, minlength=len(self.codes)))
        criterion = Criterion(config.loss, config.model, counts).to(device)
        self._settle()
        self.optimizer = build_optimizer(self.model, config, device)
        self.average = Average(self.model, config.train.ema) if config.train.ema else None
        with distributed.shared_errors():
            taught = self._ask_once()
        self.feed = Feed(self.train_part, device, own=own, taught=taught)
        self.state = State()
        if self.last is not None:
            self.state = restore(self.last, self.model, self.optimizer, self.average)
            tell(NoteEvent(text=f"resumed {_moment(self.state)} from {source.name}"))
            self._miss_best()
        self.saved_at = time.monotonic()
        self.step = Stepper(
            config, self.model, criterion, self.optimizer, self.average, self.teachers, ranks,
            precision=self.precision, backgrounds=backgrounds,
        )  # fmt: skip

    # --- setting up ---------------------------------------------------------------------------

    def _miss_best(self) -> None:
        """Where the chosen network is gone, choose among the epochs still to come.

        So it is, too, where a run was killed between its two files, or goes on from the checkpoint
        before: another network has taken its place. Computed again, that epoch is chosen again.

        Raises `ModelFileError` where no epoch is to come.
        """
        gone = ""
        if self.ranks.is_main and self.state.best_epoch:
            try:
                kept = load_checkpoint(self.files.best, tensors=False).meta["epoch"]
                if kept != self.state.best_epoch:
                    gone = f"{self.files.best} is of epoch {kept}"
            except ModelFileError as error:
                gone = error.message
        gone = distributed.broadcast_object(gone)
        if not gone:
            return
        if self.state.epoch >= self.config.train.epochs:
            raise ModelFileError(
                f"{gone}: the chosen network is lost, and no epoch is left to choose from",
                fix="train it again, under another name",
            )
        epoch = self.state.best_epoch
        self.state = dataclasses.replace(self.state, best_epoch=0, best_score=-1.0)
        self.tell(
            NoteEvent(
                text=f"warning: {gone}: the network of epoch {epoch}, the best so far, is lost; "
                "the best of the epochs to come is kept"
            )
        )

    def _build(self) -> BiigmaNet:
        config, tc = self.config, self.config.train
        first = behind = None
        learnt_from: list[Source] = []
        if self.last is None and tc.init:
            behind = first = load_checkpoint(Path(tc.init))
            # Another split would have shown the network images that are test images here.
            check_same_split(self.split, first.meta["split"], source=tc.init)
            learnt_from = self._unseen(tc.init, first)
            scaled = first.config.model.normalisation
            if scaled != config.model.normalisation:
                raise CheckpointMismatch(
                    f"{tc.init} takes its input as {scaled}, not {config.model.normalisation}",
                    fix=f"leave model.normalisation at auto, or set it to {scaled}",
                )
        elif self.last is None:
            behind = trunk_source(config.model)
            if behind is not None:
                learnt_from = self._unseen(config.model.weights, behind)
        self._record_sources(behind, learnt_from)
        torch.manual_seed(tc.seed)
        fresh = self.last is None and first is None
        model = BiigmaNet(config.model, len(self.codes), load_weights=fresh)
        if first is not None:
            load_into(model, first, classes=self.codes)
        model = prepare(model, self.device)
        if tc.sync_bn:
            model = distributed.sync_batchnorm(model, self.device)
        if tc.compile == "graphs" and self.device.type != "cuda":
            raise UsageError(
                "train.compile=graphs needs a CUDA device", fix="use train.compile=default, or no"
            )
        if tc.compile != "no":
            # In place, so that names in checkpoints stay. Only the trunk: it is the cost.
            model.trunk.compile(mode="reduce-overhead" if tc.compile == "graphs" else None)
        return model

    def _settle(self) -> None:
        """Make a trunk that comes from an exported model fit to be trained."""
        config = self.config
        fresh = self.last is None and not config.train.init
        if not fresh or exported_file(config.model.weights) is None:
            return
        pixels = self.train_part.pixels[:: max(1, len(self.train_part.ids) // SETTLING)]
        image = to_batch(torch.from_numpy(pixels), self.device)
        image = resize_batch(image, side_at(config.train, 0, config.data.side))
        settle_norms(self.model.trunk, image * self.model.pixel_scale + self.model.pixel_shift)

    def _unseen(self, source: str, network: Checkpoint) -> list[Source]:
        with distributed.shared_errors():
            return check_unseen(self.split, self.manifest, source, network)

    def _record_sources(self, behind: Checkpoint | None, learnt_from: Sequence[Source]) -> None:
        """Whose weights and answers this network has learnt from, and which images."""
        own = as_source({**self.split.summary(), **vars(self.manifest)})
        beside = [as_source(extra, beside=self.manifest.dataset) for extra in self.joined]
        self.sources = merged([own, *beside], self.teachers.sources)
        if self.last is not None:
            self.sources = merged(sources_of(self.last), self.sources)
            self.ancestors = self.last.meta.get("ancestors", self.ancestors)
        if behind is not None:
            self.sources = merged(self.sources, learnt_from)
            line = line_of(
                run_of(Path(self.config.train.init or self.config.model.weights)), behind
            )
            self.ancestors = ancestry(line, self.ancestors)

    def _decoding(self, done: int, total: int) -> None:
        self._told("decoding", done, total)

    def _told(self, phase: SetUp, done: int, total: int) -> None:
        self.tell(PhaseEvent(phase=phase, done=done, total=total))
        self._give_up_if_stopped()

    def _give_up_if_stopped(self) -> None:
        if self.stop:
            if self.last is None:
                said, fix = "the first step; there is nothing to go on from", ""
            else:
                said = "the next step; the checkpoint is as it was"
                fix = f"go on with: biigma train --resume {self.files.run}"
            raise Interrupted(f"stopped before {said}", fix=fix, exit_code=self.stop.exit_code)

    def _ask_once(self) -> Tensor | None:
        """The teachers' answers for the own training images, where they are asked once."""
        if not self.teachers or self.config.train.teacher_view != "once":
            return None

        def load(side: int, rule: str) -> Pixels:
            return self._decoded("train", side, rule).pixels

        device = self.ranks.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.teachers.once(load, device, partial(self._told, "teachers"))

    def _backgrounds(self) -> Backgrounds | None:
        """The training images without their lesions, where `train.backgrounds` needs them."""
        config = self.config
        if not config.train.backgrounds:
            return None
        found = load_backgrounds(
            self.manifest, self.train_part, rule=config.data.resize,
            progress=partial(self._told, "backgrounds"),
        )  # fmt: skip
        usable, own = len(found.filled_MSS3), len(self.train_part.ids)
        self.tell(NoteEvent(text=f"{usable} of {own} train images have a lesion mask to go by"))
        return found

    def _with_extra(self, part: Part) -> Part:
        for told in self.joined:
            text = f"{told['images']} training images of {told['dataset']} join"
            left = [f"{told['known']} are known here"] * bool(told["known"])
            left += [f"{n} {code} have no class here" for code, n in told["classless"].items()]
            self.tell(NoteEvent(text=text + (f"; left out: {', '.join(left)}" if left else "")))
        return add_extra(
            part, self.manifest, self.extras, self.config.data,
            progress=self._decoding, warn=lambda text: self.tell(NoteEvent(text=text)),
        )  # fmt: skip

    def _load(self, name: str) -> Part:
        part = self._decoded(name, self.config.data.side, self.config.data.resize)
        self.tell(NoteEvent(text=f"{len(part.ids)} {name} images"))
        return part

    def _decoded(self, name: str, side: int, rule: str) -> Part:
        return load_part(
            self.manifest, self.split.part(name), side, rule=rule, build=True,
            progress=self._decoding, warn=lambda text: self.tell(NoteEvent(text=text)),
        )  # fmt: skip

    # --- the loop -----------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """All epochs; returns the summary."""
        while self.state.epoch < self.config.train.epochs:
            row = self._epoch()
            self._judge(row)
        summary = self._summary()
        if self.ranks.is_main:
            self._write_metrics()  # a run killed after its last checkpoint may lack the last row
            write_json(self.files.run / "summary.json", summary)
        return summary

    def _epoch(self) -> Row:
        """The rest of the epoch under way; returns its row of `metrics.csv`, yet unjudged."""
        tc, state = self.config.train, self.state
        batches = epoch_batches(self.feed.labels, tc, state.epoch)
        every = READ_EVERY_CUDA if self.device.type == "cuda" else 1
        pending: list[Tensor] = []
        mine = self.ranks.slice_of(len(batches[0]))
        left = batches[state.step :]
        feed = self.feed([index[mine] for index in left])
        began, spent = time.perf_counter(), state.spent
        for index, batch in zip(left, self._timed(feed), strict=True):
            done = self.step(
                batch, epoch=state.epoch, step=state.step, steps=len(batches), size=len(index)
            )
            pending.append(done.values_T)
            state.names = done.names
            state.step += 1
            state.spent = spent + time.perf_counter() - began
            if state.step % every and state.step != len(batches):
                continue
            stop, shown = self._read(pending, batches)
            pending = []
            self._tell_step(shown, done.lr, len(batches), tc.batch_size)
            # Several processes have agreed on it above; alone, no step is waited for.
            stop = stop or (self.ranks.world == 1 and bool(self.stop))
            if stop or self._is_time():
                self._save()
            if stop:
                self._leave()
        return {
            "epoch": state.epoch + 1,
            "side": side_at(tc, state.epoch, self.config.data.side),
            "lr": learning_rate(tc, (state.epoch + 1) * len(batches) - 1, tc.epochs * len(batches)),
            "images_per_s": state.step * len(batches[0]) / max(state.spent, 1e-9),
            "data_wait": state.waited / max(state.spent, 1e-9),
            **{n: s / state.step for n, s in zip(state.names, state.sums, strict=True)},
        }

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, adding the time that was waited for them to the state."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.state.waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def _read(self, pending: list[Tensor], batches: list[Tensor]) -> tuple[bool, dict[str, float]]:
        """Take the values of the last steps into the sums, stopping at a loss that diverged.

        Returns whether any rank was asked to stop, and the means over the steps read.
        """
        state, stop = self.state, bool(self.stop)
        values_ST = torch.stack(pending)
        if self.ranks.world > 1:
            flag = values_ST.new_full((len(pending), 1), float(stop))
            values_ST = distributed.mean_over_ranks(torch.cat((values_ST, flag), 1))
            stop, values_ST = bool(values_ST[0, -1] > 0), values_ST[:, :-1]
        rows = values_ST.tolist()
        for i, row in enumerate(rows):
            loss = row[0]
            state.first_loss = state.first_loss or loss
            if not math.isfinite(loss) or loss > DIVERGED * max(1.0, state.first_loss):
                step = state.step - len(rows) + i
                ids = [self.train_part.ids[k] for k in batches[step].tolist()]
                named = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
                raise self._diverged(
                    f"the loss is {loss:.4g} in epoch {state.epoch + 1}, step {step + 1}",
                    f"images of the batch: {named}",
                )
            old = state.sums or [0.0] * len(row)
            state.sums = [a + b for a, b in zip(old, row, strict=True)]
        means = np.mean(rows, axis=0).tolist()
        return stop, dict(zip(state.names, means, strict=True))

    def _diverged(self, *said: str) -> TrainingDiverged:
        """The error, with the checkpoint that is left after the first of what is `said`."""
        whole = self.files.whole()
        kept = f"the last good checkpoint is {whole}" if whole else "no checkpoint was written"
        return TrainingDiverged(
            "; ".join((said[0], kept, *said[1:])),
            fix="lower train.lr, or set train.grad_clip and train.precision=fp32",
        )

    def _check_weights(self, tensors: dict[str, Tensor]) -> None:
        """Raise `TrainingDiverged` before weights that nobody can go on from are written.

        The loss alone would show it a step later.
        """
        if not finite_weights(tensors):
            raise self._diverged(f"the weights are not finite {_moment(self.state)}")

    def _tell_step(self, shown: dict[str, float], lr: float, steps: int, size: int) -> None:
        state = self.state
        shown = dict(shown)
        loss = shown.pop("loss")
        kernel, cosine = shown.pop("kernel_mean", None), shown.pop("head_cosine", None)
        self.tell(
            StepEvent(
                epoch=state.epoch + 1,
                epochs=self.config.train.epochs,
                step=state.step,
                steps=steps,
                images_per_s=state.step * size / max(state.spent, 1e-9),
                lr=lr,
                loss=loss,
                terms=shown,
                kernel_mean=kernel,
                head_cosine=cosine,
                memory_bytes=memory_in_use(self.device),
            )
        )

    # --- judging ------------------------------------------------------------------------------

    def _judge(self, row: Row) -> None:
        """Validate, keep the epoch if it is the best so far, and begin the next one."""
        state = self.state
        began = time.perf_counter()
        judged = self.average.network(self.model) if self.average else self.model
        # Each rank's norms saw its own images: what is judged is the network that is written.
        distributed.broadcast_buffers(judged)
        self._check_weights(training_tensors(self.model, self.optimizer, self.average))
        # In float32, as the exported model will run: in bf16 other epochs look best.
        proba = self._validate(judged)
        if not np.isfinite(proba).all():
            raise self._diverged(
                f"the answers for the validation part are not finite {_moment(state)}"
            )
        figures = validation_figures(self.val_part.labels, proba, self.codes)
        row |= figures
        row["seconds"] = state.spent + time.perf_counter() - began
        score = {
            "macro_f1": figures["val_macro_f1"],
            "log_loss": -figures["val_log_loss"],
            "last": float(state.epoch),
        }[self.config.train.select]
        first_loss, best = state.first_loss, not state.best_epoch or score > state.best_score
        self.state = State(
            epoch=state.epoch + 1,
            best_score=score if best else state.best_score,
            best_epoch=state.epoch + 1 if best else state.best_epoch,
            seconds=state.seconds + float(row["seconds"]),
            rows=[*state.rows, row],
            columns=list(dict.fromkeys([*state.columns, *row])),
            first_loss=first_loss,
        )
        if self.ranks.is_main:
            if best:
                with self._keeping_the_run():
                    save_checkpoint(self.files.best, model_state(judged), self._meta())
            self._save()
            self._write_metrics()
        epochs = self.config.train.epochs
        self.tell(EpochEvent(epoch=self.state.epoch, epochs=epochs, row=row, best=best))

    def _write_metrics(self) -> None:
        with self._keeping_the_run():
            atomic_write_text(self.files.run / "metrics.csv", _as_csv(self.state))

    def _validate(self, judged: BiigmaNet) -> npt.NDArray[np.float32]:
        """Probabilities for the validation part, `(n, Y)`, each rank computing its share."""

        def progress(done: int, total: int) -> None:
            self.tell(PhaseEvent(phase="validation", done=done, total=total))
            # Ranks must not part ways here: they stop after the next step.
            if self.stop and self.ranks.world == 1:
                self._save()
                self._leave()

        rank, world = self.ranks.rank, self.ranks.world
        proba = predict_proba(
            judged, self.val_part.pixels[rank::world], device=self.device, progress=progress
        )
        if world == 1:
            return proba
        whole = np.empty((len(self.val_part.ids), len(self.codes)), np.float32)
        for i, share in enumerate(distributed.gather_objects(proba)):
            whole[i::world] = share
        return whole

    # --- writing ------------------------------------------------------------------------------

    def _is_time(self) -> bool:
        # Asked of one rank alone: the others neither write nor wait.
        minutes = self.config.train.checkpoint_minutes
        return (
            self.ranks.is_main and minutes > 0 and time.monotonic() - self.saved_at > 60 * minutes
        )

    def _save(self) -> None:
        if not self.ranks.is_main:
            return
        tensors = training_tensors(self.model, self.optimizer, self.average)
        self._check_weights(tensors)
        meta = {**self._meta(), "state": dataclasses.asdict(self.state)}
        with self._keeping_the_run():
            self.files.save_last(tensors, meta)
        self.saved_at = time.monotonic()

    @contextlib.contextmanager
    def _keeping_the_run(self) -> Iterator[None]:
        """Around a write: where it fails, the error says what of the run is left."""
        try:
            yield
        except BiigmaError as error:
            whole = self.files.whole()
            left, then = "no checkpoint was written before", "start it again"
            if whole is not None:
                left = f"the checkpoint before it, {whole}, is whole"
                then = f"biigma train --resume {self.files.run}"
            mend = "make it writable" if isinstance(error, UsageError) else "free some space"
            kind = UsageError if isinstance(error, UsageError) else BiigmaError
            raise kind(f"{error.message}; {left}", fix=f"{mend}, then: {then}") from error

    def _leave(self) -> None:
        distributed.barrier()  # until the first rank has written
        raise Interrupted(
            f"stopped {_moment(self.state)}; a checkpoint was written",
            fix=f"go on with: biigma train --resume {self.files.run}",
            exit_code=self.stop.exit_code,
        )

    def _meta(self) -> dict[str, Any]:
        """What a checkpoint says of itself."""
        rows = self.state.rows
        row = rows[-1] if rows else {}
        return {
            "config": self.config.to_dict(),
            "classes": self.codes,
            "split": self.split.summary(),
            "protocol": self.split.title,
            "licence": joint_licence(self.sources),
            "citation": joint_citation(self.sources),
            "sources": self.sources,
            "epoch": self.state.epoch,
            "selection": SELECTION[self.config.train.select],
            "validation": {k: v for k, v in row.items() if k.startswith("val_")},
            "versions": self.versions,
            "teachers": self.teachers.digests,
            "extra": self.joined,
            "masks": self.masks,
            "processes": self.ranks.world,
            "command": self.command,
            "ancestors": self.ancestors,
        }

    def _summary(self) -> dict[str, Any]:
        state, ranks = self.state, self.ranks
        return {
            "run": self.files.run.name,
            "dataset": self.manifest.dataset,
            "protocol": self.split.title,
            "split": self.split.summary(),
            "selection": SELECTION[self.config.train.select],
            "best_epoch": state.best_epoch,
            "best_val_macro_f1": float(state.rows[state.best_epoch - 1]["val_macro_f1"]),
            "epochs": state.epoch,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "device": device_name(self.device),
            "processes": ranks.world,
            "precision": self.precision,
            "seed": self.config.train.seed,
            "seconds": round(state.seconds, 1),
            "device_hours": round(state.seconds * ranks.world / 3600, 4),
            "versions": self.versions,
        }


def _check_for_ranks(
    config: Config, split: Split, joined: list[dict[str, Any]], ranks: Ranks
) -> None:
    """What several processes need to be one training."""
    if config.loss.class_weights == "batch":
        raise UsageError(
            "loss.class_weights=batch looks at one process's batch only",
            fix="use inverse or inverse_sqrt with several processes",
        )
    ranks.slice_of(config.train.batch_size)
    others = tuple((e["data_hash"], e["split_hash"]) for e in joined)
    hashes = distributed.gather_objects((split.data_hash, split.split_hash, others))
    if len(set(hashes)) > 1:
        raise UsageError(
            "the processes do not have the same data: their data or split hashes differ",
            fix="record the same data set on every machine",
        )


def _moment(state: State) -> str:
    """Where a state stands, in words."""
    if state.step:
        return f"in epoch {state.epoch + 1} after step {state.step}"
    return f"after epoch {state.epoch}"


def _as_csv(state: State) -> str:
    rows = state.rows
    # Checkpoints of earlier versions know no order; the names in their rows are sorted.
    columns = list(dict.fromkeys(("epoch", *state.columns, *(key for row in rows for key in row))))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)  # every digit: whoever rounds them says what was said of the epoch
    return text.getvalue()


__all__ = ["train"]
