"""Decoded image in, uint8 network input out: crop, antialiased bicubic resize, flip.

Random draws are keyed by (seed, epoch, sample index). Pixels stay uint8 until they are on the
device (`normalise`), which is a quarter of the bytes to move. Legend: H height, W width, C
channels, S network's image size.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mae_core.config import AugmentationConfig, DataConfig
from mae_core.runtime.keyed_random import F64, Stream, uniform

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""

CROP_TRIES = 10
"""Tries before the fallback (torchvision's RandomResizedCrop)."""
CROP_DRAWS = 2 * CROP_TRIES + 2
"""Uniform numbers per crop: an area and an aspect for each try, then a place."""


def crop_draws(seed: int, epoch: I64, index: I64, num_views: int = 1) -> F64:
    """Numbers in [0, 1) for the crops of some samples: float64 (V · N, CROP_DRAWS).

    View after view; the first view's are the same however many follow.
    """
    draws = uniform(seed, Stream.CROP, epoch, index, CROP_DRAWS * num_views)
    return np.concatenate(np.split(draws, num_views, axis=1))


def flip_draws(seed: int, epoch: I64, index: I64, num_views: int = 1) -> npt.NDArray[np.bool_]:
    """Whether each sample is mirrored: bool (V · N,), view after view."""
    mirrored: npt.NDArray[np.bool_] = (
        uniform(seed, Stream.FLIP, epoch, index, num_views).T.reshape(-1) < 0.5
    )
    return mirrored


def random_crop_box(height: int, width: int, config: AugmentationConfig, draws: F64) -> Box:
    """Box of a random resized crop (Szegedy et al. 2014), by torchvision's published algorithm.

    Up to ten tries of an area uniform in `crop_scale` and an aspect log-uniform in `crop_aspect`;
    the first box that fits is placed uniformly. If none fits, the largest central box whose
    aspect is allowed. With `crop_misfit` "clip" the first box is taken, cut to the image's sides
    (the paper's linear probe, after BYOL). `draws` are CROP_DRAWS numbers in [0, 1).
    """
    low, high = config.crop_scale or (1.0, 1.0)
    logs = math.log(config.crop_aspect[0]), math.log(config.crop_aspect[1])
    area = height * width * (low + (high - low) * draws[:CROP_TRIES])
    aspect = np.exp(logs[0] + (logs[1] - logs[0]) * draws[CROP_TRIES : 2 * CROP_TRIES])
    widths = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    heights = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    if config.crop_misfit == "clip":
        heights, widths = heights.clip(1, height), widths.clip(1, width)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    if not fits.any():
        return _central_box(height, width, config.crop_aspect)
    first = int(fits.argmax())
    crop_height, crop_width = int(heights[first]), int(widths[first])
    top = int(draws[-2] * (height - crop_height + 1))
    left = int(draws[-1] * (width - crop_width + 1))
    return top, left, crop_height, crop_width


def _central_box(height: int, width: int, aspects: tuple[float, float]) -> Box:
    low, high = aspects
    crop_height, crop_width = height, width
    if width / height < low:
        crop_height = min(height, max(1, round(width / low)))
    elif width / height > high:
        crop_width = min(width, max(1, round(height * high)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def resize(image_HWC: U8, height: int, width: int) -> Tensor:
    """Resize to uint8 (C, height, width), bicubic with antialiasing, up or down.

    torch's uint8 path on channels-last memory: the pixels of Pillow's filter, but for rounding.
    """
    image_1CHW = torch.from_numpy(image_HWC).permute(2, 0, 1)[None]
    if image_HWC.shape[:2] == (height, width):
        return image_1CHW[0]
    resized: Tensor = F.interpolate(
        image_1CHW, size=(height, width), mode="bicubic", antialias=True, align_corners=False
    )
    return resized[0]


def training_image(
    image_HWC: U8, data: DataConfig, config: AugmentationConfig, crop: F64 | None, flip: bool
) -> Tensor:
    """Augment one image: uint8 (H, W, C) to uint8 (C, S, S).

    `crop` are the draws of `crop_draws`; None is the evaluation transform, mirrored if `flip`.
    """
    size = data.image_size
    if crop is None:
        image = evaluation_image(image_HWC, size, data.evaluation_crop)
    elif config.fixed_crop_margin is not None:
        image = _random_window(image_HWC, size, config.fixed_crop_margin, crop)
    else:
        full_height, full_width, _ = image_HWC.shape
        top, left, height, width = random_crop_box(full_height, full_width, config, crop)
        image = resize(image_HWC[top : top + height, left : left + width], size, size)
    return image.flip(-1) if flip else image


def _random_window(image_HWC: U8, size: int, margin: float, draws: F64) -> Tensor:
    """Resize the short side to margin · S, then cut S × S at a random place (Table 1e)."""
    height, width = image_HWC.shape[:2]
    scale = round(size * margin) / min(height, width)
    height, width = max(size, round(height * scale)), max(size, round(width * scale))
    image = resize(image_HWC, height, width)
    top, left = int(draws[-2] * (height - size + 1)), int(draws[-1] * (width - size + 1))
    return image[:, top : top + size, left : left + size]


def evaluation_image(image_HWC: U8, size: int, crop: float) -> Tensor:
    """Centre view of one image: uint8 (H, W, C) to uint8 (C, S, S).

    The short side becomes ⌊S / crop⌋ (`DataConfig.evaluation_crop`; 256 for 224 pixels), then the
    centre is cut out; whatever the image's own size, so that a whole set is seen alike.
    """
    height, width = image_HWC.shape[:2]
    short = min(height, width)
    target = int(size / crop)
    new_height = target if height == short else target * height // short
    new_width = target if width == short else target * width // short
    image = resize(image_HWC, new_height, new_width)
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    return image[:, top : top + size, left : left + size]
