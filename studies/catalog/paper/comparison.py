"""Question: does MAE beat contrastive and supervised training, and more so with size?

Command:   mae-study run paper/comparison --data IMAGENET_FOLDER --address RAY_HEAD:6379
Cost:      about 225 GPU-days by `plan` (2.4e21 FLOPs at an assumed 125 TFLOP/s).
Published: Table 3 and Figure 8, fine-tuned B/L/H: from scratch 82.3/82.6/83.1, MoCo v3 83.2/84.1,
           MAE 83.6/85.9/86.9 and 87.8 at 448 pixels. Table 12, MAE probed: 68.0/75.8/76.6.
Small:     small/comparison
"""

from __future__ import annotations

from dataclasses import replace

from studies.catalog.evaluations import (
    IMAGENET,
    paper_finetune,
    paper_linear_probe,
    stage,
)
from studies.catalog.paper.stages import EVALUATION, evaluations, mae, moco_v3, scratch
from studies.spec.cell import Cell, Stage
from studies.spec.study import Study

SIZES = ("B", "L", "H")
CONTRASTIVE = ("B", "L")
EPOCHS = 1600
LARGE_PIXELS = 448


def study() -> Study:
    """Three objectives over three sizes, fine-tuned and probed; H also at 448 pixels."""
    return Study(
        name="paper/comparison",
        question="Does MAE beat contrastive and supervised training, and more so with size?",
        cells=(
            *(scratch(size) for size in SIZES),
            *(_contrastive(size) for size in CONTRASTIVE),
            *(_mae(size) for size in SIZES),
        ),
        axes=("size",),
        published=("MAE paper, Table 3 / Fig 8", "MAE paper, Table 12"),
        notes=(
            "Durations differ on purpose, as in the paper: 1600 epochs of MAE cost less time than "
            "300 of MoCo v3 on the same hardware (31 and 36 hours for ViT-L).",
            "H has patches of 14 pixels, B and L of 16: paper/control_patch separates the two.",
        ),
    )


def _mae(size: str) -> Cell:
    stages: tuple[Stage, ...] = (
        mae(size, epochs=EPOCHS, norm_pix_loss=True),
        stage("linear_probe", paper_linear_probe(size, IMAGENET, 0), EVALUATION),
        stage("finetune", paper_finetune(size, IMAGENET, 0), EVALUATION),
    )
    if size == "H":
        stages = (*stages, finetune_448(size))
    return Cell(address=f"mae/{size}/s0", stages=stages)


def finetune_448(size: str) -> Stage:
    """The fine-tune at 448 pixels: positions are interpolated bicubically (paper A.1)."""
    recipe = paper_finetune(size, replace(IMAGENET, image_size=LARGE_PIXELS), 0)
    return stage("finetune_448", recipe, replace(EVALUATION, micro_batch=8))


def _contrastive(size: str) -> Cell:
    return Cell(address=f"moco/{size}/s0", stages=(moco_v3(size), *evaluations(size)))
