"""Weather: snow, frost, fog, brightness. Images are floats in 0..1, (N, C, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor

from mae_core.augment.jitter import luma
from mae_core.corruptions.blurs import smear, zoom
from mae_core.corruptions.draws import Draws
from mae_core.corruptions.severity import strength_set
from mae_core.corruptions.textures import frost_texture, plasma

FROST_CELL = {"imagenet_c": 64, "cifar10_c": 13}
"""Largest features of the frost in pixels; the published 32-pixel set shrinks its photos by 5."""


def snow(
    images_NCHW: Tensor,
    draws: Draws,
    mean: float,
    spread: float,
    size: float,
    threshold: float,
    radius: int,
    sigma: float,
    kept: float,
) -> Tensor:
    """Whiten the picture and add bright flakes that fall within 45° of the vertical."""
    height, width = images_NCHW.shape[2:]
    flakes = zoom(mean + spread * draws.normal(1, height, width), size)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp_(0, 1)
    flakes = smear(flakes, radius, sigma, 90 * draws.uniform(1)[:, 0] - 135)
    white = torch.maximum(images_NCHW, luma(images_NCHW) * 1.5 + 0.5)
    return kept * images_NCHW + (1 - kept) * white + flakes + flakes.flip(2, 3)


def frost(images_NCHW: Tensor, draws: Draws, kept: float, amount: float) -> Tensor:
    """Blend with ice. PROCEDURAL: the published family pastes photographs of frost, which are not
    shipped here; ridged noise of like brightness stands in, so that this one family of the fifteen
    cannot be compared with published figures. Records say "frost: procedural".
    """
    channels, height, width = images_NCHW.shape[1:]
    cell = FROST_CELL[strength_set(height, width)]
    return kept * images_NCHW + amount * frost_texture(draws, channels, height, width, cell)


def fog(images_NCHW: Tensor, draws: Draws, amount: float, decay: float) -> Tensor:
    """Add a fractal haze and scale back to the brightness of before."""
    height, width = images_NCHW.shape[2:]
    brightest = images_NCHW.amax(dim=(1, 2, 3), keepdim=True)
    hazy = images_NCHW + amount * plasma(draws, height, width, decay)
    return hazy * brightest / (brightest + amount)


def brightness(images_NCHW: Tensor, draws: Draws, amount: float) -> Tensor:
    """Raise the value of HSV: the largest channel grows by `amount`, the others in proportion."""
    top = images_NCHW.amax(dim=1, keepdim=True)
    raised = (top + amount).clamp(max=1)
    scaled = images_NCHW * (raised / top.clamp(min=1e-6))
    return torch.where(top > 0, scaled, raised)
