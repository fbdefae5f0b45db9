"""The process that ships: does what the driver asks for, through whatever outage of the server.

What is to be done is kept until it is done; a server that does not answer is asked again every
few seconds. After any failure all runs are looked up again: a request that timed out may have been
applied, and a run that exists is never created twice.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from ctypes import c_uint64
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from pathlib import Path

from orchestrator.errors import StoreError, TrackingError
from orchestrator.store.journal import StageReader
from orchestrator.tracking.mlflow_database import Destination, ExperimentDeleted
from orchestrator.tracking.mlflow_runs import RunWriter
from orchestrator.tracking.run_values import Point, RunStatus, RunUpdate
from orchestrator.tracking.uri import without_credentials

SHIP_EVERY_S = 1.0
"""Between two looks at the journals."""
PROBE_EVERY_S = 2.0
"""Between two requests to a server that does not answer."""
RETRY_EVERY_S = 10.0
"""Between two attempts at a run that an answering server refuses."""
PATIENCE_S = 30.0
"""At the end, a server that has answered before is waited for this long without progress."""
UNSEEN_PATIENCE_S = 15.0
"""And one that has never answered, this long."""
LAST_PASSES = 3
"""At the end, how often an answering server is asked for what it refuses."""
SHIPPED_TAG = "shipped_attempt"
"""Set last on a finished stage's run: all of that attempt has arrived and is not sent again. Its
number, and when it ended: a store that was put back to a backup makes another attempt of it."""
RESEND = "; run the same command to send it"
"""What helps against all but a deleted experiment."""


@dataclass(frozen=True)
class End:
    """Ship what is left and answer; without progress for so long, give it up."""

    patience_s: float = PATIENCE_S


def ship(
    to: Destination,
    work: Queue[RunUpdate | End],
    answer: Connection,
    progress: c_uint64,
    driver: int,
) -> None:
    """Body of the process: do what comes through `work`, then answer what is missing.

    Args:
        progress: counted up with every request that succeeded.
        driver: process id; without it this process ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver says when to end
    threading.Thread(target=_end_with, args=(driver, to.over_if), daemon=True).start()
    with contextlib.suppress(OSError):
        os.nice(10)

    def count() -> None:
        progress.value += 1

    try:
        problem = _ShipLoop(to, work, count).run()
    except Exception as error:  # the store has it all; the driver says what is missing
        problem = _one_line(error)
    answer.send(problem)


def _end_with(driver: int, over_if: Path | None) -> None:
    """End this process, whatever it waits for, once the driver is gone or was taken over.

    A frozen driver cannot end it, and two would ship one stage.
    """
    while os.getppid() == driver and not (over_if and over_if.exists()):
        time.sleep(1.0)
    os._exit(1)


class _Curves:
    """The journals of one run: what was read and has not arrived waits in `unsent`."""

    def __init__(self, update: RunUpdate, run_id: str, arrived: set[tuple[str, int]]) -> None:
        self.update, self.run_id = update, run_id
        self.reader = StageReader()
        self.unsent: deque[Point] = deque()
        self._arrived = arrived
        """What the server had before: of a key at a step, the record that it has stands."""

    def read(self) -> None:
        """Take what is new in the journals."""
        with self.reader.reading() as entries:
            fresh = [
                Point(key, float(value), entry.timestamp_ms, entry.step)
                for entry in entries
                for key, value in entry.metrics.items()
            ]
        self.unsent.extend(p for p in fresh if (p.key, p.step) not in self._arrived)


class _ShipLoop:
    """Takes updates, does them in order of arrival, and follows journals in between."""

    def __init__(
        self, to: Destination, work: Queue[RunUpdate | End], count: Callable[[], None]
    ) -> None:
        self._to, self._work, self._count = to, work, count
        self._writer: RunWriter | None = None
        self._has_answered = False
        self._failed_once = False
        self._is_deleted = False
        """The study's experiment, by a person: no waiting brings it back."""
        self._outage = ""
        """Why the server could not be used when it was last asked; empty if it could."""
        self._probe_at = 0.0
        self._todo: dict[str, RunUpdate] = {}
        """By identity of the run."""
        self._curves: dict[str, _Curves] = {}
        self._errors: dict[str, str] = {}
        self._retry_at: dict[str, float] = {}
        self._delivered = 0
        """Points of curves."""

    def run(self) -> str | None:
        """Work until asked to end; return what is missing then."""
        while (end := self._take()) is None:
            self._step()
        return self._finish(end.patience_s)

    def _take(self) -> End | None:
        """Wait a moment for updates and take those there are; return the last word, if it came."""
        with contextlib.suppress(queue.Empty):
            update = self._work.get(timeout=SHIP_EVERY_S)
            while not isinstance(update, End):
                identity = update.info.identity
                self._todo[identity] = update
                self._retry_at.pop(identity, None)
                update = self._work.get_nowait()
            return update
        return None

    def _step(self) -> None:
        """Do what can be done now; an outage ends it early."""
        for identity, update in list(self._todo.items()):
            if (writer := self._connect()) is None:
                return
            deliver = partial(self._deliver, writer, update)
            if self._is_due(identity) and self._attempt(identity, deliver):
                del self._todo[identity]
        for identity in self._curves.keys() - self._todo.keys():
            if (writer := self._connect()) is None:
                return
            curves = self._curves.get(identity)
            if curves is not None and self._is_due(identity):
                self._attempt(identity, partial(self._ship, writer, curves))
        self._connect()

    def _is_due(self, identity: str) -> bool:
        return time.monotonic() >= self._retry_at.get(identity, 0.0)

    def _connect(self) -> RunWriter | None:
        """The writer, opened if need be; None while the server cannot be used."""
        if self._writer is None and time.monotonic() >= self._probe_at:
            try:
                self._writer = RunWriter(self._to, self._count)
            except Exception as error:  # an outage must not end the loop
                self._outage, self._failed_once = _one_line(error), True
                self._is_deleted = isinstance(error, ExperimentDeleted)
                self._probe_at = time.monotonic() + PROBE_EVERY_S
            else:
                self._outage, self._has_answered, self._is_deleted = "", True, False
                self._forget_lost_runs(self._writer)
        return self._writer

    def _forget_lost_runs(self, writer: RunWriter) -> None:
        """Start again with runs that are gone: deleted, or lost with their database."""
        for identity, curves in list(self._curves.items()):
            if not writer.has(identity, curves.run_id):
                del self._curves[identity]
                self._todo.setdefault(identity, curves.update)

    def _attempt(self, identity: str, action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:  # one run must not end the loop
            self._errors[identity] = _one_line(error)
            self._retry_at[identity] = time.monotonic() + RETRY_EVERY_S
            if not isinstance(error, OSError | StoreError):  # those are of the store, not MLflow
                # The request may have been applied: what is there has to be looked up.
                self._writer, self._probe_at, self._failed_once = None, 0.0, True
            return False
        self._errors.pop(identity, None)
        self._retry_at.pop(identity, None)
        return True

    def _finish(self, patience_s: float) -> str | None:
        """Ship what is left, as long as that makes progress; return what is missing."""
        since, passes = time.monotonic(), 0
        while True:
            self._retry_at.clear()
            left, delivered = len(self._todo), self._delivered
            self._step()
            if len(self._todo) < left or self._delivered > delivered:
                since, passes = time.monotonic(), 0
            passes += self._writer is not None
            is_done = not self._outage and not self._errors and not self._todo
            patience = patience_s if self._has_answered else min(patience_s, UNSEEN_PATIENCE_S)
            is_over = is_done or self._is_deleted or passes >= LAST_PASSES
            if is_over or time.monotonic() - since >= patience:
                break
            time.sleep(min(1.0, PROBE_EVERY_S))
        if is_done and self._failed_once and self._writer is not None:
            # What was sent before a failure may have been applied long after it.
            self._attempt("study", self._writer.remove_doubles)
        return self._problem()

    def _problem(self) -> str | None:
        uri = without_credentials(self._to.uri)
        if self._outage:
            advice = "" if self._is_deleted else RESEND
            return f"{uri} could not be used: {self._outage}{advice}"
        if not self._errors:
            return None
        identity, error = next(iter(self._errors.items()))
        more = f"; so do {len(self._errors) - 1} more runs" if len(self._errors) > 1 else ""
        return f"{identity} is incomplete: {error}{more}{RESEND}"

    def _deliver(self, writer: RunWriter, update: RunUpdate) -> None:
        """Say all that an update says; what is marked as shipped changes only its tags."""
        run_id, status = writer.run(update.info), update.status
        is_final = status is RunStatus.FINISHED and bool(update.attempts)
        mark = f"{update.attempt}@{update.ended_ms}"
        shipped = writer.tag(run_id, SHIPPED_TAG) or ""
        if status is not None and "@" in shipped and shipped != mark:
            # Of an attempt that the store does not have: it was put back to an older backup.
            writer.discard(update.info.identity)
            run_id, shipped = writer.run(update.info), ""
        is_shipped = is_final and shipped == mark
        if status is not None and not is_shipped:
            drawn = self._draw(writer, update, run_id) if update.attempts else set()
            writer.results(run_id, (p for p in update.results if p.key not in drawn))
            writer.tables(run_id, update.tables)
            if update.report is not None:
                writer.artifacts(run_id, update.report, "report")
            writer.set_status(run_id, status, update.ended_ms)
        # Also of what was shipped before: a decision may have come after the results.
        writer.tags(run_id, update.tags | ({SHIPPED_TAG: mark} if is_final else {}))
        if is_final:
            self._curves.pop(update.info.identity, None)

    def _draw(self, writer: RunWriter, update: RunUpdate, run_id: str) -> set[str]:
        """Follow the journals of a run, to their end if it ended; return the keys of its curves."""
        identity = update.info.identity
        curves = self._curves.get(identity)
        if curves is None or curves.run_id != run_id:
            curves = _Curves(update, run_id, writer.arrived(run_id))
            self._curves[identity] = curves
        curves.update = update
        curves.reader.follow(update.attempts)
        if update.status is not RunStatus.RUNNING:
            self._ship(writer, curves)
        return curves.reader.keys

    def _ship(self, writer: RunWriter, curves: _Curves) -> None:
        curves.read()
        waiting = len(curves.unsent)
        try:
            writer.metrics(curves.run_id, curves.unsent)
        finally:
            self._delivered += waiting - len(curves.unsent)


def _one_line(error: Exception) -> str:
    if isinstance(error, TrackingError):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
