"""Names of mmpretrain's `VisionTransformer` and MAE (`backbone.` and `neck.`); read alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_ENCODER = {
    "encoder.cls_token": "cls_token",
    "encoder.positions": "pos_embed",
    "encoder.patch_embed.weight": "patch_embed.projection.weight",
    "encoder.patch_embed.bias": "patch_embed.projection.bias",
    "encoder.norm.weight": "ln1.weight",
    "encoder.norm.bias": "ln1.bias",
    "norm.weight": "ln2.weight",
    "norm.bias": "ln2.bias",
}
_OUTSIDE = {
    "decoder.mask_token": "neck.mask_token",
    "decoder.positions": "neck.decoder_pos_embed",
    "decoder.embed.weight": "neck.decoder_embed.weight",
    "decoder.embed.bias": "neck.decoder_embed.bias",
    "decoder.norm.weight": "neck.ln1.weight",
    "decoder.norm.bias": "neck.ln1.bias",
    "decoder.head.weight": "neck.decoder_pred.weight",
    "decoder.head.bias": "neck.decoder_pred.bias",
    "head.weight": "head.fc.weight",
    "head.bias": "head.fc.bias",
}
_BLOCK = {
    "norm1": "ln1",
    "norm2": "ln2",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "mlp.fc1": "ffn.layers.0.0",
    "mlp.fc2": "ffn.layers.1",
}


@dataclass(frozen=True)
class MMPretrain:
    """Names of a whole model, or of a backbone alone."""

    prefix: str = "backbone."
    name: str = "mmpretrain"
    ignored: tuple[str, ...] = ("data_preprocessor.",)

    def theirs(self, ours: str) -> tuple[str, ...]:
        """Their key for a tensor of ours; none where they have none."""
        if ours in _OUTSIDE:
            return (_OUTSIDE[ours],)
        if ours in _ENCODER:
            return (self.prefix + _ENCODER[ours],)
        side, found, rest = ours.partition(".blocks.")
        index, _, inner = rest.partition(".")
        layer, _, kind = inner.rpartition(".")
        if not found or layer not in _BLOCK:
            return ()
        blocks = "neck.decoder_blocks." if side == "decoder" else f"{self.prefix}layers."
        return (f"{blocks}{index}.{_BLOCK[layer]}.{kind}",)


def detect(keys: Iterable[str]) -> MMPretrain:
    """Whole model or backbone alone."""
    return MMPretrain("backbone." if any(k.startswith("backbone.") for k in keys) else "")
