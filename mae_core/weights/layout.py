"""A layout is a naming: where each of our tensors is found in another library's file, key by key.

Names are the only difference between layouts but for three tensors, whose form differs too: patch
embeddings are convolutions elsewhere, positions carry a batch axis, and q, k, v may be apart.
Legend: L = patches, D = width, C = channels, S = patch size, P = S² · C in (row, column, channel).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mae_core.errors import ConfigError
from mae_core.weights.lookalikes import OtherNetwork
from mae_core.weights.naming import Naming
from mae_core.weights.network import POSITIONS, Network, Shape, shapes_of

PATCHES = "encoder.patch_embed.weight"
SHOWN = 12
"""Keys of a kind that a message lists; the rest are counted."""


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """What of a file does not fit the network that its shapes describe."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shape: tuple[str, ...] = ()
    """`key: (found), expected (shape)`"""

    def __bool__(self) -> bool:
        """True if anything is wrong."""
        return bool(self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        """All kinds, key by key."""
        parts = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("wrong shape", self.wrong_shape),
        )
        return "; ".join(f"{kind} ({len(keys)}): {_listed(keys)}" for kind, keys in parts if keys)


def to_theirs(network: Network, layout: Naming) -> dict[str, Tensor]:
    """Name the tensors of a network as a layout does, all keys.

    Values keep their dtype and bits. Raises `ConfigError` for a tensor that the layout has no
    place for, and for a state that is not the network's.
    """
    check_state(network)
    found: dict[str, Tensor] = {}
    for ours, value in network.state.items():
        keys = layout.theirs(ours)
        if not keys:
            raise ConfigError(f"the {layout.name} layout has no place for {ours!r}")
        parts = [value] if len(keys) == 1 else list(value.chunk(3, dim=0))
        for key, part in zip(keys, parts, strict=True):
            found[key] = _outward(ours, part, network)
    return found


def to_ours(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, Shape], layout: Naming, num_channels: int
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Name tensors of a layout as we do; `shapes` are those of the network they should make.

    Returns the state and the keys that were left out. Raises `OtherNetwork` that lists, key by key,
    what is missing, unexpected or of another shape.
    """
    left_out = tuple(sorted(k for k in tensors if k.startswith(layout.ignored)))
    wanted = {ours: layout.theirs(ours) for ours in shapes}
    known = {key for keys in wanted.values() for key in keys}
    state: dict[str, Tensor] = {}
    missing: list[str] = []
    wrong: list[str] = []
    for ours, keys in wanted.items():
        absent = [key for key in keys if key not in tensors]
        if absent or not keys:
            missing += absent or [ours]
            continue
        parts = [tensors[key] for key in keys]
        expected = _foreign_shape(ours, shapes[ours], num_channels, len(keys))
        bad = [k for k, part in zip(keys, parts, strict=True) if tuple(part.shape) != expected]
        wrong += [f"{k}: {tuple(tensors[k].shape)}, expected {expected}" for k in bad]
        if not bad:
            state[ours] = _inward(ours, parts)
    unexpected = sorted(set(tensors) - known - set(left_out))
    mismatch = Mismatch(
        missing=tuple(missing), unexpected=tuple(unexpected), wrong_shape=tuple(wrong)
    )
    if mismatch:
        raise OtherNetwork(f"not the {layout.name} layout of a plain ViT: {mismatch}")
    return state, left_out


def check_state(network: Network) -> None:
    """Refuse (`ConfigError`) a state that is not what its network's parts say, key by key."""
    shapes = shapes_of(network)
    found = {name: tuple(value.shape) for name, value in network.state.items()}
    wrong = [
        f"{name}: {found[name]}, expected {shape}"
        for name, shape in shapes.items()
        if name in found and found[name] != shape
    ]
    mismatch = Mismatch(
        missing=tuple(sorted(set(shapes) - set(found))),
        unexpected=tuple(sorted(set(found) - set(shapes))),
        wrong_shape=tuple(wrong),
    )
    if mismatch:
        raise ConfigError(f"the weights are not the network's: {mismatch}")


def _outward(ours: str, value: Tensor, network: Network) -> Tensor:
    value = value.detach()
    if ours == PATCHES:
        side, channels = network.encoder.patch_size, network.num_channels
        value = value.reshape(-1, side, side, channels).permute(0, 3, 1, 2)
    elif ours in POSITIONS:
        value = value.unsqueeze(0)
    return value.contiguous().clone()


def _inward(ours: str, parts: Sequence[Tensor]) -> Tensor:
    if ours == PATCHES:
        return parts[0].permute(0, 2, 3, 1).flatten(1).contiguous()
    if ours in POSITIONS:
        return parts[0].squeeze(0).contiguous()
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(list(parts), dim=0)


def _foreign_shape(ours: str, shape: Shape, num_channels: int, num_keys: int) -> Shape:
    if ours == PATCHES:
        side = round((shape[1] / num_channels) ** 0.5)
        return (shape[0], num_channels, side, side)
    if ours in POSITIONS:
        return (1, *shape)
    return shape if num_keys == 1 else (shape[0] // num_keys, *shape[1:])


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more
