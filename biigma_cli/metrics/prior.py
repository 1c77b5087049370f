"""The class shares that probabilities stand for, and the probabilities under other shares.

A classifier's probabilities hold for a mix of classes like the one it was calibrated on. Where
only that mix differs, Bayes' rule gives those of another one (Saerens, Latinne and Decaestecker
2002, doi:10.1162/089976602753284446): each class's probability times its share there over its share
here, and divided by the sum.

A network trained on classes that were drawn more evenly than they occur overstates the rare ones
on average, and one temperature for all classes cannot mend that. So its share "here" is not the one
of the images but the one for which its probabilities would be right on average: the shares times
exp(-b), where b, added to the log probabilities, makes the labels most likely (the bias terms of
Alexandari, Kundaje and Shrikumar 2020, arXiv:1901.06852). Each b has a standard normal prior, for a
rare class has few images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from biigma_cli.metrics.calibration import log_probability
from biigma_cli.metrics.confusion import Floats, Ints

METHOD = (
    "shares times exp(-b); b, added to the log probabilities, of the greatest posterior "
    "probability under standard normal priors (Saerens et al. 2002; Alexandari et al. 2020)"
)
# Newton's method takes 5 to 8.
_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class ClassPrior:
    """Class shares of the images that a model was calibrated on, and of its probabilities there.

    Attributes:
        images: how many.
        shares: of each class among them, more than 0, together 1.
        implied: for which the probabilities would be right on average, likewise.
    """

    images: int
    shares: tuple[float, ...]
    implied: tuple[float, ...]

    def weights(self, prevalence: Sequence[float]) -> Floats:
        """`(Y,)`, what each probability is multiplied with before all are divided by their sum."""
        found: Floats = np.asarray(prevalence, np.float64) / np.asarray(self.implied)
        return found

    def to_dict(self) -> dict[str, Any]:
        """As it stands in an exported model's metadata."""
        return {
            "method": METHOD,
            "part": "val",
            "images": self.images,
            "shares": list(self.shares),
            "implied": list(self.implied),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """From what `to_dict` gave. Raises `KeyError`, `TypeError` or `ValueError` otherwise."""
        shares, implied = (tuple(map(float, plain[key])) for key in ("shares", "implied"))
        for found in (shares, implied):
            # NaN is in no order.
            if not (all(0 < s <= 1 for s in found) and abs(sum(found) - 1) < 1e-6):
                raise ValueError(f"shares that cannot be: {list(found)}")
        if len(shares) != len(implied):
            raise ValueError(f"{len(shares)} and {len(implied)} shares")
        return cls(images=int(plain["images"]), shares=shares, implied=implied)


def complete_shares(own: Sequence[float], named: Mapping[int, float]) -> tuple[float, ...]:
    """Shares of all classes, where the named ones have theirs.

    The others share what is left, in proportion to their own.

    Raises:
        ValueError: a share outside 0 to 1, more than 1 together, or less though all are named.
    """
    if not all(0 <= share <= 1 for share in named.values()):
        raise ValueError("a share is from 0 to 1")
    left = 1 - sum(named.values())
    others = sum(s for i, s in enumerate(own) if i not in named)
    if left < -1e-6 or (left > 1e-6 and not others):
        raise ValueError(f"the shares sum to {1 - left:.9g}")
    scale = left / others if left > 1e-6 else 0.0  # what rounding leaves is nobody's
    return tuple(named.get(i, s * scale) for i, s in enumerate(own))


def fit_prior(
    label_n: Ints,
    proba_nY: npt.NDArray[np.floating[Any]],
    *,
    flagged_n: npt.NDArray[np.bool_] | None = None,
) -> ClassPrior | None:
    """The class shares that probabilities stand for.

    Args:
        label_n: `(n,)` class indices of images that nothing was trained on.
        proba_nY: `(n, Y)` probabilities, as they will be when it is asked for an answer.
        flagged_n: `(n,)`, images that get no answer whatever their probability; left out.

    Returns:
        None where a class has no image.
    """
    there_n = np.ones(len(label_n), np.bool_) if flagged_n is None else ~flagged_n
    label_n, log_nY = label_n[there_n], log_probability(proba_nY[there_n].astype(np.float64))
    n, classes = log_nY.shape
    count_Y = np.bincount(label_n, minlength=classes)
    if not n or not count_Y.all():
        return None
    share_Y = count_Y / n
    bias_Y = np.zeros(classes)

    def proba(bias_Y: Floats) -> Floats:
        raised = np.exp(log_nY + bias_Y - (log_nY + bias_Y).max(1, keepdims=True))
        whole: Floats = raised / raised.sum(1, keepdims=True)
        return whole

    def loss(bias_Y: Floats) -> float:
        likely = log_probability(proba(bias_Y))[np.arange(n), label_n].mean()
        return float(bias_Y @ bias_Y / (2 * n) - likely)

    for _ in range(_STEPS):
        now_nY = proba(bias_Y)
        gradient_Y = now_nY.mean(0) - share_Y + bias_Y / n
        curvature_YY = np.diag(now_nY.mean(0)) - now_nY.T @ now_nY / n + np.eye(classes) / n
        step_Y = np.linalg.solve(curvature_YY, gradient_Y)
        length, before = 1.0, loss(bias_Y)
        while loss(bias_Y - length * step_Y) > before and length > 1e-6:
            length /= 2
        bias_Y = bias_Y - length * step_Y
        if np.abs(length * step_Y).max() < 1e-9:
            break
    implied_Y = share_Y * np.exp(-bias_Y)
    implied_Y /= implied_Y.sum()
    return ClassPrior(images=n, shares=tuple(share_Y.tolist()), implied=tuple(implied_Y.tolist()))


def at_prevalence(proba_nY: npt.NDArray[np.floating[Any]], weight_Y: Floats) -> Floats:
    """`(n, Y)` probabilities, or `(Y,)`, by the weights that `ClassPrior.weights` gives.

    Where nothing is left, as of a class that does not occur, they stay what they were.
    """
    raised = proba_nY.astype(np.float64) * weight_Y
    total = raised.sum(-1, keepdims=True)
    found: Floats = np.where(total > 0, raised / np.where(total > 0, total, 1), proba_nY)
    return found
