"""Published size and duration tables of masked autoencoders: what a fitted law must predict.

Top-1 in per cent on ImageNet-1k. Encoder parameters are the trunk's, without a head.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SizePoint:
    """One model of a size ladder."""

    model: str
    encoder_params: float
    top1: float
    """Fine-tuned at 224 pixels."""


@dataclass(frozen=True)
class GridPoint:
    """One pretraining of a size x duration grid on ImageNet-1k."""

    model: str
    encoder_params: float
    epochs: int
    linear: float | None
    finetune: float

    @property
    def images_seen(self) -> float:
        """Epochs over the 1,281,167 training images."""
        return self.epochs * 1_281_167.0


MAWS_IG3B = (
    SizePoint("ViT-B/16", 86e6, 83.5),
    SizePoint("ViT-L/16", 304e6, 86.1),
    SizePoint("ViT-H/14", 632e6, 87.4),
    SizePoint("ViT-2B/14", 1.9e9, 87.8),
    SizePoint("ViT-6.5B/14", 6.5e9, 88.3),
)
"""MAE pretrained on three billion images, fine-tuned (Singh et al., "The effectiveness of MAE
pre-pretraining for billion-scale pretraining", ICCV 2023; table of facebookresearch/maws)."""

MMPRETRAIN_GRID = (
    GridPoint("ViT-B/16", 85.65e6, 300, 60.8, 83.1),
    GridPoint("ViT-B/16", 85.65e6, 400, 62.5, 83.3),
    GridPoint("ViT-B/16", 85.65e6, 800, 65.1, 83.3),
    GridPoint("ViT-B/16", 85.65e6, 1600, 67.1, 83.5),
    GridPoint("ViT-L/16", 303.1e6, 400, 70.7, 85.2),
    GridPoint("ViT-L/16", 303.1e6, 800, 73.7, 85.4),
    GridPoint("ViT-L/16", 303.1e6, 1600, 75.5, 85.7),
    GridPoint("ViT-H/14", 630.43e6, 1600, None, 86.9),
)
"""open-mmlab/mmpretrain, configs/mae/metafile.yml."""

FINETUNE_SEED_SD = 0.09
"""Points; four ViT-B fine-tunes of one checkpoint: 83.63 83.66 83.52 83.46
(facebookresearch/mae, FINETUNE.md)."""
FINETUNE_SEED_DOF = 3
