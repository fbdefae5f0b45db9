"""Question: how much of ViT-H's gain is its smaller patch?

Command:   mae-study run paper/control_patch --data IMAGENET_FOLDER --address RAY_HEAD:6379
Cost:      about 96 GPU-days by `plan` (1.0e21 FLOPs at an assumed 125 TFLOP/s).
Published: H/14 and L/16 only (86.9 and 85.9 fine-tuned, 1600 epochs).
Small:     small/images has sizes at one patch size.
"""

from __future__ import annotations

from studies.catalog.evaluations import IMAGENET, paper_evaluations
from studies.catalog.paper.stages import EVALUATION, mae
from studies.spec.cell import Cell
from studies.spec.study import Study

SHAPES = (("L", 16), ("L", 14), ("H", 16), ("H", 14))
EPOCHS = 800


def study() -> Study:
    """L and H with patches of 16 and of 14 pixels: size and patch apart."""
    return Study(
        name="paper/control_patch",
        question="How much of ViT-H's gain is its smaller patch?",
        cells=tuple(_cell(*shape) for shape in SHAPES),
        axes=("patch_size", "size"),
        published=("MAE paper, Table 3 / Fig 8",),
    )


def _cell(size: str, patch: int) -> Cell:
    pretrain = mae(size, epochs=EPOCHS, norm_pix_loss=True, patch_size=patch)
    evaluations = paper_evaluations(size, IMAGENET, seed=0, execution=EVALUATION)
    return Cell(address=f"{size}p{patch}/s0", stages=(pretrain, *evaluations[1:]))
