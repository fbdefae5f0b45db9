"""Between crop and network: jitter, custom augmentation, normalisation.

It runs where the network is. Legend: B images, C channels, S image size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mae_core.augment.jitter import color_jitter
from mae_core.config import AugmentationConfig, DataConfig
from mae_core.config.augmentation import ColorJitterConfig
from mae_core.data.loader import Batch, normalise
from mae_core.errors import ConfigError
from mae_core.runtime.plugins import resolve


def augmented(batch: Batch, config: AugmentationConfig, seed: int, device: torch.device) -> Tensor:
    """Augment what the loader has cropped: uint8 (B, C, S, S) on the device.

    Raises:
        ConfigError: a custom augmentation returns something else.
    """
    images = batch.images.to(device, non_blocking=True)
    strength = config.color_jitter
    if strength:
        jitter = ColorJitterConfig(
            brightness=strength, contrast=strength, saturation=strength, hue=0.0, probability=1.0
        )
        images = color_jitter(images, jitter, seed=seed, epoch=batch.epoch, index=batch.index)
    if config.custom is None:
        return images
    own = resolve(config.custom)(images, seed, batch.epoch, batch.index)
    if not isinstance(own, Tensor) or own.shape != images.shape or own.dtype != images.dtype:
        raise ConfigError(
            f"augmentation {config.custom!r} must return uint8 images of shape "
            f"{tuple(images.shape)}, as it was given"
        )
    return own


def network_input(
    batch: Batch, data: DataConfig, config: AugmentationConfig, seed: int, device: torch.device
) -> Tensor:
    """Augment and normalise a training batch: float32 (B, C, S, S) on the device."""
    images = augmented(batch, config, seed, device)
    return normalise(images, data.pixel_mean, data.pixel_std, device)
