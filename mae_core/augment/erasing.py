"""Random erasing (Zhong et al. 2017) of normalised images: a box of pixel noise per image.

The noise is standard normal per pixel and channel, on the scale of normalised images. Legend:
N images, C channels, H, W pixels.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mae_core.augment.noise_fields import normals, sample_keys, words
from mae_core.config.augmentation import ErasingConfig
from mae_core.errors import ConfigError
from mae_core.runtime.keyed_random import Stream, uniform

I64 = npt.NDArray[np.int64]

TRIES = 10
"""Tries of an area and an aspect before an image is left whole."""


def random_erase(
    images_NCHW: Tensor, config: ErasingConfig, *, seed: int, epoch: int | I64, index: I64
) -> Tensor:
    """Erase a box of some normalised float images on their device; returns new images.

    Raises:
        ConfigError: the images are bytes, which have no room for noise below the mean.
    """
    if not images_NCHW.is_floating_point():
        raise ConfigError(f"images of {images_NCHW.dtype}: erase after normalising")
    height, width = images_NCHW.shape[-2:]
    boxes = erased_boxes(config, height, width, seed=seed, epoch=epoch, index=index)
    rows = np.flatnonzero(boxes[:, 2] > 0)
    images = images_NCHW.clone()
    if not len(rows):
        return images
    inside = box_mask(boxes[rows], height, width, images.device)
    keys = sample_keys(seed, Stream.ERASE_NOISE, epoch, index, images.device)
    picture, y, x = inside.nonzero(as_tuple=True)
    picture = torch.from_numpy(rows).to(images.device)[picture]
    images[picture, :, y, x] = _noise(keys[picture], y * width + x, images)
    return images


def erased_boxes(
    config: ErasingConfig, height: int, width: int, *, seed: int, epoch: int | I64, index: I64
) -> I64:
    """Top, left, height and width of each image's box, all 0 where none: int64 (N, 4).

    Up to ten tries of an area and an aspect; the first box smaller than the image on both sides
    is placed uniformly.
    """
    draws = uniform(seed, Stream.ERASE, epoch, index, 2 * TRIES + 3)
    area_draw, aspect_draw = draws[:, :TRIES], draws[:, TRIES : 2 * TRIES]
    area = height * width * (config.area[0] + (config.area[1] - config.area[0]) * area_draw)
    low, high = (math.log(aspect) for aspect in config.aspect)
    aspect = np.exp(low + (high - low) * aspect_draw)
    heights = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    widths = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (heights < height) & (widths < width) & (heights > 0) & (widths > 0)
    first = fits.argmax(axis=1)[:, None]
    box_height = np.take_along_axis(heights, first, 1)[:, 0]
    box_width = np.take_along_axis(widths, first, 1)[:, 0]
    top = (draws[:, -2] * (height - box_height + 1)).astype(np.int64)
    left = (draws[:, -1] * (width - box_width + 1)).astype(np.int64)
    erased = fits.any(axis=1) & (draws[:, -3] < config.probability)
    boxes = np.stack([top, left, box_height, box_width], axis=1)
    return np.where(erased[:, None], boxes, 0)


def box_mask(boxes_N4: I64, height: int, width: int, device: torch.device) -> Tensor:
    """Which pixels lie in the boxes (top, left, height, width): bool (N, H, W)."""
    boxes = torch.from_numpy(boxes_N4).to(device)
    top, left, box_height, box_width = boxes[:, :, None].unbind(1)
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    rows = (y >= top) & (y < top + box_height)
    columns = (x >= left) & (x < left + box_width)
    return rows[:, :, None] & columns[:, None, :]


def _noise(keys_P: Tensor, places_P: Tensor, images_NCHW: Tensor) -> Tensor:
    """Noise of some pixels: (P, C) of the images' dtype; the n-th word has channels 4n..4n + 3."""
    num_channels, size = images_NCHW.shape[1], images_NCHW.shape[-2] * images_NCHW.shape[-1]
    parts = [
        normals(words(keys_P, places_P + size * n)) for n in range(math.ceil(num_channels / 4))
    ]
    return torch.cat(parts, dim=1)[:, :num_channels].to(images_NCHW.dtype)
