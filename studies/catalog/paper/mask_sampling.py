"""Question: which patches should be hidden: random ones, blocks, or a grid?

Command:   mae-study run paper/mask_sampling --data IMAGENET_FOLDER --address RAY_HEAD:6379
Cost:      about 67 GPU-days by `plan` (7.2e20 FLOPs at an assumed 125 TFLOP/s).
Published: Table 1f (ViT-L), fine-tune / linear probe: random 75 % 84.9 / 73.5, block 50 %
           83.9 / 72.3, block 75 % 82.8 / 63.9, grid 75 % 84.0 / 66.0.
Small:     small/mask_sampling
"""

from __future__ import annotations

from mae_core.config import MaskConfig
from studies.catalog.paper.stages import ablation
from studies.spec.study import Study

VARIANTS = (("random", 0.75), ("block", 0.5), ("block", 0.75), ("grid", 0.75))


def study() -> Study:
    """ViT-L, 800 epochs, four ways of choosing what is hidden."""
    return Study(
        name="paper/mask_sampling",
        question="Which patches should be hidden: random ones, blocks, or a grid?",
        cells=tuple(
            ablation(f"{name}{100 * ratio:g}", mask=MaskConfig(sampling=name), mask_ratio=ratio)
            for name, ratio in VARIANTS
        ),
        axes=("mask_sampling+mask_ratio",),
        published=("MAE paper, Table 1f",),
        notes=(
            "The paper does not say how its blocks were drawn; here it is BEiT's generator, and "
            "half a patch per image that the quota lacks then is hidden beside its blocks.",
        ),
    )
