"""`biigma join`: several exported models as one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from biigma_cli.cli.boundary import boundary, note
from biigma_cli.cli.options import DataDirOption

if TYPE_CHECKING:
    from biigma_cli.runtime.join import Said
    from biigma_cli.runtime.session import ModelInfo

_COLUMNS = {
    "accuracy": "accuracy", "macro_f1": "macro-F1", "macro_recall": "balanced",
    "log_loss": "log loss",
}  # fmt: skip


@boundary
def join(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL MODEL...", help="Exported .onnx files, or shipped models."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    card: Annotated[
        Path | None,
        typer.Option("--card", help="Also write a model card (Markdown) there."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision",
            help="How weights are stored: as-is, fp16-weights or int8-weights; once for all models "
            "or once for each, in their order.  [default: as-is]",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write even what loses more than half a point.")
    ] = False,
    data_dir: DataDirOption = None,
) -> None:
    """Join exported models into one that answers with the mean of their logits.

    Networks that were trained apart err apart, so their mean is better than each, for as much work
    as all together. They must have the same classes, split and side. The joined file is used like
    any other; its evidence and saliency maps are the means of theirs.

    Shown are the figures of each and of their mean on the validation part, on which the joined
    file's probabilities are calibrated and its input check's limit is set. The test part is not
    looked at: 'biigma eval --model FILE --split test --store' does, and keeps the figures.
    """
    import numpy as np

    from biigma_cli.cli.export import commands_behind
    from biigma_cli.cli.progress import Progress
    from biigma_cli.cli.train import command_given
    from biigma_cli.core.sources import merged, sources_of
    from biigma_cli.core.weights import Checkpoint
    from biigma_cli.data.datasets import load_dataset
    from biigma_cli.data.images import load_part
    from biigma_cli.data.splits import check_same_split, make_split
    from biigma_cli.engine.evaluate import validation_figures
    from biigma_cli.engine.provenance import ancestry, line_of, run_of, versions
    from biigma_cli.judge import data_of
    from biigma_cli.runtime.calibration import softmax
    from biigma_cli.runtime.join import ask, check_joinable, join_onnx
    from biigma_cli.runtime.session import Predictor, find_model
    from biigma_cli.storage import atomic_write_text, check_writable

    stored = _stored(precision, len(models))
    paths = [find_model(name) for name in models]
    check_writable(output)
    if card is not None:
        check_writable(card)
    opened = [Predictor(path, device="cpu") for path in paths]
    infos = [predictor.info for predictor in opened]
    check_joinable(infos)
    data = data_of(infos[0])
    manifest = load_dataset(data)
    split = make_split(manifest, data)
    check_same_split(split, infos[0].metadata["split"], source=infos[0].name)
    with Progress("decoding", "images") as progress:
        part = load_part(
            manifest, split.val, data.side, rule=data.resize, build=True, progress=progress,
            warn=note,
        )  # fmt: skip
    total = len(opened) * len(part.ids)
    with Progress("asking", "images") as progress:
        said = []
        for i, predictor in enumerate(opened):
            done = i * len(part.ids)

            def told(count: int) -> None:
                nonlocal done
                done += count
                progress(done, total)

            said.append(ask(predictor, part.pixels, told=told))

    def judged(answers: Said) -> dict[str, float]:
        proba_nY = softmax(answers.logits_nY.astype(np.float64)).astype(np.float32)
        found = validation_figures(part.labels, proba_nY, list(infos[0].classes))
        return {name: found[f"val_{name}"] for name in _COLUMNS}

    members = [
        {**_about(info, predictor.id), "validation": judged(answers)}
        for info, predictor, answers in zip(infos, opened, said, strict=True)
    ]
    networks = [Checkpoint({}, info.metadata) for info in infos]
    sources = merged(*(sources_of(network) for network in networks))
    line = ancestry(
        *(line_of(run_of(path), network) for path, network in zip(paths, networks, strict=True))
    )
    note("writing the joined file, and asking it for the same images")
    found = join_onnx(
        opened, output, part.pixels, part.labels, said,
        stored=stored,
        describe={"command": command_given(), "ancestors": line, "versions": versions()},
        sources=sources,
        members=members,
        force=force,
    )  # fmt: skip
    joined = Predictor(output, device="cpu")
    own = judged(ask(joined, part.pixels))
    typer.echo(f"{split.title}\nvalidation part, {len(part.ids)} images, as trained")
    width = max(len(name) for name in ("joined", *(info.name for info in infos)))
    typer.echo(" " * width + "".join(f"  {title:>8}" for title in _COLUMNS.values()))
    for name, figures in (*((m["name"], m["validation"]) for m in members), ("joined", own)):
        typer.echo(f"{name:<{width}}" + "".join(f"  {value:8.4f}" for value in figures.values()))
    size = output.stat().st_size / 1e6
    typer.echo(f"wrote {output}, {size:.1f} MB, one file, {len(opened)} networks")
    typer.echo(found.parity.proof())
    if any(how != "as-is" for how in stored):
        typer.echo(found.accuracy.summary())
    typer.echo("not calibrated" if found.calibration is None else found.calibration.summary())
    if found.flagged is None:
        typer.echo("no input check")
    else:
        typer.echo(f"input check: it flags {found.flagged:.1%} of the validation images")
    if card is not None:
        from biigma_cli.report.card import model_card

        text = model_card(
            output.stem,
            joined.info.metadata,
            parameters=found.parameters,
            megabytes=size,
            commands=[*commands_behind(sources, line), command_given()],
        )
        atomic_write_text(card, text)
        typer.echo(f"wrote {card}")
    note(f"next: biigma eval --model {output} --split val --store, then --split test")


def _stored(given: list[str] | None, count: int) -> list[str]:
    """Of each model how its weights are stored. Raises `UsageError`."""
    from biigma_cli.errors import UsageError
    from biigma_cli.runtime.join import STORED

    chosen = given or ["as-is"]
    unknown = [how for how in chosen if how not in STORED]
    if unknown:
        raise UsageError(
            f"unknown --precision {unknown[0]!r}", fix=f"choose from: {', '.join(STORED)}"
        )
    if len(chosen) not in (1, count):
        raise UsageError(
            f"--precision is given {len(chosen)} times for {count} models",
            fix="give it once, or once for each model",
        )
    return chosen * count if len(chosen) == 1 else chosen


def _about(info: ModelInfo, identity: str) -> dict[str, Any]:
    """What is kept of a member."""
    from biigma_cli.runtime.session import stated

    return {
        "name": info.name,
        "id": identity,
        "model": stated(info, "config", "model"),
        "selection": info.metadata.get("selection", ""),
        "epoch": info.metadata.get("epoch"),
    }
