"""The training loop that pretraining and fine-tuning share: resume, step, log, save, stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mae_core import checkpoint, dist
from mae_core.config import BatchSplit, Execution, OptimizerConfig, Precision
from mae_core.context import RunContext
from mae_core.data.loader import Batch, TrainLoader
from mae_core.engine import Engine
from mae_core.errors import MaeCoreError, NumericsError
from mae_core.lr_schedule import LrSchedule

MAX_LOG_EVERY = 50


class Stopped(MaeCoreError):
    """Training was asked to stop; a checkpoint was committed first where there is a place."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """All that one training needs."""

    module: nn.Module
    """`forward(*inputs)` returns a scalar loss."""
    param_groups: list[dict[str, Any]]
    optimizer: OptimizerConfig
    lr_schedule: LrSchedule
    precision: Precision
    batch: BatchSplit
    num_steps: int
    loader: TrainLoader
    prepare: Callable[[Batch, torch.device], tuple[torch.Tensor, ...]]
    """Turns a micro-batch into the module's inputs, on the device."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What training leaves behind."""

    state: dict[str, torch.Tensor]
    """Weights in fp32 on the CPU, on every rank."""
    loss: float | None
    """Mean over the last logged window and all ranks; None if there was no step."""
    resumed_from: int
    """Step of the checkpoint that this attempt went on from."""
    images_per_s: float | None
    """Over this attempt's steps, all ranks together."""


def train(job: TrainJob, execution: Execution, ctx: RunContext) -> TrainResult:
    """Train to the end, or raise `Stopped` / `NumericsError`."""
    if job.num_steps == 0:
        # An untrained network is a result too: duration 0 is a point of the curve.
        state = {n: p.detach().float().cpu().clone() for n, p in job.module.named_parameters()}
        return TrainResult(state=state, loss=None, resumed_from=0, images_per_s=None)
    engine = Engine(
        job.module,
        job.param_groups,
        optimizer=job.optimizer,
        peak_lr=job.lr_schedule.peak_lr,
        batch=job.batch,
        precision=job.precision,
        zero_stage=execution.zero_stage,
    )
    try:
        return _Loop(job, engine, execution, ctx).run()
    finally:
        engine.close()


class _Loop:
    """State of one training between its steps."""

    def __init__(self, job: TrainJob, engine: Engine, execution: Execution, ctx: RunContext):
        self.job, self.engine, self.execution, self.ctx = job, engine, execution, ctx
        self.log_every = min(MAX_LOG_EVERY, max(1, job.num_steps // 100))
        self.window_loss = torch.zeros((), device=engine.device)
        self.window_steps = 0
        self.loss: float | None = None

    def run(self) -> TrainResult:
        start = self._restore()
        self.began = self.window_began = self.saved_at = time.monotonic()
        batches = self.job.loader.steps(start, self.job.num_steps)
        try:
            for step, micro_batches in enumerate(batches, start=start):
                inputs = (self.job.prepare(b, self.engine.device) for b in micro_batches)
                self.window_loss += self.engine.step(inputs, self.job.lr_schedule.at(step))
                self.window_steps += 1
                self._after_step(step + 1)
        finally:
            batches.close()
        elapsed = time.monotonic() - self.began
        images = (self.job.num_steps - start) * self.job.batch.global_batch
        return TrainResult(
            state=self.engine.full_state(),
            loss=self.loss,
            resumed_from=start,
            images_per_s=images / elapsed if images else None,
        )

    def _after_step(self, done: int) -> None:
        self.ctx.fault_point("step")
        last = done == self.job.num_steps
        if done % self.log_every == 0 or last or done == 1:
            self._log(done)
        due = time.monotonic() - self.saved_at > self.execution.checkpoint_every_s
        stop, save = dist.any_rank(self.ctx.should_stop(), due and dist.rank() == 0)
        if (stop or save) and not last:
            self._save(done)
        if stop and not last:
            raise Stopped(f"stopped on request after step {done} of {self.job.num_steps}")

    def _log(self, done: int) -> None:
        mean = dist.all_reduce_sum(self.window_loss.clone()) / (self.window_steps * dist.world())
        self.loss = float(mean)
        self._check_finite(done)
        now = time.monotonic()
        rate = self.window_steps * self.job.batch.global_batch / max(now - self.window_began, 1e-9)
        metrics = {
            "loss": self.loss,
            "lr": self.job.lr_schedule.at(done - 1),
            "images_per_s": rate,
        }
        if (norm := self.engine.grad_norm()) is not None:
            metrics["grad_norm"] = norm
        self.ctx.log_metrics(done, metrics)
        self.window_loss.zero_()
        self.window_steps, self.window_began = 0, now

    def _check_finite(self, done: int) -> None:
        """Raise on every rank if any rank's loss has become non-finite since the last log."""
        [is_bad] = dist.any_rank(not math.isfinite(float(self.window_loss)))
        if is_bad:
            raise NumericsError(
                f"the loss is not finite within the {self.window_steps} steps before {done}; "
                "lower the learning rate, clip gradients or use fp32"
            )

    def _save(self, done: int) -> None:
        self._check_finite(done)  # a poisoned state is never committed
        if self.ctx.checkpoint_dir is not None:
            self.ctx.fault_point("save")
            checkpoint.commit(
                self.ctx.checkpoint_dir,
                self.engine.save,
                step=done,
                science_hash=self.ctx.science_hash,
                zero_stage=self.execution.zero_stage,
            )
        self.saved_at = time.monotonic()

    def _restore(self) -> int:
        directory: Path | None = self.ctx.checkpoint_dir
        if directory is None:
            return 0
        zero_stage = self.execution.zero_stage
        found = checkpoint.find(
            directory, science_hash=self.ctx.science_hash, zero_stage=zero_stage
        )
        if found is None:
            return 0
        path, manifest = found
        self.engine.load(path)
        return manifest.step
