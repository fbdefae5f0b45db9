"""How a rank ended, from what Ray says of its call; and whether its process may be used again."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from cluster.ranks.outcome import Loss, RankOutcome, lost
from cluster.slots import Slot
from cluster.verdict import spoils_process

if TYPE_CHECKING:
    from ray import ObjectRef

MEMORY_GROWTH_LIMIT = 1 << 30


def outcome_of(ref: ObjectRef[str], rank: int, node: str, alive: Collection[str]) -> RankOutcome:
    """The outcome behind a finished reference.

    Args:
        node: id of the node that the rank was on.
        alive: ids of the nodes that were last known to be alive; empty if none is known.
    """
    import ray

    try:
        return RankOutcome.from_json(ray.get(ref))
    except ray.exceptions.RayError as error:
        # By type: the text of every death mentions memory as one of its possible causes.
        if isinstance(error, ray.exceptions.OutOfMemoryError):
            loss, what = Loss.HOST_OUT_OF_MEMORY, "was ended because its node ran out of memory"
        elif _is_node_lost(error, node, alive):
            loss, what = Loss.NODE_LOST, "was lost with its node"
        else:
            loss, what = Loss.RANK_DIED, "died"
        message = f"the process of rank {rank} {what} ({type(error).__name__})"
        return lost(rank, loss, message, str(error)[-4000:])


def must_retire(slot: Slot, outcome: RankOutcome | None) -> bool:
    """Dead, still at work, about to be ended, spoiled by its error, or grown."""
    if outcome is None or outcome.is_going:
        return True
    if outcome.error is not None and (outcome.error.loss or spoils_process(outcome.error)):
        return True
    slot.base_rss = slot.base_rss or outcome.rss_bytes
    return outcome.rss_bytes > max(2 * slot.base_rss, slot.base_rss + MEMORY_GROWTH_LIMIT)


def _is_node_lost(error: Exception, node: str, alive: Collection[str]) -> bool:
    preempted = getattr(error, "preempted", False)
    return bool(preempted or "node has died" in str(error) or (bool(alive) and node not in alive))
