"""Pictures changed outside, or all over, and their lesions: what should not change an answer.

`masks` reads lesion masks, `kinds` says what is done to a picture, `fill` takes lesions out and
puts them elsewhere, `donors` picks whose background is used, `effect` makes figures of the answers
before and after.
"""

from biigma_cli.data.perturb.donors import choose_donors, choose_images
from biigma_cli.data.perturb.effect import (
    Answers,
    Effect,
    Measures,
    difference,
    effects,
    mean_with_interval,
)
from biigma_cli.data.perturb.kinds import (
    GROUP_NOTES,
    GROUPS,
    PERTURBATIONS,
    STRENGTHS,
    Perturbation,
    Scene,
    perturb,
    recompressed,
)
from biigma_cli.data.perturb.masks import LesionMasks, Mask, lesion_masks

__all__ = [
    "GROUPS",
    "GROUP_NOTES",
    "PERTURBATIONS",
    "STRENGTHS",
    "Answers",
    "Effect",
    "LesionMasks",
    "Mask",
    "Measures",
    "Perturbation",
    "Scene",
    "choose_donors",
    "choose_images",
    "difference",
    "effects",
    "lesion_masks",
    "mean_with_interval",
    "perturb",
    "recompressed",
]
