"""Import of other libraries' checkpoints: layout found, sizes inferred, every key accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mae_core.config import require
from mae_core.errors import ConfigError
from mae_core.model.vit import NORM_EPS
from mae_core.weights.config_checks import check_model, check_pooling, class_names
from mae_core.weights.infer import Hints, infer
from mae_core.weights.layout import to_ours
from mae_core.weights.lookalikes import OtherNetwork, advice
from mae_core.weights.naming import LayoutName, Naming, detect_layout, naming_of
from mae_core.weights.network import DECODER, POSITIONS, Network, position_error, with_positions
from mae_core.weights.pretraining_facts import Facts, read_facts
from mae_core.weights.source import Source, read_source

SAME_POSITIONS = 1e-5
"""Largest difference at which a table is called sin-cos: float32 roundings of another program."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """An imported network, and every decision on the way."""

    network: Network
    layout: LayoutName
    source: Source
    facts: Facts
    mapping: dict[str, tuple[str, ...]]
    """Our name → their keys; none for positions that were computed."""
    left_out: tuple[str, ...]
    """Their keys that take no part; many of one module as `module.*`."""
    position_error: float
    """Largest difference of the encoder's positions from the fixed sin-cos table."""
    notes: tuple[str, ...]
    """What was assumed or changed, in sentences."""


def import_weights(path: Path, layout: str = "auto", hints: Hints | None = None) -> Conversion:
    """Read and convert another library's checkpoint; `layout` is `auto` or one of `LAYOUTS`.

    Raises:
        ConfigError: it is not of that layout; the message lists what is missing, unexpected or of
            another shape, key by key. Or a pickle holds what is no tensor, there are several
            networks and `hints` names none, or what is said of it contradicts itself.
        CheckpointError: the file is damaged.
    """
    hints = hints or Hints()
    source = read_source(path, hints.part)
    naming = naming_of(
        detect_layout(source.tensors, source.container) if layout == "auto" else layout,
        source.tensors,
    )
    facts = read_facts(source, hints.norm_pix_loss, hints.image_size)
    try:
        check_model(source.config)
        inferred = infer(source.tensors, naming, source.config, hints, facts)
        state, left_out = to_ours(source.tensors, inferred.shapes, naming, inferred.num_channels)
    except OtherNetwork as error:
        raise ConfigError(f"{path}: {error}; {advice(source.tensors)}") from error
    _check_values(state, naming)
    grid = inferred.image_size // inferred.encoder.patch_size
    plain = {name: value.float() for name, value in state.items()}
    network = Network(
        encoder=inferred.encoder,
        image_size=inferred.image_size,
        num_channels=inferred.num_channels,
        state=with_positions(plain, inferred.encoder, inferred.decoder, grid),
        decoder=inferred.decoder,
        mask_ratio=facts.mask_ratio,
        norm_pix_loss=facts.norm_pix_loss,
        class_names=class_names(source.config, state),
    )
    if network.num_classes is not None:
        check_pooling({"config.json": source.config, **source.arguments}, network.pools_patches)
    return Conversion(
        network=network,
        layout=naming.name,
        source=source,
        facts=facts,
        mapping={ours: naming.theirs(ours) if ours in state else () for ours in network.state},
        left_out=(*left_out, *_grouped(source.outside)),
        position_error=position_error(network.state["encoder.positions"], grid),
        notes=(
            *source.notes,
            *inferred.notes,
            *facts.notes,
            *_notes(network, source, naming, state),
        ),
    )


def _check_values(state: dict[str, Tensor], naming: Naming) -> None:
    """Refuse (`ConfigError`) weights that are no finite floating-point numbers, by key."""
    strange = [ours for ours, value in state.items() if not value.is_floating_point()]
    finite = (n for n, value in state.items() if n in strange or value.float().isfinite().all())
    poisoned = state.keys() - finite
    for what, bad in (("no floating-point numbers", strange), ("not finite", sorted(poisoned))):
        keys = [key for ours in bad for key in naming.theirs(ours)]
        require(not keys, f"weights are {what}: {', '.join(keys[:8])}")


def _grouped(keys: Sequence[str]) -> list[str]:
    """Keys by their first name, those of a module as one."""
    modules = Counter(key.partition(".")[0] for key in keys)
    single = [key for key in keys if modules[key.partition(".")[0]] == 1]
    return sorted([*single, *(f"{name}.*" for name, count in modules.items() if count > 1)])


def _notes(
    network: Network, source: Source, naming: Naming, state: Mapping[str, Tensor]
) -> list[str]:
    notes = [
        _position_note(name, network.state[name], network.grid_size)
        for name in sorted(POSITIONS & set(state), reverse=True)
    ]
    if "ds_version" in source.left_out:
        notes.append(
            "weights are those of DeepSpeed's model states; under bf16 or fp16 the exact float32 "
            "ones are in the optimizer states beside them, and its zero_to_fp32.py gathers those"
        )
    types = {str(v.dtype).removeprefix("torch.") for v in source.tensors.values()}
    if foreign := sorted(types - {str(torch.float32).removeprefix("torch.")}):
        notes.append(f"stored as float32, was {', '.join(foreign)}")
    eps = network.encoder.norm_eps
    if "layer_norm_eps" in source.config:
        notes += [f"LN epsilon {eps:g}, by config.json; it is kept"] if eps != NORM_EPS else []
    elif eps != NORM_EPS:
        notes.append(f"LN epsilon {eps:g}, which transformers takes where config.json says none")
    else:
        whose = "; transformers' own default is 1e-12" if naming.name == "hf" else ""
        notes.append(f"LN epsilon 1e-06 (assumed{whose})")
    if network.pools_patches:
        notes.append(
            "no final LN: as an encoder it gets the classifier's (fc_norm), applied to each token "
            "instead of their mean; frozen features are therefore not what the classifier sees, "
            "fine-tuning on the mean (which starts a new LN) is not affected"
        )
    if any(k.startswith(DECODER) for k in network.state) and network.norm_pix_loss is None:
        notes.append(
            "unknown whether its targets were normalised per patch; say it with --norm-pix-loss or "
            "--no-norm-pix-loss"
        )
    return notes


def _position_note(name: str, table: Tensor, grid: int) -> str:
    whose = "decoder's positions" if name.startswith(DECODER) else "positions"
    if not table.any():  # as transformers 5 builds a ViTMAE that is not loaded from a file
        return f"{whose} are all zero: the network sees no places; kept as they are"
    error = position_error(table, grid)
    if error == 0:
        return f"{whose} are the fixed sin-cos table, bit by bit"
    kind = "the fixed sin-cos table" if error <= SAME_POSITIONS else "learned"
    return f"{whose} are {kind} (largest difference {error:.2g}), kept as they are"
