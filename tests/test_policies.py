"""The table of decisions, without a cluster and without sleeping."""

from __future__ import annotations

from cluster.verdict import Cause, judge
from orchestrator.policies import (
    RETRY_BUDGET,
    Block,
    Fail,
    PastAttempt,
    Start,
    TaskState,
    TaskView,
    decide,
)

NOW = 1000.0


def task(key: str, **changes: object) -> TaskView:
    values: dict[str, object] = {"state": TaskState.WAITING, "num_ranks": 1} | changes
    return TaskView(key=key, **values)  # type: ignore[arg-type]


def failed(cause: Cause, count: int, ago: float = 100.0) -> tuple[PastAttempt, ...]:
    return tuple(PastAttempt(cause, NOW - ago) for _ in range(count))


def test_ready_stages_start_in_order_of_priority_while_slots_last() -> None:
    tasks = [
        task("late", priority=(2.0,)),
        task("first", priority=(0.0,)),
        task("x", priority=(1.0,)),
    ]
    assert decide(tasks, 2, NOW) == [Start("first"), Start("x")]


def test_a_child_waits_for_its_parents() -> None:
    child = task("child", parents=("parent",))
    assert decide([task("parent", state=TaskState.RUNNING), child], 4, NOW) == []
    assert decide([task("parent", state=TaskState.DONE), child], 4, NOW) == [Start("child")]


def test_small_stages_do_not_starve_a_large_gang() -> None:
    tasks = [task("large", num_ranks=4, priority=(0.0,)), task("small", priority=(1.0,))]
    assert decide(tasks, 3, NOW) == []
    assert decide(tasks, 5, NOW) == [Start("large"), Start("small")]


def test_children_of_a_failed_stage_are_blocked_and_others_go_on() -> None:
    tasks = [
        task("bad", state=TaskState.FAILED),
        task("child", parents=("bad",)),
        task("other"),
    ]
    assert decide(tasks, 1, NOW) == [Block("child", "bad"), Start("other")]


def test_each_cause_has_its_own_budget() -> None:
    for cause, budget in RETRY_BUDGET.items():
        within = decide([task("t", attempts=failed(cause, budget))], 1, NOW)
        beyond = decide([task("t", attempts=failed(cause, budget + 1))], 1, NOW)
        assert within == [Start("t")]
        assert isinstance(beyond[0], Fail)


def test_a_retry_waits_longer_each_time() -> None:
    two = failed(Cause.RANK_DIED, 2, ago=1.5)
    assert decide([task("t", attempts=two)], 1, NOW) == []
    assert decide([task("t", attempts=two)], 1, NOW + 1) == [Start("t")]


def outcome(rank: int, kind: str, message: str = "", at: float = 0.0) -> dict[str, object]:
    error = {"type": kind, "types": [kind], "message": message, "traceback": "", "at": at}
    return {"rank": rank, "error": error}


def test_success_needs_every_rank() -> None:
    assert judge([{"rank": 0, "value": {}}, {"rank": 1, "value": {}}]).cause is Cause.SUCCESS
    assert judge([{"rank": 0, "value": {}}, outcome(1, "KeyError")]).cause is Cause.ERROR


def test_a_dead_rank_is_the_cause_and_the_survivor_collateral() -> None:
    verdict = judge(
        [
            outcome(0, "RuntimeError", "Connection reset by peer", 1.0),
            outcome(1, "RankDied", "process died", 2.0),
        ]
    )
    assert (verdict.cause, verdict.rank) == (Cause.RANK_DIED, 1)


def test_specific_evidence_beats_general() -> None:
    verdict = judge(
        [outcome(0, "ValueError", "boom", 1.0), outcome(1, "NumericsError", "nan", 2.0)]
    )
    assert verdict.cause is Cause.NUMERICS
    verdict = judge([outcome(1, "RuntimeError", "EADDRINUSE: address already in use")])
    assert verdict.cause is Cause.RENDEZVOUS
