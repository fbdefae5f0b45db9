"""A `config.json` against the tensors beside it: what contradicts them or cannot be computed here.

Hugging Face's says the network in words, timm's the name of an architecture and its changes.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mae_core.config import EncoderConfig, require
from mae_core.model.sizes import hidden_width
from mae_core.weights.lookalikes import expect

MODELS = ("vit", "vit_mae")
_EXPECTED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("gelu", "gelu_python"),  # both by the error function
    "qkv_bias": (True,),
}
HARMLESS = frozenset(
    "img_size num_classes drop_rate drop_path_rate weight_init dynamic_img_size num_heads "
    "embed_dim depth patch_size mlp_ratio in_chans global_pool class_token qkv_bias fc_norm "
    "init_values pre_norm reg_tokens".split()
)
"""Of timm's `model_args`: what changes no feature, what shapes show, and what is read."""


def check_config(
    config: Mapping[str, object], encoder: EncoderConfig, image_size: int, num_channels: int
) -> None:
    """Refuse (`ConfigError`) other sizes than the tensors'."""
    shapes = {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "intermediate_size": hidden_width(encoder.width, encoder.mlp_ratio),
        "patch_size": encoder.patch_size,
        "image_size": image_size,
        "num_channels": num_channels,
    }
    for key, found in shapes.items():
        said = config.get(key)
        require(
            said is None or said in (found, [found, found]),
            f"config.json: {key} = {said!r}, but the tensors say {found}",
        )


def check_model(config: Mapping[str, object]) -> None:
    """Refuse (`OtherNetwork`) a model, an activation or a change that we do not compute."""
    model = config.get("model_type")
    expect(model is None or model in MODELS, f"config.json: model_type = {model!r}")
    for key, wanted in _EXPECTED.items():
        said = config.get(key)
        expect(
            said is None or said in wanted,
            f"config.json: {key} = {said!r}: only {wanted[0]!r} is supported",
        )
    changes = config.get("model_args")
    strange = sorted(set(changes) - HARMLESS) if isinstance(changes, Mapping) else []
    expect(
        not strange,
        f"config.json: model_args change {', '.join(strange)} of timm's architecture, and tensors "
        "cannot show how",
    )


def class_names(config: Mapping[str, object], state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of a classifier's classes, by the rows of its head; none where they are numbers."""
    head, labels = state.get("head.weight"), config.get("id2label")
    if head is None or not isinstance(labels, Mapping):
        return ()
    numbers = [str(i) for i in range(len(head))]
    require(
        set(labels) == set(numbers),
        f"config.json: id2label names {len(labels)} classes, and the head has {len(numbers)}",
    )
    names = tuple(str(labels[number]) for number in numbers)
    return () if names in (tuple(numbers), tuple(f"LABEL_{i}" for i in numbers)) else names


def check_pooling(words: Mapping[str, Mapping[str, object]], pools_patches: bool) -> None:
    """Refuse (`ConfigError`) a classifier that is said to pool otherwise than its tensors show.

    The official code says `global_pool` as true or false, timm as `avg` or `token`. `words` are the
    settings by where they stand.
    """
    for where, settings in words.items():
        said = settings.get("global_pool")
        require(
            not isinstance(said, bool | str)
            or said in ((True, "avg") if pools_patches else (False, "", "token")),
            f"{where}: global_pool = {said!r}, but the file has "
            f"{'fc_norm' if pools_patches else 'the final norm and no fc_norm'}: it is not clear "
            "what its classifier pools",
        )
