"""Trunks, their taps and their weights."""

from __future__ import annotations

import dataclasses
import io
from email.message import Message
from http.client import IncompleteRead
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.response import addinfourl

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from biigma_cli.config import Config, ModelConfig
from biigma_cli.core.backbone import TRUNKS, build_trunk, resolve_normalisation
from biigma_cli.core.header import CHECKPOINT
from biigma_cli.core.model import BiigmaNet
from biigma_cli.core.weights import model_state, save_checkpoint
from biigma_cli.errors import EXIT_FAILURE, BiigmaError, ModelFileError, UsageError
from tests.core.tiny import images, normal

REAL_WEIGHTS = Path(__file__).parents[2] / "../shared/weights/mobilenet_v2_imagenet.safetensors"
CHANNELS = {
    "densenet121": (512, 1024, 1024),
    "mobilenet_v2": (192, 576, 1280),
    "efficientnet_lite0": (240, 672, 1280),
    "efficientnet_lite1": (240, 672, 1280),
    "efficientnet_lite2": (288, 720, 1280),
    "inception_v3": (288, 768, 2048),
}


def config(trunk: str, weights: str = "none", **changes: str) -> ModelConfig:
    """A config with this trunk."""
    return ModelConfig(trunk=trunk, weights=weights, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("trunk", list(CHANNELS))
@pytest.mark.parametrize("side", [96, 160, 224])
def test_tap_shapes(trunk: str, side: int) -> None:
    """Strides 8, 16 and 32; computed without data."""
    with torch.device("meta"):
        network = build_trunk(config(trunk))
        taps = network(torch.empty(2, 3, side, side))
    assert network.channels == CHANNELS[trunk]
    strides = zip(CHANNELS[trunk], (8, 16, 32), strict=True)
    expected = [(2, c, side // s, side // s) for c, s in strides]
    assert [tuple(t.shape) for t in taps] == expected


@pytest.mark.parametrize("trunk", ["densenet121", "mobilenet_v2"])
def test_last_tap_is_torchvisions_last_block(trunk: str) -> None:
    """Pooled and classified, the last tap gives torchvision's own logits; all taps are >= 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = getattr(torchvision.models, trunk)(weights=None)
    network = TRUNKS[trunk]()
    network.features.load_state_dict(whole.features.state_dict())
    # Batch norm in train mode: in a fresh network's eval mode the signal fades with depth.
    whole.train()
    whole.classifier.eval()
    x = images(4, 96) / 255
    with torch.no_grad():
        taps = network(x)
        torch.testing.assert_close(
            whole.classifier(taps.last.mean((2, 3))), whole(x), rtol=1e-3, atol=1e-4
        )
    for tap in taps:
        assert float(tap.min()) >= 0
        assert float(tap.std()) > 0


def test_densenet_taps_are_inputs_of_the_transitions_convolutions() -> None:
    """Early and middle taps are what transitions 2 and 3 convolve, after norm and ReLU."""
    network = TRUNKS["densenet121"]().eval()
    seen = []
    for transition in (network.features.transition2, network.features.transition3):
        transition.conv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        taps = network(images(1, 64) / 255)
    assert torch.equal(taps.early, seen[0])
    assert torch.equal(taps.middle, seen[1])


def test_mobilenet_taps_are_inputs_of_the_strided_convolutions() -> None:
    """Early and middle taps are what the depthwise convolutions of blocks 7 and 14 take."""
    network = TRUNKS["mobilenet_v2"]().eval()
    seen = []
    for block in (network.features[7], network.features[14]):
        assert block.conv[1][0].stride == (2, 2)
        block.conv[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        taps = network(images(1, 64) / 255)
    assert torch.equal(taps.early, seen[0])
    assert torch.equal(taps.middle, seen[1])


def test_inception_calls_torchvisions_blocks_in_its_order() -> None:
    """Every convolution but the classifier's, in the order of torchvision's own forward."""

    def calls(net: torch.nn.Module) -> list[str]:
        seen: list[str] = []
        for name, module in net.named_modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(lambda *_, name=name: seen.append(name))
        with torch.no_grad():
            net.eval()(images(1, 96) / 127.5 - 1)
        return seen

    whole = torchvision.models.inception_v3(
        weights=None, aux_logits=False, transform_input=False, init_weights=False
    )
    expected = calls(whole)
    assert len(expected) == 94
    assert calls(TRUNKS["inception_v3"]()) == expected


@pytest.mark.parametrize(("block", "channels"), [("Mixed_6a", 288), ("Mixed_7a", 768)])
def test_inceptions_strided_blocks_are_torchvisions_with_padding(block: str, channels: int) -> None:
    """The branches of torchvision's block, its convolutions padded; and a padded pool."""
    network = TRUNKS["inception_v3"]().eval()
    x = normal(2, channels, 10, 10).float()
    with torch.no_grad():
        found = network._reduce(network.get_submodule(block), x)
        *branches, _ = network.get_submodule(block)._forward(x)
    pool = torch.nn.functional.max_pool2d(x, 3, 2, 1)
    torch.testing.assert_close(found, torch.cat([*branches, pool], 1))


# --- weights -----------------------------------------------------------------------------------


def write_trunk(path: Path, trunk: str, *, prefix: str = "", metadata: str = "") -> dict:
    """A weights file with random tensors of this trunk, batch norm's counters left out."""
    state = {}
    for i, (key, value) in enumerate(TRUNKS[trunk]().state_dict().items()):
        if not key.endswith("num_batches_tracked"):
            state[key] = normal(*value.shape, seed=i).float()
    save_file(
        {prefix + k: v for k, v in state.items()},
        path,
        metadata={"input": metadata} if metadata else None,
    )
    return state


@pytest.mark.parametrize("prefix", ["", "trunk."])
def test_local_weights_load(tmp_path: Path, prefix: str) -> None:
    """Every tensor of the file arrives, with or without our prefix."""
    path = tmp_path / "weights.safetensors"
    state = write_trunk(path, "mobilenet_v2", prefix=prefix)
    loaded = build_trunk(config("mobilenet_v2", str(path))).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in state.items())
    left = {k.rsplit(".", 1)[1] for k in set(loaded) - set(state)}
    assert left == {"num_batches_tracked"}


@pytest.mark.parametrize("normalisation", ["symmetric", "imagenet"])
def test_trunk_of_a_checkpoint(tmp_path: Path, normalisation: str) -> None:
    """Of a checkpoint the trunk is taken, neither head nor optimizer, and its normalisation."""
    own = dataclasses.replace(config("mobilenet_v2", "none"), normalisation=normalisation)
    model = BiigmaNet(own, 3)
    with torch.no_grad():
        for i, value in enumerate(model.trunk.parameters()):
            value.copy_(normal(*value.shape, seed=i))
    path = tmp_path / "best.safetensors"
    meta = {"config": Config(model=own).to_dict(), "classes": ["a", "b", "c"]}
    save_checkpoint(path, {**model_state(model), "optim.x": torch.ones(1)}, meta)
    wanted = config("mobilenet_v2", str(path))
    loaded, expected = build_trunk(wanted).state_dict(), model.trunk.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in expected.items())
    assert resolve_normalisation(wanted) == normalisation
    with pytest.raises(ModelFileError, match="does not fit densenet121"):
        build_trunk(config("densenet121", str(path)))


def test_damaged_checkpoint_header(tmp_path: Path) -> None:
    """A header that is no JSON is one message."""
    path = tmp_path / "best.safetensors"
    save_file(
        {"model.trunk.x": torch.ones(1)}, path, metadata={"format": CHECKPOINT, "biigma": "{"}
    )
    with pytest.raises(ModelFileError, match="damaged header"):
        resolve_normalisation(config("mobilenet_v2", str(path)))


def test_load_weights_false_reads_nothing() -> None:
    """A checkpoint will fill the trunk: the file need not be there any more."""
    build_trunk(config("mobilenet_v2", "/no/such/file.safetensors"), load_weights=False)


def test_missing_weights_file(tmp_path: Path) -> None:
    """Both readers name the path."""
    wanted = config("mobilenet_v2", str(tmp_path / "gone.safetensors"))
    for read in (build_trunk, resolve_normalisation):
        with pytest.raises(ModelFileError, match=r"no weights file at .*gone\.safetensors") as info:
            read(wanted)
        assert "model.weights" in info.value.fix


@pytest.mark.parametrize("content", [b"", b"not a weights file at all", b"\xff" * 64])
def test_corrupt_weights_file(tmp_path: Path, content: bytes) -> None:
    """Empty, text, and a header length out of bounds."""
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"broken\.safetensors is not a readable") as info:
        build_trunk(config("mobilenet_v2", str(path)))
    assert info.value.fix


def test_truncated_weights_file(tmp_path: Path) -> None:
    """A download that stopped half-way."""
    path = tmp_path / "half.safetensors"
    write_trunk(path, "mobilenet_v2")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelFileError, match="not a readable safetensors file"):
        build_trunk(config("mobilenet_v2", str(path)))


def test_weights_of_another_trunk(tmp_path: Path) -> None:
    """The message names both and an example; the fix names the key."""
    path = tmp_path / "mobile.safetensors"
    write_trunk(path, "mobilenet_v2")
    with pytest.raises(ModelFileError, match=r"mobile\.safetensors does not fit densenet121") as i:
        build_trunk(config("densenet121", str(path)))
    assert "features.conv0.weight" in i.value.message
    assert "model.trunk" in i.value.fix


def test_weights_of_another_shape(tmp_path: Path) -> None:
    """The tensor that differs is named."""
    path = tmp_path / "wide.safetensors"
    state = write_trunk(path, "mobilenet_v2")
    state["features.18.1.weight"] = torch.ones(7)
    save_file(state, path)
    with pytest.raises(ModelFileError, match=r"1 of another shape.*features\.18\.1\.weight"):
        build_trunk(config("mobilenet_v2", str(path)))


@pytest.mark.parametrize(
    ("trunk", "weights", "expected"),
    [
        ("mobilenet_v2", "none", "unit"),
        ("mobilenet_v2", "imagenet", "imagenet"),
        ("densenet121", "imagenet", "imagenet"),
        ("inception_v3", "imagenet", "symmetric"),
        ("efficientnet_lite1", "imagenet", "symmetric"),
    ],
)
def test_normalisation_follows_the_weights(trunk: str, weights: str, expected: str) -> None:
    """Without a file, by name; a stated one is taken as it is."""
    assert resolve_normalisation(config(trunk, weights)) == expected
    assert resolve_normalisation(config(trunk, weights, normalisation="unit")) == "unit"


@pytest.mark.parametrize(
    ("stated", "expected"),
    [("RGB x/127.5-1", "symmetric"), ("RGB x / 127.5 - 1", "symmetric"), ("", "imagenet")],
)
def test_normalisation_follows_the_file(tmp_path: Path, stated: str, expected: str) -> None:
    """What the file's metadata states; that of the published ones where it states nothing."""
    path = tmp_path / "weights.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"input": stated} if stated else None)
    assert resolve_normalisation(config("mobilenet_v2", str(path))) == expected
    assert resolve_normalisation(config("efficientnet_lite0", str(path))) == "symmetric"


@pytest.mark.parametrize(
    "trouble",
    [
        URLError("no route to host"),
        HTTPError("https://x", 503, "Service Unavailable", Message(), None),
        IncompleteRead(b"", 9),
        ConnectionResetError(104, "Connection reset by peer"),
    ],
    ids=lambda trouble: type(trouble).__name__,
)
def test_published_weights_without_a_network(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trouble: Exception,
) -> None:
    """A failure, no mistake of the user's; what is downloaded is told on stderr alone."""

    def refuse(*_: Any) -> None:
        raise trouble

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(BiigmaError, match=r"cannot fetch .* mobilenet_v2") as info:
        build_trunk(config("mobilenet_v2", "imagenet"))
    assert info.value.exit_code == EXIT_FAILURE
    assert "model.weights" in info.value.fix
    told = capsys.readouterr()
    assert told.out == ""
    assert "Downloading" in told.err


def test_offline_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not here is not looked for."""
    monkeypatch.setenv("BIIGMA_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", pytest.fail)
    with pytest.raises(BiigmaError, match=r"BIIGMA_OFFLINE is set.*mobilenet_v2-") as info:
        build_trunk(config("mobilenet_v2", "imagenet"))
    assert "unset it" in info.value.fix


def test_published_weights_that_came_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that ends early is told by its hash; nothing of it stays."""

    def cut(*_: Any) -> Any:
        return addinfourl(io.BytesIO(b"PK\x03\x04"), Message(), "https://x")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", cut)
    with pytest.raises(BiigmaError, match=r"cannot fetch .*hash") as info:
        build_trunk(config("mobilenet_v2", "imagenet"))
    assert info.value.exit_code == EXIT_FAILURE
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_published_weights_without_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they cannot be kept, the place is named and how to choose another."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot write .*file") as info:
        build_trunk(config("mobilenet_v2", "imagenet"))
    assert "TORCH_HOME" in info.value.fix


@pytest.mark.skipif(
    not REAL_WEIGHTS.is_file(), reason="no ../shared/weights/mobilenet_v2_imagenet.safetensors"
)
def test_real_backbone_weights_load() -> None:
    """The dequantised MobileNetV2: loads, states its input range, and gives sane features."""
    wanted = config("mobilenet_v2", str(REAL_WEIGHTS))
    assert resolve_normalisation(wanted) == "symmetric"
    network = build_trunk(wanted).eval()
    with torch.no_grad():
        last = network(images(4, 96) / 127.5 - 1).last
    assert 0.01 < float((last > 0).float().mean()) < 0.9
    assert float(last.std(0).mean()) > 0.01
