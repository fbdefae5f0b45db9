"""Digital: contrast, elastic, pixelate, JPEG. Images are floats in 0..1, (N, C, H, W)."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mae_core.augment.blur import gaussian_blur
from mae_core.corruptions.draws import Draws


def contrast(images_NCHW: Tensor, draws: Draws, kept: float) -> Tensor:
    """Shrink the distance from each channel's mean."""
    # In doubles the order of the sum, which depends on batch and threads, cannot show.
    mean = images_NCHW.mean(dim=(2, 3), keepdim=True, dtype=torch.float64).float()
    return (images_NCHW - mean) * kept + mean


def elastic_transform(
    images_NCHW: Tensor, draws: Draws, amount: float, sigma: float, jitter: float
) -> Tensor:
    """A random affine warp (three points move by ± jitter), then a smooth displacement field."""
    height, width = images_NCHW.shape[2:]
    y = torch.arange(height, device=images_NCHW.device, dtype=torch.float32)[:, None]
    x = torch.arange(width, device=images_NCHW.device, dtype=torch.float32)
    a, b, c, d, e, f = (
        affine_map(draws.uniform(3, 2), jitter, height, width).to(y)[:, :, None, None].unbind(1)
    )
    warped = sample(images_NCHW, a * x + b * y + c, d * x + e * y + f, pixel_edge=False)
    if amount == 0:
        return warped
    noise = 2 * draws.uniform(2, height, width) - 1
    smooth = gaussian_blur(noise, torch.tensor([sigma]), truncate=3.0, edge="reflect") * amount
    return sample(warped, x + smooth[:, 0], y + smooth[:, 1], pixel_edge=True)


def affine_map(uniform_N32: Tensor, jitter: float, height: int, width: int) -> Tensor:
    """Coefficients (a, b, c, d, e, f) of the map from output to input pixels: float64 (N, 6).

    Three corners of a centred square (a third of the short side from the centre) go to places
    within ± jitter on each axis.
    """
    centre = torch.tensor([width // 2, height // 2], dtype=torch.float64)
    third = min(height, width) // 3
    corners = torch.tensor([[1, 1], [1, -1], [-1, -1]], dtype=torch.float64) * third + centre
    moved = corners + jitter * (2 * uniform_N32.cpu().double() - 1)
    homogeneous = torch.cat([moved, torch.ones_like(moved[..., :1])], dim=2)
    # One solution per image: batched solvers may depend on the size of the batch.
    maps = [torch.linalg.solve(places, corners).T.flatten() for places in homogeneous]
    return torch.stack(maps)


def sample(images_NCHW: Tensor, x: Tensor, y: Tensor, *, pixel_edge: bool) -> Tensor:
    """Bilinear values at pixel coordinates; the image is mirrored at pixel edges or centres."""
    height, width = images_NCHW.shape[2:]
    if pixel_edge:
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    else:
        grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
    return F.grid_sample(
        images_NCHW, grid, "bilinear", padding_mode="reflection", align_corners=not pixel_edge
    )


def pixelate(images_NCHW: Tensor, draws: Draws, kept: float) -> Tensor:
    """Shrink and enlarge with a box filter (Pillow)."""

    def shrink(image: Image.Image) -> Image.Image:
        small = (max(1, int(image.width * kept)), max(1, int(image.height * kept)))
        box = Image.Resampling.BOX
        return image.resize(small, box).resize(image.size, box)

    return _by_pillow(images_NCHW, shrink)


def jpeg_compression(images_NCHW: Tensor, draws: Draws, quality: int) -> Tensor:
    """Encode as JPEG and decode (Pillow, with the libjpeg it was built with)."""

    def compress(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _by_pillow(images_NCHW, compress)


def _by_pillow(images_NCHW: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    pixels = (images_NCHW * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    changed = [np.array(change(Image.fromarray(image.squeeze()))) for image in pixels]
    result = torch.from_numpy(np.stack(changed)).reshape(pixels.shape).permute(0, 3, 1, 2)
    return result.to(images_NCHW.device).float() / 255
