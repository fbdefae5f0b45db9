"""Studies as the store remembers them: planned from what was run, whatever became of the files."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.errors import StoreError
from orchestrator.plan.accepted import Resolved, resolved_states
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.store.kept_facts import KeptDatasets
from orchestrator.store.records import Records
from studies.load import study_from_plain
from studies.spec.identity import UNKNOWN_DATA
from studies.spec.study import Study

OF_A_STUDY = ("resolved", "lease", "predictions")
"""Folders that the store has for a study."""


def kept_studies(records: Records, prefix: str = "") -> Iterator[str]:
    """Names of the studies that were run in this store."""
    for name in records.store.list(f"studies/{prefix}"):
        below = records.store.list(f"studies/{prefix}{name}")
        if "resolved" in below:
            yield prefix + name
        if below and name not in OF_A_STUDY:  # others may be called `name/more`
            yield from kept_studies(records, f"{prefix}{name}/")


def kept_plans(records: Records, study: str) -> Iterator[tuple[Plan, KeptDatasets]]:
    """A plan of every state in which a study was run, the last one last.

    Raises:
        StoreError: it was never run.
    """
    for state in kept_states(records, study).values():
        yield kept_plan(records, state)


def kept_states(records: Records, study: str) -> dict[int, Resolved]:
    """States in which a study was run, by number, the last one last; damaged ones are left out.

    Raises:
        StoreError: it was never run, or no state of it can be read.
    """
    states = resolved_states(records, study)
    if not states:
        raise StoreError(f"study {study} was never run in this store, or no state of it is whole")
    return states


def kept_plan(records: Records, state: Resolved) -> tuple[Plan, KeptDatasets]:
    """A plan of one of them, and its data as they were."""
    study = study_from_plain(state.study)
    datasets = KeptDatasets(records.store, fingerprints_of(study, state))
    return make_plan(study, records, datasets), datasets


def fingerprints_of(study: Study, state: Resolved) -> dict[str, str]:
    """Fingerprints by path of a state's data sets, from what its stages were hashed with."""
    found = {}
    for cell in study.cells:
        for stage in cell.stages:
            known = state.stages.get(f"{cell.address}#{stage.name}")
            if known is not None:
                found[stage.recipe.data.path] = str(known.science.get("data", UNKNOWN_DATA))
    return {path: value for path, value in found.items() if value != UNKNOWN_DATA}
