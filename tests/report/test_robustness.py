"""Tables, figure and contact sheet of robustness."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from biigma_cli.data.perturb import PERTURBATIONS, Answers, Effect, difference, effects
from biigma_cli.errors import UsageError
from biigma_cli.report.robustness import (
    SheetImage,
    class_table,
    draw_robustness,
    draw_sheet,
    effect_table,
    outlined,
)
from biigma_cli.report.tables import render

CODES = ("MEL", "NV", "BCC")


def made(seed: int) -> list[Effect]:
    """Random answers; the stronger, and the later in the list, the more are other."""
    rng = np.random.default_rng(seed)
    labels = np.arange(90) % 2
    before = rng.dirichlet((1, 1, 1), 90)
    after = []
    for k, p in enumerate(PERTURBATIONS.values()):
        for s in range(p.strengths):
            other = (np.arange(90) < 4 * k + 12 * s)[:, None]
            proba = np.where(other, np.roll(before, 1, 1), before)
            after.append(Answers(p.name, s + 1, np.ones(90, bool), proba))
    groups = [str(i // 2) for i in range(90)]
    return effects(labels, before, after, CODES, groups=groups, resamples=40)


@pytest.fixture(scope="module")
def both() -> tuple[list[Effect], list[Effect]]:
    """Two models."""
    return made(0), made(1)


def test_table(both: tuple[list[Effect], list[Effect]]) -> None:
    """80 columns; a line a condition; in each group the worst first, mild before strong."""
    text = render(effect_table(both[0], title="t"), width=80, colour=False)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    places = [
        text.index(words)
        for words in (
            "another's background", "donor, other class", "donor, same class",
            "painted", "dark corners, mild", "dark corners, strong", "gel bubbles, mild", "hair",
            "whole", "blur, strong", "JPEG", "colour", "controls", "lesion removed", "flat",
        )
    ]  # fmt: skip
    assert places == sorted(places)
    removed = next(e for e in both[0] if e.name == "lesion-removed")
    value = removed.overall.unchanged.value
    assert value is not None
    line = next(line for line in text.splitlines() if "lesion removed" in line)
    assert f" {100 * value:.1f} " in line


def test_difference_table(both: tuple[list[Effect], list[Effect]]) -> None:
    """Signed."""
    apart = [difference(a, b) for a, b in zip(*both, strict=True)]
    text = render(effect_table(both[0], title="t", differences=apart), width=80, colour=False)
    line = next(line for line in text.splitlines() if "donor, same class" in line)
    assert line.split("class")[1].split()[0][0] in "+-"


def test_class_table(both: tuple[list[Effect], list[Effect]]) -> None:
    """Only classes with images; the strongest step."""
    text = render(class_table(both[0], CODES), width=80, colour=False)
    assert "BCC" not in text
    assert text.split("images")[1].split()[:2] == ["45", "45"]
    assert text.count("blur") == 1


def test_figure(both: tuple[list[Effect], list[Effect]], tmp_path: Path) -> None:
    """Well-formed; a panel each; every condition of each model has its dot; the same each time."""
    series = dict(zip(("a $model", "_second"), both, strict=True))
    for name in ("one.svg", "two.svg"):
        draw_robustness(series, tmp_path / name, title="T", subtitle="S")
    draw_robustness({"a": both[0]}, tmp_path / "one.png", title="T", subtitle="S")
    content = (tmp_path / "one.svg").read_bytes()
    assert content == (tmp_path / "two.svg").read_bytes()
    assert content.count(b'id="axes_') == 9
    uses = [e for e in ET.fromstring(content).iter() if e.tag.endswith("}use")]
    for colour in ("#0072b2", "#d55e00"):
        dots = [u for u in uses if f"fill: {colour}" in u.get("style", "")]
        assert len(dots) == 28 + 1  # one in the legend
    with Image.open(tmp_path / "one.png") as image:
        assert np.asarray(image.convert("L")).std() > 10


def test_sheet(tmp_path: Path) -> None:
    """Every picture is on it; where there is no donor its place stays empty."""
    rng = np.random.default_rng(0)

    def colour() -> np.ndarray:
        value = rng.integers(0, 200, 3)
        return np.broadcast_to(value, (32, 32, 3)).astype(np.uint8)

    pictures = {p.name: [colour() for _ in range(p.strengths)] for p in PERTURBATIONS.values()}
    pictures["background-same donor"] = [colour()]
    del pictures["background-other"]
    level = np.full((32, 32), -1.0, np.float32)
    level[8:24, 8:24] = 1
    image = SheetImage("I1, NV", colour(), outlined(colour(), level), pictures)
    draw_sheet([image, image], tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(io.BytesIO((tmp_path / "sheet.png").read_bytes())))
    packed = sheet.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    found = set(np.unique(packed).tolist())
    for steps in pictures.values():
        for picture in steps:
            red, green, blue = (int(v) for v in picture[0, 0])
            assert red * 65536 + green * 256 + blue in found


def test_outline() -> None:
    """Where the level is about 0, and nowhere else."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    level = np.broadcast_to(np.linspace(-1, 1, 64, dtype=np.float32), (64, 64))
    line = outlined(pixels, level).any(2)
    assert line[:, 31:33].all()
    assert not line[:, :28].any()


def test_other_endings(both: tuple[list[Effect], list[Effect]], tmp_path: Path) -> None:
    """Only what is promised."""
    with pytest.raises(UsageError, match="neither"):
        draw_robustness({"m": both[0]}, tmp_path / "a.pdf", title="", subtitle="")
    with pytest.raises(UsageError, match="png"):
        draw_sheet([], tmp_path / "a.svg")
    assert not list(tmp_path.iterdir())
