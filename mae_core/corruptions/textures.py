"""Fractal textures: the haze of fog and the ice of frost, float32 (N, 1 or C, H, W) in 0..1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_core.corruptions.draws import Draws

FROST_OCTAVES = 5
FROST_TINT = (0.82, 0.92, 1.0)
"""Red, green and blue of white ice."""


def plasma(draws: Draws, height: int, width: int, decay: float) -> Tensor:
    """Height map by the diamond-square algorithm on a torus, scaled to 0..1: (N, 1, H, W).

    Its side is the next power of two. Both the wobble and its own amplitude shrink by `decay` per
    level in the published code, hence by decay² in all.
    """
    side = 1 << (max(height, width) - 1).bit_length()
    corner = draws.uniform(1, 1)
    grid = torch.zeros_like(corner)  # one point; the torus makes it all four corners
    amplitude = 1.0
    while grid.shape[-1] < side:
        grid = _refine(grid, draws, amplitude)
        amplitude /= decay**2
    low, high = (v.view(-1, 1, 1) for v in grid.flatten(1).aminmax(dim=1))
    flat = high == low
    scaled = (grid - low) / torch.where(flat, 1.0, high - low)
    return scaled[:, None, :height, :width]


def _refine(grid_NSS: Tensor, draws: Draws, amplitude: float) -> Tensor:
    """Double the side: first the centres of the squares, then the middles of their edges."""
    side = grid_NSS.shape[-1]

    def wobble() -> Tensor:
        return amplitude * (2 * draws.uniform(side, side) - 1)

    right, below = grid_NSS.roll(-1, 2), grid_NSS.roll(-1, 1)
    centre = (grid_NSS + right + below + right.roll(-1, 1)) / 4 + wobble()
    across = (grid_NSS + right + centre + centre.roll(1, 1)) / 4 + wobble()
    down = (grid_NSS + below + centre + centre.roll(1, 2)) / 4 + wobble()
    even = torch.stack([grid_NSS, across], dim=3).flatten(2)
    odd = torch.stack([down, centre], dim=3).flatten(2)
    return torch.stack([even, odd], dim=2).flatten(1, 2)


def frost_texture(draws: Draws, channels: int, height: int, width: int, cell: int) -> Tensor:
    """Bluish ridges that branch at ever finer scales, denser in patches: (N, C, H, W)."""
    ridges = torch.zeros(1)
    weight, total = 1.0, 0.0
    for octave in range(FROST_OCTAVES):
        smooth = lattice_noise(draws, height, width, max(2, cell >> octave))
        ridges = ridges.to(smooth.device) + weight * (1 - (2 * smooth - 1).abs()) ** 3
        total += weight
        weight *= 0.7
    patches = lattice_noise(draws, height, width, 2 * cell)
    ice = (0.15 + 1.3 * ridges / total + 0.5 * (patches - 0.5)).clamp_(0, 1)
    tint = torch.tensor(FROST_TINT if channels == 3 else (1.0,), device=ice.device)
    return ice * tint.view(1, -1, 1, 1)


def lattice_noise(draws: Draws, height: int, width: int, cell: int) -> Tensor:
    """Smooth noise with features of `cell` pixels, uniform at its lattice: (N, 1, H, W) in 0..1."""
    points = draws.uniform(1, -(-height // cell) + 3, -(-width // cell) + 3)
    shift = (draws.uniform(2) * cell).long()
    size = [(n - 1) * cell + 1 for n in points.shape[2:]]
    fine = F.interpolate(points, size, mode="bicubic", align_corners=True).clamp_(0, 1)
    rows = shift[:, :1] + torch.arange(height, device=fine.device)
    columns = shift[:, 1:] + torch.arange(width, device=fine.device)
    picture = torch.arange(len(fine), device=fine.device)[:, None, None]
    return fine[picture, 0, rows[:, :, None], columns[:, None, :]][:, None]
