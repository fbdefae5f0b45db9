"""Random erasing and the noise it paints: distributions, keys, and equality with `keyed`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mae_core.augment.erasing import erased_boxes, random_erase
from mae_core.augment.noise_fields import normal_field, sample_keys, uniform_field, words
from mae_core.config.augmentation import ErasingConfig
from mae_core.errors import ConfigError
from mae_core.runtime.keyed_random import Stream, bits

CPU = torch.device("cpu")
ALWAYS = ErasingConfig(probability=1.0)


def test_the_devices_hash_is_keyeds() -> None:
    index, epoch = np.array([0, 7, 2**40]), np.array([3, 0, 1])
    keys = sample_keys(5, Stream.ERASE_NOISE, epoch, index, CPU)
    ours = words(keys[:, None], torch.arange(9))
    key = bits(5, Stream.ERASE_NOISE, epoch, index)[:, 0]
    by_hand = []
    for start in key.tolist():
        for place in range(9):  # splitmix64's finaliser in unbounded integers
            value = (int(start) ^ place) + 0x9E3779B97F4A7C15 & 2**64 - 1
            value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 2**64 - 1
            value = (value ^ value >> 27) * 0x94D049BB133111EB & 2**64 - 1
            by_hand.append(value ^ value >> 31)
    assert ours.numpy().view(np.uint64).ravel().tolist() == by_hand


def test_fields_have_their_distributions() -> None:
    keys = sample_keys(1, Stream.ERASE_NOISE, 0, np.arange(50), CPU)
    normal = normal_field(keys, 4001).double()
    assert normal.shape == (50, 4001)
    assert normal.mean().item() == pytest.approx(0, abs=0.01)
    assert normal.var().item() == pytest.approx(1, abs=0.01)
    assert (normal**4).mean().item() == pytest.approx(3, abs=0.06)
    neighbours = np.corrcoef(normal[:, :-1].ravel(), normal[:, 1:].ravel())[0, 1]
    assert abs(neighbours) < 0.01
    uniform = uniform_field(keys, 4001)
    counts = torch.histc(uniform, 20, 0, 1)
    assert counts.tolist() == pytest.approx([50 * 4001 / 20] * 20, rel=0.05)
    assert 0 <= uniform.min() and uniform.max() < 1


def test_boxes_have_the_published_distribution() -> None:
    boxes = erased_boxes(ErasingConfig(), 224, 224, seed=0, epoch=0, index=np.arange(40_000))
    erased = boxes[boxes[:, 2] > 0]
    assert len(erased) / len(boxes) == pytest.approx(0.25, abs=0.01)
    top, left, height, width = erased.T
    assert (height < 224).all() and (width < 224).all()
    assert (top + height <= 224).all() and (left + width <= 224).all()
    area = height * width / 224**2
    assert area.min() >= 0.019 and area.max() <= 0.335
    # Areas are uniform but for the long boxes that do not fit and are drawn again.
    deciles = np.quantile(area, [0.1, 0.5, 0.9])
    assert deciles == pytest.approx([0.05, 0.17, 0.30], abs=0.012)
    aspect = np.log(height / width)
    assert abs(aspect.mean()) < 0.03
    assert np.abs(aspect).max() <= np.log(1 / 0.3) + 0.05
    small = area < 0.06  # all of these fit
    assert aspect[small].std() == pytest.approx(2 * np.log(1 / 0.3) / np.sqrt(12), rel=0.05)
    room = (224 - height).clip(1)
    assert (top / room).mean() == pytest.approx(0.5, abs=0.02)


def test_only_the_box_is_painted_with_normal_noise() -> None:
    images = torch.full((60, 3, 32, 40), 9.0)
    index = np.arange(60)
    out = random_erase(images, ALWAYS, seed=3, epoch=1, index=index)
    boxes = erased_boxes(ALWAYS, 32, 40, seed=3, epoch=1, index=index)
    noise = []
    for image, (top, left, height, width) in zip(out, boxes, strict=True):
        box = image[:, top : top + height, left : left + width]
        noise.append(box.flatten())
        assert (image != 9).sum() == box.numel() == 3 * height * width
    values = torch.cat(noise)
    assert values.mean().item() == pytest.approx(0, abs=0.02)
    assert values.std().item() == pytest.approx(1, abs=0.02)
    channels = torch.cat([b.view(3, -1) for b in noise], dim=1)
    assert np.abs(np.corrcoef(channels.numpy()) - np.eye(3)).max() < 0.03
    assert (images == 9).all()


def test_an_image_is_erased_alike_in_any_batch() -> None:
    images = torch.zeros(30, 5, 16, 16)
    index, epoch = np.arange(50, 80), np.arange(30) % 4
    whole = random_erase(images, ErasingConfig(), seed=0, epoch=epoch, index=index)
    some = np.array([29, 3, 11])
    part = random_erase(images[some], ErasingConfig(), seed=0, epoch=epoch[some], index=index[some])
    assert torch.equal(part, whole[some])
    for i in range(30):
        one = slice(i, i + 1)
        key = {"seed": 0, "epoch": epoch[one], "index": index[one]}
        assert torch.equal(random_erase(images[one], ErasingConfig(), **key), whole[one])


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="erase after normalising"):
        random_erase(
            torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ALWAYS, seed=0, epoch=0, index=np.arange(1)
        )
    with pytest.raises(ConfigError, match="erased area"):
        ErasingConfig(area=(0.5, 0.1))
    with pytest.raises(ConfigError, match="erased aspect"):
        ErasingConfig(aspect=(0.0, 1.0))
