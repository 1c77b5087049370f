"""Where a checkpoint comes from, and whom it must not be judged on."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from biigma_cli import config as cfg
from biigma_cli.core.sources import as_source, joint_citation, joint_licence, merged, sources_of
from biigma_cli.core.weights import Checkpoint, save_checkpoint
from biigma_cli.data.splits import Split
from biigma_cli.engine.provenance import (
    ancestry,
    check_unseen,
    commit,
    line_of,
    run_of,
    trunk_source,
    versions,
)
from biigma_cli.errors import CheckpointMismatch


def git(folder: Path, *arguments: str) -> str:
    """One git command in a folder, with an author."""
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_commit(tmp_path: Path) -> None:
    """The checkout's commit, marked where a tracked file differs; tags are not named."""
    git(tmp_path, "init", "-q")
    assert commit(tmp_path) is None  # nothing is committed yet
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "a")
    git(tmp_path, "tag", "-a", "v1", "-m", "v1")
    head = git(tmp_path, "rev-parse", "HEAD")[:12]
    assert commit(tmp_path) == head
    (tmp_path / "new").write_text("untracked")
    assert commit(tmp_path) == head
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path) == f"{head}-dirty"


def test_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder inside somebody's checkout is not that checkout; without git there is none."""
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "a")
    inside = tmp_path / "site-packages"
    inside.mkdir()
    assert commit(tmp_path) is not None
    assert commit(inside) is None
    monkeypatch.setenv("PATH", str(inside))
    assert commit(tmp_path) is None
    assert "commit" not in versions()


def checkpoint(**meta: Any) -> Checkpoint:
    """A checkpoint of nothing but a header."""
    dataset = meta.pop("dataset", "isic18")
    config = cfg.from_dict({"data": {"dataset": dataset}}).to_dict()
    return Checkpoint({}, {"config": config, "classes": [], **meta})


def test_ancestry() -> None:
    """Oldest first, each once; the own one last."""
    first = checkpoint(command="train first", versions={"biigma": "1"})
    line = line_of("first", first)
    second = checkpoint(command="train second", ancestors=line)
    third = checkpoint(command="train third", ancestors=line)
    both = ancestry(line_of("second", second), line_of("third", third))
    assert [entry["run"] for entry in both] == ["first", "second", "third"]
    assert both[0] == {"run": "first", "command": "train first", "versions": {"biigma": "1"}}
    assert run_of(Path("runs/a/weights/best.safetensors")) == "a"
    assert run_of(Path("kept/a.safetensors")) == "a"
    assert run_of(Path("runs/a/model.onnx")) == "a"
    assert run_of(Path("kept/a.onnx")) == "a"


@pytest.mark.parametrize(
    ("licences", "joint"),
    [
        (["CC0-1.0"], "CC0-1.0"),
        (["CC0-1.0", "CC-BY-NC-4.0", "CC0-1.0"], "CC-BY-NC-4.0"),
        (["CC-BY-4.0", "CC0-1.0"], "CC-BY-4.0"),
        (["CC0-1.0", "my own"], "my own"),
        (["my own", "CC-BY-NC-4.0"], "CC-BY-NC-4.0 AND my own"),
        (["CC-BY-NC-4.0 AND my own", "my own", "CC-BY-NC-4.0"], "CC-BY-NC-4.0 AND my own"),
        (["", "my own"], "unknown AND my own"),
    ],
)
def test_joint_licence(licences: list[str], joint: str) -> None:
    """The strictest licence holds, one of its own kind beside it."""
    assert joint_licence([as_source({"licence": licence}) for licence in licences]) == joint


def test_sources() -> None:
    """Of a checkpoint of an earlier version its own data; each once; each citation once."""
    extra = {"dataset": "isic17", "split_hash": "y", "licence": "CC0-1.0", "citation": "B."}
    old = checkpoint(
        split={"data_hash": "d", "split_hash": "s"}, licence="CC-BY-NC-4.0", citation="A.",
        extra=[extra],
    )  # fmt: skip
    own, beside = sources_of(old)
    assert (own["dataset"], own["split_hash"], own["beside"]) == ("isic18", "s", "")
    assert (beside["dataset"], beside["split_hash"], beside["beside"]) == ("isic17", "y", "isic18")
    assert sources_of(checkpoint(sources=[own])) == [own]
    assert merged([own], [beside, own]) == [own, beside]
    assert joint_citation(merged([own, beside], [beside])) == "A. B."
    assert joint_licence([own, beside]) == "CC-BY-NC-4.0"


def split(dataset: str) -> Split:
    """A split of nothing."""
    return Split(
        dataset=dataset, variant="", protocol="lesion", join_duplicates=True, seed=0,
        test_fraction=0.2, val_fraction=0.1, data_hash="d", train=(), val=(), test=(),
    )  # fmt: skip


SAME = {"data_hash": "d", "split_hash": split("any").split_hash}
OTHER = {**SAME, "split_hash": "x"}


@pytest.mark.parametrize(
    ("own", "trained", "meta", "fine"),
    [
        ("isic18", "isic18", {"split": SAME}, True),
        ("isic18", "isic18", {"split": OTHER}, False),
        ("isic17", "isic18", {"split": OTHER}, True),
        ("isic17", "isic18", {"split": OTHER, "extra": [{"dataset": "isic17", **SAME}]}, True),
        ("isic17", "isic18", {"split": SAME, "extra": [{"dataset": "isic17", **OTHER}]}, False),
        ("isic17-mel", "isic17", {"split": OTHER}, False),
        ("isic19", "isic18", {"split": OTHER}, False),
        ("isic17", "isic19", {"split": OTHER}, False),
        ("isic17-mel", "isic17", {"split": SAME}, True),
        # Own images were left out of what joined: no test image of the own data set is in it.
        ("isic18", "isic18", {"split": SAME, "extra": [{"dataset": "isic19", **OTHER}]}, True),
        ("isic17", "isic18", {"split": SAME, "extra": [{"dataset": "isic19", **OTHER}]}, False),
        # Of the network's own data nothing is wrong; of one behind it there is.
        ("isic18", "isic17", {"sources": [as_source({"dataset": "isic18", **OTHER})]}, False),
    ],
)
def test_check_unseen(own: str, trained: str, meta: dict[str, Any], fine: bool) -> None:
    """The same images in another split are refused, by whatever name they came."""
    source = checkpoint(dataset=trained, **meta)
    if fine:
        check_unseen(split(own), "x", source)
        return
    with pytest.raises(CheckpointMismatch, match="x has learnt from"):
        check_unseen(split(own), "x", source)


def test_trunk_source(tmp_path: Path) -> None:
    """A checkpoint given as backbone weights is found; its header is read."""
    path = tmp_path / "best.safetensors"
    meta = checkpoint(command="train it").meta
    save_checkpoint(path, {"model.x": torch.ones(1)}, meta)
    found = trunk_source(cfg.ModelConfig(weights=str(path)))
    assert found is not None
    assert found.meta["command"] == "train it"


def test_other_weights_have_no_source(tmp_path: Path) -> None:
    """ImageNet's, none, and a file of another kind are nobody's network."""
    (tmp_path / "text.safetensors").write_text("no")
    for weights in ("imagenet", "none", str(tmp_path / "text.safetensors")):
        assert trunk_source(cfg.ModelConfig(weights=weights)) is None
