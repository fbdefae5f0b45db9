"""RandAugment: its operations against Pillow, its severities and draws against their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from mae_core.augment.randaugment import OPERATIONS, apply, draw, rand_augment, severity
from mae_core.config.augmentation import RandAugmentConfig
from mae_core.errors import ConfigError

MEAN = (0.485, 0.456, 0.406)
FILL = (124.0, 116.0, 104.0)
BILINEAR = RandAugmentConfig(interpolation="bilinear")


def pictures(count: int = 6, height: int = 40, width: int = 32, channels: int = 3) -> Tensor:
    """Smooth colours under noise, of several contrasts; the first one is flat."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, 5, 4, channels))
    fine = coarse.repeat(height // 5, axis=1).repeat(width // 4, axis=2).astype(float)
    fine += generator.normal(0, 12, fine.shape)
    fine = 128 + (fine - 128) * generator.uniform(0.2, 1, (count, 1, 1, 1))
    fine[0] = 77
    return torch.from_numpy(fine.clip(0, 255).astype(np.uint8)).permute(0, 3, 1, 2).contiguous()


def pillow(image_CHW: Tensor) -> Image.Image:
    return Image.fromarray(image_CHW.permute(1, 2, 0).squeeze(2).numpy())


def back(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image))
    return (pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)


def by_pillow(name: str, image: Image.Image, strength: float) -> Image.Image:
    """The definition of each operation in Pillow's terms."""
    enhance = {
        "colour": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "brightness": ImageEnhance.Brightness,
        "sharpness": ImageEnhance.Sharpness,
    }
    matrices = {
        "shear_x": (1, strength, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, strength, 1, 0),
        "translate_x": (1, 0, strength * image.width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, strength * image.height),
    }
    how = {"resample": Image.Resampling.BILINEAR, "fillcolor": tuple(map(int, FILL))}
    if name in enhance:
        return enhance[name](image).enhance(strength)
    if name in matrices:
        return image.transform(image.size, Image.Transform.AFFINE, matrices[name], **how)
    if name == "rotate":
        return image.rotate(strength, **how)
    if name == "solarize_add":
        return image.point([min(255, v + int(strength)) if v < 128 else v for v in range(256)] * 3)
    plain = {"auto_contrast": ImageOps.autocontrast, "equalize": ImageOps.equalize}
    if name in plain:
        return plain[name](image)
    if name == "invert":
        return ImageOps.invert(image)
    if name == "posterize":
        return ImageOps.posterize(image, int(strength)) if strength < 8 else image
    return ImageOps.solarize(image, int(strength))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("level", "sign"), [(9.0, 1.0), (9.3, -1.0), (4.2, 1.0), (0.0, -1.0)])
def test_an_operation_is_pillows(name: str, level: float, sign: float) -> None:
    images = pictures()
    strength = severity(name, np.full(len(images), level), np.full(len(images), sign))
    ours = apply(name, images, strength, FILL, BILINEAR).int()
    theirs = torch.stack([back(by_pillow(name, pillow(i), float(strength[0]))) for i in images])
    difference = (ours - theirs.int()).abs()
    assert difference.max() <= 1  # Pillow cuts bilinear results to a level, we round them
    if name not in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
        assert (difference > 0).float().mean() < 0.002


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_bicubic_is_close_to_pillows_on_smooth_pictures(name: str) -> None:
    y, x = np.mgrid[0:48, 0:48]
    wave = 128 + 90 * np.sin(x / 7) * np.cos(y / 9)
    image = torch.from_numpy(wave.astype(np.uint8))[None, None].repeat(1, 3, 1, 1)
    strength = severity(name, np.array([7.0]), np.ones(1))
    ours = apply(name, image, strength, FILL, RandAugmentConfig())
    theirs = back(by_pillow(name, pillow(image[0]), float(strength[0])))
    inside = theirs[0].int() - 124 != 0
    assert (ours[0].int() - theirs.int()).abs()[:, inside].float().mean() < 1


def test_severities_grow_with_the_level_and_are_the_published_ones() -> None:
    level, sign = np.array([0.0, 5.0, 9.0, 10.0]), np.array([1.0, 1.0, -1.0, -1.0])
    table = {
        "rotate": [0, 15, -27, -30],
        "posterize": [4, 2, 1, 0],
        "solarize": [256, 128, 26, 0],
        "solarize_add": [0, 55, 99, 110],
        "colour": [1, 1.45, 0.19, 0.1],
        "contrast": [1, 1.45, 0.19, 0.1],
        "brightness": [1, 1.45, 0.19, 0.1],
        "sharpness": [1, 1.45, 0.19, 0.1],
        "shear_x": [0, 0.15, -0.27, -0.3],
        "shear_y": [0, 0.15, -0.27, -0.3],
        "translate_x": [0, 0.225, -0.405, -0.45],
        "translate_y": [0, 0.225, -0.405, -0.45],
    }
    assert set(table) | {"auto_contrast", "equalize", "invert"} == set(OPERATIONS)
    for name, expected in table.items():
        assert severity(name, level, sign) == pytest.approx(expected), name


def test_draws_have_the_asked_distribution() -> None:
    count = 30_000
    chosen, level, sign = draw(RandAugmentConfig(), 3, 0, np.arange(count))
    shares = np.bincount(chosen.ravel() + 1, minlength=16) / chosen.size
    assert shares[0] == pytest.approx(0.5, abs=0.01)
    assert shares[1:] == pytest.approx([0.5 / 15] * 15, abs=0.004)
    assert level.mean() == pytest.approx(9 - 0.5 * 0.0085, abs=0.01)  # cut at two deviations
    assert 0.45 < level.std() < 0.5 and level.max() == 10
    assert (sign == 1).mean() == pytest.approx(0.5, abs=0.01)
    assert abs(np.corrcoef(chosen[:, 0], chosen[:, 1])[0, 1]) < 0.03


def test_an_image_looks_the_same_in_any_batch() -> None:
    images = pictures(40)
    index, epoch = np.arange(100, 140), np.arange(40) % 3
    config = RandAugmentConfig(probability=1.0)
    key = {"seed": 5, "pixel_mean": MEAN}
    whole = rand_augment(images, config, epoch=epoch, index=index, **key)
    some = np.array([31, 4, 17, 8])
    part = rand_augment(images[some], config, epoch=epoch[some], index=index[some], **key)
    assert torch.equal(part, whole[some])
    for i in some:
        one = slice(i, i + 1)
        alone = rand_augment(images[one], config, epoch=epoch[one], index=index[one], **key)
        assert torch.equal(alone, whole[one])
    other = rand_augment(images, config, seed=6, epoch=epoch, index=index, pixel_mean=MEAN)
    assert not torch.equal(other, whole)


def test_it_leaves_its_input_and_the_global_generators_alone() -> None:
    images, state = pictures(8), torch.get_rng_state()
    before = images.clone()
    config = RandAugmentConfig()
    rand_augment(images, config, seed=0, epoch=0, index=np.arange(8), pixel_mean=MEAN)
    assert torch.equal(images, before) and torch.equal(torch.get_rng_state(), state)


def test_one_channel_works_and_two_are_refused() -> None:
    config = RandAugmentConfig(probability=1.0)
    grey = pictures(32, channels=1)
    out = rand_augment(grey, config, seed=0, epoch=0, index=np.arange(32), pixel_mean=(0.5,))
    assert out.shape == grey.shape and not torch.equal(out, grey)
    with pytest.raises(ConfigError, match="2 channels"):
        rand_augment(
            grey.repeat(1, 2, 1, 1), config, seed=0, epoch=0, index=np.arange(32), pixel_mean=(0.5,)
        )
    with pytest.raises(ConfigError, match="before normalising"):
        rand_augment(grey.float(), config, seed=0, epoch=0, index=np.arange(32), pixel_mean=(0.5,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_ops": 0}, "0 operations"),
        ({"magnitude": 11}, "magnitude 11"),
        ({"magnitude_std": -1}, "std -1"),
        ({"probability": math.inf}, "probability inf"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RandAugmentConfig(**change)
