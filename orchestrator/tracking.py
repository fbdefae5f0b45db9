"""The one file that knows MLflow: what the store holds, shipped so that people can compare it.

One experiment per study, one study run, and beneath it one run per cell (results of all its
evaluations) and one per stage (training curves, attempts), told apart by the tag `level`. Ranks
write journals and never talk to MLflow; the driver's shipper process replays them with their own
timestamps, which makes shipping twice the same as shipping once.
"""

from __future__ import annotations

import contextlib
import getpass
import multiprocessing
import os
import queue
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from orchestrator.errors import TrackingError
from orchestrator.journal import JOURNAL_FILE, Entry, JournalReader
from orchestrator.store import Store

BATCH = 1000
"""Metrics in one request; the server's limit."""
SHIP_EVERY_S = 1.0
REQUEST_TIMEOUT_S = 10


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


class Tracker:
    """Writes runs of one study; every call is idempotent."""

    def __init__(self, target: Target) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_TIMEOUT_S))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        import logging

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        from mlflow.tracking import MlflowClient

        self._study = target.study
        self._client = MlflowClient(tracking_uri=target.uri)
        self._experiment = self._get_experiment(target.artifacts)
        self._runs = self._find_runs()
        tags = {"study": target.study, "mlflow.note.content": target.question}
        self.study_run = self.run(
            RunInfo(name=target.study, level="study", identity="study", tags=tags)
        )

    def _get_experiment(self, artifacts: Path | None) -> str:
        name = f"mae-study/{self._study}"
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

    def tags(self, run_id: str, tags: dict[str, Any]) -> None:
        """Set what may vary: attempts, causes."""
        from mlflow.entities import RunTag

        self._client.log_batch(run_id, tags=[RunTag(k, str(v)) for k, v in tags.items()])

    def finish(self, run_id: str, status: str = "FINISHED") -> None:
        """Set a run's status explicitly; left alone it would stay RUNNING for ever."""
        self._client.set_terminated(run_id, status)

    def artifacts(self, run_id: str, directory: Path, name: str) -> None:
        """Attach a directory to a run."""
        self._client.log_artifacts(run_id, str(directory), name)


def check_uri(uri: str) -> None:
    """Refuse a server that does not answer, quickly, before anything is started."""
    parsed = urlparse(uri)
    if parsed.scheme not in ("http", "https"):
        if parsed.scheme in ("sqlite", "postgresql", "mysql", "databricks"):
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


class Shipper:
    """A process that follows journals and ships them; training and controller never wait for it.

    A process of its own, at low priority: MLflow's client costs seconds of import and tens of
    milliseconds of Python per call, which neither the controller nor a rank should pay.
    """

    def __init__(self, target: Target) -> None:
        check_uri(target.uri)
        context = multiprocessing.get_context("spawn")
        self._work: Any = context.Queue()
        self._answers: Any = context.Queue()
        arguments = (target, self._work, self._answers)
        self._process = context.Process(target=_ship, args=arguments, name="shipper", daemon=True)
        with _without_main_module():
            self._process.start()

    def follow(self, info: RunInfo, directory: Path, tags: dict[str, Any]) -> None:
        """Make the run of a stage and ship its journal from now on."""
        self._work.put(("follow", info, directory, tags))

    def result(
        self,
        info: RunInfo,
        metrics: dict[str, float],
        timestamp_ms: int,
        *,
        tags: dict[str, Any] | None = None,
        status: str | None = "FINISHED",
    ) -> None:
        """Make sure of a run and log final numbers onto it."""
        self._work.put(("result", info, Entry(0, timestamp_ms, 0, metrics), tags or {}, status))

    def finish_study(self, report: Path | None) -> None:
        """Attach the report to the study run and close it."""
        self._work.put(("study", report))

    def close(self, timeout_s: float = 120.0) -> str | None:
        """Ship what is left; return what went wrong, None if everything arrived."""
        self._work.put(None)
        try:
            problem: str | None = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            problem = f"shipping did not end within {timeout_s:g} s"
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
        return problem


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Keep a spawned process from running the caller's script again."""
    main = sys.modules["__main__"]
    saved = {name: getattr(main, name, None) for name in ("__file__", "__spec__")}
    try:
        main.__file__, main.__spec__ = None, None
        yield
    finally:
        for name, value in saved.items():
            setattr(main, name, value)


def _ship(target: Target, work: Any, answers: Any) -> None:
    """Body of the shipper's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver says when to end
    with contextlib.suppress(OSError):
        os.nice(10)
    try:
        problem = _ShipLoop(Tracker(target), work).run()
    except Exception as error:  # the store has it all; the driver says what is missing
        problem = _one_line(error)
    answers.put(problem)


class _ShipLoop:
    def __init__(self, tracker: Tracker, work: Any) -> None:
        self._tracker, self._work = tracker, work
        self._followed: dict[str, JournalReader] = {}
        self._error: str | None = None
        self._parent = os.getppid()

    def run(self) -> str | None:
        """Work until told to end, or until the driver is gone; return the last failure."""
        while os.getppid() == self._parent:
            try:
                item = self._work.get(timeout=SHIP_EVERY_S)
            except queue.Empty:
                item = ("journals",)
            if item is None:
                break
            try:
                getattr(self, f"_do_{item[0]}")(*item[1:])
            except Exception as error:  # an outage must not end the loop
                self._error = _one_line(error)
        return self._error

    def _do_journals(self) -> None:
        for run_id in list(self._followed):
            self._ship_journal(run_id)

    def _do_follow(self, info: RunInfo, directory: Path, tags: dict[str, Any]) -> None:
        run_id = self._tracker.run(info)
        self._followed[run_id] = JournalReader(directory / JOURNAL_FILE)
        self._tracker.tags(run_id, tags)

    def _do_result(
        self, info: RunInfo, entry: Entry, tags: dict[str, Any], status: str | None
    ) -> None:
        run_id = self._tracker.run(info)
        self._ship_journal(run_id)
        if entry.metrics:
            self._tracker.metrics(run_id, [entry])
        if tags:
            self._tracker.tags(run_id, tags)
        if status:
            self._followed.pop(run_id, None)
            self._tracker.finish(run_id, status)

    def _do_study(self, report: Path | None) -> None:
        if report is not None:
            self._tracker.artifacts(self._tracker.study_run, report, "report")
        self._tracker.finish(self._tracker.study_run)

    def _ship_journal(self, run_id: str) -> None:
        reader = self._followed.get(run_id)
        if reader is None:
            return
        with reader.transaction():
            entries = reader.read_new()
            if entries:
                self._tracker.metrics(run_id, entries)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
