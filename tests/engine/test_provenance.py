"""Where a checkpoint comes from, and whom it must not be judged on."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from biigma_cli import config as cfg
from biigma_cli.core.weights import Checkpoint
from biigma_cli.data.splits import Split
from biigma_cli.engine.provenance import (
    Terms,
    ancestry,
    check_unseen,
    commit,
    joint_terms,
    line_of,
    run_of,
    terms_of,
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
    inside = tmp_path / "site-packages"
    inside.mkdir()
    assert commit(inside) is None
    monkeypatch.setenv("PATH", str(inside))
    assert commit(tmp_path) is None
    assert "commit" not in versions() or versions()["commit"]


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


@pytest.mark.parametrize(
    ("licences", "joint"),
    [
        (["CC0-1.0"], "CC0-1.0"),
        (["CC0-1.0", "CC-BY-NC-4.0", "CC0-1.0"], "CC-BY-NC-4.0"),
        (["CC-BY-4.0", "CC0-1.0"], "CC-BY-4.0"),
        (["CC0-1.0", "my own"], "my own"),
        (["my own", "CC-BY-NC-4.0"], "CC-BY-NC-4.0 AND my own"),
        (["unknown", "my own"], "unknown AND my own"),
    ],
)
def test_joint_terms(licences: list[str], joint: str) -> None:
    """The strictest licence holds, one of its own kind beside it; each citation once."""
    found = joint_terms([Terms(licence, f"by {licence}") for licence in licences])
    assert found.licence == joint
    assert all(f"by {licence}" in found.citation for licence in licences)
    assert joint_terms([Terms("a", "b"), Terms("a", "b"), Terms("a", "")]) == Terms("a", "b")
    assert joint_terms([Terms("a", "one"), Terms("a", "one two")]).citation == "one two"
    assert terms_of({}) == Terms("unknown", "")


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
    ],
)
def test_check_unseen(own: str, trained: str, meta: dict[str, Any], fine: bool) -> None:
    """The same images in another split are refused, by whatever name they came."""
    source = checkpoint(dataset=trained, **meta)
    if fine:
        check_unseen(split(own), "x", source)
        return
    with pytest.raises(CheckpointMismatch, match="x was trained on another"):
        check_unseen(split(own), "x", source)


def test_other_weights_have_no_source(tmp_path: Path) -> None:
    """ImageNet's, none, and a file of another kind are nobody's network."""
    (tmp_path / "text.safetensors").write_text("no")
    for weights in ("imagenet", "none", str(tmp_path / "text.safetensors")):
        assert trunk_source(cfg.ModelConfig(weights=weights)) is None
