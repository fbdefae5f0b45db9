"""End-to-end fine-tuning of an encoder with a linear head (paper Table 9, A.1).

With `features="mean"` the final LN of the encoder gives way to a new LN after the mean of the
patch tokens; with "cls" the final LN stays and the class token is classified. Positions start at
their sin-cos values and are trained, as in the paper's code; for images larger than in
pretraining (448 px) they are interpolated.
Legend: N images, C channels, H, W pixels, B residual branches, D width, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae_core.checkpoint.encoder_file import (
    EncoderFile,
    check_fits,
    describe,
    expect_format,
    load_state,
    parse_description,
    read_encoder,
    read_tensors,
    write_tensors,
)
from mae_core.config import (
    CLASSIFIER_FILE,
    ENCODER_FILE,
    BatchSplit,
    EvalRecipe,
    Execution,
    FeatureKind,
    FinetuneRecipe,
    PartialFinetuneRecipe,
    ScratchRecipe,
    check_patches,
    require,
    split_batch,
)
from mae_core.data.loader import Batch, eval_batches, normalise
from mae_core.data.sources import ImageData, Split
from mae_core.errors import CheckpointError, ConfigError
from mae_core.evaluate.features import BATCH_SIZE, effective_batch, labelled_split, pool
from mae_core.evaluate.finetune_inputs import FinetuneInputs
from mae_core.evaluate.partial import freeze_all_but_last
from mae_core.evaluate.predictions import Predictions, concatenate, finish, predict
from mae_core.model.ema import WeightAverage
from mae_core.model.positions import resize_positions, sincos_positions
from mae_core.model.vit import NORM_EPS, Encoder, Linear
from mae_core.runtime import collectives
from mae_core.runtime.context import RunContext
from mae_core.train.job import make_job
from mae_core.train.loop import Inputs, TrainJob, train
from mae_core.train.optim import layer_decay_groups

FORMAT = "mae-study-classifier-1"
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


def run_finetune(
    recipe: FinetuneRecipe, execution: Execution, ctx: RunContext, data: ImageData
) -> dict[str, Any]:
    """Fine-tune a parent's encoder, or train one from scratch; evaluate; save the classifier.

    Raises:
        ConfigError: no encoder to start from; sizes that do not fit; a batch that does not split
            over the ranks.
        NumericsError: the loss became non-finite.
        Stopped: somebody asked to stop; a checkpoint is committed.
    """
    encoder_path = ctx.input(ENCODER_FILE)
    split = labelled_split(recipe, data)
    batch = split_batch(effective_batch(recipe.global_batch, len(split)), execution)
    model = build_classifier(recipe, encoder_path, num_classes=len(split.class_names))
    if recipe.ema_decay is not None:
        require(execution.zero_stage < 3, "ema_decay needs whole weights: use ZeRO 0, 1 or 2")
        model.average = WeightAverage(model, recipe.ema_decay)
    job = _job(recipe, execution, model, split, batch)
    result = train(job, execution, ctx)
    learned = result.state
    if model.average is not None:
        model.average.follow(learned)
        learned = model.average.state()
    # A fresh module: DeepSpeed leaves the trained one in bf16 or in pieces.
    trained = build_classifier(recipe, encoder_path, num_classes=len(split.class_names))
    trained.load_state_dict(_learned(trained, learned), strict=False)
    if ctx.rank == 0:
        _save(ctx.output_dir / CLASSIFIER_FILE, recipe, trained, split.class_names)
    local = evaluate(trained, recipe, data.split(recipe.eval_split))
    scores = finish(local, split.class_names, ctx)
    ctx.log_metrics(job.num_steps, {"top1": scores.top1, "eval_loss": scores.loss})
    facts = result.facts()
    details = {
        "effective_batch": batch.global_batch,
        "micro_batch": batch.micro,
        "accumulation": batch.accumulation,
        "peak_lr": job.lr_schedule.peak_lr,
        "steps": job.num_steps,
        "train_loss": facts.pop("loss"),
        **facts,
    }
    return scores.metrics(num_train_images=len(split), details=details)


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


def _learned(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What training changed: frozen parts stay as they were read, not as bf16 rounded them."""
    return {name: state[name] for name, p in model.named_parameters() if p.requires_grad}


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
    expect_format(path, metadata, FORMAT)
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
    batches = eval_batches(
        split, recipe.data, BATCH_SIZE, rank=collectives.rank(), world=collectives.world()
    )
    for batch in batches:
        log_prob_NK = (
            model.logits(_images(recipe, batch, collectives.device())).double().log_softmax(1)
        )
        yield predict(batch.index, batch.labels.numpy(), log_prob_NK.cpu().numpy())


def _job(
    recipe: FinetuneRecipe,
    execution: Execution,
    model: Classifier,
    split: Split,
    batch: BatchSplit,
) -> TrainJob:
    depth = model.encoder.config.depth
    inputs = FinetuneInputs(recipe, 2 * depth, len(split.class_names))

    def prepare_step(step: int, batches: list[Batch], device: torch.device) -> Iterator[Inputs]:
        if model.average is not None:  # what the last step has learned
            model.average.follow(dict(model.named_parameters()))
        return inputs.step(step, batches, device)

    groups = layer_decay_groups(model, recipe.optimizer.weight_decay, recipe.layer_decay, depth)
    return make_job(
        recipe,
        execution,
        model,
        split,
        batch,
        param_groups=groups,
        prepare=inputs.one,
        prepare_step=prepare_step,
    )


def _images(recipe: EvalRecipe, batch: Batch, device: torch.device) -> Tensor:
    return normalise(batch.images, recipe.data.pixel_mean, recipe.data.pixel_std, device)


def _save(
    path: Path, recipe: FinetuneRecipe, model: Classifier, class_names: tuple[str, ...]
) -> None:
    """Write the classifier with what is needed to rebuild it."""
    metadata = describe(model.encoder.config, recipe.data.image_size, recipe.data.num_channels)
    metadata |= {
        "format": FORMAT,
        "features": recipe.features,
        "class_names": json.dumps(list(class_names)),
    }
    write_tensors(path, model.state_dict(), metadata)
