"""Finished stages that a stage builds on: where their outputs are, checked before they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae_core.errors import CheckpointError
from mae_core.runtime.json_values import Json
from mae_core.runtime.storage import digest_file


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A finished stage of the same cell."""

    name: str
    """Of the stage, such as `pretrain`."""
    kind: str
    files: Mapping[str, Path]
    """Path of each output by its name."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the outputs; what has none is not checked."""
    metrics: Mapping[str, Json] = field(default_factory=dict)
    """What its completion record says."""
    recipe: Mapping[str, Json] = field(default_factory=dict)
    """What it was asked to compute: plain values by field."""

    def path(self, file: str) -> Path:
        """Path of an output; `CheckpointError` if it is not what the stage wrote."""
        path = self.files[file]
        if file in self.digests:
            verify(path, self.digests[file])
        return path

    def to_json(self) -> dict[str, object]:
        """As plain values."""
        files = {name: str(path) for name, path in self.files.items()}
        return {**self.__dict__, "files": files}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Parent:
        """Read one from a payload, where paths are text."""
        files = {name: Path(path) for name, path in plain["files"].items()}
        return cls(**{**plain, "files": files})


def find_input(parents: tuple[Parent, ...], file: str) -> Path | None:
    """Path of the file that one of the parents left, verified; None if none has it."""
    for parent in parents:
        if file in parent.files:
            return parent.path(file)
    return None


def verify(path: Path, sha256: str) -> None:
    """Refuse (`CheckpointError`) a parent's output that is not what its completion record says."""
    try:
        found = digest_file(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    if found != sha256:
        raise CheckpointError(
            f"{path} is not what its stage wrote (SHA-256 differs): the file is damaged; "
            "`mae-study verify` says how to compute it again"
        )
