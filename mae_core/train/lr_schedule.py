"""The learning-rate curve: linear warm-up, then half a cosine, light to import (Table 8)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mae_core.config import Duration, LrScheduleConfig, OptimizerConfig, require


@dataclass(frozen=True, kw_only=True)
class LrSchedule:
    """Learning rate as a function of the optimizer step, counted from 0 (not of the epoch)."""

    peak_lr: float
    """Reached at the end of the warm-up."""
    min_lr: float
    """Reached at `total_steps`."""
    warmup_steps: int
    """Steps of linear rise from 0. More than `total_steps` counts as `total_steps`: the whole
    run then rises, and only its end would reach the peak."""
    total_steps: int

    def __post_init__(self) -> None:
        """Refuse negative steps and rates."""
        require(
            self.warmup_steps >= 0 and self.total_steps >= 0,
            f"warm-up of {self.warmup_steps} and total of {self.total_steps} steps: must be ≥ 0",
        )
        require(
            0 <= self.min_lr and 0 <= self.peak_lr,
            f"learning rates {self.peak_lr} (peak) and {self.min_lr} (minimum): must be ≥ 0",
        )

    @classmethod
    def from_config(
        cls,
        optimizer: OptimizerConfig,
        lr_schedule: LrScheduleConfig,
        duration: Duration,
        *,
        global_batch: int,
        num_images: int,
    ) -> LrSchedule:
        """Resolve the durations for a training set of `num_images`, the peak for the batch."""
        return cls(
            peak_lr=optimizer.lr(global_batch),
            min_lr=lr_schedule.min_lr,
            warmup_steps=lr_schedule.warmup.num_steps(
                num_images=num_images, global_batch=global_batch, may_be_zero=True
            ),
            total_steps=duration.num_steps(num_images=num_images, global_batch=global_batch),
        )

    def at(self, step: int) -> float:
        """Return the learning rate of update `step`; 0 at step 0 of a warm-up, as in the paper."""
        warmup = min(self.warmup_steps, self.total_steps)
        if step < warmup:
            return self.peak_lr * step / warmup
        if step >= self.total_steps:
            return self.min_lr
        progress = (step - warmup) / (self.total_steps - warmup)
        return self.min_lr + (self.peak_lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
