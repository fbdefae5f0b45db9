"""Question: which augmentation does masked pretraining need?

Command:   mae-study run paper/augmentation --data IMAGENET_FOLDER --address RAY_HEAD:6379
Cost:      about 58 GPU-days by `plan` (6.3e20 FLOPs at an assumed 125 TFLOP/s).
Published: Table 1e (ViT-L), fine-tune / linear probe: none 84.0 / 65.7, fixed-size crop
           84.7 / 73.1, random-size crop 84.9 / 73.5, crop and colour jitter 84.3 / 71.9.
Small:     small/augmentation
"""

from __future__ import annotations

from mae_core.config import NO_AUGMENTATION, AugmentationConfig
from studies.catalog.paper.stages import ablation
from studies.spec.study import Study

MARGIN = 256 / 224
"""The short side becomes 256 pixels, of which a window of 224 is cut."""
AUGMENTATIONS = {
    "none": NO_AUGMENTATION,
    "fixed": AugmentationConfig(crop_scale=None, fixed_crop_margin=MARGIN),
    "random": AugmentationConfig(),
    "jitter": AugmentationConfig(color_jitter=0.4),
}


def study() -> Study:
    """ViT-L, 800 epochs, four augmentations of pretraining; evaluations are the same."""
    return Study(
        name="paper/augmentation",
        question="Which augmentation does masked pretraining need?",
        cells=tuple(ablation(name, augmentation=views) for name, views in AUGMENTATIONS.items()),
        axes=("augmentation",),
        published=("MAE paper, Table 1e",),
    )
