"""What `biigma eval` says of a model's maps and heads: `--saliency` and `--heads`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from biigma_cli.core.model import BiigmaNet
    from biigma_cli.data.manifest import Manifest
    from biigma_cli.judge import Candidate
    from biigma_cli.judge.heads import HeadSimilarity
    from biigma_cli.judge.saliency import SaliencyJudgement

Bar = Callable[[str, str], Callable[[int, int], None]]


@dataclass(frozen=True, kw_only=True)
class Insight:
    """What was asked for of maps and heads.

    Attributes:
        saliency: maps against masks; None where not asked for.
        heads: of the model and, with a second model, of that; empty where not asked for.
    """

    saliency: SaliencyJudgement | None = None
    heads: tuple[HeadSimilarity, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Keys to add to the figures."""
        plain: dict[str, Any] = {}
        if self.saliency is not None:
            plain["saliency"] = self.saliency.to_dict()
        if self.heads:
            own, *others = (h.to_dict() for h in self.heads)
            plain["heads"] = own | ({"against": others[0]} if others else {})
        return plain

    def items(self) -> list[Table | str]:
        """Tables to add after the figures."""
        items: list[Table | str] = []
        if self.saliency is not None:
            from biigma_cli.report.localisation import localisation_tables

            found = self.saliency
            title = (
                f"maps of {found.grid[0]}x{found.grid[1]} cells against lesion masks: "
                f"{found.images} images,\nlesions cover {found.area:.1%} on average"
            )
            if found.resamples:
                title += f"\n{found.bootstrap}"
            items += localisation_tables(found.maps, found.class_counts, title=title)
        if self.heads:
            from biigma_cli.report.heads import heads_items

            for h in self.heads:
                title = f"mean cosine between heads, {h.images} images: {h.model}"
                items += heads_items(matrices(h), h.means, title=title)
        return items

    def notes(self) -> list[str]:
        """What the reader must know of it, a line each."""
        found = self.saliency
        if found is None:
            return []
        counts = {
            "no mask": found.missing,
            "a mask without lesion": found.empty,
            "a mask without skin": found.full,
            "a picture for a mask": found.pictures,
        }
        told = [f"{n} images with {what}" for what, n in counts.items() if n]
        return [f"left out of the figures of maps: {', '.join(told)}"] if told else []


def matrices(heads: HeadSimilarity) -> dict[str, Any]:
    """Both matrices by the names the report has for them."""
    return {"pooled": heads.pooled_KK, "positions": heads.positions_KK}


def check_picture(path: Path | None) -> None:
    """Raise `UsageError` now where `--heads` can name no picture."""
    from biigma_cli.report.style import picture_kind
    from biigma_cli.storage import check_writable

    if path is None:
        return
    picture_kind(path, "heads.svg")
    check_writable(path)


def open_networks(
    wanted: Path | None, candidates: tuple[Candidate | None, ...], device: str
) -> tuple[BiigmaNet, ...]:
    """The networks whose heads are compared; before the work, as some models have none."""
    if wanted is None:
        return ()
    from biigma_cli.judge.heads import open_heads

    # A candidate is called by its file.
    return tuple(open_heads(Path(c.name), device) for c in candidates if c is not None)


def judge_maps(
    candidates: tuple[Candidate | None, ...],
    networks: tuple[BiigmaNet, ...],
    manifest: Manifest,
    part: str,
    *,
    saliency: bool,
    resamples: int,
    device: str,
    bar: Bar,
    warn: Callable[[str], None],
) -> Insight:
    """Whatever was asked for; the first candidate is the model, the second that of `--against`."""
    models = [c for c in candidates if c is not None]
    shown = None
    if saliency:
        from biigma_cli.judge.saliency import judge_saliency

        shown = judge_saliency(
            models[0], manifest, part, resamples=resamples, warn=warn,
            decoding=bar("decoding", "images"), masking=bar("reading masks", "masks"),
            running=bar("mapping", "images"), resampling=bar("resampling maps", "resamples"),
        )  # fmt: skip
    heads: tuple[HeadSimilarity, ...] = ()
    if networks:
        from biigma_cli.engine.device import pick_device
        from biigma_cli.judge.heads import judge_heads

        place = pick_device(device)
        heads = tuple(
            judge_heads(
                model, network, manifest, part, device=place, warn=warn,
                decoding=bar("decoding", "images"), running=bar("comparing heads", "images"),
            )
            for model, network in zip(models, networks, strict=True)
        )  # fmt: skip
    return Insight(saliency=shown, heads=heads)


def draw(insight: Insight, path: Path, dataset: str) -> None:
    """The picture of the heads."""
    from biigma_cli.report.heads import draw_heads

    names = [_short(h.model) for h in insight.heads]
    if len(set(names)) < len(names):
        names = [h.model for h in insight.heads]
    own = insight.heads[0]
    many = len(insight.heads) > 1
    draw_heads(
        [
            (name if many else "", matrices(heads))
            for name, heads in zip(names, insight.heads, strict=True)
        ],
        path,
        title="Cosine similarity between heads" if many else names[0],
        subtitle=f"{dataset}, {own.part} part, {own.images} images",
    )


def _short(model: str) -> str:
    """A checkpoint's run, else the file's name."""
    path = Path(model)
    return path.parent.parent.name if path.parent.name == "weights" else path.name
