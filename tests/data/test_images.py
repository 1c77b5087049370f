"""Parts decoded into one array."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from biigma_cli.data.images import load_part
from biigma_cli.data.manifest import Manifest
from biigma_cli.data.preprocess import load_image
from biigma_cli.errors import DataError, ImageError
from tests.data.samples import digest, encode, manifest, noise, record


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of each test's own."""
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def data(tmp_path: Path) -> Manifest:
    """Four images of three classes, one without a lesion id."""
    given = (("A", "MEL", "L1"), ("B", "VASC", "L2"), ("C", "NV", ""), ("D", "MEL", "L1"))
    records = []
    for seed, (image_id, label, lesion) in enumerate(given):
        content = encode(noise(40, 30, seed), "JPEG")
        (tmp_path / f"{image_id}.jpg").write_bytes(content)
        records.append(dataclasses.replace(record(image_id, label, lesion), digest=digest(content)))
    return manifest(records, root=tmp_path)


def test_a_part(data: Manifest) -> None:
    """Labels, groups and pixels in the order asked for; the id stands in for a lesion."""
    calls: list[tuple[int, int]] = []
    part = load_part(data, ("C", "A", "B"), 24, progress=lambda *done: calls.append(done))
    assert part.ids == ("C", "A", "B")
    assert part.labels.tolist() == [1, 0, 6]
    assert part.labels.dtype == np.int64
    assert part.groups == ("C", "L1", "L2")
    assert part.pixels.shape == (3, 24, 24, 3)
    assert part.pixels.dtype == np.uint8
    for image_id, image in zip(part.ids, part.pixels, strict=True):
        assert np.array_equal(image, load_image(data.root / f"{image_id}.jpg", 24))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_images_of_one_lesion_share_a_group(data: Manifest) -> None:
    """The group is the lesion, not the image."""
    assert load_part(data, ("A", "D"), 16).groups == ("L1", "L1")


def test_no_images(data: Manifest) -> None:
    """An empty part is an empty array of the right shape."""
    part = load_part(data, (), 16)
    assert part.pixels.shape == (0, 16, 16, 3)
    assert part.labels.shape == (0,)


def test_a_changed_file(data: Manifest) -> None:
    """Another picture under the same name is refused, by name."""
    path = data.root / "B.jpg"
    path.write_bytes((data.root / "A.jpg").read_bytes())
    with pytest.raises(DataError, match="has changed since it was recorded") as caught:
        load_part(data, ("A", "B", "C"), 16)
    assert str(path) in caught.value.message
    assert "biigma download isic18" in caught.value.fix


def test_a_missing_file(data: Manifest) -> None:
    """A file that is gone is refused, by name."""
    path = data.root / "B.jpg"
    path.unlink()
    with pytest.raises(DataError, match="cannot read") as caught:
        load_part(data, ("A", "B", "C"), 16)
    assert str(path) in caught.value.message
    assert load_part(data, ("A", "C"), 16).ids == ("A", "C")


def test_a_file_recorded_damaged(data: Manifest) -> None:
    """A file whose digest is right but that is no image is refused, by name."""
    (data.root / "A.jpg").write_bytes(b"no image")
    damaged = dataclasses.replace(data.records[0], digest=digest(b"no image"))
    with pytest.raises(ImageError, match=r"A\.jpg is not an image"):
        load_part(dataclasses.replace(data, records=(damaged,)), ("A",), 16)


def test_nothing_is_written_unless_asked_for(data: Manifest, data_folder: Path) -> None:
    """Without `build` no cache is made."""
    load_part(data, ("A", "B"), 16)
    assert not data_folder.exists()


def test_a_part_from_the_cache(data: Manifest, data_folder: Path) -> None:
    """The same part in the same order, whether decoded or read from the cache."""
    ids = ("C", "A", "D")
    decoded = load_part(data, ids, 16, rule="pad")
    built = load_part(data, ids, 16, rule="pad", build=True)
    assert (data_folder / "cache").is_dir()
    cached = load_part(data, ids, 16, rule="pad")
    for other in (built, cached):
        assert np.array_equal(other.pixels, decoded.pixels)
        assert (other.ids, other.groups) == (decoded.ids, decoded.groups)
        assert other.labels.tolist() == decoded.labels.tolist()
        assert other.pixels.flags.writeable
    assert load_part(data, (), 16, rule="pad").pixels.shape == (0, 16, 16, 3)
