"""The tables of archives: their form, and what is chosen from them."""

from __future__ import annotations

import re

import pytest

from biigma_cli.data.sources import (
    FILES,
    HOSTS,
    LICENCES,
    RemoteFile,
    base_urls,
    files,
    human,
    list_urls,
    without_password,
)
from biigma_cli.errors import UsageError
from biigma_cli.taxonomy import TAXONOMIES

ROWS = [row for rows in FILES.values() for row in rows]


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own mirror is not used."""
    monkeypatch.delenv("BIIGMA_MIRROR", raising=False)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_rows_are_well_formed(row: RemoteFile) -> None:
    """Checksums are whole hex digests, paths are year/name, sizes are positive and agree."""
    assert re.fullmatch(r"(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})?", row.checksum)
    assert re.fullmatch(r"20(17|18|19)/ISIC[\w-]+\.(zip|csv)", row.path)
    assert row.path == f"{row.path[:4]}/{row.name}"
    assert row.approx_size > 0
    assert row.size in (None, row.approx_size)
    assert row.is_zip == (row.unpacked_size > 0)
    assert row.checksum or not row.single_source


def test_no_row_is_there_twice() -> None:
    """A copied line would carry its neighbour's checksum."""
    checksums = [row.checksum for row in ROWS if row.checksum]
    assert len(set(checksums)) == len(checksums)
    assert len({row.path for row in ROWS}) == len(ROWS) == 19


def test_every_data_set_has_files_and_a_licence() -> None:
    """Each part with images has its truth; licences name whom to cite."""
    assert set(FILES) == set(LICENCES) == {"isic17", "isic18", "isic19"} <= set(TAXONOMIES)
    for dataset, rows in FILES.items():
        for part in {row.part for row in rows}:
            roles = {row.role for row in rows if row.part == part}
            assert {"images", "truth"} <= roles, (dataset, part)
    assert LICENCES["isic17"].spdx == "CC0-1.0"
    for dataset in ("isic18", "isic19"):
        assert LICENCES[dataset].spdx == "CC-BY-NC-4.0"
        assert "NonCommercial" in LICENCES[dataset].notice
        assert "doi:10.1038/sdata.2018.161" in LICENCES[dataset].attribution
    assert "doi:10.1038/s41597-024-03387-w" in LICENCES["isic19"].attribution


def test_parts() -> None:
    """Only the files asked for; a set without validation images says so."""
    assert [f.role for f in files("isic18", ["train"])] == ["images", "truth", "groupings"]
    assert files("isic19") == FILES["isic19"]
    with pytest.raises(UsageError, match="'val'") as caught:
        files("isic19", ["val"])
    assert "train, test" in caught.value.fix
    with pytest.raises(UsageError, match="isic20"):
        files("isic20")
    with pytest.raises(UsageError):
        files("isic18", [])


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag wins over the variable, and either is used alone."""
    assert base_urls() == HOSTS
    monkeypatch.setenv("BIIGMA_MIRROR", "http://mirror.example/isic/")
    assert base_urls() == ("http://mirror.example/isic",)
    assert base_urls("https://other.example") == ("https://other.example",)


@pytest.mark.parametrize(
    "mirror", ["/data/isic", "file:///data", "ftp://x/y", "http://", "http://["]
)
def test_addresses_that_cannot_be(mirror: str) -> None:
    """A folder is pointed to --from."""
    with pytest.raises(UsageError, match=r"--mirror") as caught:
        base_urls(mirror)
    assert "--from" in caught.value.fix


def test_list() -> None:
    """Address, size and checksum of each file; passwords are not shown."""
    rows = list_urls("isic18", ["train"])
    assert rows[0] == (
        f"{HOSTS[0]}/2018/ISIC2018_Task3_Training_Input.zip",
        "2,771,732,744 bytes",
        "md5:0c281f121070a8d63457caffcdec439a",
    )
    assert rows[1].size == "about 36.0 KB"
    assert list_urls("isic18", ["test"])[0].checksum == "none known"
    assert list_urls("isic19", ["train"], "https://me:secret@mirror.example:81/x")[0].url == (
        "https://mirror.example:81/x/2019/ISIC_2019_Training_Input.zip"
    )
    assert without_password("http://a@b/c?d") == "http://b/c?d"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 KB"),
        (878e6, "878.0 MB"),
        (2.77e13, "27700.0 GB"),
    ],
)
def test_human(count: float, text: str) -> None:
    """Powers of ten, as the archives' own labels."""
    assert human(count) == text
