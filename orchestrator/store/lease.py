"""One driver per study: a lease with a fencing epoch, so that a stale driver's writes are refused.

Drivers are numbered records; the newest holds the lease. On one host a holder is alive while its
process is; across hosts, while its heartbeat file is fresh.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import psutil

from orchestrator.errors import StudyBusy
from orchestrator.store.attempts import Driver
from orchestrator.store.driver import Store
from orchestrator.store.records import now_iso

HEARTBEAT_S = 5.0
STALE_AFTER_S = 60.0


class Lease:
    """The right to write a study's records, while no newer driver has taken it over."""

    def __init__(self, store: Store, study: str, epoch: int, holder: Driver) -> None:
        self._store, self._prefix, self.epoch = store, f"studies/{study}/lease", epoch
        self.holder = holder
        """Who holds it; written into every attempt, so that other studies' drivers see it."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease-heartbeat", daemon=True)

    @property
    def is_current(self) -> bool:
        """False once another driver has taken over."""
        last = self._store.last_numbered(self._prefix)
        return last is not None and last[0] == self.epoch

    def check(self) -> None:
        """Raise `StudyBusy` if another driver has taken over: nothing more may be written."""
        if not self.is_current:
            raise StudyBusy("another driver has taken this study over; this one stops")

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                _touch(self._store.path(f"{self._prefix}/{self.epoch:06d}.heartbeat"))

    def __enter__(self) -> Lease:
        _touch(self._store.path(f"{self._prefix}/{self.epoch:06d}.heartbeat"))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._store.create_json(f"{self._prefix}/{self.epoch:06d}.released", {"at": now_iso()})


def acquire(store: Store, study: str) -> Lease:
    """Take the lease of a study; raises `StudyBusy` while its holder is alive."""
    prefix = f"studies/{study}/lease"
    last = store.last_numbered(prefix)
    if last is not None:
        number, holder = last[0], Driver.from_json(last[1])
        if store.read(f"{prefix}/{number:06d}.released") is None and is_alive(store, holder):
            raise StudyBusy(
                f"study {study!r} is being run by process {holder.pid} on {holder.host} "
                f"since {holder.since}; wait for it or stop it (Ctrl-C there)"
            )
    epoch = (last[0] if last else 0) + 1
    process = psutil.Process()
    holder = Driver(
        host=socket.gethostname(),
        pid=process.pid,
        process_started=process.create_time(),
        since=now_iso(),
        heartbeat=f"{prefix}/{epoch:06d}.heartbeat",
    )
    if not store.create_json(f"{prefix}/{epoch:06d}.json", asdict(holder)):
        raise StudyBusy(f"study {study!r} was just taken by another driver")
    return Lease(store, study, epoch, holder)


@contextlib.contextmanager
def hold(store: Store, study: str) -> Iterator[Lease]:
    """Acquire, keep alive, release."""
    with acquire(store, study) as lease:
        yield lease


def is_alive(store: Store, driver: Driver) -> bool:
    """Say whether a driver still runs."""
    if driver.host == socket.gethostname():
        try:
            started = psutil.Process(driver.pid).create_time()
        except psutil.Error:
            return False
        # A process number is reused; its start time is not.
        return abs(float(started) - driver.process_started) < 1.0
    try:
        heartbeat = store.path(driver.heartbeat)
        return time.time() - heartbeat.stat().st_mtime < STALE_AFTER_S
    except OSError:
        return False


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
