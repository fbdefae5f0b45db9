"""`config.json` of Hugging Face's `ViTModel` and `ViTMAEForPreTraining`."""

from __future__ import annotations

from mae_core.config import DecoderConfig, num_keep
from mae_core.model.sizes import hidden_width
from mae_core.runtime.json_values import Json
from mae_core.weights.network import Network


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
