"""An evaluation of the user's own: the documented example, its identity, and what is refused."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.neighbors import NearestCentroid
from support.command import encoder_parent
from support.digit_cases import DIGITS

from mae_core.checkpoint.encoder_file import load_encoder, save_encoder
from mae_core.config import (
    CustomEvalRecipe,
    EncoderConfig,
    Execution,
    PretrainRecipe,
)
from mae_core.data.sources import ImageData
from mae_core.errors import ConfigError
from mae_core.evaluate.custom import run_custom_eval
from mae_core.evaluate.features import Extractor, extract
from mae_core.model.vit import Encoder
from mae_core.runtime.context import RunContext
from studies.spec.cell import Cell, Stage
from studies.spec.codec import recipe_from_plain, to_plain
from studies.spec.identity import identify

TINY = EncoderConfig(width=16, depth=2, num_heads=2, patch_size=2)
RECIPE = CustomEvalRecipe(
    data=DIGITS,
    entry="my_evals:centroids",
    name="nearest centroid",
    options=(("sharpness", 2.0),),
    features="mean",
)
DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "extending.md"
WRONG = """
def nothing(task):
    return {"top1": 100}

def few(task):
    found = task.features(task.evaluation)
    some = type(found)(vectors=found.vectors[:9], labels=found.labels[:9],
                       sample_index=found.sample_index[:9])
    return task.predictions(some, some.vectors[:, :10])

def wide(task):
    found = task.features(task.evaluation)
    return task.predictions(found, found.vectors)
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example of the document, importable as a user's module."""
    example = re.search(r"```python\n# my_evals.py\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert example is not None
    path = tmp_path / "my_evals.py"
    path.write_text(example.group(1) + WRONG)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield path
    sys.modules.pop("my_evals", None)


@pytest.fixture
def ctx(tmp_path: Path) -> RunContext:
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, Encoder(TINY, 8, 1).state_dict(), TINY, 8, 1, extra={})
    return RunContext(output_dir=tmp_path, parents=encoder_parent(path))


def test_the_documented_example(own_code: Path, ctx: RunContext, data: ImageData) -> None:
    metrics = run_custom_eval(RECIPE, Execution(), ctx, data).to_json()
    json.dumps(metrics)
    extractor = Extractor(load_encoder(ctx.output_dir / "encoder.safetensors"), DIGITS, "mean")
    train, test = (extract(extractor, data.split(name)) for name in ("train", "test"))
    theirs = NearestCentroid().fit(train.vectors, train.labels).predict(test.vectors)
    assert metrics["top1"] == pytest.approx(100 * np.mean(theirs == test.labels))
    assert metrics["top1"] > 20
    assert metrics["num_images"] == len(test) and len(metrics["per_class"]) == 10
    assert metrics["details"] == {"options": {"sharpness": 2.0}}
    assert (ctx.output_dir / "predictions.parquet").is_file()
    sharper = replace(RECIPE, options=(("sharpness", 4.0),))
    again = run_custom_eval(sharper, Execution(), ctx, data).to_json()
    assert again["top1"] == metrics["top1"] and again["loss"] != metrics["loss"]


def test_raw_pixels_need_no_encoder(own_code: Path, tmp_path: Path, data: ImageData) -> None:
    recipe = replace(RECIPE, features="pixels", eval_split="dev")
    metrics = run_custom_eval(recipe, Execution(), RunContext(output_dir=tmp_path), data).to_json()
    assert metrics["top1"] > 80
    assert metrics["num_images"] == len(data.split("dev"))


def test_source_and_options_are_the_identity(own_code: Path) -> None:
    def identity(recipe: CustomEvalRecipe) -> str:
        stages = (
            Stage(name="pretrain", recipe=PretrainRecipe(data=DIGITS, encoder=TINY)),
            Stage(name="own", recipe=recipe, parents=("pretrain",)),
        )
        return identify(Cell(address="c", stages=stages), {})["own"].science_hash

    first = identity(RECIPE)
    assert identity(replace(RECIPE, options=(("sharpness", 3.0),))) != first
    own_code.write_text(own_code.read_text() + "\n# edited\n")
    assert identity(RECIPE) != first
    mixed = replace(RECIPE, options=(("a", 1), ("b", 0.5), ("c", "text")))
    assert recipe_from_plain(json.loads(json.dumps(to_plain(mixed)))) == mixed
    assert mixed.protocol == "nearest centroid (a=1, b=0.5, c=text), mean of patch tokens"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("my_evals:absent", "has no 'absent'"),
        ("my_evals:nothing", "returned dict and dict: it must return this rank's Predictions"),
        ("my_evals:wide", "predicted classes outside 0..9"),
        ("my_evals:few", r"predicted 9 images \(9 different ones\) where the test split has 360"),
    ],
)
def test_code_that_cannot_be_scored(
    entry: str, expected: str, own_code: Path, ctx: RunContext, data: ImageData
) -> None:
    with pytest.raises(ConfigError, match=expected):
        run_custom_eval(replace(RECIPE, entry=entry), Execution(), ctx, data)


@pytest.mark.parametrize(
    "change",
    [
        {"entry": "my_evals"},
        {"options": (("a", 1), ("a", 2))},
        {"options": (("a", float("nan")),)},
        {"options": (("a b", 1),)},
    ],
)
def test_settings_that_mean_nothing(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(RECIPE, **change)
