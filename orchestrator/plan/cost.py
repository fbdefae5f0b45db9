"""What a stage costs before it has run: parameters, steps, FLOPs and seconds."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from mae_core.config import (
    FEATURES_FILE,
    AdoptedRecipe,
    BasisRecipe,
    BatchSplit,
    BestOfRecipe,
    ContrastiveRecipe,
    Duration,
    EncoderConfig,
    EvalRecipe,
    Execution,
    FeatureProbeRecipe,
    FeaturesRecipe,
    InferenceRecipe,
    KnnRecipe,
    LinearProbeRecipe,
    PretrainRecipe,
    ReconstructionRecipe,
    TokenizerRecipe,
    require,
    split_batch,
)
from mae_core.errors import ConfigError
from mae_core.model.flops import (
    FlopCount,
    contrastive_flops_per_image,
    contrastive_params,
    encoder_forward_flops,
    encoder_params,
    eval_flops_per_image,
    pretrain_flops_per_image,
    pretrain_params,
    reconstruction_flops_per_image,
    tokenizer_flops_per_image,
    tokenizer_params,
)
from orchestrator.store.data_facts import DataSize
from studies.spec.cell import Cell, Stage

GPU_FLOPS_PER_S = 125e12
"""Assumed per GPU in bf16 until this store has measurements: 40 % of an A100's peak."""
CPU_FLOPS_PER_S = 40e9
"""Assumed per core in fp32 until this store has measurements."""
STEP_OVERHEAD_S = 0.008
STAGE_OVERHEAD_S = 0.4


@dataclass(frozen=True)
class Cost:
    """Of one stage."""

    encoder_params: int | None = None
    total_params: int | None = None
    """Encoder + decoder, for a pretraining."""
    flops_per_image: FlopCount | None = None
    """Training on one image."""
    steps: int | None = None
    """None if there are none (k-NN), or if they depend on data that nobody has read yet."""
    is_known: bool = True
    """False if the number of training images is unknown: what follows is a lower bound."""
    images: int = 0
    """Images pushed through the network, training and evaluation."""
    flops: float = 0.0
    """Executed, the whole stage."""
    algorithmic_flops: float = 0.0
    """By the reference count, the whole stage: the x-axis of curves."""
    split: BatchSplit | None = None
    world_size: int = 1
    on_gpu: bool = False
    """Assumed of a cell with a stage in bf16, for the time only."""


def cost_of(cell: Cell, stage: Stage, size: DataSize) -> Cost:
    """Cost of `stage`; raises `ConfigError`, which names the stage, for what a run would refuse."""
    pretrain = cell.pretrain
    recipe: Any = pretrain.recipe if pretrain else None
    encoder = recipe.encoder if recipe else None
    if isinstance(stage.recipe, KnnRecipe) and _reads_features(cell, stage):
        encoder = None  # nothing is encoded
    on_gpu = any(getattr(s.recipe, "precision", "fp32") == "bf16" for s in cell.stages)
    try:
        if isinstance(stage.recipe, ReconstructionRecipe):
            return replace(
                _reconstruction_cost(stage.recipe, stage.execution, recipe, size), on_gpu=on_gpu
            )
        return _cost(stage.recipe, stage.execution, encoder, size, on_gpu)
    except ConfigError as error:
        raise ConfigError(f"{cell.address}#{stage.name}: {error}") from error


def _reads_features(cell: Cell, stage: Stage) -> bool:
    return any(FEATURES_FILE in cell.stage(parent).recipe.YIELDS for parent in stage.parents)


@functools.lru_cache(maxsize=65536)
def _cost(
    recipe: Any,
    execution: Execution,
    encoder: EncoderConfig | None,
    size: DataSize,
    on_gpu: bool,
) -> Cost:
    if isinstance(recipe, PretrainRecipe | ContrastiveRecipe | TokenizerRecipe):
        cost = _pretrain_cost(recipe, execution, size)
    elif isinstance(recipe, AdoptedRecipe):
        params = encoder_params(recipe.encoder, recipe.data.num_channels)
        cost = Cost(encoder_params=params, total_params=params)
    elif isinstance(recipe, BasisRecipe):
        images = min(recipe.num_images, size.num_train)
        cost = Cost(images=images, is_known=images > 0, world_size=execution.world_size)
    elif isinstance(recipe, FeaturesRecipe):
        cost = _features_cost(recipe, execution, encoder, size)
    else:
        cost = _eval_cost(recipe, execution, encoder, size)
    return replace(cost, on_gpu=on_gpu)


def _pretrain_cost(
    recipe: PretrainRecipe | ContrastiveRecipe | TokenizerRecipe,
    execution: Execution,
    size: DataSize,
) -> Cost:
    require(
        not size.num_train or recipe.global_batch <= size.num_train,
        f"global batch {recipe.global_batch} is larger than the training set of "
        f"{size.num_train} images: lower {recipe.KIND}.global_batch",
    )
    split = split_batch(recipe.global_batch, execution)
    steps = _num_steps(recipe.duration, size.num_train, recipe.global_batch)
    images = (steps or 0) * recipe.global_batch
    if isinstance(recipe, TokenizerRecipe):
        own, total, per_image = None, tokenizer_params(recipe), tokenizer_flops_per_image(recipe)
    elif isinstance(recipe, ContrastiveRecipe):
        recipe.check_execution(execution)
        own = encoder_params(recipe.encoder, recipe.data.num_channels)
        total, per_image = contrastive_params(recipe), contrastive_flops_per_image(recipe, split)
    else:
        own = encoder_params(recipe.encoder, recipe.data.num_channels)
        total, per_image = pretrain_params(recipe), pretrain_flops_per_image(recipe)
    return Cost(
        encoder_params=own,
        total_params=total,
        flops_per_image=per_image,
        steps=steps,
        is_known=steps is not None,
        images=images,
        flops=float(images) * per_image.executed,
        algorithmic_flops=float(images) * per_image.algorithmic,
        split=split,
        world_size=execution.world_size,
    )


def _features_cost(
    recipe: FeaturesRecipe, execution: Execution, encoder: EncoderConfig | None, size: DataSize
) -> Cost:
    """One forward pass of every image of every split."""
    images = size.num_train + size.num_dev + size.num_test
    forward, params = 0, None
    if encoder is not None:
        forward = encoder_forward_flops(encoder, recipe.data.image_size, recipe.data.num_channels)
        params = encoder_params(encoder, recipe.data.num_channels)
    return Cost(
        encoder_params=params,
        flops_per_image=FlopCount(forward, forward),
        is_known=size.num_train > 0,
        images=images,
        flops=float(images) * forward,
        algorithmic_flops=float(images) * forward,
        world_size=execution.world_size,
    )


def _reconstruction_cost(
    recipe: ReconstructionRecipe, execution: Execution, pretrain: Any, size: DataSize
) -> Cost:
    """One forward pass through encoder and decoder of every image that is scored."""
    forward = FlopCount(0, 0)
    if isinstance(pretrain, PretrainRecipe):
        forward = reconstruction_flops_per_image(recipe, pretrain)
    _check_scored(recipe.eval_split, size)
    return Cost(
        flops_per_image=forward,
        is_known=size.num_eval > 0,
        images=size.num_eval,
        flops=float(size.num_eval) * forward.executed,
        algorithmic_flops=float(size.num_eval) * forward.algorithmic,
        world_size=execution.world_size,
    )


def _eval_cost(
    recipe: Any, execution: Execution, encoder: EncoderConfig | None, size: DataSize
) -> Cost:
    labelled = size.num_train if recipe.num_labels is None else recipe.num_labels
    _check_eval(recipe, labelled, size)
    steps, epochs, trained, split = None, 1.0, labelled, None
    if isinstance(recipe, BestOfRecipe | InferenceRecipe):
        epochs, trained = 0.0, 0
    if hasattr(recipe, "duration"):
        # As `effective_batch` does it in a run: a small labelled set is one batch.
        batch = min(recipe.global_batch, labelled) if labelled else recipe.global_batch
        split = _eval_split(recipe, batch, execution)
        steps = _num_steps(recipe.duration, labelled, batch)
        trained = (steps or 0) * batch
        epochs = trained / max(labelled, 1)
    executed = algorithmic = 0.0
    per_image = None
    if encoder is not None:
        flops = eval_flops_per_image(recipe, encoder, size.num_classes)
        per_image = flops.train_image
        cached = isinstance(recipe, LinearProbeRecipe) and recipe.augmentation.is_deterministic
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
        is_known=labelled > 0,
        images=int(epochs * labelled) + size.num_eval,
        flops=executed,
        algorithmic_flops=algorithmic,
        split=split,
        world_size=execution.world_size,
    )


def _num_steps(duration: Duration, num_images: int, global_batch: int) -> int | None:
    """Steps, None where they depend on an unknown number of images (0)."""
    if not num_images and duration.unit == "epochs" and duration.value > 0:
        return None
    return duration.num_steps(num_images=num_images, global_batch=global_batch)


def _eval_split(recipe: Any, batch: int, execution: Execution) -> BatchSplit | None:
    """Split of the effective batch; None for a probe whose features are encoded once."""
    if isinstance(recipe, LinearProbeRecipe | FeatureProbeRecipe):
        require(batch >= 2, "a batch of one image: BatchNorm needs at least two")
        if isinstance(recipe, FeatureProbeRecipe) or recipe.augmentation.is_deterministic:
            return None
    return split_batch(batch, execution)


def _check_eval(recipe: EvalRecipe, labelled: int, size: DataSize) -> None:
    """Refuse what the run would refuse, as far as the counts are known."""
    if recipe.num_labels is not None:
        require(
            recipe.num_labels >= max(size.num_classes, 1),
            f"{recipe.num_labels} labels for {size.num_classes} classes: ask for at least one "
            "per class",
        )
        require(
            not size.num_train or recipe.num_labels <= size.num_train,
            f"{recipe.num_labels} labels are more than the {size.num_train} training images: "
            "ask for fewer",
        )
    if isinstance(recipe, KnnRecipe):
        require(
            not labelled or recipe.k <= labelled,
            f"k = {recipe.k} is more than the {labelled} training images: choose a smaller k or "
            "more labels",
        )
    require(
        size.num_dev > 0 or not size.is_measured or not recipe.selects_on_dev,
        "it chooses on dev, which has no image: set data.dev_fraction",
    )
    _check_scored(recipe.eval_split, size)


def _check_scored(eval_split: str, size: DataSize) -> None:
    require(
        size.num_eval > 0 or not size.is_measured,
        f"it is scored on {eval_split}, which has no image: "
        + ("set data.dev_fraction" if eval_split == "dev" else "add a test split"),
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
            if not s.cost.is_known:
                continue
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
