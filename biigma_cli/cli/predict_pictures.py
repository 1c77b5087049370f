"""What `biigma predict` shows of its answers: a picture for each, and a page of them all."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from biigma_cli.cli.boundary import note

if TYPE_CHECKING:
    from biigma_cli.data.preprocess import Pixels
    from biigma_cli.report.explanation import Explanation, Maps
    from biigma_cli.report.overlay import Frame
    from biigma_cli.report.pictures import Picture
    from biigma_cli.report.prediction_page import PredictionPage
    from biigma_cli.report.predictions import Prediction, Provenance
    from biigma_cli.runtime.pipeline import Result
    from biigma_cli.runtime.session import Predictor

# Pixels of a page's pictures: the longer side of the image's, and of those with maps on them.
LARGE, SMALL = 240, 160
#: Bytes that a picture's name keeps of its image's; file systems take 255 in all.
STEM = 200

TTA_NOTE = "The answer averages eight views; the maps are those of the upright one."


def check_targets(saliency: Path | None, report: Path | None, output: Path | None) -> None:
    """Raise `UsageError` before any work where the pictures or the page cannot be written."""
    from biigma_cli.cli.targets import check_ending
    from biigma_cli.errors import UsageError
    from biigma_cli.storage import check_writable, is_folder, is_there

    if saliency is not None:
        if is_there(saliency) and not is_folder(saliency):
            raise UsageError(f"{saliency} is no folder", fix="give --saliency a folder")
        check_writable(saliency / "picture.png")
    if report is not None:
        check_ending("--report", report, ".html", ".htm")
        if output is not None and os.path.realpath(report) == os.path.realpath(output):
            raise UsageError(f"{report} is the file of -o, too", fix="give --report another name")
        check_writable(report)


def shown_maps(predictor: Predictor, folder: Path | None) -> Maps:
    """What the model can show. Raises `ModelFileError` where pictures are asked for and none is."""
    from biigma_cli.cli.explain_models import maps_of
    from biigma_cli.errors import ModelFileError

    maps = maps_of(predictor)
    if folder is not None and maps.form is None:
        name = predictor.info.name
        if not maps.evidence:
            raise ModelFileError(
                f"{name} has no saliency map: it was trained without sampling",
                fix="leave out --saliency, or choose another model",
            )
        note(f"{name} has no saliency map (trained without sampling): evidence alone")
    return maps


def picture_name(path: str) -> str:
    """Name of the picture of an image: its stem and 50 bits of its absolute path's hash.

    It needs no list of the other names, and a run that goes on with another finds the same.
    """
    from biigma_cli.storage import cut_name

    absolute = os.path.abspath(path) if "\0" not in path else path  # noqa: PTH100
    digest = hashlib.blake2b(os.fsencode(absolute), digest_size=10).digest()
    code = base64.b32encode(digest).decode().lower()[:10]
    stem = "stdin" if path == "-" else Path(path).stem
    return f"{cut_name(stem, STEM)}-{code}.png"


class _Seen(NamedTuple):
    """One answered image as it is drawn."""

    found: Explanation
    picture: Pixels
    frame: Frame


class Pictures:
    """Draws the answers as they come.

    Args:
        maps: see `shown_maps`.
        folder: where each image's overlay goes, if anywhere.
        page: what shows them all, if anything.
        tta: whether the answers are averages over views.
    """

    def __init__(
        self,
        model: str,
        codes: tuple[str, ...],
        maps: Maps,
        *,
        folder: Path | None,
        page: PredictionPage | None,
        tta: bool,
    ) -> None:
        self.model = model
        self.codes = codes
        self.maps = maps
        self.folder = folder
        self.page = page
        #: Overlays that were written.
        self.drawn = 0
        self.notes = (TTA_NOTE,) if tta and (maps.form or maps.evidence) else ()

    def add(self, items: Sequence[Prediction], results: Sequence[Result]) -> list[Prediction]:
        """Draw some more, and name the pictures in their records.

        Raises:
            BiigmaError: a picture cannot be written.
        """
        told = []
        for item, result in zip(items, results, strict=True):
            seen = None
            if self.folder is not None and not item.error:
                from biigma_cli.report.explanation import DRAWN

                seen = self._see(result, DRAWN)
                item = self._draw(item, seen)
            if self.page is not None:
                self.page.add(item, lambda r=result, i=item, s=seen: self._thumbnails(i, r, s))  # type: ignore[misc]
            told.append(item)
        return told

    def _see(self, result: Result, longest: int) -> _Seen:
        """The image again, larger than the network saw it; if it is gone, what the network saw."""
        from biigma_cli.errors import ImageError
        from biigma_cli.report.explanation import explanation, load_picture
        from biigma_cli.report.overlay import Frame

        assert result.probabilities_Y is not None
        assert result.logits_Y is not None
        assert result.pixels is not None
        found = explanation(
            self.codes, result.probabilities_Y, result.logits_Y, result.evidence_Yhw,
            result.saliency_HW, form=self.maps.form,
        )  # fmt: skip
        try:
            picture, size = load_picture(result.content, part=result.part, longest=longest)
        except ImageError:
            side = self.maps.side
            frame = Frame((side, side), side, "squash", self.maps.first_centre)
            return _Seen(found, result.pixels, frame)
        return _Seen(found, picture, self.maps.frame(size))

    def _draw(self, item: Prediction, seen: _Seen) -> Prediction:
        from biigma_cli.report.explanation import draw_explanation

        assert self.folder is not None
        target = self.folder / picture_name(item.path)
        best = seen.found.codes[seen.found.top[0]]
        draw_explanation(
            seen.found, seen.picture, seen.frame, target, title=Path(item.path).name or item.path,
            model=self.model, answer="" if item.label == best else item.label, notes=self.notes,
            note=item.note,
        )  # fmt: skip
        self.drawn += 1
        return dataclasses.replace(item, picture=str(target))

    def _thumbnails(self, item: Prediction, result: Result, seen: _Seen | None) -> list[Picture]:
        from biigma_cli.data.preprocess import shown
        from biigma_cli.report.overlay import value_range
        from biigma_cli.report.pictures import jpeg_picture, laid_over

        seen = seen or self._see(result, LARGE)
        name = shown(Path(item.path).name or item.path)
        large, small = (_scaled(seen.picture, seen.frame.size, side) for side in (LARGE, SMALL))
        best = self.codes[seen.found.top[0]]
        wide, tall = seen.frame.size
        size = f"{wide} x {tall} pixels"
        if seen.picture is result.pixels:
            size = "as the network saw it: the file is gone"
        given = [jpeg_picture(large, size, f"{name}, answered {item.label}")]
        if seen.found.map_hw is not None:
            low, high = value_range(seen.found.map_hw, signed=True)
            laid = laid_over(small, seen.found.map_hw, seen.frame, signed=True, limits=(low, high))
            words = f"{name}: evidence for {best}; red speaks for it, blue against it"
            given.append(jpeg_picture(laid, f"evidence for {best}, up to {high:.2g}", words))
        if seen.found.saliency_hw is not None:
            low, high = float(seen.found.saliency_hw.min()), float(seen.found.saliency_hw.max())
            laid = laid_over(small, seen.found.saliency_hw, seen.frame, signed=False, limits=(0, 1))
            words = f"{name}: saliency map M, from {low:.2f} to {high:.2f}"
            given.append(jpeg_picture(laid, f"M: {low:.2f} to {high:.2f}", words))
        return given


def write_page(
    page: PredictionPage,
    target: Path,
    made: Provenance,
    predictor: Predictor,
    *,
    notes: Sequence[str],
    topk: int,
) -> None:
    """The page as a whole, or nothing. Raises `BiigmaError` where it cannot be written."""
    from biigma_cli.storage import atomic_write_bytes

    info = predictor.info
    calibrated = "as trained, not calibrated"
    if info.temperature is not None:
        calibrated = f"calibrated, T = {info.temperature:.3f}"
    facts = {"probabilities": calibrated, "settings": _settings(made.settings)}
    facts["licence of the model"] = str(info.metadata["licence"])
    text = page.html(made, facts=facts, notes=notes, topk=topk)
    atomic_write_bytes(target, text.encode("utf-8", "backslashreplace"))


def _settings(settings: Mapping[str, float]) -> str:
    names = {
        "keep_border": "borders kept",
        "input_check": "no input check",
        "tta": "averaged over {:g} views",
        "abstain_below": "no answer below {:g}",
        "max_error": "which was chosen for at most {:.1%} wrong answers",
        "suspicious_from": "suspicious from a malignancy of {:g} on",
        "min_sensitivity": "which was chosen for a sensitivity of at least {:.1%}",
    }
    if "min_sensitivity" in settings and any(key.startswith("prevalence_") for key in settings):
        names["min_sensitivity"] += " and is of the model's own probabilities"
    told = [
        names.get(key, f"{key.replace('prevalence_', 'a prevalence of ')} {{:g}}").format(value)
        for key, value in settings.items()
    ]
    return ", ".join(told) or "none"


def _scaled(picture: Pixels, size: tuple[int, int], longest: int) -> Pixels:
    """A picture whose longer side is `longest`; one that is smaller already stays as it is."""
    import numpy as np
    from PIL import Image

    from biigma_cli.report.pictures import thumbnail_size

    if max(picture.shape[:2]) <= longest:
        return picture
    small = Image.fromarray(picture).resize(
        thumbnail_size(size, longest), Image.Resampling.BILINEAR
    )
    return np.asarray(small)
