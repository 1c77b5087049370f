"""Several training processes on this machine, by torch's elastic launcher."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from biigma_cli.errors import EXIT_OK, RankLost, UsageError
from biigma_cli.storage import available_cpus

# Seconds from Ctrl-C or SIGTERM until processes that are still there are killed: a checkpoint on a
# slow disk must fit in.
GRACE_S = 120

#: How often the training was started again already; the launcher's own number is always 0 here.
RESTART_VARIABLE = "BIIGMA_RESTART"

# Exit statuses that are consequences of another process's end, not its cause.
_CONSEQUENCES = (RankLost.exit_code, -signal.SIGTERM)
# What ends a process from outside: a machine out of memory, a driver, a person.
_KILLED = tuple(-number for number in signal.Signals)


def _to_stderr(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def launch(
    devices: int,
    arguments: list[str],
    *,
    max_restarts: int = 0,
    say: Callable[[str], None] = _to_stderr,
) -> int:
    """Run `biigma <arguments>` in `devices` processes that find each other by `joined`.

    The processes write to this one's stdout and stderr. Ctrl-C and SIGTERM are passed on to them,
    and they have `GRACE_S` seconds to end. When one fails the others are ended. Where it was killed
    (or lost the others), not where it ended with an error of its own, all are started again, up to
    `max_restarts` times: by a new launcher with a new store, since processes that joined through an
    old one have been seen to wait for each other for ever. They see how often in
    `RESTART_VARIABLE`.

    Args:
        devices: number of processes.
        arguments: of the command line, without the program.
        max_restarts: how often the whole is started again after a process was killed.
        say: gets one line where a process failed that cannot have spoken for itself.

    Returns:
        0; the exit code of the first process that failed, 128 + N for one killed by signal N;
        or 128 + N where this process was told to stop by signal N.

    Raises:
        UsageError: fewer than one process, or a negative number of restarts.
    """
    command = [sys.executable, "-m", "biigma_cli", *arguments]
    return run_processes(devices, command, max_restarts=max_restarts, say=say)


def run_processes(
    devices: int,
    command: Sequence[str],
    *,
    max_restarts: int = 0,
    grace_s: int = GRACE_S,
    say: Callable[[str], None] = _to_stderr,
) -> int:
    """`launch` for any command."""
    if devices < 1 or max_restarts < 0:
        raise UsageError(
            f"cannot start {devices} processes with {max_restarts} restarts",
            fix="give --devices a number from 1",
        )
    restarts = 0
    while True:
        with _environment(devices, restarts):
            ended = _run_once(devices, command, grace_s)
        if isinstance(ended, int):
            return ended
        _report(ended, devices, say)
        if restarts == max_restarts or ended.exitcode not in (RankLost.exit_code, *_KILLED):
            return ended.exitcode if ended.exitcode > 0 else 128 - ended.exitcode
        restarts += 1
        say(f"starting again from the newest checkpoint ({restarts} of {max_restarts})")


def _run_once(devices: int, command: Sequence[str], grace_s: int) -> int | ProcessFailure:
    """The exit code where nothing failed, else the first failure."""
    program, *arguments = command
    with _quiet(), _signals_restored(), tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=devices,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            # Else the machine's own name is looked up, which not every machine can answer.
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            shutdown_timeout=grace_s,
        )
        try:
            # The launcher replaces ${local_rank} in arguments; a dollar of ours is a dollar.
            elastic_launch(config, program)(*(a.replace("$", "$$") for a in arguments))
        except ChildFailedError as error:
            return _cause(list(error.failures.values()))
        except SignalException as stopped:
            return 128 + int(stopped.sigval)
    return EXIT_OK


def _cause(failures: list[ProcessFailure]) -> ProcessFailure:
    """The failure that came first; they come in the order in which they were seen."""
    return min(failures, key=lambda f: f.exitcode in _CONSEQUENCES)


def _report(failure: ProcessFailure, devices: int, say: Callable[[str], None]) -> None:
    who = f"process {failure.local_rank} of {devices} (PID {failure.pid})"
    if failure.exitcode < 0:
        say(f"error: {who} was killed by {failure.signal_name()}; the others were ended")
    elif failure.local_rank != 0:  # the first speaks for itself
        say(f"error: {who} ended with exit code {failure.exitcode}; the others were ended")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The launcher's own log goes nowhere, unless `LOGLEVEL` asks for it."""
    if "LOGLEVEL" in os.environ:
        yield
        return
    loggers = [logging.getLogger(f"torch.distributed.{n}") for n in ("elastic", "launcher")]
    before = [(logger.propagate, list(logger.handlers)) for logger in loggers]
    for logger in loggers:
        logger.propagate = False
        logger.handlers = [logging.NullHandler()]
    try:
        yield
    finally:
        for logger, (propagate, handlers) in zip(loggers, before, strict=True):
            logger.propagate, logger.handlers = propagate, handlers


@contextlib.contextmanager
def _signals_restored() -> Iterator[None]:
    """The launcher installs its own handlers; afterwards ours are back."""
    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = [(number, signal.getsignal(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@contextlib.contextmanager
def _environment(devices: int, restarts: int) -> Iterator[None]:
    """What the processes inherit, where the user has not set it."""
    wanted = {
        # Each would otherwise start a thread per core.
        "OMP_NUM_THREADS": str(max(1, available_cpus() // devices)),
    }
    if sys.platform == "linux" and "lo" in (name for _, name in socket.if_nameindex()):
        # All are on this machine; the interface of its name may not exist or be filtered.
        wanted["GLOO_SOCKET_IFNAME"] = "lo"
    mine = {name: value for name, value in wanted.items() if name not in os.environ}
    mine[RESTART_VARIABLE] = str(restarts)
    os.environ.update(mine)
    # The launcher leaves this one behind.
    mine["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ""
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)
