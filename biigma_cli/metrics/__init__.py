"""Figures of judgement from labels and predictions, with bootstrap intervals by lesion.

`confusion` has the figures of answers alone, `assess` all that scores allow (`resampled` and
`ranks` work them out for many resamples at once), `calibration` how far they can be believed,
`selective` what is gained by answering only where the model is sure, `screening` how few malignant
lesions can be made to pass, `prior` what probabilities are where classes are more or less common.
"""

from __future__ import annotations

from biigma_cli.metrics.assess import (
    FEWEST,
    SUM_TOLERANCE,
    ZERO_WEIGHT,
    Assessment,
    Difference,
    Figure,
    assess,
    compare,
    intervals_title,
    is_probability,
    mean_auc,
    paper_columns,
    score_weight,
)
from biigma_cli.metrics.calibration import (
    Reliability,
    ReliabilityBin,
    apply_temperature,
    fit_temperature,
    log_probability,
    reliability,
)
from biigma_cli.metrics.confusion import (
    HEADLINE,
    ClassFigures,
    Figures,
    Floats,
    Interval,
    Ints,
    bootstrap,
    bootstrap_difference,
    confusion_figures,
    confusions,
    evaluate,
)
from biigma_cli.metrics.names import HALVES, LOWER_IS_BETTER, OVERALL, PER_CLASS, POINTS, TITLES
from biigma_cli.metrics.prior import ClassPrior, at_prevalence, complete_shares, fit_prior
from biigma_cli.metrics.screening import (
    ScreeningLimit,
    ScreeningLimits,
    malignancy,
    malignant_classes,
    screening_limits,
)
from biigma_cli.metrics.selective import CONFIDENCE, Limit, Limits, limits

__all__ = [
    "CONFIDENCE",
    "FEWEST",
    "HALVES",
    "HEADLINE",
    "LOWER_IS_BETTER",
    "OVERALL",
    "PER_CLASS",
    "POINTS",
    "SUM_TOLERANCE",
    "TITLES",
    "ZERO_WEIGHT",
    "Assessment",
    "ClassFigures",
    "ClassPrior",
    "Difference",
    "Figure",
    "Figures",
    "Floats",
    "Interval",
    "Ints",
    "Limit",
    "Limits",
    "Reliability",
    "ReliabilityBin",
    "ScreeningLimit",
    "ScreeningLimits",
    "apply_temperature",
    "assess",
    "at_prevalence",
    "bootstrap",
    "bootstrap_difference",
    "compare",
    "complete_shares",
    "confusion_figures",
    "confusions",
    "evaluate",
    "fit_prior",
    "fit_temperature",
    "intervals_title",
    "is_probability",
    "limits",
    "log_probability",
    "malignancy",
    "malignant_classes",
    "mean_auc",
    "paper_columns",
    "reliability",
    "score_weight",
    "screening_limits",
]
