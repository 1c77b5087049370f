"""A user's own data: folders and tables that are read, and how each fault is named."""

from __future__ import annotations

import dataclasses
import os
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from biigma_cli.config import DataConfig
from biigma_cli.data.custom import check_name, read_custom
from biigma_cli.data.duplicates import KNOWN_PAIRS
from biigma_cli.data.manifest import Manifest, load_manifest, save_manifest
from biigma_cli.data.splits import brings_own_split, make_split
from biigma_cli.errors import EXIT_DATA, EXIT_USAGE, BiigmaError, DataError, UsageError
from biigma_cli.taxonomy import same_diagnosis
from tests.data.samples import encode, noise


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of each test's own."""
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def pictures(top: Path, *paths: str) -> Path:
    """Small images, all different, whose kind is their suffix's."""
    kinds = {".jpg": "JPEG", ".png": "PNG", ".tif": "TIFF", ".bmp": "BMP", ".webp": "WEBP"}
    for name in paths:
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = zlib.crc32(name.encode())
        path.write_bytes(encode(noise(12, 9, seed), kinds[path.suffix.lower()]))
    return top


def table(top: Path, *lines: str, name: str = "labels.csv", mark: str = "") -> Path:
    """A CSV with the given lines."""
    top.mkdir(parents=True, exist_ok=True)
    (top / name).write_text(mark + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return top


def read(source: Path, **options: Any) -> Manifest:
    """The data set, called `mine`; saved and loaded it is the same."""
    manifest = read_custom("mine", source, **options)
    save_manifest(manifest)
    assert load_manifest("mine") == manifest
    return manifest


def refused(source: Path, *words: str, code: int = EXIT_DATA, **options: Any) -> BiigmaError:
    """The error, with all `words`, a remedy and the exit code."""
    with pytest.raises(BiigmaError) as caught:
        read_custom("mine", source, **options)
    for word in words:
        assert word in caught.value.message
    assert caught.value.fix
    assert caught.value.exit_code == code
    return caught.value


def labels(manifest: Manifest) -> dict[str, str]:
    """Label by id."""
    return {r.image_id: r.label for r in manifest.records}


# --- masks -----------------------------------------------------------------------------------


def test_masks_beside_their_images(tmp_path: Path) -> None:
    """They are masks, not images of the class; a picture merely called so is none."""
    top = pictures(
        tmp_path / "d", "x/a.jpg", "x/a_segmentation.png", "x/b.jpg", "y/c.jpg",
        "y/c_segmentation.png", "y/d_segmentation.png",
    )  # fmt: skip
    masks = {r.image_id: r.mask for r in read(top).records}
    assert masks == {
        "x/a": "x/a_segmentation.png", "x/b": "", "y/c": "y/c_segmentation.png",
        "y/d_segmentation": "",
    }  # fmt: skip
    listed = table(
        pictures(tmp_path / "t", "a.jpg", "a_segmentation.png", "b.jpg", "m.png"),
        "image,label,mask", "a.jpg,x,", "b,y,m.png",
    )  # fmt: skip
    assert {r.image_id: r.mask for r in read(listed).records} == {
        "a": "a_segmentation.png", "b": "m.png",
    }  # fmt: skip


# --- folders ---------------------------------------------------------------------------------


def test_a_folder_per_class(tmp_path: Path) -> None:
    """The folder's name is the label, at any depth; files that are no images do not matter."""
    top = pictures(tmp_path / "d", "spitz/a.jpg", "spitz/deep/a.png", "blue nevus/b.TIF".lower())
    (top / "spitz" / "notes.txt").write_text("x")
    (top / "readme.md").write_text("x")
    manifest = read(top, licence="CC0-1.0", citation="Me")
    assert labels(manifest) == {
        "blue nevus/b": "blue nevus", "spitz/a": "spitz", "spitz/deep/a": "spitz",
    }  # fmt: skip
    assert manifest.taxonomy.codes == ("blue nevus", "spitz")
    assert [c.malignant for c in manifest.taxonomy.classes] == [None, None]
    assert (manifest.root, manifest.licence, manifest.citation) == (top.resolve(), "CC0-1.0", "Me")
    assert {(r.part, r.lesion_id, r.mask) for r in manifest.records} == {("", "", "")}
    assert not brings_own_split(manifest)


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Train", "valid", "TEST"), ("training", "testing")]
)
def test_parts_with_a_folder_per_class(names: Sequence[str], tmp_path: Path) -> None:
    """Parts by their usual names; the set then brings its own split."""
    paths = [f"{part}/{label}/{i}.jpg" for part in names for label in ("x", "y") for i in range(4)]
    manifest = read(pictures(tmp_path / "d", *paths))
    assert manifest.class_counts() == {"x": 4 * len(names), "y": 4 * len(names)}
    wanted = {"train", "test", *(["val"] if len(names) == 3 else [])}
    assert {r.part for r in manifest.records} == wanted
    assert brings_own_split(manifest)
    split = make_split(manifest, DataConfig(protocol="official"))
    assert split.test == tuple(sorted(f"{names[-1]}/{c}/{i}" for c in "xy" for i in range(4)))
    assert set(split.val) <= {r.image_id for r in manifest.records if r.part != "test"}
    assert split.val


def test_both_spellings_of_a_part(tmp_path: Path) -> None:
    """`train` and `Train` are one part, and nothing of either is lost."""
    top = pictures(tmp_path / "d", "train/x/a.jpg", "Train/y/b.jpg", "test/x/c.jpg")
    if len(list(top.iterdir())) == 2:
        pytest.skip("this file system takes them for one")
    assert len(read(top).records) == 3


def test_parts_beside_other_folders(tmp_path: Path) -> None:
    """Neither parts nor classes: refused, rather than taken for classes."""
    top = pictures(tmp_path / "d", "train/x/a.jpg", "test/y/b.jpg", "masks/a.png")
    refused(top, "holds test, train, and beside them masks", "parts, or classes?")


def test_a_class_called_test(tmp_path: Path) -> None:
    """One such name among others is a class."""
    top = pictures(tmp_path / "d", "test/a.jpg", "control/b.jpg")
    assert read(top).taxonomy.codes == ("control", "test")


def test_codes_of_isic_in_any_case(tmp_path: Path) -> None:
    """They become those codes, in the order of the challenge that has them all."""
    top = pictures(tmp_path / "a", "Nv/a.jpg", "mel/b.jpg", "NV/c.jpg", "akiec/d.jpg", "bkl/e.jpg")
    manifest = read(top)
    assert manifest.taxonomy.codes == ("MEL", "NV", "AKIEC", "BKL")
    assert [c.malignant for c in manifest.taxonomy.classes] == [True, False, True, False]
    assert manifest.class_counts()["NV"] == 2
    for found, order in (
        (("scc", "ak", "mel", "bkl"), ("MEL", "AK", "BKL", "SCC")),
        (("nv", "sk", "mel"), ("MEL", "SK", "NV")),
        (("nv", "sk", "akiec"), ("AKIEC", "NV", "SK")),
        (("nv", "other"), ("NV", "other")),
    ):
        top = pictures(tmp_path / "-".join(found), *(f"{code}/a.jpg" for code in found))
        assert read_custom("mine", top).codes == order


def test_links_into_and_out_of_a_class(tmp_path: Path) -> None:
    """A link back up does not put another class's images into this one; it ends."""
    top = pictures(tmp_path / "d", "x/a.jpg", "y/b.jpg")
    pictures(tmp_path / "more", "c.jpg")
    (top / "x" / "loop").symlink_to(top)
    (top / "y" / "loop").symlink_to(top / "y")
    (top / "y" / "more").symlink_to(tmp_path / "more")
    assert labels(read(top)) == {"x/a": "x", "y/b": "y", "y/more/c": "y"}


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    """Nor are their images anyone's."""
    top = pictures(tmp_path / "d", "x/a.jpg", "y/b.jpg", ".git/c.jpg", "x/.thumbs/d.jpg")
    assert len(read(top).records) == 2
    top = pictures(tmp_path / "p", "train/x/a.jpg", "train/.x/b.jpg", "test/y/c.jpg")
    assert len(read(top).records) == 2


def test_an_empty_class(tmp_path: Path) -> None:
    """A class folder without an image is named."""
    top = pictures(tmp_path / "d", "x/a.jpg", "y/b.jpg")
    (top / "z").mkdir()
    refused(top, f"{top.resolve() / 'z'} holds no image")


def test_one_class_alone(tmp_path: Path) -> None:
    """There is nothing to tell apart."""
    refused(pictures(tmp_path / "d", "x/a.jpg"), "only one class: x")


def test_nothing_there(tmp_path: Path) -> None:
    """No place, an empty folder, images without class folders, parts without classes."""
    refused(tmp_path / "gone", "nothing at", "gone")
    refused(table(tmp_path / "empty", name="notes.txt"), "no folder of images")
    error = refused(pictures(tmp_path / "flat", "a.jpg"), "no folder of images")
    assert "one folder per class" in error.fix
    refused(pictures(tmp_path / "parts", "train/a.jpg", "test/b.jpg"), "no folder of images")


def test_a_link_to_itself(tmp_path: Path) -> None:
    """It ends in a message."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop", "cannot read", "loop")


@pytest.mark.parametrize("shut", ["d", "d/train", "d/train/x"])
def test_no_permission(shut: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that may not be read is named, wherever it lies."""
    top = pictures(tmp_path / "d", "train/x/a.jpg", "train/y/b.jpg", "test/x/c.jpg")
    closed = str((tmp_path / shut).resolve())
    listdir, scandir = os.listdir, os.scandir

    def guard(real: Any) -> Any:
        def call(path: Any = ".") -> Any:
            if str(path) == closed:
                raise PermissionError(13, "Permission denied", closed)
            return real(path)

        return call

    monkeypatch.setattr(os, "listdir", guard(listdir))
    monkeypatch.setattr(os, "scandir", guard(scandir))
    refused(top, f"cannot read the folder {closed}: Permission denied")


def test_an_image_twice_by_another_suffix(tmp_path: Path) -> None:
    """Ids have no suffix, so two files would share one."""
    refused(pictures(tmp_path / "d", "x/a.jpg", "x/a.png", "y/b.jpg"), "twice: x/a")


def test_a_damaged_image(tmp_path: Path) -> None:
    """It is named."""
    top = pictures(tmp_path / "d", "x/a.jpg", "y/b.jpg")
    (top / "y" / "b.jpg").write_bytes(b"no image")
    refused(top, "1 of 2 images", "b.jpg is not an image")


# --- tables ----------------------------------------------------------------------------------

FULL = ("image,label,lesion_id,split,mask,age,sex,site",)


def test_a_table_with_everything(tmp_path: Path) -> None:
    """All columns, in spelling and place; paths below, above and absolute; suffix or none."""
    top = pictures(tmp_path / "d", "img/a.jpg", "b.png", "masks/a.png")
    pictures(tmp_path / "out", "c.jpg", "d.jpg")
    table(
        top,
        *FULL,
        "img/a.jpg, x ,L1,Training,masks/a.png,55,female,back",
        "b,y,L2,VALID,,,,",
        "../out/c.jpg,x,,test,,,,",
        f"{tmp_path}/out/d.jpg,y,L1,test,,,,",
    )
    manifest = read(top)
    by_id = manifest.by_id()
    assert sorted(by_id) == sorted(["img/a", "b", "../out/c", f"{tmp_path}/out/d"])
    first = by_id["img/a"]
    assert (first.label, first.lesion_id, first.part, first.path) == (
        "x", "L1", "train", "img/a.jpg",
    )  # fmt: skip
    assert (first.mask, first.age, first.sex, first.site) == ("masks/a.png", "55", "female", "back")
    assert {i: r.part for i, r in by_id.items() if i != "img/a"} == {
        "b": "val", "../out/c": "test", f"{tmp_path}/out/d": "test",
    }  # fmt: skip
    assert brings_own_split(manifest)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_and_byte_order_mark(separator: str, mark: str, tmp_path: Path) -> None:
    """As spreadsheets write them; a separator of the others inside a cell is no fault."""
    top = pictures(tmp_path / "d", "a.jpg", "b.jpg")
    rows = (["image", "label", "site"], ["a.jpg", "x", '"arm, left; upper"'], ["b.jpg", "y", ""])
    table(top, *(separator.join(row) for row in rows), mark=mark)
    manifest = read(top / "labels.csv")
    assert labels(manifest) == {"a": "x", "b": "y"}
    assert manifest.by_id()["a"].site == "arm, left; upper"


def test_names_in_any_script(tmp_path: Path) -> None:
    """Folders, files and labels; letters spelt in another Unicode form are the same letters."""
    top = tmp_path / "данные"
    file = unicodedata.normalize("NFD", "bilder/läsion.jpg")
    pictures(top, file, "病変 1.jpg", "bilder/آفة.jpg")
    table(top, "image,label", "bilder/läsion.jpg,mélanome", "病変 1,色素", "آفة,色素")
    manifest = read(top, classes=[unicodedata.normalize("NFD", "mélanome"), "色素"])
    assert labels(manifest) == {"bilder/läsion": "mélanome", "آفة": "色素", "病変 1": "色素"}
    assert manifest.codes == ("mélanome", "色素")
    manifest = read(pictures(tmp_path / "f", "母斑/a.jpg", "меланома/b.jpg"))
    assert manifest.taxonomy.codes == ("меланома", "母斑")


def test_two_forms_of_one_label(tmp_path: Path) -> None:
    """Labels that look alike are one class."""
    top = pictures(tmp_path / "d", "a.jpg", "b.jpg", "c.jpg")
    forms = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    table(top, "image,label", f"a.jpg,{forms[0]}", f"b.jpg,{forms[1]}", "c.jpg,x")
    assert read(top).class_counts() == {"x": 1, "é": 2}


def test_a_name_that_fits_several_files(tmp_path: Path) -> None:
    """Which one is meant must be said."""
    top = pictures(tmp_path / "d", "one/a.jpg", "two/a.jpg", "b.jpg")
    table(top, "image,label", "b.jpg,y", "a,x")
    error = refused(top, "line 3: 'a' could be any of one/a.jpg, two/a.jpg")
    assert "path" in error.fix
    table(top, "image,label", "b.jpg,y", "two/a,x")
    assert read(top).by_id()["two/a"].path == "two/a.jpg"


def test_a_wrong_folder_is_not_another(tmp_path: Path) -> None:
    """A path that is not there is missing, though the name is elsewhere."""
    top = pictures(tmp_path / "d", "one/a.jpg", "b.jpg")
    table(top, "image,label", "b.jpg,y", "two/a.jpg,x", "two/a,x")
    refused(top, "2 of 3 rows", "two/a.jpg, two/a")


@pytest.mark.parametrize(
    ("lines", "words", "fix"),
    [
        (("file,label", "a.jpg,x"), "no column image; it has: file, label", "image, label"),
        (("image", "a.jpg"), "no column label", "image, label"),
        (("image,label",), "has no rows", "one row per image"),
        (("image,label", "a.jpg,x", "b.jpg,"), "line 3: an empty cell", "mend"),
        (("image,label", "a.jpg,x", "b.jpg,  "), "line 3: an empty cell", "mend"),
        (("image,label", "a.jpg,x,y", "b.jpg,y"), "line 2: more cells than columns", "mend"),
        (("image,label", "a.jpg,x", "a.jpg,y"), "twice: a", "remove"),
        (("image,label", "a.jpg,x", "a,y"), "twice: a", "remove"),
        (("image,label", "a.jpg,x", "b.jpg,x"), "only one class: x", "two"),
        (("image,label", "a.jpg,x", "b.jpg,X"), "case only: 'X', 'x'", "alike"),
        (("image,label,split", "a.jpg,x,trian", "b.jpg,y,test"), "line 2: unknown split 'trian'",
         "did you mean 'train'?"),
        (("image,label,split", "a.jpg,x,7", "b.jpg,y,test"), "unknown split '7'",
         "train, val or test"),
        (("image,label", "a.jpg,x", "c.jpg,y", "d,y"), "2 of 3 rows", "--allow-missing"),
        (("image,label", "\x00,x", "b.jpg,y"), "line 2: a NUL byte in '\\x00'", "mend"),
        (("image,label", "a.jpg,x", "b.jpg,y\x00"), "line 3: a NUL byte in 'y\\x00'", "mend"),
        (("sep=;", "image;label", "a.jpg;x", "b.jpg;"), "line 4: an empty cell", "mend"),
        (("image,label,mask", "a.jpg,x,m.png", "b.jpg,y,"), "1 masks", "--allow-missing"),
    ],
)  # fmt: skip
def test_bad_tables(lines: Sequence[str], words: str, fix: str, tmp_path: Path) -> None:
    """Each fault has one message with its place, and a remedy."""
    top = table(pictures(tmp_path / "d", "a.jpg", "b.jpg"), *lines)
    assert fix in refused(top, words).fix


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_what_spreadsheets_leave(separator: str, tmp_path: Path) -> None:
    """Rows of separators, and Excel's line that says which they are, quoted, filled up or not."""
    top = pictures(tmp_path / "d", "a.jpg", "b.jpg")
    rows = (("image", "label", "site"), ("a.jpg", "x", "arm"), ("", " ", ""), ("b.jpg", "y", ""),
            ("", "", ""), ("", "", "", ""))  # fmt: skip
    lines = [separator.join(row) for row in rows]
    for above in ([], [f"sep={separator}"], [f'"SEP={separator}"{separator * 2}']):
        for mark in ("", "\ufeff"):
            assert labels(read(table(top, *above, *lines, mark=mark))) == {"a": "x", "b": "y"}


def test_excels_line_counts_more_than_the_header(tmp_path: Path) -> None:
    """Another separator than the three is taken from it."""
    top = pictures(tmp_path / "d", "a.jpg", "b.jpg")
    table(top, "sep=|", "image|label|site", "a.jpg|x|arm, left; upper", "b.jpg|y|")
    assert read(top).by_id()["a"].site == "arm, left; upper"


@pytest.mark.skipif(os.sep != "/", reason="a backslash separates folders here")
def test_backslashes(tmp_path: Path) -> None:
    """They are named where they separate nothing, and only then."""
    top = pictures(tmp_path / "d", "img/a.jpg", "img/b.jpg")
    for header, cell in (("image,label", "img\\a.jpg,x"), ("image,label,mask", "img/a.jpg,x,m\\a")):
        table(top, header, cell, "img/b.jpg,y,")
        assert refused(top, cell.split(",")[0 if header.endswith("label") else 2]).fix.startswith(
            "write / in place of \\"
        )
    table(top, "image,label", "img\\a.jpg,x")
    assert "\\" in refused(top, "no image of", allow_missing=True).fix
    table(top, "image,label", "img/c.jpg,x", "img/b.jpg,y")
    assert "\\" not in refused(top, "img/c.jpg").fix


def test_names_in_another_case(tmp_path: Path) -> None:
    """The file that is there is named."""
    top = pictures(tmp_path / "d", "img/a.jpg", "b.jpg")
    (top / "img" / "a.jpg").rename(top / "img" / "A.JPG")
    if (top / "img" / "a.jpg").exists():
        pytest.skip("this file system takes them for one")
    table(top, "image,label", "img/a.jpg,x", "b.jpg,y", "c.jpg,y")
    refused(
        top, "2 of 3 rows", "img/a.jpg, c.jpg; names differ in case: img/a.jpg is called img/A.JPG"
    )
    for named in ("Img/A", "a", "a.jpg"):
        table(top, "image,label", f"{named},x", "b.jpg,y")
        refused(top, f"{named} is called img/A.JPG")
    table(top, "image,label,mask", "img/A.JPG,x,B.jpg", "b.jpg,y,")
    refused(top, "1 masks", "B.jpg is called b.jpg")
    table(top, "image,label", "two/a.jpg,x", "b.jpg,y")
    assert "is called" not in refused(top, "1 of 2 rows").message


def test_missing_images(tmp_path: Path) -> None:
    """Left out where that is allowed, with a word, and counted in the record."""
    top = pictures(tmp_path / "d", "a.jpg", "b.jpg")
    table(top, "image,label,mask", "a.jpg,x,m.png", "b.jpg,y,", "c.jpg,y,", "d.jpg,z,")
    warnings: list[str] = []
    manifest = read(top, allow_missing=True, warn=warnings.append)
    assert (len(manifest.records), manifest.missing) == (2, 2)
    assert manifest.codes == ("x", "y")
    assert warnings == ["2 rows have no image; left out: c.jpg, d.jpg"]
    assert manifest.by_id()["a"].mask == ""
    table(top, "image,label", "c.jpg,y", "d.jpg,z")
    refused(top, "no image of", "labels.csv", allow_missing=True)


def test_an_image_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named as such, and not answered by another of its name."""
    top = pictures(tmp_path / "d", "a.jpg", "b.jpg", "other/a.jpg")
    table(top, "image,label", "a.jpg,x", "b.jpg,y")
    read_bytes = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "a.jpg":
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    refused(top, "1 of 2 images", f"cannot read {top.resolve() / 'a.jpg'}: Permission denied")


def test_not_a_table(tmp_path: Path) -> None:
    """An image, or a table in another encoding, given as the CSV."""
    top = pictures(tmp_path / "d", "a.jpg")
    for content, name in ((None, "a.jpg"), ("image,label\né,x\n".encode("latin-1"), "t.csv")):
        if content is not None:
            (top / name).write_bytes(content)
        assert "UTF-8" in refused(top / name, "cannot read", name).fix


def test_two_tables_in_a_folder(tmp_path: Path) -> None:
    """Which one must be said, and then it is read; hidden ones do not count."""
    top = pictures(tmp_path / "d", "a.jpg", "b.jpg")
    table(top, "image,label", "a.jpg,x", "b.jpg,y", name="one.CSV")
    table(top, "image,label", name=".~lock.one.csv")
    assert len(read(top).records) == 2
    table(top, "image,label", name="two.csv")
    refused(top, "holds 2 CSV files: one.CSV, two.csv")
    assert len(read(top / "one.CSV").records) == 2


# --- classes, names --------------------------------------------------------------------------


def test_classes_in_an_order(tmp_path: Path) -> None:
    """As given; then labels may even differ in case only."""
    top = pictures(tmp_path / "d", "b/1.jpg", "a/2.jpg", "c/3.jpg")
    assert read(top, classes=["c", " a", "b"]).codes == ("c", "a", "b")
    top = table(pictures(tmp_path / "t", "a.jpg", "b.jpg"), "image,label", "a.jpg,x", "b.jpg,X")
    manifest = read(top, classes=["x", "X"])
    assert manifest.class_counts() == {"x": 1, "X": 1}
    assert [manifest.taxonomy.index(c) for c in ("x", "X")] == [0, 1]
    with pytest.raises(KeyError):
        manifest.taxonomy.index("y")


def test_unknown_labels(tmp_path: Path) -> None:
    """The nearest class is suggested, else all are named."""
    top = pictures(tmp_path / "d", "spitz/a.jpg", "blue/b.jpg")
    error = refused(top, "unknown label 'spitz'", classes=["Spitz", "blue"])
    assert error.fix == "did you mean 'Spitz'?"
    error = refused(top, "unknown label 'blue'", classes=["spitz", "qqq"])
    assert error.fix == "known: spitz, qqq"


def test_a_class_without_images(tmp_path: Path) -> None:
    """Named; nothing could be learned of it."""
    top = pictures(tmp_path / "d", "x/a.jpg", "y/b.jpg")
    refused(top, "no image of z", classes=["x", "y", "z"])


@pytest.mark.parametrize("classes", [["x"], ["x", "y", "x"], ["mel", "MEL"]])
def test_classes_that_are_not_two(classes: Sequence[str], tmp_path: Path) -> None:
    """One class, or one named twice."""
    top = pictures(tmp_path / "d", "x/a.jpg")
    refused(top, "two or more different ones", code=EXIT_USAGE, classes=classes)


@pytest.mark.parametrize(
    "name", ["isic18", "isic17-mel", "synthetic", "synthetic-3", "A", "", "-x", ".x", "a/b",
             "a\\b", "..", "é", "a b", "x" * 65, "a\n"],
)  # fmt: skip
def test_names_that_cannot_be(name: str, tmp_path: Path) -> None:
    """Those of the challenges, and what would make no file name everywhere."""
    with pytest.raises(UsageError) as caught:
        read_custom(name, pictures(tmp_path / "d", "x/a.jpg", "y/b.jpg"))
    assert caught.value.fix
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("name", ["a", "7", "my-set_2.1", "synthetics", "x" * 64])
def test_names_that_can_be(name: str) -> None:
    """They pass."""
    check_name(name)


def test_recorded_again(tmp_path: Path) -> None:
    """The newer record replaces the older."""
    top = pictures(tmp_path / "d", "x/a.jpg", "y/b.jpg")
    one = read(top)
    pictures(top, "y/c.jpg")
    assert len(read(top).records) == len(one.records) + 1


# --- splits ----------------------------------------------------------------------------------


def test_too_few_lesions_to_split(tmp_path: Path) -> None:
    """Read it can be; cutting it names the class."""
    paths = [f"{i}.jpg" for i in range(14)]
    rows = [f"{p},{'rare' if i < 4 else 'common'},L{i // 2}" for i, p in enumerate(paths)]
    top = table(pictures(tmp_path / "d", *paths), "image,label,lesion_id", *rows)
    manifest = read(top)
    with pytest.raises(DataError, match="class rare has 2 lesions: too few") as caught:
        make_split(manifest, DataConfig())
    assert caught.value.exit_code == EXIT_DATA


def test_lesions_stay_together(tmp_path: Path) -> None:
    """The column decides, and images without a lesion stand alone."""
    paths = [f"{i:02}.jpg" for i in range(40)]
    rows = [f"{p},{'xy'[i % 2]},{f'L{i % 2}{i // 8}' if i < 32 else ''}"
            for i, p in enumerate(paths)]  # fmt: skip
    manifest = read(table(pictures(tmp_path / "d", *paths), "image,label,lesion_id", *rows))
    split = make_split(manifest, DataConfig())
    sides: dict[str, set[str]] = {}
    for part in ("train", "val", "test"):
        for image_id in split.part(part):
            sides.setdefault(manifest.by_id()[image_id].lesion_id, set()).add(part)
    sides.pop("")
    assert len(sides) == 8
    assert all(len(parts) == 1 for parts in sides.values())


def test_a_split_column_half_filled(tmp_path: Path) -> None:
    """It is no split of its own; asked for, it is refused with the number of images."""
    top = pictures(tmp_path / "d", *(f"{i}.jpg" for i in range(12)))
    parts = ["train"] * 4 + ["test"] * 4 + [""] * 4
    rows = [f"{i}.jpg,{'xy'[i % 2]},{part}" for i, part in enumerate(parts)]
    manifest = read(table(top, "image,label,split", *rows))
    assert not brings_own_split(manifest)
    with pytest.raises(DataError, match="4 images of mine are in no part"):
        make_split(manifest, DataConfig(protocol="official"))
    assert len(make_split(manifest, DataConfig()).train) > 0


def test_the_hash_knows_the_parts(tmp_path: Path) -> None:
    """The same images in another part are another data set."""
    top = pictures(tmp_path / "d", "train/x/a.jpg", "test/y/b.jpg")
    manifest = read(top)
    moved = tuple(dataclasses.replace(r, part="val") for r in manifest.records)
    assert dataclasses.replace(manifest, records=moved).data_hash != manifest.data_hash


# --- what would leak or mislabel -------------------------------------------------------------


def test_columns_in_any_case(tmp_path: Path) -> None:
    """Lesions and parts are read however their column is spelt: unread, they would leak."""
    top = pictures(tmp_path / "d", *(f"{i}.png" for i in range(4)))
    rows = ["0.png,x,a,train", "1.png,y,a,train", "2.png,x,b,test", "3.png,y,b,test"]
    for header in ("image,label,lesion_id,split", "Image, Label , LESION_ID, Split"):
        found = read(table(top, header, *rows))
        assert [(r.lesion_id, r.part) for r in found.records] == [
            ("a", "train"), ("a", "train"), ("b", "test"), ("b", "test"),
        ]  # fmt: skip
    refused(table(top, "image,label,split,Split", *rows), "column split more than once")


def test_a_column_nearly_known_is_told_of(tmp_path: Path) -> None:
    """It is not read, and nobody should believe that it is."""
    top = pictures(tmp_path / "d", "a.png", "b.png")
    told: list[str] = []
    read(table(top, "image,label,lesionid", "a.png,x,1", "b.png,y,1"), warn=told.append)
    assert ["did you mean 'lesion_id'" in line for line in told] == [True]


def test_patients(tmp_path: Path) -> None:
    """Read, in whatever case the column is; a placeholder is none; a like column is told of."""
    top = tmp_path / "d"
    pictures(top, *(f"{i}.jpg" for i in range(4)))
    ids = ("P1", "P1", "unknown", "")
    rows = [f"{i}.jpg,{'xy'[i % 2]},{patient}" for i, patient in enumerate(ids)]
    table(top, "image,label,Patient_ID", *rows)
    manifest = read(top)
    assert [r.patient_id for r in manifest.records] == ["P1", "P1", "", ""]
    told: list[str] = []
    table(top, "image,label,patient", *rows)
    assert {r.patient_id for r in read(top, warn=told.append).records} == {""}
    assert "the column 'patient' is not read; did you mean 'patient_id'?" in told[0]
    save_manifest(manifest)
    assert load_manifest(manifest.dataset) == manifest


def test_lesions_spelt_differently(tmp_path: Path) -> None:
    """One lesion in composed and decomposed form; what stands for none is none."""
    top = pictures(tmp_path / "d", *(f"{i}.png" for i in range(6)))
    composed, decomposed = (unicodedata.normalize(f, "l\u00e9sion") for f in ("NFC", "NFD"))
    cells = (composed, decomposed, "unknown", "NaN", "N/A", "-")
    rows = [f"{i}.png,{'xy'[i % 2]},{cell}" for i, cell in enumerate(cells)]
    found = read(table(top, "image,label,lesion_id", *rows))
    assert [r.lesion_id for r in found.records] == [composed, composed, "", "", "", ""]


def test_a_code_beside_its_full_name(tmp_path: Path) -> None:
    """Recorded as two classes, as they are written, and told with the pairs and the remedy."""
    found = ("MEL", "Melanoma", "NV", "Naevus", "mole")
    top = pictures(tmp_path / "d", *(f"{i}.png" for i in range(len(found))))
    rows = [f"{i}.png,{label}" for i, label in enumerate(found)]
    told: list[str] = []
    data = read(table(top, "image,label", *rows), warn=told.append)
    assert data.taxonomy.codes == tuple(sorted(found))
    assert told == [
        "classes that seem to be one diagnosis: 'MEL' and 'Melanoma', 'NV' and 'Naevus'; if they "
        "are, give them the same name in the CSV"
    ]
    told.clear()
    read(pictures(tmp_path / "e", "BCC/a.png", "basal_cell_carcinoma/b.png"), warn=told.append)
    assert told == [
        "classes that seem to be one diagnosis: 'BCC' and 'basal_cell_carcinoma'; if they are, put "
        "their images in one folder"
    ]


@pytest.mark.parametrize(
    ("found", "same"),
    [
        ("MEL,NV,BCC,AK,BKL,DF,VASC,SCC", []),
        ("AK,AKIEC,BKL,SK,OTHER", []),
        ("Melanoma,Nevus,benign,malignant", []),
        ("MEL,melanoma in situ,NV,Spitz nevus", []),
        ("SK,Seborrhoeic keratosis", [("SK", "Seborrhoeic keratosis")]),
        ("BKL,Benign-keratoses,VASC,vascular lesions", [("BKL", "Benign-keratoses"),
                                                        ("VASC", "vascular lesions")]),
        ("AK,AKIEC,actinic keratosis", [("AK", "actinic keratosis")]),
        ("AKIEC,actinic keratosis", [("AKIEC", "actinic keratosis")]),
        ("nevus,melanocytic nevi,NV", [("nevus", "melanocytic nevi", "NV")]),
    ],
)  # fmt: skip
def test_labels_of_one_diagnosis(found: str, same: list[tuple[str, ...]]) -> None:
    """A code and its name, in any spelling; no wider or narrower class."""
    assert same_diagnosis(found.split(",")) == same


def test_odd_ages(tmp_path: Path) -> None:
    """What is no age is told when it is recorded; what says that none is known is not."""
    ages = ["45", "45.5", "", "unknown", "NaN", "abc", "-3", "999", "999"]
    top = pictures(tmp_path / "d", *(f"{i}.png" for i in range(len(ages))))
    told: list[str] = []
    rows = [f"{i}.png,{'xy'[i % 2]},{age}" for i, age in enumerate(ages)]
    data = read(table(top, "image,label,age", *rows), warn=told.append)
    assert [r.age for r in data.records] == ages
    assert told == ["4 ages are no years from 0 to 130 and count as unknown: 'abc', '-3', '999'"]


def test_a_lesion_of_most_images(tmp_path: Path) -> None:
    """It goes to one part whole: told when it is recorded, as it may mean that none is known."""
    top = pictures(tmp_path / "d", *(f"{i:02}.png" for i in range(40)))
    told: list[str] = []

    def recorded(same: int) -> None:
        told.clear()
        rows = [f"{i:02}.png,{'xy'[i % 2]},{'none given' if i < same else i}" for i in range(40)]
        read(table(top, "image,label,lesion_id", *rows), warn=told.append)

    recorded(21)
    assert ["'none given' has 21 of 40 images" in line for line in told] == [True]
    recorded(20)
    assert not told


@pytest.mark.parametrize(
    "rows",
    [
        ["s/a.png,x,test", "a,y,train", "s/b.png,y,train"],  # by path, and by name
        ["s/a.png,x,train", "s/../s/a.png,y,train", "s/b.png,y,train"],
    ],
)
def test_a_file_twice_under_two_names(tmp_path: Path, rows: list[str]) -> None:
    """With another label or part it would contradict or leak."""
    top = pictures(tmp_path / "d", "s/a.png", "s/b.png")
    refused(table(top, "image,label,split", *rows), "twice", "a.png")


def test_a_file_twice_by_a_link(tmp_path: Path) -> None:
    """A link is the file it leads to."""
    top = pictures(tmp_path / "d", "x/a.png", "y/b.png")
    (top / "y" / "c.png").symlink_to(top / "x" / "a.png")
    refused(top, "twice: y/c (a.png and c.png)")


@pytest.mark.parametrize("other", ["holdout", "validate", "dev"])
def test_a_part_beside_an_unknown_one(tmp_path: Path, other: str) -> None:
    """`train` with classes in it is no class."""
    top = pictures(tmp_path / "d", "train/x/a.png", "train/y/b.png", f"{other}/x/c.png")
    refused(top, "holds train, and beside them", other)
    # A class that is called so, with its images in it, is one.
    top = pictures(tmp_path / "e", "test/a.png", f"{other}/c.png")
    assert set(labels(read(top)).values()) == {"test", other}


def test_parts_below_classes(tmp_path: Path) -> None:
    """They would be pooled, held-out images among those to train on."""
    top = pictures(tmp_path / "d", "x/train/a.png", "x/test/b.png", "y/train/c.png")
    error = refused(top, "class folder", "test, train")
    assert "make it test/x instead of x/test" in error.fix


def test_files_that_are_left_out_are_counted(tmp_path: Path) -> None:
    """Kinds that are read from a table but not looked for in folders."""
    top = pictures(tmp_path / "d", "x/a.png", "y/b.png")
    for name in ("x/c.gif", "x/d.DCM", "x/notes.txt"):
        (top / name).write_bytes(b"")
    told: list[str] = []
    assert len(read(top, warn=told.append).records) == 2
    assert ["2 files of" in line and "c.gif" in line for line in told] == [True]


def test_known_pairs_in_class_folders(tmp_path: Path) -> None:
    """Near-duplicates of the archive stay together though their ids are paths here."""
    pairs = [(f"MEL/{a}", f"NV/{b}") for a, b in KNOWN_PAIRS]
    top = pictures(tmp_path / "d", *(f"{name}.png" for pair in pairs for name in pair))
    split = make_split(read(top), DataConfig(dataset="mine"))
    part = {i: p for p in ("train", "val", "test") for i in split.part(p)}
    assert all(part[a] == part[b] for a, b in pairs)
    assert len(set(part.values())) == 3
