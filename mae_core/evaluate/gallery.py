"""Reconstructions of a few fixed images with fixed masks, for people to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mae_core.config import PretrainRecipe
from mae_core.data.loader import Batch, eval_batches
from mae_core.data.sources import ImageData
from mae_core.model.mae import MAE
from mae_core.model.mask_samplers import mask_sampler
from mae_core.model.patchify import patchify, unpatchify
from mae_core.model.targets import Target
from mae_core.runtime import collectives

GALLERY_IMAGES = 8
NORM_EPS = 1e-6


def make_gallery(
    recipe: PretrainRecipe, state: Mapping[str, Tensor], data: ImageData, target: Target | None
) -> dict[str, npt.NDArray[Any]]:
    """Reconstruct the first test images; pictures are (n, H, W, C) in 0..1."""
    batch = _first_images(recipe, data)
    module = MAE(recipe)
    module.load_state_dict(module.take_positions(state), strict=False)
    module.eval()
    images = batch.normalised(recipe.data, torch.device("cpu"))
    # One seed for all, so that cells can be looked at side by side.
    noise = mask_sampler(replace(recipe, seed=0))(batch.epoch, batch.index)
    with torch.inference_mode():
        prediction, mask = module.reconstruct(images, noise)
        true = patchify(images, recipe.encoder.patch_size)
        patches, note = _patches(recipe, prediction, true, target)
        pasted = torch.where(mask[..., None].bool(), patches, true)
        picture = unpatchify(pasted, recipe.encoder.patch_size)
    return {
        "images": _to_unit(recipe, images),
        "mask": mask.numpy().astype(np.uint8),
        "reconstruction": _to_unit(recipe, picture),
        "note": np.array(note),
    }


def _patches(
    recipe: PretrainRecipe, prediction: Tensor, true: Tensor, target: Target | None
) -> tuple[Tensor, str]:
    """Predictions as normalised pixels (n, L, P), and what a viewer must know of them."""
    if target is not None:
        made = target.to_patches(prediction.to(collectives.device()))
        if made is None:
            return torch.zeros_like(true), "this target cannot be shown as pixels"
        return made.cpu(), f"predicted {recipe.target}, turned into pixels"
    if not recipe.norm_pix_loss:
        return prediction, ""
    mean = true.mean(dim=-1, keepdim=True)
    deviation = (true.var(dim=-1, keepdim=True) + NORM_EPS).sqrt()
    return prediction * deviation + mean, "patch mean and deviation are the true image's"


def _first_images(recipe: PretrainRecipe, data: ImageData) -> Batch:
    split = data.split("test") if len(data.split("test")) else data.split("train")
    batches = eval_batches(split, recipe.data, GALLERY_IMAGES, rank=0, world=1)
    return next(iter(batches))


def _to_unit(recipe: PretrainRecipe, images: torch.Tensor) -> npt.NDArray[np.float32]:
    """Undo the normalisation: (n, C, H, W) to (n, H, W, C) in 0..1."""
    mean = torch.tensor(recipe.data.pixel_mean).view(1, -1, 1, 1)
    std = torch.tensor(recipe.data.pixel_std).view(1, -1, 1, 1)
    pixels = (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1)
    return np.ascontiguousarray(pixels.numpy().astype(np.float32))
