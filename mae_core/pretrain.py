"""MAE pretraining as one stage: images in, `encoder.safetensors` and `decoder.safetensors` out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mae_core import dist
from mae_core.config import (
    DECODER_FILE,
    ENCODER_FILE,
    GALLERY_FILE,
    Execution,
    PretrainRecipe,
    num_keep,
    split_batch,
)
from mae_core.context import RunContext
from mae_core.data.loader import Batch, TrainLoader, eval_batches, normalise
from mae_core.data.sources import ImageData
from mae_core.evaluate.encoder_file import save_encoder, write_tensors
from mae_core.lr_schedule import LrSchedule
from mae_core.mae import MAE
from mae_core.masking import mask_noise
from mae_core.optim import pretrain_groups
from mae_core.targets import patchify, unpatchify
from mae_core.training import TrainJob, TrainResult, train

GALLERY_IMAGES = 8


def run_pretrain(
    recipe: PretrainRecipe, execution: Execution, ctx: RunContext, data: ImageData
) -> dict[str, Any]:
    """Pretrain, save the network and a few reconstructions; return what is worth recording.

    Raises:
        ConfigError: the batch does not split over the ranks.
        NumericsError: the loss became non-finite.
        Stopped: somebody asked to stop; a checkpoint is committed.
    """
    module = MAE(recipe)
    split = data.split("train")
    batch = split_batch(recipe.global_batch, execution)
    num_steps = recipe.duration.num_steps(num_images=len(split), global_batch=recipe.global_batch)

    def prepare(micro_batch: Batch, device: torch.device) -> tuple[torch.Tensor, ...]:
        images = _normalise(recipe, micro_batch.images, device)
        noise = mask_noise(recipe.seed, micro_batch.epoch, micro_batch.index, recipe.num_patches)
        return images, noise.to(device)

    job = TrainJob(
        module=module,
        param_groups=pretrain_groups(module, recipe.optimizer.weight_decay),
        optimizer=recipe.optimizer,
        lr_schedule=LrSchedule.from_config(
            recipe.optimizer,
            recipe.lr_schedule,
            recipe.duration,
            global_batch=recipe.global_batch,
            num_images=len(split),
        ),
        precision=recipe.precision,
        batch=batch,
        num_steps=num_steps,
        loader=TrainLoader(
            split,
            recipe.data,
            recipe.augmentation,
            seed=recipe.seed,
            batch=batch,
            rank=dist.rank(),
            threads=execution.loader_threads,
        ),
        prepare=prepare,
    )
    result = train(job, execution, ctx)
    if dist.rank() == 0:
        _save(recipe, result, ctx, data)
    dist.barrier()
    return result.facts() | {
        "steps": num_steps,
        "images_seen": num_steps * recipe.global_batch,
        "num_train_images": len(split),
        "num_patches": recipe.num_patches,
        "num_visible": num_keep(recipe.num_patches, recipe.mask_ratio),
        "micro_batch": batch.micro,
        "accumulation": batch.accumulation,
    }


def _normalise(recipe: PretrainRecipe, images: torch.Tensor, device: torch.device) -> torch.Tensor:
    return normalise(images, recipe.data.pixel_mean, recipe.data.pixel_std, device)


def _save(recipe: PretrainRecipe, result: TrainResult, ctx: RunContext, data: ImageData) -> None:
    """Write the encoder (for evaluations), the decoder (for whoever reconstructs) and a gallery."""
    prefix = "encoder."
    encoder = {k.removeprefix(prefix): v for k, v in result.state.items() if k.startswith(prefix)}
    decoder = {k: v for k, v in result.state.items() if not k.startswith(prefix)}
    save_encoder(
        ctx.output_dir / ENCODER_FILE,
        encoder,
        recipe.encoder,
        image_size=recipe.data.image_size,
        num_channels=recipe.data.num_channels,
        extra={"science_hash": ctx.science_hash},
    )
    write_tensors(ctx.output_dir / DECODER_FILE, decoder, {})
    arrays = _gallery(recipe, result, data)
    np.savez_compressed(ctx.output_dir / GALLERY_FILE, **arrays)  # type: ignore[arg-type]


def _gallery(
    recipe: PretrainRecipe, result: TrainResult, data: ImageData
) -> dict[str, npt.NDArray[Any]]:
    """Reconstruct the first test images with fixed masks; pictures are (n, H, W, C) in 0..1."""
    batch = _first_images(recipe, data)
    module = MAE(recipe)
    module.load_state_dict(result.state, strict=False)
    module.eval()
    images = _normalise(recipe, batch.images, torch.device("cpu"))
    noise = mask_noise(0, 0, batch.index, recipe.num_patches)
    with torch.inference_mode():
        prediction, mask = module.reconstruct(images, noise)
        target = patchify(images, recipe.encoder.patch_size)
        if recipe.norm_pix_loss:
            mean = target.mean(dim=-1, keepdim=True)
            deviation = (target.var(dim=-1, keepdim=True) + 1e-6).sqrt()
            prediction = prediction * deviation + mean
        pasted = torch.where(mask[..., None].bool(), prediction, target)
        picture = unpatchify(pasted, recipe.encoder.patch_size)
    note = "patch mean and deviation are the true image's" if recipe.norm_pix_loss else ""
    return {
        "images": _to_unit(recipe, images),
        "mask": mask.numpy().astype(np.uint8),
        "reconstruction": _to_unit(recipe, picture),
        "note": np.array(note),
    }


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
