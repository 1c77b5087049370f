"""`biigma predict --engine ray` on a cluster of two workers: the answers of the local engine."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import ImageOps

from biigma_cli.errors import BiigmaError, DataError, UsageError
from biigma_cli.runtime import ray_cluster
from biigma_cli.runtime import ray_engine as engine
from biigma_cli.runtime.inputs import Source
from biigma_cli.runtime.pipeline import classify
from biigma_cli.runtime.ray_cluster import Share, connected, divide, quiet
from biigma_cli.runtime.ray_engine import block_rows, windows
from biigma_cli.runtime.session import Predictor
from tests.conftest import call
from tests.data.samples import encode, noise, skin
from tests.runtime.test_pipeline import flat, pictures, toy_model

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None,
    reason="Ray is not installed: pip install 'biigma[ray]'",
)
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one layer."""
    return toy_model(tmp_path_factory.mktemp("toy") / "toy.onnx")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two workers on this machine; `ray_engine` takes what the process is connected to."""
    with quiet(), connected("local", 2) as started:
        assert started
        yield


def started_by(root: int, word: bytes) -> set[int]:
    """Processes that one started, or their children, with a word in their command."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if word not in (folder / "cmdline").read_bytes():
                continue
            pid = int(folder.name)
            while pid > 1 and pid != root:
                pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if pid == root:
                found.add(int(folder.name))
    return found


def runs(pid: int) -> bool:
    """Whether a process is there, and has not ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


# --- without a cluster -----------------------------------------------------------------------


def test_without_ray(toy: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One message that says what to install, before anything is opened."""
    monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda name: None)
    done = call("predict", picture, "--model", toy, "--engine", "ray")
    assert done.code == 2
    assert "biigma[ray]" in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--engine", "spark"], "spark"),
        (["--ray-workers", "2"], "--engine ray"),
        (["--ray-address", "auto"], "--engine ray"),
        (["--format", "parquet"], "-o FILE"),
    ],
)
def test_what_cannot_be_asked(toy: Path, picture: Path, arguments: list[str], word: str) -> None:
    """Options that do not fit together."""
    done = call("predict", picture, "--model", toy, *arguments)
    assert done.code == 2
    assert word in done.err


@needs_ray
@pytest.mark.parametrize(
    ("options", "word"),
    [({"device": "cuda:1"}, "--device cuda:"), ({"address": "ray://there:10001"}, "client")],
)
def test_what_the_engine_cannot_be_asked(toy: Path, options: dict[str, str], word: str) -> None:
    """Said before a cluster is looked for."""
    with pytest.raises(UsageError) as told, engine.ray_engine(toy, **options):  # type: ignore[arg-type]
        pass
    assert word in told.value.message + told.value.fix


@needs_ray
def test_no_cluster_at_the_address(toy: Path, picture: Path) -> None:
    """Said at once, not after Ray's own minutes."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"  # bound, but nobody listens
        done = call("predict", picture, "--model", toy, "--engine", "ray", "--ray-address", address)
    assert done.code == 4
    assert address in done.err
    assert "--ray-address" in done.err


def test_windows() -> None:
    """What was named before the names raised is answered first."""

    def failing() -> Iterator[Source]:
        yield from pictures(5)
        raise DataError("no list")

    found = windows(failing(), 2)
    assert [[s.name for s in next(found)] for _ in range(3)] == [["0", "1"], ["2", "3"], ["4"]]
    with pytest.raises(DataError, match="no list"):
        next(found)
    assert [len(w) for w in windows(pictures(4), 2)] == [2, 2]
    assert list(windows([], 2)) == []


@pytest.mark.parametrize(
    ("names", "batch_size", "workers", "rows"),
    [(1, 16, 2, 16), (128, 16, 2, 16), (129, 16, 2, 32), (10**6, 16, 2, 256), (30, 1, 2, 4)],
)
def test_block_rows(names: int, batch_size: int, workers: int, rows: int) -> None:
    """Whole batches, at most sixteen of them; four blocks for each worker where there are few."""
    assert block_rows(names, batch_size, workers) == rows


@pytest.mark.parametrize(
    ("nodes", "workers", "gpu", "share"),
    [
        ([{"CPU": 2.0}], None, False, Share(1, 2, 0)),
        ([{"CPU": 2.0}], 2, False, Share(2, 1, 0)),
        ([{"CPU": 2.0}], 3, False, Share(3, 1, 0)),
        ([{"CPU": 16.0}, {"CPU": 10.0}, {}], None, False, Share(6, 4, 0)),
        ([{"CPU": 16.0}, {"CPU": 10.0}], 1, False, Share(1, 10, 0)),
        ([{"CPU": 16.0, "GPU": 2.0}, {"CPU": 64.0}], None, True, Share(2, 8, 1)),
    ],
)
def test_divide(
    nodes: list[dict[str, float]], workers: int | None, gpu: bool, share: Share
) -> None:
    """Every worker fits into each node it may come to; no core has two of them."""
    assert divide(nodes, workers, on_gpu=gpu) == share


@pytest.mark.parametrize("numbers", [[0], [0, 1, 1], [1, 0], [0, 2]])
def test_blocks_out_of_place(numbers: list[int]) -> None:
    """A block that is missing, comes twice or too early ends the run."""
    assert list(engine._in_order([], [])) == []
    with pytest.raises(BiigmaError, match="Ray gave"):
        list(engine._in_order([(n, []) for n in numbers], [0, 0, 0][: max(2, len(numbers))]))


# --- on a cluster ----------------------------------------------------------------------------


@needs_ray
def test_as_the_local_engine(toy: Path, tmp_path: Path, cluster: None) -> None:
    """The same CSV, byte for byte: damaged and missing files, odd names, a relative path; and,
    cut short, gone on with. As Parquet, the same rows.
    """
    from pyarrow import parquet

    names = []
    for i in range(40):
        names.append(tmp_path / f"{i:02}.png")
        names[-1].write_bytes(encode(noise(20, 20, seed=i)))
    names[3].write_bytes(b"\x89PNG\r\n\x1a\n")
    framed = ImageOps.expand(skin(64, 48), 16, "black")
    names[10].write_bytes(encode(framed))
    names[20] = tmp_path / "gone.png"
    names[21] = names[22]
    if sys.platform == "linux":
        names[30] = Path(os.fsdecode(bytes(tmp_path) + b"/\xff\n.png"))
        names[30].write_bytes(names[0].read_bytes())
    listed = tmp_path / "list"
    texts = [str(n) for n in names]
    texts[5] = os.path.relpath(names[5])
    listed.write_bytes(b"\0".join(map(os.fsencode, texts)))
    # One image a batch, and so the same rounding wherever blocks and bad files end batches.
    common = ("predict", "--model", toy, "--from-list", listed, "--device", "cpu", "-b", "1")
    wanted = call(*common, "-o", tmp_path / "local.csv")
    done = call(*common, "-o", tmp_path / "ray.csv", "--engine", "ray", "--ray-workers", "2")
    assert (done.code, done.out) == (wanted.code, wanted.out) == (5, "")
    assert "38 ok, 2 failed" in done.err
    assert "in each of 2 workers" in done.err
    whole = (tmp_path / "ray.csv").read_bytes()
    assert whole == (tmp_path / "local.csv").read_bytes()
    assert whole.count(b"a black border was left out") == 1
    for name, engine_ in (("kept", "local"), ("kept-ray", "ray")):
        done = call(*common, "-o", tmp_path / f"{name}.csv", "--engine", engine_, "--keep-border")
        assert done.code == 5
    kept = (tmp_path / "kept-ray.csv").read_bytes()
    assert kept == (tmp_path / "kept.csv").read_bytes()
    assert b"border was" not in kept

    (tmp_path / "out.parquet.part").write_bytes(whole[: len(whole) // 2])
    done = call(*common, "-o", tmp_path / "out.parquet", "--resume", "--engine", "ray")
    assert done.code == 5
    assert "files are answered already" in done.err
    assert sorted(p.name for p in tmp_path.glob("*out*")) == ["out.parquet"]
    with (tmp_path / "ray.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.column_names == list(rows[0])
    for row, read in zip(rows, table.to_pylist(), strict=True):
        for column, text in row.items():
            value = read[column]
            told = "" if value is None else f"{value:.6f}" if isinstance(value, float) else value
            assert told == text


@needs_ray
@linux
def test_killed_workers_cost_nothing(toy: Path, tmp_path: Path, cluster: None) -> None:
    """All workers are killed while they have blocks in hand: others do them, each file once."""
    paths = []
    for i in range(4):
        paths.append(tmp_path / f"{i}.png")
        paths[-1].write_bytes(encode(noise(1200, 1200, seed=i)))
    sources = [Source(f"{i}", paths[i % 4]) for i in range(160)]
    alone = flat(classify(Predictor(toy, device="cpu"), sources[:4], batch_size=1))
    seen: list[set[int]] = []
    results = []
    with engine.ray_engine(toy, device="cpu", workers=2) as ray:
        assert ray.share == Share(2, 1, 0)
        assert not ray.local
        for batch in ray.classify(sources, batch_size=1):
            results += batch
            seen.append(started_by(os.getpid(), b"ray::MapWorker"))
            if len(seen) == 1:
                assert seen[0]
                assert len(results) == 16
                for pid in seen[0]:
                    os.kill(pid, signal.SIGKILL)
    assert [r.name for r in results] == [s.name for s in sources]
    for i, result in enumerate(results):
        assert result.error is None
        assert (result.probabilities_Y == alone[i % 4].probabilities_Y).all()
    later = set.union(*seen[-3:])
    assert later
    assert not later & seen[0]


@needs_ray
def test_files_that_kill_every_worker(toy: Path, cluster: None) -> None:
    """They are named after some attempts, rather than tried for ever."""
    import ray

    attempts = ray.remote(engine._Attempts).remote()
    with engine.ray_engine(toy, device="cpu") as made:
        worker = engine._Worker(
            model=made.model, attempts=attempts, name="toy.onnx", device="cpu", threads=1,
            settings={"batch_size": 2, "workers": 1, "tta": False}, folder="/",
            version=engine.__version__,
        )  # fmt: skip
        for _ in range(engine._ATTEMPTS):
            answer = worker._answer(0, pictures(3))
            assert isinstance(answer, list)
            assert len(answer) == 3
        answer = worker._answer(0, pictures(3))
        assert isinstance(answer, BiigmaError)
        assert "from 0 to 2" in answer.message
        assert isinstance(worker._answer(1, pictures(1)), list)


@needs_ray
def test_a_worker_of_another_version(
    toy: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a worker cannot do is one error here."""
    monkeypatch.setattr(engine, "__version__", "0.0")
    with (
        engine.ray_engine(toy, device="cpu", workers=1) as made,
        pytest.raises(UsageError, match="of the cluster has biigma"),
    ):
        list(made.classify(pictures(3)))


@needs_ray
@linux
def test_interrupted(toy: Path, tmp_path: Path) -> None:
    """Ctrl-C: it ends, its cluster too; what was answered stays, and is whole rows."""
    image = tmp_path / "image.png"
    image.write_bytes(encode(noise(1200, 1200)))
    listed = tmp_path / "list"
    listed.write_text(f"{image}\n" * 5000)
    process = subprocess.Popen(
        [sys.executable, "-m", "biigma_cli", "predict", "--model", toy, "--from-list", listed,
         "--engine", "ray", "--ray-workers", "2", "-o", tmp_path / "out.csv", "-b", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    part = tmp_path / "out.csv.part"
    while process.poll() is None and not (part.exists() and part.stat().st_size):
        time.sleep(0.1)
    started = started_by(process.pid, b"biigma-ray-")
    process.send_signal(signal.SIGINT)
    out, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert out == b""
    assert b"--resume" in told
    assert b"interrupted" in told
    assert b"Traceback" not in told
    assert b"Error" not in told
    assert started
    for _ in range(300):
        if not any(map(runs, started)):
            break
        time.sleep(0.1)
    assert not any(map(runs, started))
    assert part.read_bytes().endswith(b"\n")
    assert 1 < part.read_bytes().count(b"\n") < 5001
