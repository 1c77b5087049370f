"""The temperature of an exported model: how it is fitted, and when there is none."""

from __future__ import annotations

import numpy as np
import pytest

from biigma_cli.errors import DataError
from biigma_cli.metrics import Floats, Ints, assess
from biigma_cli.runtime.calibration import fit_calibration


def softmax(logits: Floats) -> Floats:
    """Row-wise."""
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True), np.float64)


def overconfident(n: int = 900) -> tuple[Floats, Ints]:
    """Logits three times what the labels were drawn from."""
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 1.5, (n, 4))
    below = softmax(logits).cumsum(1) < rng.random((n, 1))
    return 3 * logits, np.minimum(below.sum(1), 3).astype(np.int64)


def test_what_is_stored_is_what_the_figures_say() -> None:
    """T is near 3; log loss and ECE, before and after, are those of the metrics; both fall."""
    logits, labels = overconfident()
    found = fit_calibration(logits.astype(np.float32), labels)
    assert found is not None
    assert found.temperature == pytest.approx(3, rel=0.1)
    assert found.images == 900
    for sure, proba in (
        (found.before, softmax(logits)),
        (found.after, softmax(logits / found.temperature)),
    ):
        overall = assess(labels, proba, "ABCD", resamples=0).overall
        assert sure.log_loss == pytest.approx(overall["log_loss"].value, rel=1e-4)
        assert sure.ece == pytest.approx(overall["ece"].value, abs=1e-4)
    assert found.after.log_loss < found.before.log_loss
    assert found.after.ece < 0.5 * found.before.ece


def test_plain_form() -> None:
    """What goes into the metadata, and the line that is shown."""
    logits, labels = overconfident()
    found = fit_calibration(logits, labels)
    assert found is not None
    plain = found.to_dict()
    assert (plain["temperature"], plain["part"], plain["n"]) == (found.temperature, "val", 900)
    assert plain["before"] == {"log_loss": found.before.log_loss, "ece": found.before.ece}
    assert plain["after"]["ece"] == found.after.ece
    assert (
        f"T = {found.temperature:.3f}: log loss {found.before.log_loss:.4f} ->" in found.summary()
    )


def test_no_temperature_is_best() -> None:
    """Where every answer is right the surer the better, where all are wrong the less sure."""
    labels = np.arange(30, dtype=np.int64) % 3
    logits = 2.0 * np.eye(3)[labels]
    assert fit_calibration(logits, labels) is None
    assert fit_calibration(logits, (labels + 1) % 3) is None


def test_nan() -> None:
    """A network that gives NaN cannot be calibrated."""
    logits, labels = overconfident(50)
    logits[7, 1] = np.nan
    with pytest.raises(DataError, match="row 7"):
        fit_calibration(logits, labels)
