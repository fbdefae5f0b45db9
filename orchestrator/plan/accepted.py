"""What the addresses of a study stood for when it was last run."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.store.known_keys import build_known
from orchestrator.store.records import Records


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A stage as it was last run."""

    cell: str
    stage: str
    science_hash: str
    science: Mapping[str, object]


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
    numbers = reversed(records.store.numbered(_prefix(study)))
    found = (_read(records, study, number) for number in numbers)
    return next((state for state in found if state is not None), None)


def _read(records: Records, study: str, number: int) -> Resolved | None:
    lost = f"{study}@{number} is lost; the state before it stands for what was accepted last"
    key = f"{_prefix(study)}/{number:06d}.json"
    return records.side(key, functools.partial(build_known, Resolved), lost)


def _prefix(study: str) -> str:
    return f"studies/{study}/resolved"


def load_accepted(records: Records, study: str) -> dict[tuple[str, str], Accepted]:
    """Stages that were last run, by cell and name; none of a study that never was."""
    state = last_state(records, study)
    found = {} if state is None else state.stages
    accepted = (_accepted(address, known) for address, known in found.items())
    return {(one.cell, one.stage): one for one in accepted}


def accepted_json(accepted: Mapping[tuple[str, str], Accepted]) -> dict[str, object]:
    """What the store keeps of them: by `cell#stage`."""
    return {
        f"{cell}#{stage}": {"hash": one.science_hash, "science": one.science}
        for (cell, stage), one in accepted.items()
    }


def _accepted(address: str, known: Known) -> Accepted:
    cell, _, stage = address.partition("#")  # no address of a cell holds one
    return Accepted(cell=cell, stage=stage, science_hash=known.hash, science=known.science)
