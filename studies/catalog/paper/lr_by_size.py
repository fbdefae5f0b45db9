"""Question: does the best learning rate of pretraining depend on the size?

Command:   mae-study run paper/lr_by_size --data IMAGENET_FOLDER --address RAY_HEAD:6379
Cost:      about 31 GPU-days by `plan` (3.4e20 FLOPs at an assumed 125 TFLOP/s).
Published: the paper uses one base rate of 1.5e-4 for B, L and H.
Small:     small/lr_by_size
"""

from __future__ import annotations

from dataclasses import replace

from mae_core.config import Duration, LrScheduleConfig, OptimizerConfig
from studies.catalog.evaluations import IMAGENET, paper_linear_probe, stage
from studies.catalog.paper.stages import EVALUATION, mae
from studies.spec.cell import Cell
from studies.spec.study import Study

SIZES = ("Ti", "S", "B", "L", "H")
BASE_LRS = (3.75e-5, 7.5e-5, 1.5e-4, 3e-4, 6e-4)
EPOCHS = 50
DATA = replace(IMAGENET, dev_fraction=0.02)


def study() -> Study:
    """Five sizes × five rates on a proxy of 50 epochs, judged on dev: test is never looked at."""
    return Study(
        name="paper/lr_by_size",
        question="Does the best learning rate of pretraining depend on the size?",
        cells=tuple(_cell(size, lr) for size in SIZES for lr in BASE_LRS),
        axes=("base_lr",),
        notes=(
            "A proxy: the best rate of 50 epochs need not be that of 1600. A size whose best rate "
            "is at an end of the range has not been bracketed.",
        ),
    )


def _cell(size: str, base_lr: float) -> Cell:
    pretrain = mae(
        size,
        epochs=EPOCHS,
        data=DATA,
        norm_pix_loss=True,
        optimizer=OptimizerConfig(base_lr=base_lr),
        lr_schedule=LrScheduleConfig(warmup=Duration.epochs(5)),
    )
    probe = replace(paper_linear_probe(size, DATA, 0), eval_split="dev")
    return Cell(
        address=f"{size}/lr{base_lr:g}/s0",
        stages=(pretrain, stage("linear_probe", probe, EVALUATION)),
    )
