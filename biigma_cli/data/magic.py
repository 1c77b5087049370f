"""What a file is, by its name's ending or by its first bytes."""

from __future__ import annotations

import re

#: Endings of the files that are read.
SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jps", ".png", ".apng", ".tif", ".tiff", ".bmp",
    ".dib", ".webp", ".gif", ".dcm", ".dicom", ".ima",
})  # fmt: skip
#: Bytes by which an image can be told.
HEAD = 132
# Without the preamble, as old archives and some machines have it: the first element of the file
# meta group (0002) or of the identifying group (0008), with its kind of value (explicit) or a
# length below 65,536 (implicit).
_BARE_DICOM = re.compile(
    rb"\x02\x00\x00\x00UL\x04\x00|\x08\x00[\x00\x01\x05\x08\x16\x18]\x00(?:UL|SH|CS|UI|..\x00\x00)",
    re.DOTALL,
)
_SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|II\*\x00|MM\x00\*|II\+\x00|MM\x00\+"
    rb"|RIFF....WEBP|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\x00\x00\x00",
    re.DOTALL,
)
#: Bytes that it takes to tell, by how they begin.
NEEDED = {
    b"\xff": 3, b"\x89": 8, b"GIF8": 6, b"II": 4, b"MM": 4, b"RIFF": 12, b"BM": 18, b"\0": HEAD,
    b"\x02\0": HEAD, b"\x08\0": HEAD,
}  # fmt: skip


def looks_like_image(head: bytes) -> bool:
    """Whether bytes begin as an image file does; at least `HEAD` of them decide."""
    return _SIGNATURE.match(head) is not None or looks_like_dicom(head)


def looks_like_dicom(head: bytes) -> bool:
    """Whether bytes begin as a DICOM file does, with or without its preamble."""
    return head[HEAD - 4 : HEAD] == b"DICM" or _BARE_DICOM.match(head) is not None
