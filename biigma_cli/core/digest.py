"""Whether an exported file is whole: its bytes against the digest it carries.

An exported file ends with one metadata entry more, `content_digest`: the SHA-256 of all its bytes,
the digits themselves taken for zeros. It is found in the bytes, not by a parser, which might
read the rest otherwise than it was written.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from biigma_cli.errors import ModelFileError

#: Metadata key of the digest.
KEY = "content_digest"

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

    The last such entry counts. Files of earlier versions have none: of these nothing is known.

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
    # Half an entry: the damage is in the entry itself.
    if _KEY in content or _VALUE in content:
        raise _damaged(path)
    return found


def _damaged(path: Path) -> ModelFileError:
    return ModelFileError(
        f"{path} is damaged: its content is not what was exported",
        fix="get the file again or export it anew; if another program changed it on purpose, "
        f"remove its metadata entry {KEY}",
    )
