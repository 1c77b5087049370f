"""The page's figures: small SVGs that take their colours from the page, so that they suit dark too.

Each is drawn at the size it is read at on a phone; a wide screen sets them side by side.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from biigma_cli.metrics import Ints, Reliability
from biigma_cli.metrics.calibration import by_confidence
from biigma_cli.metrics.selective import risk_coverage
from biigma_cli.report.style import COLOURS, GREY, save, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What matplotlib writes -> what the page's style sheet says. The ink is not black, as matplotlib
# leaves black out, and a dark page would then have black words.
_INK = "#1c1d1f"
_VARIABLES = {
    _INK: "--ink",
    GREY: "--quiet",
    "#999999": "--axis",
    "#bbbbbb": "--axis",
    "#e6e6e6": "--line",
    COLOURS[0].lower(): "--blue",
    COLOURS[1].lower(): "--orange",
}
_SIDE = 3.4  # inches at 72 to the inch: 245 px
_Scores = npt.NDArray[np.floating[Any]]


def roc_svg(label_n: Ints, proba_nY: _Scores, index: int, *, key: str, text: str) -> str:
    """ROC curve of one class against the rest, those of the other classes grey behind it.

    The dot is where the model's answers lie.

    Args:
        key: makes the ids of this figure its own.
        text: what it shows, in words, for who cannot see it.
    """
    from sklearn.metrics import roc_curve

    with _drawing() as (figure, axis):
        axis.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=(0, (4, 3)))
        for c in _last(index, proba_nY.shape[1]):
            if not 0 < (label_n == c).sum() < len(label_n):
                continue
            fall, rise, _ = roc_curve(label_n == c, proba_nY[:, c])
            _line(axis, fall, rise, own=c == index)
        answer_n = proba_nY.argmax(1) == index
        fall = answer_n[label_n != index].mean()
        axis.plot(fall, answer_n[label_n == index].mean(), "o", color=COLOURS[1], clip_on=False)
        axis.set_xlabel("1 - specificity")
        axis.set_ylabel("sensitivity")
        return inline_svg(figure, key=key, text=text)


def pr_svg(label_n: Ints, proba_nY: _Scores, index: int, *, key: str, text: str) -> str:
    """Precision over sensitivity, in steps; like `roc_svg`. The broken line is guessing."""
    from sklearn.metrics import precision_recall_curve

    with _drawing() as (figure, axis):
        share = float((label_n == index).mean())
        axis.axhline(share, color="#999999", linewidth=1, linestyle=(0, (4, 3)))
        for c in _last(index, proba_nY.shape[1]):
            if not (label_n == c).any():
                continue
            precision, recall, _ = precision_recall_curve(label_n == c, proba_nY[:, c])
            _line(axis, recall, precision, own=c == index, drawstyle="steps-post")
        answer_n = proba_nY.argmax(1) == index
        if answer_n.any():
            found = answer_n[label_n == index].mean()
            axis.plot(
                found, (label_n[answer_n] == index).mean(), "o", color=COLOURS[1], clip_on=False
            )
        axis.set_xlabel("sensitivity (recall)")
        axis.set_ylabel("precision")
        return inline_svg(figure, key=key, text=text)


def reliability_svg(diagram: Reliability, *, key: str, text: str) -> str:
    """Share answered right over the probability of the answer, with 95% intervals."""
    with _drawing() as (figure, axis):
        axis.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=(0, (4, 3)))
        confidence, accuracy, low, high = np.array(
            [[b.confidence, b.accuracy, b.low, b.high] for b in diagram.bins]
        ).T
        axis.vlines(confidence, confidence, accuracy, color=COLOURS[1], linewidth=4, alpha=0.5)
        axis.vlines(confidence, low, high, color=COLOURS[0], linewidth=1)
        axis.plot(confidence, accuracy, "o", color=COLOURS[0])
        axis.set_xlabel("probability of the answer")
        axis.set_ylabel("share answered right")
        return inline_svg(figure, key=key, text=text)


def risk_coverage_svg(
    label_n: Ints,
    proba_nY: _Scores,
    limits: Sequence[tuple[float, float]],
    *,
    key: str,
    text: str,
) -> str:
    """Share of wrong answers over the share answered, the surest first.

    Args:
        limits: coverage and error at limits chosen elsewhere, a dot each.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    proba = np.asarray(proba_nY, np.float64)
    curve = risk_coverage(by_confidence(label_n, proba), np.ones((len(proba), 1)))
    covered_d, error_d = (values[:, 0] for values in curve)
    with _drawing() as (figure, axis):
        axis.plot(covered_d, error_d, color=COLOURS[0], linewidth=1.8)
        for coverage, error in limits:
            axis.plot(coverage, error, "o", color=COLOURS[1], clip_on=False)
        # The first few images make any error: they do not set the scale.
        axis.set_ylim(0, min(1.0, 1.2 * max(0.05, float(error_d[covered_d >= 0.05].max()))))
        axis.yaxis.set_major_locator(MaxNLocator(5))
        axis.yaxis.set_major_formatter(PercentFormatter(1))
        axis.set_xlabel("share answered")
        axis.set_ylabel("wrong, of these")
        return inline_svg(figure, key=key, text=text)


def inline_svg(figure: Figure, *, key: str, text: str) -> str:
    """An SVG element to stand in a page, in the page's colours and font.

    Ids are made the figure's own, and matplotlib's style sheet, which would style the whole page,
    is left out.
    """
    source = save(figure, "svg").decode()
    svg = source[source.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r"<style[^>]*>.*?</style>\s*", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.S)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', svg)
    svg = re.sub(r'((?:xlink:)?href)="#([^"]+)"', rf'\1="#{key}-\2"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, name in _VARIABLES.items():
        svg = re.sub(colour, f"var({name})", svg, flags=re.I)
    width, height = (round(72 * inches) for inches in figure.get_size_inches())
    label = text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    head = (
        f'<svg class="plot" role="img" aria-label="{label}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">'
    )
    return head + svg[svg.index(">") + 1 :].strip()


@contextlib.contextmanager
def _drawing() -> Iterator[tuple[Figure, Axes]]:
    """Square axes from 0 to 1 in percent, in our style."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    own: dict[Any, Any] = {
        "text.color": _INK, "svg.fonttype": "none", "axes.grid.axis": "both",
    }  # fmt: skip
    with style(), mpl.rc_context(own):
        figure = Figure(figsize=(_SIDE, _SIDE * 0.73 / 0.8), facecolor="none")
        FigureCanvasSVG(figure)
        axis = figure.add_axes((0.2, 0.15, 0.73, 0.8))
        axis.set_facecolor("none")
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1)
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter(PercentFormatter(1))
            side.set_ticks((0, 0.25, 0.5, 0.75, 1))
        yield figure, axis


def _last(index: int, classes: int) -> list[int]:
    """All classes, that of the figure last: on top."""
    return [*(c for c in range(classes) if c != index), index]


def _line(axis: Axes, x: _Scores, y: _Scores, *, own: bool, drawstyle: str = "default") -> None:
    axis.plot(
        x, y, color=COLOURS[0] if own else "#bbbbbb", linewidth=1.8 if own else 0.7,
        drawstyle=drawstyle, clip_on=False,
    )  # fmt: skip
