"""Features on disk: the same bytes on any number of ranks, read back as they were encoded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support.command import encoder_parent
from support.digit_cases import DIGITS

from mae_core.checkpoint.encoder_file import load_encoder, save_encoder
from mae_core.config import (
    ENCODER_FILE,
    FEATURES_FILE,
    EncoderConfig,
    Execution,
    FeaturesRecipe,
    KnnRecipe,
    PretrainRecipe,
)
from mae_core.data.sources import ImageData, open_data
from mae_core.errors import CheckpointError, ConfigError
from mae_core.evaluate.feature_file import read_features, run_features
from mae_core.evaluate.features import Extractor, extract, layer_tokens
from mae_core.evaluate.knn import run_knn
from mae_core.model.vit import Encoder
from mae_core.runtime.context import RunContext
from mae_core.runtime.inputs import Parent
from mae_core.train.loop import Stopped
from studies.errors import StudyError
from studies.spec.cell import Cell, Stage

TINY = EncoderConfig(width=16, depth=3, num_heads=2, patch_size=2)
LAYERS = FeaturesRecipe(data=DIGITS, features="mean", layers=(1, 3))


@pytest.fixture
def encoder_path(tmp_path: Path) -> Path:
    path = tmp_path / ENCODER_FILE
    save_encoder(path, Encoder(TINY, 8, 1).state_dict(), TINY, 8, 1, extra={})
    return path


def kept(recipe: FeaturesRecipe, encoder_path: Path, data: ImageData) -> tuple[Parent, ...]:
    """Parents of a probe: a features stage that has run."""
    ctx = RunContext(output_dir=encoder_path.parent, parents=encoder_parent(encoder_path))
    json.dumps(run_features(recipe, Execution(), ctx, data).to_json())
    path = encoder_path.parent / FEATURES_FILE
    return (Parent(name="features", kind="features", files={FEATURES_FILE: path}),)


def test_every_image_once_with_the_vectors_of_the_encoder(
    encoder_path: Path, data: ImageData
) -> None:
    (parent,) = kept(LAYERS, encoder_path, data)
    path = parent.path(FEATURES_FILE)
    file = pq.ParquetFile(path)
    assert str(file.schema_arrow.field("layer_3").type) == "fixed_size_list<element: float>[16]"
    assert [file.metadata.row_group(i).num_rows for i in range(4)] == [1024, 269, 144, 360]
    extractor = Extractor(load_encoder(encoder_path), DIGITS, "mean")
    for name in ("train", "dev", "test"):
        split = data.split(name)
        fresh, read = extract(extractor, split), read_features(path, split, 3)
        np.testing.assert_array_equal(read.vectors, fresh.vectors)
        np.testing.assert_array_equal(read.labels, fresh.labels)
        np.testing.assert_array_equal(read.sample_index, fresh.sample_index)
    few = data.split("train").subset(30, 1)
    some = read_features(path, few, 1)
    everything = read_features(path, data.split("train"), 1)
    rows = np.isin(everything.sample_index, few.sample_index)
    np.testing.assert_array_equal(some.vectors, everything.vectors[rows])


def test_a_layer_is_what_a_shorter_encoder_returns() -> None:
    encoder = Encoder(TINY, 8, 1).eval()
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        second, last, whole = layer_tokens(encoder, images, (2, 3, None))
        assert torch.equal(last, whole)
        del encoder.blocks[2]
        encoder.config = replace(TINY, depth=2)
        assert torch.equal(second, encoder.forward_features(images))
        assert not encoder.blocks[0]._forward_hooks


def test_k_nn_reads_features_as_it_would_make_them(
    encoder_path: Path, tmp_path: Path, data: ImageData
) -> None:
    recipe = KnnRecipe(data=DIGITS, num_labels=200)
    output = tmp_path / "knn"
    output.mkdir()
    ctx = RunContext(output_dir=output, parents=encoder_parent(encoder_path))
    encoded = run_knn(recipe, Execution(), ctx, data).to_json()
    read_ctx = replace(ctx, parents=kept(replace(LAYERS, layers=()), encoder_path, data))
    read = run_knn(recipe, Execution(), read_ctx, data).to_json()
    assert read["loss"] == pytest.approx(encoded["loss"], rel=1e-6)
    assert {**read, "loss": 0} == {**encoded, "loss": 0}
    early = replace(recipe, layer=1)
    layered = replace(ctx, parents=kept(LAYERS, encoder_path, data))
    assert run_knn(early, Execution(), layered, data).to_json()["loss"] != encoded["loss"]
    with pytest.raises(CheckpointError, match="no column 'last'"):
        run_knn(recipe, Execution(), layered, data)
    with pytest.raises(ConfigError, match="read from a `features` parent"):
        run_knn(early, Execution(), ctx, data)


def test_features_of_other_images_or_damaged_are_refused(
    encoder_path: Path, data: ImageData
) -> None:
    (parent,) = kept(LAYERS, encoder_path, data)
    path = parent.path(FEATURES_FILE)
    other = open_data(replace(DIGITS, split_seed=1))
    with pytest.raises(CheckpointError, match="other images of split 'test'"):
        read_features(path, other.split("test"), 1)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="not a readable file"):
        read_features(path, data.split("test"), 1)


def test_what_cannot_be_is_refused(encoder_path: Path, tmp_path: Path, data: ImageData) -> None:
    with pytest.raises(ConfigError, match="rising block numbers"):
        replace(LAYERS, layers=(3, 1))
    with pytest.raises(ConfigError, match="use cls or mean"):
        replace(LAYERS, features="pixels")
    ctx = RunContext(output_dir=tmp_path, parents=encoder_parent(encoder_path))
    with pytest.raises(ConfigError, match="layer 4 of an encoder with 3 blocks"):
        run_features(replace(LAYERS, layers=(4,)), Execution(), ctx, data)
    with pytest.raises(ConfigError, match="needs the encoder"):
        run_features(LAYERS, Execution(), RunContext(output_dir=tmp_path), data)
    with pytest.raises(Stopped):
        run_features(LAYERS, Execution(), replace(ctx, should_stop=lambda: True), data)


@pytest.mark.parametrize(
    ("features", "knn", "expected"),
    [
        ({"layers": (4,)}, {}, "layer 4 of an encoder with 3 blocks: use at most 3"),
        ({"features": "cls"}, {}, "reads features 'mean', its parent keeps 'cls'"),
        ({}, {"layer": 2}, r"layer 2 is not among the layers \(1, 3\)"),
        ({}, {}, r"layer None is not among the layers \(1, 3\)"),
        ({}, {"layer": 1, "data": replace(DIGITS, split_seed=2)}, "data differ"),
    ],
)
def test_a_plan_refuses_features_that_do_not_fit(
    features: dict[str, object], knn: dict[str, object], expected: str
) -> None:
    with pytest.raises(StudyError, match=expected):
        chain(replace(LAYERS, **features), replace(KnnRecipe(data=DIGITS), **knn))  # type: ignore[arg-type]


def test_a_probe_has_either_an_encoder_or_features() -> None:
    recipe = KnnRecipe(data=DIGITS)
    plain = replace(LAYERS, layers=())
    assert chain(plain, recipe).stages[2].parents == ("features",)
    with pytest.raises(StudyError, match="one parent that leaves encoder.safetensors or features"):
        chain(plain, recipe, parents=("pretrain", "features"))


def chain(
    features: FeaturesRecipe, knn: KnnRecipe, parents: tuple[str, ...] = ("features",)
) -> Cell:
    """A cell of pretrain → features → knn."""
    stages = (
        Stage(name="pretrain", recipe=PretrainRecipe(data=DIGITS, encoder=TINY)),
        Stage(name="features", recipe=features, parents=("pretrain",)),
        Stage(name="knn", recipe=knn, parents=parents),
    )
    return Cell(address="c", stages=stages)
