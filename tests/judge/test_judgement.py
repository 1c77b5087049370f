"""What a judgement counts."""

from __future__ import annotations

import numpy as np

from biigma_cli.judge.candidate import Answers
from biigma_cli.judge.judgement import _flagged
from biigma_cli.metrics import score_weight


def test_images_without_weight_are_not_flagged() -> None:
    """The official image of weight 0 is in no figure, so not in the input check's either."""
    ids = ("ISIC_0035068", "a", "b", "c")
    proba = np.array([[0.1, 0.9], [0.9, 0.1], [0.1, 0.9], [0.2, 0.8]], np.float32)
    novelty = np.array([2.0, 0.1, 0.1, 2.0])
    found = _flagged(Answers(proba, novelty), np.array([0, 0, 1, 1]), score_weight(ids))
    assert found is not None
    assert (found.n, found.flagged, found.accuracy) == (3, 1, 1.0)
