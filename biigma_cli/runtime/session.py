"""Inference from an exported model with ONNX Runtime; torch is never imported."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from biigma_cli.data.preprocess import RESIZE_RULES, Pixels
from biigma_cli.errors import DeviceError, ModelFileError, UsageError
from biigma_cli.storage import available_cpus, models_dir

FORMAT = "biigma-onnx-1"
DEFAULT_MODEL = "biigma-light-isic18"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# What must be in a model's metadata for it to be used here.
REQUIRED_KEYS = ("classes", "class_names", "malignant", "preprocessing", "licence", "split")


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What an exported model says of itself.

    Attributes:
        name: file stem.
        classes: class codes in the order of the probabilities.
        class_names: full names.
        malignant: malignant or pre-malignant, per class; None where nobody has said.
        side: the square side it takes, in pixels.
        rule: how images become that square, see `data.preprocess.load_image`.
        temperature: T that the logits are divided by, fitted on the validation part; None where
            none was: the probabilities are as trained.
        metadata: everything else, decoded.
    """

    name: str
    path: Path
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    malignant: tuple[bool | None, ...]
    side: int
    rule: str
    temperature: float | None
    metadata: dict[str, Any]


class Answer(NamedTuple):
    """A batch's results.

    Attributes:
        probabilities_BY: softmax of the R branch's logits over the model's temperature.
        saliency_BHW: the map M, or None where the model has none.
        logits_BY: scores before temperature and softmax.
        evidence_BYHW: what each position adds to each logit; with the head's bias they sum to it.
            None where the model was exported by a version that had none.
    """

    probabilities_BY: npt.NDArray[np.float32]
    saliency_BHW: npt.NDArray[np.float32] | None
    logits_BY: npt.NDArray[np.float32]
    evidence_BYHW: npt.NDArray[np.float32] | None


def find_model(name: str | None) -> Path:
    """A model by file or by the name of a shipped one; None takes `BIIGMA_MODEL` or the default.

    Raises `ModelFileError` that lists the shipped models where there is no such thing.
    """
    name = name or os.environ.get("BIIGMA_MODEL") or DEFAULT_MODEL
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = models_dir() / f"{name}.onnx"
    if shipped.is_file():
        return shipped
    if path.is_dir():
        raise ModelFileError(f"{path} is a folder", fix="name the .onnx file in it")
    listed = ", ".join(p.stem for p in shipped_models()) or "none"
    raise ModelFileError(f"no model {name!r}", fix=f"give an .onnx file or one of: {listed}")


def shipped_models() -> list[Path]:
    """The models that come with the package."""
    return sorted(models_dir().glob("*.onnx"))


class Predictor:
    """An exported model in an ONNX Runtime session.

    Args:
        path: an `.onnx` file written by `biigma export onnx`.
        device: `auto`, `cpu` or `cuda`; `auto` takes CUDA where the session really gets it.

    Raises:
        ModelFileError: missing, corrupt, or not exported by biigma.
        DeviceError: `cuda` was asked for and the session did not get it.
        UsageError: an unknown device.
    """

    def __init__(self, path: Path, *, device: str = "auto") -> None:
        if device not in ("auto", *PROVIDERS):
            raise UsageError(f"unknown device {device!r}", fix="choose auto, cpu or cuda")
        if not path.is_file():
            raise ModelFileError(f"no model at {path}", fix="check --model")
        import onnxruntime as ort

        ort.set_default_logger_severity(4)  # what matters comes back as an exception
        available = ort.get_available_providers()
        if device == "cuda":
            _need_cuda(ort, available)
        wanted = [PROVIDERS["cpu"]]
        if device != "cpu" and PROVIDERS["cuda"] in available and _has_gpu():
            ort.preload_dlls()
            wanted.insert(0, PROVIDERS["cuda"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = available_cpus()
        try:
            self.session = ort.InferenceSession(str(path), options, providers=wanted)
        except Exception as error:  # onnxruntime's own exceptions share no other base
            raise ModelFileError(
                f"{path} is not a model ONNX Runtime can load: {_first_line(error)}",
                fix="export it again with 'biigma export onnx', or choose another --model",
            ) from error
        #: The provider that really runs, such as `CPUExecutionProvider`.
        self.provider: str = self.session.get_providers()[0]
        if device == "cuda" and self.provider != PROVIDERS["cuda"]:
            raise DeviceError(
                f"ONNX Runtime fell back to {self.provider}: its CUDA provider could not start",
                fix="install the CUDA and cuDNN libraries it was built for, or use --device cpu",
            )
        self.info = read_info(path, self.session.get_modelmeta().custom_metadata_map)
        outputs = {o.name for o in self.session.get_outputs()}
        self._outputs = ["probabilities", "logits"]
        self._outputs += [name for name in ("saliency", "evidence") if name in outputs]

    def __call__(self, pixels: Pixels) -> Answer:
        """Classify uint8 `(B, side, side, 3)` as `data.preprocess.load_image` makes them."""
        result = self.session.run(self._outputs, {"image": pixels})
        named = dict(zip(self._outputs, result, strict=True))
        return Answer(
            named["probabilities"], named.get("saliency"), named["logits"], named.get("evidence")
        )


def read_info(path: Path, metadata: dict[str, str]) -> ModelInfo:
    """Decode an exported model's metadata. Raises `ModelFileError` where it is not ours."""
    missing = [k for k in REQUIRED_KEYS if k not in metadata]
    if metadata.get("biigma_format") != FORMAT or missing:
        raise ModelFileError(
            f"{path} is an ONNX model, but not one exported by biigma"
            + (f" (no {', '.join(missing)} in its metadata)" if missing else ""),
            fix="use a model made by 'biigma export onnx'",
        )
    try:
        values = {k: json.loads(v) for k, v in metadata.items() if k != "biigma_format"}
        wanted = values["preprocessing"]["resize"]
        rule = next((rule for rule, name in RESIZE_RULES.items() if name == wanted), None)
        if rule is None:
            raise ModelFileError(
                f"{path} wants its images resized by {wanted!r}, "
                f"this version does {', '.join(RESIZE_RULES.values())}",
                fix="export it again with this version",
            )
        return ModelInfo(
            name=path.stem,
            path=path,
            classes=tuple(values["classes"]),
            class_names=tuple(values["class_names"]),
            malignant=tuple(values["malignant"]),
            side=int(values["preprocessing"]["side"]),
            rule=rule,
            temperature=_temperature(values.get("calibration")),
            metadata=values,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(
            f"{path} has damaged metadata: {error}", fix="export it again"
        ) from error


def _temperature(calibration: dict[str, Any] | None) -> float | None:
    """Raises as a damaged value does: `ValueError`, `KeyError` or `TypeError`."""
    if calibration is None:  # exported without, or by a version that had none
        return None
    temperature = float(calibration["temperature"])
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"its temperature is {temperature}")
    return temperature


def _need_cuda(ort: Any, available: list[str]) -> None:
    if PROVIDERS["cuda"] not in available:
        raise DeviceError(
            f"this onnxruntime ({ort.__version__}) has no CUDA provider; it has: "
            + ", ".join(available),
            fix="install onnxruntime-gpu instead of onnxruntime, or use --device cpu",
        )
    if not _has_gpu():
        raise DeviceError(
            "no CUDA device: no NVIDIA driver answers on this machine",
            fix="use --device cpu, or install the driver",
        )


def _has_gpu() -> bool:
    """Whether an NVIDIA driver with at least one GPU is loaded; asks it, without torch."""
    import ctypes

    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        count = ctypes.c_int(0)
        return (
            driver.cuInit(0) == 0
            and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
            and count.value > 0
        )
    except (OSError, AttributeError):
        return False


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
