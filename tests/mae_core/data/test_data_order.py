"""The order of samples: pure, complete, the same for every world size, local in its reads."""

from __future__ import annotations

import numpy as np
import pytest

from mae_core.data.order import (
    BLOCK,
    FULL_PERMUTATION_MAX,
    NUM_LANES,
    SampleOrder,
    blocks_open,
    rank_in_class,
    stratified_order,
)
from mae_core.data.scan import check_mixed
from mae_core.errors import ConfigError, DataError
from mae_core.runtime.keyed_random import Stream, bits

SIZES = [1, 7, 1000, FULL_PERMUTATION_MAX, FULL_PERMUTATION_MAX + 1, 100_003, 131_072]


@pytest.mark.parametrize("num_samples", SIZES)
@pytest.mark.parametrize("epoch", [0, 5])
def test_every_sample_once_per_epoch(num_samples: int, epoch: int) -> None:
    positions = SampleOrder(num_samples, 3, 1).epoch_positions(epoch)
    assert positions.dtype == np.int64
    np.testing.assert_array_equal(np.sort(positions), np.arange(num_samples))


@pytest.mark.parametrize("num_samples", [1000, 100_003])
def test_order_depends_on_seed_and_epoch_alone(num_samples: int) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return list(map(int, SampleOrder(num_samples, seed, 8).epoch_positions(epoch)))

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    used = SampleOrder(num_samples, 0, 8)
    used.epoch_positions(7)
    assert used.epoch_positions(1).tolist() == order(0, 1)


@pytest.mark.parametrize("num_samples", [1000, 100_003])
@pytest.mark.parametrize("global_batch", [64, 96])
def test_any_world_size_sees_the_same_global_batches(num_samples: int, global_batch: int) -> None:
    order = SampleOrder(num_samples, 0, global_batch)
    for step in (0, order.steps_per_epoch - 1, order.steps_per_epoch):
        epoch, expected = order.step(step)
        assert epoch == step // order.steps_per_epoch
        for world in (1, 2, 3, 4, 8, 16, 32, 64):
            if global_batch % world:
                continue
            parts = [order.rank_step(step, rank, world)[1] for rank in range(world)]
            assert {len(part) for part in parts} == {global_batch // world}
            np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.sort(expected))


def test_incomplete_batch_is_dropped_and_never_repeated() -> None:
    order = SampleOrder(103, 0, 10)
    assert order.steps_per_epoch == 10
    seen = np.concatenate([order.step(step)[1] for step in range(10)])
    assert len(set(seen.tolist())) == 100
    np.testing.assert_array_equal(order.step(10)[1], order.epoch_positions(1)[:10])


def test_batches_and_worlds_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="global batch 11 does not fit a set of 10 images"):
        SampleOrder(10, 0, 11)
    with pytest.raises(ConfigError, match="not divisible by a world size of 3"):
        SampleOrder(10, 0, 4).rank_step(0, 0, 3)


@pytest.mark.parametrize("world", [1, 8, 64])
def test_block_order_keeps_reads_local(world: int) -> None:
    num_samples = 400_000
    positions = SampleOrder(num_samples, 0, 64).epoch_positions(2)
    blocks = positions[0::world] // BLOCK
    places = np.arange(len(blocks))
    first = np.full(num_samples // BLOCK + 1, len(blocks))
    last = np.full(num_samples // BLOCK + 1, -1)
    np.minimum.at(first, blocks, places)
    np.maximum.at(last, blocks, places)
    touched = last >= 0
    change = np.zeros(len(blocks) + 1, dtype=np.int64)
    np.add.at(change, first[touched], 1)
    np.add.at(change, last[touched] + 1, -1)
    # A block on the border of two of the rank's lanes is needed at both ends of the epoch.
    borders = NUM_LANES // world if world == 1 else 0
    assert np.cumsum(change).max() <= blocks_open(world) + borders
    # Blocks that a rank touches at all: its share, and borders of its lanes.
    assert touched.sum() <= num_samples // BLOCK // world + 2 * max(1, NUM_LANES // world) + 1


def test_neighbours_are_mixed() -> None:
    positions = SampleOrder(200_000, 0, 4096).step(0)[1]
    per_block = np.bincount(positions // BLOCK)
    assert per_block.max() <= 64
    assert (per_block > 0).sum() >= NUM_LANES


@pytest.mark.parametrize("count", [10, 33, 100])
def test_every_run_of_a_stratified_order_is_stratified(count: int) -> None:
    labels = np.repeat(np.arange(3), [600, 300, 100]).astype(np.int64)
    order = stratified_order(labels, np.arange(1000), 0, Stream.DEV_SPLIT)
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    for start in (0, 450):
        found = np.bincount(labels[order[start : start + count]], minlength=3)
        assert np.abs(found - np.array([0.6, 0.3, 0.1]) * count).max() <= 1.5


def test_rank_in_class() -> None:
    labels = np.array([1, 0, 1, 1], dtype=np.int64)
    rank, counts = rank_in_class(labels, np.array([5, 9, 1, 3], dtype=np.uint64))
    assert rank.tolist() == [2, 0, 0, 1]
    assert counts.tolist() == [1, 3]


def test_orders_are_pinned() -> None:
    """A change here changes every result: raise the recipes' versions with it."""
    assert SampleOrder(10, 0, 1).epoch_positions(0).tolist() == PINNED_SMALL
    assert SampleOrder(70_000, 0, 1).epoch_positions(0)[:6].tolist() == PINNED_BLOCKED
    assert int(bits(0, Stream.ORDER, 0, np.zeros(1, dtype=np.int64))[0, 0]) == PINNED_BITS


PINNED_SMALL = [7, 8, 6, 5, 4, 2, 1, 9, 0, 3]
PINNED_BLOCKED = [30093, 54433, 67516, 60926, 24469, 40512]
PINNED_BITS = 16321491304643971414


@pytest.mark.parametrize("per_shard", [1, 10])
def test_a_large_set_sorted_by_class_is_refused(per_shard: int) -> None:
    """The block shuffle would give it batches of few classes."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 100, FULL_PERMUTATION_MAX + 1)
    skewed = np.minimum(draw.geometric(0.3, len(labels)), 99)
    shards = np.lexsort((draw.random(len(labels)), labels // per_shard))
    for mixed in (labels, skewed, labels[shards][:FULL_PERMUTATION_MAX], 0 * labels):
        check_mixed("set", mixed)
    for clustered in (labels[shards], skewed[np.argsort(skewed)]):
        with pytest.raises(DataError, match="rows are sorted by class .* shuffle the rows"):
            check_mixed("set", clustered)
