"""Shards: what a rank saves, copied aside in memory, written with its digest, read with suspicion.

A shard is a `torch.save` file. Reading one never runs code: its bytes must have the digest that
the manifest says, and then only tensors, plain containers and the few types that a DeepSpeed
shard needs are built.
"""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from mae_core.errors import CheckpointError
from mae_core.runtime.storage import Storage


class Copier:
    """Copies state to the CPU into buffers that are used again: the first copy pays the memory."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, name: str, tree: object) -> object:
        """Copy a tree of containers; tensors are copied, everything else is shared."""
        if isinstance(tree, Tensor):
            return self._tensor(name, tree)
        if isinstance(tree, OrderedDict):
            return OrderedDict((k, self.copy(f"{name}/{k}", v)) for k, v in tree.items())
        if isinstance(tree, dict):
            return {k: self.copy(f"{name}/{k}", v) for k, v in tree.items()}
        if type(tree) is list:
            return [self.copy(f"{name}/{i}", v) for i, v in enumerate(tree)]
        if type(tree) is tuple:
            return tuple(self.copy(f"{name}/{i}", v) for i, v in enumerate(tree))
        return tree

    def _tensor(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(
                tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda and tensor.numel() > 0
            )
            self._buffers[name] = buffer
        buffer.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
        return buffer


def num_bytes(tree: object) -> int:
    """Bytes of all tensors in a tree."""
    if isinstance(tree, Tensor):
        return tree.numel() * tree.element_size()
    if isinstance(tree, dict):
        return sum(num_bytes(v) for v in tree.values())
    if isinstance(tree, list | tuple):
        return sum(num_bytes(v) for v in tree)
    return 0


def write_shard(storage: Storage, name: str, tree: object) -> tuple[int, str]:
    """Write one file; return its size and SHA-256. Raises `OSError`."""
    with storage.writer(name) as stream:
        hashing = _Hashing(stream)
        try:
            torch.save(tree, cast(BinaryIO, hashing))
        except Exception:
            if hashing.error is not None:  # torch says only that its writer failed
                raise hashing.error from None
            raise
    return hashing.size, hashing.sha.hexdigest()


class _Hashing:
    """A stream that hashes what passes, and keeps the error that torch would hide."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.sha, self.size = stream, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, content: bytes | memoryview) -> int:
        view = memoryview(content)
        try:
            self._stream.write(view)
        except OSError as error:
            self.error = error
            raise
        self.sha.update(view)
        self.size += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        self._stream.flush()


def read_shard(content: bytes, name: str, extra: Iterable[type] = ()) -> Any:
    """Build what the bytes of a shard hold, whose digest the caller has checked.

    Args:
        extra: types beyond torch's own that may be built.

    Raises:
        CheckpointError: it asks for anything else.
    """
    try:
        with torch.serialization.safe_globals(list(extra)):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError, KeyError …
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(f"{name} is refused: {first[:300]}") from error


def foreign_types(stream: BinaryIO, extra: Iterable[Any] = ()) -> list[str]:
    """Types that a shard would build and that are not allowed, found without building anything."""
    try:
        with torch.serialization.safe_globals(list(extra)):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(stream))
    except Exception as error:  # not a shard at all: whatever parsing says
        return [f"what no shard asks for ({error})"]
