"""Question: how much of the gain with size is a fine-tune recipe chosen for each size?

Command:   mae-study run paper/control_finetune --data IMAGENET_FOLDER --address RAY_HEAD:6379
Cost:      about 105 GPU-days by `plan` (1.1e21 FLOPs at an assumed 125 TFLOP/s).
Published: Table 3 with recipes per size: 83.6/85.9/86.9 for B/L/H.
Small:     small/images has one recipe for its sizes.
"""

from __future__ import annotations

from studies.catalog.evaluations import IMAGENET, paper_finetune, stage
from studies.catalog.paper.stages import EVALUATION, mae
from studies.spec.cell import Cell
from studies.spec.study import Study

SIZES = ("B", "L", "H")
EPOCHS = 1600
SHARED = "L"
"""The size whose fine-tune recipe serves all."""


def study() -> Study:
    """B, L and H, each fine-tuned with its own recipe and with that of L."""
    return Study(
        name="paper/control_finetune",
        question="How much of the gain with size is a fine-tune recipe chosen for each size?",
        cells=tuple(_cell(size) for size in SIZES),
        axes=("size",),
        published=("MAE paper, Table 3 / Fig 8",),
        notes=("The pretrainings are those of paper/comparison, and are shared with it.",),
    )


def _cell(size: str) -> Cell:
    own = stage("finetune", paper_finetune(size, IMAGENET, 0), EVALUATION)
    shared = stage("finetune_as_L", paper_finetune(SHARED, IMAGENET, 0), EVALUATION)
    pretrain = mae(size, epochs=EPOCHS, norm_pix_loss=True)
    return Cell(address=f"{size}/s0", stages=(pretrain, own, shared))
