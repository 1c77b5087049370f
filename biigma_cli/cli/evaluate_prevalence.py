"""`biigma eval --prevalence`: figures where classes are rarer or commoner than in the data."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from biigma_cli.cli.prevalence import check_images, whole_shares

if TYPE_CHECKING:
    from rich.table import Table

    from biigma_cli.data.manifest import Manifest
    from biigma_cli.judge import Candidate, Judgement


def shares_for(
    named: dict[str, float] | None, candidate: Candidate, manifest: Manifest, part: str
) -> tuple[float, ...] | None:
    """Shares of all classes; those not named as the model states them, else as in the part.

    Raises `UsageError` where they cannot be, or the part has no image of a class that has one.
    """
    from biigma_cli.judge import split_of

    if named is None:
        return None
    records = manifest.by_id()
    split = split_of(candidate, manifest)
    count = Counter(records[image].label for image in split.part(part))
    images = [count[code] for code in candidate.classes]
    prior = candidate.stated.prior
    shares = whole_shares(
        named, candidate.classes, candidate.malignant,
        prior.shares if prior is not None else [n / sum(images) for n in images],
        candidate.name,
    )  # fmt: skip
    check_images(candidate.classes, shares, images, f"the {part} part")
    return shares


def plain(judged: Judgement) -> dict[str, Any]:
    """For JSON; empty where it was not asked for."""
    return {} if judged.prevalence is None else {"prevalence": judged.prevalence.to_dict()}


def items(judged: Judgement) -> list[Table | str]:
    """The same for the terminal."""
    from biigma_cli.report.prevalence import prevalence_items

    return [] if judged.prevalence is None else prevalence_items(judged.prevalence.to_dict())
