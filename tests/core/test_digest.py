"""Exported files carry a digest of themselves; what is damaged is refused by whatever reads it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path

import onnx
import pytest
import torch

from biigma_cli.core.backbone import TRUNKS
from biigma_cli.core.digest import KEY, check_content, seal
from biigma_cli.core.exported import read_metadata, trunk_state
from biigma_cli.errors import ModelFileError
from biigma_cli.judge import open_candidate
from biigma_cli.runtime.doctor import look_at_model
from biigma_cli.runtime.join import _member
from biigma_cli.runtime.pipeline import model_id
from biigma_cli.runtime.session import Predictor
from biigma_cli.runtime.stored import store_figures
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
