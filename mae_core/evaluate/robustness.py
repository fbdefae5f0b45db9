"""A fine-tuned classifier on corrupted images and on other image sets (paper Table 13).

Nothing is trained and nothing is chosen. Legend: N images, K classes of the classifier, S classes
of a shifted set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from mae_core.checkpoint.encoder_file import check_fits
from mae_core.config import (
    CLASSIFIER_FILE,
    CorruptionRecipe,
    DataConfig,
    Execution,
    ShiftRecipe,
)
from mae_core.config.inference import FAMILIES
from mae_core.corruptions.corrupt import corrupt
from mae_core.corruptions.error import ALEXNET, Baseline, family_means, mean_corruption_error
from mae_core.corruptions.severity import NOTES, strength_set
from mae_core.data.loader import Batch, normalise, rank_batches
from mae_core.data.sources import ImageData, Split
from mae_core.errors import ConfigError
from mae_core.evaluate.classifier import Classifier, load_classifier
from mae_core.evaluate.scores import (
    Predictions,
    concatenate,
    finish,
    gather_predictions,
    predict,
    write_table,
)
from mae_core.runtime import collectives
from mae_core.runtime.context import RunContext
from mae_core.runtime.json_values import Json
from mae_core.runtime.metrics import Metrics
from mae_core.train.loop import Stopped

BATCH_SIZE = 128
CORRUPTED_FILE = "corrupted_predictions.parquet"
MIN_ERROR = 1e-4
"""A baseline that errs less often than this would make the ratio meaningless."""
Condition = tuple[str, int]
"""Family and severity; ("clean", 0) for the images as they are."""
CLEAN: Condition = ("clean", 0)


def run_corruptions(
    recipe: CorruptionRecipe, execution: Execution, ctx: RunContext, data: ImageData
) -> Metrics:
    """Score the classifier under every family and severity; the plain scores are of clean images.

    Raises:
        ConfigError: no classifier, one that does not fit the data or its classes, no baseline.
        Stopped: a stop was requested.
    """
    model, class_names = _classifier(ctx, recipe.data)
    split = data.split(recipe.eval_split)
    recipe.check_classes(tuple(split.class_names), class_names)
    conditions = [CLEAN, *((f, s) for f in recipe.families for s in recipe.severities)]
    parts: dict[Condition, list[Predictions]] = {condition: [] for condition in conditions}
    for batch in _batches(split, recipe.data, ctx):
        for family, severity in conditions:
            images = _corrupted(batch, family, severity, recipe.seed)
            parts[family, severity].append(_predict(model, recipe.data, images, batch))
    local = {condition: concatenate(found) for condition, found in parts.items()}
    scores = finish(local.pop(CLEAN), class_names, ctx)
    gathered = {condition: gather_predictions(found) for condition, found in local.items()}
    if ctx.rank == 0:
        _write(ctx.output_dir / CORRUPTED_FILE, gathered)
    errors = {
        family: [_error(gathered[family, severity]) for severity in recipe.severities]
        for family in recipe.families
    }
    size = recipe.data.image_size
    details: dict[str, Json] = {
        "errors": errors,
        "clean_top1": scores.top1,
        "strengths": strength_set(size, size),
        "notes": [NOTES[family] for family in recipe.families if family in NOTES],
        **_relative(recipe, ctx, errors),
    }
    metrics = scores.metrics(num_train_images=0, details=details)
    mean_error = float(np.mean([error for row in errors.values() for error in row]))
    # What the stage measures is accuracy under corruption; that on clean images is beside it.
    accuracy = {"top1": 100 * (1 - mean_error), "top5": None}
    return replace(metrics, values={**metrics.values, **accuracy})


def run_shift(
    recipe: ShiftRecipe, execution: Execution, ctx: RunContext, data: ImageData
) -> Metrics:
    """Score the classifier on another set, among the classes that both have.

    Raises:
        ConfigError: no classifier, one that does not fit the images, or a class of the set that
            maps to none of the classifier's.
        Stopped: a stop was requested.
    """
    model, class_names = _classifier(ctx, recipe.data)
    split = data.split(recipe.eval_split)
    columns_S = np.array(recipe.columns(tuple(split.class_names), class_names), dtype=np.int64)
    parts = [
        _predict(model, recipe.data, batch.images, batch, columns_S)
        for batch in _batches(split, recipe.data, ctx)
    ]
    scores = finish(concatenate(parts), split.class_names, ctx)
    details = {"num_classes": len(columns_S), "of_classes": len(class_names)}
    return scores.metrics(num_train_images=0, details=details)


def _classifier(ctx: RunContext, data: DataConfig) -> tuple[Classifier, tuple[str, ...]]:
    path = ctx.required(
        CLASSIFIER_FILE, "this evaluation needs a fine-tuned classifier among its parents"
    )
    model, class_names = load_classifier(path)
    check_fits(model.encoder, data)
    return model.to(collectives.device()).eval(), class_names


def _batches(split: Split, data: DataConfig, ctx: RunContext) -> Iterator[Batch]:
    """This rank's share; ends with `Stopped` where a stop was requested."""
    for batch in rank_batches(split, data, BATCH_SIZE):
        if ctx.should_stop():
            raise Stopped(
                "stopped on request while predicting; run again to start from the beginning"
            )
        yield batch


def _corrupted(batch: Batch, family: str, severity: int, seed: int) -> torch.Tensor:
    """Images of a batch under a condition: uint8 (N, C, H, W)."""
    if (family, severity) == CLEAN:
        return batch.images
    images_NHWC = batch.images.permute(0, 2, 3, 1)
    changed = corrupt(images_NHWC, family, severity, seed=seed, index=batch.index)
    return changed.permute(0, 3, 1, 2)


@torch.inference_mode()
def _predict(
    model: Classifier,
    data: DataConfig,
    images: torch.Tensor,
    batch: Batch,
    columns_S: npt.NDArray[np.int64] | None = None,
) -> Predictions:
    device = collectives.device()
    logits_NK = model.logits(normalise(images, data.pixel_mean, data.pixel_std, device)).double()
    if columns_S is not None:
        logits_NK = logits_NK[:, torch.from_numpy(columns_S).to(device)]
    log_prob = logits_NK.log_softmax(dim=1).cpu().numpy()
    return predict(batch.index, batch.labels.numpy(), log_prob)


def _error(predictions: Predictions) -> float:
    return float((predictions.label_rank != 0).mean())


def _relative(
    recipe: CorruptionRecipe, ctx: RunContext, errors: dict[str, list[float]]
) -> dict[str, Json]:
    """Mean corruption error against the recipe's baseline, in per cent; nothing without one."""
    if recipe.baseline == "none":
        return {}
    baseline = ALEXNET if recipe.baseline == "alexnet" else _parents_baseline(ctx)
    found = mean_corruption_error(errors, baseline)
    return {"mce": found.mce, "ce": dict(found.ce), "baseline": found.baseline}


def _parents_baseline(ctx: RunContext) -> Baseline:
    for parent in ctx.parents:
        if parent.kind == CorruptionRecipe.KIND:
            errors = _errors_of(Metrics.from_json(parent.metrics))
            if set(errors) != set(FAMILIES):
                raise ConfigError(f"parent {parent.name!r} has not all families of corruptions")
            means = {f: max(e, MIN_ERROR) for f, e in family_means(errors).items()}
            return Baseline(name=f"stage {parent.name} of this cell", mean_error=means)
    raise ConfigError("baseline 'parent' needs a stage of kind corruptions among the parents")


def _errors_of(metrics: Metrics) -> dict[str, list[float]]:
    """Error of each family by severity, as `run_corruptions` leaves them."""
    errors = metrics.details.get("errors")
    rows = errors.items() if isinstance(errors, Mapping) else ()
    return {
        family: [error for error in row if isinstance(error, int | float)]
        for family, row in rows
        if isinstance(row, Sequence)
    }


def _write(path: Path, gathered: dict[Condition, Predictions]) -> None:
    """One row per image and condition: family, severity and the prediction."""
    tables = [
        pa.table(
            {
                "family": pa.array([family] * len(found)).dictionary_encode(),
                "severity": np.full(len(found), severity, dtype=np.int8),
                "sample_index": found.sample_index,
                "label": found.label,
                "prediction": found.prediction,
            }
        )
        for (family, severity), found in gathered.items()
    ]
    write_table(path, pa.concat_tables(tables).unify_dictionaries())
