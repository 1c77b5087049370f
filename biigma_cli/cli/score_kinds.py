"""`biigma score`: which classes are malignant and which are benign, as far as anybody has said."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from biigma_cli.cli.boundary import note
from biigma_cli.errors import UsageError
from biigma_cli.taxonomy import lesion_class

if TYPE_CHECKING:
    from biigma_cli.data.submission import Matched


def kinds(matched: Matched) -> list[bool | None]:
    """Of each class whether it is malignant; None where nobody has said and there are images of it.

    Without an image it counts as not malignant, as UNK of ISIC 2019 does: no image is wronged by
    that, and the others can be judged.
    """
    images = images_by_class(matched)
    return [m if m is not None or images[code] else False for code, m in _said(matched).items()]


def images_by_class(matched: Matched) -> dict[str, int]:
    """How many images of each class count."""
    counts = Counter(matched.label_n[matched.counted].tolist())
    return {code: counts[y] for y, code in enumerate(matched.codes)}


def check_tells_malignant(matched: Matched, option: str) -> None:
    """Raise `UsageError` where there are no images of both kinds, or some of an unknown one."""
    unsaid = _unsaid(matched)
    if unsaid:
        raise UsageError(
            f"{option}: of {unsaid} it is not known whether that is malignant or benign",
            fix="in both files give such a class the ISIC code of its disease, as MEL or BKL; or "
            "delete its rows from the truth and add --subset",
        )
    found = _kinds_of_images(matched)
    if len(found) < 2:
        raise UsageError(
            f"{option} needs malignant and benign images: all here are "
            f"{'malignant' if True in found else 'benign'}",
            fix="judge images of both kinds, or leave it out",
        )


def tell_kinds(matched: Matched, *, judged: bool) -> None:
    """Which classes count as what, or why none of it is judged, on stderr.

    Nothing where there are no images of both kinds anyway.

    Args:
        judged: whether a figure hangs on it.
    """
    if not _kinds_of_images(matched) >= {True, False}:
        return
    unsaid = _unsaid(matched)
    if unsaid:
        note(
            f"malignant against benign is not judged: of {unsaid} it is not known whether that is "
            "malignant or benign"
        )
    images = images_by_class(matched)
    assumed = [code for code, m in _said(matched).items() if m is None and not images[code]]
    if assumed and judged:
        note(
            f"no image of {', '.join(assumed)}, of which it is not known whether that is malignant "
            "or benign: its probability counts as not malignant"
        )


def _said(matched: Matched) -> dict[str, bool | None]:
    return {code: lesion_class(code).malignant for code in matched.codes}


def _kinds_of_images(matched: Matched) -> set[bool | None]:
    images = images_by_class(matched)
    return {m for code, m in _said(matched).items() if images[code]}


def _unsaid(matched: Matched) -> str:
    """Classes of an unknown kind that have images, to show; empty where there is none."""
    images = images_by_class(matched)
    return ", ".join(
        f"{code} ({images[code]} images)"
        for code, m in _said(matched).items()
        if m is None and images[code]
    )
