"""Contrastive training in gangs: equal over splits, bit-exact resumes, and features that learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.command import encoder_parent
from support.contrastive_cases import ADAMW, small_recipe
from support.digit_cases import DIGITS
from support.gangs import finish, launched, values

from cluster.slot_pool import SlotPool
from cluster.verdict import Cause
from mae_core.checkpoint.encoder_file import load_encoder
from mae_core.config import (
    Duration,
    Execution,
    KnnRecipe,
    LrScheduleConfig,
    OptimizerConfig,
)
from mae_core.data.sources import open_data
from mae_core.errors import ConfigError, NumericsError
from mae_core.evaluate.knn import run_knn
from mae_core.model import sizes
from mae_core.pretrain.contrastive import run_contrastive
from mae_core.pretrain.monitor import PREFIX
from mae_core.runtime.context import RunContext


def train(
    pool: SlotPool,
    folder: Path,
    world: int,
    *,
    zero: int = 1,
    micro: int = 8,
    monitor_every_steps: int | None = None,
    **payload: Any,
) -> dict[str, Any]:
    execution = {
        "zero_stage": zero,
        "micro_batch": micro,
        "monitor_every_steps": monitor_every_steps,
    }
    payload |= {"folder": str(folder), "execution": execution}
    gang = launched(pool, "support.contrastive_entries:train_contrastive", payload, world)
    verdict = finish(pool, gang, 120)
    assert verdict.cause is Cause.SUCCESS, verdict.traceback
    return values(gang)[0]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "outputs" / "encoder.safetensors")


def test_no_split_of_the_batch_changes_the_result(
    pool: SlotPool,
    tmp_path: Path,
) -> None:
    """Negatives and BatchNorm are of the whole global batch of 16."""
    cases = {
        "whole": (1, 1, 16),
        "halves": (1, 0, 8),
        "quarters": (1, 2, 4),
        "ranks": (2, 1, 8),
        "both": (2, 2, 2),
    }
    losses = {}
    for name, (world, zero, micro) in cases.items():
        found = train(pool, tmp_path / name, world, zero=zero, micro=micro)
        losses[name] = dict(found["losses"])
        for key, value in weights(tmp_path / name).items():
            expected = weights(tmp_path / "whole")[key]
            torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-5, msg=f"{name} {key}")
        assert losses[name] == pytest.approx(losses["whole"], rel=1e-4), name
    assert len(set(losses["whole"].values())) == 6


@pytest.mark.parametrize(
    ("zero", "precision"), [(0, "fp32"), (1, "fp32"), (2, "bf16"), (1, "bf16-mixed")]
)
def test_a_stopped_training_resumes_bit_exactly(
    pool: SlotPool,
    tmp_path: Path,
    zero: int,
    precision: str,
) -> None:
    settings: dict[str, Any] = {"zero": zero, "precision": precision, "micro": 4, "adamw": True}
    whole = train(pool, tmp_path / "whole", 2, **settings)
    stopped = train(pool, tmp_path / "parts", 2, **settings, stop_at=3)
    assert stopped["stopped"]
    resumed = train(pool, tmp_path / "parts", 2, **settings)
    assert resumed["metrics"]["resumed_from"] == 3
    assert resumed["metrics"]["level"] == "bit-exact"
    assert (resumed["digest"], resumed["state"]) == (whole["digest"], whole["state"])
    assert stopped["losses"] + resumed["losses"] == whole["losses"]


@pytest.mark.parametrize("worlds", [(2, 1), (1, 2)])
def test_another_world_size_goes_on_where_the_momentum_encoder_stood(
    pool: SlotPool,
    tmp_path: Path,
    worlds: tuple[int, int],
) -> None:
    whole = dict(train(pool, tmp_path / "whole", worlds[0], adamw=True)["losses"])
    for forget in (False, True):
        folder = tmp_path / str(forget)
        train(pool, folder, worlds[0], adamw=True, stop_at=3)
        resumed = train(pool, folder, worlds[1], adamw=True, forget=forget)
        assert resumed["metrics"]["level"] == "order-exact"
        found = dict(resumed["losses"])
        expected = {step: whole[step] for step in found}
        assert (found == pytest.approx(expected, rel=1e-4)) is not forget


def test_features_become_better_neighbours(gang: None, tmp_path: Path) -> None:
    recipe = small_recipe(
        encoder=sizes.encoder("N2"),
        head_width=128,
        output_width=32,
        global_batch=64,
        duration=Duration.steps(120),
        optimizer=ADAMW,
        lr_schedule=LrScheduleConfig(warmup=Duration.steps(12)),
    )
    data = open_data(DIGITS)
    top1 = {}
    for steps in (0, 120):
        folder = tmp_path / str(steps)
        folder.mkdir()
        trained = replace(recipe, duration=Duration.steps(steps))
        metrics = run_contrastive(
            trained, Execution(loader_threads=0), RunContext(output_dir=folder), data
        ).to_json()
        assert metrics["steps"] == steps
        path = folder / "encoder.safetensors"
        ctx = RunContext(output_dir=folder, parents=encoder_parent(path))
        top1[steps] = run_knn(
            KnnRecipe(data=DIGITS, features="cls"), Execution(), ctx, data
        ).to_json()["top1"]
    fixed = [load_encoder(tmp_path / str(n) / "encoder.safetensors").patch_embed for n in top1]
    assert torch.equal(fixed[0].weight, fixed[1].weight)
    assert top1[120] > top1[0] + 10, top1


def test_a_loss_that_is_not_finite_ends_the_attempt(gang: None, tmp_path: Path) -> None:
    recipe = small_recipe(optimizer=OptimizerConfig(name="sgd", base_lr=1e38, weight_decay=0.0))
    ctx = RunContext(output_dir=tmp_path)
    with pytest.raises(NumericsError, match="not finite"):
        run_contrastive(recipe, Execution(loader_threads=0), ctx, open_data(DIGITS))
    assert not (tmp_path / "encoder.safetensors").exists()


def test_zero_3_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ZeRO stage 3 cannot train contrastively"):
        run_contrastive(
            small_recipe(),
            Execution(zero_stage=3),
            RunContext(output_dir=tmp_path),
            open_data(DIGITS),
        )


def test_a_monitored_run_computes_what_an_unmonitored_one_does(
    pool: SlotPool,
    tmp_path: Path,
) -> None:
    plain = train(pool, tmp_path / "plain", 2)
    watched = train(pool, tmp_path / "watched", 2, monitor_every_steps=3)
    assert (watched["digest"], watched["losses"]) == (plain["digest"], plain["losses"])
    seen = dict(watched["watched"])
    assert sorted(seen) == [3, 6]
    assert seen[3][PREFIX + "loss_dev"] != seen[6][PREFIX + "loss_dev"]
    assert 1 < seen[6][PREFIX + "effective_rank_dev"] <= 16
    assert 10 < seen[6][PREFIX + "knn_top1_dev"] <= 100
