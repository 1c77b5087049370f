"""Temperature, adaptive calibration error and the reliability diagram."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biigma_cli.errors import DataError
from biigma_cli.metrics import (
    Floats,
    Ints,
    apply_temperature,
    assess,
    fit_temperature,
    log_probability,
    reliability,
)
from biigma_cli.metrics.calibration import RANGE


def softmax(logits: Floats) -> Floats:
    """Row-wise."""
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True), np.float64)


def honest(n: int = 4000, classes: int = 4, seed: int = 0) -> tuple[Floats, Ints]:
    """Logits, and labels drawn from their softmax: calibrated by construction."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, classes))
    below = softmax(logits).cumsum(1) < rng.random((n, 1))
    return logits, np.minimum(below.sum(1), classes - 1).astype(np.int64)


def loss(proba: Floats, labels: Ints) -> float:
    """Mean negative log-likelihood."""
    return float(-np.log(proba[np.arange(len(labels)), labels]).mean())


# --- temperature -----------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found(factor: float) -> None:
    """Calibrated logits times a factor need that factor as temperature, and lose nothing."""
    logits, labels = honest()
    found = fit_temperature(logits * factor, labels)
    assert found == pytest.approx(factor, rel=0.06)
    assert found == pytest.approx(factor * fit_temperature(logits, labels), rel=1e-5)


def test_it_is_the_minimum() -> None:
    """No temperature of a fine grid does better."""
    logits, labels = honest(300)
    found = fit_temperature(logits * 2, labels)
    best = loss(softmax(logits * 2 / found), labels)
    for other in np.geomspace(0.1, 15, 200):
        assert loss(softmax(logits * 2 / other), labels) >= best - 1e-12


def test_probabilities_do_as_well_as_logits() -> None:
    """Their logs differ from the logits by a constant per row, which cancels."""
    logits, labels = honest(500)
    proba = softmax(logits * 1.7)
    found = fit_temperature(log_probability(proba), labels)
    assert found == pytest.approx(fit_temperature(logits * 1.7, labels), rel=1e-5)
    assert apply_temperature(proba, 2.0) == pytest.approx(softmax(logits * 1.7 / 2), abs=1e-12)


def test_it_mends_calibration_and_keeps_the_answers() -> None:
    """Log loss and ECE fall; every answer stays."""
    logits, labels = honest()
    proba = softmax(logits * 3)
    mended = apply_temperature(proba, fit_temperature(log_probability(proba), labels))
    before, after = (assess(labels, p, "ABCD", resamples=0).overall for p in (proba, mended))
    assert (mended.argmax(1) == proba.argmax(1)).all()
    for name, share in (("ece", 0.3), ("log_loss", 0.9)):
        small, large = after[name].value, before[name].value
        assert small is not None
        assert large is not None
        assert small < share * large


def test_always_right_has_no_optimum() -> None:
    """The lower end is given where every answer is right, the upper where scores mislead."""
    logits = np.eye(3)[[0, 1, 2, 0]] * 2
    labels = np.array([0, 1, 2, 0], np.int64)
    assert fit_temperature(logits, labels) == pytest.approx(RANGE[0])
    assert fit_temperature(logits, (labels + 1) % 3) == pytest.approx(RANGE[1])


@pytest.mark.parametrize("scale", [5, 50, 500, 1e4])
def test_no_loss_at_all(scale: float) -> None:
    """On a plateau of no loss no temperature is better than the end; nor for logits all alike."""
    labels = np.arange(30) % 3
    assert fit_temperature(np.eye(3)[labels] * scale, labels) == pytest.approx(RANGE[0])
    alike = fit_temperature(np.full((30, 3), 7.3), labels)
    assert alike in (pytest.approx(RANGE[0]), pytest.approx(RANGE[1]))


@given(st.integers(0, 10_000), st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_applied_to_any_probabilities(seed: int, temperature: float) -> None:
    """Rows still sum to 1 and keep their order, zeros and single precision among them."""
    rng = np.random.default_rng(seed)
    proba = softmax(rng.normal(0, 4, (6, 5))).astype(np.float32)
    proba[0] = [0, 0, 1, 0, 0]
    scaled = apply_temperature(proba, temperature)
    assert scaled.sum(1) == pytest.approx(1)
    assert (scaled.argmax(1) == proba.argmax(1)).all()
    assert np.isfinite(scaled).all()
    assert apply_temperature(proba, 1.0) == pytest.approx(proba.astype(np.float64), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf])
def test_no_such_temperature(temperature: float) -> None:
    """It must be a positive number."""
    with pytest.raises(DataError, match="temperature is"):
        apply_temperature(np.full((2, 2), 0.5), temperature)


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (np.zeros((0, 2)), [], "no image"),
        (np.zeros((3, 2)), [0, 1], "2 labels"),
        (np.zeros((2, 2)), [0, 2], r"outside 0\.\.1"),
        (np.array([[0, 1], [np.nan, 0]]), [0, 1], "the first is row 1"),
        (np.array([[0, -np.inf], [1, 0]]), [0, 1], "the first is row 0"),
    ],
)
def test_nothing_to_fit(logits: Floats, labels: list[int], words: str) -> None:
    """Shapes, labels and NaN are named."""
    with pytest.raises(DataError, match=words):
        fit_temperature(logits, np.array(labels, np.int64))


# --- reliability -----------------------------------------------------------------------------


def two_classes(confidence: list[float], right: list[bool]) -> tuple[Ints, Floats]:
    """Answers A of given confidence, and labels that make them right or wrong."""
    top = np.array(confidence)
    return np.array([0 if r else 1 for r in right], np.int64), np.stack([top, 1 - top], 1)


def test_bins_by_hand() -> None:
    """Six images in three bins of two."""
    labels, proba = two_classes(
        [0.95, 0.6, 0.7, 0.9, 0.65, 0.8], [True, False, True, True, True, False]
    )
    found = reliability(labels, proba, bins=3)
    assert [b.count for b in found.bins] == [2, 2, 2]
    assert [b.accuracy for b in found.bins] == [0.5, 0.5, 1.0]
    assert [b.confidence for b in found.bins] == pytest.approx([0.625, 0.75, 0.925])
    assert (found.bins[1].lowest, found.bins[1].highest) == (0.7, 0.8)
    assert found.ece == pytest.approx((0.125 + 0.25 + 0.075) / 3)
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["bins"][0]["count"] == 2


def test_equal_confidences_share_a_bin() -> None:
    """One confidence for all: a single bin, whose gap is the whole error."""
    labels, proba = two_classes([0.9] * 10, [True] * 8 + [False] * 2)
    found = reliability(labels, proba)
    (only,) = found.bins
    assert (only.count, only.accuracy) == (10, 0.8)
    assert found.ece == pytest.approx(0.1)
    # Wilson's interval of 8 of 10, as tabulated.
    assert (only.low, only.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


@given(st.integers(0, 10_000), st.integers(1, 80), st.integers(1, 20), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_bins_are_a_partition(seed: int, n: int, bins: int, decimals: int) -> None:
    """Every image once, by rising confidence, and the order of the images does not matter."""
    rng = np.random.default_rng(seed)
    top = np.round(rng.uniform(0.5, 1, n), decimals)
    labels = rng.integers(0, 2, n)
    proba = np.stack([top, 1 - top], 1)
    found = reliability(labels, proba, bins=bins)
    assert sum(b.count for b in found.bins) == n
    assert len(found.bins) <= bins
    for before, after in zip(found.bins, found.bins[1:], strict=False):
        assert before.highest < after.lowest
    for b in found.bins:
        assert 0 <= b.low <= b.accuracy + 1e-12
        assert b.accuracy - 1e-12 <= b.high <= 1
    gaps = [b.count * abs(b.accuracy - b.confidence) for b in found.bins]
    assert found.ece == pytest.approx(sum(gaps) / n)
    order = rng.permutation(n)
    again = reliability(labels[order], proba[order], bins=bins)
    assert [b.count for b in again.bins] == [b.count for b in found.bins]
    assert again.ece == pytest.approx(found.ece)


def test_bins_without_ties_hold_the_same_number() -> None:
    """150 different confidences in 15 bins: ten each."""
    rng = np.random.default_rng(0)
    labels, proba = two_classes(rng.uniform(0.5, 1, 150).tolist(), [True] * 150)
    assert [b.count for b in reliability(labels, proba).bins] == [10] * 15


def test_a_diagram_of_nothing() -> None:
    """No image and NaN are refused."""
    with pytest.raises(DataError, match="no image"):
        reliability(np.zeros(0, np.int64), np.zeros((0, 2)))
    with pytest.raises(DataError, match="NaN"):
        reliability(np.zeros(1, np.int64), np.full((1, 2), np.nan))
