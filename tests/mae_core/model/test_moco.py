"""MoCo v3 against independent formulas: loss, momentum, gradients in two passes, views, costs."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.contrastive_cases import VIEW, small_recipe
from support.digit_cases import DIGITS
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mae_core.config import (
    AugmentationConfig,
    BatchSplit,
    ContrastiveRecipe,
    DataConfig,
    EncoderConfig,
    Execution,
    PretrainRecipe,
)
from mae_core.config.augmentation import ViewConfig
from mae_core.data.loader import Batch, TrainLoader
from mae_core.data.sources import open_data
from mae_core.errors import ConfigError
from mae_core.model import sizes
from mae_core.model.cost import DataSize
from mae_core.model.flops import (
    contrastive_flops_per_image,
    contrastive_params,
    pretrain_flops_per_image,
)
from mae_core.model.moco import MoCo, info_nce, momentum_at
from mae_core.pretrain.contrastive import TwoPass
from orchestrator.plan.estimate import cost_of
from studies.spec.cell import Cell, Stage
from studies.spec.codec import recipe_from_plain, to_plain

CPU = torch.device("cpu")


def some_batch(recipe: ContrastiveRecipe, size: int = 16) -> Batch:
    generator = np.random.default_rng(0)
    data = recipe.data
    shape = (2 * size, data.num_channels, data.image_size, data.image_size)
    return Batch(
        images=torch.from_numpy(generator.integers(0, 256, shape, dtype=np.uint8)),
        labels=torch.zeros(size, dtype=torch.int64),
        index=generator.permutation(1000)[:size],
        epoch=np.full(size, 3),
    )


def rows(batch: Batch, start: int, stop: int) -> Batch:
    size = len(batch.index)
    images = torch.cat([batch.images[start:stop], batch.images[size + start : size + stop]])
    return Batch(images, batch.labels[start:stop], batch.index[start:stop], batch.epoch[start:stop])


def test_the_loss_is_the_formulas() -> None:
    generator = np.random.default_rng(1)
    queries, keys = generator.normal(size=(2, 7, 5))
    total = 0.0
    for i in range(7):
        cosines = [
            float(queries[i] @ k / np.linalg.norm(queries[i]) / np.linalg.norm(k)) for k in keys
        ]
        total -= math.log(math.exp(cosines[i] / 0.2) / sum(math.exp(c / 0.2) for c in cosines))
    found = info_nce(torch.from_numpy(queries), torch.from_numpy(keys), 0.2)
    assert float(found) == pytest.approx(2 * 0.2 * total / 7, rel=1e-5)


def test_momentum_rises_to_one_along_half_a_cosine() -> None:
    values = [momentum_at(step, 100, 0.99) for step in range(101)]
    assert values[0] == pytest.approx(0.99)
    assert values[50] == pytest.approx(0.995)
    assert values[25] == pytest.approx(1 - 0.01 * (1 + math.sqrt(0.5)) / 2)
    assert values[100] == 1.0
    assert values == sorted(values)


def test_the_copies_follow_and_are_no_parameters() -> None:
    model = MoCo(small_recipe())
    names = {name for name, _ in model.named_parameters()}
    assert not any("momentum" in name for name in names)
    copied = {n for n in model.state_dict() if n.startswith("momentum_")}
    assert copied == {f"momentum_{n}" for n in names if not n.startswith("predictor.")}
    before = model.momentum_encoder.blocks[0].mlp.fc1.weight.clone()
    with torch.no_grad():
        model.encoder.blocks[0].mlp.fc1.weight += 1.0
    model.follow(0.9, dict(model.named_parameters()))
    moved = model.momentum_encoder.blocks[0].mlp.fc1.weight - before
    assert torch.allclose(moved, torch.full_like(moved, 0.1), atol=1e-6)


def reference_head(head: nn.Sequential) -> nn.Sequential:
    """The same head with torch's own layers, sharing the weights."""
    layers: list[nn.Module] = []
    for layer in head:
        if isinstance(layer, nn.Linear):
            layers.append(nn.Linear(layer.in_features, layer.out_features, bias=False))
            layers[-1].weight = layer.weight
        elif isinstance(layer, nn.ReLU):
            layers.append(nn.ReLU())
        else:
            affine = layer.weight is not None
            width = layers[-1].weight.shape[0]
            layers.append(nn.BatchNorm1d(width, affine=affine))  # type: ignore[arg-type]
            if affine:
                layers[-1].weight, layers[-1].bias = layer.weight, layer.bias
    return nn.Sequential(*layers)


def reference_loss(model: MoCo, teacher: MoCo, views: Tensor) -> Tensor:
    """The loss of Algorithm 1 in one graph over the whole batch."""
    half = len(views) // 2
    project, predict = reference_head(model.projector), reference_head(model.predictor)
    frozen = reference_head(teacher.projector)
    pixels = (views.float() / 255 - 0.3) / 0.38
    q1, q2 = (predict(project(model.encoder.forward_features(x)[:, 0])) for x in pixels.split(half))
    with torch.no_grad():
        k1, k2 = (frozen(teacher.encoder.forward_features(x)[:, 0]) for x in pixels.split(half))

    def loss(q: Tensor, k: Tensor) -> Tensor:
        cosine = nn.functional.cosine_similarity(q[:, None], k[None], dim=2)
        return 2 * 0.2 * nn.CrossEntropyLoss()(cosine / 0.2, torch.arange(half))

    return loss(q1, k2) + loss(q2, k1)


@pytest.mark.parametrize("micro", [16, 8, 4])
def test_two_passes_are_one_graph_over_the_whole_batch(micro: int) -> None:
    recipe = small_recipe()
    model = MoCo(recipe)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # no bias at 0, no scale at 1
                parameter += 0.1 * torch.arange(len(parameter)).sin()
    teacher = copy.deepcopy(model)  # whose parameters are what `follow(0)` copies below
    model.follow(0.0, dict(model.named_parameters()))
    steps = TwoPass(replace(recipe, momentum=1.0), model, 10)
    batch = some_batch(recipe)
    expected = reference_loss(model, teacher, steps.one(batch, CPU)[0])
    expected.backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    parts = [rows(batch, start, start + micro) for start in range(0, 16, micro)]
    for inputs in steps.step(0, parts, CPU):
        loss = model(*inputs)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        (loss / len(parts)).backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    assert not any("patch_embed" in name for name in found)
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() < 1e-4 * gradient.norm() + 1e-5, name


def test_a_probe_depends_on_every_weight() -> None:
    recipe = small_recipe()
    model = MoCo(recipe).eval()
    inputs = TwoPass(recipe, model, 10).one(some_batch(recipe, 2), CPU)
    with torch.no_grad():
        before = float(model(*inputs))
        for part in (
            "encoder.blocks.1.mlp.fc1.weight",
            "projector.3.weight",
            "predictor.0.weight",
            "momentum_encoder.blocks.0.attn.qkv.weight",
        ):
            other = copy.deepcopy(model)
            weight = other.state_dict()[part]
            weight += 0.1 * torch.arange(weight.numel()).view_as(weight).sin()
            assert abs(float(other(*inputs)) - before) > 1e-4, part


def test_views_are_keyed_by_sample_whatever_the_micro_batch() -> None:
    recipe = small_recipe()
    split = open_data(DIGITS).split("train")

    def batches(micro: int, num_views: int = 2, crop: bool = True) -> list[Batch]:
        augmentation = recipe.augmentation if crop else AugmentationConfig(crop_scale=None)
        loader = TrainLoader(
            split,
            DIGITS,
            augmentation,
            seed=0,
            batch=BatchSplit(micro, 16 // micro, 1),
            rank=0,
            threads=0,
            num_views=num_views,
        )
        return next(iter(loader.steps(2, 3)))

    steps = TwoPass(recipe, MoCo(recipe), 10)
    whole = batches(16)[0]
    assert torch.equal(whole.images[:16], batches(16, num_views=1)[0].images)
    assert not torch.equal(whole.images[:16], whole.images[16:])
    parts = [steps.one(b, CPU)[0].view(2, 4, 1, 8, 8) for b in batches(4)]
    assert torch.equal(torch.cat(parts, dim=1).flatten(0, 1), steps.one(whole, CPU)[0])
    first, second = batches(16, crop=False)[0].images.split(16)  # looked up, only mirrored
    assert not torch.equal(first, second)
    mirrored = (first != second).flatten(1).any(dim=1)
    assert torch.equal(first[mirrored].flip(-1), second[mirrored])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_costs_are_what_is_multiplied(accumulation: int) -> None:
    recipe = small_recipe()
    model = MoCo(recipe)
    assert contrastive_params(recipe) == sum(p.numel() for p in model.parameters())
    micro = 16 // accumulation
    batch = some_batch(recipe)
    parts = [rows(batch, start, start + micro) for start in range(0, 16, micro)]
    steps = TwoPass(replace(recipe, views=(ViewConfig(blur=0.0),) * 2), model, 10)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for inputs in steps.step(0, parts, CPU):
            model(*inputs).backward()
    flops = contrastive_flops_per_image(recipe, BatchSplit(micro, accumulation, 1))
    assert counter.get_total_flops() == 16 * flops.executed


def test_an_epoch_costs_about_six_times_maes() -> None:
    """ViT-L took 36 hours for 300 epochs, MAE 31 for 1600 (arXiv 2111.06377 section 4.2)."""
    data, large = DataConfig(path="unused"), sizes.encoder("L")
    contrastive = contrastive_flops_per_image(ContrastiveRecipe(data=data, encoder=large))
    mae = pretrain_flops_per_image(PretrainRecipe(data=data, encoder=large))
    assert 5 < contrastive.algorithmic / mae.algorithmic < 9


def test_a_plan_counts_and_refuses_as_a_run_does() -> None:
    stage = Stage(name="moco", recipe=small_recipe(), execution=Execution(micro_batch=4))
    cell = Cell(address="c", stages=(stage,))
    size = DataSize(num_train=1293, num_eval=100, num_classes=10)
    cost = cost_of(cell, stage, size)
    assert (cost.steps, cost.images, cost.split) == (6, 96, BatchSplit(4, 4, 1))
    assert cost.flops > cost.algorithmic_flops > 0
    assert cell.pretrain is stage
    sharded = replace(stage, execution=Execution(zero_stage=3))
    with pytest.raises(ConfigError, match="zero_stage=2"):
        cost_of(cell, sharded, size)


def test_a_recipe_survives_json() -> None:
    recipe = ContrastiveRecipe(data=DIGITS, encoder=sizes.encoder("N1"))
    assert recipe_from_plain(to_plain(recipe)) == recipe
    assert (recipe.optimizer.base_lr, recipe.optimizer.weight_decay) == (1.5e-4, 0.1)
    assert recipe.augmentation.crop_scale == (0.08, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch": 1}, "at least two images"),
        ({"views": (VIEW,)}, "1 views"),
        ({"temperature": 0.0}, "must be > 0"),
        ({"momentum": 1.5}, r"must be in \[0, 1\]"),
        ({"head_width": 0}, "head_width 0"),
        ({"augmentation": AugmentationConfig(color_jitter=0.4)}, "colours are changed as `views`"),
        ({"encoder": EncoderConfig(width=16, depth=1, num_heads=2, patch_size=3)}, "divisible"),
    ],
)
def test_impossible_recipes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_recipe(**changes)
