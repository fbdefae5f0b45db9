"""Question: how much wall-clock time does the asymmetric design save?

Command:   mae-study run small/wall_clock                  (scikit-learn's digits)
           mae-study run small/wall_clock --data FOLDER    (a few thousand small images)
Cost:      by `plan` about 1 min on 2 cores with digits, 3 with 4,000 images.
Published: Table 2, see paper/wall_clock.
Larger:    paper/wall_clock
"""

from __future__ import annotations

from dataclasses import replace

from mae_core.config import Duration
from studies.catalog.small.bench import Bench, bench
from studies.spec.cell import Cell
from studies.spec.study import Study

VARIANTS = ((True, 4), (False, 4), (False, 1))
SHARE = 0.2
"""Of the usual number of epochs: enough for a time."""


def study(data: str | None = None) -> Study:
    """Mask tokens in the encoder, not there, and one decoder block, at every seed."""
    on = bench(data)
    return on.study(
        "wall_clock",
        "How much wall-clock time does the asymmetric design save?",
        tuple(_cell(on, seed, *variant) for seed in on.seeds for variant in VARIANTS),
        axes=("mask_tokens+decoder_depth",),
        measures=("speedup", "relative_flops"),
        published=("MAE paper, Table 2",),
        notes=(
            "On images of 16 to 64 patches a step is mostly overhead: the counted FLOPs differ by "
            "more than the clock shows. Run it on an idle machine.",
        ),
    )


def _cell(on: Bench, seed: int, with_tokens: bool, depth: int) -> Cell:
    pretrain = on.pretrain(
        seed,
        duration=Duration.epochs(SHARE * on.epochs),
        mask_tokens_in_encoder=with_tokens,
        decoder=replace(on.decoder, depth=depth),
    )
    name = "tokens" if with_tokens else "visible"
    return Cell(address=f"{name}/d{depth}/s{seed}", stages=(pretrain,))
