"""What the store holds of stages and studies: keys, attempts, completion records.

stages/<hh>/<hash>/identity.json              what the hash stands for
                  /attempts/000001.json       who began it, when, with which execution
                  /attempts/000001/           its journal, log and outputs
                  /ends/000001.json           how it ended
                  /decisions/000001.json      what was decided about it, and why
                  /checkpoints/               committed by manifest
                  /done.json                  created once: the result
studies/<study>/resolved/000001.json          the study as it was run, per run that changed it
studies/<study>/lease/000001.json             drivers, by fencing epoch
"""

from __future__ import annotations

import datetime
import hashlib
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from cluster.ranks.outcome import JsonObject
from orchestrator.store.attempts import Attempt, AttemptEnd, AttemptStart, DecisionRecord
from orchestrator.store.driver import Store
from orchestrator.store.known_keys import build_known


def now_iso() -> str:
    """Current time, ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def stage_key(science_hash: str) -> str:
    """Directory of a stage; a level of 256 keeps listings short."""
    return f"stages/{science_hash[:2]}/{science_hash}"


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """A rollback that really happened."""

    cause: str
    attempt: int
    step: int
    """Of the checkpoint that it went back to."""
    rollback: int
    """Newer checkpoints that were passed over."""
    inherited: str | None = None
    """Science hash of the parent that it happened to; None = to the stage itself."""

    def to_json(self) -> JsonObject:
        """What is known, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class DoneRecord:
    """A finished stage. Never changed, never collected."""

    science_hash: str
    kind: str
    attempt: int
    metrics: JsonObject
    outputs: dict[str, str]
    """File name → SHA-256, within the attempt's outputs."""
    parents: dict[str, dict[str, str]]
    """Parent's science hash → digests of its outputs, as they were when this stage read them."""
    seconds: float
    world_size: int
    provenance: JsonObject = field(default_factory=dict)
    """Commit, versions, device, execution, and `level`: how exactly interruptions were undone."""
    intervened: list[Intervention] = field(default_factory=list)
    """Rollbacks that this result rests on, its parents' too (these name who is `inherited`)."""
    finished_at: str = field(default_factory=now_iso)

    def to_json(self) -> JsonObject:
        """As plain values."""
        return asdict(self) | {"intervened": [mark.to_json() for mark in self.intervened]}

    @classmethod
    def from_json(cls, plain: JsonObject, where: str) -> DoneRecord:
        """Read what `to_json` wrote; raises `StoreError` naming `where` if it is damaged."""
        marks = [build_known(Intervention, mark, where) for mark in plain.get("intervened", ())]
        return build_known(cls, plain | {"intervened": marks}, where)


class Records:
    """Typed access to the store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def done(self, science_hash: str) -> DoneRecord | None:
        """Completion record of a stage, None if it is not done."""
        raw = self.store.read_json(f"{stage_key(science_hash)}/done.json")
        where = f"completion record of {science_hash}"
        return None if raw is None else DoneRecord.from_json(raw, where)

    def known_stages(self) -> set[str]:
        """Hashes of all stages that have ever been started here, in two levels of listing."""
        return {h for hh in self.store.list("stages") for h in self.store.list(f"stages/{hh}")}

    def begin_attempt(self, science_hash: str, start: AttemptStart) -> int:
        """Record the start of an attempt, now; return its number."""
        key, start = stage_key(science_hash), replace(start, started_at=now_iso())
        number = self.store.append_numbered(f"{key}/attempts", start.to_json())
        self.outputs(science_hash, number).mkdir(parents=True, exist_ok=True)
        return number

    def end_attempt(self, science_hash: str, number: int, end: AttemptEnd) -> None:
        """Record how an attempt ended, now unless `end` says when; the first record stands."""
        key = f"{stage_key(science_hash)}/ends/{number:06d}.json"
        self.store.create_json(key, replace(end, ended_at=end.ended_at or now_iso()).to_json())

    def attempts(self, science_hash: str) -> list[Attempt]:
        """All attempts, oldest first."""
        key = stage_key(science_hash)
        numbers = [n[:6] for n in self.store.list(f"{key}/attempts") if n.endswith(".json")]
        found = []
        for n in numbers:
            begun, ended = f"{key}/attempts/{n}.json", f"{key}/ends/{n}.json"
            start = AttemptStart.from_json(self.store.read_json(begun) or {}, f"record {begun}")
            plain = self.store.read_json(ended)
            end = None if plain is None else AttemptEnd.from_json(plain, f"record {ended}")
            found.append(Attempt(number=int(n), start=start, end=end))
        return found

    def lineage(self, science_hash: str) -> list[Attempt]:
        """Attempts that led to the present result: those after an archived one."""
        aside = self.store.last_numbered(f"{stage_key(science_hash)}/superseded")
        before = int(aside[1]["attempt"]) if aside else 0
        return [a for a in self.attempts(science_hash) if a.number > before]

    def decide(self, science_hash: str, decision: DecisionRecord) -> int:
        """Record a decision about a stage, now; return its number."""
        key = f"{stage_key(science_hash)}/decisions"
        return self.store.append_numbered(key, replace(decision, at=now_iso()).to_json())

    def decisions(self, science_hash: str) -> list[DecisionRecord]:
        """All decisions about a stage, oldest first."""
        key = f"{stage_key(science_hash)}/decisions"
        found = {f"{key}/{n}": self.store.read_json(f"{key}/{n}") for n in self.store.list(key)}
        return [
            DecisionRecord.from_json(plain, f"record {name}")
            for name, plain in found.items()
            if plain is not None
        ]

    def complete(self, record: DoneRecord) -> bool:
        """Create the completion record; False if another driver completed the stage."""
        key = f"{stage_key(record.science_hash)}/done.json"
        return self.store.create_json(key, record.to_json())

    def supersede(self, science_hash: str) -> None:
        """Archive a completion record, so that the stage can be run again.

        What was cut off half-way is finished by the next call: a record is archived once.
        """
        key, archive = (f"{stage_key(science_hash)}/{name}" for name in ("done.json", "superseded"))
        content = self.store.read_json(key)
        if content is not None:
            last = self.store.last_numbered(archive)
            if last is None or last[1] != content:
                self.store.append_numbered(archive, content)
            self.store.delete(f"{stage_key(science_hash)}/checkpoints")
            self.store.delete(key)

    def attempt_dir(self, science_hash: str, number: int) -> Path:
        """Directory of an attempt's journal, log and outputs."""
        return self.store.path(f"{stage_key(science_hash)}/attempts/{number:06d}")

    def outputs(self, science_hash: str, number: int) -> Path:
        """Directory of an attempt's outputs."""
        return self.attempt_dir(science_hash, number) / "outputs"

    def checkpoints(self, science_hash: str) -> Path:
        """Directory of a stage's checkpoints, shared by its attempts."""
        return self.store.path(f"{stage_key(science_hash)}/checkpoints")

    def store_id(self) -> str:
        """A name for this store that no other has."""
        self.store.create_json("store.json", {"id": uuid.uuid4().hex[:12], "made": now_iso()})
        return str((self.store.read_json("store.json") or {})["id"])

    def write_identity(self, science_hash: str, science: Mapping[str, object]) -> None:
        """Keep what a hash stands for."""
        self.store.create_json(f"{stage_key(science_hash)}/identity.json", science)


def digest_outputs(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below `directory`, by relative name; each is on disk then."""
    found = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            sha = hashlib.file_digest(stream, "sha256").hexdigest()
        found[str(path.relative_to(directory))] = sha
    return found
