"""Studies as the store remembers them: planned from what was run, whatever became of the files."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.errors import StoreError
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.store.kept_facts import KeptDatasets, fingerprints_of
from orchestrator.store.records import Records
from studies.load import study_from_plain


def kept_studies(records: Records, prefix: str = "") -> Iterator[str]:
    """Names of the studies that were run in this store."""
    for name in records.store.list(f"studies/{prefix}"):
        below = records.store.list(f"studies/{prefix}{name}")
        if "resolved" in below:
            yield prefix + name
        elif below and not name.endswith(".json"):
            yield from kept_studies(records, f"{prefix}{name}/")


def kept_plans(records: Records, study: str) -> Iterator[tuple[Plan, KeptDatasets]]:
    """A plan of every state in which a study was run, the last one last.

    Raises:
        StoreError: it was never run.
    """
    for name in kept_states(records, study):
        yield kept_plan(records, study, name)


def kept_states(records: Records, study: str) -> list[str]:
    """Names of the states in which a study was run, the last one last.

    Raises:
        StoreError: it was never run.
    """
    names = records.store.list(f"studies/{study}/resolved")
    if not names:
        raise StoreError(f"study {study} was never run in this store")
    return names


def kept_plan(records: Records, study: str, state: str) -> tuple[Plan, KeptDatasets]:
    """A plan of one of them, and its data as they were."""
    resolved = records.store.read_json(f"studies/{study}/resolved/{state}")
    assert resolved is not None
    datasets = KeptDatasets(records.store, fingerprints_of(resolved))
    return make_plan(study_from_plain(resolved["study"]), records, datasets), datasets
