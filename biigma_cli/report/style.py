"""How every picture looks: one style, a heading, and files that are the same each time.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart. The files hold
no date and no random ids: the same figures give the same bytes with the same matplotlib.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from biigma_cli.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "png")

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#6b6b6b"
_STYLE: dict[str, Any] = {
    "axes.edgecolor": "#999999",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": GREY,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.size": 9,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.hashsalt": "biigma",
    "xtick.color": GREY,
    "ytick.color": GREY,
}
#: Inches that the heading takes from the top.
HEADING = 0.65


def picture_kind(path: Path, example: str) -> str:
    """`svg` or `png`, by the ending. Raises `UsageError` for another, which names `example`."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise UsageError(f"{path} is neither .svg nor .png", fix=f"name the file {example}")
    return kind


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Our style whatever the user's own settings of matplotlib are."""
    import matplotlib.style

    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        # Names of runs may hold signs that the font lacks: they show as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def headed_figure(width: float, height: float, *, title: str, subtitle: str) -> Figure:
    """An empty figure of so many inches, its plots laid out below a title and a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    engine = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - HEADING / height), w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(width, height), layout=engine)
    FigureCanvasAgg(figure)
    left = 0.1 / width
    write(figure, left, 1 - 0.1 / height, title, size=11, weight="bold")
    write(figure, left, 1 - 0.35 / height, subtitle, color=GREY)
    return figure


def write(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    """Text as it is: a dollar sign in a run's name is no formula."""
    figure.text(x, y, text, va="top", parse_math=False, **style).set_in_layout(False)


def save(figure: Figure, kind: str) -> bytes:
    """The picture's bytes, without date or version.

    The canvases are called directly: `savefig` would draw everything twice.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file = io.BytesIO()
    if kind == "svg":
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    else:
        figure.dpi = 150
        FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return file.getvalue()
