"""How an attempt ended, as its end record and as what the policies remember of it."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from cluster.gang import Gang
from cluster.verdict import Verdict
from orchestrator.drive.remedies import PastAttempt
from orchestrator.store.lineage import Steps, steps_of


@dataclasses.dataclass(frozen=True)
class Ending:
    """One attempt's end."""

    verdict: Verdict
    steps: Steps
    wall_s: float
    hang: dict[str, Any] | None = None

    def record(self) -> dict[str, Any]:
        """End record for the store."""
        return {
            "cause": self.verdict.cause.value,
            "message": self.verdict.message,
            "rank": self.verdict.rank,
            "wall_s": round(self.wall_s, 3),
            "traceback": self.verdict.traceback,
            "stop_reason": self.verdict.stop_reason,
            "hang": self.hang,
            "last_step": self.steps.last,
            "last_step_at": self.steps.last_at,
            "resumed_step": self.steps.resumed,
            "saved_step": self.steps.saved,
        }

    def past(self) -> PastAttempt:
        """What the policies remember."""
        return PastAttempt(
            cause=self.verdict.cause,
            ended_at=time.time(),
            resumed_step=self.steps.resumed,
            saved_step=self.steps.saved,
        )


def ending(verdict: Verdict, gang: Gang, directory: Path, wall_s: float) -> Ending:
    """Put together what the gang and the attempt's journal say."""
    steps = _with_heartbeats(steps_of(directory), gang)
    hang = None if gang.hang is None else dataclasses.asdict(gang.hang)
    return Ending(verdict, steps, wall_s, hang)


def _with_heartbeats(steps: Steps, gang: Gang) -> Steps:
    """Ranks tell of every step, the journal only of those that were logged."""
    heard = [(p.step, p.step_at) for p in gang.heartbeats.values() if p.step_at is not None]
    last, last_at = max(heard, default=(None, None))
    if last is None or (steps.last is not None and steps.last >= last):
        return steps
    return dataclasses.replace(steps, last=last, last_at=last_at)
