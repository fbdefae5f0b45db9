"""Question: how many different images does a size need, at the same number seen?

Command:   mae-study run paper/unique_data --data IMAGENET_FOLDER --address RAY_HEAD:6379
Cost:      about 92 GPU-days by `plan` (9.9e20 FLOPs at an assumed 125 TFLOP/s).
Published: no such table in the paper. Xie et al. (arXiv 2206.04664): large models over-fit 10 % of
           ImageNet and need more of it the longer they train.
Small:     small/unique_data
"""

from __future__ import annotations

from dataclasses import replace

from mae_core.config import Duration
from studies.catalog.evaluations import (
    IMAGENET,
    paper_finetune,
    paper_linear_probe,
    stage,
)
from studies.catalog.paper.stages import EVALUATION, mae
from studies.spec.cell import Cell
from studies.spec.study import Study

SIZES = ("S", "B", "L")
FRACTIONS = (0.01, 0.1, 0.5, 1.0)
PASSES = (100, 400)
"""Images seen, in passes over the whole set."""
NUM_IMAGES = 1_281_167


def study() -> Study:
    """Three sizes × nested class-balanced subsets × two numbers of images seen."""
    return Study(
        name="paper/unique_data",
        question="How many different images does a size need, at the same number seen?",
        cells=tuple(
            _cell(size, fraction, passes)
            for size in SIZES
            for fraction in FRACTIONS
            for passes in PASSES
        ),
        axes=("train_fraction", "pretrain.duration"),
        notes=(
            "Subsets are nested and class-balanced; probe and fine-tune see all labels always.",
            "Equal compute: 1 % seen for 400 passes of the whole set is 40,000 epochs of itself.",
        ),
    )


def _cell(size: str, fraction: float, passes: int) -> Cell:
    pretrain = mae(
        size,
        data=replace(IMAGENET, train_fraction=fraction),
        duration=Duration.images(passes * NUM_IMAGES),
        norm_pix_loss=True,
    )
    probe = stage("linear_probe", paper_linear_probe(size, IMAGENET, 0), EVALUATION)
    tuned = stage("finetune", paper_finetune(size, IMAGENET, 0), EVALUATION)
    address = f"{size}/f{100 * fraction:g}/p{passes}/s0"
    return Cell(address=address, stages=(pretrain, probe, tuned))
