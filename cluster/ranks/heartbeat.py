"""What a rank is at and since when: kept by the rank itself, read from outside about every second.

A beat costs microseconds and touches nothing but memory.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

RECENT_STEPS = 50
"""Steps over which a rank's own time is averaged."""


@dataclass(frozen=True)
class Heartbeat:
    """What a rank was at when it last answered.

    Times are seconds of one clock: for the rank its answer is at 0, so that the clocks of nodes
    need not agree; the driver puts them on its own.
    """

    section: str
    """Section of the stage that began last; "" if the stage has not reported any."""
    step: int
    """Updates done."""
    since: float
    """When the section began."""
    step_at: float | None
    """When the last step was finished in this run; None before the first."""
    own_s: float
    """Median seconds that a step costs this rank by itself, not waiting for its peers."""
    num_own: int = 0
    """Steps that `own_s` is the median of."""
    slowest: dict[str, float] = field(default_factory=dict)
    """Longest seconds measured per section in this run."""
    answered_at: float = 0.0
    """When this was heard."""

    def on_clock(self, now: float) -> Heartbeat:
        """The same on a clock that says `now` at the answer."""
        step_at = None if self.step_at is None else now + self.step_at
        return replace(self, since=now + self.since, step_at=step_at, answered_at=now)


class HeartbeatRecorder:
    """Records the beats of one run in the rank process.

    A step's own time is what passes between `load` and `step`, plus the processor time of the
    stage's thread in `step`: waiting for a peer costs time on the wall, but (nearly) none of it.
    The steps before the first finished one are left out of what is measured: they compile,
    allocate and connect.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._clock, self._cpu_clock = clock, cpu_clock
        self._section, self._step, self._since = "", 0, clock()
        self._cpu_since = 0.0
        self._step_at: float | None = None
        self._load_s = 0.0
        self._own: deque[float] = deque(maxlen=RECENT_STEPS)
        self._slowest: dict[str, float] = {}

    def beat(self, section: str, step: int) -> None:
        """A section begins, `step` updates being done; called by the stage's thread alone."""
        now, cpu = self._clock(), self._cpu_clock()
        before, seconds = self._section, now - self._since
        is_warm = self._step_at is not None
        if before and (is_warm or before not in ("load", "step")):
            self._slowest[before] = max(self._slowest.get(before, 0.0), seconds)
        if before == "load":
            self._load_s += seconds
        if before == "step":
            if is_warm:
                self._own.append(self._load_s + cpu - self._cpu_since)
            self._load_s = 0.0
            if step > self._step:
                self._step_at = now
        self._section, self._step, self._since, self._cpu_since = section, step, now, cpu

    def read(self) -> Heartbeat:
        """The present state, with times before now; called from any thread."""
        now, step_at = self._clock(), self._step_at
        own = list(self._own)
        return Heartbeat(
            section=self._section,
            step=self._step,
            since=self._since - now,
            step_at=None if step_at is None else step_at - now,
            own_s=statistics.median(own) if own else 0.0,
            num_own=len(own),
            slowest=dict(self._slowest),
        )
