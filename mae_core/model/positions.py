"""Fixed 2-D sine-cosine positions, on both sides of the autoencoder (paper section 3, A.1).

L = patches of the image in row-major order, D = width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BASE = 10000.0
"""Wavelengths run from 2π to 2π · BASE patches (Vaswani et al. 2017, section 3.5)."""


def sincos_positions(width: int, grid_size: int) -> Tensor:
    """Return the table for a square grid: (1 + grid_size², width), float32.

    Row 0 belongs to the class token and is zero. Half the channels encode the column, half the
    row, each as sines then cosines: released weights have the column first. `width` must be
    divisible by 4.
    """
    steps = torch.arange(grid_size, dtype=torch.float64)
    column_L = steps.repeat(grid_size)
    row_L = steps.repeat_interleave(grid_size)
    table_LD = torch.cat([_sincos(column_L, width // 2), _sincos(row_L, width // 2)], dim=1)
    class_row_1D = torch.zeros(1, width, dtype=torch.float64)
    return torch.cat([class_row_1D, table_LD]).float()


def resize_positions(table_TD: Tensor, grid_size: int) -> Tensor:
    """Interpolate a table for another square grid, bicubically: (1 + L, D) → (1 + grid_size², D).

    For fine-tuning at a higher resolution (paper section 4, 448 px); the class token's row stays.
    """
    old = round((len(table_TD) - 1) ** 0.5)
    if old == grid_size:
        return table_TD
    grid_1DGG = table_TD[1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid_1DGG, size=(grid_size,) * 2, mode="bicubic", align_corners=False)
    return torch.cat([table_TD[:1], resized.permute(0, 2, 3, 1).reshape(grid_size**2, -1)])


def _sincos(position_L: Tensor, width: int) -> Tensor:
    half = width // 2
    frequency = BASE ** -(torch.arange(half, dtype=torch.float64) / half)
    angle = torch.outer(position_L, frequency)
    return torch.cat([angle.sin(), angle.cos()], dim=1)
