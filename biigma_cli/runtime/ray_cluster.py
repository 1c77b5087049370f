"""Ray itself: a cluster to work on, what is asked of it, its silence and its faults."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from biigma_cli.errors import BiigmaError, DeviceError, UsageError
from biigma_cli.runtime.providers import first_line
from biigma_cli.storage import available_cpus

# Cores of a worker, where nothing else is said.
_CORES = 4
# Of a local cluster, in bytes: only names and answers go through it. More goes to disk.
_OBJECT_STORE = 256 << 20


class Share(NamedTuple):
    """What is asked of a cluster: so many workers, and for each so many cores and GPUs."""

    workers: int
    cores: int
    gpus: int


def check_installed() -> None:
    """Raise `UsageError` where Ray Data is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("ray", "pyarrow")):
        raise UsageError("--engine ray needs Ray", fix="pip install 'biigma[ray]'")


def divide(nodes: list[dict[str, float]], workers: int | None, *, on_gpu: bool) -> Share:
    """Cores and GPUs of each worker, and how many there are, such that each fits into a node.

    `nodes` are Ray's resources of each. More workers than fit wait for nodes that may yet come.
    """
    if on_gpu:
        with_gpu = [n for n in nodes if n.get("GPU", 0) >= 1]
        cores = min(int(n.get("CPU", 0) // n["GPU"]) for n in with_gpu)
        return Share(workers or sum(int(n["GPU"]) for n in with_gpu), max(1, cores), 1)
    cpus = [int(n.get("CPU", 0)) for n in nodes if n.get("CPU", 0) >= 1] or [1]
    cores = _CORES if workers is None else max(1, sum(cpus) // workers)
    cores = min(cores, *cpus)
    return Share(workers or sum(n // cores for n in cpus), cores, 0)


@contextlib.contextmanager
def connected(address: str, workers: int | None) -> Iterator[bool]:
    """A connection to a cluster for as long as it is needed; true where it was started for it."""
    import ray

    if ray.is_initialized():  # whoever did it ends it
        yield False
        return
    local = address == "local"
    _check_reachable(address)
    if local:  # else Ray keeps a token of its own in the user's folder
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    folder = _short_folder() if local else None
    more: dict[str, Any] = {}
    if local:
        more = {
            "num_cpus": max(available_cpus(), workers or 1),
            "object_store_memory": _OBJECT_STORE,
            "include_dashboard": False,
            "_temp_dir": str(folder),
        }
    try:
        try:
            with _muted():  # its C++ part names the level it is told to log
                ray.init(
                    address=address, log_to_driver=False, logging_level=logging.CRITICAL, **more
                )
        except Exception as error:  # Ray's share no other base
            where = "on this machine" if local else f"at {address}"
            raise DeviceError(
                f"no Ray cluster {where}: {first_line(error)}",
                fix="try again when there is less load, or free some memory and disk space"
                if local
                else "check --ray-address and Ray's token; a node of Ray must run on this machine",
            ) from error
        yield local
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _check_reachable(address: str) -> None:
    """Raise `DeviceError` where nothing listens at `HOST:PORT`: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # Ray says at once what it cannot be
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise DeviceError(
            f"no Ray cluster at {address}: {getattr(error, 'strerror', None) or error}",
            fix="check --ray-address",
        ) from error


def _short_folder() -> Path:
    """For logs and sockets, whose paths may have but 107 bytes."""
    shared = Path("/tmp")
    return Path(tempfile.mkdtemp(prefix="biigma-ray-", dir=shared if shared.is_dir() else None))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ray says nothing and sends nothing; the settings are the process's own, for as long."""
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # as it will be, and no warning
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_worker_niceness": "0",  # as the local engine; Ray's own is 15
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_options.preserve_order = True
        context.target_max_block_size = 1 << 20  # what is set aside for the answers of a block
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        # Where a worker is lost, this prints so: on standard output, among the answers.
        ray._private.worker._worker_logs_enabled = False
        try:
            yield
        finally:
            ray._private.worker._worker_logs_enabled = True


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """What the process writes to its standard error goes nowhere."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def said_plainly() -> Iterator[None]:
    """Ray's exceptions as one `BiigmaError`."""
    try:
        yield
    except BiigmaError:
        raise
    except Exception as error:  # Ray's have several bases
        text = str(error)
        if "ModuleNotFoundError" in text or "ImportError" in text:
            raise DeviceError(
                "the workers of the cluster cannot import biigma, or what it needs",
                fix="install the same version of biigma[ray] on all its machines",
            ) from error
        raise BiigmaError(f"Ray failed: {first_line(error)}") from error
