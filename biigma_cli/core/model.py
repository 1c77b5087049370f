"""BIIGMA-Net: the wiring of Fig. 2."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biigma_cli.config import ModelConfig
from biigma_cli.core.backbone import build_trunk, pixel_scale_and_shift
from biigma_cli.core.mica import MICA, Heads
from biigma_cli.core.saliency import Saliency
from biigma_cli.core.sampling import Gather, background_draw, hybrid_feature
from biigma_cli.core.taps import Taps


class Output(NamedTuple):
    """What training needs of one batch.

    Attributes:
        logits_BY: original branch, G(R^CA).
        hybrid_logits_BY: hybrid branch, G(H^CA); None where sampling is off.
        heads: head features of the original branch; None without MICA.
        map_B1HW: M; None where nothing asked for it.
    """

    logits_BY: Tensor
    hybrid_logits_BY: Tensor | None
    heads: Heads | None
    map_B1HW: Tensor | None


class Inference(NamedTuple):
    """What an exported model returns: the R branch alone, its evidence, and M.

    Attributes:
        logits_BY: class scores before the softmax.
        evidence_BYHW: what each position adds to each class's logit. The head is linear over
            features that are averaged over positions, so the sum over positions is exactly the
            logit minus the head's bias.
        map_B1HW: M in (0, 1); None for a model without a saliency block.
    """

    logits_BY: Tensor
    evidence_BYHW: Tensor
    map_B1HW: Tensor | None


class BiigmaNet(nn.Module):
    """DenseNet-121 (or a lighter trunk) + MICA + saliency-guided background sampling.

    Images come as float `(B, 3, S, S)` in [0, 255], S a multiple of 32; the normalisation is part
    of the network, so that torch and an exported model cannot differ in it.

    Args:
        config: `config.normalisation` must be resolved, not `auto`.
        classes: Y.
        load_weights: fetch or read the backbone weights named by the config; False where a
            checkpoint will fill them.
    """

    pixel_scale: Tensor
    pixel_shift: Tensor

    def __init__(self, config: ModelConfig, classes: int, *, load_weights: bool = True) -> None:
        super().__init__()
        if config.normalisation == "auto":
            raise ValueError("resolve config.normalisation first")
        self.config = config
        scale, shift = pixel_scale_and_shift(config.normalisation)
        self.register_buffer("pixel_scale", scale, persistent=False)
        self.register_buffer("pixel_shift", shift, persistent=False)
        self.trunk = build_trunk(config, load_weights=load_weights)
        channels = self.trunk.channels
        self.saliency: Saliency | None = None
        if config.sampling:
            self.saliency = Saliency(
                channels,
                adapters=config.adapters,
                adapter_channels=config.adapter_channels,
                prune=config.prune,
                form=config.saliency,
            )
        self.mica: MICA | None = None
        features = channels[-1]
        if config.mica:
            self.mica = MICA(
                channels[-1],
                heads=config.heads,
                projection_channels=config.projection_channels or channels[-1],
                reduction=config.se_reduction,
            )
            features = self.mica.heads * self.mica.channels
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(features, classes)

    def forward(
        self,
        image_B3SS: Tensor,
        *,
        sample: bool = False,
        draw_P: Tensor | None = None,
        generator: torch.Generator | None = None,
        gather: Gather | None = None,
    ) -> Output:
        """Both branches.

        Args:
            sample: run the hybrid branch (needs `config.sampling`).
            draw_P: the random draw, see `sampling.background_draw`; made with `generator` where
                it is not given.
            gather: makes B that of a batch spread over processes; the draw, or the generator's
                state, must then be the same in all.
        """
        taps = self.trunk(image_B3SS * self.pixel_scale + self.pixel_shift)
        projected = self.mica.project_positions(taps.last) if self.mica is not None else None
        logits, heads = self.classify(taps.last, projected)
        if not sample:
            return Output(logits, None, heads, None)
        if self.saliency is None:
            raise ValueError("sample=True needs config.sampling")
        map_B1HW = self.saliency(taps)
        if draw_P is None:
            world = gather.world if gather is not None else 1
            draw_P = background_draw(taps.last, generator, world=world)
        method = self.config.draw
        if projected is None or gather is not None:
            hybrid = hybrid_feature(taps.last, map_B1HW, draw_P, method=method, gather=gather)
            hybrid_logits = self.classify(hybrid)[0]
        else:
            # H mixes R's positions, and the projection is linear: mixing R's projections gives H's
            # without projecting again.
            mixed = hybrid_feature(
                taps.last,
                map_B1HW,
                draw_P,
                method=method,
                image_BEHW=projected.permute(0, 3, 1, 2),
            )
            hybrid_logits = self.classify(taps.last, mixed.permute(0, 2, 3, 1))[0]
        # Only its pooled features are used: the criterion of Eq. 3 is over R's heads.
        return Output(logits, hybrid_logits, heads, map_B1HW)

    def classify(
        self, feat_BCHW: Tensor, projected_BHWE: Tensor | None = None
    ) -> tuple[Tensor, Heads | None]:
        """G(MICA(feature)): global average pooling + linear, by MICA's pooled shortcut.

        Args:
            projected_BHWE: `MICA.project_positions` of the feature, where it is at hand.
        """
        if self.mica is None:
            return self.head(self.dropout(feat_BCHW.mean((2, 3)))), None
        heads = self.mica(feat_BCHW) if projected_BHWE is None else self.mica.attend(projected_BHWE)
        return self.head(self.dropout(heads.pooled_BKD.flatten(1))), heads

    def infer(self, image_B3SS: Tensor) -> Inference:
        """The R branch, its evidence and the saliency map: the graph that is exported."""
        return self.infer_taps(self.taps(image_B3SS))

    def taps(self, image_B3SS: Tensor) -> Taps:
        """The trunk's three taps."""
        taps: Taps = self.trunk(image_B3SS * self.pixel_scale + self.pixel_shift)
        return taps

    def early(self, image_B3SS: Tensor) -> Tensor:
        """The first of them alone."""
        return self.trunk.early(image_B3SS * self.pixel_scale + self.pixel_shift)

    def infer_taps(self, taps: Taps) -> Inference:
        """`infer` from the trunk's taps."""
        map_B1HW = self.saliency(taps) if self.saliency is not None else None
        if self.mica is None:
            feat_BHWC = taps.last.permute(0, 2, 3, 1)
            logits, _ = self.classify(taps.last)
        else:
            logits, heads = self.classify(taps.last)
            assert heads is not None
            feat_BHWC = heads.concatenated().permute(0, 2, 3, 1)
        positions = taps.last.shape[-2] * taps.last.shape[-1]
        evidence_BHWY = F.linear(feat_BHWC, self.head.weight) / positions
        return Inference(logits, evidence_BHWY.permute(0, 3, 1, 2), map_B1HW)
