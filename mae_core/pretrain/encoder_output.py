"""The file of an encoder that evaluations read: written by a training, or not there yet."""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor

from mae_core.checkpoint.encoder_file import save_encoder
from mae_core.config import ENCODER_FILE, AdoptedRecipe, ContrastiveRecipe, PretrainRecipe
from mae_core.errors import ConfigError
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


def run_adopted(recipe: AdoptedRecipe, *_: object) -> NoReturn:
    """Raise `ConfigError`: an imported encoder is not computed."""
    raise ConfigError(recipe.absence)
