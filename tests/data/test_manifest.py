"""The record of a data set: round trip, hash, and damage."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from biigma_cli.data.manifest import Manifest, load_manifest, record_path, save_manifest
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
    path.write_text(path.read_text().replace("biigma-dataset-1", "biigma-dataset-9"))
    with pytest.raises(DataError, match="has format 'biigma-dataset-9'"):
        load_manifest("isic18")
