"""Small pictures of single images, with what a model shows of them laid on top."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from biigma_cli.data.preprocess import Pixels
from biigma_cli.report.overlay import Frame, value_range
from biigma_cli.report.pictures import Map, Picture, jpeg_picture, laid_over


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A wrong answer.

    Attributes:
        image_id: the archive's.
        lesion_id: "" where unknown.
        truth: class code.
        answer: class code.
        p_truth: probability of the truth.
        p_answer: probability of the answer.
        pictures: the image, then its maps.
    """

    image_id: str
    lesion_id: str
    truth: str
    answer: str
    p_truth: float
    p_answer: float
    pictures: tuple[Picture, ...] = ()


def mistake_pictures(
    picture: Pixels,
    frame: Frame,
    *,
    image_id: str,
    truth: str,
    answer: str,
    contrast_hw: Map | None = None,
    saliency: Mapping[str, Map] | None = None,
) -> tuple[Picture, ...]:
    """A small image, and on it what the model shows of it.

    Args:
        picture: `(H, W, 3)` uint8, see `thumbnail_size`.
        frame: how the model's maps lie on the picture.
        contrast_hw: evidence for the answer less evidence for the truth, in logits per position.
        saliency: M in (0, 1), by form; see `Candidate.maps`.
    """
    shown = [jpeg_picture(picture, "image", f"{image_id}, which is {truth}")]
    if contrast_hw is not None:
        low, high = value_range(contrast_hw, signed=True)
        shown.append(
            jpeg_picture(
                laid_over(picture, contrast_hw, frame, signed=True, limits=(low, high)),
                f"evidence, up to {high:.2g}",
                f"{image_id}: evidence for {answer} over {truth}; red speaks for {answer}, blue "
                f"for {truth}",
            )
        )
    for form, map_hw in (saliency or {}).items():
        low, high = float(map_hw.min()), float(map_hw.max())
        shown.append(
            jpeg_picture(
                laid_over(picture, map_hw, frame, signed=False, limits=(0, 1)),
                f"M, {form}: {low:.2f} to {high:.2f}",
                f"{image_id}: saliency map M, {form}, from {low:.2f} to {high:.2f}",
            )
        )
    return tuple(shown)
