"""Gaussian blur as two small matrix products, so that each image can have a width of its own.

Legend: N images, C channels, H, W pixels, S pixels along one axis.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Edge = Literal["nearest", "reflect", "mirror"]
"""What lies beyond the border: a a | a b c, b a | a b c, or c b | a b c (scipy.ndimage's names)."""
FLOOR_SIGMA = 1e-4
"""Below this a blur does nothing; keeps 0 from dividing."""


def gaussian_blur(
    images_NCHW: Tensor, sigma_N: Tensor, *, truncate: float = 4.0, edge: Edge = "nearest"
) -> Tensor:
    """Blur float images with a standard deviation in pixels each: same shape and dtype.

    The kernel is cut at round(truncate · sigma) pixels and normalised, as scipy.ndimage does.
    `sigma_N` is (N,), or (1,) for all.
    """
    n, c, height, width = images_NCHW.shape
    down = blur_matrix(height, sigma_N, truncate=truncate, edge=edge).to(images_NCHW)
    across = blur_matrix(width, sigma_N, truncate=truncate, edge=edge).to(images_NCHW)
    rows = images_NCHW.reshape(n, c * height, width)
    blurred = torch.bmm(rows, across.transpose(1, 2).expand(n, width, width))
    columns = blurred.view(n, c, height, width).transpose(2, 3).reshape(n, c * width, height)
    blurred = torch.bmm(columns, down.transpose(1, 2).expand(n, height, height))
    return blurred.view(n, c, width, height).transpose(2, 3).contiguous()


def blur_matrix(size: int, sigma_N: Tensor, *, truncate: float, edge: Edge) -> Tensor:
    """Matrix of a 1-D blur, row = output pixel: float64 (N, S, S), on the CPU."""
    sigma = sigma_N.detach().cpu().double().clamp(min=FLOOR_SIGMA)[:, None]
    reach = (truncate * sigma + 0.5).floor()
    radius = int(reach.max())
    offset = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offset / sigma) ** 2) * (offset.abs() <= reach)
    weights /= weights.sum(dim=1, keepdim=True)
    source = _fold(torch.arange(size)[:, None] + offset, size, edge)
    n, taps = weights.shape
    matrix = torch.zeros(n, size, size, dtype=torch.float64)
    source = source.expand(n, size, taps)
    return matrix.scatter_add_(2, source, weights[:, None, :].expand(n, size, taps))


def _fold(place: Tensor, size: int, edge: Edge) -> Tensor:
    if edge == "nearest" or size == 1:
        return place.clamp(0, size - 1)
    if edge == "reflect":
        place = place % (2 * size)
        return torch.where(place < size, place, 2 * size - 1 - place)
    period = 2 * size - 2
    place = place % period
    return torch.where(place < size, place, period - place)
