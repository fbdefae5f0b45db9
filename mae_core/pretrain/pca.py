"""Principal components of the training set's patches, as a stage (paper Table 1d, "PCA").

Legend: N images, L patches, P values of a patch, K components.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from mae_core.checkpoint.tensor_file import expect_format, read_tensors, write_tensors
from mae_core.config import BASIS_FILE, BasisRecipe, Execution
from mae_core.data.loader import rank_batches
from mae_core.data.sources import ImageData, Split
from mae_core.errors import CheckpointError
from mae_core.model.patchify import patchify
from mae_core.model.targets import Basis
from mae_core.runtime import collectives
from mae_core.runtime.context import RunContext
from mae_core.runtime.metrics import Metrics

FORMAT = "mae-study-basis-1"
BATCH_SIZE = 256


def run_basis(
    recipe: BasisRecipe, execution: Execution, ctx: RunContext, data: ImageData
) -> Metrics:
    """Fit the basis on evaluation views of training images and write `basis.safetensors`.

    Sums are taken in float64; every rank adds up its share of the images.

    Raises:
        ConfigError: fewer patches than components.
    """
    split = data.split("train").sample(recipe.num_images, recipe.seed)
    recipe.check_images(len(split))
    count, total_P, products_PP = _moments(recipe, split)
    basis = fit_basis(count, total_P, products_PP, recipe.num_components)
    if ctx.rank == 0:
        tensors = {n: getattr(basis, n) for n in ("mean", "components", "explained")}
        described = {"format": FORMAT, "patch_size": json.dumps(recipe.patch_size)}
        write_tensors(ctx.output_dir / BASIS_FILE, tensors, described)
    explained = float(basis.explained.sum())
    return Metrics(
        values={
            "num_train_images": len(split),
            "num_patches": count,
            "explained_variance": explained,
        }
    )


def fit_basis(count: int, total_P: Tensor, products_PP: Tensor, num_components: int) -> Basis:
    """Diagonalise the covariance given by a count, a sum and a sum of outer products (float64)."""
    mean_P = total_P / count
    covariance_PP = (products_PP - count * torch.outer(mean_P, mean_P)) / (count - 1)
    variance_P, vectors_PP = torch.linalg.eigh(covariance_PP)
    variance_K = variance_P.flip(0)[:num_components].clamp(min=0)
    components_KP = vectors_PP.flip(1)[:, :num_components].T
    largest_K1 = components_KP.abs().argmax(dim=1, keepdim=True)
    components_KP = components_KP * components_KP.gather(1, largest_K1).sign()
    total = variance_P.clamp(min=0).sum()
    explained_K = variance_K / total if total > 0 else torch.zeros_like(variance_K)
    return Basis(mean_P.float(), components_KP.float(), explained_K.float())


def read_basis(path: Path) -> Basis:
    """Read a file written by `run_basis`; `CheckpointError` if it is damaged or another kind."""
    tensors, metadata = read_tensors(path)
    expect_format(path, metadata, FORMAT)
    try:
        return Basis(tensors["mean"], tensors["components"], tensors["explained"])
    except KeyError as error:
        raise CheckpointError(f"{path}: lacks {error}") from error


def _moments(recipe: BasisRecipe, split: Split) -> tuple[int, Tensor, Tensor]:
    """Number, sum (P,) and sum of outer products (P, P) of all patches, float64 on the CPU."""
    values = recipe.patch_size**2 * recipe.data.num_channels
    sums = torch.zeros(values + 1, values + 1, dtype=torch.float64, device=collectives.device())
    for batch in rank_batches(split, recipe.data, BATCH_SIZE):
        images = batch.normalised(recipe.data, collectives.device())
        patches = patchify(images, recipe.patch_size).flatten(0, 1).double()
        # A leading one gives count and sum in the same product.
        padded = torch.cat([patches.new_ones(len(patches), 1), patches], dim=1)
        sums += padded.T @ padded
    sums = collectives.all_reduce_sum(sums).cpu()
    return round(float(sums[0, 0])), sums[0, 1:], sums[1:, 1:]
