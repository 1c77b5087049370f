"""Commands on a disk that is really full: a small tmpfs, where mounting is permitted."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from biigma_cli.core.weights import load_checkpoint
from tests.cli.test_audit import OLDER
from tests.conftest import TINY, call

ROOM = 256 * 1024


@contextlib.contextmanager
def disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes."""
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None:
        pytest.skip("no mount command here")
    command = [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    with disk(tmp_path / "disk", ROOM) as folder:
        yield folder


def left_in(folder: Path) -> list[str]:
    """Files left, temporary ones among them."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_export(tiny_run: Path, small_disk: Path) -> None:
    """The model does not fit: one message, and no piece of it is left."""
    target = small_disk / "model.onnx"
    done = call("export", "onnx", "--run", tiny_run, "-o", target, "--images", "4")
    assert done.code == 1
    assert f"cannot write {target}" in done.err
    assert "No space left" in done.err
    assert left_in(small_disk) == []


def test_export_keeps_what_was_there(tiny_run: Path, small_disk: Path) -> None:
    """An older model of that name is still whole."""
    target = small_disk / "model.onnx"
    target.write_bytes(b"older")
    assert call("export", "onnx", "--run", tiny_run, "-o", target, "--images", "4").code == 1
    assert target.read_bytes() == b"older"
    assert left_in(small_disk) == ["model.onnx"]


def test_join(tiny_onnx: Path, tmp_path: Path, small_disk: Path) -> None:
    """The joined model does not fit: one message, no piece of it left, its members whole."""
    other = tmp_path / "other.onnx"
    shutil.copy(tiny_onnx, other)
    before = tiny_onnx.read_bytes()
    target = small_disk / "pair.onnx"
    done = call("join", tiny_onnx, other, "-o", target)
    assert done.code == 1
    assert f"cannot write {target}" in done.err
    assert "No space left" in done.err
    assert left_in(small_disk) == []
    assert tiny_onnx.read_bytes() == other.read_bytes() == before


def test_audit_table(home: Path, small_disk: Path) -> None:
    """The table does not fit: one message, the older one stays, and what was found was said."""
    target = small_disk / "joined.csv"
    target.write_text(OLDER)
    (small_disk / "filler").write_bytes(b"x" * (ROOM - 8192))
    done = call("audit", "isic18", "--same-lesion", "--device", "cpu", "--table", target)
    assert done.code == 1
    assert f"cannot write {target}" in done.err
    assert "No space left" in done.err
    assert done.err.count("error:") == 1
    assert "probably one lesion" in done.out
    assert target.read_text() == OLDER
    assert left_in(small_disk) == ["filler", "joined.csv"]


def test_average(tiny_run: Path, small_disk: Path) -> None:
    """The network does not fit: nothing is left, and the name can be used again."""
    for _ in range(2):
        done = call(
            "average", tiny_run, tiny_run, "--name", "mean", "--share", "0.5", "--runs", small_disk,
            "--device", "cpu",
        )  # fmt: skip
        assert done.code == 1
        assert "No space left" in done.err
        assert done.err.count("error:") == 1
        assert left_in(small_disk) == []


def test_predict(tiny_onnx: Path, picture: Path, small_disk: Path) -> None:
    """The answers do not fit: one message; whole rows stay in a part to go on with, none torn."""
    (small_disk / "filler").write_bytes(b"x" * (ROOM - 4096))
    target = small_disk / "answers.csv"
    images = [picture] * 200
    done = call("predict", *images, "--model", tiny_onnx, "--format", "csv", "-o", target)
    assert done.code == 1
    assert "No space left" in done.err
    assert "--resume goes on with it" in done.err
    assert left_in(small_disk) == ["answers.csv.part", "filler"]
    rows = target.with_name("answers.csv.part").read_text().splitlines(keepends=True)
    assert len(rows) > 1
    assert all(r.endswith("\n") and r.count(",") == rows[0].count(",") for r in rows)


def test_resumed_parquet(tiny_onnx: Path, picture: Path, small_disk: Path) -> None:
    """Its rows do not fit beside it: one message, and the file is what it was."""
    pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    target = small_disk / "answers.parquet"
    ask = ("predict", "--model", tiny_onnx, "-o", target)
    assert call(*ask, *[picture] * 200).code == 0
    before = target.read_bytes()
    room = ROOM - len(before) - len(before) % 4096
    (small_disk / "filler").write_bytes(b"x" * (room - 16384))
    done = call(*ask, picture, "--resume")
    assert done.code == 1
    assert "No space left" in done.err
    assert done.err.count("error:") == 1
    assert target.read_bytes() == before
    assert left_in(small_disk) == ["answers.parquet", "filler"]


def test_train(home: Path, small_disk: Path) -> None:
    """The first checkpoint does not fit: one message, no broken checkpoint."""
    done = call(*TINY, "--epochs", "1", "--name", "full", "--runs", small_disk)
    assert done.code == 1
    assert "cannot write" in done.err
    assert "No space left" in done.err
    assert "Traceback" not in done.err
    assert not [f for f in left_in(small_disk) if f.endswith((".safetensors", "~"))]


def test_train_in_the_middle(home: Path, tiny_run: Path, tmp_path: Path) -> None:
    """Room for one checkpoint, none for the next: the first is whole, and the run goes on."""
    each = (tiny_run / "weights" / "last.safetensors").stat().st_size
    with disk(tmp_path / "disk", int(1.5 * each)) as folder:
        run = folder / "r"
        done = call(
            *TINY, "--set", "train.checkpoint_minutes=1e-9", "--epochs", "1", "--name", "r",
            "--runs", folder,
        )  # fmt: skip
        assert done.code == 1
        assert "No space left" in done.err
        last = run / "weights" / "last.safetensors"
        assert f"the checkpoint before it, {last}, is whole" in done.err
        assert f"biigma train --resume {run}" in done.err
        assert load_checkpoint(last).meta["state"]["step"] == 1
        assert sorted(p.name for p in last.parent.iterdir()) == [last.name, "previous.safetensors"]
        subprocess.run(["mount", "-o", f"remount,size={8 * each}", str(folder)], check=True)
        done = call("train", "--resume", run, "--device", "cpu")
        assert done.code == 0, done.err
        assert "resumed in epoch 1 after step 1" in done.err
        assert load_checkpoint(run / "weights" / "best.safetensors").meta["epoch"] == 1
