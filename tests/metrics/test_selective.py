"""Answering only where the model is sure: AURC, and limits that hold what they promise."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from scipy.stats import beta, binom

from biigma_cli.metrics import CONFIDENCE, Limits, assess, compare, limits
from biigma_cli.metrics.calibration import by_confidence
from biigma_cli.metrics.selective import aurc, error_bound, risk_coverage

Drawn = tuple[np.ndarray, np.ndarray]


def drawn(n: int, seed: int, *, classes: int = 3, steps: int = 0) -> Drawn:
    """Labels and probabilities, calibrated by construction; in `steps` values they have ties."""
    rng = np.random.default_rng(seed)
    sure = rng.uniform(0.4, 1, n)
    if steps:
        sure = 0.4 + np.ceil((sure - 0.4) * steps / 0.6) * 0.6 / steps
    label = rng.integers(0, classes, n)
    right = rng.uniform(size=n) < sure
    answer = np.where(right, label, (label + 1) % classes)
    proba = np.repeat(((1 - sure) / (classes - 1))[:, None], classes, 1)
    proba[np.arange(n), answer] = sure
    return label, proba


def naive(label_n: np.ndarray, proba_nY: np.ndarray) -> float:
    """Mean over the images of the error among all at least as sure."""
    sure, wrong = proba_nY.max(1), proba_nY.argmax(1) != label_n
    return float(np.mean([wrong[sure >= s].mean() for s in sure]))


@pytest.mark.parametrize("steps", [0, 5])
def test_aurc(steps: int) -> None:
    """As by its definition; neither the order of the images nor ties matter to it."""
    label, proba = drawn(200, 1, steps=steps)
    one = np.ones((200, 1))
    assert aurc(by_confidence(label, proba), one)[0] == pytest.approx(naive(label, proba))
    order = np.random.default_rng(2).permutation(200)
    again = aurc(by_confidence(label[order], proba[order]), one)
    assert again[0] == pytest.approx(naive(label, proba), rel=1e-12)
    weight = np.random.default_rng(3).integers(0, 3, 200)
    repeated = np.repeat(np.arange(200), weight)
    weighed = aurc(by_confidence(label, proba), weight[:, None].astype(float))
    assert weighed[0] == pytest.approx(naive(label[repeated], proba[repeated]))


def test_aurc_by_hand() -> None:
    """Surest right, then wrong, then right: errors 0, 1/2 and 1/3."""
    proba = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    label = np.array([0, 0, 0])
    sorted_ = by_confidence(label, proba)
    assert aurc(sorted_, np.ones((3, 1)))[0] == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    coverage, error = risk_coverage(sorted_, np.ones((3, 1)))
    assert coverage[:, 0] == pytest.approx([1 / 3, 2 / 3, 1])
    assert error[:, 0] == pytest.approx([0, 1 / 2, 1 / 3])


def test_aurc_among_the_figures() -> None:
    """With an interval, for scores of any sum, and in paired differences."""
    label, proba = drawn(150, 4)
    found = assess(label, proba, ["A", "B", "C"], resamples=50)
    figure = found.overall["aurc"]
    assert figure.value == pytest.approx(naive(label, proba))
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low < figure.value < figure.high
    other = assess(label, proba * 0.5, ["A", "B", "C"], resamples=50)
    assert other.overall["aurc"].value == pytest.approx(figure.value)
    assert compare(found, other).overall["aurc"].value == pytest.approx(0)


def test_bound() -> None:
    """Clopper and Pearson's, of whole counts and of none."""
    for wrong, n in ((1, 10), (5, 40), (39, 40)):
        found = error_bound(wrong / n, n)
        assert found == pytest.approx(beta.ppf(CONFIDENCE, wrong + 1, n - wrong))
        assert binom.cdf(wrong, n, found) == pytest.approx(1 - CONFIDENCE)
    assert (1 - error_bound(0, 20)) ** 20 == pytest.approx(1 - CONFIDENCE)
    assert error_bound(1, 5) == error_bound(0, 0) == 1


def test_rows() -> None:
    """Counts at each threshold; flagged images are never answered, lesions count once."""
    label, proba = drawn(300, 5)
    flagged = np.arange(300) % 10 == 0
    groups = [str(i // 3) for i in range(300)]
    found = limits(label, proba, groups, flagged_n=flagged)
    assert (found.images, found.groups) == (300, 100)
    sure, wrong = proba.max(1), proba.argmax(1) != label
    for row in found.rows[::7]:
        there = (sure >= row.threshold) & ~flagged
        assert row.answered == there.sum()
        assert row.wrong == (there & wrong).sum()
        sizes = np.array(list(Counter(np.array(groups)[there]).values()))
        if row.answered:
            assert row.effective == pytest.approx(sizes.sum() ** 2 / (sizes**2).sum(), abs=0.01)
            bound = error_bound(row.wrong / row.answered, row.effective)
            assert bound <= row.bound <= bound + 1e-5
    assert found.rows[-1].answered == (~flagged).sum()
    assert [r.threshold for r in found.rows] == sorted(r.threshold for r in found.rows)[::-1]


def test_which_limit() -> None:
    """The lowest down to which the bound holds throughout; a later one that holds is not taken."""
    label, proba = drawn(2000, 6)
    found = limits(label, proba, [str(i) for i in range(2000)])
    strict, loose = found.at_most(0.1), found.at_most(0.2)
    assert strict is not None
    assert loose is not None
    assert strict.threshold > loose.threshold
    assert strict.bound <= 0.1
    at = found.rows.index(strict)
    assert found.rows[at + 1].bound > 0.1
    assert found.at_most(0.001) is None
    more = found.next_to(0.001)
    assert more is not None
    assert found.at_most(more) is not None
    assert found.at_most(more - 0.01) is None
    assert found.next_to(0.99) is None
    # Sure and wrong: nothing below the first that fails is asked.
    worse = label.copy()
    worse[np.argsort(-proba.max(1))[:40]] = (
        proba.argmax(1)[np.argsort(-proba.max(1))[:40]] + 1
    ) % 3
    assert limits(worse, proba, [str(i) for i in range(2000)]).at_most(0.1) is None


def test_the_promise_holds() -> None:
    """In at most one set of images in twenty is the error truly higher than promised."""
    label, proba = drawn(200_000, 7)
    sure, wrong = proba.max(1), proba.argmax(1) != label
    broken = chosen = 0
    for seed in range(400):
        own, scores = drawn(400, 1000 + seed)
        row = limits(own, scores, [str(i) for i in range(400)]).at_most(0.15)
        if row is not None:
            chosen += 1
            broken += wrong[sure >= row.threshold].mean() > 0.15
    assert chosen > 300
    # 5% of 400 and three standard deviations of chance; without a bound it is half of them.
    assert broken <= 20 + 3 * (400 * 0.05 * 0.95) ** 0.5


def test_there_and_back() -> None:
    """Through JSON; what is no limits is an error."""
    label, proba = drawn(900, 8)
    found = limits(label, proba, [str(i // 2) for i in range(900)])
    plain = json.loads(json.dumps(found.to_dict()))
    again = Limits.from_dict(plain)
    assert again.to_dict() == found.to_dict()
    assert found.at_most(0.2) == again.at_most(0.2) is not None
    good = plain["rows"][-1]
    for rows in (
        [[1, 2]], 3, [], [[2.5, *good[1:]]], [[math.nan, *good[1:]]], [[*good[:4], math.nan]],
        [[0.5, math.inf, 9, 1, 0.1]], [[0.5, 0, 0, 0, 0.0]], [[0.5, 10, 9, 11, 0.1]],
        [[0.5, 10, 11, 1, 0.1]], [[0.5, 10**6, 9, 1, 0.1]], [[0.5, -5, -5, -9, 0.1]],
    ):  # fmt: skip
        with pytest.raises((KeyError, TypeError, ValueError)):
            Limits.from_dict({**plain, "rows": rows})
    with pytest.raises(KeyError):
        Limits.from_dict({})
    assert "answered with at most 10% wrong" in found.summary()
    few = limits(label[:9], proba[:9], list("aabbccdde"))
    assert few.at_most(0.3) is None
    assert few.summary() == "can't say: no limit promises few errors on 5 validation lesions"
