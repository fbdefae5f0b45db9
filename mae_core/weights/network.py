"""A network in this project's names, whatever layout it came from or goes to.

Legend: L = patches, D = width, P = patch_size² · channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mae_core.config import DecoderConfig, EncoderConfig
from mae_core.model.mae import Decoder
from mae_core.model.positions import sincos_positions
from mae_core.model.vit import Encoder

ENCODER, DECODER = "encoder.", "decoder."
POSITIONS = {"encoder.positions", "decoder.positions"}

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Network:
    """An encoder, and what came with it: a decoder, or a classifier's norm and head."""

    encoder: EncoderConfig
    image_size: int
    """Pixels."""
    num_channels: int
    state: Mapping[str, Tensor]
    """`encoder.*` with `decoder.*` as in an `MAE`, or with `norm.*` and `head.*` as in a
    `Classifier`. Positions are always there: (1 + L, D), fixed ones too."""
    decoder: DecoderConfig | None = None
    mask_ratio: float | None = None
    """Of the pretraining, where it is known."""
    norm_pix_loss: bool | None = None
    """Of the pretraining, where it is known."""
    class_names: tuple[str, ...] = ()
    """Of a classifier, by the rows of its head; empty where they have no names."""

    @property
    def grid_size(self) -> int:
        """Patches per side."""
        return self.image_size // self.encoder.patch_size

    @property
    def num_classes(self) -> int | None:
        """Rows of the classifier's head, None without one."""
        return self.state["head.weight"].shape[0] if "head.weight" in self.state else None

    @property
    def pools_patches(self) -> bool:
        """True for a classifier of the mean patch token, whose LN comes after the mean."""
        return "norm.weight" in self.state

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors below `encoder.` or `decoder.`, without the prefix."""
        return {k.removeprefix(prefix): v for k, v in self.state.items() if k.startswith(prefix)}


def encoder_shapes(encoder: EncoderConfig, image_size: int, num_channels: int) -> dict[str, Shape]:
    """Name and shape of every tensor of an encoder, positions included; allocates nothing."""
    with torch.device("meta"):
        module = Encoder(
            encoder, image_size, num_channels, generator=_unused(), trainable_positions=True
        )
    return {ENCODER + name: tuple(v.shape) for name, v in module.state_dict().items()}


def decoder_shapes(
    decoder: DecoderConfig, encoder: EncoderConfig, grid_size: int, num_channels: int
) -> dict[str, Shape]:
    """Name and shape of every tensor of a pixel decoder, positions included."""
    with torch.device("meta"):
        outputs = encoder.patch_size**2 * num_channels
        module = Decoder(decoder, encoder, grid_size, outputs, generator=_unused())
    shapes = {DECODER + name: tuple(v.shape) for name, v in module.state_dict().items()}
    return shapes | {DECODER + "positions": (1 + grid_size**2, decoder.width)}


def shapes_of(network: Network) -> dict[str, Shape]:
    """Name and shape of every tensor that a network of these parts has."""
    encoder = network.encoder
    shapes = encoder_shapes(encoder, network.image_size, network.num_channels)
    if network.decoder is not None:
        shapes |= decoder_shapes(network.decoder, encoder, network.grid_size, network.num_channels)
    if network.num_classes is not None:
        shapes |= head_shapes(encoder.width, network.num_classes, network.pools_patches)
    if network.pools_patches:
        shapes = {k: v for k, v in shapes.items() if not k.startswith("encoder.norm.")}
    return shapes


def head_shapes(width: int, num_classes: int, pools_patches: bool) -> dict[str, Shape]:
    """Name and shape of what a classifier adds to its encoder."""
    norm: dict[str, Shape] = {"norm.weight": (width,), "norm.bias": (width,)}
    head: dict[str, Shape] = {"head.weight": (num_classes, width), "head.bias": (num_classes,)}
    return norm | head if pools_patches else head


def with_positions(
    state: Mapping[str, Tensor], encoder: EncoderConfig, decoder: DecoderConfig | None, grid: int
) -> dict[str, Tensor]:
    """Add the fixed sin-cos positions that our own files leave out; stored ones stay."""
    full = dict(state)
    full.setdefault("encoder.positions", sincos_positions(encoder.width, grid))
    if decoder is not None:
        full.setdefault("decoder.positions", sincos_positions(decoder.width, grid))
    return full


def without_fixed_positions(network: Network) -> dict[str, Tensor]:
    """Leave out positions that equal the sin-cos table bit by bit: every encoder makes them."""
    return {
        name: value
        for name, value in network.state.items()
        if name not in POSITIONS or position_error(value, network.grid_size) > 0
    }


def position_error(positions: Tensor, grid_size: int) -> float:
    """Largest difference of a table (1 + L, D) from the fixed sin-cos one."""
    fixed = sincos_positions(positions.shape[-1], grid_size)
    return float((positions.detach().cpu().float() - fixed).abs().max())


def _unused() -> torch.Generator:
    return torch.Generator(device="cpu").manual_seed(0)
