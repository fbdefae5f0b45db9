"""Which parts of an encoder a partial fine-tuning trains (paper section 4.3, Figure 9)."""

from __future__ import annotations

from torch import nn

from mae_core.config import require
from mae_core.model.vit import Encoder


def freeze_all_but_last(encoder: Encoder, num_blocks: float) -> None:
    """Leave a gradient to the last `num_blocks` blocks only; see `PartialFinetuneRecipe`.

    What is frozen needs no gradient, so backward stops at the first block that is trained, and
    no optimizer knows of it. Raises `ConfigError` for more blocks than the encoder has.
    """
    depth = encoder.config.depth
    require(
        num_blocks <= depth,
        f"num_blocks {num_blocks:g} of an encoder with {depth} blocks: use at most {depth}",
    )
    if num_blocks == depth:
        return
    encoder.requires_grad_(False)
    for part in _trained(encoder, num_blocks):
        part.requires_grad_(True)


def _trained(encoder: Encoder, num_blocks: float) -> list[nn.Module]:
    if num_blocks == 0:
        return []
    if num_blocks == 0.5:
        last = encoder.blocks[-1]
        return [last.norm2, last.mlp, encoder.norm]  # type: ignore[list-item]
    return [*encoder.blocks[-int(num_blocks) :], encoder.norm]
