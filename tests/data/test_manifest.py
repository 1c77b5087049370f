"""The record of a data set: round trip, hash, and damage."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from biigma_cli.data.manifest import FORMAT, Manifest, load_manifest, record_path, save_manifest
from biigma_cli.errors import DataError, UsageError
from tests.data.samples import manifest, record


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of each test's own."""
    folder = tmp_path / "home"
    monkeypatch.setenv("BIIGMA_HOME", str(folder))
    return folder


def small(root: Path) -> Manifest:
    """Three records, one without a lesion, one with letters beyond ASCII."""
    records = [record("A", "MEL", "L1"), record("B", "NV", ""), record("Ç", "DF", "L2")]
    return manifest(records, root=root)


def test_round_trip(tmp_path: Path, data_folder: Path) -> None:
    """What is loaded equals what was saved, under the data folder."""
    saved = small(tmp_path)
    path = save_manifest(saved)
    assert path == record_path("isic18") == data_folder / "datasets" / "isic18.json"
    loaded = load_manifest("isic18")
    assert loaded == saved
    assert loaded.data_hash == saved.data_hash == json.loads(path.read_text())["data_hash"]


def test_saving_again_replaces(tmp_path: Path) -> None:
    """The newest record counts, and nothing else is left in the folder."""
    save_manifest(small(tmp_path))
    newer = manifest([record("Z", "BKL", "L9")], root=tmp_path)
    path = save_manifest(newer)
    assert load_manifest("isic18") == newer
    assert list(path.parent.iterdir()) == [path]


def test_the_hash_is_independent_of_place(tmp_path: Path) -> None:
    """Another root and other paths hash the same."""
    here = small(tmp_path)
    there = dataclasses.replace(
        here,
        root=tmp_path / "elsewhere",
        records=tuple(dataclasses.replace(r, path=f"x/{r.path}") for r in here.records),
    )
    assert there.data_hash == here.data_hash
    assert len(here.data_hash) == 64


@pytest.mark.parametrize("field", ["image_id", "label", "lesion_id", "digest"])
def test_the_hash_depends_on_what_counts(tmp_path: Path, field: str) -> None:
    """Another id, class, lesion or content is another data set."""
    here = small(tmp_path)
    changed = dataclasses.replace(here.records[1], **{field: "BCC"})
    other = dataclasses.replace(here, records=(here.records[0], changed, here.records[2]))
    assert other.data_hash != here.data_hash


def test_counts_and_ids(tmp_path: Path) -> None:
    """Counts in logit order with absent classes; records by id."""
    here = small(tmp_path)
    counts = {"MEL": 1, "NV": 1, "BCC": 0, "AKIEC": 0, "BKL": 0, "DF": 1, "VASC": 0}
    assert list(here.class_counts().items()) == list(counts.items())
    assert here.by_id()["B"] is here.records[1]


def test_never_recorded() -> None:
    """It says how to record it."""
    with pytest.raises(DataError, match="isic18 is not on this machine") as caught:
        load_manifest("isic18")
    assert "biigma download isic18" in caught.value.fix


def test_unknown_data_set() -> None:
    """A usage error, with the known ones."""
    with pytest.raises(UsageError, match="isic21") as caught:
        load_manifest("isic21")
    assert "isic18" in caught.value.fix


def test_images_gone(tmp_path: Path) -> None:
    """A root that is no more is named."""
    root = tmp_path / "images"
    root.mkdir()
    save_manifest(small(root))
    root.rmdir()
    with pytest.raises(DataError, match="are gone from") as caught:
        load_manifest("isic18")
    assert str(root) in caught.value.message


def test_cut_off(tmp_path: Path) -> None:
    """Half a file is damaged."""
    path = save_manifest(small(tmp_path))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="is damaged") as caught:
        load_manifest("isic18")
    assert str(path) in caught.value.message
    assert "biigma download isic18" in caught.value.fix


def without_root(stored: dict[str, Any]) -> Any:
    """A key is missing."""
    del stored["root"]
    return stored


def short_record(stored: dict[str, Any]) -> Any:
    """A record has too few cells."""
    stored["records"][1].pop()
    return stored


def other_fields(stored: dict[str, Any]) -> Any:
    """A field has an unknown name."""
    stored["fields"][0] = "image"
    return stored


def no_records(stored: dict[str, Any]) -> Any:
    """The records are null."""
    stored["records"] = None
    return stored


def a_list(stored: dict[str, Any]) -> Any:
    """The file is valid JSON but no object."""
    return [stored]


@pytest.mark.parametrize("damage", [without_root, short_record, other_fields, no_records, a_list])
def test_damaged_content(tmp_path: Path, damage: Callable[[dict[str, Any]], Any]) -> None:
    """Valid JSON of the wrong shape is damaged too."""
    path = save_manifest(small(tmp_path))
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(DataError, match="is damaged"):
        load_manifest("isic18")


def test_another_format(tmp_path: Path) -> None:
    """A record of a later version is named as such."""
    path = save_manifest(small(tmp_path))
    path.write_text(path.read_text().replace(FORMAT, "biigma-dataset-9"))
    with pytest.raises(DataError, match="has format 'biigma-dataset-9'"):
        load_manifest("isic18")


# --- parts, own classes, missing images ------------------------------------------------------


def own(root: Path) -> Manifest:
    """A user's own data set with everything a record can hold."""
    first = dataclasses.replace(
        record("Ä", "spitz", "L1"), part="train", mask="m/Ä.png", age="55", sex="female", site="arm"
    )
    records = [first, dataclasses.replace(record("B", "blue"), part="test")]
    made = manifest(records, dataset="mine", root=root)
    return dataclasses.replace(made, codes=("spitz", "blue"), missing=3)


def test_round_trip_of_an_own_data_set(tmp_path: Path) -> None:
    """Parts, masks, age, sex, site, classes and the number of missing images."""
    saved = own(tmp_path)
    save_manifest(saved)
    assert load_manifest("mine") == saved
    assert saved.taxonomy.codes == ("spitz", "blue")
    assert saved.class_counts() == {"spitz": 1, "blue": 1}


@pytest.mark.parametrize(
    ("field", "counts"),
    [("part", True), ("mask", False), ("age", False), ("sex", False), ("site", False)],
)
def test_what_the_hash_knows_of_the_new_fields(field: str, counts: bool, tmp_path: Path) -> None:
    """The part is of the data; what is told beside an image is not."""
    here = own(tmp_path)
    changed = dataclasses.replace(here.records[0], **{field: "other"})
    other = dataclasses.replace(here, records=(changed, here.records[1]))
    assert (other.data_hash != here.data_hash) == counts


def test_no_part_adds_nothing_to_the_hash(tmp_path: Path) -> None:
    """Hashes of data sets without parts, which stand in older checkpoints, are as they were."""
    assert small(tmp_path).data_hash == (
        "08e96634b223dbd0afd95d0d3429458719da4abc2a62dac157a65f87dfe6599d"
    )


def test_a_record_of_the_first_format(tmp_path: Path) -> None:
    """It had five fields and no classes: it reads as it is."""
    saved = small(tmp_path)
    path = save_manifest(saved)
    stored = json.loads(path.read_text())
    stored["format"] = "biigma-dataset-1"
    stored["fields"] = stored["fields"][:5]
    stored["records"] = [row[:5] for row in stored["records"]]
    del stored["codes"], stored["missing"]
    path.write_text(json.dumps(stored))
    assert load_manifest("isic18") == saved


@pytest.mark.parametrize(
    "change",
    [
        {"codes": ["blue"]},
        {"codes": []},
        {"codes": 5},
        {"missing": "some"},
        {"missing": None},
        {"root": 7},
    ],
)
def test_damaged_new_fields(change: dict[str, Any], tmp_path: Path) -> None:
    """Classes that are not those of the records, and values of another kind."""
    path = save_manifest(own(tmp_path))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match="is damaged") as caught:
        load_manifest("mine")
    assert "biigma datasets add mine" in caught.value.fix


def test_a_label_that_is_no_class_of_the_challenge(tmp_path: Path) -> None:
    """A record whose labels belong to another data set would fail later, in training."""
    path = save_manifest(manifest([record("A", "SCC")], root=tmp_path))
    with pytest.raises(DataError, match="is damaged: SCC are none of its classes"):
        load_manifest("isic18")
    assert path.exists()


def test_a_path_for_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to do with a path is said, whether or not there is something."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images.json").write_text("{}")
    for given in (str(tmp_path / "images"), "./images", "images", "no/such", "C:\\data", "x" * 300):
        with pytest.raises(UsageError, match="is a path, and data sets go by name") as caught:
            load_manifest(given)
        assert f"biigma datasets add NAME {given}" in caught.value.fix


def test_a_name_nearly_right(tmp_path: Path) -> None:
    """Own data sets are suggested, too."""
    save_manifest(own(tmp_path))
    for given, near in (("isic1", "isic1"), ("miine", "mine"), ("isic17mel", "isic17-mel")):
        with pytest.raises(UsageError, match=f"did you mean '{near}") as caught:
            load_manifest(given)
        assert "mine" in caught.value.fix
