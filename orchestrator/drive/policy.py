"""Pure decisions: a snapshot of the study and the time in, what to do next out.

Nothing here polls, sleeps or acts; the clock is an argument, and the whole table of decisions is
tested without a cluster.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cluster.verdict import Cause
from mae_core.config import Execution
from orchestrator.drive.remedies import (
    OUT_OF_MEMORY,
    PastAttempt,
    allowed_sizes,
    bad_nodes,
    made_progress,
    num_fruitless,
    num_savings,
    on_world_size,
    rollback,
    spare_memory,
)
from orchestrator.store.attempts import DecisionRecord, Remedies

ELASTIC_WAIT_S = 20.0
"""An elastic gang waits this long for slots that are missing before it starts smaller."""
RESIZE_EVERY_S = 300.0
"""A gang that runs below its size is not stopped to grow more often than this."""
MAX_BACKOFF_S = 300.0


class TaskState(enum.Enum):
    """Where a stage stands."""

    WAITING = "waiting"
    """For its parents, or for its next attempt."""
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    """Permanently, in this command."""
    BLOCKED = "blocked"
    """A parent failed."""

    @property
    def is_finished(self) -> bool:
        """True if this command will not start it again."""
        return self in (TaskState.DONE, TaskState.FAILED, TaskState.BLOCKED)


@dataclass(frozen=True)
class Budget:
    """How much patience a cause deserves."""

    retries: int
    """Attempts beyond the first that may end for this cause."""
    fruitless: int = 2
    """Attempts of this cause in a row, none of which committed a later checkpoint, are given up."""
    backoff_s: float = 1.0
    """Wait before the next attempt; doubled with each fruitless one."""


MANY = 1000
BUDGETS: dict[Cause, Budget] = {
    # The surroundings' doing, no failure of the stage: wide as long as there is progress. Kills
    # come in bursts and may meet a stage twice before its first checkpoint.
    Cause.PREEMPTED: Budget(MANY, fruitless=10, backoff_s=0.5),
    Cause.RESIZED: Budget(MANY, fruitless=10, backoff_s=0.0),
    Cause.NODE_LOST: Budget(MANY, fruitless=10, backoff_s=0.5),
    Cause.HEAD_LOST: Budget(MANY, fruitless=5, backoff_s=0.0),
    Cause.RANK_DIED: Budget(MANY, fruitless=5, backoff_s=0.25),
    Cause.RENDEZVOUS: Budget(5, fruitless=6, backoff_s=0.5),
    # Each attempt asks for less; given up when nothing is left to save.
    Cause.DEVICE_OUT_OF_MEMORY: Budget(16, fruitless=17),
    Cause.HOST_OUT_OF_MEMORY: Budget(16, fruitless=17),
    Cause.NUMERICS: Budget(MANY, fruitless=MANY),  # the stage's own `numerics_retries` count
    Cause.HANG: Budget(4),
    # Somebody may free the disk meanwhile: the waits add up to five minutes.
    Cause.DISK: Budget(5, fruitless=6, backoff_s=10.0),
    Cause.CHECKPOINT: Budget(1),
    Cause.ERROR: Budget(3),
    Cause.BAD_DATA: Budget(0),
    Cause.BAD_INPUT: Budget(0),
    Cause.CANCELLED: Budget(0),
}
"""What a retry may fix gets more of them."""
NOT_CHARGED = frozenset(
    {Cause.PREEMPTED, Cause.RESIZED, Cause.NODE_LOST, Cause.HEAD_LOST, Cause.RANK_DIED}
)
"""After progress the next attempt follows at once."""
_NO_BUDGET = Budget(0)


@dataclass(frozen=True, kw_only=True)
class TaskView:
    """One stage, as a policy sees it."""

    key: str
    state: TaskState
    execution: Execution = field(default_factory=Execution)
    """As the stage asks for it."""
    batch: int | None = None
    """Images that are split over the ranks; None if there is nothing to split."""
    parents: tuple[str, ...] = ()
    attempts: tuple[PastAttempt, ...] = ()
    not_before: float = 0.0
    """Not to be started earlier than this."""
    priority: tuple[float, ...] = ()
    """Smaller is earlier."""
    running_on: int = 0
    """Ranks of its gang while it runs."""
    started_at: float = 0.0
    """When that gang began."""
    is_stopping: bool = False
    """Its gang has been asked to stop."""


@dataclass(frozen=True, kw_only=True)
class SlotsView:
    """The slots of a study, as a policy sees them."""

    idle: tuple[str, ...] = ()
    """Node of each slot that can be lent now."""
    busy: tuple[str, ...] = ()
    """Node of each slot that is lent."""
    short_since: Mapping[int, float] = field(default_factory=dict)
    """Size → since when fewer slots than that have been ready, idle and busy together."""
    failures: tuple[str, ...] = ()
    """Node of each failure that speaks against its node."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Start an attempt of this stage now."""

    key: str
    execution: Execution
    """With remedies: world size, micro-batch, loader threads."""
    rollback: int = 0
    """Newest checkpoints to pass over."""
    avoid_nodes: frozenset[str] = frozenset()
    reason: str = ""


@dataclass(frozen=True)
class Resize:
    """Stop this gang at a checkpoint, to restart it on more ranks."""

    key: str
    world_size: int
    reason: str


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


Decision = Start | Resize | Fail | Block


def to_record(decision: Decision, base: Execution) -> DecisionRecord:
    """A decision as the store keeps it; `base` is what the stage asks for."""
    name = type(decision).__name__.lower()
    if isinstance(decision, Block):
        return DecisionRecord(decision=name, reason=f"its parent {decision.parent} failed")
    record = DecisionRecord(decision=name, reason=decision.reason)
    if isinstance(decision, Resize):
        return replace(record, world_size=decision.world_size)
    if isinstance(decision, Start):
        done = changes(decision, base)
        return replace(record, world_size=decision.execution.world_size, remedies=done)
    return record


def changes(start: Start, base: Execution) -> Remedies:
    """What an attempt does otherwise than its stage asks for."""
    avoided = tuple(sorted(start.avoid_nodes))
    return Remedies.between(base, start.execution, rollback=start.rollback, avoid_nodes=avoided)


def decide(tasks: Sequence[TaskView], slots: SlotsView, now: float) -> list[Decision]:
    """Return what to do now.

    Ready stages start in order of priority. One that needs more slots than are idle is not
    overtaken by later ones, else small stages would starve a large gang; unless slots are
    missing, so that it could not start whatever else ends.
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
    idle, waiting = len(slots.idle), False
    for task in sorted(ready, key=lambda t: t.priority):
        room = _room(task, slots, idle)
        size = _size(task, room, slots, now)
        if size is not None and size <= room.idle:
            idle -= size
            decisions.append(_start(task, size, room.avoid))
            continue
        waiting = True
        if size is not None or not _is_short(slots, task.execution.world_size, now):
            break
    if not waiting:
        decisions += _grow(tasks, idle, now)
    return decisions


def short_since(
    before: Mapping[int, float], num_ready: int, num_slots: int, largest: int, now: float
) -> dict[int, float]:
    """Note since when fewer slots than each size have been ready; for `SlotsView.short_since`.

    Sizes beyond `num_slots` will never be ready: for those there is nothing to wait for.
    """
    found = {n: before.get(n, now) for n in range(num_ready + 1, num_slots + 1)}
    return found | {n: 0.0 for n in range(num_slots + 1, largest + 1)}


def _give_up(task: TaskView, by_key: dict[str, TaskView]) -> Decision | None:
    for parent in task.parents:
        if by_key[parent].state in (TaskState.FAILED, TaskState.BLOCKED):
            return Block(task.key, parent)
    if not task.attempts:
        return None
    cause = task.attempts[-1].cause
    budget = BUDGETS.get(cause, _NO_BUDGET)
    used = sum(a.cause is cause for a in task.attempts)
    if used > _retries(task, cause, budget):
        return Fail(task.key, f"{cause.value}, after {used} attempt{'s' if used > 1 else ''}")
    if (fruitless := num_fruitless(task.attempts)) >= budget.fruitless:
        what = f"{fruitless} attempts in a row without a later checkpoint"
        return Fail(task.key, f"{cause.value}, {what}")
    return None


def _retries(task: TaskView, cause: Cause, budget: Budget) -> int:
    execution = task.execution
    if cause is Cause.NUMERICS:
        return execution.numerics_retries if execution.on_numerics == "rollback" else 0
    if cause in OUT_OF_MEMORY:
        others = sum(a.cause in OUT_OF_MEMORY and a.cause is not cause for a in task.attempts)
        # The host's memory is shared: once more as it is, when nothing is left to save.
        once_more = cause is Cause.HOST_OUT_OF_MEMORY
        left = num_savings(execution, task.batch, cause) - others + once_more
        return min(max(left, 0), budget.retries)
    return budget.retries


def _is_ready(task: TaskView, by_key: dict[str, TaskView], now: float) -> bool:
    if any(by_key[p].state is not TaskState.DONE for p in task.parents):
        return False
    if now < task.not_before:
        return False
    return not task.attempts or now - task.attempts[-1].ended_at >= backoff_s(task.attempts)


def backoff_s(attempts: Sequence[PastAttempt]) -> float:
    """Seconds to wait after the last attempt."""
    cause = attempts[-1].cause
    if made_progress(attempts)[-1] and cause in NOT_CHARGED:
        return 0.0
    doublings = max(num_fruitless(attempts), 1) - 1
    return min(BUDGETS.get(cause, _NO_BUDGET).backoff_s * 2.0**doublings, MAX_BACKOFF_S)


@dataclass(frozen=True)
class _Room:
    """Slots that a stage may use."""

    idle: int
    ready: int
    """Idle and busy."""
    avoid: frozenset[str]


def _room(task: TaskView, slots: SlotsView, idle: int) -> _Room:
    """Leave nodes out that failed too often, unless the others could never hold the gang."""
    nodes = slots.idle + slots.busy
    avoid = bad_nodes(slots.failures) & set(nodes)
    good = [n for n in nodes if n not in avoid]
    if len(good) < allowed_sizes(task.execution, task.batch)[-1]:
        return _Room(idle, len(nodes), frozenset())
    # Slots that earlier starts of this round took may have been on a bad node: the least counts.
    good_idle = sum(n not in avoid for n in slots.idle)
    return _Room(min(idle, good_idle - (len(slots.idle) - idle)), len(good), avoid)


def _size(task: TaskView, room: _Room, slots: SlotsView, now: float) -> int | None:
    """World size to start on, now or once slots are idle; None if it must wait for slots."""
    full = task.execution.world_size
    if full <= room.ready:
        return full
    if not room.avoid and not _is_short(slots, full, now):
        return None
    sizes = allowed_sizes(task.execution, task.batch)
    return next((n for n in sizes if n <= room.ready), None)


def _is_short(slots: SlotsView, size: int, now: float) -> bool:
    """True if slots have been missing for so long that none is to be waited for."""
    return now - slots.short_since.get(size, now) > ELASTIC_WAIT_S


def _start(task: TaskView, size: int, avoid: frozenset[str]) -> Start:
    sized = on_world_size(task.execution, task.batch, size)
    execution = spare_memory(sized, task.batch, task.attempts)
    passed_over = rollback(task.attempts)
    start = Start(key=task.key, execution=execution, rollback=passed_over, avoid_nodes=avoid)
    return replace(start, reason=_why(task, start))


def _why(task: TaskView, start: Start) -> str:
    """Why this attempt, and why it is not as the stage asks for."""
    if not task.attempts:
        reasons = ["first attempt"]
    else:
        cause = task.attempts[-1].cause
        used = sum(a.cause is cause for a in task.attempts)
        reasons = [f"again after: {cause.value} ({used} so far)"]
    done = changes(start, task.execution).to_json()
    texts = {
        "world_size": "slots are missing: on {} ranks",
        "micro_batch": "micro-batch {} at the same global batch",
        "loader_threads": "{} loader threads",
        "rollback": "skipping the {} newest checkpoints",
        "avoid_nodes": "not on nodes that failed twice: {}",
    }
    return "; ".join(reasons + [texts[name].format(value) for name, value in done.items()])


def _grow(tasks: Sequence[TaskView], idle: int, now: float) -> list[Decision]:
    """Let elastic gangs that run on fewer ranks grow into idle slots."""
    found: list[Decision] = []
    for task in tasks:
        if task.state is not TaskState.RUNNING or task.is_stopping:
            continue
        full = task.execution.world_size
        if task.running_on >= full or now - task.started_at < RESIZE_EVERY_S:
            continue
        reachable = (
            n
            for n in allowed_sizes(task.execution, task.batch)
            if task.running_on < n <= idle + task.running_on
        )
        if (size := next(reachable, None)) is not None:
            idle -= size - task.running_on
            why = f"{size} slots are free again, it runs on {task.running_on} of {full}"
            found.append(Resize(task.key, size, why))
    return found
