"""Evaluation stages that the catalogue's studies share, with the paper's recipes (Tables 9, 10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from mae_core.config import (
    BestOfRecipe,
    DataConfig,
    Duration,
    EvalRecipe,
    Execution,
    FinetuneRecipe,
    KnnRecipe,
    LinearProbeRecipe,
    LrScheduleConfig,
    OptimizerConfig,
)
from mae_core.config.augmentation import ErasingConfig, MixConfig, RandAugmentConfig
from studies.spec.cell import Stage

Tuned = TypeVar("Tuned", bound=FinetuneRecipe)

IMAGENET = DataConfig(path="imagenet-1k", expected_images=1_281_167, expected_classes=1000)
"""Point it at data with `--data FOLDER`; the counts let `plan` work before it is there."""


def paper_evaluations(
    size: str, data: DataConfig, *, seed: int, execution: Execution
) -> tuple[Stage, ...]:
    """k-NN, linear probe and fine-tune of a norm-pixel MAE, recipes as functions of the size."""
    return (
        stage("knn", KnnRecipe(data=data, seed=seed), execution),
        stage("linear_probe", paper_linear_probe(size, data, seed), execution),
        stage("finetune", paper_finetune(size, data, seed), execution),
    )


def stage(name: str, recipe: EvalRecipe, execution: Execution) -> Stage:
    """An evaluation of the cell's `pretrain` stage."""
    return Stage(name=name, recipe=recipe, parents=("pretrain",), execution=execution)  # type: ignore[arg-type]


def best_on_dev(name: str, what: str, candidates: Sequence[Stage]) -> tuple[Stage, ...]:
    """Candidates, each scored on dev, and the choice among them, scored on test (`BestOfRecipe`).

    The candidates have data, seed, features and labels alike; `what` says what was searched.
    """
    first = candidates[0].recipe
    assert isinstance(first, EvalRecipe)
    chosen = Stage(
        name=name,
        recipe=BestOfRecipe(
            data=first.data,
            seed=first.seed,
            features=first.features,
            num_labels=first.num_labels,
            label_seed=first.label_seed,
            what=what,
        ),
        parents=tuple(candidate.name for candidate in candidates),
        execution=candidates[0].execution,
    )
    return (*candidates, chosen)


def scaled_lr(recipe: Tuned, share: float) -> Tuned:
    """The recipe at a multiple of its learning rate."""
    optimizer = replace(recipe.optimizer, base_lr=share * recipe.optimizer.base_lr)
    return replace(recipe, optimizer=optimizer)


def paper_linear_probe(size: str, data: DataConfig, seed: int) -> LinearProbeRecipe:
    """Paper Table 10: LARS, batch 16,384, 90 epochs (50 are enough for L and H)."""
    epochs = 50 if size in ("L", "LH", "H") else 90
    return LinearProbeRecipe(data=data, seed=seed, duration=Duration.epochs(epochs))


def paper_mix(size: str) -> MixConfig:
    """Paper Table 9; one draw for each process of the released scripts: 32 images, for H 16."""
    return MixConfig(group_size=16 if size == "H" else 32)


def paper_finetune(size: str, data: DataConfig, seed: int) -> FinetuneRecipe:
    """Paper Table 9, with the settings released for norm-pixel checkpoints per size.

    B: base lr 5e-4, layer decay .65, drop path .1, 100 epochs; L: 1e-3, .75, .2, 50; H: 1e-3,
    .75, .3, 50. Other sizes take those of the nearest named one below.
    """
    is_large, is_huge = size in ("L", "LH", "H"), size == "H"
    return FinetuneRecipe(
        data=data,
        seed=seed,
        duration=Duration.epochs(50 if is_large else 100),
        optimizer=OptimizerConfig(base_lr=1e-3 if is_large else 5e-4, betas=(0.9, 0.999)),
        lr_schedule=LrScheduleConfig(warmup=Duration.epochs(5), min_lr=1e-6),
        layer_decay=0.75 if is_large else 0.65,
        drop_path=0.3 if is_huge else 0.2 if is_large else 0.1,
        precision="bf16-mixed",
        rand_augment=RandAugmentConfig(),
        mix=paper_mix(size),
        erasing=ErasingConfig(),
    )
