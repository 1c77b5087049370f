"""`biigma predict`: classify images with an exported model, without torch."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Self

import typer

from biigma_cli.cli.boundary import boundary, note

if TYPE_CHECKING:
    from biigma_cli.report.predictions import (
        Answered,
        Labels,
        Output,
        Prediction,
        Provenance,
        Writer,
    )
    from biigma_cli.runtime.inputs import Source
    from biigma_cli.runtime.pipeline import Result
    from biigma_cli.runtime.session import Predictor

# Failures that come before the first answer are kept back, so that a run without any leaves no
# output; more than so many are written all the same, and what was begun is finished.
HELD = 256


@boundary
def predict(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE...",
            help="Images, folders, patterns such as 'a/**/*.jpg'; - is stdin: an image, or a list.",
        ),
    ] = None,
    from_list: Annotated[
        str | None,
        typer.Option(
            "--from-list",
            metavar="FILE",
            help="Files to classify, one a line or each ended by a null byte; - is stdin.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="An exported .onnx file, or the name of a shipped model."),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", help="table, csv, json or jsonl.  [default: as -o ends, or table]"
        ),
    ] = None,
    topk: Annotated[int, typer.Option("--topk", min=1, help="Classes to name per image.")] = 3,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write there instead; - is stdout.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted -o FILE (csv, jsonl).")
    ] = False,
    abstain_below: Annotated[
        float | None,
        typer.Option(
            "--abstain-below", metavar="P", help='Answer "can\'t say" where no class reaches P.'
        ),
    ] = None,
    tta: Annotated[
        bool, typer.Option("--tta", help="Average over flips and quarter turns: 8 times the work.")
    ] = False,
    device: Annotated[
        str,
        typer.Option("--device", help="auto, cpu, cuda, cuda:N, tensorrt, coreml or openvino."),
    ] = "auto",
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-b", min=1, help="Images run together.")
    ] = 16,
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-j", min=1, help="Decoding threads.  [default: one per core]"),
    ] = None,
) -> None:
    """Classify dermoscopic images.

    Every file is answered for, in order. A damaged one costs its own row, and the exit code is 5.
    """
    from biigma_cli import __version__
    from biigma_cli.errors import ImageError, PartialFailure, UsageError
    from biigma_cli.report.predictions import (
        DISCLAIMER,
        FORMATS,
        RESUMABLE,
        Answered,
        CsvWriter,
        JsonlWriter,
        Labels,
        Output,
        Provenance,
    )

    target = None if output is None or str(output) == "-" else output
    form = format_ or _format_of(target)
    if form not in FORMATS:
        raise UsageError(f"unknown --format {form!r}", fix=f"choose one of: {', '.join(FORMATS)}")
    if abstain_below is not None and not 0 <= abstain_below <= 1:
        raise UsageError(f"--abstain-below is {abstain_below}", fix="give a probability, 0 to 1")
    if resume and (target is None or form not in RESUMABLE):
        raise UsageError(
            "--resume needs a file of rows to go on with",
            fix="add -o FILE and --format csv or jsonl",
        )
    inputs = _Inputs(paths or [], from_list)
    sink = Output(target, keep=form in RESUMABLE, resume=resume)
    sources = inputs.sources()

    from biigma_cli.runtime.pipeline import VIEWS, classify
    from biigma_cli.runtime.session import Predictor, find_model
    from biigma_cli.storage import available_cpus

    predictor = Predictor(find_model(model), device=device)
    info = predictor.info
    labels = Labels(codes=info.classes, names=info.class_names, malignant=info.malignant)
    settings: dict[str, float] = {"tta": VIEWS} if tta else {}
    if abstain_below is not None:
        settings["abstain_below"] = abstain_below
    made = Provenance(
        model=predictor.id, version=__version__, provider=predictor.provider, settings=settings
    )
    writer = _writer(form, labels, made, topk, predictor, to_file=target is not None)
    sure = "" if info.temperature is None else f", calibrated (T = {info.temperature:.3f})"
    threads = workers or available_cpus()
    note(
        f"model {predictor.id} on {predictor.provider}{sure}, {threads} decoding threads, "
        f"batches of {batch_size}"
    )
    if predictor.fallback:
        note(f"not on the GPU: {predictor.fallback}")

    answered = Answered()
    if resume and isinstance(writer, CsvWriter | JsonlWriter):
        answered = sink.resume(writer)
        if len(answered):
            note(f"{len(answered)} files are answered already")
    tally = _Tally(sink, writer, answered)
    new = (s for s in sources if not answered.take(s.name))
    batches = classify(predictor, new, batch_size=batch_size, workers=threads, tta=tta)
    try:
        with StreamProgress(inputs.count, before=len(answered)) as progress:
            for batch in batches:
                tally.add([_record(r, labels, abstain_below) for r in batch], batch)
                progress(tally.done)
        tally.end()
    except BaseException:
        batches.close()
        kept = sink.drop()
        if kept is not None:
            note(f"what was answered is in {kept}; --resume goes on with it")
        raise
    if tally.failed and tally.failed == tally.done:
        if tally.done == 1 and tally.alone is not None:
            raise tally.alone
        raise ImageError(
            f"none of {tally.failed} images could be read",
            fix="the error column says why" if tally.begun else "see the lines above",
        )
    note(DISCLAIMER)
    if tally.failed:
        raise PartialFailure(
            f"{tally.done - tally.failed} ok, {tally.failed} failed",
            fix="the error column says why",
        )


class _Inputs:
    """What the command line names."""

    def __init__(self, paths: list[str], from_list: str | None) -> None:
        from biigma_cli.errors import UsageError

        self.paths = paths
        self.list = from_list
        if from_list is not None and paths:
            raise UsageError("both images and --from-list are given", fix="give one of them")
        if from_list is None and not paths:
            raise UsageError("nothing to classify", fix="name images or folders, or - for stdin")
        if "-" in paths and len(paths) > 1:
            raise UsageError("- stands for stdin, alone", fix="give - or names of files")

    def sources(self) -> Iterator[Source]:
        """Each in turn. What cannot give any raises at once."""
        from biigma_cli.runtime.inputs import expand, read_list, read_stdin

        if self.list is not None:
            return read_list(_stdin()) if self.list == "-" else _read_file(_opened(self.list))
        if self.paths == ["-"]:
            return read_stdin(_stdin())
        return expand(self.paths, warn=note)

    def count(self, stop: Callable[[], bool]) -> int | None:
        """How many there are, where that can be known without using them up."""
        from biigma_cli.runtime.inputs import count, read_list

        if self.paths == ["-"] or self.list == "-":
            return None
        if self.list is None:
            return count(self.paths, stop)
        total = 0
        if not Path(self.list).is_file():
            return None  # a pipe, which can be read but once
        with _opened(self.list) as file:
            for _ in read_list(file):
                total += 1
                if stop():
                    return None
        return total


def _read_file(file: BinaryIO) -> Iterator[Source]:
    from biigma_cli.runtime.inputs import read_list

    with file:
        yield from read_list(file)


def _opened(path: str) -> BinaryIO:
    from biigma_cli.errors import DataError

    try:
        return open(path, "rb", buffering=0)  # noqa: PTH123 - its reader ends it
    except OSError as error:
        raise DataError(
            f"cannot read the list {path}: {error.strerror}", fix="check --from-list"
        ) from error


def _stdin() -> BinaryIO:
    """Standard input, unbuffered: a thread that waits in its buffer would trouble the exit."""
    try:
        return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)
    except (OSError, ValueError, AttributeError):  # no file behind it
        return sys.stdin.buffer


def _format_of(target: Path | None) -> str:
    from biigma_cli.report.predictions import FORMATS

    suffix = "" if target is None else target.suffix.lower().removeprefix(".")
    return suffix if suffix in FORMATS else "table"


def _writer(
    form: str, labels: Labels, made: Provenance, topk: int, predictor: Predictor, *, to_file: bool
) -> Writer:
    from biigma_cli.report.predictions import CsvWriter, JsonlWriter, JsonWriter, TableWriter

    if form == "csv":
        return CsvWriter(labels, made)
    if form == "table":
        return TableWriter(labels, topk, colour=not to_file and sys.stdout.isatty())
    lines = JsonlWriter(labels, made, topk)
    if form == "jsonl":
        return lines
    info = predictor.info
    about = {
        "name": info.name,
        "id": made.model,
        "protocol": info.metadata.get("protocol"),
        "licence": info.metadata["licence"],
        "provider": made.provider,
        "temperature": info.temperature,
        "settings": dict(made.settings),
        "version": made.version,
    }
    return JsonWriter(lines, about)


def _record(result: Result, labels: Labels, abstain_below: float | None) -> Prediction:
    from biigma_cli.report.predictions import Prediction, prediction

    if result.probabilities_Y is None:
        error = "" if result.error is None else result.error.message
        return Prediction(path=result.name, note=result.note, error=error)
    return prediction(
        result.name, result.probabilities_Y.tolist(), labels, abstain_below=abstain_below,
        note=result.note,
    )  # fmt: skip


class _Tally:
    """Writes records and counts them; failures before the first answer wait, up to `HELD`."""

    def __init__(self, sink: Output, writer: Writer, answered: Answered) -> None:
        self.sink = sink
        self.writer = writer
        self.done = len(answered)
        self.failed = answered.failed
        self.alone: Exception | None = None
        self.begun = sink.begun
        self.started = sink.begun
        self.held: list[Prediction] = []

    def add(self, items: list[Prediction], results: list[Result]) -> None:
        """Some more."""
        self.done += len(items)
        for item, result in zip(items, results, strict=True):
            if item.error:
                self.failed += 1
                self.alone = result.error
        if not self.begun:
            self.held += items
            if self.failed == self.done and self.done <= HELD:
                return
            items, self.held, self.begun = self.held, [], True
        self._write(items)

    def end(self) -> None:
        """No more will come."""
        if self.failed and self.failed == self.done and not self.begun:
            if self.done > 1:
                for item in self.held:
                    note(f"error: {item.error}")
            self.sink.discard()
            return
        self._write([])
        self.sink.write(self.writer.tail(self.done - self.failed, self.failed))
        self.sink.finish()

    def _write(self, items: list[Prediction]) -> None:
        text = "" if self.started else self.writer.head()
        self.started = True
        self.sink.write(text + self.writer.rows(items))


class StreamProgress:
    """Images done, rate and, once they are counted, time left: on stderr.

    A live line on a terminal, else a plain line every `every` seconds; nothing for what is quick.
    Counting is begun with the first line, on a thread of its own.
    """

    def __init__(
        self,
        count: Callable[[Callable[[], bool]], int | None],
        *,
        before: int = 0,
        every: float = 10.0,
    ) -> None:
        self.live = sys.stderr.isatty()
        self.interval = 0.2 if self.live else every
        self.before = before
        self.started = self.shown = time.monotonic()
        self.total: int | None = None
        self._count = count
        self._stop = threading.Event()
        self._counter: threading.Thread | None = None

    def __call__(self, done: int) -> None:
        """`done` files are answered, those of an earlier run among them."""
        from biigma_cli.cli.progress import clock

        now = time.monotonic()
        if now - self.shown < self.interval:
            return
        self.shown = now
        if self._counter is None:
            self._counter = threading.Thread(target=self._find_total, daemon=True)
            self._counter.start()
        rate = (done - self.before) / max(now - self.started, 1e-9)
        line = f"classifying: {done} images, {rate:.0f}/s"
        if self.total is not None and rate > 0:
            left = clock(max(0, self.total - done) / rate)
            line = f"classifying: {done}/{self.total} images, {rate:.0f}/s, {left} left"
        sys.stderr.write(f"\r\033[K{line}" if self.live else line + "\n")
        sys.stderr.flush()

    def _find_total(self) -> None:
        from biigma_cli.errors import BiigmaError

        try:
            self.total = self._count(self._stop.is_set)
        except (OSError, BiigmaError):
            self.total = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self.live and self._counter is not None:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
