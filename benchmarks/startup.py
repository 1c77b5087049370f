"""How long a user waits for a first answer, beside what importing torch alone costs.

Runs each command several times, turn by turn so that a noisy machine is noisy for all, and prints
the medians, their ratio to `python -c "import torch"`, and whether torch was imported:

    python benchmarks/startup.py [--runs 7] [--image docs/img/drawn_lesion.jpg]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def seconds(command: list[str], folder: str) -> float:
    """Wall time of one run from another folder; fails loudly where the command does."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return time.perf_counter() - started


def imports_torch(arguments: list[str], folder: str) -> bool:
    """Whether `biigma` with these arguments imports torch."""
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('TORCH' if 'torch' in sys.modules else 'NONE', "
        "file=sys.stderr))\n"
        f"sys.argv = {['biigma', *arguments]!r}\n"
        "from biigma_cli.__main__ import main\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, cwd=folder, text=True
    )
    return "TORCH" in done.stderr


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--image", type=Path, default=Path("docs/img/drawn_lesion.jpg"))
    options = parser.parse_args()
    biigma = shutil.which("biigma", path=str(Path(sys.executable).parent))
    if biigma is None:
        sys.exit("no biigma command beside this Python: pip install . first")
    image = str(options.image.resolve())
    commands = {
        'python -c "import torch"': [sys.executable, "-c", "import torch"],
        "biigma --help": [biigma, "--help"],
        "biigma predict IMAGE": [biigma, "predict", image],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    with tempfile.TemporaryDirectory() as folder:
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(options.runs + 1):
            for name, command in commands.items():
                times[name].append(seconds(command, folder))
        torch_free = not imports_torch(["predict", image], folder)
    medians = {name: statistics.median(t[1:]) for name, t in times.items()}  # first: cold files
    reference = medians['python -c "import torch"']
    print(f"{'command':<26} {'median s':>9} {'min s':>7} {'ratio to torch':>15}")
    for name, median in medians.items():
        print(f"{name:<26} {median:9.3f} {min(times[name][1:]):7.3f} {median / reference:15.2f}")
    print(f"predict imports torch: {'no' if torch_free else 'YES'}; {options.runs} runs each")


if __name__ == "__main__":
    main()
