"""`biigma score`: figures of anybody's predictions."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from biigma_cli.cli.boundary import boundary, note
from biigma_cli.cli.options import JsonOption
from biigma_cli.cli.prevalence import JudgedPrevalenceOption, parse_shares
from biigma_cli.cli.score_kinds import check_tells_malignant, images_by_class, kinds, tell_kinds

if TYPE_CHECKING:
    from rich.table import Table

    from biigma_cli.data.submission import Matched
    from biigma_cli.metrics import Assessment, Difference, Floats, Ints

MEAN_AUC = "mean of the two AUCs (the ranking of ISIC 2017)"


@boundary
def score(
    predictions: Annotated[
        Path,
        typer.Argument(
            help="CSV: image and a column per class; image_id, melanoma, seborrheic_keratosis; or "
            "what biigma predict -o FILE.csv writes."
        ),
    ],
    truth: Annotated[
        Path,
        typer.Argument(help="The same with 0 and 1; or image_id and dx, as in HAM10000."),
    ],
    groups: Annotated[
        Path | None,
        typer.Option(
            "--groups",
            metavar="CSV",
            help="Image id and lesion_id: lesions are resampled whole. "
            "Default: the truth's own column lesion_id, if it has one.",
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="CSV", help="Other predictions: paired differences are added."
        ),
    ] = None,
    subset: Annotated[
        bool, typer.Option("--subset", help="Judge the images that all files name.")
    ] = False,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Divide each row by its sum.")
    ] = False,
    resamples: Annotated[
        int,
        typer.Option("--resamples", min=0, max=100_000, help="Of the bootstrap; 0: no intervals."),
    ] = 2000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the resamples.")] = 0,
    abstain_below: Annotated[
        float | None,
        typer.Option(
            "--abstain-below",
            metavar="P",
            min=0,
            max=1,
            help="Also say what answering only from P on does, as 'biigma predict' with it.",
        ),
    ] = None,
    suspicious_from: Annotated[
        float | None,
        typer.Option(
            "--suspicious-from",
            metavar="P",
            min=0,
            max=1,
            help="Also say what calling images suspicious from P on does, likewise.",
        ),
    ] = None,
    prevalence: JudgedPrevalenceOption = None,
    json_: JsonOption = False,
) -> None:
    """Judge predictions in ISIC's form, or those of biigma predict.

    Accuracy, macro-F1, balanced accuracy, the official ISIC score, AUC, average precision, log
    loss, Brier score, calibration error and AURC, per class, and the confusion matrix, each with
    a 95% bootstrap interval. Scores that do not sum to 1 are ranked and counted, but log loss,
    Brier score and calibration error then need --normalise. The image that the official scorer
    leaves out, ISIC_0035068, is left out here, too.
    """
    from biigma_cli.data.submission import (
        by_name,
        common,
        match,
        normalised,
        read_predictions,
        read_truth,
    )
    from biigma_cli.errors import DataError
    from biigma_cli.metrics import compare

    named = parse_shares(prevalence) if prevalence else None
    known = read_truth(truth)
    files = [read_predictions(path) for path in (predictions, against) if path is not None]
    for file in files:
        if file.failed:
            rows = "rows hold" if file.failed > 1 else "row holds"
            note(f"{file.path}: {file.failed} {rows} an error, so their images are missing")
    if len({f.binary for f in files}) > 1:
        raise DataError(
            f"{predictions} and {against} are of different forms",
            fix="give both with the same columns",
        )
    for n, file in enumerate(files):
        files[n], renamed = by_name(file, known)
        if renamed:
            here, there = next(iter(renamed.items()))
            note(f"{file.path}: {len(renamed)} images are found in {truth} by the names of their "
                 f"files alone, in other folders ({here} for {there})")  # fmt: skip
    if subset:
        known, left = common(known, files)
        if left:
            note(f"{left} images are not in every file; {len(known.ids)} are judged")
    matched = []
    for file in files:
        joined = match(file, known, subset=subset, groups=groups)
        odd = len(joined.unlike_one)
        if odd and normalise:
            joined = normalised(joined)
            note(f"{file.path}: {odd} rows did not sum to 1; divided by their sums")
        elif odd:
            note(f"{file.path}: {odd} rows do not sum to 1, so there is no log loss, Brier score "
                 "or calibration error; --normalise divides each row by its sum")  # fmt: skip
        matched.append(joined)
    first = matched[0]
    for other, file in zip(matched[1:], files[1:], strict=True):
        _check_classes(first, other, predictions, file.path)
    shares = None if named is None else _shares(named, first)
    tasks = {name: _assessed(name, task, resamples, seed) for name, task in _tasks(first)}
    others = {
        name: _assessed(name, task, resamples, seed)
        for other in matched[1:]
        for name, task in _tasks(other)
    }
    differences = {name: compare(tasks[name], other) for name, other in others.items()}
    _notes(first, tasks, others)
    limits = _limits(first, abstain_below, suspicious_from, resamples, seed)
    rarer = {}
    if shares is not None:
        rarer = _at_prevalence(shares, first, suspicious_from, resamples, seed)
    if json_:
        import json

        result = _result(tasks, others, differences, against)
        named_files = {"predictions": str(predictions), "truth": str(truth)}
        typer.echo(json.dumps({**named_files, **result, **limits, **rarer}, indent=2))
        return
    from biigma_cli.report.prevalence import prevalence_items
    from biigma_cli.report.tables import abstention_table, render, screening_table, table_width

    tty = sys.stdout.isatty()
    items: list[Table | str] = [f"predictions: {predictions}", f"truth:       {truth}"]
    items += _tables(tasks, differences, str(against))
    if "abstention" in limits:
        items.append(abstention_table(limits["abstention"]))
    if "malignancy" in limits:
        items.append(screening_table(limits["malignancy"]))
    if rarer:
        items += prevalence_items(rarer["prevalence"])
    typer.echo(render(*items, width=table_width(tty=tty), colour=tty), nl=False)


def _tasks(matched: Matched) -> Iterable[tuple[str, Matched]]:
    """What is asked: one task without a name, or the two of the 2017 form."""
    from biigma_cli.data.submission import binary_tasks

    return binary_tasks(matched) if matched.binary else [("", matched)]


def _check_classes(first: Matched, other: Matched, one: Path, two: Path) -> None:
    """Raise `DataError` where two files would be judged on different classes."""
    from biigma_cli.errors import DataError

    for here, there, lacks in ((first, other, two), (other, first, one)):
        absent = [c for c in here.codes if c not in there.codes]
        if absent:
            raise DataError(
                f"{lacks} has no column for {', '.join(absent)}, which the other file has",
                fix="add the column; 0 throughout, if the model cannot say that class",
            )


def _assessed(name: str, task: Matched, resamples: int, seed: int) -> Assessment:
    from biigma_cli.cli.progress import Progress
    from biigma_cli.metrics import assess

    with Progress(f"resampling {name}".strip(), "resamples") as progress:
        return assess(
            task.label_n,
            task.score_nY,
            task.codes,
            groups=task.groups,
            counted=task.counted,
            resamples=resamples,
            seed=seed,
            progress=progress,
        )


def _judged(matched: Matched) -> tuple[Ints, Floats, list[bool | None], list[str]]:
    """Of the images that count labels, scores and lesions; of the classes, which are malignant."""
    counted = matched.counted
    groups = zip(matched.groups or matched.ids, counted, strict=True)
    return (
        matched.label_n[counted],
        matched.score_nY[counted],
        kinds(matched),
        [group for group, counts in groups if counts],
    )


def _limits(
    matched: Matched,
    abstain_below: float | None,
    suspicious_from: float | None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """What limits do, and malignant against benign where that is known, as for JSON.

    Raises:
        UsageError: a limit is asked for where it means nothing or nothing can be said of it.
    """
    from biigma_cli.errors import UsageError
    from biigma_cli.judge.abstention import abstentions
    from biigma_cli.judge.screening import screen

    limits = {"--abstain-below": abstain_below, "--suspicious-from": suspicious_from}
    if matched.binary:
        for option, limit in limits.items():
            if limit is not None:
                raise UsageError(
                    f"{option} is for probabilities of classes, not for the two questions of 2017",
                    fix="leave it out",
                )
        return {}
    if suspicious_from is not None:
        check_tells_malignant(matched, "--suspicious-from")
    label_n, score_nY, malignant, own = _judged(matched)
    plain: dict[str, Any] = {}
    if abstain_below is not None:
        kept = abstentions(
            [(None, abstain_below)], label_n, score_nY, malignant, own, flagged_n=None,
            resamples=resamples, seed=seed,
        )  # fmt: skip
        plain["abstention"] = [row.to_dict() for row in kept]
    found = screen(
        [] if suspicious_from is None else [(None, suspicious_from)], label_n, score_nY, malignant,
        own, flagged_n=None, resamples=resamples, seed=seed,
    )  # fmt: skip
    if found is not None:
        plain["malignancy"] = found.to_dict()
    tell_kinds(matched, judged=bool(plain))
    return plain


def _shares(named: dict[str, float], matched: Matched) -> tuple[float, ...]:
    """Of all classes, those not named as in the truth.

    Raises:
        UsageError: shares that cannot be, or no probabilities to judge.
    """
    from biigma_cli.cli.prevalence import MALIGNANT, check_images, whole_shares
    from biigma_cli.errors import UsageError

    if matched.binary:
        raise UsageError(
            "--prevalence is for probabilities of classes, not for the two questions of 2017",
            fix="leave it out",
        )
    if len(matched.unlike_one):
        raise UsageError(
            f"--prevalence is for probabilities, and {len(matched.unlike_one)} rows do not sum to "
            "1",
            fix="add --normalise, which divides each row by its sum",
        )
    if MALIGNANT in named and MALIGNANT not in matched.codes:
        check_tells_malignant(matched, f"--prevalence {MALIGNANT}")
    _, _, malignant, _ = _judged(matched)
    images = list(images_by_class(matched).values())
    own = [n / sum(images) for n in images]
    shares = whole_shares(named, matched.codes, malignant, own, "the truth")
    check_images(matched.codes, shares, images, "the truth")
    return shares


def _at_prevalence(
    shares: tuple[float, ...],
    matched: Matched,
    suspicious_from: float | None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Figures where classes have such shares, as for JSON."""
    from biigma_cli.judge.prevalence import judge_at

    label_n, score_nY, malignant, own = _judged(matched)
    found = judge_at(
        shares, label_n, score_nY, matched.codes, malignant, own,
        limits=[] if suspicious_from is None else [(None, suspicious_from)],
        resamples=resamples, seed=seed,
    )  # fmt: skip
    return {"prevalence": found.to_dict()}


def _notes(
    matched: Matched, tasks: Mapping[str, Assessment], others: Mapping[str, Assessment]
) -> None:
    """What the reader must know of how it was judged, on stderr."""
    from biigma_cli.data.scan import big_lesion
    from biigma_cli.report.tables import NO_LESIONS, remarks

    if matched.dropped:
        note(f"not predicted and without an image, left out: {', '.join(matched.dropped)}")
    told = dict.fromkeys(line for a in tasks.values() for line in remarks(a))
    for line in told:
        note(line)
    for line in dict.fromkeys(line for a in others.values() for line in remarks(a)):
        if line not in told:
            note(f"the other predictions: {line}")
    if not next(iter(tasks.values())).resamples:
        return
    if matched.groups is None:
        note(f"{NO_LESIONS} (--groups)")
        return
    found = big_lesion(
        g for g, counts in zip(matched.groups, matched.counted, strict=True) if counts
    )
    if found is not None:
        note(
            f"lesion_id {found[0]!r} has {found[1]} of {matched.counted.sum()} images, which are "
            "resampled as one; if it means that the lesion is unknown, leave the cell empty"
        )


def _result(
    tasks: Mapping[str, Assessment],
    others: Mapping[str, Assessment],
    differences: Mapping[str, Difference],
    against: Path | None,
) -> dict[str, Any]:
    """For JSON: the figures; for the 2017 form those of each task."""
    from biigma_cli.metrics import mean_auc

    plain = {name: task.to_dict() for name, task in tasks.items()}
    for name, other in others.items():
        plain[name]["against"] = {
            "predictions": str(against),
            **{k: v for k, v in other.to_dict().items() if k in ("overall", "per_class")},
            "difference": differences[name].to_dict(),
        }
    if "" in plain:
        return plain[""]
    return {"mean_auc": mean_auc(list(tasks.values())).to_dict(), "tasks": plain}


def _tables(
    tasks: Mapping[str, Assessment], differences: Mapping[str, Difference], against: str
) -> list[Table | str]:
    from biigma_cli.metrics import mean_auc
    from biigma_cli.report.tables import assessment_tables, figure_table
    from biigma_cli.taxonomy import taxonomy

    items: list[Table | str] = []
    if "" not in tasks:
        whole = mean_auc(list(tasks.values()))
        items.append(figure_table({MEAN_AUC: whole}, title="both questions"))
    for name, assessed in tasks.items():
        if name:
            items.append(f"\n{taxonomy(name).title}")
        title = f"{assessed.figures.n} images"
        items += assessment_tables(
            assessed,
            title=f"{title}; {assessed.bootstrap}" if assessed.resamples else title,
            binary=bool(name),
            difference=differences.get(name),
            against=against,
        )
    return items
