"""What the attempts of a stage say about each other: steps, rollbacks, exactness.

All of it is read from the store, so that a result is described alike whichever command made it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.ranks.outcome import JsonObject
from cluster.verdict import Cause
from orchestrator.store.attempts import Attempt
from orchestrator.store.journal import JOURNAL_FILE, JournalReader, read_events
from orchestrator.store.records import Intervention

BIT_EXACT, ORDER_EXACT = "bit-exact", "order-exact"
_AFTER_STEP = ("saved", "finished")
"""Events that say of their step that it is done."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How far an attempt came, by its journal."""

    resumed: int = 0
    """Step of the checkpoint that it went on from."""
    saved: int = 0
    """Step of the newest checkpoint that it committed, 0 if none."""
    last: int | None = None
    """Last step that the journal knows to be finished."""
    last_at: float | None = None
    """When that was noted, Unix seconds."""
    heard_at: float | None = None
    """When anything was noted last, Unix seconds."""


def steps_of(directory: Path) -> Steps:
    """Read an attempt's journal; all zero or None where there is none."""
    path = directory / JOURNAL_FILE
    events = read_events(path)
    entries = JournalReader(path).read_new()
    resumed = [int(e["step"]) for e in events if e["event"] == "restored"]
    saved = [int(e["step"]) for e in events if e["event"] == "saved"]
    done = [(e.step, e.timestamp_ms / 1000) for e in entries]
    times = [at for _, at in done] + [float(e["t"]) / 1000 for e in events]
    # A checkpoint is written after its step, in the background perhaps.
    done += [
        (int(e["step"]), float(e["t"]) / 1000 - e.get("write_s", 0.0))
        for e in events
        if e["event"] in _AFTER_STEP
    ]
    last, last_at = max(done, default=(None, None))
    return Steps(
        resumed=max(resumed, default=0),
        saved=max(saved, default=0),
        last=last,
        last_at=last_at,
        heard_at=max(times, default=None),
    )


def interventions(
    attempts: Sequence[Attempt], directory: Callable[[int], Path]
) -> list[Intervention]:
    """Rollbacks that really happened: attempts that passed over checkpoints and then restored."""
    found = []
    for attempt in attempts:
        passed_over = attempt.start.remedies.rollback or 0
        restored = _restored(directory(attempt.number)) if passed_over else []
        if restored:
            found.append(
                Intervention(
                    cause=Cause.NUMERICS.value,
                    attempt=attempt.number,
                    step=restored[-1]["step"],
                    rollback=passed_over,
                )
            )
    return found


def level_of(attempts: Sequence[Attempt], directory: Callable[[int], Path]) -> str:
    """How a result compares with an undisturbed run: the weakest level of its attempts.

    `bit-exact` also where nothing was interrupted; `order-exact` once an attempt went on with
    another cut of the batch than the one before it, or began with another than was asked for.
    """
    for attempt in attempts:
        restored = _restored(directory(attempt.number))
        if any(event.get("level") == ORDER_EXACT for event in restored):
            return ORDER_EXACT
        if restored and attempt.start.remedies.recut:
            return ORDER_EXACT
    return BIT_EXACT


def _restored(directory: Path) -> list[JsonObject]:
    return [e for e in read_events(directory / JOURNAL_FILE) if e["event"] == "restored"]
