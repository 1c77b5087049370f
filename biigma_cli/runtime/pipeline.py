"""Any number of images through a session: decoding on threads, batches as they come, in order.

One thread takes names from the inputs and hands them to the decoders; a bounded queue keeps their
results in order; another thread makes batches of them, two of which are in the session at a time:
where one waits for a step that cannot be shared among the cores, the other goes on. Memory is that
queue's and those batches'.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from biigma_cli.data.frame import WHOLE, Part
from biigma_cli.data.preprocess import Decoded, Pixels, decode_image, shown
from biigma_cli.errors import BiigmaError, ImageError
from biigma_cli.runtime.inputs import Source
from biigma_cli.runtime.session import ModelInfo, Predictor, identity, read_model
from biigma_cli.runtime.session import check_model as check_model
from biigma_cli.storage import available_cpus

# Seconds that images already decoded wait for the rest of their batch.
PATIENCE = 0.25
IN_FLIGHT = 2
VIEWS = 8


class Result(NamedTuple):
    """The answer for one source, or why there is none.

    Attributes:
        name: of the source.
        probabilities_Y: by class, None where there is an error.
        pixels: `(side, side, 3)` as the network saw them, None where there is an error.
        saliency_HW: the map M of the upright view, where the model has one.
        note: what a user should know of the file.
        error: what was wrong with it.
        novelty: how far the image is from the training images, 1 the limit; None where there is an
            error, or the model has no input check.
        logits_Y: of the upright view, None where there is an error.
        evidence_Yhw: what each position of the upright view adds to each logit, where the model
            says it.
        content: the source's, to read it again.
        part: of the upright image, which the network saw.
    """

    name: str
    probabilities_Y: npt.NDArray[np.float32] | None
    pixels: Pixels | None
    saliency_HW: npt.NDArray[np.float32] | None
    note: str
    error: ImageError | None
    novelty: float | None = None
    logits_Y: npt.NDArray[np.float32] | None = None
    evidence_Yhw: npt.NDArray[np.float32] | None = None
    content: Path | bytes = b""
    part: Part = WHOLE


def model_id(path: Path) -> str:
    """`NAME@` and 12 digits of the file's SHA-256: which model gave an answer.

    Raises `ModelFileError` as `read_checked` does.
    """
    return identity(path, read_model(path))


def classify(
    predictor: Predictor,
    sources: Iterable[Source],
    *,
    batch_size: int = 8,
    workers: int | None = None,
    tta: bool = False,
    keep_border: bool = False,
) -> Generator[list[Result], None, None]:
    """An answer or an error for each source, in order, batch by batch.

    Sources are taken only so far ahead as memory is bounded by: a few batches. An image waits at
    most `PATIENCE` seconds for its batch to fill, so a slow stream is answered as it comes.

    Args:
        workers: decoding threads; default one for each core this process may use.
        tta: average the probabilities over the square's eight flips and quarter turns.
        keep_border: take the whole of each image; else what a border leaves, see
            `data.frame.find_frame`.

    Raises:
        BiigmaError: the session failed, or the sources raised one.
    """
    info = predictor.info
    part = WHOLE if keep_border else None
    threads = workers or available_cpus()
    stop = threading.Event()
    slots = threading.Semaphore(IN_FLIGHT)
    answers: queue.SimpleQueue[Future[list[Result]] | BaseException | None] = queue.SimpleQueue()
    ahead = batch_size + threads
    decoded: queue.Queue[_Item | BaseException | None] = queue.Queue(ahead)

    def put(item: _Item | BaseException | None) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                decoded.put(item, timeout=0.1)
                return

    def feed() -> None:
        try:
            for source in sources:
                if stop.is_set():
                    return
                put(_Item(source, pool.submit(_decode, source, info, part, stop)))
            put(None)
        except BaseException as error:  # handed over: raised where the results are taken
            put(error)

    def answer(batch: list[_Read]) -> list[Result]:
        return list(_answer(predictor, batch, tta, stop))

    def run() -> None:
        try:
            for batch in _batches(decoded, batch_size):
                slots.acquire()
                if stop.is_set():
                    return
                answers.put(session.submit(answer, batch))
            answers.put(None)
        except BaseException as error:
            answers.put(error)

    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    session = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="session")
    # Daemons, because the first may be waiting for a list of names that never ends.
    threading.Thread(target=feed, name="feed", daemon=True).start()
    threading.Thread(target=run, name="batch", daemon=True).start()
    try:
        while (item := answers.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            results = item.result()
            slots.release()
            yield results
    finally:
        stop.set()
        # Whatever the batching thread waits for, it wakes and ends.
        slots.release()
        with suppress(queue.Full):
            decoded.put_nowait(None)
        for executor in (pool, session):
            executor.shutdown(wait=False, cancel_futures=True)


class _Item(NamedTuple):
    source: Source
    future: Future[Decoded | ImageError]


class _Read(NamedTuple):
    name: str
    result: Decoded | ImageError
    content: Path | bytes


def _decode(
    source: Source, info: ModelInfo, part: Part | None, stop: threading.Event
) -> Decoded | ImageError:
    if source.error:
        return ImageError(source.error, fix="check the path and its permissions")
    if stop.is_set():
        return ImageError("stopped")
    label = "the image on stdin" if isinstance(source.content, bytes) else shown(source.name)
    try:
        return decode_image(
            source.content, info.side, rule=info.rule, name=label, part=part, doubts=True
        )
    except ImageError as error:
        return error


def _batches(
    decoded: queue.Queue[_Item | BaseException | None], size: int
) -> Iterator[list[_Read]]:
    """Results in order, `size` images at a time, fewer where the next ones are slow to come.

    Errors take no place in a batch, but one of nothing but errors ends there, too.
    """
    batch: list[_Read] = []
    good = 0
    deadline = 0.0
    while True:
        try:
            wait = max(0.0, deadline - time.monotonic()) if batch else None
            item = decoded.get(timeout=wait)
        except queue.Empty:
            yield batch
            batch, good = [], 0
            continue
        if item is None or isinstance(item, BaseException):
            if batch:
                yield batch
            if item is not None:
                raise item
            return
        if not batch:
            deadline = time.monotonic() + PATIENCE
        result = item.future.result()
        batch.append(_Read(item.source.name, result, item.source.content))
        good += isinstance(result, Decoded)
        if good == size or len(batch) == 4 * size:
            yield batch
            batch, good = [], 0


def _answer(
    predictor: Predictor, batch: list[_Read], tta: bool, stop: threading.Event
) -> Iterator[Result]:
    images = [r.result.pixels for r in batch if isinstance(r.result, Decoded)]
    rows: Iterator[tuple[Any, ...]] = iter(())
    if images:
        pixels = np.stack(images)
        try:
            answer = predictor(pixels)
            proba = answer.probabilities_BY
            if tta:
                proba = _averaged(proba, pixels, lambda p: _view(predictor, p, stop))
        except (BiigmaError, CancelledError):
            raise
        except Exception as error:  # onnxruntime's own exceptions share no other base
            first = (str(error).strip().splitlines() or [repr(error)])[0]
            raise BiigmaError(
                f"the model failed on {len(images)} images: {first[:200]}",
                fix="try a smaller --batch-size, or --device cpu",
            ) from error
        parts = (
            answer.saliency_BHW, answer.logits_BY, answer.evidence_BYHW, answer.novelty_B,
        )  # fmt: skip
        rest = ([None] * len(images) if part is None else part for part in parts)
        rows = zip(proba, *rest, strict=True)
    for name, result, content in batch:
        if isinstance(result, ImageError):
            yield Result(name, None, None, None, "", result)
            continue
        row, saliency, logits, evidence, far = next(rows)
        if not (np.isfinite(row).all() and np.isfinite(far or 0)):
            nan = ImageError(f"the model gave no number for {shown(name)}", fix="check the model")
            yield Result(name, None, None, None, result.note, nan)
            continue
        yield Result(
            name, row, result.pixels, saliency, result.note, None,
            None if far is None else float(far), logits, evidence, content, result.part,
        )  # fmt: skip


def _view(predictor: Predictor, pixels: Pixels, stop: threading.Event) -> npt.NDArray[np.float32]:
    if stop.is_set():  # nobody waits for it any more, but the end of the process would
        raise CancelledError
    return predictor(pixels).probabilities_BY


def _averaged(
    upright_BY: npt.NDArray[np.float32],
    pixels_BHW3: Pixels,
    run: Callable[[Pixels], npt.NDArray[np.float32]],
) -> npt.NDArray[np.float32]:
    """Mean probabilities over the square's eight symmetries, the upright one given."""
    total = upright_BY.astype(np.float64)
    for view in range(1, VIEWS):
        total += run(turned(pixels_BHW3, view))
    return (total / VIEWS).astype(np.float32)


def turned(pixels_BHW3: Pixels, view: int) -> Pixels:
    """A batch under one of the square's symmetries: `view % 4` quarter turns; 4 and up flipped."""
    flipped = pixels_BHW3[:, :, ::-1] if view >= 4 else pixels_BHW3
    return np.ascontiguousarray(np.rot90(flipped, view % 4, axes=(1, 2)))
