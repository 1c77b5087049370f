"""Whether two pictures show one lesion: features, the metric's fit, its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from biigma_cli.config import ModelConfig
from biigma_cli.core.likeness import (
    FRAME,
    MIDDLE,
    NEIGHBOURS,
    SKIPPED,
    LesionMetric,
    Views,
    fit_metric,
    load_metric,
    save_metric,
)
from biigma_cli.errors import ModelFileError


@pytest.fixture(scope="module")
def views() -> Views:
    torch.manual_seed(0)
    config = ModelConfig(trunk="mobilenet_v2", weights="none")
    return Views(config, torch.device("cpu"))


def some_metric(dimensions: int = 12, rank: int = 5, seed: int = 0) -> LesionMetric:
    rng = np.random.default_rng(seed)
    cohort = rng.normal(size=(40, rank)).astype(np.float32)
    return LesionMetric(
        weights="none",
        trunk="mobilenet_v2",
        side=64,
        mean_C=rng.normal(size=dimensions).astype(np.float32),
        projection_CK=rng.normal(size=(dimensions, rank)).astype(np.float32),
        cohort_MK=cohort / np.linalg.norm(cohort, axis=1, keepdims=True),
        stated={"source": "a test", "chance": [[0.1, 0.5]]},
    )


def test_features_of_the_middle_are_those_of_the_cut_picture(views: Views) -> None:
    side, kept = 160, round(160 * MIDDLE)
    edge = (side - kept) // 2
    # A picture that is one colour in its middle, and another around it.
    picture = np.full((2, side, side, 3), 40, np.uint8)
    picture[:, edge : edge + kept, edge : edge + kept] = 200
    whole, middle = views(picture)
    plain = views(np.full((2, side, side, 3), 200, np.uint8))
    assert whole.shape == middle.shape == (2, sum(views.channels)) == (2, 192 + 576)
    np.testing.assert_allclose(middle, plain[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(plain[0], plain[1], rtol=1e-4, atol=1e-5)
    assert np.abs(whole - middle).max() > 1e-3


def test_features_do_not_hang_on_the_batch(views: Views) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), np.uint8)
    together, apart = views(pixels)[0], [views(pixels[i : i + 1])[0][0] for i in range(3)]
    np.testing.assert_allclose(together, np.stack(apart), rtol=1e-4, atol=1e-5)


def test_the_fit_undoes_what_differs_within_lesions() -> None:
    rng = np.random.default_rng(0)
    count, dimensions = 300, 20
    nuisance = np.linalg.qr(rng.normal(size=(dimensions, 4)))[0]
    lesion = np.repeat(np.arange(count), 2)
    own = rng.normal(size=(count, dimensions))[lesion]

    def taken() -> np.ndarray:
        light = 8 * rng.normal(size=(len(lesion), 4)) @ nuisance.T
        return (own + light + 0.1 * rng.normal(size=own.shape)).astype(np.float32)

    pictures = taken()
    fitted = lesion < 200  # the rest is judged on
    mean, projection = fit_metric(
        np.concatenate([pictures[fitted], pictures[fitted]]),
        np.tile(lesion[fitted], 2),
        rank=16,
        ridge=1e-3,
    )

    def recall(features: np.ndarray) -> float:
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        cosine = unit @ unit.T
        np.fill_diagonal(cosine, -2)
        left = lesion[~fitted]
        return float((left[cosine.argmax(1)] == left).mean())

    assert projection.shape == (dimensions, 16)
    assert recall(pictures[~fitted] - mean) < 0.5
    assert recall((pictures[~fitted] - mean) @ projection) > 0.97


def test_no_fit_without_two_pictures_of_a_lesion() -> None:
    features = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    with pytest.raises(ValueError, match="two pictures"):
        fit_metric(features, np.tile(np.arange(10), 2))


@pytest.mark.parametrize("pool", [False, True])
def test_offset_is_half_the_mean_of_the_nearest_others(pool: bool) -> None:
    metric = some_metric()
    whole, middle = (
        metric.project(np.random.default_rng(n).normal(size=(7, 12)).astype(np.float32))
        for n in (1, 2)
    )
    whole[3] = metric.cohort_MK[8]  # in the cohort itself
    whole[5] = whole[4] + 0.05 * whole[2]  # another frame of the same picture
    whole[5] /= np.linalg.norm(whole[5])
    expected = []
    for n, (w, m) in enumerate(zip(whole, middle, strict=True)):
        values = [max(float(w @ c), float(m @ c)) for c in metric.cohort_MK]
        values = [v for v in values if v < 0.995]
        if pool:
            own = [float(max(w @ whole[k], w @ middle[k], m @ whole[k])) for k in range(7)]
            assert max(own[:n] + own[n + 1 :]) > FRAME or n not in (4, 5)
            values += [v for v in own if v < FRAME]
        expected.append(np.mean(sorted(values)[-NEIGHBOURS - SKIPPED : -SKIPPED]) / 2)
    np.testing.assert_allclose(metric.offset(whole, middle, pool=pool), expected, rtol=1e-5)
    assert metric.offset(whole[:0], middle[:0]).shape == (0,)


def test_many_frames_of_one_picture_do_not_hide_each_other() -> None:
    metric = some_metric()
    rng = np.random.default_rng(5)
    frames = metric.project(
        (rng.normal(size=12) + 0.05 * rng.normal(size=(60, 12))).astype(np.float32)
    )
    assert (frames @ frames.T).min() > FRAME
    alone = metric.offset(frames[:1], frames[:1])
    np.testing.assert_allclose(metric.offset(frames, frames), alone[0], atol=0.05)


def test_projections_have_unit_length() -> None:
    metric = some_metric()
    projected = metric.project(np.random.default_rng(3).normal(size=(5, 12)).astype(np.float32))
    np.testing.assert_allclose(np.linalg.norm(projected, axis=1), 1, rtol=1e-5)
    assert np.isfinite(metric.project(metric.mean_C[None])).all()


def test_a_metric_comes_back_from_its_file(tmp_path: Path) -> None:
    metric = some_metric()
    save_metric(tmp_path / "m.safetensors", metric)
    back = load_metric(tmp_path / "m.safetensors")
    assert (back.weights, back.trunk, back.side) == ("none", "mobilenet_v2", 64)
    assert back.stated == metric.stated
    np.testing.assert_array_equal(back.mean_C, metric.mean_C)
    np.testing.assert_allclose(back.projection_CK, metric.projection_CK, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(back.cohort_MK, metric.cohort_MK, atol=1e-3)


def test_files_that_are_no_metric(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(ModelFileError, match="no lesion metric at"):
        load_metric(path)
    path.write_bytes(b"not a tensor file")
    with pytest.raises(ModelFileError, match="damaged"):
        load_metric(path)
    save_file({"mean": torch.zeros(3)}, path)
    with pytest.raises(ModelFileError, match="no lesion metric"):
        load_metric(path)
    save_metric(path, some_metric())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFileError, match="damaged"):
        load_metric(path)
    # What a reader of JSON accepts may still lack a part.
    path.write_bytes(whole.replace(b'\\"side\\"', b'\\"sidE\\"'))
    with pytest.raises(ModelFileError, match="damaged"):
        load_metric(path)
