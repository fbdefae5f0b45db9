"""The one file that knows MLflow: what the store holds, shipped so that people can compare it.

One experiment per study, one study run, and beneath it one run per cell (results of all its
evaluations) and one per stage (training curves, attempts), told apart by the tag `level`. Ranks
write journals and never talk to MLflow; the driver's shipper process replays them with their own
timestamps, which makes shipping twice the same as shipping once.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import hashlib
import json
import os
import queue
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from orchestrator.errors import StoreError, TrackingError
from orchestrator.journal import Entry, StageReader
from orchestrator.store import Store

BATCH = 1000
"""Metrics in one request; the server's limit."""
SHIP_EVERY_S = 1.0
RETRY_EVERY_S = 10.0
REQUEST_TIMEOUT_S = 10
DATABASES = ("sqlite", "postgresql", "mysql")


def default_uri(store: Store) -> str:
    """SQLite inside the store: one machine, no server."""
    return f"sqlite:///{store.path('tracking/mlflow.db')}"


def database_exists(store: Store) -> bool:
    """True once a study was tracked into the store."""
    return store.path("tracking/mlflow.db").exists()


def artifact_root(store: Store) -> Path:
    """Where runs of the default tracking keep their artifacts."""
    return store.path("tracking/artifacts")


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What identifies a run and is copied onto it, as params and as numeric x-axes."""

    name: str
    level: str
    """study, cell or stage."""
    identity: str
    """Unique within the experiment: the run is found again by it."""
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    upstream: str | None = None
    """Identity of the run whose output this one reads."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a study is tracked; all that the shipper needs to open it."""

    uri: str
    study: str
    question: str
    artifacts: Path | None
    """Artifact root for a database that has no server of its own."""
    store: Store
    """Where the shipper remembers what has arrived."""


class Tracker:
    """Writes runs of one study; every call is idempotent."""

    def __init__(self, target: Target, progress: Callable[[], None] = lambda: None) -> None:
        self._study, self._progress = target.study, progress
        self._client = _quiet_client(target.uri)
        self._experiment = self._get_experiment(target.artifacts)
        self._runs = self._find_runs()
        tags = {"study": target.study, "mlflow.note.content": target.question}
        self.study_run = self.run(
            RunInfo(name=target.study, level="study", identity="study", tags=tags)
        )

    def _get_experiment(self, artifacts: Path | None) -> str:
        name = experiment_name(self._study)
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        location = None if artifacts is None else artifacts.as_uri()
        return str(self._client.create_experiment(name, artifact_location=location))

    def _find_runs(self) -> dict[str, str]:
        """Run ids by identity: what an earlier driver has made is found, not made again."""
        found: dict[str, str] = {}
        token: str | None = None
        while True:
            page = self._client.search_runs([self._experiment], max_results=1000, page_token=token)
            for run in page:
                if "identity" in run.data.tags:
                    found[run.data.tags["identity"]] = run.info.run_id
            self._progress()
            token = page.token
            if not token:
                return found

    def run(self, info: RunInfo) -> str:
        """Return the id of a run, made with its tags, params and x-axes if it is new."""
        if info.identity in self._runs:
            return self._runs[info.identity]
        from mlflow.entities import Metric, Param

        tags = {"level": info.level, "identity": info.identity, **info.tags}
        tags |= {"mlflow.runName": info.name, "user": _user(), "mlflow.user": _user()}
        if info.level != "study":
            tags["mlflow.parentRunId"] = self.study_run
        if info.upstream in self._runs:
            tags["upstream_run_id"] = self._runs[info.upstream]
        run_id = str(self._client.create_run(self._experiment, tags=tags).info.run_id)
        params = {k: v for k, v in info.params.items() if v is not None}
        numeric = {k: v for k, v in params.items() if isinstance(v, int | float)}
        self._client.log_batch(
            run_id,
            metrics=[Metric(k, float(v), 0, 0) for k, v in numeric.items()],
            params=[Param(k, str(v)) for k, v in params.items()][:100],
        )
        self._runs[info.identity] = run_id
        self._progress()
        return run_id

    def metrics(self, run_id: str, entries: list[Entry]) -> None:
        """Replay journal entries."""
        from mlflow.entities import Metric

        metrics = [
            Metric(key, float(value), e.timestamp_ms, e.step)
            for e in entries
            for key, value in e.metrics.items()
        ]
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + BATCH])
            self._progress()

    def tags(self, run_id: str, tags: dict[str, Any]) -> None:
        """Set what may vary: attempts, causes."""
        from mlflow.entities import RunTag

        self._client.log_batch(run_id, tags=[RunTag(k, str(v)) for k, v in tags.items()])
        self._progress()

    def resume(self, run_id: str) -> None:
        """Set a run's status to running; it may have failed before."""
        self._client.update_run(run_id, "RUNNING")
        self._progress()

    def finish(self, run_id: str, status: str = "FINISHED") -> None:
        """Set a run's status explicitly; left alone it would stay RUNNING for ever."""
        self._client.set_terminated(run_id, status)
        self._progress()

    def artifacts(self, run_id: str, directory: Path, name: str) -> None:
        """Attach a directory to a run."""
        self._client.log_artifacts(run_id, str(directory), name)
        self._progress()


def _quiet_client(uri: str) -> Any:
    """MLflow's client, with requests that end and without a word on the user's terminal."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_TIMEOUT_S))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    import logging

    from mlflow.tracking import MlflowClient

    # After the import, which sets levels and handlers. What fails is raised, and said by us.
    for name in ("mlflow", "alembic", "sqlalchemy", "urllib3"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [logging.NullHandler()], False
        logger.setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri)


def experiment_name(study: str) -> str:
    """Name of a study's experiment."""
    return f"mae-study/{study}"


def _sqlite_path(uri: str) -> Path | None:
    """File of a SQLite database, None for anything else."""
    parsed = urlparse(uri)
    name = parsed.path[1:]
    is_file = parsed.scheme.split("+")[0] == "sqlite" and name not in ("", ":memory:")
    return Path(name).absolute() if is_file else None


def database_stamp(uri: str, study: str) -> str:
    """What tells a study's experiment in a SQLite file from one made anew; empty if unknown.

    Read without MLflow, whose import takes seconds.
    """
    path = _sqlite_path(uri)
    if path is None:
        return ""
    query = "SELECT experiment_id, creation_time FROM experiments WHERE name = ?"
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            row = database.execute(query, (experiment_name(study),)).fetchone()
    except sqlite3.Error:
        return ""
    return "" if row is None else f"{row[0]}-{row[1]}"


@contextlib.contextmanager
def _opening(uri: str) -> Iterator[None]:
    """One process at a time makes or migrates a SQLite file: two at once break it."""
    path = _sqlite_path(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("a") as stream:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield  # closing the file unlocks it


def check_uri(uri: str) -> None:
    """Refuse a server that does not answer, quickly, before anything is started."""
    scheme = urlparse(uri).scheme.split("+")[0]  # postgresql+psycopg2 names a driver too
    if scheme not in ("http", "https"):
        if scheme in (*DATABASES, "databricks"):
            return
        raise TrackingError(
            f"tracking URI {uri!r}: use http://host:port of an MLflow server, or a database such "
            "as sqlite:////path/mlflow.db"
        )
    import requests

    try:
        requests.get(uri.rstrip("/") + "/health", timeout=REQUEST_TIMEOUT_S).raise_for_status()
    except requests.RequestException as error:
        raise TrackingError(
            f"no MLflow server answers at {uri} ({type(error).__name__}); start it, or leave out "
            "--tracking-uri to track into the store; nothing was run"
        ) from error


def ship(target: Target, work: Any, answer: Connection, progress: Any, driver: int) -> None:
    """Body of the shipper's process: do what comes through `work`, then answer what is missing.

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
        with _opening(target.uri):
            tracker = Tracker(target, count)
        problem = _ShipLoop(tracker, work, _Marks(target)).run()
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


class _ShipLoop:
    """Does what the driver asks for; what fails is tried again until something newer replaces it.

    Every item says all about its run, so that the newest one of a run suffices.
    """

    def __init__(self, tracker: Tracker, work: Any, marks: _Marks) -> None:
        self._tracker, self._work, self._marks = tracker, work, marks
        self._journals: dict[str, tuple[str, StageReader]] = {}
        """Run id and reader, by identity."""
        self._pending: dict[str, tuple[Any, ...]] = {}
        """Items that failed, by identity."""
        self._errors: dict[str, str] = {}
        self._retry_at = 0.0

    def run(self) -> str | None:
        """Work until told to end; return what is missing then."""
        while True:
            try:
                item = self._work.get(timeout=SHIP_EVERY_S)
            except queue.Empty:
                self._ship_journals()
                if time.monotonic() >= self._retry_at:
                    self._retry()
                continue
            if item is None:
                break
            self._do(item)
        self._ship_journals()
        self._retry()
        return self._problem()

    def _do(self, item: tuple[Any, ...]) -> None:
        kind, identity, *arguments = item
        self._pending.pop(identity, None)
        if not self._attempt(identity, lambda: getattr(self, f"_do_{kind}")(*arguments)):
            self._pending[identity] = item

    def _attempt(self, identity: str, action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:  # an outage must not end the loop
            self._errors[identity] = _one_line(error)
            self._retry_at = time.monotonic() + RETRY_EVERY_S
            return False
        self._errors.pop(identity, None)
        return True

    def _retry(self) -> None:
        for item in list(self._pending.values()):
            self._do(item)

    def _ship_journals(self) -> None:
        for identity in self._journals.keys() - self._pending.keys():
            self._attempt(identity, lambda i=identity: self._ship_journal(i))  # type: ignore[misc]

    def _problem(self) -> str | None:
        if not self._errors:
            return None
        identity, error = next(iter(self._errors.items()))
        more = f"; so do {len(self._errors) - 1} more runs" if len(self._errors) > 1 else ""
        return f"{identity} lacks something: {error}{more}"

    def _do_follow(self, info: RunInfo, attempts: tuple[Path, ...], tags: dict[str, Any]) -> None:
        run_id = self._follow(info, attempts)
        self._tracker.resume(run_id)
        self._tracker.tags(run_id, tags)

    def _do_failed(self, info: RunInfo, attempts: tuple[Path, ...], tags: dict[str, Any]) -> None:
        run_id = self._follow(info, attempts)
        self._ship_journal(info.identity)
        self._tracker.tags(run_id, tags)
        self._tracker.finish(run_id, "FAILED")

    def _do_done(
        self,
        info: RunInfo,
        attempts: tuple[Path, ...],
        entry: Entry,
        attempt: int,
        tags: dict[str, Any],
    ) -> None:
        run_id = self._follow(info, attempts)
        if not self._marks.has(run_id, attempt):
            self._ship_journal(info.identity)
            curves = self._journals[info.identity][1].keys
            values = {k: v for k, v in entry.metrics.items() if k not in curves}
            self._finish(run_id, replace(entry, metrics=values), tags)
            self._marks.add(run_id, attempt, info.identity)
        del self._journals[info.identity]

    def _do_result(self, info: RunInfo, entry: Entry, tags: dict[str, Any]) -> None:
        self._finish(self._tracker.run(info), entry, tags)

    def _do_study(self, report: Path | None) -> None:
        if report is not None:
            self._tracker.artifacts(self._tracker.study_run, report, "report")
        self._tracker.finish(self._tracker.study_run)

    def _finish(self, run_id: str, entry: Entry, tags: dict[str, Any]) -> None:
        self._tracker.metrics(run_id, [entry])
        self._tracker.tags(run_id, tags)
        self._tracker.finish(run_id)

    def _follow(self, info: RunInfo, attempts: tuple[Path, ...]) -> str:
        run_id = self._tracker.run(info)
        _, reader = self._journals.setdefault(info.identity, (run_id, StageReader()))
        reader.follow(attempts)
        return run_id

    def _ship_journal(self, identity: str) -> None:
        run_id, reader = self._journals[identity]
        with reader.reading() as entries:
            self._tracker.metrics(run_id, entries)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
