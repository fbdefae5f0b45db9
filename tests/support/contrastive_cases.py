"""A contrastive recipe small enough for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from support.digit_cases import DIGITS

from mae_core.config import (
    AugmentationConfig,
    ContrastiveRecipe,
    Duration,
    EncoderConfig,
    LrScheduleConfig,
    OptimizerConfig,
)
from mae_core.config.augmentation import ColorJitterConfig, ViewConfig

VIEW = ViewConfig(
    jitter=ColorJitterConfig(saturation=0.0, hue=0.0), blur=0.5, blur_sigma=(0.1, 0.6)
)


SGD = OptimizerConfig(name="sgd", base_lr=0.2, weight_decay=0.0)
"""Whose updates are no larger where gradients are nothing but rounding."""


ADAMW = OptimizerConfig(base_lr=0.03, betas=(0.9, 0.999), weight_decay=0.05)


def small_recipe(**changes: Any) -> ContrastiveRecipe:
    defaults: dict[str, Any] = {
        "data": DIGITS,
        "encoder": EncoderConfig(width=16, depth=2, num_heads=2, patch_size=2),
        "augmentation": AugmentationConfig(crop_scale=(0.6, 1.0), flip=False),
        "views": (VIEW, replace(VIEW, solarize=0.2)),
        "head_width": 32,
        "output_width": 8,
        "momentum": 0.9,
        "duration": Duration.steps(6),
        "global_batch": 16,
        "optimizer": SGD,
        "lr_schedule": LrScheduleConfig(warmup=Duration.steps(0)),
    }
    return ContrastiveRecipe(**defaults | changes)
