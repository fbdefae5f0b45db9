"""Weighted k-NN against scikit-learn, its tie rules and its refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier
from support.digit_cases import DIGITS

from mae_core.config import Execution, KnnRecipe
from mae_core.data.sources import open_data
from mae_core.errors import ConfigError
from mae_core.evaluate import knn
from mae_core.evaluate.features import Features
from mae_core.evaluate.knn import classify, run_knn
from mae_core.runtime.context import RunContext
from mae_core.train.loop import Stopped


def some_features(num: int, seed: int, width: int = 6, classes: int = 7) -> Features:
    generator = np.random.default_rng(seed)
    return Features(
        vectors=generator.normal(size=(num, width)).astype(np.float32),
        labels=generator.integers(0, classes, num),
        sample_index=np.arange(num, dtype=np.int64),
    )


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (150, 1.0)])
def test_equals_scikit_learn(k: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "CHUNK_ELEMENTS", 1500)  # several chunks, the last one partial
    train, queries = some_features(150, 0), some_features(47, 1)
    recipe = KnnRecipe(data=DIGITS, k=k, temperature=temperature)
    ours = classify(recipe, train, queries, num_classes=7)
    theirs = KNeighborsClassifier(
        n_neighbors=k,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / temperature),
    ).fit(train.vectors.astype(np.float64), train.labels)
    share = theirs.predict_proba(queries.vectors.astype(np.float64))
    own = share[np.arange(47), queries.labels]
    np.testing.assert_array_equal(ours.prediction, share.argmax(axis=1))
    np.testing.assert_allclose(np.exp(-ours.nll), np.maximum(own, 1e-12), atol=1e-4)


def test_first_of_equal_neighbours_and_lower_class_of_equal_votes_win() -> None:
    same = np.ones((4, 2), dtype=np.float32)
    train = Features(
        vectors=same, labels=np.array([3, 1, 0, 0]), sample_index=np.arange(4, dtype=np.int64)
    )
    query = Features(
        vectors=same[:1], labels=np.array([1]), sample_index=np.zeros(1, dtype=np.int64)
    )
    recipe = KnnRecipe(data=DIGITS, k=2)
    result = classify(recipe, train, query, num_classes=4)
    assert result.prediction.tolist() == [1]
    assert result.nll == pytest.approx(np.log(2))


def test_small_temperature_stays_finite() -> None:
    recipe = KnnRecipe(data=DIGITS, k=3, temperature=1e-5)
    result = classify(recipe, some_features(20, 0), some_features(5, 1), num_classes=7)
    assert np.isfinite(result.nll).all()


def test_more_neighbours_than_images_is_refused(tmp_path: Path) -> None:
    recipe = KnnRecipe(data=DIGITS, features="pixels", k=21, num_labels=20)
    with pytest.raises(ConfigError, match="k = 21 is more than the 20 training images"):
        run_knn(recipe, Execution(), RunContext(output_dir=tmp_path), open_data(DIGITS))


def test_pixels_of_digits(tmp_path: Path) -> None:
    data = open_data(DIGITS)
    recipe = KnnRecipe(data=DIGITS, features="pixels")
    metrics = run_knn(recipe, Execution(), RunContext(output_dir=tmp_path), data).to_json()
    assert metrics["top1"] > 95
    assert metrics["num_images"] == len(data.split("test"))
    assert metrics["num_train_images"] == len(data.split("train"))
    assert len(metrics["per_class"]) == 10
    assert (tmp_path / "predictions.parquet").is_file()


def test_stops_when_asked(tmp_path: Path) -> None:
    recipe = KnnRecipe(data=DIGITS, features="pixels")
    ctx = RunContext(output_dir=tmp_path, should_stop=lambda: True)
    with pytest.raises(Stopped):
        run_knn(recipe, Execution(), ctx, open_data(DIGITS))
