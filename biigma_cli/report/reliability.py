"""Reliability diagrams, drawn by matplotlib without a window."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from biigma_cli.errors import UsageError
from biigma_cli.metrics import Reliability
from biigma_cli.report.curves import _COLOURS, _GREY, FORMATS, _save, _style, _write
from biigma_cli.storage import atomic_write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_reliability(
    panels: Mapping[str, Reliability], path: Path, *, title: str, subtitle: str
) -> None:
    """One diagram beside the other, by title, on the same axes.

    Bins hold equal numbers of images, so dots lie close together where confidences do. A dot above
    the diagonal is a bin that was right more often than it said.

    Args:
        path: `.svg` or `.png`; replaced as a whole or not at all.

    Raises:
        UsageError: another ending.
        BiigmaError: the file cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise UsageError(f"{path} is neither .svg nor .png", fix="name the file reliability.svg")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with _style():
        # Inches, from the top: the heading, square axes, two short rows of legend or one long.
        width, height, heading = 0.2 + 3.7 * len(panels), 4.75, 0.65
        engine = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - heading / height), w_pad=0.1, h_pad=0.1)
        figure = Figure(figsize=(width, height), layout=engine)
        FigureCanvasAgg(figure)
        left = 0.1 / width
        _write(figure, left, 1 - 0.1 / height, title, size=11, weight="bold")
        _write(figure, left, 1 - 0.35 / height, subtitle, color=_GREY)
        axes = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
        for axis, (name, diagram) in zip(axes, panels.items(), strict=True):
            _panel(axis, name, diagram)
        axes[0].set_ylabel("share answered right")
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=2 * len(panels),
            frameon=False, labelcolor=_GREY, handlelength=1.6, columnspacing=1.2,
        )  # fmt: skip
        content = _save(figure, kind)
    atomic_write_bytes(path, content)


def _panel(axis: Axes, name: str, diagram: Reliability) -> None:
    from matplotlib.ticker import PercentFormatter

    confidence, accuracy, low, high = np.array(
        [[b.confidence, b.accuracy, b.low, b.high] for b in diagram.bins]
    ).T
    axis.set_title(f"{name}: ECE {diagram.ece:.3f}")
    axis.plot(
        [0, 1], [0, 1], color="#999999", linewidth=1, linestyle=(0, (4, 3)), zorder=1,
        label="right as often as said",
    )  # fmt: skip
    axis.vlines(
        confidence, confidence, accuracy, color=_COLOURS[1], linewidth=4, alpha=0.5,
        label="gap to that",
    )  # fmt: skip
    axis.vlines(confidence, low, high, color=_COLOURS[0], linewidth=1, label="95% interval")
    images = sum(b.count for b in diagram.bins) / len(diagram.bins)
    axis.plot(
        confidence, accuracy, color=_COLOURS[0], marker="o", linestyle="",
        label=f"bin of about {images:.0f} images",
    )  # fmt: skip
    axis.set_xlim(0, 1.02)
    axis.set_ylim(0, 1.02)
    axis.set_aspect("equal")
    axis.set_xlabel("probability of the answer")
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(PercentFormatter(1))
