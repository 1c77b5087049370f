"""Trunks with three taps: what the paper calls F, R^(l) and R^last (section 2)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from biigma_cli.config import ModelConfig
from biigma_cli.errors import ModelFileError, UsageError


class Taps(NamedTuple):
    """Feature maps at strides 8, 16 and 32, all after a ReLU.

    Attributes:
        early: `(B, C1, 4H, 4W)`.
        middle: `(B, C2, 2H, 2W)`.
        last: `(B, C, H, W)`, the paper's R.
    """

    early: Tensor
    middle: Tensor
    last: Tensor


class DenseNet121(nn.Module):
    """torchvision's DenseNet-121 without its classifier.

    Taps: the ReLU'd inputs of transitions 2 and 3 and the ReLU'd final norm, that is
    512 x 28 x 28, 1024 x 14 x 14 and 1024 x 7 x 7 at side 224.
    """

    channels = (512, 1024, 1024)

    def __init__(self) -> None:
        super().__init__()
        self.features = torchvision.models.densenet121(weights=None).features

    def early(self, image_B3HW: Tensor) -> Tensor:
        """The first tap alone."""
        f = self.features
        x = f.pool0(f.relu0(f.norm0(f.conv0(image_B3HW))))
        x = f.transition1(f.denseblock1(x))
        # A transition is norm, relu, conv, pool: the tap lies between relu and conv.
        return F.relu(f.transition2.norm(f.denseblock2(x)))

    def forward(self, image_B3HW: Tensor) -> Taps:
        f = self.features
        early = self.early(image_B3HW)
        x = f.transition2.pool(f.transition2.conv(early))
        middle = F.relu(f.transition3.norm(f.denseblock3(x)))
        x = f.transition3.pool(f.transition3.conv(middle))
        last = F.relu(f.norm5(f.denseblock4(x)))
        return Taps(early, middle, last)


class MobileNetV2(nn.Module):
    """torchvision's MobileNetV2 without its classifier: the light trunk.

    Taps: the ReLU6'd expansions that open the stride-16 and stride-32 stages (the counterparts of
    DenseNet's transition inputs) and the last 1x1 convolution: 192 x 28 x 28, 576 x 14 x 14 and
    1280 x 7 x 7 at side 224.
    """

    channels = (192, 576, 1280)

    def __init__(self) -> None:
        super().__init__()
        self.features = torchvision.models.mobilenet_v2(weights=None).features

    def early(self, image_B3HW: Tensor) -> Tensor:
        """The first tap alone."""
        x = image_B3HW
        for block in self.features[:7]:
            x = block(x)
        tap: Tensor = self.features[7].conv[0](x)
        return tap

    def forward(self, image_B3HW: Tensor) -> Taps:
        f = self.features
        x = image_B3HW
        for block in f[:7]:
            x = block(x)
        early, x = self._open_stage(f[7], x)
        for block in f[8:14]:
            x = block(x)
        middle, x = self._open_stage(f[14], x)
        for block in f[15:]:
            x = block(x)
        return Taps(early, middle, x)

    @staticmethod
    def _open_stage(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Expansion (tap) and output of a strided inverted residual, which has no skip."""
        layers = list(block.conv)  # type: ignore[arg-type]
        tap = layers[0](x)
        x = tap
        for layer in layers[1:]:
            x = layer(x)
        return tap, x


TRUNKS: dict[str, type[DenseNet121] | type[MobileNetV2]] = {
    "densenet121": DenseNet121,
    "mobilenet_v2": MobileNetV2,
}


def build_trunk(config: ModelConfig, *, load_weights: bool = True) -> DenseNet121 | MobileNetV2:
    """The trunk of `config`, with its backbone weights where `load_weights`.

    Raises:
        ModelFileError: the weights file is missing, corrupt or of another network.
        UsageError: torchvision's weights cannot be fetched.
    """
    trunk = TRUNKS[config.trunk]()
    if not load_weights or config.weights == "none":
        return trunk
    if config.weights == "imagenet":
        state = _torchvision_state(config.trunk)
    else:
        state = _file_state(Path(config.weights))
    _load(trunk, state, config)
    return trunk


def resolve_normalisation(config: ModelConfig) -> str:
    """The normalisation meant by `auto`: that of the backbone weights.

    Raises `ModelFileError` where a weights file cannot be read.
    """
    if config.normalisation != "auto":
        return config.normalisation
    if config.weights == "imagenet":
        return "imagenet"
    if config.weights == "none":
        return "unit"
    with _open(Path(config.weights)) as file:
        stated = (file.metadata() or {}).get("input", "")
    return "symmetric" if "x/127.5-1" in stated.replace(" ", "") else "imagenet"


def _torchvision_state(trunk: str) -> dict[str, Tensor]:
    from urllib.error import URLError

    build = getattr(torchvision.models, trunk)
    try:
        return dict(build(weights="DEFAULT").state_dict())
    except (URLError, OSError) as error:
        raise UsageError(
            f"cannot fetch torchvision's ImageNet weights for {trunk}: {error}",
            fix="connect to the internet, or set model.weights to a local .safetensors file, "
            "or to 'none'",
        ) from error


def _open(path: Path) -> safe_open:
    if not path.is_file():
        raise ModelFileError(f"no weights file at {path}", fix="check model.weights")
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path} is not a readable safetensors file: {error}",
            fix="download or convert it again",
        ) from error


def _file_state(path: Path) -> dict[str, Tensor]:
    with _open(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _load(trunk: nn.Module, state: dict[str, Tensor], config: ModelConfig) -> None:
    wanted = trunk.state_dict()
    state = {k.removeprefix("trunk."): v for k, v in state.items()}
    # Counters of batch norm are not weights; files often leave them out.
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    wrong = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
    if missing or wrong:
        raise ModelFileError(
            f"{config.weights} does not fit {config.trunk}: {len(missing)} tensors missing "
            f"(such as {missing[:2]}), {len(wrong)} of another shape (such as {wrong[:2]})",
            fix="choose the trunk the file was made for with --set model.trunk=...",
        )
    with torch.no_grad():
        trunk.load_state_dict({k: state.get(k, v) for k, v in wanted.items()})
