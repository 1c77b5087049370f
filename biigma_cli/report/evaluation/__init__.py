"""The report of an evaluation: one HTML page, and its tables for the terminal."""

from biigma_cli.report.evaluation.page import EvaluationReport, evaluation_html
from biigma_cli.report.evaluation.pictures import Mistake, mistake_pictures
from biigma_cli.report.pictures import Picture, thumbnail_size

__all__ = [
    "EvaluationReport",
    "Mistake",
    "Picture",
    "evaluation_html",
    "mistake_pictures",
    "thumbnail_size",
]
