"""Predictions and truth in the ISIC challenges' forms: CSV, one row per image.

Predictions: `image` and one column per class, scores from 0 to 1 (2018, 2019); or `image_id`,
`melanoma`, `seborrheic_keratosis`, two binary questions (2017); or the CSV of `biigma predict`,
whose images are called by the names of their files. Truth: the ISIC forms with 0 and 1, or
`image_id` and `dx` as in HAM10000's metadata. Separators may be commas, semicolons or tabs, and
with semicolons or tabs a comma may stand for the decimal point; a byte-order mark, CRLF, the case
of columns and codes, and an image suffix at the end of an id do not matter.
"""

from __future__ import annotations

from biigma_cli.data.submission.forms import (
    Predictions,
    Truth,
    read_groups,
    read_predictions,
    read_truth,
    submission_text,
    write_submission,
)
from biigma_cli.data.submission.match import (
    Matched,
    binary_tasks,
    by_name,
    common,
    match,
    normalised,
)
from biigma_cli.data.submission.table import image_id

__all__ = [
    "Matched",
    "Predictions",
    "Truth",
    "binary_tasks",
    "by_name",
    "common",
    "image_id",
    "match",
    "normalised",
    "read_groups",
    "read_predictions",
    "read_truth",
    "submission_text",
    "write_submission",
]
