"""What the benchmarks share: ratios of single rounds, with quartiles and aims."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Median and quartiles of the quotients of single rounds.

    Not the quotient of the medians: a machine's speed drifts, and the two measurements of one round
    lie close together in time.

    Attributes:
        target: what it should be; None where nothing is aimed at.
        at_least: whether the target is to be reached, rather than not to be passed.
    """

    what: str
    value: float
    low: float
    high: float
    target: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the median is on the right side of the target; True where there is none."""
        if self.target is None:
            return True
        return self.value >= self.target if self.at_least else self.value <= self.target

    def line(self, width: int = 28) -> str:
        """For a report."""
        text = f"{self.what:<{width}}{self.value:8.3f}  "
        text += f"(quartiles {self.low:.3f} to {self.high:.3f})"
        if self.target is not None:
            sign = ">= " if self.at_least else ""
            text += f"  target {sign}{self.target:.2f}: {'met' if self.met else 'MISSED'}"
        return text


def ratio(
    what: str,
    one: Sequence[float],
    two: Sequence[float],
    target: float | None = None,
    *,
    at_least: bool = False,
) -> Ratio:
    """`one` over `two`, paired by round."""
    low, value, high = quartiles([a / b for a, b in zip(one, two, strict=True)])
    return Ratio(what=what, value=value, low=low, high=high, target=target, at_least=at_least)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; of one value three times that."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high
