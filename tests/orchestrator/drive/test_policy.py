"""The table of decisions, without a cluster and without sleeping."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.verdict import Cause
from mae_core.config import Execution
from orchestrator.drive.policy import (
    BUDGETS,
    ELASTIC_WAIT_S,
    MAX_BACKOFF_S,
    RESIZE_EVERY_S,
    Block,
    Fail,
    Resize,
    SlotsView,
    Start,
    TaskState,
    TaskView,
    backoff_s,
    changes,
    decide,
    short_since,
    to_record,
)
from orchestrator.drive.remedies import (
    PastAttempt,
    allowed_sizes,
    bad_nodes,
    made_progress,
    num_fruitless,
    num_savings,
    on_world_size,
    rollback,
)
from orchestrator.store.attempts import DecisionRecord, Remedies

NOW = 10_000.0
FOUR = Execution(world_size=4, min_world_size=1)


def task(key: str = "t", **values: Any) -> TaskView:
    return TaskView(key=key, **{"state": TaskState.WAITING} | values)


def gang(size: int) -> Execution:
    return Execution(world_size=size)


def slots(idle: int, busy: int = 0, **values: Any) -> SlotsView:
    return SlotsView(idle=("n",) * idle, busy=("n",) * busy, **values)


def past(cause: Cause, resumed: int = 0, saved: int = 0, ago: float = 1000.0) -> PastAttempt:
    return PastAttempt(cause=cause, ended_at=NOW - ago, resumed_step=resumed, saved_step=saved)


def failed(cause: Cause, count: int, ago: float = 1000.0) -> tuple[PastAttempt, ...]:
    return (past(cause, ago=ago),) * count


def growing(cause: Cause, count: int) -> tuple[PastAttempt, ...]:
    """Attempts that each commit a later checkpoint."""
    return tuple(past(cause, 10 * i, 10 * i + 10) for i in range(count))


def started(tasks: list[TaskView], view: SlotsView, now: float = NOW) -> list[str]:
    return [d.key for d in decide(tasks, view, now) if isinstance(d, Start)]


def only(tasks: list[TaskView], view: SlotsView | None = None, now: float = NOW) -> Any:
    [decision] = decide(tasks, view or slots(1), now)
    return decision


def test_ready_stages_start_in_order_of_priority_while_slots_last() -> None:
    tasks = [task("c", priority=(2.0,)), task("a", priority=(0.0,)), task("b", priority=(1.0,))]
    assert started(tasks, slots(2)) == ["a", "b"]


def test_a_child_waits_for_its_parents() -> None:
    child = task("child", parents=("parent",))
    assert started([task("parent", state=TaskState.RUNNING), child], slots(4)) == []
    assert started([task("parent", state=TaskState.DONE), child], slots(4)) == ["child"]


def test_small_stages_do_not_starve_a_large_gang() -> None:
    tasks = [task("large", execution=gang(4), priority=(0.0,)), task("small", priority=(1.0,))]
    assert started(tasks, slots(3, 1)) == []
    assert started(tasks, slots(5)) == ["large", "small"]


def test_small_stages_pass_a_gang_that_could_not_start_whatever_ends() -> None:
    tasks = [task("large", execution=gang(4), priority=(0.0,)), task("small", priority=(1.0,))]
    lately = slots(3, short_since={4: NOW - ELASTIC_WAIT_S + 1})
    long_ago = slots(3, short_since={4: NOW - ELASTIC_WAIT_S - 1})
    assert started(tasks, lately) == []
    assert started(tasks, long_ago) == ["small"]


def test_children_of_a_failed_stage_are_blocked_and_others_go_on() -> None:
    tasks = [
        task("bad", state=TaskState.FAILED),
        task("child", parents=("bad",)),
        task("grandchild", parents=("child",)),
        task("other"),
    ]
    block, other = decide(tasks, slots(1), NOW)
    assert block == Block("child", "bad") and other.key == "other"
    tasks[1] = task("child", state=TaskState.BLOCKED, parents=("bad",))
    assert Block("grandchild", "child") in decide(tasks, slots(1), NOW)


def test_a_stage_that_another_driver_runs_is_left_alone_for_a_while() -> None:
    assert decide([task(not_before=NOW + 1)], slots(1), NOW) == []
    assert started([task(not_before=NOW + 1)], slots(1), NOW + 1) == ["t"]


# Budgets: (cause, attempts that still get another one, without progress; with progress each).
LIMITS = [
    (Cause.ERROR, 1, 3),
    (Cause.HANG, 1, 4),
    (Cause.RANK_DIED, 4, 999),
    (Cause.NODE_LOST, 9, 999),
    (Cause.PREEMPTED, 9, 999),
    (Cause.RESIZED, 9, 999),
    (Cause.HEAD_LOST, 4, 999),
    (Cause.RENDEZVOUS, 5, 5),
    (Cause.DISK, 5, 5),
    (Cause.CHECKPOINT, 1, 1),
    (Cause.NUMERICS, 2, 2),
    (Cause.BAD_DATA, 0, 0),
    (Cause.BAD_INPUT, 0, 0),
    (Cause.CANCELLED, 0, 0),
]


@pytest.mark.parametrize(("cause", "fruitless", "fruitful"), LIMITS)
def test_each_cause_has_its_own_budget(cause: Cause, fruitless: int, fruitful: int) -> None:
    for attempts, limit in ((failed, fruitless), (growing, fruitful)):
        if limit:
            assert isinstance(only([task(attempts=attempts(cause, limit))]), Start)
        given_up = only([task(attempts=attempts(cause, limit + 1 + (limit == 999)))])
        assert isinstance(given_up, Fail) and cause.value in given_up.reason


def test_every_cause_that_a_gang_can_end_for_has_a_budget() -> None:
    assert set(Cause) - set(BUDGETS) == {Cause.SUCCESS, Cause.DRIVER_LOST}


def test_budgets_are_separate_and_never_refilled() -> None:
    mixed = (past(Cause.ERROR, 0, 10), *growing(Cause.RANK_DIED, 30), past(Cause.HANG, 300, 310))
    assert isinstance(only([task(attempts=mixed)]), Start)
    three = (*mixed, past(Cause.ERROR, 310, 320), past(Cause.ERROR, 320, 330))
    assert isinstance(only([task(attempts=three)]), Start)
    four = (*three, past(Cause.ERROR, 330, 340))
    assert only([task(attempts=four)]) == Fail("t", "error, after 4 attempts")


def test_two_attempts_without_a_later_checkpoint_stop() -> None:
    once = (*growing(Cause.ERROR, 1), past(Cause.ERROR, 10, 0))
    assert isinstance(only([task(attempts=once)]), Start)
    twice = only([task(attempts=(*once, past(Cause.ERROR, 10, 0)))])
    assert isinstance(twice, Fail) and "2 attempts in a row without a later checkpoint" in (
        twice.reason
    )


def test_progress_is_a_later_checkpoint_than_any_before() -> None:
    attempts = [
        past(Cause.RANK_DIED, 0, 10),
        past(Cause.RANK_DIED, 10, 0),  # saved nothing
        past(Cause.RANK_DIED, 0, 10),  # went back, and only got where others had been
        past(Cause.PREEMPTED, 10, 20),
        past(Cause.RANK_DIED, 20, 0),
        past(Cause.HANG, 20, 0),
        past(Cause.RANK_DIED, 20, 0),
    ]
    assert made_progress(attempts) == [True, False, False, True, False, False, False]
    assert num_fruitless(attempts) == 2
    assert num_fruitless(attempts[:4]) == 0


def test_a_retry_waits_longer_each_time_up_to_a_limit() -> None:
    assert [backoff_s(failed(Cause.ERROR, n)) for n in (1, 2, 3, 4)] == [1, 2, 4, 8]
    assert backoff_s(failed(Cause.DISK, 20)) == MAX_BACKOFF_S
    two = failed(Cause.ERROR, 1, ago=0.9)
    assert decide([task(attempts=two)], slots(1), NOW) == []
    assert started([task(attempts=two)], slots(1), NOW + 0.2) == ["t"]


@pytest.mark.parametrize("cause", [Cause.RANK_DIED, Cause.PREEMPTED, Cause.NODE_LOST])
def test_after_progress_nobody_waits_for_what_the_surroundings_did(cause: Cause) -> None:
    assert backoff_s(growing(cause, 3)) == 0
    assert backoff_s((*growing(cause, 3), past(cause, 30, 0))) > 0
    assert backoff_s(growing(Cause.ERROR, 3)) > 0


# Remedies.


@pytest.mark.parametrize(
    ("attempts", "micro", "threads"),
    [
        ((), None, 2),
        ((Cause.RANK_DIED,), None, 2),
        ((Cause.DEVICE_OUT_OF_MEMORY,), 24, 2),
        ((Cause.DEVICE_OUT_OF_MEMORY,) * 2, 12, 2),
        ((Cause.DEVICE_OUT_OF_MEMORY, Cause.RANK_DIED, Cause.DEVICE_OUT_OF_MEMORY), 12, 2),
        ((Cause.DEVICE_OUT_OF_MEMORY,) * 4, 3, 2),
        ((Cause.DEVICE_OUT_OF_MEMORY,) * 5, 1, 2),
        ((Cause.HOST_OUT_OF_MEMORY,), 24, 1),
        ((Cause.HOST_OUT_OF_MEMORY,) * 2, 12, 0),
        ((Cause.HOST_OUT_OF_MEMORY, Cause.DEVICE_OUT_OF_MEMORY), 12, 1),
    ],
)
def test_out_of_memory_asks_for_less_at_the_same_global_batch(
    attempts: tuple[Cause, ...], micro: int | None, threads: int
) -> None:
    history = tuple(past(c) for c in attempts)
    start = only([task(execution=gang(2), batch=96, attempts=history)], slots(2))
    assert (start.execution.micro_batch, start.execution.loader_threads) == (micro, threads)
    assert start.execution.world_size == 2


@pytest.mark.parametrize(
    ("cause", "batch", "savings", "last"),
    [
        (Cause.DEVICE_OUT_OF_MEMORY, 96, 5, 5),  # 48, 24, 12, 6, 3, 1
        (Cause.DEVICE_OUT_OF_MEMORY, None, 0, 0),
        (Cause.HOST_OUT_OF_MEMORY, 96, 5, 6),
        (Cause.HOST_OUT_OF_MEMORY, None, 2, 3),  # threads 2, 1, 0, and once more as it is
    ],
)
def test_memory_that_cannot_be_saved_is_given_up(
    cause: Cause, batch: int | None, savings: int, last: int
) -> None:
    assert num_savings(gang(2), batch, cause) == savings
    stage = {"execution": gang(2), "batch": batch}
    if last:
        assert isinstance(only([task(attempts=failed(cause, last), **stage)], slots(2)), Start)
    assert isinstance(only([task(attempts=failed(cause, last + 1), **stage)], slots(2)), Fail)


def test_numerics_go_back_one_checkpoint_more_each_time() -> None:
    one, two = failed(Cause.NUMERICS, 1), failed(Cause.NUMERICS, 2)
    assert only([task(attempts=one)]).rollback == 1
    assert only([task(attempts=two)]).rollback == 2
    assert "skipping the 2 newest checkpoints" in only([task(attempts=two)]).reason


def test_a_rollback_lasts_until_something_new_is_saved() -> None:
    went_wrong = past(Cause.NUMERICS, 0, 50)
    nothing_saved = past(Cause.PREEMPTED, 40, 0)
    saved = past(Cause.PREEMPTED, 40, 60)
    assert rollback([went_wrong]) == 1
    assert rollback([went_wrong, nothing_saved]) == 1
    assert rollback([went_wrong, saved]) == 0
    assert rollback([went_wrong, saved, past(Cause.NUMERICS, 60, 70)]) == 2
    assert rollback([saved]) == 0


def test_numerics_stop_where_the_stage_says_so() -> None:
    history = failed(Cause.NUMERICS, 1)
    stop = Execution(on_numerics="stop")
    assert isinstance(only([task(execution=stop, attempts=history)]), Fail)
    none = Execution(numerics_retries=0)
    assert isinstance(only([task(execution=none, attempts=history)]), Fail)


def test_a_node_that_failed_twice_is_left_out_while_others_have_room() -> None:
    view = SlotsView(idle=("a", "a", "b", "b"), failures=("a", "b", "a"))
    assert bad_nodes(view.failures) == {"a"}
    start = only([task(execution=gang(2))], view)
    assert start.avoid_nodes == {"a"} and "failed twice: ['a']" in start.reason
    busy = SlotsView(idle=("a", "a"), busy=("b", "b"), failures=("a", "a"))
    assert decide([task(execution=gang(2))], busy, NOW) == []  # it waits for the good node


def test_a_bad_node_is_better_than_none() -> None:
    view = SlotsView(idle=("a", "a", "b"), failures=("a", "a"))
    assert only([task(execution=gang(2))], view).avoid_nodes == frozenset()


def test_two_starts_at_once_share_the_good_nodes() -> None:
    view = SlotsView(idle=("a", "b", "b"), failures=("a", "a"))
    tasks = [task("x", execution=gang(2)), task("y")]
    assert started(tasks, view) == ["x"]


# Elastic gangs.


@pytest.mark.parametrize(
    ("execution", "batch", "sizes"),
    [
        (gang(4), 96, (4,)),
        (FOUR, 96, (4, 3, 2, 1)),
        (FOUR, 100, (4, 2, 1)),
        (Execution(world_size=8, min_world_size=3), 64, (8, 4)),
        (FOUR, None, (4,)),
    ],
)
def test_an_elastic_gang_may_have_any_size_that_divides_the_batch(
    execution: Execution, batch: int | None, sizes: tuple[int, ...]
) -> None:
    assert allowed_sizes(execution, batch) == sizes


def test_an_elastic_gang_starts_smaller_once_slots_were_missing_for_long() -> None:
    stage = [task(execution=FOUR, batch=100)]
    missing = {4: NOW - ELASTIC_WAIT_S - 1}
    assert decide(stage, slots(3, short_since={4: NOW - 5}), NOW) == []
    smaller = only(stage, slots(3, short_since=missing))
    assert smaller.execution.world_size == 2 and "slots are missing: on 2 ranks" in smaller.reason
    assert only(stage, slots(4)).execution.world_size == 4
    # Two of three are busy with something else: worth waiting for.
    assert decide(stage, slots(1, 2, short_since=missing), NOW) == []
    rigid = [task(execution=gang(4), batch=100)]
    assert decide(rigid, slots(3, short_since=missing), NOW) == []


def test_a_gang_below_its_size_grows_when_slots_are_idle() -> None:
    small = {"state": TaskState.RUNNING, "execution": FOUR, "batch": 96, "running_on": 2}
    long_ago, lately = NOW - RESIZE_EVERY_S - 1, NOW - RESIZE_EVERY_S + 1
    assert only([task(started_at=long_ago, **small)], slots(2, 2)) == Resize(
        "t", 4, "4 slots are free again, it runs on 2 of 4"
    )
    assert only([task(started_at=long_ago, **small)], slots(1, 2)).world_size == 3
    for view, changed in (
        (slots(0, 2), {"started_at": long_ago}),
        (slots(2, 2), {"started_at": lately}),
        (slots(2, 2), {"started_at": long_ago, "is_stopping": True}),
        (slots(2, 2), {"started_at": long_ago, "running_on": 4}),
    ):
        assert decide([task(**small | changed)], view, NOW) == []


def test_nobody_grows_while_others_wait_for_slots() -> None:
    small = task("small", state=TaskState.RUNNING, execution=FOUR, batch=96, running_on=1)
    waiting = task("big", execution=gang(4))
    assert decide([small, waiting], slots(3, 1), NOW) == []


def test_a_smaller_gang_keeps_its_micro_batch_if_it_divides() -> None:
    fixed = Execution(world_size=4, min_world_size=1, micro_batch=24)
    assert on_world_size(fixed, 96, 4) == fixed
    assert on_world_size(fixed, 96, 2).micro_batch == 24
    assert on_world_size(fixed, 96, 3).micro_batch == 16
    assert on_world_size(FOUR, 96, 2).micro_batch is None


def test_missing_slots_are_noted_since_they_went() -> None:
    first = short_since({}, num_ready=4, num_slots=4, largest=4, now=10)
    assert first == {}
    second = short_since(first, num_ready=2, num_slots=4, largest=4, now=20)
    assert second == {3: 20, 4: 20}
    third = short_since(second, num_ready=3, num_slots=4, largest=4, now=30)
    assert third == {4: 20}
    # What the pool never had is not waited for.
    assert short_since({}, num_ready=2, num_slots=2, largest=4, now=10) == {3: 0.0, 4: 0.0}


def test_decisions_are_kept_as_plain_values() -> None:
    history = (past(Cause.NUMERICS), past(Cause.DEVICE_OUT_OF_MEMORY))
    stage = task(execution=FOUR, batch=96, attempts=history)
    missing = {3: 0.0, 4: 0.0}
    start = only([stage], slots(2, short_since=missing))
    record = to_record(start, FOUR)
    assert record.decision == "start" and "device out of memory" in record.reason
    assert record.remedies == Remedies(world_size=2, micro_batch=24, rollback=1)
    plain = record.to_json()
    assert plain["remedies"] == {"world_size": 2, "micro_batch": 24, "rollback": 1}
    assert DecisionRecord.from_json(json.loads(json.dumps(plain))) == record
    assert changes(only([task()]), Execution()) == Remedies()
    assert to_record(Fail("t", "why"), FOUR) == DecisionRecord(decision="fail", reason="why")
    assert to_record(Resize("t", 4, "why"), FOUR).world_size == 4
    assert to_record(Block("t", "p"), FOUR).reason == "its parent p failed"
