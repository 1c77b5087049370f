"""How our files call themselves, and what their headers say, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from biigma_cli.errors import ModelFileError

#: `format` in the header of a checkpoint of ours.
CHECKPOINT = "biigma-checkpoint-1"
#: `biigma_format` in the metadata of an exported model of ours.
EXPORTED = "biigma-onnx-1"


def is_ours(metadata: Mapping[str, str] | None) -> bool:
    """Whether a safetensors file with this metadata is a checkpoint of ours."""
    return (metadata or {}).get("format") == CHECKPOINT


def decoded(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """What a checkpoint of ours says of itself. Raises `ModelFileError` where it is damaged."""
    try:
        meta: dict[str, Any] = json.loads(metadata["biigma"])
        absent = [k for k in ("config", "classes") if k not in meta]
        if absent:
            raise ValueError(f"it lacks {', '.join(absent)}")
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"{path} has a damaged header: {error}", fix="use another checkpoint"
        ) from error
    return meta


def caveats_of(sources: Iterable[Mapping[str, Any]]) -> list[str]:
    """What could not be found out about images that a network is judged on.

    Args:
        sources: the data it learnt from, see `core.sources`.
    """
    return list(dict.fromkeys(entry["caveat"] for entry in sources if "caveat" in entry))
