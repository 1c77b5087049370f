"""Perturbed pictures, whose backgrounds they get, masks, and figures of answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from biigma_cli.data.manifest import Manifest, Record
from biigma_cli.data.perturb import (
    PERTURBATIONS,
    Answers,
    Scene,
    choose_donors,
    choose_images,
    difference,
    effects,
    lesion_masks,
    mean_with_interval,
    perturb,
)
from biigma_cli.data.synthetic import SyntheticOptions, plan, render_clean
from biigma_cli.errors import DataError
from tests.data.samples import encode, manifest, record

SIDE = 64


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Four synthetic lesions on clean skin."""
    samples = plan(SyntheticOptions(count=60, side=SIDE))[:4]
    return [Scene(s.image_id, *render_clean(s, SIDE)) for s in samples]


def changed(name: str, scenes: list[Scene], seed: int = 0) -> list[list[np.ndarray]]:
    """Every strength of a perturbation, for each scene; donors are the neighbours."""
    return [
        list(
            perturb(name, s, seed=seed, donor=scenes[k - 1] if PERTURBATIONS[name].donor else None)
        )
        for k, s in enumerate(scenes)
    ]


# --- pictures --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_the_same_for_the_same_image(scenes: list[Scene], name: str) -> None:
    """Whatever else is perturbed, and in whatever order; another seed gives another painting."""
    first = changed(name, scenes)
    again = [
        list(perturb(name, Scene(s.image_id, s.pixels.copy(), s.lesion), seed=0,
                     donor=scenes[k - 1] if PERTURBATIONS[name].donor else None))
        for k, s in reversed(list(enumerate(scenes)))
    ][::-1]  # fmt: skip
    np.testing.assert_array_equal(first, again)
    drawn = PERTURBATIONS[name].group == "painted" or name == "colour"
    other = changed(name, scenes, seed=1)
    assert np.array_equal(first, other) is not drawn


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_shapes_and_strengths(scenes: list[Scene], name: str) -> None:
    """A picture for each strength, each farther from the original than the one before."""
    for scene, steps in zip(scenes, changed(name, scenes), strict=True):
        assert len(steps) == PERTURBATIONS[name].strengths
        for picture in steps:
            assert picture.shape == (SIDE, SIDE, 3)
            assert picture.dtype == np.uint8
        apart = [np.abs(p.astype(int) - scene.pixels).mean() for p in steps]
        assert apart[0] > 0
        assert apart == sorted(apart)
        assert len(set(apart)) == len(apart)


@pytest.mark.parametrize(
    "name", [n for n, p in PERTURBATIONS.items() if p.group in ("background", "painted")]
)
def test_the_lesion_stays(scenes: list[Scene], name: str) -> None:
    """To the bit; hair alone may cross it."""
    kept = [
        np.array_equal(picture[scene.lesion], scene.pixels[scene.lesion])
        for scene, steps in zip(scenes, changed(name, scenes), strict=True)
        for picture in steps
    ]
    assert all(kept) is (name != "hair")


def test_background_is_the_donors(scenes: list[Scene]) -> None:
    """Far from both lesions the donor's pixels stand as they are; its lesion is gone."""
    own, donor = scenes[0], scenes[1]
    (picture,) = perturb("background-other", own, donor=donor)
    far = (own.level < -0.3) & (donor.level < -0.3)
    assert far.any()
    np.testing.assert_array_equal(picture[far], donor.pixels[far])
    # Where the donor's lesion was, off this one, there is its skin.
    was = (donor.level > 0.05) & (own.level < -0.2)
    skin = donor.pixels[donor.level < -0.2].mean(0)
    if was.any():
        before = np.abs(donor.pixels[was].mean(0) - skin).sum()
        assert np.abs(picture[was].mean(0) - skin).sum() < before


def test_controls(scenes: list[Scene]) -> None:
    """A removed lesion leaves skin, a flat background one colour beside the lesion."""
    for scene in scenes:
        skin = scene.pixels[scene.level < -0.15].mean(0)
        (gone,) = perturb("lesion-removed", scene)
        before = np.abs(scene.pixels[scene.lesion] - skin).mean()
        assert np.abs(gone[scene.lesion] - skin).mean() < before / 2
        np.testing.assert_array_equal(gone[scene.level < -0.15], scene.pixels[scene.level < -0.15])
        (flat,) = perturb("skin-mean", scene)
        np.testing.assert_array_equal(flat[scene.lesion], scene.pixels[scene.lesion])
        assert flat[scene.level < -0.15].std(0).max() < 1
        np.testing.assert_allclose(flat[scene.level < -0.15][0], skin, atol=6)


def test_misuse(scenes: list[Scene]) -> None:
    """A background needs a donor."""
    with pytest.raises(ValueError, match="donor"):
        perturb("background-same", scenes[0])
    with pytest.raises(KeyError):
        perturb("glitter", scenes[0])


def test_a_lesion_at_the_border(scenes: list[Scene]) -> None:
    """Lesions that touch the border, or are one pixel, are no trouble; odd sides neither."""
    pixels = scenes[0].pixels[:37, :37]
    for box in ((slice(0, 20), slice(0, 37)), (slice(5, 6), slice(7, 8)), (slice(1, 37),) * 2):
        lesion = np.zeros((37, 37), bool)
        lesion[box] = True
        scene = Scene("a", np.ascontiguousarray(pixels), lesion)
        for name in PERTURBATIONS:
            for picture in perturb(name, scene, donor=scene):
                assert picture.shape == (37, 37, 3)


# --- who ---------------------------------------------------------------------------------------


def records(count: int = 60) -> list[Record]:
    """Every third lesion has two images."""
    codes = ("MEL", "NV", "NV", "BCC")
    made = []
    for lesion in range(count):
        for copy in range(2 if lesion % 3 == 0 else 1):
            made.append(record(f"I{lesion:03}{copy}", codes[lesion % 4], f"L{lesion}"))
    return made


def test_donors() -> None:
    """Another lesion, of the class asked for, with skin to give; the same in any company."""
    pool = records()
    by_id = {r.image_id: r for r in pool}
    area = dict.fromkeys(by_id, 0.2) | {"I0010": 0.9}
    for same in (True, False):
        donors = choose_donors(pool, pool, area, same_class=same)
        assert set(donors) == set(by_id)
        for own, other in donors.items():
            assert by_id[own].lesion_id != by_id[other].lesion_id
            assert (by_id[own].label == by_id[other].label) is same
            assert other != "I0010"
        few = choose_donors(pool[5:1:-1], pool[::-1], area, same_class=same)
        assert few == {r.image_id: donors[r.image_id] for r in pool[2:6]}
        assert choose_donors(pool, pool, area, same_class=same, seed=1) != donors
    # Each other class is as likely, though one is twice as common.
    taken = [by_id[d].label for i, d in donors.items() if by_id[i].label == "MEL"]
    assert 0.25 < taken.count("BCC") / len(taken) < 0.75


def test_no_donor() -> None:
    """The only lesion of a class has none of its class."""
    pool = [record("a", "MEL", "1"), record("b", "MEL", "1"), record("c", "NV", "2")]
    area = dict.fromkeys("abc", 0.1)
    assert choose_donors(pool, pool, area, same_class=True) == {}
    assert choose_donors(pool, pool, area, same_class=False)["c"] in "ab"


def test_choice_of_images() -> None:
    """Whole lesions, no more than asked for, whatever the order; all where there are no more."""
    pool = records()
    chosen = choose_images(pool, 31)
    assert 30 <= len(chosen) <= 31
    for lesion in {r.lesion_id for r in chosen}:
        assert all(r in chosen for r in pool if r.lesion_id == lesion)
    assert set(choose_images(pool[::-1], 31)) == set(chosen)
    assert set(choose_images(pool, 31, seed=1)) != set(chosen)
    assert choose_images(pool, None) == choose_images(pool, 1000) == tuple(pool)


# --- masks -------------------------------------------------------------------------------------


def masked(folder: Path, count: int = 14) -> Manifest:
    """Pictures of 40x30 whose masks are their left half."""
    made = []
    for i in range(count):
        name = f"I{i:02}"
        (folder / f"{name}.png").write_bytes(encode(Image.new("RGB", (40, 30), (i, 90, 80))))
        half = np.zeros((30, 40), bool)
        half[:, :20] = True
        (folder / f"{name}_m.png").write_bytes(encode(Image.fromarray(half)))
        plain = record(name, "NV", f"L{i}", path=f"{name}.png")
        made.append(dataclasses.replace(plain, mask=f"{name}_m.png"))
    return manifest(made, root=folder)


def ids(of: Manifest) -> list[str]:
    """All of them."""
    return [r.image_id for r in of.records]


def replace_mask(folder: Path, name: str, value: np.ndarray) -> None:
    """Another mask for an image."""
    (folder / f"{name}_m.png").write_bytes(encode(Image.fromarray(value)))


@pytest.mark.parametrize(("rule", "share"), [("squash", 0.5), ("crop", 0.5), ("pad", 0.375)])
def test_masks_move_as_their_pictures(tmp_path: Path, rule: str, share: float) -> None:
    """Under every resize rule; bars are no lesion."""
    found = lesion_masks(masked(tmp_path, 1), ["I00"], 32, rule=rule)
    mask = found["I00"]
    assert mask.shape == (32, 32)
    assert mask.dtype == np.bool_
    assert found.area["I00"] == pytest.approx(share, abs=0.02)
    assert mask[16, :15].all()
    assert not mask[16, 17:].any()
    assert mask[0, 0] == (rule != "pad")


def test_masks_that_cannot_be_used(tmp_path: Path) -> None:
    """Missing, empty and full ones and pictures are counted; 0 and 1 are read as well."""
    data = masked(tmp_path, 5)
    replace_mask(tmp_path, "I01", np.zeros((30, 40), np.uint8))
    replace_mask(tmp_path, "I02", np.full((30, 40), 255, np.uint8))
    replace_mask(tmp_path, "I04", np.tile(np.arange(60, 220, 4, dtype=np.uint8), (30, 1)))
    ones = np.zeros((30, 40), np.uint8)
    ones[:10] = 1
    replace_mask(tmp_path, "I03", ones)
    bare = dataclasses.replace(data.records[0], mask="")
    data = dataclasses.replace(data, records=(bare, *data.records[1:]))
    seen: list[tuple[int, int]] = []
    found = lesion_masks(data, ids(data), 24, progress=lambda *a: seen.append(a))
    assert (found.missing, found.empty, found.filled) == (("I00",), ("I01",), ("I02",))
    assert found.pictures == ("I04",)
    assert found.ids == ("I03",)
    assert found.area["I03"] == pytest.approx(1 / 3, abs=0.02)
    assert seen[-1] == (4, 4)
    with pytest.raises(DataError, match=r"1 are empty, 1 fill .*, 1 are pictures") as caught:
        lesion_masks(data, ["I01", "I02", "I04"], 24)
    assert caught.value.fix
    with pytest.raises(DataError, match="none of 1 images of isic18 has a lesion mask"):
        lesion_masks(data, ["I00"], 24)


def test_masks_of_another_shape(tmp_path: Path) -> None:
    """Another scale is none; of another aspect the first ten are named, the rest counted."""
    data = masked(tmp_path)
    drawn = lesion_masks(data, ["I00"], 24)["I00"]
    with Image.open(tmp_path / "I00_m.png") as small:
        large = small.resize((2 * small.width, 2 * small.height), Image.Resampling.NEAREST)
    large.save(tmp_path / "I00_m.png")
    assert np.array_equal(lesion_masks(data, ["I00"], 24)["I00"], drawn)
    for i in range(1, 13):
        replace_mask(tmp_path, f"I{i:02}", np.full((30, 60), 255, np.uint8))
    with pytest.raises(DataError) as caught:
        lesion_masks(data, ids(data), 24)
    told = caught.value.message
    assert told.startswith("12 lesion masks")
    assert all(f"I{i:02}" in told for i in range(1, 11))
    assert "I11" not in told
    assert "2 more" in told


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_masks_that_are_gone_or_damaged(tmp_path: Path, content: bytes | None) -> None:
    """The image is named."""
    data = masked(tmp_path, 3)
    if content is None:
        (tmp_path / "I01_m.png").unlink()
    else:
        (tmp_path / "I01_m.png").write_bytes(content)
    with pytest.raises(DataError, match="I01"):
        lesion_masks(data, ids(data), 24)


# --- figures -----------------------------------------------------------------------------------

LABELS = np.array([0, 0, 1, 1, 1])
BEFORE = np.array([[0.8, 0.2, 0], [0.4, 0.6, 0], [0.1, 0.9, 0], [0.3, 0.7, 0], [0.2, 0.8, 0]])
# Answers: 1 (was right), 1, 1, 0 (was right), 1.
AFTER = np.array([[0.3, 0.7, 0], [0.2, 0.8, 0], [0.1, 0.9, 0], [0.6, 0.4, 0], [0.5, 0.5, 0]])
CODES = ("A", "B", "C")
ALL = np.ones(5, bool)


def test_effects_by_hand() -> None:
    """Counted out: answers before 0 1 1 1 1, after 1 1 1 0 0 (the first of equals)."""
    (found,) = effects(
        LABELS, BEFORE, [Answers("x", 2, ALL, AFTER)], CODES, groups=list("aabcd"), resamples=200
    )
    assert (found.name, found.strength, found.n) == ("x", 2, 5)
    assert found.overall.unchanged.value == pytest.approx(2 / 5)
    assert found.overall.accuracy_drop.value == pytest.approx(4 / 5 - 1 / 5)
    assert found.overall.p_true_shift.value == pytest.approx((-0.5 - 0.2 + 0 - 0.3 - 0.3) / 5)
    assert found.support == {"A": 2, "B": 3}
    assert set(found.per_class) == {"A", "B"}
    assert found.per_class["A"].unchanged.value == pytest.approx(1 / 2)
    assert found.per_class["B"].accuracy_drop.value == pytest.approx(2 / 3)
    assert found.macro.unchanged.value == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found.by_chance == pytest.approx(0.2 * 0.4 + 0.8 * 0.6)
    for measures in (found.overall, found.macro, *found.per_class.values()):
        for figure in measures:
            assert figure.value is not None
            if figure.low is not None and figure.high is not None:
                assert figure.low <= figure.value <= figure.high
    assert found.lesions == {"A": 1, "B": 3}


def test_a_class_of_few_lesions_has_no_interval() -> None:
    """Its resamples can but agree; the mean over classes has none either, nor has a difference."""
    rng = np.random.default_rng(0)
    labels = np.array([0] * 12 + [1] * 12)
    before, after = rng.dirichlet((1, 1, 1), (2, 24))
    every = np.ones(24, bool)
    enough = [f"A{i}" for i in range(12)] + [f"B{i}" for i in range(12)]
    few = ["A0"] * 3 + [f"A{i}" for i in range(9)] + enough[12:]
    for groups, told in ((enough, True), (few, False)):
        made = [
            effects(labels, before, [Answers("x", 1, every, p)], CODES, groups=groups)[0]
            for p in (after, before)
        ]
        apart = difference(*made)
        plain = made[0].to_dict()
        assert plain["per_class"]["A"]["lesions"] == (12 if told else 9)
        for measures in (made[0].per_class["A"], made[0].macro, apart["A"], apart["macro"]):
            for figure in measures:
                assert figure.value is not None
                assert (figure.low is not None) == (figure.high is not None) == told
                assert ("fewer than 10 lesions" in figure.why) == (not told)
        for measures in (made[0].per_class["B"], made[0].overall, apart["B"], apart["overall"]):
            assert all(figure.low is not None for figure in measures)


def test_images_left_out() -> None:
    """Those that a condition was not done to do not count in it."""
    there = np.array([True, False, True, True, False])
    whole, part = effects(
        LABELS, BEFORE, [Answers("x", 1, ALL, BEFORE), Answers("y", 1, there, AFTER)], CODES,
        groups=list("abcde"), resamples=0,
    )  # fmt: skip
    assert whole.overall.unchanged.value == 1
    assert whole.overall.unchanged.low is None
    assert (part.n, part.support) == (3, {"A": 1, "B": 2})
    assert part.overall.unchanged.value == pytest.approx(1 / 3)
    nobody = Answers("z", 1, np.zeros(5, bool), np.full((5, 3), np.nan))
    (none,) = effects(LABELS, BEFORE, [nobody], CODES, groups=list("abcde"), resamples=30)
    assert none.n == 0
    assert none.overall.unchanged.value is None
    assert none.to_dict()["overall"]["unchanged"]["why"] == "no image"


def test_differences_are_paired() -> None:
    """Equal models differ by nothing, with an interval of no width; classes keep their names."""
    groups = list("abcde")
    (first,) = effects(LABELS, BEFORE, [Answers("x", 1, ALL, AFTER)], CODES, groups=groups)
    (same,) = effects(LABELS, BEFORE, [Answers("x", 1, ALL, AFTER)], CODES, groups=groups)
    (steady,) = effects(LABELS, BEFORE, [Answers("x", 1, ALL, BEFORE)], CODES, groups=groups)
    none = difference(first, same)["overall"].unchanged
    assert (none.value, none.low, none.high) == (0, 0, 0)
    apart = difference(first, steady)
    assert list(apart) == ["overall", "macro", "A", "B"]
    assert apart["overall"].unchanged.value == pytest.approx(-3 / 5)
    assert apart["B"].unchanged.value == pytest.approx(1 / 3 - 1)


def test_a_model_that_gives_nan() -> None:
    """No figure is made of it."""
    bad = AFTER.copy()
    bad[3, 1] = np.nan
    with pytest.raises(DataError, match="NaN or infinity for 1 of 5"):
        effects(LABELS, BEFORE, [Answers("x", 1, ALL, bad)], CODES, groups=list("abcde"))


def test_mean_with_interval() -> None:
    """By lesion: one whose images cancel out adds no spread."""
    figure = mean_with_interval(np.array([1.0, -1.0, 0.0]), list("aab"), resamples=100)
    assert (figure.value, figure.low, figure.high) == (0, 0, 0)
    assert mean_with_interval(np.array([]), []).value is None
