"""Question: should the encoder see mask tokens?

Command:   mae-study run small/mask_token                  (scikit-learn's digits)
           mae-study run small/mask_token --data FOLDER    (a few thousand small images)
Cost:      by `plan` about 1.6 min on 2 cores with digits, 12 with 4,000 images.
Published: Table 1c, see paper/mask_token.
Larger:    paper/mask_token
"""

from __future__ import annotations

from studies.catalog.small.bench import bench
from studies.spec.study import Study


def study(data: str | None = None) -> Study:
    """With and without mask tokens in the encoder, at every seed."""
    on = bench(data)
    return on.study(
        "mask_token",
        "Should the encoder see mask tokens?",
        (*on.cells("without"), *on.cells("with", mask_tokens_in_encoder=True)),
        axes=("mask_tokens",),
        published=("MAE paper, Table 1c",),
        measures=("top1", "relative_flops"),
    )
