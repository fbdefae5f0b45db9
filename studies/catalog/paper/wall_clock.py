"""Question: how much wall-clock time does the asymmetric design save?

Command:   mae-study run paper/wall_clock --data IMAGENET_FOLDER --address RAY_HEAD:6379
Cost:      about 2.6 GPU-days by `plan` (2.8e19 FLOPs at an assumed 125 TFLOP/s).
Published: Table 2 (800 epochs on 128 TPU-v3 cores): ViT-L 42.4 h with mask tokens in the encoder,
           15.4 h without (2.8x), 11.6 h with one decoder block (3.7x); ViT-H 119.6 h (estimated
           from 10 epochs), 34.5 h (3.5x), 29.3 h (4.1x).
Small:     small/wall_clock
"""

from __future__ import annotations

from mae_core.config import DecoderConfig, Duration, LrScheduleConfig
from studies.catalog.paper.stages import mae
from studies.spec.cell import Cell
from studies.spec.study import Study

SIZES = ("L", "H")
VARIANTS = ((True, 8), (False, 8), (False, 1))
EPOCHS = 10
"""Enough for a time: the paper's own figure for H with mask tokens is from 10 epochs."""


def study() -> Study:
    """ViT-L and H, 10 epochs: mask tokens in the encoder, not there, and one decoder block."""
    return Study(
        name="paper/wall_clock",
        question="How much wall-clock time does the asymmetric design save?",
        cells=tuple(_cell(size, *variant) for size in SIZES for variant in VARIANTS),
        axes=("mask_tokens+decoder_depth",),
        measures=("speedup", "relative_flops"),
        published=("MAE paper, Table 2",),
        notes=(
            "Times are of whole gangs, start-up excluded; run it on idle machines of one kind.",
            "The accuracies of Table 2 are those of paper/mask_token and paper/decoder.",
        ),
    )


def _cell(size: str, with_tokens: bool, depth: int) -> Cell:
    pretrain = mae(
        size,
        epochs=EPOCHS,
        mask_tokens_in_encoder=with_tokens,
        decoder=DecoderConfig(depth=depth),
        lr_schedule=LrScheduleConfig(warmup=Duration.epochs(1)),
    )
    name = "tokens" if with_tokens else "visible"
    return Cell(address=f"{size}/{name}/d{depth}", stages=(pretrain,))
