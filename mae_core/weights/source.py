"""Files that others wrote: safetensors, or pickles of tensors and plain containers alone.

No code of a file ever runs. `torch.load` builds nothing but tensors and plain containers
(`weights_only`); one type is allowed beyond its own list, `argparse.Namespace`, in which the
official fine-tuned checkpoints keep their command line: an empty object whose attributes are set.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mae_core.checkpoint.shards import foreign_types
from mae_core.checkpoint.tensor_file import read_tensors
from mae_core.errors import CheckpointError, ConfigError

INERT = (argparse.Namespace,)
"""Types beyond torch's own list that a pickle may hold: building them runs no code."""
INDEX, SAFETENSORS, PICKLE = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin",
)
CONTAINERS = ("model", "state_dict")
"""Keys under which a training checkpoint keeps its weights (official code; timm and others)."""
WRAPPER = "module."
"""Prefix that PyTorch's data-parallel wrapper puts before every key."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What another library's file holds."""

    path: Path
    tensors: dict[str, Tensor]
    config: Mapping[str, object]
    """Its `config.json`, empty if there is none."""
    digests: dict[str, str]
    """SHA-256 of each file that was read, by name."""
    container: str = ""
    """Key of the pickle under which the tensors were."""
    left_out: tuple[str, ...] = ()
    """Other keys of the pickle, such as `optimizer`."""


def read_source(path: Path) -> Source:
    """Read a checkpoint file, or a folder as Hugging Face writes it.

    Raises:
        ConfigError: there is no such file, or a pickle holds what is no tensor.
        CheckpointError: the file is damaged.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; name a checkpoint, or a folder with config.json")
    beside = path.parent / "config.json"
    config = _read_json(beside) if path.name in (SAFETENSORS, PICKLE) and beside.is_file() else {}
    return _read_file(path, config)


def digest_file(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_folder(folder: Path) -> Source:
    config = _read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if (folder / INDEX).is_file():
        return _read_shards(folder, config)
    for name in (SAFETENSORS, PICKLE):
        if (folder / name).is_file():
            return _read_file(folder / name, config)
    raise ConfigError(f"{folder}: has neither {SAFETENSORS} nor {PICKLE}; name the file itself")


def _read_shards(folder: Path, config: Mapping[str, object]) -> Source:
    places = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(n, str) for n in places.values()):
        raise CheckpointError(f"{folder / INDEX}: has no weight_map of file names")
    names = sorted(set(places.values()))
    tensors: dict[str, Tensor] = {}
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{folder / INDEX}: file {name!r} is not in the folder")
        tensors |= read_tensors(folder / name)[0]
    digests = {name: digest_file(folder / name) for name in names}
    return Source(path=folder, tensors=tensors, config=config, digests=digests)


def _read_file(path: Path, config: Mapping[str, object]) -> Source:
    digests = {path.name: digest_file(path)}
    if path.suffix == ".safetensors":
        tensors, metadata = read_tensors(path)
        if "format" in metadata:
            raise ConfigError(
                f"{path} is a file of mae-study itself ({metadata['format']}): there is nothing to "
                "convert"
            )
        return Source(path=path, tensors=tensors, config=config, digests=digests)
    content = _unpickle(path)
    container, mapping = _weights(path, content)
    return Source(
        path=path,
        tensors=_unwrapped(mapping),
        config=config,
        digests=digests,
        container=container,
        left_out=tuple(sorted(map(str, content))) if container else (),
    )


def _unpickle(path: Path) -> Mapping[object, object]:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(INERT)):
            warnings.simplefilter("ignore")  # about pickle protocols, which the user cannot change
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError, KeyError …
        raise _refusal(path, error) from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} holds a {type(content).__name__}, expected a mapping of tensors")
    return content


def _refusal(path: Path, error: Exception) -> Exception:
    """Say which types a pickle asks for, or that it is no checkpoint at all."""
    if zipfile.is_zipfile(path):
        with path.open("rb") as stream:
            foreign = foreign_types(stream, INERT)
    else:  # the format before torch 1.6 cannot be searched: the message names the first type
        foreign = re.findall(r"GLOBAL (\S+) ", str(error))[:1]
    if foreign and " " not in foreign[0]:
        return ConfigError(
            f"{path} is refused: its pickle asks for {', '.join(foreign)}, and only tensors and "
            "plain containers are read, since other types may run code; save its state_dict alone"
        )
    return CheckpointError(f"{path}: not a readable checkpoint of torch: {type(error).__name__}")


def _weights(path: Path, content: Mapping[object, object]) -> tuple[str, Mapping[object, object]]:
    """The mapping of tensors in a checkpoint, and the key under which it is."""
    for name in CONTAINERS:
        if isinstance(found := content.get(name), Mapping):
            return name, found
    if any(isinstance(value, Tensor) for value in content.values()):
        return "", content
    keys = ", ".join(sorted(map(str, content))[:8])
    raise ConfigError(f"{path} has no weights under {' or '.join(CONTAINERS)}, only: {keys}")


def _unwrapped(mapping: Mapping[object, object]) -> dict[str, Tensor]:
    tensors = {k: v for k, v in mapping.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if strangers := [str(k) for k in mapping if k not in tensors]:
        raise ConfigError(f"not tensors among the weights: {', '.join(strangers[:8])}")
    is_wrapped = all(key.startswith(WRAPPER) for key in tensors)
    return {(k.removeprefix(WRAPPER) if is_wrapped else k): v for k, v in tensors.items()}


def _read_json(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a mapping")
    return found
