"""The loss (section 2.3, Eq. 8-9, with L_indep of Eq. 3), every term by name."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from biigma_cli.config import LossConfig, ModelConfig
from biigma_cli.core.hsic import Independence, independence
from biigma_cli.core.model import BiigmaNet, Output


class Loss(NamedTuple):
    """Total loss and its parts.

    Attributes:
        total: Eq. 9, what is minimised.
        terms: each unweighted term, detached, by name: `ce`, `ce_hybrid`, `independence`, `l2`,
            `map_distance`, `consistency_kl`, `distillation`; a term that is off is absent.
        independence: details of the criterion for logging; None without MICA.
    """

    total: Tensor
    terms: dict[str, Tensor]
    independence: Independence | None


class Mixed(NamedTuple):
    """The second half of blended targets (mixup, cutmix).

    Attributes:
        target_B: class of each image's partner.
        lam_B: share of the image itself, in [0, 1]; the partner has the rest.
    """

    target_B: Tensor
    lam_B: Tensor


def class_weights(counts_Y: Tensor, kind: str) -> Tensor:
    """Weights by inverse class frequency, `(Y,)`, with mean 1 over the samples counted.

    Classes without a sample get weight 0. `kind` is `inverse`, `inverse_sqrt` or `none`.
    """
    counts = counts_Y.to(torch.float32)
    power = {"inverse": 1.0, "inverse_sqrt": 0.5, "none": 0.0}[kind]
    weights = torch.where(counts > 0, counts.clamp_min(1).pow(-power), torch.zeros_like(counts))
    return weights * counts.sum() / (weights * counts).sum().clamp_min(1e-12)


def weighted_cross_entropy(
    logits_BY: Tensor,
    target_B: Tensor,
    weight_Y: Tensor,
    *,
    label_smoothing: float = 0.0,
    mixed: Mixed | None = None,
) -> Tensor:
    """(1 / B) sum_i w[y_i] CE(logits_i, y_i), in float32; blended targets weigh both classes.

    Divided by the number of samples, not by the sum of weights as torch's own reduction does: with
    weights of mean 1 a batch of common classes then weighs less than one of rare ones.
    """
    logits = logits_BY.to(torch.promote_types(logits_BY.dtype, torch.float32))

    def each(target: Tensor) -> Tensor:
        loss_B = F.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)
        return loss_B * weight_Y.to(loss_B.dtype)[target]

    if mixed is None:
        return each(target_B).mean()
    lam = mixed.lam_B.to(logits.dtype)
    return (lam * each(target_B) + (1 - lam) * each(mixed.target_B)).mean()


class _MeanSquare(torch.autograd.Function):
    """mean(w^2) in one pass over the weights, and one for its gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        flat = weight.flatten()
        return torch.dot(flat, flat) / flat.numel()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (weight,) = ctx.saved_tensors
        gradient: Tensor = weight * (2 * grads[0] / weight.numel())
        return gradient


def projection_l2(weight: Tensor, form: str) -> Tensor:
    """l2 term of Eq. 3 on the heads' projection weights: their mean square, or the raw norm.

    In float32; differentiable once.
    """
    w = weight.float()
    result: Tensor
    if form == "norm":
        result = w.norm()
    else:
        with torch.autocast(weight.device.type, enabled=False):
            result = _MeanSquare.apply(w)
    return result


def map_distance(map_B1HW: Tensor, gated_BKDHW: Tensor) -> Tensor:
    """RMS distance of M and the product over heads of sigmoid(channel mean), as released."""
    heads = torch.sigmoid(gated_BKDHW.float().mean(2)).prod(1)  # (B, H, W)
    return (map_B1HW[:, 0].float() - heads).square().mean().clamp_min(1e-12).sqrt()


def distillation(
    logits_BY: Tensor, teacher_BY: Tensor, temperature: float, taught_B: Tensor | None = None
) -> Tensor:
    """T^2 KL(teacher^(1/T) || student^(1/T)), mean over the batch (Hinton et al., 2015), float32.

    Args:
        teacher_BY: probabilities; raised to 1/T and normalised, as logits divided by T would be.
        taught_B: bool: images that count, the others adding nothing; None: all.
    """
    student = (logits_BY.float() / temperature).log_softmax(1)
    teacher = (teacher_BY.float().clamp_min(1e-8).log() / temperature).log_softmax(1)
    kl_B = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    if taught_B is not None:
        kl_B = kl_B * taught_B
    return temperature**2 * kl_B.mean()


class Criterion(nn.Module):
    """Eq. 9 for a batch.

    Args:
        config: weights of the terms.
        model_config: criterion, bandwidth and pairs.
        counts_Y: images per class in the training part.
    """

    weight_Y: Tensor

    def __init__(self, config: LossConfig, model_config: ModelConfig, counts_Y: Tensor) -> None:
        super().__init__()
        self.config = config
        self.model_config = model_config
        kind = "none" if config.class_weights == "batch" else config.class_weights
        self.register_buffer("weight_Y", class_weights(counts_Y, kind), persistent=False)

    def forward(
        self,
        output: Output,
        target_B: Tensor,
        model: BiigmaNet,
        *,
        teacher_BY: Tensor | None = None,
        taught_B: Tensor | None = None,
        mixed: Mixed | None = None,
    ) -> Loss:
        """Loss of one batch.

        Args:
            model: lends its projection weights for the L2 term.
            teacher_BY: the teachers' probabilities; needed where distillation is on.
            taught_B: bool: images that the distillation counts; None: all.
            mixed: where images were blended.
        """
        config = self.config
        weight = self.weight_Y
        if config.class_weights == "batch":
            counts = torch.bincount(target_B, minlength=len(weight))
            weight = class_weights(counts, "inverse")

        def ce(logits: Tensor) -> Tensor:
            return weighted_cross_entropy(
                logits, target_B, weight, label_smoothing=config.label_smoothing, mixed=mixed
            )

        weighted: list[tuple[str, float, Tensor]] = [("ce", config.original, ce(output.logits_BY))]
        if output.hybrid_logits_BY is not None:
            weighted.append(("ce_hybrid", config.hybrid, ce(output.hybrid_logits_BY)))
            if config.consistency_kl:
                kl = F.kl_div(
                    output.hybrid_logits_BY.float().log_softmax(1),
                    output.logits_BY.float().log_softmax(1),
                    reduction="batchmean",
                    log_target=True,
                )
                weighted.append(("consistency_kl", config.consistency_kl, kl))
        if config.distillation:
            if teacher_BY is None:
                raise ValueError("loss.distillation needs the teachers' probabilities")
            term = config.original * distillation(
                output.logits_BY, teacher_BY, config.temperature, taught_B
            )
            if output.hybrid_logits_BY is not None:
                term = term + config.hybrid * distillation(
                    output.hybrid_logits_BY, teacher_BY, config.temperature, taught_B
                )
            weighted.append(("distillation", config.distillation, term))
        details: Independence | None = None
        if output.heads is not None and model.mica is not None:
            gated = output.heads.gated()
            details = independence(
                gated,
                criterion=self.model_config.criterion,
                sigma=self.model_config.sigma,
                bandwidth=self.model_config.bandwidth,
                pairs=self.model_config.pairs,
                estimator=self.model_config.estimator,
            )
            if self.model_config.criterion != "none":
                weighted.append(("independence", config.independence, details.value))
                l2 = projection_l2(model.mica.project.weight, config.l2_form)
                weighted.append(("l2", config.l2, l2))
            if config.map_distance and output.map_B1HW is not None:
                distance = map_distance(output.map_B1HW, gated)
                weighted.append(("map_distance", config.map_distance, distance))
        total = torch.stack([w * term for _, w, term in weighted]).sum()
        return Loss(total, {name: term.detach() for name, _, term in weighted}, details)
