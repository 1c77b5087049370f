"""Maps laid over pictures: where they come to lie, their colours, and the files drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from biigma_cli.config import FIRST_CENTRE
from biigma_cli.core.backbone import TRUNKS
from biigma_cli.data.preprocess import load_image
from biigma_cli.errors import UsageError
from biigma_cli.report.overlay import (
    Frame,
    Layer,
    blend,
    draw_overlay,
    inside,
    lay,
    shortened,
    square_box,
    value_range,
)

SIDE = 96
RULES = ("squash", "crop", "pad")
SIZES = [(150, 60), (60, 150), (97, 96), (40, 30)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", SIZES)
def test_a_map_lies_where_the_network_saw(rule: str, size: tuple[int, int], tmp_path: Path) -> None:
    """A spot of the picture, brought to the square by `load_image`, is laid back on the spot."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    # Off the middle, but within what a crop keeps.
    cx, cy = width / 2 + min(size) * 0.2, height / 2 - min(size) * 0.15
    spot = np.exp(-((x + 0.5 - cx) ** 2 + (y + 0.5 - cy) ** 2) / (2 * (0.08 * min(size)) ** 2))
    path = tmp_path / "spot.png"
    Image.fromarray((spot * 255).astype(np.uint8)).save(path)
    square = load_image(path, SIDE, rule=rule)[..., 0] / 255
    laid = lay(square, Frame(size, SIDE, rule), (height, width))
    seen = np.isfinite(laid)
    assert seen.sum() == pytest.approx(min(size) ** 2 if rule == "crop" else seen.size, rel=0.02)
    np.testing.assert_allclose(laid[seen], spot[seen], atol=0.06)
    weight = np.nan_to_num(laid) / np.nansum(laid)
    assert (weight * (x + 0.5)).sum() == pytest.approx(cx, abs=0.3)
    assert (weight * (y + 0.5)).sum() == pytest.approx(cy, abs=0.3)


def test_the_square_on_the_picture() -> None:
    """By hand: the picture, its middle, and more than the picture."""
    size = (300, 200)
    assert square_box(Frame(size, 60, "squash")) == (0, 0, 300, 200)
    assert square_box(Frame(size, 60, "crop")) == (50, 0, 250, 200)
    assert square_box(Frame(size, 60, "pad")) == (0, -50, 300, 250)
    with pytest.raises(KeyError):
        square_box(Frame(size, 60, "stretch"))


def test_by_hand() -> None:
    """Two positions over eight pixels: flat to each centre, straight between."""
    values = np.array([[0.0, 4.0]])
    laid = lay(values, Frame((8, 1), 8, "squash"), (1, 8))
    np.testing.assert_allclose(laid[0], [0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4])
    # Centres further left, in pixels 0 and 4: the last pixel is more than half a step beyond.
    laid = lay(values, Frame((8, 1), 8, "squash", first_centre=0.5), (1, 8))
    np.testing.assert_allclose(laid[0], [0, 1, 2, 3, 4, 4, 4, np.nan])
    # Further right, in pixels 3 and 7: so it is with the first one.
    laid = lay(values, Frame((8, 1), 8, "squash", first_centre=3.5), (1, 8))
    np.testing.assert_allclose(laid[0], [np.nan, 0, 0, 0, 1, 2, 3, 4])


@pytest.mark.parametrize("trunk", sorted(FIRST_CENTRE))
def test_centres_are_those_of_the_trunk(trunk: str) -> None:
    """Kernel, stride and padding of each layer on the way give the centre of a position's view."""
    with torch.device("meta"):
        net = TRUNKS[trunk]()
    # Of Inception's parallel branches, one; its other blocks keep the centre where it is.
    one_way = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "maxpool1", "Conv2d_4a_3x3", "maxpool2"]
    one_way += ["Mixed_6a.branch3x3", "Mixed_7a.branch3x3_2"]
    if trunk == "inception_v3":
        parts = [net.get_submodule(n) for n in one_way]
    else:
        parts = [net if trunk.startswith("efficientnet") else net.features]
    kinds = (torch.nn.Conv2d, torch.nn.MaxPool2d, torch.nn.AvgPool2d)
    centre, step = 0.5, 1
    for layer in (m for part in parts for m in part.modules()):
        if isinstance(layer, torch.nn.ZeroPad2d):
            centre -= layer.padding[0] * step
        elif isinstance(layer, kinds):
            kernel, stride, padding = (
                v[0] if isinstance(v, tuple) else v
                for v in (layer.kernel_size, layer.stride, layer.padding)
            )
            centre += ((kernel - 1) / 2 - padding) * step
            step *= stride
    assert step == 32
    assert FIRST_CENTRE[trunk] == pytest.approx(centre, abs=1.5)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 6), st.sampled_from([None, 0.5, 15.5, 16.0]),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_inside(rows: int, columns: int, first: float | None, seed: int) -> None:
    """All of a map lies on a lesion that is everywhere, and parts of a lesion add up."""
    rng = np.random.default_rng(seed)
    frame = Frame((100, 80), 96, "squash", first)
    lesion = (rng.random((96, 96)) < 0.3).astype(float)
    on, off = (inside(m, frame, (rows, columns)) for m in (lesion, 1 - lesion))
    np.testing.assert_allclose(on + off, 1)
    assert on.min() >= 0
    np.testing.assert_allclose(inside(np.ones((96, 96)), frame, (rows, columns)), 1)


def test_inside_by_hand() -> None:
    """A lesion on the left half: the left position's spot reaches over to the right."""
    lesion = np.zeros((8, 8))
    lesion[:, :4] = 1
    # The left position's weights are 1, 1, 7/8, 5/8, 3/8, 1/8, 0, 0 over the columns.
    on = inside(lesion, Frame((8, 8), 8, "squash"), (1, 2))
    np.testing.assert_allclose(on, [[3.5 / 4, 0.5 / 4]])


def test_value_range() -> None:
    """Signed values are centred on zero; an even map is not stretched to look uneven."""
    assert value_range(np.array([-1.0, 3.0]), signed=True) == (-3, 3)
    assert value_range(np.zeros(2), signed=True) == (-1, 1)
    assert value_range(np.array([0.2, 0.9]), signed=False) == (0.2, 0.9)
    assert value_range(np.array([0.50, 0.51]), signed=False) == pytest.approx((0.48, 0.53))


@pytest.mark.parametrize("level", [0.3, 0.6, 0.9])
def test_colours(level: float) -> None:
    """Zero is the picture itself, signs are told apart, and equal steps look equal."""
    grey = np.full((1, 65), level)
    values = np.linspace(-1, 1, 65)[None]
    signed = blend(grey, values, signed=True, limits=(-1, 1))[0]
    np.testing.assert_allclose(signed[32], level)
    assert (signed[33:, 0] > signed[33:, 2]).all()  # for: red
    assert (signed[:32, 2] > signed[:32, 0]).all()  # against: blue
    for half in (signed[32:], signed[:33]):
        steps = np.linalg.norm(np.diff(cielab(half), axis=0), axis=1)
        assert steps.max() < 1.4 * steps.min()
    rising = cielab(blend(grey, values, signed=False, limits=(-1, 1))[0])[:, 0]
    assert np.diff(rising).min() > 0
    assert np.diff(rising).max() < 2 * np.diff(rising).min()
    pale = blend(np.array([[0.2, 0.2]]), np.array([[np.nan, 1]]), signed=True, limits=(-1, 1))[0]
    np.testing.assert_allclose(pale[0], 0.8)


def cielab(rgb: np.ndarray) -> np.ndarray:
    """L*, a*, b* of sRGB in [0, 1], `(n, 3)`, at D65."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    f = np.cbrt(linear @ np.transpose(to_xyz) / (0.9505, 1, 1.089))
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def layers(count: int = 2) -> list[Layer]:
    """Evidence and M."""
    rng = np.random.default_rng(0)
    return [
        Layer(title="Evidence for $X", legend="adds to it", map_hw=rng.normal(size=(5, 5)),
              signed=True),
        Layer(title="M", legend="no unit", map_hw=rng.random((5, 5)), signed=False),
    ][:count]  # fmt: skip


@pytest.mark.parametrize("shape", [(60, 80), (300, 12), (12, 300), (1, 1)])
def test_png(shape: tuple[int, int], tmp_path: Path) -> None:
    """Any aspect; each map makes the page wider by the same."""
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    widths = []
    for count in (1, 2):
        path = tmp_path / f"{count}.png"
        draw_overlay(
            picture, layers(count), Frame(shape[::-1], 96, "pad"), path, title="a", subtitle="b",
            lesion_HW=picture[..., 0] > 90,
        )  # fmt: skip
        with Image.open(path) as image:
            widths.append(image.width)
            assert image.height < 1200
    assert widths[1] - widths[0] == pytest.approx(3.7 * 150, abs=2)


def test_svg(tmp_path: Path) -> None:
    """Well-formed, the same each time; names are no formulas, and long ones keep to the page."""
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    for name in ("one.svg", "two.svg"):
        draw_overlay(
            picture, layers(), Frame((40, 30), 96, "squash"), tmp_path / name,
            title="x" * 300 + "$.jpg", subtitle="b", probabilities=("A 90%",),
            notes=("Note.",) * 60,
        )  # fmt: skip
    content = (tmp_path / "one.svg").read_bytes()
    assert content == (tmp_path / "two.svg").read_bytes()
    images = [e for e in ET.fromstring(content).iter() if e.tag.endswith("}image")]
    assert len(images) == 5  # the picture, two maps, two legends
    assert b"Evidence for $X" in content
    with pytest.raises(UsageError, match="neither"):
        draw_overlay(
            picture, [], Frame((40, 30), 96, "squash"), tmp_path / "a.pdf", title="", subtitle=""
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.svg", "two.svg"]


def test_shortened() -> None:
    """The middle goes, beginning and ending stay."""
    assert shortened("abc", 3) == "abc"
    assert shortened("abcdefghijkl", 10) == "ab...hijkl"
    assert len(shortened("x" * 500, 41)) <= 41
