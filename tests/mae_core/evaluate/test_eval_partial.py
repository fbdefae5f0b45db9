"""Partial fine-tuning: which parts learn, which stay bit for bit, at any ZeRO stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.command import encoder_parent
from support.digit_cases import DIGITS, write_encoder
from torch.utils.flop_counter import FlopCounterMode

from mae_core.config import (
    NO_AUGMENTATION,
    Duration,
    EncoderConfig,
    Execution,
    FeatureKind,
    FinetuneRecipe,
    LrScheduleConfig,
    PartialFinetuneRecipe,
    Precision,
    PretrainRecipe,
)
from mae_core.data.sources import ImageData
from mae_core.errors import ConfigError
from mae_core.evaluate.classifier import (
    Classifier,
    build_classifier,
    freeze_all_but_last,
    load_classifier,
)
from mae_core.evaluate.finetune import run_finetune
from mae_core.model.flops import eval_flops_per_image
from mae_core.model.vit import Encoder
from mae_core.runtime.context import RunContext
from mae_core.train.loop import Stopped
from mae_core.train.optim import layer_decay_groups
from studies.errors import StudyError
from studies.spec.cell import Cell, Stage

TINY = EncoderConfig(width=16, depth=3, num_heads=2, patch_size=4)
PARTIAL = PartialFinetuneRecipe(
    data=DIGITS,
    augmentation=NO_AUGMENTATION,
    duration=Duration.steps(3),
    global_batch=32,
    lr_schedule=LrScheduleConfig(warmup=Duration.steps(1)),
    drop_path=0.0,
    num_labels=100,
    eval_split="dev",
)
ALONE = Execution(zero_stage=0)


@pytest.fixture
def encoder_path(tmp_path: Path) -> Path:
    return write_encoder(tmp_path, TINY)


def trained_names(recipe: FinetuneRecipe, encoder_path: Path) -> set[str]:
    """Parts of the network, to the level of a block's branch, that an optimizer would get."""
    model = build_classifier(recipe, encoder_path, 10)
    groups = layer_decay_groups(model, 0.05, 0.75, TINY.depth)
    given = {id(p) for group in groups for p in group.params}
    found = {name for name, p in model.named_parameters() if id(p) in given}
    assert found == {name for name, p in model.named_parameters() if p.requires_grad}
    return {name.rsplit(".", 1)[0].removeprefix("encoder.") for name in found}


@pytest.mark.parametrize("features", ["mean", "cls"])
def test_what_is_trained(encoder_path: Path, features: FeatureKind) -> None:
    recipe = replace(PARTIAL, features=features)
    head = {"head"} | ({"norm"} if features == "mean" else set())
    half = {"blocks.2.norm2", "blocks.2.mlp.fc1", "blocks.2.mlp.fc2"}
    block = half | {"blocks.2.norm1", "blocks.2.attn.qkv", "blocks.2.attn.proj"}
    expected = {0.0: head, 0.5: head | half | {"norm"}, 1.0: head | block | {"norm"}}
    for number, names in expected.items():
        assert trained_names(replace(recipe, num_blocks=number), encoder_path) == names
    second = {name.replace("2", "1", 1) for name in block}
    assert trained_names(replace(recipe, num_blocks=2.0), encoder_path) == (
        head | block | second | {"norm"}
    )
    whole = FinetuneRecipe(data=DIGITS, features=features)
    everything = trained_names(replace(recipe, num_blocks=3.0), encoder_path)
    assert everything == trained_names(whole, encoder_path)


@pytest.mark.parametrize(
    ("zero_stage", "precision"), [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "fp32")]
)
def test_frozen_parts_stay_bit_for_bit(
    gang: None,
    encoder_path: Path,
    tmp_path: Path,
    data: ImageData,
    zero_stage: int,
    precision: Precision,
) -> None:
    recipe = replace(PARTIAL, num_blocks=0.5, precision=precision)
    ctx = RunContext(output_dir=tmp_path, parents=encoder_parent(encoder_path))
    run_finetune(recipe, replace(ALONE, zero_stage=zero_stage), ctx, data)  # type: ignore[arg-type]
    model, _ = load_classifier(tmp_path / "finetuned.safetensors")
    before = build_classifier(recipe, encoder_path, 10)
    trained = {name for name, p in before.named_parameters() if p.requires_grad}
    start = before.state_dict()
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, start[n])}
    assert moved == trained


def test_goes_on_where_it_was_stopped(
    gang: None, encoder_path: Path, tmp_path: Path, data: ImageData
) -> None:
    recipe = replace(PARTIAL, duration=Duration.steps(6))
    states = []
    for name in ("straight", "stopped"):
        output = tmp_path / name
        output.mkdir()
        ctx = RunContext(
            output_dir=output,
            checkpoint_dir=output / "checkpoints",
            parents=encoder_parent(encoder_path),
        )
        if name == "stopped":
            with pytest.raises(Stopped, match="a checkpoint is committed"):
                run_finetune(recipe, ALONE, replace(ctx, should_stop=lambda: True), data)
        metrics = run_finetune(recipe, ALONE, ctx, data).to_json()
        assert metrics["details"]["resumed_from"] == (1 if name == "stopped" else 0)
        states.append(load_classifier(output / "finetuned.safetensors")[0].state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("number", [0.0, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("features", ["mean", "cls"])
def test_flops_are_what_torch_counts(number: float, features: FeatureKind) -> None:
    recipe = replace(PARTIAL, num_blocks=number, features=features)
    with torch.device("meta"):
        encoder = Encoder(TINY, 8, 1, trainable_positions=True)
        freeze_all_but_last(encoder, number)
        model = Classifier(encoder, features, 10)
        arguments = (torch.empty(1, 1, 8, 8), torch.empty(1, 10), torch.empty(1, 6))
        with FlopCounterMode(display=False) as counter:
            model(*arguments).backward()
    counted = eval_flops_per_image(recipe, TINY, 10).train_image
    assert counted.executed == counter.get_total_flops()
    assert counted.executed <= counted.algorithmic


@pytest.mark.parametrize("number", [-1.0, 0.25, 1.5])
def test_numbers_of_blocks_that_mean_nothing(number: float) -> None:
    with pytest.raises(ConfigError, match="use 0, 0.5"):
        replace(PARTIAL, num_blocks=number)


def test_more_blocks_than_exist(encoder_path: Path) -> None:
    recipe = replace(PARTIAL, num_blocks=4.0)
    with pytest.raises(ConfigError, match="num_blocks 4 of an encoder with 3 blocks"):
        build_classifier(recipe, encoder_path, 10)
    stages = (
        Stage(name="pretrain", recipe=PretrainRecipe(data=DIGITS, encoder=TINY)),
        Stage(name="partial", recipe=recipe, parents=("pretrain",)),
    )
    with pytest.raises(StudyError, match="stage partial: num_blocks 4 of an encoder with 3"):
        Cell(address="c", stages=stages)
