"""Question: how well do fine-tuned models stand images that they were not tuned for?

Command:   mae-study run paper/robustness --address RAY_HEAD:6379 --data IMAGENET_FOLDER \\
               --set IN-A.data.path=... --set IN-R.data.path=... --set IN-Sketch.data.path=...
Cost:      about 161 GPU-days by `plan` (1.7e21 FLOPs at an assumed 125 TFLOP/s).
Published: Table 13, MAE B/L/H/H at 448 pixels: IN-C (mean corruption error, lower is better)
           51.7/41.8/33.8/36.8, IN-A 35.9/57.1/68.2/76.7, IN-R 48.3/59.9/64.4/66.5, IN-Sketch
           34.5/45.3/49.6/50.9. From scratch B/L/H: IN-C 45.8/42.3/41.3, IN-A 27.2/29.6/33.1.
Small:     small/robustness
"""

from __future__ import annotations

from dataclasses import replace

from mae_core.config import CorruptionRecipe, DataConfig, ShiftRecipe
from studies.catalog.evaluations import IMAGENET, paper_finetune, stage
from studies.catalog.paper.comparison import EPOCHS, LARGE_PIXELS, SIZES, finetune_448
from studies.catalog.paper.stages import EVALUATION, mae, scratch
from studies.spec.cell import Cell, Stage
from studies.spec.study import Study

SETS = {"IN-A": (7_500, 200), "IN-R": (30_000, 200), "IN-Sketch": (50_889, 1_000)}
"""Images and classes of each set; classes are scored among those that the set has."""
LARGE = replace(IMAGENET, image_size=LARGE_PIXELS)


def study() -> Study:
    """B, L and H after MAE and from scratch, H also at 448 pixels; inference only."""
    return Study(
        name="paper/robustness",
        question="How well do fine-tuned models stand images that they were not tuned for?",
        cells=(
            *(_scratch(size) for size in SIZES),
            *(_mae(size) for size in SIZES),
            _mae_448("H"),
        ),
        axes=("size", "dataset"),
        measures=("top1", "mce"),
        published=("MAE paper, Table 13",),
        notes=(
            "Corruptions are computed on the fly from the published families, not read from the "
            "ImageNet-C files: errors are relative to AlexNet's as published for those files.",
            "Sets of the user's own: class names must be those of the training set, or be paired "
            "with them by `class_pairs`.",
        ),
    )


def _scratch(size: str) -> Cell:
    cell = scratch(size)
    return replace(cell, stages=(*cell.stages, *_looks("scratch", IMAGENET)))


def _mae(size: str) -> Cell:
    tuned = stage("finetune", paper_finetune(size, IMAGENET, 0), EVALUATION)
    stages = (mae(size, epochs=EPOCHS, norm_pix_loss=True), tuned, *_looks("finetune", IMAGENET))
    return Cell(address=f"mae/{size}/s0", stages=stages)


def _mae_448(size: str) -> Cell:
    pretrain = mae(size, epochs=EPOCHS, norm_pix_loss=True)
    stages = (pretrain, finetune_448(size), *_looks("finetune_448", LARGE))
    return Cell(address=f"mae/{size}448/s0", stages=stages)


def _looks(parent: str, data: DataConfig) -> tuple[Stage, ...]:
    """What is scored of a classifier: corruptions, and each of the sets."""
    recipes: dict[str, CorruptionRecipe | ShiftRecipe] = {
        "IN-C": CorruptionRecipe(data=data, baseline="alexnet")
    }
    for name, (images, classes) in SETS.items():
        own = replace(data, path=name.lower(), expected_images=images, expected_classes=classes)
        recipes[name] = ShiftRecipe(data=own, name=name)
    return tuple(
        Stage(name=name, recipe=recipe, parents=(parent,), execution=EVALUATION)
        for name, recipe in recipes.items()
    )
