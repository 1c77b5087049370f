"""Malignant against benign, and whether limits hold on another part."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from biigma_cli.judge.screening import SENSITIVITIES, promised, screen
from biigma_cli.metrics import ScreeningLimit, ScreeningLimits

MALIGNANT = (True, False, True)
#: 0.1 promises 95%, 0.4 the other two.
FOUND = ScreeningLimits(
    malignant=400,
    effective=400.0,
    benign=600,
    rows=(
        ScreeningLimit(0.0, 0, 0, 0.01),
        ScreeningLimit(0.1, 10, 300, 0.05),
        ScreeningLimit(0.4, 20, 400, 0.09),
        ScreeningLimit(0.6, 200, 590, 0.45),
    ),
)


def test_by_hand() -> None:
    """Sensitivity, specificity, PPV and the missed; what is flagged is out of it."""
    proba = np.array([
        [0.50, 0.20, 0.30],  # MEL, suspicious at both
        [0.20, 0.70, 0.10],  # MEL, suspicious at 0.1 alone
        [0.02, 0.95, 0.03],  # BCC, missed
        [0.05, 0.94, 0.01],  # NV, never
        [0.10, 0.80, 0.10],  # NV, suspicious at 0.1
        [0.30, 0.55, 0.15],  # NV, suspicious at both
        [0.90, 0.05, 0.05],  # NV, flagged
    ])  # fmt: skip
    label = np.array([0, 0, 2, 1, 1, 1, 1])
    flagged = np.array([False] * 6 + [True])
    found = screen(
        promised(FOUND), label, proba, MALIGNANT, list("abcdefg"), flagged_n=flagged, resamples=300
    )
    assert found is not None
    assert (found.malignant, found.benign) == (3, 3)
    assert (found.flagged_malignant, found.flagged_benign) == (0, 1)
    assert [row.min_sensitivity for row in found.limits] == list(SENSITIVITIES)
    assert [row.threshold for row in found.limits] == [0.1, 0.4, 0.4]
    strict, loose, _ = found.limits
    assert strict.sensitivity.value == pytest.approx(2 / 3)
    assert strict.specificity.value == pytest.approx(1 / 3)
    assert strict.ppv.value == pytest.approx(2 / 4)
    assert loose.sensitivity.value == pytest.approx(1 / 3)
    assert loose.specificity.value == pytest.approx(2 / 3)
    assert loose.ppv.value == pytest.approx(1 / 2)
    assert (strict.missed, loose.missed) == (1, 2)
    assert found.auc.value == pytest.approx(
        roc_auc_score(label[:6] != 1, (proba[:, 0] + proba[:, 2])[:6])
    )
    assert strict.sensitivity.low is not None
    assert strict.sensitivity.high is not None
    assert strict.sensitivity.low < 2 / 3 < strict.sensitivity.high
    plain = found.to_dict()
    assert plain["limits"][0]["missed"] == 1
    assert plain["auc"]["value"] == found.auc.value


def test_without_limits() -> None:
    """A checkpoint states none: the AUC alone. One kind of images, or of classes, tells nothing."""
    proba = np.array([[0.5, 0.2, 0.3], [0.2, 0.7, 0.1]])
    label = np.array([0, 1])

    def ask(label: np.ndarray, malignant: tuple[bool | None, ...] = MALIGNANT) -> object:
        return screen([], label, proba, malignant, ["a", "b"], flagged_n=None, resamples=0)

    found = screen([], label, proba, MALIGNANT, ["a", "b"], flagged_n=None, resamples=0)
    assert found is not None
    assert found.limits == ()
    assert promised(None) == []
    assert found.auc.value == 1
    assert found.auc.low is None
    assert ask(np.array([0, 2])) is ask(np.array([1, 1])) is None
    assert ask(label, (True, None, False)) is None


def test_no_limit_and_nothing_suspicious() -> None:
    """A promise that none gives has no figures; nothing suspicious has no PPV."""
    high = ScreeningLimits(
        malignant=9, effective=9.0, benign=9, rows=(ScreeningLimit(0.9, 0, 9, 0.15),)
    )
    proba = np.array([[0.5, 0.2, 0.3], [0.2, 0.7, 0.1]])
    found = screen(
        promised(high), np.array([0, 1]), proba, MALIGNANT, ["a", "b"], flagged_n=None, resamples=50
    )
    assert found is not None
    none, _, lowest = found.limits
    assert none.threshold is None
    assert none.sensitivity.value is None
    assert none.sensitivity.why == "no limit promises so much"
    assert lowest.threshold == 0.9
    assert lowest.sensitivity.value == 0
    assert lowest.specificity.value == 1
    # Of one benign image nothing is known: Clopper and Pearson's interval of 1 of 1.
    assert (lowest.specificity.low, lowest.specificity.high) == (pytest.approx(0.025), 1)
    assert lowest.ppv.value is None


def test_lesions_are_resampled() -> None:
    """Ten images of one lesion are one to the interval."""
    rng = np.random.default_rng(0)
    score = np.repeat(rng.uniform(0, 1, 60), 10)
    proba = np.stack([score / 2, 1 - score, score / 2], 1)
    label = np.repeat(rng.integers(0, 2, 60), 10)

    def width(groups: list[str]) -> float:
        found = screen(
            promised(FOUND), label, proba, MALIGNANT, groups, flagged_n=None, resamples=300
        )
        assert found is not None
        figure = found.limits[1].specificity
        assert figure.low is not None
        assert figure.high is not None
        return figure.high - figure.low

    assert width([str(i // 10) for i in range(600)]) > 2 * width([str(i) for i in range(600)])
