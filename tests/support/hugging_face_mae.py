"""Our MAE as Hugging Face's: the same network in its names and its configuration."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mae_core.config import PretrainRecipe
from mae_core.errors import ConfigError
from mae_core.weights.huggingface import config_of
from mae_core.weights.layout import to_theirs
from mae_core.weights.naming import hugging_face
from mae_core.weights.network import Network, with_positions

NAMES_OF_5 = (
    "vit.layers.0.attention.o_proj.weight",
    "decoder.decoder_layers.0.attention.o_proj.weight",
)


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
    return to_theirs(network_of(state_dict, recipe), hugging_face(NAMES_OF_5))


def small_vit(**options: Any) -> dict[str, Any]:
    """Sizes of a tiny ViT for 16 pixels, as keyword arguments of `ViTConfig`."""
    return {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 96,
        "image_size": 16,
        "patch_size": 4,
        "num_channels": 3,
    } | options


def randomised(model: torch.nn.Module) -> Any:
    """The model with normal weights, in eval mode."""
    draw = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=draw)
    return model.eval()


def legacy_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The key names of transformers 4, in which published files are."""
    renames = (
        ("vit.layers.", "vit.encoder.layer."),
        (".attention.q_proj.", ".attention.attention.query."),
        (".attention.k_proj.", ".attention.attention.key."),
        (".attention.v_proj.", ".attention.attention.value."),
        (".attention.o_proj.", ".attention.output.dense."),
        (".mlp.fc1.", ".intermediate.dense."),
        (".mlp.fc2.", ".output.dense."),
    )
    found = {}
    for key, value in state.items():
        for new, old in renames:
            key = key.replace(new, old)
        found[key] = value.contiguous()
    return found


def legacy_folder(model: Any, folder: Path, *, is_pickle: bool) -> None:
    """A model's folder as `save_pretrained` of transformers 4 wrote it."""
    folder.mkdir()
    tensors = legacy_names(model.state_dict())
    if is_pickle:
        torch.save(OrderedDict(tensors), folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads(model.config.to_json_string(use_diff=False))
    config |= {"architectures": [type(model).__name__], "transformers_version": "4.57.1"}
    kept = {k: v for k, v in config.items() if k != "dtype"} | {"torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(kept, indent=2))
