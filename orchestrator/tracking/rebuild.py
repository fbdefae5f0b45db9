"""MLflow's database rebuilt from the store: equal but for ids and addresses."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import StoreError, TrackingError
from orchestrator.plan.history import kept_plans, kept_studies
from orchestrator.store.driver import Store
from orchestrator.store.lease import hold
from orchestrator.store.records import Records
from orchestrator.tracking.mlflow_database import artifact_root, database_exists, default_uri
from orchestrator.tracking.registered_models import find_weights, register_again, registrations
from orchestrator.tracking.study_tracking import sync_study
from orchestrator.tracking.uri import sqlite_path


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """What was made."""

    studies: tuple[str, ...]
    models: int
    archived_to: Path | None
    """Where the old database is now; None if there was none."""


def rebuild(records: Records, say: Callable[[str], None]) -> Rebuilt:
    """Archive the store's own database and rebuild it from records and journals.

    Raises:
        StoreError: nothing was ever run here, or a record or a registered model is damaged.
        StudyBusy: a driver is running one of the studies.
        TrackingError: something could not be shipped; the old database stays archived.
    """
    studies = tuple(kept_studies(records))
    if not studies:
        raise StoreError("no study was run in this store: nothing to rebuild; name its --store")
    with contextlib.ExitStack() as leases:
        for study in studies:
            leases.enter_context(hold(records.store, study))
        # What cannot be read is refused here, while the old database is still in its place.
        plans = {study: list(kept_plans(records, study)) for study in studies}
        models = registrations(records)
        for model in models:
            find_weights(records, model.reference, model.science_hash)
        archived = _archive(records.store)
        for study in studies:
            say(f"rebuilding {study}")
            *earlier, (plan, datasets) = plans[study]
            problem = sync_study(
                records, plan, datasets=datasets, earlier=[one for one, _ in earlier]
            )
            if problem is not None:
                kept = f"; the old database is in {archived}" if archived else ""
                raise TrackingError(f"{study} could not be rebuilt: {problem}{kept}")
        for model in models:
            say(f"registering {model.reference} as {model.name}")
            register_again(records, model)
        records.set_apart()
    return Rebuilt(studies=studies, models=len(models), archived_to=archived)


def _archive(store: Store) -> Path | None:
    """Move database and artifacts to a separate folder; nothing is deleted."""
    if not database_exists(store):
        return None
    path = sqlite_path(default_uri(store))
    assert path is not None
    archive = path.parent / time.strftime("before-%Y%m%d-%H%M%S", time.gmtime())
    archive.mkdir()
    for file in (path, *path.parent.glob(f"{path.name}-*"), artifact_root(store)):
        if file.exists():
            file.rename(archive / file.name)
    return archive
