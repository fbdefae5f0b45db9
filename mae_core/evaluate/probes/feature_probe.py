"""Linear probes on kept features: a grid of them trained at once, chosen on dev, scored on test.

A protocol of its own: an image has one vector, where the paper's linear probe encodes a new random
crop in every epoch. Every rank trains the whole grid; predicting is shared out.
Legend: N images, S layers, H heads per layer, D feature width.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mae_core.checkpoint.tensor_file import write_tensors
from mae_core.config import FEATURES_FILE, Execution, FeatureProbeRecipe, OptimizerConfig, require
from mae_core.data.order import SampleOrder
from mae_core.data.sources import ImageData, Split
from mae_core.errors import NumericsError
from mae_core.evaluate.feature_file import rank_share, read_features
from mae_core.evaluate.features import labelled_split
from mae_core.evaluate.probes.head_grid import HeadGrid, HeadSettings
from mae_core.evaluate.probes.linear_probe import FILE_NAME, FORMAT, Head, predict_head
from mae_core.evaluate.scores import finish
from mae_core.runtime import collectives
from mae_core.runtime.context import RunContext
from mae_core.runtime.json_values import Json
from mae_core.runtime.metrics import Metrics
from mae_core.train.job import effective_batch
from mae_core.train.loop import Stopped
from mae_core.train.lr_schedule import LrSchedule

LOG_EVERY = 50
"""Steps between logged metrics."""
STOP_EVERY = 20
"""Steps between questions whether to stop."""


def run_feature_probe(
    recipe: FeatureProbeRecipe, execution: Execution, ctx: RunContext, data: ImageData
) -> Metrics:
    """Train the grid on the labelled images, choose on dev, score and save the chosen head.

    Raises:
        ConfigError: no features; a batch of one image (BatchNorm needs two).
        CheckpointError: the features are of other images, or lack a layer.
        NumericsError: no point of the grid has finite scores.
        Stopped: a stop was requested.
    """
    path = ctx.required(FEATURES_FILE, "a feature probe needs the features of a parent stage")
    split = labelled_split(recipe, data)
    batch_size = effective_batch(recipe.global_batch, len(split))
    require(batch_size >= 2, "a batch of one image: BatchNorm needs at least two")
    layers: tuple[int | None, ...] = recipe.layers or (None,)
    train_NSD = _read(path, split, layers)
    rates = make_rates(recipe, batch_size, len(split))
    grid = HeadGrid(
        num_layers=len(layers),
        width=train_NSD.shape[2],
        num_classes=len(split.class_names),
        rates=rates,
        seed=recipe.seed,
        device=collectives.device(),
    )
    steps = rates.lr_schedules[0].total_steps
    labels_N = torch.from_numpy(split.labels)
    train_grid(grid, train_NSD, labels_N, recipe, steps, ctx)
    chosen, points = 0, list[HeadScore]()
    if recipe.selects_on_dev:
        dev = data.split("dev")
        scores = grid.score(_read(path, dev, layers), torch.from_numpy(dev.labels))
        points = grid_points(recipe, layers, *scores)
        chosen = best_point(points)
    layer, number = divmod(chosen, grid.num_heads)
    # Unequal devices may differ in the last bit: rank 0's choice and head count.
    layer, number, head = collectives.broadcast_object((layer, number, grid.head(layer, number)))
    local = read_features(path, rank_share(data.split(recipe.eval_split)), layers[layer])
    scored = finish(predict_head(head, local), split.class_names, ctx)
    if ctx.rank == 0:
        _save(ctx.output_dir, recipe, head, layers[layer])
    ctx.log_metrics(steps, {"top1": scored.top1, "eval_loss": scored.loss})
    base_lr, weight_decay = _settings(recipe)[number]
    details: dict[str, Json] = {
        "effective_batch": batch_size,
        "steps": steps,
        "layer": layers[layer],
        "base_lr": base_lr,
        "weight_decay": weight_decay,
        "peak_lr": rates.lr_schedules[number].peak_lr,
        "grid": [asdict(point) for point in collectives.broadcast_object(points)],
    }
    return scored.metrics(num_train_images=len(split), details=details)


@dataclass(frozen=True, kw_only=True)
class HeadScore:
    """Settings of a head, and how it did on dev; None if it diverged."""

    layer: int | None
    base_lr: float
    weight_decay: float
    dev_top1: float | None
    dev_loss: float | None


def make_rates(recipe: FeatureProbeRecipe, batch_size: int, num_images: int) -> HeadSettings:
    """Learning-rate curve and weight decay of each head of a layer."""
    settings = _settings(recipe)
    schedules = {
        base_lr: LrSchedule.from_config(
            OptimizerConfig(base_lr=base_lr),
            recipe.lr_schedule,
            recipe.duration,
            global_batch=batch_size,
            num_images=num_images,
        )
        for base_lr in recipe.base_lrs
    }
    return HeadSettings(
        lr_schedules=tuple(schedules[base_lr] for base_lr, _ in settings),
        weight_decays=tuple(weight_decay for _, weight_decay in settings),
        optimizer=recipe.optimizer,
        momentum=recipe.momentum,
    )


def train_grid(
    grid: HeadGrid,
    vectors_NSD: Tensor,
    labels_N: Tensor,
    recipe: FeatureProbeRecipe,
    steps: int,
    ctx: RunContext,
) -> None:
    """Train every head on the same global batches, in the order of the paper's probe."""
    device = collectives.device()
    order = SampleOrder(
        len(labels_N), recipe.seed, effective_batch(recipe.global_batch, len(labels_N))
    )
    for step in range(steps):
        _, positions = order.step(step)
        rows = torch.from_numpy(np.sort(positions))
        loss_SH = grid.step(vectors_NSD[rows].to(device), labels_N[rows].to(device), step)
        done = step + 1
        if done % LOG_EVERY == 0 or done == steps:
            finite = loss_SH[loss_SH.isfinite()]
            ctx.log_metrics(done, {"loss": float(finite.min())} if len(finite) else {})
        if done % STOP_EVERY == 0 and done < steps and collectives.any_rank(ctx.should_stop())[0]:
            raise Stopped(f"stopped on request after step {done} of {steps}")


def grid_points(
    recipe: FeatureProbeRecipe, layers: tuple[int | None, ...], top1_SH: Tensor, loss_SH: Tensor
) -> list[HeadScore]:
    """Settings and dev scores of every head."""
    points = []
    for s, layer in enumerate(layers):
        for h, (base_lr, weight_decay) in enumerate(_settings(recipe)):
            top1, loss = float(top1_SH[s, h]), float(loss_SH[s, h])
            finite = bool(np.isfinite(loss))
            points.append(
                HeadScore(
                    layer=layer,
                    base_lr=base_lr,
                    weight_decay=weight_decay,
                    dev_top1=top1 if finite else None,
                    dev_loss=loss if finite else None,
                )
            )
    return points


def best_point(points: list[HeadScore]) -> int:
    """Number of the point of the highest dev top-1; of equal ones the lower loss, the earlier.

    Raises `NumericsError` if no point has a finite loss.
    """
    usable = [
        (-point.dev_top1, point.dev_loss, number)
        for number, point in enumerate(points)
        if point.dev_top1 is not None and point.dev_loss is not None
    ]
    if not usable:
        raise NumericsError(
            f"all {len(points)} heads diverged: lower base_lrs, or lengthen the warm-up"
        )
    return min(usable)[-1]


def _settings(recipe: FeatureProbeRecipe) -> list[tuple[float, float]]:
    """(base_lr, weight_decay) of each head of a layer."""
    return list(itertools.product(recipe.base_lrs, recipe.weight_decays))


def _read(path: Path, split: Split, layers: tuple[int | None, ...]) -> Tensor:
    """Vectors of a split at all layers: float32 (N, S, D), on the CPU."""
    parts = [read_features(path, split, layer).vectors for layer in layers]
    return torch.stack([torch.from_numpy(part) for part in parts], dim=1)


def _save(directory: Path, recipe: FeatureProbeRecipe, head: Head, layer: int | None) -> None:
    metadata = {"format": FORMAT, "features": recipe.features, "layer": str(layer or "last")}
    write_tensors(directory / FILE_NAME, head.state_dict(), metadata)
