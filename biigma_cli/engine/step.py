"""One optimisation step: augmentation, both branches, the loss, gradients over all ranks."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor, nn

from biigma_cli.config import Config
from biigma_cli.core.loss import Criterion, Loss, Mixed
from biigma_cli.core.model import BiigmaNet
from biigma_cli.data import augment
from biigma_cli.data.backgrounds import Backgrounds, draw_swap, swap_backgrounds
from biigma_cli.engine import distributed
from biigma_cli.engine.average import Average
from biigma_cli.engine.distributed import Ranks
from biigma_cli.engine.evaluate import to_batch
from biigma_cli.engine.feed import Batch
from biigma_cli.engine.schedule import generator, learning_rate, side_at
from biigma_cli.engine.teachers import Teachers

# Of every trunk's last feature map.
STRIDE = 32


class Logged(NamedTuple):
    """What a step leaves for the log; reading the values makes the host wait for the device.

    Attributes:
        lr: learning rate of the step.
        names: of the values; the total `loss` comes first.
        values_T: float64, on the device.
    """

    lr: float
    names: list[str]
    values_T: Tensor


class Stepper:
    """Takes steps; what it changes is the model, the optimizer and the average.

    Args:
        precision: `bf16` or `fp32`.
        backgrounds: of the training part, for `train.backgrounds`.
    """

    def __init__(
        self,
        config: Config,
        model: BiigmaNet,
        criterion: Criterion,
        optimizer: torch.optim.Optimizer,
        average: Average | None,
        teachers: Teachers,
        ranks: Ranks,
        *,
        precision: str,
        backgrounds: Backgrounds | None = None,
    ) -> None:
        self.config, self.model, self.criterion = config, model, criterion
        self.optimizer, self.average, self.teachers = optimizer, average, teachers
        self.ranks, self.precision, self.backgrounds = ranks, precision, backgrounds
        self.augmentation = augment.PRESETS[config.train.augment_strength]
        self.clean = dataclasses.replace(
            self.augmentation,
            corners=0.0,
            blur=0.0,
            resolution=1.0,
            sharpen=0.0,
            noise=0.0,
            compression=0.0,
        )
        self._wrapped: tuple[bool, nn.Module] | None = None
        model.train()

    def _network(self, sample: bool) -> nn.Module:
        """What is called: the model, or the model with gradients averaged over the ranks."""
        all_used = sample or not self.config.model.sampling
        if self._wrapped is None or self._wrapped[0] != all_used:
            self._wrapped = None  # DDP's old wrapper must go before a new one is made
            wrapper = distributed.wrap(self.model, self.ranks, all_used=all_used)
            self._wrapped = (all_used, wrapper)
        return self._wrapped[1]

    def _on_others(
        self, image_B3SS: Tensor, batch: Batch, draws: torch.Generator, size: int
    ) -> Tensor:
        """This rank's images, some of them on other backgrounds."""
        assert self.backgrounds is not None
        share, donors = self.config.train.backgrounds, len(self.backgrounds.filled_MSS3)
        swap = draw_swap(size, share, donors, draws).part(self.ranks.slice_of(size))
        return swap_backgrounds(image_B3SS, batch.index_B, swap, self.backgrounds)

    def _answers(self, batch: Batch, view: Tensor, mix: augment.Mix | None) -> Tensor | None:
        """The teachers' probabilities, `(B, Y)`: of the view, or of the images as they are."""
        if self.config.train.teacher_view != "once":
            return self.teachers(view) if self.teachers else None
        own = batch.taught_BY
        if own is None or mix is None:
            return own
        return own.lerp(own[mix.partner_B], 1 - mix.lam_B[:, None])

    def _taught(self, batch: Batch, mix: augment.Mix | None) -> Tensor | None:
        """Images that the teachers, who know the run's own data set alone, have a say on."""
        if not self.config.data.extra:
            return None
        return batch.own_B if mix is None else batch.own_B & batch.own_B[mix.partner_B]

    def __call__(self, batch: Batch, *, epoch: int, step: int, steps: int, size: int) -> Logged:
        """One optimisation step.

        Args:
            batch: this rank's slice.
            epoch: 0-based.
            step: 0-based within the epoch, of `steps`.
            size: images of the whole batch.
        """
        config, tc, ranks, device = self.config, self.config.train, self.ranks, self.ranks.device
        side = side_at(tc, epoch, config.data.side)
        sample = config.model.sampling and epoch >= tc.sampling_start_epoch
        overall = epoch * steps + step
        lr = learning_rate(tc, overall, tc.epochs * steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # Drawn for the whole batch on every rank, so that a slice gets what one process would.
        draws = generator(tc.seed, "step", epoch, step)
        mine = ranks.slice_of(size)
        # Dropout draws from the global generators.
        torch.manual_seed(int(torch.randint(2**62, (), generator=draws)) + ranks.rank)
        pixels = to_batch(batch.pixels_BSS3, device)
        image = view = augment.resize_batch(pixels, side)
        if self.backgrounds is not None:
            # Numbers of their own: the other transforms' stay what they are without this one.
            others = generator(tc.seed, "background", epoch, step)
            image = augment.resize_batch(self._on_others(pixels, batch, others, size), side)
        clean = bool(self.teachers) and tc.teacher_view == "clean"
        if tc.augment:
            drawn = augment.draw(self.augmentation, size, draws).part(mine)
            if clean:
                view = augment.apply(view, drawn, self.clean)
            image = augment.apply(image, drawn, self.augmentation)
        mixed = mix = None
        if tc.mix != "none":
            mix = augment.draw_mix(
                size, side, draws,
                kind=tc.mix, alpha=tc.mix_alpha, probability=tc.mix_probability,
            ).part(mine).to(device)  # fmt: skip
            image = augment.mix_images(image, mix)
            if clean:
                view = augment.mix_images(view, mix)
            mixed = Mixed(batch.label_B[mix.partner_B], mix.lam_B)
        image = image.contiguous(memory_format=torch.channels_last)
        draw_P = gather = None
        if sample:
            cells = (side // STRIDE) ** 2
            draw_P = torch.rand(size * cells, generator=draws)
            gather = distributed.background_gather(ranks) if tc.gather_background else None
            if gather is None:
                draw_P = draw_P[mine.start * cells : mine.stop * cells]
            draw_P = draw_P.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            output = self._network(sample)(image, sample=sample, draw_P=draw_P, gather=gather)
            taught = self._answers(batch, view if clean else image, mix)
        loss: Loss = self.criterion(
            output,
            batch.label_B,
            self.model,
            teacher_BY=taught,
            taught_B=self._taught(batch, mix),
            mixed=mixed,
        )
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss.total)
        if tc.grad_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), tc.grad_clip)
        self.optimizer.step()
        if self.average:
            self.average.update(self.model, overall)
        logged = {"loss": loss.total.detach(), **loss.terms}
        if loss.independence is not None:
            cosine = loss.independence.cosine_KK
            k = len(cosine)
            logged["kernel_mean"] = loss.independence.kernel_mean
            logged["head_cosine"] = (cosine.sum() - cosine.trace()) / max(1, k * (k - 1))
        # Apple's GPUs have no float64.
        wide = torch.float32 if device.type == "mps" else torch.float64
        values_T = torch.stack([v.detach().to(wide) for v in logged.values()])
        return Logged(lr, list(logged), values_T)


def build_optimizer(
    model: BiigmaNet, config: Config, device: torch.device
) -> torch.optim.Optimizer:
    """Adam, or AdamW without decay on norms and biases."""
    # One pass over all tensors in place of several for each.
    fused = device.type in ("cpu", "cuda")
    if config.train.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=config.train.lr, fused=fused)
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": config.train.weight_decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.train.lr, fused=fused)
