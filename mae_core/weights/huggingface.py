"""Names and configurations of Hugging Face's `ViTModel` and `ViTMAEForPreTraining`.

transformers 5 names a block's parts otherwise than 4 did in memory. It reads and writes the names
of 4, in which all published files are, so files are written in those; its `save_pretrained` gives
the decoder's blocks a third name, `decoder.decoder_encoder.layer.`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mae_core.config import DecoderConfig, num_keep
from mae_core.model.sizes import hidden_width
from mae_core.runtime.json_values import Json
from mae_core.weights.network import Network

_EMBEDDINGS = {
    "encoder.cls_token": "embeddings.cls_token",
    "encoder.positions": "embeddings.position_embeddings",
    "encoder.patch_embed.weight": "embeddings.patch_embeddings.projection.weight",
    "encoder.patch_embed.bias": "embeddings.patch_embeddings.projection.bias",
    "encoder.norm.weight": "layernorm.weight",
    "encoder.norm.bias": "layernorm.bias",
}
_OUTSIDE = {
    "decoder.mask_token": "decoder.mask_token",
    "decoder.positions": "decoder.decoder_pos_embed",
    "decoder.embed.weight": "decoder.decoder_embed.weight",
    "decoder.embed.bias": "decoder.decoder_embed.bias",
    "decoder.norm.weight": "decoder.decoder_norm.weight",
    "decoder.norm.bias": "decoder.decoder_norm.bias",
    "decoder.head.weight": "decoder.decoder_pred.weight",
    "decoder.head.bias": "decoder.decoder_pred.bias",
    "head.weight": "classifier.weight",
    "head.bias": "classifier.bias",
}
_BLOCK: dict[int, dict[str, tuple[str, ...]]] = {
    4: {
        "norm1": ("layernorm_before",),
        "norm2": ("layernorm_after",),
        "attn.qkv": tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
        "attn.proj": ("attention.output.dense",),
        "mlp.fc1": ("intermediate.dense",),
        "mlp.fc2": ("output.dense",),
    },
    5: {
        "norm1": ("layernorm_before",),
        "norm2": ("layernorm_after",),
        "attn.qkv": tuple(f"attention.{part}_proj" for part in "qkv"),
        "attn.proj": ("attention.o_proj",),
        "mlp.fc1": ("mlp.fc1",),
        "mlp.fc2": ("mlp.fc2",),
    },
}
_BLOCKS = {4: "encoder.layer.", 5: "layers."}
_DECODER_BLOCKS = ("decoder.decoder_layers.", "decoder.decoder_encoder.layer.")
"""In memory and in published files; what `save_pretrained` of transformers 5 writes."""


@dataclass(frozen=True)
class HuggingFace:
    """Names of one major version, with or without the `vit.` of a model that wraps the encoder."""

    version: Literal[4, 5] = 4
    prefix: Literal["", "vit."] = "vit."
    decoder_version: Literal[4, 5] | None = None
    """Of the decoder's blocks, where they are named otherwise than the encoder's."""
    decoder_blocks: str = _DECODER_BLOCKS[0]
    name: str = "hf"

    @property
    def ignored(self) -> tuple[str, ...]:
        """What takes no part in the features.

        The pooler of `ViTModel`, random in most files, and what `ViTForMaskedImageModeling` adds.
        """
        return (self.prefix + "pooler.", self.prefix + "embeddings.mask_token", "decoder.0.")

    def theirs(self, ours: str) -> tuple[str, ...]:
        """Their key for a tensor of ours; three for q, k, v; none for an LN after pooling."""
        if ours in _OUTSIDE:
            return (_OUTSIDE[ours],)
        if ours in _EMBEDDINGS:
            return (self.prefix + _EMBEDDINGS[ours],)
        side, found, rest = ours.partition(".blocks.")
        if not found:
            return ()
        blocks, version = self.prefix + _BLOCKS[self.version], self.version
        if side == "decoder":
            blocks, version = self.decoder_blocks, self.decoder_version or self.version
        index, _, inner = rest.partition(".")
        layer, _, kind = inner.rpartition(".")
        return tuple(f"{blocks}{index}.{key}.{kind}" for key in _BLOCK[version].get(layer, ()))


def detect(keys: Iterable[str]) -> HuggingFace:
    """Which names a file's keys have, encoder and decoder each for itself."""
    names = list(keys)
    decoder = [key for key in names if key.startswith("decoder.")]
    forms = [form for form in _DECODER_BLOCKS if any(key.startswith(form) for key in decoder)]
    return HuggingFace(
        _version(key for key in names if not key.startswith("decoder.")),
        "vit." if any(key.startswith("vit.") for key in names) else "",
        _version(decoder),
        forms[0] if forms else _DECODER_BLOCKS[0],
    )


def _version(keys: Iterable[str]) -> Literal[4, 5]:
    is_new = any(".attention.q_proj." in key or key.endswith(".o_proj.weight") for key in keys)
    return 5 if is_new else 4


def config_of(network: Network) -> dict[str, Json]:
    """`config.json` of the model that computes what a network computes.

    Hugging Face keeps floor(L · (1 − ratio)) patches in binary floats; the ratio is given so that
    it keeps as many as we do. Its default LN epsilon (1e-12) is not the paper's, so ours is said.
    """
    plain = _encoder_config(network)
    if network.decoder is not None:
        return {
            "architectures": ["ViTMAEForPreTraining"],
            "model_type": "vit_mae",
            **plain,
            **_decoder_config(network.decoder),
            **_pretraining_config(network),
        }
    plain |= {"model_type": "vit", "encoder_stride": network.encoder.patch_size}
    if network.num_classes is None:
        return {"architectures": ["ViTModel"], **plain}
    names = dict(enumerate(network.class_names or map(str, range(network.num_classes))))
    numbers = {name: i for i, name in names.items()}
    plain |= {"id2label": {str(i): name for i, name in names.items()}, "label2id": numbers}
    return {"architectures": ["ViTForImageClassification"], **plain}


def _encoder_config(network: Network) -> dict[str, Json]:
    encoder = network.encoder
    return {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": hidden_width(encoder.width, encoder.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": encoder.norm_eps,
        "image_size": network.image_size,
        "patch_size": encoder.patch_size,
        "num_channels": network.num_channels,
        "qkv_bias": True,
    }


def _decoder_config(decoder: DecoderConfig) -> dict[str, Json]:
    return {
        "decoder_hidden_size": decoder.width,
        "decoder_num_hidden_layers": decoder.depth,
        "decoder_num_attention_heads": decoder.num_heads,
        "decoder_intermediate_size": hidden_width(decoder.width),
    }


def _pretraining_config(network: Network) -> dict[str, Json]:
    """What is known of the pretraining; what is not is left out, never written as a default."""
    config: dict[str, Json] = {}
    if network.mask_ratio is not None:
        config["mask_ratio"] = binary_ratio(network.grid_size**2, network.mask_ratio)
    if network.norm_pix_loss is not None:
        config["norm_pix_loss"] = network.norm_pix_loss
    return config


def binary_ratio(num_patches: int, mask_ratio: float) -> float:
    """The mask ratio at which binary floats keep as many patches as exact decimals do."""
    kept = num_keep(num_patches, mask_ratio)
    if int(num_patches * (1 - mask_ratio)) == kept:
        return mask_ratio
    # Half a patch of slack: neither rounding nor truncation can move the count.
    return 1 - (kept + 0.5) / num_patches
