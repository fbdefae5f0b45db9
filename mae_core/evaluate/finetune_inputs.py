"""What a classifier is trained on: augmented images, and targets that may be mixed.

Mixing pairs samples of one rank's share of a step, whatever its micro-batches, so the share is
augmented as a whole and mixed micro-batch by micro-batch.
Legend: N images, B residual branches, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mae_core.augment.erasing import random_erase
from mae_core.augment.mixing import draw_mix, mix_images, partner_rows, soft_targets
from mae_core.augment.randaugment import rand_augment
from mae_core.config import FinetuneRecipe
from mae_core.data.augmented import augmented
from mae_core.data.loader import Batch, normalise
from mae_core.runtime import collectives
from mae_core.runtime.keyed_random import Stream, uniform
from mae_core.train.state import Inputs


class FinetuneInputs:
    """Turns batches into (images, labels or targets, drop-path noise)."""

    def __init__(self, recipe: FinetuneRecipe, num_branches: int, num_classes: int) -> None:
        self.recipe, self.num_branches, self.num_classes = recipe, num_branches, num_classes

    def one(self, batch: Batch, device: torch.device) -> Inputs:
        """Inputs of a micro-batch that is not mixed; labels are int64 (N,)."""
        images = self._finished(self._augmented(batch, device), batch, device)
        return images, batch.labels.to(device), self._drop_noise(batch, device)

    def step(self, step: int, batches: list[Batch], device: torch.device) -> Iterator[Inputs]:
        """Inputs of each micro-batch of a step; targets are float32 (N, K) where mixed."""
        if self.recipe.mix is None:
            yield from (self.one(batch, device) for batch in batches)
            return
        share = _joined(batches)
        bytes_NCHW = torch.cat([self._augmented(batch, device) for batch in batches])
        partners = partner_rows(len(share.index))
        start = 0
        for batch in batches:
            rows = np.arange(start, start + len(batch.index))
            start += len(rows)
            yield self._mixed(step, share, bytes_NCHW, rows, partners[rows], device)

    def _mixed(
        self,
        step: int,
        share: Batch,
        bytes_NCHW: Tensor,
        rows: np.ndarray[tuple[int], np.dtype[np.int64]],
        partners: np.ndarray[tuple[int], np.dtype[np.int64]],
        device: torch.device,
    ) -> Inputs:
        """Mix the given rows of a rank's share of a step with their partners."""
        assert self.recipe.mix is not None
        own, other = _rows(share, rows), _rows(share, partners)
        images = self._finished(bytes_NCHW[torch.from_numpy(rows)], own, device)
        partner_images = self._finished(bytes_NCHW[torch.from_numpy(partners)], other, device)
        world = collectives.world()
        mix = draw_mix(
            self.recipe.mix,
            seed=self.recipe.seed,
            step=step,
            positions=collectives.rank() + rows * world,  # the order is dealt like cards
            global_batch=len(share.index) * world,
            height=images.shape[-2],
            width=images.shape[-1],
        )
        targets = soft_targets(
            own.labels.to(device),
            other.labels.to(device),
            mix.lam,
            self.num_classes,
            self.recipe.label_smoothing,
        )
        return mix_images(images, partner_images, mix), targets, self._drop_noise(own, device)

    def _augmented(self, batch: Batch, device: torch.device) -> Tensor:
        """Jitter and RandAugment: uint8 on the device."""
        recipe = self.recipe
        images = augmented(batch, recipe.augmentation, recipe.seed, device)
        if recipe.rand_augment is None:
            return images
        return rand_augment(
            images,
            recipe.rand_augment,
            seed=recipe.seed,
            epoch=batch.epoch,
            index=batch.index,
            pixel_mean=recipe.data.pixel_mean,
        )

    def _finished(self, bytes_NCHW: Tensor, batch: Batch, device: torch.device) -> Tensor:
        """Normalise and erase: float32 on the device."""
        recipe = self.recipe
        images = normalise(bytes_NCHW, recipe.data.pixel_mean, recipe.data.pixel_std, device)
        if recipe.erasing is None:
            return images
        return random_erase(
            images, recipe.erasing, seed=recipe.seed, epoch=batch.epoch, index=batch.index
        )

    def _drop_noise(self, batch: Batch, device: torch.device) -> Tensor:
        noise_NB = uniform(
            self.recipe.seed, Stream.DROP_PATH, batch.epoch, batch.index, self.num_branches
        )
        return torch.from_numpy(noise_NB).float().to(device)


def _joined(batches: list[Batch]) -> Batch:
    return Batch(
        images=torch.cat([batch.images for batch in batches]),
        labels=torch.cat([batch.labels for batch in batches]),
        index=np.concatenate([batch.index for batch in batches]),
        epoch=np.concatenate([batch.epoch for batch in batches]),
    )


def _rows(batch: Batch, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Batch:
    chosen = torch.from_numpy(rows)
    return Batch(
        images=batch.images[chosen],
        labels=batch.labels[chosen],
        index=batch.index[rows],
        epoch=batch.epoch[rows],
    )
