"""Files, folders, patterns and lists: what is found, in which order, and what is refused."""

from __future__ import annotations

import glob
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biigma_cli.data.magic import looks_like_image
from biigma_cli.data.preprocess import shown
from biigma_cli.errors import DataError
from biigma_cli.runtime import inputs
from biigma_cli.runtime.inputs import Source, count, expand, read_list, read_stdin
from tests.data.samples import encode, noise

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX file names and links")


def never() -> bool:
    """Do not stop."""
    return False


def names(*arguments: str | Path) -> list[str]:
    """What `expand` finds, which is as many as `count` says."""
    given_ = [str(a) for a in arguments]
    found = [s.name for s in expand(given_, warn=lambda _: None)]
    assert count(given_, never) == len(found)
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Folders with images and other files."""
    for name in (
        "b.jpg", "a.PNG", "a/z.tif", "a/deep/er/y.webp", "a-b/x.gif", "a.b/w.bmp", "c.txt",
        "d/e.dcm", "._b.jpg", "empty/readme",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_a_folder_is_its_images_in_the_order_of_paths(tree: Path) -> None:
    """As `sorted` would order the paths, though only one folder's names are held."""
    wanted = sorted(
        p for p in tree.rglob("*")
        if p.suffix.lower() in inputs.SUFFIXES and not p.name.startswith("._")
    )  # fmt: skip
    assert names(tree) == [str(p) for p in wanted]
    assert len(wanted) == 7


def test_files_without_an_ending(tmp_path: Path) -> None:
    """As archives of DICOM name them: what they begin with decides, and nothing comes twice."""
    picture = encode(noise(20, 20), "JPEG")
    for name, content in {
        "IM000001": bytes(128) + b"DICM", "1.2.840.55": picture, "notes": b"hello", "none": b"",
        ".hidden": picture, "x.txt": picture, "b/IM2": picture, "b/y.jpg": picture,
    }.items():  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    wanted = [str(tmp_path / n) for n in ("1.2.840.55", "IM000001", "b/IM2", "b/y.jpg")]
    assert names(tmp_path) == wanted
    assert names(tmp_path / "b", tmp_path / "b" / "**")[:2] == wanted[2:]
    assert sorted(set(names(tmp_path / "**"))) == sorted(names(tmp_path / "**"))


@posix
def test_a_pipe_without_an_ending(tmp_path: Path) -> None:
    """It is not opened: it would never end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.jpg").touch()
    assert names(tmp_path) == [str(tmp_path / "a.jpg")]


@pytest.mark.parametrize("name", ["a.JPG", "a.mpo", "a.jps", "a.apng", "a.dib", "a.ima", "a.dcm"])
def test_endings_of_images(tmp_path: Path, name: str) -> None:
    """Of a folder's files those count that can be read, also what few call so."""
    (tmp_path / name).touch()
    assert [s.name for s in expand([str(tmp_path)], warn=pytest.fail)] == [str(tmp_path / name)]


def test_pictures_that_nothing_reads_are_named(tmp_path: Path) -> None:
    """Once for a folder, in all folders below it together."""
    for name in ("a.jpg", "b.HEIC", "c/d.heic", "c/e.cr2", "c/f.txt", "c/.g.heic"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    said: list[str] = []
    assert [s.name for s in expand([str(tmp_path)], warn=said.append)] == [str(tmp_path / "a.jpg")]
    assert said == [
        f"{tmp_path}: passed over, as nothing here reads them: 1 .cr2, 2 .heic; save them as JPEG"
    ]


def test_a_folder_of_pictures_that_nothing_reads(tmp_path: Path) -> None:
    """Their kinds are the reason."""
    (tmp_path / "a.HEIC").touch()
    with pytest.raises(DataError, match=r"that can be read; there are \.heic") as caught:
        expand([str(tmp_path)], warn=lambda _: None)
    assert caught.value.fix == "save them as JPEG"


def test_large_folders_are_sorted_through_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same order where a folder's names do not fit into memory."""
    for i in range(25):
        (tmp_path / f"{i * 7 % 25:02}\n.jpg").touch()
        (tmp_path / f"{i:02}").mkdir()
        (tmp_path / f"{i:02}" / "x.jpg").touch()
    whole = names(tmp_path)
    monkeypatch.setattr(inputs, "_RUN", 4)
    assert names(tmp_path) == whole == [str(p) for p in sorted(tmp_path.rglob("*.jpg"))]


def test_arguments_are_kept_as_given(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what is not there: it is answered with an error."""
    monkeypatch.chdir(tree)
    assert names("./b.jpg", "gone.jpg", "b.jpg") == ["./b.jpg", "gone.jpg", "b.jpg"]


def test_patterns(tree: Path) -> None:
    """As the shell would: names in order, folders with their content."""
    assert names(tree / "*.jpg") == [str(tree / "b.jpg")]
    assert names(tree / "**" / "*.webp") == [str(tree / "a/deep/er/y.webp")]
    assert names(tree / "a*") == [
        str(tree / n) for n in ("a/deep/er/y.webp", "a/z.tif", "a-b/x.gif", "a.PNG", "a.b/w.bmp")
    ]


def test_a_file_whose_name_is_a_pattern(tree: Path) -> None:
    """A file of that very name is meant."""
    (tree / "x[1].jpg").touch()
    assert names(tree / "x[1].jpg") == [str(tree / "x[1].jpg")]


@pytest.mark.parametrize("what", ["empty", "*.xyz"])
def test_nothing_is_refused_at_once(tree: Path, what: str) -> None:
    """Before the first image is asked for, though something else is named first."""
    with pytest.raises(DataError, match=r"no image in the folder|nothing matches"):
        expand([str(tree / "b.jpg"), str(tree / what)], warn=lambda _: None)


@posix
def test_links(tree: Path) -> None:
    """Links to files count, also broken ones; those to folders are not followed, and said."""
    (tree / "a" / "loop").symlink_to(tree)
    (tree / "a" / "self.jpg").symlink_to("self.jpg")
    (tree / "broken.jpg").symlink_to("nowhere.jpg")
    (tree / "good.jpg").symlink_to("b.jpg")
    (tree / "folder.jpg").symlink_to("a", target_is_directory=True)
    told: list[str] = []
    found = [Path(s.name).name for s in expand([str(tree)], warn=told.append)]
    assert {"self.jpg", "broken.jpg", "good.jpg"} <= set(found)
    assert "folder.jpg" not in found
    assert len(found) == 10
    assert len(told) == 1
    assert "2 links" in told[0]


@posix
@pytest.mark.parametrize("pattern", ["**", "**/*", "**/*.jpg", "[b]/../**/*.jpg", "**/**/*.jpg"])
def test_patterns_and_loops(tmp_path: Path, pattern: str) -> None:
    """`**` follows no links to folders, and gives each file once, in order."""
    for name in ("a/b/2.jpg", "a/b/c/3.jpg", "a/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "b" / "up").symlink_to("..")
    (tmp_path / "a" / "4.jpg").symlink_to("1.jpg")
    given_ = str(tmp_path / "a" / pattern)
    told: list[str] = []
    found = [s.name for s in expand([given_], warn=told.append)]
    assert [os.path.relpath(os.path.realpath(Path(n).parent), tmp_path) for n in found] == [
        "a", "a", "a/b", "a/b/c",
    ]  # fmt: skip
    assert [Path(n).name for n in found] == ["1.jpg", "4.jpg", "2.jpg", "3.jpg"]
    assert any("2 links" in line for line in told)
    assert count([given_], never) == 4


@posix
def test_patterns_are_those_of_the_standard_library(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without links, the same paths as `glob` finds; other files and hidden ones, too."""
    monkeypatch.chdir(tree)
    (tree / ".hidden").mkdir()
    (tree / ".hidden" / ".x.jpg").touch()
    for pattern in (
        "*", "**", "**/", "*/", "a*/", "**/*", "**/*.*", "a/**", "a/**/", "a/**/er/*", ".*", ".*/*",
        ".*/.*", "[ab]*", "?.jpg", "*/deep", "*/none", "**/deep/**", "**/deep/**/*.webp", "a/**/**",
        "./**/*.gif", f"{tree}/**", f"{tree}/*/*.tif", f"{tree}/**/d*",
    ):  # fmt: skip
        wanted = set(glob.glob(pattern, recursive=True))  # noqa: PTH207
        links: set[str] = set()
        assert set(inputs._glob(pattern, links)) == wanted, pattern
        assert not links
        folders = [n for n in wanted if Path(n).is_dir()]
        images = {s.name for n in folders for s in inputs.below(n, warn=lambda _: None)}
        images |= {n for n in wanted if not Path(n).is_dir()}
        found = names(pattern) if wanted else []
        assert sorted(found) == sorted(images), pattern


@posix
def test_a_folder_that_may_not_be_opened(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is answered with its error, in its place."""
    real = os.scandir

    def guarded(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return real(path)  # type: ignore[return-value]

    monkeypatch.setattr(os, "scandir", guarded)
    shut = [s for s in expand([str(tree)], warn=lambda _: None) if s.error]
    assert [Path(s.name).name for s in shut] == ["deep"]
    assert "no permission" in shut[0].error


# --- lists -----------------------------------------------------------------------------------


class Dribble(io.RawIOBase):
    """A stream that gives so many bytes at a time."""

    def __init__(self, data: bytes, size: int) -> None:
        self.data = io.BytesIO(data)
        self.size = size

    def read(self, n: int = -1) -> bytes:
        """At most `size` of them."""
        return self.data.read(self.size)


def listed(data: bytes, size: int = 1 << 16) -> list[str]:
    """Names in a list."""
    return [s.name for s in read_list(Dribble(data, size))]  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
def test_lines(size: int) -> None:
    """Line ends of either kind, empty lines, no last line end, a byte order mark, any script."""
    data = "\ufeffa.jpg\r\n\nмеланома 1.jpg\nc d.jpg".encode()
    assert listed(data if size > 1 else data[3:], size) == ["a.jpg", "меланома 1.jpg", "c d.jpg"]


def test_null_bytes() -> None:
    """Names with line ends, and bytes that are no UTF-8."""
    raw = [b"a\nb.jpg", b"\xff\xfe.jpg", b" "]
    assert [os.fsencode(n) for n in listed(b"\0".join(raw) + b"\0")] == raw


@given(st.lists(st.text(st.characters(exclude_characters="\0\r\n", exclude_categories=["Cs"]),
                        min_size=1, max_size=12), max_size=9), st.integers(1, 9))  # fmt: skip
def test_lists_round_trip(wanted: list[str], size: int) -> None:
    """However the stream is cut."""
    raw = [n.removeprefix("\ufeff") or "x" for n in wanted]
    assert listed("\n".join(raw).encode(), size) == raw


def test_no_list() -> None:
    """Endless lines are no names; they are not gathered in memory."""
    with pytest.raises(DataError, match="65,536"):
        listed(b"x" * 1_000_000)


@pytest.mark.parametrize("size", [1, 3, 1 << 16])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_list_in_utf_16(encoding: str, size: int) -> None:
    """As PowerShell's `>` writes it: said, not read letter by letter."""
    data = "\ufeffa.jpg\r\nмеланома.jpg\r\n".encode(encoding)
    for read in (read_list, read_stdin):
        with pytest.raises(DataError, match="the list is UTF-16"):
            list(read(Dribble(data, size)))  # type: ignore[arg-type]
    raw = [b"\xff\xfe.jpg", b"\xfe\xff.jpg"]
    assert [os.fsencode(n) for n in listed(b"\n".join(raw), size)] == raw


@pytest.mark.parametrize(
    "head",
    [
        b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nstream\nx\x9c\x03\x00\x00\x1f",
        b"\0\0\0$ftypheic\0\0\0\0mif1heic", b"\0\0\0\x18ftypheic", b"PK\x03\x04\x14\0\x06\0\x08\0",
    ],
)  # fmt: skip
def test_neither_an_image_nor_a_list(head: bytes) -> None:
    """Said once, not for each piece that would be a name."""
    with pytest.raises(DataError, match="neither an image that can be read nor a list"):
        list(read_stdin(Dribble(head, 1 << 16)))  # type: ignore[arg-type]


@posix
def test_a_list_of_odd_names(tmp_path: Path) -> None:
    """Control characters and all, where there is such a file."""
    name = tmp_path / "a\x01\x1b[2J.png"
    name.touch()
    data = os.fsencode(name) + b"\n"
    assert [s.name for s in read_stdin(Dribble(data, 1 << 16))] == [str(name)]  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 50, 1 << 16])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF"])
def test_an_image_on_stdin(kind: str, size: int) -> None:
    """Told from a list by its first bytes, however they come."""
    data = encode(noise(40, 30), kind)
    assert looks_like_image(data)
    assert list(read_stdin(Dribble(data, size))) == [Source("-", data)]  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [b"BMW/a.jpg\n", b"II.jpg\n", b"RIFF.jpg\nx.jpg", b"a\0b\0", b""])
def test_a_list_on_stdin(text: bytes) -> None:
    """Names that begin as signatures do."""
    found = [s.name.encode() for s in read_stdin(Dribble(text, 3))]  # type: ignore[arg-type]
    assert found == text.replace(b"\0", b"\n").split()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("меланома.jpg", "меланома.jpg"),
        ("黒色腫 1.jpg", "黒色腫 1.jpg"),
        ("می\u200cخواهم.jpg", "می\u200cخواهم.jpg"),
        ("a\nb\x1b[2J.jpg", "a\\nb\\x1b[2J.jpg"),
        ("\udcff.jpg", "\\udcff.jpg"),
        ("a\u202egpj.exe", "a\\u202egpj.exe"),
    ],
)
def test_names_to_print(name: str, wanted: str) -> None:
    """Any script as it is; what would forge lines or drive a terminal is escaped."""
    assert shown(name) == wanted
    assert sys.getsizeof(shown(name))
