"""Question: how deep and how wide must the decoder be?

Command:   mae-study run paper/decoder --data IMAGENET_FOLDER --address RAY_HEAD:6379
Cost:      about 134 GPU-days by `plan` (1.4e21 FLOPs at an assumed 125 TFLOP/s).
Published: Tables 1a and 1b (ViT-L): from 1 to 8 blocks the linear probe rises from 65.5 to 73.5
           and the fine-tune from 84.8 to 84.9; from width 128 to 512 the probe from 69.1 to 73.5.
Small:     small/decoder
"""

from __future__ import annotations

from mae_core.config import DecoderConfig
from studies.catalog.paper.stages import ablation
from studies.spec.cell import Cell
from studies.spec.study import Study

DEPTHS = (1, 2, 4, 8, 12)
WIDTHS = (128, 256, 512, 768, 1024)
DEFAULT = DecoderConfig()


def study() -> Study:
    """ViT-L, 800 epochs: five depths at width 512, five widths at depth 8."""
    shapes = dict.fromkeys(
        [(depth, DEFAULT.width) for depth in DEPTHS] + [(DEFAULT.depth, width) for width in WIDTHS]
    )
    return Study(
        name="paper/decoder",
        question="How deep and how wide must the decoder be?",
        cells=tuple(_cell(depth, width) for depth, width in shapes),
        axes=("decoder_depth", "decoder_width"),
        published=("MAE paper, Table 1a", "MAE paper, Table 1b"),
        notes=(
            "The decoder is dropped after pretraining: a shallow one makes the probe's features "
            "specialise in reconstruction, and a fine-tune undoes that.",
        ),
    )


def _cell(depth: int, width: int) -> Cell:
    return ablation(f"d{depth}x{width}", decoder=DecoderConfig(depth=depth, width=width))
