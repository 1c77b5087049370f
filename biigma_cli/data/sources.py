"""Where the ISIC challenge archives lie, what is known of them, and under which licence they are.

ISIC publishes no checksums. Those below were recorded by others; one that only a single source
gives is marked, and its mismatch can be accepted.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args
from urllib.parse import urlsplit, urlunsplit

from biigma_cli.errors import UsageError

Part = Literal["train", "val", "test"]
Role = Literal["images", "truth", "metadata", "groupings"]
PARTS: tuple[Part, ...] = get_args(Part)

# The current host, then the older one.
HOSTS = (
    "https://isic-archive.s3.amazonaws.com/challenges",
    "https://isic-challenge-data.s3.amazonaws.com",
)


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file of a challenge.

    Attributes:
        path: below the base address, such as `2018/ISIC2018_Task3_Training_Input.zip`.
        part: the challenge's part it belongs to.
        role: what it holds.
        size: exact bytes; None where only a label such as "5.8 GB" is known.
        approx_size: bytes, for the disk check and the time left.
        unpacked_size: bytes on disk after unpacking, estimated; 0 where nothing is unpacked.
        checksum: `md5:...` or `sha256:...`; empty where none is known.
        single_source: only one source gives the checksum.
    """

    path: str
    part: Part
    role: Role
    size: int | None
    approx_size: int
    unpacked_size: int
    checksum: str
    single_source: bool

    @property
    def name(self) -> str:
        """File name."""
        return self.path.rpartition("/")[2]

    @property
    def is_zip(self) -> bool:
        """Whether it is unpacked, rather than used as it is."""
        return self.name.endswith(".zip")

    @property
    def size_text(self) -> str:
        """Size for people: exact, or about."""
        if self.size is not None:
            return f"{self.size:,} bytes"
        return f"about {human(self.approx_size)}"


@dataclass(frozen=True, kw_only=True)
class Licence:
    """Under what terms a data set may be used.

    Attributes:
        spdx: SPDX id.
        notice: text of `LICENSE.txt`.
        attribution: text of `ATTRIBUTION.txt`: owners and what they ask to be cited.
    """

    spdx: str
    notice: str
    attribution: str


class Address(NamedTuple):
    """One line of `--list-urls`."""

    url: str
    size: str
    checksum: str


def _file(
    path: str, part: Part, role: Role, size: int, checksum: str = "", *, exact: bool = False
) -> RemoteFile:
    """A row; a checksum that ends in `*` comes from a single source."""
    is_zip = path.endswith(".zip")
    # JPEGs hardly shrink in a zip; tables of zeros and ones shrink to a tenth or less.
    unpacked = (size * 20 if role == "truth" else size + size // 50) if is_zip else 0
    return RemoteFile(
        path=path,
        part=part,
        role=role,
        size=size if exact else None,
        approx_size=size,
        unpacked_size=unpacked,
        checksum=checksum.removesuffix("*"),
        single_source=checksum.endswith("*"),
    )


KB, MB, GB = 10**3, 10**6, 10**9

FILES: dict[str, tuple[RemoteFile, ...]] = {
    "isic17": (
        _file("2017/ISIC-2017_Training_Data.zip", "train", "images", 5800 * MB,
              "md5:a14a7e622c67a358797ae59abb8a0b0c"),
        _file("2017/ISIC-2017_Training_Part3_GroundTruth.csv", "train", "truth", 43 * KB,
              "md5:0cb4add57c65c22ca1a1cb469ad1f0c5*"),
        _file("2017/ISIC-2017_Validation_Data.zip", "val", "images", 878 * MB,
              "md5:8d6419d942112f709894c0d82f6c9038"),
        _file("2017/ISIC-2017_Validation_Part3_GroundTruth.csv", "val", "truth", 3 * KB,
              "md5:8d4826a76adcd8fb928ca52a23ebae4c*"),
        _file("2017/ISIC-2017_Test_v2_Data.zip", "test", "images", 5400 * MB,
              "md5:5f6a0b5e1f2972bd1f5ea02680489f09"),
        _file("2017/ISIC-2017_Test_v2_Part3_GroundTruth.csv", "test", "truth", 13 * KB,
              "md5:9e957b72a0c4f9e0d924889fd03b36ed*"),
    ),
    "isic18": (
        _file("2018/ISIC2018_Task3_Training_Input.zip", "train", "images", 2_771_732_744,
              "md5:0c281f121070a8d63457caffcdec439a*", exact=True),
        _file("2018/ISIC2018_Task3_Training_GroundTruth.zip", "train", "truth", 36 * KB,
              "md5:8302427e4ce0c107559531b9f444abe9*"),
        _file("2018/ISIC2018_Task3_Training_LesionGroupings.csv", "train", "groupings", 481 * KB,
              "md5:9517b6aa6902d6c27e234bac8279a64a*"),
        _file("2018/ISIC2018_Task3_Validation_Input.zip", "val", "images", 51 * MB,
              "md5:c1fbdd4f5468b0d67c61a1b2def87077*"),
        _file("2018/ISIC2018_Task3_Validation_GroundTruth.zip", "val", "truth", 7 * KB),
        _file("2018/ISIC2018_Task3_Test_Input.zip", "test", "images", 401 * MB),
        _file("2018/ISIC2018_Task3_Test_GroundTruth.zip", "test", "truth", 11 * KB),
    ),
    "isic19": (
        _file("2019/ISIC_2019_Training_Input.zip", "train", "images", 9_771_618_190,
              "sha256:5075020b720c8f1b9b7f3ff85326c55ce0435e5906c41fbd338994feef886df1",
              exact=True),
        _file("2019/ISIC_2019_Training_GroundTruth.csv", "train", "truth", 1_291_479,
              "sha256:aa88e9638fe4df9ef330dc4ba22fa4bd475c44af692fffb870c73091ab25cdcd",
              exact=True),
        _file("2019/ISIC_2019_Training_Metadata.csv", "train", "metadata", 1_214_351,
              "sha256:d93994a8ed201d474de9a7af7e17ec30929cbc4a5220659ecbde17cbe83e9316",
              exact=True),
        _file("2019/ISIC_2019_Test_Input.zip", "test", "images", 3600 * MB),
        _file("2019/ISIC_2019_Test_GroundTruth.csv", "test", "truth", 454 * KB),
        _file("2019/ISIC_2019_Test_Metadata.csv", "test", "metadata", 287 * KB),
    ),
}  # fmt: skip

_CC_BY_NC = """\
The images and metadata in this folder are licensed under the Creative Commons
Attribution-NonCommercial 4.0 International licence (CC BY-NC 4.0):
https://creativecommons.org/licenses/by-nc/4.0/legalcode

They may be used, shared and adapted for non-commercial purposes, with
attribution (see ATTRIBUTION.txt).
"""
_CC0 = """\
The images and metadata in this folder are dedicated to the public domain under
Creative Commons CC0 1.0 Universal:
https://creativecommons.org/publicdomain/zero/1.0/legalcode
"""
_HAM10000 = """\
HAM10000 dataset (c) by ViDIR Group, Department of Dermatology, Medical
University of Vienna; doi:10.1038/sdata.2018.161
"""
_MSK = "MSK dataset (c) Anonymous; arXiv:1710.05006, arXiv:1902.03368\n"

LICENCES: dict[str, Licence] = {
    "isic17": Licence(
        spdx="CC0-1.0",
        notice=_CC0,
        attribution="ISIC 2017 challenge. Please cite:\n\n"
        "Codella et al., Skin Lesion Analysis Toward Melanoma Detection: A Challenge at the\n"
        "2017 ISBI, hosted by the ISIC; arXiv:1710.05006\n",
    ),
    "isic18": Licence(
        spdx="CC-BY-NC-4.0",
        notice=_CC_BY_NC,
        attribution=f"ISIC 2018 challenge, task 3. Please cite:\n\n{_HAM10000}\n{_MSK}",
    ),
    "isic19": Licence(
        spdx="CC-BY-NC-4.0",
        notice=_CC_BY_NC,
        attribution="ISIC 2019 challenge. Please cite:\n\n"
        "BCN_20000 dataset (c) Department of Dermatology, Hospital Clinic de Barcelona;\n"
        f"doi:10.1038/s41597-024-03387-w\n\n{_HAM10000}\n{_MSK}",
    ),
}


def files(dataset: str, parts: Collection[str] = PARTS) -> tuple[RemoteFile, ...]:
    """Files of the given parts. Raises `UsageError` naming what can be had."""
    if dataset not in FILES:
        raise UsageError(
            f"{dataset!r} cannot be downloaded", fix=f"choose one of: {', '.join(FILES)}"
        )
    held = tuple(p for p in PARTS if any(f.part == p for f in FILES[dataset]))
    unknown = [p for p in parts if p not in held]
    if unknown or not parts:
        # "all parts" is no mistake where the challenge has no such part.
        if unknown and set(parts) == set(PARTS):
            return FILES[dataset]
        raise UsageError(
            f"{dataset} has no part {', '.join(map(repr, unknown)) or 'of that name'}",
            fix=f"choose from: {', '.join(held)}",
        )
    return tuple(f for f in FILES[dataset] if f.part in parts)


def base_urls(mirror: str | None = None) -> tuple[str, ...]:
    """Base addresses in the order they are tried.

    A mirror, or else `BIIGMA_MIRROR`, is used alone; it holds `<mirror>/<year>/<file>`.

    Raises:
        UsageError: the mirror is no http(s) address.
    """
    origin = "--mirror" if mirror else "BIIGMA_MIRROR"
    mirror = mirror or os.environ.get("BIIGMA_MIRROR") or None
    if mirror is None:
        return HOSTS
    try:
        address = urlsplit(mirror)
        usable = address.scheme in ("http", "https") and bool(address.hostname)
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(
            f"{origin} is {mirror!r}, which is no http:// or https:// address",
            fix="give an address that holds <year>/<file>; for a folder use --from DIR",
        )
    return (mirror.rstrip("/"),)


def list_urls(
    dataset: str, parts: Collection[str] = PARTS, mirror: str | None = None
) -> list[Address]:
    """Address (at the first host), size and checksum of each file; opens no connection."""
    base = without_password(base_urls(mirror)[0])
    return [
        Address(f"{base}/{f.path}", f.size_text, f.checksum or "none known")
        for f in files(dataset, parts)
    ]


def without_password(url: str) -> str:
    """The address without user name and password, fit for messages and records."""
    address = urlsplit(url)
    return urlunsplit(address._replace(netloc=address.netloc.rpartition("@")[2]))


def human(count: float) -> str:
    """Bytes as `2.8 GB`, in powers of ten."""
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
