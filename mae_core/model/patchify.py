"""What the decoder is asked for: patches of pixels, raw or normalised per patch (Table 1d).

N = images, L = patches, P = patch_size² · channels in the order (row, column, channel).
"""

from __future__ import annotations

from torch import Tensor

from mae_core.errors import ConfigError

VARIANCE_EPS = 1e-6


def patchify(images_NCHW: Tensor, patch_size: int) -> Tensor:
    """Cut square images into patches, row by row: (N, C, H, W) → (N, L, P), same dtype.

    Raises `ConfigError` unless height and width are multiples of `patch_size`.
    """
    n, c, height, width = images_NCHW.shape
    if height % patch_size or width % patch_size:
        raise ConfigError(f"image of {height}x{width} pixels: not a multiple of patch {patch_size}")
    h, w = height // patch_size, width // patch_size
    grid = images_NCHW.reshape(n, c, h, patch_size, w, patch_size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(n, h * w, patch_size**2 * c)


def unpatchify(patches_NLP: Tensor, patch_size: int) -> Tensor:
    """Undo `patchify` for square images: (N, L, P) → (N, C, H, W), same dtype.

    Raises `ConfigError` unless L is a square and P a multiple of patch_size².
    """
    n, length, pixels = patches_NLP.shape
    side = round(length**0.5)
    if side * side != length or pixels % patch_size**2:
        raise ConfigError(f"{length} patches of {pixels} values: no square image of {patch_size}")
    c = pixels // patch_size**2
    grid = patches_NLP.reshape(n, side, side, patch_size, patch_size, c)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(n, c, side * patch_size, side * patch_size)


def patch_targets(patches_NLP: Tensor, norm_pix: bool) -> Tensor:
    """Return the regression target of each patch: (N, L, P), float32.

    With `norm_pix` a patch has its own mean subtracted and is divided by √(variance + 1e-6), the
    variance unbiased and over all P values (paper section 3, "Reconstruction target").
    """
    target = patches_NLP.float()
    if not norm_pix:
        return target
    mean = target.mean(dim=-1, keepdim=True)
    variance = target.var(dim=-1, keepdim=True, unbiased=True)
    return (target - mean) / (variance + VARIANCE_EPS).sqrt()
