"""`biigma export`: a checkpoint to a file for inference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from biigma_cli.cli.boundary import boundary, note
from biigma_cli.cli.options import DataDirOption, DeviceOption, RunsOption
from biigma_cli.taxonomy import DERIVED, SYNTHETIC, TAXONOMIES

if TYPE_CHECKING:
    import torch

    from biigma_cli.core.weights import Checkpoint
    from biigma_cli.data.images import Part
    from biigma_cli.data.preprocess import Pixels
    from biigma_cli.runtime.calibration import Calibration

# Of a run's stored figures: what names the machine's files, or is far larger than the figures.
NOT_STORED = ("model", "against", "saliency", "heads", "robustness")

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
    machine); a largest difference above 1e-4 in any probability writes nothing. The probabilities
    are calibrated: their logits are divided by a temperature fitted on the validation part, which
    changes no answer. Figures from 'biigma eval --run RUN' are stored in the file with their
    protocol.
    """
    from biigma_cli.cli.evaluate import best_checkpoint, newest_run
    from biigma_cli.errors import UsageError
    from biigma_cli.storage import check_writable

    if run is not None and checkpoint is not None:
        raise UsageError("both --run and --checkpoint are given", fix="leave one of them out")
    if checkpoint is None:
        run = run or newest_run(runs)
        if run is None:
            raise UsageError(f"no run in {runs}", fix="train first, or give --checkpoint FILE")
        checkpoint = best_checkpoint(run)
        note(f"exporting {checkpoint}")
    folder = run or checkpoint.parent
    target = output or folder / "model.onnx"
    check_writable(target)
    if card is not None:
        check_writable(card)

    import json

    from biigma_cli.core.weights import load_checkpoint
    from biigma_cli.engine.device import pick_device

    torch_device = pick_device(device)
    loaded = load_checkpoint(checkpoint)
    metrics = {}
    for part in ("val", "test"):
        file = folder / f"eval-{part}.json"
        if file.is_file():
            stored = json.loads(file.read_text(encoding="utf-8"))
            if stored["split_hash"] == loaded.meta["split"]["split_hash"]:
                metrics[part] = {k: v for k, v in stored.items() if k not in NOT_STORED}
    if "test" not in metrics:
        note("no test figures to store: run 'biigma eval --split test' before exporting")
    validation = _validation_part(loaded, images if no_calibrate else None)
    pixels, source = _parity_images(validation, loaded.config.data.side, images)
    calibration = None
    if validation is not None and not no_calibrate:
        calibration = _calibrate(loaded, validation, torch_device)

    from biigma_cli.runtime.export import export_onnx as export

    parity = export(loaded, target, pixels, source=source, metrics=metrics, calibration=calibration)
    size = target.stat().st_size
    typer.echo(f"wrote {target}, {size / 1e6:.1f} MB, one file")
    typer.echo(parity.proof())
    typer.echo("not calibrated" if calibration is None else calibration.summary())
    if card is not None:
        from biigma_cli.report.card import model_card
        from biigma_cli.runtime.session import Predictor
        from biigma_cli.storage import atomic_write_text

        tensors = loaded.tensors.items()
        text = model_card(
            target.stem,
            Predictor(target, device="cpu").info.metadata,
            parameters=sum(v.numel() for k, v in tensors if k.startswith("model.")),
            megabytes=size / 1e6,
            commands=_commands(loaded, folder.name, target.name, metrics),
        )
        atomic_write_text(card, text)
        typer.echo(f"wrote {card}")


def _commands(checkpoint: Checkpoint, run: str, target: str, metrics: dict[str, Any]) -> list[str]:
    """What made the exported file, as far as is recorded; without anyone's folders."""
    dataset = checkpoint.config.data.dataset
    base = DERIVED.get(dataset, dataset)
    return [
        *([f"biigma download {base}"] if base in TAXONOMIES and base != SYNTHETIC.dataset else []),
        checkpoint.meta.get("command") or "biigma train",
        *(f"biigma eval --run runs/{run} --split {part}" for part in metrics),
        f"biigma export onnx --run runs/{run} -o {target}",
    ]


def _validation_part(checkpoint: Checkpoint, count: int | None) -> Part | None:
    """The first `count` of the validation images, None for all; None where they are not here."""
    from biigma_cli.cli.progress import Progress
    from biigma_cli.data.datasets import load_dataset
    from biigma_cli.data.images import load_part
    from biigma_cli.data.splits import check_same_split, make_split
    from biigma_cli.errors import BiigmaError

    data = checkpoint.config.data
    try:
        manifest = load_dataset(data)
        split = make_split(manifest, data)
        check_same_split(split, checkpoint.meta["split"], source="the checkpoint")
        with Progress("decoding", "images") as progress:
            return load_part(
                manifest, split.val[:count], data.side, rule=data.resize, progress=progress
            )
    except BiigmaError as error:
        note(f"no validation images here ({error.message}): not calibrated, and proven on drawn "
             "patterns")  # fmt: skip
        return None


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
