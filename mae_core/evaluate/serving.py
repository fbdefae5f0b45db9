"""A trained network as others call it: pixels in, features or class scores out, in one module.

Normalisation is part of it, so that a caller needs to know nothing of the study. It is traced
(`torch.export`): no attribute that varies, no branch on values.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from mae_core.checkpoint.encoder_file import load_encoder
from mae_core.config import CLASSIFIER_FILE, DataConfig, FeatureKind
from mae_core.evaluate.classifier import load_classifier
from mae_core.evaluate.features import pool


class Served(nn.Module):
    """Normalise, encode, and reduce to features or scores."""

    def __init__(self, network: nn.Module, data: DataConfig, features: FeatureKind | None) -> None:
        """Wrap an encoder, or with `features` None a classifier."""
        super().__init__()
        self.network, self.features = network, features
        shape = (1, data.num_channels, 1, 1)
        self.register_buffer("pixel_mean", torch.tensor(data.pixel_mean).view(shape))
        self.register_buffer("pixel_std", torch.tensor(data.pixel_std).view(shape))

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        """Map pixels in 0..1, float32, of the data's image size, to vectors (N, D) or (N, classes).

        Features are the class token or the mean of the patch tokens, after the final LN.
        """
        images = (pixels_NCHW - self.pixel_mean) / self.pixel_std  # type: ignore[operator]
        if self.features is None:
            scores: Tensor = self.network.logits(images)  # type: ignore[operator]
            return scores
        tokens = self.network.forward_features(images)  # type: ignore[operator]
        return pool(tokens, self.features)


def load_served(
    path: Path, data: DataConfig, features: FeatureKind
) -> tuple[Served, tuple[str, ...]]:
    """Load an encoder's file, or a classifier's; also the classes' names (of an encoder none).

    Raises:
        CheckpointError: the file is damaged or of another kind.
    """
    if path.name == CLASSIFIER_FILE:
        network, class_names = load_classifier(path)
        return Served(network, data, None).eval(), class_names
    return Served(load_encoder(path), data, features).eval(), ()
