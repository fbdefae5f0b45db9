"""Question: how many blocks must be fine-tuned, after MAE and after contrastive training?

Command:   mae-study run paper/partial_finetune --data IMAGENET_FOLDER --address RAY_HEAD:6379
Cost:      about 168 GPU-days by `plan` (1.8e21 FLOPs at an assumed 125 TFLOP/s).
Published: Figure 9 (ViT-L), at 0/0.5/1/2/4/6/12/18/24 blocks: MAE
           73.5/79.1/81.0/83.1/84.2/84.4/84.6/84.7/84.9, MoCo v3
           77.6/-/79.9/80.8/81.6/81.9/83.2/83.8/84.1.
Small:     small/partial_finetune
"""

from __future__ import annotations

from dataclasses import fields, replace

from mae_core.config import Duration, FinetuneRecipe, PartialFinetuneRecipe
from studies.catalog.evaluations import IMAGENET, best_on_dev, stage
from studies.catalog.paper.stages import (
    ABLATED,
    EVALUATION,
    evaluations,
    finetune_recipe,
    mae,
    moco_v3,
)
from studies.spec.cell import Cell, Stage
from studies.spec.study import Study

BLOCKS = (0.5, 1, 2, 4, 6, 12, 18)
"""Nothing is the linear probe, everything the fine-tune."""
EPOCHS = (50, 100, 200)
"""The best is kept for each number of blocks: fewer blocks need longer."""
WITH_DEV = replace(IMAGENET, dev_fraction=0.02)


def study() -> Study:
    """ViT-L after MAE and after MoCo v3: nine numbers of blocks, epochs chosen on dev."""
    return Study(
        name="paper/partial_finetune",
        question="How many blocks must be fine-tuned, after MAE and after contrastive training?",
        cells=(_cell("mae", mae()), _cell("moco", moco_v3(ABLATED))),
        axes=("tuned_blocks",),
        published=("MAE paper, Fig 9",),
        notes=(
            "Between the two ends 2 % of the training images are held out as dev, on which the "
            "number of epochs is chosen; the whole search is kept.",
        ),
    )


def _cell(address: str, pretrain: Stage) -> Cell:
    probe, tuned = evaluations()
    between = [s for num_blocks in BLOCKS for s in _searched(num_blocks)]
    return Cell(address=f"{address}/s0", stages=(pretrain, probe, *between, tuned))


def _searched(num_blocks: float) -> tuple[Stage, ...]:
    """Candidates of every duration, and the choice among them."""
    what = f"fine-tune of the last {num_blocks:g} blocks"
    candidates = tuple(
        stage(f"tune{num_blocks:g}_e{epochs}", _candidate(num_blocks, epochs), EVALUATION)
        for epochs in EPOCHS
    )
    return best_on_dev(f"tune{num_blocks:g}", what, candidates)


def _candidate(num_blocks: float, epochs: int) -> PartialFinetuneRecipe:
    base = finetune_recipe(ABLATED, WITH_DEV, 0)
    settings = {f.name: getattr(base, f.name) for f in fields(FinetuneRecipe)}
    recipe = PartialFinetuneRecipe(**settings, num_blocks=num_blocks)
    return replace(recipe, duration=Duration.epochs(epochs), eval_split="dev")
