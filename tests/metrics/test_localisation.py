"""Maps against masks: hand-worked figures, agreement with scikit-learn, intervals by lesion."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from biigma_cli.errors import DataError
from biigma_cli.metrics.localisation import (
    LOCALISATION,
    RANKED,
    REFERENCES,
    localise,
    map_figures,
    reference_maps,
)

N, H, W = 7, 3, 5
CODES = ("MEL", "NV", "DF")


def one(value: Any, cover: Any, centre: Any = None) -> dict[str, float]:
    """Figures of a single map."""
    cover_hw = np.array(cover, np.float64)
    centre_hw = cover_hw > 0.5 if centre is None else np.array(centre, np.bool_)
    found = map_figures(np.array([value], np.float64), cover_hw[None], centre_hw[None])
    assert tuple(found) == LOCALISATION
    return {name: float(values[0]) for name, values in found.items()}


def sample(seed: int = 0) -> dict[str, Any]:
    """Masks with part of each image covered, labels of two of three classes."""
    rng = np.random.default_rng(seed)
    cover = rng.uniform(0.05, 0.95, (N, H, W))
    return {
        "cover_nhw": cover,
        "centre_nhw": cover > 0.5,
        "label_n": np.array([0, 1, 1, 0, 1, 1, 0]),
        "codes": CODES,
    }


# --- figures of an image ---------------------------------------------------------------------


def test_by_hand() -> None:
    """Energy 3 of 6 in a quarter of the area; one of three cells beside is higher."""
    found = one([[3, 4], [-1, 0]], [[1, 0], [0, 0]])
    assert found["pointing"] == 0
    assert found["energy"] == pytest.approx(3 / 7)
    assert found["lift"] == pytest.approx(12 / 7)
    assert found["auc"] == pytest.approx(2 / 3)


def test_part_of_a_cell_by_hand() -> None:
    """Half of the first cell is lesion: its halves are equal to one another, and above the rest."""
    found = one([[2, 1]], [[0.5, 0]], [[True, False]])
    assert found == pytest.approx({"pointing": 1, "energy": 1 / 3, "lift": 4 / 3, "auc": 5 / 6})


def test_ties() -> None:
    """Of three highest cells one points at the lesion; equal values count a half."""
    found = one([[1, 1], [1, 0]], [[1, 0], [0, 0]])
    assert found["pointing"] == pytest.approx(1 / 3)
    assert found["auc"] == pytest.approx((0.5 + 0.5 + 1) / 3)


def test_nothing_positive() -> None:
    """There is no energy to share out; the order still says something."""
    found = one([[-1, -2], [-3, 0]], [[0, 1], [0, 0]])
    assert np.isnan(found["energy"])
    assert np.isnan(found["lift"])
    assert found["auc"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("share", [0, 1])
def test_no_lesion_and_nothing_else(share: int) -> None:
    """Nothing can be told apart."""
    assert np.isnan(one([[1, 2]], [[share, share]])["auc"])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), levels=st.integers(2, 40))
def test_as_scikit_learn_over_pixels(seed: int, levels: int) -> None:
    """The AUC of cells by cover is that of all pixels, each at its cell's value."""
    rng = np.random.default_rng(seed)
    factor = 4
    mask = rng.random((H * factor, W * factor)) < rng.uniform(0.1, 0.9)
    mask[0, :2] = True, False
    cover = mask.reshape(H, factor, W, factor).mean((1, 3))
    value = rng.integers(0, levels, (H, W)).astype(np.float64)
    pixels = value.repeat(factor, 0).repeat(factor, 1)
    found = one(value, cover)
    assert found["auc"] == pytest.approx(roc_auc_score(mask.ravel(), pixels.ravel()))
    if value.any():
        assert found["energy"] == pytest.approx(pixels[mask].sum() / pixels.sum())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_order_alone(seed: int) -> None:
    """A rising function changes neither pointing game nor AUC, and scale no share of energy."""
    rng = np.random.default_rng(seed)
    given_ = sample(seed % 1000)
    values = rng.normal(0, 2, (N, H, W)).round(1)
    masks = given_["cover_nhw"], given_["centre_nhw"]
    plain = map_figures(values, *masks)
    bent = map_figures(np.exp(values), *masks)
    scaled = map_figures(4 * values, *masks)
    for name in ("pointing", "auc"):
        np.testing.assert_array_equal(plain[name], bent[name])
    np.testing.assert_allclose(plain["energy"], scaled["energy"])


# --- references ------------------------------------------------------------------------------


def test_references() -> None:
    """Chance is where it should be; the Gaussian is even and highest in the middle."""
    given_ = sample()
    maps = reference_maps(given_["cover_nhw"])
    assert tuple(maps) == REFERENCES
    gaussian = maps["centre"][0]
    np.testing.assert_array_equal(gaussian, gaussian[::-1, ::-1])
    assert gaussian.argmax() == (H * W) // 2
    # Half the side off the middle, at 0.25 of the side: two standard deviations.
    edge = reference_maps(np.zeros((1, 1, 5)))["centre"][0, 0]
    assert edge[0] == pytest.approx(np.exp(-0.5 * (0.4 / 0.25) ** 2))
    # Cells that lie half a cell to the upper left: the square's middle is between the last two.
    moved = reference_maps(np.zeros((1, 1, 4)), -0.5)["centre"][0, 0]
    assert moved.argmax() == 2
    assert moved[1] == moved[3]
    uniform = map_figures(maps["uniform"], given_["cover_nhw"], given_["centre_nhw"])
    np.testing.assert_allclose(uniform["auc"], 0.5)
    np.testing.assert_allclose(uniform["lift"], 1)
    np.testing.assert_allclose(uniform["energy"], given_["cover_nhw"].mean((1, 2)))
    np.testing.assert_allclose(uniform["pointing"], given_["centre_nhw"].mean((1, 2)))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_nothing_beats_the_mask(seed: int) -> None:
    """Its AUC is the highest that the cells allow."""
    given_ = sample(seed % 1000)
    cover, centre = given_["cover_nhw"], given_["centre_nhw"]
    values = np.random.default_rng(seed).random((N, H, W))
    best = map_figures(cover, cover, centre)["auc"]
    assert (map_figures(values, cover, centre)["auc"] <= best + 1e-12).all()


# --- over images -----------------------------------------------------------------------------


def test_means() -> None:
    """Overall and by class they are plain means, differences those of the paired figures."""
    given_ = sample()
    values = np.random.default_rng(1).normal(size=(N, H, W))
    values[2] = -1  # no energy
    found = localise({"mine": values}, **given_, resamples=50)
    assert tuple(found) == ("mine", *REFERENCES)
    mine = map_figures(values, given_["cover_nhw"], given_["centre_nhw"])
    centre = map_figures(
        reference_maps(given_["cover_nhw"])["centre"], given_["cover_nhw"], given_["centre_nhw"]
    )
    own = found["mine"]
    is_nv = given_["label_n"] == 1
    for name in LOCALISATION:
        assert own.overall[name].value == pytest.approx(np.nanmean(mine[name]))
        apart = mine[name] - centre[name]
        assert own.over_centre[name].value == pytest.approx(np.nanmean(apart))
        assert own.per_class["NV"][name].value == pytest.approx(np.nanmean(mine[name][is_nv]))
        assert own.per_class_over_centre["NV"][name].value == pytest.approx(
            np.nanmean(apart[is_nv])
        )
        assert own.overall[name].low <= own.overall[name].value <= own.overall[name].high
        absent = own.per_class["DF"][name]
        assert (absent.value, absent.why) == (None, "no image of this class")
        assert found["centre"].over_centre[name].value == 0
    assert (own.without_energy, found["uniform"].without_energy) == (1, 0)
    json.dumps(own.to_dict(), allow_nan=False)


def test_intervals_are_by_lesion() -> None:
    """Images in pairs that agree are half as many: the interval is wider by the root of two."""
    rng = np.random.default_rng(0)
    cover = np.zeros((200, 1, 2))
    cover[:, 0, 0] = 1
    values = rng.random((100, 1, 2)).repeat(2, 0)
    label_n = np.zeros(200, np.int64)
    common = {"label_n": label_n, "codes": ("A", "B"), "resamples": 1000}
    widths = []
    for groups in (None, [str(i // 2) for i in range(200)]):
        figure = localise({"m": values}, cover, cover > 0.5, groups=groups, **common)["m"]
        pointing = figure.overall["pointing"]
        widths.append(pointing.high - pointing.low)
    assert widths[1] / widths[0] == pytest.approx(np.sqrt(2), rel=0.15)


def test_a_class_of_few_lesions_has_no_interval() -> None:
    """Images of one lesion agree in every resample; ten lesions are enough, each with a value."""
    rng = np.random.default_rng(0)
    n = 34
    cover = rng.uniform(0.05, 0.95, (n, H, W))
    values = rng.random((n, H, W))
    values[20] = -1  # of the ten lesions of NV one has no energy
    label_n = np.array([0] * 20 + [1] * 10 + [2] * 4)
    groups = [f"L{i}" for i in range(30)] + ["one"] * 4
    found = localise(
        {"m": values}, cover, cover > 0.5, label_n, CODES, groups=groups, resamples=50
    )["m"]
    for by_class in (found.per_class, found.per_class_over_centre):
        for name in LOCALISATION:
            few = by_class["DF"][name]
            assert few.value is not None
            assert (few.low, few.high, few.why) == (None, None, "fewer than 10 lesions")
            assert by_class["MEL"][name].low is not None
        assert by_class["NV"]["auc"].low is not None
        assert by_class["NV"]["energy"].why == "fewer than 10 lesions"


def test_paired_and_repeatable() -> None:
    """The same resamples each time: a map that always equals the Gaussian differs by nothing."""
    given_ = sample()
    gaussian = reference_maps(given_["cover_nhw"])["centre"]
    first, second = (localise({"m": gaussian}, **given_, resamples=40) for _ in range(2))
    assert first["m"].to_dict() == second["m"].to_dict()
    for figure in first["m"].over_centre.values():
        assert (figure.value, figure.low, figure.high) == (0, 0, 0)
    assert first["m"].overall == first["centre"].overall


def test_the_order_of_another() -> None:
    """Figures of rank come from the finer map, energy from the map itself."""
    given_ = sample()
    fine = np.random.default_rng(2).random((N, H, W))
    coarse = fine.round(1)
    apart = localise({"fine": fine, "coarse": coarse}, **given_, resamples=30)
    order = {"coarse": "fine"}
    found = localise({"fine": fine, "coarse": coarse}, **given_, order_of=order, resamples=30)
    assert found["fine"] == apart["fine"]
    assert apart["coarse"].overall["auc"] != apart["fine"].overall["auc"]
    for name in LOCALISATION:
        source = apart["fine" if name in RANKED else "coarse"]
        for kind in ("overall", "over_centre"):
            assert getattr(found["coarse"], kind)[name] == getattr(source, kind)[name]
        for code in CODES:
            assert found["coarse"].per_class[code][name] == source.per_class[code][name]


def test_no_resamples() -> None:
    """Figures alone; progress is told of resamples only."""
    told: list[tuple[int, int]] = []
    given_ = sample()
    values = np.ones((N, H, W))
    found = localise({"m": values}, **given_, resamples=0, progress=lambda *p: told.append(p))
    assert found["m"].overall["auc"].value == pytest.approx(0.5)
    assert found["m"].overall["auc"].low is None
    assert told == []
    localise({"m": values}, **given_, resamples=150, progress=lambda *p: told.append(p))
    assert told == [(100, 150), (150, 150)]


def test_never_positive() -> None:
    """A figure that no image has is None, and says why."""
    found = localise({"m": -np.ones((N, H, W))}, **sample(), resamples=30)["m"]
    assert found.without_energy == N
    assert (found.overall["energy"].value, found.overall["energy"].why) == (
        None, "not defined for any image",
    )  # fmt: skip
    assert found.overall["auc"].value == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_maps(bad: float) -> None:
    """No figure is made of NaN."""
    values = np.ones((N, H, W))
    values[3, 0, 0] = bad
    with pytest.raises(DataError, match=r"1 of 7 maps \(m\) hold NaN or infinity"):
        localise({"m": values}, **sample())


def test_no_image() -> None:
    """Nothing to average."""
    none = np.zeros((0, H, W))
    with pytest.raises(DataError, match="no image"):
        localise({}, none, none > 0, np.zeros(0, np.int64), CODES)
