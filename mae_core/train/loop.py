"""The training loop that pretraining and fine-tuning share: resume, step, log, save, stop."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from mae_core.config import BatchSplit, Execution, OptimizerConfig, Precision
from mae_core.data.loader import Batch, TrainLoader
from mae_core.errors import MaeCoreError, NumericsError
from mae_core.runtime import collectives
from mae_core.runtime.context import RunContext
from mae_core.runtime.rng_state import seed_generators
from mae_core.train.deepspeed_engine import Engine
from mae_core.train.lr_schedule import LrSchedule
from mae_core.train.optim import ParamGroup
from mae_core.train.saver import LEVEL_NONE, Resumed, Saver, find_checkpoint
from mae_core.train.state import RECENT, Inputs

MAX_LOG_EVERY = 50
MIN_LOGS = 100
"""Logged points of a training that has so many steps."""
MIN_RECENT = 5
"""Logged losses before a spike can be detected."""
PROBE_IMAGES = 2
"""Enough to tell wrong weights from right ones; training waits for them at each save."""


class Stopped(MaeCoreError):
    """Training was asked to stop; the message says whether a checkpoint was committed first."""

    attempt_cause = "stopped"


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """All that one training needs."""

    module: nn.Module
    """`forward(*inputs)` returns a scalar loss."""
    param_groups: list[ParamGroup]
    optimizer: OptimizerConfig
    lr_schedule: LrSchedule
    precision: Precision
    batch: BatchSplit
    num_steps: int
    loader: TrainLoader
    prepare: Callable[[Batch, torch.device], Inputs]
    """Turns a micro-batch into the module's inputs, on the device."""
    prepare_step: Callable[[int, list[Batch], torch.device], Iterable[Inputs]] | None = None
    """Turns this rank's micro-batches of a step into their inputs, where they need each other."""
    follow: Callable[[int, Mapping[str, torch.Tensor]], None] | None = None
    """Moves averages of the weights; gets each step's number and the weights before it, in fp32."""
    monitor: Callable[[nn.Module, torch.device], dict[str, float]] | None = None
    """Looks at the network every `Execution.monitor_every_steps`; must touch no generator."""

    def inputs(
        self, step: int, micro_batches: list[Batch], device: torch.device
    ) -> Iterable[Inputs]:
        """Inputs of each micro-batch of a step, made as they are asked for."""
        if self.prepare_step is not None:
            return self.prepare_step(step, micro_batches, device)
        return (self.prepare(batch, device) for batch in micro_batches)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What training leaves behind."""

    state: dict[str, torch.Tensor]
    """Weights in fp32 on the CPU, on every rank."""
    loss: float | None
    """Mean over the last logged window and all ranks; None if there was no step."""
    resumed_from: int = 0
    """Step of the checkpoint that this attempt went on from."""
    level: str = LEVEL_NONE
    """How exactly it went on; see `mae_core.train.saver`."""
    images_per_s: float | None = None
    """Over this attempt's steps, all ranks together."""

    def facts(self) -> dict[str, float | str | None]:
        """What is worth recording."""
        names = ("loss", "resumed_from", "level", "images_per_s")
        return {name: getattr(self, name) for name in names}


def train(job: TrainJob, execution: Execution, ctx: RunContext) -> TrainResult:
    """Train to the end, or raise `Stopped` / `NumericsError` / `CheckpointError`."""
    if job.num_steps == 0:
        # An untrained network is a result too: duration 0 is a point of the curve.
        state = {n: p.detach().float().cpu().clone() for n, p in job.module.named_parameters()}
        return TrainResult(state=state, loss=None)
    ctx.beat("restore", 0)
    ctx.fault_point("restore")
    with find_checkpoint(ctx, execution, job.precision, job.batch) as saver:
        engine = Engine(
            job.module,
            job.param_groups,
            optimizer=job.optimizer,
            peak_lr=job.lr_schedule.peak_lr,
            batch=job.batch,
            precision=job.precision,
            zero_stage=execution.zero_stage,
            universal=saver.needs_conversion,
        )
        try:
            return _Loop(job, engine, execution, ctx, saver).run()
        finally:
            engine.close()


class _Loop:
    """State of one training between its steps."""

    def __init__(
        self, job: TrainJob, engine: Engine, execution: Execution, ctx: RunContext, saver: Saver
    ):
        self.job, self.engine, self.execution, self.ctx = job, engine, execution, ctx
        self.saver = saver
        self.log_every = min(MAX_LOG_EVERY, max(1, job.num_steps // MIN_LOGS))
        self.probe = self._fixed_batch()
        self.loss: float | None = None

    def run(self) -> TrainResult:
        resumed = self.saver.restore(self.engine, self.probe, self.job.loader.position)
        self.state = resumed.state
        if resumed.step == 0:
            # Importing for the first time draws from them too, so not any earlier.
            seed_generators(collectives.rank())
        start = resumed.step
        self.loss = self.state.recent[-1] if self.state.recent else None
        # In double precision, so that it can be saved and added up again without loss.
        self.window = torch.tensor(
            self.state.window_loss, dtype=torch.float64, device=self.engine.device
        )
        self.began = self.window_began = self.saved_at = time.monotonic()
        self.saved_step = start
        self.ctx.event("training", {"step": start})
        for step, inputs in self._inputs(self.state.data_step):
            if self.job.follow is not None:
                self.job.follow(step, dict(self.engine.weights()))
            loss = self.engine.step(inputs, self.job.lr_schedule.at(self.state.lr_step))
            self.window += loss
            self.state.window_steps += 1
            self.state.data_step = self.state.lr_step = step + 1
            if step == start:  # what a recovery is measured by
                self.ctx.event("stepped", {"step": step + 1})
            self._after_step(step + 1)
        return self._finish(resumed)

    def _fixed_batch(self) -> Inputs:
        """A few inputs that are the same on any rank of any gang; no generator is advanced."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            batch = self.job.loader.probe(PROBE_IMAGES)
            return self.job.prepare(batch, self.engine.device)

    def _inputs(self, start: int) -> Iterator[tuple[int, Iterable[Inputs]]]:
        """Yield each step with its micro-batches; says when it waits for data and when not."""
        batches = self.job.loader.steps(start, self.job.num_steps)
        try:
            for step in range(start, self.job.num_steps):
                self.ctx.beat("load", step)
                self.ctx.fault_point("load")
                micro_batches = next(batches)
                self.ctx.beat("step", step)
                yield step, self.job.inputs(step, micro_batches, self.engine.device)
        finally:
            batches.close()

    def _finish(self, resumed: Resumed) -> TrainResult:
        elapsed = time.monotonic() - self.began
        images = (self.job.num_steps - resumed.step) * self.job.batch.global_batch
        self.ctx.event("finished", {"step": self.job.num_steps})
        if self.execution.record_state:
            self._save(self.job.num_steps, wait=True)
        self.saver.settle(wait=True)
        if self.execution.record_state:
            self.saver.record_state()
        self.ctx.beat("finish", self.job.num_steps)
        self.ctx.fault_point("finish")
        return TrainResult(
            state=self.engine.full_state(),
            loss=self.loss,
            resumed_from=resumed.step,
            level=resumed.level,
            images_per_s=images / elapsed if images else None,
        )

    def _after_step(self, done: int) -> None:
        self.ctx.fault_point("step")
        last = done == self.job.num_steps
        if done % self.log_every == 0 or last or done == 1:
            self._log(done)
        self._monitor(done)
        wants_stop = self.ctx.should_stop()
        no_time = wants_stop and self.ctx.grace_left_s() < self.saver.expected_s
        stop, save, no_time, writing = collectives.any_rank(
            wants_stop,
            collectives.rank() == 0 and self._is_due(done),
            no_time,
            self.saver.is_writing,
        )
        if not writing:
            self.saver.settle()
        if last:
            return
        if stop:
            self._stop(done, has_time=not no_time)
        elif save and not writing:
            self._save(done, wait=self.execution.snapshot == "blocking")

    def _monitor(self, done: int) -> None:
        every, monitor = self.execution.monitor_every_steps, self.job.monitor
        if monitor is None or every is None or done % every:
            return
        self.ctx.beat("evaluate", done)
        self.ctx.log_metrics(done, monitor(self.engine.module, self.engine.device))
        self.ctx.beat("step", done)

    def _is_due(self, done: int) -> bool:
        if self.execution.checkpoint_every_steps is not None:
            return done - self.saved_step >= self.execution.checkpoint_every_steps
        return time.monotonic() - self.saved_at > self.execution.checkpoint_every_s

    def _stop(self, done: int, *, has_time: bool) -> None:
        """Save if the time is enough, then end the attempt."""
        where = f"stopped on request after step {done} of {self.job.num_steps}"
        if not has_time:
            raise Stopped(f"{where}; no time was left for a checkpoint: the last one stands")
        problem = self._save(done, wait=True)
        raise Stopped(f"{where}; {problem or 'a checkpoint is committed'}")

    def _log(self, done: int) -> None:
        total = collectives.all_reduce_sum(self.window.clone())
        self.loss = float(total) / (self.state.window_steps * collectives.world())
        self._check_finite(done)
        self._check_spike(done)
        now = time.monotonic()
        rate = self.state.window_steps * self.job.batch.global_batch
        metrics = {
            "loss": self.loss,
            "lr": self.job.lr_schedule.at(done - 1),
            "images_per_s": rate / max(now - self.window_began, 1e-9),
        }
        if (norm := self.engine.grad_norm()) is not None:
            metrics["grad_norm"] = norm
        self.ctx.log_metrics(done, metrics)
        self.ctx.fault_point("log")
        self.state.recent = [*self.state.recent[-RECENT + 1 :], self.loss]
        self.window.zero_()
        self.state.window_steps, self.window_began = 0, now

    def _check_finite(self, done: int) -> None:
        """Raise on every rank if any rank's loss has become non-finite since the last log."""
        bad = collectives.all_gather_object(not math.isfinite(float(self.window)))
        if any(bad):
            ranks = ", ".join(str(r) for r, is_bad in enumerate(bad) if is_bad)
            raise NumericsError(
                f"the loss is not finite within the {self.state.window_steps} steps before {done} "
                f"(rank {ranks}); lower the learning rate, clip gradients or use fp32"
            )

    def _check_spike(self, done: int) -> None:
        factor, recent = self.execution.spike_factor, self.state.recent
        if factor is None or self.loss is None or len(recent) < MIN_RECENT:
            return
        median = statistics.median(recent)
        if self.loss > factor * median:
            raise NumericsError(
                f"loss spike: {self.loss:.4g} at step {done} is more than {factor:g} times the "
                f"median of the last {len(recent)} logged ({median:.4g})"
            )

    def _save(self, done: int, *, wait: bool) -> str | None:
        """Save after step `done`; return why nothing was or will be committed."""
        if self.saved_step == done:  # resumed here, or saved a moment ago
            return self.saver.settle(wait=True)
        self._check_finite(done)
        self.ctx.beat("save", done)
        self.state.window_loss = float(self.window)
        problem = self.saver.save(
            self.engine,
            self.state,
            probe=self.probe,
            position=self.job.loader.position(done),
            next_ids=self.job.loader.next_ids(done),
            wait=wait,
        )
        self.saved_at, self.saved_step = time.monotonic(), done
        self.ctx.beat("step", done)
        return problem
