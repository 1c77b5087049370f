"""Exported files carry a digest of themselves; what is damaged is refused by whatever reads it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path

import onnx
import pytest
import torch

from biigma_cli.core import digest
from biigma_cli.core.backbone import TRUNKS
from biigma_cli.core.digest import KEY, check_content, seal
from biigma_cli.core.exported import read_metadata, trunk_state
from biigma_cli.errors import AGAIN, ModelFileError
from biigma_cli.judge import open_candidate
from biigma_cli.runtime import doctor, session
from biigma_cli.runtime.doctor import look_at_model
from biigma_cli.runtime.join import _member
from biigma_cli.runtime.pipeline import model_id
from biigma_cli.runtime.session import Predictor
from biigma_cli.runtime.stored import store_figures
from biigma_cli.storage import models_dir
from tests.conftest import TINY, Outcome, call, unsealed
from tests.runtime.test_pipeline import toy_model

DAMAGED = "is damaged: its content is not what was exported"


def refused(done: Outcome, path: Path) -> None:
    """One message with its fix."""
    assert (done.code, done.out) == (3, "")
    assert done.err.count("error:") == done.err.count("fix:") == 1
    assert f"{path} {DAMAGED}" in " ".join(done.err.split())


def flipped(source: Path, at: int, target: Path, bit: int = 0) -> Path:
    """A copy with one bit changed."""
    content = bytearray(source.read_bytes())
    content[at] ^= 1 << bit
    target.write_bytes(content)
    return target


def sealed_toy(path: Path) -> Path:
    """A small model with its digest."""
    path.write_bytes(seal(toy_model(path).read_bytes()))
    return path


def test_an_export_says_its_digest(tiny_onnx: Path) -> None:
    """Anyone can check it: put zeros in its place, hash, compare."""
    content = tiny_onnx.read_bytes()
    (entry,) = (e for e in onnx.load(tiny_onnx).metadata_props if e.key == KEY)
    assert Predictor(tiny_onnx, device="cpu").info.metadata[KEY] == json.loads(entry.value)
    digits = re.fullmatch(r"sha256:([0-9a-f]{64})", json.loads(entry.value))
    assert digits is not None
    assert content.count(digits[1].encode()) == 1
    blank = content.replace(digits[1].encode(), b"0" * 64)
    assert hashlib.sha256(blank).hexdigest() == digits[1]
    assert check_content(tiny_onnx, content) == hashlib.sha256(content).hexdigest()


def test_any_changed_bit_is_seen(tmp_path: Path) -> None:
    """In the graph, the weights, the metadata, or the digest itself and what surrounds it."""
    path = sealed_toy(tmp_path / "toy.onnx")
    content = bytearray(path.read_bytes())
    check_content(path, bytes(content))
    for at in range(len(content)):
        for bit in (0, 5):
            content[at] ^= 1 << bit
            with pytest.raises(ModelFileError, match=DAMAGED):
                check_content(path, bytes(content))
            content[at] ^= 1 << bit
    for changed in (content[:-1], content[:-40], content[:-75], content + b"\0"):
        with pytest.raises(ModelFileError, match=DAMAGED):
            check_content(path, bytes(changed))


def test_the_last_entry_counts(tmp_path: Path) -> None:
    """Whatever else looks like one is content like other."""
    path = sealed_toy(tmp_path / "toy.onnx")
    twice = seal(path.read_bytes())
    check_content(path, twice)
    with pytest.raises(ModelFileError, match=DAMAGED):
        check_content(path, twice.replace(b"sha256:", b"sha257:", 1))


def test_without_the_entry(tiny_onnx: Path, tmp_path: Path) -> None:
    """As an earlier version exported it, or with the entry removed to change it: it loads."""
    path = tmp_path / "older.onnx"
    proto = unsealed(tiny_onnx)
    onnx.save(proto, path)
    assert KEY.encode() not in path.read_bytes()
    assert KEY not in Predictor(path, device="cpu").info.metadata
    assert read_metadata(path)["classes"] == read_metadata(tiny_onnx)["classes"]
    proto.metadata_props.add(key="remark", value='"mine"')
    onnx.save(proto, path)
    assert Predictor(path, device="cpu").info.metadata["remark"] == "mine"


def test_another_program_changed_it(tiny_onnx: Path, picture: Path, tmp_path: Path) -> None:
    """Refused, and what to do if that was meant; written again as it was, it is whole."""
    proto = onnx.load(tiny_onnx)
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    Predictor(path, device="cpu")
    proto.metadata_props.add(key="remark", value='"mine"')
    onnx.save(proto, path)
    done = call("predict", picture, "--model", path, "--device", "cpu")
    refused(done, path)
    assert f"remove its metadata entry {KEY}" in " ".join(done.err.split())


@pytest.fixture(scope="module")
def broken(tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One bit of its weights is another."""
    content = tiny_onnx.read_bytes()
    held = max(onnx.load(tiny_onnx).graph.initializer, key=lambda i: len(i.raw_data))
    at = content.index(held.raw_data) + 1000
    return flipped(tiny_onnx, at, tmp_path_factory.mktemp("broken") / "broken.onnx")


def test_every_command_refuses_it(
    broken: Path, tiny_onnx: Path, picture: Path, tmp_path: Path
) -> None:
    """With one message and the code of a damaged file."""
    out = tmp_path / "out"
    for words in (
        ("predict", picture, "--model", broken, "--device", "cpu"),
        ("explain", picture, "--model", broken, "--device", "cpu", "-o", out),
        ("eval", "--model", broken, "--device", "cpu", "--store"),
        ("models", broken),
        ("join", tiny_onnx, broken, "-o", out.with_suffix(".onnx")),
        (*TINY[:4], broken, *TINY[5:], "--runs", out),
        (*TINY, "--set", f'train.teachers=["{broken}"]', "--set", "loss.distillation=1.0",
         "--runs", out),
    ):  # fmt: skip
        refused(call(*words), broken)
        assert not list(tmp_path.rglob("*.onnx"))


def test_every_reader_refuses_it(broken: Path, tiny_onnx: Path) -> None:
    """Whatever opens the file, also once more after it was looked at."""
    info = Predictor(tiny_onnx, device="cpu").info
    for read in (
        lambda: Predictor(broken, device="cpu"),
        lambda: model_id(broken),
        lambda: look_at_model(broken),
        lambda: read_metadata(broken),
        lambda: trunk_state(broken, TRUNKS["mobilenet_v2"](), "mobilenet_v2"),
        lambda: open_candidate(broken, torch.device("cpu")),
        lambda: store_figures(broken, "test", {}),
        lambda: _member(0, dataclasses.replace(info, path=broken), info.precision, ()),
    ):
        with pytest.raises(ModelFileError, match=DAMAGED):
            read()


# --- models that ship ------------------------------------------------------------------------

SMALL = "biigma-light-isic17"


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped models of a test's own: one, and the list."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in (f"{SMALL}.onnx", digest.SHIPPED):
        shutil.copy(models_dir() / name, folder)
    for module in (digest, session):
        monkeypatch.setattr(module, "models_dir", lambda: folder)
    return folder


def spoil(path: Path) -> Path:
    """Change 2,000 bytes of its weights, and nothing that a parser would see."""
    content = bytearray(path.read_bytes())
    for at in range(2_000_000, 2_002_000):
        content[at] ^= 0xFF
    path.write_bytes(content)
    return path


def test_a_shipped_model_that_is_damaged(shipped: Path, picture: Path) -> None:
    """By its name, by its path and through a link; how it comes back is said."""
    path, link = shipped / f"{SMALL}.onnx", shipped.parent / "link.onnx"
    link.symlink_to(path)
    ask = ("predict", picture, "--device", "cpu", "--model")
    assert call(*ask, SMALL).code == call(*ask, link).code == 0
    spoil(path)
    for name, shown in ((SMALL, path), (path, path), (link, link)):
        done = call(*ask, name)
        refused(done, shown)
        assert f"get the file again, or run: {AGAIN}" in " ".join(done.err.split())
    done = call("models")
    assert done.code == 5
    assert f"{path} {DAMAGED}" in " ".join(done.err.split())
    with pytest.raises(ModelFileError, match=DAMAGED):
        dict(doctor._steps())[f"model {SMALL}"]()


def test_doctor_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A problem with its fix; here of a copy elsewhere that is the user's default."""
    path = spoil(Path(shutil.copy(models_dir() / f"{SMALL}.onnx", tmp_path)))
    monkeypatch.setenv("BIIGMA_MODEL", str(path))
    done = call("doctor", "--json")
    assert done.code == 1
    checks = {c["name"]: c for c in json.loads(done.out)["checks"]}
    found = checks["model $BIIGMA_MODEL"]
    assert (found["state"], found["found"]) == ("problem", f"{path} {DAMAGED}")
    assert "get the file again" in found["fix"]
    assert checks[f"model {SMALL}"]["state"] == "ok"


def test_copies_elsewhere(shipped: Path, tmp_path: Path) -> None:
    """One of the same name and size is compared, another name or size is another model."""
    folder = tmp_path / "mine"
    folder.mkdir()
    path = Path(shutil.copy(shipped / f"{SMALL}.onnx", folder))
    Predictor(path, device="cpu")
    spoil(path)
    with pytest.raises(ModelFileError, match=DAMAGED) as caught:
        Predictor(path, device="cpu")
    assert "give it another name" in caught.value.fix
    Predictor(path.rename(folder / "own.onnx"), device="cpu")
    proto = onnx.load(shipped / f"{SMALL}.onnx")
    proto.metadata_props.add(key="remark", value='"mine"')
    onnx.save(proto, path)
    Predictor(path, device="cpu")
    # One that carries its own digest is judged by that, in the shipped folder, too.
    store_figures(shipped / f"{SMALL}.onnx", "test", {"n": 1})
    assert KEY in Predictor(shipped / f"{SMALL}.onnx", device="cpu").info.metadata
    spoil(shipped / f"{SMALL}.onnx")
    with pytest.raises(ModelFileError, match=DAMAGED):
        Predictor(shipped / f"{SMALL}.onnx", device="cpu")


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\n", b"junk\na b c\n0123  x.onnx\n"])
def test_without_the_list(shipped: Path, content: bytes | None) -> None:
    """Missing or damaged: nothing is compared, and nothing else fails."""
    listed = shipped / digest.SHIPPED
    listed.unlink()
    if content is not None:
        listed.write_bytes(content)
    assert digest.shipped_digests() == {}
    Predictor(shipped / f"{SMALL}.onnx", device="cpu")


def test_lines_of_another_system(shipped: Path) -> None:
    """The list is read with other line endings, too."""
    listed = shipped / digest.SHIPPED
    before = digest.shipped_digests()
    listed.write_bytes(listed.read_bytes().replace(b"\n", b"\r\n"))
    assert digest.shipped_digests() == before
    assert len(before) > 1
