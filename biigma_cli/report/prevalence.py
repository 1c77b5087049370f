"""What a model does where classes have other shares, as words and cells for terminal and page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

ANSWER_TITLES = {
    "accuracy": "accuracy",
    "log_loss": "log loss",
    "brier": "Brier score",
    "malignancy": "malignant, on average",
}
CALL_COLUMNS = ("called malignant by", "sensitivity", "specificity", "PPV", "1 - NPV", "called so")
CALL_NOTE = (
    "PPV: share of those called malignant that are; 1 - NPV: share of the others that are; called "
    "so: share of all that get an answer"
)
PREVALENCE_NOTE = (
    "Each class is weighted by its share there, which presumes that its images are like those here."
)
_KINDS = {"as judged": "probabilities as judged", "corrected": "predict --prevalence"}


def prevalence_title(found: Mapping[str, Any]) -> str:
    """Of `judge.prevalence.AtPrevalence.to_dict`: the shares, and what is left of the images."""
    shares = ", ".join(f"{code} {share:.2%}" for code, share in found["shares"].items())
    together, few = "", ""
    if found["few"]:
        each = ", ".join(f"{code} ({images})" for code, images in found["few"].items())
        few = f"; intervals say too little, for few images are of {each}"
    if found["malignant"] is not None:
        together = f", {found['malignant']:.2%} malignant"
    return (
        f"where {shares}{together}: {found['images']} images, worth {found['worth']:.0f} of one "
        f"weight{few}"
    )


def answer_columns(found: Mapping[str, Any]) -> list[str]:
    """Heads of `answer_rows`."""
    return ["", *(ANSWER_TITLES[name] for name in found["answers"]["as judged"])]


def answer_rows(found: Mapping[str, Any]) -> list[list[tuple[str, str]]]:
    """A row for each kind of probabilities and for their difference: texts over intervals."""
    rows = []
    for kind, figures in found["answers"].items():
        cells = [_number(f, percent=name == "malignancy") for name, f in figures.items()]
        rows.append([(_KINDS[kind], ""), *cells])
    if found["difference"]:
        cells = [
            _number(f, percent=name == "malignancy", signed=True)
            for name, f in found["difference"].items()
        ]
        rows.append([("difference", ""), *cells])
    return rows


def call_rows(found: Mapping[str, Any]) -> list[list[tuple[str, str]]]:
    """Rows of `CALL_COLUMNS`, texts over intervals."""
    rows = []
    for call in found["calls"]:
        shares = [_number(call[n], percent=True) for n in ("sensitivity", "specificity", "ppv")]
        missed = _number(_complement(call["npv"]), percent=True, digits=2)
        called = _number(call["called"], percent=True)
        rows.append([(_way(call), ""), *shares, missed, called])
    return rows


def prevalence_items(found: Mapping[str, Any]) -> list[Table | str]:
    """For the terminal."""
    first = Table(
        title=Text(prevalence_title(found)), title_justify="left", box=box.SIMPLE_HEAD,
        pad_edge=False,
    )  # fmt: skip
    for i, name in enumerate(answer_columns(found)):
        first.add_column(name, justify="right" if i else "left")
    for row in answer_rows(found):
        first.add_row(*map(_cell, row))
    if not found["calls"]:
        return [first]
    second = Table(title=CALL_NOTE, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(CALL_COLUMNS):
        second.add_column(name, justify="right" if i else "left")
    for row in call_rows(found):
        second.add_row(*map(_cell, row))
    return [first, second]


def _way(call: Mapping[str, Any]) -> str:
    if call["by"] != "limit":
        corrected = call["probabilities"] != "as judged"
        return f"{call['by']}{', predict --prevalence' * corrected}"
    asked, threshold = call["min_sensitivity"], call["threshold"]
    promise = "" if asked is None else f"at least {asked:.0%}: "
    return f"{promise}{'no limit' if threshold is None else f'from {threshold:g}'}"


def _complement(figure: Mapping[str, Any]) -> dict[str, float | None]:
    """1 less it."""
    ends = {"value": "value", "low": "high", "high": "low"}
    return {new: None if figure[old] is None else 1 - figure[old] for new, old in ends.items()}


def _number(
    figure: Mapping[str, Any], *, percent: bool = False, signed: bool = False, digits: int = 1
) -> tuple[str, str]:
    """A figure, and its interval."""
    if figure["value"] is None:
        return "-", ""
    sign = "+" if signed else ""

    def told(value: float) -> str:
        return f"{value:{sign}.{digits}%}" if percent else f"{value:{sign}.3f}"

    if figure["low"] is None:
        return told(figure["value"]), ""
    low, high = told(figure["low"]).rstrip("%"), told(figure["high"]).rstrip("%")
    return told(figure["value"]), f"{low} to {high}"


def _cell(cell: tuple[str, str]) -> Text:
    text, span = cell
    return Text.assemble(text, (f"\n{span}" if span else "", "dim"))
