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
from mae_core.errors import ConfigError
from mae_core.model.sizes import ENCODERS, hidden_width
from mae_core.model.sizes import encoder as named_encoder
from mae_core.weights.layout import PATCHES, Layout
from mae_core.weights.network import Shape, decoder_shapes, encoder_shapes, head_shapes

HEAD_WIDTH = 64
HEADS_OF_H = {1280: 16}
DECODER_HEADS = 16
"""Of the paper's code, at every decoder width."""
MAX_DEPTH = 256
_ANCHORS = (PATCHES, "encoder.positions", "encoder.blocks.0.mlp.fc1.weight")


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What the caller knows of a file; None where it does not say."""

    num_heads: int | None = None
    decoder_heads: int | None = None
    size: str | None = None
    """Named size (`B`) that the file must have."""


@dataclass(frozen=True, kw_only=True)
class Inferred:
    """The network that a file describes, before its tensors are taken."""

    encoder: EncoderConfig
    image_size: int
    num_channels: int
    decoder: DecoderConfig | None
    shapes: dict[str, Shape]
    """Of every tensor that it must have, in our names."""
    mask_ratio: float | None
    """Of the pretraining, where the config says it."""
    norm_pix_loss: bool | None
    notes: tuple[str, ...]
    """What was assumed, for the record."""


def infer(
    tensors: Mapping[str, Tensor], layout: Layout, config: Mapping[str, object], hints: Hints
) -> Inferred:
    """Read the sizes off the shapes of a file's tensors.

    `config` is its `config.json` in Hugging Face's words, empty if there is none. Raises
    `ConfigError` if the shapes describe no square ViT, or another one than config or hints say.
    """
    _check_anchors(tensors, layout)
    numbers = _numbers_of(config)
    width, num_channels, patch, across = _shape(tensors, layout, PATCHES, 4)
    require(patch == across, f"patches of {patch}x{across} pixels: only square ones are supported")
    require(min(width, num_channels, patch) >= 1, f"an empty tensor: {layout.theirs(PATCHES)[0]}")
    grid = _grid(_shape(tensors, layout, "encoder.positions", 3)[1])
    hidden = _shape(tensors, layout, "encoder.blocks.0.mlp.fc1.weight", 2)[0]
    depth = _depth(tensors, layout, "encoder")
    _check_size(hints, width, depth)
    heads, note = _heads(width, numbers, hints)
    encoder = EncoderConfig(
        width=width,
        depth=depth,
        num_heads=heads,
        patch_size=patch,
        mlp_ratio=_ratio(hidden, width),
        norm_eps=float(numbers.get("layer_norm_eps", 1e-6)),
    )
    encoder = replace(encoder, name=_name(encoder))
    image_size = grid * patch
    decoder, decoder_note = _decoder(tensors, layout, numbers, hints)
    shapes = encoder_shapes(encoder, image_size, num_channels)
    if decoder is not None:
        shapes |= decoder_shapes(decoder, encoder, grid, num_channels)
    shapes = _with_head(shapes, tensors, layout, width)
    _check_config(config, encoder, image_size, num_channels)
    mask_ratio, norm_pix = config.get("mask_ratio"), config.get("norm_pix_loss")
    return Inferred(
        encoder=encoder,
        image_size=image_size,
        num_channels=num_channels,
        decoder=decoder,
        shapes=shapes,
        mask_ratio=mask_ratio if isinstance(mask_ratio, int | float) else None,
        norm_pix_loss=norm_pix if isinstance(norm_pix, bool) else None,
        notes=tuple(n for n in (note, decoder_note) if n),
    )


def _check_anchors(tensors: Mapping[str, Tensor], layout: Layout) -> None:
    absent = [k for ours in _ANCHORS for k in layout.theirs(ours) if k not in tensors]
    if absent:
        some = ", ".join(sorted(tensors)[:6])
        raise ConfigError(
            f"not the {layout.name} layout of a ViT: missing {', '.join(absent)}; the file has "
            f"{len(tensors)} tensors: {some} … Name its layout with --layout, or convert it first"
        )


def _shape(tensors: Mapping[str, Tensor], layout: Layout, ours: str, rank: int) -> Shape:
    key = layout.theirs(ours)[0]
    shape = tuple(tensors[key].shape)
    require(len(shape) == rank, f"{key} has shape {shape}: expected {rank} dimensions")
    return shape


def _grid(num_positions: int) -> int:
    side = math.isqrt(max(num_positions - 1, 0))
    require(
        num_positions > 1 and side * side == num_positions - 1,
        f"{num_positions} positions are not one class token and a square of patches: models with "
        "other grids, or with more than one token besides the patches, are not supported",
    )
    return side


def _depth(tensors: Mapping[str, Tensor], layout: Layout, part: str) -> int:
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


def _heads(width: int, numbers: Mapping[str, float], hints: Hints) -> tuple[int, str]:
    said = numbers.get("num_attention_heads")
    named = named_encoder(hints.size).num_heads if hints.size else None
    for given, where in ((hints.num_heads, "--heads"), (said, "config.json"), (named, "--size")):
        if given is not None:
            require(
                said in (None, given),
                f"{where} says {given} heads, and the file's config.json {said}",
            )
            return int(given), f"{given} heads, by {where}"
    if width in HEADS_OF_H:
        return HEADS_OF_H[width], f"{HEADS_OF_H[width]} heads of 80, as in ViT-H (assumed)"
    require(
        width % HEAD_WIDTH == 0,
        f"no file of this layout says its number of heads, and width {width} is not a multiple of "
        f"{HEAD_WIDTH}: name it with --heads",
    )
    return (
        width // HEAD_WIDTH,
        f"{width // HEAD_WIDTH} heads of 64, as in every ViT but H (assumed)",
    )


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
    tensors: Mapping[str, Tensor], layout: Layout, numbers: Mapping[str, float], hints: Hints
) -> tuple[DecoderConfig | None, str]:
    keys = layout.theirs("decoder.embed.weight")
    if not keys or keys[0] not in tensors:
        return None, ""
    width = _shape(tensors, layout, "decoder.embed.weight", 2)[0]
    heads = hints.decoder_heads or numbers.get("decoder_num_attention_heads")
    note = "" if heads else f"{DECODER_HEADS} decoder heads, as in the paper's code (assumed)"
    decoder = DecoderConfig(
        width=width, depth=_depth(tensors, layout, "decoder"), num_heads=int(heads or DECODER_HEADS)
    )
    return decoder, note


def _with_head(
    shapes: dict[str, Shape], tensors: Mapping[str, Tensor], layout: Layout, width: int
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
        value = config.get(key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        require(
            value is None or is_number, f"config.json: {key} = {value!r} is not a number above 0"
        )
        if isinstance(value, int | float):
            found[key] = value
    return found


def _said(config: Mapping[str, object], key: str, otherwise: object) -> object:
    value = config.get(key)
    return otherwise if value is None else value


_EXPECTED = {"hidden_act": "gelu", "qkv_bias": True}


def _check_config(
    config: Mapping[str, object], encoder: EncoderConfig, image_size: int, num_channels: int
) -> None:
    """Refuse a config that says something else than the tensors, or a network we cannot compute."""
    for key, wanted in _EXPECTED.items():
        said = _said(config, key, wanted)
        require(said == wanted, f"config.json: {key} = {said!r}: only {wanted!r} is supported")
    shapes = {
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "patch_size": encoder.patch_size,
        "image_size": image_size,
        "num_channels": num_channels,
    }
    for key, found in shapes.items():
        said = _said(config, key, found)
        require(
            said in (found, [found, found]),
            f"config.json: {key} = {said!r}, but the tensors say {found}",
        )
