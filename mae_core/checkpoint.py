"""Checkpoints that are either whole or not there.

Shards are written into a `.partial` directory; once every rank is done, a manifest with size and
SHA-256 of each file is written and fsynced, and the directory is renamed. A reader knows only
manifests: it verifies every byte before anything is unpickled, and a damaged checkpoint is named
and the previous one used. Nothing here follows a `latest` pointer.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mae_core import dist
from mae_core.errors import CheckpointError

MANIFEST = "manifest.json"
KEEP = 2


@dataclass(frozen=True)
class Manifest:
    """What a committed checkpoint holds."""

    step: int
    """Optimizer updates done."""
    science_hash: str
    world_size: int
    zero_stage: int
    files: dict[str, tuple[int, str]]
    """Relative name → (bytes, SHA-256)."""

    def to_json(self) -> str:
        """JSON, sorted."""
        return json.dumps(self.__dict__, sort_keys=True, indent=1)

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Read a manifest; raises `CheckpointError` if it is not one."""
        try:
            raw = json.loads((directory / MANIFEST).read_text())
            files = {name: (int(size), str(sha)) for name, (size, sha) in raw["files"].items()}
            names = ("step", "science_hash", "world_size", "zero_stage")
            return cls(**{n: raw[n] for n in names}, files=files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{directory}: no readable manifest ({error})") from error


def commit(
    directory: Path,
    write_shards: Callable[[Path], None],
    *,
    step: int,
    science_hash: str,
    zero_stage: int,
) -> Path:
    """Write and commit the checkpoint of `step` under `directory` (collective); return its path."""
    final = directory / f"step-{step:09d}"
    partial = final.with_suffix(".partial")
    if dist.rank() == 0:
        for leftover in (partial, final):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    write_shards(partial)
    dist.barrier()
    files = _digest_together(partial, _list_files(partial), sync=True)
    if dist.rank() == 0:
        manifest = Manifest(step, science_hash, dist.world(), zero_stage, files)
        _write_synced(partial / MANIFEST, manifest.to_json())
        os.rename(partial, final)
        _sync_directory(directory)
        _retain(directory)
    dist.barrier()
    return final


def find(directory: Path, *, science_hash: str, zero_stage: int) -> tuple[Path, Manifest] | None:
    """Return the newest whole checkpoint of this identity, agreed by all ranks (collective)."""
    for path in dist.broadcast_object(_candidates(directory)):
        try:
            manifest = Manifest.read(path)
            problem = _unfit(manifest, science_hash) or _damage(path, manifest)
        except CheckpointError as error:
            problem = str(error)
        problems = [p for p in dist.all_gather_object(problem) if p]
        if not problems:
            _check_layout(path, manifest, zero_stage)
            return path, manifest
        if dist.rank() == 0:
            print(f"checkpoint {path} is not used: {problems[0]}", file=sys.stderr, flush=True)
    return None


def _candidates(directory: Path) -> list[Path]:
    return sorted((p for p in directory.glob("step-*") if p.suffix != ".partial"), reverse=True)


def _unfit(manifest: Manifest, science_hash: str) -> str | None:
    if manifest.science_hash != science_hash:
        return f"it belongs to another run ({manifest.science_hash})"
    return None


def _damage(path: Path, manifest: Manifest) -> str | None:
    """Say what is wrong with this rank's share of the files, None if nothing."""
    for name in sorted(manifest.files)[dist.rank() :: dist.world()]:
        size, sha = manifest.files[name]
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if _sha256(file) != sha:
            return f"{name} is damaged (SHA-256 differs)"
    return None


def _check_layout(path: Path, manifest: Manifest, zero_stage: int) -> None:
    """Refuse what DeepSpeed cannot load as it is, before it fails obscurely."""
    if manifest.world_size != dist.world():
        raise CheckpointError(
            f"{path} was written by {manifest.world_size} ranks and this gang has {dist.world()}: "
            f"run with execution.world_size={manifest.world_size}, "
            "or delete the checkpoint directory to start this stage again"
        )
    if manifest.zero_stage != zero_stage:
        raise CheckpointError(
            f"{path} was written with ZeRO stage {manifest.zero_stage}, not {zero_stage}: "
            f"run with execution.zero_stage={manifest.zero_stage}"
        )


def _list_files(directory: Path) -> list[str]:
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())


def _digest_together(
    directory: Path, names: list[str], *, sync: bool
) -> dict[str, tuple[int, str]]:
    """Each rank hashes its share of the files; all get the whole list."""
    mine = {}
    for name in names[dist.rank() :: dist.world()]:
        file = directory / name
        if sync:
            _sync_file(file)
        mine[name] = (file.stat().st_size, _sha256(file))
    return {name: entry for part in dist.all_gather_object(mine) for name, entry in part.items()}


def _retain(directory: Path) -> None:
    """Keep the newest two; the manifest goes first, so that a half-deleted one is never read."""
    for old in _candidates(directory)[KEEP:]:
        (old / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync_file(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(directory: Path) -> None:
    _sync_file(directory)


def _write_synced(file: Path, text: str) -> None:
    with file.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
