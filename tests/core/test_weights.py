"""Checkpoints: tensors and JSON, never a pickle."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from biigma_cli.config import Config, DataConfig
from biigma_cli.core.weights import load_checkpoint, load_model, model_state, save_checkpoint
from biigma_cli.errors import CheckpointMismatch, ModelFileError
from tests.core.tiny import images, tiny_config, tiny_net

CLASSES = ["MEL", "SK", "NV"]
CONFIG = Config(model=tiny_config(), data=DataConfig(dataset="isic17", side=96))
META: dict[str, Any] = {
    "config": CONFIG.to_dict(),
    "classes": CLASSES,
    "epoch": 7,
    "metrics": {"macro_f1": 0.1 + 0.2},
    "note": "dermatoscopic – ünïcode",
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of a tiny network with an optimizer tensor beside it."""
    path = tmp_path / "weights" / "last.safetensors"
    tensors = model_state(tiny_net(3, seed=5)) | {"optim.exp_avg.head.bias": torch.randn(3)}
    save_checkpoint(path, tensors, META)
    return path


def test_round_trip_bit_for_bit(tmp_path: Path) -> None:
    """All dtypes, NaN and infinity, a scalar, a strided view; meta as it was."""
    tensors = {
        "optim.f32": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "optim.bf16": torch.randn(3, 5).bfloat16(),
        "optim.i64": torch.tensor(2**40 + 1),
        "optim.view": torch.randn(4, 6).T[::2],
        "model.grad": torch.randn(2, requires_grad=True),
    }
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, tensors, META)
    back = load_checkpoint(path)
    assert back.meta == META
    assert back.config == CONFIG
    assert set(back.tensors) == set(tensors)
    for name, tensor in tensors.items():
        got = back.tensors[name]
        assert got.dtype == tensor.dtype
        assert got.shape == tensor.shape
        plain = tensor.detach().contiguous().flatten().view(torch.uint8)
        assert torch.equal(got.flatten().view(torch.uint8), plain)


def test_model_round_trip(checkpoint: Path) -> None:
    """The network comes back with every tensor, in eval mode, with the same logits."""
    net, back = tiny_net(3, seed=5), load_model(load_checkpoint(checkpoint), classes=CLASSES)
    state = back.state_dict()
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
    assert not back.training
    x = images(2, 96)
    with torch.no_grad():
        torch.testing.assert_close(net.infer(x).logits_BY, back.infer(x).logits_BY)


def test_save_replaces_whole(checkpoint: Path) -> None:
    """A second save leaves one file, the new one."""
    save_checkpoint(checkpoint, {"model.x": torch.ones(2)}, META)
    assert list(load_checkpoint(checkpoint).tensors) == ["model.x"]
    assert [p.name for p in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_file_holds_no_pickle(checkpoint: Path) -> None:
    """Eight bytes of length, a JSON header, then exactly the tensors' bytes."""
    raw = checkpoint.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    assert json.loads(header.pop("__metadata__")["biigma"]) == META
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(raw) - 8 - length


class Trap:
    """Writes a file where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.write_text, (self.target, "sprung"))


def test_pickled_checkpoint_is_refused_unread(tmp_path: Path) -> None:
    """A torch.save file is not a checkpoint, and nothing in it runs."""
    path, target = tmp_path / "evil.pt", tmp_path / "sprung"
    torch.save({"model": Trap(target)}, path)
    with pytest.raises(ModelFileError, match=r"evil\.pt is not a readable checkpoint"):
        load_checkpoint(path)
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists()  # the trap works


def test_missing_file(tmp_path: Path) -> None:
    """The path is named."""
    with pytest.raises(ModelFileError, match=r"no checkpoint at .*gone") as info:
        load_checkpoint(tmp_path / "gone")
    assert info.value.fix


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"biigma": "{}"}])
def test_not_our_file(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    """A safetensors file of someone else's."""
    path = tmp_path / "other.safetensors"
    save_file({"model.x": torch.zeros(2)}, path, metadata=metadata)
    with pytest.raises(ModelFileError, match="was not written by biigma"):
        load_checkpoint(path)


@pytest.mark.parametrize("header", [None, "{oops", "{}"])
def test_broken_header(tmp_path: Path, header: str | None) -> None:
    """Our format's name over no JSON, bad JSON, or JSON without config and classes."""
    path = tmp_path / "edited.safetensors"
    metadata = {"format": "biigma-checkpoint-1"} | ({"biigma": header} if header else {})
    save_file({"model.x": torch.zeros(2)}, path, metadata=metadata)
    with pytest.raises(ModelFileError):
        load_model(load_checkpoint(path))


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.999999])
def test_truncated_file(checkpoint: Path, share: float) -> None:
    """Cut anywhere: in the length, the header or the tensors."""
    raw = checkpoint.read_bytes()
    checkpoint.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(ModelFileError, match="not a readable checkpoint") as info:
        load_checkpoint(checkpoint)
    assert info.value.fix


@pytest.mark.parametrize("classes", [["MEL", "NV", "SK"], ["MEL", "SK"], ["A", "B", "C", "D"]])
def test_other_classes(checkpoint: Path, classes: list[str]) -> None:
    """Another order or another number of classes; the message shows both."""
    with pytest.raises(CheckpointMismatch, match="3 classes") as info:
        load_model(load_checkpoint(checkpoint), classes=classes)
    assert ", ".join(CLASSES) in info.value.message
    assert ", ".join(classes) in info.value.message


def test_tensors_that_do_not_fit(checkpoint: Path) -> None:
    """A missing, a surplus and a misshapen tensor are each named."""
    whole = load_checkpoint(checkpoint)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"model.head.bias": None}, "head.bias"),
        ({"model.surplus": torch.zeros(1)}, "surplus"),
        ({"model.head.weight": torch.zeros(3, 9)}, r"head.weight is \(3, 9\), expected \(3, 72\)"),
    ]
    for change, message in changes:
        tensors = {k: v for k, v in (whole.tensors | change).items() if v is not None}
        with pytest.raises(CheckpointMismatch, match=message):
            load_model(whole._replace(tensors=tensors))
