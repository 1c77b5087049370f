"""Calling images suspicious: limits that hold the sensitivity they promise."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from biigma_cli.metrics import (
    ScreeningLimits,
    malignancy,
    malignant_classes,
    screening_limits,
)
from biigma_cli.metrics.selective import effective_size, error_bound

MALIGNANT = np.array([True, False, True])


def drawn(n: int, seed: int, share: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities; the malignant have the higher malignancy, with an overlap."""
    rng = np.random.default_rng(seed)
    bad = rng.uniform(size=n) < share
    score = 1 / (1 + np.exp(-rng.normal(np.where(bad, 0.5, -2.5), 1.2)))
    label = np.where(bad, rng.choice([0, 2], n), 1)
    part = rng.uniform(size=n)
    return label, np.stack([score * part, 1 - score, score * (1 - part)], 1)


def alone(n: int) -> list[str]:
    """Each image a lesion of its own."""
    return [str(i) for i in range(n)]


def test_which_classes() -> None:
    """All must be known, and of both kinds."""
    found = malignant_classes([True, False, True])
    assert found is not None
    assert found.tolist() == [True, False, True]
    for unknown in ([True, None, False], [True, True], [False, False], [None, None]):
        assert malignant_classes(unknown) is None


def test_malignancy() -> None:
    """The sum over the malignant classes."""
    proba = np.array([[0.2, 0.7, 0.1], [0.5, 0.0, 0.5]], np.float32)
    assert malignancy(proba, MALIGNANT) == pytest.approx([0.3, 1.0])


def test_rows() -> None:
    """Counts at each threshold; flagged images are out of it, lesions count once."""
    label, proba = drawn(600, 1)
    flagged = np.arange(600) % 10 == 0
    groups = [str(i // 3) for i in range(600)]
    found = screening_limits(label, proba, MALIGNANT, groups, flagged_n=flagged)
    score = proba[:, 0] + proba[:, 2]
    bad = (label != 1) & ~flagged
    good = (label == 1) & ~flagged
    assert (found.malignant, found.benign) == (bad.sum(), good.sum())
    assert found.effective == effective_size(np.array(groups)[bad]) < found.malignant
    assert found.rows[0][:3] == (0.0, 0, 0)
    for row in found.rows[::5]:
        assert row.missed == (bad & (score < row.threshold)).sum()
        assert row.spared == (good & (score < row.threshold)).sum()
        bound = error_bound(row.missed / found.malignant, found.effective)
        assert bound <= row.bound <= bound + 1e-5
    assert [r.threshold for r in found.rows] == sorted({r.threshold for r in found.rows})


def test_which_limit() -> None:
    """The highest whose bound holds; what cannot be promised has a lower one named."""
    label, proba = drawn(1500, 2)
    found = screening_limits(label, proba, MALIGNANT, alone(1500))
    strict, loose = found.at_least(0.95), found.at_least(0.8)
    assert strict is not None
    assert loose is not None
    assert strict.threshold < loose.threshold
    assert strict.spared < loose.spared
    assert strict.bound <= 0.05 + 1e-12
    assert found.rows[found.rows.index(strict) + 1].bound > 0.05
    # None missed of some 450 promises 99.3%, no more.
    assert found.at_least(0.999) is None
    less = found.next_to(0.999)
    assert less == 0.99
    assert found.at_least(less) is not None
    few = screening_limits(label[:9], proba[:9], MALIGNANT, alone(9))
    assert few.at_least(0.9) is None
    assert "no limit promises" in few.summary()
    assert "of the benign spared (predict --min-sensitivity)" in found.summary()


def test_the_promise_holds() -> None:
    """In at most one set of images in twenty is the sensitivity truly lower than promised."""
    label, proba = drawn(200_000, 3)
    score = (proba[:, 0] + proba[:, 2])[label != 1]
    broken = naive = 0
    for seed in range(400):
        own, scores = drawn(300, 2000 + seed)
        row = screening_limits(own, scores, MALIGNANT, alone(300)).at_least(0.85)
        assert row is not None
        broken += (score >= row.threshold).mean() < 0.85
        seen = np.sort((scores[:, 0] + scores[:, 2])[own != 1])
        naive += (score >= seen[int(0.15 * len(seen))]).mean() < 0.85
    # 5% of 400 and three standard deviations of chance; the quantile itself fails in half of them.
    assert broken <= 20 + 3 * (400 * 0.05 * 0.95) ** 0.5
    assert naive > 120


def test_there_and_back() -> None:
    """Through JSON; what is no limits is an error."""
    label, proba = drawn(900, 4)
    found = screening_limits(label, proba, MALIGNANT, [str(i // 2) for i in range(900)])
    plain = json.loads(json.dumps(found.to_dict()))
    again = ScreeningLimits.from_dict(plain)
    assert again == found
    good = plain["rows"][3]
    for rows in (
        [[1, 2]], 3, [[2.5, *good[1:]]], [[math.nan, *good[1:]]], [[*good[:3], math.nan]],
        [[0.1, -1, 3, 0.1]], [[0.1, 1, 10**6, 0.1]], [[0.1, 1.5, 3, 0.1]], [good, good],
        [[0.2, 3, 5, 0.2], [0.3, 4, 6, 0.1]],
    ):  # fmt: skip
        with pytest.raises((KeyError, TypeError, ValueError)):
            ScreeningLimits.from_dict({**plain, "rows": rows})
    with pytest.raises(ValueError, match="worth"):
        ScreeningLimits.from_dict({**plain, "effective": 10**6})
    with pytest.raises(ValueError, match="worth"):
        ScreeningLimits.from_dict({**plain, "malignant": 0, "effective": 0, "rows": [[0, 0, 0, 1]]})
    with pytest.raises(KeyError):
        ScreeningLimits.from_dict({})


def test_no_malignant_image() -> None:
    """Nothing can be promised, and nothing breaks."""
    label, proba = drawn(50, 5, share=0.0)
    found = screening_limits(label, proba, MALIGNANT, alone(50))
    assert (found.malignant, found.rows) == (0, ())
    assert found.at_least(0.5) is found.next_to(0.5) is None
    assert ScreeningLimits.from_dict(json.loads(json.dumps(found.to_dict()))) == found
