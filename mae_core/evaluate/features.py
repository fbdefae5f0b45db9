"""Frozen features: one float32 vector per image, each image once, on any number of ranks.

Legend: N images, C channels, H, W pixels, L patches, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mae_core.checkpoint.encoder_file import check_fits, load_encoder
from mae_core.config import ENCODER_FILE, DataConfig, EvalRecipe, FeatureKind, require
from mae_core.data.loader import normalise, rank_batches
from mae_core.errors import DataError
from mae_core.model.vit import Encoder
from mae_core.runtime import collectives
from mae_core.runtime.context import RunContext

if TYPE_CHECKING:
    from mae_core.data.sources import ImageData, Split

BATCH_SIZE = 256
"""Images per forward of a frozen encoder; execution, not science."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Vectors of N images."""

    vectors: npt.NDArray[np.float32]
    """Shape (N, D)."""
    labels: npt.NDArray[np.int64]
    sample_index: npt.NDArray[np.int64]
    """Index of each image in its split."""

    def __len__(self) -> int:
        """Images."""
        return len(self.labels)


class Extractor:
    """Turns images into vectors with a frozen encoder: eval mode, no gradient, no mask."""

    def __init__(self, encoder: Encoder | None, data: DataConfig, kind: FeatureKind) -> None:
        require(
            (encoder is None) == (kind == "pixels"),
            f"features {kind!r} {'need' if encoder is None else 'take no'} encoder: "
            "give an encoder file for cls and mean, none for pixels",
        )
        self.data, self.kind, self.device = data, kind, collectives.device()
        self.encoder = encoder
        if encoder is not None:
            check_fits(encoder, data)
            encoder.to(self.device).eval().requires_grad_(False)

    @classmethod
    def for_recipe(cls, recipe: EvalRecipe, ctx: RunContext) -> Extractor:
        """Load the encoder that a recipe's features need (raw pixels need none)."""
        if recipe.features == "pixels":
            return cls(None, recipe.data, "pixels")
        path = ctx.required(
            ENCODER_FILE,
            f"features {recipe.features!r} need an encoder file; only pixels do without",
        )
        return cls(load_encoder(path), recipe.data, recipe.features)

    @property
    def width(self) -> int:
        """Length D of a vector."""
        if self.encoder is None:
            return self.data.num_channels * self.data.image_size**2
        return self.encoder.config.width

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 images (N, C, H, W) to float32 vectors (N, D) on this rank's device."""
        images_NCHW = normalise(images, self.data.pixel_mean, self.data.pixel_std, self.device)
        if self.encoder is None:
            return images_NCHW.flatten(1)
        self.encoder.eval()  # BatchNorm or drop path in train mode would spoil frozen features
        return pool(self.encoder.forward_features(images_NCHW), self.kind).float()


def layer_tokens(
    encoder: Encoder, images_NCHW: Tensor, layers: Sequence[int | None]
) -> list[Tensor]:
    """Tokens (N, 1 + L, D) after each of `layers`, blocks counted from 1; None = the last.

    Each goes through the encoder's final LN, so that the last block's are what it returns.
    """
    taken: dict[int | None, Tensor] = {}

    def keep(layer: int) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _, __, output: taken.__setitem__(layer, output)

    hooks = [
        encoder.blocks[layer - 1].register_forward_hook(keep(layer))
        for layer in layers
        if layer is not None
    ]
    try:
        taken[None] = encoder.forward_features(images_NCHW)
    finally:
        for hook in hooks:
            hook.remove()
    return [taken[None] if layer is None else encoder.norm(taken[layer]) for layer in layers]


def labelled_split(recipe: EvalRecipe, data: ImageData) -> Split:
    """Return the training images whose labels the recipe may see (`num_labels`, `label_seed`)."""
    return data.split("train").subset(recipe.num_labels, recipe.label_seed)


def pool(tokens_NLD: torch.Tensor, kind: FeatureKind) -> torch.Tensor:
    """Reduce class token + patch tokens (N, 1 + L, D) to one vector (N, D)."""
    return tokens_NLD[:, 0] if kind == "cls" else tokens_NLD[:, 1:].mean(dim=1)


def extract(extractor: Extractor, split: Split, batch_size: int = BATCH_SIZE) -> Features:
    """Encode this rank's share of a split, without augmentation, in the order it is read."""
    parts = list(_encoded(extractor, split, batch_size))
    if not parts:
        return Features(
            vectors=np.zeros((0, extractor.width), np.float32),
            labels=np.zeros(0, np.int64),
            sample_index=np.zeros(0, np.int64),
        )
    return _concatenate(parts)


def gather_features(local: Features) -> Features:
    """Join the shares of all ranks, in sample order, on every rank.

    Raises:
        DataError: an image was encoded twice.
    """
    parts = [part for part in collectives.all_gather_object(local) if len(part)]
    if not parts:
        raise DataError("no image to encode: the split is empty")
    every = _concatenate(parts)
    order = np.argsort(every.sample_index, kind="stable")
    repeats = int((np.diff(every.sample_index[order]) == 0).sum())
    if repeats:
        raise DataError(f"{repeats} images were encoded twice: each must count once")
    return Features(
        vectors=every.vectors[order],
        labels=every.labels[order],
        sample_index=every.sample_index[order],
    )


def _encoded(extractor: Extractor, split: Split, batch_size: int) -> Iterator[Features]:
    for batch in rank_batches(split, extractor.data, batch_size):
        yield Features(
            vectors=extractor(batch.images).cpu().numpy(),
            labels=batch.labels.numpy(),
            sample_index=batch.index,
        )


def _concatenate(parts: list[Features]) -> Features:
    return Features(
        vectors=np.concatenate([part.vectors for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        sample_index=np.concatenate([part.sample_index for part in parts]),
    )
