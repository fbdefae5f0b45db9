"""Mixup and CutMix against their formulas; the same at any world size and micro-batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mae_core.augment.mixing import (
    BETA_TRIES,
    Mix,
    beta,
    draw_mix,
    mix_images,
    partner_position,
    partner_rows,
    soft_targets,
)
from mae_core.config.augmentation import MixConfig
from mae_core.data.order import SampleOrder
from mae_core.errors import ConfigError
from mae_core.runtime.keyed_random import Stream, uniform

BATCH, SIZE, CLASSES = 24, 16, 5
MIXUP = MixConfig(cutmix_alpha=0.0, group_size=BATCH)
CUTMIX = MixConfig(mixup_alpha=0.0, group_size=BATCH)
PAIRS = MixConfig(level="pair")


def drawn(config: MixConfig, step: int, positions: np.ndarray | None = None) -> Mix:
    where = np.arange(BATCH) if positions is None else positions
    return draw_mix(
        config, seed=1, step=step, positions=where, global_batch=BATCH, height=SIZE, width=SIZE
    )


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)
    return images, torch.randint(CLASSES, (BATCH,), generator=generator)


def mixed(config: MixConfig, step: int) -> tuple[Tensor, Tensor]:
    """The whole global batch in one process."""
    images, labels = batch()
    partner = partner_position(np.arange(BATCH), BATCH)
    mix = drawn(config, step)
    targets = soft_targets(labels, labels[partner], mix.lam, CLASSES, 0.1)
    return mix_images(images, images[partner], mix), targets


@pytest.mark.parametrize(("level", "group_size"), [("batch", 24), ("batch", 8), ("pair", 24)])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_every_world_size_mixes_alike(level: str, group_size: int, world: int) -> None:
    images, labels = batch()
    config = MixConfig(level=level, group_size=group_size)  # type: ignore[arg-type]
    order = SampleOrder(BATCH, seed=0, global_batch=BATCH)
    place = np.argsort(order.step(0)[1])  # of each sample in the global batch
    for step in range(6):
        whole_images, whole_targets = mixed(config, step)
        for rank in range(world):
            positions = place[order.rank_step(0, rank, world)[1]]
            partner = positions[partner_rows(len(positions))]
            assert (partner == partner_position(positions, BATCH)).all()
            mix = drawn(config, step, positions)
            ours = mix_images(images[positions], images[partner], mix)
            assert torch.equal(ours, whole_images[positions])
            targets = soft_targets(labels[positions], labels[partner], mix.lam, CLASSES, 0.1)
            assert torch.equal(targets, whole_targets[positions])


def test_a_group_is_one_draw_and_a_flipped_batch() -> None:
    config = MixConfig(group_size=8)
    for step in range(5):
        mix = drawn(config, step)
        groups = np.arange(BATCH).reshape(8, 3)  # a column is a group
        assert len(np.unique(mix.lam)) == 3
        for group in groups.T:
            assert len(np.unique(mix.lam[group])) == len(np.unique(mix.boxes[group], axis=0)) == 1
            order = np.concatenate([group[:4], group[:3:-1]])
            assert (partner_position(order, BATCH) == order[::-1]).all()


def test_a_batch_of_1024_is_mixed_by_32_draws() -> None:
    config, positions = MixConfig(), np.arange(1024)
    for step in range(3):
        mix = draw_mix(
            config, seed=0, step=step, positions=positions, global_batch=1024, height=9, width=9
        )
        _, sizes = np.unique(np.round(mix.lam, 12), return_counts=True)
        assert len(np.unique(positions % 32)) == 32 and set(sizes % 32) == {0}
        assert (mix.lam.reshape(32, 32) == mix.lam[:32]).all()
        assert 8 <= mix.uses_box[:32].sum() <= 24  # CutMix in half of the draws, not of the steps


def test_mixup_is_the_formula() -> None:
    images, labels = batch()
    ours, targets = mixed(MIXUP, 0)
    lam = float(drawn(MIXUP, 0).lam[0])
    assert 0 < lam < 1
    other = images.roll(-BATCH // 2, 0)
    assert torch.allclose(ours, lam * images + (1 - lam) * other, atol=1e-6)
    one_hot = torch.nn.functional.one_hot(labels, CLASSES).float() * 0.9 + 0.1 / CLASSES
    expected = lam * one_hot + (1 - lam) * one_hot.roll(-BATCH // 2, 0)
    assert torch.allclose(targets, expected, atol=1e-6)
    assert targets.sum(dim=1).tolist() == pytest.approx([1.0] * BATCH)


def test_cutmix_copies_a_box_and_lambda_is_the_area_left() -> None:
    images, _ = batch()
    for step in range(20):
        ours, _ = mixed(CUTMIX, step)
        mix = drawn(CUTMIX, step)
        top, left, height, width = mix.boxes[0]
        expected = images.clone()
        box = (slice(None), slice(None), slice(top, top + height), slice(left, left + width))
        expected[box] = images.roll(-BATCH // 2, 0)[box]
        assert torch.equal(ours, expected)
        kept = (ours == images).all(dim=1).float().mean(dim=(1, 2))
        assert kept.tolist() == pytest.approx([float(mix.lam[0])] * BATCH)


def test_a_pair_shares_lambda_and_box() -> None:
    mix = drawn(PAIRS, 3)
    half = BATCH // 2
    assert (mix.lam[:half] == mix.lam[half:]).all() and (mix.boxes[:half] == mix.boxes[half:]).all()
    assert len(np.unique(mix.lam)) > half // 2
    assert mix.uses_box.any() and not mix.uses_box.all()
    # A mixup pair adds up to the pair: nothing is lost between the two.
    images, _ = batch()
    ours = mix_images(images, images.roll(-half, 0), drawn(PAIRS, 3))
    total, before = ours[:half] + ours[half:], images[:half] + images[half:]
    assert torch.allclose(total, before, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 2.0])
def test_beta_has_its_moments(alpha: float) -> None:
    draws = uniform(0, Stream.MIX, 0, np.arange(20_000), 2 * BETA_TRIES)
    values = beta(alpha, draws)
    assert values.min() >= 0 and values.max() <= 1
    assert values.mean() == pytest.approx(0.5, abs=0.01)
    assert values.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    # The fourth central moment tells Beta from other symmetric laws of that variance.
    fourth = 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))
    assert ((values - 0.5) ** 4).mean() == pytest.approx(fourth, rel=0.05)


def test_half_of_the_steps_cut_and_probability_leaves_some_whole() -> None:
    uses_box = [bool(drawn(MixConfig(group_size=BATCH), step).uses_box[0]) for step in range(1000)]
    assert np.mean(uses_box) == pytest.approx(0.5, abs=0.05)
    lams = [
        float(drawn(MixConfig(probability=0.3, group_size=BATCH), step).lam[0])
        for step in range(1000)
    ]
    assert np.mean(np.array(lams) == 1) == pytest.approx(0.7, abs=0.05)


def test_without_mixing_images_and_hard_labels_stay() -> None:
    images, labels = batch()
    ours, _ = mixed(MixConfig(probability=0.0, group_size=BATCH), 0)
    assert torch.equal(ours, images)
    targets = soft_targets(labels, labels.flip(0), np.ones(BATCH), CLASSES)
    assert torch.equal(targets, torch.nn.functional.one_hot(labels, CLASSES).float())


def test_soft_targets_give_the_cross_entropy_of_label_smoothing() -> None:
    _, labels = batch()
    logits = torch.randn(BATCH, CLASSES, generator=torch.Generator().manual_seed(1))
    targets = soft_targets(labels, labels, np.ones(BATCH), CLASSES, 0.1)
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.nn.functional.cross_entropy(logits, targets).item() == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ConfigError, match="divisible by twice the number of ranks"):
        partner_rows(3)
    with pytest.raises(ConfigError, match="even number"):
        partner_position(np.arange(5), 5)
    with pytest.raises(ConfigError, match=r"multiple of 32, or mix.group_size=24"):
        drawn(MixConfig(), 0)
    with pytest.raises(ConfigError, match="must be even"):
        MixConfig(group_size=7)
    with pytest.raises(ConfigError, match="both 0"):
        MixConfig(mixup_alpha=0, cutmix_alpha=0)
    with pytest.raises(ConfigError, match="alpha 3"):
        MixConfig(mixup_alpha=3)
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ConfigError, match="mix after normalising"):
        mix_images(images, images, drawn(MIXUP, 0))
