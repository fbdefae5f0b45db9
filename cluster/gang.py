"""A gang at work: its ranks, what they were last heard to be at, and how they ended."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cluster.hang import Hang, stragglers
from cluster.ranks.heartbeat import Heartbeat
from cluster.ranks.outcome import RankOutcome
from cluster.slots import Slot

if TYPE_CHECKING:
    from ray import ObjectRef


@dataclass(eq=False)
class Gang:
    """The ranks that run one stage together."""

    slots: list[Slot]
    refs: list[ObjectRef[str]]
    run_id: str
    """Names this use of the slots, so that a stop never reaches the next one."""
    outcomes: dict[int, RankOutcome] = field(default_factory=dict)
    first_failure: float | None = None
    heartbeats: dict[int, Heartbeat] = field(default_factory=dict)
    """What each rank was last heard to be at."""
    hang: Hang | None = None
    """Set if the gang was ended because it hung."""
    stop_reason: str | None = None
    """Why its ranks were asked to stop; None if they were not."""

    @property
    def is_finished(self) -> bool:
        """True once every rank has an outcome."""
        return len(self.outcomes) == len(self.refs)

    def request_stop(self, reason: str = "cancelled", grace_s: float | None = None) -> None:
        """Ask every rank to stop at the next step.

        Args:
            reason: "preempted", "cancelled" or "resize"; it comes back in the outcomes.
            grace_s: seconds until the ranks are ended whatever they do; None = no such time.
        """
        self.stop_reason = reason if reason == "preempted" else self.stop_reason or reason
        for slot in self.slots:
            slot.actor.stop.remote(self.run_id, reason, grace_s)

    def stragglers(self) -> list[int]:
        """Ranks that take half as long again as the others for their own part of a step."""
        return stragglers(self.heartbeats)

    def at_work(self) -> dict[int, Heartbeat]:
        """Heartbeats of the ranks that have no outcome yet."""
        return {
            rank: heartbeat
            for rank, heartbeat in self.heartbeats.items()
            if rank not in self.outcomes
        }

    def end(self, outcome: RankOutcome) -> None:
        """Note how a rank ended."""
        if outcome.error is not None and outcome.error.loss is not None:
            outcome = replace(outcome, stop_reason=self.stop_reason)
        self.outcomes[outcome.rank] = outcome
        if outcome.error is not None and self.first_failure is None:
            self.first_failure = time.time()
