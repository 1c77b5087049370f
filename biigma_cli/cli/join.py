"""`biigma join`: several exported models as one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from biigma_cli.cli.boundary import boundary, note
from biigma_cli.cli.options import DataDirOption

if TYPE_CHECKING:
    from biigma_cli.runtime.session import Answer, Predictor

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
            help="How weights are stored: as-is, fp16-weights, int8-weights or int8-all-weights; "
            "once for all models or once for each, in their order. fp16 and int8 files stay as "
            "they are.  "
            "[default: as-is]",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write even what loses more than half a point.")
    ] = False,
    data_dir: DataDirOption = None,
) -> None:
    """Join exported models into one file with their mean answer.

    It is the mean of their logits. Networks that were trained apart err apart, so their mean is
    better than each, for as much work as all together. They must have the same classes, split and
    side. The joined file is used like any other; its evidence and saliency maps are the means of
    theirs.

    Shown are the figures of each and of their mean on the validation part, on which the joined
    file's probabilities are calibrated and its input check's limit is set. The test part is not
    looked at: 'biigma eval --model FILE --split test --store' does, and keeps the figures.
    """
    import numpy as np

    from biigma_cli.cli.export import commands_behind
    from biigma_cli.cli.progress import Progress
    from biigma_cli.cli.targets import check_targets
    from biigma_cli.cli.train import command_given
    from biigma_cli.core.sources import merged, sources_of
    from biigma_cli.core.weights import Checkpoint
    from biigma_cli.data.datasets import load_dataset
    from biigma_cli.data.images import load_part
    from biigma_cli.data.splits import check_same_split, make_split
    from biigma_cli.engine.evaluate import validation_figures
    from biigma_cli.engine.provenance import ancestry, line_of, versions
    from biigma_cli.judge import data_of
    from biigma_cli.runtime.calibration import softmax
    from biigma_cli.runtime.join import check_joinable, join_onnx, stored_as
    from biigma_cli.runtime.session import Predictor, find_model
    from biigma_cli.storage import atomic_write_text, check_writable

    stored = _stored(precision, len(models))
    paths = [find_model(name) for name in models]
    check_targets(output, card, paths)
    check_writable(output)
    if card is not None:
        check_writable(card)
    opened = [Predictor(path, device="cpu") for path in paths]
    infos = [predictor.info for predictor in opened]
    check_joinable(infos)
    names = _names(opened)
    for name, info, how in zip(names, infos, stored, strict=True):
        if how not in ("as-is", stored_as(info, how)):
            note(f"{name} is stored in {info.precision}, and stays so")
    data = data_of(infos[0])
    manifest = load_dataset(data)
    split = make_split(manifest, data)
    check_same_split(split, infos[0].metadata["split"], source=infos[0].name)
    with Progress("decoding", "images") as progress:
        part = load_part(
            manifest, split.val, data.side, rule=data.resize, build=True, progress=progress,
            warn=note,
        )  # fmt: skip
    with Progress("asking", "images") as progress:
        said = []
        for i, predictor in enumerate(opened):

            def told(done: int, count: int, before: int = i * len(part.ids)) -> None:
                progress(before + done, len(opened) * count)

            said.append(predictor.ask(part.pixels, told))

    def judged(answer: Answer) -> dict[str, float]:
        proba_nY = softmax(answer.logits_BY.astype(np.float64)).astype(np.float32)
        found = validation_figures(part.labels, proba_nY, list(infos[0].classes))
        return {name: found[f"val_{name}"] for name in _COLUMNS}

    members = [
        {**_about(name, predictor), "validation": judged(answer)}
        for name, predictor, answer in zip(names, opened, said, strict=True)
    ]
    networks = [Checkpoint({}, info.metadata) for info in infos]
    sources = merged(*(sources_of(network) for network in networks))
    line = ancestry(
        *(line_of(name, network) for name, network in zip(names, networks, strict=True))
    )
    note("writing the joined file, and asking it for the same images")
    own = {"run": output.stem, "command": command_given(), "versions": versions()}
    found = join_onnx(
        opened, output, part.pixels, part.labels, said,
        groups=part.groups,
        stored=stored,
        describe={"command": own["command"], "ancestors": line, "versions": own["versions"]},
        sources=sources,
        members=members,
        force=force,
    )  # fmt: skip
    for left in found.left_out:
        note(f"no {left}: not all of the models give it")
    typer.echo(f"{split.title}\nvalidation part, {len(part.ids)} images, as trained")
    width = max(len(name) for name in ("joined", *names))
    typer.echo(" " * width + "".join(f"  {title:>8}" for title in _COLUMNS.values()))
    for name, figures in (
        *((m["name"], m["validation"]) for m in members),
        ("joined", judged(found.said)),
    ):
        typer.echo(f"{name:<{width}}" + "".join(f"  {value:8.4f}" for value in figures.values()))
    size = output.stat().st_size / 1e6
    typer.echo(f"wrote {output}, {size:.1f} MB, one file, {len(opened)} networks")
    typer.echo(found.parity.proof())
    if any(how != "as-is" for how in stored):
        typer.echo(found.accuracy.summary())
    typer.echo("not calibrated" if found.calibration is None else found.calibration.summary())
    if found.said.novelty_B is None:
        typer.echo("no input check")
    else:
        flagged = (found.said.novelty_B > 1).mean()
        typer.echo(f"input check: it flags {flagged:.1%} of the validation images")
    typer.echo("\n".join(found.stated.summary()))
    if card is not None:
        from biigma_cli.report.card import model_card

        text = model_card(
            output.stem,
            Predictor(output, device="cpu").info.metadata,
            parameters=found.parameters,
            megabytes=size,
            commands=commands_behind(sources, [*line, *_exports(members), own]),
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


def _names(models: list[Predictor]) -> list[str]:
    """What to call each: its file's name, or its run's; with its digest where two are the same."""
    from biigma_cli.engine.provenance import run_of

    names = [run_of(model.info.path) for model in models]
    return [
        f"{name}@{model.id.rpartition('@')[2]}" if names.count(name) > 1 else name
        for name, model in zip(names, models, strict=True)
    ]


def _exports(members: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each file that was joined, for the card's commands."""
    return [
        {"run": "", "command": f"# {m['name']}: exported as {m['id']}", "versions": {}}
        for m in members
    ]


def _about(name: str, predictor: Predictor) -> dict[str, Any]:
    """What is kept of a member."""
    from biigma_cli.runtime.session import stated

    info = predictor.info
    return {
        "name": name,
        "id": predictor.id,
        "model": stated(info, "config", "model"),
        "selection": info.metadata.get("selection", ""),
        "epoch": info.metadata.get("epoch"),
    }
