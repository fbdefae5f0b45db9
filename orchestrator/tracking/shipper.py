"""The shipper's process: does what the driver asks for, through whatever outage of the server.

What is to be done is kept until it is done; a server that does not answer is asked again every
few seconds. After any failure all runs are looked up anew: a request that timed out may have been
applied, and a run that is there is never made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from orchestrator.errors import StoreError
from orchestrator.store.journal import Entry, StageReader
from orchestrator.tracking.mlflow_runs import Point, RunInfo, Table, Target, Tracker
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


@dataclass(frozen=True, kw_only=True)
class Item:
    """All that is to be said of one run; a newer one replaces it."""

    action: str
    """follow, failed, done, result, note or study: a method of `_ShipLoop`."""
    info: RunInfo
    attempts: tuple[Path, ...] = ()
    """Directories of the attempts whose journals make its curves, oldest first."""
    tags: dict[str, Any] = field(default_factory=dict)
    entry: Entry | None = None
    """Results."""
    attempt: int = 0
    """The attempt that the results are of."""
    ended_ms: int = 0
    """When the run ended, Unix milliseconds; 0: now."""
    report: Path | None = None
    tables: dict[str, Table] = field(default_factory=dict)
    view: str = ""
    """Content of the experiment's saved view; empty: leave it."""

    def after(self, older: Item | None) -> Item:
        """This item, with what only an older one of the same run says: nothing said is lost."""
        if older is None:
            return self
        latest = older if self.action == "note" else self
        return replace(latest, tags=older.tags | self.tags)


@dataclass(frozen=True)
class End:
    """Ship what is left and answer; without progress for so long, give it up."""

    patience_s: float = PATIENCE_S


def ship(target: Target, work: Any, answer: Connection, progress: Any, driver: int) -> None:
    """Body of the process: do what comes through `work`, then answer what is missing.

    Args:
        progress: counted up with every request that succeeded.
        driver: process id; without it the shipper ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver says when to end
    threading.Thread(target=_end_with, args=(driver,), daemon=True).start()
    with contextlib.suppress(OSError):
        os.nice(10)

    def count() -> None:
        progress.value += 1

    try:
        problem = _ShipLoop(target, work, count).run()
    except Exception as error:  # the store has it all; the driver says what is missing
        problem = _one_line(error)
    answer.send(problem)


def _end_with(driver: int) -> None:
    """End this process, whatever it waits for, once the driver is gone."""
    while os.getppid() == driver:
        time.sleep(1.0)
    os._exit(1)


class _Marks:
    """What the store remembers of finished stages that have arrived, so that none is sent again.

    A mark names the run; in a database that was made anew runs have other ids.
    """

    def __init__(self, target: Target) -> None:
        self._store = target.store
        digest = hashlib.sha256(json.dumps([target.uri, target.study]).encode()).hexdigest()[:16]
        self._prefix = f"tracking/shipped/{digest}"
        self._names = set(self._store.list(self._prefix))

    def has(self, run_id: str, attempt: int) -> bool:
        """True if that attempt's curves and results are in that run."""
        return self._name(run_id, attempt) in self._names

    def add(self, run_id: str, attempt: int, identity: str) -> None:
        """Remember."""
        name = self._name(run_id, attempt)
        content = {"run_id": run_id, "attempt": attempt, "identity": identity}
        with contextlib.suppress(StoreError):  # without it the stage is sent again, no more
            self._store.create_json(f"{self._prefix}/{name}", content)
            self._names.add(name)

    @staticmethod
    def _name(run_id: str, attempt: int) -> str:
        return f"{run_id}-{attempt:06d}.json"


class _Curves:
    """The journals of one run: what was read and has not arrived waits in `unsent`."""

    def __init__(self, item: Item, run_id: str, arrived: set[tuple[str, int]]) -> None:
        self.item, self.run_id = item, run_id
        self.reader = StageReader()
        self.unsent: deque[Point] = deque()
        self._arrived = arrived
        """What the server had before: of a key at a step, the record that it has stands."""

    def read(self) -> None:
        """Take what is new in the journals."""
        with self.reader.reading() as entries:
            fresh = [p for entry in entries for p in _points(entry)]
        self.unsent.extend(p for p in fresh if (p.key, p.step) not in self._arrived)


class _ShipLoop:
    """Takes items, does them in order of arrival, and follows journals in between."""

    def __init__(self, target: Target, work: Any, count: Callable[[], None]) -> None:
        self._target, self._work, self._count = target, work, count
        self._marks = _Marks(target)
        self._tracker: Tracker | None = None
        self._has_answered = False
        self._failed_once = False
        self._outage = ""
        """Why the server could not be used when it was last asked; empty if it could."""
        self._probe_at = 0.0
        self._todo: dict[str, Item] = {}
        """By identity of the run."""
        self._curves: dict[str, _Curves] = {}
        self._errors: dict[str, str] = {}
        self._retry_at: dict[str, float] = {}
        self._delivered = 0
        """Points of curves."""

    def run(self) -> str | None:
        """Work until told to end; return what is missing then."""
        while (end := self._take()) is None:
            self._step()
        return self._finish(end.patience_s)

    def _take(self) -> End | None:
        """Wait a moment for items and take those there are; return the last word, once it came."""
        with contextlib.suppress(queue.Empty):
            item = self._work.get(timeout=SHIP_EVERY_S)
            while not isinstance(item, End):
                identity = item.info.identity
                self._todo[identity] = item  # in its old place: parents stay before children
                self._retry_at.pop(identity, None)
                item = self._work.get_nowait()
            return item
        return None

    def _step(self) -> None:
        """Do what can be done now; an outage ends it early."""
        for identity, item in list(self._todo.items()):
            if (tracker := self._connect()) is None:
                return
            do = getattr(self, f"_do_{item.action}")
            if self._is_due(identity) and self._attempt(identity, partial(do, tracker, item)):
                del self._todo[identity]
        for identity in self._curves.keys() - self._todo.keys():
            if (tracker := self._connect()) is None:
                return
            curves = self._curves.get(identity)
            if curves is not None and self._is_due(identity):
                self._attempt(identity, partial(self._ship, tracker, curves))
        self._connect()

    def _is_due(self, identity: str) -> bool:
        return time.monotonic() >= self._retry_at.get(identity, 0.0)

    def _connect(self) -> Tracker | None:
        """The tracker, opened if need be; None while the server cannot be used."""
        if self._tracker is None and time.monotonic() >= self._probe_at:
            try:
                self._tracker = Tracker(self._target, self._count)
            except Exception as error:  # an outage must not end the loop
                self._outage, self._failed_once = _one_line(error), True
                self._probe_at = time.monotonic() + PROBE_EVERY_S
            else:
                self._outage, self._has_answered = "", True
                self._forget_lost_runs(self._tracker)
        return self._tracker

    def _forget_lost_runs(self, tracker: Tracker) -> None:
        """Begin anew with runs that are gone: deleted by somebody, or with their database."""
        for identity, curves in list(self._curves.items()):
            if not tracker.has(identity, curves.run_id):
                del self._curves[identity]
                self._todo.setdefault(identity, curves.item)

    def _attempt(self, identity: str, action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:  # one run must not end the loop
            self._errors[identity] = _one_line(error)
            self._retry_at[identity] = time.monotonic() + RETRY_EVERY_S
            if not isinstance(error, OSError | StoreError):  # those are of the store, not MLflow
                # The request may have been applied: what is there has to be looked up.
                self._tracker, self._probe_at, self._failed_once = None, 0.0, True
            return False
        self._errors.pop(identity, None)
        self._retry_at.pop(identity, None)
        return True

    def _finish(self, patience_s: float) -> str | None:
        """Ship what is left, as long as there is hope; return what is missing."""
        since, passes = time.monotonic(), 0
        while True:
            self._retry_at.clear()
            left, delivered = len(self._todo), self._delivered
            self._step()
            if len(self._todo) < left or self._delivered > delivered:
                since, passes = time.monotonic(), 0
            passes += self._tracker is not None
            is_done = not self._outage and not self._errors and not self._todo
            patience = patience_s if self._has_answered else min(patience_s, UNSEEN_PATIENCE_S)
            if is_done or passes >= LAST_PASSES or time.monotonic() - since >= patience:
                break
            time.sleep(min(1.0, PROBE_EVERY_S))
        if is_done and self._failed_once:
            # What was sent before a failure may have been applied long after it.
            self._attempt("study", self._remove_doubles)
        return self._problem()

    def _remove_doubles(self) -> None:
        if self._tracker is not None:
            self._tracker.remove_doubles()

    def _problem(self) -> str | None:
        uri = without_credentials(self._target.uri)
        if self._outage:
            return f"{uri} could not be used: {self._outage}"
        if not self._errors:
            return None
        identity, error = next(iter(self._errors.items()))
        more = f"; so do {len(self._errors) - 1} more runs" if len(self._errors) > 1 else ""
        return f"{identity} lacks something: {error}{more}"

    def _do_follow(self, tracker: Tracker, item: Item) -> None:
        run_id = self._follow(tracker, item).run_id
        tracker.resume(run_id)
        tracker.tags(run_id, item.tags)

    def _do_failed(self, tracker: Tracker, item: Item) -> None:
        curves = self._follow(tracker, item)
        self._ship(tracker, curves)
        tracker.tags(curves.run_id, item.tags)
        tracker.finish(curves.run_id, "FAILED", item.ended_ms)

    def _do_done(self, tracker: Tracker, item: Item) -> None:
        run_id = tracker.run(item.info)
        if not self._marks.has(run_id, item.attempt):
            curves = self._follow(tracker, item)
            self._ship(tracker, curves)
            points = _points(item.entry)
            drawn = curves.reader.keys
            tracker.metrics(run_id, deque(p for p in points if p.key not in drawn))
            tracker.tags(run_id, item.tags)
            tracker.finish(run_id, ended_ms=item.ended_ms)
            self._marks.add(run_id, item.attempt, item.info.identity)
        else:
            tracker.tags(run_id, item.tags)  # a decision may have come after the results
        self._curves.pop(item.info.identity, None)

    def _do_result(self, tracker: Tracker, item: Item) -> None:
        run_id = tracker.run(item.info)
        tracker.metrics(run_id, deque(_points(item.entry)))
        tracker.tags(run_id, item.tags)
        tracker.finish(run_id, ended_ms=item.ended_ms)

    def _do_note(self, tracker: Tracker, item: Item) -> None:
        tracker.tags(tracker.run(item.info), item.tags)

    def _do_study(self, tracker: Tracker, item: Item) -> None:
        run_id = tracker.run(item.info)
        tracker.metrics(run_id, deque(_points(item.entry)))
        tracker.tables(run_id, item.tables)
        tracker.save_view(item.view)
        tracker.tags(run_id, item.tags)
        if item.report is not None:
            tracker.artifacts(run_id, item.report, "report")
        tracker.finish(run_id, ended_ms=item.ended_ms)

    def _follow(self, tracker: Tracker, item: Item) -> _Curves:
        identity, run_id = item.info.identity, tracker.run(item.info)
        curves = self._curves.get(identity)
        if curves is None or curves.run_id != run_id:
            curves = _Curves(item, run_id, tracker.arrived(run_id))
            self._curves[identity] = curves
        curves.item = item
        curves.reader.follow(item.attempts)
        return curves

    def _ship(self, tracker: Tracker, curves: _Curves) -> None:
        curves.read()
        waiting = len(curves.unsent)
        try:
            tracker.metrics(curves.run_id, curves.unsent)
        finally:
            self._delivered += waiting - len(curves.unsent)


def _points(entry: Entry | None) -> list[Point]:
    if entry is None:
        return []
    return [Point(k, float(v), entry.timestamp_ms, entry.step) for k, v in entry.metrics.items()]


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
