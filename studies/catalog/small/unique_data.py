"""Question: how many different images are needed, at the same number of images seen?

Command:   mae-study run small/unique_data                  (scikit-learn's digits)
           mae-study run small/unique_data --data FOLDER    (a few thousand small images)
Cost:      by `plan` about 3.3 min on 2 cores with digits, 15 with 4,000 images.
Published: no such table in the paper, see paper/unique_data.
Larger:    paper/unique_data
"""

from __future__ import annotations

from dataclasses import replace

from mae_core.config import Duration
from studies.catalog.small.bench import Bench, bench
from studies.spec.cell import Cell
from studies.spec.study import Study

FRACTIONS = (0.1, 0.25, 0.5, 1.0)


def study(data: str | None = None) -> Study:
    """Four nested class-balanced subsets at every seed; all see the same number of images."""
    on = bench(data)
    return on.study(
        "unique_data",
        "How many different images are needed, at the same number of images seen?",
        tuple(_cell(on, seed, fraction) for seed in on.seeds for fraction in FRACTIONS),
        axes=("train_fraction",),
        notes=("Pretraining sees the subset; probe and fine-tune draw from all labels.",),
    )


def _cell(on: Bench, seed: int, fraction: float) -> Cell:
    pretrain = on.pretrain(
        seed,
        data=replace(on.data(seed), train_fraction=fraction),
        duration=Duration.epochs(on.epochs / fraction),
        global_batch=64,
    )
    return on.cell(f"f{100 * fraction:g}/s{seed}", seed, pretrain)
