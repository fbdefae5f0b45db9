"""MAE pretraining as one stage: images in, `encoder.safetensors` and `decoder.safetensors` out."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from mae_core.checkpoint.tensor_file import write_tensors
from mae_core.config import DECODER_FILE, GALLERY_FILE, Execution, PretrainRecipe, num_keep
from mae_core.data.augmented import network_input
from mae_core.data.loader import Batch
from mae_core.data.sources import ImageData
from mae_core.errors import ConfigError
from mae_core.evaluate.gallery import make_gallery
from mae_core.model.mae import MAE
from mae_core.model.mask_samplers import mask_sampler
from mae_core.model.targets import Target
from mae_core.model.vit import Encoder
from mae_core.pretrain.encoder_output import save_trained
from mae_core.pretrain.monitor import MaskedLoss, Monitor
from mae_core.pretrain.target_files import make_target
from mae_core.runtime import collectives
from mae_core.runtime.context import RunContext
from mae_core.runtime.metrics import Metrics
from mae_core.runtime.plugins import resolve
from mae_core.train.job import make_job, training_metrics
from mae_core.train.loop import TrainResult, train


def run_pretrain(
    recipe: PretrainRecipe, execution: Execution, ctx: RunContext, data: ImageData
) -> Metrics:
    """Pretrain, save the network and a few reconstructions; return what is worth recording.

    Raises:
        ConfigError: the batch does not split over the ranks.
        NumericsError: the loss became non-finite.
        Stopped: a stop was requested; a checkpoint is committed.
    """
    module = build_module(recipe)
    target = make_target(recipe, ctx, collectives.device())
    sampler = mask_sampler(recipe)
    split = data.split("train")

    def prepare(micro_batch: Batch, device: torch.device) -> tuple[torch.Tensor, ...]:
        images = network_input(micro_batch, recipe.data, recipe.augmentation, recipe.seed, device)
        noise = sampler(micro_batch.epoch, micro_batch.index).to(device)
        return (images, noise) if target is None else (images, noise, target(images))

    monitor = None
    if execution.monitor_every_steps:
        monitor = Monitor(recipe, data, MaskedLoss(recipe, data, target))
    job = make_job(recipe, execution, module, split, prepare=prepare, monitor=monitor)
    result = train(job, execution, ctx)
    if collectives.rank() == 0:
        _save(recipe, result, ctx, data, target)
    collectives.barrier()
    visible = num_keep(recipe.num_patches, recipe.mask_ratio)
    return training_metrics(
        result, job, len(split), num_patches=recipe.num_patches, num_visible=visible
    )


def build_module(recipe: PretrainRecipe) -> nn.Module:
    """The network that `objective` names; raises `ConfigError` if a custom one has no encoder.

    A custom one is `make(recipe) -> nn.Module` with an `encoder` of `mae_core.model.vit`; its
    forward takes (images, noise) and, where the target is not pixels, the targets, and returns a
    scalar loss.
    """
    if recipe.objective == "mae":
        return MAE(recipe)
    module = resolve(recipe.objective)(recipe)
    if not isinstance(module, nn.Module) or not isinstance(
        getattr(module, "encoder", None), Encoder
    ):
        raise ConfigError(
            f"objective {recipe.objective!r} returned a {type(module).__name__}: it must return a "
            "torch module whose `encoder` is a mae_core.model.vit.Encoder"
        )
    return module


def _save(
    recipe: PretrainRecipe,
    result: TrainResult,
    ctx: RunContext,
    data: ImageData,
    target: Target | None,
) -> None:
    """Write the encoder (for evaluations), the decoder (for whoever reconstructs) and a gallery."""
    decoder = save_trained(recipe, result.state, ctx)
    write_tensors(ctx.output_dir / DECODER_FILE, decoder, {})
    if recipe.objective == "mae":
        arrays = make_gallery(recipe, result.state, data, target)
        np.savez_compressed(ctx.output_dir / GALLERY_FILE, **arrays)  # type: ignore[arg-type]
