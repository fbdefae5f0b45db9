"""What a hung gang was at: stacks of the ranks that answer, a look from outside at the others."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from cluster.ranks.inspect_process import STACKS_LIMIT, inspect_and_end
from cluster.slots import Slot, answered

if TYPE_CHECKING:
    from ray import ObjectRef

T = TypeVar("T")
ANSWER_S = 2.5
"""How long a rank may take to report its stacks before it counts as silent."""
INSPECT_S = 6.0
"""How long the look from outside may take: a process starts for it, and waits for the stacks."""
_STATES = {
    "T": "stopped from outside",
    "t": "stopped by a debugger",
    "Z": "ended",
    "D": "waits for a device or a file system",
    "": "gone",
}


@dataclass(frozen=True)
class HangStacks:
    """What was found, by rank."""

    silent: frozenset[int]
    """Ranks that did not answer."""
    states: Mapping[int, str]
    """Linux's process state of those, where it could be read."""
    stacks: Mapping[int, str]

    def describe(self, first: Collection[int]) -> str:
        """All of it as text, the ranks at fault first."""
        ranks = sorted({*self.stacks, *self.silent}, key=lambda rank: (rank not in first, rank))
        parts = []
        for rank in ranks:
            stacks = self.stacks.get(rank) or "no stacks"
            parts.append(f"rank {rank}: {self.state(rank)}\n{stacks[:STACKS_LIMIT]}")
        return "\n".join(parts)

    def state(self, rank: int) -> str:
        """One rank's state in words."""
        if rank not in self.silent:
            return "answers"
        if rank not in self.states:
            return "does not answer, nor could it be inspected"
        letter = self.states[rank]
        return (
            f"does not answer; process state {letter} ({_STATES.get(letter, 'at work or waiting')})"
        )


def gather(slots: Mapping[int, Slot]) -> HangStacks:
    """Ask the ranks for their stacks; inspect, and end, those that do not answer. Below 9 s."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as OnNode

    asked = {slot.actor.stacks.remote(): rank for rank, slot in slots.items()}
    answers: dict[int, str] = _collect(asked, ANSWER_S)
    silent = {rank: slot for rank, slot in slots.items() if rank not in answers}
    inspector = ray.remote(inspect_and_end)
    looks = {
        inspector.options(
            num_cpus=0, max_retries=0, scheduling_strategy=OnNode(slot.node, soft=False)
        ).remote(slot.process.pid, slot.process.stacks_fd): rank
        for rank, slot in silent.items()
    }
    found: dict[int, tuple[str, str]] = _collect(looks, INSPECT_S)
    return HangStacks(
        silent=frozenset(silent),
        states={rank: state for rank, (state, _) in found.items()},
        stacks=answers | {rank: stacks for rank, (_, stacks) in found.items()},
    )


def _collect(refs: Mapping[ObjectRef[T], int], timeout_s: float) -> dict[int, T]:
    """What was answered in time, by rank."""
    import ray

    deadline, left = time.monotonic() + timeout_s, dict(refs)
    answers: dict[int, T] = {}
    while left and time.monotonic() < deadline:
        for ref in answered(left, max(0.0, deadline - time.monotonic())):
            rank = left.pop(ref)
            try:
                answers[rank] = ray.get(ref)
            except ray.exceptions.RayError:  # it died meanwhile: it does not answer
                continue
    return answers
