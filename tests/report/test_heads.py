"""Likeness of heads: the cosines, the picture and `biigma eval --heads`."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from biigma_cli.core.weights import load_checkpoint, model_state, save_checkpoint
from biigma_cli.engine.evaluate import to_batch
from biigma_cli.errors import ModelFileError, UsageError
from biigma_cli.judge.heads import between, head_similarity, open_heads
from biigma_cli.report.heads import draw_heads, heads_items
from biigma_cli.report.tables import render
from tests.conftest import call
from tests.core.tiny import tiny_config, tiny_net

CPU = torch.device("cpu")
Floats = npt.NDArray[np.float64]


def matrices(count: int, seed: int = 0) -> dict[str, Floats]:
    """Symmetric, ones on the diagonal."""
    found = {}
    for i, name in enumerate(("pooled", "positions")):
        values = np.random.default_rng(seed + i).random((count, count))
        found[name] = (values + values.T) / 2
        np.fill_diagonal(found[name], 1)
    return found


# --- cosines ---------------------------------------------------------------------------------


def test_as_loops() -> None:
    """Both matrices, and what random orders of the channels leave, over more than a batch."""
    count, k = 37, 3
    model = tiny_net(side=64, heads=k)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), np.uint8)
    with torch.no_grad():
        heads = model(to_batch(torch.from_numpy(pixels), CPU)).heads
    assert heads is not None
    gated = heads.gated().double().numpy()  # (B, K, D, H, W)
    pooled = gated.mean((3, 4))
    b, _, d, h, w = gated.shape
    expected = np.zeros((3, k, k))

    def cosine(one: Floats, other: Floats) -> float:
        size = np.linalg.norm(one) * np.linalg.norm(other)
        return float(one @ other / size) if size else 0.0

    rng = np.random.default_rng(1)
    orders = [rng.permutation(d) for _ in range(300)]
    for n in range(b):
        for i in range(k):
            for j in range(k):
                one, other = pooled[n, i], pooled[n, j]
                expected[0, i, j] += cosine(one, other) / b
                at = [
                    cosine(gated[n, i, :, y, x], gated[n, j, :, y, x])
                    for y in range(h)
                    for x in range(w)
                ]
                expected[1, i, j] += np.mean(at) / b
                mixed = np.mean([other[order] for order in orders], axis=0)
                size = np.linalg.norm(one) * np.linalg.norm(other)
                expected[2, i, j] += one @ mixed / size / b
    told: list[tuple[int, int]] = []
    found = head_similarity(model, pixels, CPU, progress=lambda *p: told.append(p))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4)
    np.testing.assert_allclose(found[2], expected[2], rtol=0.03)  # so many orders only
    np.testing.assert_allclose(np.diagonal(found[0]), 1, rtol=1e-5)
    assert told == [(32, 37), (37, 37)]


def test_between() -> None:
    """The diagonal does not count."""
    matrix = np.array([[1, 0.2, 0.4], [0.2, 1, 0.6], [0.4, 0.6, 1]])
    assert between(matrix) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"mica": False}, "without heads"), ({"heads": 1}, "has one head")],
)
def test_nothing_to_compare(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    """A network without heads, or with one."""
    path = tmp_path / "m.safetensors"
    settings = {**tiny_config(**changes).__dict__}
    meta = {
        "config": {"model": settings},
        "classes": ["MEL", "NV"],
    }
    save_checkpoint(path, model_state(tiny_net(2, **changes)), meta)
    assert load_checkpoint(path).config.model.heads == settings["heads"]
    with pytest.raises(ModelFileError, match=words) as caught:
        open_heads(path, "cpu")
    assert caught.value.fix


# --- picture and table -----------------------------------------------------------------------


def test_svg(tmp_path: Path) -> None:
    """Well-formed; a number in each cell of each panel; the same input gives the same bytes."""
    panels = [("before, $2", matrices(3)), ("after", matrices(3, 7))]
    for name in ("one.svg", "two.svg"):
        draw_heads(panels, tmp_path / name, title="heads", subtitle="test part")
    content = (tmp_path / "one.svg").read_text()
    assert content == (tmp_path / "two.svg").read_text()
    ET.fromstring(content)
    for _, found in panels:
        for matrix in found.values():
            for value in matrix.ravel():
                assert f"<!-- {value:.2f} -->" in content
    # Four panels and the scale.
    assert content.count('id="axes_') == 5
    assert content.count("<!-- 1.00 -->") >= 12


def test_png(tmp_path: Path) -> None:
    """Two models are nearly twice as wide as one; other heads, other colours."""
    sizes, colours = [], []
    even = {name: np.ones((3, 3)) for name in ("pooled", "positions")}
    for name, panels in {
        "one.png": [("", matrices(3))],
        "two.PNG": [("a", matrices(3)), ("b", matrices(5))],
        "even.png": [("", even)],
    }.items():
        draw_heads(panels, tmp_path / name, title="heads", subtitle="test part")
        with Image.open(tmp_path / name) as image:
            sizes.append(image.size)
            colours.append(len(set(image.convert("RGB").get_flattened_data())))
    assert sizes[0][1] == sizes[1][1]
    assert 1.4 * sizes[0][0] < sizes[1][0] < 2 * sizes[0][0]
    assert colours[0] > colours[2]


def test_another_ending(tmp_path: Path) -> None:
    """Only what is promised; nothing is written."""
    with pytest.raises(UsageError, match="neither"):
        draw_heads([("", matrices(2))], tmp_path / "a.pdf", title="", subtitle="")
    assert not list(tmp_path.iterdir())


def test_table() -> None:
    """Every number of both matrices, and the means."""
    found = matrices(3)
    means = {"pooled": 0.111, "positions": 0.222, "chance": 0.333}
    shown = render(*heads_items(found, means, title="heads of m"), width=80, colour=False)
    for i in range(3):
        for matrix in found.values():
            assert " ".join(f"{v:.3f}" for v in matrix[i]) in shown
    for mean in ("0.111", "0.222", "0.333"):
        assert mean in shown
    assert max(map(len, shown.splitlines())) <= 80


# --- the command -----------------------------------------------------------------------------


def test_command(home: Path, run_copy: Path, tmp_path: Path) -> None:
    """A picture, a table a model, both in the JSON and in the run's record."""
    path = tmp_path / "new" / "heads.svg"
    arguments = ("eval", "--run", run_copy, "--heads", path, "--resamples", "0", "--device", "cpu")
    done = call(*arguments)
    assert done.code == 0, done.err
    assert f"saved in {path}" in done.err
    assert "off the diagonal" in done.out
    own = json.loads((run_copy / "eval-test.json").read_text())["heads"]
    assert "against" not in own
    pooled = np.array(own["pooled"])
    assert pooled.shape == np.array(own["positions"]).shape == (3, 3)
    np.testing.assert_allclose(pooled, pooled.T, atol=1e-9)
    assert own["mean_between_heads"]["pooled"] == pytest.approx(between(pooled))
    assert path.read_text().count('id="axes_') == 3
    done = call(*arguments, "--against", run_copy, "--json")
    assert done.code == 0, done.err
    both = json.loads(done.out)["heads"]
    assert both["against"]["pooled"] == both["pooled"] == own["pooled"]
    assert path.read_text().count('id="axes_') == 5


def test_an_export_has_none(tiny_run: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    """Said before the work, whichever of the two it is."""
    path = tmp_path / "heads.png"
    for models in (("--model", tiny_onnx), ("--run", tiny_run, "--against", tiny_onnx)):
        done = call("eval", *models, "--heads", path, "--device", "cpu")
        assert done.code == 3, done.err
        assert done.out == ""
        assert "not its heads' features" in done.err
        assert "(.safetensors)" in done.err
    assert not path.exists()


@pytest.mark.parametrize(("name", "word"), [("a.pdf", "neither .svg nor"), (".", "neither")])
def test_targets(tiny_run: Path, tmp_path: Path, name: str, word: str) -> None:
    """What is no picture is refused first."""
    done = call("eval", "--run", tiny_run, "--heads", tmp_path / name)
    assert (done.code, done.out) == (2, "")
    assert word in done.err
