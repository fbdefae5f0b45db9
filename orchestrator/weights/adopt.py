"""Imported encoders: converted once, kept by content, found by studies as finished stages.

adopted/<hh>/<sha256>/files/          encoder.safetensors, and the decoder or classifier with it
                     /record.json     provenance: source, layout, every decision; created last
adopted/names/<name>.json             what a name stands for, permanently

`<sha256>` is the digest of the tensors, so the same weights from a `.pth` and from safetensors are
one encoder. A study names it; `finish_adopted` makes that stage a finished one.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.verdict import Cause
from mae_core.config import AdoptedRecipe
from orchestrator.errors import DamagedRecord, StoreError, UserError
from orchestrator.store.adopted import (
    FACTS,
    KIND,
    Adopted,
    adopted_key,
    check_shape,
    find_adopted,
    held_by,
    name_key,
)
from orchestrator.store.attempts import AttemptEnd, AttemptStart
from orchestrator.store.kept_files import adopted_file
from orchestrator.store.provenance import code_version
from orchestrator.store.records import DoneRecord, Records, digest_outputs, now_iso
from studies.spec.cell import check_address

if TYPE_CHECKING:
    from mae_core.weights import Conversion, Hints


def adopt(
    source: Path,
    name: str,
    records: Records,
    *,
    layout: str = "auto",
    hints: Hints | None = None,
    class_names: Sequence[str] = (),
) -> Adopted:
    """Convert a checkpoint and keep it in the store under a name; once more changes nothing.

    Raises:
        ConfigError, CheckpointError: the file is damaged, unsafe, or not of that layout.
        UserError: the name stands for another encoder, or the class names are not as many.
        StoreError: the store cannot be written.
    """
    from mae_core.weights import import_weights, tensors_digest

    _check_name(name)
    conversion = import_weights(source, layout, hints)
    classes = conversion.network.num_classes
    if class_names and len(class_names) != classes:
        raise UserError(f"{len(class_names)} class names for a head of {classes or 0} classes")
    if class_names:
        network = replace(conversion.network, class_names=tuple(class_names))
        conversion = replace(conversion, network=network)
    sha256 = tensors_digest(conversion.network)
    held = held_by(records, name)
    if held is not None and held != sha256:
        raise UserError(
            f"--name {name} stands for the encoder {held[:12]} already, and this one is "
            f"{sha256[:12]}: choose another name"
        )
    if not _is_whole(records, sha256):
        _keep(conversion, sha256, records)
    named = {
        "sha256": sha256,
        "source": str(source.absolute()),
        "source_sha256": conversion.source.digests,
        "layout": conversion.layout,
        **_facts(conversion),
        "at": now_iso(),
    }
    records.store.create_json(name_key(name), named)
    return find_adopted(records, name)


def finish_adopted(
    records: Records,
    science_hash: str,
    science: Mapping[str, object],
    sha256: str,
    recipe: AdoptedRecipe | None = None,
) -> DoneRecord:
    """Make the stage of that identity a finished one, whose outputs are the adopted files.

    Does nothing if it is finished. `recipe` is of the stage, if a study has it.

    Raises:
        StudyError: the store has no such encoder, or it has another shape.
        StoreError: its files are no longer what was adopted.
    """
    done = records.done(science_hash)
    if done is not None:
        return done
    adopted = find_adopted(records, sha256)
    if recipe is not None:
        check_shape(adopted, recipe)
    records.write_identity(science_hash, science)
    start = AttemptStart(adopted=adopted.sha256, code=code_version())
    number = records.begin_attempt(science_hash, start)
    outputs = records.outputs(science_hash, number)
    for file in adopted.record["files"]:
        _link(adopted.folder / file, outputs / file)
    digests = digest_outputs(outputs)
    if digests != adopted.record["files"]:
        raise DamagedRecord(
            f"{adopted.folder} is damaged: its files are not what was adopted; adopt "
            f"{adopted.record['source']} again"
        )
    end = AttemptEnd(cause=Cause.SUCCESS.value, is_result=True)
    records.end_attempt(science_hash, number, end)
    record = DoneRecord(
        science_hash=science_hash,
        kind=KIND,
        attempt=number,
        metrics={},
        outputs=digests,
        parents={},
        seconds=0.0,
        world_size=1,
        provenance={"adopted": adopted.record, "code": code_version()},
    )
    records.complete(record)
    return records.done(science_hash) or record


def _is_whole(records: Records, sha256: str) -> bool:
    """Tell whether the store has an encoder; a damaged one is moved out of the way."""
    key = adopted_key(sha256)
    try:
        if records.store.read_json(f"{key}/record.json") is None:
            return False
        for file in find_adopted(records, sha256).record["files"]:
            adopted_file(records, sha256, file)
    except DamagedRecord:
        records.store.set_apart([key])
        return False
    return True


def _check_name(name: str) -> None:
    check_address("name", name)
    if "/" in name:
        raise UserError(f"--name {name}: must not contain /")


def _keep(conversion: Conversion, sha256: str, records: Records) -> None:
    """Write files and record; of two writers of one encoder the first wins, with equal content."""
    from mae_core.weights import save_own

    final = records.store.path(f"{adopted_key(sha256)}/files")
    temporary = records.store.path(f"adopted/.{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        extra = {"adopted": sha256}
        save_own(conversion.network, temporary, extra)
        final.parent.mkdir(parents=True, exist_ok=True)
        files = digest_outputs(temporary)  # on disk before they have their name
        if final.exists() and digest_outputs(final) != files:
            records.store.set_apart([f"{adopted_key(sha256)}/files"])
        if not final.exists():
            os.rename(temporary, final)
    except OSError as error:
        raise StoreError(f"cannot write {final}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    record = _record(conversion, sha256, files)
    records.store.create_json(f"{adopted_key(sha256)}/record.json", record)


def _record(conversion: Conversion, sha256: str, files: dict[str, str]) -> dict[str, Any]:
    network, source = conversion.network, conversion.source
    return {
        "sha256": sha256,
        "source": str(source.path.absolute()),
        "source_sha256": source.digests,
        "layout": conversion.layout,
        "container": source.container,
        "prefix": source.prefix,
        **_facts(conversion),
        "encoder": asdict(network.encoder),
        "decoder": network.decoder and asdict(network.decoder),
        "num_classes": network.num_classes,
        "image_size": network.image_size,
        "num_channels": network.num_channels,
        "position_error": conversion.position_error,
        "files": files,
        "notes": list(conversion.notes),
        "left_out": list(conversion.left_out),
        "left_out_of_the_pickle": list(source.left_out),
        "mapping": {ours: list(theirs) for ours, theirs in conversion.mapping.items()},
        "code": code_version(),
        "adopted_at": now_iso(),
    }


def _facts(conversion: Conversion) -> dict[str, Any]:
    """What is known of the pretraining and its images, null where nobody says it."""
    return {name: getattr(conversion.facts, name) for name in FACTS}


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
