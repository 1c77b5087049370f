"""Decoded images kept on disk: the right pixels, made once, whole or not at all."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from biigma_cli.data import cache
from biigma_cli.data.cache import (
    build_cache,
    cache_entries,
    cache_path,
    cache_root,
    clear_cache,
    open_cache,
    read_record_file,
)
from biigma_cli.data.images import load_part
from biigma_cli.data.manifest import Manifest, save_manifest
from biigma_cli.data.preprocess import RESIZE_RULES, load_image
from biigma_cli.errors import (
    EXIT_DATA,
    EXIT_FAILURE,
    EXIT_USAGE,
    BiigmaError,
    DataError,
    ImageError,
)
from tests.data.samples import digest, encode, manifest, noise, record

SIDE = 16
CODES = ("MEL", "VASC", "NV", "MEL", "NV", "BKL")


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of each test's own."""
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def make(folder: Path, codes: tuple[str, ...] = CODES, *, dataset: str = "isic18") -> Manifest:
    """Images of different sizes and forms."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for i, code in enumerate(codes):
        content = encode(noise(30 + 5 * (i % 4), 44 - 7 * (i % 3), i), "JPEG")
        (folder / f"I{i}.jpg").write_bytes(content)
        records.append(dataclasses.replace(record(f"I{i}", code), digest=digest(content)))
    return manifest(records, dataset=dataset, root=folder)


@pytest.fixture
def data(tmp_path: Path) -> Manifest:
    """Six images, recorded."""
    made = make(tmp_path / "images")
    save_manifest(made)
    return made


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file is decoded, by name."""
    times: Counter[str] = Counter()
    real = cache.load_image

    def counted(source: bytes, side: int, *, rule: str, name: str) -> Any:
        times[Path(name).name] += 1
        return real(source, side, rule=rule, name=name)

    monkeypatch.setattr(cache, "load_image", counted)
    return times


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file is read and hashed, by id."""
    times: Counter[str] = Counter()

    def counted(data: Manifest, record: Any) -> bytes:
        times[record.image_id] += 1
        return read_record_file(data, record)

    monkeypatch.setattr(cache, "read_record_file", counted)
    return times


def ids(data: Manifest) -> tuple[str, ...]:
    """All of them."""
    return tuple(r.image_id for r in data.records)


def right(data: Manifest, pixels: Any, side: int = SIDE, rule: str = "squash") -> bool:
    """Whether these are the pixels of all images, in order."""
    wanted = [load_image(data.root / r.path, side, rule=rule) for r in data.records]
    return np.array_equal(pixels, wanted)


def leftovers() -> list[Path]:
    """What lies in the cache beside whole entries and locks."""
    return [p for p in cache_root().glob("*") if p.name.startswith(".") or p.name.endswith("~")]


# --- what it holds ---------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RESIZE_RULES)
def test_pixels_equal_direct_decoding(rule: str, data: Manifest) -> None:
    """For every rule, when it is built and when it is opened, in order of the records."""
    calls: list[tuple[int, int]] = []
    assert open_cache(data, SIDE, rule) is None
    built = build_cache(data, SIDE, rule, progress=lambda *done: calls.append(done))
    assert (built.shape, built.dtype) == ((len(CODES), SIDE, SIDE, 3), np.uint8)
    assert right(data, built, rule=rule)
    assert right(data, open_cache(data, SIDE, rule), rule=rule)
    assert calls == [(i + 1, len(CODES)) for i in range(len(CODES))]
    assert not leftovers()


def test_rules_differ(data: Manifest) -> None:
    """The comparison above can fail: no two rules give the same pixels."""
    pixels = [build_cache(data, SIDE, rule).tobytes() for rule in RESIZE_RULES]
    assert len(set(pixels)) == len(RESIZE_RULES)
    assert len(cache_entries()) == len(RESIZE_RULES)


def test_it_is_mapped_and_cannot_be_changed(data: Manifest) -> None:
    """Not read into memory; what is written to it would reach every later run."""
    pixels = build_cache(data, SIDE, "squash")
    assert isinstance(pixels, np.memmap)
    assert not pixels.flags.writeable


def test_decoded_once(data: Manifest, decoded: Counter[str], hashed: Counter[str]) -> None:
    """The first load decodes every image once, later ones nothing, whatever the part."""
    first = load_part(data, ids(data)[:2], SIDE, build=True)
    assert decoded == {f"{i}.jpg": 1 for i in ids(data)}
    assert hashed == dict.fromkeys(ids(data), 1)
    for chosen in (ids(data)[:2], ids(data)[3:], ids(data)[::-1]):
        for build in (True, False):
            part = load_part(data, chosen, SIDE, build=build)
            assert part.ids == chosen
            assert np.array_equal(part.pixels[0], load_image(data.root / f"{chosen[0]}.jpg", SIDE))
    assert sum(decoded.values()) == sum(hashed.values()) == len(CODES)
    assert first.pixels.flags.writeable


def test_the_key_is_the_content(data: Manifest, tmp_path: Path) -> None:
    """Labels, lesions, parts and places share pixels; another side, rule or content does not."""
    path = cache_path(data, SIDE, "squash")
    relabelled = dataclasses.replace(
        data,
        root=tmp_path,
        records=tuple(
            dataclasses.replace(r, label="DF", lesion_id="L", part="val", path="x", mask="y")
            for r in data.records
        ),
    )
    assert relabelled.data_hash != data.data_hash
    assert cache_path(relabelled, SIDE, "squash") == path
    first, *others = data.records
    for records in (
        (dataclasses.replace(first, digest="0" * 32), *others),
        (dataclasses.replace(first, image_id="I"), *others),
        tuple(others),
        (*others, first),
    ):
        changed = dataclasses.replace(data, records=records)
        assert cache_path(changed, SIDE, "squash") != path
    assert cache_path(data, 32, "squash") != path
    assert cache_path(data, SIDE, "pad") != path
    assert cache_path(dataclasses.replace(data, dataset="isic19"), SIDE, "squash") != path


def test_another_decoder_is_another_entry(data: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels of another Pillow, or of a changed rule, are not taken."""
    path = cache_path(data, SIDE, "squash")
    with monkeypatch.context() as patch:
        patch.setattr(cache.PIL, "__version__", "0.0")
        assert cache_path(data, SIDE, "squash") != path
    monkeypatch.setitem(cache.RESIZE_RULES, "squash", "squash-bilinear-2")
    assert cache_path(data, SIDE, "squash") != path


def test_a_relabelled_set_decodes_nothing(data: Manifest, decoded: Counter[str]) -> None:
    """The binary tasks and corrected labels use the pixels that are there."""
    build_cache(data, SIDE, "squash")
    decoded.clear()
    first, *others = data.records
    changed = dataclasses.replace(data, records=(dataclasses.replace(first, label="DF"), *others))
    assert load_part(changed, ids(data), SIDE, build=True).labels[0] == 5
    assert not decoded


def test_it_can_be_read_by_others(data: Manifest) -> None:
    """Permissions follow the umask, as those of any other file."""
    umask = os.umask(0o022)
    try:
        build_cache(data, SIDE, "squash")
    finally:
        os.umask(umask)
    path = cache_path(data, SIDE, "squash")
    assert path.stat().st_mode & 0o777 == 0o755
    assert {p.name: p.stat().st_mode & 0o777 for p in path.iterdir()} == dict.fromkeys(
        ("pixels.npy", "files.npy", "meta.json"), 0o644
    )


# --- files that change -----------------------------------------------------------------------


def test_a_touched_file(data: Manifest, decoded: Counter[str], hashed: Counter[str]) -> None:
    """The same bytes with another time are accepted, after one look, and without decoding."""
    build_cache(data, SIDE, "squash")
    decoded.clear()
    hashed.clear()
    os.utime(data.root / "I2.jpg", (1, 1))
    for _ in range(3):
        assert right(data, open_cache(data, SIDE, "squash"))
    assert hashed == {"I2": 1}
    assert not decoded


@pytest.mark.parametrize("stamp", ["new", "same size", "same size and time"])
def test_a_changed_file(stamp: str, data: Manifest) -> None:
    """Other bytes are refused by name wherever size or time tell; that they do not is known."""
    build_cache(data, SIDE, "squash")
    path = data.root / "I2.jpg"
    before = path.stat()
    content = path.read_bytes()
    path.write_bytes(content + b"\0" if stamp == "new" else bytes([*content[:-1], 0]))
    if stamp.endswith("time"):
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert open_cache(data, SIDE, "squash") is not None  # as git and rsync do, and documented
        return
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    for _ in range(2):
        with pytest.raises(DataError, match=r"I2\.jpg has changed since") as caught:
            open_cache(data, SIDE, "squash")
        assert "biigma download isic18" in caught.value.fix
    with pytest.raises(DataError, match="has changed"):
        load_part(data, ("I0",), SIDE, build=True)


def test_a_changed_file_recorded_again(data: Manifest, decoded: Counter[str]) -> None:
    """The new pixels come, in an entry of their own."""
    build_cache(data, SIDE, "squash")
    decoded.clear()
    content = encode(noise(50, 50, seed=99), "JPEG")
    (data.root / "I2.jpg").write_bytes(content)
    records = list(data.records)
    records[2] = dataclasses.replace(records[2], digest=digest(content))
    again = dataclasses.replace(data, records=tuple(records))
    part = load_part(again, ids(again), SIDE, build=True)
    assert right(again, part.pixels)
    assert sum(decoded.values()) == len(CODES)


@pytest.mark.parametrize("built", [False, True])
def test_a_file_that_is_gone(built: bool, data: Manifest) -> None:
    """Named, before and after the cache was made; a half cache is not left."""
    if built:
        build_cache(data, SIDE, "squash")
    (data.root / "I4.jpg").unlink()
    with pytest.raises(DataError, match=r"cannot read .*I4\.jpg") as caught:
        load_part(data, ids(data), SIDE, build=True)
    assert caught.value.exit_code == EXIT_DATA
    assert not leftovers()
    assert len(cache_entries()) == built


def test_a_damaged_image(data: Manifest) -> None:
    """An image that cannot be decoded ends the build, by name, and leaves nothing."""
    (data.root / "I3.jpg").write_bytes(b"no image")
    records = list(data.records)
    records[3] = dataclasses.replace(records[3], digest=digest(b"no image"))
    damaged = dataclasses.replace(data, records=tuple(records))
    with pytest.raises(ImageError, match=r"I3\.jpg is not an image"):
        load_part(damaged, ("I0",), SIDE, build=True)
    assert not leftovers()
    assert not cache_entries()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "isic17-mel"}, "biigma download isic17 --from"),
        ({"dataset": "mine", "codes": ("MEL", "NV")}, "biigma datasets add mine"),
        ({"dataset": "synthetic"}, "drawn again"),
    ],
)
def test_the_remedy_fits_the_data_set(changes: dict[str, Any], words: str, data: Manifest) -> None:
    """Each kind of data set is recorded again in its own way."""
    other = dataclasses.replace(data, **changes)
    (data.root / "I0.jpg").unlink()
    with pytest.raises(DataError) as caught:
        read_record_file(other, other.records[0])
    assert words in caught.value.fix
    assert str(data.root) in caught.value.fix


# --- damage ----------------------------------------------------------------------------------


def cut(path: Path) -> None:
    """Half of it."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    """Nothing in it."""
    path.write_bytes(b"")


def header_only(path: Path) -> None:
    """No data."""
    path.write_bytes(path.read_bytes()[:128])


def zeros(path: Path) -> None:
    """As a file system leaves it that lost power."""
    path.write_bytes(bytes(path.stat().st_size))


def shorter(path: Path) -> None:
    """An entry less."""
    np.save(path, np.load(path)[:-1])


def flat(path: Path) -> None:
    """Right length, other dimensions."""
    np.save(path, np.load(path).reshape(len(CODES), -1)[:, :1].copy())


def single(path: Path) -> None:
    """A number."""
    np.save(path, np.int64(5))


def other_type(path: Path) -> None:
    """Floats."""
    np.save(path, np.load(path).astype(np.float32))


def objects(path: Path) -> None:
    """A pickle, which must not be run."""
    np.save(path, np.array([{"a": 1}] * len(CODES), dtype=object), allow_pickle=True)


def zipped(path: Path) -> None:
    """Begins like a zip."""
    path.write_bytes(b"PK\x03\x04" + path.read_bytes()[4:])


def gone(path: Path) -> None:
    """Not there."""
    path.unlink()


def a_folder(path: Path) -> None:
    """A folder in its place."""
    path.unlink()
    path.mkdir()


DAMAGE = [cut, emptied, header_only, zeros, shorter, flat, single, other_type, objects, zipped,
          gone, a_folder]  # fmt: skip


@pytest.mark.parametrize("name", ["pixels.npy", "files.npy"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_made_again(
    damage: Any, name: str, data: Manifest, decoded: Counter[str]
) -> None:
    """Whatever is in its place is not taken, and the next build puts it right."""
    build_cache(data, SIDE, "squash")
    damage(cache_path(data, SIDE, "squash") / name)
    decoded.clear()
    assert open_cache(data, SIDE, "squash") is None
    assert right(data, load_part(data, ids(data), SIDE, build=True).pixels)
    assert sum(decoded.values()) == len(CODES)
    assert right(data, open_cache(data, SIDE, "squash"))
    assert not leftovers()


def test_any_damaged_header(data: Manifest) -> None:
    """Bytes of the header at random: never an exception, and never other pixels."""
    build_cache(data, SIDE, "squash")
    path = cache_path(data, SIDE, "squash") / "pixels.npy"
    whole = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(128)] = chance.randrange(256)
        path.write_bytes(content)
        pixels = open_cache(data, SIDE, "squash")
        refused += pixels is None
        assert pixels is None or right(data, pixels)
    assert refused > 100


def test_meta_does_not_matter(data: Manifest) -> None:
    """It is for people: without it, or with rubbish, entries are listed and read."""
    build_cache(data, SIDE, "squash")
    path = cache_path(data, SIDE, "squash") / "meta.json"
    for content in ("[]", "{}", '{"images": "x"}', '{"images": null}', "", "\0"):
        path.write_text(content)
        (entry,) = cache_entries()
        assert (entry.dataset, entry.side, entry.rule, entry.images) == (
            "isic18", SIDE, "squash", 0,
        )  # fmt: skip
    path.unlink()
    assert right(data, open_cache(data, SIDE, "squash"))


# --- processes -------------------------------------------------------------------------------

BUILD = """
import sys, time
from biigma_cli.data import cache
from biigma_cli.data.manifest import load_manifest
pause = float(sys.argv[1])
real = cache.load_image
def slow(*args, **kwargs):
    time.sleep(pause)
    with open(sys.argv[2], "a") as log:
        log.write(kwargs["name"] + "\\n")
    return real(*args, **kwargs)
cache.load_image = slow
def told(done, total):
    print(done, flush=True)
print("ready", flush=True)
sys.stdin.readline()
cache.build_cache(load_manifest("isic18"), 16, "squash", progress=told)
print("built", flush=True)
"""


def builder(log: Path, pause: float) -> subprocess.Popen[str]:
    """A process that builds once it is told to, decoding slowly, with a log of what it decoded."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(pause), str(log)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ},
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    """Now."""
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    """What it says."""
    assert process.stdout
    for line in process.stdout:
        yield line.strip()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("moment", ["0", "1", "3", str(len(CODES))])
def test_killed_while_it_is_built(moment: str, data: Manifest, tmp_path: Path) -> None:
    """kill -9 after so many images: nothing looks whole, and the next build clears up."""
    process = builder(tmp_path / "log", 0.02)
    go(process)
    if moment == "0":
        limit = time.monotonic() + 60
        while not leftovers() and time.monotonic() < limit:
            time.sleep(0.001)
    else:
        next(line for line in lines(process) if line == moment)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    if moment != str(len(CODES)):  # then it may just have been in time
        assert open_cache(data, SIDE, "squash") is None
        assert leftovers()
    assert right(data, build_cache(data, SIDE, "squash"))
    assert not leftovers()


def test_two_processes_build_once(data: Manifest, tmp_path: Path) -> None:
    """One decodes, the other waits and reads; both end well."""
    log = tmp_path / "log"
    processes = [builder(log, 0.03) for _ in range(2)]
    for process in processes:
        go(process)
    said = [p.communicate()[0].split() for p in processes]
    assert [p.returncode for p in processes] == [0, 0]
    assert Counter(Path(n).name for n in log.read_text().splitlines()) == {
        f"{i}.jpg": 1 for i in ids(data)
    }
    assert sorted(map(len, said)) == [1, len(CODES) + 1]  # only one had progress to tell
    assert right(data, open_cache(data, SIDE, "squash"))
    assert not leftovers()


def test_cleared_while_it_is_built(data: Manifest, tmp_path: Path) -> None:
    """Clearing waits for the builder, takes what it made, and spoils nothing for it."""
    process = builder(tmp_path / "log", 0.03)
    go(process)
    said = lines(process)
    assert next(said) == "1"
    gone = clear_cache("isic18")
    process.communicate()
    assert len(gone) == 1
    assert not list(cache_root().iterdir())
    assert right(data, build_cache(data, SIDE, "squash"))


def test_two_threads_build_once(data: Manifest, decoded: Counter[str]) -> None:
    """In one process, too."""
    found: list[bool] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(right(data, build_cache(data, SIDE, "squash")))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4
    assert set(decoded.values()) == {1}


def test_interrupted(data: Manifest) -> None:
    """Ctrl-C passes through and leaves nothing."""

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_part(data, ids(data), SIDE, build=True, progress=stop)
    assert not leftovers()
    assert not cache_entries()
    assert right(data, build_cache(data, SIDE, "squash"))


# --- no room, no permission ------------------------------------------------------------------


def in_memory(data: Manifest, *words: str, code: int = EXIT_FAILURE) -> None:
    """Building says why it cannot; loading warns of it and decodes all the same."""
    with pytest.raises(BiigmaError) as caught:
        build_cache(data, SIDE, "squash")
    assert not isinstance(caught.value, DataError)
    assert caught.value.exit_code == code
    assert caught.value.fix
    for word in words:
        assert word in caught.value.message
    warnings: list[str] = []
    part = load_part(data, ids(data), SIDE, build=True, warn=warnings.append)
    assert right(data, part.pixels)
    assert warnings == [f"no decoded cache ({caught.value.message}); decoding in memory"]
    assert right(data, load_part(data, ids(data), SIDE, build=True).pixels)
    assert not leftovers()
    assert not cache_entries()


def test_no_room(data: Manifest, monkeypatch: pytest.MonkeyPatch, decoded: Counter[str]) -> None:
    """Seen before the first image is decoded; sizes are named."""
    usage = shutil.disk_usage(data.root)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(BiigmaError, match=r"need 0\.00 GB in .* 0\.00 GB are free"):
        build_cache(data, SIDE, "squash")
    assert not decoded
    in_memory(data, str(cache_root()))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "biigma-test", str(folder)],
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("no command mount")
    if done.returncode:
        pytest.skip("this user may not mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up(data: Manifest, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room that others take while images are written: an error, no dead process, nothing left."""
    monkeypatch.setenv("BIIGMA_HOME", str(disk))
    (disk / "other").write_bytes(bytes(2 * 2**20 - 8 * 4096))
    usage = shutil.disk_usage(data.root)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=10**12))
    warnings: list[str] = []
    part = load_part(data, ids(data), 224, build=True, warn=warnings.append)
    assert right(data, part.pixels, 224)
    assert len(warnings) == 1
    assert "No space left on device" in warnings[0]
    assert not leftovers()
    assert not cache_entries()
    (disk / "other").unlink()
    assert right(data, build_cache(data, 224, "squash"), 224)


def test_a_disk_that_cannot_be_written(
    data: Manifest, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read-only: what is cached is read, the rest decoded; clearing says that it cannot."""
    monkeypatch.setenv("BIIGMA_HOME", str(disk))
    build_cache(data, 32, "squash")
    os.utime(data.root / "I1.jpg", (1, 1))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert right(data, load_part(data, ids(data), 32, build=True).pixels, 32)
    warnings: list[str] = []
    part = load_part(data, ids(data), SIDE, build=True, warn=warnings.append)
    assert right(data, part.pixels)
    assert "Read-only file system" in warnings[0]
    with pytest.raises(BiigmaError, match="cannot remove"):
        clear_cache()
    assert len(cache_entries()) == 1


def test_a_data_folder_below_a_file(
    data: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be made."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "file" / "home"))
    in_memory(data, "cannot write", code=EXIT_USAGE)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_data_folder_one_may_not_write(data: Manifest, data_folder: Path) -> None:
    """The same without being root."""
    (data_folder / "cache").mkdir(parents=True)
    (data_folder / "cache").chmod(0o500)
    try:
        in_memory(data, "cannot write", code=EXIT_USAGE)
    finally:
        (data_folder / "cache").chmod(0o700)


def test_no_locks(data: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network disk without locks: decoded in memory."""
    import filelock

    def refuse(*_: Any, **__: Any) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    in_memory(data, "flock")


# --- list and clear --------------------------------------------------------------------------


def test_no_entries() -> None:
    """Nothing is made by looking."""
    assert cache_entries() == []
    assert clear_cache() == []
    assert not cache_root().exists()


def test_entries(data: Manifest) -> None:
    """The largest first, with their size on disk."""
    for side, rule in ((16, "pad"), (64, "squash"), (32, "crop")):
        build_cache(data, side, rule)
    entries = cache_entries()
    assert [(e.dataset, e.side, e.rule, e.images) for e in entries] == [
        ("isic18", side, rule, len(CODES))
        for side, rule in ((64, "squash"), (32, "crop"), (16, "pad"))
    ]
    for entry in entries:
        assert entry.path == cache_path(data, entry.side, entry.rule)
        assert entry.size == sum(p.stat().st_size for p in entry.path.iterdir())
        assert entry.size > len(CODES) * entry.side**2 * 3
        assert abs(entry.used - time.time()) < 3600


def test_reading_is_noted(data: Manifest) -> None:
    """When an entry was last of use."""
    build_cache(data, SIDE, "squash")
    os.utime(cache_path(data, SIDE, "squash"), (1, 1))
    assert cache_entries()[0].used == 1
    open_cache(data, SIDE, "squash")
    assert cache_entries()[0].used > 1


def test_clearing_one_data_set(data: Manifest, tmp_path: Path) -> None:
    """Its entries and its locks go, damaged and left-over ones too; others stay."""
    other = make(tmp_path / "other", ("MEL", "NV"), dataset="isic18-2")
    kept = build_cache(other, SIDE, "squash")
    build_cache(data, SIDE, "squash")
    build_cache(data, SIDE, "pad")
    path = cache_path(data, SIDE, "pad")
    (path / "meta.json").unlink()
    left = path.parent / f".{cache_path(data, 32, 'pad').name}.abc_1~"
    left.mkdir()
    gone = clear_cache("isic18")
    assert {e.path for e in gone} == {path, left, cache_path(data, SIDE, "squash")}
    here = {cache_path(other, SIDE, "squash").name}
    assert {p.name for p in cache_root().iterdir()} == here | {f"{n}.lock" for n in here}
    assert right(other, kept)
    assert [e.dataset for e in clear_cache()] == ["isic18-2"]
    assert not list(cache_root().iterdir())


def test_clearing_goes_on(data: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link is taken away, what it leads to stays; one that cannot be removed stops no other."""
    build_cache(data, SIDE, "squash")
    build_cache(data, SIDE, "pad")
    there = tmp_path / "there"
    there.mkdir()
    (there / "file").write_text("x")
    (cache_root() / "isic18-96-squash-0123456789ab").symlink_to(there)
    stuck = cache_path(data, SIDE, "pad")
    remove = shutil.rmtree

    def shut(path: Path) -> None:
        if path == stuck:
            raise PermissionError(13, "Permission denied")
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", shut)
    with pytest.raises(BiigmaError, match="Permission denied") as caught:
        clear_cache()
    assert str(stuck) in caught.value.message
    assert "2 others are removed" in caught.value.message
    assert [p for p in cache_root().iterdir() if p.is_dir() or p.is_symlink()] == [stuck]
    assert (there / "file").is_file()


def test_binary_tasks_share_an_entry(tmp_path: Path) -> None:
    """Made by one, listed under and cleared by the data set they are made from."""
    task = make(tmp_path / "images", ("MEL", "OTHER"), dataset="isic17-mel")
    for named in ("isic17", "isic17-mel", "isic17-sk"):
        build_cache(task, SIDE, "squash")
        assert [e.dataset for e in cache_entries()] == ["isic17"]
        assert len(clear_cache(named)) == 1
        assert cache_entries() == []


def test_only_our_own_is_removed(data: Manifest) -> None:
    """A data folder may hold a user's own things, even in `cache`."""
    build_cache(data, SIDE, "squash")
    for name in ("thesis", ".hidden~", "isic18-16-squash", "isic18-16-squash-0123456789ag"):
        (cache_root() / name).mkdir()
        (cache_root() / name / "text").touch()
    assert len(cache_entries()) == 1
    assert len(clear_cache()) == 1
    assert len(list(cache_root().glob("*/text"))) == 4
