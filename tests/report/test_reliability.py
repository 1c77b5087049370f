"""Reliability diagrams: files that open, hold what was measured, and are the same each time."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from biigma_cli.errors import UsageError
from biigma_cli.metrics import Reliability, apply_temperature, reliability
from biigma_cli.report.reliability import draw_reliability


@pytest.fixture(scope="module")
def panels() -> dict[str, Reliability]:
    """Before and after."""
    rng = np.random.default_rng(0)
    proba = rng.dirichlet((0.3, 0.3, 0.3), 600)
    labels = rng.integers(0, 3, 600)
    return {
        "As trained": reliability(labels, proba),
        "Calibrated, T = 4.000": reliability(labels, apply_temperature(proba, 4)),
    }


def test_svg(panels: dict[str, Reliability], tmp_path: Path) -> None:
    """Well-formed; every bin of each panel has its dot; the same input gives the same bytes."""
    for name in ("one.svg", "two.svg"):
        draw_reliability(panels, tmp_path / name, title="a $model", subtitle="test part")
    content = (tmp_path / "one.svg").read_bytes()
    assert content == (tmp_path / "two.svg").read_bytes()
    uses = [e for e in ET.fromstring(content).iter() if e.tag.endswith("}use")]
    dots = [u for u in uses if "fill: #0072b2" in u.get("style", "")]
    bins = sum(len(p.bins) for p in panels.values())
    assert len(dots) == bins + 1  # one in the legend


def test_png(panels: dict[str, Reliability], tmp_path: Path) -> None:
    """One panel is about half as wide as two, and neither is empty."""
    sizes = []
    for count in (1, 2):
        path = tmp_path / f"{count}.PNG"
        chosen = dict(list(panels.items())[:count])
        draw_reliability(chosen, path, title="model", subtitle="test part")
        with Image.open(path) as image:
            sizes.append(image.size)
            assert np.asarray(image.convert("L")).std() > 10
    (narrow, low), (wide, high) = sizes
    assert low == high
    assert 1.7 * narrow < wide < 2 * narrow


def test_another_ending(panels: dict[str, Reliability], tmp_path: Path) -> None:
    """Only what is promised."""
    with pytest.raises(UsageError, match="neither"):
        draw_reliability(panels, tmp_path / "a.pdf", title="", subtitle="")
    assert not list(tmp_path.iterdir())
