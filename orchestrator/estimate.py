"""What a stage costs before it has run: parameters, steps, FLOPs and seconds."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from mae_core.config import (
    BatchSplit,
    EncoderConfig,
    Execution,
    FinetuneRecipe,
    KnnRecipe,
    LinearProbeRecipe,
    PretrainRecipe,
    split_batch,
)
from mae_core.flops import (
    FlopCount,
    encoder_params,
    eval_flops_per_image,
    pretrain_flops_per_image,
    pretrain_params,
)
from studies.spec import Cell, Stage

GPU_FLOPS_PER_S = 125e12
"""Assumed per GPU in bf16 until this store has measurements: 40 % of an A100's peak."""
CPU_FLOPS_PER_S = 40e9
"""Assumed per core in fp32 until this store has measurements."""
STEP_OVERHEAD_S = 0.008
STAGE_OVERHEAD_S = 0.4


@dataclass(frozen=True)
class DataSize:
    """Counts that costs depend on."""

    num_train: int
    num_eval: int
    num_classes: int


@dataclass(frozen=True)
class Cost:
    """Of one stage."""

    encoder_params: int | None = None
    total_params: int | None = None
    """Encoder + decoder, for a pretraining."""
    flops_per_image: FlopCount | None = None
    """Training on one image."""
    steps: int | None = None
    images: int = 0
    """Images pushed through the network, training and evaluation."""
    flops: float = 0.0
    """Executed, the whole stage."""
    algorithmic_flops: float = 0.0
    """By the reference count, the whole stage: the x-axis of curves."""
    split: BatchSplit | None = None
    world_size: int = 1
    on_gpu: bool = False
    """Assumed of a cell that pretrains in bf16, for the time only."""


def cost_of(cell: Cell, stage: Stage, size: DataSize) -> Cost:
    """Cost of `stage`; raises `ConfigError` if its batch does not split over its ranks."""
    pretrain = cell.pretrain
    recipe = pretrain.recipe if pretrain else None
    assert recipe is None or isinstance(recipe, PretrainRecipe)
    encoder = recipe.encoder if recipe else None
    on_gpu = recipe is not None and recipe.precision == "bf16"
    return _cost(stage.recipe, stage.execution, encoder, size, on_gpu)


@functools.lru_cache(maxsize=65536)
def _cost(
    recipe: Any,
    execution: Execution,
    encoder: EncoderConfig | None,
    size: DataSize,
    on_gpu: bool,
) -> Cost:
    if isinstance(recipe, PretrainRecipe):
        cost = _pretrain_cost(recipe, execution, size)
    else:
        cost = _eval_cost(recipe, execution, encoder, size)
    return replace(cost, on_gpu=on_gpu)


def _pretrain_cost(recipe: PretrainRecipe, execution: Execution, size: DataSize) -> Cost:
    split = split_batch(recipe.global_batch, execution)
    steps = recipe.duration.num_steps(num_images=size.num_train, global_batch=recipe.global_batch)
    per_image = pretrain_flops_per_image(recipe)
    images = steps * recipe.global_batch
    return Cost(
        encoder_params=encoder_params(recipe.encoder, recipe.data.num_channels),
        total_params=pretrain_params(recipe),
        flops_per_image=per_image,
        steps=steps,
        images=images,
        flops=float(images) * per_image.executed,
        algorithmic_flops=float(images) * per_image.algorithmic,
        split=split,
        world_size=execution.world_size,
    )


def _eval_cost(
    recipe: Any, execution: Execution, encoder: EncoderConfig | None, size: DataSize
) -> Cost:
    labelled = min(recipe.num_labels or size.num_train, size.num_train)
    steps, epochs, trained = None, 1.0, labelled
    split = None
    if isinstance(recipe, LinearProbeRecipe | FinetuneRecipe):
        batch = min(recipe.global_batch, labelled)
        steps = recipe.duration.num_steps(num_images=labelled, global_batch=max(batch, 1))
        trained = steps * batch
        epochs = trained / max(labelled, 1)
    if isinstance(recipe, FinetuneRecipe):
        split = split_batch(recipe.global_batch, execution)
    executed = algorithmic = 0.0
    per_image = None
    if encoder is not None:
        flops = eval_flops_per_image(recipe, encoder, size.num_classes)
        per_image = flops.train_image
        cached = isinstance(recipe, KnnRecipe) or (
            isinstance(recipe, LinearProbeRecipe) and recipe.augmentation.is_deterministic
        )
        passes = labelled if cached else trained
        evaluated = size.num_eval * flops.eval_image.executed
        executed = float(passes) * flops.train_image.executed + evaluated
        algorithmic = float(trained) * flops.train_image.algorithmic + evaluated
    return Cost(
        encoder_params=None
        if encoder is None
        else encoder_params(encoder, recipe.data.num_channels),
        flops_per_image=per_image,
        steps=steps,
        images=int(epochs * labelled) + size.num_eval,
        flops=executed,
        algorithmic_flops=algorithmic,
        split=split,
        world_size=execution.world_size,
    )


@dataclass(frozen=True)
class Sample:
    """A finished stage, as evidence for the next one's time."""

    kind: str
    cost: Cost
    seconds: float


class Rates:
    """Seconds a stage takes: by what finished here, else by stated assumptions."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        ratios: dict[str, list[float]] = {}
        for s in samples:
            ratios.setdefault(s.kind, []).append(s.seconds / _assumed_seconds(s.cost))
        self._factor = {kind: statistics.median(values) for kind, values in ratios.items()}

    @property
    def is_measured(self) -> bool:
        """True once finished stages correct the assumptions."""
        return bool(self._factor)

    def seconds(self, kind: str, cost: Cost) -> float:
        """Wall-clock seconds on an idle gang."""
        return _assumed_seconds(cost) * self._factor.get(kind, 1.0)


def _assumed_seconds(cost: Cost) -> float:
    speed = GPU_FLOPS_PER_S if cost.on_gpu else CPU_FLOPS_PER_S
    compute = cost.flops / (speed * cost.world_size)
    overhead = 0.0 if cost.on_gpu else STEP_OVERHEAD_S
    return STAGE_OVERHEAD_S + compute + (cost.steps or 0) * overhead
