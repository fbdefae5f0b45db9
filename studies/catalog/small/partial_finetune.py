"""Question: how many blocks must be fine-tuned, after MAE and after contrastive training?

Command:   mae-study run small/partial_finetune                  (scikit-learn's digits)
           mae-study run small/partial_finetune --data FOLDER    (a few thousand small images)
Cost:      by `plan` about 1.8 min on 2 cores with digits, 22 with 4,000 images.
Published: Figure 9, see paper/partial_finetune.
Larger:    paper/partial_finetune
"""

from __future__ import annotations

from mae_core.config import Duration, PartialFinetuneRecipe
from studies.catalog.evaluations import best_on_dev
from studies.catalog.small.bench import EXECUTION, Bench, bench
from studies.catalog.small.comparison import contrastive
from studies.spec.cell import Cell, Stage
from studies.spec.study import Study

EPOCHS = (0.5, 1)
"""Of the bench's fine-tune, a search on dev for each number of blocks."""


def study(data: str | None = None) -> Study:
    """Two objectives × nothing to everything fine-tuned at every seed, on the same few labels."""
    on = bench(data)
    return on.study(
        "partial_finetune",
        "How many blocks must be fine-tuned, after MAE and after contrastive training?",
        tuple(
            Cell(
                address=f"{name}/s{seed}",
                stages=(pretrain, *_tuned(on, seed)),
            )
            for seed in on.seeds
            for name, pretrain in (
                ("mae", on.pretrain(seed)),
                ("moco", contrastive(on, seed, on.encoder)),
            )
        ),
        axes=("tuned_blocks",),
        published=("MAE paper, Fig 9",),
        notes=(
            "Every point is trained on few labels; between the ends, epochs are chosen on dev.",
        ),
    )


def _tuned(on: Bench, seed: int) -> tuple[Stage, ...]:
    depth = on.encoder.depth
    few = {"num_labels": on.few_labels, "label_seed": seed}
    between = [stage for n in (0.5, *range(1, depth)) for stage in _searched(on, seed, n)]
    return (on.linear_probe(seed, global_batch=50, **few), *between, on.finetune(seed))


def _searched(on: Bench, seed: int, num_blocks: float) -> tuple[Stage, ...]:
    settings = on.finetune_settings(seed) | {"eval_split": "dev"}
    candidates = tuple(
        Stage(
            name=f"tune{num_blocks:g}_{share:g}",
            recipe=PartialFinetuneRecipe(
                **settings | {"duration": Duration.epochs(share * on.finetune_epochs)},
                num_blocks=num_blocks,
            ),
            parents=("pretrain",),
            execution=EXECUTION,
        )
        for share in EPOCHS
    )
    what = f"fine-tune of the last {num_blocks:g} blocks"
    return best_on_dev(f"tune{num_blocks:g}", what, candidates)
