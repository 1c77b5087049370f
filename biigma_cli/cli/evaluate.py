"""`biigma eval`: figures of a model on a part it was not trained on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from biigma_cli.cli.boundary import boundary, note
from biigma_cli.cli.options import DataDirOption, RunsOption
from biigma_cli.cli.prevalence import JudgedPrevalenceOption, parse_shares
from biigma_cli.cli.run_folders import best_checkpoint, newest_run, run_folder

if TYPE_CHECKING:
    from rich.table import Table

    from biigma_cli.judge import Judgement, Rival
    from biigma_cli.metrics import Reliability


@boundary
def evaluate(
    split: Annotated[
        str, typer.Option("--split", help="Part to judge on: test, val or train.")
    ] = "test",
    run: Annotated[
        Path | None, typer.Option("--run", help="Run folder; its best checkpoint is judged.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Checkpoint, exported .onnx, or name of a shipped model."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            help="Second run, checkpoint, .onnx or shipped model: paired differences are added.",
        ),
    ] = None,
    predictions_out: Annotated[
        Path | None,
        typer.Option(
            "--predictions-out",
            metavar="CSV",
            help="Also write each image's probabilities there, in the ISIC submission form.",
        ),
    ] = None,
    reliability: Annotated[
        Path | None,
        typer.Option(
            "--reliability",
            metavar="FILE",
            help="Also draw the reliability diagram there (.svg or .png); of a calibrated model "
            "before and after.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="DIR",
            help="Also write all of it there as one HTML page, with curves, the most confident "
            "mistakes and subgroups.",
        ),
    ] = None,
    subgroups: Annotated[
        bool,
        typer.Option(
            "--subgroups", help="Also the figures by sex, age and site, and by what leaked."
        ),
    ] = False,
    saliency: Annotated[
        bool,
        typer.Option(
            "--saliency", help="Also how well the model's maps show the lesion, by its masks."
        ),
    ] = False,
    heads: Annotated[
        Path | None,
        typer.Option(
            "--heads",
            metavar="FILE",
            help="Also how alike the checkpoint's heads are, drawn there (.svg or .png); with "
            "--against both models'.",
        ),
    ] = None,
    robustness: Annotated[
        bool,
        typer.Option(
            "--robustness",
            help="Also how answers change with what is not the lesion (other backgrounds, hair, "
            "ruler, ink), with the whole picture (colour, JPEG, blur) and without the lesion, "
            "where lesion masks are known.",
        ),
    ] = False,
    robustness_images: Annotated[
        int | None,
        typer.Option(
            "--robustness-images",
            metavar="N",
            min=1,
            help="At most N images, whole lesions drawn at random.  [default: all with a mask]",
        ),
    ] = None,
    robustness_figure: Annotated[
        Path | None,
        typer.Option("--robustness-figure", metavar="FILE", help="Draw it there (.svg or .png)."),
    ] = None,
    robustness_sheet: Annotated[
        Path | None,
        typer.Option(
            "--robustness-sheet",
            metavar="FILE",
            help="Show every perturbation of a few images there (.png).",
        ),
    ] = None,
    prevalence: JudgedPrevalenceOption = None,
    tta: Annotated[
        bool,
        typer.Option(
            "--tta",
            help="Judge the mean over flips and quarter turns, as 'predict --tta' gives it.",
        ),
    ] = False,
    store: Annotated[
        bool,
        typer.Option(
            "--store",
            help="Keep the figures in the .onnx file itself, and in the card beside it, in the "
            "place of its checkpoint's.",
        ),
    ] = False,
    resamples: Annotated[
        int,
        typer.Option("--resamples", min=0, max=100_000, help="Of the bootstrap; 0: no intervals."),
    ] = 2000,
    json_: Annotated[bool, typer.Option("--json", help="Everything as JSON on stdout.")] = False,
    device: Annotated[
        str,
        typer.Option(
            "--device",
            help="auto, cpu, cuda or cuda:N; for a checkpoint also mps, for an .onnx file also "
            "tensorrt, coreml and openvino.",
        ),
    ] = "auto",
    runs: RunsOption = Path("runs"),
    data_dir: DataDirOption = None,
) -> None:
    """Judge a model on images it never saw.

    Accuracy, macro-F1, balanced accuracy, the official ISIC score, AUC, average precision, log
    loss, Brier score, calibration error and AURC; melanoma's operating points; per class; the
    confusion matrix; malignant against benign; what the limits of 'predict --max-error' and
    '--min-sensitivity' do on the part. Each figure has a 95% bootstrap interval over lesions, and
    the protocol stands above the tables. An exported model is judged on its calibrated
    probabilities, a checkpoint on those it was trained to. Without --run and --model: the newest
    run in runs/, else the shipped model.
    """
    from biigma_cli.cli.progress import Progress
    from biigma_cli.cli.targets import check_distinct, check_ending
    from biigma_cli.data.splits import PARTS
    from biigma_cli.errors import UsageError
    from biigma_cli.report.style import picture_kind
    from biigma_cli.runtime.session import find_network
    from biigma_cli.storage import check_writable

    if split not in PARTS:
        raise UsageError(f"unknown --split {split!r}", fix=f"choose one of: {', '.join(PARTS)}")
    if run is not None and model is not None:
        raise UsageError("both --run and --model are given", fix="leave one of them out")
    if reliability is not None:
        picture_kind(reliability, "reliability.svg")
    check_ending("--predictions-out", predictions_out, ".csv")
    for target in (predictions_out, reliability):
        if target is not None:
            check_writable(target)
    from biigma_cli.cli import (
        evaluate_maps,
        evaluate_prevalence,
        evaluate_report,
        evaluate_robustness,
        evaluate_store,
    )

    named = parse_shares(prevalence) if prevalence else None
    evaluate_maps.check_picture(heads)
    evaluate_robustness.check_options(
        robustness, robustness_images, robustness_figure, robustness_sheet
    )
    page = evaluate_report.check_report_folder(report) if report is not None else None
    if run is None and model is None:
        run = newest_run(runs)
        note(f"judging {run or 'the shipped model'}")
    run = None if run is None else run_folder(run, runs)
    path = best_checkpoint(run) if run is not None else find_network(model)
    if store:
        evaluate_store.check_store(path, split, tta=tta, resamples=resamples)

    from biigma_cli.judge import judge, open_candidate

    other = None
    if against is not None:
        there = run_folder(against, runs)
        other = best_checkpoint(there) if there.is_dir() else find_network(str(against))
    check_distinct(
        {
            "--predictions-out": predictions_out, "--reliability": reliability, "--heads": heads,
            "--robustness-figure": robustness_figure, "--robustness-sheet": robustness_sheet,
            "--report": page,
        },
        [file for one in (path, other) if one is not None
         for file in (one, one.with_suffix(".md"), *one.parent.parent.glob("eval-*.json"))],
    )  # fmt: skip
    candidate = open_candidate(path, device)
    second = None
    if other is not None:
        second = open_candidate(other, device)
    if tta:
        candidate, second = candidate.over_views(), second and second.over_views()
    for opened in (candidate, second):
        if opened is not None and opened.fallback:
            note(f"{opened.name} is not on the GPU: {opened.fallback}")
    networks = evaluate_maps.open_networks(heads, (candidate, second), device)

    from biigma_cli.data.datasets import load_dataset

    with Progress("drawing", "images") as drawing:
        manifest = load_dataset(candidate.data, progress=drawing)
    evaluate_robustness.check_masks(robustness, manifest)
    shares = evaluate_prevalence.shares_for(named, candidate, manifest, split)
    with ExitStack() as stack:

        def bar(title: str, unit: str) -> Callable[[int, int], None]:
            """Progress whose clock starts with its work, and anew with the second model's."""
            shown: list[Progress] = []

            def report(done: int, total: int) -> None:
                if not shown or done == 0:
                    shown[:] = [stack.enter_context(Progress(title, unit))]
                shown[0](done, total)

            return report

        insight = evaluate_maps.judge_maps(
            (candidate, second), networks, manifest, split, saliency=saliency,
            resamples=resamples, device=device, bar=bar, warn=note,
        )  # fmt: skip
        judged = judge(
            candidate, manifest, split, against=second, shares=shares, resamples=resamples,
            warn=note, decoding=bar("decoding", "images"), running=bar("judging", "images"),
            resampling=bar("resampling", "resamples"),
        )  # fmt: skip
        perturbed = evaluate_robustness.measure(
            robustness, (candidate, second), manifest, split, images=robustness_images,
            resamples=resamples, bar=bar,
        )  # fmt: skip
    asked = {**insight.to_dict(), **evaluate_robustness.plain(perturbed)}
    saved = []
    if run is not None and not tta:  # those of a run are of one view: an export takes them along
        from biigma_cli.metrics import FEWEST
        from biigma_cli.storage import write_json

        file = run / f"eval-{split}.json"
        stored, drawn = _stored(file, path, judged)
        if resamples < FEWEST <= drawn:
            note(f"{file} keeps its intervals, which {resamples} resamples do not give")
            new = {k: v for k, v in asked.items() if k == "heads" or k not in stored}
            found = {**stored, **new}
        else:
            kept: dict[str, Any] = {
                k: stored[k] for k in ("saliency", "heads", "robustness") if k in stored
            }
            found = {**kept, **judged.to_dict(), **asked}
        if found != stored:
            write_json(file, found)
            saved.append(file)
    if store:
        saved += evaluate_store.store(path, judged)
    if predictions_out is not None:
        from biigma_cli.data.submission import write_submission

        write_submission(predictions_out, judged.ids, judged.proba_nY, judged.assessment.codes)
        saved.append(predictions_out)
    if reliability is not None:
        _draw(judged, reliability)
        saved.append(reliability)
    if heads is not None:
        evaluate_maps.draw(insight, heads, manifest.dataset)
        saved.append(heads)
    saved += evaluate_robustness.draw(
        perturbed, candidate, manifest, figure=robustness_figure, sheet=robustness_sheet
    )
    told = [*_told(judged), *insight.notes(), *evaluate_robustness.notes(perturbed)]
    apart = None
    if page is not None or subgroups or json_:
        from biigma_cli.judge.subgroups import judge_subgroups

        apart = judge_subgroups(judged, manifest, resamples=resamples)
    if page is not None and apart is not None:
        with Progress("mapping mistakes", "images") as mapping:
            evaluate_report.write_report(
                page, judged, candidate, manifest,
                probabilities=probabilities_title(judged.temperature, judged.views),
                reliability=_reliability_panels(judged), subgroups=apart,
                notes=[*told, *(f"input check: {line}" for line in _flagged(judged))],
                saliency=asked.get("saliency"), robustness=asked.get("robustness"),
                heads=asked.get("heads"),
                progress=mapping,
            )  # fmt: skip
        saved.append(page)
    for line in told:
        note(line)
    if json_:
        import json

        whole = {**judged.to_dict(), "published": evaluate_report.published_json(judged)}
        whole["notes"] = told
        if apart is not None:
            whole["subgroups"] = apart.to_dict()
        whole |= {**asked, **evaluate_prevalence.plain(judged)}
        typer.echo(json.dumps(whole, indent=2))
    else:
        shown = evaluate_report.subgroup_items(apart) if subgroups and apart is not None else []
        shown = [*shown, *insight.items()]
        shown += evaluate_robustness.items(perturbed, candidate.classes)
        typer.echo(_tables(judged, shown), nl=False)
    for path in saved:
        note(f"saved in {path}")


def _stored(file: Path, checkpoint: Path, judged: Judgement) -> tuple[dict[str, Any], int]:
    """An earlier judgement of the very same checkpoint and data, and its resamples.

    Empty, and none, where there is no such judgement.
    """
    import json

    from biigma_cli.judge.judgement import still_holds

    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        same = still_holds(stored, file, checkpoint, judged.split.summary())
        return (stored, int(stored.get("assessment", {}).get("resamples", 0))) if same else ({}, 0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, 0


def probabilities_title(temperature: float | None, views: int) -> str:
    """Which probabilities are judged, in words."""
    mean = "" if views == 1 else f", the mean of {views} views"
    if temperature is None:
        return f"probabilities as trained (not calibrated){mean}"
    return f"calibrated probabilities (T = {temperature:.3f}){mean}"


def _told(judged: Judgement) -> list[str]:
    """What the reader must know, a line each."""
    from biigma_cli.report.tables import NO_LESIONS, remarks

    own = judged.assessment
    told = [*_held_out(judged.part, judged), *remarks(own)]
    if not judged.lesions and own.resamples:
        told.append(NO_LESIONS)
    if judged.temperature is not None and judged.part == "val":
        told.append("the temperature was fitted on this part: judge calibration on another")
    if judged.part == "val" and judged.stated.abstention is not None:
        suspicious = judged.stated.screening is not None
        told.append(
            f'the limits of "can\'t say"{" and of what is suspicious" * suspicious} were found on '
            "this part: judge them on another"
        )
    if judged.against is not None:
        other = judged.against
        lines = [*_held_out(judged.part, other), *remarks(other.assessment)]
        ties = [line for line in lines if line not in told]
        told += [f"{other.model}: {line}" for line in ties]
        if (judged.temperature is None) != (other.temperature is None):
            told.append(
                "one of the two models is calibrated and the other is not; differences of log "
                "loss, Brier score and calibration error show that, too"
            )
    return told


def _held_out(part: str, model: Judgement | Rival) -> list[str]:
    """How far the part was not kept from the model."""
    if part == "train":
        return ["the network was trained on these images: judge it on another part"]
    chosen = " and ".join(model.chosen)
    line = f"{chosen} {'were' if len(model.chosen) > 1 else 'was'} chosen on this part"
    return [*model.caveats, *[line] * (part == "val" and bool(chosen))]


def _flagged(judged: Judgement) -> list[str]:
    """What the model's input check does, where it has one."""
    found = judged.flagged
    if found is None:
        return []
    lines = [
        f"{found.flagged} of {found.n} ({found.share:.1%}, {found.low:.1%} to "
        f"{found.high:.1%}, Wilson, by image) taken for no dermoscopy"
    ]
    if found.accuracy is not None and found.flagged:
        lines.append(f"accuracy {found.accuracy:.4f} where it was not")
    return lines


def _reliability_panels(judged: Judgement) -> dict[str, Reliability]:
    """The diagram of the probabilities judged; before it, that of a calibrated model's own."""
    from biigma_cli.metrics import apply_temperature, reliability, score_weight

    counted = score_weight(judged.ids)
    label_n, proba_nY = judged.label_n[counted], judged.proba_nY[counted].astype("float64")
    if judged.views > 1:  # of a mean the temperature cannot be taken back
        return {f"Mean of {judged.views} views": reliability(label_n, proba_nY)}
    panels = {"As trained": reliability(label_n, proba_nY)}
    if judged.temperature is not None:
        raw_nY = apply_temperature(proba_nY, 1 / judged.temperature)
        panels = {
            "As trained": reliability(label_n, raw_nY),
            f"Calibrated, T = {judged.temperature:.3f}": panels["As trained"],
        }
    return panels


def _draw(judged: Judgement, path: Path) -> None:
    from biigma_cli.report.reliability import draw_reliability

    draw_reliability(
        _reliability_panels(judged),
        path,
        title="/".join(Path(judged.model).parts[-3:]),
        subtitle=f"{judged.split.dataset}, {judged.part} part, "
        f"{judged.assessment.figures.n} images",
    )


def _tables(judged: Judgement, more: Sequence[Table | str] = ()) -> str:
    """Everything for the terminal, `more` last."""
    from biigma_cli.cli.evaluate_prevalence import items as prevalence_items
    from biigma_cli.cli.evaluate_report import published_items
    from biigma_cli.report.tables import (
        abstention_table,
        assessment_tables,
        paper_table,
        render,
        screening_table,
        table_width,
    )

    own, other = judged.assessment, judged.against
    title = probabilities_title(judged.temperature, judged.views)
    if own.resamples:
        title += f"\n{own.bootstrap}"
    against = ""
    if other is not None:
        against = f"{other.model}, {probabilities_title(other.temperature, judged.views)}"
    tables: list[Table | str] = [
        *assessment_tables(
            own,
            title=title,
            binary=judged.binary,
            difference=other.difference if other is not None else None,
            against=against,
        )
    ]
    if judged.binary:
        tables.insert(1, paper_table(own))
    items: list[Table | str] = [
        f"model:    {judged.model}",
        f"protocol: {judged.split.title}",
        f"part:     {judged.part}, {own.figures.n} images",
        *(f"flagged:  {line}" for line in _flagged(judged)),
        *tables,
        *([abstention_table([a.to_dict() for a in judged.abstention])] * bool(judged.abstention)),
        *([] if judged.malignancy is None else [screening_table(judged.malignancy.to_dict())]),
        *prevalence_items(judged),
        *published_items(judged),
        *more,
    ]
    tty = sys.stdout.isatty()
    return render(*items, width=table_width(tty=tty), colour=tty)
