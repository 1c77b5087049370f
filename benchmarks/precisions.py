"""How fast exported files answer, side by side: the same network in several precisions, say.

In each round every file classifies the same pictures; its rate is compared with the first file's of
that round, so that a noisy machine is noisy for all. Also: size, and seconds to open.

    biigma export onnx --run runs/NAME -o a.onnx
    biigma export onnx --run runs/NAME -o b.onnx --precision fp16-weights
    python benchmarks/precisions.py a.onnx b.onnx [--batch 1] [--rounds 20] [--images 16]

Files that ship are named as in `biigma models`. Each file is fed at its own side.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
from side_by_side import quartiles, ratio

from biigma_cli.runtime.session import Predictor, find_model
from biigma_cli.storage import available_cpus


def opened(path: Path) -> tuple[Predictor, float]:
    """A file's session, and the seconds it took."""
    start = time.perf_counter()
    predictor = Predictor(path, device="cpu")
    _ = predictor.session
    return predictor, time.perf_counter() - start


def seconds(predictor: Predictor, pixels: np.ndarray, batch: int) -> float:
    """For all pictures, in batches."""
    start = time.perf_counter()
    for first in range(0, len(pixels), batch):
        predictor(pixels[first : first + batch])
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", help="exported files, or names of shipped ones")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--images", type=int, default=16, help="a round")
    args = parser.parse_args()
    paths = [find_model(name) for name in args.models]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(
        f"{platform.machine()}, {available_cpus()} cores (load {load:.1f}), ONNX Runtime "
        f"{ort.__version__}; batch {args.batch}, {args.rounds} rounds of {args.images} pictures"
    )
    found = [opened(path) for path in paths]
    rng = np.random.default_rng(0)
    pictures = [
        rng.integers(0, 256, (args.images, p.info.side, p.info.side, 3), np.uint8) for p, _ in found
    ]
    taken: list[list[float]] = [[] for _ in paths]
    for predictor, pixels in zip((p for p, _ in found), pictures, strict=True):
        seconds(predictor, pixels, args.batch)  # warm
    for turn in range(args.rounds):
        order = range(len(paths)) if turn % 2 == 0 else reversed(range(len(paths)))
        for i in order:
            taken[i].append(seconds(found[i][0], pictures[i], args.batch))
    print(f"{'file':<32}{'precision':>14}{'MB':>7}{'open s':>8}{'ms an image':>13}")
    for path, (predictor, opening), times in zip(paths, found, taken, strict=True):
        precision = predictor.info.precision
        _, middle, _ = quartiles([1000 * t / args.images for t in times])
        size = path.stat().st_size / 1e6
        print(f"{path.stem:<32}{precision:>14}{size:7.1f}{opening:8.2f}{middle:13.2f}")
    print("\nseconds over those of the first, by round")
    for path, times in zip(paths[1:], taken[1:], strict=True):
        print(ratio(path.stem, times, taken[0]).line(32))


if __name__ == "__main__":
    main()
