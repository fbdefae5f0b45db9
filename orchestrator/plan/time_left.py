"""How long a run still takes: measured steps of what runs now, corrected estimates of the rest."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

OVERDUE = 0.1
"""What a stage is given that has outlived its estimate, as a share of the time it has taken."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Steps of a running attempt, between the first and the last that its journal has."""

    first_step: int
    first_s: float
    """Unix seconds, as `last_s`."""
    last_step: int
    last_s: float

    @property
    def step_s(self) -> float | None:
        """Seconds of a step; None before the second entry."""
        steps = self.last_step - self.first_step
        return (self.last_s - self.first_s) / steps if steps > 0 else None


@dataclass(frozen=True, kw_only=True)
class OpenStage:
    """A stage that is not finished."""

    key: str
    kind: str
    parents: tuple[str, ...]
    """Keys."""
    ranks: int
    estimate_s: float
    """Before anything of this run was measured."""
    steps: int | None = None
    ran_s: float | None = None
    """Seconds that its attempt has run; None while it waits."""
    pace: Pace | None = None

    def measured_left(self, now: float) -> float | None:
        """Seconds by the steps that were measured; None without any."""
        if self.pace is None or not self.steps or (step_s := self.pace.step_s) is None:
            return None
        return max(0.0, (self.steps - self.pace.last_step) * step_s - (now - self.pace.last_s))

    def left(self, now: float, factor: float) -> float:
        """Seconds: by its steps, else by its estimate times what others of its kind took of it."""
        measured = self.measured_left(now)
        if measured is not None:
            return measured
        ran = self.ran_s or 0.0
        return max(self.estimate_s * factor - ran, OVERDUE * ran)


@dataclass(frozen=True, kw_only=True)
class FinishedStage:
    """What a stage took, next to its estimate."""

    kind: str
    estimate_s: float
    seconds: float


def time_left(
    stages: Sequence[OpenStage],
    finished: Sequence[FinishedStage],
    *,
    slots: int,
    ahead_s: float = 0.0,
    now: float,
) -> float:
    """Seconds until all is done on so many slots, each stage after its parents.

    Args:
        slots: ranks that can work at once.
        ahead_s: estimated rank-seconds of what is not known yet: trials of a sweep, and what waits
            for its winner.
        now: Unix seconds.
    """
    factors = corrections(stages, finished, now)
    usual = statistics.median(factors.values()) if factors else 1.0
    left = {s.key: s.left(now, factors.get(s.kind, usual)) for s in stages}
    parents = {s.key: s.parents for s in stages}

    @functools.cache
    def end(key: str) -> float:
        return left[key] + max((end(p) for p in parents[key] if p in left), default=0.0)

    work = sum(left[s.key] * s.ranks for s in stages) + ahead_s * usual
    return max(work / max(slots, 1), max(map(end, left), default=0.0))


def corrections(
    stages: Sequence[OpenStage], finished: Sequence[FinishedStage], now: float
) -> Mapping[str, float]:
    """Time over estimate by kind of stage, from what has finished and what runs."""
    ratios: dict[str, list[float]] = {}
    for done in finished:
        if done.estimate_s > 0:
            ratios.setdefault(done.kind, []).append(done.seconds / done.estimate_s)
    for stage in stages:
        left = stage.measured_left(now)
        if left is not None and stage.ran_s is not None and stage.estimate_s > 0:
            ratios.setdefault(stage.kind, []).append((stage.ran_s + left) / stage.estimate_s)
    return {kind: statistics.median(found) for kind, found in ratios.items()}
