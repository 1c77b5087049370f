"""Learning rate, sides, generators, devices and the moving average."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from biigma_cli.config import TrainConfig
from biigma_cli.engine import device as devices
from biigma_cli.engine.average import Average
from biigma_cli.engine.device import pick_device, pick_precision
from biigma_cli.engine.schedule import generator, learning_rate, side_at
from biigma_cli.errors import DeviceError, UsageError


def test_constant_rate() -> None:
    """The paper's rate never changes."""
    config = TrainConfig(lr=3e-4)
    assert {learning_rate(config, step, 50) for step in range(50)} == {3e-4}


def test_one_cycle_rate() -> None:
    """From a 25th of the peak up in a line, then down a cosine towards a thousandth."""
    config = TrainConfig(lr=1.0, schedule="one_cycle", warmup_fraction=0.2)
    rates = [learning_rate(config, step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.04)
    assert rates[10] == pytest.approx(0.52)
    assert rates[20] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.001 + 0.999 * 0.5)
    assert rates[100] == pytest.approx(0.001)
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_one_cycle_of_one_step() -> None:
    """The shortest training there is still has a rate above 0."""
    config = TrainConfig(lr=1.0, schedule="one_cycle")
    assert 0 < learning_rate(config, 0, 1) <= 1


def test_sides() -> None:
    """Each phase lasts its epochs; without phases the data's side holds."""
    config = TrainConfig(epochs=6, sides=(64, 96, 128), side_epochs=(1, 2, 3))
    assert [side_at(config, epoch, 128) for epoch in range(6)] == [64, 96, 96, 128, 128, 128]
    assert side_at(TrainConfig(), 99, 224) == 224


def test_generators() -> None:
    """Equal moments draw equally; another seed, purpose, epoch or step draws otherwise."""

    def draw(*key: Any) -> tuple[float, ...]:
        return tuple(torch.rand(4, generator=generator(*key)).tolist())

    moment = (0, "step", 1, 2)
    assert draw(*moment) == draw(*moment)
    others = [(1, "step", 1, 2), (0, "order", 1, 2), (0, "step", 2, 2), (0, "step", 1, 3)]
    assert len({draw(*key) for key in [moment, *others]}) == 5


def test_generator_leaves_the_global_one_alone() -> None:
    """Drawing from a generator does not move torch's own."""
    before = torch.get_rng_state()
    torch.rand(3, generator=generator(0, "order", 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_average_begins_short() -> None:
    """The first update keeps a tenth of the initial weights, not 99%; counters are copied."""
    model: Any = torch.nn.BatchNorm2d(2)
    average = Average(model, 0.99)
    with torch.no_grad():
        model.weight.fill_(11.0)
        model.running_mean.fill_(5.0)
        model.num_batches_tracked.fill_(7)
    average.update(model, 0)
    assert average.tensors["weight"].tolist() == pytest.approx([0.1 * 1 + 0.9 * 11] * 2)
    assert average.tensors["running_mean"].tolist() == pytest.approx([4.5] * 2)
    assert int(average.tensors["num_batches_tracked"]) == 7
    average.update(model, 10**6)
    assert average.tensors["running_mean"].tolist() == pytest.approx([0.99 * 4.5 + 0.05] * 2)


def test_average_with_a_short_memory() -> None:
    """A decay below a tenth holds from the start."""
    model: Any = torch.nn.BatchNorm2d(2)
    average = Average(model, 0.05)
    with torch.no_grad():
        model.weight.fill_(0.0)
    average.update(model, 0)
    assert average.tensors["weight"].tolist() == pytest.approx([0.05] * 2)


def test_known_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cpu` is had anywhere; `auto` takes CUDA only where there is one."""
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "meta", "xla", "cpu:cpu"])
def test_unknown_devices(name: str) -> None:
    """Names that mean nothing here are usage errors."""
    with pytest.raises(UsageError, match="unknown device"):
        pick_device(name)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt:0", "coreml", "openvino"])
def test_devices_of_exported_models(name: str) -> None:
    """What `predict` can run on and torch cannot: says so, and how to get there."""
    with pytest.raises(UsageError, match="runs exported models") as caught:
        pick_device(name)
    assert "biigma export onnx" in caught.value.fix


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """No CUDA, too few CUDA devices and no MPS each say so."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="no MPS"):
        pick_device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="no CUDA device"):
        pick_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1").index == 1
    with pytest.raises(DeviceError, match="has 2 CUDA devices"):
        pick_device("cuda:2")


@pytest.mark.parametrize("native", [True, False])
def test_precision(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` takes bf16 only where it is computed natively; anything else is taken as given."""
    monkeypatch.setattr(devices.torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    cpu = torch.device("cpu")
    assert pick_precision("auto", cpu) == ("bf16" if native else "fp32")
    assert pick_precision("fp32", cpu) == "fp32"
    assert pick_precision("bf16", cpu) == "bf16"
    assert pick_precision("auto", torch.device("mps")) == "fp32"
