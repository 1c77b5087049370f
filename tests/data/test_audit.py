"""The audit: planted faults are found, whole and alone, and pairs are those of a plain search."""

from __future__ import annotations

import csv
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from biigma_cli.config import DataConfig
from biigma_cli.data import audit as module
from biigma_cli.data.audit import (
    LOW,
    NEAR,
    SIDE,
    TURNS,
    Audit,
    audit_manifest,
    best_shift,
    candidate_pairs,
    describe,
    odd_kinds,
    turn_pixels,
)
from biigma_cli.data.ham10000 import METADATA
from biigma_cli.data.manifest import Manifest, Record
from biigma_cli.data.preprocess import load_image
from biigma_cli.data.splits import PARTS
from biigma_cli.data.synthetic.plan import SyntheticOptions, plan
from biigma_cli.data.synthetic.render import render_clean
from tests.data.samples import HAM10000, NO_HAM10000, digest, encode, manifest, record

CLASSES = ("MEL", "SK", "NV")
Turn = Image.Transpose


def skin(seed: int, width: int = 200, height: int = 150) -> Image.Image:
    """A dark, ragged blob in the middle of mottled skin: alike at a glance, each its own."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    mottle = sum(
        np.asarray(
            Image.fromarray(rng.normal(0, 1, (n, n)).astype(np.float32)).resize((width, height))
        )
        for n in (9, 20, 48)
    )
    blob = 1 / (1 + np.exp(12 * (np.hypot(x, y) - 0.5 + 0.08 * mottle)))
    grey = 205 - 110 * blob + 9 * mottle
    colours = grey[..., None] * np.array([1.0, 0.8, 0.72])
    return Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))


def moles(count: int) -> list[Image.Image]:
    """Drawn lesions, each its own."""
    samples = {s.lesion_id: s for s in plan(SyntheticOptions(count=8 * count))}
    return [Image.fromarray(render_clean(s, 240)[0]) for s in list(samples.values())[:count]]


def nearer(picture: Image.Image) -> Image.Image:
    """The middle of a picture, in its size."""
    return picture.crop((36, 36, 204, 204)).resize(picture.size)


def plant(folder: Path) -> Manifest:
    """A data set on disk with one of each fault; see the names."""
    folder.mkdir(parents=True, exist_ok=True)
    records: list[Record] = []

    def add(
        image_id: str,
        label: str,
        lesion: str,
        content: bytes,
        *,
        name: str = "",
        write: bool = True,
    ) -> None:
        path = name or f"{image_id}.jpg"
        if write:
            (folder / path).write_bytes(content)
        plain = record(image_id, label, lesion, path=path)
        records.append(dataclasses.replace(plain, digest=digest(content)))

    base = [skin(n) for n in range(30)]
    files = [encode(image, "JPEG", quality=90) for image in base]
    for n, content in enumerate(files):
        add(f"base_{n:02}", CLASSES[n % 3], f"L{n:02}", content)
    add("same_bytes", "SK", "L00", files[0])  # base_00 is MEL: a conflict twice over
    add("encoded_again", CLASSES[1], "L01", encode(base[1], "JPEG", quality=50))
    add("turned", CLASSES[2], "other", encode(base[2].transpose(Turn.ROTATE_90), "JPEG"))
    add("mirrored", "NV", "", encode(base[3].transpose(Turn.FLIP_LEFT_RIGHT), "JPEG"))
    add("scaled", CLASSES[1], "L04", encode(base[4].resize((140, 105)), "JPEG"))
    bright = base[5].point(lambda v: min(255, round(1.1 * v + 8)))
    add("brighter", CLASSES[2], "L05", encode(bright, "JPEG"))
    add("other_label", "SK", "L06", encode(skin(100), "JPEG"))
    add("black", "MEL", "L30", encode(Image.new("RGB", (200, 150)), "JPEG"))
    cut = encode(skin(101), "JPEG")
    add("cut", "SK", "L31", cut[: len(cut) // 2])
    add("gone", "NV", "L32", b"gone", write=False)
    add("png", "MEL", "L33", encode(skin(102), "PNG"), name="png.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    add("exif", "SK", "L34", encode(skin(103), "JPEG", exif=exif))
    add("grey", "NV", "L35", encode(skin(104).convert("L"), "JPEG"))
    add("small", "NV", "L36", encode(skin(105, 40, 30), "JPEG"))
    add("wide", "NV", "L37", encode(skin(106, 400, 150), "JPEG"))
    add("changed", "NV", "L38", encode(skin(107), "JPEG"))
    (folder / "changed.jpg").write_bytes(encode(skin(108), "JPEG"))
    for name in ("stranger.jpg", "more/stranger.png", "masks/m.png", "x_superpixels.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(encode(skin(200), "PNG" if name.endswith("png") else "JPEG"))
    rows = [*(r.image_id for r in records), "ghost", "stranger"]
    (folder / "labels.csv").write_text("image,label\n" + "".join(f"{r},NV\n" for r in rows))
    (folder / "other.csv").write_text("a,b\n1,2\n")
    return manifest(sorted(records, key=lambda r: r.image_id), dataset="isic17", root=folder)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """The audit of the planted set."""
    return audit_manifest(plant(tmp_path_factory.mktemp("planted")), DataConfig(), threads=2)


def test_identical_files(planted: Audit) -> None:
    """The copy and nothing else."""
    assert planted.identical == (("base_00", "same_bytes"),)


def test_near_duplicates(planted: Audit) -> None:
    """Each planted pair, how it was turned, and no other pair."""
    found = {(p.first, p.second): (p.turn, p.same_lesion, p.same_label) for p in planted.near}
    same = "same way up"
    assert found == {
        ("base_01", "encoded_again"): (same, True, True),
        # The second lies on the first when it is turned back.
        ("base_02", "turned"): ("turned by 90 degrees clockwise", False, True),
        ("base_03", "mirrored"): ("mirrored left to right", None, False),
        ("base_04", "scaled"): (same, True, True),
        ("base_05", "brighter"): (same, True, True),
    }
    assert all(NEAR <= p.correlation <= 1 for p in planted.near)
    values = [p.correlation for p in planted.near]
    assert values == sorted(values, reverse=True)


def test_label_conflicts(planted: Audit) -> None:
    """Among identical files, near-duplicates and images of one lesion."""
    assert {(c.kind, c.lesion_id, c.images, c.labels) for c in planted.conflicts} == {
        ("identical", "", ("base_00", "same_bytes"), ("MEL", "SK")),
        ("near", "", ("base_03", "mirrored"), ("MEL", "NV")),
        ("lesion", "L00", ("base_00", "same_bytes"), ("MEL", "SK")),
        ("lesion", "L06", ("base_06", "other_label"), ("MEL", "SK")),
    }


def test_unreadable_images(planted: Audit) -> None:
    """The cut file is damaged, the other is missing."""
    found = {u.image_id: u for u in planted.unreadable}
    assert set(found) == {"cut", "gone"}
    assert "damaged" in found["cut"].error
    assert not found["cut"].missing
    assert found["gone"].missing


def test_odd_images(planted: Audit) -> None:
    """Each with its own oddity and no other; sizes are upright."""
    assert {o.image_id: o.problems for o in planted.odd} == {
        "black": ("black or nearly so",),
        "png": ("PNG under the name .jpg",),
        "exif": ("EXIF orientation 6",),
        "grey": ("mode L, not RGB",),
        "small": ("small: 40 x 30",),
        "wide": ("unusual aspect ratio: 400 x 150",),
        "changed": ("changed since it was recorded",),
    }
    assert planted.sizes["exif"] == (150, 200)
    assert odd_kinds(planted)["small"] == 1


@pytest.mark.parametrize(
    ("colour", "problem"),
    [
        ((3, 2, 4), "black or nearly so"),
        ((250, 252, 254), "white or nearly so"),
        ((180, 120, 90), "one colour or nearly so"),
    ],
)
def test_empty_pictures(tmp_path: Path, colour: tuple[int, int, int], problem: str) -> None:
    """A picture of one colour is odd, and two of them are no near-duplicates."""
    for n in range(2):
        pixels = np.full((60, 80, 3), colour, np.uint8)
        pixels[::7, n::5] += 1  # other bytes, still nothing to see
        (tmp_path / f"i{n}.png").write_bytes(encode(Image.fromarray(pixels), "PNG"))
    for n in range(9):
        (tmp_path / f"n{n}.png").write_bytes(encode(skin(n, 80, 60), "PNG"))
    names = sorted(p.name for p in tmp_path.iterdir())
    records = [
        dataclasses.replace(
            record(name[:2], CLASSES[n % 3], path=name),
            digest=digest((tmp_path / name).read_bytes()),
        )
        for n, name in enumerate(names)
    ]
    found = audit_manifest(manifest(records, dataset="isic17", root=tmp_path), DataConfig())
    assert {o.image_id: o.problems for o in found.odd} == {"i0": (problem,), "i1": (problem,)}
    assert found.near == ()


def test_jpeg_without_its_end(tmp_path: Path) -> None:
    """A JPEG that decodes without an error but lacks its end marker is still named."""
    content = encode(skin(0), "JPEG")
    assert content.endswith(b"\xff\xd9")
    path = tmp_path / "a.jpg"
    # Pillow asks for more only where the last block is lacking.
    path.write_bytes(content[:-2] + b"\xff\xd0" * 400)
    result = module._scan(path, record("a", "NV", content="x"))
    if isinstance(result, module._Scan):
        assert any("end marker" in p for p in result.problems)
    else:
        assert "damaged" in result.error


def test_strangers_and_ghosts(planted: Audit) -> None:
    """Masks and superpixels are no strangers; a row whose file is there is not without image."""
    assert planted.strangers == ("more/stranger.png", "stranger.jpg")
    assert planted.rows_without_image == {"labels.csv": ("ghost",)}


@pytest.fixture
def pictured(tmp_path: Path) -> Manifest:
    """Ten records below `set`, in two folders, and one elsewhere."""
    root, files = tmp_path / "set", [f"{'ab'[n % 2]}/i{n}.png" for n in range(10)]
    records = [record(name[:-4], CLASSES[n % 3], path=name) for n, name in enumerate(files)]
    out = tmp_path / "elsewhere" / "out.png"
    records.append(record(str(out)[:-4], "NV", path=str(out)))
    for one in records:
        (root / one.path).parent.mkdir(parents=True, exist_ok=True)
        (root / one.path).write_bytes(b"")
    return manifest(records, dataset="isic17", root=root)


@pytest.mark.parametrize("how", ["whole", "whole, no suffix", "from the table", "names", "link"])
def test_rows_are_compared_by_the_image_they_name(how: str, pictured: Manifest) -> None:
    """However a table names its images, its rows have them, and one that names none is told."""
    root = pictured.root
    (root / "tables").mkdir()
    (root.parent / "link").symlink_to(root)
    files = [root / r.path for r in pictured.records]
    rows = {
        "whole": [str(f) for f in files],
        "whole, no suffix": [str(f.with_suffix("")) for f in files],
        "from the table": [os.path.relpath(f, root / "tables") for f in files],
        "names": [f.name for f in files],
        # Files that are there, though the records know them by another path.
        "link": [str(root.parent / "link" / r.path) for r in pictured.records],
    }[how]
    ghosts = ["b/i0.png", str(root.parent / "elsewhere" / "i0.png"), "ghost"]
    known = [str(f) for f in files] if how == "link" else []
    lines = ["image,label", *(f"{row},NV" for row in [*rows, *known, *ghosts])]
    (root / "tables" / "own.csv").write_text("\n".join(lines))
    assert module._rows_without_image(pictured) == {"tables/own.csv": tuple(ghosts)}


def test_tables_of_other_images(pictured: Manifest) -> None:
    """One that speaks of other images, a few of them records, has no rows of this data set."""
    lines = ["image,label", *(f"other{n}.png,NV" for n in range(9)), "a/i0.png,NV", "b/i1.png,NV"]
    (pictured.root / "other.csv").write_text("\n".join(lines))
    assert module._rows_without_image(pictured) == {}
    # Of one part of the data set, it is its own; and so it is with most records among its rows.
    part = ["image,label", "a/i0.png,NV", "b/i1.png,NV", "gone,NV"]
    (pictured.root / "part.csv").write_text("\n".join(part))
    most = [*lines, *(f"i{n}.png,NV" for n in range(2, 6))]
    (pictured.root / "most.csv").write_text("\n".join(most))
    assert module._rows_without_image(pictured) == {
        "most.csv": tuple(f"other{n}.png" for n in range(9)),
        "part.csv": ("gone",),
    }


def test_classes_and_lesions(planted: Audit) -> None:
    """Counts agree with the records."""
    records = planted.manifest.records
    assert planted.lesions == len({r.lesion_id for r in records if r.lesion_id})
    assert planted.without_lesion == 1
    assert planted.few == ()
    assert planted.class_lesions["MEL"] == 12
    for found in planted.protocols.values():
        for code, total in planted.manifest.class_counts().items():
            assert sum(found.counts[part][code] for part in PARTS) == total


def test_leaks_are_counted_as_by_hand(planted: Audit) -> None:
    """Against a plain count over the parts, for several seeds, of which some leak."""
    data = planted.manifest
    lesion = {r.image_id: r.lesion_id for r in data.records}
    leaks = []
    for seed in range(4):
        found = audit_manifest(
            dataclasses.replace(data, records=data.records[:38]), DataConfig(split_seed=seed)
        ).protocols
        assert found["lesion"].lesions_across == ()
        assert found["lesion"].identical_across == ()
        assert found["lesion"].test_in_rest.images == 0
        split = found["paper"].split
        sides = [{lesion[i] for i in split.part(p)} - {""} for p in PARTS]
        across = (sides[0] & sides[1]) | (sides[0] & sides[2]) | (sides[1] & sides[2])
        assert found["paper"].lesions_across == tuple(sorted(across))
        hits = [i for i in split.test if lesion[i] in sides[0]]
        assert found["paper"].test_in_train.images == len(hits)
        assert found["paper"].test_in_train.share == len(hits) / len(split.test)
        rest = [i for i in split.test if lesion[i] in sides[0] | sides[1]]
        assert found["paper"].test_in_rest.images == len(rest)
        hits = [i for i in split.val if lesion[i] in sides[0]]
        assert found["paper"].val_in_train.images == len(hits)
        leaks.append(len(across))
    assert max(leaks) > 0


def test_near_pairs_across_sides(planted: Audit) -> None:
    """Those, and only those, whose two images are in different parts."""
    for name, where in planted.part_of().items():
        expected = [n for n, p in enumerate(planted.near) if where[p.first] != where[p.second]]
        assert planted.protocols[name].near_across == tuple(expected)


def test_failures(planted: Audit) -> None:
    """What a strict audit names; a set without faults names nothing."""
    text = " ".join(planted.failures("paper"))
    assert "2 images cannot be read" in text
    assert "4 label conflicts" in text
    safe = dataclasses.replace(planted.protocols["lesion"], near_across=())
    clean = dataclasses.replace(planted, unreadable=(), conflicts=(), protocols={"lesion": safe})
    assert clean.failures("lesion") == []


def test_a_split_that_cannot_be_made(tmp_path: Path) -> None:
    """It is a finding like the others, and the others are told all the same."""
    data = plant(tmp_path)
    few = tuple(r for r in data.records if r.label != "MEL" or r.image_id in ("base_00", "base_03"))
    data = dataclasses.replace(data, records=few[:20])
    poor = audit_manifest(data, DataConfig())
    assert poor.few == ("MEL",)
    assert "MEL has 2 lesions" in poor.unavailable["lesion"]
    assert "there is no lesion split: class MEL" in poor.failures("lesion")[0]
    whole = audit_manifest(plant(tmp_path), DataConfig())
    assert "official" in whole.unavailable
    assert set(whole.protocols) == {"lesion", "paper"}


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    """Both callbacks end at their totals and never go back."""
    data = plant(tmp_path)
    calls: dict[str, list[tuple[int, int]]] = {"reading": [], "comparing": []}
    audit_manifest(
        data,
        DataConfig(),
        reading=lambda *a: calls["reading"].append(a),
        comparing=lambda *a: calls["comparing"].append(a),
    )
    assert calls["reading"][-1] == (len(data.records), len(data.records))
    done, total = calls["comparing"][-1]
    assert done == total == len({r.digest for r in data.records})
    for seen in calls.values():
        assert seen == sorted(seen)


# --- the search ------------------------------------------------------------------------------


def grey(image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The thumbnail that pairs are compared by."""
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 23),
    block=st.integers(1, 30),
    threshold=st.floats(-0.2, 0.9),
    seed=st.integers(0, 10_000),
)
def test_blocked_search_is_the_plain_one(
    count: int, block: int, threshold: float, seed: int
) -> None:
    """Every pair and orientation that a loop over turned pictures finds, once, at any block."""
    rng = np.random.default_rng(seed)
    basis = np.cos(np.pi * np.outer(np.arange(LOW), 2 * np.arange(SIDE) + 1) / (2 * SIDE))
    pictures = rng.normal(size=(3, SIDE, SIDE))[rng.integers(0, 3, count)]
    pictures = pictures + 0.7 * rng.normal(size=(count, SIDE, SIDE))

    def transform(picture: Any) -> Any:
        low = basis @ picture @ basis.T
        return low / np.linalg.norm(low)

    coefficients = np.stack([transform(p) for p in pictures]).astype(np.float32)
    expected, close = set(), set()
    for turn, how in enumerate(TURNS):
        for j in range(count):
            turned = transform(turn_pixels(pictures[j : j + 1], how)[0])
            for i in range(j):
                product = float((coefficients[i] * turned).sum())
                if abs(product - threshold) < 1e-4:
                    close.add((i, j, turn))
                elif product >= threshold:
                    expected.add((i, j, turn))
    found = [
        (int(i), int(j), int(turn))
        for rows in candidate_pairs(coefficients, threshold=threshold, block=block)
        for i, j, turn in zip(*rows, strict=True)
    ]
    assert len(found) == len(set(found))
    assert set(found) - close == expected


@pytest.mark.parametrize("how", list(TURNS))
def test_every_orientation_is_found(how: tuple[bool, bool, bool]) -> None:
    """A turned picture is a candidate in that orientation, and turning it gives the first back."""
    pictures = np.stack([grey(skin(n)) for n in range(3)])
    turned = turn_pixels(pictures[:1], how)
    coefficients, detail = describe(np.concatenate([pictures, turned]))
    inverse = module._inverse(how)
    ((i, j, turn),) = candidate_pairs(coefficients)
    assert (0, 3, list(TURNS).index(inverse)) in set(zip(i, j, turn, strict=True))
    assert np.array_equal(turn_pixels(turned, inverse), pictures[:1])
    likeness = best_shift(detail[:1], turn_pixels(detail[3:], inverse))
    assert likeness[0] == pytest.approx(1, abs=2e-3)


def test_names_of_turns() -> None:
    """A quarter turn clockwise is what Pillow takes it for."""
    names = {name: how for how, name in TURNS.items()}
    image = skin(0, SIDE, SIDE)
    pixels = grey(image)[None]
    for name, transpose in (
        ("turned by 90 degrees clockwise", Turn.ROTATE_270),
        ("turned by 90 degrees anticlockwise", Turn.ROTATE_90),
        ("turned by 180 degrees", Turn.ROTATE_180),
        ("mirrored left to right", Turn.FLIP_LEFT_RIGHT),
        ("mirrored top to bottom", Turn.FLIP_TOP_BOTTOM),
        ("transposed", Turn.TRANSPOSE),
        ("transposed and turned by 180 degrees", Turn.TRANSVERSE),
    ):
        expected = np.asarray(Image.fromarray(pixels[0]).transpose(transpose))
        assert np.array_equal(turn_pixels(pixels, names[name])[0], expected), name


def test_a_shifted_frame_is_found_and_a_far_one_is_not() -> None:
    """4% of the side is within the tolerance, 30% is another crop."""
    big = skin(5, 400, 400)
    frames = [big.crop((x, 0, x + 280, 280)) for x in (0, 11, 84)]
    _, detail = describe(np.stack([grey(f) for f in frames]))
    near, far = best_shift(detail[[0, 0]], detail[[1, 2]])
    assert near > 0.8
    assert far < NEAR


def test_no_false_pairs_among_blobs() -> None:
    """A hundred different lesions, all a dark blob in the middle, and not one pair."""
    pictures = np.stack([grey(skin(n)) for n in range(1000, 1100)])
    coefficients, detail = describe(pictures)
    confirmed = []
    for i, j, turn in candidate_pairs(coefficients, threshold=0.5):
        for a, b, t in zip(i, j, turn, strict=True):
            how = list(TURNS)[t]
            likeness = best_shift(detail[a : a + 1], turn_pixels(detail[b : b + 1], how))
            confirmed.append(float(likeness[0]))
    assert max(confirmed, default=0) < NEAR


def test_nothing_is_like_an_empty_picture() -> None:
    """Flat pictures have no description, whatever their level."""
    flat = np.stack([np.full((SIDE, SIDE), v, np.uint8) for v in (0, 120, 255)])
    coefficients, detail = describe(flat)
    assert not coefficients.any()
    assert not detail.any()


# --- real data -------------------------------------------------------------------------------


@pytest.mark.skipif(not (HAM10000 / METADATA).is_file(), reason=NO_HAM10000)
def test_ham10000(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its two byte-identical pairs, and what the published split leaks; pictures not compared."""
    with (HAM10000 / METADATA).open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["image_id"])
    files = {p.stem: p for p in HAM10000.glob("HAM10000_images_part_*/*.jpg")}
    records = [
        dataclasses.replace(
            record(r["image_id"], r["dx"].upper(), r["lesion_id"]),
            path=files[r["image_id"]].relative_to(HAM10000).as_posix(),
            digest=digest(files[r["image_id"]].read_bytes()),
        )
        for r in rows
    ]
    flat = module._Scan(grey=np.zeros((SIDE, SIDE), np.uint8), size=(200, 150), problems=[])
    monkeypatch.setattr(module, "_scan", lambda path, record: flat)
    found = audit_manifest(manifest(records, root=HAM10000), DataConfig())
    assert found.identical == (
        ("ISIC_0024366", "ISIC_0029861"),
        ("ISIC_0024777", "ISIC_0029938"),
    )
    safe, published = found.protocols["lesion"], found.protocols["paper"]
    assert safe.test_in_train.images == safe.test_in_rest.images == safe.val_in_train.images == 0
    assert 0.36 <= published.test_in_rest.share <= 0.40
    assert 0 < published.test_in_train.share < published.test_in_rest.share
    assert found.strangers == ()
    assert found.rows_without_image == {}


@pytest.mark.skipif(not (HAM10000 / METADATA).is_file(), reason=NO_HAM10000)
def test_real_near_duplicates() -> None:
    """Four pairs of HAM10000 under two lesion ids are one lesion; look-alikes are not."""
    pairs = {
        ("ISIC_0025226", "ISIC_0030074"): True,
        ("ISIC_0027027", "ISIC_0029036"): True,
        ("ISIC_0027636", "ISIC_0027994"): True,
        ("ISIC_0029152", "ISIC_0033173"): True,
        # Alike at a glance: correlations of whole thumbnails are above 0.85 here.
        ("ISIC_0033408", "ISIC_0033702"): False,
        ("ISIC_0032568", "ISIC_0032999"): False,
    }
    for (first, second), same in pairs.items():
        files = [next(HAM10000.glob(f"HAM10000_images_part_*/{i}.jpg")) for i in (first, second)]
        squares = np.stack([load_image(path, SIDE) for path in files])
        thumbnails = (squares @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)
        coefficients, detail = describe(thumbnails)
        ((_, _, turn),) = candidate_pairs(coefficients)
        turns = list(TURNS)
        best = max(
            (float(best_shift(detail[:1], turn_pixels(detail[1:], turns[t]))[0]) for t in turn),
            default=0.0,
        )
        assert (best >= NEAR) is same, (first, second, best)
