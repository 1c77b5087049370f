"""Names of the figures, in the order they are shown, and what to call them for people."""

from __future__ import annotations

from biigma_cli.metrics.confusion import HEADLINE
from biigma_cli.metrics.ranks import RATES

#: Figures of probabilities: not defined where the scores of an image do not sum to 1.
PROPER = ("log_loss", "brier", "ece")
OVERALL = (*HEADLINE, "isic_score", "macro_auc", "macro_ap", *PROPER, "aurc")
LOWER_IS_BETTER = frozenset((*PROPER, "aurc"))
_COUNTED = ("sensitivity", "specificity", "precision", "f1")
HALVES = ("accuracy_at_half", "sensitivity_at_half", "specificity_at_half")
POINTS = (
    *(f"sensitivity_at_specificity_{r}" for r in RATES),
    *(f"specificity_at_sensitivity_{r}" for r in RATES),
)
PER_CLASS = (*_COUNTED, "auc", "ap", *POINTS, *HALVES)
# What can be said of a class without an image.
NEGATIVES_ONLY = ("specificity", "accuracy_at_half", "specificity_at_half")

TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "macro_recall": "balanced accuracy (macro-recall)",
    "macro_precision": "macro-precision",
    "isic_score": "ISIC score (ties count as wrong)",
    "macro_auc": "macro ROC AUC (one against the rest)",
    "macro_ap": "macro average precision",
    "log_loss": "log loss",
    "brier": "Brier score (0 to 2)",
    "ece": "calibration error (ECE, 15 bins)",
    "aurc": "AURC (mean error over all coverages)",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "f1": "F1",
    "auc": "AUC",
    "ap": "AP",
    **{f"sensitivity_at_specificity_{r}": f"sensitivity at {r}% specificity" for r in RATES},
    **{f"specificity_at_sensitivity_{r}": f"specificity at {r}% sensitivity" for r in RATES},
    "accuracy_at_half": "accuracy, score > 0.5",
    "sensitivity_at_half": "sensitivity, score > 0.5",
    "specificity_at_half": "specificity, score > 0.5",
}
