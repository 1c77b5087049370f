"""What is to be classified: files, folders, globs and lists, one name at a time.

Everything is a generator: a million files cost no more memory than a hundred thousand names.
"""

from __future__ import annotations

import fnmatch
import glob
import heapq
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from biigma_cli.data.magic import HEAD, NEEDED, SUFFIXES, looks_like_image
from biigma_cli.data.preprocess import READABLE
from biigma_cli.data.preprocess import shown as shown
from biigma_cli.errors import DataError, UsageError
from biigma_cli.storage import is_folder, is_there, write_error

# Pictures that nothing here reads: in a folder they are passed over, and named.
_FOREIGN = (
    ".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".dng", ".cr2", ".cr3",
    ".nef", ".arw", ".orf", ".rw2", ".raf", ".psd", ".pdf", ".svg", ".ppm", ".pgm", ".pnm", ".pcx",
    ".tga", ".ico", ".icns",
)  # fmt: skip

#: Largest image taken from standard input, in bytes.
MAX_STDIN = 512 << 20
# No file's name is longer than a path may be; what is longer is no list.
_MAX_NAME = 1 << 16
# Byte order marks, little end and big end first.
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
# What no name has that people give, but every PDF, HEIC or archive soon.
_CONTROL = re.compile(rb"\A\0|[\x01-\x08\x0e-\x1a\x1c-\x1f]")
# Names of one folder sorted in memory; more go through temporary files.
_RUN = 100_000


class Source(NamedTuple):
    """One thing to answer for.

    Attributes:
        name: as the user gave it, or the path below the folder that was given.
        content: the path, or the bytes themselves.
        error: why it cannot even be tried, such as a folder that may not be opened.
    """

    name: str
    content: Path | bytes
    error: str = ""


def expand(
    arguments: Sequence[str], *, warn: Callable[[str], None], skip: str = ""
) -> Iterator[Source]:
    """Files as given, folders as the images below them, patterns as what they match.

    A folder's images are the files with an image's ending, and those without any that begin as an
    image does; `warn` is told of pictures that cannot be read. They come in the order of their
    names, depth first. Links to files are followed,
    links to folders below an argument are not, so that no loop can form; `warn` is told. Nor does
    `**` follow them, or what stands behind it. However often a pattern matches a file, it comes
    once. A file that is not there comes all the same: it is answered with an error. Of a folder
    `skip` nothing comes.

    Raises:
        DataError: a folder without an image, or a pattern that matches nothing; at once, not
            at its turn.
        UsageError: an empty name, at once, too.
    """
    for argument in arguments:
        _check(argument, skip)
    return _expand(arguments, warn, skip)


def _expand(arguments: Sequence[str], warn: Callable[[str], None], skip: str) -> Iterator[Source]:
    for argument in arguments:
        links: set[str] = set()
        for place in _places(argument, links):
            if within(place, skip):
                continue
            if is_folder(place):
                yield from below(place, warn=warn, skip=skip)
            else:
                yield Source(place, Path(place))
        if links:
            warn(f"{shown(argument)}: {len(links)} links to folders were not followed")


def _places(argument: str, links: set[str]) -> Iterator[str]:
    """What an argument stands for, in order: files, and folders that are to be looked through.

    As the shell would have done it, but for what lies in a folder that has come already.
    """
    if not _is_pattern(argument):
        yield argument
        return
    last = ""
    folders: set[str] = set()
    # In this order a folder comes before all that is below it.
    for match in _sorted_names(_glob(argument, links)):
        if match == last:
            continue
        last = match
        folder = is_folder(match)
        if _lies_in(match, folders) and (folder or _is_image(match)):
            continue
        if folder:
            folders.add(_join(match, ""))
        yield match


def _lies_in(path: str, folders: set[str]) -> bool:
    """Whether a path is below one of some folders, whose names end in a separator."""
    while folders and (parent := os.path.dirname(path)) not in ("", path):  # noqa: PTH120
        if _join(parent, "") in folders:
            return True
        path = parent
    return False


def within(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies below it, links aside; never where that is ""."""
    if not folder or "\0" in path:
        return False
    top = os.path.abspath(folder)  # noqa: PTH100 - unlike Path's, takes `..` out
    own = os.path.abspath(path)  # noqa: PTH100
    return own == top or own.startswith(_join(top, ""))


def below(folder: str, *, warn: Callable[[str], None], skip: str = "") -> Iterator[Source]:
    """The images below a folder. One that may not be opened is a `Source` with its error."""
    links = 0
    foreign: Counter[str] = Counter()
    stack: list[Iterator[str]] = []

    def passed(suffix: str) -> None:
        foreign[suffix] += 1

    path = [folder]
    try:
        stack.append(_listed(folder, passed))
    except OSError as error:
        yield _unopened(folder, error)
        return
    while stack:
        name = next(stack[-1], None)
        if name is None:
            stack.pop()
            path.pop()
            continue
        if name.endswith(_LINK):
            links += 1
            continue
        full = _join(path[-1], name.removesuffix(_FOLDER))
        if not name.endswith(_FOLDER):
            yield Source(full, Path(full))
            continue
        if within(full, skip):
            continue
        try:
            stack.append(_listed(full, passed))
            path.append(full)
        except OSError as error:
            yield _unopened(full, error)
    if links:
        warn(f"{shown(folder)}: {links} links to folders were not followed")
    if foreign:
        kinds = ", ".join(f"{n} {suffix}" for suffix, n in sorted(foreign.items()))
        warn(
            f"{shown(folder)}: passed over, as nothing here reads them: {kinds}; save them as JPEG"
        )


def count(arguments: Sequence[str], stop: Callable[[], bool], skip: str = "") -> int | None:
    """How many `expand` would give, without their order; None where `stop` says so first."""
    total = 0
    for argument in arguments:
        for place in _places(argument, set()):
            if stop():
                return None
            if within(place, skip):
                continue
            if not is_folder(place):
                total += 1
                continue
            for _ in _any_below(place, stop, skip):
                total += 1
            if stop():
                return None
    return total


def read_list(file: BinaryIO, *, head: bytes = b"") -> Iterator[Source]:
    """Files named in a stream, one a line, or each ended by a null byte.

    Null bytes are expected where the first piece that can be read holds one (`find -print0`).
    Empty lines are passed over. Names are taken as they are: no folders, no patterns.

    Args:
        file: unbuffered, so that names are answered as they come.
        head: what was read of it already.

    Raises:
        DataError: a name longer than any can be, or names in UTF-16.
    """
    rest = head or _some(file)
    while 0 < len(rest) < 4 and any(m.startswith(rest[:2]) for m in _UTF_16):
        if not (more := _some(file)):
            break
        rest += more
    if _is_utf_16(rest):
        raise DataError(
            "the list is UTF-16", fix="save it as UTF-8 (PowerShell: ... | Out-File -Encoding utf8)"
        )
    rest = rest.removeprefix(b"\xef\xbb\xbf")
    separator = b"\0" if b"\0" in rest else b"\n"
    while True:
        *names, rest = rest.split(separator)
        for name in names:
            yield from _named(name, separator)
        if len(rest) > _MAX_NAME:
            raise DataError(
                "the list of files has a name of more than 65,536 bytes",
                fix="give names of files, one a line or each ended by a null byte",
            )
        more = _some(file)
        if not more:
            yield from _named(rest, separator)
            return
        rest += more


def read_stdin(file: BinaryIO) -> Iterator[Source]:
    """What `-` stands for: one image where the bytes begin as one does, else a list of files.

    Raises:
        DataError: it is neither, or as of `read_list`.
    """
    head = _head(file)
    if not looks_like_image(head):
        if _is_binary(head):
            raise DataError(
                "standard input is neither an image that can be read nor a list of names",
                fix=f"give it a {READABLE} file, or names of files",
            )
        yield from read_list(file, head=head)
        return
    pieces = bytearray(head)
    while more := _some(file):
        pieces += more
        if len(pieces) > MAX_STDIN:
            yield Source("-", b"", f"the image on stdin is larger than {MAX_STDIN >> 20} MiB")
            return
    yield Source("-", bytes(pieces))


def read_names(file: BinaryIO, where: str) -> Iterator[Source]:
    """A list that is known to be one, named `where`.

    Raises:
        DataError: it is something else, or as of `read_list`.
    """
    head = _head(file)
    if looks_like_image(head):
        raise DataError(
            f"{where} is an image, not a list of names", fix="leave --from-list out, and name it"
        )
    if _is_binary(head):
        raise DataError(
            f"{where} holds control characters, so it is no list of names",
            fix="give names of files, one a line or each ended by a null byte",
        )
    yield from read_list(file, head=head)


def _head(file: BinaryIO) -> bytes:
    """So much that an image can be told; a pipe may give fewer bytes at first."""
    head = b""
    while _undecided(head) and (more := _some(file)):
        head += more
    return head


def _is_binary(head: bytes) -> bool:
    """Whether bytes begin as no list does."""
    return bool(_CONTROL.search(head)) and not _is_utf_16(head) and not _names_a_file(head)


def _is_utf_16(head: bytes) -> bool:
    # Without the null, which ASCII has in it there, it could be a name.
    return head[:2] in _UTF_16 and b"\0" in head[2:4]


def _names_a_file(head: bytes) -> bool:
    """Whether a list begins so: odd names can be, but then they are there."""
    first = re.split(rb"[\0\n]", head, maxsplit=1)[0].removesuffix(b"\r")
    return is_there(os.fsdecode(first))


def _undecided(head: bytes) -> bool:
    return any(
        len(head) < need and magic.startswith(head[: len(magic)]) for magic, need in NEEDED.items()
    )


def _some(file: BinaryIO) -> bytes:
    """What is there now, at most 64 KiB; empty at the end."""
    read = getattr(file, "read1", file.read)
    return read(1 << 16) or b""


def _named(name: bytes, separator: bytes) -> Iterator[Source]:
    if separator == b"\n":
        name = name.removesuffix(b"\r")
    if name:
        text = os.fsdecode(name)
        yield Source(text, Path(text))


# Marks behind a name: a null byte sorts before all that a name can go on with, so that folders and
# files come in the order of their names, and no name can hold one.
_FOLDER = "\0"
_LINK = "\0l"


def _scan(folder: str, passed: Callable[[str], None] = lambda _: None) -> Iterator[str]:
    """Names of images, folders and links to folders in a folder, marked, in no order.

    `passed` is told the ending of each picture that cannot be read.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield entry.name + _FOLDER
                continue
            if entry.is_symlink() and _leads_to_folder(entry):
                yield entry.name + _LINK
            elif _is_image(_join(folder, entry.name)):
                yield entry.name
            elif not entry.name.startswith(".") and entry.name.lower().endswith(_FOREIGN):
                passed(Path(entry.name).suffix.lower())


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):  # a loop of links
        return entry.is_dir()
    return False


def _listed(folder: str, passed: Callable[[str], None]) -> Iterator[str]:
    return _sorted_names(_scan(folder, passed))


def _sorted_names(names: Iterable[str]) -> Iterator[str]:
    """Names in order; more than memory should hold are sorted in temporary files."""
    run: list[str] = []
    spilled: list[Iterator[str]] = []
    for name in names:
        run.append(name)
        if len(run) >= _RUN:
            run.sort()
            spilled.append(_spill(run))
            run = []
    run.sort()
    return heapq.merge(run, *spilled) if spilled else iter(run)


def _spill(run: list[str]) -> Iterator[str]:
    """Sorted names through a temporary file."""
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as its reader
        for name in run:
            raw = os.fsencode(name)
            file.write(len(raw).to_bytes(4, "big") + raw)
        file.seek(0)
    except OSError as error:
        raise write_error(
            "the temporary folder", error, full="free some space, or set TMPDIR",
            elsewhere="set TMPDIR to a folder you may write to",
        ) from error  # fmt: skip
    return _spilled(file)


def _spilled(file: BinaryIO) -> Iterator[str]:
    with file:
        while size := file.read(4):
            yield os.fsdecode(file.read(int.from_bytes(size, "big")))


def _is_image(path: str) -> bool:
    """Whether a file in a folder counts as an image: by its ending, else by how it begins."""
    name = os.path.basename(path)  # noqa: PTH119
    suffix = Path(name).suffix.lower()
    if suffix in SUFFIXES:
        # `._NAME` is what macOS leaves beside a file on foreign disks.
        return not name.startswith("._")
    # Archives of DICOM name files IM000001, or by a UID, which ends in a number.
    if name.startswith(".") or (suffix and not suffix[1:].isdecimal()):
        return False
    with suppress(OSError):
        if Path(path).is_file():  # a pipe would never end
            with open(path, "rb") as file:  # noqa: PTH123
                return looks_like_image(file.read(HEAD))
    return False


def _join(folder: str, name: str) -> str:
    return os.path.join(folder, name)  # noqa: PTH118 - unlike Path, keeps what the user wrote


def _glob(pattern: str, links: set[str], *, folders: bool = False) -> Iterator[str]:
    """Paths that match, in no order and some of them twice; with `folders`, only folders.

    As `glob.iglob`, but that `**` follows no links to folders, nor do the wildcards behind it:
    they are gathered in `links`.
    """
    head, tail = os.path.split(pattern)
    if not glob.has_magic(pattern):
        if os.path.lexists(pattern) and (tail or is_folder(head)):
            yield pattern
        return
    if not tail:
        yield from (_join(top, "") for top in _glob(head, links, folders=True) if top)
        return
    tops: Iterable[str] = [head]
    if head != pattern and glob.has_magic(head):
        tops = _glob(head, links, folders=True)
    behind = "**" in Path(head).parts
    for top in tops:
        if tail == "**":
            yield from _walk(top, links, folders=folders)
        elif not glob.has_magic(tail):
            path = _join(top, tail)
            if is_folder(path) if folders else os.path.lexists(path):
                yield path
        else:
            for entry in _visible(top, hidden=tail.startswith(".")):
                if not fnmatch.fnmatch(entry.name, tail):
                    continue
                path = _join(top, entry.name)
                if behind and entry.is_symlink() and _leads_to_folder(entry):
                    links.add(path)
                elif not folders or _leads_to_folder(entry):
                    yield path


def _walk(top: str, links: set[str], *, folders: bool) -> Iterator[str]:
    """A folder and all that is in it, or only the folders; "" is the current one."""
    waiting = [top]
    while waiting:
        here = waiting.pop()
        if folders:
            yield here
        elif here:
            yield here if here != top else _join(here, "")
        for entry in _visible(here):
            path = _join(here, entry.name)
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            elif entry.is_symlink() and _leads_to_folder(entry):
                links.add(path)
            elif not folders:
                yield path


def _visible(folder: str, *, hidden: bool = False) -> Iterator[os.DirEntry[str]]:
    """What is in a folder, none where it cannot be opened; hidden names only where asked for."""
    with suppress(OSError), os.scandir(folder or os.curdir) as entries:
        for entry in entries:
            if hidden or not entry.name.startswith("."):
                yield entry


def _is_pattern(argument: str) -> bool:
    return glob.has_magic(argument) and not os.path.lexists(argument)


def _check(argument: str, skip: str) -> None:
    """Raise where nothing can come of an argument."""
    if not argument:  # a shell's variable that was never set
        raise UsageError("the name of an image is empty", fix="name a file or a folder")
    if "\0" in argument:
        return
    if is_folder(argument):
        foreign: set[str] = set()
        if not any(True for _ in _any_below(argument, skip=skip, passed=foreign.add)):
            kinds = f" that can be read; there are {', '.join(sorted(foreign))}" if foreign else ""
            raise DataError(
                f"no image in the folder {shown(argument)}{kinds}",
                fix="save them as JPEG"
                if foreign
                else f"looked for {', '.join(sorted(SUFFIXES))}, also in folders below it",
            )
    elif _is_pattern(argument) and next(_glob(argument, set()), None) is None:
        raise DataError(
            f"nothing matches {shown(argument)}", fix="check the pattern; ** goes into folders"
        )


def _any_below(
    folder: str,
    stop: Callable[[], bool] = lambda: False,
    skip: str = "",
    passed: Callable[[str], None] = lambda _: None,
) -> Iterator[str]:
    """Images below a folder, and folders that may not be opened, in no order, until `stop`."""
    folders = [folder]
    while folders and not stop():
        here = folders.pop()
        try:
            for name in _scan(here, passed):
                if name.endswith(_FOLDER):
                    full = _join(here, name.removesuffix(_FOLDER))
                    if not within(full, skip):
                        folders.append(full)
                elif not name.endswith(_LINK):
                    yield name
        except OSError:
            yield here


def _unopened(folder: str, error: OSError) -> Source:
    why = "no permission to open" if isinstance(error, PermissionError) else "cannot open"
    tail = "" if isinstance(error, PermissionError) else f": {error.strerror or error}"
    return Source(folder, Path(folder), f"{why} the folder {shown(folder)}{tail}")
