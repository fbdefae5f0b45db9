"""What a fine-tuning sees: the same at any micro-batch and world size, mixed over the batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mae_core.config import (
    NO_AUGMENTATION,
    AugmentationConfig,
    BatchSplit,
    DataConfig,
    FinetuneRecipe,
)
from mae_core.config.augmentation import ErasingConfig, MixConfig, RandAugmentConfig
from mae_core.data.augmented import augmented, network_input
from mae_core.data.loader import Batch, TrainLoader
from mae_core.data.sources import ImageData, open_data
from mae_core.data.transforms import training_image
from mae_core.errors import ConfigError
from mae_core.evaluate.finetune_inputs import FinetuneInputs
from mae_core.train.state import Inputs

DIGITS = DataConfig(
    path="digits", image_size=8, num_channels=3, pixel_mean=(0.3,) * 3, pixel_std=(0.38,) * 3
)
STRONG = FinetuneRecipe(
    data=DIGITS,
    global_batch=32,
    augmentation=NO_AUGMENTATION,
    rand_augment=RandAugmentConfig(),
    mix=MixConfig(),
    erasing=ErasingConfig(),
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> ImageData:
    return open_data(DIGITS)


def loader(data: ImageData, micro: int, rank: int = 0, world: int = 1) -> TrainLoader:
    batch = BatchSplit(micro, 32 // world // micro, world)
    split = data.split("train")
    return TrainLoader(split, DIGITS, NO_AUGMENTATION, seed=0, batch=batch, rank=rank, threads=0)


def step_inputs(
    recipe: FinetuneRecipe, data: ImageData, micro: int, rank: int = 0, world: int = 1
) -> dict[int, Inputs]:
    """Inputs of step 3 by sample index."""
    inputs = FinetuneInputs(recipe, 4, 10)
    batches = list(loader(data, micro, rank, world).steps(3, 4))[0]
    with (
        mock.patch("mae_core.evaluate.finetune_inputs.collectives.rank", return_value=rank),
        mock.patch("mae_core.evaluate.finetune_inputs.collectives.world", return_value=world),
    ):
        made = list(inputs.step(3, batches, CPU))
    found = {}
    for batch, parts in zip(batches, made, strict=True):
        for row, index in enumerate(batch.index.tolist()):
            found[index] = tuple(part[row] for part in parts)
    return found


@pytest.mark.parametrize("mix", [MixConfig(), MixConfig(group_size=4), MixConfig(level="pair")])
def test_no_micro_batch_or_world_size_changes_an_input(data: ImageData, mix: MixConfig) -> None:
    recipe = replace(STRONG, mix=mix)
    whole = step_inputs(recipe, data, 32)
    pieces = step_inputs(recipe, data, 4)
    ranks = step_inputs(recipe, data, 8, 0, 2) | step_inputs(recipe, data, 8, 1, 2)
    assert set(whole) == set(pieces) == set(ranks)
    for index, parts in whole.items():
        for other in (pieces[index], ranks[index]):
            assert all(torch.equal(a, b) for a, b in zip(parts, other, strict=True))


def test_mixed_targets_are_distributions_of_two_classes(data: ImageData) -> None:
    inputs = step_inputs(replace(STRONG, label_smoothing=0.0, mix=MixConfig(level="pair")), data, 8)
    targets = torch.stack([parts[1] for parts in inputs.values()])
    assert torch.allclose(targets.sum(dim=1), torch.ones(32))
    assert int((targets > 0).sum(dim=1).max()) == 2


def test_without_mixing_labels_stay_classes(data: ImageData) -> None:
    inputs = step_inputs(replace(STRONG, mix=None), data, 8)
    labels = {index: int(parts[1]) for index, parts in inputs.items()}
    split = data.split("train")
    known = dict(zip(split.sample_index.tolist(), split.labels.tolist(), strict=True))
    assert labels == {index: known[index] for index in labels}


def test_soft_targets_equal_smoothed_labels() -> None:
    from mae_core.augment.mixing import soft_targets

    logits, labels = torch.randn(6, 5), torch.arange(6) % 5
    soft = soft_targets(labels, labels.flip(0), np.ones(6), 5, 0.1)
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    assert float(F.cross_entropy(logits, soft)) == pytest.approx(float(expected), rel=1e-5)


def test_odd_batches_cannot_be_mixed() -> None:
    with pytest.raises(ConfigError, match="make it even"):
        replace(STRONG, global_batch=33)
    with pytest.raises(ConfigError, match=r"multiple of 32, or mix.group_size=10"):
        replace(STRONG, global_batch=50)
    with pytest.raises(
        ConfigError, match="global batch 20 does not divide"
    ):  # all that is labelled
        STRONG.check_labels(20, 1000, 10)
    STRONG.check_labels(1000, 1000, 10)


def batch_of(images: torch.Tensor) -> Batch:
    index = np.arange(len(images), dtype=np.int64)
    return Batch(images, torch.zeros(len(images), dtype=torch.int64), index, index * 0 + 2)


def test_jitter_is_keyed_and_keeps_the_shape() -> None:
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    config = AugmentationConfig(color_jitter=0.4)
    batch = batch_of(images)
    whole = augmented(batch, config, 0, CPU)
    assert whole.dtype == torch.uint8
    assert not torch.equal(whole, images)
    part = Batch(batch.images[2:4], batch.labels[2:4], batch.index[2:4], batch.epoch[2:4])
    assert torch.equal(augmented(part, config, 0, CPU), whole[2:4])
    assert network_input(batch, DIGITS, config, 0, CPU).dtype == torch.float32


def test_a_crop_of_fixed_size_cuts_windows_of_the_resized_image() -> None:
    config = AugmentationConfig(crop_scale=None, fixed_crop_margin=1.5, flip=False)
    small = DataConfig(path="unused", image_size=12)
    image = np.zeros((16, 16, 1), dtype=np.uint8)
    image[:, 8:] = 200
    whole = training_image(
        image, small, replace(config, fixed_crop_margin=1.0), np.zeros(22), False
    )
    assert whole.shape == (1, 12, 12)
    low, high = np.zeros(22), np.full(22, 0.999)
    left = training_image(image, small, config, low, False)
    right = training_image(image, small, config, high, False)
    assert left.shape == right.shape == (1, 12, 12)
    # 18 px wide after resizing, so the edge at 9 lies at 9 from the left or 3 from the right crop.
    assert int((left[0, 6] < 100).sum()) == 9
    assert int((right[0, 6] < 100).sum()) == 3


def test_ones_own_augmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def invert(images, seed, epoch, index):\n    return 255 - images\n"
    source += "def wrong(images, seed, epoch, index):\n    return images.float()\n"
    (tmp_path / "own_augment.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    config = replace(NO_AUGMENTATION, custom="own_augment:invert")
    assert not config.is_deterministic
    assert torch.equal(augmented(batch_of(images), config, 0, CPU), 255 - images)
    wrong = replace(config, custom="own_augment:wrong")
    with pytest.raises(ConfigError, match="must return uint8 images of shape"):
        augmented(batch_of(images), wrong, 0, CPU)


def test_two_crops_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="one crop"):
        AugmentationConfig(fixed_crop_margin=1.2)
