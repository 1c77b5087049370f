"""Batches: the same from memory and prefetched, in an order that a seed fixes."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
import torch

from biigma_cli.config import TrainConfig
from biigma_cli.data.images import Part
from biigma_cli.engine.feed import Feed, epoch_batches

CPU = torch.device("cpu")


@pytest.fixture
def part() -> Part:
    """Forty small random images of three classes, thirty of the first."""
    rng = np.random.default_rng(0)
    labels = np.array([0] * 30 + [1] * 7 + [2] * 3)
    return Part(
        ids=tuple(f"i{i}" for i in range(40)),
        pixels=rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8),
        labels=labels,
        groups=tuple(f"l{i}" for i in range(40)),
    )


@pytest.mark.parametrize("resident", [True, False])
def test_batches_are_the_images_asked_for(part: Part, resident: bool) -> None:
    """Each batch holds the images and labels of its indices, in their order."""
    indices = epoch_batches(torch.from_numpy(part.labels), TrainConfig(batch_size=6), 0)
    batches = list(Feed(part, CPU, resident=resident)(indices))
    assert len(batches) == len(indices) == 6
    for index, batch in zip(indices, batches, strict=True):
        np.testing.assert_array_equal(batch.pixels_BSS3.numpy(), part.pixels[index.numpy()])
        np.testing.assert_array_equal(batch.label_B.numpy(), part.labels[index.numpy()])
        assert batch.own_B.all()
    feed = Feed(part, CPU, own=25, resident=resident)
    for index, batch in zip(indices, feed(indices), strict=True):
        assert batch.own_B.tolist() == (index < 25).tolist()


@pytest.mark.parametrize("resident", [True, False])
def test_answers_of_teachers_go_with_their_images(part: Part, resident: bool) -> None:
    """Each own image has its own row."""
    rows = torch.arange(25.0)[:, None].expand(25, 3)
    indices = epoch_batches(torch.from_numpy(part.labels), TrainConfig(batch_size=6), 0)
    feed = Feed(part, CPU, own=25, resident=resident, taught=rows)
    for index, batch in zip(indices, feed(indices), strict=True):
        assert batch.taught_BY is not None
        own = index < 25
        assert batch.taught_BY[own, 0].tolist() == index[own].tolist()


def test_prefetching_ends_with_its_reader(part: Part) -> None:
    """A reader that leaves early leaves no thread behind."""
    before = threading.active_count()
    batches = Feed(part, CPU, resident=False)([torch.tensor([i]) for i in range(40)])
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_errors_of_the_prefetching_thread_are_raised(part: Part) -> None:
    """An index that is not there is an error where the batch is waited for."""
    feed = Feed(part, CPU, resident=False)
    with pytest.raises(IndexError):
        list(feed([torch.tensor([1]), torch.tensor([99])]))


def test_an_epoch_takes_every_image_once(part: Part) -> None:
    """Without balancing; the order differs from epoch to epoch and from seed to seed."""
    labels = torch.from_numpy(part.labels)
    orders = [
        torch.cat(epoch_batches(labels, TrainConfig(batch_size=8, seed=seed), epoch)).tolist()
        for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert sorted(orders[0]) == list(range(40))
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != orders[3]


def test_balanced_sampling(part: Part) -> None:
    """With exponent 1 classes come alike, with 0.5 in between; 30:7:3 in the data."""
    labels = torch.from_numpy(part.labels)

    def shares(balance: float) -> list[float]:
        counts: Counter[int] = Counter()
        for epoch in range(100):
            for index in epoch_batches(labels, TrainConfig(batch_size=8, balance=balance), epoch):
                counts.update(labels[index].tolist())
        return [counts[c] / counts.total() for c in range(3)]

    roots = np.sqrt([30, 7, 3])
    assert shares(1.0) == pytest.approx([1 / 3] * 3, abs=0.03)
    assert shares(0.5) == pytest.approx((roots / roots.sum()).tolist(), abs=0.03)
