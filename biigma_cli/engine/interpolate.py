"""Between two networks of one lineage: their weights averaged (Wortsman et al., CVPR 2022).

A network fine-tuned for other pictures loses a little on the old ones. Where both lie in one valley
of the loss, a network between the two keeps most of the one and of the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from biigma_cli.core.sources import joint_citation, joint_licence, merged, sources_of
from biigma_cli.core.weights import Checkpoint, load_model
from biigma_cli.data.images import Part
from biigma_cli.data.splits import same_split
from biigma_cli.engine.evaluate import predict_proba, prepare, validation_figures
from biigma_cli.engine.provenance import ancestry, line_of, versions
from biigma_cli.errors import CheckpointMismatch

#: What of a network's settings may differ: where its first weights came from.
_FREE = {"weights"}


class Judged(NamedTuple):
    """A share and what it does on the validation part.

    Attributes:
        share: of the second network.
        figures: `val_macro_f1`, `val_accuracy`, `val_macro_recall` and `val_log_loss` among them.
    """

    share: float
    figures: dict[str, float]


def check_alike(first: Checkpoint, second: Checkpoint, names: tuple[str, str]) -> None:
    """Raise `CheckpointMismatch` where the two cannot be averaged.

    That is, with other classes, another split (one has seen what the other is judged on), another
    network, or another input.
    """
    apart = []
    if first.meta["classes"] != second.meta["classes"]:
        apart.append("their classes differ")
    if not same_split(first.meta["split"], second.meta["split"]):
        apart.append("they were trained on different splits")
    own, other = (dataclasses.asdict(c.config.model) for c in (first, second))
    apart += [
        f"model.{key} is {own[key]} and {other[key]}"
        for key in own
        if key not in _FREE and own[key] != other[key]
    ]
    a, b = first.config.data, second.config.data
    if (a.side, a.resize) != (b.side, b.resize):
        apart.append(f"their input is {a.side} ({a.resize}) and {b.side} ({b.resize})")
    if apart:
        raise CheckpointMismatch(
            f"{names[0]} and {names[1]} cannot be averaged: {'; '.join(apart)}",
            fix="average two runs of one lineage: the second begun with train.init from the first",
        )


def between(first: Checkpoint, second: Checkpoint, share: float) -> dict[str, Tensor]:
    """Tensors of the network `share` of the way from the first to the second, in float32.

    Batch norm's statistics are averaged like the rest; counters are the second's.
    """
    mixed = {}
    for key, late in second.tensors.items():
        if not key.startswith("model."):
            continue
        early = first.tensors[key]
        mixed[key] = torch.lerp(early, late, share) if late.is_floating_point() else late
    return mixed


def judge_shares(
    first: Checkpoint,
    second: Checkpoint,
    shares: Sequence[float],
    validation: Part,
    *,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Judged]:
    """Each share's figures on the validation part, in float32."""
    rows = []
    labels, codes = validation.labels, list(second.meta["classes"])
    total = len(shares) * len(labels)
    for i, share in enumerate(shares):
        mixed = Checkpoint(between(first, second, share), second.meta)
        model = prepare(load_model(mixed), device)

        def told(done: int, _: int, before: int = i * len(labels)) -> None:
            progress(before + done, total)

        proba = predict_proba(model, validation.pixels, device=device, progress=told)
        rows.append(Judged(share, validation_figures(labels, proba, codes)))
    return rows


def best_of(rows: Sequence[Judged], select: str) -> Judged:
    """The first with the highest macro-F1 (`macro_f1`) or the lowest log loss (`log_loss`)."""
    if select == "log_loss":
        return min(rows, key=lambda row: row.figures["val_log_loss"])
    return max(rows, key=lambda row: row.figures[f"val_{select}"])


def average_meta(
    first: Checkpoint,
    second: Checkpoint,
    chosen: Judged,
    rows: Sequence[Judged],
    *,
    names: tuple[str, str],
    runs: tuple[str, str],
    select: str,
    command: str,
) -> dict[str, Any]:
    """What the averaged checkpoint says of itself: the second's, and what was done.

    Args:
        names: of the two as given.
        runs: that they belong to.
        select: by what the share was chosen.
        command: that was given.
    """
    how = f"{chosen.share:g} of the way from {names[0]} to {names[1]}"
    if len(rows) > 1:
        how += f", best of {len(rows)} by {select} on the validation part"
    extra = {e["dataset"]: e for c in (first, second) for e in c.meta.get("extra", [])}
    sources = merged(sources_of(first), sources_of(second))
    return {
        **second.meta,
        "selection": how,
        "validation": chosen.figures,
        "extra": list(extra.values()),
        "command": command,
        "licence": joint_licence(sources),
        "citation": joint_citation(sources),
        "sources": sources,
        "versions": versions(),
        "ancestors": ancestry(line_of(runs[0], first), line_of(runs[1], second)),
        "average": {
            "of": list(names),
            "share": chosen.share,
            "shares": [{"share": row.share, **row.figures} for row in rows],
        },
    }
