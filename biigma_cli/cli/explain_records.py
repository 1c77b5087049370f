"""What `biigma explain` reads of an image, and what it writes beside the picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from biigma_cli.data.frame import Part
    from biigma_cli.data.preprocess import Pixels
    from biigma_cli.report.explanation import Explanation, Maps
    from biigma_cli.report.overlay import Frame
    from biigma_cli.runtime.inputs import Source

ALL_LESION = "the mask shows nothing but lesion, so shares inside it say nothing"


class Target(NamedTuple):
    """Where an image's picture and raw maps go."""

    picture: Path
    maps: Path | None


class Loaded(NamedTuple):
    """One image as the network and as the reader sees it.

    Attributes:
        source: where it comes from.
        pixels: `(S, S, 3)` for the network.
        picture: `(H, W, 3)`, upright, at most `DRAWN` pixels long.
        frame: where the one lies on the other.
        lesion_HW: mask in the picture's shape, or None.
        lesion_SS: share of lesion in each of the network's pixels, or None.
        all_lesion: whether that mask shows nothing else, so that a share inside it says nothing.
        note: what a user should know of the file.
        part: of the upright image, which all these show.
    """

    source: Source
    pixels: Pixels
    picture: Pixels
    frame: Frame
    lesion_HW: npt.NDArray[np.bool_] | None
    lesion_SS: npt.NDArray[np.floating] | None
    all_lesion: bool
    note: str
    part: Part

    @property
    def name(self) -> str:
        """What the image is called in records: its path, or - for standard input."""
        return path_of(self.source)

    @property
    def title(self) -> str:
        """What its picture is headed by."""
        return Path(self.name).name or self.name


def path_of(source: Source) -> str:
    """What an image is called in records."""
    return source.name if isinstance(source.content, bytes) else str(source.content)


def load(source: Source, mask: Path | None, shows: Maps, *, keep_border: bool = False) -> Loaded:
    """Raises `ImageError` for a bad image, `DataError` for a mask that cannot be its."""
    import numpy as np
    from PIL import Image

    from biigma_cli.data.frame import WHOLE
    from biigma_cli.data.masks import cell_edges, lay_lesion, read_lesion
    from biigma_cli.data.preprocess import decode_image, shown, upright_size
    from biigma_cli.errors import DataError, ImageError
    from biigma_cli.report.explanation import load_picture

    if source.error:
        raise ImageError(source.error, fix="check the path and its permissions")
    content = source.content
    name = "the image on stdin" if isinstance(content, bytes) else shown(str(content))
    pixels, note, part = decode_image(
        content,
        shows.side,
        rule=shows.rule,
        name=name,
        part=WHOLE if keep_border else None,
        doubts=True,
    )
    whole = upright_size(content)
    picture, size = load_picture(content, whole, part=part)
    frame = shows.frame(size)
    if mask is None:
        return Loaded(source, pixels, picture, frame, None, None, False, note, part)
    lesion = read_lesion(mask, str(mask))
    edges = cell_edges(shows.side, shows.side)
    laid = lay_lesion(lesion, whole, shows.side, shows.rule, (edges, edges), part=part)
    if laid.cover_hw is None:
        raise DataError(
            f"the mask {mask} has another shape than its image: {laid.shape}",
            fix="give the mask of the whole image, at any scale, turned as it is shown",
        )
    if not laid.cover_hw.any():
        raise DataError(
            f"the mask {mask} shows no lesion in what the network sees of the image",
            fix="give a mask in which the lesion is white",
        )
    tall, wide = picture.shape[:2]
    within = Image.fromarray(lesion).crop(part.pixels(lesion.shape[::-1]))
    drawn = np.asarray(within.resize((wide, tall), Image.Resampling.NEAREST))
    if laid.full:
        note = "; ".join(filter(None, (note, ALL_LESION)))
    return Loaded(source, pixels, picture, frame, drawn, laid.cover_hw, laid.full, note, part)


def save_maps(found: Explanation, frame: Frame, part: Part, target: Path) -> None:
    """The raw maps, the answer, and where the maps lie, as one `.npz`."""
    import io

    import numpy as np

    from biigma_cli.report.overlay import square_box
    from biigma_cli.storage import atomic_write_bytes

    arrays: dict[str, Any] = {
        "classes": np.array(found.codes),
        "probabilities": found.probabilities_Y,
        "logits": found.logits_Y,
        "part": np.array(part[:4]),
        "size": np.array(frame.size),
        "square": np.array(square_box(frame)),
    }
    if frame.first_centre is not None:
        arrays["first_centre"] = np.array(frame.first_centre)
    if found.evidence_Yhw is not None:
        arrays["evidence"] = found.evidence_Yhw
    if found.saliency_hw is not None:
        arrays["saliency"] = found.saliency_hw
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    atomic_write_bytes(target, file.getvalue())


def record(found: Explanation, image: Loaded, target: Target) -> dict[str, Any]:
    """One image's JSON."""
    import numpy as np

    from biigma_cli.data.frame import WHOLE
    from biigma_cli.report.overlay import inside
    from biigma_cli.taxonomy import lesion_class

    best = found.codes[found.top[0]]
    told: dict[str, Any] = {
        "path": image.name,
        "picture": str(target.picture),
        "maps": None if target.maps is None else str(target.maps),
        "label": found.label,
        "name": lesion_class(best).name if found.label == best else None,
        "probability": round(float(found.probabilities_Y[found.top[0]]), 6),
        "probabilities": {
            c: round(float(p), 6) for c, p in zip(found.codes, found.probabilities_Y, strict=True)
        },
    }
    if found.novelty is not None:
        told["novelty"] = round(found.novelty, 3)
    if image.note:
        told["note"] = image.note
    if image.part != WHOLE:
        told["part"] = [round(edge, 6) for edge in image.part[:4]]
        told["corners_filled"] = image.part.filled
    lesion = image.lesion_SS
    if lesion is not None:
        told["lesion_area"] = float(lesion.mean())
    if found.map_hw is not None:
        values = found.map_hw
        own: dict[str, Any] = {
            "class": found.codes[found.classes[0]],
            "against": found.codes[found.classes[1]] if len(found.classes) == 2 else None,
            "logit": found.logit,
            "bias": found.bias,
            "sum": float(values.sum()),
            "for": float(values[values > 0].sum()),
            "against_it": float(values[values < 0].sum()),
            "positions": list(values.shape),
        }
        if lesion is not None:
            on = inside(lesion, image.frame, values.shape)
            own["inside"] = float((values * on).sum())
            own["outside"] = float((values * (1 - on)).sum())
            share = float((np.abs(values) * on).sum() / np.abs(values).sum())
            own["share_inside"] = None if image.all_lesion else share
        told["evidence"] = own
    if found.saliency_hw is not None:
        values = found.saliency_hw.astype(np.float64)
        own = {
            "form": found.form,
            "low": float(values.min()),
            "mean": float(values.mean()),
            "high": float(values.max()),
            "positions": list(values.shape),
        }
        if lesion is not None:
            on = inside(lesion, image.frame, values.shape)
            share = float((values * on).sum() / values.sum())
            own["share_inside"] = None if image.all_lesion else share
        told["saliency"] = own
    return told


def line(found: Explanation, image: Loaded, target: Target) -> str:
    """One image's line."""
    from biigma_cli.runtime.inputs import shown

    codes = [found.codes[c] for c in found.classes]
    best = found.codes[found.top[0]]
    answer = best if found.label == best else f"{found.label} ({best}?)"
    words = f"{shown(image.name)}: {answer} {found.percent(found.top[0])}"
    if found.map_hw is not None:
        words += (
            f"; evidence for {' rather than '.join(codes)} {found.map_hw.sum():+.3f}, "
            f"bias {found.bias:+.3f}, logit{'s apart' if len(codes) == 2 else ''} "
            f"{found.logit:+.3f}"
        )
    if image.note:
        words += f"; {image.note}"
    return f"{words}; {shown(str(target.picture))}"
