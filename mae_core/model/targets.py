"""Targets other than pixels: principal components, a tokenizer's codes, one's own (Table 1d).

They are made from whole images outside the network, because what makes them is not trained.
Legend: N images, C channels, H, W pixels, L patches, P values of a patch, Q width of a target.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mae_core.config import BASIS_FILE, TOKENIZER_FILE, PretrainRecipe, require
from mae_core.errors import ConfigError
from mae_core.model.patchify import patchify
from mae_core.model.tokenizer import Tokenizer, load_tokenizer
from mae_core.pretrain.pca import Basis, read_basis
from mae_core.runtime.context import RunContext
from mae_core.runtime.plugins import resolve


class Target(Protocol):
    """What a decoder is asked for; one's own is `make(recipe) -> Target`, named by dotted path."""

    dim: int
    """Width Q of the decoder's head: of the floats, or number of codes."""

    def __call__(self, images_NCHW: Tensor) -> Tensor:
        """Normalised images on the device → floats (N, L, Q), or int64 codes (N, L)."""
        ...

    def to_patches(self, prediction_NLQ: Tensor) -> Tensor | None:
        """Turn predictions into normalised pixels (N, L, P) for a gallery; None if none exist."""
        ...


class PrincipalComponents:
    """Leading coefficients of each patch in a stored basis; not whitened."""

    def __init__(self, basis: Basis, patch_size: int, dim: int) -> None:
        self.basis, self.patch_size, self.dim = basis, patch_size, dim

    def __call__(self, images_NCHW: Tensor) -> Tensor:
        """Project the patches: float32 (N, L, Q)."""
        centred = patchify(images_NCHW, self.patch_size) - self.basis.mean.to(images_NCHW.device)
        return centred @ self.basis.components[: self.dim].to(images_NCHW.device).T

    def to_patches(self, prediction_NLQ: Tensor) -> Tensor:
        """Combine the components: float32 (N, L, P)."""
        components = self.basis.components[: self.dim].to(prediction_NLQ.device)
        return prediction_NLQ @ components + self.basis.mean.to(prediction_NLQ.device)


class Codes:
    """The code that a frozen tokenizer gives each patch."""

    def __init__(self, tokenizer: Tokenizer, device: torch.device) -> None:
        self.tokenizer = tokenizer.to(device).eval().requires_grad_(False)
        self.dim = tokenizer.config.vocabulary

    @torch.inference_mode()
    def __call__(self, images_NCHW: Tensor) -> Tensor:
        """Tokenize: int64 (N, L)."""
        return self.tokenizer.tokenize(images_NCHW)

    @torch.inference_mode()
    def to_patches(self, prediction_NLQ: Tensor) -> Tensor:
        """Decode the likeliest codes: float32 (N, L, P)."""
        codes_NL = prediction_NLQ.argmax(dim=-1).to(next(self.tokenizer.parameters()).device)
        pixels = self.tokenizer.pixels_of(codes_NL)
        return patchify(pixels, self.tokenizer.config.patch_size).to(prediction_NLQ.device)


def make_target(recipe: PretrainRecipe, ctx: RunContext, device: torch.device) -> Target | None:
    """Return what makes a recipe's targets, None for pixels, which the network makes itself.

    Raises:
        ConfigError: the file of a parent is missing, or does not fit the recipe.
        CheckpointError: the file of a parent is damaged.
    """
    if recipe.target == "pixels":
        return None
    target: Target
    if recipe.target == "pca":
        basis = read_basis(_input(ctx, BASIS_FILE, "basis"))
        target = PrincipalComponents(basis, recipe.encoder.patch_size, recipe.target_dim)
        _check_basis(basis, recipe)
    elif recipe.target == "tokens":
        tokenizer = load_tokenizer(_input(ctx, TOKENIZER_FILE, "tokenizer"))
        check_tokenizer(tokenizer, recipe)
        target = Codes(tokenizer, device)
    else:
        target = resolve(recipe.target)(recipe)
    require(
        target.dim == recipe.target_dim,
        f"target {recipe.target!r} is {target.dim} wide, but target_dim is {recipe.target_dim}: "
        f"set pretrain.target_dim={target.dim}",
    )
    return target


def _input(ctx: RunContext, file: str, kind: str) -> Path:
    path = ctx.input(file)
    if path is None:
        raise ConfigError(f"this target needs a parent stage of kind {kind!r}, which leaves {file}")
    return path


def _check_basis(basis: Basis, recipe: PretrainRecipe) -> None:
    values = recipe.encoder.patch_size**2 * recipe.data.num_channels
    found, width = basis.components.shape
    require(
        width == values,
        f"the basis is of patches with {width} values, the encoder's have {values}: fit it at "
        "the same patch size and channels",
    )
    require(
        recipe.target_dim <= found,
        f"{recipe.target_dim} principal components are asked for, the basis has {found}",
    )


def check_tokenizer(tokenizer: Tokenizer, recipe: PretrainRecipe) -> None:
    """Refuse a tokenizer whose codes are not one for each of the encoder's patches."""
    has, config = tokenizer.config, recipe.encoder
    require(
        has.patch_size == config.patch_size and has.num_channels == recipe.data.num_channels,
        f"the tokenizer gives one code per {has.patch_size} px of {has.num_channels} channels, the "
        f"encoder has patches of {config.patch_size} px of {recipe.data.num_channels}: train the "
        "tokenizer with the encoder's patch size and channels",
    )
    require(
        has.image_size == recipe.data.image_size,
        f"the tokenizer was trained on images of {has.image_size} px, this pretraining sees "
        f"{recipe.data.image_size} px: train it at the same image size",
    )
