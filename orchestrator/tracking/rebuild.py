"""MLflow's database made again from the store: equal but for ids and addresses."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import StoreError, TrackingError
from orchestrator.plan.history import kept_plans, kept_studies
from orchestrator.report.study_report import report_dir
from orchestrator.store.driver import Store
from orchestrator.store.lease import hold
from orchestrator.store.records import Records
from orchestrator.tracking.mlflow_runs import artifact_root, database_exists, default_uri
from orchestrator.tracking.observer import Tracking, sync_key
from orchestrator.tracking.registered_models import Pooling, register, registrations
from orchestrator.tracking.uri import sqlite_path


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """What was made."""

    studies: tuple[str, ...]
    models: int
    archived_to: Path | None
    """Where the old database is now; None if there was none."""


def rebuild(records: Records, say: Callable[[str], None]) -> Rebuilt:
    """Set the store's own database aside and make it again from records and journals.

    Raises:
        StoreError: nothing was ever run here.
        StudyBusy: a driver is running one of the studies.
        TrackingError: something could not be shipped; the old database is still aside.
    """
    studies = tuple(kept_studies(records))
    if not studies:
        raise StoreError("no study was run in this store: nothing to rebuild; name its --store")
    with contextlib.ExitStack() as leases:
        for study in studies:
            leases.enter_context(hold(records.store, study))
        aside = _archive(records.store)
        for study in studies:
            say(f"rebuilding {study}")
            problem = _rebuild_study(records, study)
            if problem is not None:
                kept = f"; the old database is in {aside}" if aside else ""
                raise TrackingError(f"{study} could not be rebuilt: {problem}{kept}")
        again = registrations(records)
        for one in again:
            say(f"registering {one['reference']} as {one['name']}")
            features: Pooling = "mean" if one["features"] == "mean" else "cls"
            register(
                records, one["reference"], name=one["name"], features=features,
                science_hash=one["science_hash"],
            )  # fmt: skip
    return Rebuilt(studies=studies, models=len(again), archived_to=aside)


def _archive(store: Store) -> Path | None:
    """Move database and artifacts to a folder of their own; nothing is deleted."""
    if not database_exists(store):
        return None
    path = sqlite_path(default_uri(store))
    assert path is not None
    aside = path.parent / time.strftime("before-%Y%m%d-%H%M%S", time.gmtime())
    aside.mkdir()
    for file in (path, *path.parent.glob(f"{path.name}-*"), artifact_root(store)):
        if file.exists():
            file.rename(aside / file.name)
    return aside


def _rebuild_study(records: Records, study: str) -> str | None:
    """Ship everything of a study; return what is missing."""
    plans = list(kept_plans(records, study))
    plan, datasets = plans[-1]
    with Tracking(records.store, plan, None, datasets=datasets) as tracking:
        for earlier, _ in plans[:-1]:
            tracking.sync_cells(earlier)
        page = report_dir(records, study)
        tracking.sync(plan, records, page if (page / "index.html").exists() else None)
    if tracking.problem is None:
        records.store.create_json(sync_key(tracking.uri, plan), {})
    return tracking.problem
