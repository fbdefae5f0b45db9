"""The attentive probe: it learns, the encoder does not, micro-batches do not show."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command import encoder_parent
from support.digit_cases import DIGITS, write_encoder
from torch.utils.flop_counter import FlopCounterMode

from mae_core.checkpoint.tensor_file import read_tensors
from mae_core.config import (
    NO_AUGMENTATION,
    AttentiveProbeRecipe,
    Duration,
    EncoderConfig,
    Execution,
    LrScheduleConfig,
    OptimizerConfig,
    PretrainRecipe,
)
from mae_core.data.sources import ImageData
from mae_core.errors import ConfigError
from mae_core.evaluate.probes.attentive_probe import (
    FILE_NAME,
    AttentiveHead,
    build_head,
    run_attentive_probe,
)
from mae_core.model.flops import encoder_forward_flops, eval_flops_per_image
from mae_core.model.vit import Encoder
from mae_core.runtime.context import RunContext
from studies.errors import StudyError
from studies.spec.cell import Cell, Stage

TINY = EncoderConfig(width=16, depth=2, num_heads=2, patch_size=4)
PROBE = AttentiveProbeRecipe(
    data=DIGITS,
    num_heads=4,
    augmentation=NO_AUGMENTATION,
    duration=Duration.epochs(6),
    global_batch=64,
    optimizer=OptimizerConfig(base_lr=4e-2, betas=(0.9, 0.999)),
    lr_schedule=LrScheduleConfig(warmup=Duration.epochs(1)),
)


@pytest.fixture
def encoder_path(tmp_path: Path) -> Path:
    return write_encoder(tmp_path, TINY)


def run(recipe: AttentiveProbeRecipe, encoder_path: Path, data: ImageData, **execution: Any) -> Any:
    ctx = RunContext(output_dir=encoder_path.parent, parents=encoder_parent(encoder_path))
    return run_attentive_probe(recipe, Execution(zero_stage=0, **execution), ctx, data).to_json()


def test_learns_and_is_kept(gang: None, encoder_path: Path, data: ImageData) -> None:
    before = encoder_path.read_bytes()
    metrics = run(PROBE, encoder_path, data)
    json.dumps(metrics)
    assert metrics["top1"] > 50  # an untrained encoder; chance is 10
    assert metrics["num_images"] == len(data.split("test"))
    assert encoder_path.read_bytes() == before
    state, metadata = read_tensors(encoder_path.parent / FILE_NAME)
    assert metadata["layer"] == "last"
    start = build_head(PROBE, Encoder(TINY, 8, 1), 10).state_dict()
    assert set(state) == set(start)
    assert not any(torch.equal(value, start[name]) for name, value in state.items())


def test_micro_batches_do_not_show(gang: None, encoder_path: Path, data: ImageData) -> None:
    recipe = replace(PROBE, duration=Duration.steps(3), layer=1)
    states = []
    for micro_batch in (64, 16):
        run(recipe, encoder_path, data, micro_batch=micro_batch)
        states.append(read_tensors(encoder_path.parent / FILE_NAME)[0])
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], atol=1e-4), name
    run(replace(recipe, layer=None), encoder_path, data)
    last = read_tensors(encoder_path.parent / FILE_NAME)[0]
    assert not torch.allclose(last["head.weight"], states[0]["head.weight"], atol=1e-4)


def test_is_torchs_attention() -> None:
    """Against `nn.MultiheadAttention` with the same weights, its query projection the identity."""
    head = AttentiveHead(16, 4, 10, torch.Generator().manual_seed(1)).eval()
    tokens = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(2))
    reference = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight[:16] = torch.eye(16)
        reference.in_proj_weight[16:] = head.key_value.weight
        reference.in_proj_bias[:16] = 0
        reference.in_proj_bias[16:] = head.key_value.bias
        reference.out_proj.load_state_dict(head.proj.state_dict())
        normed = head.norm(tokens)
        pooled, _ = reference(head.query_token.expand(3, 1, 16), normed, normed)
        expected = head.head(head.head_norm(pooled[:, 0]))
        assert torch.allclose(head.logits(tokens), expected, atol=1e-5)


def test_flops_are_what_torch_counts() -> None:
    with torch.device("meta"):
        head = AttentiveHead(16, 4, 10, torch.Generator())
        arguments = (torch.empty(1, 5, 16), torch.empty(1, 10))
        with FlopCounterMode(display=False) as counter:
            head(*arguments).backward()
    counted = eval_flops_per_image(PROBE, TINY, 10).train_image
    assert counted.executed - encoder_forward_flops(TINY, 8, 1) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_heads": 3}, "num_heads 3 does not divide the encoder's width 16"),
        ({"layer": 3}, "layer 3 of an encoder with 2 blocks"),
    ],
)
def test_what_does_not_fit_is_refused(
    change: dict[str, int], expected: str, encoder_path: Path, data: ImageData
) -> None:
    recipe = replace(PROBE, **change)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=expected):
        run(recipe, encoder_path, data)
    stages = (
        Stage(name="pretrain", recipe=PretrainRecipe(data=DIGITS, encoder=TINY)),
        Stage(name="probe", recipe=recipe, parents=("pretrain",)),
    )
    with pytest.raises(StudyError, match=expected):
        Cell(address="c", stages=stages)
