"""Random masking by sorting noise (paper section 3): the same noise gives the same mask.

N = images, L = patches per image, K = visible patches.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mae_core.errors import ConfigError
from mae_core.runtime.keyed_random import Stream, uniform


def mask_noise(
    seed: int, epoch: int | npt.NDArray[np.int64], index: npt.NDArray[np.int64], num_patches: int
) -> Tensor:
    """Return the noise of samples `index` in `epoch`: (N, L), float32, uniform, on the CPU.

    It depends on nothing but its arguments, so any world size draws the same masks.
    """
    return torch.from_numpy(uniform(seed, Stream.MASK, epoch, index, num_patches)).float()


def shuffle_order(noise_NL: Tensor) -> Tensor:
    """Return ids_shuffle (N, L), int64: the patches by rising noise, the first ones visible.

    The sort is stable, so that two equal float32 draws give one order on every device.
    """
    return torch.argsort(noise_NL, dim=1, stable=True)


def random_masking(noise_NL: Tensor, num_keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split patches into visible and masked by the noise; the lowest `num_keep` stay visible.

    Returns `ids_keep_NK` (int64), `ids_restore_NL` (int64; undoes the shuffle) and `mask_NL`
    (float32; 1 = masked). Raises `ConfigError` unless 0 ≤ num_keep ≤ L.
    """
    num_patches = noise_NL.shape[1]
    if not 0 <= num_keep <= num_patches:
        raise ConfigError(f"cannot keep {num_keep} of {num_patches} patches: use 0..{num_patches}")
    ids_shuffle_NL = shuffle_order(noise_NL)
    ids_restore_NL = torch.argsort(ids_shuffle_NL, dim=1, stable=True)
    mask_NL = (ids_restore_NL >= num_keep).float()
    return ids_shuffle_NL[:, :num_keep], ids_restore_NL, mask_NL
