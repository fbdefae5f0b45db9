"""What the addresses of a study stood for when it was last run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.store.records import Records


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A stage as it was last run."""

    cell: str
    stage: str
    science_hash: str
    science: Mapping[str, object]


def load_accepted(records: Records, study: str) -> dict[tuple[str, str], Accepted]:
    """Stages that were last run, by cell and name; none of a study that never was."""
    last = records.store.last_numbered(f"studies/{study}/resolved")
    found = {} if last is None else last[1]["stages"]
    accepted = (_read(address, plain) for address, plain in found.items())
    return {(one.cell, one.stage): one for one in accepted}


def accepted_json(accepted: Mapping[tuple[str, str], Accepted]) -> dict[str, object]:
    """What the store keeps of them: by `cell#stage`."""
    return {
        f"{cell}#{stage}": {"hash": one.science_hash, "science": one.science}
        for (cell, stage), one in accepted.items()
    }


def _read(address: str, plain: Mapping[str, object]) -> Accepted:
    cell, _, stage = address.partition("#")  # no address of a cell holds one
    science = plain["science"]
    assert isinstance(science, dict)
    return Accepted(cell=cell, stage=stage, science_hash=str(plain["hash"]), science=science)
