"""Signals become a request; only a second, later Ctrl-C is impatient."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from biigma_cli.engine import interrupt
from biigma_cli.engine.interrupt import stop_on_signals

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_request(signum: signal.Signals) -> None:
    """Nothing is raised; the request says which signal it was; handlers are put back."""
    before = signal.getsignal(signum)
    with stop_on_signals() as stop:
        assert not stop
        os.kill(os.getpid(), signum)
        assert stop
        assert stop.exit_code == 128 + signum
    assert signal.getsignal(signum) is before


def test_echoes_are_not_impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same signal again at once, as a launcher passes it on, changes nothing."""
    now = [100.0]
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now[0])
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == signal.SIGINT
        now[0] += 10
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_ignored_signals_stay_ignored() -> None:
    """A job that a shell put in the background ignores Ctrl-C."""
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop
    finally:
        signal.signal(signal.SIGINT, old)


def test_other_threads_get_a_request_that_nobody_sets() -> None:
    """Outside the main thread nothing can be installed, and nothing fails."""
    asked: list[bool] = []

    def work() -> None:
        with stop_on_signals() as stop:
            asked.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]
