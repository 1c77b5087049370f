"""The views that an input check is fitted on."""

from __future__ import annotations

import numpy as np
import pytest

from biigma_cli.runtime.input_check import FITTED_VIEWS, JUDGED_VIEWS, _views


def pictures(count: int, side: int = 64) -> np.ndarray:
    """A dark disc on light skin, each a little different."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    disc = 1 / (1 + np.exp(40 * (np.hypot(x, y) - 0.3)))
    skin = np.array([220.0, 180, 160])
    rng = np.random.default_rng(0)
    return np.stack(
        [
            (skin - disc[..., None] * 120 + rng.normal(0, 2, (side, side, 3))).clip(0, 255)
            for _ in range(count)
        ]
    ).astype(np.uint8)


@pytest.mark.parametrize("view", FITTED_VIEWS)
def test_a_view_of_each_image(view: str) -> None:
    """As many, of the same form, the same ones each time; other than the picture but for `none`."""
    pixels = pictures(40)
    first, again = (np.concatenate(list(_views(pixels, view))) for _ in range(2))
    assert first.shape == pixels.shape
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    changed = (first != pixels).any((1, 2, 3))
    assert not changed.any() if view == "none" else changed.all()
    assert set(JUDGED_VIEWS) <= set(FITTED_VIEWS)


def test_compressed_is_a_jpeg() -> None:
    """The picture stays; blocks of 8 x 8 show at their edges, more in some than in others."""
    pixels = pictures(60)
    found = np.concatenate(list(_views(pixels, "compressed"))).astype(float)
    assert np.abs(found - pixels).mean() < 3
    steps = np.abs(np.diff(found.mean(3), axis=2)).mean((0, 1))
    edges = np.arange(63) % 8 == 7
    assert steps[edges].mean() > 1.1 * steps[~edges].mean()
    lost = np.abs(found - pixels).mean((1, 2, 3))
    assert lost.max() > 1.5 * lost.min()


def test_paint_keeps_clear_of_the_middle() -> None:
    """Several kinds of artefact; the lesion in the middle is covered by hair and flash at most."""
    pixels = pictures(60)
    painted = np.concatenate(list(_views(pixels, "painted"))).astype(int)
    difference = np.abs(painted - pixels).max(3)
    assert (difference.max((1, 2)) > 20).mean() > 0.9
    middle = difference[:, 26:38, 26:38].max((1, 2)) > 3
    assert 0 < middle.mean() < 0.4
    # Black corners, coloured ink and white glare are not all the same.
    means = (painted - pixels).mean((1, 2))
    assert means.max() > 1
    assert means.min() < -10
