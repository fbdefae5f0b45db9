"""Blur: defocus, glass, motion, zoom. Images are floats in 0..1, (N, C, H, W)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_core.augment.blur import blur_matrix, gaussian_blur
from mae_core.corruptions.draws import Draws


def defocus_blur(images_NCHW: Tensor, draws: Draws, radius: float, softness: float) -> Tensor:
    """Average over a disk whose rim is softened by a small Gaussian."""
    kernel = disk(radius, softness).to(images_NCHW)
    n, c, height, width = images_NCHW.shape
    padded = F.pad(images_NCHW, [kernel.shape[0] // 2] * 4, mode="reflect")
    planes = padded.view(n * c, 1, *padded.shape[2:])
    return F.conv2d(planes, kernel[None, None]).view(n, c, height, width)


def disk(radius: float, softness: float) -> Tensor:
    """Kernel of a defocused point: float64 (K, K), K odd, as small as its support."""
    reach = 8 if radius <= 8 else int(radius)
    taps = 3 if radius <= 8 else 5
    place = torch.arange(-reach, reach + 1, dtype=torch.float64)
    sharp = (place**2 + place[:, None] ** 2 <= radius**2).double()
    sharp /= sharp.sum()
    # `truncate` gives the small Gaussian exactly that many taps.
    soften = blur_matrix(
        len(place), torch.tensor([softness]), truncate=(taps // 2) / softness, edge="mirror"
    )[0]
    kernel = soften @ sharp @ soften.T
    support = int(place[kernel.amax(dim=0) > 1e-12].abs().max())
    return kernel[reach - support : reach + support + 1, reach - support : reach + support + 1]


def glass_blur(images_NCHW: Tensor, draws: Draws, sigma: float, reach: int, rounds: int) -> Tensor:
    """Blur, replace pixels by neighbours, blur again.

    The published code walks from the last pixel to the first and means to swap each with one at a
    random offset in [−reach, reach), but its swap only copies the neighbour. So do we: a pixel
    takes the neighbour's value of that moment.
    """
    n, c, height, width = images_NCHW.shape
    width_N = torch.tensor([sigma])
    blurred = (gaussian_blur(images_NCHW, width_N) * 255 + 1e-3).floor_() / 255
    for _ in range(rounds):
        source = neighbour_of(draws.uniform(2, height, width), reach).view(n, 1, -1)
        blurred = blurred.view(n, c, -1).gather(2, source.expand(n, c, -1))
    return gaussian_blur(blurred.view(n, c, height, width), width_N)


def neighbour_of(uniform_N2HW: Tensor, reach: int) -> Tensor:
    """Which pixel each one ends as a copy of, after a walk of `glass_blur`: int64 (N, H · W).

    A neighbour that comes later in the image has been replaced already, so its source counts;
    the chains are followed by doubling, all pixels at once.
    """
    height, width = uniform_N2HW.shape[2:]
    offset = (uniform_N2HW * (2 * reach)).long() - reach
    y = torch.arange(height, device=uniform_N2HW.device)[:, None]
    x = torch.arange(width, device=uniform_N2HW.device)
    visited = (y > reach) & (y <= height - reach) & (x > reach) & (x <= width - reach)
    here = y * width + x
    source = torch.where(visited, here + offset[:, 0] * width + offset[:, 1], here)
    later = visited.flatten()[source] & (source > here)
    source, later = source.flatten(1), later.flatten(1)
    while bool(later.any()):
        next_source = torch.where(later, source.gather(1, source), source)
        later = later & later.gather(1, source)
        source = next_source
    return source


def motion_blur(images_NCHW: Tensor, draws: Draws, radius: int, sigma: float) -> Tensor:
    """Smear in a direction within 45° of the horizontal."""
    return smear(images_NCHW, radius, sigma, 90 * draws.uniform(1)[:, 0] - 45)


def smear(images_NCHW: Tensor, radius: int, sigma: float, degrees_N: Tensor) -> Tensor:
    """One-sided motion blur of ImageMagick: half a Gaussian over 2 · radius + 1 whole pixels."""
    height, width = images_NCHW.shape[2:]
    length = 2 * radius + 1
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(length)]
    padded = F.pad(images_NCHW, [length] * 4, mode="replicate")
    smeared = torch.zeros_like(images_NCHW)
    for n, degrees in enumerate(degrees_N.double().tolist()):
        along, down = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        for i, weight in enumerate(weights):
            top = length + math.ceil(i * down - 0.5)
            left = length + math.ceil(i * along - 0.5)
            part = padded[n, :, top : top + height, left : left + width]
            smeared[n].add_(part, alpha=weight / sum(weights))
    return smeared


def zoom_blur(images_NCHW: Tensor, draws: Draws, *factors: float) -> Tensor:
    """Mean of the image and of its centre at several zooms."""
    total = images_NCHW.clone()
    for factor in factors:
        total += zoom(images_NCHW, factor)
    return total / (len(factors) + 1)


def zoom(images_NCHW: Tensor, factor: float) -> Tensor:
    """Enlarge the centre to the whole image, bilinear: same shape."""
    for axis in (2, 3):
        # Written out: F.interpolate's last bit depends on the number of threads.
        low, share = (v.to(images_NCHW.device) for v in _places(images_NCHW.shape[axis], factor))
        high = (low + 1).clamp(max=images_NCHW.shape[axis] - 1)
        weight = share.float().view(-1, *[1] * (3 - axis))
        near, far = images_NCHW.index_select(axis, low), images_NCHW.index_select(axis, high)
        images_NCHW = torch.lerp(near, far, weight)
    return images_NCHW


def _places(size: int, factor: float) -> tuple[Tensor, Tensor]:
    """Where each output pixel looks: the pixel below (S,), and how far beyond it, in 0..1 (S,).

    The central ⌈size / factor⌉ pixels are spread over round(that · factor), ends on ends, and the
    middle of those is kept.
    """
    crop = math.ceil(size / factor)
    large = round(crop * factor)
    kept = torch.arange(size, dtype=torch.float64) + (large - size) // 2
    place = kept * ((crop - 1) / max(large - 1, 1))
    low = place.floor()
    return low.long() + (size - crop) // 2, place - low
