"""The time left: it follows what is measured, and never stands still."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.cli.live import paced
from orchestrator.plan.plan import make_plan
from orchestrator.plan.time_left import FinishedStage, OpenStage, Pace, time_left
from orchestrator.store.data_facts import Datasets
from orchestrator.store.driver import LocalStore
from orchestrator.store.journal import Entry
from orchestrator.store.records import Records
from studies.load import load_study


def stage(key: str, estimate_s: float = 100.0, **changes: object) -> OpenStage:
    plain = OpenStage(key=key, kind="pretrain", parents=(), ranks=1, estimate_s=estimate_s)
    return replace(plain, **changes)  # type: ignore[arg-type]


def running(now: float, *, step_s: float, steps: int = 100) -> OpenStage:
    """A stage of 100 estimated seconds whose journal has a line every ten steps, `now` s after."""
    step = int(now / step_s) // 10 * 10
    pace = Pace(first_step=0, first_s=0.0, last_step=step, last_s=step * step_s) if step else None
    return stage("a", steps=steps, ran_s=now, pace=pace)


@pytest.mark.parametrize("step_s", [0.5, 1.0, 7.0])
def test_the_time_left_of_a_running_stage_falls_by_the_second(step_s: float) -> None:
    measured = [
        time_left([running(now, step_s=step_s)], (), slots=1, now=now)
        for now in range(round(20 * step_s), round(100 * step_s), 5)
    ]
    assert measured == sorted(set(measured), reverse=True)
    first = 100 * step_s - round(20 * step_s)
    assert measured[0] == pytest.approx(first, rel=0.02)


def test_an_estimate_that_was_wrong_is_given_up() -> None:
    shown = [time_left([stage("a", ran_s=float(s))], (), slots=1, now=s) for s in range(0, 400, 30)]
    assert shown[:4] == [100, 70, 40, 10]
    assert all(a != b for a, b in zip(shown, shown[1:], strict=False)) and min(shown) > 0


def test_what_waits_costs_what_others_of_its_kind_took() -> None:
    waiting = [stage("b"), stage("c", kind="knn", estimate_s=10.0)]
    slow = FinishedStage(kind="pretrain", estimate_s=100.0, seconds=300.0)
    assert time_left(waiting, (), slots=1, now=0.0) == 110
    assert time_left(waiting, (slow,), slots=1, now=0.0) == 330
    quick = FinishedStage(kind="knn", estimate_s=10.0, seconds=5.0)
    assert time_left(waiting, (slow, quick), slots=1, now=0.0) == 305
    # A stage that runs at a third of the estimated speed says so before it ends.
    slower = [running(60.0, step_s=3.0), stage("b")]
    assert time_left(slower, (), slots=1, now=60.0) == pytest.approx(240 + 300)


def test_slots_and_chains() -> None:
    four = [stage(key) for key in "abcd"]
    assert time_left(four, (), slots=1, now=0.0) == 400
    assert time_left(four, (), slots=4, now=0.0) == 100
    assert time_left([replace(s, ranks=2) for s in four], (), slots=4, now=0.0) == 200
    chain = [stage("a"), stage("b", parents=("a", "done")), stage("c", parents=("b",))]
    assert time_left(chain, (), slots=8, now=0.0) == 300
    assert time_left(chain, (), slots=8, ahead_s=4000.0, now=0.0) == 4300 / 8
    assert time_left((), (), slots=1, now=0.0) == 0


def test_a_pace_begins_anew_at_a_checkpoint() -> None:
    def line(step: int, at: float) -> Entry:
        return Entry(sequence=0, timestamp_ms=round(1000 * at), step=step, metrics={})

    pace = None
    for entry in (line(10, 1.0), line(20, 2.0), line(30, 3.0)):
        pace = paced(pace, entry)
    assert pace is not None and pace.step_s == pytest.approx(0.1)
    again = paced(pace, line(15, 9.0))
    assert again.step_s is None and paced(again, line(16, 10.0)).step_s == 1.0


def test_trials_that_are_not_known_yet_are_ahead(tmp_path: object) -> None:
    store = LocalStore(tmp_path)  # type: ignore[arg-type]
    plan = make_plan(load_study("quickstart"), Records(store), Datasets(store))
    sweep = plan.sweeps[0].trials.sweep
    hashes = {s.identity.science_hash for s in plan.stages if not s.cell.uses_winner}
    ahead = [plan.ahead_s(hashes, asked) for asked in range(sweep.num_trials + 1)]
    cells = sum(plan.seconds(s) * s.cost.world_size for s in plan.work if s.cell.uses_winner)
    assert ahead == sorted(ahead, reverse=True) and ahead[-1] == pytest.approx(cells) and cells > 0
    one = plan.sweep_rank_seconds / sweep.num_trials
    assert ahead[0] - ahead[1] == pytest.approx(one) and one > 0
