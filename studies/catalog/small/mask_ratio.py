"""Question: how much of an image should be hidden?

Command:   mae-study run small/mask_ratio                  (scikit-learn's digits)
           mae-study run small/mask_ratio --data FOLDER    (a few thousand small images)
Cost:      by `plan` about 2.8 min on 2 cores with digits, 19 with 4,000 images.
Published: Figure 5, see paper/mask_ratio.
Larger:    paper/mask_ratio
"""

from __future__ import annotations

from studies.catalog.small.bench import bench
from studies.spec.study import Study

RATIOS = (0.25, 0.5, 0.75, 0.875)


def study(data: str | None = None) -> Study:
    """Four mask ratios at every seed."""
    on = bench(data)
    return on.study(
        "mask_ratio",
        "How much of an image should be hidden?",
        tuple(c for ratio in RATIOS for c in on.cells(f"m{100 * ratio:g}", mask_ratio=ratio)),
        axes=("mask_ratio",),
        published=("MAE paper, Fig 5",),
    )
