"""What one answer is made of, and the picture that shows it: the image, its evidence, and M.

Dimension letters: Y classes; h, w rows and columns of a map; H, W of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from biigma_cli.data.frame import WHOLE, Part
from biigma_cli.data.preprocess import Pixels, load_image, shown, upright_size
from biigma_cli.report.overlay import Frame, Layer, draw_overlay
from biigma_cli.report.predictions import DISCLAIMER, NOT_DERMOSCOPY, is_novel
from biigma_cli.taxonomy import lesion_class

Floats = npt.NDArray[np.floating]

#: Pixels of a picture's longer side as it is drawn.
DRAWN = 720

EVIDENCE_NOTE = (
    "The evidence is exact for the features that are averaged: with the bias it sums to the logit. "
    "But each position sees far more of the picture than the spot it is drawn on."
)
SALIENCY_NOTE = (
    "M guides the background sampling in training; it is the same for every class and does not "
    "explain the answer."
)


class Maps(NamedTuple):
    """What a model can show, and how its maps lie on a picture.

    Attributes:
        side: S, the square it takes.
        rule: how a picture becomes that square.
        first_centre: see `config.FIRST_CENTRE`.
        form: of its saliency map; None where it has none.
        evidence: whether it gives that.
    """

    side: int
    rule: str
    first_centre: float | None
    form: str | None
    evidence: bool

    def frame(self, size: tuple[int, int]) -> Frame:
        """How they lie on a picture of (width, height)."""
        return Frame(size, self.side, self.rule, self.first_centre)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What one image's answer is made of.

    Attributes:
        codes: of all classes.
        top: class indices, most probable first.
        evidence_Yhw: None where it was not asked for, as is `saliency_hw`.
        form: of the saliency map.
        classes: index of the class explained, or of the two that are compared.
        map_hw: their evidence, or None.
        logit, bias: of the class, or the first's less the second's.
        novelty: as of `predictions.Prediction`.
    """

    codes: tuple[str, ...]
    probabilities_Y: Floats = field(repr=False)
    logits_Y: Floats = field(repr=False)
    top: list[int]
    evidence_Yhw: Floats | None = field(repr=False)
    saliency_hw: Floats | None = field(repr=False)
    form: str | None
    classes: tuple[int, ...]
    map_hw: Floats | None = field(repr=False)
    logit: float
    bias: float
    novelty: float | None = None

    @property
    def label(self) -> str:
        """The answer: the most probable class's code, or `NOT_DERMOSCOPY`."""
        return NOT_DERMOSCOPY if is_novel(self.novelty) else self.codes[self.top[0]]

    def percent(self, index: int) -> str:
        """A class's probability, to read."""
        return f"{self.probabilities_Y[index]:.1%}"


def explanation(
    codes: tuple[str, ...],
    probabilities_Y: Floats,
    logits_Y: Floats,
    evidence_Yhw: Floats | None,
    saliency_hw: Floats | None,
    *,
    form: str | None,
    chosen: tuple[int, ...] = (),
    novelty: float | None = None,
) -> Explanation:
    """Of one image's answer; `chosen` are one or two classes, else it is the most probable."""
    logits = logits_Y.astype(np.float64)
    top = [int(i) for i in np.argsort(-probabilities_Y, kind="stable")]
    classes = chosen or (top[0],)
    evidence = map_hw = None
    logit = bias = 0.0
    if evidence_Yhw is not None:
        evidence = evidence_Yhw.astype(np.float64)
        sign = dict(zip(classes, (1, -1), strict=False))
        map_hw = np.sum([s * evidence[c] for c, s in sign.items()], axis=0)
        logit = float(sum(s * logits[c] for c, s in sign.items()))
        # What the positions do not add: exported models do not hold it apart.
        bias = logit - float(map_hw.sum())
    return Explanation(
        codes=codes, probabilities_Y=probabilities_Y, logits_Y=logits, top=top,
        evidence_Yhw=evidence, saliency_hw=saliency_hw, form=form, classes=classes, map_hw=map_hw,
        logit=logit, bias=bias, novelty=novelty,
    )  # fmt: skip


def load_picture(
    source: Path | bytes,
    whole: tuple[int, int] | None = None,
    *,
    part: Part = WHOLE,
    longest: int = DRAWN,
) -> tuple[Pixels, tuple[int, int]]:
    """A part of the image, upright, its longer side at most `longest` pixels, and its own size.

    Args:
        whole: the image's (width, height), where it is known already.

    Raises:
        ImageError: as `data.preprocess.decode_image`.
    """
    size = part.size(whole or upright_size(source))
    side = min(longest, max(size))
    padded = load_image(source, side, rule="pad", part=part)
    width, height = (max(1, round(length * side / max(size))) for length in size)
    left, top = (side - width) // 2, (side - height) // 2
    return padded[top : top + height, left : left + width], size


def draw_explanation(
    found: Explanation,
    picture: Pixels,
    frame: Frame,
    path: Path,
    *,
    title: str,
    model: str,
    answer: str = "",
    notes: Sequence[str] = (),
    lesion_HW: npt.NDArray[np.bool_] | None = None,
    note: str = "",
) -> None:
    """The picture, and beside it the evidence and M, those that there are.

    Args:
        picture: `(H, W, 3)`, see `load_picture`.
        path: as for `draw_overlay`, which also says what is raised.
        title: above it all; control characters are shown as escapes.
        model: its name.
        answer: where it is not the most probable class.
        notes: sentences for the foot, before the disclaimer.
        lesion_HW: mask to outline.
        note: on the picture, as of `data.preprocess.decode_image`; stands first in the foot.
    """
    codes = [found.codes[c] for c in found.classes]
    layers: list[Layer] = []
    said: list[str] = []
    if found.map_hw is not None:
        rows, columns = found.map_hw.shape
        if len(codes) == 2:
            what = f"{codes[0]} rather than {codes[1]}"
            of = f"logit {codes[0]} - logit {codes[1]}"
        else:
            what, of = f"Evidence for {codes[0]}", f"the logit of {codes[0]}"
        layers.append(
            Layer(
                title=f"{what}: {found.map_hw.sum():+.2f}, bias {found.bias:+.2f}",
                legend=f"adds to {of}, per position of {rows} x {columns}",
                map_hw=found.map_hw,
                signed=True,
            )
        )
        said.append(EVIDENCE_NOTE)
    if found.saliency_hw is not None:
        layers.append(
            Layer(
                title=f"Saliency map, {found.form}",
                legend="M of Eq. 5, in (0, 1), no unit",
                map_hw=found.saliency_hw,
                signed=False,
            )
        )
        said.append(SALIENCY_NOTE)
    best = found.codes[found.top[0]]
    told = f"{best}, {lesion_class(best).name}, {found.percent(found.top[0])}"
    draw_overlay(
        picture,
        layers,
        frame,
        path,
        title=shown(title),
        subtitle=f"Answer: {f'{answer} ({told})' if answer else told}. Model {shown(model)}",
        probabilities=[
            f"{found.codes[c]}  {found.percent(c)}  {lesion_class(found.codes[c]).name}"
            for c in found.top[:3]
        ],
        notes=[*_sentence(note), *said, *notes, f"{DISCLAIMER.capitalize()}."],
        lesion_HW=lesion_HW,
    )


def _sentence(note: str) -> tuple[str, ...]:
    return (f"{note[0].upper()}{note[1:]}.",) if note else ()
