"""Question: how well do the encoders transfer to another set of images?

Command:   mae-study run small/transfer --data FOLDER --set elsewhere.data.path=OTHER_FOLDER
           --set from_scratch.data.path=OTHER_FOLDER
Cost:      about 7 minutes on 2 cores by `plan`, for 4,000 images.
Published: Table 6, see paper/transfer.
Larger:    paper/transfer
"""

from __future__ import annotations

from dataclasses import replace

from mae_core.config import FinetuneRecipe, ScratchRecipe
from studies.catalog.evaluations import best_on_dev, scaled_lr
from studies.catalog.small.bench import EXECUTION, Bench, bench
from studies.spec.cell import Cell, Stage
from studies.spec.study import Study

ELSEWHERE = "other-images"
LR_SHARES = (0.3, 1.0)


def study(data: str | None = None) -> Study:
    """MAE on one folder, fine-tuned on another, beside training from scratch there."""
    on = replace(bench(data or "images"), suffix="" if data is None else "-images")
    return on.study(
        "transfer",
        "How well do the encoders transfer to another set of images?",
        tuple(cell for seed in on.seeds for cell in _cells(on, seed)),
        axes=("objective",),
        notes=(
            "Both are trained on the same few labels of the other set, each at the learning rate "
            "that is best on its dev images.",
        ),
    )


def _cells(on: Bench, seed: int) -> tuple[Cell, ...]:
    settings = on.finetune_settings(seed)
    settings["data"] = replace(on.data(seed), path=ELSEWHERE)
    pretrain = on.pretrain(seed, norm_pix_loss=True)
    scratch = ScratchRecipe(encoder=on.encoder, **settings)
    tuned = _searched("elsewhere", FinetuneRecipe(**settings), (pretrain.name,))
    return (
        Cell(address=f"mae/s{seed}", stages=(pretrain, *tuned)),
        Cell(address=f"scratch/s{seed}", stages=_searched("from_scratch", scratch, ())),
    )


def _searched(name: str, recipe: FinetuneRecipe, parents: tuple[str, ...]) -> tuple[Stage, ...]:
    """The recipe at several rates on dev, and the best of them."""
    candidates = [
        Stage(
            name=f"{name}_lr{share:g}x",
            recipe=replace(scaled_lr(recipe, share), eval_split="dev"),
            parents=parents,
            execution=EXECUTION,
        )
        for share in LR_SHARES
    ]
    return best_on_dev(name, "fine-tune", candidates)
