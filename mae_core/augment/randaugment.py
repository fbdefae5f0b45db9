"""RandAugment on uint8 batches: `rand-m9-mstd0.5-inc1`, the paper's "RandAug (9, 0.5)".

Each image gets `num_ops` operations, drawn with replacement and each carried out with probability
½, at a level drawn from N(9, 0.5) and cut to 0..10. "inc" = every operation with a strength grows
with the level. The order of the fifteen is part of the randomness: never reorder. Severities by
level m (after Cubuk et al. 2019 and the widely used EfficientNet variant; ± = keyed sign):

    auto_contrast, equalize, invert   none
    rotate                            ± 3 m degrees
    posterize                         keep 4 − ⌊0.4 m⌋ bits
    solarize                          invert from 256 − ⌊25.6 m⌋ on
    solarize_add                      add ⌊11 m⌋ below 128
    colour, contrast, brightness, sharpness   factor max(0.1, 1 ± 0.09 m)
    shear_x, shear_y                  ± 0.03 m
    translate_x, translate_y          ± 0.045 m of the side

Legend: N images, C channels (1 or 3), H, W pixels, K operations per image.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mae_core.augment import affine, colour
from mae_core.config.augmentation import MAX_LEVEL, RandAugmentConfig
from mae_core.errors import ConfigError
from mae_core.runtime.keyed_random import F64, Stream, uniform

I64 = npt.NDArray[np.int64]

OPERATIONS = (
    "auto_contrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "colour",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
GEOMETRIC = frozenset({"rotate", "shear_x", "shear_y", "translate_x", "translate_y"})

PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "auto_contrast": colour.auto_contrast,
    "equalize": colour.equalize,
    "invert": colour.invert,
}
BY_STRENGTH: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "posterize": colour.posterize,
    "solarize": colour.solarize,
    "solarize_add": colour.solarize_add,
    "colour": colour.colour,
    "contrast": colour.contrast,
    "brightness": colour.brightness,
    "sharpness": colour.sharpness,
}


def rand_augment(
    images_NCHW: Tensor,
    config: RandAugmentConfig,
    *,
    seed: int,
    epoch: int | I64,
    index: I64,
    pixel_mean: tuple[float, ...],
) -> Tensor:
    """Augment uint8 images (N, C, H, W) on their device; returns new uint8 images.

    `epoch` and `index` are each image's key. Geometric operations show the data's mean colour,
    `pixel_mean` on the scale 0..1, where they look outside.

    Raises:
        ConfigError: the images have neither one nor three channels, or are not uint8.
    """
    check_images(images_NCHW)
    chosen_NK, level_NK, sign_NK = draw(config, seed, epoch, index)
    fill = tuple(float(round(255 * mean)) for mean in pixel_mean)
    images = images_NCHW.clone()
    for k in range(config.num_ops):
        moved = []
        for number, name in enumerate(OPERATIONS):
            rows = np.flatnonzero(chosen_NK[:, k] == number)
            if not len(rows):
                continue
            strength = severity(name, level_NK[rows, k], sign_NK[rows, k])
            if name in GEOMETRIC:
                moved.append((rows, _matrices(name, strength, images.shape)))
                continue
            where = torch.from_numpy(rows).to(images.device)
            images[where] = _recolour(name, images[where], strength)
        if moved:  # one call for all of them; no image has two operations in a round
            where = torch.from_numpy(np.concatenate([rows for rows, _ in moved])).to(images.device)
            matrices = np.concatenate([matrices for _, matrices in moved])
            images[where] = affine.warp(images[where], matrices, fill, config.interpolation)
    return images


def draw(
    config: RandAugmentConfig, seed: int, epoch: int | I64, index: I64
) -> tuple[I64, F64, F64]:
    """Draw operation (−1 = none), level and sign: int64, float64, float64 (N, K)."""
    draws = uniform(seed, Stream.RAND_AUGMENT, epoch, index, 4 * config.num_ops)
    which, carried, level, sign = draws.reshape(len(index), 4, config.num_ops).swapaxes(0, 1)
    operation = (which * len(OPERATIONS)).astype(np.int64)
    chosen = np.where(carried < config.probability, operation, -1)
    level = config.magnitude + config.magnitude_std * _normal(level)
    return chosen, level.clip(0, MAX_LEVEL), np.where(sign < 0.5, -1.0, 1.0)


def severity(name: str, level: F64, sign: F64) -> F64:
    """Strength of an operation at a level 0..10, in the units of the module's table: (n,)."""
    share = level / MAX_LEVEL
    if name in PLAIN:
        return np.zeros_like(share)
    if name == "posterize":
        return 4 - np.floor(share * 4)
    if name == "solarize":
        return 256 - np.floor(share * 256)
    if name == "solarize_add":
        return np.floor(share * 110)
    if name in BY_STRENGTH:
        return np.maximum(0.1, 1 + sign * share * 0.9)
    return sign * share * {"rotate": 30.0, "shear_x": 0.3, "shear_y": 0.3}.get(name, 0.45)


def apply(
    name: str,
    images_NCHW: Tensor,
    strength_N: F64,
    fill: tuple[float, ...],
    config: RandAugmentConfig,
) -> Tensor:
    """Apply one operation at a strength of `severity` to uint8 images."""
    if name in GEOMETRIC:
        matrices = _matrices(name, strength_N, images_NCHW.shape)
        return affine.warp(images_NCHW, matrices, fill, config.interpolation)
    return _recolour(name, images_NCHW, strength_N)


def check_images(images_NCHW: Tensor) -> None:
    """Raise `ConfigError` unless the images are uint8 of one or three channels."""
    if images_NCHW.dtype != torch.uint8:
        raise ConfigError(f"images of {images_NCHW.dtype}: augment uint8, before normalising")
    if images_NCHW.shape[1] not in (1, 3):
        raise ConfigError(
            f"images of {images_NCHW.shape[1]} channels: colour augmentations need 1 or 3; "
            "switch them off for this data"
        )


def _recolour(name: str, images_NCHW: Tensor, strength_N: F64) -> Tensor:
    if name in PLAIN:
        return PLAIN[name](images_NCHW)
    strength = torch.from_numpy(strength_N).to(images_NCHW.device)
    return BY_STRENGTH[name](images_NCHW, strength)


def _matrices(name: str, strength_N: F64, shape: torch.Size) -> F64:
    height, width = shape[-2:]
    if name == "rotate":
        return affine.rotate(strength_N, height, width)
    if name == "shear_x":
        return affine.shear_x(strength_N)
    if name == "shear_y":
        return affine.shear_y(strength_N)
    if name == "translate_x":
        return affine.translate_x(strength_N * width)
    return affine.translate_y(strength_N * height)


def _normal(uniform_draws: F64) -> F64:
    normal: F64 = torch.special.ndtri(torch.from_numpy(uniform_draws)).numpy()
    return normal
