"""Encoder files, frozen features, predictions and their Parquet file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from support.digit_cases import DIGITS

from mae_core.checkpoint.encoder_file import load_encoder, read_encoder, save_encoder
from mae_core.config import EncoderConfig
from mae_core.data.loader import eval_batches, normalise
from mae_core.data.sources import open_data
from mae_core.errors import CheckpointError, ConfigError, DataError, NumericsError
from mae_core.evaluate.features import Extractor, Features, extract, gather_features
from mae_core.evaluate.scores import concatenate, predict, score, write_predictions
from mae_core.model.vit import Encoder

TINY = EncoderConfig(width=16, depth=2, num_heads=2, patch_size=2, name="tiny")


def write_encoder(path: Path, config: EncoderConfig = TINY) -> Encoder:
    encoder = Encoder(config, 8, 1)
    save_encoder(path, encoder.state_dict(), config, 8, 1, extra={"science_hash": "abc"})
    return encoder


def test_encoder_file_describes_itself(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    encoder = write_encoder(path)
    file = read_encoder(path)
    assert (file.config, file.image_size, file.num_channels) == (TINY, 8, 1)
    assert file.extra == {"science_hash": "abc"}
    loaded = load_encoder(path)
    assert not loaded.training
    for name, value in encoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_damaged_encoder_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    state = write_encoder(path).state_dict()

    def rewrite(tensors: dict[str, torch.Tensor], config: EncoderConfig = TINY) -> None:
        save_encoder(path, tensors, config, 8, 1, extra={})

    rewrite({k: v for k, v in state.items() if k != "cls_token"})
    with pytest.raises(CheckpointError, match="lacks 1 tensors: cls_token"):
        load_encoder(path)
    rewrite(state | {"head.bias": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="unknown tensors: head.bias"):
        load_encoder(path)
    rewrite(state, dataclasses.replace(TINY, width=32))
    with pytest.raises(CheckpointError, match="has shape"):
        load_encoder(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="format 'none'"):
        load_encoder(path)
    save_file(
        {"a": torch.zeros(1)}, path, metadata={"mae_study": '{"format": "mae-study-encoder-1"}'}
    )
    with pytest.raises(CheckpointError, match="metadata lacks encoder"):
        load_encoder(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="not a readable"):
        load_encoder(path)
    with pytest.raises(CheckpointError, match="not a readable"):
        load_encoder(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("batch_size", [7, 256])
def test_every_image_once_in_sample_order(tmp_path: Path, batch_size: int) -> None:
    encoder = write_encoder(tmp_path / "e.safetensors")
    split = open_data(DIGITS).split("dev")
    extractor = Extractor(load_encoder(tmp_path / "e.safetensors"), DIGITS, "mean")
    features = gather_features(extract(extractor, split, batch_size))
    np.testing.assert_array_equal(features.sample_index, split.sample_index)
    np.testing.assert_array_equal(features.labels, split.labels)
    batch = next(iter(eval_batches(split, DIGITS, len(split), rank=0, world=1)))
    images = normalise(batch.images, DIGITS.pixel_mean, DIGITS.pixel_std, torch.device("cpu"))
    with torch.no_grad():
        tokens = encoder.forward_features(images)
    expected = tokens[:, 1:].mean(dim=1).numpy()
    np.testing.assert_allclose(features.vectors, expected, atol=1e-5)
    first = Extractor(encoder, DIGITS, "cls")(batch.images)
    np.testing.assert_allclose(first.numpy(), tokens[:, 0].numpy(), atol=1e-5)
    pixels = Extractor(None, DIGITS, "pixels")(batch.images)
    assert torch.equal(pixels, images.flatten(1))


def test_encoder_is_frozen_and_in_eval_mode() -> None:
    encoder = Encoder(TINY, 8, 1, drop_path=0.9).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    extractor = Extractor(encoder, DIGITS, "cls")
    encoder.train()
    split = open_data(DIGITS).split("dev")
    first, second = extract(extractor, split), extract(extractor, split)
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    np.testing.assert_array_equal(first.vectors, second.vectors)  # no drop path
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_encoder_and_features_must_fit() -> None:
    with pytest.raises(ConfigError, match="need encoder"):
        Extractor(None, DIGITS, "cls")
    with pytest.raises(ConfigError, match="take no encoder"):
        Extractor(Encoder(TINY, 8, 1), DIGITS, "pixels")
    with pytest.raises(ConfigError, match="64 patches of 4"):
        Extractor(Encoder(TINY, 16, 1), DIGITS, "cls")


def test_an_image_counted_twice_is_refused() -> None:
    twice = Features(
        vectors=np.zeros((2, 3), np.float32),
        labels=np.zeros(2, np.int64),
        sample_index=np.array([4, 4]),
    )
    with pytest.raises(DataError, match="encoded twice"):
        gather_features(twice)


def test_scores_and_parquet(tmp_path: Path) -> None:
    probability = np.full((3, 6), 0.1)
    probability[:, 2] = 0.5
    probability[1] = [0.25, 0.2, 0.2, 0.15, 0.15, 0.05]
    index, label = np.array([9, 3, 5]), np.array([2, 5, 0])
    parts = [
        predict(index[i : i + 1], label[i : i + 1], np.log(probability[i : i + 1]))
        for i in range(3)
    ]
    predictions = concatenate(parts)
    names = ["a", "b", "c", "d", "e", "f"]
    scores = score(predictions, names)
    assert scores.top1 == pytest.approx(100 / 3)
    assert scores.top5 == pytest.approx(200 / 3)
    assert scores.loss == pytest.approx(-np.log([0.5, 0.05, 0.1]).mean())
    assert scores.per_class == {"a": 0.0, "c": 100.0, "f": 0.0}
    assert score(predictions, names[:5]).top5 is None
    write_predictions(tmp_path / "p.parquet", predictions)
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.column("probability").type == "float"
    rows = table.to_pydict()
    assert rows.pop("probability") == pytest.approx([0.05, 0.1, 0.5])
    assert rows == {
        "sample_index": [3, 5, 9],
        "label": [5, 0, 2],
        "prediction": [0, 2, 2],
        "top5_correct": [False, True, True],
    }
    assert [p.name for p in tmp_path.iterdir()] == ["p.parquet"]


def test_predictions_that_are_no_numbers_are_refused() -> None:
    one = np.zeros(1, np.int64)
    with pytest.raises(NumericsError):
        predict(one, one, np.array([[np.nan, 0.0]]))
    with pytest.raises(DataError, match="empty"):
        score(concatenate([]), ["a", "b"])
