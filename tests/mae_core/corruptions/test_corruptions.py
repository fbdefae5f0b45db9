"""Corruptions against independent definitions (scipy, Pillow, plain loops), and the mCE."""

from __future__ import annotations

import colorsys
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from mae_core.config.inference import FAMILIES
from mae_core.corruptions import blurs, digital, textures
from mae_core.corruptions.corrupt import CORRUPTIONS, corrupt
from mae_core.corruptions.draws import Draws
from mae_core.corruptions.error import ALEXNET, Baseline, family_means, mean_corruption_error
from mae_core.corruptions.severity import STRENGTHS, strength, strength_set
from mae_core.errors import ConfigError

MONOTONE = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
)
"""The published strengths of the other six do not grow in every step: AlexNet's error is .53, .70,
.56, .64, .81 under elastic_transform, and .72, .88, .86, .92, .95 under snow."""


def pictures(count: int, size: int, channels: int = 3) -> Tensor:
    """Waves of several lengths and colours under a little noise: uint8 (N, H, W, C)."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[0:size, 0:size][:, None, :, :, None] / size
    phase = generator.uniform(0, 6, (3, count, 1, 1, channels))
    speed = generator.uniform(4, 40, (2, count, 1, 1, channels))
    wave = np.sin(speed[0] * x + phase[0]) + np.sin(speed[1] * y + phase[1]) + np.sin(phase[2])
    noisy = 110 + 25 * wave + generator.normal(0, 6, wave.shape)
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8))


def floats(count: int, size: int, channels: int = 3) -> Tensor:
    return pictures(count, size, channels).permute(0, 3, 1, 2).contiguous().float() / 255


def draws(family: str, count: int) -> Draws:
    return Draws(0, family, 1, np.arange(count), torch.device("cpu"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [32, 96])
def test_an_image_is_corrupted_alike_in_any_batch(family: str, size: int) -> None:
    images, index = pictures(5, size), np.array([3, 1000, 7, 8, 2**33])
    state = torch.get_rng_state()
    whole = corrupt(images, family, 3, seed=1, index=index)
    assert whole.shape == images.shape and whole.dtype == torch.uint8
    assert not torch.equal(whole, images)
    for i in range(5):
        alone = corrupt(images[i : i + 1], family, 3, seed=1, index=index[i : i + 1])
        assert torch.equal(alone[0], whole[i])
    part = corrupt(images[[4, 0, 2]], family, 3, seed=1, index=index[[4, 0, 2]])
    assert torch.equal(part, whole[[4, 0, 2]])
    assert torch.equal(torch.get_rng_state(), state)
    random = family not in {
        "defocus_blur",
        "zoom_blur",
        "brightness",
        "contrast",
        "pixelate",
        "jpeg_compression",
    }
    again = corrupt(images, family, 3, seed=2, index=index)
    assert torch.equal(again, whole) != random


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [32, 128])
def test_distortion_grows_with_the_severity(family: str, size: int) -> None:
    images = pictures(8, size)
    error = [
        (corrupt(images, family, s, seed=0, index=np.arange(8)).float() - images).square().mean()
        for s in range(1, 6)
    ]
    if family in MONOTONE:
        assert error == sorted(error)
    assert min(error) > 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_grey_images_and_odd_sizes_pass(family: str) -> None:
    index = np.arange(2)
    assert corrupt(pictures(2, 32, 1), family, 5, seed=0, index=index).shape == (2, 32, 32, 1)
    wide = pictures(2, 40)[:, :25]
    assert corrupt(wide, family, 5, seed=0, index=index).shape == wide.shape
    digits = pictures(2, 8, 1)
    assert corrupt(digits, family, 5, seed=0, index=index).shape == digits.shape


def test_noise_has_its_moments() -> None:
    grey = torch.full((4, 3, 128, 128), 102 / 255)
    noise = CORRUPTIONS["gaussian_noise"](grey, draws("gaussian_noise", 4), 0.18) - grey
    assert noise.mean().item() == pytest.approx(0, abs=0.002)
    assert noise.std().item() == pytest.approx(0.18, rel=0.01)
    for photons in (3, 60, 500):
        count = CORRUPTIONS["shot_noise"](grey, draws("shot_noise", 4), photons) * photons
        rate = 0.4 * photons
        assert torch.equal(count.round(), count.round().clamp(min=0))
        assert (count - count.round()).abs().max() < 1e-3
        assert count.mean().item() == pytest.approx(rate, rel=0.01)
        assert count.var().item() == pytest.approx(rate, rel=0.02)
        share = (count.round() == round(rate)).float().mean().item()
        log = round(rate) * math.log(rate) - rate - math.lgamma(round(rate) + 1)
        assert share == pytest.approx(math.exp(log), abs=0.003)
    black = CORRUPTIONS["shot_noise"](torch.zeros_like(grey), draws("shot_noise", 4), 60)
    assert (black == 0).all()
    salted = CORRUPTIONS["impulse_noise"](grey, draws("impulse_noise", 4), 0.17)
    for value in (0.0, 1.0):
        assert (salted == value).float().mean().item() == pytest.approx(0.085, abs=0.003)
    assert ((salted != grey).any(dim=1) != (salted != grey).all(dim=1)).any()


@pytest.mark.parametrize(("radius", "softness"), [(0.3, 0.4), (1.5, 0.1), (4, 0.5), (10, 0.5)])
def test_defocus_is_a_softened_disk(radius: float, softness: float) -> None:
    reach, half = (8, 1) if radius <= 8 else (10, 2)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (x**2 + y**2 <= radius**2).astype(float)
    taps = np.exp(-0.5 * (np.arange(-half, half + 1) / softness) ** 2)
    taps /= taps.sum()
    kernel = disk / disk.sum()
    for axis in (0, 1):
        kernel = ndimage.correlate1d(kernel, taps, axis=axis, mode="mirror")
    images = floats(2, 40)
    ours = blurs.defocus_blur(images, draws("defocus_blur", 2), radius, softness)
    expected = ndimage.convolve(images.numpy(), kernel[None, None], mode="mirror")
    assert ours.numpy() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_glass_walks_as_the_published_loop(reach: int) -> None:
    height, width = 20, 17
    uniform = torch.rand(1, 2, height, width, generator=torch.Generator().manual_seed(reach))
    source = blurs.neighbour_of(uniform, reach)[0].view(height, width)
    offset = np.floor(uniform[0].numpy() * 2 * reach).astype(int) - reach
    picture = np.arange(height * width).reshape(height, width)
    for y in range(height - reach, reach, -1):
        for x in range(width - reach, reach, -1):
            dy, dx = offset[:, y, x]
            picture[y, x] = picture[y + dy, x + dx]
    assert (source.numpy() == picture).all()


@pytest.mark.parametrize("degrees", [0.0, -45.0, 30.0, -110.0])
def test_motion_is_half_a_gaussian_along_a_line(degrees: float) -> None:
    images = floats(1, 24)
    ours = blurs.smear(images, 4, 2.0, torch.tensor([degrees]))
    weights = np.exp(-0.5 * (np.arange(9) / 2.0) ** 2)
    expected = np.zeros((3, 24, 24))
    for i, weight in enumerate(weights / weights.sum()):
        # The nearest whole pixel, halves towards zero on the positive side.
        dy = math.ceil(i * math.sin(math.radians(degrees)) - 0.5)
        dx = math.ceil(i * math.cos(math.radians(degrees)) - 0.5)
        expected += weight * ndimage.shift(
            images[0].numpy(), (0, -dy, -dx), order=0, mode="nearest"
        )
    assert ours[0].numpy() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("factor", [1.0, 1.05, 1.31, 2.25, 4.5])
def test_zoom_is_scipys_on_the_centre(factor: float) -> None:
    images = floats(1, 32)
    crop = math.ceil(32 / factor)
    top = (32 - crop) // 2
    centre = images[0, :, top : top + crop, top : top + crop].numpy()
    large = ndimage.zoom(centre, (1, factor, factor), order=1)
    trim = (large.shape[1] - 32) // 2
    expected = large[:, trim : trim + 32, trim : trim + 32]
    assert blurs.zoom(images, factor)[0].numpy() == pytest.approx(expected, abs=1e-5)


def test_zoom_factors_are_numpys() -> None:
    for name, stops in (
        ("imagenet_c", ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))),
        ("cifar10_c", ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01))),
    ):
        for ours, (stop, step) in zip(STRENGTHS[name]["zoom_blur"], stops, strict=True):  # type: ignore[index]
            assert ours == pytest.approx(np.arange(1, stop, step), rel=1e-12)


def test_snow_falls_both_ways_over_a_whitened_picture() -> None:
    black = torch.zeros(3, 3, 48, 48)
    snow = CORRUPTIONS["snow"](black, draws("snow", 3), 0.1, 0.3, 2, 0.5, 6, 3, 0.8)
    flakes = snow - 0.2 * 0.5
    assert torch.allclose(flakes, flakes.flip(2, 3), atol=1e-6)
    assert flakes.min() >= -1e-6 and 0.05 < (flakes > 0.05).float().mean() < 0.9
    clear = CORRUPTIONS["snow"](floats(3, 48), draws("snow", 3), -9, 0.1, 2, 0.5, 6, 3, 1.0)
    assert torch.equal(clear, floats(3, 48))


def test_fog_is_a_diamond_square_map_and_keeps_the_scale() -> None:
    smooth = textures.plasma(draws("fog", 6), 32, 32, 1e3)[:, 0]
    assert (
        smooth.amin(dim=(1, 2)).tolist() == [0] * 6 and smooth.amax(dim=(1, 2)).tolist() == [1] * 6
    )
    corners = smooth + smooth.roll(-2, 1) + smooth.roll(-2, 2) + smooth.roll((-2, -2), (1, 2))
    centres = corners[:, ::2, ::2] / 4  # without wobble a centre is the mean of its square
    assert torch.allclose(smooth[:, 1::2, 1::2], centres, atol=1e-5)
    rough, fine = (textures.plasma(draws("fog", 6), 64, 64, decay)[:, 0] for decay in (1.4, 3))
    assert rough.diff(dim=1).abs().mean() > 3 * fine.diff(dim=1).abs().mean()
    images = floats(2, 32)
    fog = CORRUPTIONS["fog"](images, draws("fog", 2), 1.5, 2.0)
    top = images.amax(dim=(1, 2, 3))
    haze = textures.plasma(draws("fog", 2), 32, 32, 2.0)
    expected = (images + 1.5 * haze) * (top / (top + 1.5)).view(2, 1, 1, 1)
    assert torch.allclose(fog, expected, atol=1e-6)


def test_frost_is_bluish_ice_of_middling_brightness() -> None:
    ice = textures.frost_texture(draws("frost", 16), 3, 128, 128, 64)
    red, green, blue = ice.mean(dim=(0, 2, 3)).tolist()
    assert red < green < blue
    assert 0.3 < (red + green + blue) / 3 < 0.6
    assert ice.std(dim=(2, 3)).mean() > 0.1
    images = floats(16, 128)
    frosty = CORRUPTIONS["frost"](images, draws("frost", 16), 0.7, 0.7)
    assert torch.allclose(frosty - 0.7 * images, 0.7 * ice, atol=1e-6)


def test_brightness_raises_the_value_of_hsv() -> None:
    images = floats(1, 8)
    images[0, :, 0, 0], images[0, :, 0, 1] = 0.0, torch.tensor([0.9, 0.1, 0.5])
    ours = CORRUPTIONS["brightness"](images, draws("brightness", 1), 0.3)
    for y, x in np.ndindex(8, 8):
        h, s, v = colorsys.rgb_to_hsv(*images[0, :, y, x].tolist())
        expected = colorsys.hsv_to_rgb(h, s, min(1, v + 0.3))
        assert ours[0, :, y, x].tolist() == pytest.approx(expected, abs=1e-5)


def test_contrast_shrinks_towards_each_channels_mean() -> None:
    images = floats(2, 16)
    ours = CORRUPTIONS["contrast"](images, draws("contrast", 2), 0.3).numpy()
    mean = images.numpy().mean(axis=(2, 3), keepdims=True)
    assert ours == pytest.approx((images.numpy() - mean) * 0.3 + mean, abs=1e-6)


def test_elastic_maps_three_points_and_samples_as_scipy() -> None:
    uniform = torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(0))
    for n, (a, b, c, d, e, f) in enumerate(digital.affine_map(uniform, 5.0, 60, 40).tolist()):
        for point, (sx, sy) in enumerate([(13, 13), (13, -13), (-13, -13)]):
            u, v = uniform[n, point].tolist()
            x, y = 20 + sx + 10 * u - 5, 30 + sy + 10 * v - 5
            assert (a * x + b * y + c, d * x + e * y + f) == pytest.approx((20 + sx, 30 + sy))
    images = floats(1, 24)
    still = digital.elastic_transform(images, draws("elastic_transform", 1), 0.0, 1.0, 0.0)
    assert torch.allclose(still, images, atol=1e-4)
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.rand(1, 24, 24, generator=generator) * 40 - 8 for _ in range(2))
    for pixel_edge, mode in ((True, "reflect"), (False, "mirror")):
        ours = digital.sample(images, x, y, pixel_edge=pixel_edge)[0]
        for channel in range(3):
            expected = ndimage.map_coordinates(
                images[0, channel].numpy(), [y[0].numpy(), x[0].numpy()], order=1, mode=mode
            )
            assert ours[channel].numpy() == pytest.approx(expected, abs=1e-4)


def test_pixelate_and_jpeg_are_pillows() -> None:
    images = pictures(2, 96)
    small = corrupt(images, "pixelate", 3, seed=0, index=np.arange(2))
    coded = corrupt(images, "jpeg_compression", 4, seed=0, index=np.arange(2))
    for n in range(2):
        image, file = Image.fromarray(images[n].numpy()), io.BytesIO()
        box = image.resize((38, 38), Image.Resampling.BOX).resize((96, 96), Image.Resampling.BOX)
        assert (small[n].numpy() == np.array(box)).all()
        image.save(file, "JPEG", quality=10)
        assert (coded[n].numpy() == np.array(Image.open(file))).all()


def test_the_set_of_strengths_goes_by_size() -> None:
    assert [strength_set(s, s) for s in (8, 32, 64, 84, 85, 224)] == 4 * ["cifar10_c"] + 2 * [
        "imagenet_c"
    ]
    assert strength_set(300, 64) == "cifar10_c"
    assert strength("gaussian_noise", 5, 224, 224) == (0.38,)
    assert strength("gaussian_noise", 5, 32, 32) == (0.1,)
    for values in STRENGTHS.values():
        assert tuple(values) == FAMILIES
        assert all(len(five) == 5 for five in values.values())
    assert tuple(CORRUPTIONS) == FAMILIES


@pytest.mark.parametrize(
    ("family", "severity", "message"),
    [("rain", 1, "'rain': use one of gauss"), ("fog", 6, "1 to 5")],
)
def test_unknown_corruptions_are_refused(family: str, severity: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        corrupt(pictures(1, 8), family, severity, seed=0, index=np.arange(1))


def test_floats_and_other_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match="uint8"):
        corrupt(pictures(1, 8).float(), "fog", 1, seed=0, index=np.arange(1))
    with pytest.raises(ConfigError, match="1 or 3 channels"):
        corrupt(pictures(1, 8, 4), "fog", 1, seed=0, index=np.arange(1))


def test_mean_corruption_error_by_hand() -> None:
    baseline = Baseline(name="half", mean_error={f: 0.5 if f == "fog" else 0.25 for f in FAMILIES})
    errors = {f: [0.1, 0.1, 0.2, 0.3, 0.3] for f in FAMILIES}
    result = mean_corruption_error(errors, baseline)
    assert result.ce["fog"] == pytest.approx(40) and result.ce["snow"] == pytest.approx(80)
    assert result.mce == pytest.approx((14 * 80 + 40) / 15)
    assert result.mean_error == pytest.approx(20) and result.baseline == "half"


def test_alexnet_is_100_and_its_published_errors_average_to_it() -> None:
    same = mean_corruption_error({f: [e] * 5 for f, e in ALEXNET.mean_error.items()}, ALEXNET)
    assert same.mce == pytest.approx(100)
    by_severity = {
        "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
        "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
        "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
    }
    means = family_means({f: by_severity.get(f, (0.5,) * 5) for f in FAMILIES})
    for family in by_severity:
        assert means[family] == pytest.approx(ALEXNET.mean_error[family], abs=1e-6)


def test_incomplete_errors_are_refused() -> None:
    full = {f: [0.5] * 5 for f in FAMILIES}
    with pytest.raises(ConfigError, match=r"missing \['snow'\]"):
        mean_corruption_error({f: e for f, e in full.items() if f != "snow"}, ALEXNET)
    with pytest.raises(ConfigError, match=r"unknown \['rain'\]"):
        mean_corruption_error({**full, "rain": [0.5] * 5}, ALEXNET)
    with pytest.raises(ConfigError, match="4 errors of fog"):
        mean_corruption_error({**full, "fog": [0.5] * 4}, ALEXNET)
    with pytest.raises(ConfigError, match="shares in 0..1"):
        mean_corruption_error({**full, "fog": [50.0] * 5}, ALEXNET)
    with pytest.raises(ConfigError, match="baseline error 0"):
        Baseline(name="perfect", mean_error=dict.fromkeys(FAMILIES, 0.0))
