"""Whether limits hold on another part."""

from __future__ import annotations

import numpy as np
import pytest

from biigma_cli.judge.abstention import ERRORS, abstentions, promised, share_figure
from biigma_cli.metrics import Limit, Limits

#: Melanoma, nevus, and a class of one's own.
MALIGNANT = [True, False, None]
#: 0.9 promises 5%, 0.6 the other three.
FOUND = Limits(
    images=900,
    groups=900,
    rows=(
        Limit(0.9, 400, 400, 5, 0.04),
        Limit(0.6, 700, 700, 40, 0.09),
        Limit(0.0, 900, 900, 300, 0.5),
    ),
)


def test_by_hand() -> None:
    """Coverage, error, and the malignant that are called benign; a class of no kind is neither."""
    proba = np.array([
        [0.95, 0.03, 0.02],  # MEL, right
        [0.04, 0.95, 0.01],  # MEL called NV: missed, at 0.9 too
        [0.30, 0.65, 0.05],  # MEL called NV: missed at 0.6 alone
        [0.20, 0.10, 0.70],  # MEL called mine: wrong, and not missed
        [0.45, 0.50, 0.05],  # NV, right, never answered
        [0.02, 0.97, 0.01],  # NV, right, but flagged
    ])  # fmt: skip
    label = np.array([0, 0, 0, 0, 1, 1])
    flagged = np.array([False] * 5 + [True])
    found = abstentions(
        promised(FOUND), label, proba, MALIGNANT, list("abcdef"), flagged_n=flagged, resamples=200
    )
    assert [a.max_error for a in found] == list(ERRORS)
    assert [a.threshold for a in found] == [0.9, 0.6, 0.6, 0.6]
    assert [a.coverage.value for a in found] == pytest.approx([2 / 6, *[4 / 6] * 3])
    assert [a.error.value for a in found] == pytest.approx([1 / 2, *[3 / 4] * 3])
    assert [a.missed for a in found] == [1, 2, 2, 2]
    assert {a.malignant for a in found} == {4}
    first = found[0].coverage
    assert first.low is not None
    assert first.high is not None
    assert first.low < 2 / 6 < first.high
    plain = found[0].to_dict()
    assert plain["coverage"]["value"] == pytest.approx(2 / 6)
    assert (plain["threshold"], plain["missed"]) == (0.9, 1)


def test_shares_of_none_and_all() -> None:
    """Where no resample has another value, the interval is Clopper and Pearson's."""
    from scipy.stats import binomtest

    group = np.arange(40)
    for value, hits in ((0.0, 0), (1.0, 40)):
        found = share_figure(np.float64(value), np.full(200, value), group)
        exact = binomtest(hits, 40).proportion_ci()
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    # Forty images of ten lesions are worth ten.
    wide = share_figure(np.float64(1.0), np.ones(200), group // 4)
    assert wide.low == pytest.approx(binomtest(10, 10).proportion_ci().low)
    drawn = np.linspace(0.4, 0.6, 200)
    assert share_figure(np.float64(0.5), drawn, group).low == pytest.approx(0.405)
    assert share_figure(np.float64(0.0), np.zeros(3), group).high is None


def test_no_limit() -> None:
    """Where none promises so much, nothing is answered, and there is no error to state."""
    none = Limits(images=9, groups=9, rows=(Limit(0.0, 9, 9, 3, 0.6),))
    proba = np.array([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1]])
    (found, *_) = abstentions(
        promised(none), np.array([0, 1]), proba, MALIGNANT, ["a", "b"], flagged_n=None, resamples=50
    )
    assert found.threshold is None
    assert found.coverage.value == 0
    assert found.coverage.high is None
    assert found.error.value is None
    assert found.error.why == "no answer"


def test_lesions_are_resampled() -> None:
    """Ten images of one lesion are one to the interval."""
    rng = np.random.default_rng(0)
    sure = np.repeat(rng.uniform(0.5, 1, 30), 10)
    proba = np.stack([sure, (1 - sure) / 2, (1 - sure) / 2], 1)
    label = np.repeat(rng.integers(0, 2, 30), 10)

    def width(groups: list[str]) -> float:
        kept = abstentions(
            promised(FOUND), label, proba, MALIGNANT, groups, flagged_n=None, resamples=300
        )[1]
        assert kept.coverage.low is not None
        assert kept.coverage.high is not None
        return kept.coverage.high - kept.coverage.low

    by_lesion = width([str(i // 10) for i in range(300)])
    assert by_lesion > 2 * width([str(i) for i in range(300)])
