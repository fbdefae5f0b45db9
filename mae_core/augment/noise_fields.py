"""Keyed noise for every pixel, made on the device: `keyed_random`'s hash in torch integers.

The bits equal those of `mae_core.runtime.keyed_random` on every device. Normal numbers are looked
up in a table of 65,536 quantiles, so they too are the same bits everywhere, and cheap: four per
64-bit word.
Legend: N samples, P positions (any number of dimensions).
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mae_core.runtime.keyed_random import Stream, bits

I64 = npt.NDArray[np.int64]
TABLE_BITS = 16


def sample_keys(
    seed: int, stream: Stream, epoch: int | I64, index: I64, device: torch.device
) -> Tensor:
    """One 64-bit key per sample: int64 (N,) on the device."""
    return torch.from_numpy(bits(seed, stream, epoch, index)[:, 0].view(np.int64)).to(device)


def words(keys: Tensor, positions: Tensor) -> Tensor:
    """64 random bits per key and position (int64, any shapes that broadcast)."""
    return _mix(keys ^ positions)


def normals(words_P: Tensor) -> Tensor:
    """Four standard normal numbers per word: int64 (P…) → float32 (P…, 4)."""
    quarters = (words_P[..., None] >> _shifts(words_P.device)) & (2**TABLE_BITS - 1)
    values: Tensor = _quantiles(words_P.device)[quarters]
    return values


def normal_field(keys_N: Tensor, count: int) -> Tensor:
    """`count` standard normal numbers per sample: float32 (N, count)."""
    places = torch.arange(-(-count // 4), device=keys_N.device)
    return normals(words(keys_N[:, None], places)).reshape(len(keys_N), -1)[:, :count]


def uniform_field(keys_N: Tensor, count: int) -> Tensor:
    """`count` uniform numbers in [0, 1) of 24 bits per sample: float32 (N, count)."""
    places = torch.arange(-(-count // 2), device=keys_N.device)
    word = words(keys_N[:, None], places)
    halves = torch.stack([_unsigned_shift(word, 40), word & 0xFFFFFF], dim=-1)
    return halves.reshape(len(keys_N), -1)[:, :count].float() / 2**24


def _mix(value: Tensor) -> Tensor:
    """splitmix64's finaliser, as in `keyed`; int64 arithmetic wraps as uint64 does."""
    value = value + (0x9E3779B97F4A7C15 - 2**64)
    value = (value ^ _unsigned_shift(value, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    value = (value ^ _unsigned_shift(value, 27)) * (0x94D049BB133111EB - 2**64)
    return value ^ _unsigned_shift(value, 31)


def _unsigned_shift(value: Tensor, by: int) -> Tensor:
    shifted: Tensor = (value >> by) & (2 ** (64 - by) - 1)
    return shifted


@functools.cache
def _shifts(device: torch.device) -> Tensor:
    return torch.arange(0, 64, TABLE_BITS, device=device)


@functools.cache
def _quantiles(device: torch.device) -> Tensor:
    places = (torch.arange(2**TABLE_BITS, dtype=torch.float64) + 0.5) / 2**TABLE_BITS
    values: Tensor = torch.special.ndtri(places)
    return values.float().to(device)
