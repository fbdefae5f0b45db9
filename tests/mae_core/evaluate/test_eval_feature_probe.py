"""The grid of probes on kept features: each head as if alone, chosen on dev, scored once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from support.command import encoder_parent
from support.digit_cases import DIGITS

from mae_core.checkpoint.encoder_file import save_encoder
from mae_core.checkpoint.tensor_file import read_tensors
from mae_core.config import (
    ENCODER_FILE,
    FEATURES_FILE,
    NO_AUGMENTATION,
    Duration,
    EncoderConfig,
    Execution,
    FeatureProbeRecipe,
    FeaturesRecipe,
    LinearProbeRecipe,
    LrScheduleConfig,
    OptimizerConfig,
)
from mae_core.data.order import SampleOrder
from mae_core.data.sources import ImageData, open_data
from mae_core.errors import ConfigError, DataError, NumericsError
from mae_core.evaluate.feature_file import read_features, run_features
from mae_core.evaluate.probes.feature_probe import (
    HeadScore,
    best_point,
    make_rates,
    run_feature_probe,
    train_grid,
)
from mae_core.evaluate.probes.head_grid import HeadGrid
from mae_core.evaluate.probes.linear_probe import Head, run_linear_probe, train_head
from mae_core.model.vit import Encoder
from mae_core.runtime.context import RunContext
from mae_core.runtime.inputs import Parent
from mae_core.train.loop import Stopped

TINY = EncoderConfig(width=16, depth=2, num_heads=2, patch_size=2)
PROBE = FeatureProbeRecipe(
    data=DIGITS,
    features="mean",
    base_lrs=(0.03, 1.0),
    weight_decays=(0.0, 0.01),
    duration=Duration.epochs(10),
    global_batch=128,
    lr_schedule=LrScheduleConfig(warmup=Duration.epochs(1)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, data: ImageData) -> Path:
    """An untrained encoder and its features at two layers and at the last."""
    found = tmp_path_factory.mktemp("features")
    state = Encoder(TINY, 8, 1, generator=torch.Generator().manual_seed(3)).state_dict()
    save_encoder(found / ENCODER_FILE, state, TINY, 8, 1, extra={})
    recipe = FeaturesRecipe(data=DIGITS, features="mean")
    for name, layers in (("last", ()), ("layers", (1, 2))):
        output = found / name
        output.mkdir()
        ctx = RunContext(output_dir=output, parents=encoder_parent(found / ENCODER_FILE))
        run_features(replace(recipe, layers=layers), Execution(), ctx, data)
    return found


def context(folder: Path, output: Path, name: str = "last", **fields: Any) -> RunContext:
    files = {FEATURES_FILE: folder / name / FEATURES_FILE}
    parents = (Parent(name="features", kind="features", files=files),)
    return RunContext(output_dir=output, parents=parents, **fields)


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_each_head_learns_as_if_alone(
    optimizer: str, folder: Path, tmp_path: Path, data: ImageData
) -> None:
    recipe = replace(PROBE, layers=(1, 2), optimizer=optimizer)  # type: ignore[arg-type]
    split, path = data.split("train"), folder / "layers" / FEATURES_FILE
    vectors = [torch.from_numpy(read_features(path, split, n).vectors) for n in (1, 2)]
    labels = torch.from_numpy(split.labels)
    rates = make_rates(recipe, 128, len(split))
    device = torch.device("cpu")
    grid = HeadGrid(
        num_layers=2, width=16, num_classes=10, rates=rates, seed=recipe.seed, device=device
    )
    ctx = RunContext(output_dir=tmp_path)
    train_grid(grid, torch.stack(vectors, dim=1), labels, recipe, 40, ctx)
    for layer in range(2):
        for number, schedule in enumerate(rates.lr_schedules):
            alone = Head(16, 10, recipe.seed)
            single = LinearProbeRecipe(
                data=DIGITS,
                optimizer=OptimizerConfig(
                    name=optimizer,  # type: ignore[arg-type]
                    base_lr=1.0,
                    weight_decay=rates.weight_decays[number],
                ),
            )
            train_head(alone, batches_of(recipe, vectors[layer], labels, 40), single, schedule, ctx)
            found = grid.head(layer, number).state_dict()
            for name, value in alone.state_dict().items():
                assert torch.allclose(found[name], value, atol=2e-5), (layer, number, name)


def batches_of(recipe: FeatureProbeRecipe, vectors: Any, labels: Any, steps: int) -> Any:
    order = SampleOrder(len(labels), recipe.seed, recipe.global_batch)
    for step in range(steps):
        rows = torch.tensor(sorted(order.step(step)[1]))
        yield vectors[rows], labels[rows]


def test_one_point_is_the_linear_probe_without_crops(
    folder: Path, tmp_path: Path, data: ImageData
) -> None:
    single = replace(PROBE, base_lrs=(0.3,), weight_decays=(0.001,))
    probed = run_feature_probe(single, Execution(), context(folder, tmp_path), data).to_json()
    linear = LinearProbeRecipe(
        data=DIGITS,
        features="mean",
        augmentation=NO_AUGMENTATION,
        duration=single.duration,
        global_batch=128,
        lr_schedule=single.lr_schedule,
        optimizer=OptimizerConfig(name="sgd", base_lr=0.3, weight_decay=0.001),
    )
    ctx = RunContext(output_dir=tmp_path, parents=encoder_parent(folder / ENCODER_FILE))
    expected = run_linear_probe(linear, Execution(), ctx, data).to_json()
    assert probed["top1"] == expected["top1"]
    assert probed["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert probed["details"]["grid"] == []
    assert single.protocol != linear.protocol and "cached features" in single.protocol


def test_chosen_on_dev_scored_once_on_test(folder: Path, tmp_path: Path, data: ImageData) -> None:
    recipe = replace(PROBE, layers=(1, 2), num_labels=300)
    metrics = run_feature_probe(
        recipe, Execution(), context(folder, tmp_path, "layers"), data
    ).to_json()
    json.dumps(metrics)
    details = metrics["details"]
    grid = details["grid"]
    assert len(grid) == recipe.num_heads == 8
    best = max(grid, key=lambda point: point["dev_top1"])
    assert best["dev_top1"] > 20
    chosen = [p for p in grid if all(p[k] == details[k] for k in ("layer", "base_lr"))]
    assert any(p["dev_top1"] == best["dev_top1"] for p in chosen)
    assert metrics["num_images"] == len(data.split("test"))
    assert (metrics["num_train_images"], details["effective_batch"]) == (300, 128)
    rows = pq.read_table(tmp_path / "predictions.parquet").num_rows
    assert rows == len(data.split("test"))
    state, metadata = read_tensors(tmp_path / "head.safetensors")
    assert metadata["layer"] == str(details["layer"])
    assert state["linear.weight"].shape == (10, 16)


def test_a_grid_without_dev_is_refused(folder: Path, tmp_path: Path) -> None:
    config = replace(DIGITS, dev_fraction=0.0)
    recipe = replace(PROBE, data=config)
    output = tmp_path / "features"
    output.mkdir()
    ctx = RunContext(output_dir=output, parents=encoder_parent(folder / ENCODER_FILE))
    data = open_data(config)
    run_features(FeaturesRecipe(data=config, features="mean"), Execution(), ctx, data)
    with pytest.raises(DataError, match="no dev split"):
        run_feature_probe(recipe, Execution(), context(tmp_path, tmp_path, "features"), data)
    alone = replace(recipe, base_lrs=(1.0,), weight_decays=(0.0,))
    found = run_feature_probe(
        alone, Execution(), context(tmp_path, tmp_path, "features"), data
    ).to_json()
    assert found["num_train_images"] == len(data.split("train"))


def test_a_head_that_diverges_is_never_chosen(
    folder: Path, tmp_path: Path, data: ImageData
) -> None:
    recipe = replace(PROBE, base_lrs=(0.3, 1e38), weight_decays=(0.0, 1e3))
    metrics = run_feature_probe(recipe, Execution(), context(folder, tmp_path), data).to_json()
    scores = [point["dev_loss"] for point in metrics["details"]["grid"]]
    assert scores[0] is not None and scores[3] is None
    assert metrics["details"]["base_lr"] == 0.3
    wild = replace(PROBE, base_lrs=(1e38, 2e38), weight_decays=(1e3,))
    with pytest.raises(NumericsError, match="all 2 heads diverged"):
        run_feature_probe(wild, Execution(), context(folder, tmp_path), data)


def test_ties_go_to_the_lower_loss_then_the_earlier() -> None:
    rows = [(50.0, 0.1), (60.0, 0.9), (60.0, 0.8), (60.0, 0.8), (None, None)]
    settings: Any = {"layer": None, "base_lr": 0.1, "weight_decay": 0.0}
    points = [HeadScore(**settings, dev_top1=top1, dev_loss=loss) for top1, loss in rows]
    assert best_point(points) == 2


def test_stops_and_refuses(folder: Path, tmp_path: Path, data: ImageData) -> None:
    stopping = context(folder, tmp_path, should_stop=lambda: True)
    with pytest.raises(Stopped, match="after step 20 of 100"):
        run_feature_probe(PROBE, Execution(), stopping, data)
    with pytest.raises(ConfigError, match="needs the features"):
        run_feature_probe(PROBE, Execution(), RunContext(output_dir=tmp_path), data)
    for change, expected in (
        ({"features": "pixels"}, "use cls or mean"),
        ({"base_lrs": ()}, "one or more different numbers > 0"),
        ({"weight_decays": (0.1, 0.1)}, "different numbers ≥ 0"),
        ({"layers": (0, 1)}, "first block being 1"),
    ):
        with pytest.raises(ConfigError, match=expected):
            replace(PROBE, **change)  # type: ignore[arg-type]
