"""Goodput: every second of a stage's attempts falls in one of seven buckets.

Plain records in, seconds out; nothing is read and no clock is asked. The terms are those of
Google's ML goodput measurement: useful work over wall-clock time, with the badput named.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

BUCKETS = ("useful", "starting", "restoring", "saving", "replayed", "failed", "waiting")
"""In the order in which they are shown.

useful      steps done for the first time; writing outputs after the last step of a success
starting    from the launch of an attempt to its first step, less restoring
restoring   reading, verifying and loading a checkpoint
saving      training stood still for a checkpoint that was committed; writing behind its back
            is no saving
replayed    steps that an earlier attempt had done already
failed      from the last finished step (before the first: the last event) to the end of an
            attempt that did not succeed
waiting     from the end of an attempt to the start of the next
"""
SUCCESS = "success"
DRIVER_LOST = "driver lost"
"""Cause of an attempt that has no end record because its driver is gone."""
PREEMPTED = "preempted"
ON_PURPOSE = frozenset({"cancelled", "resized", "not started"})
"""Causes of ends that were requested."""
AT_THE_SAME_PLACE = frozenset({"bad input", "bad data", "error", "numerics", "checkpoint"})
"""Causes that come again where they came before: no checkpoint interval helps against them."""


@dataclass(frozen=True, kw_only=True)
class JournalEvent:
    """A line of an attempt's journal, as far as goodput reads it."""

    name: str
    at: float | None
    """None where the line has no time."""
    step: float | None = None
    seconds: float = 0.0
    """That restoring took."""
    stall_s: float = 0.0
    write_s: float = 0.0

    @staticmethod
    def read(raw: Mapping[str, object]) -> JournalEvent:
        """What is no number is left out: journals outlive crashes and are read as they are."""
        numbers = {key: _number(value) for key, value in raw.items()}
        milliseconds = numbers.get("t")
        return JournalEvent(
            name=str(raw.get("event")),
            at=None if milliseconds is None else milliseconds / 1000,
            step=numbers.get("step"),
            seconds=_positive(numbers.get("seconds")),
            stall_s=_positive(numbers.get("stall_s")),
            write_s=_positive(numbers.get("write_s")),
        )

    @property
    def lag_s(self) -> float:
        """From the stall until a checkpoint was committed.

        A save that training waits for has its writing within its stall.
        """
        return self.write_s if self.write_s > self.stall_s else 0.0


@dataclass(frozen=True, kw_only=True)
class AttemptLog:
    """What is known of one attempt. All times are Unix seconds."""

    started_at: float
    ended_at: float | None = None
    """None = no end was recorded: it runs, or its driver is gone."""
    cause: str | None = None
    """As in the end record; `SUCCESS` if it finished the stage."""
    is_running: bool = False
    """True if it has no end yet and is being run."""
    events: Sequence[JournalEvent] = ()
    """Of its journal."""
    points: Sequence[tuple[float, float]] = ()
    """(step, time) of its metrics: `step` updates were done at that time."""
    last_step: float | None = None
    last_step_at: float | None = None
    """The last finished step that its controller knew of, and when that was."""

    @property
    def ended_badly(self) -> bool:
        """True if it is over and has not finished the stage."""
        return not self.is_running and self.cause != SUCCESS


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """Seconds per bucket of a stage or of several, and what the best interval depends on."""

    seconds: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(BUCKETS, 0.0))
    attempts: int = 0
    causes: Mapping[str, int] = field(default_factory=dict)
    """How the attempts ended that did not succeed."""
    failures: int = 0
    """Attempts ended by chance with work to lose: not those stopped on purpose or at a
    checkpoint in time, nor those that bad input ends at the same place every time."""
    lost_steps: int = 0
    """Steps done again."""
    failure_dead_s: float = 0.0
    """Seconds failed and then waited because of `failures`."""
    stop_dead_s: float = 0.0
    """The same, of all other attempts that did not succeed."""
    trainings: int = 0
    """Attempts that reached their first step (or their work, where there are no steps)."""
    training_starts_s: float = 0.0
    """Seconds that those attempts spent starting and restoring."""
    stalls_s: tuple[float, ...] = ()
    """How long training stood still, for each committed checkpoint."""
    lags_s: tuple[float, ...] = ()
    """How long after that it was written and committed; 0 where training waited for it."""
    intervals_s: tuple[float, ...] = ()
    """Training time before each committed checkpoint, since the one before or the start."""

    @property
    def span_s(self) -> float:
        """From the first attempt's start to the end of the last; of several stages, the sum."""
        return math.fsum(self.seconds.values())

    @property
    def shares(self) -> dict[str, float]:
        """Per cent of the span, per bucket; all 0 where the span is."""
        span = self.span_s
        return {b: 100 * self.seconds[b] / span if span > 0 else 0.0 for b in BUCKETS}

    @property
    def stops(self) -> int:
        """Attempts that did not succeed and are no failures."""
        return sum(self.causes.values()) - self.failures

    @property
    def alive_s(self) -> float:
        """Seconds in which an attempt was up and a failure could strike."""
        return self.span_s - self.seconds["failed"] - self.seconds["waiting"]

    @property
    def interval_s(self) -> float | None:
        """The interval between checkpoints that was in use: median; None without any."""
        return statistics.median(self.intervals_s) if self.intervals_s else None


def total(parts: Iterable[Goodput]) -> Goodput:
    """Several stages as one: seconds and counts are summed."""
    parts = list(parts)
    causes: Counter[str] = Counter()
    for part in parts:
        causes.update(part.causes)
    return Goodput(
        seconds={b: math.fsum(p.seconds[b] for p in parts) for b in BUCKETS},
        attempts=sum(p.attempts for p in parts),
        causes=dict(causes),
        failures=sum(p.failures for p in parts),
        lost_steps=sum(p.lost_steps for p in parts),
        failure_dead_s=math.fsum(p.failure_dead_s for p in parts),
        stop_dead_s=math.fsum(p.stop_dead_s for p in parts),
        trainings=sum(p.trainings for p in parts),
        training_starts_s=math.fsum(p.training_starts_s for p in parts),
        stalls_s=tuple(s for p in parts for s in p.stalls_s),
        lags_s=tuple(s for p in parts for s in p.lags_s),
        intervals_s=tuple(s for p in parts for s in p.intervals_s),
    )


def account(attempts: Sequence[AttemptLog], *, now: float, has_steps: bool = True) -> Goodput:
    """Sort the seconds of a stage's attempts, oldest first, into the buckets.

    Total: whatever the records say (clocks that disagree, missing or torn events, attempts that
    overlap), the buckets sum to the span, and none is negative. Times are moved into their
    attempt, and an attempt's start behind the end of the one before.

    Args:
        attempts: in the order of their numbers.
        now: Unix seconds; the end, so far, of an attempt that runs.
        has_steps: False for an evaluation, which works from its first event on.
    """
    parts: list[Goodput] = []
    furthest, cursor = 0.0, None
    for i, log in enumerate(attempts):
        start = log.started_at if cursor is None else max(cursor, log.started_at)
        waited = 0.0 if cursor is None else start - cursor
        end = max(start, _end(log, now))
        if i + 1 < len(attempts) and log.ended_at is None:
            end = max(start, min(end, attempts[i + 1].started_at))
        if i:
            parts[-1] = _waited(parts[-1], waited, attempts[i - 1])
        part, furthest = _Accounting(log, start, end, has_steps).split(furthest)
        parts.append(part)
        cursor = end
    return total(parts)


def is_failure(log: AttemptLog) -> bool:
    """True if an attempt was ended by chance, before what it had done was saved."""
    if not log.ended_badly or log.cause in ON_PURPOSE | AT_THE_SAME_PLACE:
        return False
    return log.cause != PREEMPTED or not _saved_all(log)


def _saved_all(log: AttemptLog) -> bool:
    """True if the last step that is known of is in a checkpoint."""
    steps = [step for step, _ in log.points] + [log.last_step or 0.0]
    saved = [e.step or 0.0 for e in log.events if e.name == "saved"]
    return bool(saved) and max(saved) >= max(steps)


def _end(log: AttemptLog, now: float) -> float:
    """When an attempt ended: as recorded, now if it runs, else at its last sign of life."""
    if log.ended_at is not None:
        return log.ended_at
    return now if log.is_running else max(log.started_at, *_signs_of_life(log))


def _signs_of_life(log: AttemptLog) -> list[float]:
    times = [e.at for e in log.events] + [t for _, t in log.points] + [log.last_step_at]
    return [t for t in times if t is not None] or [log.started_at]


def _waited(part: Goodput, seconds: float, log: AttemptLog) -> Goodput:
    """The same with the time that passed before the next attempt began."""
    failed = is_failure(log)
    return replace(
        part,
        seconds={**part.seconds, "waiting": seconds},
        failure_dead_s=part.failure_dead_s + (seconds if failed else 0.0),
        stop_dead_s=part.stop_dead_s + (0.0 if failed else seconds),
    )


class _Accounting:
    """One attempt: where its work began, how its steps went on, what came after the last."""

    def __init__(self, log: AttemptLog, start: float, end: float, has_steps: bool) -> None:
        self.log, self.start, self.end = log, start, end
        self.saves = [e for e in log.events if e.name == "saved"]
        self.knots = self._knots(has_steps)

    def split(self, furthest: float) -> tuple[Goodput, float]:
        """Its seconds per bucket, given the furthest step before it; and the furthest now.

        What is done is a piecewise linear curve of steps over time through `knots`. It crosses
        `furthest` where replaying ends. Stalls are then taken out of where their step lies.
        """
        (began, first), (last_at, last) = self.knots[0], self.knots[-1]
        # What this attempt went on from was done before it, even if nobody had written it down.
        furthest = max(furthest, first)
        caught_up = _crossing(self.knots, furthest)
        seconds = dict.fromkeys(BUCKETS, 0.0)
        restored = sum(e.seconds for e in self.log.events if e.name == "restored")
        seconds["restoring"] = min(began - self.start, restored)
        seconds["starting"] = began - self.start - seconds["restoring"]
        seconds["replayed"] = caught_up - began
        seconds["useful"] = last_at - caught_up
        tail = "failed" if self.log.ended_badly else "useful" if last >= furthest else "replayed"
        stalls = self._stalls(furthest, last, tail)
        seconds[tail] += self.end - last_at
        for bucket, stall in stalls.items():
            taken = min(stall, seconds[bucket])
            seconds[bucket] -= taken
            seconds["saving"] += taken
        return self._goodput(seconds, min(last, furthest) - first), max(furthest, last)

    def _stalls(self, furthest: float, last: float, tail: str) -> dict[str, float]:
        """Seconds that training stood still, by the bucket that they were measured in."""
        stalls = dict.fromkeys(("replayed", "useful", tail), 0.0)
        for save in self.saves:
            step = save.step or 0.0
            at = tail if step >= last else "replayed" if step < furthest else "useful"
            stalls[at] += save.stall_s
        return stalls

    def _goodput(self, seconds: Mapping[str, float], lost_steps: float) -> Goodput:
        log, failed = self.log, is_failure(self.log)
        worked = log.cause == SUCCESS or len(self.knots) > 1 or self._training() is not None
        ended = {log.cause or DRIVER_LOST: 1} if log.ended_badly else {}
        return Goodput(
            seconds=seconds,
            attempts=1,
            causes=ended,
            failures=int(failed),
            lost_steps=round(lost_steps),
            failure_dead_s=seconds["failed"] if failed else 0.0,
            stop_dead_s=0.0 if failed else seconds["failed"],
            trainings=int(worked),
            training_starts_s=seconds["starting"] + seconds["restoring"] if worked else 0.0,
            stalls_s=tuple(e.stall_s for e in self.saves),
            lags_s=tuple(e.lag_s for e in self.saves),
            intervals_s=self._intervals(),
        )

    def _intervals(self) -> tuple[float, ...]:
        """Training time between its checkpoints; what it saved on a stop request has none."""
        times = sorted(self._saving_at(e) for e in self.saves if e.at is not None)
        stalls = statistics.fmean(e.stall_s for e in self.saves) if times else 0.0
        gaps = [b - a - (stalls if i else 0.0) for i, (a, b) in self._between(times)]
        was_told = self.log.ended_badly and self.log.cause in ON_PURPOSE | {PREEMPTED}
        if gaps and was_told and _saved_all(self.log):
            gaps.pop()
        return tuple(g for g in gaps if g > 0)

    def _between(self, times: Sequence[float]) -> Iterable[tuple[int, tuple[float, float]]]:
        return enumerate(pairwise([self.knots[0][0], *times]))

    def _saving_at(self, save: JournalEvent) -> float:
        """When training stood still: it is known once it is written."""
        return self._within((save.at or self.start) - save.stall_s - save.lag_s)

    def _within(self, t: float) -> float:
        return min(max(t, self.start), self.end)

    def _training(self) -> tuple[float, float] | None:
        for event in self.log.events:
            if event.name == "training" and event.at is not None:
                return self._within(event.at), _positive(event.step)
        return None

    def _knots(self, has_steps: bool) -> list[tuple[float, float]]:
        """(time, steps done) where the work began and wherever it is known; both only grow."""
        known = [(self._within(t), s) for s, t in self.log.points]
        for event in self.log.events:
            if event.name == "finished" and event.at is not None and event.step is not None:
                known.append((self._within(event.at), event.step))
        if self.log.last_step is not None and self.log.last_step_at is not None:
            known.append((self._within(self.log.last_step_at), self.log.last_step))
        reached = max((s for _, s in known), default=-1.0)
        for save in self.saves:  # coarser than the others: only where they know less
            if (step := save.step or 0.0) > reached and save.at is not None:
                known.append((self._saving_at(save), step))
        known.sort()
        began = self._training() or (known[0] if known else self._worked_from(has_steps))
        knots = [began]
        for t, step in known:
            knots.append((max(t, knots[-1][0]), max(step, knots[-1][1])))
        # The last step was finished when the curve got there, not at the last line that says so.
        return [k for i, k in enumerate(knots) if i == 0 or k[1] > knots[i - 1][1]]

    def _worked_from(self, has_steps: bool) -> tuple[float, float]:
        """When work began, of an attempt without any step."""
        times = [self._within(e.at) for e in self.log.events if e.at is not None]
        if self.log.ended_badly:
            return max(times, default=self.start), 0.0
        if self.log.is_running and has_steps:
            return self.end, 0.0
        return min(times, default=self.start), 0.0


def _crossing(knots: Sequence[tuple[float, float]], step: float) -> float:
    """When the curve reaches `step`; its end if it does not."""
    if knots[0][1] >= step:
        return knots[0][0]
    for (t0, s0), (t1, s1) in pairwise(knots):
        if s1 >= step:
            return t0 + (t1 - t0) * (step - s0) / (s1 - s0)
    return knots[-1][0]


def _number(value: object) -> float | None:
    """A finite number, or None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _positive(value: float | None) -> float:
    return max(0.0, value or 0.0)
