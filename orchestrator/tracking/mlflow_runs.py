"""The file that knows MLflow's runs: what the store holds, shipped so that people can compare it.

One experiment per study, one study run, and beneath it one run per cell (results of all its
evaluations, one point of a curve) and one per stage (training curves, attempts, settings), told
apart by the tag `level`; data sets are inputs of runs, and encoders that a user names are models.
Ranks write journals and never talk to MLflow; the driver's shipper process replays them with their
own timestamps, which makes shipping twice the same as shipping once.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import shutil
import sqlite3
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.store.driver import Store
from orchestrator.store.records import Records
from orchestrator.tracking.saved_view import VIEW_TAG
from orchestrator.tracking.uri import sqlite_path

BATCH = 1000
"""Metrics in one request; the server's limit."""
PAGE = 200
"""Runs in one answer, so that a slow server stays within the time limit."""
REQUEST_TIMEOUT_S = 10
STUDY = "study"
"""Identity of the study run."""
PARAMS = 100
"""Params in one request; the server's limit."""
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": (
        "To compare: Views, 'cells of the grid' (or filter `tags.level = 'cell'` and sort by any "
        "column, which unfolds the study's run), select, Compare. "
        "One run per cell (`tags.level = 'cell'`): a point of a curve, with its axes as params and "
        "metrics and its final accuracies as `knn_top1`, `linear_probe_top1`, `finetune_top1` ...; "
        "what they mean is in the tags `protocol.*`. One run per stage (`tags.level = 'stage'`): "
        "curves of its training, all settings as params, its data set. The study run "
        "(`tags.level = 'study'`): report, results table, checks, laws, predictions."
    ),
}
"""What the page of an experiment says; the kind opens the runs, not traces of language models."""
TABLES_TAG = "mlflow.loggedArtifacts"
"""Where MLflow notes which artifacts are tables."""


def default_uri(store: Store) -> str:
    """SQLite inside the store: one machine, no server."""
    return f"sqlite:///{store.path('tracking/mlflow.db')}"


def database_exists(store: Store) -> bool:
    """True once a study was tracked into the store."""
    return store.path("tracking/mlflow.db").exists()


def artifact_root(store: Store) -> Path:
    """Where runs of the default tracking keep their artifacts."""
    return store.path("tracking/artifacts")


Table = tuple[Sequence[str], Sequence[Sequence[Any]]]
"""Names of columns, and rows of JSON values."""


class Point(NamedTuple):
    """One value of a curve."""

    key: str
    value: float
    timestamp_ms: int
    step: int


@dataclass(frozen=True, kw_only=True)
class DataUse:
    """A data set as the input of a run."""

    name: str
    digest: str
    source: str
    """Path or address, as the study names it."""
    context: str
    """`training` or `evaluation`."""
    profile: dict[str, Any]
    """Counts of the whole set, before a study cuts it; the whole fingerprint."""
    cut: dict[str, Any]
    """What this run saw of it: images by split, and the seeds of the cut."""


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
    settings: dict[str, Any] = field(default_factory=dict)
    """Further params, which are no axes."""
    data: DataUse | None = None
    upstream: str | None = None
    """Identity of the run whose output this one reads."""
    started_ms: int = 0
    """When it began, Unix milliseconds; 0: now."""


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
    started_ms: int = 0
    """When the study was first run; 0: now."""


class Tracker:
    """Writes runs of one study; every call is idempotent.

    After a request that failed nothing is known of what the server has: open a new one.
    """

    def __init__(self, target: Target, progress: Callable[[], None] = lambda: None) -> None:
        self._study, self._progress = target.study, progress
        self._origin = Records(target.store).store_id()
        with _opening(target.uri, target.artifacts):
            self._client = _quiet_client(target.uri)
            self._experiment = self._get_experiment(target.artifacts)
        self._progress()
        self._runs: dict[str, Any] = {}
        """MLflow's runs by identity: what an earlier driver has made is found, not made again."""
        self._tags: dict[str, dict[str, str]] = {}
        """What is set, by run id."""
        self._described: set[str] = set()
        self.remove_doubles()
        tags = {"study": target.study, "mlflow.note.content": target.question}
        self.study_run = self.run(
            RunInfo(name=target.study, level="study", identity=STUDY, tags=tags,
                    started_ms=target.started_ms)
        )  # fmt: skip

    def _get_experiment(self, artifacts: Path | None) -> str:
        name = experiment_name(self._study)
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        location = None if artifacts is None else artifacts.as_uri()
        return str(
            self._client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS)
        )

    def remove_doubles(self) -> None:
        """Look all runs up; of those made twice, keep the one that is in use.

        A request to make a run may time out and be applied all the same, even after the server
        was asked whether there is such a run. Runs of other stores are left alone.
        """
        found: dict[str, list[Any]] = {}
        for run in self._search():
            if run.data.tags.get("store") == self._origin and "identity" in run.data.tags:
                found.setdefault(run.data.tags["identity"], []).append(run)
        for identity, copies in found.items():
            used = self._runs.get(identity)
            copies.sort(key=lambda r: (
                used is None or r.info.run_id != used.info.run_id,
                -len(r.data.metrics), r.info.start_time, r.info.run_id,
            ))  # fmt: skip
            self._runs[identity] = copies[0]
            self._tags[copies[0].info.run_id] = dict(copies[0].data.tags)
            for double in copies[1:]:
                self._client.delete_run(double.info.run_id)
                self._progress()

    def _search(self) -> Iterator[Any]:
        token: str | None = None
        while True:
            page = self._client.search_runs([self._experiment], max_results=PAGE, page_token=token)
            self._progress()
            yield from page
            token = page.token
            if not token:
                return

    def has(self, identity: str, run_id: str) -> bool:
        """True if that run was there when this tracker was opened, or was made by it."""
        run = self._runs.get(identity)
        return run is not None and run.info.run_id == run_id

    def run(self, info: RunInfo) -> str:
        """Return the id of a run, made if it is new, with its tags, params and x-axes."""
        run = self._runs.get(info.identity)
        if run is None:
            tags = {"level": info.level, "identity": info.identity, "store": self._origin}
            tags |= info.tags
            tags |= {"mlflow.runName": info.name, "user": _user(), "mlflow.user": _user()}
            if info.level != "study":
                tags["mlflow.parentRunId"] = self.study_run
            if info.upstream in self._runs:
                tags["upstream_run_id"] = self._runs[info.upstream].info.run_id
            started = info.started_ms or None
            run = self._client.create_run(self._experiment, start_time=started, tags=tags)
            self._runs[info.identity] = run
            self._progress()
        if info.identity not in self._described:
            self._describe(run, info)
            self._described.add(info.identity)
        return str(run.info.run_id)

    def _describe(self, run: Any, info: RunInfo) -> None:
        """Add params, x-axes and data that a run lacks: who made it may have been cut short."""
        from mlflow.entities import Metric, Param

        params = {k: v for k, v in info.params.items() if v is not None}
        axes = {k: float(v) for k, v in params.items() if isinstance(v, int | float)}
        metrics = [Metric(k, v, 0, 0) for k, v in axes.items() if k not in run.data.metrics]
        known = run.data.params
        new = [Param(k, str(v)) for k, v in (info.settings | params).items() if k not in known]
        for first in range(0, max(len(new), len(metrics)), PARAMS):
            part = slice(first, first + PARAMS)
            self._client.log_batch(run.info.run_id, metrics=metrics[part], params=new[part])
            self._progress()
        inputs = getattr(run, "inputs", None)
        if info.data is not None and not (inputs and inputs.dataset_inputs):
            self._client.log_inputs(run.info.run_id, datasets=[_data_input(info.data)])
            self._progress()

    def arrived(self, run_id: str) -> set[tuple[str, int]]:
        """Keys and steps of which a run has a value."""
        run = next(r for r in self._runs.values() if r.info.run_id == run_id)
        found = set()
        for key in run.data.metrics:
            found |= {(key, m.step) for m in self._client.get_metric_history(run_id, key)}
            self._progress()
        return found

    def metrics(self, run_id: str, points: deque[Point]) -> None:
        """Send points, oldest first; each batch is taken off `points` once it has arrived."""
        from mlflow.entities import Metric

        while points:
            batch = [Metric(p.key, p.value, p.timestamp_ms, p.step) for p in islice(points, BATCH)]
            self._client.log_batch(run_id, metrics=batch)
            for _ in batch:
                points.popleft()
            self._progress()

    def tags(self, run_id: str, tags: dict[str, Any]) -> None:
        """Set what may vary: attempts, causes."""
        from mlflow.entities import RunTag

        known = self._tags.setdefault(run_id, {})
        new = {k: str(v) for k, v in tags.items() if known.get(k) != str(v)}
        if new:
            self._client.log_batch(run_id, tags=[RunTag(k, v) for k, v in new.items()])
            known.update(new)
            self._progress()

    def resume(self, run_id: str) -> None:
        """Set a run's status to running; it may have failed before."""
        self._client.update_run(run_id, "RUNNING")
        self._progress()

    def finish(self, run_id: str, status: str = "FINISHED", ended_ms: int = 0) -> None:
        """Set a run's status explicitly; left alone it would stay RUNNING for ever."""
        self._client.set_terminated(run_id, status, end_time=ended_ms or None)
        self._progress()

    def artifacts(self, run_id: str, directory: Path, name: str) -> None:
        """Attach a directory to a run."""
        self._client.log_artifacts(run_id, str(directory), name)
        self._progress()

    def tables(self, run_id: str, tables: dict[str, Table]) -> None:
        """Attach tables as `mlflow.log_table` does, each in place of an earlier one.

        `log_table` itself would add the rows to those that are there.
        """
        for name, (columns, rows) in tables.items():
            content = {"columns": list(columns), "data": [list(row) for row in rows]}
            self._client.log_dict(run_id, content, f"{name}.json")
            self._progress()
        if tables:
            listed = [{"path": f"{name}.json", "type": "table"} for name in sorted(tables)]
            self.tags(run_id, {TABLES_TAG: json.dumps(listed)})

    def save_view(self, content: str) -> None:
        """Set the experiment's saved view, unless `content` is empty."""
        if content:
            self._client.set_experiment_tag(self._experiment, VIEW_TAG, content)
            self._progress()


def _data_input(use: DataUse) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=use.name,
        digest=use.digest,
        source_type="local" if "://" not in use.source else use.source.partition("://")[0],
        source=json.dumps({"uri": use.source}),
        profile=json.dumps(use.profile),
    )
    tags = {"mlflow.data.context": use.context} | use.cut
    return DatasetInput(dataset, [InputTag(k, str(v)) for k, v in tags.items()])


def _quiet_client(uri: str) -> Any:
    """MLflow's client, with requests that end and without a word on the user's terminal."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_TIMEOUT_S))
    # The client would repeat whatever timed out, `create_run` too, and make a run twice.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    from mlflow.tracking import MlflowClient

    _silence()
    return MlflowClient(tracking_uri=uri)


def _silence() -> None:
    """Quiet MLflow's loggers, after the import that sets them up. What fails is raised."""
    import logging

    for name in ("mlflow", "alembic", "sqlalchemy", "urllib3"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [logging.NullHandler()], False
        logger.setLevel(logging.CRITICAL)


@contextlib.contextmanager
def opened_client(uri: str) -> Iterator[Any]:
    """A client of a database or server, quiet; a database is opened by one process at a time."""
    with _opening(uri):
        yield _quiet_client(uri)


def experiment_name(study: str) -> str:
    """Name of a study's experiment."""
    return f"mae-study/{study}"


def database_stamp(uri: str, study: str) -> str:
    """What tells a study's experiment in a SQLite file from one made anew; empty if unknown.

    Read without MLflow, whose import takes seconds.
    """
    path = sqlite_path(uri)
    if path is None:
        return ""
    query = "SELECT experiment_id, creation_time FROM experiments WHERE name = ?"
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            row = database.execute(query, (experiment_name(study),)).fetchone()
    except sqlite3.Error:
        return ""
    return "" if row is None else f"{row[0]}-{row[1]}"


def experiment_ids(store: Store) -> dict[str, str]:
    """Experiments of the store's own database by study, the newest first; read without MLflow."""
    path = sqlite_path(default_uri(store))
    assert path is not None
    query = "SELECT name, experiment_id FROM experiments WHERE name LIKE ? ORDER BY 2 DESC"
    prefix = experiment_name("")
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        rows = database.execute(query, (f"{prefix}%",)).fetchall()
    return {name.removeprefix(prefix): str(number) for name, number in rows}


@contextlib.contextmanager
def _opening(uri: str, artifacts: Path | None = None) -> Iterator[None]:
    """One process at a time opens a SQLite file, which is made first: two at once break it."""
    path = sqlite_path(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("a") as stream:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_EX)
        if not path.exists():
            _make_database(path, artifacts)
        yield  # closing the file unlocks it


def _make_database(path: Path, artifacts: Path | None) -> None:
    """Make a database aside, and give it its name when it is whole.

    Dozens of migrations take seconds; a process killed between two of them would leave a file
    that nobody can open again.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    prefix = f".{path.name}-new-"
    for unfinished in path.parent.glob(f"{prefix}*"):  # of a process that was killed
        shutil.rmtree(unfinished, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        _silence()
        root = artifacts.as_uri() if artifacts else "./mlruns"  # the latter as MLflow itself does
        store = SqlAlchemyStore(f"sqlite:///{fresh}", root)
        store.engine.dispose()
        fresh.rename(path)


def prepare_database(store: Store) -> None:
    """Make the store's own database if there is none; any number of processes may do so at once."""
    with _opening(default_uri(store), artifact_root(store)):
        pass


def stage_history(uri: str, study: str, science_hash: str) -> list[tuple[str, int, float]]:
    """All rows of a stage's metrics as (key, step, value): what a chart would draw."""
    with opened_client(uri) as client:
        experiment = client.get_experiment_by_name(experiment_name(study))
        if experiment is None:
            return []
        identity = f"stage:{science_hash}"
        query = f"tags.identity = '{identity}'"
        runs = client.search_runs([experiment.experiment_id], filter_string=query)
        return [
            (key, m.step, m.value)
            for run in runs
            for key in run.data.metrics
            for m in client.get_metric_history(run.info.run_id, key)
        ]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
