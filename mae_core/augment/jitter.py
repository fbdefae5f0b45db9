"""Colour jitter, and the views of a contrastive pair (MoCo v3, arXiv 2104.02057).

The arithmetic is in floats from the first operation to the last and is rounded once. Factors are
uniform in 1 ± strength, and the four operations of the jitter come in random order. Legend:
N images, C channels (1 or 3), H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mae_core.augment.blur import gaussian_blur
from mae_core.augment.colour import per_image, to_bytes
from mae_core.augment.randaugment import check_images
from mae_core.config.augmentation import ColorJitterConfig, ViewConfig
from mae_core.runtime.keyed_random import F64, Stream, uniform

I64 = npt.NDArray[np.int64]

LUMA = (0.299, 0.587, 0.114)
JITTER_DRAWS = 9
"""Jitter at all?, four factors, four keys of the order."""
VIEW_DRAWS = JITTER_DRAWS + 4
"""And: grey?, blur?, its width, solarize?"""
SOLARIZE_FROM = 128.0


def color_jitter(
    images_NCHW: Tensor, config: ColorJitterConfig, *, seed: int, epoch: int | I64, index: I64
) -> Tensor:
    """Jitter uint8 images (N, C, H, W) on their device; returns new uint8 images.

    Raises:
        ConfigError: the images have neither one nor three channels, or are not uint8.
    """
    check_images(images_NCHW)
    draws = uniform(seed, Stream.JITTER, epoch, index, JITTER_DRAWS)
    return to_bytes(_jitter(images_NCHW.float(), config, draws))


def augment_view(
    images_NCHW: Tensor, config: ViewConfig, *, seed: int, epoch: int | I64, index: I64, view: int
) -> Tensor:
    """Make one view of uint8 images that are cropped already; returns new uint8 images.

    `view` counts the views of a sample from 0: each has draws of its own.

    Raises:
        ConfigError: the images have neither one nor three channels, or are not uint8.
    """
    check_images(images_NCHW)
    draws = uniform(seed, Stream.JITTER, epoch, index, VIEW_DRAWS * (view + 1))
    draws = draws[:, VIEW_DRAWS * view :]
    grey_draw, blur_draw, sigma_draw, solarize_draw = draws[:, JITTER_DRAWS:].T
    images = _jitter(images_NCHW.float(), config.jitter, draws[:, :JITTER_DRAWS])
    _change(images, grey_draw < config.grayscale, lambda part, _: luma(part).expand_as(part))
    low, high = config.blur_sigma
    sigma = torch.from_numpy(low + (high - low) * sigma_draw)
    blurred = blur_draw < config.blur
    _change(images, blurred, lambda part, rows: gaussian_blur(part, sigma[rows.cpu()]))
    _change(images, solarize_draw < config.solarize, lambda part, _: _solarize(part))
    return to_bytes(images)


def luma(images_NCHW: Tensor) -> Tensor:
    """Grey of float images by ITU-R 601: (N, 1, H, W)."""
    if images_NCHW.shape[1] == 1:
        return images_NCHW
    weights = torch.tensor(LUMA, device=images_NCHW.device).view(1, 3, 1, 1)
    return (images_NCHW * weights).sum(dim=1, keepdim=True)


def shift_hue(images_NCHW: Tensor, shift_N: Tensor) -> Tensor:
    """Turn the hue of float images (0..255) by a share of the colour circle, in HSV."""
    if images_NCHW.shape[1] == 1:
        return images_NCHW
    top, low = images_NCHW.amax(dim=1), images_NCHW.amin(dim=1)
    spread = top - low
    red, green, blue = images_NCHW.unbind(dim=1)
    divisor = torch.where(spread > 0, spread, 1.0)
    sextant = torch.where(
        top == red,
        (green - blue) / divisor,
        torch.where(top == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sextant = sextant + 6 * shift_N.view(-1, 1, 1)
    channels = []
    for start in (5, 3, 1):  # red, green, blue: falls from the top over a third of the circle
        place = (sextant + start) % 6
        channels.append(top - spread * torch.minimum(place, 4 - place).clamp_(0, 1))
    return torch.stack(channels, dim=1)


def _jitter(images: Tensor, config: ColorJitterConfig, draws_N9: F64) -> Tensor:
    """Jitter floats on the scale 0..255, in place."""
    order = draws_N9[:, 5:].argsort(axis=1, kind="stable")
    active = draws_N9[:, 0] < config.probability
    strengths = (config.brightness, config.contrast, config.saturation, config.hue)
    for slot in range(len(OPERATIONS)):
        for number, (operation, strength) in enumerate(zip(OPERATIONS, strengths, strict=True)):
            if strength == 0:
                continue
            amount = torch.from_numpy((2 * draws_N9[:, 1 + number] - 1) * strength).float()
            amount = amount.to(images.device)

            def change(
                part: Tensor,
                rows: Tensor,
                operation: Callable[[Tensor, Tensor], Tensor] = operation,
                amount: Tensor = amount,
            ) -> Tensor:
                return operation(part, amount[rows]).clamp_(0, 255)

            _change(images, active & (order[:, slot] == number), change)
    return images


def _change(
    images: Tensor, chosen_N: npt.NDArray[np.bool_], change: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Replace the chosen images by `change(images, rows)`."""
    rows = torch.from_numpy(np.flatnonzero(chosen_N)).to(images.device)
    if len(rows):
        images[rows] = change(images[rows], rows)


def _brightness(images: Tensor, amount_N: Tensor) -> Tensor:
    return images * per_image(1 + amount_N)


def _contrast(images: Tensor, amount_N: Tensor) -> Tensor:
    # In doubles the order of the sum, which depends on batch and threads, cannot show.
    mean = luma(images).mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float64)
    return _away_from(mean.float(), images, amount_N)


def _saturation(images: Tensor, amount_N: Tensor) -> Tensor:
    return _away_from(luma(images), images, amount_N)


def _away_from(base: Tensor, images: Tensor, amount_N: Tensor) -> Tensor:
    return base + (images - base) * per_image(1 + amount_N)


def _solarize(images: Tensor) -> Tensor:
    # The threshold is on whole levels, which these floats will be rounded to.
    return torch.where(images.round() >= SOLARIZE_FROM, 255 - images, images)


OPERATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    _brightness,
    _contrast,
    _saturation,
    shift_hue,
)
