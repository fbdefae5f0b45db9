"""What a rank needs to know of its stage, and what it answers: each a value with a codec."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.ranks.outcome import JsonObject
from mae_core.config import AnyRecipe, DataConfig, Execution
from mae_core.data.facts import DIGITS, DataFacts
from mae_core.runtime.inputs import Parent
from mae_core.runtime.plugins import import_root, source_digest
from orchestrator.errors import DamagedRecord
from orchestrator.rank.faults import Fault
from orchestrator.store.known_keys import build_known
from orchestrator.store.records import Records
from studies.spec.cell import Cell, Stage
from studies.spec.codec import from_plain, recipe_from_plain, to_plain

RESULT_FILE = "result.json"


@dataclass(frozen=True, kw_only=True)
class Extensions:
    """Where a rank finds the user's code that a recipe names, and what its source must be."""

    roots: tuple[str, ...] = ()
    """Directories to import from."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the source of each `module:name`."""


@dataclass(frozen=True, kw_only=True)
class StagePayload:
    """Everything a rank needs."""

    recipe: AnyRecipe
    execution: Execution
    facts: DataFacts
    science_hash: str
    directory: Path
    """Of the attempt: journal, log and outputs."""
    checkpoints: Path
    parents: tuple[Parent, ...] = ()
    extensions: Extensions = Extensions()
    attempt: int = 0
    """Its number; 0 for one that the store does not know."""
    over_if_any: tuple[Path, ...] = ()
    """Records of which any says that the attempt is over, whoever still works at it."""
    umask: int | None = None
    """Of the store; None = as the process has it."""
    rollback: int = 0
    """Newest checkpoints to pass over."""
    capture: bool = False
    """Send the process's output into the attempt's log."""
    faults: tuple[Fault, ...] = ()
    """What a rehearsal lets go wrong."""

    def to_json(self) -> JsonObject:
        """As plain values."""
        return {
            "recipe": to_plain(self.recipe) | {"data": to_plain(_located(self.recipe.data))},
            "execution": to_plain(self.execution),
            "facts": self.facts.to_json(),
            "science_hash": self.science_hash,
            "directory": str(self.directory),
            "checkpoints": str(self.checkpoints),
            "parents": [parent.to_json() for parent in self.parents],
            "extensions": dataclasses.asdict(self.extensions),
            "attempt": self.attempt,
            "over_if_any": [str(path) for path in self.over_if_any],
            "umask": self.umask,
            "rollback": self.rollback,
            "capture": self.capture,
            "faults": [dataclasses.asdict(fault) for fault in self.faults],
        }

    @classmethod
    def from_json(cls, plain: JsonObject) -> StagePayload:
        """Read what `to_json` wrote."""
        extensions = plain["extensions"]
        read = {
            "recipe": recipe_from_plain(plain["recipe"]),
            "execution": from_plain(Execution, plain["execution"], "execution"),
            "facts": DataFacts.from_json(plain["facts"]),
            "directory": Path(plain["directory"]),
            "checkpoints": Path(plain["checkpoints"]),
            "over_if_any": tuple(Path(path) for path in plain["over_if_any"]),
            "parents": tuple(Parent.from_json(parent) for parent in plain["parents"]),
            "extensions": Extensions(
                roots=tuple(extensions["roots"]), digests=extensions["digests"]
            ),
            "faults": tuple(Fault(**fault) for fault in plain["faults"]),
        }
        return cls(**plain | read)


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a rank says of a stage that it has finished; that of rank 0 is the gang's."""

    metrics: JsonObject
    seconds: Mapping[str, float] = field(default_factory=dict)
    """`starting` and `working`."""
    provenance: JsonObject = field(default_factory=dict)
    """Versions, device and execution; of rank 0 alone."""
    outputs: dict[str, str] = field(default_factory=dict)
    """File name → SHA-256; of rank 0 alone. They are on disk."""

    def to_json(self) -> JsonObject:
        """As plain values."""
        return dataclasses.asdict(self)

    def leave(self, directory: Path) -> None:
        """Write it into the attempt's directory, where it outlives its process and Ray."""
        new = directory / f"{RESULT_FILE}.new"
        with contextlib.suppress(OSError):  # it is returned as well
            with new.open("w") as stream:
                json.dump(self.to_json(), stream)
                stream.flush()
                os.fsync(stream.fileno())
            new.replace(directory / RESULT_FILE)

    @classmethod
    def left_in(cls, directory: Path) -> StageResult | None:
        """What `leave` wrote; None if there is nothing that can be read."""
        path = directory / RESULT_FILE
        try:
            return build_known(cls, json.loads(path.read_text()), str(path))
        except (OSError, ValueError, DamagedRecord):
            return None


def extensions_of(recipe: AnyRecipe) -> Extensions:
    """The user's code that a recipe names."""
    names = recipe.extensions
    roots = sorted({str(import_root(name)) for name in names})
    return Extensions(roots=tuple(roots), digests={name: source_digest(name) for name in names})


def parents_of(
    cell: Cell, stage: Stage, hashes: tuple[str, ...], records: Records
) -> tuple[Parent, ...]:
    """The finished parents of a stage, in the order of the study."""
    found = []
    for name, science_hash in zip(stage.parents, hashes, strict=True):
        record = records.done(science_hash)
        if record is not None:
            directory = records.outputs(science_hash, record.attempt)
            parent = Parent(
                name=name,
                kind=cell.stage(name).kind,
                files={file: directory / file for file in record.outputs},
                digests=record.outputs,
                metrics=record.metrics,
                recipe=to_plain(cell.stage(name).recipe),
            )
            found.append(parent)
    return tuple(found)


def _located(data: DataConfig) -> DataConfig:
    """With an absolute path: a rank may start in another directory."""
    path = Path(data.path)
    if data.path != DIGITS and "://" not in data.path and path.exists():
        return replace(data, path=str(path.absolute()))
    return data
