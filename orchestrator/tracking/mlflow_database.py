"""Where runs go: MLflow's client, a study's experiment, and the SQLite file inside the store."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shlex
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mae_core.runtime.storage import umasked
from orchestrator.errors import StoreError, TrackingError
from orchestrator.store.driver import Store
from orchestrator.store.sharing import owned_mode
from orchestrator.tracking.uri import UNFIT_TEXT, sqlite_path, sqlite_uri, without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

REQUEST_TIMEOUT_S = 10
SYNCED_TAG = "synced_at"
"""Of a study's run: when all of the study was last sent."""


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where a study is tracked; all that the shipping process needs to open it."""

    uri: str
    study: str
    question: str
    origin: str
    """Id of the store: runs of other stores at the same server are left alone."""
    artifacts: Path | None = None
    """Artifact root for a database without a server."""
    started_ms: int = 0
    """When the study was first run; 0: now."""
    over_if: Path | None = None
    """Record that says, once it is there, that another driver has the study and sends it."""


def default_uri(store: Store) -> str:
    """SQLite inside the store: one machine, no server.

    Raises:
        StoreError: the store's path has no place in such an address.
    """
    uri = sqlite_uri(store.path("tracking/mlflow.db"))
    if uri is None:
        raise StoreError(
            f"the store {str(store.path(''))!r} cannot hold MLflow's database: {UNFIT_TEXT}; "
            "name another --store, or an MLflow server with --tracking-uri; nothing was run"
        )
    return uri


def database_exists(store: Store) -> bool:
    """True once a study was tracked into the store."""
    return store.path("tracking/mlflow.db").exists()


def artifact_root(store: Store) -> Path:
    """Where runs of the default tracking keep their artifacts."""
    return store.path("tracking/artifacts")


def experiment_name(study: str) -> str:
    """Name of a study's experiment."""
    return f"mae-study/{study}"


def database_stamp(uri: str, study: str) -> str:
    """State of a study's experiment in a SQLite file; empty if unknown.

    A rebuilt one differs, a deleted one, and one that was put back to a backup. Read without
    MLflow, whose import takes seconds.
    """
    path = sqlite_path(uri)
    if path is None:
        return ""
    query = """
        SELECT experiments.experiment_id, creation_time, lifecycle_stage, (
            SELECT max(value) FROM tags JOIN runs USING (run_uuid)
            WHERE key = ? AND runs.experiment_id = experiments.experiment_id
        ) FROM experiments WHERE name = ?
    """
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            row = database.execute(query, (SYNCED_TAG, experiment_name(study))).fetchone()
    except sqlite3.Error:
        return ""
    return "" if row is None else "-".join(map(str, row))


class ExperimentDeleted(TrackingError):
    """A study's experiment was deleted in MLflow: whoever did that has to take it back."""

    def __init__(self, uri: str, study: str, experiment_id: str, artifacts: Path | None) -> None:
        address = shlex.quote(without_credentials(uri))
        again = (
            f"`MLFLOW_TRACKING_URI={address} mlflow experiments restore -x {experiment_id}` takes "
            "it back, then run the same command"
        )
        if artifacts is not None:  # the store's own database
            store = shlex.quote(str(artifacts.parent.parent))
            again += f"; or `mae-study mlflow rebuild --store {store}` makes all of it anew"
        super().__init__(f"the experiment {experiment_name(study)} was deleted there: {again}")


def find_experiment(
    client: MlflowClient, uri: str, study: str, artifacts: Path | None = None
) -> Experiment | None:
    """A study's experiment, None if there is none (any more).

    Raises:
        ExperimentDeleted: it is among the deleted ones.
    """
    found = client.get_experiment_by_name(experiment_name(study))
    if found is not None and found.lifecycle_stage != "active":
        raise ExperimentDeleted(uri, study, str(found.experiment_id), artifacts)
    return found


@contextlib.contextmanager
def opened_client(uri: str, artifacts: Path | None = None) -> Iterator[MlflowClient]:
    """MLflow's client, with requests that end and without a word on the user's terminal.

    A database is opened by one process at a time.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_TIMEOUT_S))
    # The client would repeat whatever timed out, `create_run` too, and make a run twice.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    with _opening(uri, artifacts):
        from mlflow import MlflowClient

        _silence()
        yield MlflowClient(tracking_uri=uri)


@contextlib.contextmanager
def _opening(uri: str, artifacts: Path | None) -> Iterator[None]:
    """One process at a time opens a SQLite file, which is made first: two at once break it."""
    path = sqlite_path(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whoever can open it could lock it for ever, also one who may only read.
    lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, owned_mode())
    if os.fstat(lock).st_uid == os.geteuid():
        os.fchmod(lock, owned_mode())  # older versions opened it to all
    with os.fdopen(lock, "a") as stream:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_EX)
        if not path.exists():
            _make_database(path, artifacts)
        yield  # closing the file unlocks it


def _make_database(path: Path, artifacts: Path | None) -> None:
    """Make a database under another name, and rename it when it is complete.

    Dozens of migrations take seconds; a process killed between two of them would leave a file
    that cannot be opened again.
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
        fresh.chmod(umasked(0o666))  # SQLite makes it 0644
        fresh.rename(path)


def _silence() -> None:
    """Quiet MLflow's loggers, after the import that sets them up. What fails is raised."""
    for name in ("mlflow", "alembic", "sqlalchemy", "urllib3"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [logging.NullHandler()], False
        logger.setLevel(logging.CRITICAL)
