"""Inference from an exported model with ONNX Runtime; torch is never imported."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from biigma_cli.core.digest import check_content
from biigma_cli.core.header import EXPORTED
from biigma_cli.data.preprocess import RESIZE_RULES, Pixels
from biigma_cli.errors import AGAIN, DeviceError, ModelFileError
from biigma_cli.runtime import providers
from biigma_cli.runtime.providers import PROVIDERS, first_line
from biigma_cli.storage import available_cpus, is_file, is_folder, models_dir

DEFAULT_MODEL = "biigma-trio-isic18"

# What must be in a model's metadata for it to be used here.
REQUIRED_KEYS = ("classes", "class_names", "malignant", "preprocessing", "licence", "split")

#: What values raise that are not of the form they should have.
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)

# Images of a batch where there are many.
_TOGETHER = 32

# How a key of an external tensor's place is written in a model file.
_EXTERNAL = b"\x0a\x08location\x12"


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
        input_check: whether it says of each image how far it is from the training images.
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
    input_check: bool
    metadata: dict[str, Any]

    @property
    def precision(self) -> str:
        """As of `config.PRECISIONS`; of networks that are joined it can be `mixed`."""
        return str(self.metadata.get("export", {}).get("precision", "fp32"))


class Answer(NamedTuple):
    """A batch's results.

    Attributes:
        probabilities_BY: softmax of the R branch's logits over the model's temperature.
        saliency_BHW: the map M, or None where the model has none.
        logits_BY: scores before temperature and softmax.
        evidence_BYHW: what each position adds to each logit; with the head's bias they sum to it.
            None where the model was exported without it.
        novelty_B: how far each image is from the training images, 1 the limit; None where the
            model was exported without it.
    """

    probabilities_BY: npt.NDArray[np.float32]
    saliency_BHW: npt.NDArray[np.float32] | None
    logits_BY: npt.NDArray[np.float32]
    evidence_BYHW: npt.NDArray[np.float32] | None
    novelty_B: npt.NDArray[np.float32] | None = None


def whole(answers: Iterable[Answer]) -> Answer:
    """The answers of one batch or more as one."""
    columns = zip(*answers, strict=True)
    return Answer._make(None if c[0] is None else np.concatenate(c) for c in columns)


def find_model(name: str | None) -> Path:
    """A model by file or by the name of a shipped one; None takes `BIIGMA_MODEL` or the default.

    Raises `ModelFileError` that lists the shipped models where there is no such thing.
    """
    name = name or os.environ.get("BIIGMA_MODEL") or DEFAULT_MODEL
    path = Path(name)
    with contextlib.suppress(RuntimeError):  # `~` of a user who is none
        path = path.expanduser()
    if is_file(path):
        return path
    shipped = models_dir() / f"{name}.onnx"
    if is_file(shipped):
        return shipped
    if is_folder(path):
        raise ModelFileError(f"{path} is a folder", fix="name the .onnx file in it")
    listed = ", ".join(p.stem for p in shipped_models()) or "none"
    raise ModelFileError(f"no model {name!r}", fix=f"give an .onnx file or one of: {listed}")


def find_network(name: str | None) -> Path:
    """As `find_model`; a checkpoint (`.safetensors`) is taken as it is, whether it is there or not.

    Raises `ModelFileError` as `find_model` does.
    """
    if name is not None and Path(name).suffix == ".safetensors":
        return Path(name)
    return find_model(name)


def shipped_models() -> list[Path]:
    """The models that come with the package."""
    return sorted(models_dir().glob("*.onnx"))


class Predictor:
    """An exported model in a session of ONNX Runtime, or of OpenVINO.

    Args:
        path: an `.onnx` file written by `biigma export onnx`.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, `tensorrt`, `tensorrt:N`, `coreml` or `openvino`;
            `auto` takes CUDA where the session really gets it, else the CPU.
        threads: that compute; default one for each core this process may use.
        callers: threads that will call at the same time; on the CPU each computes, too, and the
            session has so many fewer of its own.

    Raises:
        ModelFileError: missing, damaged, with weights in other files, not exported by biigma, or
            not what its metadata says.
        DeviceError: a provider was asked for and cannot be had; says why.
        UsageError: an unknown device.
    """

    def __init__(
        self, path: Path, *, device: str = "auto", threads: int | None = None, callers: int = 1
    ) -> None:
        name, index = providers.parse_device(device)
        if not path.is_file():
            raise ModelFileError(f"no model at {path}", fix="check --model")
        # Read once: what is checked, what is named and what runs are the same bytes.
        content = read_model(path)
        beside = ThreadPoolExecutor(1)  # hashed by the time that ONNX Runtime is imported
        naming = beside.submit(identity, path, content)
        beside.shutdown(wait=False)
        import onnxruntime as ort

        ort.set_default_logger_severity(4)  # what matters comes back as an exception
        choice = providers.choose(ort, name, index, gpu=_has_gpu)
        options = ort.SessionOptions()
        # The caller of a session is one of these.
        options.intra_op_num_threads = max(1, (threads or available_cpus()) - callers + 1)
        # Its threads would spin while they wait, on the cores that decode the next images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Planned patterns cost a whole second set of buffers for each batch in the session.
        options.enable_mem_pattern = False
        if choice.openvino:  # this session only describes the model
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        #: `NAME@` and 12 digits of the file's SHA-256.
        self.id = naming.result()  # what is damaged goes no further
        told = io.StringIO()
        try:
            with contextlib.redirect_stdout(told):  # it prints there where a provider fails
                self.session: Any = ort.InferenceSession(
                    content, options, providers=_own_cache(choice.providers, self.id)
                )
        except Exception as error:  # onnxruntime's own exceptions share no other base
            raise ModelFileError(
                f"{path} is not a model ONNX Runtime can load: {first_line(error)}",
                fix=_remedy(path),
            ) from error
        # It would keep the content, to begin anew on the CPU, and unasked, where a provider fails.
        self.session.disable_fallback()
        self.session._model_bytes = None
        del content
        self.info = read_info(path, self.session.get_modelmeta().custom_metadata_map)
        check_model(self)
        if choice.openvino:
            self.session = providers.OpenVinoSession(path, self.session, threads)
        #: The provider that really runs, such as `CPUExecutionProvider`.
        self.provider: str = self.session.get_providers()[0]
        if choice.required and self.provider != choice.required:
            cause = next((line for line in told.getvalue().splitlines() if "rror" in line), "")
            raise DeviceError(
                f"ONNX Runtime fell back to {self.provider}: its {name} provider could not start"
                + (f" ({cause.strip(' *')[:200]})" if cause.strip(" *") else ""),
                fix="see 'biigma doctor', or use --device cpu",
            )
        #: Why `auto` runs on the CPU although there is a GPU; empty where it does not.
        self.fallback = ""
        if name == "auto" and choice.place is not None and self.provider != PROVIDERS["cuda"]:
            fault = providers.find_fault(ort, "cuda", gpu=_has_gpu)
            self.fallback = fault.cause if fault else "its CUDA provider could not start"
        outputs = {o.name for o in self.session.get_outputs()}
        self._outputs = ["probabilities", "logits"]
        self._outputs += [name for name in ("saliency", "evidence", "novelty") if name in outputs]
        on_gpu = self.provider in (PROVIDERS["cuda"], PROVIDERS["tensorrt"])
        self._place = choice.place if on_gpu else None
        self._input: Any = None
        self._lock = threading.Lock()

    def __call__(self, pixels: Pixels) -> Answer:
        """Classify uint8 `(B, side, side, 3)` as `data.preprocess.load_image` makes them."""
        if self._place is None:
            result = self.session.run(self._outputs, {"image": pixels})
        else:
            result = self._run_bound(pixels, *self._place)
        named = dict(zip(self._outputs, result, strict=True))
        return Answer(
            named["probabilities"],
            named.get("saliency"),
            named["logits"],
            named.get("evidence"),
            named.get("novelty"),
        )

    def ask(self, pixels: Pixels, progress: Callable[[int, int], None] = lambda *_: None) -> Answer:
        """As a call, for any number of images, `_TOGETHER` at a time."""
        count, answers = len(pixels), []
        for start in range(0, count, _TOGETHER):
            answers.append(self(pixels[start : start + _TOGETHER]))
            progress(min(start + _TOGETHER, count), count)
        return whole(answers)

    def _run_bound(self, pixels: Pixels, kind: str, index: int) -> list[npt.NDArray[np.float32]]:
        """By IO binding: one input buffer on the device serves all batches of a size."""
        import onnxruntime as ort

        pixels = np.ascontiguousarray(pixels)
        with self._lock:
            if self._input is None or self._input.shape() != list(pixels.shape):
                self._input = ort.OrtValue.ortvalue_from_numpy(pixels, kind, index)
            else:
                self._input.update_inplace(pixels)
            binding = self.session.io_binding()
            binding.bind_ortvalue_input("image", self._input)
            for name in self._outputs:
                binding.bind_output(name, kind, index)
            self.session.run_with_iobinding(binding)
            return list(binding.copy_outputs_to_cpu())


def _own_cache(
    wanted: Sequence[tuple[str, dict[str, str]]], own: str
) -> list[tuple[str, dict[str, str]]]:
    """Providers with their caches in a folder of the model's own.

    TensorRT calls its engines by the graph, and would take another model's, with its weights.
    """
    key = "trt_engine_cache_path"
    return [
        (name, options | {key: str(Path(options[key]) / own)})
        if key in options
        else (name, options)
        for name, options in wanted
    ]


def identity(path: Path, content: bytes) -> str:
    """`NAME@` and 12 digits of the content's SHA-256: which model gave an answer.

    Raises `ModelFileError` where the content is damaged.
    """
    return f"{path.stem}@{check_content(path, content)[:12]}"


def read_model(path: Path) -> bytes:
    """A model file's content.

    Raises `ModelFileError` where it cannot be read, or keeps its weights in other files: those
    could lie anywhere, and no digest of the file would cover them.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelFileError(
            f"cannot read the model {path}: {error.strerror}", fix="check --model"
        ) from error
    if _EXTERNAL in content:
        raise ModelFileError(
            f"{path} keeps its weights in another file",
            fix="export it again with 'biigma export onnx', which makes one file",
        )
    return content


def read_checked(path: Path) -> bytes:
    """As `read_model`; raises `ModelFileError` also where the content is damaged."""
    content = read_model(path)
    check_content(path, content)
    return content


def check_model(predictor: Predictor) -> None:
    """Raise `ModelFileError` where the graph is not what its metadata says."""
    info, session = predictor.info, predictor.session
    inputs = {i.name: (i.type, list(i.shape)) for i in session.get_inputs()}
    outputs = {o.name: list(o.shape) for o in session.get_outputs()}
    wrong = ""
    kind, shape = inputs.get("image", ("", []))
    if set(inputs) != {"image"}:
        wrong = f"its inputs are {', '.join(inputs) or 'none'}, not image"
    elif kind != "tensor(uint8)" or shape[1:] != [info.side, info.side, 3]:
        wrong = f"its input is {kind} {shape}, not uint8 (batch, {info.side}, {info.side}, 3)"
    elif isinstance(shape[0], int):
        wrong = f"its batch is fixed at {shape[0]}"
    elif not {"probabilities", "logits"} <= set(outputs):
        wrong = f"its outputs are {', '.join(outputs)}, without probabilities and logits"
    elif outputs["probabilities"][-1] != len(info.classes):
        wrong = f"it has {outputs['probabilities'][-1]} outputs for {len(info.classes)} classes"
    elif info.input_check != ("novelty" in outputs):
        wrong = "its metadata and its outputs differ on an input check"
    elif not len(info.classes) == len(info.class_names) == len(info.malignant):
        wrong = "its lists of classes have different lengths"
    if wrong:
        raise ModelFileError(
            f"{info.path} is damaged: {wrong}", fix="export it again with 'biigma export onnx'"
        )


def stated(info: ModelInfo, *keys: str) -> Any:
    """What a model's metadata says under nested keys, such as `config`, `model`, `trunk`.

    Raises `ModelFileError` where it does not say.
    """
    value: Any = info.metadata
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise ModelFileError(
                f"{info.path} does not say its {'.'.join(keys)}",
                fix="export it again with 'biigma export onnx'",
            )
        value = value[key]
    return value


def read_info(path: Path, metadata: dict[str, str]) -> ModelInfo:
    """Decode an exported model's metadata. Raises `ModelFileError` where it is not ours."""
    missing = [k for k in REQUIRED_KEYS if k not in metadata]
    if metadata.get("biigma_format") != EXPORTED or missing:
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
        _check_values(values)
        return ModelInfo(
            name=path.stem,
            path=path,
            classes=tuple(values["classes"]),
            class_names=tuple(values["class_names"]),
            malignant=tuple(values["malignant"]),
            side=int(values["preprocessing"]["side"]),
            rule=rule,
            temperature=_temperature(values.get("calibration")),
            input_check="input_check" in values,
            metadata=values,
        )
    except DAMAGE as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> ModelFileError:
    """What to raise where a model's metadata is not of its form, as one of `DAMAGE` said."""
    what = f"no {error}" if isinstance(error, KeyError) else error
    return ModelFileError(f"{path} has damaged metadata: {what}", fix=_remedy(path))


def _remedy(path: Path) -> str:
    """What to do about a model that cannot be read."""
    if path.parent == models_dir():
        return f"run: {AGAIN}"
    return "export it again with 'biigma export onnx', or choose another --model"


def _check_values(values: dict[str, Any]) -> None:
    """Raises as a damaged value does: `ValueError`, `KeyError` or `TypeError`."""
    for key in ("classes", "class_names"):
        if not (isinstance(values[key], list) and all(_is_name(v) for v in values[key])):
            raise ValueError(f"its {key} are no list of names")
    if len(set(values["classes"])) < len(values["classes"]):
        raise ValueError("it has a class twice")
    if not isinstance(values["malignant"], list):
        raise ValueError("its malignant is no list")
    for key in ("export", "input_check"):
        if not isinstance(values.get(key, {}), dict):
            raise ValueError(f"its {key} is no object")
    if "input_check" in values and not isinstance(values["input_check"]["validation"], dict):
        raise ValueError("its input_check has no figures")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _temperature(calibration: dict[str, Any] | None) -> float | None:
    """Raises as a damaged value does: `ValueError`, `KeyError` or `TypeError`."""
    if calibration is None:  # exported without, or by a version that had none
        return None
    temperature = float(calibration["temperature"])
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"its temperature is {temperature}")
    return temperature


def _has_gpu() -> bool:
    return providers.has_gpu()
