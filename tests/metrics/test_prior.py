"""Class shares that probabilities stand for, and probabilities under other ones."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.optimize import minimize

from biigma_cli.metrics import ClassPrior, at_prevalence, complete_shares, fit_prior

PLAIN = ClassPrior(images=100, shares=(0.1, 0.7, 0.2), implied=(0.2, 0.5, 0.3))
SHARES = np.array([0.1, 0.7, 0.2])
TRAINED = np.array([0.3, 0.45, 0.25])


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels with `SHARES`, and exact probabilities of a mix with `TRAINED`."""
    rng = np.random.default_rng(seed)
    label = rng.choice(3, n, p=SHARES)
    centres = np.array([[1.5, 0], [0, 0], [0, 1.2]])
    x = centres[label] + rng.normal(size=(n, 2))
    likely = np.exp(-((x[:, None] - centres) ** 2).sum(2) / 2) * TRAINED
    return label, likely / likely.sum(1, keepdims=True)


def test_the_mix_is_found() -> None:
    """Of exact probabilities the mix they were made for; by it they become right on average."""
    label, proba = drawn(40_000)
    found = fit_prior(label, proba)
    assert found is not None
    assert found.shares == pytest.approx(SHARES, abs=0.01)
    assert found.implied == pytest.approx(TRAINED, abs=0.015)
    corrected = at_prevalence(proba, found.weights(found.shares))
    assert corrected.mean(0) == pytest.approx(found.shares, abs=1e-3)
    assert np.abs(proba.mean(0) - SHARES).max() > 0.03
    at = np.arange(len(label))
    assert np.log(corrected[at, label]).mean() > np.log(proba[at, label]).mean() + 0.01


def test_it_is_the_most_probable() -> None:
    """The same as a general minimiser finds, with few images, where the prior counts."""
    label, proba = drawn(60, seed=3)
    found = fit_prior(label, proba)
    assert found is not None

    def loss(bias: np.ndarray) -> float:
        raised = np.log(proba) + bias
        likely = raised - np.log(np.exp(raised).sum(1, keepdims=True))
        return float(bias @ bias / 2 - likely[np.arange(60), label].sum())

    bias = minimize(loss, np.zeros(3), tol=1e-12).x
    implied = np.bincount(label) / 60 * np.exp(-bias)
    assert found.implied == pytest.approx(implied / implied.sum(), abs=1e-5)


def test_certain_answers() -> None:
    """Probabilities of 0 and 1, some of them wrong, give finite shares."""
    label = np.array([0, 1, 2, 0, 1, 2])
    found = fit_prior(label, np.eye(3)[[0, 1, 2, 1, 1, 0]])
    assert found is not None
    assert all(0 < s < 1 for s in found.implied)
    assert math.fsum(found.implied) == pytest.approx(1)


def test_a_class_without_images() -> None:
    """Nothing can be said; images that are flagged are none."""
    label, proba = drawn(500)
    assert fit_prior(np.where(label == 0, 1, label), proba) is None
    assert fit_prior(label, proba, flagged_n=label == 0) is None
    flagged = np.arange(500) % 2 == 0
    assert fit_prior(label, proba, flagged_n=flagged) == fit_prior(label[~flagged], proba[~flagged])
    assert fit_prior(label[:0], proba[:0]) is None


def test_bayes() -> None:
    """A test of which 20% were diseased says 50%: where 2% are, that is 2 / 26."""
    prior = ClassPrior(images=10, shares=(0.2, 0.8), implied=(0.2, 0.8))
    found = at_prevalence(np.array([0.5, 0.5]), prior.weights((0.02, 0.98)))
    odds = 0.02 / 0.98 / (0.2 / 0.8)
    assert found == pytest.approx([odds / (1 + odds), 1 / (1 + odds)])
    same = at_prevalence(np.array([[0.3, 0.7]]), prior.weights(prior.implied))
    assert same == pytest.approx(np.array([[0.3, 0.7]]))


def test_what_does_not_occur() -> None:
    """It gets nothing; where nothing else was probable, the probabilities stay."""
    weight = np.array([0.0, 2.0, 1.0])
    assert at_prevalence(np.array([0.5, 0.25, 0.25]), weight) == pytest.approx([0, 2 / 3, 1 / 3])
    assert at_prevalence(np.array([[1.0, 0, 0]]), weight).tolist() == [[1, 0, 0]]


def test_shares_of_all() -> None:
    """Those not named share the rest as in the data."""
    assert complete_shares(PLAIN.shares, {0: 0.01}) == pytest.approx(
        (0.01, 0.99 * 7 / 9, 0.99 * 2 / 9)
    )
    assert complete_shares((0.2, 0.3, 0.1, 0.4), {0: 0.7, 1: 0.2, 2: 0.1})[3] == 0
    assert complete_shares(PLAIN.shares, {}) == pytest.approx(PLAIN.shares)
    assert complete_shares(PLAIN.shares, {0: 0.5, 1: 0.5}) == pytest.approx((0.5, 0.5, 0))
    assert complete_shares(PLAIN.shares, {0: 0.1, 1: 0.2, 2: 0.7}) == pytest.approx((0.1, 0.2, 0.7))
    for wrong in ({0: 0.6, 1: 0.5}, {0: 0.1, 1: 0.1, 2: 0.1}, {0: -0.1}, {0: math.nan}):
        with pytest.raises(ValueError, match=r"share|sum"):
            complete_shares(PLAIN.shares, wrong)


def test_as_metadata() -> None:
    """There and back through JSON; what cannot be is refused."""
    plain = json.loads(json.dumps(PLAIN.to_dict()))
    assert ClassPrior.from_dict(plain) == PLAIN
    for change in (
        {"shares": [0.5, 0.5]}, {"shares": [0.1, 0.7, 0.3]}, {"implied": [0, 0.5, 0.5]},
        {"implied": [math.nan, 0.5, 0.5]}, {"implied": "no"}, {"images": None},
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError)):
            ClassPrior.from_dict({**plain, **change})
    with pytest.raises(KeyError):
        ClassPrior.from_dict({})
