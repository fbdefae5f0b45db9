"""What the paper's studies share: its pretraining (Table 8) and its evaluations (Tables 9 to 11).

The ablations of section 4 (Table 1, Figures 5, 7 and 9) have one default: ViT-L/16, 800 epochs,
mask ratio 75 %, decoder 8x512, pixels that are *not* normalised per patch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mae_core.config import (
    ContrastiveRecipe,
    DataConfig,
    Duration,
    Execution,
    FinetuneRecipe,
    LrScheduleConfig,
    OptimizerConfig,
    PretrainRecipe,
    ScratchRecipe,
)
from mae_core.config.augmentation import RandAugmentConfig
from mae_core.model import sizes
from studies.catalog.evaluations import IMAGENET, paper_linear_probe, paper_mix, stage
from studies.spec.cell import Cell, Stage

ABLATED = "L"
"""The size of every ablation in the paper."""
GPUS = 8
EVALUATION = Execution(world_size=GPUS, loader_threads=12)
MICRO_BATCH = {"BL": 128, "L": 128, "LH": 64, "H": 64}
"""Images per 80 GB GPU and forward; 256 for smaller sizes."""


def execution(size: str) -> Execution:
    """A gang of eight GPUs, with micro-batches that fit 80 GB."""
    return Execution(world_size=GPUS, micro_batch=MICRO_BATCH.get(size, 256), loader_threads=12)


def mae(
    size: str = ABLATED,
    *,
    epochs: float = 800,
    data: DataConfig = IMAGENET,
    seed: int = 0,
    patch_size: int | None = None,
    parents: tuple[str, ...] = (),
    **changes: Any,
) -> Stage:
    """MAE pretraining with the ablations' defaults; `changes` are fields of its recipe."""
    recipe = PretrainRecipe(
        data=data,
        encoder=sizes.encoder(size, patch_size=patch_size),
        norm_pix_loss=False,
        duration=Duration.epochs(epochs),
        precision="bf16-mixed",
        seed=seed,
    )
    recipe = replace(recipe, **changes)
    return Stage(name="pretrain", recipe=recipe, parents=parents, execution=execution(size))


def moco_v3(size: str, *, epochs: float = 300, seed: int = 0) -> Stage:
    """MoCo v3 (arXiv 2104.02057) with the recipe it was published with, the same for all sizes."""
    recipe = ContrastiveRecipe(
        data=IMAGENET,
        encoder=sizes.encoder(size),
        duration=Duration.epochs(epochs),
        precision="bf16-mixed",
        seed=seed,
    )
    # Two views and a second encoder: half the micro-batch of an MAE, and that on all tokens.
    micro = max(MICRO_BATCH.get(size, 256) // 4, 16)
    return Stage(
        name="pretrain", recipe=recipe, execution=replace(execution(size), micro_batch=micro)
    )


def finetune_recipe(size: str, data: DataConfig, seed: int) -> FinetuneRecipe:
    """Paper Table 9 as printed: for encoders of pixels that are not normalised, and of others.

    (The settings released for normalised pixels are `evaluations.paper_finetune`.)
    """
    is_large = size in ("L", "LH", "H")
    return FinetuneRecipe(
        data=data,
        seed=seed,
        duration=Duration.epochs(50 if is_large else 100),
        optimizer=OptimizerConfig(base_lr=1e-3, betas=(0.9, 0.999)),
        lr_schedule=LrScheduleConfig(warmup=Duration.epochs(5), min_lr=1e-6),
        layer_decay=0.75,
        drop_path=0.2 if size == "H" else 0.1,
        precision="bf16-mixed",
        rand_augment=RandAugmentConfig(),
        mix=paper_mix(size),
    )


def evaluations(size: str = ABLATED, *, seed: int = 0) -> tuple[Stage, Stage]:
    """Linear probe and fine-tune, the paper's two columns."""
    probe = paper_linear_probe(size, IMAGENET, seed)
    tuned = finetune_recipe(size, IMAGENET, seed)
    return stage("linear_probe", probe, EVALUATION), stage("finetune", tuned, EVALUATION)


def ablation(address: str, *, seed: int = 0, **changes: Any) -> Cell:
    """One cell of an ablation: the default with `changes`, probed and fine-tuned."""
    pretrain = mae(seed=seed, **changes)
    return Cell(address=f"{address}/s{seed}", stages=(pretrain, *evaluations(seed=seed)))


def scratch(size: str, *, seed: int = 0) -> Cell:
    """Supervised training from scratch with the paper's stronger recipe (Table 11)."""
    recipe = ScratchRecipe(
        data=IMAGENET,
        encoder=sizes.encoder(size),
        seed=seed,
        duration=Duration.epochs(300 if size == "B" else 200),
        drop_path=0.1 if size == "B" else 0.2,
        precision="bf16-mixed",
        rand_augment=RandAugmentConfig(),
        mix=paper_mix(size),
        ema_decay=0.9999,
    )
    run = Stage(name="scratch", recipe=recipe, execution=execution(size))
    return Cell(address=f"scratch/{size}/s{seed}", stages=(run,))
