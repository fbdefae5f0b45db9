"""Our MAE as Hugging Face's: the same network in its names and its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mae_core.config import PretrainRecipe
from mae_core.errors import ConfigError
from mae_core.weights.huggingface import HuggingFace, config_of
from mae_core.weights.layout import to_theirs
from mae_core.weights.network import Network, with_positions


def network_of(state_dict: Mapping[str, Tensor], recipe: PretrainRecipe) -> Network:
    """The network of an `MAE(recipe)`'s state_dict."""
    grid = recipe.data.image_size // recipe.encoder.patch_size
    return Network(
        encoder=recipe.encoder,
        image_size=recipe.data.image_size,
        num_channels=recipe.data.num_channels,
        state=with_positions(state_dict, recipe.encoder, recipe.decoder, grid),
        decoder=recipe.decoder,
        mask_ratio=recipe.mask_ratio,
        norm_pix_loss=recipe.norm_pix_loss,
    )


def hf_config(recipe: PretrainRecipe) -> dict[str, Any]:
    """Return the keyword arguments of the `ViTMAEConfig` that computes what `recipe` computes."""
    config = config_of(network_of({}, recipe))
    return {k: v for k, v in config.items() if k not in ("architectures", "model_type")}


def mae_to_hf(state_dict: Mapping[str, Tensor], recipe: PretrainRecipe) -> dict[str, Tensor]:
    """Map the state_dict of an `MAE(recipe)` to that of `ViTMAEForPreTraining`, all keys.

    In the names of transformers 5. Values keep their dtype. Raises `ConfigError` for a key that
    an `MAE` does not have.
    """
    foreign = [key for key in state_dict if not key.startswith(("encoder.", "decoder."))]
    if foreign:
        raise ConfigError(f"weight {foreign[0]!r} is not an MAE's: expected encoder.* or decoder.*")
    return to_theirs(network_of(state_dict, recipe), HuggingFace(5))
