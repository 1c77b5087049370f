"""How fast `biigma predict` is, beside what else there is on the same pictures and cores.

Everything is measured in one run, in rounds: each contender takes its share of the pictures in each
round (as many as it does in about `--seconds`), so that a noisy machine is noisy for all, and the
rates of one round are compared:

    torch        as a user writes it: torchvision's bare trunk, Pillow, batch 1, eager
    torch-32     the same, channels last, batches of 32
    ort          ONNX Runtime in a loop: Pillow, batch 1, a plain session of the exported file
    predict      `biigma predict` (its pipeline, in this process): files to answers
    session      a session of the same file with ONNX Runtime's own settings, on pictures already
                 decoded, in the same batches, one after another
    predict-ov   the same with `--device openvino`
    openvino     the hardware's yardstick: decoding on threads, OpenVINO in its throughput mode,
                 compiled for one picture, with requests in flight
    ...-int8     the same with the quantised file
    ...-bf16     OpenVINO in the precision it takes by itself on a CPU that computes in bfloat16

    python benchmarks/predict.py [--quick] [--threads 2] [--models densenet121,light,default]

Then, in processes of their own: all pictures through the command, with its peak memory, and one
picture from a cold start, with where the time goes. `--gpu` measures a GPU instead, from decoded
pictures. Untrained weights stand for DenseNet-121's: speed does not depend on them. Without
`--int8` a file is quantised here, as the export does it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
import torchvision
from PIL import Image
from predict_process import cold_start, run_whole
from predict_setup import Model, make_models, make_pictures
from side_by_side import Ratio, quartiles, ratio

from biigma_cli.data.preprocess import load_image, map_threads
from biigma_cli.runtime.inputs import Source
from biigma_cli.runtime.pipeline import IN_FLIGHT, classify
from biigma_cli.runtime.session import Predictor
from biigma_cli.storage import available_cpus

CLASSES = 7
BATCH = 8
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
SPREAD = np.array([0.229, 0.224, 0.225], np.float32)
MEMORY_MIB = 700
COLD_SECONDS = 0.8
Run = Callable[[Sequence[Path]], None]


@dataclass(kw_only=True)
class Contender:
    """One way to get answers.

    Attributes:
        run: classifies these pictures.
        share: pictures a round.
        rates: pictures a second, by round.
    """

    name: str
    title: str
    run: Run
    share: int = 0
    rates: list[float] = field(default_factory=list)

    def timed(self, pictures: Sequence[Path]) -> float:
        """Pictures a second."""
        started = time.perf_counter()
        self.run(pictures)
        return len(pictures) / (time.perf_counter() - started)


def pixels_of(path: Path, side: int) -> np.ndarray:
    """As a user's script decodes: Pillow, bilinear, scaled and normalised; `(3, side, side)`."""
    with Image.open(path) as image:
        small = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    return ((np.asarray(small, np.float32) / 255 - MEAN) / SPREAD).transpose(2, 0, 1)


def torch_loop(model: Model, batch: int) -> Run:
    """Eager torch; batches of more than one in channels last."""
    network = getattr(torchvision.models, model.name)(num_classes=CLASSES).eval()
    layout = torch.channels_last if batch > 1 else torch.contiguous_format
    network = network.to(memory_format=layout)

    @torch.inference_mode()
    def run(pictures: Sequence[Path]) -> None:
        for start in range(0, len(pictures), batch):
            images = [pixels_of(p, model.side) for p in pictures[start : start + batch]]
            tensor = torch.from_numpy(np.stack(images)).contiguous(memory_format=layout)
            network(tensor).softmax(1).numpy()

    return run


def ort_loop(model: Model, threads: int) -> Run:
    """A plain session, one picture at a time."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.file, options, providers=["CPUExecutionProvider"])

    def run(pictures: Sequence[Path]) -> None:
        for path in pictures:
            with Image.open(path) as image:
                small = image.convert("RGB").resize((model.side,) * 2, Image.Resampling.BILINEAR)
            session.run(["probabilities"], {"image": np.asarray(small)[None]})

    return run


def pipeline(predictor: Predictor, threads: int) -> Run:
    """What `biigma predict` does between its options and its rows."""

    def run(pictures: Sequence[Path]) -> None:
        sources = (Source(str(p), p) for p in pictures)
        batches = classify(predictor, sources, batch_size=BATCH, workers=threads)
        if any(result.error for batch in batches for result in batch):
            raise SystemExit("a picture was not answered")

    return run


def session(model: Model, file: Path, pictures: Sequence[Path], threads: int, device: str) -> Run:
    """Decoded pictures alone; on the CPU a session as ONNX Runtime makes it by itself."""
    decoded = np.stack([load_image(p, model.side) for p in pictures[: 4 * BATCH]])
    if device == "cpu":
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        plain = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])

        def call(pixels: np.ndarray) -> object:
            return plain.run(None, {"image": pixels})
    else:
        call = Predictor(file, device=device)

    def run(wanted: Sequence[Path]) -> None:
        for start in range(0, len(wanted), BATCH):
            at = start % len(decoded)
            call(decoded[at : at + min(BATCH, len(wanted) - start)])

    return run


def openvino_loop(file: Path, side: int, threads: int, *, precision: str) -> Run:
    """Its throughput mode with requests in flight; decoding on threads as `predict` does."""
    import openvino

    settings = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    core = openvino.Core()
    graph = core.read_model(str(file))
    graph.reshape([1, side, side, 3])
    requests = openvino.AsyncInferQueue(core.compile_model(graph, "CPU", settings))

    def run(pictures: Sequence[Path]) -> None:
        for pixels in map_threads(lambda p: load_image(p, side), pictures, threads=threads):
            requests.start_async({"image": pixels[None]}, share_inputs=False)
        requests.wait_all()

    return run


def contenders(
    model: Model, pictures: Sequence[Path], *, threads: int, device: str
) -> Iterator[Contender]:
    """All that can be had here."""

    def one(name: str, title: str, run: Run) -> Contender:
        return Contender(name=name, title=title, run=run)

    if model.name:
        yield one("torch", f"torchvision {model.name}, batch 1", torch_loop(model, 1))
        yield one("torch-32", "the same, channels last, batch 32", torch_loop(model, 32))
    yield one("ort", "ONNX Runtime in a loop, batch 1", ort_loop(model, threads))
    files = {"": model.file} | ({"-int8": model.int8} if model.int8 else {})
    for suffix, file in files.items():
        predictor = Predictor(file, device=device, threads=threads, callers=IN_FLIGHT)
        yield one(f"predict{suffix}", predictor.provider, pipeline(predictor, threads))
        yield one(
            f"session{suffix}", "decoded pictures", session(model, file, pictures, threads, device)
        )
    try:
        import openvino
    except ImportError:
        print("openvino is not installed: left out")
        return
    native = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for suffix, file in files.items():
        title = "float32" if not suffix else "quantised"
        if device != "openvino":
            predictor = Predictor(file, device="openvino", threads=threads)
            yield one(f"predict-ov{suffix}", predictor.provider, pipeline(predictor, threads))
        run = openvino_loop(file, model.side, threads, precision="f32")
        yield one(f"openvino{suffix}", f"OpenVINO, {title}", run)
    if "BF16" in native:
        run = openvino_loop(model.file, model.side, threads, precision="bf16")
        yield one("openvino-bf16", "OpenVINO, bfloat16", run)


def measure(
    entries: Sequence[Contender], pictures: Sequence[Path], *, rounds: int, seconds: float
) -> None:
    """Rounds of all contenders in turn, every second one backwards."""
    for entry in entries:
        entry.timed(pictures[:4])
        rate = entry.timed(pictures[:BATCH])
        whole = max(1, round(rate * seconds / 32)) * 32
        entry.share = min(len(pictures), whole)
    for number in range(rounds):
        for entry in entries if number % 2 == 0 else reversed(entries):
            start = number * entry.share % (len(pictures) - entry.share + 1)
            entry.rates.append(entry.timed(pictures[start : start + entry.share]))


def compare(entries: Sequence[Contender], *, aims: bool) -> list[Ratio]:
    """The quotients that the aims speak of."""
    rates = {entry.name: entry.rates for entry in entries}

    def over(one: str, two: str, target: float | None) -> list[Ratio]:
        if one not in rates or two not in rates:
            return []
        target = target if aims else None
        return [ratio(f"{one} / {two}", rates[one], rates[two], target, at_least=True)]

    found = over("predict", "torch", 3.0) + over("predict-int8", "torch", 7.0)
    for name in ("predict-ov-int8", "openvino", "openvino-int8", "openvino-bf16"):
        found += over(name, "torch", 7.0)
    for name in ("torch-32", "ort"):
        found += over("predict", name, None)
    found += over("predict", "session", 0.9) + over("predict-int8", "session-int8", 0.9)
    found += over("predict-ov", "openvino", None)
    return found + over("predict-ov-int8", "openvino-int8", None)


def measured(
    model: Model, pictures: list[Path], options: argparse.Namespace, threads: int
) -> dict[str, object]:
    """Measure one model and print; returns the record."""
    print(f"\n{model.title}; {model.file.stat().st_size / 1e6:.1f} MB"
          + (" (int8: quantised here)" if model.int8_made else ""))  # fmt: skip
    entries = list(contenders(model, pictures, threads=threads, device=options.device))
    rounds, seconds = (2, 0.5) if options.quick else (options.rounds, options.seconds)
    measure(entries, pictures, rounds=rounds, seconds=seconds)
    print(f"{'':<16}{'':<38}{'images/s':>9}{'quartiles':>20}{'a round':>9}")
    for entry in entries:
        low, middle, high = quartiles(entry.rates)
        span = f"{low:.1f} to {high:.1f}"
        print(f"{entry.name:<16}{entry.title:<38}{middle:9.1f}{span:>20}{entry.share:9}")
    ratios = compare(entries, aims=model.aims)
    print()
    for each in ratios:
        print(each.line())
    record: dict[str, object] = {
        "model": model.title,
        "rates": {e.name: e.rates for e in entries},
        "ratios": [asdict(r) | {"met": r.met} for r in ratios],
    }
    del entries
    whole = {}
    for name, file in {"float32": model.file, "int8": model.int8}.items():
        if file is None:
            continue
        whole[name] = run_whole(file, pictures[0].parent, options.device)
        met = "met" if whole[name]["peak_mib"] <= MEMORY_MIB else "MISSED"
        print(
            f"biigma predict, {name}, all {len(pictures)} pictures: {whole[name]['rate']:.1f} "
            f"images/s with its start, peak memory {whole[name]['peak_mib']:.0f} MiB  "
            f"target <= {MEMORY_MIB}: {met}"
        )
    cold = cold_start(model.file, pictures[0], options.device, runs=3 if options.quick else 9)
    met = "met" if cold["seconds"] <= COLD_SECONDS else "MISSED"
    print(f"one picture from a cold start: {cold['seconds']:.3f} s (median of {cold['runs']}; "
          f"quartiles {cold['low']:.3f} to {cold['high']:.3f})  "
          f"target <= {COLD_SECONDS}: {met}")  # fmt: skip
    for part, spent in cold["parts"].items():
        print(f"  {part:<40}{1e3 * spent:8.1f} ms")
    return record | {"whole": whole, "cold": cold}


def keep_cores(wanted: int) -> int:
    """Bind this process and its children to so many cores, where the system can."""
    allowed = available_cpus()
    count = min(wanted or allowed, allowed)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    elif count < allowed:
        print("this system binds no process to cores: other threads may use all of them")
    torch.set_num_threads(count)
    return count


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=0, help="cores; default: all there are")
    parser.add_argument("--models", default="densenet121,light")
    parser.add_argument("--device", default="cpu", help="of predict, as `biigma predict` takes it")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a contender in a round")
    parser.add_argument(
        "--int8", action="append", default=[], metavar="MODEL=FILE",
        help="a quantised export, such as densenet121=FILE; may be repeated",
    )  # fmt: skip
    parser.add_argument("--no-int8", action="store_true", help="quantise nothing")
    parser.add_argument("--gpu", action="store_true", help="measure a GPU, from decoded pictures")
    parser.add_argument("--fp16", type=Path, help="with --gpu: a float16 export of DenseNet-121")
    parser.add_argument("--quick", action="store_true", help="64 pictures, 2 short rounds")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    unknown = set(options.models.split(",")) - {"densenet121", "light", "default"}
    if unknown or any("=" not in pair for pair in options.int8):
        parser.error("models are densenet121, light and default; --int8 takes MODEL=FILE")
    return options


def main() -> None:
    """Measure and print."""
    options = parse()
    threads = keep_cores(options.threads)
    print(
        f"{platform.processor() or platform.machine()}, {threads} cores, "
        f"torch {torch.__version__}, onnxruntime {ort.__version__}"
    )
    int8 = {name: Path(file) for name, _, file in (pair.partition("=") for pair in options.int8)}
    if options.gpu and not torch.cuda.is_available():
        print("GPU: SKIPPED, torch finds no CUDA device here; nothing was measured")
        return
    records = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pictures, told = make_pictures(folder, 64 if options.quick else options.images)
        print(told)
        if options.gpu:
            from predict_gpu import measure_gpu

            models = make_models(folder, pictures, ["densenet121"], {}, quantise=False)
            records.append(measure_gpu(models[0], pictures, options.fp16, quick=options.quick))
        else:
            names = options.models.split(",")
            models = make_models(folder, pictures, names, int8, quantise=not options.no_int8)
            records += [measured(model, pictures, options, threads) for model in models]
    if options.json:
        setting = {"cores": threads, "pictures": told, "torch": torch.__version__,
                   "onnxruntime": ort.__version__, "quick": options.quick}  # fmt: skip
        options.json.write_text(
            json.dumps({"setting": setting, "models": records}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
