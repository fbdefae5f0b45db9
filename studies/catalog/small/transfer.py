"""Question: how well do the encoders transfer to another set of images?

Command:   mae-study run small/transfer --data FOLDER --set elsewhere.data.path=OTHER_FOLDER
           --set scratch.data.path=OTHER_FOLDER
Cost:      about 4.7 minutes on 2 cores by `plan`, for 4,000 images.
Published: Table 6, see paper/transfer.
Larger:    paper/transfer
"""

from __future__ import annotations

from dataclasses import replace

from mae_core.config import FinetuneRecipe, ScratchRecipe
from studies.catalog.small.bench import EXECUTION, Bench, bench
from studies.spec import Cell, Stage, Study

ELSEWHERE = "other-images"


def study(data: str | None = None) -> Study:
    """MAE on one folder, fine-tuned on another, beside training from scratch there."""
    on = replace(bench(data or "images"), suffix="" if data is None else "-images")
    return on.study(
        "transfer",
        "How well do the encoders transfer to another set of images?",
        tuple(cell for seed in on.seeds for cell in _cells(on, seed)),
        axes=("objective",),
        notes=("Both are trained on the same few labels of the other set.",),
    )


def _cells(on: Bench, seed: int) -> tuple[Cell, ...]:
    settings = on.finetune_settings(seed)
    settings["data"] = replace(on.data(seed), path=ELSEWHERE)
    tuned = Stage(
        name="elsewhere",
        recipe=FinetuneRecipe(**settings),
        parents=("pretrain",),
        execution=EXECUTION,
    )
    scratch = ScratchRecipe(encoder=on.encoder, **settings)
    return (
        Cell(address=f"mae/s{seed}", stages=(on.pretrain(seed, norm_pix_loss=True), tuned)),
        Cell(
            address=f"scratch/s{seed}",
            stages=(Stage(name="scratch", recipe=scratch, execution=EXECUTION),),
        ),
    )
