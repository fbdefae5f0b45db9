"""Which stages and sweeps the studies of a store have, in all their states."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mae_core.errors import MaeCoreError
from orchestrator.errors import StoreError
from orchestrator.plan.accepted import Resolved, resolved_states
from orchestrator.plan.history import fingerprints_of
from orchestrator.store.records import Records
from orchestrator.sweep.trials import Trials
from studies.errors import StudyError
from studies.load import study_from_plain
from studies.spec.cell import Cell
from studies.spec.identity import identify
from studies.spec.sweep import by_size


@dataclass(frozen=True, kw_only=True)
class Owned:
    """What studies have in the store."""

    stages: dict[str, tuple[str, ...]]
    """Science hash → `STUDY/CELL#STAGE` of every cell that has it."""
    sweeps: frozenset[str]
    """Folders of sweeps."""
    adopted: frozenset[str]
    """Digests of adopted encoders."""


def owned_by(studies: Iterable[str], records: Records) -> Owned:
    """What the studies have; what cannot be told from a damaged record is left out."""
    stages: dict[str, dict[str, None]] = defaultdict(dict)
    sweeps: set[str] = set()
    adopted: set[str] = set()
    for study in studies:
        for state in resolved_states(records, study).values():
            for address, known in state.stages.items():
                stages[known.hash][f"{study}/{address}"] = None
                recipe = known.science.get("recipe")
                if isinstance(recipe, dict) and isinstance(recipe.get("sha256"), str):
                    adopted.add(recipe["sha256"])
            with contextlib.suppress(StudyError, MaeCoreError, StoreError):
                for folder, science_hash, address in _of_sweeps(state, records):
                    sweeps.add(folder)
                    stages[science_hash][f"{study}/{address}"] = None
    return Owned(
        stages={key: tuple(names) for key, names in stages.items()},
        sweeps=frozenset(sweeps),
        adopted=frozenset(adopted),
    )


def _of_sweeps(state: Resolved, records: Records) -> Iterator[tuple[str, str, str]]:
    """Folder, science hash and address of every stage of every trial, and of the repetitions."""
    study = study_from_plain(state.study)
    fingerprints = fingerprints_of(study, state)
    for sweep in by_size(study.sweep) if study.sweep else ():
        trials = Trials(records.store, sweep, fingerprints)
        for cell in _cells(trials):
            with contextlib.suppress(StudyError, MaeCoreError):
                for name, identity in identify(cell, fingerprints).items():
                    yield trials.prefix, identity.science_hash, f"{cell.address}#{name}"


def _cells(trials: Trials) -> Iterator[Cell]:
    for number in trials.numbers():
        with contextlib.suppress(StudyError, MaeCoreError, StoreError):
            settings = trials.settings(number)
            if settings is not None:
                yield trials.cell(number, settings)
    with contextlib.suppress(StudyError, MaeCoreError, StoreError):
        winner = trials.winner()
        if winner is not None:
            yield from trials.repeats(winner)
