"""Tensors and metadata as one safetensors file: written whole, read without unpickling."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mae_core.errors import CheckpointError
from mae_core.runtime.storage import umasked

METADATA = "mae_study"
"""The one entry of a file's metadata: JSON of everything in it."""
State = Mapping[str, torch.Tensor]


def expect_format(path: Path, metadata: Mapping[str, str], expected: str) -> None:
    """Refuse (`CheckpointError`) a file whose metadata does not name the expected format."""
    found = metadata.get("format", "none")
    if found != expected:
        raise CheckpointError(f"{path}: format {found!r} in its metadata, expected {expected!r}")


def load_state(module: torch.nn.Module, state: State, path: Path) -> None:
    """Copy `state` into `module`; `CheckpointError` on missing or unknown keys, wrong shapes."""
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if missing := sorted(set(wanted) - set(found)):
        raise CheckpointError(f"{path}: lacks {len(missing)} tensors: {', '.join(missing[:5])}")
    if unknown := sorted(set(found) - set(wanted)):
        raise CheckpointError(f"{path}: {len(unknown)} unknown tensors: {', '.join(unknown[:5])}")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise CheckpointError(f"{path}: {name} has shape {found[name]}, expected {shape}")
    module.load_state_dict(dict(state))


def write_tensors(path: Path, state: State, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically (temporary name, then rename); floats as float32.

    Equal content gives equal bytes: the metadata is one entry, since safetensors writes several in
    an order that changes from call to call.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    tensors = {name: _portable(value) for name, value in state.items()}
    described = {METADATA: json.dumps(dict(metadata), sort_keys=True)}
    try:
        write_safetensors(temporary, tensors, described)
        temporary.chmod(umasked(0o666))  # safetensors makes it 0600
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_safetensors(path: Path, tensors: State, metadata: dict[str, str]) -> None:
    """Write a safetensors file; `OSError` says why it cannot be written."""
    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError:  # bears no number: the system is asked for the same room, and says it
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, sum(t.nbytes for t in tensors.values()))
        raise


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read the tensors (CPU) and metadata of a safetensors file; `CheckpointError` if damaged."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names: list[str] = list(file.keys())
            metadata = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            if not isinstance(metadata, dict):
                raise ValueError("its metadata are no mapping")
            return {name: file.get_tensor(name) for name in names}, metadata
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error


def _portable(value: torch.Tensor) -> torch.Tensor:
    value = value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype)
    return value.contiguous().clone()
