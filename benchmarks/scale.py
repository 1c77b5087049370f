"""What a core does in a second: decoding, the session, and both engines side by side.

Decoding and the session run on one thread, turn by turn on the same images, and are given in images
for each second of processor time, which a busy machine changes less than wall time. The engines run
one after the other, with one worker of one thread each; they are timed by the wall, from the
first answer to the last, so take their ratio alone, and only where nothing else runs:

    python benchmarks/scale.py IMAGES... [--model NAME] [--images 400] [--no-ray]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from biigma_cli.data.preprocess import decode_image
from biigma_cli.runtime.inputs import Source, expand
from biigma_cli.runtime.pipeline import IN_FLIGHT, Result, classify
from biigma_cli.runtime.session import Predictor, find_model

BATCH = 16


def single(predictor: Predictor, paths: list[Path]) -> tuple[list[float], list[float]]:
    """Images a second of processor time, decoded and run; one figure for each batch."""
    info = predictor.info
    decoded, run = [], []
    for at in range(0, len(paths) - BATCH + 1, BATCH):
        started = time.process_time()
        squares = [decode_image(p, info.side, rule=info.rule) for p in paths[at : at + BATCH]]
        middle = time.process_time()
        predictor(np.stack([s.pixels for s in squares]))
        ended = time.process_time()
        decoded.append(BATCH / (middle - started))
        run.append(BATCH / (ended - middle))
    return decoded[1:], run[1:]  # the first warms up


def rate(batches: Iterator[list[Result]]) -> float:
    """Images a second of the wall, once the first were answered."""
    next(batches)
    started, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch)
    return count / (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--model")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--no-ray", action="store_true")
    options = parser.parse_args()
    named = (s.content for s in expand(options.paths, warn=print))
    paths = [p for p, _ in zip(named, range(options.images), strict=False) if isinstance(p, Path)]
    file = find_model(options.model)
    predictor = Predictor(file, device="cpu", threads=1)
    decoded, run = single(predictor, paths)
    print(f"{file.stem}, side {predictor.info.side}, {len(paths)} images, batches of {BATCH}")
    for name, values in (("decode", decoded), ("session", run)):
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{name:8} {middle:7.1f} images per core-second (quartiles {low:.1f} to {high:.1f})")
    both = 1 / (1 / statistics.median(decoded) + 1 / statistics.median(run))
    print(f"together {both:7.1f} images per core-second")
    if options.no_ray:
        return
    from biigma_cli.runtime.ray_engine import ray_engine

    sources = [Source(str(p), p) for p in paths]
    began = time.perf_counter()
    with ray_engine(file, device="cpu", workers=1) as cluster:
        ready = time.perf_counter()
        remote = rate(cluster.classify(sources, batch_size=BATCH, threads=1))
        print(f"a local cluster was ready after {ready - began:.1f} s")
    # The cluster lets its one worker use all cores there are; so may this session.
    predictor = Predictor(file, device="cpu", threads=cluster.share.cores, callers=IN_FLIGHT)
    local = rate(classify(predictor, sources, batch_size=BATCH, workers=1))
    print(f"ray {remote:.1f} images/s, local {local:.1f}: ratio {remote / local:.2f}")


if __name__ == "__main__":
    main()
