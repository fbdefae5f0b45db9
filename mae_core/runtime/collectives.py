"""Collectives that also work without a process group (one process, world 1).

Small control messages (stop? save?) go over a gloo group of their own even where tensors use
NCCL, so that asking a question never waits for the GPU.
"""

from __future__ import annotations

import os
from typing import TypeVar

import torch
import torch.distributed as td

T = TypeVar("T")
_control: list[td.ProcessGroup] = []


def is_initialised() -> bool:
    """True inside a process group."""
    return td.is_available() and td.is_initialized()


def device() -> torch.device:
    """Return the accelerator of this rank: its one visible CUDA device, else the CPU."""
    if torch.cuda.is_available():
        # A Ray rank sees one device; under torchrun all are visible and LOCAL_RANK picks.
        local = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", local if torch.cuda.device_count() > 1 else 0)
    return torch.device("cpu")


def backend() -> str:
    """Collective backend for this machine: NCCL with CUDA, gloo without."""
    return "nccl" if torch.cuda.is_available() else "gloo"


def rank() -> int:
    """Rank in the gang, 0 without one."""
    return td.get_rank() if is_initialised() else 0


def world() -> int:
    """Ranks in the gang, 1 without one."""
    return td.get_world_size() if is_initialised() else 1


def open_control_group() -> None:
    """Make the gloo group for control messages; collective, once per process group."""
    _control.clear()
    if world() > 1:
        _control.append(td.new_group(backend="gloo"))


def forget_control_group() -> None:
    """Drop the handle of a process group that is being destroyed."""
    _control.clear()


def _group() -> td.ProcessGroup | None:
    return _control[0] if _control else None


def barrier() -> None:
    """Wait for every rank."""
    if world() > 1:
        td.barrier(group=_group())


def any_rank(*flags: bool) -> list[bool]:
    """Agree on flags: each is true on every rank if it is true on any."""
    if world() == 1:
        return list(flags)
    votes = torch.tensor(flags, dtype=torch.int32)
    td.all_reduce(votes, op=td.ReduceOp.MAX, group=_group())
    return [bool(v) for v in votes]


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum `tensor` over the ranks in place and return it."""
    if world() > 1:
        td.all_reduce(tensor)
    return tensor


def all_gather_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Join every rank's rows, as many on each, in rank order: (N / world, …) → (N, …)."""
    if world() == 1:
        return tensor
    empty = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    parts = [torch.empty_like(empty) for _ in range(world())]
    td.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def all_gather_object(value: T) -> list[T]:
    """Return every rank's `value`, in rank order."""
    if world() == 1:
        return [value]
    gathered: list[T] = [value] * world()
    td.all_gather_object(gathered, value, group=_group())
    return gathered


def gather_object(value: T) -> list[T] | None:
    """Return every rank's `value`, in rank order, on rank 0; None on the others."""
    if world() == 1:
        return [value]
    gathered = [value] * world() if rank() == 0 else None
    td.gather_object(value, gathered, dst=0, group=_group())
    return gathered


def broadcast_object(value: T) -> T:
    """Return rank 0's `value` on every rank."""
    if world() == 1:
        return value
    box = [value]
    td.broadcast_object_list(box, src=0, group=_group())
    return box[0]
