"""Noise: gaussian, shot, impulse. Images are floats in 0..1, (N, C, H, W)."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from mae_core.corruptions.draws import Draws


def gaussian_noise(images_NCHW: Tensor, draws: Draws, scale: float) -> Tensor:
    """Add normal noise of a standard deviation."""
    return images_NCHW + scale * draws.normal(*images_NCHW.shape[1:])


def shot_noise(images_NCHW: Tensor, draws: Draws, photons: float) -> Tensor:
    """Poisson counts of `photons` per unit of light, by inversion."""
    level = (images_NCHW * 255).round().long()
    sums, length = _poisson_sums(photons, images_NCHW.device)
    place = level + draws.uniform(*images_NCHW.shape[1:]).double()
    count = torch.searchsorted(sums, place, right=True) - level * length
    return count.float() / photons


def impulse_noise(images_NCHW: Tensor, draws: Draws, amount: float) -> Tensor:
    """Turn a share of the values (of each channel by itself) to 0 or 1, half to each."""
    uniform = draws.uniform(*images_NCHW.shape[1:])
    salted = torch.where(uniform < amount, 1.0, images_NCHW)
    return torch.where(uniform < amount / 2, 0.0, salted)


@functools.lru_cache(maxsize=16)
def _poisson_sums(photons: float, device: torch.device) -> tuple[Tensor, int]:
    """Distribution functions of all 256 levels, that of level l shifted by l, in one sorted row."""
    length = math.ceil(photons + 10 * math.sqrt(photons) + 20)
    count = torch.arange(length, dtype=torch.float64)
    rate = torch.arange(256, dtype=torch.float64)[:, None] / 255 * photons
    log_probability = torch.xlogy(count, rate) - rate - torch.lgamma(count + 1)
    sums = log_probability.exp().cumsum(dim=1).clamp(max=1)
    return (sums + torch.arange(256)[:, None]).flatten().to(device), length
