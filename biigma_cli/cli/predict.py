"""`biigma predict`: classify images with an exported model, without torch."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Self

import typer

from biigma_cli.cli.boundary import boundary, ended_by_signals, note
from biigma_cli.cli.options import InputCheckOption, KeepBorderOption, file_path, given_path
from biigma_cli.cli.predict_engine import (
    EngineOption,
    RayAddressOption,
    RayWorkersOption,
    check_engine,
    opened,
)
from biigma_cli.cli.predict_limits import (
    AbstainBelowOption,
    MaxErrorOption,
    MinSensitivityOption,
    SuspiciousFromOption,
    Thresholds,
)
from biigma_cli.cli.predict_prevalence import Prevalence, PrevalenceOption, parse_prevalence
from biigma_cli.cli.progress import clock, takes_escapes
from biigma_cli.cli.stdin import any_of, is_stdin, open_stdin

if TYPE_CHECKING:
    from biigma_cli.report.predictions import (
        Answered,
        Conversion,
        Labels,
        Output,
        Prediction,
        Provenance,
        Writer,
    )
    from biigma_cli.runtime.inputs import Source
    from biigma_cli.runtime.pipeline import Result
    from biigma_cli.runtime.session import ModelInfo

# Failures that come before the first answer are kept back from a file or a table, so that a run
# without any leaves no output; more than so many are written all the same, and what was begun is
# finished. A program that reads standard output gets a record of each at once.
HELD = 256
# Seconds that a row waits on a terminal for others to make a table with.
PATIENCE = 3.0
# Endings of a file that takes a table.
TEXT = ("", ".txt", ".log", ".md")


@boundary
def predict(
    context: typer.Context,
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
            "--format", help="table, csv, json, jsonl, parquet.  [default: as -o ends, or table]"
        ),
    ] = None,
    topk: Annotated[int, typer.Option("--topk", min=1, help="Classes to name per image.")] = 3,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", parser=file_path, help="Write there; - is stdout."
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with an interrupted -o FILE (csv, jsonl, parquet)."),
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="With --resume, try again what has failed."),
    ] = False,
    abstain_below: AbstainBelowOption = None,
    max_error: MaxErrorOption = None,
    suspicious_from: SuspiciousFromOption = None,
    min_sensitivity: MinSensitivityOption = None,
    prevalence: PrevalenceOption = None,
    keep_border: KeepBorderOption = False,
    input_check: InputCheckOption = True,
    saliency: Annotated[
        Path | None,
        typer.Option(
            "--saliency",
            metavar="DIR",
            parser=given_path,
            help="Draw each answered image there, with its saliency map and evidence.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE",
            parser=file_path,
            help="Also write a page of the answers, an .html file.",
        ),
    ] = None,
    report_images: Annotated[
        int | None,
        typer.Option(
            "--report-images",
            metavar="N",
            min=1,
            help="Pictures on the page: the N most malignant.  [default: 500]",
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
        int | None,
        typer.Option(
            "--batch-size",
            "-b",
            min=1,
            max=1024,  # some gigabytes; far beyond what makes a GPU faster
            help="Images run together.  [default: 8, on a GPU 64]",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-j", min=1, help="Decoding threads.  [default: one per core]"),
    ] = None,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
    ray_workers: RayWorkersOption = None,
) -> None:
    """Classify dermoscopic images.

    Every file is answered for, in order. A damaged one costs its own row, and the exit code is 5.
    """
    from biigma_cli import __version__
    from biigma_cli.errors import ImageError, PartialFailure, UsageError
    from biigma_cli.report.predictions import (
        DISCLAIMER,
        FORMATS,
        NOT_DERMOSCOPY,
        RESUMABLE,
        Answered,
        CsvWriter,
        JsonlWriter,
        Labels,
        Output,
        Provenance,
        flagged_note,
    )

    target = None if output is None or str(output) == "-" else output
    if target is not None:
        _check_target(target, paths or [], from_list, model)
    form = format_ or _format_of(target)
    if form not in FORMATS:
        raise UsageError(f"unknown --format {form!r}", fix=f"choose one of: {', '.join(FORMATS)}")
    asked = Thresholds(abstain_below, max_error, suspicious_from, min_sensitivity)
    asked.check(tta=tta)
    named = None
    if prevalence:
        named = parse_prevalence(prevalence, tta=tta, max_error=max_error)
    if resume and (target is None or form not in RESUMABLE):
        raise UsageError(
            "--resume needs a file of rows to go on with",
            fix="add -o FILE and --format csv, jsonl or parquet",
        )
    if retry_failed and not resume:
        raise UsageError("--retry-failed goes with --resume", fix="add --resume")
    if report_images is not None and report is None:
        raise UsageError("--report-images goes with --report", fix="add --report FILE.html")
    from biigma_cli.cli.predict_pictures import Pictures, check_targets, shown_maps, write_page

    check_targets(saliency, report, target)
    check_engine(engine, ray_address, ray_workers)
    if engine != "local" and (saliency is not None or report is not None):
        raise UsageError(
            f"--saliency and --report are not for --engine {engine}",
            fix="leave them out, or use the local engine",
        )
    convert = _converter(form, target)
    inputs = _Inputs(paths or [], from_list, skip=saliency)
    context.with_resource(ended_by_signals())
    # Closed when the command is left, whichever way, as is the predictor below.
    sink = context.with_resource(
        Output(target, keep=form in RESUMABLE, resume=resume, convert=convert)
    )
    sources = inputs.sources()

    from biigma_cli.runtime.pipeline import VIEWS, classify
    from biigma_cli.runtime.providers import batch_size as default_batch_size
    from biigma_cli.runtime.session import Predictor, find_model
    from biigma_cli.storage import available_cpus, is_there

    predictor = context.with_resource(
        opened(
            engine,
            find_model(model),
            device=device,
            address=ray_address,
            workers=ray_workers,
            single=inputs.single,
        )
    )
    info = predictor.info
    thresholds = asked.choose(info, input_check=input_check)
    mix = None if named is None else Prevalence.choose(named, info, thresholds)
    wants_pictures = saliency is not None or report is not None
    local = predictor if isinstance(predictor, Predictor) else None
    maps = shown_maps(local, saliency) if wants_pictures and local is not None else None
    labels = Labels(codes=info.classes, names=info.class_names, malignant=info.malignant)
    settings: dict[str, float] = {"tta": VIEWS} if tta else {}
    settings |= thresholds.settings()
    settings |= {} if mix is None else mix.settings()
    checked = info.input_check and input_check
    if info.input_check and not checked:
        settings["input_check"] = 0
    if keep_border:
        settings["keep_border"] = 1
    made = Provenance(
        model=predictor.id, version=__version__, provider=predictor.provider, settings=settings
    )
    writer = _writer(form, labels, made, topk, predictor.info, to_file=target is not None)
    sure = "" if info.temperature is None else f", calibrated (T = {info.temperature:.3f})"
    share = None if isinstance(predictor, Predictor) else predictor.share
    threads = workers or (available_cpus() if share is None else share.cores)
    size = batch_size or default_batch_size(predictor.provider)
    note(
        f"model {predictor.id} on {predictor.provider}{sure}, {threads} decoding threads, "
        f"batches of {size}"
        + ("" if share is None else f", in each of {share.workers} workers of Ray")
    )
    if not info.input_check:
        note("this model has no input check: it answers for pictures of any kind")
    if predictor.fallback:
        note(f"not on the GPU: {predictor.fallback}")

    answered = Answered()
    if resume and isinstance(writer, CsvWriter | JsonlWriter):
        answered = sink.resume(writer, retry=retry_failed)
        if len(answered):
            errors = f", {answered.failed} of them with an error, which stays"
            many = "files are" if len(answered) > 1 else "file is"
            note(f"{len(answered)} {many} answered already" + errors * bool(answered.failed))
        if answered.dropped:
            note(f"{answered.dropped} failed before and are tried again")
    tally = _Tally(sink, writer, answered)
    context.with_resource(tally.in_time())
    page = None
    if report is not None:
        from biigma_cli.report.prediction_page import PredictionPage

        page = PredictionPage(labels, most=report_images or 500, earlier=answered.labels)
    pictures = None
    if maps is not None:
        pictures = Pictures(predictor.id, info.classes, maps, folder=saliency, page=page, tta=tta)
    earlier = _Earlier(answered, sink.answered_at)
    new = earlier.without(sources)
    if isinstance(predictor, Predictor):
        batches = classify(
            predictor, new, batch_size=size, workers=threads, tta=tta, keep_border=keep_border
        )
    else:
        batches = predictor.classify(
            new, batch_size=size, threads=threads, tta=tta, keep_border=keep_border
        )
    try:
        with StreamProgress(inputs.count, before=len(answered)) as progress:
            for batch in batches:
                own = batch
                if mix is not None:
                    batch = [mix.adjusted(r) for r in own]
                items = [
                    _record(*both, labels, thresholds, checked)
                    for both in zip(batch, own, strict=True)
                ]
                if pictures is not None:
                    items = pictures.add(items, batch)
                tally.add(items, batch)
                progress(tally.done)
        tally.end()
        # With nothing new there is no picture, and the earlier page has some.
        same = is_there(report or "") and bool(len(answered)) and tally.done == len(answered)
        shows = tally.begun and not same
        if page is not None and report is not None and pictures is not None and shows:
            assert local is not None
            write_page(page, report, made, local, notes=pictures.notes, topk=topk)
    except BaseException as error:
        batches.close()
        if not isinstance(error, OSError):  # the reader has gone, or the disk is full
            tally.cut()
        kept = sink.drop()
        if kept is not None:
            note(f"what was answered is in {kept}; --resume goes on with it")
        elif form == "json" and target is not None and tally.begun:
            note(
                "nothing is kept of JSON that is cut short; --format jsonl keeps what was answered"
            )
        raise
    where = {"json": "error field", "jsonl": "error field", "table": "answer column"}.get(
        form, "error column"
    )
    if tally.failed and tally.failed == tally.done:
        if tally.done == 1 and tally.alone is not None:
            raise tally.alone
        raise ImageError(
            f"none of {tally.failed} images could be read",
            fix=f"the {where} says why" if tally.begun else "see the lines above",
        )
    if earlier.changed:
        note(f"{earlier.changed} files have changed since they were answered; their rows are older")
    flagged = tally.flagged + answered.labels[NOT_DERMOSCOPY]
    judges = thresholds.suspicious_from is not None
    if flagged:
        unjudged = ", and not judged for suspicion" * judges
        note(flagged_note(flagged, tally.done - tally.failed) + unjudged)
    if judges:
        note(f"{tally.suspicious} called suspicious" + " in this run" * bool(len(answered)))
    if saliency is not None and pictures is not None:
        nothing = "no picture was drawn: nothing new was answered"
        note(f"pictures in {saliency}" if pictures.drawn else nothing)
    if report is not None:
        if same:
            note(f"{report} stays as it was: nothing new was answered")
        elif tally.begun:
            note(f"page in {report}")
        else:
            note(f"nothing to show: {report} was not written")
    note(DISCLAIMER)
    if tally.failed:
        raise PartialFailure(
            f"{tally.done - tally.failed} ok, {tally.failed} failed",
            fix=f"the {where} says why",
        )


def _check_target(target: Path, paths: list[str], from_list: str | None, model: str | None) -> None:
    """Raise `UsageError` where the answers would take the place of what they are about."""
    from biigma_cli.data.magic import SUFFIXES
    from biigma_cli.errors import UsageError
    from biigma_cli.storage import real_path

    what = ""
    if target.suffix.lower() in SUFFIXES | {".onnx", ".safetensors"}:
        what = "the name of " + ("an image" if target.suffix.lower() in SUFFIXES else "a model")
    elif _holds_image(target):
        what = "an image"
    if what:
        raise UsageError(
            f"-o {target} is {what}, and answers are text",
            fix="give a name such as answers.csv (did a pattern stand behind -o?)",
        )
    options = ((from_list, "--from-list"), (model, "--model"), *((p, "IMAGE") for p in paths))
    for name, option in options:
        if name not in (None, "-") and real_path(str(name)) == real_path(target):
            raise UsageError(f"-o {target} is the file of {option}, too", fix="choose another name")
    if (paths == ["-"] or from_list == "-") and is_stdin(target):
        raise UsageError(f"-o {target} is standard input, too", fix="choose another name")


def _holds_image(path: Path) -> bool:
    from biigma_cli.data.magic import HEAD, looks_like_image
    from biigma_cli.storage import is_file

    if not is_file(path):
        return False
    with contextlib.suppress(OSError), path.open("rb") as file:
        return looks_like_image(file.read(HEAD))
    return False


class _Inputs:
    """What the command line names."""

    def __init__(
        self, paths: list[str], from_list: str | None, *, skip: Path | None = None
    ) -> None:
        from biigma_cli.errors import UsageError
        from biigma_cli.runtime.inputs import shown, within

        #: Folder of our own pictures, which are not to be classified.
        self.skip = "" if skip is None else str(skip)
        self.paths = paths
        self.list = from_list
        if from_list is not None and paths:
            raise UsageError("both images and --from-list are given", fix="give one of them")
        if from_list is None and not paths:
            raise UsageError("nothing to classify", fix="name images or folders, or - for stdin")
        if "-" in paths and len(paths) > 1:
            raise UsageError("- stands for stdin, alone", fix="give - or names of files")
        for path in paths:
            if path != "-" and within(path, self.skip):
                raise UsageError(
                    f"{shown(path)} lies in the folder that --saliency writes to",
                    fix="choose another folder for the pictures",
                )

    @property
    def single(self) -> bool:
        """Whether one file was named."""
        from biigma_cli.storage import is_file

        return self.list is None and len(self.paths) == 1 and is_file(self.paths[0])

    def sources(self) -> Iterator[Source]:
        """Each in turn. What cannot give any raises at once."""
        from biigma_cli.runtime.inputs import expand, read_names, read_stdin, shown

        if self.list == "-":
            return _refusing(any_of(read_names(open_stdin(), "standard input")), self.skip)
        if self.list is not None:
            name = shown(self.list)
            return _refusing(any_of(_read_file(_opened(self.list), name), name), self.skip)
        if self.paths == ["-"]:
            return _refusing(any_of(read_stdin(open_stdin())), self.skip)
        return expand(self.paths, warn=note, skip=self.skip)

    def count(self, stop: Callable[[], bool]) -> int | None:
        """How many there are, where that can be known without using them up."""
        from biigma_cli.runtime.inputs import count, read_list
        from biigma_cli.storage import is_file

        if self.paths == ["-"] or self.list == "-":
            return None
        if self.list is None:
            return count(self.paths, stop, self.skip)
        total = 0
        if not is_file(self.list):
            return None  # a pipe, which can be read but once
        with _opened(self.list) as file:
            for _ in read_list(file):
                total += 1
                if stop():
                    return None
        return total


def _refusing(sources: Iterator[Source], folder: str) -> Iterator[Source]:
    """Names of a list; those in the folder of our own pictures are errors."""
    from biigma_cli.runtime.inputs import shown, within

    for source in sources:
        if isinstance(source.content, Path) and within(source.name, folder):
            error = f"{shown(source.name)} lies in the folder that --saliency writes to"
            source = source._replace(error=error)
        yield source


def _read_file(file: BinaryIO, name: str) -> Iterator[Source]:
    from biigma_cli.runtime.inputs import read_names

    with file:
        yield from read_names(file, name)


def _opened(path: str) -> BinaryIO:
    from biigma_cli.errors import DataError

    try:
        return open(path, "rb", buffering=0)  # noqa: PTH123 - its reader ends it
    except OSError as error:
        raise DataError(
            f"cannot read the list {path}: {error.strerror}", fix="check --from-list"
        ) from error


def _format_of(target: Path | None) -> str:
    from biigma_cli.errors import UsageError
    from biigma_cli.report.predictions import FORMATS
    from biigma_cli.storage import is_special

    suffix = "" if target is None else target.suffix.lower()
    if suffix[1:] in FORMATS:
        return suffix[1:]
    if target is not None and suffix not in TEXT and not is_special(target):
        raise UsageError(
            f"-o {target} does not say its format",
            fix=f"end it in {', '.join(f'.{f}' for f in FORMATS[1:])}, or add --format: "
            + ", ".join(FORMATS),
        )
    return "table"


def _converter(form: str, target: Path | None) -> Conversion | None:
    from biigma_cli.errors import UsageError
    from biigma_cli.report import parquet
    from biigma_cli.storage import is_file, is_there

    if form != "parquet":
        return None
    if target is None or not (is_file(target) or not is_there(target)):
        raise UsageError("Parquet needs a file", fix="add -o FILE.parquet")
    parquet.check_installed()
    return parquet.PARQUET


def _writer(
    form: str, labels: Labels, made: Provenance, topk: int, info: ModelInfo, *, to_file: bool
) -> Writer:
    from biigma_cli.report.predictions import CsvWriter, JsonlWriter, JsonWriter, TableWriter

    if form in ("csv", "parquet"):  # of the CSV, once it is whole, Parquet is made
        return CsvWriter(labels, made)
    if form == "table":
        return TableWriter(labels, topk, colour=not to_file and sys.stdout.isatty())
    lines = JsonlWriter(labels, made, topk)
    if form == "jsonl":
        return lines
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


def _record(
    result: Result, own: Result, labels: Labels, thresholds: Thresholds, checked: bool
) -> Prediction:
    """The record of an answer; `own` is the model's, for what it promises of suspicion."""
    from biigma_cli.report.predictions import Prediction, prediction

    if result.probabilities_Y is None:
        error = "" if result.error is None else result.error.message
        return Prediction(path=result.name, note=result.note, error=error)
    return prediction(
        result.name, result.probabilities_Y.tolist(), labels,
        novelty=result.novelty if checked else None, note=result.note,
        abstain_below=thresholds.abstain_below, suspicious_from=thresholds.suspicious_from,
        own_Y=None
        if thresholds.min_sensitivity is None or own.probabilities_Y is None
        else own.probabilities_Y.tolist(),
    )  # fmt: skip


class _Earlier:
    """Takes out what an earlier run has answered."""

    def __init__(self, answered: Answered, when: float) -> None:
        self.answered = answered
        self.when = when
        #: Answered files that were written since.
        self.changed = 0

    def without(self, sources: Iterable[Source]) -> Iterator[Source]:
        """What is left. Raises `UsageError` for an image on standard input, which has no name."""
        from biigma_cli.errors import UsageError

        for source in sources:
            if not self.answered.take(source.name):
                yield source
            elif isinstance(source.content, bytes):
                raise UsageError(
                    "an image on standard input cannot be told from the one that was answered",
                    fix="name its file, or choose another -o",
                )
            else:
                with contextlib.suppress(OSError):
                    self.changed += source.content.stat().st_mtime > self.when


class _Tally:
    """Writes records and counts them; failures before the first answer wait, up to `HELD`."""

    def __init__(self, sink: Output, writer: Writer, answered: Answered) -> None:
        from biigma_cli.report.predictions import JsonWriter, TableWriter

        self.sink = sink
        self.writer = writer
        self.done = len(answered)
        self.failed = answered.failed
        self.flagged = 0
        self.suspicious = 0
        self.alone: Exception | None = None
        self.begun = sink.begun
        self.started = sink.begun
        self.held: list[Prediction] = []
        self._most = 0 if sink.part is None and not isinstance(writer, TableWriter) else HELD
        self._lock = threading.Lock()
        self._table = writer if isinstance(writer, TableWriter) and sink.part is None else None
        self._document = writer if isinstance(writer, JsonWriter) and sink.part is None else None
        self._terminal = self._table is not None and self._table.colour
        # The line of progress, where that is.
        self._clear = "\r\033[K" if self._terminal and takes_escapes(sys.stderr) else ""

    def add(self, items: list[Prediction], results: list[Result]) -> None:
        """Some more."""
        self.done += len(items)
        for item, result in zip(items, results, strict=True):
            self.flagged += item.flagged
            self.suspicious += bool(item.suspicious)
            if item.error:
                self.failed += 1
                self.alone = result.error
        if not self.begun:
            self.held += items
            if self.failed == self.done and self.done <= self._most:
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
        with self._lock:
            self._put(self.writer.tail(self.done - self.failed, self.failed))
        self.sink.finish()

    def cut(self) -> None:
        """The work was cut short: end what goes to standard output, rows held back with it."""
        if self._table is not None:
            items, self.held = self.held, []
            self._write(items)
            self._draw(0)
        if self._document is not None and self.started:
            with self._lock:
                self._put(self._document.tail(self.done - self.failed, self.failed, cut=True))

    @contextlib.contextmanager
    def in_time(self) -> Iterator[None]:
        """On a terminal, meanwhile draw the rows that have waited for `PATIENCE` seconds."""
        stop = threading.Event()

        def draw() -> None:
            while not stop.wait(PATIENCE / 4):
                with contextlib.suppress(OSError):  # met again by who writes next
                    self._draw(PATIENCE)

        thread = threading.Thread(target=draw, name="draw", daemon=True)
        if self._terminal:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            if thread.is_alive():
                thread.join(1)

    def _draw(self, seconds: float) -> None:
        assert self._table is not None
        with self._lock:
            self._put(self._table.due(seconds))

    def _write(self, items: list[Prediction]) -> None:
        with self._lock:
            text = "" if self.started else self.writer.head()
            self.started = True
            self._put(text + self.writer.rows(items))

    def _put(self, text: str) -> None:
        if text or not self._terminal:
            self.sink.write(self._clear + text)


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
        self.live = takes_escapes(sys.stderr)
        self.interval = 0.2 if self.live else every
        self.before = before
        self.started = self.shown = time.monotonic()
        self.total: int | None = None
        self._count = count
        self._stop = threading.Event()
        self._counter: threading.Thread | None = None

    def __call__(self, done: int) -> None:
        """`done` files are answered, those of an earlier run among them."""
        now = time.monotonic()
        if now - self.shown < self.interval:
            return
        self.shown = now
        if self._counter is None:
            self._counter = threading.Thread(target=self._find_total, daemon=True)
            self._counter.start()
        rate = (done - self.before) / max(now - self.started, 1e-9)
        speed = f"{rate:.0f}/s" if rate >= 1 else f"{60 * rate:.0f}/min"
        line = f"classifying: {done} images, {speed}"
        if self.total is not None and rate > 0:
            left = clock(max(0, self.total - done) / rate)
            line = f"classifying: {done}/{self.total} images, {speed}, {left} left"
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
