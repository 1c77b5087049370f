"""Temperature scaling of an exported model, and what it did to the validation part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from biigma_cli.metrics import Floats, Ints, fit_temperature, log_probability, reliability
from biigma_cli.metrics.calibration import RANGE

METHOD = "softmax(logits / T), T of the greatest likelihood (Guo et al. 2017)"


class Sureness(NamedTuple):
    """How far probabilities can be believed: mean -ln p(true class), and calibration error."""

    log_loss: float
    ece: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A temperature and how it was found.

    Attributes:
        temperature: T.
        images: of the validation part, which it was fitted on.
        before: at T = 1.
        after: at this T.
    """

    temperature: float
    images: int
    before: Sureness
    after: Sureness

    def summary(self) -> str:
        """One line to show."""
        return (
            f"calibrated on {self.images} validation images, T = {self.temperature:.3f}: log loss "
            f"{self.before.log_loss:.4f} -> {self.after.log_loss:.4f}, ECE {self.before.ece:.4f} "
            f"-> {self.after.ece:.4f}"
        )

    def to_dict(self) -> dict[str, Any]:
        """As it stands in an exported model's metadata."""
        return {
            "method": METHOD,
            "temperature": self.temperature,
            "part": "val",
            "n": self.images,
            "before": self.before._asdict(),
            "after": self.after._asdict(),
        }


def fit_calibration(logit_nY: npt.NDArray[np.floating[Any]], label_n: Ints) -> Calibration | None:
    """The temperature of a validation part's `(n, Y)` logits.

    None where no temperature is best: every answer is right, or the logits say nothing.
    Raises `DataError` as `fit_temperature` does.
    """
    temperature = fit_temperature(logit_nY, label_n)
    if not RANGE[0] * 1.001 < temperature < RANGE[1] / 1.001:
        return None
    logits = np.asarray(logit_nY, np.float64)
    return Calibration(
        temperature=temperature,
        images=len(label_n),
        before=_sureness(softmax(logits), label_n),
        after=_sureness(softmax(logits / temperature), label_n),
    )


def softmax(logit_nY: Floats) -> Floats:
    """Probabilities of `(n, Y)` logits."""
    raised = np.exp(logit_nY - logit_nY.max(1, keepdims=True))
    proba: Floats = raised / raised.sum(1, keepdims=True)
    return proba


def _sureness(proba_nY: Floats, label_n: Ints) -> Sureness:
    rows = np.arange(len(label_n))
    return Sureness(
        log_loss=float(-log_probability(proba_nY)[rows, label_n].mean()),
        ece=reliability(label_n, proba_nY).ece,
    )
