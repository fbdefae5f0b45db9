"""`mae-study verify`: every record and every file that a record names, compared. It only reads.

Compared: the digest that each record bears, its types and its place; identities with their
directories; outputs, archived outputs, adopted encoders and committed checkpoints with the digests
in their records. Not compared, since nothing knows what they should be: journals, logs, what
`debug` left; what can be made again: reports, MLflow's database; and checkpoints at a
`checkpoint_uri`, which each rank compares before it loads them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cluster.ranks.outcome import JsonObject
from mae_core.checkpoint.manifest import MANIFEST, Manifest, parse_directory
from mae_core.data.facts import DataFacts
from mae_core.errors import CheckpointError
from orchestrator.errors import DamagedRecord, StoreError
from orchestrator.plan.accepted import Resolved
from orchestrator.plan.history import kept_studies
from orchestrator.report.predictions import Registered
from orchestrator.store.adopted import adopted_key, adopted_names, find_adopted, held_by, name_key
from orchestrator.store.attempts import AttemptEnd, AttemptStart, DecisionRecord, Driver
from orchestrator.store.kept_files import checked, output_key
from orchestrator.store.known_keys import build_known
from orchestrator.store.records import DoneRecord, Records, stage_key
from orchestrator.sweep.trials import Asked, Winner
from orchestrator.verify.damage import Damage, Kind, Verification
from orchestrator.verify.owners import Owned, owned_by
from studies.errors import StudyError

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with the bytes that are done, and all."""


@dataclass(frozen=True, kw_only=True)
class RecordCheck:
    """A record, and how it is read."""

    key: str
    kind: Kind
    read: Callable[[JsonObject, str], object]
    """From its content and what it is called; raises `StoreError` if it is damaged."""
    stage: str = ""
    apart: str = ""
    """What `repair` moves, if it is more than the record."""


@dataclass(frozen=True, kw_only=True)
class FileCheck:
    """A file that a record names."""

    key: str
    kind: Kind
    sha256: str
    apart: str
    """What `repair` moves: the record that names it."""
    stage: str = ""


def verify(
    records: Records, study: str = "", on_progress: Progress = lambda done, total: None
) -> Verification:
    """Compare everything in a store, or what one study has in it.

    Raises:
        StoreError: the study was never run here, or the store cannot be read at all.
    """
    if records.store.is_empty:
        raise StoreError("no store there: nothing to verify; correct --store")
    quiet = Records(records.store, lambda text: None)
    studies = list(kept_studies(quiet))
    if study and study not in studies:
        raise StoreError(f"study {study} was never run in this store: nothing to verify")
    owned = owned_by([study] if study else studies, quiet)
    found = _Found(quiet, owned)
    found.records(_records(quiet, [study] if study else studies, owned, is_all=not study))
    files = list(_files(quiet, owned, is_all=not study))
    found.files(files, on_progress)
    return found.result(_stale(quiet, owned))


class _Found:
    """Collects what is damaged."""

    def __init__(self, records: Records, owned: Owned) -> None:
        self._records, self._owned = records, owned
        self._damages: list[Damage] = []
        self._not_verifiable: list[str] = []
        self._num_records = self._num_files = self._num_bytes = 0

    def records(self, checks: Iterable[RecordCheck]) -> None:
        for check in checks:
            self._num_records += 1
            try:
                plain, has_digest = self._records.store.read_sealed(check.key)
                if plain is None:
                    raise DamagedRecord(f"record {check.key} is missing")
                check.read(plain, f"record {check.key}")
                self._not_verifiable += [] if has_digest else [check.key]
            except StoreError as error:
                self._damage(check.key, check.kind, str(error), check.stage, check.apart)

    def files(self, checks: Sequence[FileCheck], on_progress: Progress) -> None:
        sizes = [_size(self._records, check.key) for check in checks]
        total = sum(sizes)
        for check, size in zip(checks, sizes, strict=True):
            self._num_files, self._num_bytes = self._num_files + 1, self._num_bytes + size
            try:
                checked(self._records, check.key, check.sha256)
            except StoreError as error:
                self._damage(check.key, check.kind, str(error), check.stage, check.apart)
            on_progress(self._num_bytes, total)

    def result(self, stale: Iterable[str]) -> Verification:
        return Verification(
            num_records=self._num_records,
            num_files=self._num_files,
            num_bytes=self._num_bytes,
            damages=tuple(self._damages),
            not_verifiable=tuple(self._not_verifiable),
            stale=tuple(stale),
        )

    def _damage(self, key: str, kind: Kind, problem: str, stage: str, apart: str = "") -> None:
        named = self._owned.stages.get(stage, ())
        self._damages.append(
            Damage(key=key, kind=kind, problem=problem, stage=stage, addresses=named, apart=apart)
        )


def _typed(cls: type[T]) -> Callable[[JsonObject, str], T]:
    return functools.partial(build_known, cls)


def _records(
    records: Records, studies: Iterable[str], owned: Owned, *, is_all: bool
) -> Iterator[RecordCheck]:
    known = records.known_stages()
    for science_hash in sorted(known if is_all else known & owned.stages.keys()):
        yield from _of_stage(records, science_hash)
    for study in studies:
        of_study = f"studies/{study}"
        yield from _numbered(records, f"{of_study}/resolved", Kind.STATE, _typed(Resolved))
        yield from _numbered(records, f"{of_study}/lease", Kind.LEASE, Driver.from_json)
        yield from _numbered(
            records, f"{of_study}/predictions", Kind.PREDICTION, _typed(Registered)
        )
    for folder in _all(records, "sweeps") if is_all else sorted(owned.sweeps):
        yield from _numbered(records, f"{folder}/trials", Kind.TRIAL, _typed(Asked))
        for name in records.store.list(folder):
            if name.startswith("winner-"):
                yield RecordCheck(key=f"{folder}/{name}", kind=Kind.WINNER, read=Winner.from_json)
    yield from _of_adopted(records, owned, is_all=is_all)
    if is_all:
        yield from _of_store(records)


def _of_stage(records: Records, science_hash: str) -> Iterator[RecordCheck]:
    key = stage_key(science_hash)
    present = set(records.store.list(key))
    if present:  # a file among the folders of stages is none of ours
        yield RecordCheck(
            key=f"{key}/identity.json",
            kind=Kind.IDENTITY,
            read=lambda plain, where: records.identity(science_hash),
            stage=science_hash,
        )
    if "done.json" in present:
        yield RecordCheck(
            key=f"{key}/done.json",
            kind=Kind.RESULT,
            read=lambda plain, where: records.done(science_hash),
            stage=science_hash,
        )
    sides: dict[str, Callable[[JsonObject, str], object]] = {
        "attempts": AttemptStart.from_json,
        "ends": AttemptEnd.from_json,
        "decisions": DecisionRecord.from_json,
    }
    for name, read in sides.items():
        yield from _numbered(records, f"{key}/{name}", Kind.HISTORY, read, science_hash)
    archive = f"{key}/superseded"
    yield from _numbered(records, archive, Kind.ARCHIVED, DoneRecord.from_json, science_hash)


def _numbered(
    records: Records,
    prefix: str,
    kind: Kind,
    read: Callable[[JsonObject, str], object],
    stage: str = "",
) -> Iterator[RecordCheck]:
    for key in records.store.numbered_keys(prefix):
        yield RecordCheck(key=key, kind=kind, read=read, stage=stage)


def _of_adopted(records: Records, owned: Owned, *, is_all: bool) -> Iterator[RecordCheck]:
    for sha256 in _held(records):
        if is_all or sha256 in owned.adopted:
            yield RecordCheck(
                key=f"{adopted_key(sha256)}/record.json",
                kind=Kind.ADOPTED,
                read=functools.partial(_read_adopted, records, sha256),
                apart=adopted_key(sha256),
            )
    for name in adopted_names(records) if is_all else ():
        yield RecordCheck(
            key=name_key(name), kind=Kind.NAME, read=functools.partial(_read_name, records, name)
        )


def _read_adopted(records: Records, sha256: str, plain: JsonObject, where: str) -> object:
    return find_adopted(records, sha256)


def _read_name(records: Records, name: str, plain: JsonObject, where: str) -> None:
    sha256 = held_by(records, name)
    if sha256 not in _held(records):
        raise DamagedRecord(f"{where}: the store has no encoder {sha256}")


def _held(records: Records) -> list[str]:
    """Digests of the adopted encoders."""
    folders = [name for name in records.store.list("adopted") if len(name) == 2]
    return [sha for name in folders for sha in records.store.list(f"adopted/{name}")]


def _of_store(records: Records) -> Iterator[RecordCheck]:
    for folder in _all(records, "models"):
        yield from _numbered(records, folder, Kind.MODEL, lambda plain, where: plain)
    for name in records.store.list("datasets"):
        yield RecordCheck(key=f"datasets/{name}", kind=Kind.FACTS, read=_typed(DataFacts))
    if "store.json" in records.store.list(""):
        yield RecordCheck(key="store.json", kind=Kind.STORE, read=lambda plain, where: plain)


def _all(records: Records, folder: str) -> list[str]:
    return [f"{folder}/{name}" for name in records.store.list(folder)]


def _files(records: Records, owned: Owned, *, is_all: bool) -> Iterator[FileCheck]:
    """Of all records that are whole; those that are not have been named."""
    known = records.known_stages()
    for science_hash in sorted(known if is_all else known & owned.stages.keys()):
        yield from _outputs(records, science_hash)
        yield from _checkpoints(records, science_hash)
    for sha256 in _held(records):
        if is_all or sha256 in owned.adopted:
            yield from _adopted_files(records, sha256)


def _outputs(records: Records, science_hash: str) -> Iterator[FileCheck]:
    """Files that the present result and the archived ones name."""
    key = stage_key(science_hash)
    present = _done(records, science_hash)
    found = [(present, f"{key}/done.json", Kind.OUTPUT)]
    for place in records.store.numbered_keys(f"{key}/superseded"):
        found.append((records.side(place, DoneRecord.from_json, ""), place, Kind.ARCHIVED))
    for record, place, kind in found:
        if record is not None:
            for name, sha in record.outputs.items():
                at = output_key(record, name)
                yield FileCheck(key=at, kind=kind, sha256=sha, apart=place, stage=science_hash)


def _adopted_files(records: Records, sha256: str) -> Iterator[FileCheck]:
    try:
        adopted = find_adopted(records, sha256)
    except (StoreError, StudyError):  # named as a damaged record
        return
    folder = adopted_key(sha256)
    for name, digest in adopted.record["files"].items():
        yield FileCheck(key=adopted.key(name), kind=Kind.ADOPTED, sha256=digest, apart=folder)


def _checkpoints(records: Records, science_hash: str) -> Iterator[FileCheck]:
    """Files of the checkpoints that were committed; a damaged manifest is a file of its own."""
    top = f"{stage_key(science_hash)}/checkpoints"
    for name in records.store.list(top):
        key = f"{top}/{name}/{MANIFEST}"
        content = records.store.read(key) if parse_directory(name) else None
        if content is None:
            continue
        try:
            files = {f: entry.sha256 for f, entry in Manifest.from_json(content).files.items()}
        except CheckpointError:
            files = {MANIFEST: "none that agrees with it"}
        for file, sha256 in files.items():
            yield FileCheck(
                key=f"{top}/{name}/{file}",
                kind=Kind.CHECKPOINT,
                sha256=sha256,
                apart=f"{top}/{name}",
                stage=science_hash,
            )


def _done(records: Records, science_hash: str) -> DoneRecord | None:
    try:
        return records.done(science_hash)
    except StoreError:
        return None


def _stale(records: Records, owned: Owned) -> Iterator[str]:
    """Stages whose record says other outputs of a parent than the parent's own record."""
    for science_hash, addresses in owned.stages.items():
        record = _done(records, science_hash)
        for parent, digests in record.parents.items() if record else ():
            present = _done(records, parent)
            if present is not None and present.outputs != digests:
                yield addresses[0]
                break


def _size(records: Records, key: str) -> int:
    try:
        return records.store.path(key).stat().st_size
    except OSError:
        return 0
