"""`biigma ablate`: runs trained, recognised, resumed and judged, and what it refuses."""

from __future__ import annotations

import contextlib
import csv
import json
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from biigma_cli.core.weights import load_checkpoint
from biigma_cli.engine import interrupt
from biigma_cli.engine.interrupt import StopRequest
from biigma_cli.engine.lock import held
from biigma_cli.errors import TrainingDiverged
from biigma_cli.judge import ablation
from tests.conftest import Outcome, call

TINY = (
    "ablate", "--table2", "--weights", "none", "--device", "cpu", "--seeds", "1",
    "--set", "data.side=32", "--set", "train.batch_size=16", "--set", "train.epochs=1",
    "--set", "train.sampling_start_epoch=0", "--set", "train.precision=fp32",
    "--set", "model.projection_channels=8", "--set", "model.adapter_channels=8",
    "--set", "train.augment=false",
)  # fmt: skip


def table(runs: Path) -> dict[str, dict[str, str]]:
    """The CSV by row."""
    with (runs / "ablation-isic18" / "table.csv").open(encoding="utf-8", newline="") as file:
        return {line["row"]: line for line in csv.DictReader(file)}


def refused(done: Outcome, *words: str, code: int) -> None:
    """One error, its fix, nothing on stdout."""
    assert done.code == code, done.err
    assert done.out == ""
    assert done.err.count("error:") == 1
    assert done.err.count("fix:") == 1
    for word in words:
        assert word in done.err


@pytest.fixture(scope="module")
def runs(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Baseline made by `biigma train`, as `--dry-run` says; full by ablate; then the table."""
    runs = tmp_path_factory.mktemp("ablation")
    options = (*TINY, "--rows", "baseline,sigma-1", "--runs", runs)
    shown = call(*options, "--dry-run")
    assert shown.code == 0, shown.err
    assert "2 runs, 2 to train" in shown.out
    assert not (runs / "ablation-isic18").exists()
    told = [line.strip() for line in shown.out.splitlines() if line.startswith("  biigma train")]
    made = next(line for line in told if "baseline" in line)
    trained = call(*shlex.split(made)[1:], "--device", "cpu")
    assert trained.code == 0, trained.err
    done = call(*options)
    assert done.code == 0, done.err
    (runs / "out.txt").write_text(done.out, encoding="utf-8")
    (runs / "err.txt").write_text(done.err, encoding="utf-8")
    return runs


@pytest.fixture
def copy(runs: Path, tmp_path: Path) -> Path:
    """The runs, for a test to change."""
    return Path(shutil.copytree(runs, tmp_path / "runs"))


def test_missing_runs_are_trained_and_judged(runs: Path) -> None:
    """The finished one is taken, the other trained; table, CSV, Markdown and figures are there."""
    err = (runs / "err.txt").read_text(encoding="utf-8")
    out = (runs / "out.txt").read_text(encoding="utf-8")
    assert "training full, seed 1 (1 of 2)" in err
    assert "training baseline" not in err
    assert "Ablation (Table 2) on isic18\n" in out
    assert "lesion-safe" in out
    assert "* published in Table 2 of the BIIGMA-Net paper: random 80:20 by image" in out
    folder = runs / "ablation-isic18"
    assert {p.name for p in folder.iterdir() if not p.name.startswith(".")} == {
        "baseline-s1", "full-s1", "table.csv", "table.md", "figure.svg", "figure.png",
    }  # fmt: skip
    found = table(runs)
    assert list(found) == ["baseline", "sigma-1"]
    assert found["sigma-1"]["same_as"] == "full"
    judged = json.loads((folder / "baseline-s1" / "eval-test.json").read_text())
    assert float(found["baseline"]["macro_f1_seed1"]) == pytest.approx(judged["macro_f1"], abs=1e-5)
    assert (folder / "full-s1" / "curves.svg").is_file()


def test_the_runs_are_ordinary(runs: Path, tmp_path: Path) -> None:
    """`biigma train` with the words kept in the checkpoint gives the same weights to the bit."""
    best = Path("weights") / "best.safetensors"
    ours = load_checkpoint(runs / "ablation-isic18" / "full-s1" / best)
    words = shlex.split(ours.meta["command"])
    assert words[:2] == ["biigma", "train"]
    done = call(*words[1:], "--runs", tmp_path, "--name", "again", "--device", "cpu")
    assert done.code == 0, done.err
    theirs = load_checkpoint(tmp_path / "again" / best)
    assert ours.config == theirs.config
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(v, theirs.tensors[k]) for k, v in ours.tensors.items())


def test_eval_gives_the_same_figures(copy: Path) -> None:
    """What ablate keeps of a run is what `biigma eval` says of it, and either is taken."""
    run = copy / "ablation-isic18" / "full-s1"
    kept = json.loads((run / "eval-test.json").read_text())
    done = call("eval", "--run", run, "--resamples", "9", "--device", "cpu", "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert {k: kept[k] for k in ("macro_f1", "confusion", "split_hash")} == {
        k: said[k] for k in ("macro_f1", "confusion", "split_hash")
    }
    before = (run / "eval-test.json").read_bytes()
    again = call(*TINY, "--rows", "baseline,sigma-1", "--runs", copy)
    assert again.code == 0, again.err
    assert "judging" not in again.err
    assert (run / "eval-test.json").read_bytes() == before


def test_a_repeat_costs_nothing(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained or judged again, and the table is the same; --weights is found there."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("work was done again")

    monkeypatch.setattr(ablation, "judge", never)
    monkeypatch.setattr(ablation.engine, "train", never)
    first = (copy / "out.txt").read_text(encoding="utf-8")
    assert call(*TINY, "--rows", "baseline,sigma-1", "--runs", copy).out == first
    options = [o for o in TINY if o not in ("--weights", "none")]
    bare = call(*options, "--rows", "baseline,sigma-1", "--runs", copy, "--no-train")
    assert bare.out == first


def test_partial(copy: Path) -> None:
    """Without training: what is there, marked as partial, and what is lacking."""
    done = call(*TINY, "--rows", "baseline,cosine,full", "--runs", copy, "--no-train")
    assert done.code == 0, done.err
    assert "partial: 2 of 3 runs" in done.out
    assert "cosine, seed 1: not trained" in done.out
    assert table(copy)["cosine"]["runs"] == "0"
    assert not (copy / "ablation-isic18" / "cosine-s1").exists()


def test_interrupted_and_resumed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C writes a checkpoint and says how to go on; the same command goes on at once."""
    run = copy / "ablation-isic18" / "full-s1"
    whole = load_checkpoint(run / "weights" / "best.safetensors")
    shutil.rmtree(run)
    asked = StopRequest()

    @contextlib.contextmanager
    def at_the_first_step() -> Iterator[StopRequest]:
        yield asked

    plain = ablation.engine.train

    def train(*arguments: object, **options: object) -> object:
        tell = options["on_event"]

        def on_event(event: object) -> None:
            if type(event).__name__ == "StepEvent":
                asked.signum = signal.SIGINT
            tell(event)  # type: ignore[operator]

        return plain(*arguments, **{**options, "on_event": on_event})  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(interrupt, "stop_on_signals", at_the_first_step)
        patch.setattr(ablation.engine, "train", train)
        stopped = call(*TINY, "--rows", "full", "--runs", copy)
    refused(stopped, "full, seed 1", "a checkpoint was written", "same command", code=130)
    assert (run / "weights" / "last.safetensors").is_file()
    shown = call(*TINY, "--rows", "full", "--runs", copy, "--dry-run")
    assert "unfinished, 0 of 1 epochs" in shown.out
    done = call(*TINY, "--rows", "full", "--runs", copy)
    assert done.code == 0, done.err
    assert "resumed" in done.err
    again = load_checkpoint(run / "weights" / "best.safetensors")
    assert all(torch.equal(v, again.tensors[k]) for k, v in whole.tensors.items())


def test_a_diverged_row_does_not_stop_the_rest(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is kept as failed with its cause, not tried again, and the exit code says so."""
    folder = copy / "ablation-isic18"
    shutil.rmtree(folder / "full-s1")
    (folder / "baseline-s1" / "eval-test.json").unlink()

    def train(config: object, manifest: object, run: Path, **options: object) -> None:
        assert run.name == "full-s1"
        run.mkdir(parents=True)
        (run / "config.toml").write_text("[train]\nepochs = 1\n")
        raise TrainingDiverged("the loss is nan in epoch 1, step 2")

    with monkeypatch.context() as patch:
        patch.setattr(ablation.engine, "train", train)
        patch.setattr(ablation, "setting_differences", lambda _: [])
        done = call(*TINY, "--rows", "baseline,full", "--runs", copy)
        assert done.code == 5, done.err
        assert "failed: full-s1" in done.err
        assert "full, seed 1: failed: the loss is nan in epoch 1, step 2" in done.out
        assert "judging baseline" in done.err
        assert table(copy)["baseline"]["runs"] == "1"
        # Told again from the folder.
        again = call(*TINY, "--rows", "baseline,full", "--runs", copy)
        assert again.code == 5
        assert again.out == done.out
        shown = call(*TINY, "--rows", "full", "--runs", copy, "--dry-run")
        assert "full-s1: failed: the loss is nan" in shown.out
        assert "0 to train" in shown.out


def test_a_run_in_other_hands_is_passed_over(copy: Path) -> None:
    """An unfinished run that another training holds is left as it is, and the rest tabulated."""
    run = copy / "ablation-isic18" / "full-s1"
    for name in ("summary.json", "eval-test.json"):
        (run / name).unlink()
    with held(run):
        before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
        done = call(*TINY, "--rows", "baseline,full", "--runs", copy)
        assert done.code == 0, done.err
        assert "in use by another training" in done.out
        assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_shortcut(home: Path, tmp_path: Path) -> None:
    """One run judged with the bias kept, gone and reversed; no published value, no protocol."""
    options = (
        "ablate", "--shortcut", *TINY[2:], "--set", "data.synthetic_count=70", "--rows",
        "baseline", "--background-bias", "1", "--runs", tmp_path,
    )  # fmt: skip
    done = call(*options)
    assert done.code == 0, done.err
    folder = tmp_path / "shortcut-synthetic"
    run = folder / "baseline-s1"
    val, test, other = (
        json.loads((run / name).read_text())
        for name in ("eval-val.json", "eval-test.json", "eval-test-reversed.json")
    )
    assert "in the test part independent" in test["protocol"]
    assert "in the test part reversed" in other["protocol"]
    assert other["data_hash"] != test["data_hash"] == val["data_hash"]
    assert other["trained_on"]["data_hash"] == test["data_hash"]
    assert other["n"] == test["n"] > val["n"]
    assert "accuracy, reversed" in done.out
    assert "published" not in done.out
    assert (folder / "figure.png").is_file()
    again = call(*options, "--no-train")
    assert again.out == done.out
    assert "judging" not in again.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("ablate",), ("--table2, --recipe or --shortcut",)),
        (("ablate", "--table2", "--shortcut"), ("one of them",)),
        (("ablate", "--table2", "--split", "train"), ("train", "test or val")),
        (("ablate", "--shortcut", "--split", "val"), ("--split",)),
        (("ablate", "--shortcut", "--dataset", "isic18"), ("synthetic",)),
        (("ablate", "--table2", "--rows", "no-micca"), ("no-micca", "no-mica")),
        (("ablate", "--table2", "--seeds", "one"), ("one", "1,2,3")),
        (("ablate", "--table2", "--preset", "paper"), ("paper", "paper-light")),
        (("ablate", "--table2", "--dataset", "isci18"), ("isci18", "isic18")),
        (("ablate", "--table2", "--set", "train.seed=1"), ("--seeds",)),
    ],
)
def test_usage(
    home: Path, tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """What cannot be is refused before any work, with the nearest that can."""
    refused(call(*options, "--runs", tmp_path), *words, code=2)
    assert list(tmp_path.iterdir()) == []


def test_other_settings(copy: Path) -> None:
    """A run of the same name with other settings is refused, and the difference shown."""
    options = (*TINY, "--rows", "full", "--runs", copy, "--set", "train.lr=0.5")
    refused(call(*options), "full-s1: train.lr: 0.001 there, 0.5 here", "--name", code=3)


def test_nothing_there(home: Path, tmp_path: Path) -> None:
    """--no-train without a run makes no table."""
    refused(call(*TINY, "--runs", tmp_path, "--no-train"), "no finished run", code=3)
    assert list(tmp_path.iterdir()) == []
