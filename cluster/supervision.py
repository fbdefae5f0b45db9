"""Looks after gangs at work: takes their heartbeats, passes notices on, ends those that hang."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from cluster.gang import Gang
from cluster.hang import HangLimits, is_overdue, name_hang
from cluster.hang_stacks import gather
from cluster.ranks.actor import RankAnswer
from cluster.ranks.outcome import Loss, lost
from cluster.slots import Slot, answered

HEARTBEAT_EVERY_S = 1.0
PAUSE_S = 5.0
"""A driver that did not look for so long was itself suspended: no rank was silent."""


class HeartbeatWatch:
    """Asks every rank about once a second what it is at, and never waits for an answer."""

    def __init__(self) -> None:
        self._looked_at = time.time()

    def take(self, slots: Sequence[Slot], gangs: Mapping[str, Gang]) -> list[Slot]:
        """Note the answers that are there, ask those again that have answered.

        Args:
            gangs: by `run_id`.

        Returns:
            Idle slots whose process is dead, or was asked to leave.
        """
        import ray

        now = time.time()
        if not 0 <= now - self._looked_at < PAUSE_S:
            _forgive(gangs.values(), now - self._looked_at)
        self._looked_at = now
        asked = {s.heartbeat_ref: s for s in slots if s.heartbeat_ref is not None}
        leaving = []
        for ref in answered(asked):
            slot = asked[ref]
            slot.heartbeat_ref = None
            try:
                is_leaving = _hear(slot, ray.get(ref), gangs, now)
            except ray.exceptions.RayError:
                is_leaving = True
            if is_leaving and not slot.busy:  # of a busy one its outcome will tell
                leaving.append(slot)
        for slot in slots:
            if slot.heartbeat_ref is None and now - slot.asked_at >= HEARTBEAT_EVERY_S:
                slot.heartbeat_ref, slot.asked_at = slot.actor.heartbeat.remote(), now
        return leaving


def pass_drain_on(gang: Gang, draining: Mapping[str, float]) -> None:
    """Make a notice for a node one for every gang with a rank on it.

    Args:
        draining: when each such node will be gone, Unix seconds; infinite if unknown.
    """
    ends = [draining[slot.node] for slot in gang.slots if slot.node in draining]
    if ends and gang.stop_reason != "preempted":
        grace_s = max(0.0, min(ends) - time.time())
        gang.request_stop("preempted", None if math.isinf(grace_s) else grace_s)


def end_if_hung(gang: Gang, limits: HangLimits) -> None:
    """End a gang that does not go on, with the evidence of what it was at."""
    import ray

    heartbeats = gang.at_work()
    # After a failure the survivors wait for a peer that is gone: that is no hang.
    if gang.first_failure or not is_overdue(heartbeats, limits, time.time()):
        return
    stacks = gather({rank: gang.slots[rank] for rank in heartbeats})
    gang.hang = name_hang(heartbeats, stacks.silent, limits, time.time())
    states = "; ".join(f"rank {rank} {stacks.state(rank)}" for rank in gang.hang.ranks)
    text = stacks.describe(gang.hang.ranks)
    for rank in heartbeats:
        ray.kill(gang.slots[rank].actor)
        if rank in gang.hang.ranks:
            outcome = lost(rank, Loss.HANG, f"{gang.hang.describe()}: {states}", text)
        else:
            outcome = lost(rank, Loss.ENDED_WITH_GANG, "ended because a peer hung")
        gang.end(outcome)


def _forgive(gangs: Iterable[Gang], gap_s: float) -> None:
    """Shift what is known of the ranks over a time in which this driver did not look."""
    for gang in gangs:
        for rank, beat in gang.heartbeats.items():
            gang.heartbeats[rank] = replace(
                beat, since=beat.since + gap_s, answered_at=beat.answered_at + gap_s
            )


def _hear(slot: Slot, answer: RankAnswer, gangs: Mapping[str, Gang], now: float) -> bool:
    """Note an answer; True if its process was asked to leave."""
    gang = gangs.get(answer.run_id)
    if gang is not None and slot in gang.slots:
        gang.heartbeats[gang.slots.index(slot)] = answer.heartbeat.on_clock(now)
    return answer.is_going
