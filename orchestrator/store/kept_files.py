"""The one door to files that the store keeps with a digest: each is compared before it is read."""

from __future__ import annotations

from pathlib import Path

from mae_core.runtime.storage import digest_file
from orchestrator.errors import DamagedRecord
from orchestrator.store.adopted import find_adopted
from orchestrator.store.records import DoneRecord, Records, stage_key


def output(records: Records, record: DoneRecord, name: str) -> Path:
    """Path of a file that a finished stage left, as it left it.

    Raises:
        DamagedRecord: it is another file now, or gone.
    """
    return checked(records, output_key(record, name), record.outputs[name])


def output_key(record: DoneRecord, name: str) -> str:
    """Where the store keeps it."""
    return f"{stage_key(record.science_hash)}/attempts/{record.attempt:06d}/outputs/{name}"


def adopted_file(records: Records, reference: str, name: str) -> Path:
    """Path of a file of an adopted encoder, as it was adopted.

    Raises:
        StudyError: there is no such encoder.
        DamagedRecord: it is another file now, or gone.
    """
    found = find_adopted(records, reference)
    return checked(records, found.key(name), found.record["files"][name])


def checked(records: Records, key: str, sha256: str) -> Path:
    """Path of a file of the store; raises `DamagedRecord` unless it has that digest."""
    path = records.store.path(key)
    try:
        found = digest_file(path)
    except OSError as error:
        reason = error.strerror or error
        raise DamagedRecord(f"{path} is damaged: it cannot be read ({reason})") from error
    if found != sha256:
        raise DamagedRecord(f"{path} is damaged: its SHA-256 is not that of its record")
    return path


def check_named(records: Records, path: Path) -> Path:
    """Return a path that a user named; a file that the store keeps is compared first.

    Raises:
        DamagedRecord: it is not what was kept.
    """
    root, real = records.store.path("").resolve(), path.resolve()
    parts = real.relative_to(root).parts if real.is_relative_to(root) else ()
    match parts:
        case ("stages", _, science_hash, "attempts", attempt, "outputs", *rest):
            for record in (records.done(science_hash), *records.archived(science_hash)):
                name = "/".join(rest)
                if record and f"{record.attempt:06d}" == attempt and name in record.outputs:
                    output(records, record, name)
        case ("adopted", _, sha256, "files", name):
            adopted_file(records, sha256, name)
    return path
