"""How the hidden patches are chosen: at random, in blocks, in a grid (paper Table 1f, Figure 6).

A sampler gives noise, and the patches with the lowest noise stay visible: so every way of sampling
hides exactly the same number of patches, and the network needs to know none of them.
Legend: N images, L = G · G patches, R rectangles that are tried.
"""

from __future__ import annotations

import itertools
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

TRIES_PER_BLOCK = 10
"""Rectangles that are refused in a row before an image ends (BEiT)."""
TRIES_AT_ONCE = 32
"""Rectangles whose numbers are drawn together; most images need fewer."""
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
    """Hide BEiT's rectangles, then as many patches beside them as the quota lacks.

    BEiT may stop short of the quota, while an encoder that drops tokens needs equal counts. On
    14 × 14 patches it lacks 0.5 patches on average at a ratio of 0.5 and 0.7 at 0.75 (measured);
    they are hidden beside the rectangles, those with most hidden neighbours first.
    """
    hidden_NGG, _ = beit_blocks(draw, config)
    beside_NL = _hidden_neighbours(hidden_NGG).flatten(1)
    noise_NL = random_noise(draw)
    # Visible patches have noise below 1, the more surrounded the higher; hidden ones above.
    return torch.where(hidden_NGG.flatten(1), noise_NL + 1, (beside_NL + noise_NL) / 10)


def beit_blocks(draw: MaskDraw, config: MaskConfig) -> tuple[Tensor, Tensor]:
    """Rectangles of BEiT (arXiv 2106.08254, algorithm 1, and its published code).

    A rectangle has an area uniform between `min_block` and what is still to be hidden, a
    log-uniform aspect, and sides shorter than the grid's. One that would hide too many or nothing
    new is drawn again; ten refused in a row end the image, short of its quota.
    Returns what is hidden, bool (N, G, G), and the number of rectangles, int64 (N,).
    """
    grid, quota = draw.grid, draw.grid**2 - draw.num_keep
    hidden_NGG = torch.zeros(len(draw.index), grid, grid, dtype=torch.bool)
    num_blocks_N = torch.zeros(len(draw.index), dtype=torch.int64)
    refused_N = num_blocks_N.clone()
    for start in itertools.count(step=TRIES_AT_ONCE):
        left_N = quota - hidden_NGG.sum(dim=(1, 2))
        rows = ((left_N > 0) & (refused_N < TRIES_PER_BLOCK)).nonzero()[:, 0]
        if not len(rows):
            return hidden_NGG, num_blocks_N
        some = rows.numpy()
        count = DRAWS_PER_TRY * (start + TRIES_AT_ONCE)
        numbers = uniform(draw.seed, Stream.MASK_SHAPE, draw.epoch[some], draw.index[some], count)
        draws_RN4 = torch.from_numpy(numbers).view(len(some), -1, DRAWS_PER_TRY).transpose(0, 1)
        state = hidden_NGG[rows], num_blocks_N[rows], refused_N[rows]
        for draws_N4 in draws_RN4[start:]:
            state = _one_try(draws_N4, *state, quota, config)
        hidden_NGG[rows], num_blocks_N[rows], refused_N[rows] = state
    raise AssertionError("unreachable: the count has no end")


def _one_try(
    draws_N4: Tensor,
    hidden_NGG: Tensor,
    num_blocks_N: Tensor,
    refused_N: Tensor,
    quota: int,
    config: MaskConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a rectangle for each image that is not at its end: the three after it."""
    grid = hidden_NGG.shape[-1]
    left_N = quota - hidden_NGG.sum(dim=(1, 2))
    goes_on_N = (left_N > 0) & (refused_N < TRIES_PER_BLOCK)
    block_NGG, is_smaller_N = _rectangles(draws_N4, left_N, grid, config)
    new_N = (block_NGG & ~hidden_NGG).sum(dim=(1, 2))
    fits_N = goes_on_N & is_smaller_N & (new_N > 0) & (new_N <= left_N)
    refused_N = torch.where(goes_on_N, torch.where(fits_N, 0, refused_N + 1), refused_N)
    return hidden_NGG | (block_NGG & fits_N[:, None, None]), num_blocks_N + fits_N, refused_N


def _rectangles(
    draws_N4: Tensor, left_N: Tensor, grid: int, config: MaskConfig
) -> tuple[Tensor, Tensor]:
    """One rectangle per image, bool (N, G, G), and whether it is smaller than the grid (N,)."""
    smallest = config.smallest_block(grid)
    area_N = smallest + draws_N4[:, 0] * (left_N.clamp(min=1) - smallest)
    aspect_N = torch.exp((2 * draws_N4[:, 1] - 1) * math.log(1 / config.min_aspect))
    height_N, width_N = (area_N * aspect_N).sqrt().round(), (area_N / aspect_N).sqrt().round()
    top_N = (draws_N4[:, 2] * (grid - height_N + 1)).floor()
    left_edge_N = (draws_N4[:, 3] * (grid - width_N + 1)).floor()
    place_G = torch.arange(grid)
    rows_NG = (place_G >= top_N[:, None]) & (place_G < (top_N + height_N)[:, None])
    columns_NG = (place_G >= left_edge_N[:, None]) & (place_G < (left_edge_N + width_N)[:, None])
    is_smaller_N = (height_N < grid) & (width_N < grid)
    return rows_NG[:, :, None] & columns_NG[:, None, :], is_smaller_N


def _hidden_neighbours(hidden_NGG: Tensor) -> Tensor:
    """How many of a patch's eight neighbours are hidden: float32 (N, G, G), 0..8."""
    kernel = torch.ones(1, 1, 3, 3)
    kernel[0, 0, 1, 1] = 0
    return F.conv2d(hidden_NGG[:, None].float(), kernel, padding=1)[:, 0]
