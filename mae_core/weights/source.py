"""Files that others wrote: safetensors, or pickles of tensors and plain containers alone.

No code of a file ever runs. `torch.load` builds nothing but tensors and plain containers
(`weights_only`); one type is allowed beyond its own list, `argparse.Namespace`, in which the
official checkpoints keep their command line: an empty object whose attributes are set. Paths and
NumPy's values, which settings and histories often have, are read as objects that hold nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae_core.checkpoint.shards import foreign_types
from mae_core.checkpoint.tensor_file import read_tensors
from mae_core.errors import CheckpointError, ConfigError
from mae_core.runtime.storage import digest_file
from mae_core.weights.lookalikes import advice
from mae_core.weights.readings import Reading, choose, find_readings, mappings


class Inert:
    """Stands for a value that takes no part: forgets whatever a pickle gives it."""

    def __init__(self, *_: object) -> None:
        """Take anything, as the functions do that a pickle asks for in its place."""

    def __setstate__(self, _: object) -> None:
        """Take any state."""

    def __repr__(self) -> str:
        """As notes name it."""
        return "(a type that is not read)"


_FORGOTTEN = (
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "mmengine.logging.history_buffer.HistoryBuffer",
)
INERT: list[Any] = [argparse.Namespace, *((Inert, name) for name in _FORGOTTEN)]
"""Types beyond torch's own list that a pickle may hold, or what is built in their place: building
them runs no code."""
CONFIG, ADAPTER, PIXELS = "config.json", "adapter_config.json", "preprocessor_config.json"
INDEX = ".index.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Hugging Face's names, whole or with `INDEX` behind them, in the order of transformers."""
ARGUMENTS = ("args", "hyper_parameters", "config", "cfg", "hparams")
"""Keys under which a training checkpoint keeps its settings (official code, timm; Lightning; …)."""
_STARTS = (
    (b"version https://git-lfs", "a pointer of Git LFS instead of the weights: run `git lfs pull`"),
    (b"<", "a web page or XML, not weights: download it again"),
    (b"\x89HDF", "an HDF5 file of Keras: save it from PyTorch"),
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What another library's file holds."""

    path: Path
    tensors: dict[str, Tensor]
    """Of one network, without what stood before their keys."""
    config: Mapping[str, object]
    """Its `config.json`, empty if there is none."""
    digests: dict[str, str]
    """SHA-256 of each file that was read, by name."""
    container: str = ""
    """Keys of the pickle under which the tensors were, joined by dots."""
    prefix: str = ""
    """What stood before every key."""
    arguments: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Settings of the training that the pickle keeps, by the keys they were under, with dots."""
    pixels: Mapping[str, object] = field(default_factory=dict)
    """Its `preprocessor_config.json`, empty if there is none."""
    left_out: tuple[str, ...] = ()
    """Other keys of the pickle, such as `optimizer`."""
    outside: tuple[str, ...] = ()
    """Tensors beside the network in the same mapping."""
    notes: tuple[str, ...] = ()
    """Which of several files was read, and which names of wrappers were dropped."""


@dataclass(frozen=True, kw_only=True)
class _Files:
    """Content of the files of weights, before a network is looked for."""

    content: Mapping[object, object]
    digests: dict[str, str]
    notes: tuple[str, ...] = ()


def read_source(path: Path, part: str | None = None) -> Source:
    """Read a checkpoint file, or a folder as Hugging Face writes it.

    `part` names the network where there are several, as the refusal without it lists them.

    Raises:
        ConfigError: there is no such file, a pickle holds what is no tensor, there is no network
            that is known, or there are several.
        CheckpointError: the file is damaged.
    """
    is_folder = path.is_dir()
    if not is_folder and not path.is_file():
        raise ConfigError(f"{path}: no such file; name a checkpoint, or a folder with {CONFIG}")
    files = _read_folder(path) if is_folder else _read_named(path)
    folder = path if is_folder else path.parent
    is_standard = is_folder or path.name.removesuffix(INDEX) in WEIGHTS
    try:
        readings = find_readings(files.content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not readings:
        raise ConfigError(_nothing(path, files.content))
    reading = choose(path, readings, part)
    return Source(
        path=path,
        tensors=reading.tensors,
        config=_with_changes(_optional(folder / CONFIG)) if is_standard else {},
        digests=files.digests,
        container=".".join(reading.container),
        prefix=reading.prefix,
        arguments=_arguments(files.content),
        pixels=_optional(folder / PIXELS) if is_standard else {},
        left_out=_other_keys(files.content, reading),
        outside=reading.outside,
        notes=(*files.notes, *_notes(reading)),
    )


def _read_folder(folder: Path) -> _Files:
    if (folder / ADAPTER).is_file():
        raise ConfigError(
            f"{folder} is an adapter ({ADAPTER}), not a whole network: merge it into its base "
            "model first (merge_and_unload), and save that"
        )
    names = [name + end for name in WEIGHTS for end in ("", INDEX)]
    there = [name for name in names if (folder / name).is_file()]
    if not there:
        raise ConfigError(
            f"{folder}: has neither {' nor '.join(WEIGHTS)}; name the file of weights itself"
        )
    files = _read_named(folder / there[0])
    beside = (f"read {there[0]}, as transformers does; not {', '.join(there[1:])} beside it",)
    return _Files(
        content=files.content,
        digests=files.digests,
        notes=(*files.notes, *(beside if there[1:] else ())),
    )


def _read_named(path: Path) -> _Files:
    if path.name.endswith(INDEX):
        return _read_shards(path)
    _check_whole(path)
    return _Files(content=_read_file(path), digests={path.name: digest_file(path)})


def _check_whole(path: Path) -> None:
    """Refuse one shard of several: it may hold an encoder and lack the decoder, unnoticed."""
    for name in WEIGHTS:
        index = path.with_name(name + INDEX)
        places = _optional(index).get("weight_map") if path.name != name else None
        files = set(map(str, places.values())) if isinstance(places, dict) else set()
        if path.name in files and len(files) > 1:
            raise ConfigError(
                f"{path} is one of the {len(files)} shards of {index.name}: name the folder "
                "or the index, to read all of them"
            )


def _read_shards(index: Path) -> _Files:
    """All shards of an index, which must say of each tensor the one file that has it."""
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(n, str) for n in places.values()):
        raise CheckpointError(f"{index}: has no weight_map of file names")
    names = sorted(set(places.values()))
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"{index}: file {name!r} is not in the folder")
        if "\0" in name or not index.with_name(name).is_file():
            raise CheckpointError(f"{index}: shard {name!r} is missing; copy it beside the index")
    content: dict[object, object] = {}
    for name in names:
        shard = _read_file(index.with_name(name))
        wanted = {key for key, place in places.items() if place == name}
        if doubled := sorted(map(str, shard.keys() & content.keys())):
            raise CheckpointError(f"{index}: in more than one shard: {', '.join(doubled[:8])}")
        if strange := sorted(map(str, shard.keys() ^ wanted)):
            raise CheckpointError(
                f"{index.with_name(name)} has not the tensors that {index.name} says: "
                f"{', '.join(strange[:8])}; the files are not of one checkpoint"
            )
        content |= shard
    digests = {name: digest_file(index.with_name(name)) for name in (index.name, *names)}
    return _Files(content=content, digests=digests)


def _read_file(path: Path) -> Mapping[object, object]:
    _check_start(path)
    if path.suffix != ".safetensors":
        return _unpickle(path)
    tensors, metadata = read_tensors(path)
    if "format" in metadata:
        raise ConfigError(
            f"{path} is a file of mae-study itself ({metadata['format']}): there is nothing to "
            "convert"
        )
    return dict[object, object](tensors.items())


def _check_start(path: Path) -> None:
    """Name what is often found in place of weights."""
    with path.open("rb") as stream:
        start = stream.read(64)
    if not start:
        raise CheckpointError(f"{path} is empty (0 bytes): copy or download it again")
    for sign, kind in _STARTS:
        if start.lstrip().startswith(sign):
            raise ConfigError(f"{path} is {kind}")


def _unpickle(path: Path) -> Mapping[object, object]:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(INERT):
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
    names = _members(path)
    if "constants.pkl" in names:
        return ConfigError(f"{path} is a TorchScript program: save its state_dict() alone")
    if names and "data.pkl" not in names:
        return ConfigError(f"{path} is an archive that torch did not write (NumPy's .npz, a .zip)")
    if names:
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


def _members(path: Path) -> set[str]:
    """Names of the files in an archive, none if it is damaged or no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.rpartition("/")[2] for name in archive.namelist()}
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return set()


def _nothing(path: Path, content: Mapping[object, object]) -> str:
    """Why no network was found: what the file has instead."""
    keys = [str(k) for _, m in mappings(content) for k, v in m.items() if isinstance(v, Tensor)]
    if not keys:
        top = ", ".join(sorted(map(str, content))[:8])
        return (
            f"{path} holds no tensors{f', only: {top}' if top else ''}; {advice(map(str, content))}"
        )
    is_optimizer = {"state", "param_groups"} <= {str(key) for key in content}
    some = ", ".join(sorted(keys)[:6])
    signs = ("param_groups",) if is_optimizer else keys
    return f"{path}: its {len(keys)} tensors match no known layout ({some} …); {advice(signs)}"


def _arguments(content: Mapping[object, object]) -> dict[str, Mapping[str, object]]:
    """Settings by where they stand, those inside others too."""
    held = {key: content[key] for key in ARGUMENTS if key in content}
    plain: dict[object, object] = {
        k: vars(v) if isinstance(v, argparse.Namespace) else v for k, v in held.items()
    }
    return {
        ".".join(above): {str(key): value for key, value in found.items()}
        for above, found in mappings(plain)
        if above
    }


def _other_keys(content: Mapping[object, object], reading: Reading) -> tuple[str, ...]:
    """Keys of a pickle beside the container that was taken."""
    if not reading.container:
        return ()
    return tuple(sorted(key for key in map(str, content) if key != reading.container[0]))


def _notes(reading: Reading) -> list[str]:
    if not reading.wrappers:
        return []
    return [f"names of wrappers in its keys are dropped: {', '.join(reading.wrappers)}"]


def _with_changes(config: Mapping[str, object]) -> Mapping[str, object]:
    """timm's config says how a network differs from its architecture in a mapping of its own."""
    changes = config.get("model_args")
    return {**changes, **config} if isinstance(changes, Mapping) else config


def _optional(path: Path) -> Mapping[str, object]:
    return _read_json(path) if path.is_file() else {}


def _read_json(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a mapping")
    return found
