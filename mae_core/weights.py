"""Weights in other libraries' layouts: Hugging Face `ViTMAEForPreTraining` (transformers 5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from mae_core.config import PretrainRecipe, num_keep
from mae_core.errors import ConfigError
from mae_core.positions import sincos_positions
from mae_core.sizes import hidden_width
from mae_core.vit import NORM_EPS

_TOP_LEVEL = {
    "encoder.cls_token": "vit.embeddings.cls_token",
    "encoder.patch_embed": "vit.embeddings.patch_embeddings.projection",
    "encoder.blocks": "vit.layers",
    "encoder.norm": "vit.layernorm",
    "decoder.mask_token": "decoder.mask_token",
    "decoder.embed": "decoder.decoder_embed",
    "decoder.blocks": "decoder.decoder_layers",
    "decoder.norm": "decoder.decoder_norm",
    "decoder.head": "decoder.decoder_pred",
}
_IN_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")


def hf_config(recipe: PretrainRecipe) -> dict[str, Any]:
    """Return the keyword arguments of the `ViTMAEConfig` that computes what `recipe` computes.

    Hugging Face keeps floor(L · (1 − ratio)) patches in binary floats; the ratio is given so that
    it keeps as many as we do. Its default LN epsilon (1e-12) is not the paper's.
    """
    encoder, decoder, data = recipe.encoder, recipe.decoder, recipe.data
    return {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": hidden_width(encoder.width, encoder.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": NORM_EPS,
        "image_size": data.image_size,
        "patch_size": encoder.patch_size,
        "num_channels": data.num_channels,
        "qkv_bias": True,
        "decoder_hidden_size": decoder.width,
        "decoder_num_hidden_layers": decoder.depth,
        "decoder_num_attention_heads": decoder.num_heads,
        "decoder_intermediate_size": hidden_width(decoder.width),
        "mask_ratio": _binary_ratio(recipe),
        "norm_pix_loss": recipe.norm_pix_loss,
    }


def mae_to_hf(state_dict: Mapping[str, Tensor], recipe: PretrainRecipe) -> dict[str, Tensor]:
    """Map the state_dict of an `MAE(recipe)` to that of `ViTMAEForPreTraining`, all keys.

    Hugging Face splits q, k, v, embeds patches by a convolution and stores the fixed positions.
    Values keep their dtype. Raises `ConfigError` for a key that an `MAE` does not have.
    """
    mapped: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        mapped.update(_entries(name, value, recipe))
    grid = recipe.data.image_size // recipe.encoder.patch_size
    like = mapped["vit.embeddings.cls_token"]
    for key, width in (
        ("vit.embeddings.position_embeddings", recipe.encoder.width),
        ("decoder.decoder_pos_embed", recipe.decoder.width),
    ):
        mapped[key] = sincos_positions(width, grid).unsqueeze(0).to(like)
    return mapped


def _entries(name: str, value: Tensor, recipe: PretrainRecipe) -> Iterator[tuple[str, Tensor]]:
    ours = next((key for key in _TOP_LEVEL if name == key or name.startswith(key + ".")), None)
    if ours is None:
        raise ConfigError(f"weight {name!r} is not an MAE's: expected encoder.* or decoder.*")
    theirs, rest = _TOP_LEVEL[ours], name.removeprefix(ours)
    if ours.endswith(".blocks"):
        _, index, inner = rest.split(".", 2)
        for key, part in _block_entries(inner, value):
            yield f"{theirs}.{index}.{key}", part
    elif name == "encoder.patch_embed.weight":
        yield theirs + rest, _as_convolution(value, recipe)
    else:
        yield theirs + rest, value


def _block_entries(inner: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    layer, _, kind = inner.rpartition(".")
    if layer == "attn.qkv":
        for key, part in zip(_QKV, value.chunk(3, dim=0), strict=True):
            yield f"{key}.{kind}", part.clone()
    elif layer in _IN_BLOCK:
        yield f"{_IN_BLOCK[layer]}.{kind}", value
    else:
        raise ConfigError(f"weight {inner!r} of a block is not an MAE's")


def _as_convolution(weight_DP: Tensor, recipe: PretrainRecipe) -> Tensor:
    patch, channels = recipe.encoder.patch_size, recipe.data.num_channels
    return weight_DP.reshape(-1, patch, patch, channels).permute(0, 3, 1, 2).contiguous()


def _binary_ratio(recipe: PretrainRecipe) -> float:
    patches = recipe.num_patches
    kept = num_keep(patches, recipe.mask_ratio)
    if int(patches * (1 - recipe.mask_ratio)) == kept:
        return recipe.mask_ratio
    # Half a patch of slack: neither rounding nor truncation can move the count.
    return 1 - (kept + 0.5) / patches
