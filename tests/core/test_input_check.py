"""The input check's distance, worked out another way, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from biigma_cli.core.input_check import fit_input_check, pool


def features(n: int, channels: int = 6, seed: int = 0) -> torch.Tensor:
    """Correlated features of one kind, `(n, C)`."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).normal(size=(channels, channels))
    return torch.from_numpy(rng.normal(size=(n, channels)) @ mixing + 3).float()


@pytest.mark.parametrize("components", [1, 3, 6])
def test_distance_is_that_of_the_model(components: int) -> None:
    """With all components Mahalanobis' own; with fewer, that of the covariance they stand for."""
    known = features(500)
    check = fit_input_check(known, components=components)
    x = known.double().numpy()
    z = (x - x.mean(0)) / (x.std(0) + 1e-3 * x.std() + 1e-12)
    value, vector = np.linalg.eigh(z.T @ z / len(z))
    value[: 6 - components] = value[: 6 - components].mean() if components < 6 else value[:0]
    covariance = vector @ np.diag(value) @ vector.T
    wanted = np.einsum("ni,ij,nj->n", z, np.linalg.inv(covariance), z)
    np.testing.assert_allclose(check.distance(known).numpy(), wanted, rtol=1e-3)


def test_another_kind_is_far() -> None:
    """Features of the same means and spreads that go together otherwise are far off."""
    known = features(2000)
    check = fit_input_check(known)
    near = check.distance(features(500, seed=1))
    shuffled = torch.stack([c[torch.randperm(2000)] for c in known.T], 1)
    assert check.distance(shuffled).median() > torch.quantile(near, 0.95)


def test_limit_is_one() -> None:
    """Novelty is the distance over the limit, of features averaged over positions."""
    check = fit_input_check(features(100))
    check.limit.fill_(4.0)
    early = torch.rand(3, 6, 5, 5).half()
    assert torch.allclose(check(early), check.distance(pool(early)) / 4)
    assert torch.allclose(pool(early), early.float().mean((2, 3)))


def test_few_images_and_dead_channels() -> None:
    """Fewer images than channels, or a channel that never moves, give finite distances."""
    few = features(4)
    few[:, 2] = 0.5
    check = fit_input_check(few)
    assert torch.isfinite(check.distance(features(10, seed=2))).all()
    with pytest.raises(ValueError, match="1 images"):
        fit_input_check(features(1))
