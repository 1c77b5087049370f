"""The download against a server that misbehaves, processes that are killed, and disks that fill."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import errno
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from biigma_cli.data import fetch, sources
from biigma_cli.data.fetch import Event, Note, Step, download, find_archives, place_archives
from biigma_cli.errors import BiigmaError, DataError, UsageError
from tests.data.hostile_server import (
    EXTRA,
    INPUT,
    MISSING,
    PLACED,
    TRUTH,
    Answer,
    HostileServer,
    make_zip,
    noise,
    remote,
    serving,
    small_set,
)

ROOT = Path(__file__).resolve().parents[2]
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
CAS = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
CONTENTS = small_set()
TOTAL = sum(map(len, CONTENTS.values()))


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No mirror, proxy or CA of the machine's; waits as short as can be."""
    for name in (*PROXIES, *CAS, "BIIGMA_MIRROR", "BIIGMA_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(fetch, "BACKOFF_S", 0.001)


@pytest.fixture
def server() -> Iterator[HostileServer]:
    """A server of each test's own, with the small set on it."""
    with serving(CONTENTS) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the small set goes; not made yet."""
    return tmp_path / "data" / "isic18"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The small set stands for isic18; the fixture's value sets other rows."""

    def rows(*rows: sources.RemoteFile) -> None:
        monkeypatch.setitem(sources.FILES, "isic18", rows)

    rows(*(remote(path, content) for path, content in CONTENTS.items()))
    return rows


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits that were asked for; none is waited."""
    asked: list[float] = []
    monkeypatch.setattr(fetch, "pause", lambda stop, seconds: asked.append(seconds))
    return asked


def fetched(server: HostileServer, folder: Path, **options: Any) -> list[Event]:
    """Download the small set; what was told."""
    events: list[Event] = []
    assert download("isic18", folder, mirror=server.url, on_event=events.append, **options) == (
        folder
    )
    return events


def notes(events: list[Event]) -> str:
    """Their texts, a line each."""
    return "\n".join(e.text for e in events if isinstance(e, Note))


def expected(contents: dict[str, bytes] = CONTENTS) -> dict[str, bytes]:
    """What must lie in the folder, by path, without licence and marker."""
    found = {}
    for path, content in contents.items():
        name = path.rpartition("/")[2]
        if not name.endswith(".zip"):
            found[name] = content
            continue
        stem = name.removesuffix(".zip")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.namelist():
                if not member.endswith("_superpixels.png"):
                    found[f"{stem}/{member.removeprefix(stem + '/')}"] = archive.read(member)
    return found


EXPECTED = expected()
OURS = {"LICENSE.txt", "ATTRIBUTION.txt", "complete.json", ".download.lock"}


def lying(folder: Path) -> dict[str, bytes]:
    """Content of all files below the folder, by path."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def check_whole(folder: Path, contents: dict[str, bytes] = EXPECTED) -> None:
    """Everything in place, right, recorded, and nothing else there."""
    there = lying(folder)
    assert {k: v for k, v in there.items() if k not in OURS} == contents
    assert set(there) - set(contents) <= OURS
    assert "CC BY-NC" in there["LICENSE.txt"].decode()
    assert "10.1038/sdata.2018.161" in there["ATTRIBUTION.txt"].decode()
    stored = json.loads(there["complete.json"])
    recorded = {k: v for e in stored["files"].values() for k, v in e["contents"].items()}
    assert recorded == {k: len(v) for k, v in contents.items()}


def check_nothing_bad(folder: Path) -> None:
    """Whatever bears a final name is whole and right, after whatever happened."""
    there = lying(folder)
    for name, content in there.items():
        if name in EXPECTED:
            assert content == EXPECTED[name], name
    for stem in ("Small_Input", "Small_Extra"):
        if (folder / stem).exists():
            mine = {n for n in EXPECTED if n.startswith(f"{stem}/")}
            assert mine == {n for n in there if n.startswith(f"{stem}/")}
    for path, content in CONTENTS.items():
        name = f"archives/{path.rpartition('/')[2]}"
        if name in there:
            assert there[name] == content
    if "complete.json" in there:
        for entry in json.loads(there["complete.json"])["files"].values():
            for name, size in entry["contents"].items():
                assert len(there[name]) == size


# -- the plain way --------------------------------------------------------------------------------


def test_expected_is_what_the_server_module_says() -> None:
    """The two lists of what is unpacked agree."""
    assert set(EXPECTED) == set(PLACED)


def test_download(server: HostileServer, folder: Path) -> None:
    """Everything lands, recorded with its hash and address; progress reaches its totals."""
    events = fetched(server, folder)
    check_whole(folder)
    entry = json.loads((folder / "complete.json").read_text())["files"]["Small_Input.zip"]
    assert f"sha256:{entry['sha256']}" == entry["expected"]
    assert entry["url"] == f"{server.url}/{INPUT}"
    assert entry["size"] == len(CONTENTS[INPUT])
    assert entry["archive_kept"] is False
    ends = {(e.name, e.phase): e for e in events if isinstance(e, Step)}
    for path, content in CONTENTS.items():
        name = path.rpartition("/")[2]
        for phase in ("download", "verify"):
            assert ends[name, phase].done == ends[name, phase].total == len(content)
    unpacked = sum(len(v) for k, v in EXPECTED.items() if k.startswith("Small_Input/"))
    assert ends["Small_Input.zip", "unpack"].done == unpacked
    assert server.sent.total() == TOTAL


def test_a_second_run_asks_nothing(server: HostileServer, folder: Path) -> None:
    """No request, no event, no write."""
    fetched(server, folder)
    before = (folder / "complete.json").stat().st_mtime_ns
    server.requests.clear()
    assert fetched(server, folder) == []
    assert server.requests == []
    assert (folder / "complete.json").stat().st_mtime_ns == before


def test_parts_add_up(server: HostileServer, folder: Path, small: Callable[..., None]) -> None:
    """A part fetched later does not fetch the first again."""
    rows = [remote(INPUT, CONTENTS[INPUT]), remote(EXTRA, CONTENTS[EXTRA], part="test")]
    small(*rows)
    fetched(server, folder, parts=["train"])
    check_whole(folder, expected({INPUT: CONTENTS[INPUT]}))
    fetched(server, folder)
    assert len(server.seen(f"/{INPUT}")) == 1
    check_whole(folder, expected({p: CONTENTS[p] for p in (INPUT, EXTRA)}))


def test_archives_may_be_kept(server: HostileServer, folder: Path) -> None:
    """And then serve to repair what was lost, without the network."""
    fetched(server, folder, keep_archives=True)
    assert (folder / "archives" / "Small_Input.zip").read_bytes() == CONTENTS[INPUT]
    (folder / "Small_Input" / "ISIC_0000003.jpg").unlink()
    server.requests.clear()
    events = fetched(server, folder, keep_archives=True, offline=True)
    assert "1 of its files are missing or changed" in notes(events)
    assert server.requests == []
    assert not (folder / "archives" / "Small_Input.zip.part.json").exists()
    assert (folder / "Small_Input" / "ISIC_0000003.jpg").is_file()


@pytest.mark.parametrize("damage", ["missing", "short", "marker", "folder"])
def test_damage_is_repaired(server: HostileServer, folder: Path, damage: str) -> None:
    """Files lost or changed in size, a damaged marker, a folder gone: only that is done again."""
    fetched(server, folder)
    victim = folder / "Small_Input" / "ISIC_0000003.jpg"
    if damage == "missing":
        victim.unlink()
    elif damage == "short":
        victim.write_bytes(b"x")
    elif damage == "folder":
        shutil.rmtree(folder / "Small_Input")
    else:
        (folder / "complete.json").write_text('{"format": "biigma-download-1", "files": {"Sm')
    server.requests.clear()
    fetched(server, folder)
    check_whole(folder)
    assert len(server.requests) == (3 if damage == "marker" else 1)


# -- a bad line and a bad server ------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_line_that_drops(server: HostileServer, folder: Path, seed: int) -> None:
    """Cut at random bytes, many more times than attempts are allowed: each byte comes once."""
    chance = random.Random(seed)
    for path in (INPUT, EXTRA):
        server.plan[f"/{path}"] = [
            Answer(drop_after=chance.randrange(1, 60_000)) for _ in range(3 * fetch.ATTEMPTS)
        ]
    fetched(server, folder)
    check_whole(folder)
    asked = server.seen(f"/{INPUT}")
    assert len(asked) > 2 * fetch.ATTEMPTS
    assert all("If-Range" in r.headers and "Range" in r.headers for r in asked[1:])
    # What was under way when the line was cut may be lost.
    assert server.sent.total() < 1.3 * TOTAL


def test_a_line_that_brings_nothing(server: HostileServer, folder: Path) -> None:
    """Six attempts without a new byte, and it ends with what was kept."""
    server.default[f"/{INPUT}"] = Answer(drop_after=0)
    server.plan[f"/{INPUT}"] = [Answer(drop_after=50_000)]
    with pytest.raises(DataError, match="6 attempts without progress") as caught:
        fetched(server, folder, parallel=1)
    assert "--from DIR" in caught.value.fix
    part = folder / "archives" / "Small_Input.zip.part"
    assert CONTENTS[INPUT].startswith(part.read_bytes())
    assert part.stat().st_size > 0
    assert not (folder / "Small_Input").exists()
    del server.default[f"/{INPUT}"]
    fetched(server, folder)
    check_whole(folder)
    assert server.seen(f"/{INPUT}")[-1].headers["Range"].startswith("bytes=")


def test_a_server_without_ranges(server: HostileServer, folder: Path) -> None:
    """Starts from zero each time; ends where it never gets further, and is right where it does."""
    server.plan[f"/{INPUT}"] = [
        Answer(ignore_range=True, drop_after=n) for n in (100_000, 50_000, 70_000)
    ] + [Answer(ignore_range=True)]
    fetched(server, folder)
    check_whole(folder)


def test_a_server_without_ranges_that_always_drops(server: HostileServer, folder: Path) -> None:
    """Bytes that come again and again are no progress."""
    server.default[f"/{INPUT}"] = Answer(ignore_range=True, drop_after=100_000)
    with pytest.raises(DataError, match="6 attempts without progress"):
        fetched(server, folder)
    assert len(server.seen(f"/{INPUT}")) <= 2 * fetch.ATTEMPTS + 1


def test_the_file_changes_between_attempts(server: HostileServer, folder: Path) -> None:
    """If-Range makes it start from zero; no mixture of the two."""
    old = noise(len(CONTENTS[INPUT]), 7)
    server.plan[f"/{INPUT}"] = [
        Answer(body=old, drop_after=200_000, headers={"ETag": '"old"'}),
    ]
    fetched(server, folder)
    check_whole(folder)
    _, second = server.seen(f"/{INPUT}")
    assert second.headers["If-Range"] == '"old"'
    assert second.sent == len(CONTENTS[INPUT])


def test_a_change_the_server_hides(server: HostileServer, folder: Path) -> None:
    """Same ETag, other bytes: the checksum tells, and one clean start mends it."""
    server.etags[f"/{INPUT}"] = '"same"'
    old = noise(len(CONTENTS[INPUT]), 7)
    server.plan[f"/{INPUT}"] = [Answer(body=old, drop_after=200_000)]
    events = fetched(server, folder)
    assert "starting again from zero" in notes(events)
    check_whole(folder)


def test_no_version_and_no_checksum(
    server: HostileServer, folder: Path, small: Callable[..., None]
) -> None:
    """Pieces that nothing vouches for are not put together."""
    small(remote(INPUT, CONTENTS[INPUT], checksum="", size=None))
    server.etags[f"/{INPUT}"] = ""
    server.plan[f"/{INPUT}"] = [Answer(drop_after=100_000)]
    fetched(server, folder)
    assert "Range" not in server.seen(f"/{INPUT}")[-1].headers
    check_whole(folder, expected({INPUT: CONTENTS[INPUT]}))


@pytest.mark.parametrize(
    "content_range",
    [
        "bytes 0-10/11",
        "bytes 5-",
        "",
        "items 1-2/3",
        "bytes {o}-{e}/999999999",
        "bytes {o}-{o}/{t}",
    ],
)
def test_a_piece_that_does_not_fit(server: HostileServer, folder: Path, content_range: str) -> None:
    """A 206 that is not what was asked for starts the file from zero."""
    total = len(CONTENTS[INPUT])
    text = content_range.format(o=100_000, e=total - 1, t=total)
    server.plan[f"/{INPUT}"] = [
        Answer(drop_after=100_000),
        Answer(status=206, body=noise(1000, 3), headers={"Content-Range": text}),
    ]
    # Exactly what was sent must have come, for the offset above to be right.
    events = fetched(server, folder, parallel=1)
    assert "starting from zero" in notes(events)
    check_whole(folder)


@pytest.mark.parametrize("left", ["whole", "too long"])
def test_a_part_that_needs_no_more(server: HostileServer, folder: Path, left: str) -> None:
    """A whole part is used without asking; one that is too long is started again."""
    part = folder / "archives" / "Small_Input.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENTS[INPUT] + (b"" if left == "whole" else b"more"))
    side = {"url": f"{server.url}/{INPUT}", "etag": '"x"', "total": len(CONTENTS[INPUT])}
    fetch._sidecar_path(part).write_text(json.dumps(side))
    fetched(server, folder)
    check_whole(folder)
    assert len(server.seen(f"/{INPUT}")) == (0 if left == "whole" else 1)


def test_416_on_a_whole_part(server: HostileServer, folder: Path) -> None:
    """A part that is whole, which its sidecar does not know."""
    part = folder / "archives" / "Small_Input.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENTS[INPUT])
    server.etags[f"/{INPUT}"] = '"x"'
    fetch._sidecar_path(part).write_text(
        json.dumps({"url": f"{server.url}/{INPUT}", "etag": '"x"'})
    )
    fetched(server, folder)
    check_whole(folder)
    assert [r.sent for r in server.seen(f"/{INPUT}")] == [0]


def test_416_for_no_reason(server: HostileServer, folder: Path) -> None:
    """Starts from zero."""
    server.plan[f"/{INPUT}"] = [Answer(drop_after=100_000), Answer(status=416, body=b"")]
    fetched(server, folder)
    check_whole(folder)


def test_without_content_length(server: HostileServer, folder: Path) -> None:
    """A chunked answer is whole at its last chunk, and known to be cut without one."""
    server.plan[f"/{INPUT}"] = [Answer(chunked=True, drop_after=100_000), Answer(chunked=True)]
    fetched(server, folder)
    check_whole(folder)


def test_retry_after(server: HostileServer, folder: Path, pauses: list[float]) -> None:
    """Seconds, an HTTP date, and more than anybody wants to wait; 500s back off in between."""
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=100)
    server.plan[f"/{TRUTH}"] = [
        Answer(status=503, body=b"", headers={"Retry-After": "7"}),
        Answer(status=429, body=b"", headers={"Retry-After": email.utils.format_datetime(soon)}),
        Answer(status=503, body=b"", headers={"Retry-After": "86400"}),
        Answer(status=500, body=b""),
        Answer(status=502, body=b"", headers={"Retry-After": "never"}),
    ]
    events = fetched(server, folder)
    check_whole(folder)
    assert pauses[0] == 7
    assert 80 < pauses[1] <= 100
    assert pauses[2] == fetch.RETRY_AFTER_CAP_S
    assert 0 < pauses[3] <= 0.008
    assert 0 < pauses[4] <= 0.016
    assert "503 Service Unavailable; trying again in 7 s" in notes(events)


def test_back_off_grows(server: HostileServer, folder: Path, pauses: list[float]) -> None:
    """It doubles, with jitter, and ends after the attempts."""
    server.default[f"/{TRUTH}"] = Answer(status=500, body=b"")
    with pytest.raises(DataError, match="500 Internal Server Error"):
        fetched(server, folder, parallel=1)
    assert len(pauses) == fetch.ATTEMPTS - 1
    for i, seconds in enumerate(pauses):
        assert 0.5 * 0.001 * 2**i <= seconds <= 0.001 * 2**i


@pytest.mark.parametrize("bad", [MISSING, Answer(status=403, body=b"")])
def test_the_next_address(
    server: HostileServer, folder: Path, monkeypatch: pytest.MonkeyPatch, bad: Answer
) -> None:
    """Where the first has not the file, the second is asked at once."""
    with serving({}) as other:
        monkeypatch.setattr(sources, "HOSTS", (other.url, server.url))
        other.default = {f"/{path}": bad for path in CONTENTS}
        events: list[Event] = []
        download("isic18", folder, on_event=events.append)
        assert len(other.requests) == 3
    check_whole(folder)
    assert "trying the next address" in notes(events)


def test_the_next_address_goes_on(
    server: HostileServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a checksum to judge by, the second goes on where the first broke down."""
    with serving(CONTENTS) as other:
        monkeypatch.setattr(sources, "HOSTS", (other.url, server.url))
        other.plan[f"/{INPUT}"] = [Answer(drop_after=300_000), MISSING]
        download("isic18", folder)
    check_whole(folder)
    (request,) = server.seen(f"/{INPUT}")
    assert request.headers["Range"] == "bytes=300000-"
    assert "If-Range" not in request.headers


def test_no_address_has_it(
    server: HostileServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is named with its reason."""
    with serving({}) as other:
        monkeypatch.setattr(sources, "HOSTS", (other.url, server.url))
        server.default[f"/{TRUTH}"] = Answer(status=403, body=b"")
        with pytest.raises(DataError) as caught:
            download("isic18", folder)
    assert caught.value.exit_code == 3
    assert f"{server.url}/{TRUTH}: the server answered 403" in caught.value.message
    assert "the server answered 404" in caught.value.message
    assert not (folder / "Small_Truth.csv").exists()


def test_redirects(server: HostileServer, folder: Path) -> None:
    """Followed; a loop ends."""
    server.files["/elsewhere/x.zip"] = CONTENTS[INPUT]
    server.plan[f"/{INPUT}"] = [
        Answer(status=302, body=b"", headers={"Location": "/elsewhere/x.zip"})
    ]
    fetched(server, folder)
    check_whole(folder)


def test_a_circle_of_redirects(server: HostileServer, folder: Path) -> None:
    """One message."""
    server.default[f"/{INPUT}"] = Answer(status=302, body=b"", headers={"Location": f"/{INPUT}"})
    with pytest.raises(DataError, match="redirects"):
        fetched(server, folder)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer(body=b"<html>log in", headers={"Content-Type": "text/html"}), "web page"),
        (Answer(headers={"Content-Encoding": "gzip"}), "re-encoded"),
        (Answer(declare=100_000), "offers 100000 bytes, expected"),
    ],
)
def test_not_the_file(server: HostileServer, folder: Path, answer: Answer, why: str) -> None:
    """A log-in page, a meddling proxy, another size: said before anything is stored."""
    server.default[f"/{INPUT}"] = answer
    with pytest.raises(DataError, match=why):
        fetched(server, folder)
    check_nothing_bad(folder)
    assert not (folder / "archives" / "Small_Input.zip.part").exists()


# -- bytes that are not what they should be -------------------------------------------------------


def test_wrong_bytes(server: HostileServer, folder: Path) -> None:
    """Both values are shown, nothing is left, and the next run may succeed."""
    wrong = noise(len(CONTENTS[INPUT]), 5)
    server.plan[f"/{INPUT}"] = [Answer(body=wrong)]
    with pytest.raises(DataError) as caught:
        fetched(server, folder, parallel=1, accept_checksum=True)
    row = remote(INPUT, CONTENTS[INPUT])
    assert row.checksum.removeprefix("sha256:") in caught.value.message
    assert remote(INPUT, wrong).checksum.removeprefix("sha256:") in caught.value.message
    assert "--accept-checksum" not in caught.value.message + caught.value.fix
    assert not list(folder.glob("archives/Small_Input.zip*[!n]"))
    check_nothing_bad(folder)
    fetched(server, folder)
    check_whole(folder)


def test_a_checksum_of_a_single_source(
    server: HostileServer, folder: Path, small: Callable[..., None]
) -> None:
    """Refused by default, saying how to accept it; accepted with a warning that shows both."""
    row = remote(INPUT, CONTENTS[INPUT], checksum="md5:" + "0" * 32, single_source=True)
    small(row)
    with pytest.raises(DataError, match="single source") as caught:
        fetched(server, folder)
    assert "--accept-checksum" in caught.value.fix
    assert "expected 00000000000000000000000000000000, got" in caught.value.message
    check_nothing_bad(folder)
    events = fetched(server, folder, accept_checksum=True)
    (warning,) = [e for e in events if isinstance(e, Note) and e.warning]
    assert warning.name == "Small_Input.zip"
    assert "expected 00000000000000000000000000000000, got" in warning.text
    check_whole(folder, expected({INPUT: CONTENTS[INPUT]}))


@pytest.mark.parametrize("kind", ["truncated", "escape", "crc", "page"])
def test_a_bad_zip_without_checksum(
    server: HostileServer, folder: Path, small: Callable[..., None], kind: str
) -> None:
    """Nothing vouches for it but itself: refused, removed, and fetched afresh the next time."""
    good = CONTENTS[INPUT]
    middle = len(good) // 2
    bad = {
        "truncated": good[:-100],
        "escape": make_zip({"../../escaped.jpg": b"evil"}),
        "crc": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
        "page": b"please log in",
    }[kind]
    small(remote(INPUT, good, checksum="", size=None))
    server.plan[f"/{INPUT}"] = [Answer(body=bad)]
    with pytest.raises(DataError, match=r"Small_Input\.zip"):
        fetched(server, folder)
    assert not list(folder.parent.parent.rglob("escaped.jpg"))
    assert not (folder / "Small_Input").exists()
    assert not list(folder.glob("archives/*.zip"))
    assert not list(folder.glob("archives/*.part"))
    fetched(server, folder)
    check_whole(folder, expected({INPUT: good}))


def test_a_table_without_checksum(
    server: HostileServer, folder: Path, small: Callable[..., None]
) -> None:
    """A page in its place is refused, removed, and the table fetched the next time."""
    small(remote(TRUTH, CONTENTS[TRUTH], checksum="", size=None))
    server.plan[f"/{TRUTH}"] = [Answer(body=b"Service in maintenance, temporarily\n")]
    with pytest.raises(DataError, match="no table of images: it begins with 'Service in"):
        fetched(server, folder)
    assert not (folder / "Small_Truth.csv").exists()
    assert not list(folder.glob("archives/*.part"))
    fetched(server, folder)
    check_whole(folder, expected({TRUTH: CONTENTS[TRUTH]}))


def test_a_rotten_archive_in_store(server: HostileServer, folder: Path) -> None:
    """One that lies in `archives` from before is checked like any other, and fetched again."""
    store = folder / "archives" / "Small_Input.zip"
    store.parent.mkdir(parents=True)
    store.write_bytes(b"rot" + CONTENTS[INPUT][3:])
    events = fetched(server, folder)
    assert "fetching it again" in notes(events)
    check_whole(folder)


# -- processes ------------------------------------------------------------------------------------


DRIVER = [sys.executable, "-m", "tests.data.hostile_server"]


def start(server: HostileServer, folder: Path) -> Any:
    """The driver in a process of its own."""
    return subprocess.Popen(
        [*DRIVER, folder, server.url, "0", ""],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Forks:
    """Drivers forked from a process that has done all imports."""

    def __init__(self, process: Any) -> None:
        self.process = process

    def begin(self, server: HostileServer, folder: Path, die_at: int = 0, log: str = "") -> int:
        """Start one; its process id."""
        line = json.dumps([str(folder), server.url, die_at, log])
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> int:
        """Wait for it; its exit code, or the signal that killed it, negative."""
        return int(self.process.stdout.readline())


@pytest.fixture
def forks() -> Iterator[Forks]:
    """Where forking is possible."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    pipe = subprocess.PIPE
    with subprocess.Popen(DRIVER, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        yield Forks(process)
        assert process.stdin is not None
        process.stdin.close()


def test_kill_9_before_each_rename(server: HostileServer, tmp_path: Path, forks: Forks) -> None:
    """Killed right before file operations, all renames and removals among them: a rerun ends whole.

    The process kills itself at the n-th operation, so nothing is left to the machine's speed.
    """
    log = tmp_path / "log"
    forks.begin(server, tmp_path / "first", log=str(log))
    assert forks.end() == 0
    check_whole(tmp_path / "first")
    operations = log.read_text().split()
    chance = random.Random(18)
    telling = [i for i, name in enumerate(operations, 1) if name in ("os.rename", "os.rmdir")]
    removals = [i for i, name in enumerate(operations, 1) if name == "os.remove"]
    others = [i for i, name in enumerate(operations, 1) if name in ("open", "os.mkdir")]
    points = {*telling, *chance.sample(removals, min(4, len(removals))), *chance.sample(others, 6)}
    killed = 0
    for point in sorted(points):
        folder = tmp_path / f"at-{point}"
        forks.begin(server, folder, die_at=point)
        code = forks.end()
        assert code in (0, -signal.SIGKILL)
        killed += code == -signal.SIGKILL
        check_nothing_bad(folder)
        fetched(server, folder)
        check_whole(folder)
        shutil.rmtree(folder)
    # Threads take turns, so the last operations may have other numbers the next time.
    assert killed >= 20


@pytest.mark.parametrize("seed", range(2))
def test_kill_9_at_random_bytes(
    server: HostileServer, folder: Path, forks: Forks, seed: int
) -> None:
    """Killed again and again while bytes come: each run goes on, and the last ends whole.

    At the chosen byte the server falls silent until the process is dead.
    """
    chance = random.Random(seed)
    for run in range(8):
        reached, dead = threading.Event(), threading.Event()
        limit = server.sent.total() + chance.randrange(1, TOTAL // 5)
        wait = chance.uniform(0, 0.05)

        def served(_: str, sent: int, r: Any = reached, d: Any = dead, limit: int = limit) -> None:
            if sent >= limit:
                r.set()
                d.wait(30)

        server.served = served
        process = forks.begin(server, folder)
        if run < 3:
            # No run gets more than a fifth, so three cannot be enough.
            assert reached.wait(30)
        else:
            reached.wait(1)
        time.sleep(wait)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        code = forks.end()
        dead.set()
        assert code == -signal.SIGKILL if run < 3 else code in (0, -signal.SIGKILL)
        check_nothing_bad(folder)
    server.served = lambda path, sent: None
    fetched(server, folder)
    check_whole(folder)
    assert any("Range" in r.headers for r in server.requests)


def test_two_processes_share(server: HostileServer, folder: Path) -> None:
    """The second waits, says so, and finds the work done."""
    server.default[f"/{INPUT}"] = Answer(delay=0.05)
    both = [start(server, folder), start(server, folder)]
    said = [p.communicate(timeout=60) for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    check_whole(folder)
    assert server.sent.total() == TOTAL
    assert "another process" in said[0][0] + said[1][0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(server: HostileServer, folder: Path, number: signal.Signals) -> None:
    """Ends at once though the server is silent; the part stays, and the rerun goes on with it."""
    arrived = threading.Event()
    server.served = lambda path, _: arrived.set() if server.sent[f"/{INPUT}"] >= 200_000 else None
    server.default[f"/{INPUT}"] = Answer(delay=0.05)
    process = start(server, folder)
    assert arrived.wait(30)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    check_nothing_bad(folder)
    part = folder / "archives" / "Small_Input.zip.part"
    assert CONTENTS[INPUT].startswith(part.read_bytes())
    server.default.clear()
    fetched(server, folder)
    check_whole(folder)
    assert server.seen(f"/{INPUT}")[-1].sent < len(CONTENTS[INPUT])


def test_interrupt_wakes_a_thread_that_waits(server: HostileServer, folder: Path) -> None:
    """Ctrl-C in this process, while a server sends nothing for a minute."""
    server.default[f"/{INPUT}"] = Answer(delay=60)
    begun = time.monotonic()

    def interrupt(event: Event) -> None:
        if isinstance(event, Step) and event.name == "Small_Extra.zip" and event.phase == "unpack":
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fetched_with(server, folder, interrupt)
    assert time.monotonic() - begun < 30
    check_nothing_bad(folder)


def fetched_with(server: HostileServer, folder: Path, on_event: Callable[[Event], None]) -> None:
    """Download with a callback of the test's own."""
    download("isic18", folder, mirror=server.url, on_event=on_event)


def test_an_error_stops_the_others(server: HostileServer, folder: Path) -> None:
    """A table that cannot be had does not wait for an archive that takes for ever."""
    server.default[f"/{INPUT}"] = Answer(delay=60)
    server.default[f"/{TRUTH}"] = MISSING
    begun = time.monotonic()
    with pytest.raises(DataError, match="404"):
        fetched(server, folder)
    assert time.monotonic() - begun < 30


def test_an_error_of_the_callback_is_not_lost(server: HostileServer, folder: Path) -> None:
    """Whatever the display raises ends the download."""

    def fail(event: Event) -> None:
        raise BrokenPipeError(errno.EPIPE, "gone")

    with pytest.raises(BrokenPipeError):
        fetched_with(server, folder, fail)


# -- disks ----------------------------------------------------------------------------------------


def test_too_little_room(
    server: HostileServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Archives and what they unpack to, told before the first byte."""
    usage = shutil.disk_usage(folder.anchor)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: usage._replace(free=2_000_000))
    with pytest.raises(BiigmaError, match=r"2\.0 MB free, and about 3\.\d MB are needed") as caught:
        fetched(server, folder)
    assert "--data-dir" in caught.value.fix
    assert server.requests == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2.5 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_fills(
    server: HostileServer, tiny_disk: Path, small: Callable[..., None]
) -> None:
    """Foreseen where the sizes are known; else one message, and the rerun goes on with room."""
    with pytest.raises(BiigmaError, match="are needed"):
        fetched(server, tiny_disk / "isic18")
    small(
        *(
            remote(path, content, size=None, approx_size=1, unpacked_size=0)
            for path, content in CONTENTS.items()
        )
    )
    ballast = tiny_disk / "ballast"
    for size in (2_000_000, 700_000):
        ballast.write_bytes(bytes(size))
        with pytest.raises(BiigmaError, match=r"No space left|are needed") as caught:
            fetched(server, tiny_disk / "isic18", parallel=1)
        assert "free some space" in caught.value.fix
        check_nothing_bad(tiny_disk / "isic18")
    ballast.unlink()
    folder = tiny_disk.parent / "roomy"
    shutil.copytree(tiny_disk / "isic18", folder)
    fetched(server, folder)
    check_whole(folder)


def test_a_disk_full_while_writing(
    server: HostileServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated: the write fails at some byte; it is the disk's fault, not the line's."""
    true_open = Path.open

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            if self.file.tell() + len(data) > 200_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(self.file.write(data))

    def opening(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        file = true_open(path, mode, *rest, **named)
        return Full(file) if mode == "ab" else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opening)
        with pytest.raises(BiigmaError, match="No space left") as caught:
            fetched(server, folder, parallel=1)
    assert "goes on where it stopped" in caught.value.fix
    assert 0 < (folder / "archives" / "Small_Input.zip.part").stat().st_size <= 200_000
    fetched(server, folder)
    check_whole(folder)
    assert len(server.seen(f"/{INPUT}")) == 2


def test_a_folder_that_cannot_be(server: HostileServer, tmp_path: Path) -> None:
    """A file in the way."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(BiigmaError, match="cannot write") as caught:
        fetched(server, tmp_path / "file" / "isic18")
    assert "--data-dir" in caught.value.fix


# -- without a network ----------------------------------------------------------------------------


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any use of a socket fails the test."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, fail)


@pytest.mark.parametrize("way", ["flag", "variable"])
def test_offline(folder: Path, no_sockets: None, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Says what is missing, where it was looked for, and where to fetch it."""
    if way == "variable":
        monkeypatch.setenv("BIIGMA_OFFLINE", "1")
    with pytest.raises(DataError) as caught:
        download("isic18", folder, offline=way == "flag")
    assert str(folder) in caught.value.message
    for path in CONTENTS:
        assert f"{sources.HOSTS[0]}/{path}" in caught.value.message
    assert "--from DIR" in caught.value.fix


def test_offline_0_is_online(
    server: HostileServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it reads."""
    monkeypatch.setenv("BIIGMA_OFFLINE", "0")
    fetched(server, folder)
    check_whole(folder)


@pytest.fixture
def handed(tmp_path: Path) -> Path:
    """A folder with the archives as they are handed out, one in its year's folder."""
    source = tmp_path / "handed"
    for path, content in CONTENTS.items():
        target = source / (path if path == EXTRA else path.rpartition("/")[2])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return source


def test_from_a_folder(handed: Path, folder: Path, no_sockets: None) -> None:
    """Verified and unpacked without a socket; the source is left as it was."""
    before = lying(handed)
    assert place_archives("isic18", handed, folder) == folder
    check_whole(folder)
    assert lying(handed) == before
    # And then there is nothing to do, online or off.
    assert download("isic18", folder, offline=True) == folder


def test_from_a_folder_that_is_bad(
    handed: Path, folder: Path, no_sockets: None, small: Callable[..., None]
) -> None:
    """A wrong file is named and left alone; a missing one is an error where its part is asked."""
    (handed / "Small_Input.zip").write_bytes(b"wrong")
    with pytest.raises(DataError, match="size in bytes: expected"):
        place_archives("isic18", handed, folder)
    assert (handed / "Small_Input.zip").read_bytes() == b"wrong"
    check_nothing_bad(folder)
    (handed / "Small_Input.zip").unlink()
    with pytest.raises(DataError, match=INPUT):
        place_archives("isic18", handed, folder, parts=["train"])
    place_archives("isic18", handed, folder)
    check_whole(folder, expected({p: CONTENTS[p] for p in (TRUTH, EXTRA)}))


def test_find_archives(handed: Path, tmp_path: Path) -> None:
    """Nothing where there is no zip: an unpacked copy has tables of the same names."""
    assert set(find_archives("isic18", handed)) == {p.rpartition("/")[2] for p in CONTENTS}
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    (unpacked / "Small_Truth.csv").write_bytes(CONTENTS[TRUTH])
    assert find_archives("isic18", unpacked) == {}
    with pytest.raises(DataError, match="3 files of isic18 are not in"):
        place_archives("isic18", unpacked, tmp_path / "x")


# -- proxies, certificates and names --------------------------------------------------------------


def test_a_proxy_is_used(
    server: HostileServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP_PROXY for a host that does not exist; NO_PROXY for one that does."""
    monkeypatch.setenv("HTTP_PROXY", server.url)
    download("isic18", folder, mirror="http://isic.invalid")
    check_whole(folder)
    assert len(server.requests) == 3
    with serving(CONTENTS) as other:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        fetched(other, folder.with_name("direct"))
        assert len(other.requests) == 3
    assert len(server.requests) == 3


def closed_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_proxy_that_is_not_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    """The variables are named."""
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(
        DataError, match="HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY"
    ) as caught:
        download("isic18", folder, mirror="https://isic.invalid")
    assert "0x" not in caught.value.message


@pytest.mark.parametrize("proxy", ["http://", "socks5://127.0.0.1:1"])
def test_a_proxy_that_cannot_be(
    folder: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float], proxy: str
) -> None:
    """One message that names the variables."""
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(BiigmaError) as caught:
        download("isic18", folder, mirror="http://isic.invalid")
    assert "HTTP_PROXY" in caught.value.message + caught.value.fix


def test_a_name_that_does_not_resolve(
    folder: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    """Not tried again: the next address is."""
    monkeypatch.setattr(sources, "HOSTS", ("http://a.invalid", "http://b.invalid"))
    with pytest.raises(DataError, match="cannot be resolved") as caught:
        download("isic18", folder)
    assert "a.invalid" in caught.value.message
    assert "b.invalid" in caught.value.message
    assert "HTTPS_PROXY" in caught.value.message
    assert pauses == []


def test_nobody_listens(folder: Path, pauses: list[float]) -> None:
    """Tried a few times, then said without the innards of the library."""
    with pytest.raises(DataError, match="no connection") as caught:
        download("isic18", folder, mirror=f"http://127.0.0.1:{closed_port()}", parallel=1)
    assert "0x" not in caught.value.message
    assert len(pauses) == fetch.ATTEMPTS - 1


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_ca_file_that_is_not_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    """The variables are named, and the path."""
    monkeypatch.setenv(variable, str(tmp_path / "none.pem"))
    with pytest.raises(UsageError, match=r"none\.pem") as caught:
        download("isic18", folder, mirror="https://127.0.0.1:1")
    assert variable in caught.value.fix


@pytest.mark.parametrize("variable", ["", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_certificate_of_the_house(
    server: HostileServer,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    """Refused with a message that names the variables; taken where one of them names its CA."""
    import ssl

    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "ca.pem"
    subprocess.run(
        [
            openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=house",
            "-addext", "subjectAltName=IP:127.0.0.1",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.server.socket = context.wrap_socket(server.server.socket, server_side=True)
    mirror = server.url.replace("http:", "https:")
    if variable:
        monkeypatch.setenv(variable, str(certificate))
        download("isic18", folder, mirror=mirror)
        check_whole(folder)
        return
    with pytest.raises(DataError, match="REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE or SSL_CERT_FILE"):
        download("isic18", folder, mirror=mirror)


def test_a_password_is_not_told(server: HostileServer, folder: Path) -> None:
    """It is used, and neither recorded nor shown."""
    mirror = server.url.replace("://", "://me:secret@")
    server.default[f"/{TRUTH}"] = MISSING
    with pytest.raises(DataError) as caught:
        download("isic18", folder, mirror=mirror)
    assert "secret" not in caught.value.message
    del server.default[f"/{TRUTH}"]
    download("isic18", folder, mirror=mirror)
    assert server.requests[-1].headers["Authorization"].startswith("Basic ")
    check_whole(folder)
    assert b"secret" not in (folder / "complete.json").read_bytes()


def test_nothing_in_parallel(folder: Path) -> None:
    """A number of files that cannot be."""
    with pytest.raises(UsageError, match="0 files at a time"):
        download("isic18", folder, parallel=0)
