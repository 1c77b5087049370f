"""A trunk that comes out of an exported model: the same function, fit to be trained."""

from __future__ import annotations

import copy
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from biigma_cli.config import ModelConfig
from biigma_cli.core.backbone import TRUNKS, build_trunk, resolve_normalisation
from biigma_cli.core.exported import exported_file, read_metadata, settle_norms, trunk_state
from biigma_cli.core.weights import load_checkpoint, load_model
from biigma_cli.errors import ModelFileError
from biigma_cli.runtime.narrow import halve_weights
from tests.conftest import TINY, call, unsealed

SHIPPED = "biigma-light-isic18"


def draw(count: int, side: int = 64) -> torch.Tensor:
    """Images as a trunk takes them."""
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(count)) * 2 - 1


def test_the_same_trunk(tiny_run: Path, tiny_onnx: Path) -> None:
    """All taps are those of the checkpoint it was exported from, before and after settling."""
    stored = load_checkpoint(tiny_run / "weights" / "best.safetensors")
    expected = load_model(stored).trunk(draw(4))
    config = ModelConfig(trunk="mobilenet_v2", weights=str(tiny_onnx))
    assert resolve_normalisation(config) == stored.config.model.normalisation
    trunk = build_trunk(config).eval()
    for ours, theirs in zip(trunk(draw(4)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    settle_norms(trunk, draw(16))
    assert not trunk.training
    for ours, theirs in zip(trunk(draw(4)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_the_same_trunk_from_halved_weights(tiny_onnx: Path, tmp_path: Path) -> None:
    """Through the casts that make float16 weights float32 again."""
    proto = unsealed(tiny_onnx)
    halve_weights(proto, spared="novelty")
    onnx.save(proto, tmp_path / "halved.onnx")
    whole, halved = (
        trunk_state(path, TRUNKS["mobilenet_v2"](), "mobilenet_v2")
        for path in (tiny_onnx, tmp_path / "halved.onnx")
    )
    assert whole.keys() == halved.keys()
    for name, value in whole.items():
        torch.testing.assert_close(halved[name], value, rtol=1e-3, atol=1e-6)
    assert any(not torch.equal(halved[name], value) for name, value in whole.items())


def test_settled_norms_can_be_trained() -> None:
    """In training mode a settled trunk gives what it gives in eval; an unsettled one does not."""
    trunk = build_trunk(ModelConfig(trunk="mobilenet_v2", weights=SHIPPED))
    raw, images = copy.deepcopy(trunk), draw(8, 96)
    expected = trunk.eval()(images).last.detach()
    settle_norms(trunk, images)
    off = [
        (t.train()(images).last.detach() - expected).abs().mean() / expected.abs().mean()
        for t in (trunk, raw)
    ]
    assert off[0] < 1e-3
    assert off[1] > 0.1


def there_and_back(tmp_path: Path, kind: str) -> tuple[Path, nn.Module, nn.Module]:
    """A trunk trained, exported and taken from the file; says the same. Also its own before."""
    words = [*TINY, "--set", f"model.trunk={kind}", "--name", "there", "--epochs", "1"]
    done = call(*words, "--runs", tmp_path)
    assert done.code == 0, done.err
    path = tmp_path / "there.onnx"
    done = call("export", "onnx", "--run", tmp_path / "there", "-o", path, "--no-input-check")
    assert done.code == 0, done.err
    stored = load_checkpoint(tmp_path / "there" / "weights" / "best.safetensors")
    theirs = load_model(stored).trunk
    trunk = build_trunk(ModelConfig(trunk=kind, weights=str(path))).eval()
    settle_norms(trunk, draw(16))
    for ours, expected in zip(trunk(draw(4)), theirs(draw(4)), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-3)
    return path, trunk, theirs


def test_a_trunk_with_norms_before_its_convolutions(home: Path, tmp_path: Path) -> None:
    """DenseNet's: what could not be folded comes back as it was, and settling leaves it so."""
    _, *trunks = there_and_back(tmp_path, "densenet121")
    for name in ("denseblock1.denselayer1.norm1", "transition2.norm", "norm5"):
        ours, expected = (t.get_submodule(f"features.{name}").state_dict() for t in trunks)
        for part in ("weight", "bias", "running_mean", "running_var"):
            torch.testing.assert_close(ours[part], expected[part])


def test_which_weights_are_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An .onnx file, or a shipped model's name where no file has it."""
    monkeypatch.chdir(tmp_path)
    assert exported_file("somewhere/a.onnx") == Path("somewhere/a.onnx")
    found = exported_file(SHIPPED)
    assert found is not None
    assert found.is_file()
    for other in ("imagenet", "none", "a.safetensors", f"x/{SHIPPED}"):
        assert exported_file(other) is None
    Path(SHIPPED).touch()
    assert exported_file(SHIPPED) is None


def test_what_is_refused(tmp_path: Path) -> None:
    """Each with one message that says what to take instead."""

    def refused(path: Path, trunk: str, match: str) -> None:
        with pytest.raises(ModelFileError, match=match):
            trunk_state(path, TRUNKS[trunk](), trunk)

    shipped = exported_file(SHIPPED)
    assert shipped is not None
    refused(tmp_path / "no.onnx", "mobilenet_v2", "no model at")
    refused(shipped, "densenet121", "has the trunk mobilenet_v2, not densenet121")
    refused(shipped.with_stem("biigma-edge-isic18"), "mobilenet_v2", "in int8")
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(b"no model at all")
    refused(junk, "mobilenet_v2", "not a readable ONNX model|not exported by biigma")
    proto = onnx.load(shipped)
    first = next(i for i in proto.graph.initializer if i.name.endswith("features.0.0.weight"))
    whole, first.raw_data = first.raw_data, first.raw_data[:-4]
    onnx.save(proto, junk)
    refused(junk, "mobilenet_v2", r"damaged tensor, .*features\.0\.0\.weight")
    first.raw_data, first.data_location = b"", onnx.TensorProto.EXTERNAL
    first.external_data.add(key="location", value="/etc/passwd")
    junk.write_bytes(proto.SerializeToString())
    refused(junk, "mobilenet_v2", "it lies in another file")
    first.raw_data, first.data_location = whole, onnx.TensorProto.DEFAULT
    del first.external_data[:]
    # Neither the norm itself nor the bias that it would have left in a convolution.
    for held in proto.graph.initializer:
        if held.name.endswith("features.3.conv.2.weight_bias"):
            held.name = "another"
    onnx.save(proto, junk)
    refused(junk, "mobilenet_v2", r"norm features\.3\.conv\.3, nor a .* folded in")
    for entry in proto.metadata_props:
        if entry.key == "config":
            entry.value = "{}"
    onnx.save(proto, junk)
    with pytest.raises(ModelFileError, match="damaged metadata"):
        read_metadata(junk)
    del proto.metadata_props[:]
    onnx.save(proto, junk)
    with pytest.raises(ModelFileError, match="not exported by biigma"):
        read_metadata(junk)


def test_efficientnet_lite_there_and_back(home: Path, tmp_path: Path) -> None:
    """It trains, exports, and its trunk comes back from the file; its padding is in there."""
    path, *_ = there_and_back(tmp_path, "efficientnet_lite0")
    strided = [
        {a.name: list(a.ints) for a in node.attribute}
        for node in onnx.load(path).graph.node
        if node.op_type == "Conv"
    ]
    pads = [a["pads"] for a in strided if a["strides"] == [2, 2]]
    assert pads == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 2, 2], [0, 0, 1, 1], [1, 1, 2, 2]]


def test_training_from_an_exported_model(home: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    """By file; its data and command go with the run, and another split's network is refused."""
    words = [w if w != "none" else str(tiny_onnx) for w in TINY]
    done = call(*words, "--epochs", "1", "--name", "a", "--runs", tmp_path)
    assert done.code == 0, done.err
    meta = load_checkpoint(tmp_path / "a" / "weights" / "best.safetensors").meta
    (behind,) = meta["ancestors"]
    assert behind["run"] == "tiny"
    assert "--name tiny" in behind["command"]
    done = call(*words, "--epochs", "1", "--name", "b", "--runs", tmp_path, "--seed", "5",
                "--set", "data.split_seed=5")  # fmt: skip
    assert done.code != 0
    assert "in another split" in done.err
    assert not (tmp_path / "b").exists()
    done = call(*TINY[:4], "biigma-nothing", *TINY[5:], "--runs", tmp_path)
    assert done.code == 3
    assert "no shipped model of that name" in done.err
