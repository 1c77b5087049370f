"""`predict.py --gpu`: ONNX Runtime on CUDA against torch, from decoded pictures in host memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from predict_setup import Model
from side_by_side import quartiles, ratio
from torch import Tensor, nn

from biigma_cli.data.preprocess import load_image
from biigma_cli.errors import DeviceError
from biigma_cli.runtime.proto import sealed
from biigma_cli.runtime.session import Predictor

BATCH = 256
TARGET = 12_000.0
CLASSES = 7


class _Plain(nn.Module):
    """torchvision's bare trunk from uint8 pictures: scaled on the device, as our graph does it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.trunk = getattr(torchvision.models, name)(num_classes=CLASSES)

    def forward(self, pixels_BHW3: Tensor) -> Tensor:
        dtype = self.trunk.classifier.weight.dtype
        return self.trunk(pixels_BHW3.permute(0, 3, 1, 2).to(dtype) / 255).softmax(1)


def measure_gpu(
    model: Model, pictures: list[Path], fp16: Path | None, *, quick: bool
) -> dict[str, Any]:
    """Rounds of all in turn, on the first GPU; what ONNX Runtime cannot run is said."""
    name = torch.cuda.get_device_name()
    decoded = np.stack([load_image(p, model.side) for p in pictures[:64]])
    batch = np.ascontiguousarray(np.resize(decoded, (BATCH, *decoded.shape[1:])))
    with tempfile.TemporaryDirectory() as folder:
        half = fp16 or _half(model.file, Path(folder) / "half.onnx")
        runs: dict[str, Callable[[], object]] = {
            "torch eager bf16": _torch_run(model.name, batch, compiled=False),
            "torch.compile bf16": _torch_run(model.name, batch, compiled=True),
        }
        for title, file in (("ort cuda fp32", model.file), ("ort cuda fp16", half)):
            try:
                runs[title] = _ort_run(file, batch)
            except DeviceError as error:
                print(f"{title}: SKIPPED, {error.message}")
    repeats, rounds = (5, 3) if quick else (20, 15)
    for run in runs.values():
        for _ in range(5):
            run()
    rates: dict[str, list[float]] = {title: [] for title in runs}
    for _ in range(rounds):
        for title, run in runs.items():
            rates[title].append(BATCH * repeats / _seconds(run, repeats))
    print(f"\n{model.title}; {name}, batches of {BATCH} decoded pictures, torch is the bare trunk")
    for title, values in rates.items():
        low, middle, high = quartiles(values)
        line = f"{title:<20}{middle:10.0f} images/s  (quartiles {low:.0f} to {high:.0f})"
        if title == "ort cuda fp16":
            line += f"  target >= {TARGET:.0f}: {'met' if middle >= TARGET else 'MISSED'}"
        print(line)
    ratios = [
        ratio(f"ort cuda fp16 / {other}", rates["ort cuda fp16"], rates[other])
        for other in ("torch eager bf16", "torch.compile bf16", "ort cuda fp32")
        if "ort cuda fp16" in rates and other in rates
    ]
    for each in ratios:
        print(each.line(40))
    return {"gpu": name, "model": model.title, "rates": rates, "batch": BATCH,
            "ratios": [asdict(r) for r in ratios]}  # fmt: skip


def _seconds(run: Callable[[], object], repeats: int) -> float:
    """Wall time; every run ends with its answers in host memory."""
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    return time.perf_counter() - started


def _torch_run(name: str, batch: np.ndarray, *, compiled: bool) -> Callable[[], object]:
    network = _Plain(name).eval().to("cuda", torch.bfloat16, memory_format=torch.channels_last)
    forward = torch.compile(network, mode="max-autotune") if compiled else network
    host = torch.from_numpy(batch).pin_memory()

    @torch.inference_mode()
    def run() -> object:
        return forward(host.to("cuda", non_blocking=True)).float().cpu()

    return run


def _ort_run(file: Path, batch: np.ndarray) -> Callable[[], object]:
    """By the session that `predict` uses, with every output it asks for."""
    predictor = Predictor(file, device="cuda")
    return lambda: predictor(batch)


def _half(source: Path, target: Path) -> Path:
    """The export in float16 but for its outputs, which stay as they are."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    made = convert_float_to_float16(
        onnx.load(source), keep_io_types=True, op_block_list=["Softmax", "ReduceMean"]
    )
    target.write_bytes(sealed(made))
    return target
