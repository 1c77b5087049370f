"""Whether two pictures show one lesion: a linear metric over a trunk's features.

Re-identification in four steps, none of which looks at a class:

1. Each picture, whole and its middle (`MIDDLE` of each side, since the same lesion is often taken
   from nearer), goes through a trained trunk. Its first two taps are pooled to their generalised
   mean, p = 3 (Radenovic et al., 2018), square rooted and standardised.
2. A projection brings pictures of one lesion near each other: whitening by the scatter within
   lesions, then the leading directions of what is left (Mikolajczyk and Matas, 2007).
3. Likeness is the cosine of the projections, the greatest of whole against whole and whole against
   middle, either way.
4. Less the mean of each picture's greatest likenesses to others, a cohort of other lesions and the
   pictures it is compared with (adaptive score normalisation, as for speakers): a picture that is
   like everything says nothing. The cohort makes a value mean the same for few pictures as for
   many, the pictures themselves make it so for other cameras than the cohort's. The `SKIPPED`
   greatest are left out, for they may be of the same lesion, and so are other frames of the same
   picture. Where 15 or more of a set show one lesion in quite different frames they still hide
   each other.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from biigma_cli.config import ModelConfig
from biigma_cli.core.backbone import (
    Network,
    build_trunk,
    pixel_scale_and_shift,
    resolve_normalisation,
)
from biigma_cli.errors import ModelFileError
from biigma_cli.storage import atomic_write_bytes

Floats = npt.NDArray[np.float32]

#: `format` in the header of a metric's file.
FORMAT = "biigma-lesion-metric-1"
#: Share of each side that the middle of a picture keeps.
MIDDLE = 0.7
#: Others that a picture's likeness is measured against, after the nearest that are left out.
NEIGHBOURS, SKIPPED = 30, 3
#: Cosine from which on one of the cohort is taken to be the picture itself, and one of the set
#: another frame of it, as different lesions are not: neither says what others are like.
SAME, FRAME = 0.995, 0.85


class Views:
    """A trunk that describes pictures by the pooled features of its first two taps.

    Args:
        config: the trunk and its weights, see `config.ModelConfig`.
        device: to run on.

    Raises `ModelFileError` where the weights cannot be read.
    """

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self.device = device
        scale, shift = pixel_scale_and_shift(resolve_normalisation(config))
        self.scale, self.shift = scale.to(device), shift.to(device)
        trunk: Network = build_trunk(config)
        self.trunk = trunk.to(device).to(memory_format=torch.channels_last).eval()
        self.channels = tuple(self.trunk.channels[:2])

    @torch.inference_mode()
    def __call__(self, pixels: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Features `(B, C)` of uint8 pictures `(B, S, S, 3)`, whole and their middle."""
        image = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float()
        side = image.shape[-1]
        kept = round(side * MIDDLE)
        edge = (side - kept) // 2
        middle = F.interpolate(
            image[:, :, edge : edge + kept, edge : edge + kept],
            size=(side, side),
            mode="bilinear",
            align_corners=False,
        )
        return self._pooled(image), self._pooled(middle)

    def _pooled(self, image_B3SS: Tensor) -> Floats:
        taps = self.trunk(
            (image_B3SS * self.scale + self.shift).contiguous(memory_format=torch.channels_last)
        )
        # The cube root of the mean, and of that the square root.
        pooled = [tap.clamp_min(0).pow(3).mean((2, 3)).pow(1 / 6) for tap in taps[:2]]
        features: Floats = torch.cat(pooled, 1).float().cpu().numpy()
        return features


@dataclass(frozen=True, kw_only=True)
class LesionMetric:
    """The projection, the cohort, and what is known of its values.

    Attributes:
        weights: the trunk's, as `ModelConfig.weights` takes them.
        trunk: its kind.
        side: of the pictures, pixels.
        mean_C: of the features.
        projection_CK: to K directions.
        cohort_MK: projections of other lesions' pictures, whole, at unit length.
        stated: whatever else was written down: how often different lesions reach a value, figures.
    """

    weights: str
    trunk: str
    side: int
    mean_C: Floats
    projection_CK: Floats
    cohort_MK: Floats
    stated: dict[str, Any]

    def project(self, features_NC: Floats) -> Floats:
        """Projections `(N, K)` at unit length."""
        projected = (features_NC - self.mean_C) @ self.projection_CK
        length = np.linalg.norm(projected, axis=1, keepdims=True)
        unit: Floats = (projected / np.maximum(length, 1e-12)).astype(np.float32)
        return unit

    def offset(
        self,
        whole_NK: Floats,
        middle_NK: Floats,
        *,
        pool: bool = True,
        progress: Callable[[int], None] = lambda _: None,
    ) -> Floats:
        """Half the mean likeness `(N,)` of each picture to its nearest others.

        Args:
            pool: whether the pictures are each other's others, too, not the cohort alone.
            progress: called with the number of pictures done.
        """
        offsets = []
        for start in range(0, len(whole_NK), 512):
            whole, middle = whole_NK[start : start + 512], middle_NK[start : start + 512]
            others = np.maximum(whole @ self.cohort_MK.T, middle @ self.cohort_MK.T)
            others[others >= SAME] = -1  # the picture itself says nothing of others
            if pool:
                own = np.maximum(whole @ whole_NK.T, middle @ whole_NK.T)
                np.maximum(own, whole @ middle_NK.T, out=own)
                own[own >= FRAME] = -1  # among them itself
                others = np.concatenate([others, own], 1)
            nearest = np.partition(others, -NEIGHBOURS - SKIPPED, axis=1)[
                :, -NEIGHBOURS - SKIPPED :
            ]
            offsets.append(np.sort(nearest, axis=1)[:, :NEIGHBOURS].mean(1) / 2)
            progress(start + len(whole))
        joined: Floats = np.concatenate(offsets or [np.zeros(0, np.float32)])
        return joined


def fit_metric(
    features_NC: Floats, lesion_N: npt.NDArray[Any], *, rank: int = 128, ridge: float = 0.1
) -> tuple[Floats, Floats]:
    """Mean `(C,)` and projection `(C, K)` that bring pictures of one lesion together.

    Args:
        features_NC: of whole pictures and of their middles, stacked.
        lesion_N: of each; lesions with a single picture (whole and middle) tell of the spread
            between lesions only.
        rank: K.
        ridge: share of the mean scatter within lesions that is added to all directions.

    Raises `ValueError` where no lesion has two pictures.
    """
    features = features_NC.astype(np.float64)
    mean_C, std_C = features.mean(0), features.std(0) + 1e-6
    features = (features - mean_C) / std_C
    _, inverse, count = np.unique(lesion_N, return_inverse=True, return_counts=True)
    centre = np.zeros((len(count), features.shape[1]))
    np.add.at(centre, inverse, features)
    centre /= count[:, None]
    several = count[inverse] > 2  # a picture's own whole and middle are no two pictures
    if not several.any():
        raise ValueError("no lesion has two pictures")
    spread = features[several] - centre[inverse][several]
    weight = 1 / count[inverse][several]  # each lesion counts as much, however many its pictures
    within = (spread * weight[:, None]).T @ spread / weight.sum()
    within += ridge * np.trace(within) / len(within) * np.eye(len(within))
    root = np.linalg.cholesky(within)
    whitened = np.linalg.solve(root, features.T)
    value, vector = np.linalg.eigh(np.cov(whitened))
    leading = vector[:, np.argsort(-value)[:rank]]
    projection_CK = np.linalg.solve(root.T, leading) / std_C[:, None]
    return mean_C.astype(np.float32), projection_CK.astype(np.float32)


def save_metric(path: Path, metric: LesionMetric) -> None:
    """Write a metric, in float16, atomically."""
    about = {
        "weights": metric.weights,
        "trunk": metric.trunk,
        "side": metric.side,
        "stated": metric.stated,
    }
    tensors = {
        "mean": torch.from_numpy(metric.mean_C),
        "projection": torch.from_numpy(metric.projection_CK).half(),
        "cohort": torch.from_numpy(metric.cohort_MK).half(),
    }
    atomic_write_bytes(
        path, save(tensors, metadata={"format": FORMAT, "biigma": json.dumps(about)})
    )


def load_metric(path: Path) -> LesionMetric:
    """Read a metric. Raises `ModelFileError` where it is missing, damaged or none of ours."""
    if not path.is_file():
        raise ModelFileError(f"no lesion metric at {path}", fix="install biigma again")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ModelFileError(f"{path} is no lesion metric", fix="install biigma again")
            about = json.loads(header["biigma"])
            mean, projection, cohort = (
                file.get_tensor(name).float().numpy() for name in ("mean", "projection", "cohort")
            )
            metric = LesionMetric(
                weights=about["weights"],
                trunk=about["trunk"],
                side=int(about["side"]),
                mean_C=mean,
                projection_CK=projection,
                cohort_MK=cohort,
                stated=about["stated"],
            )
            if (
                projection.shape != (len(mean), cohort.shape[1])
                or len(cohort) < NEIGHBOURS + SKIPPED
            ):
                raise ValueError("its parts do not fit each other")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"{path} is a damaged lesion metric: {error}", fix="install biigma again"
        ) from error
    return metric
