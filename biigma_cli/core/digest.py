"""Whether an exported file is whole: its bytes against the digest it carries, or that ships.

An exported file ends with one metadata entry more, `content_digest`: the SHA-256 of all its bytes,
the digits themselves taken for zeros. It is found in the bytes, not by a parser, which might
read the rest otherwise than it was written.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from biigma_cli.errors import AGAIN, ModelFileError
from biigma_cli.storage import models_dir, real_path

#: Metadata key of the digest.
KEY = "content_digest"
#: File beside the shipped models: theirs, as `sha256sum` writes and checks them.
SHIPPED = "SHA256SUMS"

_DIGITS = 64
_ZEROS = b"0" * _DIGITS
# The entry as ONNX's protobuf has it, a JSON string: field 14 of the model, in it the fields 1 and
# 2, each with its length.
_OPENING, _CLOSING = b'"sha256:', b'"'
_KEY = bytes([0x0A, len(KEY)]) + KEY.encode()
_VALUE = bytes([0x12, len(_OPENING) + _DIGITS + len(_CLOSING)]) + _OPENING
_HEAD = bytes([0x72, len(_KEY) + 2 + _VALUE[1]]) + _KEY + _VALUE


def seal(content: bytes) -> bytes:
    """A serialised model, without such an entry, and the entry behind it."""
    state = hashlib.sha256(content)
    state.update(_HEAD + _ZEROS + _CLOSING)
    return b"".join((content, _HEAD, state.hexdigest().encode(), _CLOSING))


def check_content(path: Path, content: bytes) -> str:
    """Hex SHA-256 of a model file's content, which is that of its export.

    The last such entry counts. Files of earlier versions have none: those that ship, and copies of
    them, are compared with the list; of others nothing is known.

    Raises `ModelFileError` where it is damaged.
    """
    head = content.rfind(_HEAD)
    if head >= 0:
        digits = slice(head + len(_HEAD), head + len(_HEAD) + _DIGITS)
        view = memoryview(content)
        blank = hashlib.sha256(view[: digits.start])
        whole = blank.copy()  # nearly all of the file is hashed once for both
        whole.update(view[digits.start :])
        blank.update(_ZEROS)
        blank.update(view[digits.stop :])
        if content[digits] != blank.hexdigest().encode():
            raise _damaged(path)
        return whole.hexdigest()
    found = hashlib.sha256(content).hexdigest()
    listed, fix = _listed(path, len(content))
    if listed == found:
        return found
    if listed is not None:
        raise _damaged(path, fix)
    # Half an entry: the damage is in the entry itself.
    if _KEY in content or _VALUE in content:
        raise _damaged(path)
    return found


def shipped_digests() -> dict[str, str]:
    """Hex SHA-256 by file name, as listed beside the shipped models; none where that is not so."""
    try:
        text = (models_dir() / SHIPPED).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    rows = [line.split() for line in text.splitlines()]
    return {row[1]: row[0] for row in rows if len(row) == 2 and len(row[0]) == _DIGITS}


def _listed(path: Path, size: int) -> tuple[str | None, str]:
    """The digest that a file should have by the list, None without one, and how to mend it."""
    digests, folder = shipped_digests(), real_path(models_dir())
    for place in (path, Path(real_path(path))):  # either may be a link
        if real_path(place.parent) == folder and place.name in digests:
            return digests[place.name], f"get the file again, or run: {AGAIN}"
    name = f"{path.stem}.onnx"
    with contextlib.suppress(OSError, ValueError):
        # Nothing in it says whose copy it is; by its name and its very size it is that one.
        if name in digests and (models_dir() / name).stat().st_size == size:
            return digests[name], (
                "get the file again; if it was changed on purpose, give it another name"
            )
    return None, ""


def _damaged(path: Path, fix: str = "") -> ModelFileError:
    return ModelFileError(
        f"{path} is damaged: its content is not what was exported",
        fix=fix
        or "get the file again or export it anew; if another program changed it on purpose, "
        f"remove its metadata entry {KEY}",
    )
