"""Operations on the colours of uint8 images, each image with a strength of its own.

They follow Pillow's definitions (`ImageOps`, `ImageEnhance`), to the level. Legend: N images,
C channels (1 or 3), H, W pixels. Images are uint8 (N, C, H, W); strengths are (N,).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SOLARIZE_ADD_BELOW = 128
"""SolarizeAdd brightens pixels below this level only."""


def per_image(values_N: Tensor) -> Tensor:
    """Shape (N,) → (N, 1, 1, 1)."""
    return values_N.view(-1, 1, 1, 1)


def grey(images_NCHW: Tensor) -> Tensor:
    """Luma of ITU-R 601 by Pillow's integer formula: int32 (N, 1, H, W)."""
    if images_NCHW.shape[1] == 1:
        return images_NCHW.int()
    red, green, blue = (images_NCHW[:, c : c + 1].int() for c in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def to_bytes(values: Tensor) -> Tensor:
    """Round floats on the scale 0..255 to uint8."""
    return values.round().clamp_(0, 255).to(torch.uint8)


def _blend(base: Tensor, images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    """base + factor · (image − base), cut to 0..255 and to whole levels, as Pillow does."""
    mixed = torch.lerp(base.float(), images_NCHW.float(), per_image(factor_N.float()))
    # A whole number that float32 misses by a hair stays whole.
    return (mixed + 1e-4).clamp_(0, 255).to(torch.uint8)


def brightness(images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    """Blend with black; factor 1 = as it was."""
    return (images_NCHW * per_image(factor_N.float()) + 1e-4).clamp_(0, 255).to(torch.uint8)


def contrast(images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    """Blend with the image's mean grey, rounded to a level."""
    mean = grey(images_NCHW).sum(dim=(1, 2, 3), keepdim=True).double()
    pixels = images_NCHW.shape[2] * images_NCHW.shape[3]
    return _blend((mean / pixels + 0.5).floor(), images_NCHW, factor_N)


def colour(images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    """Blend with the grey image; without colour nothing changes."""
    if images_NCHW.shape[1] == 1:
        return images_NCHW
    return _blend(grey(images_NCHW), images_NCHW, factor_N)


def sharpness(images_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    """Blend with the image smoothed by (1 1 1; 1 5 1; 1 1 1) / 13, whose border stays."""
    smooth = images_NCHW.float()
    if min(smooth.shape[-2:]) >= 3:
        inner = smooth[:, :, 1:-1, 1:-1]
        nine = F.avg_pool2d(smooth, 3, stride=1, divisor_override=1)
        inner.copy_(((nine + 4 * inner) / 13).round_())
    return _blend(smooth, images_NCHW, factor_N)


def invert(images_NCHW: Tensor) -> Tensor:
    """255 − x."""
    return 255 - images_NCHW


def posterize(images_NCHW: Tensor, bits_N: Tensor) -> Tensor:
    """Keep the `bits` highest bits, 0..8 (int64)."""
    mask_N = 256 - 2 ** (8 - bits_N)
    return images_NCHW & per_image(mask_N.to(torch.uint8))


def solarize(images_NCHW: Tensor, threshold_N: Tensor) -> Tensor:
    """Invert the pixels of `threshold` and above, 0..256 (int64)."""
    below = images_NCHW < per_image(threshold_N.to(torch.int16))
    return torch.where(below, images_NCHW, 255 - images_NCHW)


def solarize_add(images_NCHW: Tensor, amount_N: Tensor) -> Tensor:
    """Brighten the pixels below 128 by `amount`, 0..110 (int64)."""
    raised = images_NCHW + per_image(amount_N.to(torch.uint8))  # 127 + 110 is a byte
    return torch.where(images_NCHW < SOLARIZE_ADD_BELOW, raised, images_NCHW)


def auto_contrast(images_NCHW: Tensor) -> Tensor:
    """Stretch each channel linearly to 0..255; a flat channel stays."""
    flat = images_NCHW.flatten(2)
    low, high = (v.double()[..., None] for v in flat.aminmax(dim=2))
    levels = torch.arange(256, dtype=torch.float64, device=flat.device).expand(*low.shape[:2], 256)
    scale = torch.full_like(low, 255) / (high - low)  # a number over a tensor is not rounded right
    table = (levels * scale - low * scale).clamp_(0, 255)
    return _look_up(torch.where(high > low, table, levels).to(torch.uint8), images_NCHW)


def equalize(images_NCHW: Tensor) -> Tensor:
    """Give each channel a flat histogram, by Pillow's integer recipe."""
    n, c = images_NCHW.shape[:2]
    rows = torch.arange(n * c, device=images_NCHW.device).view(n, c, 1, 1)
    levels = (images_NCHW.long() + 256 * rows).flatten()
    counts = torch.bincount(levels, minlength=256 * n * c).view(n, c, 256)
    top = images_NCHW.flatten(2).amax(dim=2, keepdim=True).long()
    step = (counts.sum(dim=2, keepdim=True) - counts.gather(2, top)) // 255
    before = counts.cumsum(dim=2) - counts
    table = ((before + step // 2) // step.clamp(min=1)).clamp_(max=255)
    same = torch.arange(256, device=images_NCHW.device).expand_as(table)
    return _look_up(torch.where(step > 0, table, same).to(torch.uint8), images_NCHW)


def _look_up(table_NC256: Tensor, images_NCHW: Tensor) -> Tensor:
    return table_NC256.gather(2, images_NCHW.flatten(2).long()).view_as(images_NCHW)
