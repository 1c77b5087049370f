"""Reliability diagrams, drawn by matplotlib without a window."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from biigma_cli.metrics import Reliability
from biigma_cli.report.style import (
    COLOURS,
    GREY,
    headed_figure,
    picture_kind,
    save,
    style,
)
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
    kind = picture_kind(path, "reliability.svg")
    with style():
        # Inches, from the top: the heading, square axes, two short rows of legend or one long.
        width, height = 0.2 + 3.7 * len(panels), 4.75
        figure = headed_figure(width, height, title=title, subtitle=subtitle)
        axes = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
        for axis, (name, diagram) in zip(axes, panels.items(), strict=True):
            _panel(axis, name, diagram)
        axes[0].set_ylabel("share answered right")
        figure.legend(
            *axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=2 * len(panels),
            frameon=False, labelcolor=GREY, handlelength=1.6, columnspacing=1.2,
        )  # fmt: skip
        content = save(figure, kind)
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
        confidence, confidence, accuracy, color=COLOURS[1], linewidth=4, alpha=0.5,
        label="gap to that",
    )  # fmt: skip
    axis.vlines(confidence, low, high, color=COLOURS[0], linewidth=1, label="95% interval")
    images = sum(b.count for b in diagram.bins) / len(diagram.bins)
    axis.plot(
        confidence, accuracy, color=COLOURS[0], marker="o", linestyle="",
        label=f"bin of about {images:.0f} images",
    )  # fmt: skip
    axis.set_xlim(0, 1.02)
    axis.set_ylim(0, 1.02)
    axis.set_aspect("equal")
    axis.set_xlabel("probability of the answer")
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(PercentFormatter(1))
