"""Synthetic dermoscopy: the plan, the dial, the pixels, the folder, and what can be learnt."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy import ndimage

from biigma_cli.data.synthetic import (
    ARTEFACTS,
    COLUMNS,
    FORMAT,
    ITA_GROUPS,
    OWN_ARTEFACT,
    REVERSED_ARTEFACT,
    Sample,
    SyntheticOptions,
    agreement,
    contact_sheet,
    plan,
    render,
    render_clean,
    skin_colour,
    write_synthetic,
)
from biigma_cli.data.synthetic import write as write_module
from biigma_cli.errors import BiigmaError, DataError, UsageError
from biigma_cli.taxonomy import ISIC18

SIDE = 64
SMALL = SyntheticOptions(count=60, side=48)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative path."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set, drawn in this process; not to be changed by a test."""
    return write_synthetic(SMALL, tmp_path_factory.mktemp("synthetic") / "set", workers=1)


# The plan


def test_the_plan_depends_on_the_options_alone() -> None:
    """Equal options give equal plans; another seed gives another."""
    options = SyntheticOptions(count=300, seed=7)
    assert plan(options) == plan(dataclasses.replace(options))
    assert plan(options) != plan(dataclasses.replace(options, seed=8))


@pytest.mark.parametrize("count", [60, 61, 137, 2000])
def test_every_class_stands_in_every_part(count: int) -> None:
    """Also in the smallest set; ids are unique and in order; NV leads."""
    samples = plan(SyntheticOptions(count=count))
    assert [s.image_id for s in samples] == [f"SYN_{i:07}" for i in range(1, count + 1)]
    assert {(s.label, s.part) for s in samples} == {
        (code, part) for code in ISIC18.codes for part in ("train", "val", "test")
    }
    assert Counter(s.label for s in samples).most_common(1)[0][0] == "NV"


def test_parts_have_their_shares() -> None:
    """A quarter for test and a tenth for val, in each class, give or take a lesion's images."""
    samples = plan(SyntheticOptions(count=2000, test_fraction=0.25, val_fraction=0.1))
    for code in ISIC18.codes:
        parts = Counter(s.part for s in samples if s.label == code)
        total = parts.total()
        assert abs(parts["test"] - 0.25 * total) <= 3
        assert abs(parts["val"] - 0.10 * total) <= 3


def test_no_lesion_over_two_parts() -> None:
    """Images of one lesion share class, part and skin tone; some 15% of lesions have 2 or 3."""
    lesions: dict[str, list[Sample]] = defaultdict(list)
    for sample in plan(SyntheticOptions(count=2000)):
        lesions[sample.lesion_id].append(sample)
    sizes = Counter(len(images) for images in lesions.values())
    assert set(sizes) == {1, 2, 3}
    assert 0.11 < (sizes[2] + sizes[3]) / len(lesions) < 0.19
    for images in lesions.values():
        assert len({(s.label, s.part, s.ita, s.lesion) for s in images}) == 1
        assert len({s.photo for s in images}) == len(images)


def test_skin_tones_cover_the_range() -> None:
    """Each of the six groups has about a sixth of the lesions, in each class some of both ends."""
    samples = plan(SyntheticOptions(count=2000))
    by_lesion = {s.lesion_id: s.ita for s in samples}
    for low, high in ITA_GROUPS:
        share = sum(low <= ita <= high for ita in by_lesion.values()) / len(by_lesion)
        assert 0.13 < share < 0.21
    for code in ISIC18.codes:
        own = [s.ita for s in samples if s.label == code]
        assert min(own) < -30
        assert max(own) > 55


def test_skin_colour_has_the_angle_asked_for() -> None:
    """sRGB back to CIELAB gives the same individual typology angle; lightness rises with it."""
    last = 0.0
    for ita in range(-55, 70, 5):
        linear = [
            v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in skin_colour(ita)
        ]
        assert all(0 < v < 1 for v in linear)
        y = sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
        z = sum(w * v for w, v in zip((0.0193, 0.1192, 0.9505), linear, strict=True)) / 1.08883
        lightness = 116 * y ** (1 / 3) - 16
        b = 200 * (y ** (1 / 3) - z ** (1 / 3))
        assert math.degrees(math.atan2(lightness - 50, b)) == pytest.approx(ita, abs=0.6)
        assert lightness > last
        last = lightness


@pytest.mark.parametrize(
    "values",
    [
        {"count": 59}, {"count": 10.5}, {"count": True}, {"seed": -1}, {"side": 31}, {"side": 4096},
        {"background_bias": -0.1}, {"background_bias": 1.1}, {"background_bias": math.nan},
        {"background_bias": "1"}, {"test_background": "none"}, {"test_fraction": 0.0},
        {"test_fraction": 0.9}, {"val_fraction": 0.0}, {"val_fraction": 0.5},
    ],
)  # fmt: skip
def test_bad_options(values: dict[str, Any]) -> None:
    """Each is refused by name, with what to give instead."""
    with pytest.raises(UsageError, match=next(iter(values))) as caught:
        SyntheticOptions(**values)
    assert caught.value.fix


# The dial


def expected(share: float, count: int) -> Any:
    """A share of `count` draws within four standard errors."""
    return pytest.approx(share, abs=4 * math.sqrt(max(share * (1 - share), 1e-9) / count) + 1e-9)


@pytest.mark.parametrize("r", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("mode", ["independent", "reversed"])
def test_agreement_of_class_and_background(r: float, mode: Any) -> None:
    """r + (1 - r) / 7 in train and val; in test by chance, or less where reversed."""
    options = SyntheticOptions(count=6000, background_bias=r, test_background=mode)
    samples = plan(options)
    found = agreement(samples)
    sizes = Counter(s.part for s in samples)
    for part in ("train", "val"):
        assert found[part] == expected(r + (1 - r) / 7, sizes[part])
    in_test = 1 / 7 if mode == "independent" else (1 - r) / 7
    assert found["test"] == expected(in_test, sizes["test"])
    if mode == "reversed":
        turned = [s.artefact == REVERSED_ARTEFACT[s.label] for s in samples if s.part == "test"]
        assert sum(turned) / len(turned) == expected(r + (1 - r) / 7, len(turned))


def test_artefact_families() -> None:
    """One for each class; the reversal is a permutation that leaves none in place."""
    assert tuple(OWN_ARTEFACT) == ISIC18.codes
    assert sorted(OWN_ARTEFACT.values()) == sorted(ARTEFACTS) == sorted(REVERSED_ARTEFACT.values())
    assert len(set(ARTEFACTS)) == 7
    assert all(OWN_ARTEFACT[code] != REVERSED_ARTEFACT[code] for code in ISIC18.codes)


def test_artefacts_are_uniform_and_independent_at_zero() -> None:
    """No class has a favourite."""
    pairs = Counter((s.label, s.artefact) for s in plan(SyntheticOptions(count=6000)))
    by_class = Counter(label for label, _ in pairs.elements())
    for code in ISIC18.codes:
        for artefact in ARTEFACTS:
            assert pairs[code, artefact] / by_class[code] == expected(1 / 7, by_class[code])


def test_the_dial_moves_artefacts_and_nothing_else() -> None:
    """Plans differ in the artefact alone, and lesion, skin and mask keep every pixel."""
    zero = plan(SyntheticOptions(count=200, background_bias=0.0))
    one = plan(SyntheticOptions(count=200, background_bias=1.0, test_background="reversed"))
    moved = 0
    for a, b in zip(zero, one, strict=True):
        assert dataclasses.replace(a, artefact=b.artefact) == b
        if a.artefact == b.artefact:
            continue
        moved += 1
        if moved > 12:
            continue
        (clean_a, mask_a), (clean_b, mask_b) = render_clean(a, SIDE), render_clean(b, SIDE)
        assert np.array_equal(clean_a, clean_b)
        assert np.array_equal(mask_a, mask_b)
        assert np.array_equal(render(b, SIDE)[1], mask_a)
    assert moved > 150


# The pixels


def test_an_image_depends_on_its_sample_alone() -> None:
    """Any order, any repetition: the same bytes; another photo of the lesion: another image."""
    samples = plan(SyntheticOptions(count=60))[:5]
    first = [render(s, SIDE) for s in samples]
    again = [render(s, SIDE) for s in reversed(samples)][::-1]
    for (pixels, mask), (pixels_2, mask_2) in zip(first, again, strict=True):
        assert pixels.shape == (SIDE, SIDE, 3)
        assert pixels.dtype == np.uint8
        assert mask.shape == (SIDE, SIDE)
        assert mask.dtype == np.bool_
        assert np.array_equal(pixels, pixels_2)
        assert np.array_equal(mask, mask_2)
    other, _ = render(dataclasses.replace(samples[0], photo=999), SIDE)
    assert np.abs(other.astype(int) - first[0][0]).mean() > 3


@pytest.fixture(scope="module")
def clean() -> list[tuple[Sample, npt.NDArray[np.uint8], npt.NDArray[np.bool_]]]:
    """Seventy samples, ten of each class, without artefacts."""
    by_class: dict[str, list[Sample]] = defaultdict(list)
    for sample in plan(SyntheticOptions(count=300, seed=3)):
        by_class[sample.label].append(sample)
    return [(s, *render_clean(s, SIDE)) for own in by_class.values() for s in own[:10]]


def test_masks(clean: Any) -> None:
    """Between 2% and 65% of the image, off its rim, of one main piece, and unlike the skin."""
    contrast = []
    for sample, pixels, mask in clean:
        assert 0.02 < mask.mean() < 0.65, sample
        assert not any(rim.any() for rim in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
        pieces, count = ndimage.label(mask)
        assert np.bincount(pieces.ravel(), minlength=count + 1)[1:].max() > 0.6 * mask.sum()
        values = pixels.astype(float)
        around = ndimage.binary_dilation(mask, iterations=10) & ~ndimage.binary_dilation(
            mask, iterations=4
        )
        inside = ndimage.binary_erosion(mask, iterations=2)
        contrast.append(np.linalg.norm(values[inside].mean(0) - values[around].mean(0)))
    assert np.mean(contrast) > 30
    assert np.mean(np.array(contrast) > 8) > 0.9


def test_dark_skin_is_darker(clean: Any) -> None:
    """What was planned is what is seen: lightness of the skin follows its angle."""
    angles = [sample.ita for sample, _, _ in clean]
    green = [pixels[..., 1][~mask].mean() for _, pixels, mask in clean]
    assert np.corrcoef(angles, green)[0, 1] > 0.85


def test_an_image_looks_the_same_at_any_side() -> None:
    """Half the side shows the same lesion and colours."""
    for sample in plan(SyntheticOptions(count=60))[:4]:
        large, mask = render_clean(sample, 320)
        small, mask_small = render_clean(sample, 160)
        halved = np.asarray(Image.fromarray(large).reduce(2), dtype=float)
        assert np.abs(halved - small).mean() < 6
        both = mask.reshape(160, 2, 160, 2).mean((1, 3)) > 0.5
        assert (both & mask_small).sum() / (both | mask_small).sum() > 0.9


@pytest.mark.parametrize("artefact", ARTEFACTS)
def test_artefacts_lie_mainly_outside_the_lesion(artefact: str) -> None:
    """Each changes the image; all but hair leave the inner lesion as it was."""
    outside, inside = [], []
    for sample in plan(SyntheticOptions(count=60, seed=5))[:14]:
        marked = dataclasses.replace(sample, artefact=artefact)
        before, mask = render_clean(marked, SIDE)
        after, _ = render(marked, SIDE)
        changed = np.abs(after.astype(int) - before).max(-1) > 12
        core = ndimage.binary_erosion(mask, iterations=2)
        outside.append(changed[~mask].mean())
        inside.append(changed[core].mean() if core.any() else 0.0)
    assert np.mean(outside) > 0.008
    assert np.median(outside) > 0.004
    if artefact == "hair":
        assert np.mean(inside) < 0.35
    else:
        assert max(inside) < 0.01


# What can be learnt


def describe(pixels: npt.NDArray[np.uint8], where: npt.NDArray[np.bool_]) -> list[float]:
    """Colour and texture of a region."""
    values = pixels.astype(float)
    grey = values.mean(-1)
    fine = grey - ndimage.gaussian_filter(grey, 1.5)
    coarse = ndimage.gaussian_filter(grey, 1.5) - ndimage.gaussian_filter(grey, 5)
    chosen = values[where]
    ratios = np.log((chosen + 8) / (np.median(values[~where], 0) + 8))
    features = [
        *ratios.mean(0), *ratios.std(0), *np.percentile(ratios, (5, 50, 95), axis=0).ravel(),
        fine[where].std(), coarse[where].std(), *np.percentile(fine[where], (2, 98)),
        *np.percentile(coarse[where], (2, 98)),
    ]  # fmt: skip
    return [float(f) for f in features]


def lesion_features(pixels: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> list[float]:
    """Of the lesion alone: its colours against the skin, its texture, size and outline."""
    rim = mask & ~ndimage.binary_erosion(mask)
    middle = ndimage.binary_erosion(mask, iterations=5)
    tint = pixels.astype(float)
    step = tint[middle if middle.any() else mask].mean(0) - tint[rim].mean(0)
    return [*describe(pixels, mask), mask.mean(), rim.sum() / math.sqrt(mask.sum()), *step]


def background_features(pixels: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> list[float]:
    """Of everything more than a little away from the lesion."""
    values = pixels.astype(float)
    away = ~ndimage.binary_dilation(mask, iterations=5)
    spread = values.max(-1) - values.min(-1)
    grey = values.mean(-1)
    fine = np.abs(grey - ndimage.gaussian_filter(grey, 1.2))
    corners = grey[:6, :6].mean() + grey[-6:, -6:].mean() + grey[:6, -6:].mean()
    return [
        *values[away].mean(0), *values[away].std(0), spread[away].std(), corners,
        *np.percentile(values[away], (0.5, 2, 98, 99.5), axis=0).ravel(),
        *np.percentile(fine[away], (50, 90, 98)), (values[..., 2] - values[..., 0])[away].max(),
    ]  # fmt: skip


def balanced_accuracy(labels: list[str], features: list[list[float]]) -> float:
    """Mean recall on the last quarter of a forest trained on the rest; the order is random."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.metrics import balanced_accuracy_score

    cut = 3 * len(labels) // 4
    forest = ExtraTreesClassifier(150, class_weight="balanced", random_state=0)
    forest.fit(features[:cut], labels[:cut])
    return float(balanced_accuracy_score(labels[cut:], forest.predict(features[cut:])))


def drawn(r: float) -> tuple[list[str], list[Any]]:
    """Labels, and pixels and masks, of training images of different lesions."""
    options = SyntheticOptions(count=400, test_fraction=0.05, val_fraction=0.02, background_bias=r)
    lesions = {s.lesion: s for s in plan(options) if s.part == "train"}
    return [s.label for s in lesions.values()], [render(s, SIDE) for s in lesions.values()]


def test_classes_can_be_learnt_from_the_lesion_not_the_background() -> None:
    """Chance is 1/7. The background tells nothing at r = 0 and most at r = 1."""
    labels, images = drawn(0.0)
    assert balanced_accuracy(labels, [lesion_features(*i) for i in images]) > 0.5
    assert balanced_accuracy(labels, [background_features(*i) for i in images]) < 0.28
    labels, images = drawn(1.0)
    assert balanced_accuracy(labels, [background_features(*i) for i in images]) > 0.6


# The folder


def test_what_is_written(written: Path) -> None:
    """Images, 1-bit masks, metadata that names them, and the options."""
    samples = plan(SMALL)
    with (written / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == SMALL.count
    for row, sample in zip(rows, samples, strict=True):
        assert row["image"] == f"images/{sample.image_id}.jpg"
        assert (row["label"], row["lesion_id"], row["split"], row["artefact"]) == (
            sample.label, sample.lesion_id, sample.part, sample.artefact,
        )  # fmt: skip
        assert float(row["ita"]) == sample.ita
    pixels, mask = render(samples[0], SMALL.side)
    with Image.open(written / rows[0]["image"]) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (48, 48))
        assert np.abs(np.asarray(image).astype(int) - pixels).mean() < 3
    with Image.open(written / rows[0]["mask"]) as image:
        assert (image.format, image.mode) == ("PNG", "1")
        assert np.array_equal(np.asarray(image), mask)
    stored = json.loads((written / "options.json").read_text(encoding="utf-8"))
    assert stored == {"format": FORMAT, **SMALL.to_dict()}
    assert [p.name for p in written.parent.iterdir()] == ["set"]


def test_two_workers_write_the_same_bytes(written: Path, tmp_path: Path) -> None:
    """And report every image."""
    calls: list[tuple[int, int]] = []
    other = write_synthetic(
        SMALL, tmp_path / "new" / "set", workers=2, progress=lambda d, t: calls.append((d, t))
    )
    assert contents(other) == contents(written)
    assert calls[-1] == (60, 60)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


def test_a_complete_folder_is_kept(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn again."""
    monkeypatch.setattr(write_module, "_draw_all", lambda *_: pytest.fail("drawn again"))
    before = {p: p.stat().st_mtime_ns for p in written.rglob("*")}
    assert write_synthetic(SMALL, written) == written
    assert {p: p.stat().st_mtime_ns for p in written.rglob("*")} == before


def test_another_data_set_is_not_overwritten(written: Path) -> None:
    """The options that differ are named."""
    with pytest.raises(UsageError, match=r"seed 0 \(not 1\)"):
        write_synthetic(dataclasses.replace(SMALL, seed=1), written)


def test_other_things_are_not_overwritten(tmp_path: Path) -> None:
    """A file, or a folder with something in it."""
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="no folder"):
        write_synthetic(SMALL, tmp_path / "file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match="something else"):
        write_synthetic(SMALL, tmp_path / "folder")
    assert (tmp_path / "folder" / "thesis.txt").read_text(encoding="utf-8") == "mine"
    with pytest.raises(UsageError, match="workers"):
        write_synthetic(SMALL, tmp_path / "other", workers=0)


def test_a_damaged_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that has gone, or has become empty."""
    monkeypatch.setattr(write_module, "_draw", quick_draw)
    folder = write_synthetic(SMALL, tmp_path / "set", workers=1)
    (folder / "images" / "SYN_0000007.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="59 files where 60"):
        write_synthetic(SMALL, folder)


def quick_draw(samples: tuple[Sample, ...], folder: Path, side: int) -> int:
    """Stands in for drawing where the pixels do not matter."""
    for sample in samples:
        (folder / "images" / f"{sample.image_id}.jpg").write_bytes(b"x")
        (folder / "masks" / f"{sample.image_id}.png").write_bytes(b"x")
    return len(samples)


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"),
                                     KeyboardInterrupt()])  # fmt: skip
def test_a_failure_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    """A full disk is told in words; Ctrl-C passes through."""

    def draw(samples: tuple[Sample, ...], folder: Path, side: int) -> int:
        if samples[0].photo > 20:
            raise failure
        return quick_draw(samples, folder, side)

    monkeypatch.setattr(write_module, "_draw", draw)
    with pytest.raises((BiigmaError, KeyboardInterrupt)) as caught:
        write_synthetic(SMALL, tmp_path / "set", workers=1)
    if isinstance(failure, OSError):
        assert isinstance(caught.value, BiigmaError)
        assert "No space left" in caught.value.message
        assert "free some space" in caught.value.fix
    else:
        assert isinstance(caught.value, KeyboardInterrupt)
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys
from pathlib import Path
from biigma_cli.data.synthetic import SyntheticOptions, write_synthetic
if __name__ == "__main__":
    options = SyntheticOptions(count=int(sys.argv[2]), side=48)
    write_synthetic(options, Path(sys.argv[1]), workers=int(sys.argv[3]))
    assert "torch" not in sys.modules
"""


def start(script: Path, folder: Path, count: int, workers: int) -> subprocess.Popen[bytes]:
    """A process that writes a set, and reports its errors on stderr."""
    script.write_text(WRITER, encoding="utf-8")
    command = [sys.executable, str(script), str(folder), str(count), str(workers)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)


def wait_for_images(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the process has drawn its first image."""
    for _ in range(3000):
        if any(folder.glob(".set.drawing-*/images/*.jpg")):
            return
        assert process.poll() is None, "ended before it could be stopped"
        time.sleep(0.02)
    pytest.fail("nothing was drawn in a minute")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_writer_does_no_harm(written: Path, tmp_path: Path, workers: int) -> None:
    """Nothing stands at the folder's place; the next call clears up and draws it whole."""
    place = tmp_path / "place"
    process = start(tmp_path / "writer.py", place / "set", 5000, workers)
    wait_for_images(place, process)
    process.kill()
    process.communicate()
    assert not (place / "set").exists()
    assert any(place.glob(".set.drawing-*"))
    write_synthetic(SMALL, place / "set", workers=1)
    assert [p.name for p in place.iterdir()] == ["set"]
    assert contents(place / "set") == contents(written)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_interrupting_the_pool_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C reaches the whole group, as from a terminal; the workers stay silent."""
    place = tmp_path / "place"
    process = start(tmp_path / "writer.py", place / "set", 5000, 2)
    wait_for_images(place, process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.count(b"Traceback") == 1  # the caller's own
    assert errors.rstrip().endswith(b"KeyboardInterrupt")
    assert list(place.iterdir()) == []


def test_two_at_once(written: Path, tmp_path: Path) -> None:
    """One draws, the other waits and takes it."""
    place = tmp_path / "place"
    both = [start(tmp_path / f"writer{i}.py", place / "set", 60, 1) for i in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    assert contents(place / "set") == contents(written)
    assert [p.name for p in place.iterdir()] == ["set"]


def test_contact_sheet(tmp_path: Path) -> None:
    """A row per class, and the same as a PNG."""
    sheet = contact_sheet(SMALL, per_class=2, path=tmp_path / "sheet.png")
    assert sheet.height > 7 * SMALL.side
    assert sheet.width > 2 * SMALL.side
    with Image.open(tmp_path / "sheet.png") as stored:
        assert stored.size == sheet.size
    with pytest.raises(UsageError, match="per class"):
        contact_sheet(SMALL, per_class=0)
