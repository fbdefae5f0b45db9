"""Pure decisions: a snapshot of the study and the time in, what to do next out.

Nothing here polls, sleeps or acts; the clock is an argument, and the whole table of decisions is
tested without a cluster.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.verdict import Cause


class TaskState(enum.Enum):
    """Where a stage stands."""

    WAITING = "waiting"
    """For its parents, or for its next attempt."""
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    """For good, in this command."""
    BLOCKED = "blocked"
    """A parent failed."""

    @property
    def is_finished(self) -> bool:
        """True if this command will not start it again."""
        return self in (TaskState.DONE, TaskState.FAILED, TaskState.BLOCKED)


@dataclass(frozen=True)
class PastAttempt:
    """An attempt of this command that has ended."""

    cause: Cause
    ended_at: float
    """Seconds, on the clock that `decide` is given."""


@dataclass(frozen=True)
class TaskView:
    """One stage, as a policy sees it."""

    key: str
    state: TaskState
    num_ranks: int
    parents: tuple[str, ...] = ()
    attempts: tuple[PastAttempt, ...] = ()
    not_before: float = 0.0
    """Not to be started earlier than this."""
    priority: tuple[float, ...] = ()
    """Smaller is earlier."""


@dataclass(frozen=True)
class Start:
    """Start an attempt of this stage now."""

    key: str


@dataclass(frozen=True)
class Fail:
    """Give this stage up."""

    key: str
    reason: str


@dataclass(frozen=True)
class Block:
    """This stage can never start: a parent failed."""

    key: str
    parent: str


Decision = Start | Fail | Block

RETRY_BUDGET: dict[Cause, int] = {
    Cause.RANK_DIED: 3,
    Cause.RENDEZVOUS: 5,
    Cause.OUT_OF_MEMORY: 1,
    Cause.ERROR: 1,
    Cause.NUMERICS: 0,
    Cause.BAD_INPUT: 0,
    Cause.STOPPED: 0,
}
"""Attempts beyond the first, per cause: what a retry may mend gets more of them."""
BACKOFF_S = 1.0


def decide(tasks: Sequence[TaskView], idle_slots: int, now: float) -> list[Decision]:
    """Return what to do now.

    Ready stages start in order of priority. One that needs more slots than are idle is not
    overtaken by later ones: else small stages would starve a large gang.
    """
    by_key = {t.key: t for t in tasks}
    decisions: list[Decision] = []
    ready: list[TaskView] = []
    for task in tasks:
        if task.state is not TaskState.WAITING:
            continue
        if (verdict := _give_up(task, by_key)) is not None:
            decisions.append(verdict)
        elif _is_ready(task, by_key, now):
            ready.append(task)
    for task in sorted(ready, key=lambda t: t.priority):
        if task.num_ranks > idle_slots:
            break
        idle_slots -= task.num_ranks
        decisions.append(Start(task.key))
    return decisions


def _give_up(task: TaskView, by_key: dict[str, TaskView]) -> Decision | None:
    for parent in task.parents:
        if by_key[parent].state in (TaskState.FAILED, TaskState.BLOCKED):
            return Block(task.key, parent)
    if not task.attempts:
        return None
    cause = task.attempts[-1].cause
    used = sum(a.cause is cause for a in task.attempts)
    budget = RETRY_BUDGET.get(cause, 0)
    if used <= budget:
        return None
    return Fail(task.key, f"{cause.value}, after {used} attempt{'s' if used > 1 else ''}")


def _is_ready(task: TaskView, by_key: dict[str, TaskView], now: float) -> bool:
    if any(by_key[p].state is not TaskState.DONE for p in task.parents):
        return False
    if now < task.not_before:
        return False
    if not task.attempts:
        return True
    wait: float = BACKOFF_S * 2.0 ** (len(task.attempts) - 1)
    return now - task.attempts[-1].ended_at >= wait
