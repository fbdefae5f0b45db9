"""Names and published strengths of the corruptions; imports nothing heavy.

There are two published sets: ImageNet-C's for photographs of 224 pixels and CIFAR-10-C's for 32.
Strengths are in pixels where they are lengths and are not scaled, so an image gets the set of the
size that is nearer (by ratio) to its own, and records say which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from mae_core.config.inference import FAMILIES, SEVERITIES
from mae_core.errors import ConfigError

StrengthSet = Literal["imagenet_c", "cifar10_c"]
SMALL_SIDE = 84
"""Images whose shorter side is at most this (√(32 · 224)) get CIFAR-10-C's strengths."""

NOTES: Mapping[str, str] = {
    "frost": "frost: procedural",
    "jpeg_compression": "jpeg_compression: by the installed libjpeg",
    "all": "computed on the fly: not the JPEG files of ImageNet-C, nor their random draws",
}
"""What a record says about results that cannot be compared with published ones to the digit."""


def strength_set(height: int, width: int) -> StrengthSet:
    """Which published set images of this size get."""
    return "cifar10_c" if min(height, width) <= SMALL_SIDE else "imagenet_c"


def strength(family: str, severity: int, height: int, width: int) -> tuple[Any, ...]:
    """Published strengths of a family (their meaning is explained where they are used).

    Raises:
        ConfigError: no such family or severity.
    """
    if family not in FAMILIES:
        raise ConfigError(f"corruption {family!r}: use one of {', '.join(FAMILIES)}")
    if severity not in SEVERITIES:
        raise ConfigError(f"severity {severity} of {family}: use 1 to 5")
    values = STRENGTHS[strength_set(height, width)][family][severity - 1]
    return values if isinstance(values, tuple) else (values,)


def _zooms(stop: float, step: float) -> tuple[float, ...]:
    """Zoom factors 1, 1 + step, … below `stop`, counted in floats as the published code does."""
    return tuple(1 + step * i for i in range(math.ceil((stop - 1) / step)))


# ImageNet-C's elastic transform is scaled by 244 (not 224) in the published code.
_E = 244.0
_C = 32.0

STRENGTHS: Mapping[StrengthSet, Mapping[str, tuple[Any, ...]]] = {
    "imagenet_c": {
        "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
        "shot_noise": (60, 25, 12, 5, 3),
        "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
        "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        "zoom_blur": (
            _zooms(1.11, 0.01),
            _zooms(1.16, 0.01),
            _zooms(1.21, 0.02),
            _zooms(1.26, 0.02),
            _zooms(1.31, 0.03),
        ),
        "snow": (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
        "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
        "elastic_transform": (
            (_E * 2, _E * 0.7, _E * 0.1),
            (_E * 2, _E * 0.08, _E * 0.2),
            (_E * 0.05, _E * 0.01, _E * 0.02),
            (_E * 0.07, _E * 0.01, _E * 0.02),
            (_E * 0.12, _E * 0.01, _E * 0.02),
        ),
        "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
        "jpeg_compression": (25, 18, 15, 10, 7),
    },
    "cifar10_c": {
        "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
        "shot_noise": (500, 250, 100, 75, 50),
        "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
        "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        "zoom_blur": (
            _zooms(1.06, 0.01),
            _zooms(1.11, 0.01),
            _zooms(1.16, 0.01),
            _zooms(1.21, 0.01),
            _zooms(1.26, 0.01),
        ),
        "snow": (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
        "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
        "elastic_transform": (
            (0.0, 0.0, _C * 0.08),
            (_C * 0.05, _C * 0.2, _C * 0.07),
            (_C * 0.08, _C * 0.06, _C * 0.06),
            (_C * 0.1, _C * 0.04, _C * 0.05),
            (_C * 0.1, _C * 0.03, _C * 0.03),
        ),
        "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
        "jpeg_compression": (80, 65, 58, 50, 40),
    },
}
