"""Masks as a pure function of their key, and the fixed position table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from mae_core.errors import ConfigError
from mae_core.model.masking import mask_noise, random_masking
from mae_core.model.positions import sincos_positions


def test_lowest_noise_stays_visible_and_restore_undoes_the_shuffle() -> None:
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.3], [0.2, 0.8, 0.4, 0.6]])
    ids_keep, ids_restore, mask = random_masking(noise, 2)
    assert ids_keep.tolist() == [[1, 3], [0, 2]]
    assert mask.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]
    shuffled = torch.sort(noise, dim=1).values
    assert torch.equal(torch.gather(shuffled, 1, ids_restore), noise)


def test_every_image_has_exactly_the_asked_number_of_masked_patches() -> None:
    noise = mask_noise(0, 0, np.arange(64), 49)
    ids_keep, _, mask = random_masking(noise, 12)
    assert ids_keep.shape == (64, 12)
    assert mask.sum(dim=1).tolist() == [37.0] * 64
    assert torch.gather(mask, 1, ids_keep).sum() == 0


def test_equal_noise_keeps_the_order_of_patches() -> None:
    ids_keep, ids_restore, _ = random_masking(torch.zeros(1, 100), 30)
    assert ids_keep[0].tolist() == list(range(30))
    assert ids_restore[0].tolist() == list(range(100))


def test_masking_refuses_more_than_there_is() -> None:
    with pytest.raises(ConfigError, match="cannot keep 5 of 4"):
        random_masking(torch.zeros(1, 4), 5)


def test_noise_depends_on_seed_epoch_and_sample_only() -> None:
    whole = mask_noise(7, 3, np.arange(10), 16)
    part = mask_noise(7, 3, np.array([8, 2]), 16)
    assert whole.dtype == torch.float32
    assert torch.equal(part, whole[[8, 2]])
    for other in (mask_noise(8, 3, np.arange(10), 16), mask_noise(7, 4, np.arange(10), 16)):
        assert not torch.equal(other, whole)
    per_sample_epoch = mask_noise(7, np.full(10, 3), np.arange(10), 16)
    assert torch.equal(per_sample_epoch, whole)


def test_every_patch_is_masked_equally_often() -> None:
    noise = mask_noise(1, 0, np.arange(20_000), 16)
    share = random_masking(noise, 4)[2].mean(dim=0)
    # Standard error of a share of .75 over 20,000 images is .003.
    assert share.tolist() == pytest.approx([0.75] * 16, abs=0.015)


@pytest.mark.parametrize(("width", "grid"), [(16, 1), (48, 4), (192, 7), (512, 14), (1280, 16)])
def test_positions_equal_hugging_faces_in_the_released_layout(width: int, grid: int) -> None:
    table = build_2d_sinusoidal_position_embedding(grid, grid, width, cls_token=True)
    half = width // 2
    released = torch.cat([table[:, half:], table[:, :half]], dim=1)
    assert torch.equal(sincos_positions(width, grid), released)


def test_positions_by_hand() -> None:
    table = sincos_positions(8, 3).numpy()
    row, column = 2, 1
    omega = np.array([1.0, 1e-2])
    expected = np.concatenate(
        [f(place * omega) for place in (column, row) for f in (np.sin, np.cos)]
    )
    assert not table[0].any()
    assert table[1 + row * 3 + column] == pytest.approx(expected, rel=1e-6)
