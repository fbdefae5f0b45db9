"""Changes that tests make to a training from within: noise, groups, parts left out."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np


@contextlib.contextmanager
def applied(
    payload: dict[str, Any],
    rank: int,
    samples: list[list[int]],
    masks: list[tuple[str, str]],
    weights: list[str],
) -> Iterator[None]:
    """Apply what the payload asks for inside the block; note samples, masks, weights."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_noting(samples))
        stack.enter_context(_noting_masks(masks))
        stack.enter_context(_noting_weights(weights))
        if payload.get("noise"):
            stack.enter_context(_noise())
        if payload.get("grouped"):
            stack.enter_context(_grouped())
        if "log_every" in payload:
            maximum = mock.patch("mae_core.train.loop.MAX_LOG_EVERY", payload["log_every"])
            stack.enter_context(maximum)
            stack.enter_context(mock.patch("mae_core.train.loop.MIN_LOGS", 1))
        if "nan_at" in payload:
            stack.enter_context(_broken(payload, rank))
        if "leave_out" in payload:
            stack.enter_context(_left_out(payload["leave_out"], rank))
        yield


@contextlib.contextmanager
def _noting(samples: list[list[int]]) -> Iterator[None]:
    from mae_core.data.loader import TrainLoader

    original = TrainLoader.steps

    def steps(self: Any, *arguments: Any) -> Iterator[Any]:
        inner = original(self, *arguments)
        try:
            for batches in inner:
                samples.append([int(i) for b in batches for i in b.index])
                yield batches
        finally:
            inner.close()

    with mock.patch.object(TrainLoader, "steps", steps):
        yield


@contextlib.contextmanager
def _noting_masks(masks: list[tuple[str, str]]) -> Iterator[None]:
    """Note the digest of each sample's mask noise, by epoch and sample."""
    from mae_core.model import mask_samplers

    original = mask_samplers.mask_noise

    def noted(seed: int, epoch: Any, index: Any, patches: int) -> Any:
        noise = original(seed, epoch, index, patches)
        epochs = np.broadcast_to(epoch, len(index))
        for one, sample, row in zip(epochs, index, noise, strict=True):
            digest = hashlib.sha256(row.numpy().tobytes()).hexdigest()[:16]
            masks.append((f"{one}/{sample}", digest))
        return noise

    with mock.patch.object(mask_samplers, "mask_noise", noted):
        yield


@contextlib.contextmanager
def _noting_weights(weights: list[str]) -> Iterator[None]:
    """Note the digest of all weights in fp32 whenever they are saved, and after they are loaded."""
    from mae_core.train.deepspeed_engine import Engine

    original_shards, original_load = Engine.shards, Engine.load

    def note(engine: Engine) -> None:
        digest = hashlib.sha256()
        for name, weight in sorted(engine.full_state().items()):
            digest.update(name.encode() + weight.numpy().tobytes())
        weights.append(digest.hexdigest())

    def shards(self: Engine) -> dict[str, object]:
        note(self)
        return original_shards(self)

    def load(self: Engine, *arguments: Any) -> None:
        original_load(self, *arguments)
        note(self)

    with mock.patch.object(Engine, "shards", shards), mock.patch.object(Engine, "load", load):
        yield


@contextlib.contextmanager
def _noise() -> Iterator[None]:
    """Noise from the global generator, so that its state matters."""
    import torch

    from mae_core.pretrain import masked

    original = masked.network_input

    def noisy(*arguments: Any) -> Any:
        images = original(*arguments)
        return images + 0.1 * torch.randn(images.shape)

    with mock.patch("mae_core.pretrain.masked.network_input", noisy):
        yield


@contextlib.contextmanager
def _broken(payload: dict[str, Any], rank: int) -> Iterator[None]:
    """At step `nan_at` turn the loss of `ranks`, or their weights after it, into NaN."""
    from mae_core.train.deepspeed_engine import Engine

    original, steps = Engine.step, []

    def step(self: Any, *arguments: Any) -> Any:
        loss = original(self, *arguments)
        steps.append(1)
        if len(steps) == payload["nan_at"] and rank in payload["ranks"]:
            if payload.get("weights"):
                next(iter(self._engine.module.parameters())).data.fill_(float("nan"))
            else:
                loss = loss * payload.get("factor", float("nan"))
        return loss

    with mock.patch.object(Engine, "step", step):
        yield


@contextlib.contextmanager
def _grouped() -> Iterator[None]:
    """A group per parameter, with rates and decays of its own, as layer decay makes them."""

    from mae_core.train.optim import ParamGroup

    def groups(module: Any, weight_decay: float) -> list[ParamGroup]:
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        return [
            ParamGroup([p], weight_decay=0.01 * (i % 5), lr_scale=1 - i / 200, name=n)
            for i, (n, p) in enumerate(named)
        ]

    with mock.patch("mae_core.train.job.pretrain_groups", groups):
        yield


@contextlib.contextmanager
def _left_out(part: str, rank: int) -> Iterator[None]:
    """Restore everything but one part."""
    import torch

    from mae_core.train import saver
    from mae_core.train.deepspeed_engine import Engine

    original_unpack, original_load = saver.unpack, Engine.load

    def unpack(*arguments: Any, **named: Any) -> Any:
        state = original_unpack(*arguments, **named)
        if part == "rng" and rank == 1:
            torch.manual_seed(rank)
        left_out = {
            "data": ("data_step",),
            "lr": ("lr_step",),
            "window": ("window_loss", "window_steps"),
        }
        for name in left_out.get(part, ()):
            setattr(state, name, 0)
        return state

    def load(self: Any, *arguments: Any) -> None:
        if part == "weights":
            return
        original_load(self, *arguments)
        name = "step" if part == "adam_step" else part
        for state in self._engine.optimizer.optimizer.state.values():
            if name in state:
                state[name] = torch.zeros_like(state[name])

    with mock.patch.object(saver, "unpack", unpack), mock.patch.object(Engine, "load", load):
        yield
