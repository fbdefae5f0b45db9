"""How a rank ended, as plain values: what it returned, or how its process died."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from cluster.slots import Slot
from cluster.verdict import COLLATERAL

MEMORY_GROWTH_LIMIT = 1 << 30
_GONE = {"RankDied", "NodeLost", "HostOutOfMemory", "Hang", COLLATERAL}


def outcome_of(ref: Any, rank: int, node: str, alive: Collection[str]) -> dict[str, Any]:
    """The outcome behind a finished reference.

    Args:
        node: id of the node that the rank was on.
        alive: ids of the nodes that were last known to be alive; empty if none is known.
    """
    import ray

    try:
        value: dict[str, Any] = ray.get(ref)
        return value
    except ray.exceptions.RayError as error:
        kind, text = type(error).__name__, str(error)
        # By type: the text of every death mentions memory as one of its possible causes.
        if isinstance(error, ray.exceptions.OutOfMemoryError):
            name, what = "HostOutOfMemory", "was ended because its node ran out of memory"
        elif _is_node_lost(error, node, alive):
            name, what = "NodeLost", "was lost with its node"
        else:
            name, what = "RankDied", "died"
        return died(rank, name, f"the process of rank {rank} {what} ({kind})", text[-4000:])


def died(rank: int, name: str, message: str, trace: str = "") -> dict[str, Any]:
    """Outcome of a rank whose process is gone."""
    now = time.time()
    error = {"type": name, "types": [name], "message": message, "traceback": trace, "at": now}
    return {"rank": rank, "error": error, "ended_at": now}


def must_retire(slot: Slot, outcome: dict[str, Any] | None) -> bool:
    """Dead, still at work, about to be ended, after a CUDA error (poisoned context), or grown."""
    if outcome is None or outcome.get("is_going"):
        return True
    error = outcome.get("error")
    if error is not None and (_GONE & set(error["types"]) or "CUDA" in error["message"]):
        return True
    rss = outcome.get("rss_bytes", 0)
    slot.base_rss = slot.base_rss or rss
    return bool(rss > max(2 * slot.base_rss, slot.base_rss + MEMORY_GROWTH_LIMIT))


def _is_node_lost(error: Exception, node: str, alive: Collection[str]) -> bool:
    preempted = getattr(error, "preempted", False)
    return bool(preempted or "node has died" in str(error) or (bool(alive) and node not in alive))
