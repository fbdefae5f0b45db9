"""From a recipe to the job of one training: what every stage that trains has in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from mae_core.config import (
    AttentiveProbeRecipe,
    BatchSplit,
    ContrastiveRecipe,
    Execution,
    FinetuneRecipe,
    LinearProbeRecipe,
    PretrainRecipe,
    TokenizerRecipe,
    split_batch,
)
from mae_core.data.loader import Batch, TrainLoader
from mae_core.data.sources import Split
from mae_core.runtime import collectives
from mae_core.runtime.json_values import Json
from mae_core.runtime.metrics import Metrics
from mae_core.train.loop import TrainJob, TrainResult
from mae_core.train.lr_schedule import LrSchedule
from mae_core.train.optim import ParamGroup, pretrain_groups
from mae_core.train.state import Inputs

StepsRecipe = (
    PretrainRecipe | ContrastiveRecipe | TokenizerRecipe | FinetuneRecipe | AttentiveProbeRecipe
)
"""What the engine trains."""


def make_job(
    recipe: StepsRecipe,
    execution: Execution,
    module: nn.Module,
    split: Split,
    *,
    prepare: Callable[[Batch, torch.device], Inputs],
    prepare_step: Callable[[int, list[Batch], torch.device], Iterable[Inputs]] | None = None,
    follow: Callable[[int, Mapping[str, torch.Tensor]], None] | None = None,
    param_groups: list[ParamGroup] | None = None,
    monitor: Callable[[nn.Module, torch.device], dict[str, float]] | None = None,
    num_views: int = 1,
) -> TrainJob:
    """Read `split` in global batches for as long as the recipe says.

    An evaluation's batch is the whole split where that is smaller. Without `param_groups` they are
    those of a pretraining.

    Raises:
        ConfigError: the duration rounds to no step; the batch is larger than the split, or does
            not split over the ranks; the recipe refuses the execution.
    """
    recipe.check_execution(execution)
    batch = split_batch(_batch_size(recipe, split), execution)
    if param_groups is None:
        param_groups = pretrain_groups(module, recipe.optimizer.weight_decay)
    lr_schedule = LrSchedule.from_config(
        recipe.optimizer,
        recipe.lr_schedule,
        recipe.duration,
        global_batch=batch.global_batch,
        num_images=len(split),
    )
    return TrainJob(
        module=module,
        param_groups=param_groups,
        optimizer=recipe.optimizer,
        lr_schedule=lr_schedule,
        precision=recipe.training.precision,
        batch=batch,
        num_steps=lr_schedule.total_steps,
        loader=make_loader(recipe, execution, split, batch, num_views=num_views),
        prepare=prepare,
        prepare_step=prepare_step,
        follow=follow,
        monitor=monitor,
    )


def _batch_size(recipe: StepsRecipe, split: Split) -> int:
    if recipe.IS_EVALUATION:
        return effective_batch(recipe.global_batch, len(split))
    return recipe.global_batch


def effective_batch(global_batch: int, num_images: int) -> int:
    """Images per update: the recipe's batch, or the whole training set where that is smaller.

    The learning rate is scaled by this number, and it depends on science only, never on the ranks.
    """
    return min(global_batch, num_images)


def training_metrics(
    result: TrainResult, job: TrainJob, num_train_images: int, **more: float
) -> Metrics:
    """What a stage that only trains has to say."""
    values = {
        "steps": job.num_steps,
        "images_seen": job.num_steps * job.batch.global_batch,
        "num_train_images": num_train_images,
        "micro_batch": job.batch.micro,
        "accumulation": job.batch.accumulation,
    }
    return Metrics(values={**result.facts(), **more, **values})


def training_details(result: TrainResult, job: TrainJob) -> dict[str, Json]:
    """What an evaluation says of the training before it."""
    facts = result.facts()
    return {
        "effective_batch": job.batch.global_batch,
        "peak_lr": job.lr_schedule.peak_lr,
        "steps": job.num_steps,
        "train_loss": facts.pop("loss"),
        **facts,
    }


def make_loader(
    recipe: StepsRecipe | LinearProbeRecipe,
    execution: Execution,
    split: Split,
    batch: BatchSplit,
    *,
    num_views: int = 1,
) -> TrainLoader:
    """This rank's loader of a recipe's training images."""
    return TrainLoader(
        split,
        recipe.data,
        recipe.augmentation,
        seed=recipe.seed,
        batch=batch,
        rank=collectives.rank(),
        threads=execution.loader_threads,
        num_views=num_views,
    )
