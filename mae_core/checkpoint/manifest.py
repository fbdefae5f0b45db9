"""The manifest of a checkpoint: the one file that makes a directory a checkpoint.

It names every file with its size and SHA-256, and says what was saved, by whom, and what must be
found again after it was loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from mae_core.errors import CheckpointError
from mae_core.runtime.storage import is_safe

MANIFEST = "manifest.json"
OLD_ATTEMPT = "lease_epoch"
MAX_MANIFEST_BYTES = 64 << 20
_DIRECTORY = re.compile(r"step-(\d{9})-(\d{6})")
_SHA = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileEntry:
    """One file of a checkpoint."""

    size: int
    """Bytes."""
    sha256: str
    rank: int
    """Who wrote it, and reads it in a gang of the same size."""


@dataclass(frozen=True)
class GangLayout:
    """What must be equal for a resumed run to be bit-exact; otherwise it is order-exact."""

    world_size: int
    zero_stage: int
    micro_batch: int
    accumulation: int
    precision: str
    threads: int
    device: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Manifest:
    """What a committed checkpoint holds."""

    step: int
    """Optimizer updates done."""
    science_hash: str
    attempt: int
    """Number of the attempt that saved it; in older checkpoints the epoch of its driver's lease."""
    layout: GangLayout
    position: dict[str, int]
    """Where the data stands: `images_seen`, `epoch`, `offset` within it."""
    parameter_digest: str
    """Of the weights; see `mae_core.checkpoint.weights_checksum`."""
    probe_loss: float
    """Of a fixed batch under these weights."""
    files: dict[str, FileEntry] = field(default_factory=dict)
    """Relative name → entry."""

    @property
    def num_bytes(self) -> int:
        """Size of all files together."""
        return sum(f.size for f in self.files.values())

    def to_json(self) -> bytes:
        """JSON, sorted, with the digest of the rest in `digest`."""
        return _encode(asdict(self) | {"digest": _digest(asdict(self))})

    @classmethod
    def from_json(cls, content: bytes) -> Manifest:
        """Parse and check; raises `CheckpointError`, whatever the content is."""
        if len(content) > MAX_MANIFEST_BYTES:
            raise CheckpointError(f"the manifest has {len(content)} bytes: it is not one")
        try:
            raw = json.loads(content)
            digest = raw.pop("digest")
            if digest != _digest(raw) or content != _encode(raw | {"digest": digest}):
                raise ValueError("its own digest differs")
            if OLD_ATTEMPT in raw:
                raw["attempt"] = raw.pop(OLD_ATTEMPT)
            layout = GangLayout(**raw.pop("layout"))
            files = {_checked(n): FileEntry(**e) for n, e in raw.pop("files").items()}
            manifest = cls(**raw, layout=layout, files=files)
            _check(manifest)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"the manifest is damaged ({error})") from error
        return manifest


def _checked(name: str) -> str:
    """Return a file's name; raises `CheckpointError` if no checkpoint can hold it."""
    if len(name) > 255 or "\\" in name or not is_safe(name):
        raise CheckpointError(f"file name {name[:80]!r} is not one that a checkpoint can hold")
    return name


def _encode(body: Mapping[str, object]) -> bytes:
    return json.dumps(body, sort_keys=True, indent=1, allow_nan=False).encode()


def _digest(body: Mapping[str, object]) -> str:
    """Of the manifest itself, so that not one bit of it can change unseen."""
    return hashlib.sha256(_encode(body)).hexdigest()


def _check(manifest: Manifest) -> None:
    """Raise `ValueError` or `TypeError` unless every value has its type and range."""
    wanted = {"step": int, "science_hash": str, "attempt": int, "parameter_digest": str}
    for name, kind in wanted.items():
        if type(getattr(manifest, name)) is not kind:
            raise TypeError(f"{name} is {getattr(manifest, name)!r}")
    if not math.isfinite(manifest.probe_loss):
        raise ValueError("its loss is not finite")
    for name in (f.name for f in fields(GangLayout) if f.type == "int"):
        if type(getattr(manifest.layout, name)) is not int or getattr(manifest.layout, name) < 0:
            raise TypeError(f"layout.{name} is {getattr(manifest.layout, name)!r}")
    for entry in manifest.files.values():
        whole = type(entry.size) is int and type(entry.rank) is int and entry.size >= 0
        if not whole or entry.rank < 0 or not _SHA.fullmatch(entry.sha256):
            raise ValueError(f"a file entry is {entry}")
    if not manifest.files or manifest.step < 0 or manifest.layout.world_size < 1:
        raise ValueError("it names no files, no step or no ranks")


def directory_name(step: int, attempt: int) -> str:
    """Directory of a checkpoint; two gangs never share one, even if one was thought to be dead."""
    return f"step-{step:09d}-{attempt:06d}"


def parse_directory(name: str) -> tuple[int, int] | None:
    """(step, attempt) of a checkpoint's directory, None for any other name."""
    match = _DIRECTORY.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None
