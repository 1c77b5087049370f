"""Training spread over processes: who is who, collectives, batch norm and B of the whole batch.

Every function here does nothing special in a training of one process.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from biigma_cli.core.sampling import Gather
from biigma_cli.engine.device import pick_device
from biigma_cli.errors import BiigmaError, DeviceError, RankLost, UsageError

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

# What gloo, nccl and the store say when a process at the other end is gone or silent.
_LOSS_SIGNS = (
    "/gloo/transport/", "by peer", "Broken pipe", "Timed out waiting", "failed to recv",
    "NCCL communicator was aborted", "remote process",
)  # fmt: skip
# Seconds that leaving the group may take after an error: work that peers will never join is
# otherwise waited for until the group's timeout.
_LEAVE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those of the training.

    Attributes:
        rank: 0 to world - 1 over all machines; rank 0 alone writes and speaks.
        world: number of processes.
        local_rank: number of this process on its machine, and of its GPU.
        device: where it computes.
    """

    rank: int
    world: int
    local_rank: int
    device: torch.device

    @staticmethod
    def single(device: torch.device) -> Ranks:
        """A training of one process."""
        return Ranks(rank=0, world=1, local_rank=0, device=device)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def slice_of(self, batch: int) -> slice:
        """This rank's contiguous slice of a global batch of `batch` images.

        Raises `UsageError` where the batch cannot be divided evenly: means over the ranks would
        then not be means over the batch.
        """
        if batch % self.world:
            raise UsageError(
                f"a batch of {batch} images cannot be shared out evenly over {self.world} "
                "processes",
                fix=f"make the batch size a multiple of {self.world}, or change --devices",
            )
        own = batch // self.world
        return slice(self.rank * own, (self.rank + 1) * own)


@contextlib.contextmanager
def joined(device_name: str, *, timeout_s: float = 600.0) -> Iterator[Ranks]:
    """The process group named by the environment (`RANK`, ... as torchrun sets them), within.

    Without `RANK`, or in a world of one, there is no group. CPU tensors go through gloo, CUDA
    tensors through nccl, on the GPU of the local rank. The group is left on the way out, after an
    error too. On Linux a worker whose launcher dies gets SIGTERM, so that none is left training.

    Args:
        device_name: `auto`, `cpu` or `cuda`; for one process whatever `pick_device` takes.
        timeout_s: how long a collective may wait for the other processes.

    Raises:
        UsageError: the environment is incomplete, or the device cannot be shared.
        DeviceError: the device cannot be had, or there are fewer GPUs than processes.
        RankLost: also in place of whatever a collective raises once another process is gone.
    """
    ranks = _from_environment(device_name)
    if ranks.world == 1:
        yield ranks
        return
    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
    _end_with_launcher(signal.SIGTERM)
    try:
        _enter(ranks, timeout_s)
        with warnings.catch_warnings():
            # Of small tensors whose layout DDP would like otherwise.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view")
            yield ranks
    except BaseException as error:
        _leave(error)
        if _is_loss(error):
            raise RankLost(
                "another process of the training ended or no longer answers "
                f"(process {ranks.rank} of {ranks.world}: {_first_line(error)})",
                fix="see what that process said; then go on from the last checkpoint with --resume",
            ) from error
        raise
    else:
        _leave(None)
    finally:
        _end_with_launcher(None)


def _from_environment(device_name: str) -> Ranks:
    if "RANK" not in os.environ:
        return Ranks.single(pick_device(device_name))
    numbers: dict[str, int] = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        try:
            numbers[name] = int(os.environ.get(name, ""))
        except ValueError:
            raise UsageError(
                f"RANK is set, but {name} is {os.environ.get(name)!r}",
                fix="start several processes with --devices or torchrun; for one, unset RANK",
            ) from None
    rank, world, local = numbers["RANK"], numbers["WORLD_SIZE"], numbers["LOCAL_RANK"]
    if not 0 <= rank < world or local < 0:
        raise UsageError(
            f"RANK={rank}, WORLD_SIZE={world} and LOCAL_RANK={local} do not fit together",
            fix="start several processes with --devices or torchrun",
        )
    if world == 1:
        return Ranks.single(pick_device(device_name))
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise UsageError(
                f"RANK is set, but {name} is not",
                fix="start several processes with --devices or torchrun",
            )
    device = pick_device(device_name)
    if device.type == "mps" or device.index is not None:
        raise UsageError(
            f"{world} processes cannot share {device}", fix="use --device cuda, cpu or auto"
        )
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if local >= count:
            raise DeviceError(
                f"process {local} of this machine has no GPU: there are {count}",
                fix=f"use --devices {count}, or --device cpu",
            )
        device = torch.device("cuda", local)
    return Ranks(rank=rank, world=world, local_rank=local, device=device)


def _enter(ranks: Ranks, timeout_s: float) -> None:
    cuda = ranks.device.type == "cuda"
    try:
        dist.init_process_group(
            # Flags and objects go through gloo on a GPU too, so that nothing waits for the GPU.
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            rank=ranks.rank,
            world_size=ranks.world,
            timeout=timedelta(seconds=timeout_s),
        )
    except (dist.DistError, RuntimeError, ValueError, OSError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RankLost(
            f"process {ranks.rank} of {ranks.world} could not join the others at {address}: "
            f"{_first_line(error)}",
            fix="check that all processes were started and can reach that address",
        ) from error


def _leave(error: BaseException | None) -> None:
    if not dist.is_initialized():
        return
    if error is None:
        dist.destroy_process_group()
        return

    def leave() -> None:
        with contextlib.suppress(Exception):  # the error that brought us here is what counts
            dist.destroy_process_group()

    thread = threading.Thread(target=leave, daemon=True)
    thread.start()
    thread.join(_LEAVE_S)


def _is_loss(error: BaseException) -> bool:
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOSS_SIGNS)


def _first_line(error: BaseException) -> str:
    text = (str(error).splitlines() or [""])[0]
    # gloo begins with the place in its own source and ends with advice.
    text = text.partition("] ")[2] or text if text.startswith("[") else text
    return text.partition(". This is typically")[0].rstrip(".")


def _end_with_launcher(number: signal.Signals | None) -> None:
    """Have the kernel send `number` (None: nothing) when the launcher dies."""
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(number or 0), 0, 0, 0)


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over the processes, the same bits in all; no gradient."""
    total = tensor.detach().clone()
    if _world() > 1:
        dist.all_reduce(total)
    return total


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean over the processes of a floating tensor, the same bits in all; no gradient."""
    return sum_over_ranks(tensor) / _world()


def any_rank(flag: bool) -> bool:
    """Whether `flag` is set in any process; the same answer in all."""
    if _world() == 1:
        return flag
    return bool(sum_over_ranks(torch.tensor(int(flag))))


def barrier() -> None:
    """Wait until every process is here."""
    any_rank(False)


def broadcast_object(value: T) -> T:
    """Rank 0's `value` (anything that can be pickled); those of the others are ignored."""
    if _world() == 1:
        return value
    holder: list[Any] = [value]
    dist.broadcast_object_list(holder, src=0, device=torch.device("cpu"))
    return holder[0]  # type: ignore[no-any-return]


def broadcast_buffers(model: nn.Module) -> None:
    """Give every rank's `model` the buffers of rank 0's, in place: batch norms' statistics."""
    if _world() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def gather_objects(value: T) -> list[T]:
    """Every rank's `value` (anything that can be pickled), in the order of the ranks."""
    if _world() == 1:
        return [value]
    found: list[Any] = [None] * _world()
    dist.all_gather_object(found, value)
    return found


@contextlib.contextmanager
def shared_errors() -> Iterator[None]:
    """A `BiigmaError` of any process within is raised in every one: the lowest rank's.

    For work that all processes do side by side, such as loading data: rank 0 can then say what is
    wrong, and no process is left waiting. The block must hold no collective.
    """
    mine: BiigmaError | None = None
    try:
        yield
    except BiigmaError as error:
        if _world() == 1:
            raise
        mine = error
    if _world() == 1:
        return
    first = next((error for error in gather_objects(mine) if error is not None), None)
    if first is not None:
        raise first from mine


def wrap(model: nn.Module, ranks: Ranks, *, all_used: bool = False) -> nn.Module:
    """`model` with gradients averaged over the ranks; `model` itself for one rank.

    Call what is returned instead of the model; parameters, state and the criterion's access to
    submodules stay with `model`.

    Args:
        all_used: every parameter gets a gradient in each step, which saves DDP the search for
            those that do not. Not so before sampling starts: the saliency adapters' gradients
            stay None then. When it starts, this wrapper goes on working; another, made after it
            is dropped, saves the search.
    """
    if ranks.world == 1:
        return model
    # Synchronised norms hold the same statistics in all ranks; else rank 0's count.
    synced = any(isinstance(m, SyncBatchNorm2d | nn.SyncBatchNorm) for m in model.modules())
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    buffers: dict[str, Any] = {name: not synced}
    return DistributedDataParallel(
        model,
        device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
        find_unused_parameters=not all_used,
        **buffers,
    )


def background_gather(ranks: Ranks) -> Gather | None:
    """What `BiigmaNet.forward(..., gather=)` takes to make B the global batch's; None for one."""
    if ranks.world == 1:
        return None
    return Gather(gather_background, ranks.rank, ranks.world)


def gather_background(vectors_PC: Tensor) -> Tensor:
    """All ranks' vectors in the order of the ranks, `(P * world, C)`; P the same in all.

    Differentiable: a vector's gradient is the sum of what all ranks' losses say of it, so that,
    averaged over the ranks as DDP does, parameters get that of the mean loss.
    """
    if _world() == 1:
        return vectors_PC
    gathered: Tensor = _AllGather.apply(vectors_PC)
    return gathered


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors_PC: Tensor) -> Tensor:
        ctx.positions = len(vectors_PC)
        return torch.cat(_all_gather(vectors_PC))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_QC: Tensor) -> Tensor:
        # In float32, for bf16 would lose the small terms of the sum.
        total = grad_QC.to(torch.promote_types(grad_QC.dtype, torch.float32))
        total = sum_over_ranks(total.contiguous())
        start = dist.get_rank() * ctx.positions
        return total[start : start + ctx.positions].to(grad_QC.dtype)


def _all_gather(tensor: Tensor) -> list[Tensor]:
    tensor = tensor.detach().contiguous()
    parts = [torch.empty_like(tensor) for _ in range(_world())]
    dist.all_gather(parts, tensor)
    return parts


def sync_batchnorm(model: M, device: torch.device) -> M:
    """Let each `BatchNorm2d` within take its statistics over all ranks; returns `model`, changed.

    torch's own `SyncBatchNorm` where the model will run on CUDA, `SyncBatchNorm2d` elsewhere;
    parameters, buffers and the names of both stay. Does nothing for one rank. To be called before
    `wrap`.
    """
    if _world() == 1:
        return model
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return model
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, SyncBatchNorm2d.like(child))
    return model


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all ranks, for any backend and device.

    As `nn.BatchNorm2d` on the whole batch: same parameters, buffers and rules; in eval mode, and
    in one process, it is that.
    """

    @classmethod
    def like(cls, norm: nn.BatchNorm2d) -> SyncBatchNorm2d:
        """One that shares `norm`'s parameters and buffers."""
        new = cls(
            norm.num_features,
            eps=norm.eps,
            momentum=norm.momentum,
            affine=norm.affine,
            track_running_stats=norm.track_running_stats,
        )
        new.weight, new.bias = norm.weight, norm.bias
        new.running_mean, new.running_var = norm.running_mean, norm.running_var
        new.num_batches_tracked = norm.num_batches_tracked
        return new.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(B, C, H, W)`, this rank's part of the batch."""
        tracked = self.running_mean is not None
        if _world() == 1 or not (self.training or not tracked):
            return super().forward(input)
        self._check_input_dim(input)
        mean, var, count = _moments(input)
        if self.training and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            factor = self.momentum
            if factor is None:
                factor = 1 / float(self.num_batches_tracked)
            unbiased = var * (count / (count - 1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), factor)
        normed: Tensor = _SyncNorm.apply(input, self.weight, self.bias, mean, var, count, self.eps)
        return normed


@torch.no_grad()
def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance per channel over all ranks, `(C,)` each, and the global count.

    Each rank gives count, mean and M2 (Chan et al., 1979): a sum of squares would lose the
    variance of channels with a large mean. The same bits in all ranks.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean, var = torch.batch_norm_update_stats(wide, None, None, 0.0)
    count = x.numel() // x.shape[1]
    packed = torch.cat([mean, var * count, mean.new_tensor([count])])
    parts_RX = torch.stack(_all_gather(packed))
    means, squares, counts = torch.split(parts_RX, [len(mean), len(mean), 1], 1)
    total = counts.sum()
    if total <= 1:
        raise ValueError(f"batch norm needs more than one value per channel, got {tuple(x.shape)}")
    mean = (means * counts).sum(0) / total
    var = (squares + counts * (means - mean).square()).sum(0) / total
    return mean, var, total


class _SyncNorm(torch.autograd.Function):
    """(x - mean) / std * weight + bias, where mean and std depend on x in all ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        return torch.batch_norm(x, weight, bias, mean, var, False, 0.0, eps, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        invstd = torch.rsqrt(var + ctx.eps)
        # This rank's sums of dy * xhat and dy: what eval mode gives for weight and bias.
        _, sum_dy_xhat, sum_dy = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean, var, mean, invstd, False, ctx.eps, [False, True, True]
        )
        dx = None
        if ctx.needs_input_grad[0]:
            sums = torch.stack([sum_dy.to(mean.dtype), sum_dy_xhat.to(mean.dtype)])
            mean_dy, mean_dy_xhat = sum_over_ranks(sums) / count
            scale = invstd if weight is None else invstd * weight
            xhat = (x - _wide(mean)) * _wide(invstd)
            dx = (dy - _wide(mean_dy) - xhat * _wide(mean_dy_xhat)) * _wide(scale)
            dx = dx.to(x.dtype)
        # DDP averages these over the ranks.
        given = (ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        grads = (sum_dy_xhat if given[0] else None, sum_dy if given[1] else None)
        return dx, *grads, None, None, None, None


def _wide(per_channel_C: Tensor) -> Tensor:
    return per_channel_C[:, None, None]
