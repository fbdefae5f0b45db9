"""Question: how well do the encoders transfer to other classification sets?

Command:   mae-study run paper/transfer --address RAY_HEAD:6379 \\
               --set pretrain.data.path=IMAGENET --set iNat2018.data.path=INAT18 ... (each set's)
Cost:      about 208 GPU-days by `plan` (2.3e21 FLOPs at an assumed 125 TFLOP/s).
Published: Table 6, B/L/H/H at 448 pixels: iNat2017 70.5/75.7/79.3/83.4, iNat2018
           75.4/80.1/83.0/86.8, iNat2019 80.5/83.4/85.7/88.3, Places205 63.9/65.8/65.9/66.8,
           Places365 57.9/59.4/59.8/60.3.
Small:     small/transfer
"""

from __future__ import annotations

from dataclasses import replace

from mae_core.config import DataConfig
from studies.catalog.evaluations import IMAGENET, best_on_dev, paper_finetune, scaled_lr, stage
from studies.catalog.paper.stages import EVALUATION, mae
from studies.spec.cell import Cell, Stage
from studies.spec.study import Study

SIZES = ("B", "L", "H")
EPOCHS = 1600
LR_SHARES = (0.5, 1.0, 2.0)
"""Of ImageNet's learning rate for the size."""
SETS = {
    "iNat2017": (579_184, 5_089),
    "iNat2018": (437_513, 8_142),
    "iNat2019": (265_213, 1_010),
    "Places205": (2_448_873, 205),
    "Places365": (1_803_460, 365),
}
"""Training images and classes; any set of Parquet can be put in an entry's place."""


def study() -> Study:
    """B, L and H, fine-tuned on each of five sets; the pretrainings are paper/comparison's."""
    return Study(
        name="paper/transfer",
        question="How well do the encoders transfer to other classification sets?",
        cells=tuple(_cell(size) for size in SIZES),
        axes=("dataset", "size"),
        published=("MAE paper, Table 6",),
        notes=(
            "Each set has a search of its own, over three learning rates, judged on 2 % of its "
            "training images; the paper tunes the number of epochs for each set too, which is "
            "ImageNet's here unless a setting says otherwise.",
        ),
    )


def _cell(size: str) -> Cell:
    pretrain = mae(size, epochs=EPOCHS, norm_pix_loss=True)
    tuned = [stage for name in SETS for stage in _searched(size, name)]
    return Cell(address=f"{size}/s0", stages=(pretrain, *tuned))


def _searched(size: str, name: str) -> tuple[Stage, ...]:
    """Fine-tunes at several rates, and the best of them on 2 % of the training images."""
    images, classes = SETS[name]
    data: DataConfig = replace(
        IMAGENET,
        path=name.lower(),
        dev_fraction=0.02,
        expected_images=images,
        expected_classes=classes,
    )
    recipe = replace(paper_finetune(size, data, 0), eval_split="dev")
    candidates = [
        stage(f"{name}_lr{share:g}x", scaled_lr(recipe, share), EVALUATION) for share in LR_SHARES
    ]
    return best_on_dev(name, f"fine-tune ({recipe.duration})", candidates)
