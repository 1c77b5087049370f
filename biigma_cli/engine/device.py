"""Devices and precision: what was asked for, checked before any work."""

from __future__ import annotations

import sys

import torch

from biigma_cli.errors import DeviceError, UsageError

# Those of ONNX Runtime and OpenVINO alone, which take exported models.
_EXPORTED_ONLY = ("tensorrt", "coreml", "openvino")


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps` as a torch device.

    `auto` takes CUDA where there is one, else the CPU. Raises `DeviceError` where the device that
    was asked for cannot be had, `UsageError` for a name that means nothing.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.partition(":")[0] in _EXPORTED_ONLY:
        raise UsageError(
            f"{name} runs exported models, not what torch runs",
            fix="name an .onnx file ('biigma export onnx' makes one), or choose auto, cpu, cuda, "
            "cuda:N or mps",
        )
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"unknown device {name!r}", fix="choose auto, cpu, cuda, cuda:N or mps")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            built = torch.version.cuda
            cause = (
                f"torch {torch.__version__} was built for CUDA {built}, but finds no usable GPU "
                "or driver"
                if built
                else f"torch {torch.__version__} was built without CUDA"
            )
            raise DeviceError(f"no CUDA device: {cause}", fix="use --device cpu, or auto")
        if (device.index or 0) >= torch.cuda.device_count():
            raise DeviceError(
                f"no device {name}: this machine has {torch.cuda.device_count()} CUDA devices",
                fix="use --device cuda",
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("no MPS device on this machine", fix="use --device cpu, or auto")
    return device


def pick_precision(name: str, device: torch.device) -> str:
    """`auto` as `bf16` where the device computes it natively, else `fp32`."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        # Elsewhere torch emulates bf16, which is slower than fp32.
        return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"
    return "fp32"


def device_name(device: torch.device) -> str:
    """For records: the GPU's name, or the number of CPU threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"


def memory_in_use(device: torch.device) -> int:
    """Bytes: the most that was allocated on a CUDA device, else the process's peak memory.

    0 where the platform does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
