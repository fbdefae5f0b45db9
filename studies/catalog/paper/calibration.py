"""Question: do our probe and fine-tune give the official encoders the published numbers?

Command:   mae-study adopt mae_pretrain_vit_base.pth --name official-B     (and -L, -H)
           mae-study run paper/calibration --data IMAGENET_FOLDER --address RAY_HEAD:6379
Cost:      about 13 GPU-days by `plan` (1.4e20 FLOPs at an assumed 125 TFLOP/s).
Published: facebookresearch/mae, B/L/H: linear probe 67.8/76.0/77.2, fine-tune 83.66/85.95/86.93
           with 0.08 points between fine-tuning seeds; the paper's Tables 3 and 12.
Small:     none: it is about these encoders. small/transfer rehearses its stages.
"""

from __future__ import annotations

from mae_core.config import AdoptedRecipe
from mae_core.model import sizes
from studies.catalog.evaluations import IMAGENET, paper_evaluations
from studies.catalog.paper.stages import EVALUATION
from studies.spec.cell import Cell, Stage
from studies.spec.study import Study

SIZES = ("B", "L", "H")


def study() -> Study:
    """The three released encoders (1600 epochs, normalised pixels), probed and fine-tuned here."""
    return Study(
        name="paper/calibration",
        question="Do our probe and fine-tune give the official encoders the published numbers?",
        cells=tuple(_cell(size) for size in SIZES),
        axes=("size",),
        published=(
            "facebookresearch/mae repo, FINETUNE.md",
            "MAE paper, Table 3 / Fig 8",
            "MAE paper, Table 12",
        ),
        notes=(
            "The first study to run with ImageNet at hand: a difference of more than about 0.3 "
            "points is a difference of protocol, and every other number inherits it.",
        ),
    )


def _cell(size: str) -> Cell:
    recipe = AdoptedRecipe(data=IMAGENET, encoder=sizes.encoder(size), name=f"official-{size}")
    evaluations = paper_evaluations(size, IMAGENET, seed=0, execution=EVALUATION)
    return Cell(address=f"{size}/s0", stages=(Stage(name="pretrain", recipe=recipe), *evaluations))
