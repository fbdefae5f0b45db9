"""Contrastive pretraining as a stage: images in, `encoder.safetensors` out.

One step, on each rank: the momentum encoder takes its small step after the encoder; both encode
all of the rank's views; the features of all ranks meet (16 bytes · D per image in flight); loss
and gradients are computed on the whole global batch; then the engine's micro-batches carry them
into the encoder. With accumulation each view is encoded twice (10 instead of 8 forward passes'
worth of work per view pair); without it the first pass keeps its graph. Beside one micro-batch's
activations (of both views) a rank holds its share's views as bytes and, for the heads, about
64 · head_width bytes per image of the *global* batch (1 GiB at 4,096).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from mae_core.augment.jitter import augment_view
from mae_core.config import BatchSplit, ContrastiveRecipe, Execution
from mae_core.config.pretraining import NUM_VIEWS
from mae_core.data.loader import Batch, TrainLoader
from mae_core.data.sources import ImageData
from mae_core.model.moco import MoCo, contrast, momentum_at
from mae_core.pretrain.encoder_output import save_trained
from mae_core.pretrain.monitor import BATCH_SIZE, Monitor, dev_images
from mae_core.runtime import collectives
from mae_core.runtime.context import RunContext
from mae_core.runtime.metrics import Metrics
from mae_core.train.job import make_job, training_metrics
from mae_core.train.loop import train
from mae_core.train.state import Inputs


def run_contrastive(
    recipe: ContrastiveRecipe, execution: Execution, ctx: RunContext, data: ImageData
) -> Metrics:
    """Train, save the encoder (not its momentum copy); return what is worth recording.

    Raises:
        ConfigError: the batch does not split over the ranks; ZeRO-3; images that are neither grey
            nor of three channels.
        NumericsError: the loss became non-finite.
        Stopped: a stop was requested; a checkpoint is committed.
    """
    model = MoCo(recipe)
    split = data.split("train")
    num_steps = recipe.duration.num_steps(num_images=len(split), global_batch=recipe.global_batch)
    steps = TwoPass(recipe, model, num_steps)
    monitor = None
    if execution.monitor_every_steps:
        monitor = Monitor(recipe, data, HeldOutContrast(recipe, data, steps))
    job = make_job(
        recipe,
        execution,
        model,
        split,
        prepare=steps.one,
        prepare_step=steps.step,
        follow=steps.follow,
        num_views=NUM_VIEWS,
        monitor=monitor,
    )
    result = train(job, execution, ctx)
    if collectives.rank() == 0:
        save_trained(recipe, result.state, ctx)
    collectives.barrier()
    return training_metrics(result, job, len(split))


class TwoPass:
    """Turns a rank's micro-batches of a step into what `MoCo.forward` takes."""

    def __init__(self, recipe: ContrastiveRecipe, model: MoCo, num_steps: int) -> None:
        self.recipe, self.model, self.num_steps = recipe, model, num_steps

    def one(self, batch: Batch, device: torch.device) -> Inputs:
        """Views of a micro-batch on its own, uint8 (V · B, C, S, S): for the probe."""
        images = batch.images.to(device, non_blocking=True)
        views = [
            augment_view(
                part, config, seed=self.recipe.seed, epoch=batch.epoch, index=batch.index, view=v
            )
            for v, (part, config) in enumerate(
                zip(images.chunk(NUM_VIEWS), self.recipe.views, strict=True)
            )
        ]
        return (torch.cat(views),)

    def follow(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Move the momentum encoder, before each step."""
        self.model.follow(momentum_at(step, self.num_steps, self.recipe.momentum), weights)

    def step(self, step: int, batches: list[Batch], device: torch.device) -> Iterator[Inputs]:
        """First pass over all of a step (collective), then the inputs of the second.

        All of it is encoded once, before the first inputs are asked for.
        """
        model = self.model
        views = [self.one(batch, device)[0] for batch in batches]
        keeps_graph = len(views) == 1
        with torch.set_grad_enabled(keeps_graph):
            features = [model.encode(part) for part in views]
        keys = [model.encode_keys(part) for part in views]
        index = np.concatenate([batch.index for batch in batches])
        everything = torch.cat([torch.cat(features, dim=1).detach(), torch.cat(keys, dim=1)])
        rows_NVD, own_R = _gathered(everything.transpose(0, 1), torch.from_numpy(index).to(device))
        found = contrast(model, *rows_NVD.transpose(0, 1).chunk(2))
        # The engine takes means over micro-batches and ranks, whose sum this gradient is.
        share = found.feature_gradient_VND[:, own_R] * (len(batches) * collectives.world())
        sizes = [len(batch.index) for batch in batches]
        inputs = features if keeps_graph else views
        for part, gradient in zip(inputs, torch.split(share, sizes, dim=1), strict=True):
            yield part, found.loss, gradient, *found.head_gradients


class HeldOutContrast:
    """InfoNCE of some dev images among themselves, their views always the same."""

    def __init__(self, recipe: ContrastiveRecipe, data: ImageData, steps: TwoPass) -> None:
        dev = dev_images(recipe, data)
        whole = BatchSplit(min(len(dev), BATCH_SIZE), 1, 1)
        loader = TrainLoader(
            dev,
            recipe.data,
            recipe.augmentation,
            seed=recipe.seed,
            batch=whole,
            rank=0,
            threads=0,
            num_views=NUM_VIEWS,
        )
        self.steps, self.batch = steps, loader.probe(whole.micro)

    def __call__(self, module: nn.Module, device: torch.device) -> float:
        """Loss of a batch of that size, which has fewer negatives than a step has."""
        return float(module(*self.steps.one(self.batch, device)))


def _gathered(rows: Tensor, index_R: Tensor) -> tuple[Tensor, Tensor]:
    """All ranks' rows (N, …) in the order of their sample index, and which of them are our own.

    The order does not depend on how the batch was divided, nor do sums over it.
    """
    order = collectives.all_gather_rows(index_R).argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    first = collectives.rank() * len(index_R)
    return collectives.all_gather_rows(rows)[order], place[first : first + len(index_R)]
