"""Linear probe: affine-free BatchNorm and one linear layer on a frozen encoder (Table 10, A.1).

Every rank trains the same small head on the whole global batch, so that BatchNorm sees all of it
on any world size and micro-batch; only the encoding is shared out. Without random augmentation
an image has one feature vector, which is encoded once.
Legend: N images of a global batch, D feature width, C classes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Generator, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_core.checkpoint.tensor_file import write_tensors
from mae_core.config import Execution, LinearProbeRecipe, require, split_batch
from mae_core.data.augmented import augmented
from mae_core.data.loader import Batch
from mae_core.data.order import SampleOrder
from mae_core.data.sources import ImageData, Split
from mae_core.errors import NumericsError
from mae_core.evaluate.features import Extractor, Features, extract, gather_features, labelled_split
from mae_core.evaluate.scores import Predictions, finish, predict
from mae_core.runtime import collectives
from mae_core.runtime.context import RunContext
from mae_core.runtime.metrics import Metrics
from mae_core.train.job import effective_batch, make_loader
from mae_core.train.loop import Stopped
from mae_core.train.lr_schedule import LrSchedule
from mae_core.train.optim import build_optimizer, pretrain_groups, set_lr

FILE_NAME = "head.safetensors"
FORMAT = "mae-study-linear-head-1"
HEAD_STD = 0.01
"""Standard deviation of the head's initial weights (the paper's code)."""
NORM_EPS = 1e-6
LOG_EVERY = 50
"""Steps between logged metrics."""

StepBatch = tuple[Tensor, Tensor]
"""Vectors (N, D) float32 and labels (N,) int64 of a whole global batch, on the device."""


class Head(nn.Module):
    """BatchNorm without affine parameters, then a linear layer: (N, D) → (N, C)."""

    def __init__(self, width: int, num_classes: int, seed: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=NORM_EPS)
        self.linear = nn.Linear(width, num_classes)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.linear.weight, std=HEAD_STD, generator=generator)
        nn.init.zeros_(self.linear.bias)

    def forward(self, vectors_ND: Tensor) -> Tensor:
        """Score classes, in train mode with the statistics of this batch."""
        scores: Tensor = self.linear(self.norm(vectors_ND))
        return scores


def run_linear_probe(
    recipe: LinearProbeRecipe, execution: Execution, ctx: RunContext, data: ImageData
) -> Metrics:
    """Train a head on frozen features, evaluate it, save it.

    A global batch larger than the labelled set becomes the whole set: an epoch is one step.

    Raises:
        ConfigError: a batch of one image (BatchNorm needs two); with random augmentation, a batch
            that does not split over the ranks; no encoder, or one that does not fit the data.
        NumericsError: the loss became non-finite.
        Stopped: a stop was requested.
    """
    split = labelled_split(recipe, data)
    extractor = Extractor.for_recipe(recipe, ctx)
    batch_size = effective_batch(recipe.global_batch, len(split))
    require(batch_size >= 2, "a batch of one image: BatchNorm needs at least two")
    lr_schedule = LrSchedule.from_config(
        recipe.optimizer,
        recipe.lr_schedule,
        recipe.duration,
        global_batch=batch_size,
        num_images=len(split),
    )
    steps = lr_schedule.total_steps
    if recipe.augmentation.is_deterministic:
        batches = cached_batches(recipe, extractor, split, batch_size, steps)
    else:
        batches = encoded_batches(recipe, extractor, split, batch_size, steps, execution)
    evaluation = extract(extractor, data.split(recipe.eval_split))
    head = Head(extractor.width, len(split.class_names), recipe.seed).to(extractor.device)
    with contextlib.closing(batches):
        loss = train_head(head, batches, recipe, lr_schedule, ctx)
    _adopt_rank_zero(head)
    local = predict_head(head, evaluation)
    scores = finish(local, split.class_names, ctx)
    if ctx.rank == 0:
        metadata = {"format": FORMAT, "features": recipe.features}
        write_tensors(ctx.output_dir / FILE_NAME, head.state_dict(), metadata)
    ctx.log_metrics(steps, {"top1": scores.top1, "eval_loss": scores.loss})
    details = {
        "effective_batch": batch_size,
        "peak_lr": lr_schedule.peak_lr,
        "steps": steps,
        "train_loss": loss,
        "encoded_once": recipe.augmentation.is_deterministic,
    }
    return scores.metrics(num_train_images=len(split), details=details)


def cached_batches(
    recipe: LinearProbeRecipe, extractor: Extractor, split: Split, batch_size: int, steps: int
) -> Generator[StepBatch, None, None]:
    """Encode every image once and deal the vectors in training order."""
    train = gather_features(extract(extractor, split))
    vectors = torch.from_numpy(train.vectors)
    labels = torch.from_numpy(train.labels)
    order = SampleOrder(len(split), recipe.seed, batch_size)
    for step in range(steps):
        _, positions = order.step(step)
        rows = torch.from_numpy(np.sort(positions))
        yield vectors[rows].to(extractor.device), labels[rows].to(extractor.device)


def encoded_batches(
    recipe: LinearProbeRecipe,
    extractor: Extractor,
    split: Split,
    batch_size: int,
    steps: int,
    execution: Execution,
) -> Generator[StepBatch, None, None]:
    """Encode each global batch again, every rank its share, and gather it on every rank."""
    loader = make_loader(recipe, execution, split, split_batch(batch_size, execution))
    with contextlib.closing(loader.steps(0, steps)) as shares:
        for micro_batches in shares:
            yield assemble(extractor, [_augmented(recipe, batch) for batch in micro_batches])


def _augmented(recipe: LinearProbeRecipe, batch: Batch) -> Batch:
    images = augmented(batch, recipe.augmentation, recipe.seed, collectives.device())
    return dataclasses.replace(batch, images=images)


def assemble(extractor: Extractor, micro_batches: list[Batch]) -> StepBatch:
    """Encode this rank's share of a global batch and join all shares, rows by sample index.

    The shares have equal size. Each rank adds its rows to zeros, which is exact.
    """
    device = extractor.device
    vectors_RD = torch.cat([extractor(batch.images) for batch in micro_batches])
    labels_R = torch.cat([batch.labels for batch in micro_batches]).to(device)
    index_R = torch.cat([torch.from_numpy(batch.index) for batch in micro_batches]).to(device)
    share = len(vectors_RD)
    mine = slice(collectives.rank() * share, (collectives.rank() + 1) * share)
    vectors_ND = vectors_RD.new_zeros(share * collectives.world(), vectors_RD.shape[1])
    keys_2N = index_R.new_zeros(2, share * collectives.world())
    vectors_ND[mine] = vectors_RD
    keys_2N[:, mine] = torch.stack([index_R, labels_R])
    collectives.all_reduce_sum(vectors_ND)
    collectives.all_reduce_sum(keys_2N)
    rows = keys_2N[0].argsort(stable=True)
    return vectors_ND[rows], keys_2N[1][rows]


def train_head(
    head: Head,
    batches: Iterator[StepBatch],
    recipe: LinearProbeRecipe,
    lr_schedule: LrSchedule,
    ctx: RunContext,
) -> float | None:
    """Train on whole global batches; return the last logged mean loss, None without a step."""
    optimizer = build_optimizer(
        recipe.optimizer, pretrain_groups(head, recipe.optimizer.weight_decay), lr_schedule.peak_lr
    )
    head.train()
    losses: list[Tensor] = []
    mean: float | None = None
    for step, (vectors_ND, labels_N) in enumerate(batches):
        set_lr(optimizer, lr_schedule.at(step))
        optimizer.zero_grad()
        loss = F.cross_entropy(head(vectors_ND), labels_N)
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.optimizer.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(head.parameters(), recipe.optimizer.clip_grad_norm)
        optimizer.step()
        losses.append(loss.detach())
        done, last = step + 1, step + 1 == lr_schedule.total_steps
        if done % LOG_EVERY == 0 or last:
            mean = _log(done, losses, lr_schedule, ctx)
            losses.clear()
        if collectives.any_rank(ctx.should_stop())[0] and not last:
            raise Stopped(f"stopped on request after step {done} of {lr_schedule.total_steps}")
    return mean


@torch.inference_mode()
def predict_head(head: Head, features: Features) -> Predictions:
    """Predict classes with the running statistics of the BatchNorm."""
    head.eval()
    device = head.linear.weight.device
    logits_NC = head(torch.from_numpy(features.vectors).to(device)).double()
    log_prob_NC = logits_NC.log_softmax(dim=1).cpu().numpy()
    return predict(features.sample_index, features.labels, log_prob_NC)


def _log(done: int, losses: list[Tensor], lr_schedule: LrSchedule, ctx: RunContext) -> float:
    mean = float(torch.stack(losses).mean())
    if not math.isfinite(mean):
        raise NumericsError(
            f"the probe's loss is {mean} within the {len(losses)} steps before {done}; "
            "lower the learning rate"
        )
    ctx.log_metrics(done, {"loss": mean, "lr": lr_schedule.at(done - 1)})
    return mean


def _adopt_rank_zero(head: Head) -> None:
    """Give every rank rank 0's head: unequal devices may differ in the last bit."""
    state = {name: value.cpu() for name, value in head.state_dict().items()}
    head.load_state_dict(collectives.broadcast_object(state))
