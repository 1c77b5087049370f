"""The proof that two versions of a model give the same answers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from biigma_cli.errors import ParityError

FP32_TOLERANCE = 1e-4
# Of evidence and saliency, as a share of the map's largest value.
MAP_TOLERANCE = 1e-3


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
) -> Parity:
    """Compare `(n, Y)` probabilities. Raises `ParityError` above `tolerance` or for a NaN."""
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
            f"torch and ONNX Runtime disagree: {parity.proof()}; at most {tolerance:g} is allowed",
            fix="nothing was written; please report it with the versions from 'biigma info'",
        )
    return parity


def compare_maps(
    name: str,
    first: npt.NDArray[np.float32],
    second: npt.NDArray[np.float32],
    *,
    tolerance: float = MAP_TOLERANCE,
) -> None:
    """Compare maps of any one shape. Raises `ParityError` above `tolerance`, or for a NaN.

    Args:
        tolerance: largest difference, as a share of the largest absolute value in `first`.
    """
    largest = float(np.abs(first.astype(np.float64) - second).max())
    if not largest <= tolerance * float(np.abs(first).max()):
        raise ParityError(
            f"torch and ONNX Runtime disagree: {name} by up to {largest:.2e}",
            fix="nothing was written; please report it with the versions from 'biigma info'",
        )
