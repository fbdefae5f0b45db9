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
damaged/<key>                                 what was damaged, moved aside as it is
record_digests.txt                            every record here bears its own digest
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, TypeVar

from cluster.ranks.outcome import JsonObject
from orchestrator.errors import DamagedRecord
from orchestrator.store.attempts import Attempt, AttemptEnd, AttemptStart, DecisionRecord
from orchestrator.store.driver import Store, numbered_key
from orchestrator.store.known_keys import IsoTime, build_known
from studies.spec.canonical_json import digest

T = TypeVar("T")
NUMBERS = ("top1", "top5", "loss", "num_images", "images_per_s")
"""Metrics that are read by name."""


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


def _check_metrics(metrics: JsonObject) -> None:
    """Raise `TypeError` unless what is read by name has its type."""
    wrong = [n for n in NUMBERS if not isinstance(metrics.get(n), int | float | None)]
    wrong += [] if isinstance(metrics.get("details", {}), dict) else ["details"]
    if wrong:
        raise TypeError(f"metrics {', '.join(wrong)} are of another type")


def _check_provenance(provenance: JsonObject) -> None:
    """Raise `TypeError` unless what is read by name has its type."""
    if any(not isinstance(provenance.get(name, {}), dict) for name in ("code", "versions")):
        raise TypeError("its provenance is of another type")


@dataclass(frozen=True, kw_only=True)
class DoneRecord:
    """A finished stage. Never changed, never collected."""

    science_hash: str
    kind: str
    attempt: int
    metrics: Annotated[JsonObject, _check_metrics]
    outputs: dict[str, str]
    """File name → SHA-256, within the attempt's outputs."""
    parents: dict[str, dict[str, str]]
    """Parent's science hash → digests of its outputs, as they were when this stage read them."""
    seconds: float
    world_size: int
    provenance: Annotated[JsonObject, _check_provenance] = field(default_factory=dict)
    """Commit, versions, device, execution, and `level`: how exactly interruptions were undone."""
    intervened: list[Intervention] = field(default_factory=list)
    """Rollbacks that this result rests on, its parents' too (these name who is `inherited`)."""
    finished_at: IsoTime = field(default_factory=now_iso)

    def to_json(self) -> JsonObject:
        """As plain values."""
        return asdict(self) | {"intervened": [mark.to_json() for mark in self.intervened]}

    @classmethod
    def from_json(cls, plain: JsonObject, where: str) -> DoneRecord:
        """Read what `to_json` wrote; raises `DamagedRecord` naming `where` if it is damaged."""
        return build_known(cls, plain, where)


class Records:
    """Typed access to the store."""

    def __init__(self, store: Store, say: Callable[[str], None] | None = None) -> None:
        self.store, self._say = store, say or store.note
        self.passed_over: dict[str, str] = {}
        """Damaged side records that were read, by key: why."""

    def done(self, science_hash: str) -> DoneRecord | None:
        """Completion record of a stage, None if it is not done.

        Raises:
            DamagedRecord: it is not what was written.
        """
        key = f"{stage_key(science_hash)}/done.json"
        raw = self.store.read_json(key)
        record = None if raw is None else DoneRecord.from_json(raw, f"record {key}")
        if record is not None and record.science_hash != science_hash:
            raise DamagedRecord(f"record {key} is damaged: it is of {record.science_hash}")
        return record

    def side(self, key: str, read: Callable[[JsonObject, str], T], lost: str) -> T | None:
        """A record without which results are whole: None if there is none, or it is damaged.

        Args:
            lost: what follows if it is damaged, for people.
        """
        try:
            plain = self.store.read_json(key)
            return None if plain is None else read(plain, f"record {key}")
        except DamagedRecord as error:
            if key not in self.passed_over:
                self.passed_over[key] = str(error)
                self._say(f"{error}; it is passed over: {lost}")
            return None

    def sides(self, prefix: str, read: Callable[[JsonObject, str], T], lost: str) -> list[T]:
        """All numbered records below a prefix, oldest first, but for damaged ones; see `side`."""
        found = (self.side(key, read, lost) for key in self.store.numbered_keys(prefix))
        return [record for record in found if record is not None]

    def set_apart(self) -> Sequence[str]:
        """Move the damaged side records that were read below `damaged/`, as they are."""
        moved = self.store.set_apart(self.passed_over)
        self.passed_over.clear()
        for place in moved:
            self._say(f"kept as {place}")
        return moved

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
        key = numbered_key(f"{stage_key(science_hash)}/ends", number)
        self.store.create_json(key, replace(end, ended_at=end.ended_at or now_iso()).to_json())

    def attempts(self, science_hash: str) -> list[Attempt]:
        """All attempts, oldest first."""
        key = stage_key(science_hash)
        found = []
        for n in self.store.numbered(f"{key}/attempts"):
            lost = f"how attempt {n} began is lost, its result is whole"
            start = self.side(numbered_key(f"{key}/attempts", n), AttemptStart.from_json, lost)
            lost = f"how attempt {n} ended is lost, its result is whole"
            end = self.side(numbered_key(f"{key}/ends", n), AttemptEnd.from_json, lost)
            found.append(Attempt(number=n, start=start or AttemptStart(), end=end))
        return found

    def archived(self, science_hash: str) -> list[DoneRecord]:
        """Results that were replaced by another, oldest first."""
        key = f"{stage_key(science_hash)}/superseded"
        lost = "an archived result is lost, the present one is whole"
        return self.sides(key, DoneRecord.from_json, lost)

    def lineage(self, science_hash: str) -> list[Attempt]:
        """Attempts that led to the present result: those after an archived one."""
        before = max((r.attempt for r in self.archived(science_hash)), default=0)
        return [a for a in self.attempts(science_hash) if a.number > before]

    def decide(self, science_hash: str, decision: DecisionRecord) -> int:
        """Record a decision about a stage, now; return its number."""
        key = f"{stage_key(science_hash)}/decisions"
        return self.store.append_numbered(key, replace(decision, at=now_iso()).to_json())

    def decisions(self, science_hash: str) -> list[DecisionRecord]:
        """All decisions about a stage, oldest first."""
        key = f"{stage_key(science_hash)}/decisions"
        return self.sides(key, DecisionRecord.from_json, "a decision is lost, results are whole")

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
            keys, lost = self.store.numbered_keys(archive)[-1:], "an archived result is lost"
            last = [self.side(key, lambda plain, _: plain, lost) for key in keys]
            if last != [content]:
                self.store.append_numbered(archive, content)
            self.store.delete(f"{stage_key(science_hash)}/checkpoints")
            self.store.delete(key)

    def attempt_dir(self, science_hash: str, number: int) -> Path:
        """Directory of an attempt's journal, log and outputs."""
        return self.store.path(f"{stage_key(science_hash)}/attempts/{number:06d}")

    def over_if_any(self, science_hash: str, number: int) -> tuple[Path, ...]:
        """Records that say that an attempt is over: its end, or the start of a later one."""
        key = stage_key(science_hash)
        end, next_start = (f"{key}/ends", number), (f"{key}/attempts", number + 1)
        return tuple(self.store.path(numbered_key(*record)) for record in (end, next_start))

    def outputs(self, science_hash: str, number: int) -> Path:
        """Directory of an attempt's outputs."""
        return self.attempt_dir(science_hash, number) / "outputs"

    def checkpoints(self, science_hash: str) -> Path:
        """Directory of a stage's checkpoints, shared by its attempts."""
        return self.store.path(f"{stage_key(science_hash)}/checkpoints")

    def store_id(self) -> str:
        """A name for this store that no other has."""
        known = self._store_id()
        if known is None:
            if self.passed_over.pop("store.json", None):
                self.store.set_apart(["store.json"])
            self.store.create_json("store.json", {"id": uuid.uuid4().hex[:12], "made": now_iso()})
            known = self._store_id()
        assert known is not None
        return known

    def _store_id(self) -> str | None:
        lost = "the store gets another name, and an MLflow server takes it for another store"
        found = self.side("store.json", functools.partial(build_known, _StoreName), lost)
        return None if found is None else found.id

    def identity(self, science_hash: str) -> JsonObject:
        """What a hash stands for, empty if it is not known.

        Raises:
            DamagedRecord: it has another hash.
        """
        key = f"{stage_key(science_hash)}/identity.json"
        plain = self.store.read_json(key)
        if plain is not None and digest(plain) != science_hash:
            raise DamagedRecord(f"record {key} is damaged: its hash is {digest(plain)}")
        return plain or {}

    def write_identity(self, science_hash: str, science: Mapping[str, object]) -> None:
        """Keep what a hash stands for."""
        self.store.create_json(f"{stage_key(science_hash)}/identity.json", science)


@dataclass(frozen=True, kw_only=True)
class _StoreName:
    id: str
    made: IsoTime = ""


def digest_outputs(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below `directory`, by relative name; each is on disk then."""
    found = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            sha = hashlib.file_digest(stream, "sha256").hexdigest()
        found[str(path.relative_to(directory))] = sha
    return found
