"""The random numbers of one corruption, keyed by (seed, family, severity, sample index)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mae_core.augment.noise_fields import normal_field, sample_keys, uniform_field, words
from mae_core.config.inference import FAMILIES
from mae_core.runtime.keyed_random import Stream

I64 = npt.NDArray[np.int64]

FIELD = 1 << 40
"""Keys of fields are drawn at positions from here on, beyond any pixel's."""


class Draws:
    """Fields of numbers for N samples; every call returns a fresh one."""

    def __init__(
        self, seed: int, family: str, severity: int, index: I64, device: torch.device
    ) -> None:
        which = FAMILIES.index(family) * 8 + severity
        self._keys = sample_keys(seed, Stream.CORRUPTION, which, index, device)
        self._fields = 0

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1): float32 (N, *shape)."""
        return self._shaped(uniform_field(self._next(), int(np.prod(shape))), shape)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal: float32 (N, *shape)."""
        return self._shaped(normal_field(self._next(), int(np.prod(shape))), shape)

    def _shaped(self, field: Tensor, shape: tuple[int, ...]) -> Tensor:
        return field.view(len(self._keys), *shape)

    def _next(self) -> Tensor:
        self._fields += 1
        return words(self._keys, torch.tensor(FIELD + self._fields, device=self._keys.device))
