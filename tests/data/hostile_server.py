"""An HTTP server on loopback that serves badly on request, and a data set small enough for it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import random
import re
import signal
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from biigma_cli.data.sources import RemoteFile


@dataclass(frozen=True)
class Answer:
    """How one request is answered.

    Attributes:
        status: 200 becomes 206 where a range is asked for and heeded.
        body: in place of the file's bytes.
        headers: added to, or in place of, the usual ones.
        drop_after: bytes of the body after which the connection is cut.
        ignore_range: always send all.
        declare: Content-Length and end of the body, where it is not the real one.
        delay: seconds before each 32 KiB of the body.
        chunked: send no length.
    """

    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None
    ignore_range: bool = False
    declare: int | None = None
    delay: float = 0.0
    chunked: bool = False


GOOD = Answer()
MISSING = Answer(status=404, body=b"no such file")


@dataclass
class Request:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    sent: int = 0


class HostileServer:
    """Serves `files` by path; `plan` holds answers to be used up per path before `default`'s.

    Attributes:
        files: content by path, such as `/2018/x.zip`.
        etags: by path; an MD5 of the content where none is set.
        plan: answers of the coming requests, by path.
        default: answer of all other requests, by path; `GOOD` where there is none.
        requests: all that came.
        served: called with (path, bytes of bodies sent so far, in all).
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.plan: dict[str, list[Answer]] = {}
        self.default: dict[str, Answer] = {}
        self.requests: list[Request] = []
        self.served: Callable[[str, int], None] = lambda path, sent: None
        self.sent: Counter[str] = Counter()
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: Any) -> None:
                # Clients that are killed are the point of these tests.
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(
            target=lambda: self.server.serve_forever(poll_interval=0.05), daemon=True
        )
        self.thread.start()

    @property
    def url(self) -> str:
        """Base address."""
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()

    def seen(self, path: str) -> list[Request]:
        """Requests for `path`."""
        return [r for r in self.requests if r.path == path]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request as planned."""
        # A proxy is asked for whole addresses.
        path = urlsplit(handler.path).path
        request = Request("GET", path, {k.title(): v for k, v in handler.headers.items()})
        with self.lock:
            self.requests.append(request)
            planned = self.plan.get(path)
            how = planned.pop(0) if planned else self.default.get(path, GOOD)
        content = how.body if how.body is not None else self.files.get(path)
        if content is None:
            how, content = MISSING, MISSING.body or b""
        headers: dict[str, str] = {"Content-Type": "application/octet-stream"}
        status, start = how.status, 0
        if status == 200:
            etag = self.etags.get(path, f'"{hashlib.md5(content).hexdigest()}"')
            if etag:
                headers["ETag"] = etag
            wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
            same = request.headers.get("If-Range", etag) == etag
            if wanted and same and not how.ignore_range:
                start = int(wanted[1])
                if start >= len(content):
                    status, headers["Content-Range"] = 416, f"bytes */{len(content)}"
                    content, start = b"", 0
                else:
                    status = 206
                    headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        if how.declare is not None:
            body = body[: how.declare]
        if how.chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(len(body))
        headers |= how.headers
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        self._send(handler, request, body, how)

    def _send(
        self, handler: BaseHTTPRequestHandler, request: Request, body: bytes, how: Answer
    ) -> None:
        end = len(body) if how.drop_after is None else min(how.drop_after, len(body))
        try:
            for at in range(0, end, 1 << 15):
                if how.delay:
                    time.sleep(how.delay)
                piece = body[at : min(at + (1 << 15), end)]
                if how.chunked:
                    handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                else:
                    handler.wfile.write(piece)
                with self.lock:
                    request.sent += len(piece)
                    self.sent[request.path] += len(piece)
                    total = self.sent.total()
                self.served(request.path, total)
            if how.chunked and end == len(body):
                handler.wfile.write(b"0\r\n\r\n")
        except OSError:
            handler.close_connection = True
        if end < len(body):
            handler.close_connection = True


@contextmanager
def serving(contents: dict[str, bytes]) -> Iterator[HostileServer]:
    """A server for the length of a with block, with `contents` by path."""
    server = HostileServer()
    server.files |= {f"/{path}": content for path, content in contents.items()}
    try:
        yield server
    finally:
        server.close()


def make_zip(members: dict[str, bytes]) -> bytes:
    """A deflated zip, the same at any time and in any process."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            # A ZipInfo of its own carries no time of day.
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def noise(count: int, seed: int) -> bytes:
    """Bytes that do not shrink."""
    return random.Random(seed).randbytes(count)


def remote(path: str, content: bytes, **changes: Any) -> RemoteFile:
    """The table row that fits `content`, with changes."""
    is_zip = path.endswith(".zip")
    row = RemoteFile(
        path=path,
        part="train",
        role="images" if is_zip else "truth",
        size=len(content),
        approx_size=len(content),
        unpacked_size=len(content) if is_zip else 0,
        checksum=f"sha256:{hashlib.sha256(content).hexdigest()}",
        single_source=False,
    )
    return dataclasses.replace(row, **changes)


INPUT, TRUTH, EXTRA = "2018/Small_Input.zip", "2018/Small_Truth.csv", "2018/Small_Extra.zip"


@functools.cache
def small_set() -> dict[str, bytes]:
    """Content by path of a set of two zips and a table: 1.6 MB in all. Not to be changed."""
    images = {f"Small_Input/ISIC_{i:07}.jpg": noise(60_000, i) for i in range(20)}
    images["Small_Input/ISIC_0000000_superpixels.png"] = noise(1000, 99)
    extra = {f"nested/{i}.csv": noise(20_000, 100 + i) for i in range(20)}
    return {
        INPUT: make_zip(images),
        TRUTH: b"image,MEL,NV\n" + b"ISIC_0000000,0.0,1.0\n" * 1000,
        EXTRA: make_zip(extra),
    }


# Files of the unpacked small set, below its folder.
PLACED = (
    *(f"Small_Input/ISIC_{i:07}.jpg" for i in range(20)),
    "Small_Truth.csv",
    *(f"Small_Extra/nested/{i}.csv" for i in range(20)),
)


def as_driver(folder: str, url: str, die_at: int, log: str) -> None:
    """Download the small set in a process of its own, which kills itself at a chosen point.

    Args:
        die_at: number of the file operation (open for writing, rename, remove ...) below `folder`
            before which the process is killed; 0 for none.
        log: file that gets each operation's name, one a line; empty for none.
    """
    from biigma_cli.data import fetch, sources
    from biigma_cli.errors import BiigmaError

    fetch.BACKOFF_S = 0.01
    sources.FILES["isic18"] = tuple(remote(p, c) for p, c in small_set().items())
    count = 0

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            concerned = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            concerned = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
        if concerned and str(arguments[0]).startswith(folder):
            count += 1
            if log:
                with Path(log).open("a") as file:
                    file.write(f"{event}\n")
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    try:
        fetch.download(
            "isic18",
            Path(folder),
            mirror=url,
            on_event=lambda e: print(json.dumps([type(e).__name__, vars(e)]), flush=True),
        )
    except BiigmaError as error:
        print(error.message, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def as_forks() -> None:
    """A driver per line of stdin, `[folder, url, die_at, log]`: its pid, then its exit code.

    Forked after all imports, which take much longer than the download.
    """
    import filelock  # noqa: F401
    import requests  # noqa: F401

    small_set()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                as_driver(*json.loads(line))
                code = 0
            except SystemExit as ended:
                code = int(ended.code or 0)
            finally:
                os._exit(code)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        as_driver(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        as_forks()
