"""Likeness of heads: the matrices of Fig. 3 as a picture and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table

from biigma_cli.metrics import Floats
from biigma_cli.report.style import (
    HEADING,
    headed_figure,
    picture_kind,
    save,
    style,
)
from biigma_cli.storage import atomic_write_bytes

#: Matrix -> what it is called.
KINDS = {"pooled": "pooled features", "positions": "features at each position"}

Matrices = Mapping[str, Floats]


def draw_heads(
    panels: Sequence[tuple[str, Matrices]], path: Path, *, title: str, subtitle: str
) -> None:
    """One column a model, one row a kind of `KINDS`, numbers in the cells.

    The colours run from 0 to 1 in every picture, so that pictures can be compared, too.

    Args:
        panels: of each model its name, and `(K, K)` matrices by the names in `KINDS`.
        path: `.svg` or `.png`; replaced as a whole or not at all.

    Raises:
        UsageError: another ending.
        BiigmaError: the file cannot be written.
    """
    kind = picture_kind(path, "heads.svg")
    with style():
        # Inches, from the top: the heading, then the rows of square panels.
        width, height = 1.3 + 2.9 * len(panels), HEADING + 3.15 * len(KINDS)
        figure = headed_figure(width, height, title=title, subtitle=subtitle)
        axes = figure.subplots(len(KINDS), len(panels), squeeze=False)
        for row, (name, what) in zip(axes, KINDS.items(), strict=True):
            for axis, (model, matrices) in zip(row, panels, strict=True):
                matrix = matrices[name]
                count = len(matrix)
                image = axis.imshow(matrix, cmap="cividis", vmin=0, vmax=1)
                axis.set_title(f"{model}\n{what}" if model else what, parse_math=False)
                axis.grid(visible=False)
                names = [str(i + 1) for i in range(count)]
                axis.set_xticks(range(count), names)
                axis.set_yticks(range(count), names)
                axis.tick_params(length=0)
                axis.spines[:].set_visible(False)
                axis.set_xlabel("head")
                for (i, j), value in np.ndenumerate(matrix):
                    axis.text(
                        j, i, f"{value:.2f}", ha="center", va="center", size=10 if count < 6 else 7,
                        color="black" if value > 0.5 else "white",
                    )  # fmt: skip
            row[0].set_ylabel("head")
        bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30)
        bar.set_label("mean cosine similarity")
        bar.outline.set_visible(False)
        content = save(figure, kind)
    atomic_write_bytes(path, content)


def heads_items(matrices: Matrices, means: Mapping[str, float], *, title: str) -> list[Table | str]:
    """Both matrices beside one another, a row a head, and a line of means.

    Args:
        matrices: by the names in `KINDS`.
        means: between different heads, by those names and `chance`.
    """
    count = len(matrices["pooled"])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("head", justify="right", no_wrap=True)
    for what in ("pooled", "at each position"):
        # Of many heads the columns are folded within their cells rather than cut off.
        table.add_column(f"{what}: 1 .. {count}", overflow="fold")
    for i in range(count):
        cells = (" ".join(f"{v:.3f}" for v in matrices[name][i]) for name in KINDS)
        table.add_row(str(i + 1), *cells)
    return [
        title,  # not the table's own: that would be folded to its width
        table,
        f"off the diagonal: {means['pooled']:.3f} pooled, {means['positions']:.3f} at each "
        f"position;\n{means['chance']:.3f} pooled with channels in random order",
    ]
