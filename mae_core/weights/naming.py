"""How other libraries name the tensors of a network: a table each.

The official MAE code builds on timm's `VisionTransformer` and adds a decoder
(`mae_pretrain_*_full.pth`). transformers 5 names a block's parts otherwise than 4 did in memory; it
reads and writes the names of 4, in which all published files are, but for the decoder's blocks,
which `save_pretrained` calls `decoder.decoder_encoder.layer.`. mmpretrain's names are read alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from mae_core.config import require
from mae_core.errors import ConfigError
from mae_core.weights.network import Network

LayoutName = Literal["official", "hf", "timm", "mmpretrain"]
LAYOUTS: tuple[LayoutName, ...] = ("official", "hf", "timm", "mmpretrain")

Layers = Mapping[str, tuple[str, ...]]
"""Layer of a block → its names elsewhere: one, or three for q, k and v."""


@dataclass(frozen=True, kw_only=True)
class Naming:
    """Where each of our tensors is found in another library's file."""

    name: LayoutName
    names: Mapping[str, str]
    """Our tensor, or layer with weight and bias → theirs."""
    blocks: Mapping[str, tuple[str, Layers]]
    """`encoder` or `decoder` → what stands before a block's number, and its layers."""
    ignored: tuple[str, ...] = ()
    """Prefixes of keys that take no part in what an encoder computes."""

    def theirs(self, ours: str) -> tuple[str, ...]:
        """Their key for a tensor of ours, or the three of q, k and v; none if they have none."""
        layer, _, kind = ours.rpartition(".")
        if ours in self.names:
            return (self.names[ours],)
        if layer in self.names:
            return (f"{self.names[layer]}.{kind}",)
        side, found, rest = layer.partition(".blocks.")
        if not found or side not in self.blocks:
            return ()
        index, _, part = rest.partition(".")
        before, layers = self.blocks[side]
        return tuple(f"{before}{index}.{key}.{kind}" for key in layers.get(part, ()))


_LAYERS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


def _layers(*theirs: str) -> Layers:
    return {ours: tuple(keys.split()) for ours, keys in zip(_LAYERS, theirs, strict=True)}


_TIMM = {
    "encoder.cls_token": "cls_token",
    "encoder.positions": "pos_embed",
    "encoder.patch_embed": "patch_embed.proj",
    "encoder.norm": "norm",
    "norm": "fc_norm",
    "head": "head",
}
_OFFICIAL_DECODER = {
    "decoder.mask_token": "mask_token",
    "decoder.positions": "decoder_pos_embed",
    "decoder.embed": "decoder_embed",
    "decoder.norm": "decoder_norm",
    "decoder.head": "decoder_pred",
}
_TIMM_BLOCKS = ("blocks.", _layers(*_LAYERS))
TIMM = Naming(name="timm", names=_TIMM, blocks={"encoder": _TIMM_BLOCKS})
OFFICIAL = Naming(
    name="official",
    names=_TIMM | _OFFICIAL_DECODER,
    blocks={"encoder": _TIMM_BLOCKS, "decoder": ("decoder_blocks.", _TIMM_BLOCKS[1])},
)

_HF = {
    "encoder.cls_token": "embeddings.cls_token",
    "encoder.positions": "embeddings.position_embeddings",
    "encoder.patch_embed": "embeddings.patch_embeddings.projection",
    "encoder.norm": "layernorm",
}
_HF_OUTSIDE = {
    "decoder.mask_token": "decoder.mask_token",
    "decoder.positions": "decoder.decoder_pos_embed",
    "decoder.embed": "decoder.decoder_embed",
    "decoder.norm": "decoder.decoder_norm",
    "decoder.head": "decoder.decoder_pred",
    "head": "classifier",
}
_HF_4 = _layers(
    "layernorm_before",
    "attention.attention.query attention.attention.key attention.attention.value",
    "attention.output.dense",
    "layernorm_after",
    "intermediate.dense",
    "output.dense",
)
_HF_5 = _layers(
    "layernorm_before",
    "attention.q_proj attention.k_proj attention.v_proj",
    "attention.o_proj",
    "layernorm_after",
    "mlp.fc1",
    "mlp.fc2",
)
_HF_DECODER_BLOCKS = ("decoder.decoder_layers.", "decoder.decoder_encoder.layer.")
"""In memory and in published files; what `save_pretrained` of transformers 5 writes."""


def hugging_face(keys: Collection[str]) -> Naming:
    """Names of the version that a file's keys are of, encoder and decoder each for itself."""
    prefix = "vit." if any(key.startswith("vit.") for key in keys) else ""
    decoder = [key for key in keys if key.startswith("decoder.")]
    is_5, is_decoder_5 = (
        any(".attention.q_proj." in key or key.endswith(".o_proj.weight") for key in some)
        for some in ([key for key in keys if not key.startswith("decoder.")], decoder)
    )
    found = (form for form in _HF_DECODER_BLOCKS if any(key.startswith(form) for key in decoder))
    decoder_blocks = next(found, _HF_DECODER_BLOCKS[0])
    return Naming(
        name="hf",
        names=_prefixed(prefix, _HF) | _HF_OUTSIDE,
        blocks={
            "encoder": (prefix + "layers.", _HF_5) if is_5 else (prefix + "encoder.layer.", _HF_4),
            "decoder": (decoder_blocks, _HF_5 if is_decoder_5 else _HF_4),
        },
        # The pooler of `ViTModel`, random in most files; what `ViTForMaskedImageModeling` adds.
        ignored=(prefix + "pooler.", prefix + "embeddings.mask_token", "decoder.0."),
    )


_MMPRETRAIN = {
    "encoder.cls_token": "cls_token",
    "encoder.positions": "pos_embed",
    "encoder.patch_embed": "patch_embed.projection",
    "encoder.norm": "ln1",
    "norm": "ln2",
}
_MMPRETRAIN_OUTSIDE = {
    "decoder.mask_token": "neck.mask_token",
    "decoder.positions": "neck.decoder_pos_embed",
    "decoder.embed": "neck.decoder_embed",
    "decoder.norm": "neck.ln1",
    "decoder.head": "neck.decoder_pred",
    "head": "head.fc",
}
_MMPRETRAIN_LAYERS = _layers(
    "ln1", "attn.qkv", "attn.proj", "ln2", "ffn.layers.0.0", "ffn.layers.1"
)


def _mmpretrain(keys: Collection[str]) -> Naming:
    """Names of a whole model, or of a backbone alone."""
    prefix = "backbone." if any(key.startswith("backbone.") for key in keys) else ""
    return Naming(
        name="mmpretrain",
        names=_prefixed(prefix, _MMPRETRAIN) | _MMPRETRAIN_OUTSIDE,
        blocks={
            "encoder": (prefix + "layers.", _MMPRETRAIN_LAYERS),
            "decoder": ("neck.decoder_blocks.", _MMPRETRAIN_LAYERS),
        },
        ignored=("data_preprocessor.",),
    )


def _prefixed(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    return {ours: prefix + theirs for ours, theirs in names.items()}


def detect_layout(keys: Collection[str], container: str) -> LayoutName:
    """The layout of a network's keys.

    The official code and timm name an encoder alike; the decoder, or the official container
    `model`, distinguishes them.
    """
    if any("patch_embed.projection." in key for key in keys):
        return "mmpretrain"
    if any("embeddings.patch_embeddings." in key for key in keys):
        return "hf"
    return "official" if container == "model" or "decoder_embed.weight" in keys else "timm"


def naming_of(name: str, keys: Collection[str]) -> Naming:
    """The names of a layout, as a file's keys have them; raises `ConfigError` if it is unknown."""
    if name not in LAYOUTS:
        raise ConfigError(f"layout {name!r}: use auto, {', '.join(LAYOUTS)}")
    if name == "hf":
        return hugging_face(keys)
    if name == "mmpretrain":
        return _mmpretrain(keys)
    return OFFICIAL if name == "official" else TIMM


def naming_for_export(layout: LayoutName, network: Network) -> Naming:
    """The names to write a network in: those of transformers 4, which 5 reads as well."""
    require(layout != "mmpretrain", f"the layout {layout} is read, not written")
    is_bare = network.decoder is None and network.num_classes is None
    return naming_of(layout, () if is_bare else ("vit.",))
