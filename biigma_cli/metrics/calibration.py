"""How far probabilities can be believed: calibration error, reliability diagram, temperature.

Bins are adaptive (of equal mass): images are sorted by confidence, the probability of the answer,
and cut into as many bins with equal numbers of images. Images of equal confidence stay together,
in the bin of the middle of their ranks, so that the order of the images does not matter.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from biigma_cli.errors import DataError
from biigma_cli.metrics.confusion import Floats, Ints

BINS = 15
#: Temperatures that are considered; an optimum at an end says that the data cannot tell.
RANGE = (0.05, 20.0)
# The smallest normal float32: what a model's zero stands for.
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Images of similar confidence.

    Attributes:
        count: images.
        lowest: smallest confidence among them.
        highest: greatest confidence among them.
        confidence: mean confidence.
        accuracy: share answered right.
        low: lower end of the accuracy's 95% interval (Wilson's, images taken as independent).
        high: its upper end.
    """

    count: int
    lowest: float
    highest: float
    confidence: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """A reliability diagram and its expected calibration error."""

    bins: tuple[ReliabilityBin, ...]
    ece: float

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return asdict(self)


class Confidence(NamedTuple):
    """Images by rising confidence.

    Attributes:
        order_n: indices of the images.
        confidence_n: in that order.
        right_n: 1 or 0 for a right or wrong answer, in that order.
        starts: where each set of equal confidences begins.
    """

    order_n: npt.NDArray[np.intp]
    confidence_n: Floats
    right_n: Floats
    starts: npt.NDArray[np.intp]


def by_confidence(label_n: Ints, proba_nY: Floats) -> Confidence:
    """Sort once."""
    top_n = proba_nY.max(1)
    order = np.argsort(top_n, kind="stable")
    confidence = top_n[order]
    right = (proba_nY.argmax(1) == label_n)[order].astype(np.float64)
    return Confidence(
        order_n=order,
        confidence_n=confidence,
        right_n=right,
        starts=np.flatnonzero(np.r_[True, confidence[1:] != confidence[:-1]]),
    )


def calibration_error(sorted_: Confidence, weight_nb: Floats, bins: int = BINS) -> Floats:
    """`(b,)` expected calibration error for each of b weightings of the n images.

    ECE = sum over bins of (images in the bin / images) * |accuracy - mean confidence|.
    """
    ordered_nb = weight_nb[sorted_.order_n]
    mass_db = np.add.reduceat(ordered_nb, sorted_.starts, axis=0)
    gap_n1 = (sorted_.right_n - sorted_.confidence_n)[:, None]
    gap_db = np.add.reduceat(ordered_nb * gap_n1, sorted_.starts, axis=0)
    bin_db = _bins(mass_db, bins)
    columns = mass_db.shape[1]
    place_db = bin_db * columns + np.arange(columns)
    sums = np.bincount(place_db.ravel(), gap_db.ravel(), minlength=bins * columns)
    error: Floats = np.abs(sums.reshape(bins, columns)).sum(0) / mass_db.sum(0)
    return error


def _bins(mass_db: Floats, bins: int) -> npt.NDArray[np.intp]:
    """Bin of each distinct confidence: where the middle of its ranks lies."""
    end_db = np.cumsum(mass_db, axis=0)
    place_db = (end_db - mass_db / 2) / end_db[-1] * bins
    index_db: npt.NDArray[np.intp] = np.minimum(place_db.astype(np.intp), bins - 1)
    return index_db


def reliability(label_n: Ints, proba_nY: Floats, *, bins: int = BINS) -> Reliability:
    """Reliability diagram of the answers, in adaptive bins.

    Args:
        label_n: `(n,)` class indices.
        proba_nY: `(n, Y)` probabilities.

    Returns:
        At most `bins` bins, by rising confidence; fewer where many confidences are equal.

    Raises:
        DataError: no image, shapes that do not match, NaN.
    """
    proba = _checked(proba_nY, label_n)
    sorted_ = by_confidence(label_n, proba)
    ones = np.ones((len(label_n), 1))
    count_d = np.diff(np.r_[sorted_.starts, len(label_n)])
    bin_n = np.repeat(_bins(count_d[:, None].astype(np.float64), bins)[:, 0], count_d)
    found = []
    for index in np.unique(bin_n):
        inside = bin_n == index
        confidence = sorted_.confidence_n[inside]
        accuracy = float(sorted_.right_n[inside].mean())
        low, high = wilson(accuracy, int(inside.sum()))
        found.append(
            ReliabilityBin(
                count=int(inside.sum()),
                lowest=float(confidence[0]),
                highest=float(confidence[-1]),
                confidence=float(confidence.mean()),
                accuracy=accuracy,
                low=low,
                high=high,
            )
        )
    return Reliability(bins=tuple(found), ece=float(calibration_error(sorted_, ones, bins=bins)[0]))


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share of n."""
    z = 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(middle - half, 0.0), min(middle + half, 1.0)


def log_probability(proba_nY: npt.NDArray[np.floating[Any]]) -> Floats:
    """Log of probabilities, a zero taken as the smallest normal float32 (about 1e-38)."""
    return np.log(np.maximum(np.asarray(proba_nY, np.float64), TINY))


def fit_temperature(logit_nY: npt.NDArray[np.floating[Any]], label_n: Ints) -> float:
    """Temperature T that makes `softmax(logits / T)` most likely (Guo et al. 2017).

    The mean negative log-likelihood is convex in 1/T, so a bounded scalar search over log T finds
    its one minimum.

    Args:
        logit_nY: `(n, Y)` logits or log probabilities: they differ by a constant per row.
        label_n: `(n,)` class indices, of images that were not trained on.

    Returns:
        T between 0.05 and 20; above 1 the model was too sure of itself. An end of that range means
        that there is no optimum: every answer is right, or the scores say nothing.

    Raises:
        DataError: no image, shapes that do not match, a label outside the classes, NaN.
    """
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]

    logits = _checked(logit_nY, label_n)
    rows = np.arange(len(label_n))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        top = scaled.max(1)
        total = np.log(np.exp(scaled - top[:, None]).sum(1)) + top
        return float((total - scaled[rows, label_n]).mean())

    low, high = (float(np.log(t)) for t in RANGE)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-7})
    # The search never reaches an end; where an end is as good, as on a plateau of no loss, it is
    # the answer.
    best = min((low, high, float(found.x)), key=lambda at: round(loss(at), 12))
    return float(np.exp(best))


def apply_temperature(
    proba_nY: npt.NDArray[np.floating[Any]], temperature: float
) -> npt.NDArray[np.float64]:
    """Probabilities at a temperature: `softmax(log p / T)`; the order of classes stays.

    Raises `DataError` where the temperature is not a positive number.
    """
    if not (np.isfinite(temperature) and temperature > 0):
        raise DataError(
            f"the temperature is {temperature}", fix="it must be a number greater than 0"
        )
    scaled = log_probability(proba_nY) / temperature
    raised = np.exp(scaled - scaled.max(-1, keepdims=True))
    scaled_proba: Floats = raised / raised.sum(-1, keepdims=True)
    return scaled_proba


def _checked(value_nY: npt.NDArray[np.floating[Any]], label_n: Ints) -> Floats:
    """As float64. Raises `DataError` where they cannot belong together."""
    values = np.asarray(value_nY, np.float64)
    if len(label_n) == 0:
        raise DataError("there is nothing to calibrate on: no image", fix="choose another part")
    if values.ndim != 2 or len(values) != len(label_n):
        raise DataError(
            f"{len(label_n)} labels and scores of shape {values.shape}", fix="match them by id"
        )
    if label_n.min() < 0 or label_n.max() >= values.shape[1]:
        raise DataError(
            f"labels name a class outside 0..{values.shape[1] - 1}", fix="check classes"
        )
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
        raise DataError(
            f"{len(bad)} rows of scores have a NaN or an infinite value, the first is row {bad[0]}",
            fix="check the model; of probabilities take `log_probability`",
        )
    return values
