"""Analytic parameter and FLOP counts, light to import (2 FLOPs per multiply-accumulate).

Two counts are kept apart. *Algorithmic* is the reference formula (every patch embedded, every
token predicted, training = 3 × forward): the x-axis of a scaling curve, which no optimisation of
ours may move. *Executed* is what this code multiplies (visible patches embedded, masked tokens
predicted, no gradient towards the pixels): for utilisation. Only matrix products count; norms,
activations and softmax add about 0.1 %.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from mae_core.config import (
    AttentiveProbeRecipe,
    BatchSplit,
    BestOfRecipe,
    ContrastiveRecipe,
    EncoderConfig,
    EvalRecipe,
    FeatureProbeRecipe,
    FinetuneRecipe,
    InferenceRecipe,
    LinearProbeRecipe,
    PartialFinetuneRecipe,
    PretrainRecipe,
    ReconstructionRecipe,
    TokenizerRecipe,
    num_keep,
    num_patches,
)
from mae_core.model.sizes import hidden_width

ALGORITHMIC_VERSION = 1
"""Raise it if the algorithmic formula ever changes: points of two versions share no axis."""


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of one image, counted twice; see the module docstring."""

    algorithmic: int
    executed: int


@dataclass(frozen=True)
class EvalFlops:
    """FLOPs of an evaluation per image."""

    train_image: FlopCount
    """For each training image in each epoch (k-NN: once, to build the bank)."""
    eval_image: FlopCount
    """For each image that is scored."""


def encoder_params(encoder: EncoderConfig, num_channels: int) -> int:
    """Count an encoder's trainable parameters: no head, no fixed positions (B: 85.6 M)."""
    patch = _patch_dim(encoder, num_channels)
    embedding = patch * encoder.width + encoder.width
    class_token, final_norm = encoder.width, 2 * encoder.width
    hidden = hidden_width(encoder.width, encoder.mlp_ratio)
    blocks = encoder.depth * _block_params(encoder.width, hidden)
    return embedding + class_token + blocks + final_norm


def pretrain_params(recipe: PretrainRecipe) -> int:
    """Count the trainable parameters of encoder and decoder, no fixed positions (B: 111.7 M)."""
    encoder, decoder = recipe.encoder, recipe.decoder
    embedding = encoder.width * decoder.width + decoder.width
    mask_token, final_norm = decoder.width, 2 * decoder.width
    blocks = decoder.depth * _block_params(decoder.width, hidden_width(decoder.width))
    outputs = target_width(recipe)
    head = decoder.width * outputs + outputs
    return (
        encoder_params(encoder, recipe.data.num_channels)
        + (encoder.width if recipe.mask_tokens_in_encoder else 0)
        + embedding
        + mask_token
        + blocks
        + final_norm
        + head
    )


def pretrain_flops_per_image(recipe: PretrainRecipe) -> FlopCount:
    """Count one training image: forward and backward, no optimizer (B at 224 px: 58.7 GFLOP)."""
    encoder, decoder = recipe.encoder, recipe.decoder
    patch = _patch_dim(encoder, recipe.data.num_channels)
    patches = recipe.num_patches
    visible = num_keep(patches, recipe.mask_ratio)
    encoded = patches if recipe.mask_tokens_in_encoder else visible
    body = (
        _encoder_blocks(encoder, encoded + 1)
        + _linear(encoded + 1, encoder.width, decoder.width)
        + _blocks(decoder.depth, patches + 1, decoder.width, hidden_width(decoder.width))
    )
    embed_all = _linear(patches, patch, encoder.width)
    embed_visible = _linear(visible, patch, encoder.width)
    outputs = target_width(recipe)
    predicted = patches if recipe.loss_on == "all" else patches - visible
    predict_all = _linear(patches + 1, decoder.width, outputs)
    predict_masked = _linear(predicted, decoder.width, outputs)
    return FlopCount(
        algorithmic=3 * (embed_all + body + predict_all),
        executed=3 * (body + predict_masked) + 2 * embed_visible,
    )


def reconstruction_flops_per_image(
    recipe: ReconstructionRecipe, pretrain: PretrainRecipe
) -> FlopCount:
    """Count one image put through a pretraining's network at another mask ratio, forward only."""
    trained = pretrain_flops_per_image(replace(pretrain, mask_ratio=recipe.mask_ratio))
    forward = trained.algorithmic // 3
    return FlopCount(forward, forward)


def target_width(recipe: PretrainRecipe) -> int:
    """Width of the decoder's head."""
    if recipe.target == "pixels":
        return _patch_dim(recipe.encoder, recipe.data.num_channels)
    return recipe.target_dim


def contrastive_params(recipe: ContrastiveRecipe) -> int:
    """Count the parameters of encoder, projector and predictor, without the momentum copies."""
    layers = [*_projector(recipe), *_predictor(recipe)]
    # Weights without biases; the norms of hidden layers have scale and shift.
    heads = sum(inputs * outputs for inputs, outputs in layers) + 3 * 2 * recipe.head_width
    return encoder_params(recipe.encoder, recipe.data.num_channels) + heads


def contrastive_flops_per_image(
    recipe: ContrastiveRecipe, split: BatchSplit | None = None
) -> FlopCount:
    """Count one training image: both views through the encoder and its momentum copy.

    Executed depends on how the batch is split: with accumulation each view is encoded once more,
    and every rank computes the heads and similarities of the whole global batch.
    """
    data, encoder = recipe.data, recipe.encoder
    forward = encoder_forward_flops(encoder, data.image_size, data.num_channels)
    embedding = _embedding(encoder, data.image_size, data.num_channels)
    project = sum(_linear(1, inputs, outputs) for inputs, outputs in _projector(recipe))
    predict = sum(_linear(1, inputs, outputs) for inputs, outputs in _predictor(recipe))
    # Keys get no gradient: the similarities have one product forward and one backward.
    compare = 2 * _linear(1, recipe.output_width, recipe.global_batch)
    heads = 4 * project + 3 * predict + compare
    ranks, encodes_twice = (split.world, split.accumulation > 1) if split else (1, False)
    no_gradient = embedding if recipe.train_patch_embed else 2 * embedding
    executed = (5 if encodes_twice else 4) * forward - no_gradient + ranks * heads
    return FlopCount(algorithmic=2 * (4 * forward + heads), executed=2 * executed)


def _projector(recipe: ContrastiveRecipe) -> list[tuple[int, int]]:
    hidden = recipe.head_width
    return [(recipe.encoder.width, hidden), (hidden, hidden), (hidden, recipe.output_width)]


def _predictor(recipe: ContrastiveRecipe) -> list[tuple[int, int]]:
    return [(recipe.output_width, recipe.head_width), (recipe.head_width, recipe.output_width)]


def tokenizer_params(recipe: TokenizerRecipe) -> int:
    """Count the parameters of a tokenizer's encoder, code book and decoder."""
    layers = sum(i * o * kernel**2 + o for i, o, kernel, _ in tokenizer_layers(recipe))
    return layers + recipe.vocabulary * recipe.code_dim


def tokenizer_flops_per_image(recipe: TokenizerRecipe) -> FlopCount:
    """Count one training image of a tokenizer: convolutions and code book, 3 × forward."""
    forward = sum(
        2 * inputs * outputs * kernel**2 * side**2
        for inputs, outputs, kernel, side in tokenizer_layers(recipe)
    )
    grid = recipe.data.image_size // recipe.patch_size
    forward += 2 * grid**2 * recipe.vocabulary * recipe.code_dim
    return FlopCount(3 * forward, 3 * forward)


def tokenizer_layers(recipe: TokenizerRecipe) -> list[tuple[int, int, int, int]]:
    """Convolutions of `mae_core.model.vq_vae` as (inputs, outputs, kernel, output side)."""
    size, width, channels = recipe.data.image_size, recipe.width, recipe.data.num_channels
    halvings = recipe.patch_size.bit_length() - 1
    sides = [size >> (i + 1) for i in range(halvings)]
    grid = sides[-1]
    down = [(channels if i == 0 else width, width, 4, side) for i, side in enumerate(sides)]
    code = recipe.code_dim
    body = [(width, width, 3, grid), (width, code, 1, grid), (code, width, 3, grid)]
    # A transposed convolution multiplies kernel² values for each pixel of its input.
    outputs = [width] * (halvings - 1) + [channels]
    up = [(width, out, 4, side) for out, side in zip(outputs, reversed(sides), strict=True)]
    return down + body + up


def encoder_forward_flops(
    encoder: EncoderConfig, image_size: int, num_channels: int, num_tokens: int | None = None
) -> int:
    """Count one forward pass of an encoder over one image.

    `num_tokens` patches are embedded and processed, all of the image's by default; the class
    token comes on top.
    """
    patches = num_patches(image_size, encoder.patch_size) if num_tokens is None else num_tokens
    embedding = _linear(patches, _patch_dim(encoder, num_channels), encoder.width)
    return embedding + _encoder_blocks(encoder, patches + 1)


@functools.singledispatch
def eval_flops_per_image(recipe: EvalRecipe, encoder: EncoderConfig, num_classes: int) -> EvalFlops:
    """Count an evaluation per image; `num_classes` is the width of the head (k-NN has none).

    A probe is counted as the paper runs it, encoding each image in each epoch: features kept
    from a deterministic view are an implementation's saving on the number of images encoded.
    The search among k-NN's neighbours (2 · width per stored image) is left out.
    """
    forward = _forward(recipe, encoder)
    return EvalFlops(FlopCount(forward, forward), FlopCount(forward, forward))


@eval_flops_per_image.register
def _feature_probe_flops(
    recipe: FeatureProbeRecipe, encoder: EncoderConfig, num_classes: int
) -> EvalFlops:
    """Nothing is encoded; one head of the grid is scored in the end."""
    head = _head(recipe, encoder, num_classes)
    grid = head * recipe.num_heads
    return EvalFlops(FlopCount(3 * grid, 2 * grid), FlopCount(head, head))


@eval_flops_per_image.register
def _attentive_probe_flops(
    recipe: AttentiveProbeRecipe, encoder: EncoderConfig, num_classes: int
) -> EvalFlops:
    """Keys and values of all tokens, one query's attention and its projection, then the head."""
    forward = _forward(recipe, encoder)
    tokens = 1 + num_patches(recipe.data.image_size, encoder.patch_size)
    keys_values = _linear(tokens, encoder.width, 2 * encoder.width)
    attention = 4 * tokens * encoder.width + _linear(1, encoder.width, encoder.width)
    pooled = keys_values + attention + _head(recipe, encoder, num_classes)
    train = FlopCount(forward + 3 * pooled, forward + 3 * pooled)
    return EvalFlops(train, FlopCount(forward + pooled, forward + pooled))


@eval_flops_per_image.register
def _finetune_flops(recipe: FinetuneRecipe, encoder: EncoderConfig, num_classes: int) -> EvalFlops:
    data = recipe.data
    embedding = _embedding(encoder, data.image_size, data.num_channels)
    whole = _forward(recipe, encoder) + _head(recipe, encoder, num_classes)
    return EvalFlops(FlopCount(3 * whole, 3 * whole - embedding), FlopCount(whole, whole))


@eval_flops_per_image.register
def _partial_finetune_flops(
    recipe: PartialFinetuneRecipe, encoder: EncoderConfig, num_classes: int
) -> EvalFlops:
    """Forward through all, backward through what is trained; LNs before it want its input's."""
    if recipe.num_blocks >= encoder.depth:
        return _finetune_flops(recipe, encoder, num_classes)
    forward, head = _forward(recipe, encoder), _head(recipe, encoder, num_classes)
    tokens = 1 + num_patches(recipe.data.image_size, encoder.patch_size)
    hidden = hidden_width(encoder.width, encoder.mlp_ratio)
    if recipe.num_blocks == 0.5:
        trained = 2 * _linear(tokens, encoder.width, hidden)
    else:
        trained = _blocks(int(recipe.num_blocks), tokens, encoder.width, hidden)
    algorithmic = forward + 2 * trained + 3 * head
    # With the class token and no block, the LN before the head is the encoder's, and frozen.
    nothing_before = recipe.num_blocks == 0 and recipe.features == "cls"
    train = FlopCount(algorithmic, algorithmic - (head if nothing_before else 0))
    return EvalFlops(train, FlopCount(forward + head, forward + head))


@eval_flops_per_image.register
def _linear_probe_flops(
    recipe: LinearProbeRecipe, encoder: EncoderConfig, num_classes: int
) -> EvalFlops:
    """The frozen encoder needs no gradient, so the head's input needs none either."""
    forward, head = _forward(recipe, encoder), _head(recipe, encoder, num_classes)
    train = FlopCount(forward + 3 * head, forward + 2 * head)
    return EvalFlops(train, FlopCount(forward + head, forward + head))


@eval_flops_per_image.register(BestOfRecipe)
@eval_flops_per_image.register(InferenceRecipe)
def _inference_flops(recipe: EvalRecipe, encoder: EncoderConfig, num_classes: int) -> EvalFlops:
    whole = _forward(recipe, encoder) + _head(recipe, encoder, num_classes)
    return EvalFlops(FlopCount(0, 0), FlopCount(whole, whole))


def _forward(recipe: EvalRecipe, encoder: EncoderConfig) -> int:
    """One image through the encoder; nothing where raw pixels are the features."""
    if recipe.features == "pixels":
        return 0
    return encoder_forward_flops(encoder, recipe.data.image_size, recipe.data.num_channels)


def _head(recipe: EvalRecipe, encoder: EncoderConfig, num_classes: int) -> int:
    pixels = recipe.data.num_channels * recipe.data.image_size**2
    return _linear(1, pixels if recipe.features == "pixels" else encoder.width, num_classes)


def _embedding(encoder: EncoderConfig, image_size: int, num_channels: int) -> int:
    """All patches of an image."""
    patches = num_patches(image_size, encoder.patch_size)
    return _linear(patches, _patch_dim(encoder, num_channels), encoder.width)


def _patch_dim(encoder: EncoderConfig, num_channels: int) -> int:
    return encoder.patch_size**2 * num_channels


def _block_params(width: int, hidden: int) -> int:
    attention = 4 * (width * width + width)
    mlp = 2 * width * hidden + hidden + width
    norms = 4 * width
    return attention + mlp + norms


def _linear(tokens: int, inputs: int, outputs: int) -> int:
    return 2 * tokens * inputs * outputs


def _blocks(depth: int, tokens: int, width: int, hidden: int) -> int:
    projections = 4 * _linear(tokens, width, width) + 2 * _linear(tokens, width, hidden)
    attention = 4 * tokens * tokens * width
    return depth * (projections + attention)


def _encoder_blocks(encoder: EncoderConfig, tokens: int) -> int:
    hidden = hidden_width(encoder.width, encoder.mlp_ratio)
    return _blocks(encoder.depth, tokens, encoder.width, hidden)
