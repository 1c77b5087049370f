"""Two processes with half a batch each compute what one computes with the whole."""

from __future__ import annotations

import copy
import multiprocessing
import os
import socket
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from biigma_cli.config import LossConfig
from biigma_cli.core.loss import Criterion
from biigma_cli.core.sampling import Gather, background_draw, hybrid_feature
from biigma_cli.engine import distributed
from biigma_cli.engine.distributed import Ranks, SyncBatchNorm2d, joined
from biigma_cli.errors import BiigmaError, DataError, RankLost, UsageError
from tests.core.tiny import images, normal, seeded, tiny_config, tiny_net

CPU = torch.device("cpu")
CONTEXT = multiprocessing.get_context("spawn")
# Seconds after which a process of a test counts as hung; importing torch can take a minute on a
# busy machine.
HUNG = 250


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(rank: int, pipe: Connection) -> None:
    """Do jobs as one of two ranks, each in a group of its own, until told to end."""
    global word
    word = pipe.recv
    torch.set_num_threads(1)
    distributed._LEAVE_S = 0.5
    while (job := pipe.recv()) is not None:
        port, timeout_s, function, arguments = job
        # What torchrun sets.
        os.environ.update(
            RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
        try:
            with joined("cpu", timeout_s=timeout_s) as ranks:
                answer = function(ranks, *arguments)
            pipe.send((answer, None))
        except BiigmaError as error:
            pipe.send((error, None))
        except Exception:
            pipe.send((None, traceback.format_exc()))
        while torch.distributed.is_initialized():  # a group left behind after an error
            time.sleep(0.01)


# In a process of `Pair`: waits for a word from the test.
word: Callable[[], Any]


class Pair:
    """Two processes that compute together; most of their time goes into starting."""

    def __init__(self) -> None:
        self.pipes, self.processes = [], []
        for rank in range(2):
            here, there = CONTEXT.Pipe()
            process = CONTEXT.Process(target=serve, args=(rank, there), daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(ranks, *arguments)` gave in each, side by side."""
        self.start(function, *arguments)
        return [self.answer(rank) for rank in range(2)]

    def start(self, function: Callable[..., Any], *arguments: Any, timeout_s: float = HUNG) -> None:
        """Begin without waiting for the answers."""
        port = free_port()
        for pipe in self.pipes:
            pipe.send((port, timeout_s, function, arguments))

    def answer(self, rank: int) -> Any:
        """What the function gave in one of them, or the error of ours that it ended with."""
        assert self.pipes[rank].poll(HUNG), f"rank {rank} does not answer"
        answer, trace = self.pipes[rank].recv()
        assert trace is None, trace
        return answer

    def close(self) -> None:
        """End both."""
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(HUNG)
            assert process.exitcode == 0


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Two processes, kept for all tests here."""
    both = Pair()
    yield both
    both.close()


# --- collectives ------------------------------------------------------------------------------


def talk(ranks: Ranks) -> dict[str, Any]:
    """What the small collectives answer."""
    distributed.barrier()
    mine = torch.tensor([1.0, 2.0]) * (ranks.rank + 1)
    return {
        "rank": ranks.rank,
        "main": ranks.is_main,
        "slice": ranks.slice_of(6),
        "sum": distributed.sum_over_ranks(mine).tolist(),
        "mean": distributed.mean_over_ranks(mine).tolist(),
        "untouched": mine.tolist(),
        "any": [distributed.any_rank(ranks.rank == 1), distributed.any_rank(False)],
        "object": distributed.broadcast_object({"from": ranks.rank}),
        "objects": distributed.gather_objects(f"of {ranks.rank}"),
    }


def test_collectives(pair: Pair) -> None:
    """Both hear the same, and own tensors stay as they are."""
    for rank, said in enumerate(pair.run(talk)):
        assert said == {
            "rank": rank,
            "main": rank == 0,
            "slice": slice(3 * rank, 3 * rank + 3),
            "sum": [3.0, 6.0],
            "mean": [1.5, 3.0],
            "untouched": [rank + 1.0, 2 * (rank + 1.0)],
            "any": [True, False],
            "object": {"from": 0},
            "objects": ["of 0", "of 1"],
        }


def told_buffers(ranks: Ranks) -> list[Any]:
    """A norm's buffers and weights after rank 0 has told its buffers."""
    norm = nn.BatchNorm2d(2)
    for tensor in norm.state_dict().values():
        tensor.fill_(ranks.rank + 5)
    distributed.broadcast_buffers(nn.Sequential(norm))
    return [tensor.tolist() for tensor in norm.state_dict().values()]


def test_buffers_are_those_of_the_first(pair: Pair) -> None:
    """In place, whole numbers too; weights stay."""
    for rank, (weight, bias, mean, var, count) in enumerate(pair.run(told_buffers)):
        assert weight == bias == [rank + 5.0] * 2
        assert mean == var == [5.0] * 2
        assert count == 5


def fail_in_one(ranks: Ranks, failing: int) -> str:
    """The message of the error that this rank sees."""
    try:
        with distributed.shared_errors():
            if ranks.rank == failing:
                raise DataError("no image of class df", fix="complete the data")
    except DataError as error:
        return f"{error.message}; {error.fix}"
    return "nothing"


def test_an_error_of_one_is_raised_in_both(pair: Pair) -> None:
    """Whichever rank it is; with no error nothing happens."""
    for failing in (0, 1):
        said = pair.run(fail_in_one, failing)
        assert said == ["no image of class df; complete the data"] * 2
    assert pair.run(fail_in_one, 2) == ["nothing"] * 2


def test_one_process_alone() -> None:
    """Nothing waits for anybody, and nothing is changed."""
    ranks = Ranks.single(CPU)
    x, model = normal(3, 2), nn.Sequential(nn.BatchNorm2d(2))
    assert ranks.is_main
    assert ranks.slice_of(7) == slice(0, 7)
    assert torch.equal(distributed.sum_over_ranks(x), x)
    assert torch.equal(distributed.mean_over_ranks(x), x)
    assert distributed.any_rank(True)
    assert not distributed.any_rank(False)
    assert distributed.broadcast_object("a") == "a"
    assert distributed.gather_objects("a") == ["a"]
    assert distributed.gather_background(x) is x
    assert distributed.background_gather(ranks) is None
    distributed.broadcast_buffers(model)
    assert distributed.wrap(model, ranks) is model
    assert type(distributed.sync_batchnorm(model, CPU)[0]) is nn.BatchNorm2d
    distributed.barrier()
    with pytest.raises(DataError), distributed.shared_errors():
        raise DataError("of this process")


def test_a_batch_must_divide() -> None:
    """Uneven shares are refused, with the number that would do."""
    ranks = Ranks(rank=1, world=3, local_rank=1, device=CPU)
    assert ranks.slice_of(9) == slice(3, 6)
    with pytest.raises(UsageError, match="10 images cannot be shared out evenly over 3") as caught:
        ranks.slice_of(10)
    assert "multiple of 3" in caught.value.fix


# --- joining and leaving ----------------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without a launcher's variables."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_a_launcher_there_is_one_rank(bare: pytest.MonkeyPatch) -> None:
    """No group is made; the same in a world of one."""
    for environment in ({}, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}):
        for name, value in environment.items():
            bare.setenv(name, value)
        with joined("cpu") as ranks:
            assert ranks == Ranks.single(CPU)
            assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("environment", "device", "words"),
    [
        ({"RANK": "0"}, "cpu", "WORLD_SIZE is None"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "cpu", "LOCAL_RANK is None"),
        ({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "cpu", "RANK is 'x'"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "cpu", "do not fit together"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "cpu", "MASTER_ADDR is not"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost",
             "MASTER_PORT": "1"}, "cpu:0", "cannot share cpu:0",
        ),
    ],
)  # fmt: skip
def test_an_environment_that_cannot_be(
    bare: pytest.MonkeyPatch, environment: dict[str, str], device: str, words: str
) -> None:
    """Each gap is named before anything waits."""
    for name, value in environment.items():
        bare.setenv(name, value)
    with pytest.raises(UsageError, match=words), joined(device):
        pytest.fail("joined")


def part_ways(ranks: Ranks, how: str) -> None:
    """Rank 1 leaves, or is silent until it hears a word; rank 0 waits for it, or fails itself."""
    distributed.barrier()
    if ranks.rank == 1:
        if how != "left":
            word()
        return
    if how == "failing":
        # What DDP has under way in the middle of a backward pass.
        torch.distributed.all_reduce(torch.ones(1), async_op=True)
        raise DataError("in the middle of a step")
    distributed.barrier()


@pytest.mark.parametrize("how", ["left", "silent", "failing"])
def test_parting(pair: Pair, how: str) -> None:
    """A rank that is gone or silent is told as such; an own error does not wait for the others."""
    pair.start(part_ways, how, timeout_s=6 if how == "silent" else 10 * HUNG)
    error = pair.answer(0)
    if how != "left":
        pair.pipes[1].send("go on")
    assert pair.answer(1) is None
    if how == "failing":
        assert isinstance(error, DataError)
        assert error.message == "in the middle of a step"
        return
    assert isinstance(error, RankLost)
    assert error.exit_code == 6
    cause = "Timed out waiting" if how == "silent" else "by peer"
    assert "another process of the training ended or no longer answers" in error.message
    assert "process 0 of 2" in error.message
    assert cause in error.message
    assert "GLHF" not in error.message
    assert "--resume" in error.fix


# --- batch norm -------------------------------------------------------------------------------


def uneven() -> Tensor:
    """A batch whose halves differ in mean and spread."""
    x = normal(6, 5, 4, 3)
    x[3:] = 3 * x[3:] + torch.arange(5.0)[:, None, None] - 40
    return x


def norm_of(settings: dict[str, Any], *, seed: int = 4) -> nn.BatchNorm2d:
    """A norm with weights and statistics of its own, in float64."""
    norm = nn.BatchNorm2d(5, dtype=torch.float64, **settings)
    with torch.no_grad():
        for i, tensor in enumerate([*norm.parameters(), norm.running_mean, norm.running_var]):
            if tensor is not None:
                tensor.copy_(normal(5, seed=seed + i).abs() + 0.5)
    return norm


def through(norm: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Any]:
    """Two training steps: output, gradients and state after the second."""
    for _ in range(2):
        norm.zero_grad()
        x = x.detach().requires_grad_()
        y = norm(x)
        y.backward(dy)
    assert x.grad is not None
    found = {"y": y.detach(), "x.grad": x.grad, **norm.state_dict()}
    found |= {f"{k}.grad": p.grad for k, p in norm.named_parameters()}
    found["channels last"] = torch.tensor(y.is_contiguous(memory_format=torch.channels_last))
    return {k: v.double().numpy() for k, v in found.items()}


def half_norm(ranks: Ranks, settings: dict[str, Any], last: bool) -> dict[str, Any]:
    """`through` on this rank's half."""
    norm = nn.Sequential(norm_of(settings))
    distributed.sync_batchnorm(norm, CPU)
    assert type(norm[0]) is SyncBatchNorm2d
    layout = torch.channels_last if last else torch.contiguous_format
    own = ranks.slice_of(6)
    x, dy = uneven()[own], normal(6, 5, 4, 3, seed=1)[own]
    return through(norm[0], x.contiguous(memory_format=layout), dy)


@pytest.mark.parametrize(
    ("settings", "last"),
    [
        ({}, False),
        ({"momentum": 0.3, "eps": 1e-3}, True),
        ({"momentum": None}, False),
        ({"affine": False}, True),
        ({"track_running_stats": False}, False),
    ],
)
def test_batch_norm_is_that_of_the_whole_batch(
    pair: Pair, settings: dict[str, Any], last: bool
) -> None:
    """Output, all gradients, running statistics and names are torch's on the whole batch."""
    whole = through(norm_of(settings), uneven(), normal(6, 5, 4, 3, seed=1))
    halves = pair.run(half_norm, settings, last)
    for half in halves:
        assert half.keys() == whole.keys()
        assert bool(half.pop("channels last")) == last
    whole.pop("channels last")
    for name, value in whole.items():
        parts = [half[name] for half in halves]
        if name in ("y", "x.grad"):
            got = np.concatenate(parts)
        elif name.endswith(".grad"):
            got = parts[0] + parts[1]  # of a summed loss; DDP makes means of it
        else:
            np.testing.assert_array_equal(parts[0], parts[1])
            got = parts[0]
        np.testing.assert_allclose(got, value, rtol=1e-10, atol=1e-10, err_msg=name)


def half_autocast(ranks: Ranks) -> tuple[Any, ...]:
    """A convolution and a norm in bf16, channels last, on this rank's half."""
    model = nn.Sequential(nn.Conv2d(5, 5, 1), nn.BatchNorm2d(5))
    return autocast_step(distributed.sync_batchnorm(model, CPU), ranks.slice_of(6))


def autocast_step(model: nn.Module, own: slice) -> tuple[Any, ...]:
    """Output, its type and layout, the input's gradient and the running variance."""
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=20 + i))
    x = uneven().float()[own].contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    y.backward(normal(6, 5, 4, 3, seed=1)[own].bfloat16())
    assert x.grad is not None
    layout = y.is_contiguous(memory_format=torch.channels_last)
    var = model[1].running_var  # type: ignore[index]
    return y.dtype, layout, y.detach().float().numpy(), x.grad.numpy(), var.numpy()


def test_batch_norm_under_autocast(pair: Pair) -> None:
    """bf16 in and out, channels last kept, values as near torch's as bf16 allows."""
    model = nn.Sequential(nn.Conv2d(5, 5, 1), nn.BatchNorm2d(5))
    dtype, layout, y, grad, var = autocast_step(model, slice(None))
    halves = pair.run(half_autocast)
    assert dtype == torch.bfloat16
    assert layout
    assert [half[:2] for half in halves] == [(dtype, True)] * 2
    np.testing.assert_allclose(np.concatenate([h[2] for h in halves]), y, atol=0.02)
    scale = np.abs(grad).max()
    np.testing.assert_allclose(np.concatenate([h[3] for h in halves]), grad, atol=0.02 * scale)
    for half in halves:
        np.testing.assert_allclose(half[4], var, rtol=1e-5)


def replaced(ranks: Ranks) -> tuple[int, int, bool, bool]:
    """Norms that are ours, norms that are left; names and eval mode against the untouched one."""
    model = tiny_net(side=64)
    before = copy.deepcopy(model)
    distributed.sync_batchnorm(model, CPU)
    ours = sum(isinstance(m, SyncBatchNorm2d) for m in model.modules())
    left = sum(type(m) is nn.BatchNorm2d for m in model.modules())
    names = list(model.state_dict()) == list(before.state_dict())
    x = images(2, 64, seed=ranks.rank)
    with torch.no_grad():
        # In eval mode ranks may see different numbers of batches: no collective.
        same = ranks.rank == 1 or torch.equal(model(x).logits_BY, before(x).logits_BY)
    return ours, left, names, same


def test_norms_are_replaced_throughout(pair: Pair) -> None:
    """Also inside torchvision's containers; a checkpoint fits either, and eval mode is the same."""
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in tiny_net().modules())
    assert norms > 40
    assert pair.run(replaced) == [(norms, 0, True, True)] * 2


# --- background vectors -----------------------------------------------------------------------


def gathered(ranks: Ranks) -> tuple[Any, Any]:
    """All ranks' vectors, and the gradient of this rank's own."""
    own = normal(12, 4)[ranks.slice_of(12)].requires_grad_()
    every = distributed.gather_background(own)
    (every.square() * normal(12, 4, seed=ranks.rank + 1)).sum().backward()
    assert own.grad is not None
    return every.detach().numpy(), own.grad.numpy()


def test_gathered_vectors_and_their_gradient(pair: Pair) -> None:
    """In the order of the ranks; each vector hears of both losses."""
    vectors = normal(12, 4).requires_grad_()
    for seed in (1, 2):
        (vectors.square() * normal(12, 4, seed=seed)).sum().backward()
    assert vectors.grad is not None
    first, second = pair.run(gathered)
    np.testing.assert_array_equal(first[0], vectors.detach().numpy())
    np.testing.assert_array_equal(second[0], vectors.detach().numpy())
    got = np.concatenate([first[1], second[1]])
    np.testing.assert_allclose(got, vectors.grad.numpy(), rtol=1e-12)


@pytest.mark.parametrize("method", ["replacement", "permutation"])
def test_slices_of_a_batch_share_one_background(method: str) -> None:
    """Given all vectors and the whole draw, slices make the hybrid feature of the whole batch."""
    feat = normal(6, 4, 2, 3).relu()
    feat[1:4, :, 0] = 0
    m = torch.sigmoid(normal(6, 1, 2, 3, seed=1))
    draw = background_draw(feat[:2], seeded(2), world=3)
    whole = hybrid_feature(feat, m, draw, method=method)
    vectors = (feat * (1 - m)).permute(0, 2, 3, 1).reshape(-1, 4)
    for rank in range(3):
        own = slice(2 * rank, 2 * rank + 2)
        gather = Gather(lambda _: vectors, rank, 3)
        got = hybrid_feature(feat[own], m[own], draw, method=method, gather=gather)
        assert torch.equal(got, whole[own])


def test_a_draw_of_the_wrong_length_is_refused() -> None:
    """Such as a rank's own part where the whole is wanted."""
    feat, m = normal(2, 4, 2, 3), torch.full((2, 1, 2, 3), 0.5, dtype=torch.float64)
    gather = Gather(lambda v: torch.cat([v, v]), 0, 2)
    with pytest.raises(ValueError, match="12 numbers for 24 positions"):
        hybrid_feature(feat, m, background_draw(feat, seeded(0)), gather=gather)


# --- the whole network ------------------------------------------------------------------------

BATCH, SIDE = 8, 64


def training_net(draw: str) -> nn.Module:
    """A tiny network in training mode, float64, its criterion beside it."""
    settings = {"draw": draw, "dropout": 0.0, "sigma": 2.0, "bandwidth": "fixed"}
    return tiny_net(side=SIDE, **settings).double().train()


def losses(
    net_for: Callable[[bool], nn.Module],
    model: Any,
    sampling: tuple[bool, ...],
    own: slice,
    gather: Gather | None,
) -> tuple[list[float], dict[str, Any]]:
    """A step of SGD per entry of `sampling`: losses, and the last step's gradients."""
    config = tiny_config(sigma=2.0, bandwidth="fixed")
    target = torch.arange(BATCH) % 7
    criterion = Criterion(LossConfig(), config, torch.bincount(target))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, weight_decay=0.1)
    found = []
    for step, sample in enumerate(sampling):
        optimizer.zero_grad()
        batch = images(BATCH, SIDE, seed=step).double()[own]
        output = net_for(sample)(batch, sample=sample, generator=seeded(step), gather=gather)
        loss = criterion(output, target[own], model).total
        torch.autograd.backward(loss)
        optimizer.step()
        found.append(float(distributed.mean_over_ranks(loss)))
    grads = {k: p.grad if p.grad is None else p.grad.numpy() for k, p in model.named_parameters()}
    return found, grads


def half_net(
    ranks: Ranks, draw: str, sampling: tuple[bool, ...], again: bool
) -> tuple[list[float], dict[str, Any]]:
    """`losses` with this rank's half of each batch; `again`: wrapped anew when sampling starts."""
    model = distributed.sync_batchnorm(training_net(draw), CPU)
    wrapped: dict[bool, nn.Module] = {}

    def net_for(sample: bool) -> nn.Module:
        all_used = sample if again else all(sampling)
        if all_used not in wrapped:
            wrapped.clear()
            wrapped[all_used] = distributed.wrap(model, ranks, all_used=all_used)
        return wrapped[all_used]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view")
        gather = distributed.background_gather(ranks)
        return losses(net_for, model, sampling, ranks.slice_of(BATCH), gather)


@pytest.mark.parametrize(
    ("draw", "sampling", "again"),
    [
        ("replacement", (False,), False),
        ("replacement", (True,), False),
        ("permutation", (False, True, True), False),
        ("replacement", (False, False, True, True), True),
    ],
)
def test_network_on_halves_is_the_network_on_the_whole(
    pair: Pair, draw: str, sampling: tuple[bool, ...], again: bool
) -> None:
    """Same losses and gradients; the adapters have none before sampling starts."""
    model = training_net(draw)
    whole, grads = losses(lambda _: model, model, sampling, slice(None), None)
    for found, own in pair.run(half_net, draw, sampling, again):
        np.testing.assert_allclose(found, whole, rtol=1e-8)
        without = {k for k, g in own.items() if g is None}
        assert without == {k for k, g in grads.items() if g is None}
        assert bool(without) == (not sampling[-1])
        largest = max(np.abs(g).max() for g in grads.values() if g is not None)
        for name, grad in grads.items():
            if grad is not None:
                np.testing.assert_allclose(
                    own[name], grad, rtol=1e-5, atol=1e-7 * largest, err_msg=name
                )
