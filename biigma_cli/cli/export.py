"""`biigma export`: a checkpoint to a file for inference."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from biigma_cli.cli.boundary import boundary, note
from biigma_cli.cli.options import DataDirOption, DeviceOption, RunsOption
from biigma_cli.config import PRECISIONS
from biigma_cli.errors import DataError, UsageError
from biigma_cli.taxonomy import SYNTHETIC, TAXONOMIES, base_of

if TYPE_CHECKING:
    import torch

    from biigma_cli.core.weights import Checkpoint
    from biigma_cli.data.images import Part
    from biigma_cli.data.preprocess import Pixels
    from biigma_cli.runtime.calibration import Calibration
    from biigma_cli.runtime.input_check import FittedCheck

OUTPUTS = ("probabilities", "logits", "evidence", "saliency", "novelty")

app = typer.Typer(help="Export a trained model.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Keeps `onnx` a subcommand while it is the only one."""


@app.command("onnx")
@boundary
def export_onnx(
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Run folder.  [default: the newest in runs/]"),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="A checkpoint file instead of a run.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write.  [default: RUN/model.onnx]"),
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option("--card", help="Also write a model card (Markdown) there."),
    ] = None,
    images: Annotated[
        int, typer.Option("--images", min=1, help="Validation images for the parity proof.")
    ] = 64,
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            help="fp32, fp16 (for GPUs), fp16-weights and int8-weights (half and a quarter of the "
            "size, computed in float32), int8-all-weights (a little less) or int8 (for CPUs and "
            "small devices).",
        ),
    ] = "fp32",
    outputs: Annotated[
        str | None,
        typer.Option(
            "--outputs",
            metavar="NAMES",
            help="Of evidence, saliency and novelty; probabilities and logits are always there.  "
            "[default: all]",
        ),
    ] = None,
    no_input_check: Annotated[
        bool,
        typer.Option("--no-input-check", help="Do not fit a check of what is no dermoscopy."),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Write even what loses more than half a point, or a loss that cannot be measured.",
        ),
    ] = False,
    no_calibrate: Annotated[
        bool,
        typer.Option("--no-calibrate", help="Leave the probabilities as they were trained."),
    ] = False,
    device: DeviceOption = "auto",
    runs: RunsOption = Path("runs"),
    data_dir: DataDirOption = None,
) -> None:
    """Write one .onnx file, after proving that it answers as torch does.

    Both run on the same validation images (drawn patterns where the data set is not on this
    machine); a largest difference above 1e-4 in any probability writes nothing. Lower precisions
    are judged on the whole validation part instead: where it is not on this machine, or more than
    half a point of balanced accuracy is lost, nothing is written. int8 is calibrated on training
    images and needs the package nncf.

    The probabilities are calibrated: their logits are divided by a temperature fitted on the
    validation part, which changes no answer. The input check is fitted on training images, its
    limit set so that 1% of validation images lie above it. The limits of 'predict --max-error' and
    '--min-sensitivity' are found on the validation part. Figures from 'biigma eval --run RUN' are
    stored in the file with their protocol; 'biigma eval --model FILE --store' puts the file's own
    in their place.
    """
    from biigma_cli.cli.run_folders import best_checkpoint, newest_run, run_folder
    from biigma_cli.cli.targets import check_targets
    from biigma_cli.storage import check_writable

    if precision not in PRECISIONS:
        raise UsageError(
            f"unknown --precision {precision!r}", fix=f"choose one of: {', '.join(PRECISIONS)}"
        )
    chosen = None if outputs is None else _chosen(outputs)
    if run is not None and checkpoint is not None:
        raise UsageError("both --run and --checkpoint are given", fix="leave one of them out")
    if checkpoint is None:
        run = newest_run(runs) if run is None else run_folder(run, runs)
        if run is None:
            raise UsageError(f"no run in {runs}", fix="train first, or give --checkpoint FILE")
        checkpoint = best_checkpoint(run)
        note(f"exporting {checkpoint}")
    inside = checkpoint.parent.name == "weights"
    folder = run or (checkpoint.parent.parent if inside else checkpoint.parent)
    target = output or folder / "model.onnx"
    check_writable(target)
    check_targets(target, card, [checkpoint])
    if card is not None:
        check_writable(card)

    from biigma_cli.core.header import caveats_of
    from biigma_cli.core.sources import sources_of
    from biigma_cli.core.weights import load_checkpoint
    from biigma_cli.engine.device import pick_device
    from biigma_cli.runtime.quantise import IMAGES as INT8_IMAGES
    from biigma_cli.runtime.quantise import check_available

    if precision == "int8":
        check_available()
    torch_device = pick_device(device)
    loaded = load_checkpoint(checkpoint)
    for caveat in caveats_of(sources_of(loaded)):
        note(f"warning: {caveat}")
    metrics = _figures(folder, checkpoint, loaded)
    if "test" not in metrics:
        note("no test figures to store: run 'biigma eval --split test' before exporting")
    wants_check = not no_input_check and (chosen is None or "novelty" in chosen)
    lower = precision != "fp32"
    validation = _part(loaded, "val", None)
    calibration = check = train = None
    if validation is not None and not no_calibrate:
        calibration = _calibrate(loaded, validation, torch_device)
    if wants_check and validation is not None:
        check = _check(loaded, validation, torch_device)
    if precision == "int8":
        train = _part(loaded, "train", INT8_IMAGES)
        if train is None:
            raise DataError(
                "int8 is calibrated on training images, which are not all here",
                fix=f"run 'biigma download {loaded.config.data.dataset}' first, or export "
                "fp16-weights",
            )
        note(f"quantising on {len(train.pixels)} training images: a minute or so")
    judged = validation if lower else None
    pixels, source = _parity_images(
        validation, loaded.config.data.side, images if judged is None else len(judged.pixels)
    )

    from biigma_cli.runtime.export import export_onnx as export

    found = export(
        loaded,
        target,
        pixels,
        source=source,
        labels=None if judged is None else judged.labels,
        metrics=metrics,
        calibration=calibration,
        check=check,
        precision=precision,
        outputs=chosen,
        train=None if train is None else train.pixels,
        validation=validation,
        force=force,
    )
    size = target.stat().st_size
    typer.echo(f"wrote {target}, {size / 1e6:.1f} MB, one file, {precision}")
    typer.echo(found.parity.proof())
    if found.accuracy is not None:
        typer.echo(found.accuracy.summary())
    typer.echo("not calibrated" if calibration is None else calibration.summary())
    typer.echo("no input check" if found.check is None else found.check.summary())
    if found.stated is not None:
        typer.echo("\n".join(found.stated.summary()))
    if card is not None:
        from biigma_cli.report.card import model_card
        from biigma_cli.runtime.session import Predictor
        from biigma_cli.storage import atomic_write_text

        words = ["--run", f"runs/{folder.name}"]
        if checkpoint.name != "best.safetensors":
            words = ["--checkpoint", f"runs/{folder.name}/weights/{checkpoint.name}"]
        words += ["-o", target.name]
        words += [] if precision == "fp32" else ["--precision", precision]
        words += [] if chosen is None else ["--outputs", ",".join(chosen)]
        flags = {"--no-input-check": no_input_check, "--no-calibrate": no_calibrate}
        words += [flag for flag, given in (flags | {"--force": force}).items() if given]
        tensors = loaded.tensors.items()
        text = model_card(
            target.stem,
            Predictor(target, device="cpu").info.metadata,
            parameters=sum(v.numel() for k, v in tensors if k.startswith("model.")),
            megabytes=size / 1e6,
            commands=_commands(loaded, folder.name, metrics, words),
        )
        atomic_write_text(card, text)
        typer.echo(f"wrote {card}")


def commands_behind(
    sources: Iterable[Mapping[str, Any]], line: Iterable[Mapping[str, Any]]
) -> list[str]:
    """What made a network, as far as is recorded: its downloads, then the commands of its line.

    Args:
        sources: the data it has learnt from.
        line: the networks behind it and its own, oldest first (`provenance.line_of`).
    """
    bases = dict.fromkeys(base_of(entry["dataset"]) for entry in sources)
    lines, commit = [], None
    for entry in line:
        if entry["versions"].get("commit") not in (None, commit):
            commit = entry["versions"]["commit"]
            lines.append(f"# commit {commit}")
        lines.append(entry["command"] or f"# {entry['run']}, whose command is not recorded")
    known = [base for base in bases if base in TAXONOMIES and base != SYNTHETIC.dataset]
    return [*(f"biigma download {base}" for base in known), *lines]


def _figures(folder: Path, path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """What 'biigma eval' left in a run's folder of this very checkpoint and data, by part."""
    import json

    from biigma_cli.judge.judgement import still_holds
    from biigma_cli.runtime.stored import storable

    found: dict[str, Any] = {}
    if path.name != "best.safetensors":  # the one that is judged
        return found
    for part in ("val", "test"):
        file = folder / f"eval-{part}.json"
        if not file.is_file():
            continue
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            if still_holds(stored, file, path, checkpoint.meta["split"]):
                found[part] = storable(stored)
                continue
            why = "is of an earlier state of this run, or of other data"
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            why = "is damaged"
        note(f"{file} {why}: its figures are left out; run 'biigma eval --split {part}' again")
    return found


def _commands(
    checkpoint: Checkpoint, run: str, metrics: dict[str, Any], words: list[str]
) -> list[str]:
    """What made the exported file; without anyone's folders."""
    from biigma_cli.core.sources import sources_of

    own = {
        "command": checkpoint.meta.get("command") or "biigma train",
        "versions": checkpoint.meta.get("versions", {}),
    }
    return [
        *commands_behind(sources_of(checkpoint), [*checkpoint.meta.get("ancestors", []), own]),
        *(f"biigma eval --run runs/{run} --split {part}" for part in metrics),
        shlex.join(["biigma", "export", "onnx", *words]),
    ]


def _chosen(text: str) -> list[str]:
    """Names of outputs. Raises `UsageError` for an unknown one."""
    import difflib

    names = [name for name in map(str.strip, text.split(",")) if name]
    unknown = [name for name in names if name not in OUTPUTS]
    if unknown:
        near = difflib.get_close_matches(unknown[0], OUTPUTS, n=1)
        raise UsageError(
            f"--outputs: unknown {', '.join(unknown)}"
            + (f" (did you mean {near[0]}?)" if near else ""),
            fix=f"choose from: {', '.join(OUTPUTS)}",
        )
    return names


def _part(checkpoint: Checkpoint, name: Literal["train", "val"], count: int | None) -> Part | None:
    """Images of a part, None where they are not here.

    Args:
        count: of validation the first so many, of training a drawn sample of them, in which extra
            data sets have their share; None for all.
    """
    import numpy as np

    from biigma_cli.cli.progress import Progress
    from biigma_cli.data.datasets import load_dataset
    from biigma_cli.data.extra import add_extra, find_extra
    from biigma_cli.data.images import load_part
    from biigma_cli.data.splits import check_same_split, make_split
    from biigma_cli.errors import BiigmaError

    data = checkpoint.config.data
    try:
        manifest = load_dataset(data)
        split = make_split(manifest, data)
        check_same_split(split, checkpoint.meta["split"], source="the checkpoint")
        ids = list(getattr(split, name))
        extras = []
        if name == "train":
            extras = find_extra(manifest, data)
            lengths = [len(ids), *(len(extra.ids) for extra in extras)]
            drawn = np.arange(sum(lengths))
            if count is not None:
                drawn = np.random.default_rng(0).permutation(sum(lengths))[:count]
            first = np.cumsum([0, *lengths])
            taken = [drawn[(drawn >= a) & (drawn < b)] - a for a, b in pairwise(first)]
            extras = [
                extra._replace(ids=tuple(extra.ids[i] for i in own))
                for extra, own in zip(extras, taken[1:], strict=True)
            ]
            ids = [ids[i] for i in taken[0]]
        with Progress("decoding", "images") as progress:
            part = load_part(manifest, ids[:count], data.side, rule=data.resize, progress=progress)
            return add_extra(part, manifest, extras, data, progress=progress)
    except BiigmaError as error:
        if name == "val":
            note(f"no validation images here ({error.message}): not calibrated, no input check, "
                 "and proven on drawn patterns")  # fmt: skip
        else:
            note(f"no training images here ({error.message})")
        return None


def _check(checkpoint: Checkpoint, validation: Part, device: torch.device) -> FittedCheck | None:
    """The input check, where there are images enough to state its false alarms."""
    from biigma_cli.cli.progress import Progress
    from biigma_cli.core.weights import load_model
    from biigma_cli.runtime.input_check import FEWEST, IMAGES, fit_check

    train = _part(checkpoint, "train", IMAGES)
    fewest = min(0 if train is None else len(train.pixels), len(validation.pixels))
    if train is None:
        return None
    if fewest < FEWEST:
        note(f"no input check: it takes {FEWEST} training and validation images")
        return None
    model = load_model(checkpoint).float()
    with Progress("fitting the input check", "views") as progress:
        return fit_check(model, train.pixels, validation.pixels, device=device, progress=progress)


def _calibrate(checkpoint: Checkpoint, part: Part, device: torch.device) -> Calibration | None:
    """The temperature of the validation part, where one is best."""
    from biigma_cli.cli.progress import Progress
    from biigma_cli.runtime.export import calibrate

    with Progress("calibrating", "images") as progress:
        found = calibrate(checkpoint, part.pixels, part.labels, device=device, progress=progress)
    if found is None:
        note("no temperature is best on the validation part: every answer is right, or the "
             "answers say nothing; the probabilities stay as trained")  # fmt: skip
    return found


def _parity_images(part: Part | None, side: int, count: int) -> tuple[Pixels, str]:
    """Validation images where there are any, else drawn patterns."""
    import numpy as np

    if part is not None:
        return part.pixels[:count], "validation images"
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (count, 5, 5, 3))
    grown = coarse.repeat(-(-side // 5), 1).repeat(-(-side // 5), 2)[:, :side, :side]
    noise = rng.normal(0, 20, grown.shape)
    return np.clip(grown + noise, 0, 255).astype(np.uint8), "drawn patterns"
