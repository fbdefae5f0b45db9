"""What the store says of a stage's results, each with the attempts that led to it.

A result that was archived and the one that replaced it have the same science and the same steps;
to people they are two runs. Tracking shows them as such, and can do so again from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from orchestrator.store.attempts import Attempt, AttemptEnd, DecisionRecord
from orchestrator.store.records import DoneRecord, Records


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Attempts up to a result, or since the last one that was archived."""

    science_hash: str
    after: int
    """Last attempt of the generation before; 0 for the first."""
    attempts: tuple[Attempt, ...]
    """Oldest first."""
    decisions: tuple[DecisionRecord, ...]
    record: DoneRecord | None
    """None while it has no result."""

    @property
    def identity(self) -> str:
        """What its run is found by."""
        return f"stage:{self.science_hash}" + (f":after-{self.after}" if self.after else "")

    @property
    def last(self) -> int:
        """Number of the attempt that has the result, or of the last one; `after` if none."""
        if self.record is not None:
            return self.record.attempt
        return self.attempts[-1].number if self.attempts else self.after

    @property
    def started_at(self) -> str:
        """ISO 8601; empty before the first attempt."""
        return self.attempts[0].start.started_at if self.attempts else ""

    @property
    def opened_at(self) -> str:
        """When anything of it was first recorded: a decision comes a moment before its attempt."""
        known = (decision.at for decision in self.decisions[:1])
        return min((at for at in (*known, self.started_at) if at), default="")

    @property
    def ended_at(self) -> str:
        """ISO 8601, of the result or of the last attempt's end; empty while it runs."""
        if self.record is not None:
            return self.record.finished_at
        return self._last_end.ended_at if self._last_end else ""

    @property
    def state(self) -> str:
        """`done`, `running`, or the cause that the last attempt ended for."""
        if self.record is not None:
            return "done"
        return self._last_end.cause if self._last_end else "running"

    @property
    def last_message(self) -> str:
        """What the last attempt that failed had to say."""
        failed = [a.end for a in self.attempts if a.end and a.end.cause != "success"]
        return next((end.message for end in reversed(failed) if end.message), "")

    @property
    def commit(self) -> str:
        """Of the code that computed it, or is at it; empty if it was no checkout."""
        code = self.record.provenance.get("code") if self.record else None
        code = code or (self.attempts[-1].start.code if self.attempts else None)
        return str((code or {}).get("commit", ""))

    @property
    def _last_end(self) -> AttemptEnd | None:
        return self.attempts[-1].end if self.attempts else None


def generations(records: Records, science_hash: str) -> list[Generation]:
    """All of a stage, oldest first: one per archived result, and the present one."""
    done = [*records.archived(science_hash), records.done(science_hash)]
    attempts = records.attempts(science_hash)
    decisions = records.decisions(science_hash)
    found, after = [], 0
    for record in done:
        last = attempts[-1].number if record is None and attempts else None
        last = record.attempt if record is not None else last or after
        own = tuple(a for a in attempts if after < a.number <= last)
        following = next((a.start.started_at for a in attempts if a.number > last), "")
        # The decision to start an attempt comes a moment before it.
        mine = _until(decisions, following) if record is not done[-1] else decisions
        decisions = decisions[len(mine) :]
        found.append(
            Generation(
                science_hash=science_hash,
                after=after,
                attempts=own,
                decisions=tuple(mine),
                record=record,
            )
        )
        after = last
    return found


def _until(decisions: Sequence[DecisionRecord], started_at: str) -> list[DecisionRecord]:
    """Decisions before an attempt that is of the next generation, less the one that began it."""
    mine = [d for d in decisions if not started_at or d.at <= started_at]
    return mine[:-1] if started_at and mine and mine[-1].decision == "start" else mine


def milliseconds(iso: str) -> int:
    """Unix milliseconds of an ISO 8601 time; 0 for an empty one."""
    return int(datetime.fromisoformat(iso).timestamp() * 1000) if iso else 0
