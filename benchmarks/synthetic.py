"""How fast synthetic images are drawn, encoded and written, with one and with two workers.

The two are measured turn by turn in one run, so that a noisy machine is noisy for both; starting
the processes counts:

    python benchmarks/synthetic.py [--count 400] [--side 224] [--runs 3]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from biigma_cli.data.synthetic import SyntheticOptions, write_synthetic

WORKERS = (1, 2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    options = SyntheticOptions(count=arguments.count, side=arguments.side)
    rates: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    for _ in range(arguments.runs):
        for workers in WORKERS:
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                write_synthetic(options, Path(folder) / "set", workers=workers)
                rates[workers].append(options.count / (time.perf_counter() - started))
    print(f"{options.count} images of {options.side} x {options.side}, {arguments.runs} runs")
    for workers, values in rates.items():
        print(
            f"{workers} worker{'s' if workers > 1 else ' '}: {statistics.median(values):6.1f} "
            f"images/s (median; {min(values):.1f} to {max(values):.1f})"
        )


if __name__ == "__main__":
    main()
