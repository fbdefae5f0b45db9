"""How an attempt ended: what the verdict, the gang and the journal say, as its end record."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cluster.gang import Gang
from cluster.verdict import Verdict
from orchestrator.store.attempts import AttemptEnd
from orchestrator.store.lineage import Steps, steps_of


def end_of(verdict: Verdict, gang: Gang, directory: Path, wall_s: float) -> AttemptEnd:
    """Put together what the gang and the attempt's journal say."""
    steps = _with_heartbeats(steps_of(directory), gang)
    return AttemptEnd(
        cause=verdict.cause.value,
        message=verdict.message,
        rank=verdict.rank,
        wall_s=round(wall_s, 3),
        traceback=verdict.traceback,
        stop_reason=verdict.stop_reason,
        hang=gang.hang,
        last_step=steps.last,
        last_step_at=steps.last_at,
        resumed_step=steps.resumed,
        saved_step=steps.saved,
    )


def _with_heartbeats(steps: Steps, gang: Gang) -> Steps:
    """Ranks report every step, the journal only those that were logged."""
    heard = [(p.step, p.step_at) for p in gang.heartbeats.values() if p.step_at is not None]
    last, last_at = max(heard, default=(None, None))
    if last is None or (steps.last is not None and steps.last >= last):
        return steps
    return dataclasses.replace(steps, last=last, last_at=last_at)
