"""Finding files, opening images, reading tables: what the readers of data sets share."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from biigma_cli.data.scan import (
    Draft,
    big_lesion,
    check_images,
    composed,
    first,
    images_by_stem,
    read_csv,
    refuse_doubles,
    resolved,
    walk_files,
)
from biigma_cli.errors import EXIT_DATA, DataError
from tests.data.samples import digest, encode, noise

not_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything"
)


def touch(*paths: Path) -> None:
    """Empty files, with their folders."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(top: Path, found: list[Path]) -> list[str]:
    """Paths below `top`."""
    return [p.relative_to(top).as_posix() for p in found]


# --- files -----------------------------------------------------------------------------------


def test_files_by_suffix_in_a_fixed_order(tmp_path: Path) -> None:
    """Any case, any depth, files of a folder before those below it."""
    touch(*(tmp_path / n for n in ("b/x.jpg", "b/a.JPEG", "a/z.jpg", "c.jpg", "c.png", "n.txt")))
    assert names(tmp_path, walk_files([tmp_path], (".jpg", ".jpeg"))) == [
        "c.jpg", "a/z.jpg", "b/a.JPEG", "b/x.jpg",
    ]  # fmt: skip


def test_a_folder_given_twice_counts_once(tmp_path: Path) -> None:
    """Itself again, by a link, and together with the folder above it, whichever comes first."""
    touch(tmp_path / "in/a.jpg", tmp_path / "in/deep/b.jpg", tmp_path / "c.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    inner = tmp_path / "in"
    assert len(walk_files([inner, inner, tmp_path / "link"], (".jpg",))) == 2
    assert len(walk_files([inner, tmp_path], (".jpg",))) == 3
    assert len(walk_files([tmp_path, inner], (".jpg",))) == 3


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    """A link to a folder elsewhere brings its files; one up, to itself or to nothing, none."""
    touch(tmp_path / "elsewhere/e.jpg", tmp_path / "top/one/a.jpg", tmp_path / "top/two/b.jpg")
    one = tmp_path / "top" / "one"
    (one / "up").symlink_to(tmp_path / "top")
    (one / "self").symlink_to(one)
    (one / "round").symlink_to(one / "round")
    (one / "gone").symlink_to(tmp_path / "nowhere")
    (one / "out").symlink_to(tmp_path / "elsewhere")
    found = [p.name for p in walk_files([one], (".jpg",))]
    assert found == ["a.jpg", "e.jpg"]
    assert sorted(p.name for p in walk_files([tmp_path / "top"], (".jpg",))) == [
        "a.jpg", "b.jpg", "e.jpg",
    ]  # fmt: skip


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    """What editors and file managers leave behind is no image; a hidden start is read."""
    top = tmp_path / ".data"
    touch(*(top / n for n in ("a.jpg", "._a.jpg", ".ipynb_checkpoints/a-checkpoint.jpg")))
    assert names(top, walk_files([top], (".jpg",))) == ["a.jpg"]


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, rather than read as empty."""
    touch(tmp_path / "shut/a.jpg", tmp_path / "b.jpg")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot read the folder .*shut: Permission denied"):
        walk_files([tmp_path], (".jpg",))


@not_root
def test_a_folder_without_permission(tmp_path: Path) -> None:
    """The same with a real one."""
    shut = tmp_path / "shut"
    shut.mkdir(mode=0o000)
    try:
        with pytest.raises(DataError, match="cannot read the folder"):
            walk_files([tmp_path], (".jpg",))
    finally:
        shut.chmod(0o700)


def test_the_first_of_doubles_counts(tmp_path: Path) -> None:
    """By stem; folders in order of their names."""
    touch(tmp_path / "b/x.jpg", tmp_path / "a/x.jpeg", tmp_path / "x.png")
    assert images_by_stem([tmp_path]) == {"x": tmp_path / "a/x.jpeg"}


def test_resolved(tmp_path: Path) -> None:
    """A place that is there; one that is not, one below a file, a link to itself, no such user."""
    touch(tmp_path / "file")
    assert resolved(tmp_path / "x" / ".." / "file", fix="") == tmp_path.resolve() / "file"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, words in (
        (tmp_path / "gone", "nothing at"),
        (tmp_path / "file" / "below", "nothing at"),
        (tmp_path / ("n" * 300), "cannot read"),
        (tmp_path / "loop", "cannot read"),
        (Path("~no-such-user-here"), "cannot read"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            resolved(path, fix="mend it")
        assert str(path) in caught.value.message
        assert (caught.value.fix, caught.value.exit_code) == ("mend it", EXIT_DATA)


# --- images ----------------------------------------------------------------------------------


def draft(file: Path, image_id: str = "") -> Draft:
    """A draft of a melanoma."""
    return Draft(image_id=image_id or file.stem, file=file, label="MEL")


def picture(path: Path, seed: int = 0) -> Path:
    """A small JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(noise(12, 10, seed), "JPEG"))
    return path


def test_checked_images(tmp_path: Path) -> None:
    """In order of id, with digest; paths relative below the root and whole elsewhere."""
    inside, outside = picture(tmp_path / "root/x/b.jpg"), picture(tmp_path / "a.jpg", 1)
    calls: list[tuple[int, int]] = []
    records = check_images(
        [draft(inside), draft(outside)],
        tmp_path / "root",
        progress=lambda *done: calls.append(done),
    )
    assert [(r.image_id, r.path) for r in records] == [("a", str(outside)), ("b", "x/b.jpg")]
    assert [r.digest for r in records] == [digest(p.read_bytes()) for p in (outside, inside)]
    assert calls == [(1, 2), (2, 2)]


def test_all_unreadable_images_are_counted(tmp_path: Path) -> None:
    """Text, nothing and no file: three of four, the first by id named."""
    good = picture(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_text("text")
    touch(tmp_path / "c.jpg")
    paths = [tmp_path / f"{n}.jpg" for n in "dcb"]
    with pytest.raises(DataError, match="3 of 4 images cannot be read") as caught:
        check_images([draft(p) for p in (*paths, good)], tmp_path)
    assert str(tmp_path / "b.jpg") in caught.value.message


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.timeout(20)
def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    """Reading it would never end."""
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg is no file"):
        check_images([draft(tmp_path / "a.jpg")], tmp_path)


def test_names_in_any_script(tmp_path: Path) -> None:
    """Files are found and recorded whatever they are called."""
    for name in ("病変", "поражение", "lésion", "θ 1", "آفة", "🔬"):
        assert (
            check_images([draft(picture(tmp_path / f"{name}.jpg"))], tmp_path)[0].image_id == name
        )


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_name_that_is_not_unicode(tmp_path: Path) -> None:
    """A name in an old encoding cannot be recorded; it is shown as far as it can be."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/l\xe9sion.jpg"))
    try:
        picture(path)
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(DataError, match=r"l\\udce9sion\.jpg' is not valid UTF-8") as caught:
        check_images([draft(path)], tmp_path)
    caught.value.message.encode()


# --- tables ----------------------------------------------------------------------------------


def table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    """A CSV file."""
    path = folder / "t.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_rows(tmp_path: Path) -> None:
    """Further columns are kept; byte-order mark, Windows line ends and blank lines are no fault."""
    path = table(tmp_path, '\ufeffid,label,x\r\n1,a,\r\n\r\n"2","b, c",é\r\n')
    assert read_csv(path, ("id", "label")) == [
        {"id": "1", "label": "a", "x": ""},
        {"id": "2", "label": "b, c", "x": "é"},
    ]


@pytest.mark.parametrize("above", ["sep=\0", 'sep="', "sep=x", "sep=", "sep=;;id"])
def test_lines_that_are_not_excels(above: str, tmp_path: Path) -> None:
    """No separator is taken from them: they are the header."""
    with pytest.raises(DataError, match=r"has no column .*label; it has: sep="):
        read_csv(table(tmp_path, f"{above}\nid;label\n1;a\n"), ("id", "label"), delimiter=None)


def test_columns_however_they_are_spelt(tmp_path: Path) -> None:
    """In any case, with spaces, composed or not; one that is nearly known is told of."""
    path = table(tmp_path, "Id, LABEL ,Lesion ID,site\u0301\n1,a,b,c\n")
    told: list[str] = []
    (row,) = read_csv(path, ("id", "label"), optional=("lesion_id", "sit\u00e9"), warn=told.append)
    assert row == {"id": "1", "label": "a", "Lesion ID": "b", "sit\u00e9": "c"}
    assert row.line == 2
    assert len(told) == 1
    assert "'Lesion ID' is not read; did you mean 'lesion_id'?" in told[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column id, label; it has: "),
        ("idx,label\n1,a\n", "no column id; it has: idx, label"),
        ("id,label, Id \n1,a,b\n", "column id more than once"),
        ("id,label\n\n\n1,a\n2,\n", "line 5: an empty cell"),
        ("id;label\n1;a\n", "no column id, label; it has: id;label"),
        ("id,label,label\n1,a,b\n", "column label more than once"),
        ("id,label\n1,a\n2,\n", "line 3: an empty cell"),
        ("id,label\n1,a\n2, \t\n", "line 3: an empty cell"),
        ("id,label\n1\n", "line 2: an empty cell"),
        ("id,label\n1,a,b\n", "line 2: more cells than columns"),
        ('id,label\n1,"' + "x" * 200_000 + '"\n', "cannot read"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, words: str) -> None:
    """Each fault is named with the file, and has a remedy."""
    path = table(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read_csv(path, ("id", "label"))
    assert words in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.fix


def test_empty_cells_where_they_may_be(tmp_path: Path) -> None:
    """Only the columns named must be filled; trailing separators are no fault."""
    path = table(tmp_path, "id,label\n1,\n2,b,,\n")
    assert [r["label"] for r in read_csv(path, ("id", "label"), filled=("id",))] == ["", "b"]
    with pytest.raises(DataError, match="line 2: an empty cell"):
        read_csv(path, ("id", "label"))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding(tmp_path: Path, encoding: str) -> None:
    """A spreadsheet's other encodings are refused with the remedy, not read as rubbish."""
    path = table(tmp_path, "id,label\n1,é\n", encoding)
    with pytest.raises(DataError, match="cannot read") as caught:
        read_csv(path, ("id", "label"))
    assert "UTF-8" in caught.value.fix


def test_no_table(tmp_path: Path) -> None:
    """A file that is not there, and a folder in its place."""
    with pytest.raises(DataError, match=r"no t\.csv in") as caught:
        read_csv(tmp_path / "t.csv", ("id",), absent="put it there")
    assert caught.value.fix == "put it there"
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(DataError, match="cannot read"):
        read_csv(tmp_path / "t.csv", ("id",))


def test_doubles_and_lists(tmp_path: Path) -> None:
    """Each doubled id once; ten are shown."""
    refuse_doubles(["a", "b"], tmp_path)
    with pytest.raises(DataError, match=r"twice: b, a$"):
        refuse_doubles(["b", "b", "b", "a", "c", "a"], tmp_path)
    assert first([str(i) for i in range(10)]).endswith("8, 9")
    assert first([str(i) for i in range(12)]).endswith("9 and 2 more")


def test_a_big_lesion() -> None:
    """All images, or more than 20 and a tenth; images without a lesion are none, however many."""
    assert big_lesion(["a", "a"]) == ("a", 2)
    assert big_lesion(["a", "a", ""]) is None
    assert big_lesion([*["a"] * 21, *[""] * 188]) == ("a", 21)
    assert big_lesion([*["a"] * 21, *[""] * 189]) is None
    assert big_lesion([""] * 99) is None
    assert big_lesion(["a"]) is None
    assert big_lesion([]) is None


def test_composed() -> None:
    """Two spellings of one letter become one."""
    assert composed(unicodedata.normalize("NFD", "é")) == composed("é") == "é"
