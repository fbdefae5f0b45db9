"""How the hidden patches are chosen: at random, in blocks, in a grid (paper Table 1f, Figure 6).

A sampler gives noise, and the patches with the lowest noise stay visible: so every way of sampling
hides exactly the same number of patches, and the network needs to know none of them.
Legend: N images, L = G · G patches, R rectangles that are tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mae_core.config import MaskConfig, PretrainRecipe, num_keep
from mae_core.errors import ConfigError
from mae_core.model.masking import mask_noise
from mae_core.runtime.keyed_random import Stream, uniform
from mae_core.runtime.plugins import resolve

I64 = npt.NDArray[np.int64]

BLOCK_TRIES = 40
"""Rectangles tried for an image; what they leave open is topped up beside them."""
DRAWS_PER_TRY = 4
"""Area, aspect, top, left."""


@dataclass(frozen=True)
class MaskDraw:
    """What a sampler draws for: the key of some images, and how much to hide."""

    seed: int
    epoch: I64
    """Epoch that each image is seen in, (N,)."""
    index: I64
    """Sample index, (N,)."""
    grid: int
    """Patches along a side, G."""
    num_keep: int
    """Patches that stay visible in each image."""


MaskSampler = Callable[[MaskDraw], Tensor]
"""Returns noise (N, L), float32 on the CPU; the `num_keep` lowest stay visible."""


def mask_sampler(recipe: PretrainRecipe) -> Callable[[I64, I64], Tensor]:
    """Return (epoch, index) → noise (N, L) for a recipe; a custom one is checked at each draw."""
    config, num_patches = recipe.mask, recipe.num_patches
    grid = recipe.data.image_size // recipe.encoder.patch_size
    kept = num_keep(num_patches, recipe.mask_ratio)
    sampler = named_sampler(config)

    def draw(epoch: I64, index: I64) -> Tensor:
        noise = sampler(MaskDraw(recipe.seed, epoch, index, grid, kept))
        expected = (len(index), num_patches)
        if not isinstance(noise, Tensor) or tuple(noise.shape) != expected:
            found = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
            raise ConfigError(
                f"mask sampling {config.sampling!r} returned {found}: it must return a float32 "
                f"tensor of noise of shape {expected}, the lowest {kept} of a row staying visible"
            )
        return noise

    return draw


def named_sampler(config: MaskConfig) -> MaskSampler:
    """The sampler that a configuration names; raises `ConfigError` for code that is not there."""
    if ":" in config.sampling:
        own: MaskSampler = resolve(config.sampling)
        return own
    if config.sampling == "block":
        return lambda draw: block_noise(draw, config)
    return grid_noise if config.sampling == "grid" else random_noise


def random_noise(draw: MaskDraw) -> Tensor:
    """Uniform noise: every set of patches is as likely as any other (paper section 3)."""
    return mask_noise(draw.seed, draw.epoch, draw.index, draw.grid**2)


def grid_noise(draw: MaskDraw) -> Tensor:
    """Keep the same corner of every 2 × 2 patches; which of the four is drawn for each image.

    The paper keeps "one of every four patches regularly"; a phase per image lets every position
    be seen. The hidden patches come in random order.
    """
    phase = uniform(draw.seed, Stream.MASK_SHAPE, draw.epoch, draw.index)[:, 0]
    corner_N1 = torch.from_numpy((phase * 4).astype(np.int64))[:, None]
    place = torch.arange(draw.grid)
    corner_L = ((place[:, None] % 2) * 2 + place[None, :] % 2).reshape(-1)
    return random_noise(draw) + (corner_L != corner_N1).float()


def block_noise(draw: MaskDraw, config: MaskConfig) -> Tensor:
    """Hide rectangles (BEiT, arXiv 2106.08254, algorithm 1) until exactly the quota is hidden.

    A rectangle has at least `min_block` patches (where as many are still to be hidden) and at most
    what is still to be hidden, and a log-uniform aspect; one that would hide too many or nothing
    new is dropped. BEiT may stop short of the quota, while an encoder that drops tokens needs
    equal counts: the rest is hidden beside the rectangles, most surrounded patches first.
    """
    quota = draw.grid**2 - draw.num_keep
    hidden_NGG = torch.zeros(len(draw.index), draw.grid, draw.grid, dtype=torch.bool)
    count = BLOCK_TRIES * DRAWS_PER_TRY
    numbers = uniform(draw.seed, Stream.MASK_SHAPE, draw.epoch, draw.index, count)
    draws_RN4 = torch.from_numpy(numbers).view(-1, BLOCK_TRIES, DRAWS_PER_TRY).transpose(0, 1)
    for draws_N4 in draws_RN4:
        left_N = quota - hidden_NGG.sum(dim=(1, 2))
        if not bool((left_N > 0).any()):
            break
        block_NGG = _rectangles(draws_N4, left_N, draw.grid, config)
        new_N = (block_NGG & ~hidden_NGG).sum(dim=(1, 2))
        fits_N = (new_N > 0) & (new_N <= left_N)
        hidden_NGG |= block_NGG & fits_N[:, None, None]
    beside_NL = _hidden_neighbours(hidden_NGG).flatten(1)
    noise_NL = random_noise(draw)
    # Visible patches have noise below 1, the more surrounded the higher; hidden ones above.
    return torch.where(hidden_NGG.flatten(1), noise_NL + 1, (beside_NL + noise_NL) / 10)


def _rectangles(draws_N4: Tensor, left_N: Tensor, grid: int, config: MaskConfig) -> Tensor:
    """One rectangle per image, clipped to the grid: bool (N, G, G)."""
    smallest_N = left_N.clamp(min=0, max=config.min_block).double()
    area_N = smallest_N + draws_N4[:, 0] * (left_N.double() - smallest_N)
    aspect_N = torch.exp((2 * draws_N4[:, 1] - 1) * math.log(1 / config.min_aspect))
    height_N = (area_N * aspect_N).sqrt().round().clamp(1, grid)
    width_N = (area_N / aspect_N).sqrt().round().clamp(1, grid)
    top_N = (draws_N4[:, 2] * (grid - height_N + 1)).floor()
    left_edge_N = (draws_N4[:, 3] * (grid - width_N + 1)).floor()
    place_G = torch.arange(grid)
    rows_NG = (place_G >= top_N[:, None]) & (place_G < (top_N + height_N)[:, None])
    columns_NG = (place_G >= left_edge_N[:, None]) & (place_G < (left_edge_N + width_N)[:, None])
    return rows_NG[:, :, None] & columns_NG[:, None, :]


def _hidden_neighbours(hidden_NGG: Tensor) -> Tensor:
    """How many of a patch's eight neighbours are hidden: float32 (N, G, G), 0..8."""
    kernel = torch.ones(1, 1, 3, 3)
    kernel[0, 0, 1, 1] = 0
    return F.conv2d(hidden_NGG[:, None].float(), kernel, padding=1)[:, 0]
