"""A run's figures as TensorBoard event files.

Written with the `tensorboard` package alone, so that neither torch nor a writing thread is needed:
a file that cannot be written is told at once.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from biigma_cli.errors import UsageError
from biigma_cli.storage import write_error


class TensorBoardLog:
    """Event files below a folder, one series an epoch and one a step.

    They lie in `epochs/` and `steps/`, which TensorBoard shows as two runs: each has its own count.
    Where the folder holds a log already, as when a run goes on, the first epoch and the first step
    written here take back what was logged from there on (TensorBoard's purge); nothing is shown
    twice, and what came before stays.

    Args:
        folder: made with the first figures, so that a training that is refused leaves nothing.

    Raises:
        UsageError: the `tensorboard` package is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._epochs = _EventFile(folder / "epochs")
        self._steps = _EventFile(folder / "steps")

    def epoch(self, row: Mapping[str, float], epoch: int) -> None:
        """A row of `metrics.csv` after epoch `epoch`, 1-based; handed to the system at once.

        Raises `BiigmaError` where it cannot be written, as `step` and `close` do.
        """
        self._epochs.scalars(
            {_tag(name): value for name, value in row.items() if name != "epoch"}, epoch
        )
        self._epochs.flush()
        self._steps.flush()

    def step(self, terms: Mapping[str, float], step: int) -> None:
        """Losses by name after step `step`, 1-based over all epochs."""
        self._steps.scalars({f"step/{name}": value for name, value in terms.items()}, step)

    def close(self) -> None:
        """Write what is left. Nothing may be logged afterwards."""
        self._epochs.close()
        self._steps.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _tag(name: str) -> str:
    """Validation figures, losses and the rest in groups of their own."""
    if name.startswith("val_"):
        return f"validation/{name.removeprefix('val_')}"
    rest = ("side", "lr", "images_per_s", "seconds", "kernel_mean", "head_cosine")
    if name == "loss":
        return "loss/total"
    return f"{'train' if name in rest else 'loss'}/{name}"


class _EventFile:
    """One event file, appended to by one writer."""

    def __init__(self, folder: Path) -> None:
        try:
            self._proto: Any = importlib.import_module("tensorboard.compat.proto.event_pb2")
            self._summary: Any = importlib.import_module("tensorboard.compat.proto.summary_pb2")
            self._writer: Any = importlib.import_module("tensorboard.summary.writer.record_writer")
        except ModuleNotFoundError as error:
            raise UsageError(
                f"a TensorBoard log needs a package that is not installed: {error.name}",
                fix="pip install 'biigma[tensorboard]'",
            ) from error
        self._folder = folder
        self._file: BinaryIO | None = None

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One event of several values."""
        found = [
            self._summary.Summary.Value(tag=tag, simple_value=float(value))
            for tag, value in values.items()
        ]
        with self._writing():
            if self._file is None:
                self._file = self._open()
                self._add(file_version="brain.Event:2")
                # Readers drop all earlier events from this step on.
                start = self._proto.SessionLog(status=self._proto.SessionLog.START)
                self._add(step=step, session_log=start)
            self._add(step=step, summary=self._summary.Summary(value=found))

    def flush(self) -> None:
        """Hand what is buffered to the operating system."""
        if self._file is not None:
            with self._writing():
                self._file.flush()

    def close(self) -> None:
        """Flush and close."""
        if self._file is not None:
            with self._writing():
                self._file.close()

    def _open(self) -> BinaryIO:
        self._folder.mkdir(parents=True, exist_ok=True)
        return _next_name(self._folder).open("xb")

    def _add(self, **event: Any) -> None:
        record = self._proto.Event(wall_time=time.time(), **event).SerializeToString()
        self._writer.RecordWriter(self._file).write(record)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise write_error(
                self._folder, error, full="free some space, or leave --tensorboard out"
            ) from error


def _next_name(folder: Path) -> Path:
    """A name that sorts after those there: readers take the files in that order."""
    stamps = [int(p.name.rsplit(".", 1)[1]) for p in folder.glob("events.out.tfevents.*")
              if p.name.rsplit(".", 1)[1].isdecimal()]  # fmt: skip
    stamp = max([int(time.time()), *(s + 1 for s in stamps)])
    return folder / f"events.out.tfevents.{stamp:010d}"
