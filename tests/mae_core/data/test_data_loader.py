"""Batches: pure functions of the step, the same for any world, threads and micro-batch."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.make_data import encode, pixels, png, write_parquet, write_set

from mae_core.config import (
    NO_AUGMENTATION,
    PROBE_CROP,
    SUPERVISED_CROP,
    AugmentationConfig,
    BatchSplit,
    DataConfig,
)
from mae_core.data.loader import Batch, TrainLoader, eval_batches, normalise
from mae_core.data.sources import Split, open_data
from mae_core.data.transforms import (
    CROP_DRAWS,
    crop_draws,
    evaluation_image,
    random_crop_box,
    resize,
)
from mae_core.errors import ConfigError, DataError

DIGITS = DataConfig(
    path="digits", image_size=8, num_channels=1, pixel_mean=(0.3,), pixel_std=(0.38,)
)
CROP = AugmentationConfig()
FLIP = AugmentationConfig(crop_scale=None)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images of many sizes."""
    folder = tmp_path_factory.mktemp("photographs")
    sizes = [(20 + i % 7, 16 + i % 11) for i in range(40)]
    images = [png(i, *size) for i, size in enumerate(sizes)]
    write_parquet(folder / "train.parquet", images, [i % 3 for i in range(40)])
    return write_set(folder, 0, 7)


def data(path: Path, size: int = 16) -> DataConfig:
    return DataConfig(path=str(path), image_size=size)


def loader(
    config: DataConfig,
    augmentation: AugmentationConfig = CROP,
    *,
    micro: int = 8,
    accumulation: int = 1,
    world: int = 1,
    rank: int = 0,
    threads: int = 0,
    split: Split | None = None,
) -> TrainLoader:
    return TrainLoader(
        split or open_data(config).split("train"),
        config,
        augmentation,
        seed=5,
        batch=BatchSplit(micro, accumulation, world),
        rank=rank,
        threads=threads,
    )


def by_sample(batches: list[Batch]) -> dict[tuple[int, int], tuple[int, bytes]]:
    return {
        (int(epoch), int(index)): (int(label), image.numpy().tobytes())
        for batch in batches
        for epoch, index, label, image in zip(
            batch.epoch, batch.index, batch.labels, batch.images, strict=True
        )
    }


@pytest.mark.parametrize("augmentation", [CROP, FLIP, NO_AUGMENTATION])
def test_batches_do_not_depend_on_execution(
    photographs: Path, augmentation: AugmentationConfig
) -> None:
    config = data(photographs)
    whole = [by_sample(step) for step in loader(config, augmentation).steps(0, 12)]
    assert len(whole) == 12 and all(len(step) == 8 for step in whole)
    layouts: list[dict[str, Any]] = [
        {"threads": 3},
        {"micro": 2, "accumulation": 4},
        {"micro": 2, "accumulation": 2, "world": 2, "threads": 1},
        {"micro": 1, "world": 8},
    ]
    for layout in layouts:
        gangs = [
            loader(config, augmentation, rank=rank, **layout).steps(0, 12)
            for rank in range(layout.get("world", 1))
        ]
        for step, expected in zip(zip(*gangs, strict=True), whole, strict=True):
            assert all(len(b.labels) == layout.get("micro", 8) for part in step for b in part)
            assert by_sample([batch for part in step for batch in part]) == expected


@pytest.mark.parametrize("threads", [0, 2])
def test_any_step_can_be_the_first(photographs: Path, threads: int) -> None:
    whole = [by_sample(s) for s in loader(data(photographs)).steps(0, 13)]
    resumed = loader(data(photographs), threads=threads).steps(7, 13)
    assert [by_sample(step) for step in resumed] == whole[7:]
    assert list(loader(data(photographs), threads=threads).steps(5, 5)) == []


def test_digits_are_looked_up() -> None:
    split = open_data(DIGITS).split("train")
    for (batch,) in loader(DIGITS, NO_AUGMENTATION, micro=64, split=split).steps(0, 5):
        assert batch.images.shape == (64, 1, 8, 8) and batch.images.dtype == torch.uint8
        assert batch.labels.dtype == torch.int64 and batch.index.dtype == np.int64
        position = np.searchsorted(split.sample_index, batch.index)
        np.testing.assert_array_equal(split.labels[position], batch.labels.numpy())
        for image, i in zip(batch.images, position, strict=True):
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), split.decode(int(i)))


def test_digits_cost_next_to_nothing() -> None:
    batches = loader(DIGITS, NO_AUGMENTATION, micro=256, threads=2)
    list(batches.steps(0, 20))
    began = time.process_time()
    assert len(list(batches.steps(0, 200))) == 200
    assert (time.process_time() - began) / 200 < 0.4e-3, "measured: 0.04 ms"


def test_flips_are_drawn_per_sample_and_epoch() -> None:
    plain = by_sample([b for (b,) in loader(DIGITS, NO_AUGMENTATION, micro=64).steps(0, 44)])
    mirrored = by_sample([b for (b,) in loader(DIGITS, FLIP, micro=64).steps(0, 44)])
    assert plain.keys() == mirrored.keys()
    flipped = 0
    for key, (_, image) in mirrored.items():
        original = np.frombuffer(plain[key][1], np.uint8).reshape(8, 8)
        mirror = original[:, ::-1].tobytes()
        assert image in (original.tobytes(), mirror)
        flipped += image == mirror
    assert abs(flipped / len(mirrored) - 0.5) < 0.05


def test_subsets_see_the_crops_of_the_whole_set(photographs: Path) -> None:
    config = data(photographs)
    split = open_data(config).split("train")
    whole = by_sample([b for (b,) in loader(config, micro=1).steps(0, 5 * len(split))])
    subset = split.subset(9, 0)
    part = by_sample([b for (b,) in loader(config, micro=1, split=subset).steps(0, 45)])
    assert part.items() <= whole.items()


@pytest.mark.parametrize("world", [1, 3, 5])
@pytest.mark.parametrize("threads", [0, 2])
def test_evaluation_sees_every_sample_once(photographs: Path, world: int, threads: int) -> None:
    config = data(photographs)
    split = open_data(config).split("train")
    batches = [
        b for r in range(world) for b in eval_batches(split, config, 6, r, world, threads=threads)
    ]
    index = np.concatenate([b.index for b in batches])
    np.testing.assert_array_equal(index, split.sample_index)
    assert max(len(b.labels) for b in batches) == 6
    for batch in batches:
        assert batch.images.shape[1:] == (3, 16, 16) and (batch.epoch == 0).all()


def test_evaluation_under_inference_mode(photographs: Path) -> None:
    """Threads fill the batches, and they are not in the consumer's mode."""
    split = open_data(data(photographs)).split("test")
    with torch.inference_mode():
        batches = list(eval_batches(split, data(photographs), 3, rank=0, world=1))
    assert sum(len(batch.labels) for batch in batches) == len(split)


@pytest.mark.parametrize("threads", [0, 2])
def test_errors_of_threads_reach_the_consumer(tmp_path: Path, threads: int) -> None:
    images = [png(i, 9 + i % 3) for i in range(30)]
    images[11] = b"junk"
    write_parquet(tmp_path / "train.parquet", images, [0] * 30)
    write_set(tmp_path, 0, 3)
    before = threading.active_count()
    with pytest.raises(DataError, match="train.parquet row 11: 4 bytes that are not an image"):
        list(loader(data(tmp_path), threads=threads).steps(0, 3))
    assert threading.active_count() == before


def test_closing_ends_the_threads(photographs: Path) -> None:
    before = threading.active_count()
    steps = loader(data(photographs), threads=3).steps(0, 1000)
    next(steps)
    assert threading.active_count() > before
    steps.close()
    assert threading.active_count() == before


def test_impossible_loaders_are_refused(photographs: Path) -> None:
    with pytest.raises(ConfigError, match="global batch 64 does not fit a set of"):
        loader(data(photographs), micro=64)
    with pytest.raises(ConfigError, match="rank 2 in a world of 2"):
        loader(data(photographs), world=2, rank=2)


# Transforms


def test_crops_follow_the_published_distribution() -> None:
    index = np.arange(4000, dtype=np.int64)
    draws = crop_draws(0, np.zeros_like(index), index)
    boxes = np.array([random_crop_box(300, 400, CROP, row) for row in draws])
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 300).all() and (left + width <= 400).all()
    assert top.max() > 100 and left.max() > 150
    share, aspect = height * width / 120_000, width / height
    assert 0.19 < share.min() < 0.25 and share.max() > 0.85
    assert 0.74 < aspect.min() and aspect.max() < 1.35
    square = np.array([random_crop_box(300, 300, CROP, row)[2:] for row in draws])
    assert abs(np.log(square[:, 1] / square[:, 0]).mean()) < 0.01


def test_crop_falls_back_to_the_largest_centre() -> None:
    full = AugmentationConfig(crop_scale=(1.0, 1.0))
    draws = np.full(CROP_DRAWS, 0.5)
    assert random_crop_box(100, 400, full, draws) == (0, 133, 100, 133)
    assert random_crop_box(400, 100, full, draws) == (133, 0, 133, 100)


@pytest.mark.parametrize("size", [(7, 9), (30, 20)])
def test_resize_is_pillows(size: tuple[int, int]) -> None:
    image = pixels(0, 16, 20)
    found = resize(image, *size).permute(1, 2, 0).numpy().astype(int)
    pillow = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)
    assert np.abs(found - np.asarray(pillow).astype(int)).max() <= 1


def test_evaluation_view() -> None:
    same = pixels(1, 16, 16)
    np.testing.assert_array_equal(evaluation_image(same, 16, 1.0).permute(1, 2, 0).numpy(), same)
    assert evaluation_image(pixels(2, 10, 30), 16, 1.0).shape == (3, 16, 16)


@pytest.mark.parametrize("image_size", [128, 192, 224, 240, 448])
@pytest.mark.parametrize("shape", [(448, 672), (224, 224), (500, 300), (100, 224)])
def test_an_evaluation_sees_what_the_papers_code_does(
    image_size: int, shape: tuple[int, int]
) -> None:
    image = pixels(3, *shape)
    # The published rule, whatever the image's own size: 224/256 up to 224 pixels, 1 above.
    short = int(image_size / (224 / 256 if image_size <= 224 else 1.0))
    height, width = (short * side // min(shape) for side in shape)
    expected = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    left, top = (round((side - image_size) / 2) for side in (width, height))
    centre = expected.crop((left, top, left + image_size, top + image_size))
    crop = DataConfig(path="a", image_size=image_size).evaluation_crop
    found = evaluation_image(image, image_size, crop).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - np.asarray(centre).astype(int)).max() <= 2  # rounds twice


def test_small_images_are_seen_whole_and_a_setting_says_otherwise(tmp_path: Path) -> None:
    assert [DataConfig(path="a", image_size=s).evaluation_crop for s in (8, 32, 96)] == [1, 1, 1]
    images = [pixels(i, 8, 8 + i // 20) for i in range(24)]  # the last ones are wider
    write_parquet(tmp_path / "test.parquet", [encode(image) for image in images], [0] * 24)
    write_parquet(tmp_path / "train.parquet", [encode(image) for image in images], [0] * 24)
    for crop in (None, 0.5):
        config = replace(data(tmp_path, 8), eval_crop=crop)
        (batch,) = eval_batches(open_data(config).split("test"), config, 24, rank=0, world=1)
        for image, found in zip(images, batch.images, strict=True):
            assert torch.equal(found, evaluation_image(image, 8, crop or 1.0))
    for wrong in (0.0, 0.001, 1.1):
        with pytest.raises(ConfigError, match=f"eval_crop {wrong}"):
            DataConfig(path="a", eval_crop=wrong)


def test_the_probes_crop_is_cut_to_the_image_instead_of_drawn_again() -> None:
    wide, draws = np.full(CROP_DRAWS, 0.5), crop_draws(0, np.zeros(1, np.int64), np.arange(1))[0]
    wide[0], wide[10] = 0.99, 0.99  # nearly all of the area at 4:3: wider than a square
    for numbers in (wide, draws):
        area = 100 * 100 * (0.08 + 0.92 * numbers[0])
        aspect = (3 / 4) ** (1 - 2 * numbers[10])
        size = min(100, round((area / aspect) ** 0.5)), min(100, round((area * aspect) ** 0.5))
        assert random_crop_box(100, 100, PROBE_CROP, numbers)[2:] == size
    assert random_crop_box(100, 100, SUPERVISED_CROP, wide)[2:] != size


def test_small_images_are_kept_decoded_unless_their_sizes_differ(tmp_path: Path) -> None:
    split = open_data(data(write_set(tmp_path / "same"), 8)).split("train")
    assert split.pixels(np.arange(5)) is not None
    images = [encode(pixels(i, 8, 8 + i // 20)) for i in range(30)]
    write_parquet(tmp_path / "mixed" / "train.parquet", images, [0] * 30)
    config = data(tmp_path / "mixed", 8)
    split = open_data(config).split("train")
    assert split.pixels(np.arange(len(split))) is None
    batches = list(loader(config, NO_AUGMENTATION, split=split, threads=1).steps(0, 3))
    assert all(batch.images.shape == (8, 3, 8, 8) for (batch,) in batches)


def test_normalise() -> None:
    images = torch.arange(24, dtype=torch.uint8).reshape(1, 2, 3, 4)
    found = normalise(images, (0.5, 0.25), (0.5, 2.0), torch.device("cpu"))
    mean, std = torch.tensor([0.5, 0.25]), torch.tensor([0.5, 2.0])
    expected = (images / 255 - mean.view(1, 2, 1, 1)) / std.view(1, 2, 1, 1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    half = normalise(images, (0.5, 0.25), (0.5, 2.0), torch.device("cpu"), torch.bfloat16)
    assert half.dtype == torch.bfloat16
