"""Which networks a file holds: found by structure, whatever containers and prefixes they are in.

A network is where the key of a patch embedding is. What stands before that key is its prefix
(`model.` of Lightning, `teacher.backbone.` of DINO, any attribute's name); the names of the
pickle's mappings above it are its container. Names of wrappers are dropped wherever they stand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mae_core.errors import ConfigError

ANCHORS = {
    "patch_embed.proj.weight": (),
    "embeddings.patch_embeddings.projection.weight": ("vit.", "decoder.", "classifier."),
    "patch_embed.projection.weight": ("backbone.", "neck.", "head.", "data_preprocessor."),
}
"""Key of the patch embedding in each layout, and the parts of a whole model, the encoder first,
where that layout names them; what stands beside these parts is another program's."""
WRAPPERS = frozenset(
    (
        "module",  # torch's data-parallel wrapper
        "_orig_mod",  # torch.compile
        "_fsdp_wrapped_module",  # FSDP
        "_checkpoint_wrapped_module",  # activation checkpointing
        "_forward_module",  # Lightning Fabric
    )
)
MAX_NESTING = 4
"""Mappings inside mappings that are searched."""
TOP = "."
"""Address of a network that has neither container nor prefix."""
SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One network of a file."""

    container: tuple[str, ...]
    """Keys of the mappings above it."""
    prefix: str
    """What stood before its keys, without wrappers; ends in a dot or is empty."""
    tensors: dict[str, Tensor]
    outside: tuple[str, ...]
    """Other tensors of the same mapping."""
    wrappers: tuple[str, ...]
    """Names that were dropped."""

    @property
    def address(self) -> str:
        """Container and prefix as the user names them."""
        return ".".join((*self.container, *self.prefix.split("."))).strip(".") or TOP


def mappings(
    content: Mapping[object, object],
) -> Iterator[tuple[tuple[str, ...], Mapping[object, object]]]:
    """A mapping and those inside it, each once, with the keys above it; `MAX_NESTING` deep."""
    seen: set[int] = set()  # a pickle may refer to itself
    waiting: list[tuple[tuple[str, ...], Mapping[object, object]]] = [((), content)]
    while waiting:
        above, found = waiting.pop(0)
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield above, found
        if len(above) < MAX_NESTING:
            inside = [(k, v) for k, v in found.items() if isinstance(v, Mapping)]
            waiting += [((*above, str(key)), value) for key, value in inside]


def find_readings(content: Mapping[object, object]) -> list[Reading]:
    """All networks in what a file holds, in its order.

    Raises `ConfigError` if two keys are one without their wrappers, or if a mapping of weights
    holds what is no tensor, or none with values.
    """
    return [r for above, found in mappings(content) for r in _readings_of(found, above)]


def choose(path: object, readings: Sequence[Reading], part: str | None) -> Reading:
    """The only reading, or the one that `part` names; never one of several by guess.

    Raises `ConfigError` that lists them.
    """
    fits = [r for r in readings if part in (None, r.address)]
    if part is not None and not fits:
        fits = [r for r in readings if r.address.startswith(part + ".")]
    if len(fits) == 1:
        return fits[0]
    listed = ", ".join(r.address for r in (fits or readings))
    if part is not None and not fits:
        raise ConfigError(f"--part {part}: {path} holds no network of this name, only: {listed}")
    raise ConfigError(
        f"{path} holds {len(fits)} networks: {listed}; say which with --part, for example --part "
        f"{fits[-1].address}"
    )


def _readings_of(content: Mapping[object, object], container: tuple[str, ...]) -> list[Reading]:
    named = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    prefixes = dict(sorted(p for key in named if (p := _prefix(_unwrapped(key))) is not None))
    if not prefixes:
        return []
    if strangers := [str(k) for k in content if k not in named]:
        raise ConfigError(f"not tensors among the weights: {', '.join(strangers[:SHOWN])}")
    if vague := [key for key, value in named.items() if not _is_plain(value)]:
        raise ConfigError(
            "tensors without plain values (meta, sparse or quantised) among the weights: "
            f"{', '.join(vague[:SHOWN])}"
        )
    tensors = _without_wrappers(named)
    segments = {segment for key in named for segment in key.split(".")}
    return [
        _reading(tensors, prefix, prefixes, container, tuple(sorted(segments & WRAPPERS)))
        for prefix in prefixes
    ]


def _reading(
    tensors: Mapping[str, Tensor],
    prefix: str,
    prefixes: Mapping[str, tuple[str, ...]],
    container: tuple[str, ...],
    wrappers: tuple[str, ...],
) -> Reading:
    inner = tuple(p for p in prefixes if p != prefix and p.startswith(prefix))
    whole = tuple(prefix + part for part in prefixes[prefix]) or prefix
    own = {
        key
        for key, value in tensors.items()
        if key.startswith(whole) and not key.startswith(inner) and not _is_counter(value)
    }
    return Reading(
        container=container,
        prefix=prefix,
        tensors={k.removeprefix(prefix): v for k, v in tensors.items() if k in own},
        outside=tuple(k for k in tensors if k not in own),
        wrappers=wrappers,
    )


def _prefix(key: str) -> tuple[str, tuple[str, ...]] | None:
    """Prefix of the network whose patch embedding this is, and the parts that it then has."""
    for anchor, parts in ANCHORS.items():
        if key == anchor or key.endswith("." + anchor):
            before = key.removesuffix(anchor)
            is_whole = bool(parts) and (before == parts[0] or before.endswith("." + parts[0]))
            return (before.removesuffix(parts[0]), parts) if is_whole else (before, ())
    return None


def _is_counter(value: Tensor) -> bool:
    """True for what averaged models and norms count (`n_averaged`, `num_batches_tracked`)."""
    return value.dim() == 0 and not value.is_floating_point()


def _is_plain(value: Tensor) -> bool:
    return value.layout == torch.strided and not value.is_meta and not value.is_quantized


def _unwrapped(key: str) -> str:
    return ".".join(segment for segment in key.split(".") if segment not in WRAPPERS)


def _without_wrappers(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for key, value in named.items():
        name = _unwrapped(key)
        if name in plain:
            raise ConfigError(
                f"two tensors are {name} without the names of wrappers: {origin[name]} and {key}"
            )
        plain[name], origin[name] = value, key
    return plain
