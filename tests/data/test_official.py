"""The challenges' own layouts, made small: what is read, and how each fault is named."""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from biigma_cli.config import DataConfig
from biigma_cli.data import official
from biigma_cli.data.cache import cache_path
from biigma_cli.data.datasets import read_copy
from biigma_cli.data.ham10000 import EXPECTED_COUNTS
from biigma_cli.data.manifest import Manifest, load_manifest, save_manifest
from biigma_cli.data.official import CHALLENGES, read_official
from biigma_cli.data.splits import make_split
from biigma_cli.errors import EXIT_DATA, DataError
from tests.data.samples import HAM10000, digest, encode, noise

REAL_17 = HAM10000.parent / "isic17"
CODES_18 = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
CODES_19 = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of each test's own."""
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    """A CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(",".join(row) + "\n" for row in (header, *rows)), encoding="utf-8")
    return path


def write_images(folder: Path, ids: Sequence[str]) -> None:
    """A small JPEG for each id, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    for image_id in ids:
        seed = zlib.crc32(image_id.encode())
        (folder / f"{image_id}.jpg").write_bytes(encode(noise(12, 9, seed), "JPEG"))


def one_hot(labels: dict[str, str], codes: Sequence[str]) -> list[list[str]]:
    """Rows of a ground truth of 2018 or 2019."""
    return [[i, *("1.0" if c == label else "0.0" for c in codes)] for i, label in labels.items()]


TRAIN_17 = {"ISIC_0000001": "MEL", "ISIC_0000002": "SK", "ISIC_0000003": "NV", "ISIC_0000004": "NV"}
VAL_17 = {"ISIC_0000011": "NV", "ISIC_0000012": "MEL"}
TEST_17 = {"ISIC_0000021": "SK", "ISIC_0000022": "NV"}


def truth_17(folder: Path, part: str, labels: dict[str, str]) -> Path:
    """A ground truth of 2017: two binary questions."""
    rows = [[i, f"{label == 'MEL':.1f}", f"{label == 'SK':.1f}"] for i, label in labels.items()]
    header = ("image_id", "melanoma", "seborrheic_keratosis")
    return write(folder / f"ISIC-2017_{part}_Part3_GroundTruth.csv", header, rows)


def make_17(folder: Path, parts: Sequence[str] = ("Training", "Validation", "Test_v2")) -> Path:
    """ISIC 2017 as it comes out of its archives."""
    labels = {"Training": TRAIN_17, "Validation": VAL_17, "Test_v2": TEST_17}
    for part in parts:
        truth_17(folder, part, labels[part])
        images = folder / f"ISIC-2017_{part}_Data"
        write_images(images, list(labels[part]))
        (images / f"{next(iter(labels[part]))}_superpixels.png").write_bytes(encode(noise(5, 5)))
    return folder


def make_18(folder: Path) -> Path:
    """The three parts of ISIC 2018, lesions for the training part alone."""
    parts = {
        "Training": {f"ISIC_002430{i}": code for i, code in enumerate((*CODES_18, "MEL"))},
        "Validation": {"ISIC_0034321": "NV"},
        "Test": {"ISIC_0034524": "MEL", "ISIC_0034525": "NV"},
    }
    for part, labels in parts.items():
        name = f"ISIC2018_Task3_{part}"
        truth = folder / f"{name}_GroundTruth" / f"{name}_GroundTruth.csv"
        write(truth, ("image", *CODES_18), one_hot(labels, CODES_18))
        write_images(folder / f"{name}_Input", list(labels))
    groups = [[i, f"HAM_{n // 2}", "histo"] for n, i in enumerate(parts["Training"])]
    name = "ISIC2018_Task3_Training_LesionGroupings.csv"
    write(folder / name, ("image", "lesion_id", "diagnosis_confirm_type"), groups)
    return folder


TRAIN_19 = {
    "ISIC_0000001": "NV", "ISIC_0000002_downsampled": "MEL", "ISIC_0000003": "SCC",
    "ISIC_0000004": "AK", "ISIC_0000005": "NV",
}  # fmt: skip
META_19 = ("image", "age_approx", "anatom_site_general", "lesion_id", "sex")


def make_19(folder: Path) -> Path:
    """ISIC 2019: metadata beside the truth; two of the test images are of no class."""
    test = {"ISIC_0000101": "NV", "ISIC_0000102": "UNK", "ISIC_0000103": "UNK"}
    for part, labels in (("Training", TRAIN_19), ("Test", test)):
        truth = folder / f"ISIC_2019_{part}_GroundTruth.csv"
        write(truth, ("image", *CODES_19), one_hot(labels, CODES_19))
        write_images(folder / f"ISIC_2019_{part}_Input", list(labels))
    rows = [
        ["ISIC_0000001", "55", "anterior torso", "", "female"],
        ["ISIC_0000002_downsampled", "", "", "MSK4_0011169", "unknown"],
        ["ISIC_0000003", "85.0", "head/neck", "BCN_0000001", "male"],
        ["ISIC_0000099", "1", "x", "y", "z"],
    ]
    write(folder / "ISIC_2019_Training_Metadata.csv", META_19, rows)
    return folder


MAKE = {"isic17": make_17, "isic18": make_18, "isic19": make_19}


def counts(monkeypatch: pytest.MonkeyPatch, dataset: str, **expected: dict[str, int]) -> None:
    """Have these counts, by part, stand for the published ones."""
    challenge = CHALLENGES[dataset]
    parts = tuple(dataclasses.replace(p, counts=expected[p.part]) for p in challenge.parts)
    small = dataclasses.replace(challenge, parts=parts)
    monkeypatch.setitem(official.CHALLENGES, dataset, small)


def refused(dataset: str, folders: Sequence[Path], *words: str, **options: Any) -> DataError:
    """The error, with all `words`, a remedy and exit code 3."""
    with pytest.raises(DataError) as caught:
        read_official(dataset, folders, **options)
    for word in words:
        assert word in caught.value.message
    assert caught.value.fix
    assert caught.value.exit_code == EXIT_DATA
    return caught.value


def told(manifest: Manifest, *fields: str) -> list[tuple[str, ...]]:
    """Some fields of each record."""
    return [tuple(getattr(r, f) for f in fields) for r in manifest.records]


# --- what is read ----------------------------------------------------------------------------


def test_isic17(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels and parts; what is neither is a nevus; exact counts pass without leave."""
    counts(
        monkeypatch, "isic17", train={"MEL": 1, "SK": 1, "NV": 2}, val={"MEL": 1, "SK": 0, "NV": 1},
        test={"MEL": 0, "SK": 1, "NV": 1},
    )  # fmt: skip
    folder = make_17(tmp_path / "data")
    manifest = read_official("isic17", [folder])
    assert told(manifest, "image_id", "label", "part") == [
        *((i, label, "train") for i, label in TRAIN_17.items()),
        *((i, label, "val") for i, label in VAL_17.items()),
        *((i, label, "test") for i, label in TEST_17.items()),
    ]
    assert (manifest.root, manifest.missing, manifest.licence) == (folder.resolve(), 0, "CC0-1.0")
    assert "1710.05006" in manifest.citation
    for record in manifest.records:
        content = (manifest.root / record.path).read_bytes()
        assert Path(record.path).name == f"{record.image_id}.jpg"
        assert record.digest == digest(content)


def test_isic17_age_sex_and_masks(tmp_path: Path) -> None:
    """From the metadata and the first task's masks; unknown is empty."""
    folder = make_17(tmp_path / "data", ["Training"])
    rows = [["ISIC_0000001", "55", "male"], ["ISIC_0000002", "unknown", "unknown"]]
    metadata = folder / "ISIC-2017_Training_Data_metadata.csv"
    write(metadata, ("image_id", "age_approximate", "sex"), rows)
    mask = folder / "ISIC-2017_Training_Part1_GroundTruth" / "ISIC_0000003_segmentation.png"
    mask.parent.mkdir()
    mask.write_bytes(encode(noise(12, 9)))
    manifest = read_official("isic17", [folder], allow_missing=True)
    assert told(manifest, "age", "sex", "site", "mask") == [
        ("55", "male", "", ""), ("", "", "", ""),
        ("", "", "", mask.relative_to(folder).as_posix()), ("", "", "", ""),
    ]  # fmt: skip


def test_isic18(tmp_path: Path) -> None:
    """Each class by its column; lesions from the groupings."""
    manifest = read_official("isic18", [make_18(tmp_path / "data")], allow_missing=True)
    assert [(label, lesion) for label, lesion, part in told(manifest, "label", "lesion_id", "part")
            if part == "train"] == [
        (code, f"HAM_{n // 2}") for n, code in enumerate((*CODES_18, "MEL"))
    ]  # fmt: skip
    assert told(manifest, "label", "lesion_id", "part")[-3:] == [
        ("NV", "", "val"), ("MEL", "", "test"), ("NV", "", "test"),
    ]  # fmt: skip


def test_lesions_from_ham10000s_own_table(tmp_path: Path) -> None:
    """Where the groupings are not there it names lesions, age, sex and site of the same images."""
    folder = make_18(tmp_path / "data")
    (folder / "ISIC2018_Task3_Training_LesionGroupings.csv").unlink()
    warnings: list[str] = []
    manifest = read_official("isic18", [folder], allow_missing=True, warn=warnings.append)
    assert {r.lesion_id for r in manifest.records} == {""}
    assert len(warnings) == 1
    assert "no ISIC2018_Task3_Training_LesionGroupings.csv" in warnings[0]
    split = make_split(manifest_of_two(manifest), DataConfig())
    assert "as far as lesions are named (0 of " in split.title
    rows = [[f"ISIC_002430{n}", f"HAM_{n // 2}", "55", "male", "unknown"] for n in range(8)]
    header = ("image_id", "lesion_id", "age", "sex", "localization")
    write(tmp_path / "ham" / "HAM10000_metadata.csv", header, rows)
    warnings.clear()
    manifest = read_official(
        "isic18", [folder, tmp_path / "ham"], allow_missing=True, warn=warnings.append
    )
    assert warnings == []
    assert [(r.lesion_id, r.age, r.sex, r.site) for r in manifest.records if r.part == "train"] == [
        (f"HAM_{n // 2}", "55", "male", "") for n in range(8)
    ]
    assert {r.lesion_id for r in manifest.records if r.part != "train"} == {""}


def manifest_of_two(manifest: Manifest) -> Manifest:
    """Two classes of six images each, under the ids and lesions of its training part."""
    first = manifest.records[0]
    records = [
        dataclasses.replace(first, image_id=f"ISIC_{i:07}", label="MEL" if i % 2 else "NV",
                            digest=str(i), part="train")
        for i in range(12)
    ]  # fmt: skip
    return dataclasses.replace(manifest, records=tuple(records))


def test_isic19(tmp_path: Path) -> None:
    """Lesions, age, sex and site from the metadata; images of no class left out, with a word."""
    warnings: list[str] = []
    manifest = read_official(
        "isic19", [make_19(tmp_path / "data")], allow_missing=True, warn=warnings.append
    )
    assert told(manifest, "image_id", "label", "lesion_id", "age", "sex", "site") == [
        ("ISIC_0000001", "NV", "", "55", "female", "anterior torso"),
        ("ISIC_0000002_downsampled", "MEL", "MSK4_0011169", "", "", ""),
        ("ISIC_0000003", "SCC", "BCN_0000001", "85.0", "male", "head/neck"),
        ("ISIC_0000004", "AK", "", "", "", ""),
        ("ISIC_0000005", "NV", "", "", "", ""),
        ("ISIC_0000101", "NV", "", "", "", ""),
    ]
    assert warnings == ["2 images of ISIC_2019_Test_GroundTruth.csv are of the class UNK; left out"]
    assert manifest.missing == 0


def test_unknown_images_count_in_the_total(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the test part of 2019 only the total is published."""
    folder = make_19(tmp_path / "data")
    train = {"NV": 2, "MEL": 1, "SCC": 1, "AK": 1}
    counts(monkeypatch, "isic19", train=train, test={"": 3})
    assert len(read_official("isic19", [folder]).records) == 6
    counts(monkeypatch, "isic19", train=train, test={"": 1})
    refused("isic19", [folder], "found images 3, expected images 1")


def test_downsampled_fallback(tmp_path: Path) -> None:
    """The image without `_downsampled` stands in where that with it is not there."""
    folder = make_19(tmp_path / "data")
    images = folder / "ISIC_2019_Training_Input"
    small = images / "ISIC_0000002_downsampled.jpg"
    large = images / "ISIC_0000002.jpg"
    write_images(images, ["ISIC_0000002"])

    def found() -> str:
        manifest = read_official("isic19", [folder], allow_missing=True)
        return Path(manifest.by_id()["ISIC_0000002_downsampled"].path).name

    assert found() == small.name
    small.unlink()
    assert found() == large.name


def test_images_spread_over_folders(tmp_path: Path) -> None:
    """Tables in one folder, images in two others, one of them through a link that loops."""
    folder = make_17(tmp_path / "tables")
    others = [tmp_path / "one", tmp_path / "two"]
    for other, part in zip(others, ("Training", "Validation"), strict=True):
        other.mkdir()
        (folder / f"ISIC-2017_{part}_Data").rename(other / "images")
    (others[0] / "images" / "loop").symlink_to(others[0])
    manifest = read_official("isic17", [folder, *others], allow_missing=True)
    assert (len(manifest.records), manifest.missing) == (8, 0)
    path = manifest.by_id()["ISIC_0000001"].path
    assert Path(path) == (others[0] / "images" / "ISIC_0000001.jpg").resolve()
    assert not Path(manifest.by_id()["ISIC_0000021"].path).is_absolute()
    save_manifest(manifest)
    assert load_manifest("isic17") == manifest


def test_one_part_alone(tmp_path: Path) -> None:
    """What is there is read; the others are no fault."""
    manifest = read_official(
        "isic17", [make_17(tmp_path / "data", ["Validation"])], allow_missing=True
    )
    assert {r.part for r in manifest.records} == {"val"}


# --- binary tasks ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "codes", "counted"),
    [
        ("isic17-mel", ("MEL", "OTHER"), {"MEL": 2, "OTHER": 6}),
        ("isic17-sk", ("SK", "OTHER"), {"SK": 2, "OTHER": 6}),
    ],
)
def test_binary_tasks(
    task: str, codes: tuple[str, ...], counted: dict[str, int], tmp_path: Path
) -> None:
    """One class against the rest, from the record of ISIC 2017, with its parts and pixels."""
    whole = read_official("isic17", [make_17(tmp_path / "data")], allow_missing=True)
    save_manifest(whole)
    manifest = load_manifest(task)
    assert (manifest.dataset, manifest.taxonomy.codes) == (task, codes)
    assert manifest.class_counts() == counted
    assert told(manifest, "image_id", "part") == told(whole, "image_id", "part")
    assert manifest.data_hash != whole.data_hash
    assert cache_path(manifest, 64, "pad") == cache_path(whole, 64, "pad")
    if task == "isic17-sk":  # of these eight images, both for validation are OTHER
        with pytest.raises(DataError, match="the val part of isic17-sk has images of one class"):
            make_split(manifest, DataConfig(dataset=task, protocol="official"))
        return
    split = make_split(manifest, DataConfig(dataset=task, protocol="official"))
    assert (len(split.train), len(split.val), len(split.test)) == (4, 2, 2)


def test_a_binary_task_without_its_data() -> None:
    """The data set behind it is named."""
    with pytest.raises(DataError, match="isic17 is not on this machine") as caught:
        load_manifest("isic17-mel")
    assert "biigma download isic17" in caught.value.fix
    assert "isic17-mel" not in caught.value.fix


# --- Kaggle's and Dataverse's layout ---------------------------------------------------------


def make_ham(folder: Path, images: Path | None = None) -> Path:
    """HAM10000 in Kaggle's layout."""
    rows = [["HAM_1", "ISIC_1", "mel"], ["HAM_1", "ISIC_2", "mel"], ["HAM_2", "ISIC_3", "nv"]]
    write(folder / "HAM10000_metadata.csv", ("lesion_id", "image_id", "dx"), rows)
    write_images((images or folder) / "HAM10000_images_part_1", [r[1] for r in rows])
    return folder


def test_kaggle_layout_keeps_its_hash(tmp_path: Path) -> None:
    """No part, and so the hash of a record of the first format."""
    manifest = read_copy("isic18", [make_ham(tmp_path / "ham")], allow_missing=True)
    assert told(manifest, "image_id", "lesion_id", "part") == [
        ("ISIC_1", "HAM_1", ""), ("ISIC_2", "HAM_1", ""), ("ISIC_3", "HAM_2", ""),
    ]  # fmt: skip
    lines = [f"{r.image_id}\t{r.label}\t{r.lesion_id}\t{r.digest}" for r in manifest.records]
    assert manifest.data_hash == official_hash(lines)
    first = dataclasses.replace(manifest.records[0], part="train")
    other = dataclasses.replace(manifest, records=(first, *manifest.records[1:]))
    assert other.data_hash == official_hash([f"{lines[0]}\ttrain", *lines[1:]])


def official_hash(lines: Sequence[str]) -> str:
    """SHA-256 of lines, spelt out."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def test_kaggle_layout_in_two_folders(tmp_path: Path) -> None:
    """Metadata here, images there; nothing given is passed over."""
    tables = make_ham(tmp_path / "tables", tmp_path / "images")
    manifest = read_copy("isic18", [tmp_path / "images", tables], allow_missing=True)
    assert (len(manifest.records), manifest.missing) == (3, 0)
    with pytest.raises(DataError, match="nothing at") as caught:
        read_copy("isic18", [tables, tmp_path / "images", tmp_path / "none"], allow_missing=True)
    assert "none" in caught.value.message


def test_official_truth_comes_before_kaggles(tmp_path: Path) -> None:
    """With both there, the challenge's own parts count."""
    folder = make_ham(make_18(tmp_path / "data"))
    manifest = read_copy("isic18", [folder], allow_missing=True)
    assert {r.part for r in manifest.records} == {"train", "val", "test"}


def test_a_test_truth_alone_beside_kaggles(tmp_path: Path) -> None:
    """As Dataverse hands HAM10000 out: it is read, whatever form the other table has."""
    folder = make_ham(tmp_path / "data")
    truth = folder / "ISIC2018_Task3_Test_GroundTruth.csv"
    labels = {"ISIC_0034524": "MEL"}
    for header, rows in (
        (("image", *CODES_18), one_hot(labels, CODES_18)),
        (("lesion_id", "image_id", "dx"), [["HAMTEST_1", "ISIC_0034524", "mel"]]),
    ):
        write(truth, header, rows)
        warnings: list[str] = []
        manifest = read_copy("isic18", [folder], allow_missing=True, warn=warnings.append)
        assert [r.image_id for r in manifest.records] == ["ISIC_1", "ISIC_2", "ISIC_3"]
        assert {r.part for r in manifest.records} == {""}
        assert any(truth.name in w and "left aside" in w for w in warnings)


# --- faults ----------------------------------------------------------------------------------


def test_no_truth(tmp_path: Path) -> None:
    """The names of the tables are told."""
    (tmp_path / "data").mkdir()
    error = refused("isic19", [tmp_path / "data"], "no ground truth of isic19", "data")
    assert "ISIC_2019_Training_GroundTruth.csv" in error.fix


def test_no_folder(tmp_path: Path) -> None:
    """A folder that is not there, and a file in its place."""
    folder = make_17(tmp_path / "data")
    error = refused("isic17", [folder, tmp_path / "gone"], "nothing at", "gone")
    assert "--from" in error.fix
    truth = folder / "ISIC-2017_Training_Part3_GroundTruth.csv"
    refused("isic17", [truth], "no folder at", truth.name)


@pytest.mark.parametrize("dataset", MAKE)
def test_counts_that_differ(dataset: str, tmp_path: Path) -> None:
    """Found and published counts of the first part, both, and nothing without leave."""
    error = refused(dataset, [MAKE[dataset](tmp_path / "data")], "differs from the published one")
    part = CHALLENGES[dataset].parts[0]
    assert part.truth in error.message
    for code, count in part.counts.items():
        assert f"{code} {count}" in error.message.split("expected")[1]
    assert "--allow-missing" in error.fix


def test_the_published_counts_add_up() -> None:
    """Totals of the challenges' parts."""
    totals = {d: [sum(p.counts.values()) for p in c.parts] for d, c in CHALLENGES.items()}
    assert totals == {
        "isic17": [2000, 150, 600], "isic18": [10_015, 193, 1512], "isic19": [25_331, 8238],
    }  # fmt: skip
    assert CHALLENGES["isic18"].parts[0].counts == EXPECTED_COUNTS


def test_missing_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted and named, or left out where that is allowed, and then counted in the record."""
    monkeypatch.setattr(official, "_check_counts", lambda *_, **__: None)
    folder = make_17(tmp_path / "data")
    for gone in ("ISIC_0000002", "ISIC_0000003"):
        (folder / "ISIC-2017_Training_Data" / f"{gone}.jpg").unlink()
    error = refused(
        "isic17", [folder], "2 of 8 labelled images of isic17", "ISIC_0000002, ISIC_0000003"
    )
    assert "--allow-missing" in error.fix
    warnings: list[str] = []
    manifest = read_official("isic17", [folder], allow_missing=True, warn=warnings.append)
    assert (len(manifest.records), manifest.missing) == (6, 2)
    assert warnings == ["2 labelled images are not there; 6 are"]
    save_manifest(manifest)
    assert load_manifest("isic17-sk").missing == 2


def test_no_image_at_all(tmp_path: Path) -> None:
    """Tables alone are refused even as a partial copy."""
    truth_17(tmp_path / "data", "Training", TRAIN_17)
    refused("isic17", [tmp_path / "data"], "no image of isic17", allow_missing=True)


def test_a_damaged_image(tmp_path: Path) -> None:
    """Named, even in a partial copy."""
    folder = make_17(tmp_path / "data")
    path = folder / "ISIC-2017_Training_Data" / "ISIC_0000003.jpg"
    path.write_bytes(path.read_bytes()[:100])
    refused("isic17", [folder], "1 of 8 images", path.name, allow_missing=True)


Spoil = Callable[[str], str]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda t: t.replace("melanoma", "melanomata"), ["no column melanoma", "melanomata"]),
        (lambda t: t.replace(",0.0,1.0", ",,1.0"), ["line 3", "an empty cell"]),
        (lambda t: t.replace(",0.0,1.0", ",no,1.0"), ["line 3", "'no'"]),
        (lambda t: t.replace(",0.0,1.0", ",0.5,1.0"), ["line 3", "0.5 is neither 0 nor 1"]),
        (lambda t: t.replace(",0.0,1.0", ",nan,1.0"), ["line 3", "nan is neither"]),
        (lambda t: t.replace(",0.0,1.0", ",1,1"), ["line 3", "ISIC_0000002 is of 2 classes"]),
        (lambda t: t.replace("_0000002", "_0000001"), ["twice: ISIC_0000001"]),
        (lambda t: t + "ISIC_0000009,0,0,0\n", ["line 6", "more cells"]),
        (lambda t: t.replace("ISIC_0000004,0.0", "ISIC_0000004,\x00"), ["line 5"]),
    ],
)
def test_bad_truth(spoil: Spoil, words: list[str], tmp_path: Path) -> None:
    """Each fault of a ground truth is named with file and line, even in a partial copy."""
    folder = make_17(tmp_path / "data")
    truth = folder / "ISIC-2017_Training_Part3_GroundTruth.csv"
    before = truth.read_text()
    truth.write_text(spoil(before))
    assert truth.read_text() != before
    refused("isic17", [folder], truth.name, *words, allow_missing=True)


@pytest.mark.parametrize(
    ("label", "code", "words"),
    [
        ("NV", "MEL", "ISIC_0000005 is of 2 classes"),
        ("NV", "UNK", "ISIC_0000005 is of 2 classes"),
        ("", "NV", "ISIC_0000005 is of 0 classes"),
    ],
)
def test_not_exactly_one_class(label: str, code: str, words: str, tmp_path: Path) -> None:
    """Two classes, a class and UNK, or none: from 2018 on exactly one column is 1."""
    folder = make_19(tmp_path / "data")
    row = ["1.0" if c == code else "0.0" for c in CODES_19]
    row[CODES_19.index("NV")] = "1.0" if label else "0.0"
    truth = folder / "ISIC_2019_Training_GroundTruth.csv"
    lines = truth.read_text().splitlines()
    truth.write_text("\n".join([*lines[:-1], ",".join(["ISIC_0000005", *row])]) + "\n")
    refused("isic19", [folder], "line 6", words, allow_missing=True)


def test_an_image_in_two_parts(tmp_path: Path) -> None:
    """It would be trained on and tested with: refused by name."""
    folder = make_17(tmp_path / "data")
    truth_17(folder, "Test_v2", {**TEST_17, "ISIC_0000001": "MEL"})
    words = "the ground truth of isic17 names images twice: ISIC_0000001"
    refused("isic17", [folder], words, allow_missing=True)


def test_bad_groupings(tmp_path: Path) -> None:
    """A table of lesions without its column is no table of lesions; an empty lesion is none."""
    folder = make_18(tmp_path / "data")
    path = folder / "ISIC2018_Task3_Training_LesionGroupings.csv"
    text = path.read_text()
    path.write_text(text.replace("HAM_0", ""))
    manifest = read_official("isic18", [folder], allow_missing=True)
    assert [r.lesion_id for r in manifest.records][:3] == ["", "", "HAM_1"]
    path.write_text(text.replace("lesion_id", "lesion"))
    refused("isic18", [folder], path.name, "no column lesion_id", allow_missing=True)


# --- real data -------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL_17.is_dir(), reason="no ISIC 2017 at ../shared/data/isic17")
def test_the_real_isic17(monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 training and 150 validation images, in the published classes; no test part."""
    monkeypatch.setattr(
        official, "check_images", lambda drafts, root, progress: tuple(drafts)
    )  # their names alone, not their pixels
    drafts = read_official("isic17", [REAL_17]).records
    for part in CHALLENGES["isic17"].parts:
        labels = [d.label for d in drafts if d.part == part.part]
        if part.part == "test":
            assert labels == []
        else:
            assert {c: labels.count(c) for c in part.counts} == part.counts
