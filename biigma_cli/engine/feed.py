"""From decoded images in memory to batches on the device."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from biigma_cli.config import TrainConfig
from biigma_cli.data.images import Part
from biigma_cli.engine.schedule import generator

AHEAD = 3


class Batch(NamedTuple):
    """One batch on the device.

    Attributes:
        pixels_BSS3: uint8.
        label_B: class indices.
        own_B: bool: of the run's own data set, not of an extra one.
        index_B: places in the run's own training part, -1 for images of an extra one; on the CPU.
        taught_BY: the teachers' probabilities, where they were asked once for all.
    """

    pixels_BSS3: Tensor
    label_B: Tensor
    own_B: Tensor
    index_B: Tensor
    taught_BY: Tensor | None = None


class Feed:
    """Batches of a part: from the device's memory where the part fits, else prefetched.

    Args:
        part: decoded images.
        device: where the batches go.
        own: images, from the first on, of the run's own data set; None: all.
        resident: keep the whole part on the device; None decides: always on the CPU, where
            nothing has to move, and on CUDA where it takes at most half of the free memory.
        taught: `(N, Y)`, the teachers' probabilities for the own images.
    """

    def __init__(
        self,
        part: Part,
        device: torch.device,
        *,
        own: int | None = None,
        resident: bool | None = None,
        taught: Tensor | None = None,
    ) -> None:
        self.device = device
        self.pixels = torch.from_numpy(part.pixels)
        self.labels = torch.from_numpy(part.labels).to(device)
        self.own = len(part.labels) if own is None else own
        self.taught = None if taught is None else taught.to(device)
        if resident is None:
            resident = device.type != "cuda" or (
                self.pixels.numel() < torch.cuda.mem_get_info(device)[0] / 2
            )
        self.resident = resident
        if resident:
            self.pixels = self.pixels.to(device)

    def __call__(self, indices: Sequence[Tensor]) -> Iterator[Batch]:
        """The batches `indices`, each `(B,)` on the CPU, in order."""
        if self.resident:
            for index in indices:
                at = index.to(self.device)
                yield self._batch(self.pixels.index_select(0, at), index, at)
            return
        yield from self._prefetched(indices)

    def _batch(self, pixels: Tensor, index: Tensor, at: Tensor) -> Batch:
        """The batch at `index`, which is on the CPU; `at` is the same on the device."""
        # The teachers have no say on images of extra data sets: any row will do there.
        taught = None if self.taught is None else self.taught[at.clamp_max(self.own - 1)]
        place = torch.where(index < self.own, index, -1)
        return Batch(pixels, self.labels.index_select(0, at), at < self.own, place, taught)

    def _prefetched(self, indices: Sequence[Tensor]) -> Iterator[Batch]:
        """A thread gathers the next batches in pinned memory while the device computes."""
        pin = self.device.type == "cuda"
        ready: queue.Queue[Tensor | BaseException] = queue.Queue(AHEAD)
        done = threading.Event()

        def put(item: Tensor | BaseException) -> bool:
            while not done.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def gather() -> None:
            try:
                for index in indices:
                    shape = (len(index), *self.pixels.shape[1:])
                    out = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
                    torch.index_select(self.pixels, 0, index, out=out)
                    if not put(out):
                        return
            except BaseException as error:  # told where it is waited for
                put(error)

        thread = threading.Thread(target=gather, name="feed", daemon=True)
        thread.start()
        try:
            for index in indices:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                pixels = item.to(self.device, non_blocking=True)
                yield self._batch(pixels, index, index.to(self.device))
        finally:
            done.set()
            thread.join()


def epoch_batches(label_N: Tensor, config: TrainConfig, epoch: int) -> list[Tensor]:
    """Index batches `(B,)` of an epoch, 0-based; a last, smaller one is left out (batch norm).

    The order depends on the seed and the epoch alone.
    """
    draws = generator(config.seed, "order", epoch)
    count = len(label_N)
    if config.balance:
        labels = label_N.cpu()
        per_class = torch.bincount(labels).clamp_min(1).to(torch.float64)
        chance = per_class.pow(-config.balance)[labels]
        order = torch.multinomial(chance, count, replacement=True, generator=draws)
    else:
        order = torch.randperm(count, generator=draws)
    size = min(config.batch_size, count)
    return [order[i : i + size] for i in range(0, count - size + 1, size)]
