"""The evaluation report: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from biigma_cli.data.perturb.kinds import GROUP_NOTES, GROUPS
from biigma_cli.metrics import (
    HALVES,
    HEADLINE,
    OVERALL,
    POINTS,
    TITLES,
    Assessment,
    Difference,
    Figure,
    Ints,
    Reliability,
)
from biigma_cli.metrics.localisation import LOCALISATION_TITLES, RANKED
from biigma_cli.metrics.subgroups import FEWEST_LESIONS, FEWEST_POSITIVES, Subgroup
from biigma_cli.report.evaluation.figures import (
    pr_svg,
    reliability_svg,
    risk_coverage_svg,
    roc_svg,
)
from biigma_cli.report.evaluation.pictures import Mistake
from biigma_cli.report.heads import KINDS as HEAD_KINDS
from biigma_cli.report.html import Cell, PageTable, render_page
from biigma_cli.report.localisation import (
    AS_PLAIN,
    MAP_TITLES,
    own_maps,
    remarks,
    shown_once,
)
from biigma_cli.report.pictures import EVIDENCE, SALIENCY, colour_bar
from biigma_cli.report.prevalence import (
    CALL_COLUMNS,
    CALL_NOTE,
    PREVALENCE_NOTE,
    answer_columns,
    answer_rows,
    call_rows,
    prevalence_title,
)
from biigma_cli.report.published import Published, comparability, published_for
from biigma_cli.report.tables import (
    ABSTENTION_COLUMNS,
    SCREENING_COLUMNS,
    abstention_cells,
    malignancy_title,
    screening_cells,
)
from biigma_cli.taxonomy import lesion_class

#: By this a page of ours is known, and may be replaced.
GENERATOR = "biigma eval --report"
SUBGROUP_NOTE = (
    f"Subgroups of fewer than {FEWEST_LESIONS} lesions get no figure, and those of fewer than "
    f"{FEWEST_POSITIVES} positive or of fewer than {FEWEST_POSITIVES} other lesions no sensitivity "
    "and specificity. Macro averages run over "
    "the classes present, in a resample over those it has, so a rare class widens them much. "
    "Subgroups differ in their mix of diagnoses, and the intervals are not widened for how many "
    "subgroups are looked at."
)
SALIENCY_NOTE = (
    "How far the maps show the lesion, by its mask. In brackets stand references, not results: a "
    "Gaussian at the centre and a uniform map know nothing of the image, and the mask itself is "
    "what the maps are judged by."
)
HEADS_NOTE = (
    "Mean cosine between what two heads attend to: 1 where they say the same, so that one of them "
    "would do."
)
ROBUSTNESS_NOTE = (
    "What is changed stands beneath each table. Unchanged: share of images with the same answer as "
    "before; accuracy drop: before less after, above 0 is worse; p true shift: mean change of the "
    "probability of the truth, below 0 is worse."
)


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """All that the page shows.

    Attributes:
        model: its name, without anyone's folders.
        probabilities: which are judged, in words.
        dataset: by our name.
        part: `train`, `val` or `test`.
        protocol: `lesion`, `paper` or `official`.
        title: the protocol in words.
        binary: whether the first class is asked for and the second is all others.
        assessment: the figures.
        label_n: `(n,)` class indices of the images that count.
        proba_nY: `(n, Y)`, of the same images.
        reliability: diagrams by what they are of.
        subgroups: by sex, age and site, and by what leaked.
        asked: class that the subgroups' sensitivity is to; None where there is none.
        absent: what the data set does not tell apart.
        mistakes: the most confident ones.
        against: name of a second model, and the paired differences to it.
        abstention: `Abstention.to_dict()` of each share of errors asked for; none where the model
            states no limits.
        malignancy: `Malignancy.to_dict()`; None where malignant and benign are not told apart.
        prevalence: `AtPrevalence.to_dict()`; None where not asked for.
        saliency: `SaliencyJudgement.to_dict()`; None where not asked for.
        robustness: `Robustness.to_dict()`; None where not asked for.
        heads: `HeadSimilarity.to_dict()`, with that of the second model under `against`; likewise.
        provenance: what the result depends on: hashes, versions, the command.
        licence: of the images.
        citation: of the data set.
        notes: what else the reader must know.
    """

    model: str
    probabilities: str
    dataset: str
    part: str
    protocol: str
    title: str
    binary: bool
    assessment: Assessment
    label_n: Ints
    proba_nY: npt.NDArray[np.floating[Any]]
    reliability: Mapping[str, Reliability]
    subgroups: Sequence[Subgroup]
    asked: str | None
    absent: Sequence[str]
    mistakes: Sequence[Mistake]
    against: tuple[str, Difference] | None = None
    abstention: Sequence[Mapping[str, Any]] = ()
    malignancy: Mapping[str, Any] | None = None
    prevalence: Mapping[str, Any] | None = None
    saliency: Mapping[str, Any] | None = None
    robustness: Mapping[str, Any] | None = None
    heads: Mapping[str, Any] | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""
    citation: str = ""
    notes: Sequence[str] = ()


def evaluation_html(report: EvaluationReport) -> str:
    """The page's text. Names, from wherever they come, are escaped."""
    own = report.assessment
    rows = published_for(report.dataset)
    wrong = int((report.proba_nY.argmax(1) != report.label_n).sum())
    return render_page(
        "evaluation.html",
        generator=GENERATOR,
        report=report,
        n=own.figures.n,
        bootstrap=own.bootstrap if own.resamples else "no intervals were asked for",
        notes=report.notes,
        headline=_headline(own),
        overall=_overall(report),
        points=_points(report),
        published=published_page_table(report, rows) if rows else None,
        comparability=comparability(rows, report.protocol, report.part),
        per_class=_per_class(own),
        confusion=_confusion(own),
        curves=_curves(report),
        reliability=_reliability(report.reliability),
        coverage=_coverage(report),
        abstention=_abstention(report),
        malignancy=None if report.malignancy is None else malignancy_title(report.malignancy),
        screening=_screening(report),
        wrong=wrong,
        mistakes=report.mistakes,
        bars=[
            (colour_bar(EVIDENCE), "for the truth", "for the answer given"),
            (colour_bar(SALIENCY), "M = 0", "M = 1"),
        ],
        maps=any(len(m.pictures) > 1 for m in report.mistakes),
        subgroups=_subgroups(report),
        subgroup_note=SUBGROUP_NOTE,
        extra=_extra(report),
    )


def _extra(report: EvaluationReport) -> list[tuple[str, str, list[str], list[PageTable]]]:
    """Id, title, paragraphs and tables of the sections that were asked for."""
    found = []
    if report.prevalence is not None:
        title = prevalence_title(report.prevalence)
        notes = [f"{title[0].upper()}{title[1:]}. {PREVALENCE_NOTE}"]
        tables = prevalence_tables(report.prevalence)
        found.append(("prevalence", "Where classes have other shares", notes, tables))
    if report.saliency is not None:
        found.append(
            (
                "saliency",
                "Maps against lesion masks",
                [SALIENCY_NOTE, *_saliency_remarks(report.saliency)],
                saliency_tables(report.saliency),
            )
        )
    if report.robustness is not None:
        tables = robustness_tables(report.robustness)
        found.append(("robustness", "Robustness", [ROBUSTNESS_NOTE], tables))
    if report.heads is not None:
        found.append(("heads", "Likeness of the heads", [HEADS_NOTE], heads_tables(report.heads)))
    return found


def prevalence_tables(found: Mapping[str, Any]) -> list[PageTable]:
    """Answers, and malignant against benign, where classes have other shares."""
    tables = [
        PageTable(
            caption="Answers and probabilities",
            columns=answer_columns(found),
            rows=[[Cell(*cell) for cell in row] for row in answer_rows(found)],
        )
    ]
    if found["calls"]:
        rows = [[Cell(*cell) for cell in row] for row in call_rows(found)]
        tables.append(
            PageTable(
                caption="Malignant against benign", columns=CALL_COLUMNS, rows=rows,
                notes=[CALL_NOTE],
            )
        )  # fmt: skip
    return tables


def figure_cell(figure: Figure, *, digits: int = 4, signed: bool = False) -> Cell:
    """A figure over its interval, or why it has none."""
    if figure.value is None:
        return Cell("-", figure.why)
    form = f"{'+' if signed else ''}.{digits}f"
    if figure.low is None:
        return Cell(f"{figure.value:{form}}")
    return Cell(f"{figure.value:{form}}", f"{figure.low:{form}} to {figure.high:{form}}")


def _headline(own: Assessment) -> list[tuple[str, Cell]]:
    tiles = [
        (TITLES[n].split(" (")[0], figure_cell(own.overall[n], digits=3)) for n in HEADLINE[:3]
    ]
    if "MEL" in own.codes and "MEL" not in own.figures.absent:
        tiles.append(
            ("melanoma sensitivity", figure_cell(own.per_class["MEL"]["sensitivity"], digits=3))
        )
    return tiles


def _overall(report: EvaluationReport) -> PageTable:
    own = report.assessment
    columns = ["figure", "value", "95% interval"]
    if report.against is not None:
        columns.append(f"minus {report.against[0]}")
    rows = []
    for name in OVERALL:
        value, span = figure_cell(own.overall[name])
        row = [Cell(TITLES[name]), Cell(value), Cell(span)]
        if report.against is not None:
            row.append(figure_cell(report.against[1].overall[name], signed=True))
        rows.append(row)
    return PageTable(caption="All classes together", columns=columns, rows=rows)


def _points(report: EvaluationReport) -> PageTable | None:
    own = report.assessment
    asked = own.codes[0] if report.binary else "MEL"
    if asked not in own.codes or asked in own.figures.absent:
        return None
    names = (*HALVES, *POINTS) if report.binary else POINTS
    rows = []
    for name in names:
        value, span = figure_cell(own.per_class[asked][name])
        rows.append([Cell(TITLES[name]), Cell(value), Cell(span)])
    return PageTable(
        caption=f"{asked} against the rest: operating points",
        columns=("figure", "value", "95% interval"),
        rows=rows,
    )


def published_page_table(report: EvaluationReport, rows: Sequence[Published]) -> PageTable:
    """Ours first, then the published results; each with its protocol."""
    own = report.assessment
    binary = report.binary
    figures = [own.overall[n] for n in ("accuracy", "macro_f1", "macro_recall", "macro_precision")]
    if binary:
        figures.append(own.per_class[own.codes[0]]["sensitivity"])
    ours = [
        Cell(f"ours: {report.model}"),
        *(figure_cell(figure) for figure in figures),
        Cell(f"{report.title}; {report.part} part"),
        Cell("this report"),
    ]
    others = []
    for row in rows:
        values = [row.accuracy, row.macro_f1, row.macro_recall, row.macro_precision]
        if binary:
            values.append(row.sensitivity)
        cells = [Cell("-" if v is None else f"{v:.4f}") for v in values]
        if row.impossible:
            cells[1] = Cell(cells[1].text, "impossible")
        others.append(
            [
                Cell(row.method),
                *cells,
                Cell(row.protocol, row.remark),
                Cell(row.source),
            ]
        )
    columns = ["method", "accuracy", "macro-F1", "balanced accuracy", "macro-precision"]
    if binary:
        columns.append(f"sensitivity to {own.codes[0]}")
    return PageTable(
        caption="Published results, each with its protocol",
        columns=[*columns, "protocol", "source"],
        rows=[ours, *others],
        words=(len(columns), len(columns) + 1),
        marked=(0,),
    )


def _per_class(own: Assessment) -> PageTable:
    names = ("sensitivity", "specificity", "precision", "f1", "auc", "ap")
    rows = []
    for c in own.figures.per_class:
        known = lesion_class(c.code).name
        cells = [figure_cell(own.per_class[c.code][n], digits=3) for n in names]
        head = Cell(c.code, known if known != c.code else "")
        rows.append([head, Cell(str(c.support)), *cells])
    return PageTable(
        caption="Each class against the rest",
        columns=("class", "images", *(TITLES[n] for n in names)),
        rows=rows,
    )


def _confusion(own: Assessment) -> dict[str, Any]:
    """Rows of (code, images, [(count, share of the row)])."""
    rows = []
    for code, counts in zip(own.codes, own.figures.confusion, strict=True):
        total = sum(counts)
        rows.append((code, total, [(n, n / total if total else 0.0) for n in counts]))
    return {"codes": own.codes, "rows": rows}


def _curves(report: EvaluationReport) -> list[dict[str, Any]]:
    own = report.assessment
    found = []
    codes = own.codes[:1] if report.binary else own.codes  # the other's are the same, mirrored
    for index, code in enumerate(codes):
        if code in own.figures.absent:
            continue
        figures = {name: figure_cell(own.per_class[code][name], digits=3) for name in ("auc", "ap")}
        words = {
            name: f"{cell.text}" + (f" ({cell.small})" if cell.small else "")
            for name, cell in figures.items()
        }
        answer = ", ".join(
            f"{name} {figure_cell(own.per_class[code][name], digits=3).text}"
            for name in ("sensitivity", "specificity", "precision")
        )
        found.append(
            {
                "code": code,
                "name": lesion_class(code).name,
                "auc": words["auc"],
                "ap": words["ap"],
                "roc": roc_svg(
                    report.label_n, report.proba_nY, index, key=f"roc{index}",
                    text=f"ROC curve of {code}: area {words['auc']}. Its answers: {answer}.",
                ),
                "pr": pr_svg(
                    report.label_n, report.proba_nY, index, key=f"pr{index}",
                    text=f"Precision-recall curve of {code}: average precision {words['ap']}. "
                    f"Its answers: {answer}.",
                ),
            }
        )  # fmt: skip
    return found


def _reliability(diagrams: Mapping[str, Reliability]) -> list[tuple[str, str, str]]:
    found = []
    for index, (name, diagram) in enumerate(diagrams.items()):
        gaps = [b.accuracy - b.confidence for b in diagram.bins]
        widest = max(range(len(gaps)), key=lambda i: abs(gaps[i]))
        at = diagram.bins[widest]
        text = (
            f"Reliability diagram, {name}: calibration error {diagram.ece:.3f}. The widest gap is "
            f"at a mean probability of {at.confidence:.2f}, where {at.accuracy:.0%} were right."
        )
        svg = reliability_svg(diagram, key=f"reliability{index}", text=text)
        found.append((name, f"{diagram.ece:.3f}", svg))
    return found


def _coverage(report: EvaluationReport) -> dict[str, str]:
    """The risk-coverage curve, and its area in words."""
    area = figure_cell(report.assessment.overall["aurc"], digits=3)
    words = area.text + (f" ({area.small})" if area.small else "")
    kept = [a for a in report.abstention if a["error"]["value"] is not None]
    told = [
        f" At the limit for at most {a['max_error']:.0%} wrong, {a['coverage']['value']:.0%} are "
        f"answered, {a['error']['value']:.1%} of these wrongly."
        for a in kept
    ]
    return {
        "area": words,
        "svg": risk_coverage_svg(
            report.label_n,
            report.proba_nY,
            [(a["coverage"]["value"], a["error"]["value"]) for a in kept],
            key="coverage",
            text=f"Error over the share answered: area {words}.{''.join(told)}",
        ),
    }


def _abstention(report: EvaluationReport) -> PageTable | None:
    if not report.abstention:
        return None
    return PageTable(
        caption="Answers only from a limit on; missed: malignant, and called benign",
        columns=ABSTENTION_COLUMNS,
        rows=[[Cell(text) for text in abstention_cells(a)] for a in report.abstention],
    )


def _screening(report: EvaluationReport) -> PageTable | None:
    if report.malignancy is None or not report.malignancy["limits"]:
        return None
    rows = [screening_cells(row) for row in report.malignancy["limits"]]
    return PageTable(
        caption="Suspicious from a limit on; missed: malignant, and not suspicious",
        columns=SCREENING_COLUMNS,
        rows=[[Cell(text) for text in row] for row in rows],
    )


def _subgroups(report: EvaluationReport) -> PageTable | None:
    if not report.subgroups:
        return None
    asked = report.asked
    names = ["accuracy", "macro_recall", "macro_f1"]
    heads = ["accuracy", "balanced accuracy", "macro-F1"]
    if asked is not None:
        names += ["sensitivity", "specificity"]
        heads += [f"sensitivity to {asked}", f"specificity to {asked}"]
    rows = []
    for row in report.subgroups:
        cells = [figure_cell(row.figures[n], digits=3) for n in names]
        head = Cell(f"{row.by}: {row.value}")
        counts = [row.images, row.lesions, *([row.positives] if asked is not None else [])]
        rows.append([head, *(Cell(str(n)) for n in counts), *cells])
    counted = ["images", "lesions", *([f"{asked} images"] if asked is not None else [])]
    caption = f"By {', '.join(dict.fromkeys(row.by for row in report.subgroups))}"
    return PageTable(caption=caption, columns=("subgroup", *counted, *heads), rows=rows)


def _saliency_remarks(found: Mapping[str, Any]) -> list[str]:
    """As the terminal has them."""
    return remarks({name: own["without_energy"] for name, own in found["maps"].items()})


def saliency_tables(found: Mapping[str, Any]) -> list[PageTable]:
    """Maps against masks, from `SaliencyJudgement.to_dict`: all images, and less the centre."""
    maps = found["maps"]
    once = {(name, figure): AS_PLAIN for name in shown_once(maps) for figure in RANKED}
    tables = []
    for key, caption, shown in (
        ("overall", f"Maps against the masks of {found['images']} images", list(maps)),
        (
            "over_centre",
            "The same, less a Gaussian at the centre: above 0 is better than that",
            own_maps(maps),
        ),
    ):
        rows = {name: maps[name][key] for name in shown}
        if rows:
            titles = {**MAP_TITLES, **LOCALISATION_TITLES}
            signed = key != "overall"
            tables.append(_plain_table(caption, "map", rows, titles, signed=signed, instead=once))
    return tables


def robustness_tables(found: Mapping[str, Any]) -> list[PageTable]:
    """Each perturbation and strength, from `Robustness.to_dict`; a table for each group."""
    groups: dict[str, dict[str, Mapping[str, Any]]] = {}
    for condition in found["conditions"]:
        groups.setdefault(condition["group"], {})[_condition(condition)] = condition["overall"]
    images = f"{found['images']} images of {found['lesions']} lesions"
    told = {
        "background": _pull_words(found["towards_donor_class"]),
        "controls": _removed_words(found["conditions"]),
    }
    tables = [
        _plain_table(
            f"{GROUPS[group].capitalize()}: {images}", "perturbation", rows, {}, signed=False,
            notes=[words for words in (GROUP_NOTES[group], told.get(group, "")) if words],
        )
        for group, rows in groups.items()
    ]  # fmt: skip
    strongest = {c["name"]: c for c in found["conditions"]}  # the last of each name
    classes = dict.fromkeys(code for c in strongest.values() for code in c["per_class"])
    rows = {
        c["title"]: {code: figures["unchanged"] for code, figures in c["per_class"].items()}
        for c in strongest.values()
    }
    titles = {code: code for code in classes}
    tables.append(
        _plain_table(
            "Unchanged answers by true class, at the strongest", "perturbation", rows, titles,
            signed=False,
        )
    )  # fmt: skip
    if "difference" in found:
        other = PurePath(found["against"]["model"]).parts[-3:]
        rows = {_condition(apart): apart["overall"] for apart in found["difference"]}
        tables.append(
            _plain_table(
                f"Minus {'/'.join(other)}, paired differences", "perturbation", rows, {},
                signed=True,
            )
        )  # fmt: skip
    return tables


def _condition(plain: Mapping[str, Any]) -> str:
    """A perturbation and its strength, in words."""
    strength = f", {plain['strength_name']}" if "strength_name" in plain else ""
    return f"{plain['title']}{strength}"


def heads_tables(found: Mapping[str, Any]) -> list[PageTable]:
    """Both matrices of a model, and of the one it is compared with, from `HeadSimilarity`."""
    tables = []
    for own in (found, *([found["against"]] if "against" in found else [])):
        means = own["mean_between_heads"]
        chance = f"{means['chance']:.3f} with channels in random order"
        for kind, what in HEAD_KINDS.items():
            matrix = own[kind]
            note = f"Off the diagonal: {means[kind]:.3f}"
            tables.append(
                PageTable(
                    caption=f"{PurePath(own['model']).name}, {own['images']} images: {what}",
                    columns=("head", *(str(i + 1) for i in range(len(matrix)))),
                    rows=[
                        [Cell(str(i + 1)), *(Cell(f"{value:.3f}") for value in row)]
                        for i, row in enumerate(matrix)
                    ],
                    notes=[f"{note}; {chance}." if kind == "pooled" else f"{note}."],
                )
            )
    return tables


def _pull_words(found: Mapping[str, Any]) -> str:
    """How far answers go over to the donor's class; "" where no image had such a donor."""
    answers, probability = (_figure_of(found[key]) for key in ("answers", "probability"))
    if answers.value is None or probability.value is None:
        return ""
    shares = [figure_cell(figure, digits=3, signed=True) for figure in (answers, probability)]
    pull, shift = (f"{c.text} ({c.small})" if c.small else c.text for c in shares)
    return (
        "Donor, other class: the share of answers that name the donor's class changes by "
        f"{pull}, its mean probability by {shift}. Above 0 the background draws answers to its "
        "own class."
    )


def _removed_words(conditions: Sequence[Mapping[str, Any]]) -> str:
    """Answers that stay without the lesion, beside those that chance would leave."""
    for condition in conditions:
        stay = condition["overall"]["unchanged"]["value"]
        if condition["name"] == "lesion-removed" and stay is not None:
            return (
                f"Without the lesion {stay:.1%} of the answers stay; "
                f"{condition['unchanged_by_chance']:.1%} would if answers with and without it had "
                "nothing to do with each other."
            )
    return ""


def _figure_of(plain: Mapping[str, Any]) -> Figure:
    """A figure from its `to_dict`."""
    ends = {key: plain[key] for key in ("value", "low", "high")}
    return Figure(**ends, why=plain.get("why", ""))


def _plain_table(
    caption: str,
    head: str,
    rows: Mapping[str, Mapping[str, Any]],
    titles: Mapping[str, str],
    *,
    signed: bool,
    instead: Mapping[tuple[str, str], str] | None = None,
    notes: Sequence[str] = (),
) -> PageTable:
    """A row for each mapping of figures, given as plain values.

    Args:
        titles: of rows and figures, by key.
        instead: words in place of a figure, by row and figure.
    """
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    words = instead or {}

    def cell(row: str, name: str) -> Cell:
        if (row, name) in words:
            return Cell(words[row, name])
        plain = rows[row].get(name)
        return figure_cell(_figure_of(plain), digits=3, signed=signed) if plain else Cell("-")

    return PageTable(
        caption=caption,
        columns=(head, *(titles.get(name, name.replace("_", " ")) for name in names)),
        rows=[[Cell(titles.get(key, key)), *(cell(key, name) for name in names)] for key in rows],
        notes=notes,
    )
