"""Gangs that go wrong on a real embedded Ray: hangs, notices, deaths, replacements."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.gangs import values

from cluster.connect import Capacity, connect
from cluster.gang import Gang
from cluster.hang import HangLimits, is_overdue, name_hang, stragglers
from cluster.ranks.environment import process_environment
from cluster.ranks.heartbeat import Heartbeat, HeartbeatRecorder
from cluster.ranks.outcome import Loss
from cluster.ranks.stop_request import StopRequests, grace_s
from cluster.slot_pool import SlotPool
from cluster.slots import SlotShape

TESTS = str(Path(__file__).resolve().parents[1])
LIMITS = HangLimits(step=3.0, first_step=20.0, other=20.0)
SLACK_S = 10.0
"""A hang is found within its section's limit and this."""


@pytest.fixture(scope="module")
def capacity() -> Iterator[Capacity]:
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [TESTS, os.environ.get("PYTHONPATH")]))
    with connect(num_cpus=3) as found:
        yield found


@pytest.fixture(scope="module")
def pool(capacity: Capacity) -> Iterator[SlotPool]:
    shape = SlotShape(cpus=1, gpus=0)
    with SlotPool("faults", 2, capacity, shape=shape, spares=1, hang_limits=LIMITS) as pool:
        yield pool


@pytest.fixture(autouse=True)
def all_ready(request: pytest.FixtureRequest) -> None:
    """Each test begins with all slots warm."""
    if "pool" in request.fixturenames:
        pool: SlotPool = request.getfixturevalue("pool")
        until(pool, lambda: pool.num_ready == 3)


def until(
    pool: SlotPool, condition: Callable[[], object], *gangs: Gang, timeout_s: float = 40
) -> float:
    """Drive the pool until `condition`; return the seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout_s, "it does not come true"
        pool.wait(gangs, 0.1)
    return time.monotonic() - began


def launch(pool: SlotPool, entry: str, payload: dict[str, Any], num_ranks: int) -> Gang:
    gang = pool.launch(f"support.gang_entries:{entry}", payload, num_ranks)
    assert gang is not None
    return gang


def train(folder: Path, **more: Any) -> dict[str, Any]:
    return {"folder": str(folder), "steps": 10_000} | more


def pids(gang: Gang) -> list[int]:
    return [slot.process.pid for slot in gang.slots]


def ends(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# Pure functions.


def heartbeat(section: str, since: float, step: int = 5, **more: Any) -> Heartbeat:
    values: dict[str, Any] = {"step_at": 0.0, "own_s": 0.0, "answered_at": 100.0} | more
    return Heartbeat(section, step, since, **values)


@pytest.mark.parametrize(
    ("rank_0", "rank_1", "expected"),
    [
        (heartbeat("step", 97.5), heartbeat("step", 97.5), False),
        (heartbeat("step", 96.5), heartbeat("step", 96.5), True),
        # What was slow before may be so again, on whichever rank.
        (heartbeat("step", 96.5), heartbeat("step", 96.5, slowest={"step": 1.0}), False),
        # Nothing is known of a section before its first step was finished.
        (heartbeat("step", 90.0, step_at=None), heartbeat("step", 90.0, step_at=None), False),
        (heartbeat("step", 79.0, step_at=None), heartbeat("step", 79.0, step_at=None), True),
        (heartbeat("save", 90.0), heartbeat("save", 90.0), False),
        (heartbeat("save", 79.0), heartbeat("save", 79.0), True),
        (heartbeat("evaluate", -1000.0), heartbeat("evaluate", -1000.0), False),
        # An entry that never told a section is left alone.
        (
            heartbeat("", -9e9, step_at=None),
            heartbeat("", -9e9, step_at=None, answered_at=0.0),
            False,
        ),
        # Silence counts from the last answer, not from the section that was told then.
        (heartbeat("load", 99.5), heartbeat("step", 96.0, answered_at=96.9), True),
        (heartbeat("load", 99.5), heartbeat("evaluate", 10.0, answered_at=50.0), False),
    ],
)
def test_a_gang_is_overdue_by_the_limits_of_its_sections(
    rank_0: Heartbeat, rank_1: Heartbeat, expected: bool
) -> None:
    assert is_overdue({0: rank_0, 1: rank_1}, LIMITS, now=100.0) is expected


@pytest.mark.parametrize(
    ("sections", "silent", "ranks"),
    [
        ([("step", 5), ("step", 5), ("step", 5)], {2}, (2,)),
        ([("step", 5), ("load", 5), ("step", 5)], set(), (1,)),
        ([("step", 5), ("step", 5), ("step", 5)], set(), (0, 1, 2)),
        ([("load", 6), ("step", 5), ("load", 6)], set(), (1,)),
        ([("save", 5), ("load", 5), ("load", 5)], set(), (0,)),
        ([("start", 0), ("", 0), ("start", 0)], set(), (1,)),
    ],
)
def test_who_keeps_the_gang_is_named(
    sections: list[tuple[str, int]], silent: set[int], ranks: tuple[int, ...]
) -> None:
    heartbeats = {r: heartbeat(section, 90.0, step) for r, (section, step) in enumerate(sections)}
    hang = name_hang(heartbeats, silent, LIMITS, now=100.0)
    assert hang.ranks == ranks
    assert hang.section == sections[ranks[0]][0]


def test_stragglers_are_those_beyond_the_others() -> None:
    def own(*seconds: float, num_own: int = 20) -> dict[int, Heartbeat]:
        return {r: heartbeat("step", 0, own_s=s, num_own=num_own) for r, s in enumerate(seconds)}

    assert stragglers(own(0.1, 0.1, 0.16)) == [2]
    assert stragglers(own(0.1, 0.1, 0.14)) == []
    assert stragglers(own(0.1, 0.3)) == [1]
    assert stragglers(own(0.001, 0.003)) == []  # of no consequence
    assert stragglers(own(0.1, 0.3, num_own=19)) == []
    assert stragglers(own(0.1)) == []


def test_a_heart_measures_sections_and_the_own_time_of_steps() -> None:
    now, cpu = [1000.0], [0.0]
    recorder = HeartbeatRecorder(lambda: now[0], lambda: cpu[0])

    def section(name: str, step: int, seconds: float, cpu_s: float = 0.0) -> None:
        recorder.beat(name, step)
        now[0] += seconds
        cpu[0] += cpu_s

    assert recorder.read().section == ""
    section("start", 0, 7.0)
    section("load", 3, 5.0)
    section("step", 3, 60.0, cpu_s=50.0)  # compiles: no measure for the steps to come
    section("load", 4, 0.25)
    section("step", 4, 2.0, cpu_s=1.0)
    section("load", 5, 0.5)
    section("step", 5, 4.0, cpu_s=1.0)
    recorder.beat("save", 6)
    now[0] += 9.0
    found = recorder.read().on_clock(77.0)
    assert (found.section, found.step, found.since, found.step_at) == ("save", 6, 68.0, 68.0)
    assert found.slowest == {"start": 7.0, "load": 0.5, "step": 4.0}
    assert (found.own_s, found.num_own) == (1.375, 2)


def test_a_preemption_outranks_other_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = StopRequests()
    assert (requests.reason("run"), requests.grace_left_s("run")) == (None, math.inf)
    requests.request("run", "resize", None)
    requests.request("run", "cancelled", 5.0)
    assert (requests.reason("run"), requests.grace_left_s("run")) == ("resize", math.inf)
    requests.request("run", "preempted", 20.0)
    assert requests.reason("run") == "preempted"
    assert 19 < requests.grace_left_s("run") <= 20
    assert requests.reason("another") is None
    monkeypatch.setenv("MAE_STUDY_GRACE_S", "7.5")
    assert process_environment(1, is_local=True)["MAE_STUDY_GRACE_S"] == "7.5"
    assert grace_s() == 7.5


def test_a_beat_costs_microseconds() -> None:
    recorder = HeartbeatRecorder()
    began = time.perf_counter()
    for step in range(2000):
        recorder.beat("load", step)
        recorder.beat("step", step)
    assert (time.perf_counter() - began) / 4000 < 100e-6


# Hangs.


@pytest.mark.parametrize(
    ("kind", "bad_ranks", "section", "evidence"),
    [
        ("stopped", [1], "step", "process state T (stopped from outside)"),
        ("interpreter", [1], "step", "hold_the_interpreter"),
        ("loader", [1], "load", "in train"),
        ("deadlock", [0, 1], "step", "in _go_wrong"),
    ],
)
def test_a_hang_is_found_named_and_ended(
    pool: SlotPool,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    kind: str,
    bad_ranks: list[int],
    section: str,
    evidence: str,
) -> None:
    gang = launch(pool, "train", train(tmp_path, kind=kind, bad_ranks=bad_ranks, at=100), 2)
    processes = pids(gang)
    until(pool, lambda: gang.is_finished, gang, timeout_s=60)
    found_after = time.time() - float((tmp_path / f"fault-{bad_ranks[0]}").read_text())
    assert gang.hang is not None
    record_property("found_after_s", round(found_after, 1))
    print(f"{kind}: found after {found_after:.1f} s, limit {gang.hang.limit_s:.1f} s")
    assert list(gang.hang.ranks) == bad_ranks
    assert gang.hang.section == section
    assert found_after <= gang.hang.limit_s + SLACK_S
    for rank in (0, 1):
        error = gang.outcomes[rank].error
        assert error is not None
        assert error.loss is (Loss.HANG if rank in bad_ranks else Loss.ENDED_WITH_GANG)
    error = gang.outcomes[bad_ranks[0]].error
    assert error is not None
    assert f"rank{'s' if len(bad_ranks) > 1 else ''} {bad_ranks[0]}" in error.message
    assert evidence in error.message + error.traceback
    pool.release(gang)
    until(pool, lambda: all(map(ends, processes)))


def test_what_is_slow_for_a_reason_is_no_hang(pool: SlotPool, tmp_path: Path) -> None:
    """A long start, first step and save; and an entry that never tells what it is at."""
    sleeps = {"start": 4.0, "step": 4.0, "save": 4.0}
    gang = launch(pool, "train", train(tmp_path, steps=20, sleeps=sleeps), 2)
    other = launch(pool, "silent", {"seconds": 12}, 1)
    until(pool, lambda: gang.is_finished and other.is_finished, gang, other)
    outcomes = [*gang.outcomes.values(), *other.outcomes.values()]
    assert [outcome.error for outcome in outcomes] == [None] * 3
    pool.release(gang)
    pool.release(other)


def test_a_driver_that_slept_blames_nobody(pool: SlotPool, tmp_path: Path) -> None:
    gang = launch(pool, "train", train(tmp_path), 2)
    until(pool, lambda: all(p.step_at for p in gang.heartbeats.values()), gang)
    time.sleep(8.0)  # longer than the limit of a step
    pool.wait([gang], 2.0)
    assert gang.hang is None
    gang.request_stop()
    until(pool, lambda: gang.is_finished, gang)
    assert gang.hang is None
    pool.release(gang)


def test_pulses_tell_the_step_and_stragglers(pool: SlotPool, tmp_path: Path) -> None:
    gang = launch(pool, "train", train(tmp_path, load_s={"1": 0.05}), 2)
    until(pool, lambda: gang.stragglers(), gang)
    assert gang.stragglers() == [1]
    for found in gang.heartbeats.values():
        assert found.step > 20 and found.step_at is not None
        assert abs(time.time() - found.step_at) < 5
    gang.request_stop("resize")
    until(pool, lambda: gang.is_finished, gang)
    assert all(outcome.error is None for outcome in gang.outcomes.values())
    assert {o.stop_reason for o in gang.outcomes.values()} == {"resize"}
    before = set(pids(gang))
    pool.release(gang)
    assert before <= {slot.process.pid for slot in pool.idle}  # they stay warm


# Notices.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_is_a_notice_and_the_slot_is_replaced(pool: SlotPool, number: int) -> None:
    gang = launch(pool, "wait_for_stop", {"linger_s": 1.5}, 2)
    leaving, staying = pids(gang)
    until(pool, lambda: all(p.answered_at > p.since for p in gang.heartbeats.values()), gang)
    os.kill(leaving, number)
    time.sleep(0.5)
    os.kill(leaving, number)  # a second one changes nothing
    until(pool, lambda: 0 in gang.outcomes, gang)
    gang.request_stop("cancelled", grace_s=5.0)
    until(pool, lambda: gang.is_finished, gang)
    told, asked = gang.outcomes[0], gang.outcomes[1]
    assert (told.stop_reason, asked.stop_reason) == ("preempted", "cancelled")
    assert told.value is not None and asked.value is not None
    first, later = told.value["grace_s"]
    assert 29 < first <= 30 and later == pytest.approx(first - 1.5, abs=0.5)
    assert 4 < asked.value["grace_s"][0] <= 5
    pool.release(gang)
    until(pool, lambda: ends(leaving) and pool.num_ready == 3)
    assert leaving not in {slot.process.pid for slot in pool.idle}
    assert staying in {slot.process.pid for slot in pool.idle}


def test_an_idle_process_with_a_notice_is_replaced(pool: SlotPool) -> None:
    leaving = pool.idle[0].process.pid
    os.kill(leaving, signal.SIGTERM)
    time.sleep(0.2)
    assert not ends(leaving)  # the signal itself kills nobody
    until(pool, lambda: ends(leaving))
    until(pool, lambda: pool.num_ready == 3)
    assert leaving not in {slot.process.pid for slot in pool.idle}


# Deaths and replacements.


def test_a_dead_idle_process_is_replaced(pool: SlotPool) -> None:
    victim = pool.idle[0].process.pid
    os.kill(victim, signal.SIGKILL)
    until(pool, lambda: victim not in {slot.process.pid for slot in pool.idle})
    until(pool, lambda: pool.num_ready == 3)


def test_a_stopped_idle_process_holds_a_launch_up_only_once(
    pool: SlotPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.slot_pool.ANSWER_TIMEOUT_S", 1.0)
    victim = pool.idle[0].process.pid
    os.kill(victim, signal.SIGSTOP)
    assert pool.launch("support.gang_entries:where", {}, 1) is None
    gang = launch(pool, "where", {}, 2)
    until(pool, lambda: gang.is_finished, gang)
    assert victim not in pids(gang)
    pool.release(gang)
    until(pool, lambda: ends(victim))


def test_a_replacement_blocks_nobody(capacity: Capacity, pool: SlotPool) -> None:
    """While a process warms up for 3 s, the spare takes its place at once."""
    pool.__exit__()  # its CPUs are needed here
    shape = SlotShape(cpus=1, gpus=0)
    with SlotPool(
        "slow", 2, capacity, shape=shape, spares=1, warm_entry="support.gang_entries:slow_to_warm"
    ) as slow:
        gang = launch(slow, "wait_for_stop", {}, 2)
        time.sleep(0.5)
        killed_at = time.monotonic()
        os.kill(pids(gang)[1], signal.SIGKILL)
        until(slow, lambda: 1 in gang.outcomes, gang)
        error = gang.outcomes[1].error
        assert error is not None and error.loss is Loss.RANK_DIED
        gang.request_stop()
        until(slow, lambda: gang.is_finished, gang)
        began = time.monotonic()
        slow.release(gang)
        assert time.monotonic() - began < 0.5
        assert slow.num_ready == 2
        again = launch(slow, "where", {}, 2)
        until(slow, lambda: again.is_finished, again)
        print(f"killed -> the next gang has run: {time.monotonic() - killed_at:.2f} s")
        assert slow.num_ready == 2  # the replacement is not even warm yet
        assert len({value["pid"] for value in values(again)} & set(pids(gang))) == 1
        slow.release(again)
        until(slow, lambda: slow.num_ready == 3)
