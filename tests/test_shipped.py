"""The models in `models/`: they load, stay small, and still give what they say of themselves."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from biigma_cli.core.digest import shipped_digests
from biigma_cli.data.preprocess import load_image
from biigma_cli.runtime.limits import prior_of
from biigma_cli.runtime.session import DEFAULT_MODEL, Predictor, find_model, shipped_models
from biigma_cli.taxonomy import base_of

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
FOLDERS = {"isic18": "ham10000", "isic17": "isic17"}
GOLDEN = Path(__file__).parent / "shipped_golden.json"


def images_of(dataset: str) -> Path:
    """Folder of that data set's images; skips the test where it is absent."""
    folder = DATA / FOLDERS[base_of(dataset)]
    if not folder.is_dir():
        pytest.skip(f"no {folder.name} at ../shared/data/{folder.name}")
    return folder


def synthetic(side: int) -> np.ndarray:
    """A fixed handful of pictures made by arithmetic alone, uint8 `(4, side, side, 3)`."""
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    images = []
    for i in range(4):
        lesion = 1 / (1 + np.exp(40 * (np.hypot(x * (1 + 0.2 * i), y) - 0.15 - 0.06 * i)))
        ripple = 0.08 * np.sin((20 + 7 * i) * x) * np.cos((23 + 5 * i) * y)
        skin = np.array([0.86, 0.68 - 0.03 * i, 0.60])
        spot = np.array([0.40 - 0.06 * i, 0.22, 0.16 + 0.04 * i])
        mixed = skin + (spot - skin) * lesion[..., None] + (ripple * lesion)[..., None]
        images.append(np.clip(mixed * 255, 0, 255).astype(np.uint8))
    return np.stack(images)


def test_digests() -> None:
    """The list beside the models has each as it is: none was changed without a word."""
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in shipped_models()}
    assert shipped_digests() == found, "run in models/: sha256sum *.onnx > SHA256SUMS"


def test_the_default_is_there_and_small() -> None:
    """The default model ships, in at most 16 MB."""
    path = find_model(None)
    assert path.stem == DEFAULT_MODEL
    assert path.stat().st_size <= 16e6


@pytest.mark.parametrize("path", shipped_models(), ids=lambda p: p.stem)
def test_stored_answers(path: Path) -> None:
    """Probabilities for fixed synthetic pictures are those stored when the model was added."""
    predictor = Predictor(path, device="cpu")
    answer = predictor(synthetic(predictor.info.side))
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))[path.stem]
    # Where int8 is added up in another order, a rounding can fall to the other side.
    int8 = predictor.info.metadata["export"]["precision"] == "int8"
    np.testing.assert_allclose(answer.probabilities_BY, expected, atol=0.05 if int8 else 2e-3)


@pytest.mark.parametrize(
    ("name", "precision", "most"),
    [("biigma-edge-isic18", "int8", 5e6), ("biigma-densenet-isic18", "fp16", 20e6)],
)
def test_the_other_sizes(name: str, precision: str, most: float) -> None:
    """The one for small devices ships in int8, the paper's own trunk in float16."""
    path = find_model(name)
    assert path.stat().st_size <= most
    assert Predictor(path, device="cpu").info.metadata["export"]["precision"] == precision


@pytest.mark.parametrize("path", shipped_models(), ids=lambda p: p.stem)
def test_card(path: Path) -> None:
    """Each model has a card with its figures, split and licence, and what its precision costs."""
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    metadata = Predictor(path, device="cpu").info.metadata
    for figure in metadata["metrics"]["test"]["intervals"].values():
        assert f"{figure['value']:.4f}" in card
    assert metadata["split"]["split_hash"] in card
    assert metadata["licence"] in card
    for extra in metadata["extra"]:
        assert extra["citation"] in card
    if metadata["export"]["precision"] == "fp32":
        return
    before, after = metadata["export"]["accuracy"]["balanced_accuracy"]
    assert f"| balanced accuracy | {before:.4f} | {after:.4f} |" in card
    assert before - after <= 0.005


@pytest.mark.parametrize("path", shipped_models(), ids=lambda p: p.stem)
def test_class_shares(path: Path) -> None:
    """Each states those that its probabilities stand for, and the card has them."""
    info = Predictor(path, device="cpu").info
    prior = prior_of(info)
    assert prior is not None
    counts = info.metadata["metrics"]["val"]["per_class"]
    assert prior.images <= sum(c["support"] for c in counts)
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    for code, share, implied in zip(info.classes, prior.shares, prior.implied, strict=True):
        assert f"| {code} | {share:.3f} | {implied:.3f} |" in card


@pytest.mark.parametrize("path", shipped_models(), ids=lambda p: p.stem)
def test_input_check(path: Path) -> None:
    """What is no dermoscopy at all is flagged; the drawn lesion, which could be, is not."""
    predictor = Predictor(path, device="cpu")
    side = predictor.info.side
    rng = np.random.default_rng(0)
    stripes = np.zeros((side, side, 3), np.uint8)
    stripes[::8] = 255
    others = np.stack([
        np.zeros((side, side, 3), np.uint8),
        np.full((side, side, 3), 255, np.uint8),
        rng.integers(0, 256, (side, side, 3), np.uint8),
        stripes,
    ])  # fmt: skip
    novelty = predictor(others).novelty_B
    assert novelty is not None
    assert (novelty > 1).all()
    pixels = load_image(ROOT / "docs" / "img" / "drawn_lesion.jpg", side)
    drawn = predictor(pixels[None]).novelty_B
    assert drawn is not None
    assert drawn[0] < 1


@pytest.mark.parametrize("path", shipped_models(), ids=lambda p: p.stem)
def test_flag_rates(path: Path) -> None:
    """Of 200 real images few are flagged, of photographs that come with packages all."""
    import matplotlib
    import sklearn

    predictor = Predictor(path, device="cpu")
    side = predictor.info.side
    files = sorted(images_of(predictor.info.metadata["dataset"]).rglob("*.jpg"))
    own = predictor(np.stack([load_image(f, side) for f in files[:: len(files) // 200]])).novelty_B
    assert own is not None
    assert len(own) >= 200
    assert (own > 1).mean() <= 0.03
    photographs = [
        Path(matplotlib.__file__).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg",
        *(Path(sklearn.__file__).parent / "datasets" / "images").glob("*.jpg"),
    ]
    assert len(photographs) >= 3
    for photograph in photographs:
        flagged = predictor(load_image(photograph, side)[None]).novelty_B
        assert flagged is not None
        assert flagged[0] > 1, photograph.name


def test_the_drawn_lesion() -> None:
    """The README's picture gets the README's answer."""
    predictor = Predictor(find_model(None), device="cpu")
    pixels = load_image(ROOT / "docs" / "img" / "drawn_lesion.jpg", predictor.info.side)
    row = predictor(pixels[None]).probabilities_BY[0]
    p, code = row.max(), predictor.info.classes[int(row.argmax())]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{code}  " in readme
    assert f"{p:.1%}" in readme


@pytest.mark.slow
@pytest.mark.parametrize("path", shipped_models(), ids=lambda p: p.stem)
def test_stated_figures(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model's test figures come out again from its own file, split and data."""
    import torch

    from biigma_cli.data.datasets import read_copy
    from biigma_cli.data.manifest import load_manifest, save_manifest
    from biigma_cli.judge import judge, open_candidate

    metadata = Predictor(path, device="cpu").info.metadata
    folder = images_of(metadata["dataset"])
    monkeypatch.setenv("BIIGMA_HOME", str(tmp_path))
    name = metadata["dataset"]
    save_manifest(read_copy(base_of(name), [folder], allow_missing=True))
    manifest = load_manifest(name)
    candidate = open_candidate(path, torch.device("cpu"))
    result = judge(candidate, manifest, "test", resamples=0).to_dict()
    stated = metadata["metrics"]["test"]
    assert metadata["export"]["precision"] != "int8" or stated["judged"] == "file"
    assert result["n"] == stated["n"]
    # Where int8 is added up in another order, a decision can fall to the other side.
    near = 0.005 if metadata["export"]["precision"] == "int8" else 0.003
    for name in ("accuracy", "macro_f1", "macro_recall", "macro_precision"):
        assert result[name] == pytest.approx(stated[name], abs=near)
