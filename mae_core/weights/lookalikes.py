"""What a file that is no plain ViT looks like, so that a refusal names it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mae_core.errors import ConfigError

ACCEPTED = (
    "accepted are plain ViTs (one class token, biased q, k and v, exact GELU, no layer scale) in "
    "the layouts of the official MAE code, of Hugging Face's ViT and ViTMAE, and of the "
    "VisionTransformer of timm and mmpretrain"
)
_SIGNS: tuple[tuple[str, str], ...] = (
    (r"(^|\.)lora_[AB]\b|lora_embedding", "a LoRA adapter: merge it into its base model first"),
    (
        r"text_model\.|visual\.|logit_scale|vision_model\.|embeddings\.patch_embedding\.",
        "CLIP or SigLIP",
    ),
    (r"layers\.\d+\.blocks\.\d+\.|\.w_msa\.", "Swin"),
    (
        r"register_token|(^|\.)reg_token|storage_tokens",
        "a ViT with register tokens (DINOv2, DINOv3)",
    ),
    (r"dist_token|distillation_token|head_dist", "a distilled DeiT (a second token)"),
    (r"relative_position_bias|rel_pos_bias", "BEiT (relative positions)"),
    (r"\.q_bias$", "BEiT or VideoMAE (keys without a bias)"),
    (r"dwconv|conv_dw|depthwise_conv|downsample_layers", "ConvNeXt"),
    (
        r"\.ls[12]\.|layer_scale|lambda_?1|\.gamma_?[12](\.weight)?$",
        "a ViT with layer scale (DINOv2, DeiT III, CaiT, BEiT)",
    ),
    (r"norm_pre\.|pre_layrnorm|ln_pre|pre_norm\.", "a ViT with an LN before its blocks (CLIP)"),
    (r"(^|\.)layer[1-4]\.\d+\.(conv|bn)\d|embedder\.embedder\.convolution", "a ResNet"),
    (r"encoder_layer_\d+\.|self_attention\.in_proj", "torchvision's VisionTransformer"),
    (r"(q|k)_norm\.|query_norm|key_norm", "a ViT with normalised queries and keys"),
    (r"(^|\.|_)rope|freqs_cis|inv_freq", "a ViT with rotary positions (EVA-02, DINOv3)"),
    (r"mlp\.w12|mlp\.w3|fc1_g|gate_proj|weights_in", "a ViT with gated MLPs (SwiGLU)"),
    (
        r"head\.0\.running_(mean|var)",
        "the official linear probe (a BatchNorm before the layer): its encoder is frozen, so adopt "
        "the pretraining that it began from",
    ),
    (r"attn_pool\.|attention_pool", "a ViT with attention pooling"),
    (r"_flat_param|flat_params?$", "flat shards of FSDP: save a full state_dict"),
    (r"word_embeddings|embed_tokens|wte\.", "a language model"),
    (r"exp_avg|param_groups|momentum_buffer", "the state of an optimizer, without a model"),
    (r"(^|\.)conv1\.weight|(^|\.)bn1\.", "a ResNet or another convolutional network"),
)


class OtherNetwork(ConfigError):
    """The tensors are not those of a plain ViT in a layout that is known."""


def expect(condition: bool, message: str) -> None:
    """Raise `OtherNetwork` unless the condition holds."""
    if not condition:
        raise OtherNetwork(message)


def looks_like(keys: Iterable[str]) -> str:
    """Name of the first kind whose sign a key bears, empty if none does."""
    names = list(keys)
    for sign, kind in _SIGNS:
        if any(re.search(sign, name) for name in names):
            return kind
    return ""


def advice(keys: Iterable[str]) -> str:
    """What it looks like, if that is known, and what is accepted: the end of a refusal."""
    kind = looks_like(keys)
    return f"it looks like {kind}; {ACCEPTED}" if kind else ACCEPTED
