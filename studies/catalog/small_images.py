"""Question: does MAE pretraining help on a folder of small images, on a laptop?

Command:  mae-study run small/images --data FOLDER
          (FOLDER from `mae-study data import`, or any Parquet in the Hugging Face convention)
Cost:     about 6 minutes on 2 CPU cores for 4,000 images.
Expected: linear probe and k-NN rise with duration; on 4,000 CIFAR-10 images the probe of the larger
          net from 40 % (untrained) to 51 % after 40 epochs, one seed.
Larger:   --set data.image_size=64 --set pretrain.encoder.patch_size=8, or copy this file.
"""

from __future__ import annotations

from mae_core.config import (
    NO_AUGMENTATION,
    DataConfig,
    DecoderConfig,
    Duration,
    EncoderConfig,
    Execution,
    KnnRecipe,
    LinearProbeRecipe,
    LrScheduleConfig,
    OptimizerConfig,
    PretrainRecipe,
)
from studies.spec.cell import Cell, Stage
from studies.spec.study import Study

WIDTHS = (64, 128)
EPOCHS = (0, 10, 40)
DATA = DataConfig(
    path="images", image_size=32, dev_fraction=0.1, expected_images=4000, expected_classes=10
)


def study() -> Study:
    """Two small ViTs × untrained, 10 and 40 epochs on 32-pixel images."""
    return Study(
        name="small/images",
        question="Does MAE pretraining help on a folder of small images?",
        cells=tuple(cell(width, epochs) for width in WIDTHS for epochs in EPOCHS),
        notes=("One seed per cell: differences of a point or two may be chance.",),
    )


def cell(width: int, epochs: int, seed: int = 0) -> Cell:
    """One point: pretraining, k-NN and a linear probe."""
    recipe = PretrainRecipe(
        data=DATA,
        encoder=EncoderConfig(
            width=width, depth=4, num_heads=width // 32, patch_size=4, name=f"w{width}"
        ),
        decoder=DecoderConfig(width=64, depth=2, num_heads=2),
        duration=Duration.epochs(epochs),
        global_batch=128,
        optimizer=OptimizerConfig(base_lr=1e-3),
        lr_schedule=LrScheduleConfig(warmup=Duration.epochs(epochs / 10)),
        seed=seed,
    )
    probe = LinearProbeRecipe(
        data=DATA,
        features="mean",
        augmentation=NO_AUGMENTATION,
        duration=Duration.epochs(50),
        global_batch=256,
        optimizer=OptimizerConfig(name="sgd", base_lr=0.1, weight_decay=0.0),
        lr_schedule=LrScheduleConfig(warmup=Duration.epochs(5)),
        seed=seed,
    )
    execution = Execution(loader_threads=1)
    stages = (
        Stage(name="pretrain", recipe=recipe, execution=execution),
        Stage(name="knn", recipe=KnnRecipe(data=DATA, seed=seed), parents=("pretrain",)),
        Stage(name="linear_probe", recipe=probe, parents=("pretrain",), execution=execution),
    )
    return Cell(address=f"w{width}/e{epochs}/s{seed}", stages=stages)
