"""Question: which augmentation does masked pretraining need?

Command:   mae-study run small/augmentation                  (scikit-learn's digits)
           mae-study run small/augmentation --data FOLDER    (a few thousand small images)
Cost:      by `plan` about 2.5 min on 2 cores with digits, 15 with 4,000 images.
Published: Table 1e, see paper/augmentation.
Larger:    paper/augmentation
"""

from __future__ import annotations

from dataclasses import replace

from studies.catalog.paper.augmentation import AUGMENTATIONS
from studies.catalog.small.bench import bench
from studies.spec.study import Study


def study(data: str | None = None) -> Study:
    """Four augmentations of pretraining at every seed; digits are never flipped."""
    on = bench(data)
    return on.study(
        "augmentation",
        "Which augmentation does masked pretraining need?",
        tuple(
            cell
            for name, views in AUGMENTATIONS.items()
            for cell in on.cells(
                name, augmentation=replace(views, flip=views.flip and on.augmentation.flip)
            )
        ),
        axes=("augmentation",),
        published=("MAE paper, Table 1e",),
    )
