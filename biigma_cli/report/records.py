"""Predictions as records, and records as table, JSON, JSON lines or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FORMATS = ("table", "json", "jsonl", "csv")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer for one file, or why there is none.

    Attributes:
        path: as the user gave it.
        probabilities: by class code, in class order; None where `error` is set.
        malignant: summed probability of the malignant and pre-malignant classes; None where a
            class is not known to be either.
        error: what was wrong with the file.
    """

    path: str
    probabilities: dict[str, float] | None
    malignant: float | None
    error: str | None = None

    @property
    def label(self) -> str | None:
        """Code of the most probable class."""
        if self.probabilities is None:
            return None
        return max(self.probabilities, key=self.probabilities.__getitem__)

    def top(self, k: int) -> list[tuple[str, float]]:
        """The k most probable classes, best first."""
        items = sorted((self.probabilities or {}).items(), key=lambda item: -item[1])
        return items[:k]


def prediction(
    path: str,
    probabilities_Y: npt.NDArray[np.float32],
    classes: Sequence[str],
    malignant: Sequence[bool | None],
) -> Prediction:
    """A record from one row of probabilities."""
    values = [float(p) for p in probabilities_Y]
    return Prediction(
        path=path,
        probabilities=dict(zip(classes, values, strict=True)),
        malignant=None
        if None in malignant
        else sum(p for p, m in zip(values, malignant, strict=True) if m),
    )


def to_dict(item: Prediction, names: dict[str, str], model: str, *, topk: int) -> dict[str, Any]:
    """One JSON object: the answer, every class, and the model's id."""
    if item.probabilities is None:
        return {"path": item.path, "error": item.error, "model": model}
    return {
        "path": item.path,
        "label": item.label,
        "name": names[item.label or ""],
        "probability": round(item.probabilities[item.label or ""], 6),
        "malignant_probability": None if item.malignant is None else round(item.malignant, 6),
        "top": [{"label": c, "probability": round(p, 6)} for c, p in item.top(topk)],
        "probabilities": {c: round(p, 6) for c, p in item.probabilities.items()},
        "model": model,
    }


def csv_header(classes: Sequence[str]) -> str:
    """Header line of the CSV form."""
    return _csv_line(["path", "label", "malignant_probability", *classes, "error", "model"])


def csv_row(item: Prediction, classes: Sequence[str], model: str) -> str:
    """One CSV line; probabilities empty where there is an error."""
    if item.probabilities is None:
        return _csv_line([item.path, "", "", *[""] * len(classes), item.error or "", model])
    figures = [f"{item.probabilities[c]:.6f}" for c in classes]
    malignant = "" if item.malignant is None else f"{item.malignant:.6f}"
    return _csv_line([item.path, item.label or "", malignant, *figures, "", model])


def jsonl_row(item: Prediction, names: dict[str, str], model: str, *, topk: int) -> str:
    """One JSON line."""
    return json.dumps(to_dict(item, names, model, topk=topk), ensure_ascii=False) + "\n"


def _csv_line(cells: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
