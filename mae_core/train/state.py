"""What a training must find again, beside DeepSpeed's shards, to go on as if nothing had happened.

Each rank saves its own part: the generators, where the data and the learning rate stand, the loss
of the window that is not logged yet, and the samples it reads next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from mae_core.checkpoint.shards import read_shard
from mae_core.data.loader import I64
from mae_core.errors import CheckpointError
from mae_core.runtime.rng_state import restore_rng, rng_state

FILE = "ranks/rank-{rank:05d}.pt"
RECENT = 20
"""Logged losses with which a spike is compared."""
Inputs = tuple[torch.Tensor, ...]
"""Arguments of a module's forward, on the device."""


@dataclass
class TrainState:
    """One rank's part, between two steps."""

    data_step: int = 0
    """Next step of the data order."""
    lr_step: int = 0
    """Next step of the learning-rate schedule."""
    window_loss: float = 0.0
    """Sum over the steps since the last log, this rank's."""
    window_steps: int = 0
    recent: list[float] = field(default_factory=list)
    """Last logged losses, newest last."""

    def pack(self, next_ids: I64) -> dict[str, object]:
        """As a tree that a shard may hold, with the generators' states."""
        return {
            "data_step": self.data_step,
            "lr_step": self.lr_step,
            "window_loss": self.window_loss,
            "window_steps": self.window_steps,
            "recent": list(self.recent),
            "rng": rng_state(),
            "next_ids": torch.from_numpy(next_ids.copy()),
        }


def unpack(read: Callable[[str], bytes], *, rank: int, world: int, saved_world: int) -> TrainState:
    """Read this rank's part; of another world size, what its parts add up to.

    Raises:
        CheckpointError: the parts of the ranks contradict each other.
    """
    own = [r for r in range(saved_world) if r % world == rank]
    names = [FILE.format(rank=r) for r in own or [0]]
    parts = [read_shard(read(name), name) for name in names]
    state = TrainState(**{k: parts[0][k] for k in ("data_step", "lr_step", "recent")})
    if any((p["data_step"], p["lr_step"]) != (state.data_step, state.lr_step) for p in parts):
        raise CheckpointError("the ranks of the checkpoint stand at different steps")
    state.window_steps = parts[0]["window_steps"]
    # The log divides the sum over all ranks by the number of ranks, which is another one now.
    state.window_loss = sum(p["window_loss"] for p in parts) * world / saved_world if own else 0.0
    if saved_world == world:
        restore_rng(parts[0]["rng"])
    return state
