"""Affine warps of uint8 images, each with a matrix of its own, as `PIL.Image.transform` does.

A matrix (a, b, c, d, e, f) sends the output pixel with centre (x, y) to the input place
(a·x + b·y + c, d·x + e·y + f), in pixels from the top left corner. Legend: N images, C channels,
H, W pixels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mae_core.augment.colour import to_bytes

F64 = npt.NDArray[np.float64]
ONE, ZERO = np.float64(1), np.float64(0)


def shear_x(amount_N: F64) -> F64:
    """x + amount · y, from the top left corner: (N, 6)."""
    return _matrices(ONE, amount_N, ZERO, ZERO, ONE, ZERO)


def shear_y(amount_N: F64) -> F64:
    """y + amount · x."""
    return _matrices(ONE, ZERO, ZERO, amount_N, ONE, ZERO)


def translate_x(pixels_N: F64) -> F64:
    """x + pixels: the picture moves left by that much."""
    return _matrices(ONE, ZERO, pixels_N, ZERO, ONE, ZERO)


def translate_y(pixels_N: F64) -> F64:
    """y + pixels: the picture moves up."""
    return _matrices(ONE, ZERO, ZERO, ZERO, ONE, pixels_N)


def rotate(degrees_N: F64, height: int, width: int) -> F64:
    """Rotate counter-clockwise about the centre."""
    angle = -np.deg2rad(degrees_N)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = width / 2, height / 2
    return _matrices(cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)


def warp(
    images_NCHW: Tensor,
    matrices_N6: F64,
    fill: tuple[float, ...],
    interpolation: Literal["bicubic", "bilinear"],
) -> Tensor:
    """Warp uint8 images; what comes from outside is `fill` (0..255 per channel).

    Bilinear equals Pillow's to a level. Bicubic is torch's (a = −0.75; Pillow has a = −1).
    """
    n, _, height, width = images_NCHW.shape
    device = images_NCHW.device
    a, b, c, d, e, f = torch.from_numpy(matrices_N6).float().to(device).view(n, 6, 1, 1).unbind(1)
    x = (torch.arange(width, device=device) + 0.5).view(1, 1, width)
    y = (torch.arange(height, device=device) + 0.5).view(1, height, 1)
    x_in, y_in = a * x + b * y + c, d * x + e * y + f
    grid = torch.stack([x_in * (2 / width) - 1, y_in * (2 / height) - 1], dim=-1)
    warped = F.grid_sample(
        images_NCHW.float(), grid, interpolation, padding_mode="border", align_corners=False
    )
    outside = (x_in < 0) | (x_in >= width) | (y_in < 0) | (y_in >= height)
    colour = torch.tensor(fill, dtype=torch.float32, device=device).view(1, -1, 1, 1)
    return to_bytes(torch.where(outside[:, None], colour, warped))


def _matrices(*entries: F64 | np.float64) -> F64:
    return np.stack(np.broadcast_arrays(*entries), axis=-1)
