"""Goodput: seconds in buckets whatever the records say, and the law of the best interval."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from reliability.goodput import MTBFS_S, PRESENT_INTERVAL_S, Machine, Training, simulate
from support.interval_share import expected_share

from cluster.verdict import Cause
from orchestrator.cli.main import main
from orchestrator.report.goodput import attempt_log, from_store
from orchestrator.store.attempts import AttemptEnd, AttemptStart, DecisionRecord
from orchestrator.store.driver import LocalStore
from orchestrator.store.journal import (
    JOURNAL_FILE,
    Entry,
    JournalReader,
    JournalWriter,
    read_events,
)
from orchestrator.store.records import DoneRecord, Records, stage_key
from studies.analysis.goodput.accounting import (
    AT_THE_SAME_PLACE,
    BUCKETS,
    DRIVER_LOST,
    ON_PURPOSE,
    PREEMPTED,
    SUCCESS,
    AttemptLog,
    Goodput,
    JournalEvent,
    account,
    total,
)
from studies.analysis.goodput.interval_advice import advise_interval, sentence
from studies.analysis.goodput.interval_law import (
    Costs,
    best_interval,
    daly,
    expected_s,
    failure_rate,
    young,
)
from studies.spec.canonical_json import digest

NOW = 10_000.0


def event(name: str, at: float, **fields: Any) -> JournalEvent:
    return JournalEvent.read({"seq": 0, "t": at * 1000, "event": name, **fields})


def seconds(goodput: Goodput) -> dict[str, float]:
    return {b: round(s, 6) for b, s in goodput.seconds.items() if s}


def first_attempt(**more: Any) -> AttemptLog:
    """Starts in 10 s, does a step a second, saves 1 s at step 20 and is killed in step 26."""
    values: dict[str, Any] = {
        "started_at": 100.0,
        "ended_at": 140.0,
        "cause": "rank died",
        "events": [
            event("began", 105.0),
            event("training", 110.0, step=0),
            event("saved", 131.0, step=20, stall_s=1.0, write_s=1.0, bytes=10),
        ],
        "points": [(10.0, 120.0), (20.0, 130.0)],
        "last_step": 25.0,
        "last_step_at": 136.0,
    }
    return AttemptLog(**values | more)


def second_attempt(**more: Any) -> AttemptLog:
    """Goes on from step 20 after 2 s of restoring, replays 5 steps, does 15 new ones, ends."""
    values: dict[str, Any] = {
        "started_at": 143.0,
        "ended_at": 175.0,
        "cause": "success",
        "events": [
            event("began", 146.0),
            event("restored", 149.0, step=20, seconds=2.0, level="bit-exact"),
            event("training", 150.0, step=20),
            event("finished", 170.0, step=40),
        ],
        "points": [(30.0, 160.0), (40.0, 170.0)],
    }
    return AttemptLog(**values | more)


def test_every_second_of_a_killed_and_resumed_training_has_its_bucket() -> None:
    found = account([first_attempt(), second_attempt()], now=NOW)
    assert seconds(found) == {
        "starting": 10 + 5,
        "restoring": 2,
        "saving": 1,
        "useful": 25 + 15 + 5,
        "replayed": 5,
        "failed": 4,
        "waiting": 3,
    }
    assert found.span_s == pytest.approx(75)
    assert sum(found.shares.values()) == pytest.approx(100)
    assert (found.attempts, found.failures, found.lost_steps) == (2, 1, 5)
    assert found.causes == {"rank died": 1}
    assert (found.failure_dead_s, found.stop_dead_s) == pytest.approx((4 + 3, 0))
    assert found.training_starts_s == pytest.approx(10 + 7)
    assert found.intervals_s == pytest.approx((20,))


def test_a_replay_that_is_killed_before_it_has_caught_up_is_replay_only() -> None:
    killed = second_attempt(
        ended_at=153.0, cause="rank died", points=[], last_step=23.0, last_step_at=152.5
    )
    events = [e for e in killed.events if e.name != "finished"]
    killed = second_attempt(
        ended_at=153.0, cause="rank died", events=events, points=[(23.0, 152.5)]
    )
    found = account([first_attempt(), killed], now=NOW)
    assert found.seconds["useful"] == pytest.approx(25)
    assert found.seconds["replayed"] == pytest.approx(2.5)
    assert found.seconds["failed"] == pytest.approx(4.5)
    assert (found.lost_steps, found.failures) == (3, 2)


def test_a_stall_is_taken_out_of_the_time_that_it_interrupts() -> None:
    replayed_save = event("saved", 153.0, step=22, stall_s=0.5, write_s=0.5)
    new_save = event("saved", 165.0, step=35, stall_s=0.25, write_s=2.0)
    resumed = second_attempt(events=[*second_attempt().events, replayed_save, new_save])
    without = account([first_attempt(), second_attempt()], now=NOW).seconds
    found = account([first_attempt(), resumed], now=NOW).seconds
    assert found["replayed"] == pytest.approx(without["replayed"] - 0.5)
    assert found["useful"] == pytest.approx(without["useful"] - 0.25)
    assert found["saving"] == pytest.approx(without["saving"] + 0.75)


def test_what_is_saved_on_a_notice_is_saving_and_no_failure() -> None:
    last_save = event("saved", 139.0, step=25, stall_s=2.5, write_s=2.5)
    noticed = first_attempt(cause="preempted", events=[*first_attempt().events, last_save])
    found = account([noticed], now=NOW)
    assert found.seconds["saving"] == pytest.approx(3.5)
    assert found.seconds["failed"] == pytest.approx(1.5)
    assert (found.failures, found.stops) == (0, 1)
    assert found.intervals_s == pytest.approx((20,))
    assert account([first_attempt(cause="preempted")], now=NOW).failures == 1


@pytest.mark.parametrize("cause", ["cancelled", "bad input", "not started"])
def test_ends_that_no_interval_helps_against_are_no_failures(cause: str) -> None:
    found = account([first_attempt(cause=cause), second_attempt()], now=NOW)
    assert (found.failures, found.stops) == (0, 1)
    assert found.stop_dead_s == pytest.approx(7)
    advice = advise_interval([found])
    # 45 s useful with 2 saves at 20 s, two starts of 8.5 s on average, and what the stop took.
    assert advice is not None
    assert advice.predicted_share == pytest.approx(100 * 45 / (45 + 2 * 1 + 2 * 8.5 + 7))


def test_the_causes_are_those_that_attempts_are_given() -> None:
    known = {cause.value for cause in Cause} | {"not started"}
    assert known > ON_PURPOSE | AT_THE_SAME_PLACE | {SUCCESS, PREEMPTED, DRIVER_LOST}


def test_an_attempt_that_runs_is_counted_until_now() -> None:
    running = first_attempt(
        ended_at=None, cause=None, is_running=True, last_step=None, last_step_at=None
    )
    found = account([running], now=200.0)
    assert found.span_s == pytest.approx(100)
    assert found.seconds["failed"] == 0
    assert found.seconds["useful"] == pytest.approx(200 - 110 - 1)
    starting = first_attempt(ended_at=None, cause=None, is_running=True, events=[], points=[])
    early = AttemptLog(started_at=100.0, is_running=True, events=[event("began", 105.0)])
    assert starting.is_running and seconds(account([early], now=200.0)) == {"starting": 100}


def test_an_attempt_whose_driver_is_gone_ends_at_its_last_sign_of_life() -> None:
    lost = first_attempt(ended_at=None, cause=None, last_step=None, last_step_at=None)
    found = account([lost, second_attempt()], now=NOW)
    assert found.seconds["waiting"] == pytest.approx(143 - 131)
    assert found.causes == {"driver lost": 1}
    alone = account([lost], now=NOW)
    assert alone.span_s == pytest.approx(31)


def test_evaluations_work_from_their_first_event_on() -> None:
    events = [event("began", 103.0)]
    good = AttemptLog(started_at=100.0, ended_at=110.0, cause="success", events=events)
    assert seconds(account([good], now=NOW, has_steps=False)) == {"starting": 3, "useful": 7}
    bad = AttemptLog(started_at=100.0, ended_at=110.0, cause="error", events=events)
    assert seconds(account([bad], now=NOW, has_steps=False)) == {"starting": 3, "failed": 7}
    silent = AttemptLog(started_at=100.0, ended_at=110.0, cause="error")
    assert seconds(account([silent], now=NOW, has_steps=False)) == {"failed": 10}
    runs = AttemptLog(started_at=100.0, is_running=True, events=events)
    assert seconds(account([runs], now=110, has_steps=False)) == {"starting": 3, "useful": 7}


def test_metrics_without_events_are_enough_to_tell_work_from_failure() -> None:
    found = account([first_attempt(events=[], last_step=None, last_step_at=None)], now=NOW)
    assert seconds(found) == {"starting": 20, "useful": 10, "failed": 10}


def test_nothing_started_is_nothing() -> None:
    found = account([], now=NOW)
    assert (found.span_s, found.attempts, advise_interval([found])) == (0, 0, None)
    assert set(found.shares.values()) == {0.0}


def random_log(rng: random.Random) -> AttemptLog:
    """An attempt as nobody would write it: any order, clocks that disagree, nonsense, holes."""
    start = rng.uniform(0, 1000)

    def moment() -> float:
        return start + rng.choice([rng.uniform(-50, 300), rng.uniform(-5000, 5000), 0.0])

    def nonsense(value: Any) -> Any:
        return rng.choice([value] * 8 + [None, "x", math.nan, math.inf, -value, [value]])

    names = ["began", "restored", "training", "saved", "save_skipped", "finished", "other"]
    events = []
    for _ in range(rng.randrange(12)):
        fields = {k: nonsense(rng.uniform(0, 100)) for k in ("seconds", "stall_s", "write_s")}
        at = {"t": nonsense(moment() * 1000), "step": nonsense(rng.randrange(100))}
        events.append(JournalEvent.read({"event": rng.choice(names), **fields, **at}))
    ended = rng.random() < 0.7
    return AttemptLog(
        started_at=start,
        ended_at=moment() if ended else None,
        cause=rng.choice(["success", "rank died", "preempted", "cancelled"]) if ended else None,
        is_running=not ended and rng.random() < 0.5,
        events=events,
        points=[(rng.randrange(-5, 100), moment()) for _ in range(rng.randrange(10))],
        last_step=rng.choice([None, rng.uniform(-10, 200)]),
        last_step_at=rng.choice([None, moment()]),
    )


@pytest.mark.slow
def test_whatever_the_records_say_the_buckets_sum_to_the_span() -> None:
    rng = random.Random(7)
    for _ in range(5000):
        logs = [random_log(rng) for _ in range(rng.randrange(1, 6))]
        found = account(logs, now=rng.uniform(-1000, 5000), has_steps=rng.random() < 0.7)
        assert set(found.seconds) == set(BUCKETS)
        assert all(s >= 0 for s in found.seconds.values()), (logs, found)
        assert found.span_s >= -1e-6 and found.lost_steps >= 0
        if all(log.ended_at is not None for log in logs):
            last = max(max(log.started_at, log.ended_at or 0.0) for log in logs)
            assert found.span_s == pytest.approx(last - logs[0].started_at, abs=1e-6)
        if found.span_s:
            assert sum(found.shares.values()) == pytest.approx(100, abs=1e-6)
        assert found.failures + found.stops == sum(found.causes.values()) <= len(logs)
        advised = advise_interval([found])
        assert advised is None or sentence(advised)


def test_stages_add_up() -> None:
    parts = [account([first_attempt(), second_attempt()], now=NOW)] * 3
    whole = total(parts)
    assert whole.span_s == pytest.approx(3 * parts[0].span_s)
    assert (whole.attempts, whole.failures, whole.causes) == (6, 3, {"rank died": 3})


def test_the_store_and_plain_records_give_the_same(tmp_path: Path) -> None:
    records = Records(LocalStore(tmp_path))
    science_hash = digest({"kind": "pretrain"})
    records.write_identity(science_hash, {"kind": "pretrain"})
    number = records.begin_attempt(science_hash, AttemptStart(address="a#pretrain"))
    journal = JournalWriter(records.attempt_dir(science_hash, number) / JOURNAL_FILE)
    journal.event("began", {})
    journal.event("training", {"step": 0})
    journal.write(1, {"loss": 1.0})
    journal.event("saved", {"step": 1, "stall_s": 0.0, "write_s": 0.0, "bytes": 1})
    journal.close()
    records.end_attempt(science_hash, number, AttemptEnd(cause="rank died"))
    found = from_store(records, science_hash)
    assert (found.attempts, found.failures, len(found.stalls_s)) == (1, 1, 1)
    [attempt] = records.attempts(science_hash)
    path = records.attempt_dir(science_hash, number) / JOURNAL_FILE
    log = attempt_log(attempt, read_events(path), JournalReader(path).read_new())
    assert log is not None and found == account([log], now=NOW)
    undated = replace(attempt, start=replace(attempt.start, started_at="yesterday"))
    assert attempt_log(undated, [], []) is None
    torn = attempt_log(attempt, [], [Entry(0, 0, None, {})])  # type: ignore[arg-type]
    assert torn is not None and torn.points == []
    assert from_store(records, "cd" * 10).attempts == 0


def test_an_archived_result_is_computed_again_and_not_replayed(tmp_path: Path) -> None:
    records, science_hash = Records(LocalStore(tmp_path)), "ab" * 10
    training = Training(Machine(), 1e9, 100.0, 200, random.Random(1))
    training.run()
    training.clock += 1000
    training.committed = training.furthest = 0
    training.run()
    keep(records, science_hash, training)
    assert from_store(records, science_hash, kind="pretrain").seconds["replayed"] > 100
    record = DoneRecord(
        science_hash=science_hash,
        kind="pretrain",
        attempt=1,
        metrics={},
        outputs={},
        parents={},
        seconds=1.0,
        world_size=1,
    )
    records.complete(record)
    records.supersede(science_hash)
    found = from_store(records, science_hash, kind="pretrain")
    assert found.seconds["replayed"] == found.seconds["waiting"] == 0
    assert found.seconds["useful"] == pytest.approx(2 * 200 * 2, rel=0.1)


def test_daly_and_young_at_known_values() -> None:
    # Daly 2006, section 5: five minutes a dump, a day between failures.
    assert young(300, 86400) == pytest.approx(7200)
    assert daly(300, 86400) == pytest.approx(7200 * (1 + math.sqrt(1 / 576) / 3 + 1 / 5184) - 300)
    assert daly(100, 40) == 40
    assert daly(10, math.inf) == math.inf
    assert best_interval(3600, Costs(save_s=0.01, lag_s=30)) == 30


@pytest.mark.parametrize("mtbf_s", [300.0, 3600.0, 86400.0])
def test_daly_is_where_the_expected_time_is_least(mtbf_s: float) -> None:
    costs = Costs(save_s=5, restart_s=40, dead_s=10)
    best = daly(costs.save_s, mtbf_s)
    # Whole numbers of intervals, so that the last one does not blur the comparison.
    shares = [expected_share(1000 * t, t, mtbf_s, costs) for t in (best * 0.7, best, best * 1.4)]
    assert shares[1] == max(shares)
    fine = [expected_share(1000 * best * k, best * k, mtbf_s, costs) for k in (0.97, 1.0, 1.03)]
    assert fine[1] == pytest.approx(max(fine), abs=0.02)


def test_expected_time_agrees_with_drawn_failures() -> None:
    """The formula against plain repetition: work, fail, notice, restart, go on."""
    costs, interval, mtbf, work = Costs(save_s=4, restart_s=30, dead_s=12), 100.0, 300.0, 1e6
    rng = random.Random(3)
    clock = done = 0.0
    left, ready = rng.expovariate(1 / mtbf), False
    while done < work:
        need = (min(interval, work - done) + costs.save_s) if ready else costs.restart_s
        if left < need:
            clock, ready = clock + left + costs.dead_s, False
            left = rng.expovariate(1 / mtbf)
            continue
        clock, left = clock + need, left - need
        done += need - costs.save_s if ready else 0.0
        ready = True
    assert clock == pytest.approx(expected_s(work, interval, mtbf, costs), rel=0.03)


def test_expected_time_at_the_edges() -> None:
    costs = Costs(save_s=1, restart_s=10)
    assert expected_s(0, 10, 100, costs) == 0
    assert expected_s(95, 10, math.inf, costs) == 10 + 95 + 9
    assert expected_share(100, 1e6, 1e-3, costs) == 0
    with pytest.raises(ValueError, match="above 0"):
        expected_s(100, 0, 100, costs)


def test_failure_rate_has_the_exact_poisson_interval() -> None:
    from scipy.stats import chi2

    for failures in (1, 3, 30, 400):
        rate = failure_rate(failures, 50.0)
        assert rate.low == pytest.approx(chi2.ppf(0.05, 2 * failures) / 100, rel=1e-6)
        assert rate.high == pytest.approx(chi2.ppf(0.95, 2 * failures + 2) / 100, rel=1e-6)
        assert rate.mtbf_s == pytest.approx(50 / failures)
    none = failure_rate(0, 50.0)
    assert (none.low, none.mtbf_s) == (0, math.inf)
    assert none.high == pytest.approx(-math.log(0.05) / 50)
    with pytest.raises(ValueError, match="no rate"):
        failure_rate(1, 0.0)


def test_the_advice_says_what_is_known() -> None:
    seen = advise_interval([account([first_attempt(), second_attempt()], now=NOW)])
    assert seen is not None
    assert (seen.rate.failures, seen.interval_s) == (1, pytest.approx(20))
    assert seen.best_s == pytest.approx(daly(1.0, seen.rate.mtbf_s))
    assert seen.measured_share == pytest.approx(100 * 45 / 75)
    assert "1 failure in" in sentence(seen)
    calm = advise_interval([account([first_attempt(cause="success")], now=NOW)])
    assert calm is not None and sentence(calm).startswith("No failure in")
    assert calm.to_dict()["mtbf_s"] is None


def keep(records: Records, science_hash: str, training: Training) -> None:
    """Write simulated attempts into a store, as the controller and rank 0 would have."""
    key = stage_key(science_hash)
    for attempt, events, points in training.attempts:
        number = records.store.append_numbered(f"{key}/attempts", attempt.start.to_json())
        if attempt.end is not None:
            end = replace(attempt.end, message="RankDied: rank 1 was [killed]")
            records.store.create_json(f"{key}/ends/{number:06d}.json", end.to_json())
        path = records.attempt_dir(science_hash, number) / JOURNAL_FILE
        path.parent.mkdir(parents=True)
        lines = [(e["t"], json.dumps(e)) for e in events]
        for p in points:
            line = {"seq": 0, "t": p.timestamp_ms, "step": p.step, "metrics": p.metrics}
            lines.append((p.timestamp_ms, json.dumps(line)))
        path.write_text("".join(f"{line}\n" for _, line in sorted(lines)))


@pytest.fixture
def killed_often(tmp_path: Path) -> tuple[Path, Goodput]:
    """A store in which the quickstart's first pretraining was killed again and again."""
    where = ("quickstart", "--store", str(tmp_path), "--data", str(tmp_path / "none"))
    stages = json.loads(CliRunner().invoke(main, ["plan", *where, "--json"]).stdout)["stages"]
    stage = next(s for s in stages if s["kind"] == "pretrain")
    training = Training(Machine(), 600.0, 120.0, 3000, random.Random(5))
    expected = training.run()
    records = Records(LocalStore(tmp_path))
    keep(records, stage["science_hash"], training)
    decision = DecisionRecord(decision="retry", reason="[3] of 40 deaths")
    records.decide(stage["science_hash"], decision)
    return tmp_path, expected


def test_status_says_where_the_time_went(killed_often: tuple[Path, Goodput]) -> None:
    store, expected = killed_often
    where = ("status", "quickstart", "--store", str(store), "--data", str(store / "none"))
    found = json.loads(CliRunner().invoke(main, [*where, "--json"]).stdout)
    whole = found["goodput"]["whole"]
    assert whole["shares"] == {b: round(s, 3) for b, s in expected.shares.items()}
    assert sum(whole["shares"].values()) == pytest.approx(100, abs=0.1)
    assert len(found["failed_attempts"]) == whole["failures"] == expected.failures > 5
    advice = found["goodput"]["advice"]
    assert advice["measured_share"] == pytest.approx(advice["predicted_share"], abs=10)
    shown = CliRunner().invoke(main, where)
    assert shown.exit_code == 0
    assert f"{expected.shares['useful']:.1f} % useful" in shown.stdout
    assert "RankDied: rank 1 was [killed]" in shown.stdout
    assert "decided: retry: [3] of 40 deaths" in shown.stdout
    assert "would be best at the rate seen" in shown.stdout


def test_the_report_shows_where_the_time_went(killed_often: tuple[Path, Goodput]) -> None:
    store, expected = killed_often
    where = ("report", "quickstart", "--store", str(store), "--data", str(store / "none"))
    made = CliRunner().invoke(main, [*where, "--json"])
    page = Path(json.loads(made.stdout)["report"])
    text = page.read_text()
    assert "Where the time went" in text and "would be best at the rate seen" in text
    assert f"rank died {expected.failures}" in text
    assert (page.parent / "figures" / "goodput.png").stat().st_size > 1000
    summary = json.loads((page.parent / "summary.json").read_text())
    assert summary["goodput"]["whole"]["failures"] == expected.failures


def test_what_was_never_started_has_no_goodput(tmp_path: Path) -> None:
    where = ("quickstart", "--store", str(tmp_path), "--data", str(tmp_path / "none"))
    shown = CliRunner().invoke(main, ["status", *where])
    assert shown.exit_code == 0 and "useful" not in shown.stdout
    assert (
        json.loads(CliRunner().invoke(main, ["status", *where, "--json"]).stdout)["goodput"] is None
    )


@pytest.mark.parametrize("mtbf_s", [150.0, 600.0, 3600.0])
def test_the_records_lead_to_what_was_really_spent(mtbf_s: float) -> None:
    """To a point: a start that was cut short, or a save that never was committed, says little."""
    training = Training(Machine(), mtbf_s, 120.0, 6000, random.Random(11))
    found = training.run()
    span = sum(training.truth.values())
    assert found.span_s == pytest.approx(span, abs=0.01)
    for bucket, true_s in training.truth.items():
        assert found.seconds[bucket] == pytest.approx(true_s, abs=0.01 * span), bucket


@pytest.mark.slow
@pytest.mark.parametrize("mtbf_s", MTBFS_S)
def test_the_measured_share_is_near_the_predicted(mtbf_s: float) -> None:
    """The bars of the long run, at the default interval and fixed seeds."""
    found = simulate(Machine(), mtbf_s, PRESENT_INTERVAL_S, seed=1)
    assert found.goodput.failures >= 30
    assert found.advice.measured_share == pytest.approx(found.predicted_share, abs=5)
    assert found.advice.measured_share == pytest.approx(found.advice.predicted_share, abs=5)
    assert sum(found.goodput.shares.values()) == pytest.approx(100, abs=0.1)
