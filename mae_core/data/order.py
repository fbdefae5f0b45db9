"""Which sample comes when: a pure function of (number of samples, seed, epoch).

Small sets get a full permutation. Large ones get a block shuffle, so that each rank reads whole
blocks of neighbouring samples: the blocks are shuffled, their samples dealt in equal runs to 64
lanes, and each lane shuffles within a window of two blocks. Place p of an epoch belongs to lane
p % 64; a rank takes the places p ≡ rank (mod world), hence only its own lanes' blocks where the
world size divides 64.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mae_core.config import require
from mae_core.runtime.keyed_random import Stream, bits

I64 = npt.NDArray[np.int64]

# These four constants are science: another value is another order, and other results.
FULL_PERMUTATION_MAX = 65_536
"""Up to this many samples the order is a full permutation."""
NUM_LANES = 64
BLOCK = 128
"""Neighbouring samples that move together; about one row group."""
WINDOW_BLOCKS = 2
"""Blocks' worth of samples that a lane shuffles together."""


class SampleOrder:
    """Order of `num_samples` samples in global batches of `global_batch`.

    An epoch drops its last incomplete global batch; no sample comes twice within an epoch.
    """

    def __init__(self, num_samples: int, seed: int, global_batch: int) -> None:
        require(
            1 <= global_batch <= num_samples,
            f"global batch {global_batch} does not fit a set of {num_samples} images: "
            "lower the global batch",
        )
        self.num_samples, self.seed, self.batch_size = num_samples, seed, global_batch
        self.steps_per_epoch = num_samples // global_batch
        self._last: tuple[int, I64] | None = None

    @property
    def is_blocked(self) -> bool:
        """True if the order is a block shuffle, not a full permutation."""
        return self.num_samples > FULL_PERMUTATION_MAX

    def epoch_positions(self, epoch: int) -> I64:
        """All positions in the split, in this epoch's order: int64 (num_samples,), read-only."""
        last = self._last
        if last is None or last[0] != epoch:
            make = _block_shuffle if self.is_blocked else _permutation
            last = self._last = (epoch, make(self.num_samples, self.seed, epoch))
            last[1].setflags(write=False)
        return last[1]

    def step(self, step: int) -> tuple[int, I64]:
        """Epoch and positions, int64 (global_batch,), of optimizer step `step` (from 0)."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        start = batch * self.batch_size
        return epoch, self.epoch_positions(epoch)[start : start + self.batch_size]

    def rank_step(self, step: int, rank: int, world: int) -> tuple[int, I64]:
        """Epoch and one rank's positions of a step: int64 (global_batch / world,).

        `world` divides the global batch, so a place's residue is the same in batch and epoch.
        """
        require(
            self.batch_size % world == 0,
            f"global batch {self.batch_size} is not divisible by a world size of {world}",
        )
        epoch, positions = self.step(step)
        return epoch, positions[rank::world].copy()


def blocks_open(world: int) -> int:
    """Blocks that one rank reads from at a time under the block shuffle, at most."""
    lanes = NUM_LANES // world if NUM_LANES % world == 0 else NUM_LANES
    # A window need not start where a block does, and one block of the set may be short.
    return lanes * (WINDOW_BLOCKS + 2)


def _permutation(num_samples: int, seed: int, epoch: int) -> I64:
    keys = bits(seed, Stream.ORDER, epoch, np.arange(num_samples, dtype=np.int64))[:, 0]
    return np.argsort(keys, kind="stable")


def _block_shuffle(num_samples: int, seed: int, epoch: int) -> I64:
    stream = _shuffled_blocks(num_samples, seed, epoch)
    # Equal runs, not whole blocks, for each lane: lanes differ by at most one sample, so that an
    # epoch is complete and place = row · 64 + lane is exact.
    rows, longer = divmod(num_samples, NUM_LANES)
    lengths = rows + (np.arange(NUM_LANES) < longer)
    lane = np.repeat(np.arange(NUM_LANES), lengths)
    row = np.arange(num_samples) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    # Lanes enter new windows at different times, which spreads the reading.
    size = WINDOW_BLOCKS * BLOCK
    window = (row + lane * size // NUM_LANES) // size
    keys = bits(seed, Stream.ORDER, epoch, stream)[:, 0]
    shuffled = stream[np.lexsort((keys, window, lane))]
    order = np.empty(num_samples, dtype=np.int64)
    order[row * NUM_LANES + lane] = shuffled
    return order


def _shuffled_blocks(num_samples: int, seed: int, epoch: int) -> I64:
    """Concatenate the blocks in shuffled order: int64 (num_samples,)."""
    num_blocks = -(-num_samples // BLOCK)
    index = np.arange(num_blocks, dtype=np.int64)
    blocks = np.argsort(bits(seed, Stream.BLOCK_ORDER, epoch, index)[:, 0], kind="stable")
    stream: I64 = (blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
    return stream[stream < num_samples]


def stratified_order(labels: I64, index: I64, seed: int, stream: Stream) -> I64:
    """Order samples so that every run of it has each class in proportion: int64 (N,) places.

    A sample's place is its keyed rank within its class over the size of the class. So the first
    n places are a stratified draw of exactly n samples, whatever the class sizes.
    """
    keys = bits(seed, stream, 0, index)[:, 0]
    rank, counts = rank_in_class(labels, keys)
    return np.lexsort((keys, (rank + 0.5) / counts[labels]))


def rank_in_class(labels: I64, keys: npt.NDArray[np.uint64]) -> tuple[I64, I64]:
    """Rank of each sample among its class by key, (N,), and the size of each class, (C,)."""
    order = np.lexsort((keys, labels))
    counts = np.bincount(labels).astype(np.int64)
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - starts[labels[order]]
    return rank, counts
