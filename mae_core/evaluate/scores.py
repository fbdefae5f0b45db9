"""Per-example predictions, the scores computed from them, and their Parquet file.

Every rank predicts its share; the shares are gathered and put in sample order before anything is
summed, so that scores do not depend on the world size. Legend: N images, C classes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mae_core.errors import DataError, NumericsError
from mae_core.runtime import collectives
from mae_core.runtime.context import RunContext
from mae_core.runtime.json_values import Json
from mae_core.runtime.metrics import Metrics

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

FILE_NAME = "predictions.parquet"
MIN_CLASSES_TOP5 = 6
"""With five classes or fewer every prediction is among the first five: top5 says nothing."""
MIN_PROBABILITY = 1e-12
"""A vote share of 0 counts as this much in the loss, which stays finite."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a classifier said about N images; all columns have length N."""

    sample_index: I64
    """Index of the image in its split."""
    label: I64
    prediction: I64
    """Class of the highest score; the lowest class number wins a tie."""
    label_rank: I64
    """Classes ranked before the label: 0 = correct, below 5 = top-5 correct."""
    nll: F64
    """−log probability of the label, nats."""

    def __len__(self) -> int:
        """Images."""
        return len(self.label)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Accuracy over a whole split; accuracies in per cent."""

    top1: float
    top5: float | None
    """None with fewer than six classes."""
    loss: float
    """Mean cross-entropy, nats, without label smoothing."""
    num_images: int
    per_class: dict[str, float]
    """top-1 by class name; classes without an image are left out."""

    def metrics(self, *, num_train_images: int, details: Mapping[str, Json]) -> Metrics:
        """The scores, what was trained on, and the details."""
        values = {
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "num_images": self.num_images,
            "num_train_images": num_train_images,
        }
        return Metrics(values=values, per_class=self.per_class, details=details)


def predict(sample_index: I64, label: I64, log_prob_NC: F64) -> Predictions:
    """Rank classes by log-probability (N, C); `NumericsError` if one is NaN or +inf."""
    if np.isnan(log_prob_NC).any() or np.isposinf(log_prob_NC).any():
        raise NumericsError("a predicted log-probability is not a number: training diverged")
    own_N1 = np.take_along_axis(log_prob_NC, label[:, None], axis=1)
    classes_C = np.arange(log_prob_NC.shape[1])
    tied_before_NC = (log_prob_NC == own_N1) & (classes_C < label[:, None])
    return Predictions(
        sample_index=np.asarray(sample_index, dtype=np.int64),
        label=np.asarray(label, dtype=np.int64),
        prediction=log_prob_NC.argmax(axis=1).astype(np.int64),
        label_rank=((log_prob_NC > own_N1) | tied_before_NC).sum(axis=1).astype(np.int64),
        nll=-np.maximum(own_N1[:, 0], np.log(MIN_PROBABILITY)),
    )


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """Join parts and put them in sample order; `DataError` if an image was predicted twice."""
    names = ("sample_index", "label", "prediction", "label_rank", "nll")
    parts = parts or [_nothing()]  # a rank may have no image of a small split
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    order = np.argsort(columns["sample_index"], kind="stable")
    columns = {name: column[order] for name, column in columns.items()}
    repeats = int((np.diff(columns["sample_index"]) == 0).sum())
    if repeats:
        raise DataError(f"{repeats} images were predicted twice: each must count once")
    return Predictions(**columns)


def gather_predictions(local: Predictions) -> Predictions:
    """Join the shares of all ranks, in sample order, on every rank."""
    return concatenate(collectives.all_gather_object(local))


def score(predictions: Predictions, class_names: Sequence[str]) -> Scores:
    """Score a whole split; `DataError` if it is empty."""
    if len(predictions) == 0:
        raise DataError("no image to evaluate on: the evaluation split is empty")
    correct_N = predictions.label_rank == 0
    has_top5 = len(class_names) >= MIN_CLASSES_TOP5
    return Scores(
        top1=_percent(correct_N),
        top5=_percent(predictions.label_rank < 5) if has_top5 else None,
        loss=float(predictions.nll.mean()),
        num_images=len(predictions),
        per_class={
            name: _percent(correct_N[predictions.label == number])
            for number, name in enumerate(class_names)
            if (predictions.label == number).any()
        },
    )


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write one row per image, in the order given.

    Columns: sample_index, label, prediction int64; top5_correct bool; probability float32, the
    probability of the label.
    """
    table = pa.table(
        {
            "sample_index": predictions.sample_index,
            "label": predictions.label,
            "prediction": predictions.prediction,
            "top5_correct": predictions.label_rank < 5,
            "probability": np.exp(-predictions.nll).astype(np.float32),
        }
    )
    write_table(path, table)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file that is whole or not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    pq.write_table(table, temporary)
    os.replace(temporary, path)


def finish(local: Predictions, class_names: Sequence[str], ctx: RunContext) -> Scores:
    """Gather all shares, write `predictions.parquet` on rank 0, and score on every rank."""
    predictions = gather_predictions(local)
    scores = score(predictions, class_names)
    if ctx.rank == 0:
        write_predictions(ctx.output_dir / FILE_NAME, predictions)
    return scores


def _nothing() -> Predictions:
    none = np.zeros(0, dtype=np.int64)
    return Predictions(
        sample_index=none, label=none, prediction=none, label_rank=none, nll=none.astype(np.float64)
    )


def _percent(flags: npt.NDArray[np.bool_]) -> float:
    return 100.0 * float(flags.mean())
