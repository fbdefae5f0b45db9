"""Question: does the best learning rate of pretraining depend on the size?

Command:   mae-study run small/lr_by_size                  (scikit-learn's digits)
           mae-study run small/lr_by_size --data FOLDER    (a few thousand small images)
Cost:      by `plan` about 3.2 min on 2 cores with digits, 12 with 4,000 images.
Published: one base rate for all sizes, see paper/lr_by_size.
Larger:    paper/lr_by_size
"""

from __future__ import annotations

from mae_core.config import Duration, EncoderConfig, OptimizerConfig
from studies.catalog.small.bench import Bench, bench
from studies.spec.cell import Cell
from studies.spec.study import Study

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the bench's base rate."""


def study(data: str | None = None) -> Study:
    """Two sizes × five rates at every seed, judged on dev: test is never looked at."""
    on = bench(data)
    return on.study(
        "lr_by_size",
        "Does the best learning rate of pretraining depend on the size?",
        tuple(
            _cell(on, seed, size, factor * on.base_lr)
            for seed in on.seeds
            for size in on.encoders
            for factor in FACTORS
        ),
        axes=("base_lr",),
    )


def _cell(on: Bench, seed: int, size: EncoderConfig, base_lr: float) -> Cell:
    pretrain = on.pretrain(
        seed,
        encoder=size,
        optimizer=OptimizerConfig(base_lr=base_lr),
        duration=Duration.epochs(on.epochs / 2),
    )
    probe = on.linear_probe(seed, eval_split="dev")
    return Cell(address=f"{size.name}/lr{base_lr:g}/s{seed}", stages=(pretrain, probe))
