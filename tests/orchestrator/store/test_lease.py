"""Who holds a study: seen from the same place, from another one, and once it was taken over."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cluster.process_identity import ProcessIdentity
from orchestrator.errors import StudyBusy
from orchestrator.store.attempts import Driver
from orchestrator.store.driver import LocalStore
from orchestrator.store.lease import LeaseTimes, acquire, hold, is_alive, lease_prefix

QUICK = LeaseTimes(heartbeat_s=0.05, stale_after_s=30.0)
PREFIX = lease_prefix("s")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def drives(store: LocalStore, epoch: int = 1, beat_age_s: float = 0.0, **other: object) -> Driver:
    """Leave the record and the heartbeat of a driver; by default this process is it."""
    me = ProcessIdentity.of_this_process()
    here = Driver(
        **asdict(me),
        host=socket.gethostname(),
        epoch=epoch,
        heartbeat=f"{PREFIX}/{epoch:06d}.heartbeat",
    )
    driver = replace(here, **other)
    assert store.create_json(f"{PREFIX}/{epoch:06d}.json", asdict(driver))
    beat = store.path(driver.heartbeat)
    beat.touch()
    os.utime(beat, (time.time() - beat_age_s,) * 2)
    return driver


ELSEWHERE = {"pid_namespace": "pid:[1]", "pid": 4}


def test_a_driver_that_cannot_be_seen_keeps_its_lease_while_its_heart_beats(
    store: LocalStore,
) -> None:
    driver = drives(store, **ELSEWHERE)
    with pytest.raises(StudyBusy, match=r"process 4 .* takes over 30 s after its last heartbeat"):
        acquire(store, "s", QUICK)
    assert is_alive(store, driver)


@pytest.mark.parametrize("age_s", [100.0, -100.0])
def test_a_driver_that_cannot_be_seen_is_gone_once_its_heart_has_stopped(
    store: LocalStore, age_s: float
) -> None:
    driver = drives(store, beat_age_s=age_s, **ELSEWHERE)
    assert not is_alive(store, driver)
    with hold(store, "s", QUICK) as lease:
        assert lease.epoch == 2


@pytest.mark.parametrize("age_s", [3600.0, -3600.0])
def test_a_heartbeat_by_another_clock_is_watched(store: LocalStore, age_s: float) -> None:
    driver = drives(store, beat_age_s=age_s, **ELSEWHERE)
    with beating(store.path(driver.heartbeat), age_s), pytest.raises(StudyBusy):
        acquire(store, "s", replace(QUICK, heartbeat_s=1.0))


@contextmanager
def beating(heartbeat: Path, age_s: float) -> Iterator[None]:
    """Let a heart beat by a clock that is wrong by `age_s`."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.01):
            os.utime(heartbeat, (time.time() - age_s,) * 2)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_dead_driver_that_can_be_seen_is_succeeded_at_once(store: LocalStore) -> None:
    drives(store, started=1.0)
    with hold(store, "s") as lease:
        assert lease.epoch == 2


@pytest.mark.parametrize(("age_s", "is_free"), [(0.0, False), (100.0, True)])
def test_a_record_without_identity_goes_by_its_heartbeat(
    store: LocalStore, age_s: float, is_free: bool
) -> None:
    """Its process number may be one of another container: this process has the same here."""
    drives(store, beat_age_s=age_s, boot_id="", pid_namespace="", epoch=1)
    if is_free:
        with hold(store, "s", QUICK) as lease:
            assert lease.epoch == 2
    else:
        with pytest.raises(StudyBusy):
            acquire(store, "s", QUICK)


@pytest.mark.parametrize(("age_s", "is_free"), [(0.0, False), (100.0, True)])
def test_a_damaged_record_goes_by_its_heartbeat(
    store: LocalStore, age_s: float, is_free: bool
) -> None:
    drives(store, beat_age_s=age_s)
    store.path(f"{PREFIX}/000001.json").write_text('{"host": "h", ')
    if is_free:
        with hold(store, "s", QUICK) as lease:
            assert lease.epoch == 2
    else:
        with pytest.raises(StudyBusy, match="record is damaged"):
            acquire(store, "s", QUICK)


def test_a_record_that_was_set_apart_leaves_its_epoch_taken(store: LocalStore) -> None:
    """Else the next driver would bear the number of one that was released."""
    driver = drives(store)
    store.path(f"{PREFIX}/000001.json").unlink()
    with pytest.raises(StudyBusy, match="record is damaged"):
        acquire(store, "s", QUICK)
    os.utime(store.path(driver.heartbeat), (1.0, 1.0))
    with hold(store, "s", QUICK) as lease:
        assert lease.epoch == 2


def test_a_driver_that_was_taken_over_stops_at_its_next_heartbeat(store: LocalStore) -> None:
    """Whatever its main thread waits for; and it shows no sign of life any more."""
    with (
        pytest.raises(StudyBusy, match=r"taken over by process 4 on there at 2026.*this one stops"),
        hold(store, "s", QUICK) as lease,
    ):
        beat = store.path(lease.holder.heartbeat)
        drives(store, 2, host="there", since="2026-01-01T12:00:00", **ELSEWHERE)
        last = beat.stat().st_mtime_ns
        threading.Event().wait(30.0)
    assert beat.stat().st_mtime_ns == last
    assert not is_alive(store, lease.holder)


def test_a_driver_that_wakes_looks_before_its_first_heartbeat(store: LocalStore) -> None:
    """Its main thread may be the first to wake: its last look is long ago then."""
    lease = acquire(store, "s", LeaseTimes(heartbeat_s=0.0))
    lease.assert_held()
    drives(store, 2, **ELSEWHERE)
    with pytest.raises(StudyBusy, match="taken over by process 4"):
        lease.assert_held()


def test_a_driver_that_ended_in_order_is_gone_for_others_at_once(store: LocalStore) -> None:
    with hold(store, "s") as lease:
        elsewhere = replace(lease.holder, **ELSEWHERE)
        assert is_alive(store, lease.holder) and is_alive(store, elsewhere)
    assert not is_alive(store, lease.holder) and not is_alive(store, elsewhere)
