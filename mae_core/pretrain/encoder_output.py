"""The encoder of a network that was trained with more parts, as the file that evaluations read."""

from __future__ import annotations

from torch import Tensor

from mae_core.checkpoint.encoder_file import save_encoder
from mae_core.config import ENCODER_FILE, ContrastiveRecipe, PretrainRecipe
from mae_core.runtime.context import RunContext

PREFIX = "encoder."


def save_trained(
    recipe: PretrainRecipe | ContrastiveRecipe, state: dict[str, Tensor], ctx: RunContext
) -> dict[str, Tensor]:
    """Write `encoder.safetensors`; return the tensors that are not the encoder's."""
    save_encoder(
        ctx.output_dir / ENCODER_FILE,
        {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)},
        recipe.encoder,
        image_size=recipe.data.image_size,
        num_channels=recipe.data.num_channels,
        extra={"science_hash": ctx.science_hash},
    )
    return {k: v for k, v in state.items() if not k.startswith(PREFIX)}
