"""Scikit-learn's digits as data, and an untrained encoder in a file: where evaluations start."""

from __future__ import annotations

from pathlib import Path

from mae_core.checkpoint.encoder_file import save_encoder
from mae_core.config import ENCODER_FILE, DataConfig, EncoderConfig
from mae_core.model.vit import Encoder

DIGITS = DataConfig(
    path="digits",
    image_size=8,
    num_channels=1,
    pixel_mean=(0.3,),
    pixel_std=(0.38,),
    dev_fraction=0.1,
)


def write_encoder(folder: Path, encoder: EncoderConfig) -> Path:
    """An untrained encoder for the digits, in a folder."""
    path = folder / ENCODER_FILE
    save_encoder(path, Encoder(encoder, 8, 1).state_dict(), encoder, 8, 1, extra={})
    return path
