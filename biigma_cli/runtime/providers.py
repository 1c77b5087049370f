"""Execution providers: which of them this machine can run, and why it cannot run the others.

OpenVINO is run by its own runtime, from the package `openvino`: `onnxruntime-openvino` is a whole
ONNX Runtime that overwrites the one installed, and the plug-in `onnxruntime-ep-openvino` offers no
device but Intel's.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import io
import os
import queue
import re
import struct
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from biigma_cli.errors import DeviceError, UsageError
from biigma_cli.storage import available_cpus, home

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINO",
}
DEVICES = ("auto", *PROVIDERS)


def batch_size(provider: str) -> int:
    """Images run together where nothing else is asked for.

    More than 8 is no faster on a CPU, and every image costs DenseNet-121 some 30 MB of activations.
    """
    return 64 if provider in (PROVIDERS["cuda"], PROVIDERS["tensorrt"]) else 8


# Distributions that each bring a whole `onnxruntime` package, so that two overwrite one another.
WHEELS = (
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml",
    "onnxruntime-qnn", "onnxruntime-rocm", "onnxruntime-migraphx", "onnxruntime-silicon",
    "onnxruntime-training", "ort-nightly", "ort-nightly-gpu", "ort-nightly-directml",
)  # fmt: skip

# cuInit's answers that a user can do something about (CUDA driver API, CUresult).
_CUDA_FAULTS = {
    100: "the NVIDIA driver finds no GPU",
    802: "the GPUs are not ready yet (is nvidia-fabricmanager running?)",
    803: "the NVIDIA driver and its library are of different versions (restart the machine)",
    804: "the CUDA compatibility library does not support this GPU",
}
# CUresult's NO_DEVICE.
NO_DEVICE = 100


class Driver(NamedTuple):
    """What the NVIDIA driver says.

    Attributes:
        gpus: how many there are.
        cuda: newest CUDA it can run, as (major, minor); None where it does not say.
        fault: why there is no GPU; empty where there is one.
        code: cuInit's answer; None where there is no driver to ask.
    """

    gpus: int
    cuda: tuple[int, int] | None = None
    fault: str = ""
    code: int | None = None


class Fault(NamedTuple):
    """Why a provider cannot be had, and what to do."""

    cause: str
    fix: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to ask for.

    Attributes:
        providers: for ONNX Runtime, in order of preference, with options.
        required: the provider that must be the one that runs; empty where any will do.
        place: device that inputs and outputs are bound to, such as `("cuda", 0)`; None for the
            host's memory.
        openvino: run it by OpenVINO instead.
    """

    providers: tuple[tuple[str, dict[str, str]], ...]
    required: str = ""
    place: tuple[str, int] | None = None
    openvino: bool = False


def parse_device(device: str) -> tuple[str, int]:
    """`auto`, `cpu`, `cuda`, `cuda:N`, ... as name and index. Raises `UsageError`."""
    name, colon, index = device.partition(":")
    if name not in DEVICES or (colon and (name not in ("cuda", "tensorrt") or not _digits(index))):
        raise UsageError(
            f"unknown device {device!r}",
            fix=f"choose one of: {', '.join(DEVICES)}; or cuda:N, tensorrt:N",
        )
    return name, int(index or 0)


def choose(ort: Any, name: str, index: int = 0, *, gpu: Callable[[], bool] | None = None) -> Choice:
    """What to ask ONNX Runtime for; loads the shared libraries that this takes.

    `auto` takes CUDA where there is a GPU, else the CPU.

    Args:
        ort: the module `onnxruntime`.
        name: one of `DEVICES`.
        index: of the GPU.
        gpu: whether there is a GPU; default: asks the driver.

    Raises:
        DeviceError: it was asked for and cannot be had; the message says why.
    """
    gpu = gpu or has_gpu
    cpu = (PROVIDERS["cpu"], dict[str, str]())
    if name == "auto":
        if PROVIDERS["cuda"] not in ort.get_available_providers() or not gpu():
            return Choice(providers=(cpu,))
        preload(ort)
    elif name != "cpu":
        fault = find_fault(ort, name, index, gpu=gpu)
        if fault is not None:
            raise DeviceError(fault.cause, fix=f"{fault.fix}, or use --device cpu")
    if name in ("cpu", "openvino"):
        return Choice(providers=(cpu,), openvino=name == "openvino")
    if name == "coreml":
        coreml = (PROVIDERS[name], {"ModelFormat": "MLProgram", "MLComputeUnits": "ALL"})
        return Choice(providers=(coreml, cpu), required=PROVIDERS[name])
    cuda = (PROVIDERS["cuda"], {"device_id": str(index)})
    place = ("cuda", index)
    if name == "tensorrt":
        engines = {
            "device_id": str(index),
            # Building one takes minutes.
            "trt_engine_cache_enable": "1",
            "trt_timing_cache_enable": "1",
            "trt_engine_cache_path": str(home() / "tensorrt"),
        }
        tensorrt = (PROVIDERS[name], engines)
        return Choice(providers=(tensorrt, cuda, cpu), required=PROVIDERS[name], place=place)
    required = PROVIDERS["cuda"] if name == "cuda" else ""
    return Choice(providers=(cuda, cpu), required=required, place=place)


def find_fault(
    ort: Any, name: str, index: int = 0, *, gpu: Callable[[], bool] | None = None
) -> Fault | None:
    """Why a provider cannot run here; None where nothing is known to be in its way."""
    if name == "openvino":
        if importlib.util.find_spec("openvino") is None:
            return Fault("OpenVINO is not installed", "run: pip install openvino")
        return None
    provider = PROVIDERS[name]
    available = ort.get_available_providers()
    if provider not in available:
        return _not_built(ort, name, available)
    if name in ("cuda", "tensorrt"):
        return _cuda_fault(ort, name, index, gpu or has_gpu)
    return None


def _not_built(ort: Any, name: str, available: Sequence[str]) -> Fault:
    title = {"cuda": "CUDA", "tensorrt": "TensorRT", "coreml": "CoreML"}.get(name, name)
    cause = f"this onnxruntime ({ort.__version__}) has no {title} provider; it has: " + ", ".join(
        available
    )
    both = wheels()
    if len(both) > 1:
        names = " and ".join(both)
        return Fault(f"{cause}. {names} overwrite each other", f"keep one: {reinstall(both)}")
    if name == "coreml":
        return Fault(cause, "CoreML is Apple's: run it on a Mac with onnxruntime")
    if name in ("cuda", "tensorrt"):
        return Fault(cause, "install onnxruntime-gpu instead of onnxruntime")
    return Fault(cause, "choose another --device")


def _cuda_fault(ort: Any, name: str, index: int, gpu: Callable[[], bool]) -> Fault | None:
    driver = nvidia_driver()
    if not gpu():
        cause = driver.fault or "no NVIDIA driver answers on this machine"
        return Fault(f"no CUDA device: {cause}", "install the driver, or make the GPU visible")
    if 0 < driver.gpus <= index:
        return Fault(
            f"no device {name}:{index}: this machine has {driver.gpus} CUDA devices",
            f"use --device {name}",
        )
    wanted = cuda_major(getattr(ort, "cuda_version", ""))
    if wanted and driver.cuda and driver.cuda[0] < wanted:
        return Fault(
            f"onnxruntime {ort.__version__} was built for CUDA {ort.cuda_version}, and the NVIDIA "
            f"driver runs CUDA up to {driver.cuda[0]}.{driver.cuda[1]}",
            f"update the driver, or install an onnxruntime-gpu built for CUDA {driver.cuda[0]}",
        )
    preload(ort, tensorrt=name == "tensorrt")
    return libraries_fault(ort, name)


def libraries_fault(ort: Any, name: str) -> Fault | None:
    """Which shared libraries the CUDA or TensorRT provider lacks, once `preload` was called."""
    missing = missing_libraries(ort, name)
    if not missing:
        return None
    title = "TensorRT" if name == "tensorrt" else "CUDA"
    first, cause = next(iter(missing.items()))
    others = f" (and {', '.join(list(missing)[1:])})" if len(missing) > 1 else ""
    detail = f": {cause}" if first not in cause else ""
    major = cuda_major(getattr(ort, "cuda_version", ""))
    tail = f"-cu{major}" if major else ""
    fix = 'run: pip install "onnxruntime-gpu[cuda,cudnn]"'
    if all(lib.startswith("libnv") and "nvrtc" not in lib for lib in missing):
        fix = f"run: pip install tensorrt{tail}"
    built = f", built for CUDA {ort.cuda_version}," if major else ""
    return Fault(f"ONNX Runtime's {title} provider{built} lacks {first}{others}{detail}", fix)


def missing_libraries(ort: Any, name: str) -> dict[str, str]:
    """Shared libraries that a provider's own library needs and the loader does not find, and why.

    On Linux; elsewhere nothing is looked up.
    """
    found = importlib.util.find_spec(ort.__name__)
    if found is None or not found.submodule_search_locations or sys.platform != "linux":
        return {}
    folder = Path(next(iter(found.submodule_search_locations))) / "capi"
    path = folder / f"libonnxruntime_providers_{name}.so"
    if not path.is_file():
        return {path.name: "it is not in the onnxruntime package"}
    wanted = [lib for lib in needed_libraries(path) if not lib.startswith("libonnxruntime")]
    if name == "cuda" and "libcudnn.so.9" not in wanted:
        wanted.append("libcudnn.so.9")  # for convolutions; loaded when the first one comes
    missing = {}
    for lib in wanted:
        if lib == "libcuda.so.1":
            continue  # the driver's own, which was asked
        try:
            ctypes.CDLL(lib)
        except OSError as error:
            missing[lib] = str(error)
    return missing


def needed_libraries(path: Path) -> tuple[str, ...]:
    """The libraries that a 64-bit little-endian ELF file names as needed; empty for others.

    Raises `OSError` where it cannot be opened.
    """
    with path.open("rb") as file:
        try:
            return _needed(file)
        except (struct.error, ValueError, OverflowError, OSError):  # damaged: no such place in it
            return ()


def _needed(file: BinaryIO) -> tuple[str, ...]:
    """ELF-64: program headers, the dynamic section, its string table (System V ABI, chapter 5)."""
    head = file.read(64)
    if head[:6] != b"\x7fELF\x02\x01":
        return ()
    (start,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    dynamic = b""
    loaded: list[tuple[int, int, int]] = []
    for i in range(count):
        file.seek(start + i * size)
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", file.read(56))
        if kind == 1:  # PT_LOAD
            loaded.append((address, length, offset))
        elif kind == 2:  # PT_DYNAMIC
            file.seek(offset)
            dynamic = file.read(min(length, 1 << 20))
    names: list[int] = []
    table = 0
    for tag, value in struct.iter_unpack("<QQ", dynamic[: len(dynamic) // 16 * 16]):
        if tag == 0:
            break
        if tag == 1:  # DT_NEEDED
            names.append(value)
        elif tag == 5:  # DT_STRTAB, an address
            table = next((o + value - a for a, n, o in loaded if a <= value < a + n), 0)
    result = []
    for name in names:
        file.seek(table + name)
        result.append(file.read(256).split(b"\0", 1)[0].decode())
    return tuple(result)


def preload(ort: Any, *, tensorrt: bool = False) -> str:
    """Load CUDA and cuDNN (and TensorRT) from their wheels, if installed.

    Returns what ONNX Runtime had to say; it would print that among the results.
    """
    told = io.StringIO()
    with contextlib.redirect_stdout(told), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ort.preload_dlls()
        except Exception as error:  # whatever it is, the libraries are missed later, by name
            told.write(str(error))
    if tensorrt:
        found = importlib.util.find_spec("tensorrt_libs")
        for folder in found.submodule_search_locations or () if found else ():
            for lib in ("libnvinfer.so.10", "libnvonnxparser.so.10"):
                with contextlib.suppress(OSError):
                    ctypes.CDLL(str(Path(folder) / lib))
    return told.getvalue().strip()


def has_gpu() -> bool:
    """Whether an NVIDIA driver with at least one GPU is loaded; asks it, without torch."""
    return nvidia_driver().gpus > 0


def nvidia_driver() -> Driver:
    """Ask the NVIDIA driver for its GPUs and the newest CUDA it can run."""
    name = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError as error:
        absent = "cannot open shared object" in str(error) or os.name == "nt"
        return Driver(0, fault=f"there is no NVIDIA driver ({name} is "
                      f"{'missing' if absent else f'broken: {error}'})")  # fmt: skip
    try:
        number, count = ctypes.c_int(0), ctypes.c_int(0)
        cuda = None
        if driver.cuDriverGetVersion(ctypes.byref(number)) == 0 and number.value:
            cuda = number.value // 1000, number.value % 1000 // 10
        code = int(driver.cuInit(0))
        if code == 0:
            code = int(driver.cuDeviceGetCount(ctypes.byref(count)))
    except AttributeError as error:
        return Driver(0, fault=f"{name} is no NVIDIA driver: {error}")
    if code == 0 and count.value > 0:
        return Driver(count.value, cuda, "", 0)
    fault = _CUDA_FAULTS.get(code or NO_DEVICE, f"the NVIDIA driver answers with error {code}")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and (code or NO_DEVICE) == NO_DEVICE:
        fault += f" (CUDA_VISIBLE_DEVICES is {hidden!r})"
    return Driver(0, cuda, fault, code or NO_DEVICE)


def wheels() -> dict[str, str]:
    """Installed distributions that bring an `onnxruntime` package, with their versions."""
    found = {}
    for name in WHEELS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = str(metadata.version(name))
    return found


def reinstall(installed: Sequence[str] | dict[str, str]) -> str:
    """The commands that leave one whole ONNX Runtime."""
    keep = "onnxruntime-gpu" if "onnxruntime-gpu" in installed else "onnxruntime"
    return f"pip uninstall -y {' '.join(installed)} && pip install {keep}"


def cuda_major(version: str | None) -> int | None:
    """The major version of `13.0`; None where there is none."""
    found = re.match(r"\d+", version or "")
    return int(found[0]) if found else None


class Port(NamedTuple):
    """An input or output of a model, as ONNX Runtime describes it."""

    name: str
    type: str
    shape: list[int | str | None]


class OpenVinoSession:
    """A model compiled by OpenVINO for the CPU, used like a session of ONNX Runtime.

    Compiled for one image, which is faster than for any number of them (an int8 DenseNet-121 by a
    half); the images of a batch are run side by side. It computes in float32: where the CPU has
    it, OpenVINO would take bfloat16.

    Args:
        path: an exported model.
        described: a session of the same model, for its inputs and outputs.
        threads: default one for each core this process may use.

    Raises `DeviceError` where OpenVINO cannot be loaded or does not take the model.
    """

    def __init__(self, path: Path, described: Any, threads: int | None = None) -> None:
        self._inputs = [Port(p.name, p.type, list(p.shape)) for p in described.get_inputs()]
        self._outputs = [Port(p.name, p.type, list(p.shape)) for p in described.get_outputs()]
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads or available_cpus(),
            "PERFORMANCE_HINT": "THROUGHPUT",
        }
        try:
            openvino = importlib.import_module("openvino")
            core = openvino.Core()
            model = core.read_model(str(path))
            model.reshape({p.name: [1, *p.shape[1:]] for p in self._inputs})
            compiled = core.compile_model(model, "CPU", settings)
            count = max(1, int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")))
            self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
            for _ in range(count):
                self._requests.put(compiled.create_infer_request())
        except Exception as error:  # its exceptions share no base
            raise DeviceError(
                f"OpenVINO cannot run {path.name}: {first_line(error)}",
                fix="install it again (pip install openvino), or use --device cpu",
            ) from error
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="openvino")

    def run(self, names: Sequence[str], inputs: dict[str, Any]) -> list[Any]:
        """The named outputs, as arrays of their own. From any number of threads."""

        def one(row: int) -> list[Any]:
            request = self._requests.get()
            try:
                result = request.infer({name: x[row : row + 1] for name, x in inputs.items()})
                return [result[name] for name in names]
            finally:
                self._requests.put(request)

        (rows,) = {len(x) for x in inputs.values()}
        return [
            np.concatenate(rows) for rows in zip(*self._pool.map(one, range(rows)), strict=True)
        ]

    def get_inputs(self) -> list[Port]:
        """As ONNX Runtime gives them."""
        return self._inputs

    def get_outputs(self) -> list[Port]:
        """As ONNX Runtime gives them."""
        return self._outputs

    def get_providers(self) -> list[str]:
        """Its own name."""
        return [PROVIDERS["openvino"]]


def first_line(error: Exception) -> str:
    """What an exception says, on one line of at most 200 characters."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 5
