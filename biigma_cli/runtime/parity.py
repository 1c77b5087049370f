"""The proof that two versions of a model give the same answers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from biigma_cli.errors import ParityError
from biigma_cli.metrics import Ints

FP32_TOLERANCE = 1e-4
# Of evidence and saliency, as a share of the map's largest value.
MAP_TOLERANCE = 1e-3


#: Balanced accuracy that a lower precision may lose on the validation part.
LARGEST_LOSS = 0.005


class AccuracyChange(NamedTuple):
    """What another precision does to the figures of the validation part.

    Attributes:
        images: of the validation part.
        balanced_accuracy: of torch in float32, and of the exported file.
        accuracy: the same.
    """

    images: int
    balanced_accuracy: tuple[float, float]
    accuracy: tuple[float, float]

    @classmethod
    def measure(
        cls,
        label_n: Ints,
        before_nY: npt.NDArray[np.float32],
        after_nY: npt.NDArray[np.float32],
    ) -> AccuracyChange:
        """From labels `(n,)` and probabilities `(n, Y)`; classes that are absent do not count."""
        present = np.unique(label_n)

        def both(proba_nY: npt.NDArray[np.float32]) -> tuple[float, float]:
            right = proba_nY.argmax(1) == label_n
            recall = float(np.mean([right[label_n == y].mean() for y in present]))
            return recall, float(right.mean())

        before, after = both(before_nY), both(after_nY)
        return cls(len(label_n), (before[0], after[0]), (before[1], after[1]))

    @property
    def loss(self) -> float:
        """Balanced accuracy lost; negative where it is won."""
        return self.balanced_accuracy[0] - self.balanced_accuracy[1]

    def summary(self) -> str:
        """One line to show."""
        (b0, b1), (a0, a1) = self.balanced_accuracy, self.accuracy
        return (
            f"on {self.images} validation images balanced accuracy {b0:.4f} -> {b1:.4f} "
            f"({100 * (b1 - b0):+.2f} points), accuracy {a0:.4f} -> {a1:.4f}"
        )


class Parity(NamedTuple):
    """How far two sets of probabilities lie apart.

    Attributes:
        images: images compared.
        source: where they came from.
        max_difference: largest |dp| over images and classes.
        mean_difference: mean |dp|.
        same_decision: images with the same top class.
    """

    images: int
    source: str
    max_difference: float
    mean_difference: float
    same_decision: int

    def proof(self) -> str:
        """One line to show."""
        return (
            f"parity on {self.images} {self.source}: max |dp| {self.max_difference:.2e}, "
            f"mean {self.mean_difference:.2e}, same decision {self.same_decision}/{self.images}"
        )


def compare(
    first_BY: npt.NDArray[np.float32],
    second_BY: npt.NDArray[np.float32],
    *,
    source: str,
    tolerance: float = FP32_TOLERANCE,
    who: str = "torch and ONNX Runtime",
) -> Parity:
    """Compare `(n, Y)` probabilities. Raises `ParityError` above `tolerance` or for a NaN.

    Args:
        who: gave the two, for the error.
    """
    difference = np.abs(first_BY.astype(np.float64) - second_BY.astype(np.float64))
    parity = Parity(
        images=len(first_BY),
        source=source,
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        same_decision=int((first_BY.argmax(1) == second_BY.argmax(1)).sum()),
    )
    if not parity.max_difference <= tolerance:  # also true of NaN
        raise ParityError(
            f"{who} disagree: {parity.proof()}; at most {tolerance:g} is allowed",
            fix="nothing was written; please report it with the versions from 'biigma info'",
        )
    return parity


def compare_maps(
    name: str,
    first: npt.NDArray[np.float32],
    second: npt.NDArray[np.float32],
    *,
    tolerance: float = MAP_TOLERANCE,
    who: str = "torch and ONNX Runtime",
) -> None:
    """Compare maps of any one shape. Raises `ParityError` above `tolerance`, or for a NaN.

    Args:
        tolerance: largest difference, as a share of the largest absolute value in `first`.
        who: gave the two, for the error.
    """
    largest = float(np.abs(first.astype(np.float64) - second).max())
    if not largest <= tolerance * float(np.abs(first).max()):
        raise ParityError(
            f"{who} disagree: {name} by up to {largest:.2e}",
            fix="nothing was written; please report it with the versions from 'biigma info'",
        )
