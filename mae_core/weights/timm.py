"""Names of timm's `VisionTransformer`, and of the official MAE code, which builds on it.

Both name an encoder alike; the official layout adds the decoder (`mae_pretrain_*_full.pth`).
"""

from __future__ import annotations

from dataclasses import dataclass

_MODULES = {
    "encoder.patch_embed.": "patch_embed.proj.",
    "encoder.blocks.": "blocks.",
    "encoder.norm.": "norm.",
    "norm.": "fc_norm.",
    "head.": "head.",
}
_TENSORS = {"encoder.cls_token": "cls_token", "encoder.positions": "pos_embed"}
_DECODER_MODULES = {
    "decoder.embed.": "decoder_embed.",
    "decoder.blocks.": "decoder_blocks.",
    "decoder.norm.": "decoder_norm.",
    "decoder.head.": "decoder_pred.",
}
_DECODER_TENSORS = {"decoder.mask_token": "mask_token", "decoder.positions": "decoder_pos_embed"}


@dataclass(frozen=True)
class TimmLike:
    """timm's names, with or without the official decoder's."""

    name: str
    has_decoder: bool
    ignored: tuple[str, ...] = ()

    def theirs(self, ours: str) -> tuple[str, ...]:
        """Their key for a tensor of ours; none for a decoder in timm's layout."""
        tensors, modules = _TENSORS, _MODULES
        if self.has_decoder:
            tensors, modules = tensors | _DECODER_TENSORS, modules | _DECODER_MODULES
        if ours in tensors:
            return (tensors[ours],)
        for module, theirs in modules.items():
            if ours.startswith(module):
                return (theirs + ours.removeprefix(module),)
        return ()


TIMM = TimmLike("timm", has_decoder=False)
OFFICIAL = TimmLike("official", has_decoder=True)
