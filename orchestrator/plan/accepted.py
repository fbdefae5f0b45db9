"""What the addresses of a study stood for when it was last run."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from orchestrator.store.driver import numbered_key
from orchestrator.store.known_keys import build_known
from orchestrator.store.records import Records


@dataclass(frozen=True, kw_only=True)
class Known:
    """What an address stood for."""

    hash: str
    science: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A state in which a study was run, as the store keeps it."""

    study: dict[str, Any]
    """As `studies.load.study_from_plain` reads it."""
    stages: dict[str, Known]
    """By `cell#stage`."""


def resolved_states(records: Records, study: str) -> dict[int, Resolved]:
    """States in which a study was run, by number; those that are damaged are passed over."""
    numbers = records.store.numbered(_prefix(study))
    found = {number: _read(records, study, number) for number in numbers}
    return {number: state for number, state in found.items() if state is not None}


def last_state(records: Records, study: str) -> Resolved | None:
    """The newest of them; None of a study that never was run."""
    found = (_read(records, study, number) for number in _newest_first(records, study))
    return next((state for state in found if state is not None), None)


def last_key(records: Records, study: str) -> str | None:
    """Where the store has the newest of them."""
    numbers = _newest_first(records, study)
    found = (n for n in numbers if _read(records, study, n) is not None)
    return next((numbered_key(_prefix(study), number) for number in found), None)


def _newest_first(records: Records, study: str) -> Iterator[int]:
    return reversed(records.store.numbered(_prefix(study)))


def _read(records: Records, study: str, number: int) -> Resolved | None:
    lost = f"{study}@{number} is lost; the state before it stands for what was accepted last"
    key = numbered_key(_prefix(study), number)
    return records.side(key, functools.partial(build_known, Resolved), lost)


def _prefix(study: str) -> str:
    return f"studies/{study}/resolved"


def load_accepted(records: Records, study: str) -> dict[tuple[str, str], Known]:
    """Stages that were last run, by cell and name; none of a study that never was."""
    state = last_state(records, study)
    parts = {} if state is None else {a.partition("#"): one for a, one in state.stages.items()}
    return {(cell, stage): one for (cell, _, stage), one in parts.items()}


def keep_state(records: Records, study: str, state: Resolved) -> None:
    """Keep what the addresses of a study stand for now, and others did before, if that is news."""
    before = last_state(records, study)
    if before is not None:
        state = replace(state, stages=before.stages | state.stages)
    if before != state:
        records.store.append_numbered(_prefix(study), asdict(state))
