"""A classifier, encoder and linear head (paper Table 9, A.1): built, scored, kept as a file.

With `features="mean"` the final LN of the encoder gives way to a new LN after the mean of the
patch tokens; with "cls" the final LN stays and the class token is classified. Positions start at
their sin-cos values and are trained, as in the paper's code; for images larger than in
pretraining (448 px) they are interpolated.
Legend: N images, C channels, H, W pixels, B residual branches, D width, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_core.checkpoint.encoder_file import (
    CLASSIFIER_FORMAT,
    EncoderFile,
    check_fits,
    describe,
    parse_description,
    read_encoder,
)
from mae_core.checkpoint.tensor_file import expect_format, load_state, read_tensors, write_tensors
from mae_core.config import (
    EvalRecipe,
    FeatureKind,
    FinetuneRecipe,
    PartialFinetuneRecipe,
    ScratchRecipe,
    check_patches,
    require,
)
from mae_core.data.loader import rank_batches
from mae_core.data.sources import Split
from mae_core.errors import CheckpointError, ConfigError
from mae_core.evaluate.features import BATCH_SIZE, pool
from mae_core.evaluate.scores import Predictions, concatenate, predict
from mae_core.model.ema import WeightAverage
from mae_core.model.positions import resize_positions, sincos_positions
from mae_core.model.vit import NORM_EPS, Encoder, Linear
from mae_core.runtime import collectives

HEAD_STD = 2e-5
"""Standard deviation of the head's initial weights (the paper's code)."""


class Classifier(nn.Module):
    """Encoder, pooling and linear head; its forward is the training loss."""

    def __init__(
        self,
        encoder: Encoder,
        features: FeatureKind,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Take over `encoder`; the head is drawn from `generator` (None = the global one)."""
        super().__init__()
        self.encoder = encoder
        self.features: FeatureKind = features
        self.label_smoothing = label_smoothing
        self.average: WeightAverage | None = None
        width = encoder.config.width
        self.norm: nn.Module = nn.Identity()
        if features == "mean":
            encoder.add_module("norm", nn.Identity())
            self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = Linear(width, num_classes)
        nn.init.normal_(self.head.weight, std=HEAD_STD, generator=generator)
        nn.init.zeros_(self.head.bias)

    def logits(self, images_NCHW: Tensor, drop_noise_NB: Tensor | None = None) -> Tensor:
        """Score classes: (N, C, H, W) → float32 (N, K); without noise there is no drop path."""
        tokens = self.encoder.forward_features(images_NCHW, drop_noise_NB)
        scores: Tensor = self.head(self.norm(pool(tokens, self.features)))
        return scores.float()

    def forward(self, images_NCHW: Tensor, labels: Tensor, drop_noise_NB: Tensor) -> Tensor:
        """Mean cross-entropy, a scalar in nats.

        `labels` are int64 (N,), to which label smoothing is applied, or targets float32 (N, K)
        that contain it already.
        """
        logits_NK = self.logits(images_NCHW, drop_noise_NB)
        smoothing = 0.0 if labels.is_floating_point() else self.label_smoothing
        return F.cross_entropy(logits_NK, labels, label_smoothing=smoothing)


def build_classifier(
    recipe: FinetuneRecipe, encoder_path: Path | None, num_classes: int
) -> Classifier:
    """Build the network before its first step; its draws come from `recipe.seed` alone."""
    is_scratch = isinstance(recipe, ScratchRecipe)
    if (encoder_path is None) != is_scratch:
        raise ConfigError(
            "training from scratch takes no encoder file"
            if is_scratch
            else "fine-tuning needs the encoder file of a parent stage"
        )
    file = None if encoder_path is None else read_encoder(encoder_path)
    config = file.config if file else cast(ScratchRecipe, recipe).encoder
    generator = torch.Generator().manual_seed(recipe.seed)
    encoder = Encoder(
        config,
        recipe.data.image_size,
        file.num_channels if file else recipe.data.num_channels,
        drop_path=recipe.drop_path,
        generator=generator,
        trainable_positions=True,
    )
    check_fits(encoder, recipe.data)
    if file is not None and encoder_path is not None:
        load_state(encoder, file.state | {"positions": _positions(file, recipe)}, encoder_path)
    if isinstance(recipe, PartialFinetuneRecipe):
        freeze_all_but_last(encoder, recipe.num_blocks)
    return Classifier(
        encoder,
        recipe.features,
        num_classes,
        label_smoothing=recipe.label_smoothing,
        generator=generator,
    )


def _positions(file: EncoderFile, recipe: FinetuneRecipe) -> Tensor:
    """The file's positions, learned or fixed, on the grid that the recipe's images give."""
    patch = file.config.patch_size
    check_patches(recipe.data, file.config)
    table = file.state.get("positions")
    if table is None:
        table = sincos_positions(file.config.width, file.image_size // patch)
    return resize_positions(table, recipe.data.image_size // patch)


def load_classifier(path: Path) -> tuple[Classifier, tuple[str, ...]]:
    """Build the classifier of a file, on the CPU in eval mode, and name its classes.

    Raises:
        CheckpointError: the file is damaged or of another kind.
    """
    state, metadata = read_tensors(path)
    expect_format(path, metadata, CLASSIFIER_FORMAT)
    config, image_size, num_channels = parse_description(path, metadata)
    try:
        class_names = tuple(str(name) for name in json.loads(metadata["class_names"]))
        features: Any = metadata["features"]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: metadata describes no classifier: {error}") from error
    encoder = Encoder(config, image_size, num_channels, trainable_positions=True)
    model = Classifier(encoder, features, len(class_names))
    load_state(model, state, path)
    return model.eval(), class_names


@torch.inference_mode()
def evaluate(model: Classifier, recipe: EvalRecipe, split: Split) -> Predictions:
    """Predict this rank's share of a split in fp32, without drop path or augmentation."""
    model.to(collectives.device()).eval()
    return concatenate(list(_predicted(model, recipe, split)))


def _predicted(model: Classifier, recipe: EvalRecipe, split: Split) -> Iterator[Predictions]:
    for batch in rank_batches(split, recipe.data, BATCH_SIZE):
        images = batch.normalised(recipe.data, collectives.device())
        log_prob_NK = model.logits(images).double().log_softmax(1)
        yield predict(batch.index, batch.labels.numpy(), log_prob_NK.cpu().numpy())


def save_classifier(
    path: Path, recipe: FinetuneRecipe, model: Classifier, class_names: tuple[str, ...]
) -> None:
    """Write the classifier with what is needed to rebuild it."""
    metadata = describe(model.encoder.config, recipe.data.image_size, recipe.data.num_channels)
    metadata |= {
        "format": CLASSIFIER_FORMAT,
        "features": recipe.features,
        "class_names": json.dumps(list(class_names)),
    }
    write_tensors(path, model.state_dict(), metadata)


def freeze_all_but_last(encoder: Encoder, num_blocks: float) -> None:
    """Leave a gradient to the last `num_blocks` blocks only; see `PartialFinetuneRecipe`.

    What is frozen needs no gradient, so backward stops at the first block that is trained, and
    no optimizer knows of it. Raises `ConfigError` for more blocks than the encoder has.
    """
    depth = encoder.config.depth
    require(
        num_blocks <= depth,
        f"num_blocks {num_blocks:g} of an encoder with {depth} blocks: use at most {depth}",
    )
    if num_blocks == depth:
        return
    encoder.requires_grad_(False)
    for part in _trained(encoder, num_blocks):
        part.requires_grad_(True)


def _trained(encoder: Encoder, num_blocks: float) -> list[nn.Module]:
    if num_blocks == 0:
        return []
    if num_blocks == 0.5:
        last = encoder.blocks[-1]
        return [last.norm2, last.mlp, encoder.norm]  # type: ignore[list-item]
    return [*encoder.blocks[-int(num_blocks) :], encoder.norm]
