"""Where a checkpoint comes from, and whom it must not be judged on."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from biigma_cli import config as cfg
from biigma_cli.core.header import caveats_of
from biigma_cli.core.sources import (
    as_source,
    joint_citation,
    joint_licence,
    merged,
    sources_of,
)
from biigma_cli.core.weights import Checkpoint, save_checkpoint
from biigma_cli.data.manifest import Manifest, Record, record_path, save_manifest
from biigma_cli.data.splits import Split, make_split
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
from biigma_cli.taxonomy import ISIC18, TAXONOMIES


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
    images = manifest(own, [])
    if fine:
        assert check_unseen(split(own), images, "x", source) == sources_of(source)
        return
    with pytest.raises(CheckpointMismatch, match="x has learnt from"):
        check_unseen(split(own), images, "x", source)


def manifest(dataset: str, records: list[Record]) -> Manifest:
    """A data set of one's own, unless it is one of ISIC."""
    codes = () if dataset in TAXONOMIES else ("MEL", "NV")
    ordered = tuple(sorted(records, key=lambda r: r.image_id))
    return Manifest(
        dataset=dataset, root=Path("gone"), records=ordered, licence="x", citation="x", codes=codes
    )


def image(name: str, label: str, *, path: str = "", lesion: str = "", digest: str = "") -> Record:
    """One image; its bytes are those of its name where nothing is said of them."""
    return Record(
        image_id=name, path=path or f"{name}.jpg", label=label, lesion_id=lesion,
        digest=digest or f"bytes of {name}",
    )  # fmt: skip


@pytest.fixture
def donors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """A data folder in which sixty images of ISIC 2018 are recorded, two of each lesion."""
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path))
    codes = ISIC18.codes
    records = [
        image(f"ISIC_{i:07}", codes[i // 2 % len(codes)], lesion=f"HAM_{i // 2:07}")
        for i in range(84)
    ]
    found = manifest("isic18", records)
    save_manifest(found)
    return found


def donor(data: Manifest, **config: Any) -> tuple[Split, Checkpoint]:
    """A network trained on a data set, and its split."""
    made = make_split(data, cfg.DataConfig(dataset=data.dataset, **config))
    return made, checkpoint(dataset=data.dataset, split=made.summary())


def held_out(records: list[Record]) -> tuple[Split, Manifest]:
    """A split of one's own set that tests on all of those."""
    data = manifest("mine", records)
    ids = tuple(r.image_id for r in data.records)
    return dataclasses.replace(split("mine"), test=ids, data_hash=data.data_hash), data


@pytest.mark.parametrize("protocol", ["lesion", "paper"])
@pytest.mark.parametrize("told", ["id", "file", "bytes", "downsampled"])
def test_own_images_that_were_trained_on(donors: Manifest, told: str, protocol: Any) -> None:
    """By the archive's id, wherever it stands, or by bytes: refused, counted and named."""
    theirs, network = donor(donors, protocol=protocol, split_seed=3)
    known = donors.by_id()
    lesions = {known[i].lesion_id for i in theirs.train}
    unseen = [i for i in theirs.test if known[i].lesion_id not in lesions]
    assert unseen

    def own(name: str) -> Record:
        if told == "id":
            return image(f"img/{name}", "NV", digest="other")
        if told == "downsampled":
            return image(f"img/{name}_downsampled", "NV", digest="other")
        if told == "file":
            return image(f"a{name[-2:]}", "NV", path=f"x/{name}.jpg", digest="other")
        return image(f"copy{name[-2:]}", "NV", digest=known[name].digest)

    check_unseen(*held_out([own(i) for i in unseen]), "x", network)
    mixed = held_out([own(i) for i in (*unseen, theirs.train[0])])
    count = len(unseen) + 1
    with pytest.raises(CheckpointMismatch) as caught:
        check_unseen(*mixed, "x", network)
    assert f"x has learnt from isic18, and 1 of the {count} validation" in caught.value.message
    assert caught.value.message.endswith(own(theirs.train[0]).image_id)
    # The same images are no harm in the train part.
    training = dataclasses.replace(mixed[0], train=mixed[0].test, test=())
    assert check_unseen(training, mixed[1], "x", network) == sources_of(network)


def test_another_image_of_a_lesion_that_was_trained_on(donors: Manifest) -> None:
    """An image that the network tested on is refused where its lesion was trained on, too."""
    theirs, network = donor(donors, protocol="paper")
    known = donors.by_id()
    lesions = {known[i].lesion_id for i in theirs.train}
    shown = next(i for i in theirs.test if known[i].lesion_id in lesions)
    with pytest.raises(CheckpointMismatch, match=f"or show a lesion of it: img/{shown}$"):
        check_unseen(*held_out([image(f"img/{shown}", "NV")]), "x", network)


def test_a_split_that_cannot_be_told(donors: Manifest) -> None:
    """Of another record of the data set each image may have been trained on."""
    theirs, network = donor(donors, split_seed=3)
    save_manifest(manifest("isic18", [*donors.records, image("ISIC_0009999", "NV", lesion="L")]))
    with pytest.raises(CheckpointMismatch, match="a part that cannot be told here"):
        check_unseen(*held_out([image(f"img/{theirs.test[0]}", "NV")]), "x", network)
    # What is not among these may have been among those that it was trained on.
    (entry,) = check_unseen(*held_out([image("img/ISIC_0005555", "NV")]), "x", network)
    assert "1 of the 1 validation and test images of mine have ISIC ids" in entry["caveat"]


def test_a_data_set_that_is_not_here(donors: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be compared is told of, where there are ids of the archive; nothing sticks."""
    _, network = donor(donors)
    own = held_out([image("img/ISIC_0005555", "NV"), image("img/2", "MEL")])
    assert check_unseen(*own, "x", network) == sources_of(network)  # compared: none is there
    record_path("isic18").write_text("{")
    (entry,) = check_unseen(*own, "x", network)
    assert "1 of the 2 validation and test images" in entry["caveat"]
    assert "isic18, which was not there to compare" in entry["caveat"]
    assert caveats_of([entry, entry]) == [entry["caveat"]]
    (known,) = sources_of(network)
    assert merged([known], [entry]) == merged([entry], [known]) == [entry]
    unknown = held_out([image("img/1", "NV")])
    behind = checkpoint(dataset="mine", sources=[entry])
    assert check_unseen(*unknown, "x", behind) == sources_of(network)
    drawn = checkpoint(dataset="synthetic", split=OTHER)
    assert check_unseen(*own, "x", drawn) == sources_of(drawn)


def test_what_joined_brought_none_of_the_own(donors: Manifest) -> None:
    """Images of the data set that another joined were left out, under whatever name."""
    copies = [image(f"copy{i}", r.label, digest=r.digest) for i, r in enumerate(donors.records)]
    others = manifest("others", [r for r in copies if r.label in ("MEL", "NV")])
    save_manifest(others)
    theirs, _ = donor(others)
    (known,) = sources_of(donor(others)[1])
    beside = checkpoint(dataset="isic18", sources=[{**known, "beside": "isic18"}])
    alone = checkpoint(dataset="others", sources=[known])
    shown = next(r for r in others.records if r.image_id in theirs.train)
    own = held_out([image("a", "NV", digest=shown.digest)])
    with pytest.raises(CheckpointMismatch, match="x has learnt from others, and 1 of"):
        check_unseen(*own, "x", alone)
    check_unseen(*own, "x", beside)
    ids = tuple(r.image_id for r in donors.records)
    whole = dataclasses.replace(split("isic18"), test=ids)
    check_unseen(whole, donors, "x", beside)
    with pytest.raises(CheckpointMismatch, match="x has learnt from others"):
        check_unseen(whole, donors, "x", alone)


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
