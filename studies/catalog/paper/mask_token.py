"""Question: should the encoder see mask tokens?

Command:   mae-study run paper/mask_token --data IMAGENET_FOLDER --address RAY_HEAD:6379
Cost:      about 56 GPU-days by `plan` (6.0e20 FLOPs at an assumed 125 TFLOP/s).
Published: Table 1c (ViT-L): with mask tokens the probe falls from 73.5 to 59.6, the fine-tune from
           84.9 to 84.2, and pretraining costs 3.3 times the FLOPs.
Small:     small/mask_token
"""

from __future__ import annotations

from studies.catalog.paper.stages import ablation
from studies.spec.study import Study


def study() -> Study:
    """ViT-L, 800 epochs, with and without mask tokens in the encoder."""
    return Study(
        name="paper/mask_token",
        question="Should the encoder see mask tokens?",
        cells=(
            ablation("without"),
            ablation("with", mask_tokens_in_encoder=True),
        ),
        axes=("mask_tokens",),
        measures=("top1", "relative_flops"),
        published=("MAE paper, Table 1c",),
    )
