"""Parameter groups, optimizers and the learning-rate curve."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from mae_core.config import (
    DataConfig,
    DecoderConfig,
    Duration,
    LrScheduleConfig,
    OptimizerConfig,
    PretrainRecipe,
)
from mae_core.errors import ConfigError
from mae_core.model.mae import MAE
from mae_core.model.sizes import encoder
from mae_core.model.vit import Encoder
from mae_core.train.lr_schedule import LrSchedule
from mae_core.train.optim import Lars, build_optimizer, layer_decay_groups, pretrain_groups, set_lr


def tiny_mae() -> MAE:
    return MAE(
        PretrainRecipe(
            data=DataConfig(path="unused", image_size=8),
            encoder=encoder("N1"),
            decoder=DecoderConfig(width=16, depth=1, num_heads=2),
        )
    )


class Classifier(nn.Module):
    """An encoder with a norm and a head, as fine-tuning has it."""

    def __init__(self, trainable_positions: bool = False) -> None:
        super().__init__()
        self.encoder = Encoder(encoder("N1"), 8, 3, trainable_positions=trainable_positions)
        self.fc_norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)


def test_pretraining_decays_matrices_and_tokens_but_no_biases_or_norms() -> None:
    model = tiny_mae()
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {g.name: g for g in pretrain_groups(model, 0.05)}
    decayed = {names[id(p)] for p in groups["decay"].params}
    exempt = {names[id(p)] for p in groups["no_decay"].params}
    assert decayed | exempt == set(names.values()) and not decayed & exempt
    assert {"encoder.cls_token", "decoder.mask_token"} <= decayed
    assert all(name.endswith("weight") or name.endswith("token") for name in decayed)
    assert all(name.endswith("bias") or "norm" in name for name in exempt)
    assert (groups["decay"].weight_decay, groups["no_decay"].weight_decay) == (0.05, 0.0)


def test_layer_decay_has_a_level_for_embedding_blocks_and_head() -> None:
    model = Classifier(trainable_positions=True)
    scale = {}
    decay = {}
    names = {id(p): name for name, p in model.named_parameters()}
    for group in layer_decay_groups(model, 0.05, 0.5, depth=2):
        for parameter in group.params:
            scale[names[id(parameter)]] = group.lr_scale
            decay[names[id(parameter)]] = group.weight_decay
    assert set(scale) == set(names.values())
    for name in ("cls_token", "positions", "patch_embed.weight", "patch_embed.bias"):
        assert scale[f"encoder.{name}"] == 0.5**3
    assert scale["encoder.blocks.0.attn.qkv.weight"] == 0.5**2
    assert scale["encoder.blocks.1.mlp.fc2.bias"] == 0.5
    for name in ("encoder.norm.weight", "fc_norm.bias", "head.weight"):
        assert scale[name] == 1.0
    assert decay["head.weight"] == decay["encoder.blocks.0.attn.qkv.weight"] == 0.05
    for name in ("encoder.cls_token", "encoder.positions", "head.bias", "fc_norm.weight"):
        assert decay[name] == 0.0


def test_layer_decay_leaves_out_frozen_parameters_and_checks_the_depth() -> None:
    model = Classifier()
    model.encoder.requires_grad_(False)
    groups = layer_decay_groups(model, 0.05, 0.75, depth=2)
    assert {group.lr_scale for group in groups} == {1.0}
    assert sum(len(group.params) for group in groups) == 4
    with pytest.raises(ConfigError, match="over 3 blocks"):
        layer_decay_groups(model, 0.05, 0.75, depth=3)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_every_optimizer_scales_its_groups_and_lowers_the_loss(name: str) -> None:
    model = tiny_mae()
    config = OptimizerConfig(name=name)  # type: ignore[arg-type]
    lr = {"adamw": 1e-3, "sgd": 1e-3, "lars": 1e-3}[name]
    optimizer = build_optimizer(config, pretrain_groups(model, 0.0), lr)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 8, 8, generator=generator)
    noise = torch.rand(16, 16, generator=generator)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(images, noise)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(group["lr"] == lr for group in optimizer.param_groups)


def test_set_lr_multiplies_by_the_groups_scale() -> None:
    model = Classifier()
    groups = layer_decay_groups(model, 0.05, 0.5, depth=2)
    optimizer = build_optimizer(OptimizerConfig(), groups, 1.0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.125, 0.25, 0.5, 1.0}
    set_lr(optimizer, 0.4)
    assert {group["lr"] for group in optimizer.param_groups} == {0.05, 0.1, 0.2, 0.4}


def test_adamw_is_fused_and_has_the_configured_betas() -> None:
    optimizer = build_optimizer(OptimizerConfig(), pretrain_groups(tiny_mae(), 0.05), 1e-3)
    assert optimizer.defaults["fused"] is True
    assert optimizer.defaults["betas"] == (0.9, 0.95)


def test_lars_follows_the_published_formula() -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(3, 4)), rng.normal(size=3)
    w = nn.Parameter(torch.tensor(weight))
    b = nn.Parameter(torch.tensor(bias))
    optimizer = Lars([w, b], lr=0.3, momentum=0.9, weight_decay=0.01)
    velocity_w, velocity_b = np.zeros_like(weight), np.zeros_like(bias)
    for _ in range(4):
        grad_w, grad_b = rng.normal(size=(3, 4)), rng.normal(size=3)
        w.grad, b.grad = torch.tensor(grad_w), torch.tensor(grad_b)
        optimizer.step()
        update = grad_w + 0.01 * weight
        update *= 0.001 * np.linalg.norm(weight) / np.linalg.norm(update)
        velocity_w = 0.9 * velocity_w + update
        velocity_b = 0.9 * velocity_b + grad_b
        weight, bias = weight - 0.3 * velocity_w, bias - 0.3 * velocity_b
    assert w.detach().numpy() == pytest.approx(weight, rel=1e-12)
    assert b.detach().numpy() == pytest.approx(bias, rel=1e-12)


def test_lars_moves_a_weight_of_zero() -> None:
    w = nn.Parameter(torch.zeros(2, 2))
    w.grad = torch.ones(2, 2)
    Lars([w], lr=0.1).step()
    assert torch.equal(w.detach(), torch.full((2, 2), -0.1))


def test_lars_resumes_exactly_from_its_state() -> None:
    def steps(optimizer: torch.optim.Optimizer, w: nn.Parameter, count: int) -> None:
        for _ in range(count):
            w.grad = w.detach().sin()
            optimizer.step()

    w = nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3))
    optimizer = Lars([w], lr=5.0)
    steps(optimizer, w, 2)
    saved, values = optimizer.state_dict(), w.detach().clone()
    copy = nn.Parameter(values)
    resumed = Lars([copy], lr=5.0)
    resumed.load_state_dict(
        {**saved, "state": {0: {"momentum": saved["state"][0]["momentum"].clone()}}}
    )
    steps(optimizer, w, 2)
    steps(resumed, copy, 2)
    assert torch.equal(w, copy)


def test_cosine_after_linear_warmup() -> None:
    curve = LrSchedule(peak_lr=2.0, min_lr=0.5, warmup_steps=10, total_steps=110)
    assert curve.at(0) == 0.0
    assert curve.at(5) == 1.0
    assert curve.at(10) == 2.0
    assert curve.at(60) == pytest.approx(1.25)
    assert curve.at(35) == pytest.approx(0.5 + 1.5 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert curve.at(110) == curve.at(10_000) == 0.5


def test_the_curve_rises_then_falls_without_jumps() -> None:
    curve = LrSchedule(peak_lr=1.0, min_lr=0.0, warmup_steps=7, total_steps=50)
    values = [curve.at(step) for step in range(51)]
    assert values.index(max(values)) == 7
    assert values[:8] == sorted(values[:8])
    assert values[7:] == sorted(values[7:], reverse=True)
    assert max(abs(a - b) for a, b in zip(values, values[1:], strict=False)) <= 1 / 7 + 1e-12


def test_a_warmup_longer_than_the_run_is_a_run_of_warmup() -> None:
    curve = LrSchedule(peak_lr=1.0, min_lr=0.0, warmup_steps=40, total_steps=10)
    assert [curve.at(step) for step in (0, 5, 9)] == [0.0, 0.5, 0.9]
    assert LrSchedule(peak_lr=1.0, min_lr=0.1, warmup_steps=0, total_steps=0).at(0) == 0.1


def test_the_papers_recipe_resolves_to_its_steps_and_rate() -> None:
    curve = LrSchedule.from_config(
        OptimizerConfig(),
        LrScheduleConfig(),
        Duration.epochs(800),
        global_batch=4096,
        num_images=1_281_167,
    )
    assert curve.peak_lr == pytest.approx(2.4e-3)
    assert (curve.warmup_steps, curve.total_steps) == (40 * 312, 249_600)
    with pytest.raises(ConfigError, match="must be ≥ 0"):
        LrSchedule(peak_lr=1.0, min_lr=0.0, warmup_steps=-1, total_steps=5)
