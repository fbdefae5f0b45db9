"""Question: how well do fine-tuned models stand corruptions they were not tuned for?

Command:   mae-study run small/robustness                  (scikit-learn's digits)
           mae-study run small/robustness --data FOLDER    (a few thousand small images)
Cost:      by `plan` about 1 min on 2 cores with digits, 4.7 with 4,000 images.
Published: Table 13, see paper/robustness.
Larger:    paper/robustness
"""

from __future__ import annotations

from mae_core.config import CorruptionRecipe, ScratchRecipe
from studies.catalog.small.bench import EXECUTION, Bench, bench
from studies.spec.cell import Cell, Stage
from studies.spec.study import Study


def study(data: str | None = None) -> Study:
    """MAE, then fine-tuned, and from scratch at every seed: 15 corruptions at five severities."""
    on = bench(data)
    return on.study(
        "robustness",
        "How well do fine-tuned models stand corruptions they were not tuned for?",
        tuple(cell for seed in on.seeds for cell in _cells(on, seed)),
        axes=("severity", "corruption"),
        notes=(
            "Corruption strengths are scaled to the size of the images; without a baseline the "
            "plain accuracy is drawn, not a mean corruption error.",
        ),
    )


def _cells(on: Bench, seed: int) -> tuple[Cell, ...]:
    scratch = ScratchRecipe(encoder=on.encoder, **on.finetune_settings(seed))
    corruptions = CorruptionRecipe(data=on.data(seed), seed=seed)
    return (
        Cell(
            address=f"scratch/s{seed}",
            stages=(
                Stage(name="scratch", recipe=scratch, execution=EXECUTION),
                Stage(name="corruptions", recipe=corruptions, parents=("scratch",)),
            ),
        ),
        Cell(
            address=f"mae/s{seed}",
            stages=(
                on.pretrain(seed, norm_pix_loss=True),
                on.finetune(seed),
                Stage(name="corruptions", recipe=corruptions, parents=("finetune",)),
            ),
        ),
    )
