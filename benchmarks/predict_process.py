"""`biigma predict` in processes of its own: all pictures, peak memory, the cold start."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from side_by_side import quartiles

# The peak of this address space alone: a child's `ru_maxrss` begins with its parent's on Linux.
_PEAK = """
import atexit, os, resource, sys
def told():
    try:
        lines = open("/proc/self/status").read().splitlines()
        peak = next(int(l.split()[1]) for l in lines if l.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        unit = 2**20 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    with open(os.environ["BIIGMA_PEAK"], "w") as file:
        file.write(str(peak))
atexit.register(told)
from biigma_cli.__main__ import main
main()
"""

# The command itself, with clocks around its steps. Imports are made one after another first, in the
# order in which the command comes to them.
_CLOCKS = """
import time
began = time.time()
import json, os, sys, threading
laps = {}
def clock(name, function):
    def timed(*args, **kwargs):
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            laps[name] = laps.get(name, 0.0) + time.perf_counter() - started
    return timed
def wrap(owner, attribute, name):
    setattr(owner, attribute, clock(name, getattr(owner, attribute)))
def importing(name, *modules):
    started = time.perf_counter()
    for module in modules:
        __import__(module)
    laps["import " + name] = time.perf_counter() - started
importing("the command line (typer)", "biigma_cli.cli.app")
importing("numpy", "numpy")
importing("Pillow", "PIL.Image", "PIL.JpegImagePlugin")
importing("the rest of biigma", "biigma_cli.report.predictions", "biigma_cli.runtime.pipeline")
importing("ONNX Runtime", "onnxruntime")
importing("rich", "rich.table", "biigma_cli.report.tables")
import onnxruntime
from biigma_cli.report import predictions
from biigma_cli.runtime import pipeline, session
wrap(session, "read_model", "read the model")
if hasattr(pipeline, "read_model"):
    wrap(pipeline, "read_model", "read the model")
wrap(onnxruntime, "InferenceSession", "create the session")
wrap(pipeline, "decode_image", "decode the picture")
wrap(session.Predictor, "__call__", "run the network")
wrap(predictions.TableWriter, "_draw", "draw the table")
from biigma_cli.cli import predict
from biigma_cli.__main__ import main
begin = predict._Inputs.__init__
def parsed(*args, **kwargs):
    laps["parse the command line (typer)"] = time.perf_counter() - started
    begin(*args, **kwargs)
predict._Inputs.__init__ = parsed
started = time.perf_counter()
try:
    main()
except SystemExit:
    pass
laps["all else"] = time.perf_counter() - started - sum(
    spent for name, spent in laps.items() if not name.startswith("import "))
with open(os.environ["BIIGMA_CLOCKS"], "w") as file:
    json.dump({"began": began, "ended": time.time(), "laps": laps}, file)
"""


def _run(arguments: list[str], *, code: str | None = None, **environment: str) -> float:
    """Wall seconds of one process; fails loudly where it does."""
    how = ["-m", "biigma_cli"] if code is None else ["-c", code]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *how, *arguments], check=False, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, env={**os.environ, **environment}, text=True,
    )  # fmt: skip
    spent = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments[:1])} ended with {done.returncode}: {done.stderr}")
    return spent


def run_whole(model: Path, folder: Path, device: str) -> dict[str, float]:
    """A folder through the command: images a second with its start, peak MiB."""
    count = sum(1 for _ in folder.iterdir())
    with tempfile.TemporaryDirectory() as temporary:
        peak = Path(temporary) / "peak"
        target = Path(temporary) / "out.csv"
        seconds = _run(
            ["predict", str(folder), "--model", str(model), "--device", device, "-o", str(target)],
            code=_PEAK, BIIGMA_PEAK=str(peak),
        )  # fmt: skip
        rows = target.read_text(encoding="utf-8").count("\n") - 1
        if rows != count:
            raise SystemExit(f"{rows} answers for {count} pictures")
        return {"rate": count / seconds, "seconds": seconds, "peak_mib": float(peak.read_text())}


def cold_start(model: Path, picture: Path, device: str, *, runs: int) -> dict[str, Any]:
    """One picture, a new process each time: seconds, and the median of each step's.

    The files are in the system's cache, the first run's aside. The steps are clocked in runs of
    their own, in turn with the others; the command may do some of them at the same time.
    """
    arguments = ["predict", str(picture), "--model", str(model), "--device", device]
    seconds: list[float] = []
    empty: list[float] = []
    steps: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        clocks = Path(temporary) / "clocks"
        for number in range(runs + 1):
            spent = _run(arguments)
            bare = _run([], code="pass")
            before = time.time()
            _run(arguments, code=_CLOCKS, BIIGMA_CLOCKS=str(clocks))
            after = time.time()
            if number == 0:
                continue
            seconds.append(spent)
            empty.append(bare)
            told = json.loads(clocks.read_text())
            parts = {"start Python": told["began"] - before, **told["laps"]}
            parts["end Python"] = after - told["ended"]
            for name, value in parts.items():
                steps.setdefault(name, []).append(value)
    low, middle, high = quartiles(seconds)
    return {
        "seconds": middle,
        "low": low,
        "high": high,
        "runs": runs,
        "empty_process": statistics.median(empty),
        "parts": {name: statistics.median(values) for name, values in steps.items()},
    }
