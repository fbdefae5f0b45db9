"""The linear probe: whole-batch BatchNorm, cached = re-encoded, world 1 = world 2."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as td
from support.command import encoder_parent
from support.digit_cases import DIGITS, write_encoder
from torch.multiprocessing.spawn import spawn

from mae_core.checkpoint.tensor_file import read_tensors
from mae_core.config import (
    NO_AUGMENTATION,
    AugmentationConfig,
    Duration,
    EncoderConfig,
    Execution,
    KnnRecipe,
    LinearProbeRecipe,
    LrScheduleConfig,
    OptimizerConfig,
)
from mae_core.data.sources import ImageData, open_data
from mae_core.errors import ConfigError, NumericsError
from mae_core.evaluate.features import Extractor, Features, labelled_split
from mae_core.evaluate.knn import run_knn
from mae_core.evaluate.probes.linear_probe import (
    Head,
    cached_batches,
    encoded_batches,
    predict_head,
    run_linear_probe,
    train_head,
)
from mae_core.runtime.context import RunContext
from mae_core.train.loop import Stopped
from mae_core.train.lr_schedule import LrSchedule

TINY = EncoderConfig(width=16, depth=2, num_heads=2, patch_size=2)
LR = OptimizerConfig(name="sgd", base_lr=0.5, weight_decay=0.0)
PROBE = LinearProbeRecipe(
    data=DIGITS,
    features="pixels",
    augmentation=NO_AUGMENTATION,
    duration=Duration.epochs(20),
    global_batch=256,
    optimizer=LR,
    lr_schedule=LrScheduleConfig(warmup=Duration.epochs(2)),
)
RANDOM = replace(
    PROBE,
    features="mean",
    augmentation=AugmentationConfig(crop_scale=(0.5, 1.0)),
    duration=Duration.steps(4),
    global_batch=64,
    num_labels=100,
)


@pytest.fixture
def encoder_path(tmp_path: Path) -> Path:
    return write_encoder(tmp_path, TINY)


def test_pixels_of_digits(tmp_path: Path, data: ImageData) -> None:
    logged: list[tuple[int, Mapping[str, float]]] = []
    ctx = RunContext(output_dir=tmp_path, log_metrics=lambda step, m: logged.append((step, m)))
    metrics = run_linear_probe(PROBE, Execution(), ctx, data).to_json()
    json.dumps(metrics)
    assert metrics["top1"] > 92
    assert metrics["top5"] > metrics["top1"]
    assert metrics["num_images"] == len(data.split("test"))
    steps = metrics["details"]["steps"]
    assert steps == 20 * (len(data.split("train")) // 256)
    assert [step for step, m in logged if "lr" in m] == [*range(50, steps, 50), steps]
    state, metadata = read_tensors(tmp_path / "head.safetensors")
    assert set(state) > {"linear.weight", "linear.bias", "norm.running_mean", "norm.running_var"}
    assert metadata["features"] == "pixels"
    assert (tmp_path / "predictions.parquet").is_file()


def test_separable_toy_set_is_learned(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    vectors = torch.randn(60, 5, generator=generator) + 100 * labels[:, None]
    recipe = replace(PROBE, optimizer=replace(LR, base_lr=1.0))
    schedule = LrSchedule(peak_lr=1.0, min_lr=0.0, warmup_steps=2, total_steps=100)
    head = Head(5, 3, seed=0)
    ctx = RunContext(output_dir=tmp_path)
    train_head(head, iter([(vectors, labels)] * 100), recipe, schedule, ctx)
    toy = Features(
        vectors=vectors.numpy(), labels=labels.numpy(), sample_index=np.arange(60, dtype=np.int64)
    )
    assert (predict_head(head, toy).label_rank == 0).all()


def test_cached_and_reencoded_features_are_the_same_batches(
    data: ImageData, encoder_path: Path
) -> None:
    recipe = replace(PROBE, features="mean", global_batch=64, num_labels=200)
    split = labelled_split(recipe, data)
    extractor = Extractor.for_recipe(
        recipe, RunContext(output_dir=encoder_path.parent, parents=encoder_parent(encoder_path))
    )
    execution = Execution(micro_batch=16)
    once = list(cached_batches(recipe, extractor, split, 64, 7))
    anew = list(encoded_batches(recipe, extractor, split, 64, 7, execution))
    assert len(once) == len(anew) == 7
    for (vectors, labels), (vectors_again, labels_again) in zip(once, anew, strict=True):
        assert torch.equal(labels, labels_again)
        assert torch.allclose(vectors, vectors_again, atol=1e-5)


def test_batch_norm_sees_the_whole_batch_for_any_micro_batch(
    data: ImageData, encoder_path: Path, tmp_path: Path
) -> None:
    heads = []
    for micro_batch in (64, 8):
        ctx = RunContext(output_dir=tmp_path, parents=encoder_parent(encoder_path))
        run_linear_probe(RANDOM, Execution(micro_batch=micro_batch), ctx, data)
        heads.append(read_tensors(tmp_path / "head.safetensors")[0])
    assert_same_heads(*heads)


def test_running_statistics_follow_torch(tmp_path: Path) -> None:
    vectors = torch.randn(32, 4, generator=torch.Generator().manual_seed(1)) * 3 + 5
    head = Head(4, 2, seed=0)
    schedule = LrSchedule(peak_lr=0.0, min_lr=0.0, warmup_steps=0, total_steps=1)
    batches = iter([(vectors, torch.arange(32) % 2)])
    train_head(head, batches, PROBE, schedule, RunContext(output_dir=tmp_path))
    state = head.state_dict()
    assert torch.allclose(state["norm.running_mean"], 0.1 * vectors.mean(dim=0))
    assert torch.allclose(state["norm.running_var"], 0.9 + 0.1 * vectors.var(dim=0), atol=1e-5)


def test_batch_larger_than_the_labelled_set_is_the_whole_set(
    tmp_path: Path, data: ImageData
) -> None:
    recipe = replace(PROBE, num_labels=50, global_batch=16384)
    metrics = run_linear_probe(recipe, Execution(), RunContext(output_dir=tmp_path), data).to_json()
    details = metrics["details"]
    assert metrics["num_train_images"] == details["effective_batch"] == 50
    assert details["steps"] == 20
    assert details["peak_lr"] == pytest.approx(0.5 * 50 / 256)


def test_untrained_head_is_a_result(tmp_path: Path, data: ImageData) -> None:
    recipe = replace(PROBE, duration=Duration.epochs(0))
    metrics = run_linear_probe(recipe, Execution(), RunContext(output_dir=tmp_path), data).to_json()
    assert metrics["details"]["steps"] == 0
    assert metrics["details"]["train_loss"] is None


def test_missing_encoder_divergence_and_stop(tmp_path: Path, data: ImageData) -> None:
    ctx = RunContext(output_dir=tmp_path)
    with pytest.raises(ConfigError, match="need an encoder file"):
        run_linear_probe(replace(PROBE, features="cls"), Execution(), ctx, data)
    diverging = replace(PROBE, optimizer=replace(LR, base_lr=1e38))
    with pytest.raises(NumericsError, match="lower the learning rate"):
        run_linear_probe(diverging, Execution(), ctx, data)
    stopping = replace(ctx, should_stop=lambda: True)
    with pytest.raises(Stopped, match="after step 1 of"):
        run_linear_probe(PROBE, Execution(), stopping, data)


def evaluations(encoder_path: Path, output: Path, rank: int, world: int) -> dict[str, Any]:
    """Run k-NN and both kinds of probe; return what they say."""
    data, execution = open_data(DIGITS), Execution(world_size=world, micro_batch=8)
    parents = encoder_parent(encoder_path)
    ctx = RunContext(output_dir=output, rank=rank, world=world, parents=parents)
    neighbours = run_knn(KnnRecipe(data=DIGITS, eval_split="dev"), execution, ctx, data).to_json()
    cached = replace(PROBE, num_labels=101, duration=Duration.epochs(5))  # 101 is odd
    return {
        "knn": neighbours,
        "cached": run_linear_probe(cached, execution, ctx, data).to_json(),
        "random": run_linear_probe(RANDOM, execution, ctx, data).to_json(),
    }


def gang_member(rank: int, encoder_path: Path, output: Path) -> None:
    """Run on each of two ranks."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    rendezvous = f"file://{output / 'rendezvous'}"
    td.init_process_group(
        "gloo", init_method=rendezvous, rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    result = evaluations(encoder_path, output, rank, 2)
    (output / f"rank{rank}.json").write_text(json.dumps(result))
    td.barrier()
    # A gloo thread may still release a tensor of the last all_gather; if the interpreter is being
    # finalised by then, it cannot take the GIL and aborts the process (torch 2.13, 1 run in 20).
    os._exit(0)


def test_two_ranks_give_the_result_of_one(encoder_path: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / "one", tmp_path / "two"]
    for output in outputs:
        output.mkdir()
    alone = evaluations(encoder_path, outputs[0], 0, 1)
    spawn(gang_member, (encoder_path, outputs[1]), nprocs=2)  # type: ignore[no-untyped-call]
    ranks = [json.loads((outputs[1] / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    for kind, metrics in alone.items():
        assert ranks[0][kind]["num_images"] == metrics["num_images"]
        assert ranks[0][kind]["top1"] == pytest.approx(metrics["top1"])
        assert ranks[0][kind]["loss"] == pytest.approx(metrics["loss"], rel=1e-4)
    assert_same_heads(*(read_tensors(o / "head.safetensors")[0] for o in outputs))


def assert_same_heads(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert set(first) == set(second)
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=1e-5), name
