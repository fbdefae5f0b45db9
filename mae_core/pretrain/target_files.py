"""From a recipe and the files of its parents to what makes its targets."""

from __future__ import annotations

from pathlib import Path

import torch

from mae_core.config import BASIS_FILE, TOKENIZER_FILE, PretrainRecipe, require
from mae_core.errors import ConfigError
from mae_core.model.targets import Basis, Codes, PrincipalComponents, Target
from mae_core.model.vq_vae import Tokenizer
from mae_core.pretrain.pca import read_basis
from mae_core.pretrain.tokenizer import load_tokenizer
from mae_core.runtime.context import RunContext
from mae_core.runtime.plugins import resolve


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
