"""TensorBoard logs, read back with TensorBoard's own reader."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest

from biigma_cli.errors import BiigmaError, UsageError
from biigma_cli.report.tensorboard import TensorBoardLog


@pytest.fixture(autouse=True)
def tensorboard() -> None:
    """Skip where the extra is not installed."""
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder: (step, value) by tag."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        reader.Reload()
    return {
        tag: [(e.step, round(e.value, 5)) for e in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }


def write(folder: Path, first: int, last: int, *, offset: float = 0.0, part: int = 0) -> None:
    """Epochs `first` to `last` of two steps each; then `part` steps of one more."""
    with TensorBoardLog(folder) as log:
        for epoch in range(first, last + 1):
            for step in (2 * epoch - 1, 2 * epoch):
                log.step({"loss": step + offset}, step)
            row = {"epoch": epoch, "loss": epoch + offset, "lr": 0.5, "val_macro_f1": 0.25}
            log.epoch(row, epoch)
        for step in range(2 * last + 1, 2 * last + 1 + part):
            log.step({"loss": step + offset}, step)


def test_series(tmp_path: Path) -> None:
    """Epochs and steps, each with its own count and tags."""
    write(tmp_path, 1, 2)
    assert scalars(tmp_path / "steps") == {"step/loss": [(1, 1), (2, 2), (3, 3), (4, 4)]}
    assert scalars(tmp_path / "epochs") == {
        "loss/total": [(1, 1), (2, 2)],
        "train/lr": [(1, 0.5), (2, 0.5)],
        "validation/macro_f1": [(1, 0.25), (2, 0.25)],
    }


def test_resumed_run_shows_nothing_twice(tmp_path: Path) -> None:
    """Going on after epoch 2: what the first process did beyond it is taken back, once each."""
    write(tmp_path, 1, 3, part=1)
    write(tmp_path, 3, 4, offset=100)
    assert scalars(tmp_path / "epochs")["loss/total"] == [(1, 1), (2, 2), (3, 103), (4, 104)]
    assert scalars(tmp_path / "steps")["step/loss"] == [
        (1, 1), (2, 2), (3, 3), (4, 4), (5, 105), (6, 106), (7, 107), (8, 108),
    ]  # fmt: skip


def test_resumed_twice_within_a_second(tmp_path: Path) -> None:
    """Files are read in the order in which they were written, whatever the clock says."""
    for offset in range(0, 500, 100):
        write(tmp_path, 2 if offset else 1, 3, offset=offset)
    assert scalars(tmp_path / "epochs")["loss/total"] == [(1, 1), (2, 402), (3, 403)]


def test_log_of_a_killed_run(tmp_path: Path) -> None:
    """A last record cut in the middle costs that record, and the run goes on behind it."""
    write(tmp_path, 1, 2)
    (path,) = (tmp_path / "epochs").iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    assert scalars(tmp_path / "epochs")["loss/total"] == [(1, 1)]
    write(tmp_path, 2, 3, offset=100)
    assert scalars(tmp_path / "epochs")["loss/total"] == [(1, 1), (2, 102), (3, 103)]


def test_epoch_is_written_at_once(tmp_path: Path) -> None:
    """A kill after an epoch loses nothing of it."""
    log = TensorBoardLog(tmp_path)
    log.step({"loss": 3.0}, 1)
    log.epoch({"epoch": 1, "loss": 2.0}, 1)
    assert scalars(tmp_path / "epochs") == {"loss/total": [(1, 2.0)]}
    assert scalars(tmp_path / "steps") == {"step/loss": [(1, 3.0)]}
    log.close()


def test_nothing_is_made_before_the_first_figure(tmp_path: Path) -> None:
    """A training that is refused leaves no folder."""
    TensorBoardLog(tmp_path / "log").close()
    assert not (tmp_path / "log").exists()


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A file in the way is told, not passed over."""
    (tmp_path / "log").write_text("")
    log = TensorBoardLog(tmp_path / "log")
    with pytest.raises(BiigmaError, match=r"cannot write .*log"):
        log.epoch({"loss": 1.0}, 1)


def test_package_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(UsageError) as caught:
        TensorBoardLog(tmp_path)
    assert caught.value.fix == "pip install 'biigma[tensorboard]'"
