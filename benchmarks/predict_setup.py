"""Pictures and models for `predict.py`: made anew in a temporary folder, nothing fetched."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from PIL import Image

from biigma_cli.config import Config, ModelConfig, preset
from biigma_cli.core.model import BiigmaNet
from biigma_cli.core.weights import Checkpoint, model_state
from biigma_cli.data.preprocess import load_image
from biigma_cli.data.synthetic import SyntheticOptions, write_synthetic
from biigma_cli.runtime.export import export_onnx
from biigma_cli.runtime.proto import sealed
from biigma_cli.runtime.quantise import quantise
from biigma_cli.runtime.session import DEFAULT_MODEL
from biigma_cli.storage import models_dir
from biigma_cli.taxonomy import ISIC18

SIZE = (600, 450)
HAM = Path(__file__).resolve().parents[2] / "shared" / "data" / "ham10000"
CALIBRATION = 32


@dataclass(frozen=True, kw_only=True)
class Model:
    """One network in all the forms it is measured in.

    Attributes:
        name: of the trunk, as torchvision calls it; empty where it has none such.
        file: float32 export.
        int8: quantised export, None where there is none.
        int8_made: whether that was quantised here, rather than given.
        aims: whether the aims are about it.
    """

    name: str
    title: str
    side: int
    file: Path
    int8: Path | None
    int8_made: bool
    aims: bool


def make_pictures(folder: Path, count: int) -> tuple[list[Path], str]:
    """JPEGs of 600x450 at quality 90, and what they show."""
    found = sorted(HAM.glob("HAM10000_images_part_*/*.jpg"))
    shown = f"HAM10000's, {len(found)} files enlarged"
    if not found:
        drawn = folder / "drawn"
        write_synthetic(SyntheticOptions(count=max(64, min(count, 256)), side=450), drawn)
        found = sorted(drawn.rglob("*.jpg"))
        shown = f"{len(found)} drawn ones stretched"
    target = folder / "pictures"
    target.mkdir()
    for number, source in enumerate(itertools.islice(itertools.cycle(found), count)):
        with Image.open(source) as image:
            large = image.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)
        large.save(target / f"{number:05}.jpg", quality=90)
    return sorted(target.iterdir()), f"{count} JPEGs of {SIZE[0]}x{SIZE[1]} ({shown})"


def make_models(
    folder: Path, pictures: list[Path], names: list[str], int8: dict[str, Path], *, quantise: bool
) -> list[Model]:
    """Those named, of `densenet121` (untrained: speed does not depend on weights), `light` and
    `default`, which ship."""
    models = []
    for name in names:
        if name == "densenet121":
            side, trunk, file = 224, "densenet121", folder / "densenet121.onnx"
            title = "BIIGMA-Net on DenseNet-121 at 224, three heads, untrained"
            _export(file, pictures, side)
        elif name == "default":
            side, trunk, file = 160, "", models_dir() / f"{DEFAULT_MODEL}.onnx"
            title = f"{DEFAULT_MODEL}, the default: three networks at 160"
        else:
            side, trunk, file = 160, "mobilenet_v2", models_dir() / "biigma-light-isic18.onnx"
            title = "the shipped light model: BIIGMA-Net on MobileNetV2 at 160"
        quantised = int8.get(name)
        if quantised is None and quantise and trunk:  # its weights are in int8 already
            quantised = folder / f"{name}-int8.onnx"
            _quantise(file, quantised, pictures, side)
        models.append(
            Model(
                name=trunk, title=title, side=side, file=file, int8=quantised,
                int8_made=quantised is not None and name not in int8, aims=name == "densenet121",
            )
        )  # fmt: skip
    return models


def _export(path: Path, pictures: list[Path], side: int) -> None:
    config = preset("paper-isic18")
    model = {**asdict(config.model), "weights": "none", "normalisation": "unit"}
    config = Config(model=ModelConfig(**model), loss=config.loss)
    torch.manual_seed(0)
    network = BiigmaNet(config.model, len(ISIC18.codes), load_weights=False)
    meta = {
        "config": config.to_dict(),
        "classes": list(ISIC18.codes),
        "licence": "none: untrained, for timing alone",
        "citation": "",
        "protocol": "untrained",
        "split": {},
        "selection": "",
        "epoch": 0,
        "validation": {},
        "versions": {"torch": torch.__version__},
    }
    images = np.stack([load_image(p, side) for p in pictures[:4]])
    export_onnx(Checkpoint(model_state(network), meta), path, images, source="four pictures")


def _quantise(source: Path, target: Path, pictures: list[Path], side: int) -> None:
    """As the export does, ranges from a few of the pictures."""
    original = onnx.load(source)
    made = quantise(original, np.stack([load_image(p, side) for p in pictures[:CALIBRATION]]))
    del made.metadata_props[:]
    made.metadata_props.extend(original.metadata_props)
    target.write_bytes(sealed(made))
