"""Which network a foreign file holds: sizes from its tensors' shapes, the rest from its config.

Shapes tell everything but the number of heads. Those are the config's, the caller's, or the rule
of all published ViTs: 64 channels each, in H 80 (arXiv 2010.11929 Table 1, 2111.06377).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from mae_core.config import DecoderConfig, EncoderConfig, require
from mae_core.model.sizes import ENCODERS, hidden_width
from mae_core.model.sizes import encoder as named_encoder
from mae_core.model.vit import NORM_EPS
from mae_core.weights.config_checks import check_config
from mae_core.weights.layout import PATCHES
from mae_core.weights.lookalikes import OtherNetwork, expect
from mae_core.weights.naming import Naming
from mae_core.weights.network import Shape, decoder_shapes, encoder_shapes, head_shapes
from mae_core.weights.pretraining_facts import Facts

HEAD_WIDTH = 64
HEADS_OF = {1280: 16, 1408: 16, 1664: 16}
"""Heads of the widths that are not cut in 64: H, g and G (arXiv 2106.04560 Table 2)."""
TWO_READINGS = {
    64: "1 (64 each) or 2 (timm's test_vit)",
    768: "8 (the older ViT-S) or 12 (ViT-B)",
    1152: "16 (SO400M) or 18 (64 each)",
}
"""Widths that were published with two numbers of heads; 768 with a depth of 8 alone."""
OLDER_SMALL = (768, 8)
OFFICIAL_SIZE = 224
"""Pixels, where neither positions nor words say it: the default of the official code."""
FIXED_TABLE = "; if it is the fixed sin-cos table of the official code, say --layout official"
DECODER_HEADS = 16
"""Of the paper's code, at every decoder width."""
MAX_DEPTH = 256
HF_HEADS, HF_EPS = 12, 1e-12
"""What `ViTConfig` and `ViTMAEConfig` take where a `config.json` says none."""
_ANCHORS = (PATCHES, "encoder.blocks.0.mlp.fc1.weight")


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What the caller knows of a file; None where it does not say."""

    num_heads: int | None = None
    decoder_heads: int | None = None
    size: str | None = None
    """Named size (`B`) that the file must have."""
    image_size: int | None = None
    """Pixels, for a file without positions."""
    norm_pix_loss: bool | None = None
    """Whether the pretraining's targets were normalised per patch."""
    part: str | None = None
    """Address of the network in a file that holds several."""


@dataclass(frozen=True, kw_only=True)
class Inferred:
    """The network that a file describes, before its tensors are taken."""

    encoder: EncoderConfig
    image_size: int
    num_channels: int
    decoder: DecoderConfig | None
    shapes: dict[str, Shape]
    """Of every tensor that it must have, in our names."""
    notes: tuple[str, ...]
    """What was assumed, for the record."""


def infer(
    tensors: Mapping[str, Tensor],
    layout: Naming,
    config: Mapping[str, object],
    hints: Hints,
    facts: Facts,
) -> Inferred:
    """Read the sizes off the shapes of a file's tensors.

    `config` is its `config.json`, empty if there is none. Raises `OtherNetwork` if the shapes
    describe no square ViT, `ConfigError` if they describe another one than config or hints say.
    """
    _check_anchors(tensors, layout)
    numbers = _numbers_of(config)
    is_hf = bool(config) and layout.name == "hf"
    width, num_channels, patch, across = _shape(tensors, layout, PATCHES, 4)
    expect(patch == across, f"patches of {patch}x{across} pixels: only square ones are supported")
    grid, absent, grid_note = _grid(tensors, layout, patch, facts)
    hidden = _shape(tensors, layout, "encoder.blocks.0.mlp.fc1.weight", 2)[0]
    depth = _depth(tensors, layout, "encoder")
    _check_size(hints, width, depth)
    heads, note = _heads(width, depth, numbers, hints, facts, is_hf)
    encoder = EncoderConfig(
        width=width,
        depth=depth,
        num_heads=heads,
        patch_size=patch,
        mlp_ratio=_ratio(hidden, width),
        norm_eps=float(numbers.get("layer_norm_eps", HF_EPS if is_hf else NORM_EPS)),
    )
    encoder = replace(encoder, name=_name(encoder))
    decoder, decoder_note = _decoder(tensors, layout, numbers, hints, facts)
    shapes = encoder_shapes(encoder, grid * patch, num_channels)
    if decoder is not None:
        shapes |= decoder_shapes(decoder, encoder, grid, num_channels)
    shapes = _with_head(shapes, tensors, layout, width)
    check_config(config, encoder, grid * patch, num_channels)
    return Inferred(
        encoder=encoder,
        image_size=grid * patch,
        num_channels=num_channels,
        decoder=decoder,
        shapes={name: shape for name, shape in shapes.items() if name not in absent},
        notes=tuple(n for n in (note, decoder_note, grid_note) if n),
    )


def _check_anchors(tensors: Mapping[str, Tensor], layout: Naming) -> None:
    absent = [k for ours in _ANCHORS for k in layout.theirs(ours) if k not in tensors]
    if absent:
        some = ", ".join(sorted(tensors)[:6])
        raise OtherNetwork(
            f"not the {layout.name} layout of a ViT: missing {', '.join(absent)}; it has "
            f"{len(tensors)} tensors: {some} …"
        )
    [key] = layout.theirs(PATCHES)
    require(
        tensors[key].numel() > 0,
        f"{key} holds no values: these are the shards of ZeRO-3 or FSDP; gather them first "
        "(DeepSpeed's zero_to_fp32.py, or a full state_dict)",
    )


def _shape(tensors: Mapping[str, Tensor], layout: Naming, ours: str, rank: int) -> Shape:
    key = layout.theirs(ours)[0]
    shape = tuple(tensors[key].shape)
    expect(len(shape) == rank, f"{key} has shape {shape}: expected {rank} dimensions")
    return shape


def _grid(
    tensors: Mapping[str, Tensor], layout: Naming, patch: int, facts: Facts
) -> tuple[int, set[str], str]:
    """Patches a side, which tables are not in the file, and a sentence on them.

    A table that is absent is the fixed sin-cos one where the layout says so: the official code's,
    and transformers' with a decoder. Anywhere else it may mean rotary or relative positions;
    mmpretrain's own sin-cos table has rows and columns the other way round.
    """
    wanted = [p for p in ("encoder.positions", "decoder.positions") if _is_used(p, tensors, layout)]
    absent = {p for p in wanted if layout.theirs(p)[0] not in tensors}
    there = [p for p in wanted if p not in absent]
    grids = {_square(_shape(tensors, layout, p, 3)[1]) for p in there}
    require(len(grids) <= 1, f"the two tables of positions have grids of {sorted(grids)} patches")
    said = facts.image_size
    if grids:
        [grid] = grids
        require(
            said in (None, grid * patch),
            f"image_size = {said}, but the tensors say {grid * patch} ({'; '.join(facts.notes)}); "
            "if the tensors are right, name it with --image-size",
        )
    else:
        size = said or OFFICIAL_SIZE
        require(size % patch == 0, f"{size} pixels are no multiple of the patch, {patch}")
        grid = size // patch
    if not absent:
        return grid, absent, ""
    names = " and ".join(layout.theirs(p)[0] for p in sorted(absent))
    is_fixed = layout.name == "official" or (layout.name == "hf" and len(wanted) > 1)
    expect(
        is_fixed,
        f"not the {layout.name} layout of a ViT: missing {names}"
        + (FIXED_TABLE if layout.name == "timm" else ""),
    )
    assumed = (
        "" if grids or said else f", image size {OFFICIAL_SIZE} as in the official code (assumed)"
    )
    return (
        grid,
        absent,
        f"no {names} in the file: the sin-cos table of {grid}x{grid} patches{assumed}",
    )


def _is_used(positions: str, tensors: Mapping[str, Tensor], layout: Naming) -> bool:
    keys = layout.theirs("decoder.embed.weight")
    return positions.startswith("encoder.") or (bool(keys) and keys[0] in tensors)


def _square(num_positions: int) -> int:
    side = math.isqrt(max(num_positions - 1, 0))
    expect(
        num_positions > 1 and side * side == num_positions - 1,
        f"{num_positions} positions are not one class token and a square of patches: models with "
        "other grids, or with more than one token besides the patches, are not supported",
    )
    return side


def _depth(tensors: Mapping[str, Tensor], layout: Naming, part: str) -> int:
    """One more than the highest index: a missing block below it is then named by key."""
    probes = ("norm1.weight", "attn.proj.weight", "mlp.fc2.weight")
    found: list[int] = [
        index
        for index in range(MAX_DEPTH)
        for probe in probes
        for key in layout.theirs(f"{part}.blocks.{index}.{probe}")
        if key in tensors
    ]
    return max(found, default=-1) + 1


def _ratio(hidden: int, width: int) -> float:
    """The ratio of which `hidden_width` makes exactly `hidden`."""
    ratio = hidden / width
    return ratio if hidden_width(width, ratio) == hidden else math.nextafter(ratio, math.inf)


def _heads(
    width: int,
    depth: int,
    numbers: Mapping[str, float],
    hints: Hints,
    facts: Facts,
    is_hf: bool,
) -> tuple[int, str]:
    said = numbers.get("num_attention_heads")
    named = named_encoder(hints.size).num_heads if hints.size else None
    for given, where in ((hints.num_heads, "--heads"), (said, "config.json"), (named, "--size")):
        if given is not None:
            require(
                said in (None, given),
                f"{where} says {given} heads, and the file's config.json {said}",
            )
            return int(given), f"{given} heads, by {where}"
    if is_hf:
        return HF_HEADS, f"{HF_HEADS} heads, which transformers takes where config.json says none"
    heads, two = assumed_heads(width, depth), TWO_READINGS.get(width)
    if facts.num_heads is not None:
        require(
            heads in (0, facts.num_heads),
            f"two readings: its settings say num_heads = {facts.num_heads}, and published ViTs of "
            f"width {width} have {heads}; say which with --heads",
        )
        return facts.num_heads, ""
    require(
        heads > 0,
        f"two readings of width {width} at depth {depth}: {two} heads; name them with --heads"
        if two
        else f"no file of this layout says its number of heads, and width {width} is not a "
        f"multiple of {HEAD_WIDTH}: name it with --heads",
    )
    whose = "as in ViT-H, g and G" if width in HEADS_OF else "as in every ViT but H"
    return heads, f"{heads} heads of {width // heads}, {whose} (assumed)"


def assumed_heads(width: int, depth: int) -> int:
    """Heads that are assumed where nobody says them, 0 where none can be."""
    if width in TWO_READINGS and (width != OLDER_SMALL[0] or (width, depth) == OLDER_SMALL):
        return 0
    return HEADS_OF.get(width, 0 if width % HEAD_WIDTH else width // HEAD_WIDTH)


def _check_size(hints: Hints, width: int, depth: int) -> None:
    """Refuse a file of another size than the caller named."""
    if hints.size is None:
        return
    size = named_encoder(hints.size)
    require(
        (size.width, size.depth) == (width, depth),
        f"--size {hints.size} has width {size.width} and depth {size.depth}, but the file has "
        f"{width} and {depth}",
    )
    require(
        hints.num_heads in (None, size.num_heads),
        f"--size {hints.size} has {size.num_heads} heads and --heads says {hints.num_heads}",
    )


def _name(encoder: EncoderConfig) -> str:
    """Name of the size that an encoder has, empty for one without a name."""
    same = (n for n, size in ENCODERS.items() if _dimensions(size) == _dimensions(encoder))
    return next(same, "")


def _dimensions(encoder: EncoderConfig) -> Shape:
    return (encoder.width, encoder.depth, encoder.num_heads)


def _decoder(
    tensors: Mapping[str, Tensor],
    layout: Naming,
    numbers: Mapping[str, float],
    hints: Hints,
    facts: Facts,
) -> tuple[DecoderConfig | None, str]:
    keys = layout.theirs("decoder.embed.weight")
    if not keys or keys[0] not in tensors:
        return None, ""
    width = _shape(tensors, layout, "decoder.embed.weight", 2)[0]
    said = numbers.get("decoder_num_attention_heads")
    heads = hints.decoder_heads or said or facts.decoder_num_heads
    require(
        said in (None, heads),
        f"--decoder-heads says {heads} heads, and the file's config.json {said}",
    )
    note = "" if heads else f"{DECODER_HEADS} decoder heads, as in the paper's code (assumed)"
    decoder = DecoderConfig(
        width=width, depth=_depth(tensors, layout, "decoder"), num_heads=int(heads or DECODER_HEADS)
    )
    return decoder, note


def _with_head(
    shapes: dict[str, Shape], tensors: Mapping[str, Tensor], layout: Naming, width: int
) -> dict[str, Shape]:
    """Add the classifier, where the file has one; an LN after pooling takes the final one's place.

    A file with that LN alone (timm's average-pooled features without a head) has no features
    before it either, and is refused by its missing head.
    """
    pools = any(key in tensors for key in layout.theirs("norm.weight"))
    keys = layout.theirs("head.weight")
    has_head = bool(keys) and keys[0] in tensors
    if not has_head and not pools:
        return shapes
    classes = tensors[keys[0]].shape[0] if has_head else 0
    if pools:
        shapes = {k: v for k, v in shapes.items() if not k.startswith("encoder.norm.")}
    return shapes | head_shapes(width, classes, pools)


def _numbers_of(config: Mapping[str, object]) -> dict[str, float]:
    """The numbers that a config says; refuse what should be one above 0 and is none."""
    found: dict[str, float] = {}
    for key in ("num_attention_heads", "decoder_num_attention_heads", "layer_norm_eps"):
        timms = "num_heads" if key == "num_attention_heads" else key
        value = config.get(key, config.get(timms))
        kind = float if key == "layer_norm_eps" else int
        is_number = isinstance(value, int | kind) and not isinstance(value, bool)
        if value is not None:
            require(
                is_number and 0 < value < math.inf,  # type: ignore[operator]
                f"config.json: {key} = {value!r} is not a number above 0",
            )
            found[key] = value  # type: ignore[assignment]
    return found
