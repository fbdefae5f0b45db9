"""Question: what should be predicted: pixels, normalised pixels, components or tokens?

Command:   mae-study run small/target                  (scikit-learn's digits)
           mae-study run small/target --data FOLDER    (a few thousand small images)
Cost:      by `plan` about 2.7 min on 2 cores with digits, 15 with 4,000 images.
Published: Table 1d, see paper/target.
Larger:    paper/target
"""

from __future__ import annotations

from mae_core.config import BasisRecipe, Duration, LrScheduleConfig, TokenizerRecipe
from studies.catalog.small.bench import EXECUTION, Bench, bench
from studies.spec.cell import Cell, Stage
from studies.spec.study import Study

VOCABULARY = 64
SHARE = 3
"""One in so many of a patch's values is kept as a principal component, as 96 of 768 is one in 8."""


def study(data: str | None = None) -> Study:
    """Four targets at every seed; basis and tokenizer are stages of their own."""
    on = bench(data)
    return on.study(
        "target",
        "What should be predicted: pixels, normalised pixels, components or tokens?",
        tuple(cell for seed in on.seeds for cell in _cells(on, seed)),
        axes=("target",),
        published=("MAE paper, Table 1d",),
        notes=("Reconstruction losses of different targets are not comparable.",),
    )


def _cells(on: Bench, seed: int) -> tuple[Cell, ...]:
    data, patch = on.data(seed), on.encoder.patch_size
    kept = max(patch**2 * data.num_channels // SHARE, 2)
    basis = BasisRecipe(data=data, seed=seed, patch_size=patch, num_components=kept)
    tokenizer = TokenizerRecipe(
        data=data,
        seed=seed,
        patch_size=patch,
        vocabulary=VOCABULARY,
        width=16,
        augmentation=on.augmentation,
        duration=Duration.epochs(on.epochs / 2),
        global_batch=128,
        lr_schedule=LrScheduleConfig(warmup=Duration.epochs(on.epochs / 20)),
    )
    maker = {
        "pca": Stage(name="basis", recipe=basis),
        "tokens": Stage(name="tokenizer", recipe=tokenizer, execution=EXECUTION),
    }
    width = {"pca": kept, "tokens": VOCABULARY}
    made = [
        on.cell(
            f"{target}/s{seed}",
            seed,
            stage,
            on.pretrain(seed, target=target, target_dim=width[target], parents=(stage.name,)),
        )
        for target, stage in maker.items()
    ]
    return (
        on.cell(f"pixels/s{seed}", seed, on.pretrain(seed)),
        on.cell(f"normalised/s{seed}", seed, on.pretrain(seed, norm_pix_loss=True)),
        *made,
    )
