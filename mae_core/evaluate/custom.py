"""An evaluation of the user's own: what his function is given, and what it must give back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mae_core.config import CustomEvalRecipe, Execution
from mae_core.data.sources import ImageData, Split
from mae_core.errors import ConfigError
from mae_core.evaluate.features import Extractor, Features, extract, gather_features, labelled_split
from mae_core.evaluate.scores import Predictions, finish, predict
from mae_core.model.vit import Encoder
from mae_core.runtime import collectives
from mae_core.runtime.context import RunContext
from mae_core.runtime.metrics import Metrics
from mae_core.runtime.plugins import resolve


@dataclass(frozen=True, kw_only=True)
class EvalTask:
    """What a function of the user's is given, on every rank."""

    train: Split
    """Training images whose labels it may use."""
    evaluation: Split
    """Images to be scored; each exactly once, over all ranks together."""
    extractor: Extractor
    """The frozen encoder: (N, C, H, W) uint8 → float32 (N, D)."""
    options: Mapping[str, float | int | str]
    seed: int
    rank: int
    world: int
    output_dir: Path
    """For files of its own; rank 0 writes."""

    @property
    def encoder(self) -> Encoder | None:
        """The network itself, in eval mode; None where the features are raw pixels."""
        return self.extractor.encoder

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class."""
        return self.train.class_names

    def features(self, split: Split) -> Features:
        """Vectors of a whole split, in sample order, on every rank; encoded on all of them."""
        return gather_features(extract(self.extractor, split))

    def share(self, features: Features) -> Features:
        """This rank's part of vectors that every rank has; the parts hold each image once."""
        start, end = (len(features) * r // self.world for r in (self.rank, self.rank + 1))
        return Features(
            vectors=features.vectors[start:end],
            labels=features.labels[start:end],
            sample_index=features.sample_index[start:end],
        )

    def predictions(self, features: Features, scores_NC: npt.ArrayLike) -> Predictions:
        """Predictions of images from log-probabilities, or from any scores of classes (N, C)."""
        scores = np.asarray(scores_NC, dtype=np.float64)
        top = scores.max(axis=1, keepdims=True)
        log_prob = scores - top - np.log(np.exp(scores - top).sum(axis=1, keepdims=True))
        return predict(features.sample_index, features.labels, log_prob)


def run_custom_eval(
    recipe: CustomEvalRecipe, execution: Execution, ctx: RunContext, data: ImageData
) -> Metrics:
    """Call the function that `entry` names, check what it returns, score it as every evaluation.

    Raises:
        ConfigError: no such function; it returned something else than predictions, or predictions
            that do not hold each image of the evaluation split exactly once.
    """
    function = resolve(recipe.entry)
    train, evaluation = labelled_split(recipe, data), data.split(recipe.eval_split)
    task = EvalTask(
        train=train,
        evaluation=evaluation,
        extractor=Extractor.for_recipe(recipe, ctx),
        options=dict(recipe.options),
        seed=recipe.seed,
        rank=collectives.rank(),
        world=collectives.world(),
        output_dir=ctx.output_dir,
    )
    returned = function(task)
    local, details = returned if isinstance(returned, tuple) else (returned, {})
    _check(recipe.entry, local, details, evaluation, len(train.class_names))
    scores = finish(local, train.class_names, ctx)
    ctx.log_metrics(0, {"top1": scores.top1, "loss": scores.loss})
    return scores.metrics(
        num_train_images=len(train), details={"options": dict(recipe.options), **details}
    )


def _check(entry: str, local: object, details: object, evaluation: Split, num_classes: int) -> None:
    """Refuse what cannot be scored, on every rank alike."""
    problem = ""
    index = np.zeros(0, dtype=np.int64)
    if not isinstance(local, Predictions) or not isinstance(details, dict):
        problem = f"returned {type(local).__name__} and {type(details).__name__}"
    elif ((local.prediction < 0) | (local.prediction >= num_classes)).any():
        problem = f"predicted classes outside 0..{num_classes - 1}"
    else:
        index = local.sample_index
    problems = [p for p in collectives.all_gather_object(problem) if p]
    if problems:
        raise ConfigError(
            f"{entry} {problems[0]}: it must return this rank's Predictions, or a pair of these "
            "and a dict of details"
        )
    index = np.sort(np.concatenate(collectives.all_gather_object(index)))
    if not np.array_equal(index, evaluation.sample_index):
        raise ConfigError(
            f"{entry} predicted {len(index)} images ({len(np.unique(index))} different ones) where "
            f"the {evaluation.name} split has {len(evaluation)}: each must count exactly once, "
            "over all ranks together (see `EvalTask.share`)"
        )
