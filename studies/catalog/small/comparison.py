"""Question: does MAE beat contrastive and supervised training, and more so with size?

Command:   mae-study run small/comparison                  (scikit-learn's digits)
           mae-study run small/comparison --data FOLDER    (a few thousand small images)
Cost:      by `plan` about 2.6 min on 2 cores with digits, 22 with 4,000 images.
Published: Table 3 and Figure 8, see paper/comparison.
Larger:    paper/comparison
"""

from __future__ import annotations

from mae_core.config import (
    AugmentationConfig,
    ContrastiveRecipe,
    Duration,
    EncoderConfig,
    LrScheduleConfig,
    OptimizerConfig,
    ScratchRecipe,
)
from studies.catalog.small.bench import EXECUTION, Bench, bench
from studies.spec.cell import Cell, Stage
from studies.spec.study import Study


def study(data: str | None = None) -> Study:
    """Three objectives × two sizes at every seed, on the same few labels."""
    on = bench(data)
    return on.study(
        "comparison",
        "Does MAE beat contrastive and supervised training, and more so with size?",
        tuple(cell for seed in on.seeds for size in on.encoders for cell in _cells(on, seed, size)),
        axes=("size",),
        published=("MAE paper, Table 3 / Fig 8", "MAE paper, Table 12"),
        notes=(
            "All three see the same labels, as often. MoCo v3 sees the images half as often as "
            "MAE, at a higher cost each time.",
        ),
    )


def _cells(on: Bench, seed: int, size: EncoderConfig) -> tuple[Cell, ...]:
    where = f"{size.name}/s{seed}"
    scratch = ScratchRecipe(encoder=size, **on.finetune_settings(seed))
    return (
        Cell(
            address=f"scratch/{where}",
            stages=(Stage(name="scratch", recipe=scratch, execution=EXECUTION),),
        ),
        on.cell(f"moco/{where}", seed, contrastive(on, seed, size)),
        on.cell(f"mae/{where}", seed, on.pretrain(seed, encoder=size, norm_pix_loss=True)),
    )


def contrastive(on: Bench, seed: int, size: EncoderConfig) -> Stage:
    """MoCo v3 with heads that fit the bench, on half as many epochs as MAE."""
    recipe = ContrastiveRecipe(
        data=on.data(seed),
        encoder=size,
        augmentation=AugmentationConfig(crop_scale=(0.3, 1.0), flip=on.augmentation.flip),
        head_width=128,
        output_width=64,
        duration=Duration.epochs(on.epochs / 2),
        global_batch=128,
        optimizer=OptimizerConfig(base_lr=on.base_lr, betas=(0.9, 0.999), weight_decay=0.1),
        lr_schedule=LrScheduleConfig(warmup=Duration.epochs(on.epochs / 20)),
        seed=seed,
    )
    return Stage(name="pretrain", recipe=recipe, execution=EXECUTION)
