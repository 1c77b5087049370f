"""How our files call themselves, and the header of a checkpoint, which weights and trunks read."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
