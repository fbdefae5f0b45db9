"""Corrupt images: `corrupt(images, family, severity, seed=…, index=…)`.

A result depends on the image, (seed, family, severity, sample index) and nothing else. It is
rounded to the nearest level (the published files are cut down and stored as JPEG of quality 85).
Legend: N images, H, W pixels, C channels (1 or 3).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mae_core.augment.colour import to_bytes
from mae_core.corruptions import blurs, digital, noise, weather
from mae_core.corruptions.draws import Draws
from mae_core.corruptions.severity import strength
from mae_core.errors import ConfigError

I64 = npt.NDArray[np.int64]

CORRUPTIONS: dict[str, Callable[..., Tensor]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blurs.defocus_blur,
    "glass_blur": blurs.glass_blur,
    "motion_blur": blurs.motion_blur,
    "zoom_blur": blurs.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
}


def corrupt(images_NHWC: Tensor, family: str, severity: int, *, seed: int, index: I64) -> Tensor:
    """Corrupt uint8 images (N, H, W, C) on their device: uint8, same shape.

    Images whose shorter side is 84 or less get the strengths of CIFAR-10-C, larger ones those of
    ImageNet-C (`severity.strength_set`). Frost is procedural (`weather.frost`).

    Raises:
        ConfigError: an unknown family or severity, not uint8, or neither one nor three channels.
    """
    if images_NHWC.dtype != torch.uint8 or images_NHWC.shape[3] not in (1, 3):
        raise ConfigError(
            f"images of {images_NHWC.dtype}, shape {tuple(images_NHWC.shape)}: corruptions take "
            "uint8 (N, H, W, C) with 1 or 3 channels"
        )
    _, height, width, _ = images_NHWC.shape
    values = strength(family, severity, height, width)
    draws = Draws(seed, family, severity, index, images_NHWC.device)
    images_NCHW = images_NHWC.permute(0, 3, 1, 2).contiguous().float() / 255
    corrupted = CORRUPTIONS[family](images_NCHW, draws, *values)
    return to_bytes(corrupted * 255).permute(0, 2, 3, 1).contiguous()
