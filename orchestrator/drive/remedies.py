"""What the next attempt does otherwise than its stage asks for: pure functions, no cluster.

None of it changes what is computed: the global batch, the data and the recipe stay as they are;
only how the work is cut changes. A rollback is the exception, and marks the result.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.verdict import Cause
from mae_core.config import Execution, split_batch

NODE_FAILURE_LIMIT = 2
"""A node that failed this often is excluded, as long as others have room."""
OUT_OF_MEMORY = frozenset({Cause.DEVICE_OUT_OF_MEMORY, Cause.HOST_OUT_OF_MEMORY})


@dataclass(frozen=True, kw_only=True)
class PastAttempt:
    """An attempt of this command that has ended."""

    cause: Cause
    ended_at: float
    """Seconds, on the clock that `decide` is given."""
    resumed_step: int = 0
    """Step of the checkpoint that it went on from."""
    saved_step: int = 0
    """Step of the newest checkpoint that it committed, 0 if it committed none."""


def made_progress(attempts: Sequence[PastAttempt]) -> list[bool]:
    """Say of each attempt whether it committed a later checkpoint than all before it."""
    reached, found = 0, []
    for attempt in attempts:
        reached = max(reached, attempt.resumed_step)
        found.append(attempt.saved_step > reached)
        reached = max(reached, attempt.saved_step)
    return found


def num_fruitless(attempts: Sequence[PastAttempt]) -> int:
    """Attempts since the last progress that ended for the cause of the last one."""
    newest_first = zip(reversed(attempts), reversed(made_progress(attempts)), strict=True)
    since = itertools.takewhile(lambda pair: not pair[1], newest_first)
    return sum(attempt.cause is attempts[-1].cause for attempt, _ in since)


def rollback(attempts: Sequence[PastAttempt]) -> int:
    """Newest checkpoints to pass over: one more for each time that numerics went wrong.

    Once an attempt has saved after going back, what it saved is what the next one goes on from.
    """
    numerics = [i for i, a in enumerate(attempts) if a.cause is Cause.NUMERICS]
    if not numerics:
        return 0
    since = attempts[numerics[-1] + 1 :]
    return 0 if any(a.saved_step > a.resumed_step for a in since) else len(numerics)


def allowed_sizes(execution: Execution, batch: int | None) -> tuple[int, ...]:
    """World sizes that a stage may run on, largest first; `batch` is its global batch."""
    full = execution.world_size
    smallest = execution.min_world_size
    if smallest is None or batch is None:
        return (full,)
    return (full, *(n for n in range(full - 1, smallest - 1, -1) if batch % n == 0))


def on_world_size(execution: Execution, batch: int | None, world: int) -> Execution:
    """The same stage on `world` ranks: the micro-batch is the next smaller that divides."""
    if world == execution.world_size:
        return execution
    micro = execution.micro_batch
    if micro is not None and batch is not None:
        micro = _divisor(batch // world, micro)
    return replace(execution, world_size=world, min_world_size=None, micro_batch=micro)


def spare_memory(
    execution: Execution, batch: int | None, attempts: Sequence[PastAttempt]
) -> Execution:
    """Halve the micro-batch for each attempt that ran out of memory, at the same global batch.

    Where it was the host's memory, the loader's threads (each holds decoded batches) too.
    """
    for cause in (a.cause for a in attempts if a.cause in OUT_OF_MEMORY):
        execution = _spared(execution, batch, cause)
    return execution


def num_savings(execution: Execution, batch: int | None, cause: Cause) -> int:
    """How often `spare_memory` can save something before nothing is left to save."""
    count = 0
    while (less := _spared(execution, batch, cause)) != execution:
        execution, count = less, count + 1
    return count


def bad_nodes(failures: Sequence[str]) -> frozenset[str]:
    """Nodes that failed too often, from the node of each failure."""
    counts = Counter(failures)
    return frozenset(node for node, n in counts.items() if n >= NODE_FAILURE_LIMIT)


def _spared(execution: Execution, batch: int | None, cause: Cause) -> Execution:
    less = execution
    if batch is not None:
        split = split_batch(batch, execution)
        if split.micro > 1:
            per_rank = split.micro * split.accumulation
            less = replace(less, micro_batch=_divisor(per_rank, split.micro // 2))
    if cause is Cause.HOST_OUT_OF_MEMORY:
        less = replace(less, loader_threads=execution.loader_threads // 2)
    return less


def _divisor(number: int, limit: int) -> int:
    """Largest divisor of `number` that is at most `limit`."""
    return max(n for n in range(1, limit + 1) if number % n == 0)
