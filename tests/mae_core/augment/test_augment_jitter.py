"""Colour jitter and contrastive views against independent definitions (colorsys, scipy, Pillow)."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from mae_core.augment.blur import gaussian_blur
from mae_core.augment.jitter import augment_view, color_jitter, luma, shift_hue
from mae_core.config.augmentation import MOCO_V3_VIEWS, ColorJitterConfig, ViewConfig
from mae_core.errors import ConfigError

OFF = ColorJitterConfig(brightness=0, contrast=0, saturation=0, hue=0, probability=1)
PLAIN = ViewConfig(jitter=OFF, grayscale=0, blur=0, solarize=0)


def pictures(count: int, size: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def test_hue_turns_as_in_colorsys() -> None:
    images = pictures(3).float()
    images[0, :, 0, 0] = 80.0  # grey has no hue
    shift = torch.tensor([0.1, -0.3, 0.5])
    ours = shift_hue(images, shift) / 255
    for n in range(3):
        for y, x in np.ndindex(12, 12):
            h, s, v = colorsys.rgb_to_hsv(*(images[n, :, y, x] / 255).tolist())
            expected = colorsys.hsv_to_rgb((h + float(shift[n])) % 1, s, v)
            assert ours[n, :, y, x].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("name", "strength"), [("brightness", 0.4), ("contrast", 0.4)])
def test_one_factor_is_uniform_and_moves_the_image_as_defined(name: str, strength: float) -> None:
    images = (100 + pictures(400) // 4).contiguous()  # far from both ends: nothing is cut
    config = replace(OFF, **{name: strength})
    out = color_jitter(images, config, seed=1, epoch=0, index=np.arange(400)).double()
    before = images.double()
    base = 0.0 if name == "brightness" else luma(before.float()).double().mean((1, 2, 3), True)
    span = (before - base).flatten(1)
    factor = ((out - base).flatten(1) * span).sum(1) / (span**2).sum(1)
    assert (out - (base + factor.view(-1, 1, 1, 1) * (before - base))).abs().max() < 1  # levels
    assert factor.min() > 0.55 and factor.max() < 1.45
    assert factor.mean().item() == pytest.approx(1, abs=0.03)
    assert factor.std().item() == pytest.approx(0.8 / 12**0.5, rel=0.08)


def test_saturation_keeps_the_grey_image() -> None:
    images = (100 + pictures(20) // 16).contiguous()
    out = color_jitter(images, replace(OFF, saturation=0.9), seed=1, epoch=0, index=np.arange(20))
    assert not torch.equal(out, images)
    assert (luma(out.float()) - luma(images.float())).abs().max() < 1


def test_the_operations_come_in_random_order() -> None:
    # Contrast before brightness and after it differ on this picture; both must happen.
    images = torch.full((1, 3, 4, 4), 200, dtype=torch.uint8).repeat(400, 1, 1, 1)
    images[:, :, :2] = 20
    config = replace(OFF, brightness=0.9, hue=0.5, contrast=0.9)
    out = color_jitter(images, config, seed=0, epoch=0, index=np.arange(400))
    dark, light = out[:, 0, 0, 0].float(), out[:, 0, 3, 0].float()
    assert len({(float(d), float(b)) for d, b in zip(dark, light, strict=True)}) > 300


def test_probability_leaves_the_others_alone() -> None:
    images = pictures(1000, 4)
    out = color_jitter(images, ColorJitterConfig(), seed=0, epoch=0, index=np.arange(1000))
    same = (out == images).flatten(1).all(dim=1).float().mean().item()
    assert same == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize(("edge", "truncate"), [("nearest", 4.0), ("reflect", 3.0), ("mirror", 2)])
def test_blur_is_scipys(edge: str, truncate: float) -> None:
    images = torch.rand(4, 3, 20, 14, generator=torch.Generator().manual_seed(1)).double()
    sigma = torch.tensor([0.0, 0.4, 1.3, 9.0])
    ours = gaussian_blur(images, sigma, truncate=truncate, edge=edge)  # type: ignore[arg-type]
    for n, width in enumerate(sigma.double().tolist()):
        expected = ndimage.gaussian_filter(
            images[n].numpy(), (0, width, width), mode=edge, truncate=truncate
        )
        assert ours[n].numpy() == pytest.approx(expected, abs=1e-12)


def view(images: Tensor, config: ViewConfig, number: int = 0) -> Tensor:
    index = np.arange(len(images))
    return augment_view(images, config, seed=2, epoch=1, index=index, view=number)


def test_parts_of_a_view() -> None:
    images = pictures(200)
    assert torch.equal(view(images, PLAIN), images)
    solarized = view(images, replace(PLAIN, solarize=1))
    assert torch.equal(solarized, torch.where(images < 128, images, 255 - images))
    grey = view(images, replace(PLAIN, grayscale=1))
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])
    assert (grey[:, :1].float() - luma(images.float())).abs().max() <= 0.5
    some = view(images, replace(PLAIN, solarize=0.2))
    share = (some != images).flatten(1).any(dim=1).float().mean().item()
    assert share == pytest.approx(0.2, abs=0.07)
    blurred = view(images, replace(PLAIN, blur=1)).double().flatten(1).std(dim=1)
    assert blurred.max() > 70 and blurred.min() < 15  # sigma from 0.1 to 2


def test_the_two_views_differ_as_in_moco_v3() -> None:
    first, second = MOCO_V3_VIEWS
    assert (first.blur, first.solarize, second.blur, second.solarize) == (1.0, 0.0, 0.1, 0.2)
    assert (first.jitter, first.grayscale, first.blur_sigma) == (
        ColorJitterConfig(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, probability=0.8),
        0.2,
        (0.1, 2.0),
    )
    images = pictures(8)
    assert not torch.equal(view(images, first, 0), view(images, first, 1))


def test_an_image_looks_the_same_in_any_batch() -> None:
    images, index, epoch = pictures(24, 32), np.arange(24) * 7, np.arange(24) % 3
    for number, config in enumerate(MOCO_V3_VIEWS):
        key = {"seed": 4, "view": number}
        whole = augment_view(images, config, epoch=epoch, index=index, **key)
        some = np.array([20, 1, 9, 10])
        part = augment_view(images[some], config, epoch=epoch[some], index=index[some], **key)
        assert torch.equal(part, whole[some])
        for i in some:
            one = slice(i, i + 1)
            alone = augment_view(images[one], config, epoch=epoch[one], index=index[one], **key)
            assert torch.equal(alone, whole[one])


def test_one_channel_passes_and_bad_settings_do_not() -> None:
    grey = pictures(16)[:, :1].contiguous()
    assert view(grey, MOCO_V3_VIEWS[1], 1).shape == grey.shape
    with pytest.raises(ConfigError, match="hue jitter 0.6"):
        ColorJitterConfig(hue=0.6)
    with pytest.raises(ConfigError, match="blur sigma"):
        ViewConfig(blur_sigma=(0.0, 1.0))
    with pytest.raises(ConfigError, match="solarize probability"):
        ViewConfig(solarize=2)
