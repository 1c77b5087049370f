"""Inference beyond one machine: the same pipeline in the actors of a Ray Data actor pool.

Names go out in blocks, answers come back in the order of the names; the driver holds one window of
names at a time. A block whose worker is lost is done again by another, so that every file is
answered once. Images are opened by the workers: their paths must lead to the same files there.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import tempfile
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biigma_cli import __version__
from biigma_cli.errors import BiigmaError, DeviceError, UsageError
from biigma_cli.runtime import providers
from biigma_cli.runtime.inputs import Source, shown
from biigma_cli.runtime.pipeline import IN_FLIGHT, Result, classify
from biigma_cli.runtime.ray_cluster import (
    Share,
    check_installed,
    connected,
    divide,
    quiet,
    said_plainly,
)
from biigma_cli.runtime.session import ModelInfo, Predictor, read_model

#: Names that the driver gathers before they are worked on: for each worker, and in all. Between
#: two windows the pool is started anew, which takes seconds.
WINDOW_EACH = 50_000
WINDOW = 500_000
# Batches of a block. At the end of each block the pipeline of its worker runs empty.
_BATCHES = 16
# Blocks for each worker in a short list, so that none waits long for the last one.
_SPREAD = 4
# Workers that may be lost on a block.
_ATTEMPTS = 5
_ON_GPU = ("auto", "cuda", "tensorrt")


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """A running cluster and what its workers run; made by `ray_engine`.

    Attributes:
        info: of the model.
        id: `NAME@` and 12 digits of the file's SHA-256.
        provider: of ONNX Runtime, the same in all workers.
        fallback: why `auto` runs on the CPU although there is a GPU; empty where it does not.
        device: what the workers' `Predictor` is asked for.
        share: workers, and the cores and GPUs of each.
        local: whether the cluster was started for this run.
    """

    info: ModelInfo
    id: str
    provider: str
    fallback: str
    device: str
    share: Share
    local: bool
    model: Any

    def classify(
        self,
        sources: Iterable[Source],
        *,
        batch_size: int = 8,
        threads: int | None = None,
        tta: bool = False,
        keep_border: bool = False,
    ) -> Generator[list[Result], None, None]:
        """As `pipeline.classify`, block by block; the results hold no pixels and no maps.

        Args:
            threads: decoding threads of a worker; default one for each of its cores.

        Raises:
            BiigmaError: the model failed, a block was lost too often, or the sources raised one.
        """
        settings = {
            "batch_size": batch_size,
            "workers": threads or self.share.cores,
            "tta": tta,
            "keep_border": keep_border,
        }
        size = min(WINDOW, WINDOW_EACH * self.share.workers)
        for window in windows(sources, size):
            rows = block_rows(len(window), batch_size, self.share.workers)
            blocks = [window[at : at + rows] for at in range(0, len(window), rows)]
            sizes = [len(block) for block in blocks]
            with said_plainly():
                yield from _in_order(self._run(blocks, settings), sizes)

    def _run(
        self, blocks: list[list[Source]], settings: dict[str, Any]
    ) -> Iterator[tuple[int, list[Result] | BiigmaError]]:
        """Blocks through a pool: number and answers of each."""
        import pyarrow as pa
        import ray

        # Ray starts a lost worker and its block again without end; a file may kill them all.
        attempts = ray.remote(_Attempts).options(num_cpus=0, max_restarts=-1).remote()
        tables = [
            pa.table({"block": [number], "content": [_packed(block)]})
            for number, block in enumerate(blocks)
        ]
        done = ray.data.from_arrow(tables).map_batches(
            _Worker,
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=min(self.share.workers, len(blocks)), max_tasks_in_flight_per_actor=2
            ),
            num_cpus=self.share.cores,
            num_gpus=self.share.gpus,
            fn_constructor_kwargs={
                "model": self.model,
                "attempts": attempts,
                "name": self.info.path.name,
                "device": self.device,
                "threads": self.share.cores,
                "settings": settings,
                "folder": str(Path.cwd()),
                "version": __version__,
            },
        )
        for table in done.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in table.to_pylist():
                yield row["block"], pickle.loads(row["content"])


@contextlib.contextmanager
def ray_engine(
    file: Path,
    *,
    device: str = "auto",
    address: str | None = None,
    workers: int | None = None,
) -> Iterator[RayEngine]:
    """A cluster for a model: one that runs, or one of this machine that is stopped at the end.

    Args:
        file: an exported model; the workers get it through the cluster.
        device: as `Predictor` takes it, but for a GPU's number, which Ray gives. `auto` takes
            GPUs where the cluster has some.
        address: `HOST:PORT` of a cluster, or `auto`; None takes `RAY_ADDRESS`, else this machine.
        workers: default one for each GPU, or for each four cores.

    Raises:
        UsageError: Ray is not installed, or an address that cannot be.
        DeviceError: the cluster cannot be reached, or has not the device.
        ModelFileError: as `Predictor`.
    """
    check_installed()
    name = _device(device)
    asked = Predictor(file, device="cpu", threads=1)
    info = asked.info
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise UsageError(
            f"{address} is an address for Ray's client",
            fix="run on a machine of the cluster, and give HOST:PORT or auto",
        )
    with quiet(), connected(address, workers) as local:
        import ray

        nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
        has_gpu = any(n.get("GPU", 0) >= 1 for n in nodes)
        if name in ("cuda", "tensorrt") and not has_gpu:
            raise DeviceError(
                f"no machine of the cluster has a GPU for --device {name}",
                fix="start Ray's nodes with GPUs, or use --device cpu",
            )
        on_gpu = has_gpu and name in _ON_GPU
        share = divide(nodes, workers, on_gpu=on_gpu)
        model = ray.put(read_model(file))
        provider, fallback = providers.PROVIDERS["cpu"], ""
        if name not in ("auto", "cpu") or on_gpu:
            provider, fallback = _probe(model, file.name, device, share)
            if on_gpu and provider == providers.PROVIDERS["cpu"]:
                on_gpu, share = False, divide(nodes, workers, on_gpu=False)
        if name == "auto":
            device = "cuda" if on_gpu else "cpu"
        yield RayEngine(
            info=info, id=asked.id, provider=provider, fallback=fallback, device=device,
            share=share, local=local, model=model,
        )  # fmt: skip


def windows(sources: Iterable[Source], size: int) -> Iterator[list[Source]]:
    """Sources by so many at a time; what came before the sources raised comes before it is."""
    window: list[Source] = []
    fault: BiigmaError | None = None
    try:
        for source in sources:
            window.append(source)
            if len(window) == size:
                yield window
                window = []
    except BiigmaError as error:
        fault = error
    if window:
        yield window
    if fault is not None:
        raise fault


def block_rows(names: int, batch_size: int, workers: int) -> int:
    """Names of a block: whole batches, and fewer where every worker would not get some."""
    batches = math.ceil(names / (batch_size * workers * _SPREAD))
    return batch_size * max(1, min(batches, _BATCHES))


class _Attempts:
    """An actor: how often each block was begun."""

    def __init__(self) -> None:
        self.begun: Counter[int] = Counter()

    def begin(self, block: int) -> int:
        self.begun[block] += 1
        return self.begun[block]


class _Worker:
    """An actor: one `Predictor`, blocks of names in, blocks of answers out.

    What cannot be is kept and given as the answer: a constructor that raises is tried for ever.
    """

    def __init__(
        self,
        *,
        model: Any,
        attempts: Any,
        name: str,
        device: str,
        threads: int,
        settings: dict[str, Any],
        folder: str,
        version: str,
    ) -> None:
        import ray

        self.attempts = attempts
        self.settings = settings
        self.folder = Path(folder)
        self.fault: BiigmaError | None = None
        if version != __version__:
            self.fault = UsageError(
                f"a worker of the cluster has biigma {__version__}, not {version}",
                fix="install the same version on all its machines",
            )
            return
        try:
            self.predictor = _predictor(ray.get(model), name, device, threads)
        except BiigmaError as error:
            self.fault = error

    def __call__(self, table: Any) -> Any:
        import pyarrow as pa

        done = [
            _packed(self._answer(row["block"], pickle.loads(row["content"])))
            for row in table.to_pylist()
        ]
        return pa.table({"block": table["block"], "content": pa.array(done, pa.binary())})

    def _answer(self, block: int, sources: list[Source]) -> list[Result] | BiigmaError:
        import ray

        if self.fault is not None:
            return self.fault
        if ray.get(self.attempts.begin.remote(block)) > _ATTEMPTS:
            return BiigmaError(
                f"{_ATTEMPTS} workers were lost on the same files: those from "
                f"{shown(sources[0].name)} to {shown(sources[-1].name)}",
                fix="look for the one that kills them; or take fewer workers, if memory is short",
            )
        # Names are the driver's, whose working folder may be another.
        placed = (
            s._replace(content=self.folder / s.content) if isinstance(s.content, Path) else s
            for s in sources
        )
        try:
            return [
                result._replace(
                    pixels=None, saliency_HW=None, logits_Y=None, evidence_Yhw=None, content=b""
                )
                for batch in classify(self.predictor, placed, **self.settings)
                for result in batch
            ]
        except BiigmaError as error:
            return error


def _predictor(content: bytes, name: str, device: str, threads: int) -> Predictor:
    """A `Predictor` of a model's bytes."""
    with tempfile.TemporaryDirectory(prefix="biigma-") as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        return Predictor(path, device=device, threads=threads, callers=IN_FLIGHT)


def _probe(model: Any, name: str, device: str, share: Share) -> tuple[str, str]:
    """Provider and fallback of a `Predictor` on the cluster. Raises what it raises."""
    import ray

    task = ray.remote(_try_out).options(num_cpus=share.cores, num_gpus=share.gpus)
    with said_plainly():
        answer: tuple[str, str] | BiigmaError = ray.get(task.remote(model, name, device))
    if isinstance(answer, BiigmaError):
        raise answer
    return answer


def _try_out(content: bytes, name: str, device: str) -> tuple[str, str] | BiigmaError:
    try:
        predictor = _predictor(content, name, device, 1)
    except BiigmaError as error:
        return error
    return predictor.provider, predictor.fallback


def _packed(value: object) -> bytes:
    # Names may hold bytes that are no UTF-8, which no Arrow string can.
    return pickle.dumps(value, protocol=5)


def _in_order(
    answers: Iterable[tuple[int, list[Result] | BiigmaError]], sizes: list[int]
) -> Iterator[list[Result]]:
    """Answers as they come; raises where a block or a row is missing, twice or out of its place."""
    expected = 0
    for number, answer in answers:
        if isinstance(answer, BiigmaError):
            raise answer
        if number != expected or len(answer) != sizes[number]:
            raise BiigmaError(f"Ray gave block {number} for block {expected}", fix="report this")
        expected += 1
        yield answer
    if expected != len(sizes):
        raise BiigmaError(f"Ray gave {expected} blocks of {len(sizes)}", fix="report this")


def _device(device: str) -> str:
    name, _ = providers.parse_device(device)
    if ":" in device:
        raise UsageError(
            f"--device {device} with --engine ray", fix=f"use --device {name}: Ray gives the GPUs"
        )
    return name
