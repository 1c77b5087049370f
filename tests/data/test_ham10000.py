"""Reading a copy of HAM10000: what is accepted, and how each fault is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from biigma_cli.data.datasets import read_copy
from biigma_cli.data.ham10000 import (
    COLUMNS,
    EXPECTED_COUNTS,
    METADATA,
    _read_metadata,
    read_ham10000,
)
from biigma_cli.errors import EXIT_DATA, DataError
from biigma_cli.taxonomy import ISIC18
from tests.data.samples import HAM10000, NO_HAM10000, digest, encode, noise

ROWS = (
    ("HAM_1", "ISIC_1", "mel"),
    ("HAM_1", "ISIC_2", "mel"),
    ("HAM_2", "ISIC_3", "nv"),
    ("HAM_3", "ISIC_4", "vasc"),
)


def write_metadata(
    folder: Path, rows: Sequence[Sequence[str]] = ROWS, header: Sequence[str] = COLUMNS
) -> None:
    """The metadata file alone."""
    lines = [",".join(row) for row in (header, *rows)]
    (folder / METADATA).write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_copy(folder: Path, rows: Sequence[Sequence[str]] = ROWS) -> dict[str, Path]:
    """A small copy: metadata, and images in the two usual folders, by id."""
    write_metadata(folder, rows)
    paths = {}
    for i, (_, image_id, _) in enumerate(rows):
        path = folder / f"HAM10000_images_part_{1 + i % 2}" / f"{image_id}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(noise(40, 30, seed=i), "JPEG"))
        paths[image_id] = path
    return paths


def refused(folder: Path, *words: str, allow_missing: bool = True) -> DataError:
    """The error for `folder`, with all `words`, a remedy and exit code 3."""
    with pytest.raises(DataError) as caught:
        read_ham10000(folder, allow_missing=allow_missing)
    for word in words:
        assert word in caught.value.message
    assert caught.value.fix
    assert caught.value.exit_code == EXIT_DATA
    return caught.value


def test_a_good_partial_copy(tmp_path: Path) -> None:
    """Records in order of id, with class, lesion, relative path and the bytes' digest."""
    paths = write_copy(tmp_path, ROWS[::-1])
    manifest = read_ham10000(tmp_path, allow_missing=True)
    assert manifest.dataset == "isic18"
    assert manifest.root == tmp_path.resolve()
    assert [(r.lesion_id, r.image_id, r.label.lower()) for r in manifest.records] == list(ROWS)
    for record in manifest.records:
        assert manifest.root / record.path == paths[record.image_id].resolve()
        assert record.digest == digest(paths[record.image_id].read_bytes())
    assert manifest.class_counts() == {
        "MEL": 2, "NV": 1, "BCC": 0, "AKIEC": 0, "BKL": 0, "DF": 0, "VASC": 1,
    }  # fmt: skip
    assert manifest.licence == "CC-BY-NC-4.0"
    assert "Tschandl" in manifest.citation


def test_the_expected_counts_are_the_archives() -> None:
    """10,015 images in the taxonomy's seven classes."""
    assert sum(EXPECTED_COUNTS.values()) == 10_015
    assert tuple(EXPECTED_COUNTS) == ISIC18.codes


def test_other_counts_are_refused(tmp_path: Path) -> None:
    """Without leave for a partial copy, both counts are shown."""
    write_copy(tmp_path)
    error = refused(tmp_path, "MEL 2, NV 1, BCC 0", "MEL 1113, NV 6705", allow_missing=False)
    assert "--allow-missing" in error.fix


def test_no_folder(tmp_path: Path) -> None:
    """It names the folder, and says which one is wanted."""
    error = refused(tmp_path / "none", str(tmp_path / "none"))
    assert METADATA in error.fix


def test_no_metadata(tmp_path: Path) -> None:
    """It names the file and the folder it was sought in."""
    refused(tmp_path, METADATA, str(tmp_path))


def test_missing_columns(tmp_path: Path) -> None:
    """The missing columns and those there are both named."""
    write_metadata(tmp_path, [("HAM_1", "mel")], header=("lesion_id", "diagnosis"))
    error = refused(tmp_path, "no column image_id, dx", "lesion_id, diagnosis")
    assert "lesion_id, image_id, dx" in error.fix


def test_empty_metadata(tmp_path: Path) -> None:
    """A file of no bytes lacks every column."""
    (tmp_path / METADATA).write_bytes(b"")
    refused(tmp_path, "no column lesion_id, image_id, dx")


def test_metadata_that_is_no_text(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are an error with the file's name."""
    (tmp_path / METADATA).write_bytes(b"lesion_id,image_id,dx\n\xff\xfe\x80,b,c\n")
    refused(tmp_path, "cannot read", METADATA)


@pytest.mark.parametrize(
    ("dx", "nearest"), [("melanom", "mel"), ("akeic", "akiec"), ("bbc", "bcc")]
)
def test_unknown_class(tmp_path: Path, dx: str, nearest: str) -> None:
    """The line and the value are named, and the nearest class."""
    write_metadata(tmp_path, [*ROWS[:2], ("HAM_2", "ISIC_3", dx)])
    error = refused(tmp_path, "line 4", repr(dx))
    assert error.fix == f"did you mean {nearest!r}?"


def test_unknown_class_like_no_other(tmp_path: Path) -> None:
    """Where nothing is near, all are named."""
    write_metadata(tmp_path, [("HAM_2", "ISIC_3", "xyzzy")])
    error = refused(tmp_path, "line 2", "'xyzzy'")
    assert "mel, nv, bcc, akiec, bkl, df, vasc" in error.fix


def test_doubled_ids(tmp_path: Path) -> None:
    """Ids that come twice are named, others not."""
    write_metadata(tmp_path, [*ROWS, ROWS[1]])
    error = refused(tmp_path, "twice: ISIC_2")
    assert "ISIC_1" not in error.message


@pytest.mark.parametrize("row", ["HAM_9,,nv", ",ISIC_9,nv", "HAM_9,ISIC_9,", "HAM_9,ISIC_9"])
def test_empty_cells(tmp_path: Path, row: str) -> None:
    """An empty cell and a short line are named by line."""
    write_metadata(tmp_path, [*ROWS, row.split(",")])
    refused(tmp_path, "line 6", "empty cell")


def test_byte_order_mark_and_upper_case(tmp_path: Path) -> None:
    """A spreadsheet's byte-order mark and upper-case classes are no fault."""
    write_copy(tmp_path)
    metadata = tmp_path / METADATA
    text = metadata.read_text(encoding="utf-8").replace("mel", "MEL")
    metadata.write_text(text, encoding="utf-8-sig")
    manifest = read_ham10000(tmp_path, allow_missing=True)
    assert [r.label for r in manifest.records] == ["MEL", "MEL", "NV", "VASC"]


def test_rows_without_an_image(tmp_path: Path) -> None:
    """They are named, or left out where that is allowed."""
    write_copy(tmp_path)["ISIC_3"].unlink()
    error = refused(tmp_path, "1 rows", "ISIC_3", allow_missing=False)
    assert "--allow-missing" in error.fix
    manifest = read_ham10000(tmp_path, allow_missing=True)
    assert [r.image_id for r in manifest.records] == ["ISIC_1", "ISIC_2", "ISIC_4"]


def test_many_rows_without_an_image(tmp_path: Path) -> None:
    """Ten are named and the others counted."""
    write_copy(tmp_path)
    write_metadata(tmp_path, [*ROWS, *(("HAM_5", f"LOST_{i:02}", "nv") for i in range(13))])
    error = refused(tmp_path, "13 rows", "LOST_00", "LOST_09 and 3 more", allow_missing=False)
    assert "LOST_10" not in error.message


def test_no_image_at_all(tmp_path: Path) -> None:
    """A folder with metadata alone is refused even as a partial copy."""
    write_metadata(tmp_path)
    refused(tmp_path, "no image", str(tmp_path))


def test_damaged_images(tmp_path: Path) -> None:
    """All are counted before the error, and the first is named."""
    paths = write_copy(tmp_path)
    for image_id in ("ISIC_2", "ISIC_4"):
        paths[image_id].write_bytes(paths[image_id].read_bytes()[:300])
    calls: list[tuple[int, int]] = []
    with pytest.raises(DataError) as caught:
        read_ham10000(tmp_path, allow_missing=True, progress=lambda *done: calls.append(done))
    assert caught.value.message.startswith("2 of 4 images cannot be read")
    assert str(paths["ISIC_2"].resolve()) in caught.value.message
    assert calls[-1] == (4, 4)


def test_an_image_that_is_a_folder(tmp_path: Path) -> None:
    """A folder with an image's name is no image."""
    path = write_copy(tmp_path)["ISIC_2"]
    path.unlink()
    path.mkdir()
    refused(tmp_path, "1 rows", "ISIC_2", allow_missing=False)


def test_extra_images_are_warned_of(tmp_path: Path) -> None:
    """Images without a row are counted in one warning and left out; masks are no images."""
    paths = write_copy(tmp_path)
    (tmp_path / "stray.JPEG").write_bytes(paths["ISIC_1"].read_bytes())
    (tmp_path / "ISIC_1_segmentation.png").write_bytes(encode(noise(8, 8)))
    warnings: list[str] = []
    manifest = read_ham10000(tmp_path, allow_missing=True, warn=warnings.append)
    assert len(warnings) == 1
    assert warnings[0].startswith("1 images have no row")
    assert len(manifest.records) == len(ROWS)


def test_nothing_odd_no_warning_and_progress(tmp_path: Path) -> None:
    """A clean copy is silent, and progress counts each image."""
    write_copy(tmp_path)
    warnings: list[str] = []
    calls: list[tuple[int, int]] = []
    read_ham10000(
        tmp_path,
        allow_missing=True,
        warn=warnings.append,
        progress=lambda *done: calls.append(done),
    )
    assert warnings == []
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.skipif(not (HAM10000 / METADATA).is_file(), reason=NO_HAM10000)
def test_the_real_metadata() -> None:
    """10,015 images of 7,470 lesions, in the expected classes."""
    rows = _read_metadata(HAM10000 / METADATA)
    assert len(rows) == 10_015
    assert len({row["lesion_id"] for row in rows}) == 7_470
    for code, count in EXPECTED_COUNTS.items():
        assert sum(row["dx"].upper() == code for row in rows) == count


@pytest.mark.parametrize(
    ("name", "separator"),
    [("HAM10000_metadata.tab", "\t"), ("HAM10000_metadata", ","), (METADATA, "\t")],
)
def test_as_dataverse_hands_it_out(name: str, separator: str, tmp_path: Path) -> None:
    """With tabs under `.tab`, or as it was deposited, without a suffix."""
    folder = tmp_path / "data" / "copy"
    folder.mkdir(parents=True)
    write_copy(folder)
    text = (folder / METADATA).read_text(encoding="utf-8")
    (folder / METADATA).unlink()
    (folder / name).write_text(text.replace(",", separator), encoding="utf-8")
    for manifest in (
        read_ham10000(folder, allow_missing=True),
        read_copy("isic18", [tmp_path], allow_missing=True),
    ):
        assert [(r.lesion_id, r.image_id) for r in manifest.records] == [r[:2] for r in ROWS]


def test_images_still_in_their_zip(tmp_path: Path) -> None:
    """The remedy names it."""
    write_metadata(tmp_path)
    (tmp_path / "HAM10000_images_part_1.zip").write_bytes(b"")
    for allow in (False, True):
        error = refused(tmp_path, METADATA, allow_missing=allow)
        assert error.fix == "unzip HAM10000_images_part_1.zip there"
