"""A small MAE in each precision: its losses over 40 steps, beside torch alone, and its start."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_core.config import (
    BatchSplit,
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    OptimizerConfig,
    Precision,
    PretrainRecipe,
)
from mae_core.model.mae import MAE
from mae_core.runtime import collectives
from mae_core.train.deepspeed_engine import Engine
from mae_core.train.optim import ParamGroup, build_optimizer, pretrain_groups, set_lr

STEPS, BATCH, WARMUP = 40, 32, 10
DATA = DataConfig(
    path="none", image_size=32, num_channels=3, pixel_mean=(0.0,) * 3, pixel_std=(1.0,) * 3
)
RECIPE = PretrainRecipe(
    data=DATA,
    encoder=EncoderConfig(width=96, depth=4, num_heads=4, patch_size=4),
    decoder=DecoderConfig(width=48, depth=2, num_heads=4),
)
OPTIMIZER = OptimizerConfig()


def batches() -> list[tuple[Tensor, Tensor]]:
    """Smooth images with a little noise, and the noise of their masks: the same for everyone."""
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(STEPS * BATCH, 3, 8, 8, generator=generator)
    images = F.interpolate(low, size=32, mode="bicubic")
    images += 0.05 * torch.randn(images.shape, generator=generator)
    noise = torch.rand(STEPS * BATCH, RECIPE.num_patches, generator=generator)
    return list(zip(images.split(BATCH), noise.split(BATCH), strict=True))


def lr_at(step: int) -> float:
    """Learning rate with a warm-up."""
    return 1e-3 * min(1.0, (step + 1) / WARMUP)


def engine_losses(precision: Precision, zero_stage: int, *, rounded: bool = False) -> list[float]:
    """Losses of a training alone; `rounded` starts from weights that bf16 has rounded."""
    model = MAE(RECIPE)
    if rounded:
        round_weights(model)
    engine = start(model, pretrain_groups(model, 0.05), precision, zero_stage)
    try:
        return [float(engine.step([b], lr_at(s))) for s, b in enumerate(batches())]
    finally:
        engine.close()


def torch_losses(*, autocast: bool, steps: int = STEPS) -> list[float]:
    """The same by torch alone, without DeepSpeed."""
    model = MAE(RECIPE)
    optimizer = build_optimizer(OPTIMIZER, pretrain_groups(model, 0.05), 1e-3)
    losses = []
    for step, batch in enumerate(batches()[:steps]):
        set_lr(optimizer, lr_at(step))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(*batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def mean_error(losses: list[float], reference: list[float]) -> float:
    """Mean relative difference."""
    pairs = zip(losses, reference, strict=True)
    return sum(abs(found - expected) / expected for found, expected in pairs) / len(reference)


@torch.no_grad()
def round_weights(module: nn.Module) -> None:
    """Leave of each weight what bf16 holds."""
    for parameter in module.parameters():
        parameter.copy_(parameter.bfloat16())


def start(
    module: nn.Module, groups: list[ParamGroup], precision: Precision, zero_stage: int, **more: Any
) -> Engine:
    """An engine over this gang."""
    world = collectives.world()
    return Engine(
        module,
        groups,
        optimizer=replace(OPTIMIZER, **more),
        peak_lr=1e-3,
        batch=BatchSplit(BATCH // world, 1, world),
        precision=precision,
        zero_stage=zero_stage,
    )


def wrong_at_start(
    module: nn.Module, groups: list[ParamGroup], precision: Precision, zero_stage: int, **more: Any
) -> list[str]:
    """Start an engine; name the weights whose bytes are not the given ones (collective).

    Also those that the forward pass reads as anything but the given ones, rounded in "bf16".
    """
    import deepspeed

    given = {name: p.detach().clone() for name, p in module.named_parameters()}
    engine = start(module, groups, precision, zero_stage, **more)
    try:
        state = engine.full_state()
        wrong = [name for name, value in given.items() if bits(state[name]) != bits(value)]
        parameters = dict(engine.module.named_parameters())
        gathered = list(parameters.values()) if zero_stage == 3 else []
        with deepspeed.zero.GatheredParameters(gathered, enabled=zero_stage == 3):
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            for name, value in given.items():
                if not torch.equal(parameters[name].detach(), value.to(dtype)):
                    wrong.append(f"{name} in the forward pass")
    finally:
        engine.close()
    return wrong


def bits(value: Tensor) -> bytes:
    """Of float32 values."""
    return value.contiguous().numpy().tobytes()
