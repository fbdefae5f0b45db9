"""The choice among candidates: on dev only, the whole search kept, the best scored once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support.digit_cases import DIGITS

from mae_core.checkpoint.encoder_file import CLASSIFIER_FORMAT as FORMAT
from mae_core.checkpoint.encoder_file import describe
from mae_core.checkpoint.tensor_file import write_tensors
from mae_core.config import (
    CLASSIFIER_FILE,
    BestOfRecipe,
    Duration,
    EncoderConfig,
    Execution,
    FinetuneRecipe,
    KnnRecipe,
    PretrainRecipe,
)
from mae_core.data.sources import ImageData
from mae_core.errors import ConfigError, NumericsError
from mae_core.evaluate.best_of import best_candidate, run_best_of
from mae_core.evaluate.classifier import Classifier, evaluate, load_classifier
from mae_core.model.vit import Encoder
from mae_core.runtime.context import RunContext
from mae_core.runtime.inputs import Parent
from studies.errors import StudyError
from studies.spec.cell import Cell, Stage
from studies.spec.codec import to_plain

TINY = EncoderConfig(width=16, depth=2, num_heads=2, patch_size=2)
BEST = BestOfRecipe(data=DIGITS, what="fine-tune")
CANDIDATE = FinetuneRecipe(data=DIGITS, eval_split="dev")


def finished(
    folder: Path, epochs: int, top1: float | None, loss: float = 1.0, **fields: Any
) -> Parent:
    """A candidate that was trained (here: drawn from its epochs as a seed) and scored on dev."""
    classes = fields.pop("classes", [str(i) for i in range(10)])
    recipe = replace(CANDIDATE, duration=Duration.epochs(epochs), **fields)
    folder = folder / f"e{epochs}"
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(epochs)
    encoder = Encoder(TINY, 8, 1, generator=generator, trainable_positions=True)
    model = Classifier(encoder, "mean", len(classes), generator=generator)
    metadata = describe(TINY, 8, 1) | {
        "format": FORMAT,
        "features": "mean",
        "class_names": json.dumps(classes),
    }
    write_tensors(folder / CLASSIFIER_FILE, model.state_dict(), metadata)
    return Parent(
        name=f"tuned_{epochs}",
        kind="finetune",
        files={CLASSIFIER_FILE: folder / CLASSIFIER_FILE},
        metrics={"top1": top1, "loss": loss, "num_train_images": 1293},
        recipe=to_plain(recipe),
    )


def test_the_best_on_dev_is_scored_on_test(tmp_path: Path, data: ImageData) -> None:
    parents = tuple(
        finished(tmp_path, epochs, top1) for epochs, top1 in ((50, 80.0), (100, 85.0), (200, 84.0))
    )
    metrics = run_best_of(
        BEST, Execution(), RunContext(output_dir=tmp_path, parents=parents), data
    ).to_json()
    json.dumps(metrics)
    details = metrics["details"]
    assert details["chosen"] == "tuned_100"
    assert [entry["dev_top1"] for entry in details["search"]] == [80.0, 85.0, 84.0]
    assert [e["settings"]["duration"] for e in details["search"]] == ["50ep", "100ep", "200ep"]
    assert metrics["num_images"] == len(data.split("test"))
    assert metrics["num_train_images"] == 1293
    kept = tmp_path / CLASSIFIER_FILE
    assert kept.read_bytes() == parents[1].path(CLASSIFIER_FILE).read_bytes()
    expected = evaluate(load_classifier(kept)[0], BEST, data.split("test"))
    rows = pq.read_table(tmp_path / "predictions.parquet")
    np.testing.assert_array_equal(rows["prediction"].to_numpy(), expected.prediction)


def test_ties_go_to_the_lower_loss_then_the_earlier(tmp_path: Path) -> None:
    rows = ((1, 70.0, 0.5), (2, 80.0, 0.4), (3, 80.0, 0.3), (4, 80.0, 0.3), (5, None, 0.0))
    candidates = [finished(tmp_path, *row) for row in rows]
    assert best_candidate(candidates).name == "tuned_3"
    with pytest.raises(NumericsError, match="none of 1 candidates"):
        best_candidate(candidates[4:])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"eval_split": "test"}, "'tuned_2' is scored on 'test': nothing is chosen on the test"),
        ({"num_labels": 100}, "has num_labels 100, best_of None"),
        ({"classes": list("abcdefghij")}, "knows other classes"),
    ],
)
def test_candidates_that_are_refused(
    change: dict[str, Any], expected: str, tmp_path: Path, data: ImageData
) -> None:
    parents = (finished(tmp_path, 1, 50.0), finished(tmp_path, 2, 60.0, **change))
    ctx = RunContext(output_dir=tmp_path, parents=parents)
    with pytest.raises(ConfigError, match=expected):
        run_best_of(BEST, Execution(), ctx, data)
    with pytest.raises(ConfigError, match="best_of of 1 candidates"):
        run_best_of(BEST, Execution(), replace(ctx, parents=parents[:1]), data)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (replace(CANDIDATE, eval_split="test"), "'b' is scored on 'test'"),
        (replace(CANDIDATE, features="cls"), "has features 'cls', best_of 'mean'"),
        (replace(CANDIDATE, data=replace(DIGITS, split_seed=1)), "saw other data"),
        (KnnRecipe(data=DIGITS, eval_split="dev"), "knn stage, which leaves no classifier"),
        (None, "best_of of 1 candidates: give two or more"),
    ],
)
def test_a_plan_refuses_them(other: Any, expected: str) -> None:
    pretrain = Stage(name="pretrain", recipe=PretrainRecipe(data=DIGITS, encoder=TINY))
    stages = [pretrain, Stage(name="a", recipe=CANDIDATE, parents=("pretrain",))]
    if other is not None:
        stages.append(Stage(name="b", recipe=other, parents=("pretrain",)))
    parents = tuple(stage.name for stage in stages[1:])
    stages.append(Stage(name="best", recipe=BEST, parents=parents))
    with pytest.raises(StudyError, match=expected):
        Cell(address="c", stages=tuple(stages))
