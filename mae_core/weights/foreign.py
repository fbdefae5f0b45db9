"""Import of other libraries' checkpoints: layout found, sizes inferred, every key accounted for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mae_core.errors import ConfigError
from mae_core.weights import huggingface
from mae_core.weights.infer import Hints, infer
from mae_core.weights.layout import Layout, to_ours
from mae_core.weights.network import DECODER, Network, position_error
from mae_core.weights.source import Source, read_source
from mae_core.weights.timm import OFFICIAL, TIMM

LayoutName = Literal["official", "hf", "timm"]
LAYOUTS: tuple[LayoutName, ...] = ("official", "hf", "timm")
SAME_POSITIONS = 1e-5
"""Largest difference at which a table is called sin-cos: float32 roundings of another program."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """An imported network, and every decision on the way."""

    network: Network
    layout: LayoutName
    source: Source
    mapping: dict[str, tuple[str, ...]]
    """Our name → their keys."""
    left_out: tuple[str, ...]
    """Their keys that take no part."""
    position_error: float
    """Largest difference of the encoder's positions from the fixed sin-cos table."""
    notes: tuple[str, ...]
    """What was assumed or changed, in sentences."""


def import_weights(path: Path, layout: str = "auto", hints: Hints | None = None) -> Conversion:
    """Read and convert another library's checkpoint; `layout` is `auto` or one of `LAYOUTS`.

    Raises:
        ConfigError: it is not of that layout; the message lists what is missing, unexpected or of
            another shape, key by key. Or a pickle holds what is no tensor.
        CheckpointError: the file is damaged.
    """
    source = read_source(path)
    name = detect_layout(source) if layout == "auto" else layout
    naming = _naming(name, source)
    inferred = infer(source.tensors, naming, source.config, hints or Hints())
    state, left_out = to_ours(source.tensors, inferred.shapes, naming, inferred.num_channels)
    _check_values(state, naming)
    network = Network(
        encoder=inferred.encoder,
        image_size=inferred.image_size,
        num_channels=inferred.num_channels,
        state={name: value.float() for name, value in state.items()},
        decoder=inferred.decoder,
        mask_ratio=inferred.mask_ratio,
        norm_pix_loss=inferred.norm_pix_loss,
    )
    error = position_error(network.state["encoder.positions"], network.grid_size)
    return Conversion(
        network=network,
        layout=name,  # type: ignore[arg-type]
        source=source,
        mapping={ours: naming.theirs(ours) for ours in network.state},
        left_out=left_out,
        position_error=error,
        notes=(*inferred.notes, *_notes(network, source, error)),
    )


def detect_layout(source: Source) -> LayoutName:
    """Recognise the layout by its keys; raises `ConfigError` if it is unknown.

    The official code and timm name an encoder alike; the decoder, or the official container
    `model`, distinguishes them, and nothing depends on it.
    """
    keys = source.tensors
    if any("embeddings.patch_embeddings." in key for key in keys):
        return "hf"
    if "patch_embed.proj.weight" in keys:
        is_official = source.container == "model" or "decoder_embed.weight" in keys
        return "official" if is_official else "timm"
    some = ", ".join(sorted(keys)[:6])
    raise ConfigError(
        f"{source.path}: its {len(keys)} tensors match no known layout ({some} …); known are "
        "the official MAE code's, Hugging Face's ViT and ViTMAE, and timm's VisionTransformer"
    )


def naming_for_export(layout: LayoutName, network: Network) -> Layout:
    """The names to write a network in: those of transformers 4, which 5 reads as well."""
    if layout == "hf":
        is_bare = network.decoder is None and network.num_classes is None
        return huggingface.HuggingFace(4, "" if is_bare else "vit.")
    return OFFICIAL if layout == "official" else TIMM


def _naming(name: str, source: Source) -> Layout:
    if name not in LAYOUTS:
        raise ConfigError(f"layout {name!r}: use auto, {', '.join(LAYOUTS)}")
    if name == "hf":
        return huggingface.detect(source.tensors)
    return OFFICIAL if name == "official" else TIMM


def _check_values(state: dict[str, Tensor], naming: Layout) -> None:
    """Refuse (`ConfigError`) weights that are no finite floating-point numbers, by key."""
    for what, is_bad in (("no floating-point numbers", _is_integer), ("not finite", _is_poisoned)):
        bad = [key for ours, v in state.items() if is_bad(v) for key in naming.theirs(ours)]
        if bad:
            raise ConfigError(f"weights are {what}: {', '.join(bad[:8])}")


def _is_integer(value: Tensor) -> bool:
    return not value.is_floating_point()


def _is_poisoned(value: Tensor) -> bool:
    return not bool(value.isfinite().all())


def _notes(network: Network, source: Source, error: float) -> list[str]:
    notes = [_position_note(error)]
    types = {str(v.dtype).removeprefix("torch.") for v in source.tensors.values()}
    if foreign := sorted(types - {str(torch.float32).removeprefix("torch.")}):
        notes.append(f"stored as float32, was {', '.join(foreign)}")
    if "layer_norm_eps" not in source.config:
        notes.append("LN epsilon 1e-06, as in the official code and timm (assumed)")
    elif network.encoder.norm_eps != 1e-6:
        notes.append(f"LN epsilon {network.encoder.norm_eps:g}, by config.json; it is kept")
    if network.pools_patches:
        notes.append(
            "no final LN: as an encoder it gets the classifier's (fc_norm), applied to each token "
            "instead of their mean; frozen features are therefore not what the classifier sees, "
            "fine-tuning on the mean (which starts a new LN) is not affected"
        )
    if any(k.startswith(DECODER) for k in network.state) and network.norm_pix_loss is None:
        notes.append("unknown whether its targets were normalised per patch")
    return notes


def _position_note(error: float) -> str:
    if error == 0:
        return "positions are the fixed sin-cos table, bit by bit"
    kind = "the fixed sin-cos table" if error <= SAME_POSITIONS else "learned"
    return f"positions are {kind} (largest difference {error:.2g}), kept as they are"
