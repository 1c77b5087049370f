"""Robustness of models whose answers are known: they look at one place alone."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from biigma_cli.config import DataConfig
from biigma_cli.data.manifest import Manifest, Record, load_manifest, save_manifest
from biigma_cli.data.perturb import PERTURBATIONS
from biigma_cli.data.splits import make_split
from biigma_cli.errors import CheckpointMismatch, DataError, UsageError
from biigma_cli.judge import Candidate, robustness
from biigma_cli.judge.candidate import Answers
from biigma_cli.judge.robustness import Robustness, examples, judge_robustness
from biigma_cli.storage import content_digest
from tests.conftest import call

SIDE = 32
CODES = ("A", "B", "C")
LESION = ((120, 60, 40), (60, 40, 40), (170, 60, 90))
SKIN = ((230, 180, 160), (200, 160, 200), (180, 190, 150))
CONFIG = DataConfig(dataset="own", side=SIDE, protocol="official")


@pytest.fixture(scope="module", autouse=True)
def folder(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A data folder of its own; what is made in the session's is made before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIIGMA_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Discs on skin: both colours are the class's. 40 images of 32 lesions are the test part."""
    root = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :64]
    records = []
    for i in range(70):
        lesion = i // 2 if i < 16 else i
        label = lesion % 3
        at, radius = rng.uniform((26, 20), (38, 28)), rng.uniform(9, 13)
        disc = (x - at[0]) ** 2 + (y - at[1]) ** 2 < radius**2
        pixels = np.where(disc[..., None], LESION[label], SKIN[label]) + rng.normal(
            0, 4, (48, 64, 3)
        )
        path, mask = root / f"I{i:02}.png", root / f"I{i:02}_m.png"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
        Image.fromarray(disc).save(mask)
        records.append(
            Record(
                image_id=f"I{i:02}", path=path.name, label=CODES[label], lesion_id=f"L{lesion}",
                digest=content_digest(path.read_bytes()), mask=mask.name,
                part="test" if i < 40 else "train" if i < 60 else "val",
            )
        )  # fmt: skip
    return Manifest(
        dataset="own", root=root, records=tuple(records), licence="CC0-1.0", citation="Nobody",
        codes=CODES,
    )  # fmt: skip


Look = Callable[[np.ndarray], np.ndarray]


def model(manifest: Manifest, look: Look, name: str = "m", side: int = SIDE) -> Candidate:
    """A model that turns pictures to probabilities by `look`."""

    def run(pixels: np.ndarray, progress: Any) -> Answers:
        assert pixels.shape[1:] == (side, side, 3)
        progress(len(pixels), len(pixels))
        return Answers(look(pixels.astype(np.float32)).astype(np.float32))

    def maps(*_: Any) -> Any:
        raise AssertionError("no map is needed")

    config = dataclasses.replace(CONFIG, side=side)
    split = make_split(manifest, config).summary()
    return Candidate(
        name=name,
        classes=CODES,
        malignant=(None,) * len(CODES),
        trunk="mobilenet_v2",
        data=config,
        split=split,
        run=run,
        maps=maps,
    )


def nearest(colour_n3: np.ndarray, palette: Any) -> np.ndarray:
    """Probabilities by how near a colour is to each class's."""
    far = ((colour_n3[:, None] - np.array(palette, np.float32)) ** 2).sum(2) / 500
    odds = np.exp(far.min(1, keepdims=True) - far)
    return odds / odds.sum(1, keepdims=True)


def centre(pixels: np.ndarray) -> np.ndarray:
    """Looks at the middle of the lesion."""
    return nearest(pixels[:, 15:17, 15:17].mean((1, 2)), LESION)


def corner(pixels: np.ndarray) -> np.ndarray:
    """Looks at the lower left corner."""
    return nearest(pixels[:, -2:, :2].mean((1, 2)), SKIN)


def by_key(result: Robustness) -> dict[tuple[str, int], Any]:
    """Overall figures of the model judged."""
    return {(e.name, e.strength): e.overall for e in result.own.effects}


@pytest.fixture(scope="module")
def of_centre(manifest: Manifest) -> Robustness:
    """The model that looks at the lesion, against the one that does not."""
    return judge_robustness(
        model(manifest, centre, "centre"), manifest, "test",
        against=model(manifest, corner, "corner"), resamples=60,
    )  # fmt: skip


def test_a_model_of_the_lesion(of_centre: Robustness) -> None:
    """What lies outside does not move it; without the lesion it cannot answer."""
    assert of_centre.own.accuracy == 1
    figures = by_key(of_centre)
    for (name, _), measures in figures.items():
        if PERTURBATIONS[name].group == "background" or name in ("skin-mean", "ink", "gel"):
            assert measures.unchanged.value == 1
            assert measures.p_true_shift.value == pytest.approx(0, abs=1e-6)
    removed = figures["lesion-removed", 1]
    assert removed.unchanged.high < 1
    assert removed.accuracy_drop.low > 0
    assert removed.p_true_shift.high < 0
    assert of_centre.own.pull.answers.value == 0
    assert of_centre.own.change["lesion-removed", 1].inside > 20
    assert of_centre.own.change["ink", 3].inside == 0
    assert of_centre.own.change["ink", 3].outside > 0


def test_a_model_of_the_background(of_centre: Robustness) -> None:
    """It follows the donor, and does not miss the lesion."""
    other = of_centre.against
    assert other is not None
    found = {(e.name, e.strength): e for e in other.effects}
    assert found["lesion-removed", 1].overall.unchanged.value == 1
    assert found["background-same", 1].overall.unchanged.value == 1
    assert found["background-other", 1].overall.unchanged.value == 0
    assert other.pull.answers.value == 1
    assert sum(n for n, _ in other.pull.by_class.values()) == len(of_centre.ids)
    assert found["corners", 3].overall.unchanged.value < 1


def test_differences(of_centre: Robustness) -> None:
    """First minus second, in the order of the effects."""
    keys = [(e.name, e.strength) for e in of_centre.own.effects]
    apart = dict(zip(keys, of_centre.differences, strict=True))
    assert apart["background-other", 1]["overall"].unchanged.value == 1
    assert apart["background-other", 1]["A"].accuracy_drop.value == -1
    assert apart["lesion-removed", 1]["overall"].unchanged.high < 0
    plain = of_centre.to_dict()
    json.dumps(plain, allow_nan=False)
    assert len(plain["conditions"]) == len(plain["difference"]) == len(keys) == 28
    assert plain["conditions"][-1]["title"] == "lesion removed"
    assert set(plain["conditions"][0]["per_class"]) == set(CODES)


def test_batches_and_models_do_not_matter(
    manifest: Manifest, of_centre: Robustness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other batches, no second model, no cache: the same figures."""
    monkeypatch.setattr(robustness, "_BATCH", 7)
    monkeypatch.setenv("BIIGMA_HOME", "/dev/null/none")
    seen: list[tuple[int, int]] = []
    said: list[str] = []
    alone = judge_robustness(
        model(manifest, centre, "centre"), manifest, "test", resamples=60,
        perturbing=lambda *a: seen.append(a), warn=said.append,
    )  # fmt: skip
    assert alone.own._replace(change={}) == of_centre.own._replace(change={})
    for key, change in alone.own.change.items():
        assert change == pytest.approx(of_centre.own.change[key], rel=1e-6), key
    assert seen[0] == (0, 40 * 29)
    assert seen[-1] == (40 * 29, 40 * 29)
    assert len(said) == 1


def test_fewer_images(manifest: Manifest, of_centre: Robustness) -> None:
    """Whole lesions; an image's perturbation and its donor are those it has among all."""
    few = judge_robustness(model(manifest, centre), manifest, "test", images=9, resamples=0)
    assert len(few.ids) <= 9
    assert few.usable == 40
    assert few.own.effects[0].n == len(few.ids)
    assert few.own.effects[0].overall.unchanged.low is None
    for name, donors in few.donors.items():
        assert donors == {i: of_centre.donors[name][i] for i in few.ids}
    with pytest.raises(UsageError, match="0 images"):
        judge_robustness(model(manifest, centre), manifest, "test", images=0)


def test_two_sides(manifest: Manifest) -> None:
    """Each model sees its own size; the images are the same."""
    large = model(manifest, lambda p: centre(p[:, 16:48, 16:48]), "large", side=64)
    both = judge_robustness(
        model(manifest, centre), manifest, "test", against=large, images=8, resamples=0
    )
    assert both.against is not None
    assert (both.own.side, both.against.side) == (32, 64)
    assert [e.n for e in both.own.effects] == [e.n for e in both.against.effects]


def test_missing_masks(manifest: Manifest) -> None:
    """Counted and left out, from the donors, too; none at all is an error."""
    bare = {f"I{i:02}" for i in range(10)}
    cut = dataclasses.replace(
        manifest,
        records=tuple(
            dataclasses.replace(r, mask="" if r.image_id in bare else r.mask)
            for r in manifest.records
        ),
    )
    found = judge_robustness(model(manifest, centre), cut, "test", resamples=0)
    assert (found.missing, found.usable, len(found.ids)) == (10, 30, 30)
    assert bare.isdisjoint(d for donors in found.donors.values() for d in donors.values())
    none = dataclasses.replace(
        manifest, records=tuple(dataclasses.replace(r, mask="") for r in manifest.records)
    )
    with pytest.raises(DataError, match="none of 40 images"):
        judge_robustness(model(manifest, centre), none, "test")


def test_refused(manifest: Manifest) -> None:
    """A model that gives NaN, and one of another split."""
    with pytest.raises(DataError, match="NaN"):
        judge_robustness(
            model(manifest, lambda p: np.full((len(p), 3), math.nan)), manifest, "test", images=4
        )
    mine = model(manifest, centre)
    other = dataclasses.replace(mine, split={**mine.split, "split_hash": "x"})
    with pytest.raises(CheckpointMismatch):
        judge_robustness(mine, manifest, "test", against=other)


def test_examples(manifest: Manifest, of_centre: Robustness) -> None:
    """A few of the images judged, of different classes, as the model saw them."""
    shown = examples(of_centre, model(manifest, centre), manifest)
    assert [e.title.split(", ")[1] for e in shown] == list(CODES)
    for example in shown:
        assert example.scene.image_id in of_centre.ids
        assert set(PERTURBATIONS) <= set(example.pictures)
        assert example.pictures["hair"][0].shape == (SIDE, SIDE, 3)


# --- the command -------------------------------------------------------------------------------


def test_command(
    tiny_run: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables, JSON, figure and sheet; without masks an error that says so."""
    monkeypatch.setenv("BIIGMA_HOME", str(home))
    best = tiny_run / "weights" / "best.safetensors"
    plain = ("eval", "--model", best, "--device", "cpu", "--resamples", "25", "--robustness")
    done = call(*plain)
    assert done.code == 3
    assert "has a lesion mask" in done.err
    assert "Traceback" not in done.err
    # The same data, recorded with masks.
    known = load_manifest("isic18")
    disc = np.zeros((48, 64), bool)
    disc[12:36, 16:48] = True
    Image.fromarray(disc).save(tmp_path / "mask.png")
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path / "home"))
    save_manifest(
        dataclasses.replace(
            known,
            records=tuple(
                dataclasses.replace(r, mask=str(tmp_path / "mask.png")) for r in known.records
            ),
        )
    )
    targets = (
        "--robustness-figure", tmp_path / "f.svg", "--robustness-sheet", tmp_path / "s.png",
        "--robustness-images", "6",
    )  # fmt: skip
    done = call(*plain, *targets)
    assert done.code == 0, done.err
    for words in (
        "robustness: 6 of ",
        "another's background",
        "dark corners, strong",
        "Lesion rem",
    ):
        assert words in done.out
    assert (tmp_path / "f.svg").is_file()
    assert (tmp_path / "s.png").is_file()
    shown = call(*plain, "--robustness-images", "6", "--json")
    assert shown.code == 0, shown.err
    result = json.loads(shown.out)["robustness"]
    assert result["images"] == 6
    assert len(result["conditions"]) == 28


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--robustness-images", "5"), "without --robustness"),
        (("--robustness", "--robustness-figure", "a.pdf"), "neither .svg nor .png"),
        (("--robustness", "--robustness-sheet", "a.svg"), "no .png"),
        (("--robustness", "--robustness-figure", "/dev/null/a.svg"), "cannot write"),
    ],
)
def test_usage(options: tuple[str, ...], word: str) -> None:
    """Said before any work."""
    done = call("eval", *options)
    assert done.code == 2
    assert word in done.err
    assert done.out == ""
