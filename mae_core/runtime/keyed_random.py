"""Randomness as a pure function: the same key gives the same number on any rank, in any order.

A key is (seed, stream, epoch, sample index, position); the stream separates uses, so that a crop
never correlates with a mask. The hash is the splitmix64 finaliser (Steele et al. 2014) chained
over the parts of the key.
"""

from __future__ import annotations

import enum

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]


class Stream(enum.IntEnum):
    """One number per use of randomness. Never renumber: results depend on it."""

    ORDER = 1
    CROP = 2
    FLIP = 3
    MASK = 4
    DROP_PATH = 5
    LABEL_SUBSET = 6
    DEV_SPLIT = 7
    BLOCK_ORDER = 8
    RAND_AUGMENT = 9
    MIX = 10
    ERASE = 11
    ERASE_NOISE = 12
    JITTER = 13
    CORRUPTION = 14
    MASK_SHAPE = 20
    TRAIN_SUBSET = 21
    SAMPLE = 22
    CODE_INIT = 23


def _mix(value: U64) -> U64:
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def bits(
    seed: int,
    stream: Stream,
    epoch: int | npt.NDArray[np.int64],
    index: npt.NDArray[np.int64],
    count: int = 1,
) -> U64:
    """Return 64 random bits per (sample, position): shape (len(index), count)."""
    key = _mix(np.asarray([seed * 64 + int(stream)], dtype=np.int64).view(np.uint64))
    key = _mix(key ^ np.asarray(epoch, dtype=np.int64).reshape(-1).view(np.uint64))
    key = _mix(key ^ np.asarray(index, dtype=np.int64).view(np.uint64))
    return _mix(key[:, None] ^ np.arange(count, dtype=np.uint64)[None, :])


def uniform(
    seed: int,
    stream: Stream,
    epoch: int | npt.NDArray[np.int64],
    index: npt.NDArray[np.int64],
    count: int = 1,
) -> F64:
    """Return uniform numbers in [0, 1) with 53 bits: shape (len(index), count)."""
    return (bits(seed, stream, epoch, index, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
