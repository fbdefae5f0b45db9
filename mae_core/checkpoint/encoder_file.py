"""Encoder weights as one safetensors file that describes itself: config and shape in its metadata.

Reading never unpickles, and every key and shape is checked against the config in the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mae_core.checkpoint.tensor_file import (
    State,
    expect_format,
    load_state,
    read_tensors,
    write_tensors,
)
from mae_core.config import DataConfig, EncoderConfig, check_patches, num_patches, require
from mae_core.errors import CheckpointError, ConfigError
from mae_core.model.vit import Encoder

FORMAT = "mae-study-encoder-1"
CLASSIFIER_FORMAT = "mae-study-classifier-1"
"""Of a file that holds an encoder and a head, and says so in the same words."""
EXTRA = "extra."
"""Prefix of the caller's own metadata."""


@dataclass(frozen=True, kw_only=True)
class EncoderFile:
    """What an encoder file holds, read but not yet built."""

    config: EncoderConfig
    image_size: int
    """Side in pixels of the images it was trained on."""
    num_channels: int
    state: dict[str, torch.Tensor]
    """float32 on the CPU."""
    extra: dict[str, str]


def save_encoder(
    path: Path,
    state_dict: State,
    encoder: EncoderConfig,
    image_size: int,
    num_channels: int,
    extra: Mapping[str, str],
) -> None:
    """Write encoder weights (stored as float32) and what is needed to rebuild the network."""
    metadata = {EXTRA + key: value for key, value in extra.items()}
    metadata |= describe(encoder, image_size, num_channels)
    write_tensors(path, state_dict, metadata | {"format": FORMAT})


def load_encoder(path: Path) -> Encoder:
    """Build the encoder of a file, on the CPU in eval mode; errors as `read_encoder`.

    A file that holds `positions` (an imported encoder, which may have learned them) is
    read with these in place of the fixed table.
    """
    file = read_encoder(path)
    encoder = Encoder(
        file.config,
        file.image_size,
        file.num_channels,
        trainable_positions="positions" in file.state,
    )
    load_state(encoder, file.state, path)
    return encoder.eval()


def read_encoder(path: Path) -> EncoderFile:
    """Read a file written by `save_encoder`; `CheckpointError` if it is damaged or another kind."""
    state, metadata = read_tensors(path)
    expect_format(path, metadata, FORMAT)
    config, image_size, num_channels = parse_description(path, metadata)
    extra = {k.removeprefix(EXTRA): v for k, v in metadata.items() if k.startswith(EXTRA)}
    return EncoderFile(
        config=config, image_size=image_size, num_channels=num_channels, state=state, extra=extra
    )


def check_fits(encoder: Encoder, data: DataConfig) -> None:
    """Refuse (`ConfigError`) images of another size or channel count than the encoder's."""
    check_patches(data, encoder.config)
    patch_size = encoder.config.patch_size
    has = (encoder.num_patches, encoder.patch_embed.in_features)
    wants = (num_patches(data.image_size, patch_size), patch_size**2 * data.num_channels)
    require(
        has == wants,
        f"the encoder takes {has[0]} patches of {has[1]} values, but images of {data.image_size} "
        f"px with {data.num_channels} channels give {wants[0]} patches of {wants[1]}: evaluate at "
        "the encoder's image size and channels",
    )


def describe(encoder: EncoderConfig, image_size: int, num_channels: int) -> dict[str, str]:
    """Metadata from which `parse_description` rebuilds the three arguments."""
    return {
        "encoder": json.dumps(asdict(encoder), sort_keys=True),
        "image_size": str(image_size),
        "num_channels": str(num_channels),
    }


def parse_description(path: Path, metadata: Mapping[str, str]) -> tuple[EncoderConfig, int, int]:
    """Read back what `describe` wrote; `CheckpointError` names what is missing or wrong."""
    missing = {"encoder", "image_size", "num_channels"} - set(metadata)
    if missing:
        raise CheckpointError(f"{path}: metadata lacks {', '.join(sorted(missing))}; export again")
    try:
        config = EncoderConfig(**json.loads(metadata["encoder"]))
        return config, int(metadata["image_size"]), int(metadata["num_channels"])
    except (TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{path}: metadata describes no encoder: {error}") from error
