"""Question: which patches should be hidden: random ones, blocks, or a grid?

Command:   mae-study run small/mask_sampling                  (scikit-learn's digits)
           mae-study run small/mask_sampling --data FOLDER    (a few thousand small images)
Cost:      by `plan` about 2.6 min on 2 cores with digits, 16 with 4,000 images.
Published: Table 1f, see paper/mask_sampling.
Larger:    paper/mask_sampling
"""

from __future__ import annotations

from mae_core.config import MaskConfig
from studies.catalog.paper.mask_sampling import VARIANTS
from studies.catalog.small.bench import bench
from studies.spec.study import Study


def study(data: str | None = None) -> Study:
    """Random, block-wise and grid-wise masks at every seed."""
    on = bench(data)
    return on.study(
        "mask_sampling",
        "Which patches should be hidden: random ones, blocks, or a grid?",
        tuple(
            cell
            for name, ratio in VARIANTS
            for cell in on.cells(
                f"{name}{100 * ratio:g}", mask=MaskConfig(sampling=name), mask_ratio=ratio
            )
        ),
        axes=("mask_sampling+mask_ratio",),
        published=("MAE paper, Table 1f",),
    )
