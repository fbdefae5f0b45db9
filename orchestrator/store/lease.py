"""One driver per study: a lease with a fencing epoch, so that a stale driver's writes are refused.

Drivers are numbered records; the newest holds the lease. A holder is alive while its process is,
if that can be seen from here: same boot, same PID namespace. Elsewhere (another machine, another
container) nobody can say of a process that it is gone; there its heartbeat file decides.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType

from cluster.process_identity import ProcessIdentity
from orchestrator.errors import StoreError, StudyBusy
from orchestrator.store.attempts import Driver
from orchestrator.store.driver import Store, numbered_key
from orchestrator.store.records import now_iso


@dataclass(frozen=True, kw_only=True)
class LeaseTimes:
    """When a driver shows that it lives, and when another takes it for gone."""

    heartbeat_s: float = 5.0
    """Between two heartbeats; at each the holder also looks whether it was taken over."""
    stale_after_s: float = 60.0
    """Age of the heartbeat at which a driver that cannot be seen from here counts as gone."""


TIMES = LeaseTimes()
WAKE = signal.SIGURG
"""Interrupts the main thread; without a handler it does nothing."""


class Lease:
    """The right to write a study's records, while no newer driver has taken it over.

    Once a heartbeat finds that one has, the main thread is interrupted: `hold` says why.
    """

    def __init__(self, store: Store, study: str, holder: Driver, times: LeaseTimes) -> None:
        self._store, self._study, self._prefix = store, study, lease_prefix(study)
        self._times = times
        self.holder = holder
        """Who holds it; written into every attempt, so that other studies' drivers see it."""
        self._successor: Driver | None = None
        self._looked_at = time.monotonic()
        self._interrupts = threading.current_thread() is threading.main_thread()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease-heartbeat", daemon=True)

    @property
    def epoch(self) -> int:
        """Its number; a later one outranks it."""
        return self.holder.epoch

    @property
    def over_if(self) -> Path:
        """Record of the driver that takes over, for processes that cannot ask this one."""
        return self._store.path(numbered_key(self._prefix, self.epoch + 1))

    def check(self) -> None:
        """Look whether another driver has taken over; raises `StudyBusy` then: write no more."""
        self._find_successor()
        self.assert_held()

    def assert_held(self) -> None:
        """`check` by what the last heartbeat saw; cheap, unless that was long ago.

        A frozen process wakes with all its threads at once: this one may be the first.
        """
        if time.monotonic() - self._looked_at > 2 * self._times.heartbeat_s:
            self._find_successor()
        if (by := self._successor) is not None:
            raise StudyBusy(
                f"study {self._study!r} was taken over by process {by.pid} on {by.host} at "
                f"{by.since}, since nothing was heard of this one; this one stops: its ranks are "
                "ended and nothing more is written"
            )

    def _find_successor(self) -> Driver | None:
        self._looked_at = time.monotonic()
        newest = max(_epochs(self._store.list(self._prefix)), default=self.epoch)
        if newest > self.epoch:
            self._successor = _holder(self._store, self._prefix, newest)
        return self._successor

    def _beat(self) -> None:
        """Look first, then show a sign of life: a driver that was frozen must not show one."""
        while not self._stop.wait(self._times.heartbeat_s):
            with contextlib.suppress(OSError, StoreError):
                if self._find_successor() is not None:
                    if self._interrupts:
                        signal.pthread_kill(threading.main_thread().ident or 0, WAKE)
                    return
                _touch(self._store.path(self.holder.heartbeat))

    def __enter__(self) -> Lease:
        if self._interrupts:
            self._previous = signal.signal(WAKE, _interrupt)
        _touch(self._store.path(self.holder.heartbeat))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._interrupts:
            signal.signal(WAKE, self._previous)
        self._store.create_json(f"{self._prefix}/{_released(self.epoch)}", {"at": now_iso()})


def lease_prefix(study: str) -> str:
    """Where the records of a study's drivers are."""
    return f"studies/{study}/lease"


def acquire(store: Store, study: str, times: LeaseTimes = TIMES) -> Lease:
    """Take the lease of a study; raises `StudyBusy` while its holder is alive.

    A heartbeat that looks old is watched first, as long as two take: the clocks of two machines
    may differ by more than its age, and then it only looks old.
    """
    prefix = lease_prefix(study)
    last = max(_epochs(store.list(prefix)), default=0)
    if last:
        holder = _holder(store, prefix, last)
        is_seen = holder.is_running is not None
        if is_alive(store, holder, times) or (not is_seen and _beats(store, holder, times)):
            raise StudyBusy(_busy(study, holder, times, is_seen=is_seen))
    holder = Driver(
        **asdict(ProcessIdentity.of_this_process()),
        host=socket.gethostname(),
        since=now_iso(),
        epoch=last + 1,
        heartbeat=_heartbeat(prefix, last + 1),
    )
    if not store.create_json(numbered_key(prefix, last + 1), asdict(holder)):
        raise StudyBusy(f"study {study!r} was just taken by another driver")
    return Lease(store, study, holder, times)


@contextlib.contextmanager
def hold(store: Store, study: str, times: LeaseTimes = TIMES) -> Iterator[Lease]:
    """Acquire, keep alive, release; raises `StudyBusy` too when another driver takes over."""
    with acquire(store, study, times) as lease:
        try:
            yield lease
        except KeyboardInterrupt:
            lease.assert_held()
            raise


def is_alive(store: Store, driver: Driver, times: LeaseTimes = TIMES) -> bool:
    """Say whether a driver runs and holds its lease, as far as one look can tell."""
    if driver.epoch:
        prefix = driver.heartbeat.rpartition("/")[0]
        names = store.list(prefix)
        if _released(driver.epoch) in names or max(_epochs(names), default=0) > driver.epoch:
            return False
    running = driver.is_running
    if running is not None:
        return running
    beat = _beat_at(store, driver)
    # A beat of the future is of another clock: its age is not known.
    return beat is not None and abs(_now_there(store, driver) - beat) < times.stale_after_s


def _beats(store: Store, driver: Driver, times: LeaseTimes) -> bool:
    """Watch a heartbeat as long as two take; True as soon as there is one."""
    before, began = _beat_at(store, driver), time.monotonic()
    while time.monotonic() - began < 2 * times.heartbeat_s:
        time.sleep(times.heartbeat_s / 10)
        if _beat_at(store, driver) != before:
            return True
    return False


def _beat_at(store: Store, driver: Driver) -> float | None:
    """When the heartbeat file was last touched, by the file server's clock."""
    if not driver.heartbeat:
        return None
    with contextlib.suppress(OSError), store.path(driver.heartbeat).open("rb") as stream:
        return os.fstat(stream.fileno()).st_mtime  # opened: NFS asks its server only then
    return None


def _now_there(store: Store, driver: Driver) -> float:
    """The time by the clock that dates heartbeats: that of a file written beside them now."""
    folder = store.path(driver.heartbeat).parent
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as stream:
        stream.write(b".")
        stream.flush()
        return os.fstat(stream.fileno()).st_mtime
    return time.time()


def _busy(study: str, holder: Driver, times: LeaseTimes, *, is_seen: bool) -> str:
    text = (
        f"study {study!r} is being run by process {holder.pid} on {holder.host} since "
        f"{holder.since}; wait for it or stop it (Ctrl-C there)"
    )
    if is_seen:
        return text
    return (
        f"{text}. It is in another container or on another machine: if it is gone, this command "
        f"takes over {times.stale_after_s:g} s after its last heartbeat"
    )


def _holder(store: Store, prefix: str, epoch: int) -> Driver:
    """Who took the lease with that epoch; of a damaged record only the heartbeat is known."""
    try:
        plain = store.read_json(numbered_key(prefix, epoch))
        holder = None if plain is None else Driver.from_json(plain, f"lease {epoch} in {prefix}")
    except StoreError:
        holder = None
    holder = holder or Driver(host="a machine unknown (its record is damaged)")
    return replace(holder, epoch=epoch, heartbeat=_heartbeat(prefix, epoch))


def _epochs(names: list[str]) -> list[int]:
    """Epochs of the names in a lease's folder; a damaged record may have been set apart."""
    parts = (name.partition(".") for name in names)
    return [int(s) for s, _, kind in parts if kind in ("json", "heartbeat") and s.isdecimal()]


def _heartbeat(prefix: str, epoch: int) -> str:
    return f"{prefix}/{epoch:06d}.heartbeat"


def _released(epoch: int) -> str:
    return f"{epoch:06d}.released"


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Like Ctrl-C, which nothing takes for an error of its own; `hold` says what it was."""
    raise KeyboardInterrupt


def _touch(path: Path) -> None:
    """Show a sign of life by a new file: a folder that changes is not read from NFS's cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".beating")
    try:
        aside.touch()
        aside.replace(path)
    except OSError:  # a full disk has no room for a new file
        path.touch()
