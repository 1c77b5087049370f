"""Figures kept in an exported file's own metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from biigma_cli.runtime.limits import ABSTENTION, PRIOR, SCREENING, Stated
from biigma_cli.runtime.session import read_checked
from biigma_cli.storage import atomic_write_bytes

# Of figures: what names the machine's files, or is far larger than the figures.
NOT_STORED = ("model", "against", "saliency", "heads", "robustness")


def storable(figures: dict[str, Any]) -> dict[str, Any]:
    """What of a judgement, `judge.Judgement.to_dict()`, is kept."""
    return {key: value for key, value in figures.items() if key not in NOT_STORED}


def store_figures(
    path: Path, part: str, figures: dict[str, Any], *, stated: Stated | None = None
) -> dict[str, Any]:
    """Keep the figures that the file itself had on a part, in the place of its checkpoint's.

    They say so (`judged`: `file`). Nothing else in the file changes, but its digest.

    Args:
        path: exported by `biigma export onnx`.
        part: `val` or `test`.
        figures: a judgement of that very file, as `judge.Judgement.to_dict()` gives it.
        stated: to state, in the place of what it has; None leaves that.

    Returns:
        the file's metadata, decoded.

    Raises:
        ModelFileError: it has been damaged since.
        BiigmaError: it cannot be written; it is then as it was.
    """
    import onnx

    from biigma_cli.runtime.proto import sealed

    proto = onnx.load_from_string(read_checked(path))
    values = {entry.key: entry for entry in proto.metadata_props}
    metrics = json.loads(values["metrics"].value) if "metrics" in values else {}
    metrics[part] = {**storable(figures), "judged": "file"}
    new = {"metrics": metrics, **({} if stated is None else stated.to_metadata())}
    if stated is not None:
        for key in {ABSTENTION, SCREENING, PRIOR} - new.keys():
            if key in values:
                proto.metadata_props.remove(values[key])
    for key, value in new.items():
        entry = values.get(key) or proto.metadata_props.add(key=key)
        entry.value = json.dumps(value)
    atomic_write_bytes(path, sealed(proto))
    return {e.key: json.loads(e.value) for e in proto.metadata_props if e.key != "biigma_format"}
