"""What a pretraining's features are worth while it runs: for people's eyes, never a curve point.

Every rank encodes the same few images, so nothing is exchanged and ZeRO-3 gathers in step; the
random number generators are not touched, so a monitored run computes what an unmonitored one does.
Legend: N images, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from mae_core.config import ContrastiveRecipe, DataConfig, KnnRecipe, PretrainRecipe, require
from mae_core.data.loader import Batch, eval_batches
from mae_core.data.sources import ImageData, Split
from mae_core.evaluate.features import Features, pool
from mae_core.evaluate.knn import classify
from mae_core.model.mask_samplers import mask_sampler
from mae_core.model.targets import Target

NUM_TRAIN = 1024
"""Training images among which neighbours are looked for."""
NUM_DEV = 512
BATCH_SIZE = 64
PREFIX = "monitor/"
"""Of the names of its metrics: nothing of that name is a result."""
HeldOutLoss = Callable[[nn.Module, torch.device], float]
"""The objective's own loss on dev images that are always the same, prepared the same way."""


class Monitor:
    """Online k-NN on dev, effective rank of features and held-out loss of one pretraining."""

    def __init__(
        self, recipe: PretrainRecipe | ContrastiveRecipe, data: ImageData, loss: HeldOutLoss
    ) -> None:
        """Choose the images; raises `DataError` if there is no dev split."""
        self.data, self.loss = recipe.data, loss
        self.train = data.split("train").sample(NUM_TRAIN, recipe.seed)
        self.dev = dev_images(recipe, data)
        k = min(20, len(self.train))
        self.knn = KnnRecipe(data=recipe.data, k=k, eval_split="dev")

    @torch.no_grad()
    def __call__(self, module: nn.Module, device: torch.device) -> dict[str, float]:
        """Look at a network between two steps; collective under ZeRO-3."""
        train, dev = (self._encode(module, split, device) for split in (self.train, self.dev))
        found = classify(self.knn, train, dev, num_classes=len(self.dev.class_names))
        return {
            PREFIX + "knn_top1_dev": 100 * float((found.label_rank == 0).mean()),
            PREFIX + "effective_rank_dev": effective_rank(torch.from_numpy(dev.vectors)),
            PREFIX + "loss_dev": self.loss(module, device),
        }

    def _encode(self, module: nn.Module, split: Split, device: torch.device) -> Features:
        """Mean patch tokens of whole images."""
        vectors, labels = [], []
        for batch, images in _batches(split, self.data, device):
            tokens = module.encoder.forward_features(images)  # type: ignore[operator, union-attr]
            vectors.append(pool(tokens, "mean").float().cpu().numpy())
            labels.append(batch.labels.numpy())
        return Features(
            vectors=np.concatenate(vectors),
            labels=np.concatenate(labels),
            sample_index=split.sample_index,
        )


class MaskedLoss:
    """Reconstruction loss of whole dev images, under masks that never change."""

    def __init__(self, recipe: PretrainRecipe, data: ImageData, target: Target | None) -> None:
        self.data, self.target, self.noise = recipe.data, target, mask_sampler(recipe)
        self.dev = dev_images(recipe, data)

    def __call__(self, module: nn.Module, device: torch.device) -> float:
        """Mean over the images."""
        total = 0.0
        for batch, images in _batches(self.dev, self.data, device):
            noise = self.noise(batch.epoch, batch.index).to(device)
            targets = () if self.target is None else (self.target(images),)
            total += len(batch.index) * float(module(images, noise, *targets))
        return total / len(self.dev)


def dev_images(recipe: PretrainRecipe | ContrastiveRecipe, data: ImageData) -> Split:
    """The dev images that a monitor looks at; raises `DataError` if there is no dev split."""
    dev = data.split("dev").sample(NUM_DEV, recipe.seed)
    require(len(dev) > 0, "the monitor looks at dev, which has no image")
    return dev


def _batches(
    split: Split, data: DataConfig, device: torch.device
) -> Iterator[tuple[Batch, Tensor]]:
    for batch in eval_batches(split, data, BATCH_SIZE, rank=0, world=1, threads=0):
        yield batch, batch.normalised(data, device)


def effective_rank(vectors_ND: Tensor) -> float:
    """exp(entropy of the normalised singular values) of centred features, 1 to D.

    Roy and Vetterli 2007, "The effective rank", section 2. 1 means collapse.
    """
    centred = vectors_ND.double() - vectors_ND.double().mean(dim=0)
    values = torch.linalg.svdvals(centred)
    share = values / values.sum().clamp(min=1e-300)
    share = share[share > 0]
    return float(torch.exp(-(share * share.log()).sum()))
