"""Weighted k-nearest-neighbour classification on frozen features (Wu et al., arXiv 1805.01978).

Each of the k nearest training images votes for its class with weight exp(cosine / temperature).
Every rank holds all training vectors and classifies its share of the evaluation images.
Legend: Q queries, N training images, K neighbours, D feature width, C classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from mae_core.config import FEATURES_FILE, Execution, KnnRecipe, require
from mae_core.data.sources import ImageData, Split
from mae_core.evaluate.feature_file import rank_share, read_features
from mae_core.evaluate.features import Extractor, Features, extract, gather_features, labelled_split
from mae_core.evaluate.scores import MIN_PROBABILITY, Predictions, concatenate, finish, predict
from mae_core.runtime import collectives
from mae_core.runtime.context import RunContext
from mae_core.runtime.metrics import Metrics
from mae_core.train.loop import Stopped

CHUNK_ELEMENTS = 2**24
"""Similarities held at once: 64 MB of float32."""


def run_knn(recipe: KnnRecipe, execution: Execution, ctx: RunContext, data: ImageData) -> Metrics:
    """Classify the evaluation split by its neighbours among the training images.

    Raises:
        ConfigError: k exceeds the training set; the encoder is missing or does not fit the data.
        Stopped: a stop was requested.
    """
    split = labelled_split(recipe, data)
    recipe.check_k(len(split))
    path = ctx.input(FEATURES_FILE)
    if path is not None and recipe.features != "pixels":
        train = read_features(path, split, recipe.layer)
        queries = read_features(path, rank_share(data.split(recipe.eval_split)), recipe.layer)
    else:
        train, queries = _encode(recipe, ctx, split, data.split(recipe.eval_split))
    local = classify(recipe, train, queries, num_classes=len(split.class_names))
    scores = finish(local, split.class_names, ctx)
    ctx.log_metrics(0, {"top1": scores.top1, "loss": scores.loss})
    details = {"k": recipe.k, "feature_width": int(train.vectors.shape[1])}
    return scores.metrics(num_train_images=len(train), details=details)


def _encode(
    recipe: KnnRecipe, ctx: RunContext, train: Split, evaluation: Split
) -> tuple[Features, Features]:
    """Features of all training images, and of this rank's share of those to classify."""
    require(recipe.layer is None, f"layer {recipe.layer} is read from a `features` parent")
    extractor = Extractor.for_recipe(recipe, ctx)
    keys = gather_features(extract(extractor, train))
    _stop_if_asked(ctx)
    queries = extract(extractor, evaluation)
    _stop_if_asked(ctx)
    return keys, queries


def classify(
    recipe: KnnRecipe, train: Features, queries: Features, num_classes: int
) -> Predictions:
    """Predict each query from its neighbours; vote shares are the probabilities.

    Ties are broken by sample order: of two equally similar images the first counts, and of two
    classes with equal votes the lower number wins.
    """
    recipe.check_k(len(train))
    keys_ND = _unit(train.vectors)
    chunk = max(1, CHUNK_ELEMENTS // len(train))
    parts = []
    for start in range(0, max(1, len(queries)), chunk):
        part = slice(start, start + chunk)
        share_QC = _vote_share(
            queries.vectors[part], keys_ND, train.labels, recipe.k, recipe.temperature, num_classes
        )
        log_share_QC = np.log(np.maximum(share_QC, MIN_PROBABILITY))
        parts.append(predict(queries.sample_index[part], queries.labels[part], log_share_QC))
    return concatenate(parts)


def _vote_share(
    vectors_QD: npt.NDArray[np.float32],
    keys_ND: torch.Tensor,
    labels_N: npt.NDArray[np.int64],
    k: int,
    temperature: float,
    num_classes: int,
) -> npt.NDArray[np.float64]:
    """Weighted votes per class, each row summing to 1: float64 (Q, C)."""
    num_queries = len(vectors_QD)
    if num_queries == 0:
        return np.zeros((0, num_classes))
    similarity_QN = _unit(vectors_QD) @ keys_ND.T
    index_QK = _nearest(similarity_QN, k)
    similarity_QK = similarity_QN.gather(1, index_QK).cpu().numpy().astype(np.float64)
    # The shift by the row's maximum cancels in the shares and keeps exp finite.
    weight_QK = np.exp((similarity_QK - similarity_QK.max(axis=1, keepdims=True)) / temperature)
    row_Q1 = np.arange(num_queries)[:, None]
    cell_QK = row_Q1 * num_classes + labels_N[index_QK.cpu().numpy()]
    votes = np.bincount(cell_QK.ravel(), weight_QK.ravel(), minlength=num_queries * num_classes)
    votes_QC = votes.reshape(num_queries, num_classes)
    share_QC: npt.NDArray[np.float64] = votes_QC / votes_QC.sum(axis=1, keepdims=True)
    return share_QC


def _nearest(similarity_QN: torch.Tensor, k: int) -> torch.Tensor:
    """Columns of the k largest per row, ascending, the first of equals: int64 (Q, K).

    `topk` alone leaves the choice among equals open, which may differ from run to run.
    """
    kth_Q1 = similarity_QN.topk(k, dim=1).values[:, -1:]
    above_QN = similarity_QN > kth_Q1
    equal_QN = similarity_QN == kth_Q1
    room_Q1 = k - above_QN.sum(dim=1, keepdim=True)
    chosen_QN = above_QN | (equal_QN & (equal_QN.cumsum(dim=1) <= room_Q1))
    return chosen_QN.nonzero()[:, 1].reshape(-1, k)


def _unit(vectors_ND: npt.NDArray[np.float32]) -> torch.Tensor:
    return F.normalize(torch.from_numpy(vectors_ND).to(collectives.device()), dim=1)


def _stop_if_asked(ctx: RunContext) -> None:
    if collectives.any_rank(ctx.should_stop())[0]:
        raise Stopped("stopped on request while encoding; run again to start from the beginning")
