"""What `biigma explain` asks: an exported model, or a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from biigma_cli.cli.boundary import note

if TYPE_CHECKING:
    from biigma_cli.data.preprocess import Pixels
    from biigma_cli.report.explanation import Maps
    from biigma_cli.runtime.session import Answer, Predictor


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An exported model or a checkpoint.

    Attributes:
        shows: its maps.
        facts: for the JSON.
        run: `(B, S, S, 3)` to its answer.
    """

    name: str
    classes: tuple[str, ...]
    shows: Maps
    facts: dict[str, Any]
    run: Callable[[Pixels], Answer] = field(repr=False)


def maps_of(predictor: Predictor) -> Maps:
    """What an exported model can show.

    Raises `ModelFileError` where it has maps and does not say how they lie on a picture.
    """
    from biigma_cli.config import FIRST_CENTRE
    from biigma_cli.report.explanation import Maps
    from biigma_cli.runtime.session import stated

    info = predictor.info
    given = {output.name for output in predictor.session.get_outputs()}
    if not given & {"saliency", "evidence"}:
        return Maps(info.side, info.rule, None, None, evidence=False)
    form = stated(info, "config", "model", "saliency") if "saliency" in given else None
    first = FIRST_CENTRE.get(stated(info, "config", "model", "trunk"))
    return Maps(info.side, info.rule, first, form, evidence="evidence" in given)


def open_onnx(path: Path, device: str) -> Asked:
    """Without torch."""
    from biigma_cli.runtime.session import Predictor

    predictor = Predictor(path, device=device)
    info = predictor.info
    return Asked(
        name=info.name,
        classes=info.classes,
        shows=maps_of(predictor),
        facts={
            "name": info.name,
            "protocol": info.metadata.get("protocol"),
            "licence": info.metadata["licence"],
            "provider": predictor.provider,
            "temperature": info.temperature,
        },
        run=predictor,
    )


def open_checkpoint(path: Path, device: str) -> Asked:
    """With torch."""
    import numpy as np

    from biigma_cli.config import FIRST_CENTRE
    from biigma_cli.core.weights import load_checkpoint
    from biigma_cli.engine.device import pick_device
    from biigma_cli.judge import open_candidate
    from biigma_cli.report.explanation import Maps
    from biigma_cli.runtime.session import Answer

    torch_device = pick_device(device)
    candidate = open_candidate(path, torch_device)
    checkpoint = load_checkpoint(path)
    settings = checkpoint.config.model
    form = settings.saliency if settings.sampling else None

    def run(pixels: Pixels) -> Answer:
        found = candidate.maps(pixels, lambda *_: None)
        raised = np.exp(found.logits_nY - found.logits_nY.max(1, keepdims=True))
        return Answer(
            raised / raised.sum(1, keepdims=True),
            found.saliency[form] if form is not None else None,
            found.logits_nY,
            found.evidence_nYhw,
        )

    return Asked(
        name=candidate.name,
        classes=candidate.classes,
        shows=Maps(
            candidate.data.side,
            candidate.data.resize,
            FIRST_CENTRE.get(settings.trunk),
            form,
            evidence=True,
        ),
        facts={
            "name": candidate.name,
            "protocol": checkpoint.meta.get("protocol"),
            "licence": checkpoint.meta.get("licence"),
            "provider": str(torch_device),
            "temperature": None,
        },
        run=run,
    )


def possible(asked: Asked, what: str) -> str:
    """What of it the model can show. Raises `ModelFileError` where it lacks what was asked for."""
    from biigma_cli.errors import ModelFileError

    if what != "saliency" and not asked.shows.evidence:
        raise ModelFileError(
            f"{asked.name} gives no evidence: it was exported by an earlier version",
            fix="export its run again with 'biigma export onnx', ask the run itself with --run, or "
            "draw the saliency map alone with --what saliency",
        )
    if what != "evidence" and asked.shows.form is None:
        if what == "saliency":
            raise ModelFileError(
                f"{asked.name} has no saliency map: it was trained without sampling",
                fix="draw the evidence with --what evidence, or choose another model",
            )
        note(f"{asked.name} has no saliency map (trained without sampling): evidence alone")
        return "evidence"
    return what


def chosen(asked: Asked, class_: str | None, contrast: str | None) -> tuple[int, ...]:
    """Indices of the classes asked for: none, one, or two to compare."""
    from biigma_cli.errors import UsageError

    option = "--class" if contrast is None else "--contrast"
    codes = contrast.split(",") if contrast is not None else [class_] if class_ is not None else []
    if contrast is not None and len(codes) != 2:
        raise UsageError(
            f"--contrast {contrast!r} does not name two classes",
            fix=f"name them as in --contrast {','.join(asked.classes[:2])}",
        )
    found = []
    for code in (c.strip() for c in codes):
        known = next((c for c in (code, code.upper()) if c in asked.classes), None)
        if known is None:
            raise UsageError(
                f"{option}: the model has no class {code!r}",
                fix=f"choose from: {', '.join(asked.classes)}",
            )
        found.append(asked.classes.index(known))
    if len(found) == 2 and found[0] == found[1]:
        raise UsageError(f"--contrast {contrast!r} names one class twice", fix="name two classes")
    return tuple(found)
