"""Parameter and FLOP counts against the paper, and against torch's own counter on meta tensors."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mae_core.config import (
    DataConfig,
    DecoderConfig,
    EncoderConfig,
    EvalRecipe,
    FinetuneRecipe,
    KnnRecipe,
    LinearProbeRecipe,
    PretrainRecipe,
)
from mae_core.errors import ConfigError
from mae_core.model.flops import (
    encoder_forward_flops,
    encoder_params,
    eval_flops_per_image,
    pretrain_flops_per_image,
    pretrain_params,
)
from mae_core.model.mae import MAE
from mae_core.model.sizes import ENCODERS, encoder
from mae_core.model.vit import Encoder

IMAGENET = DataConfig(path="unused", image_size=224)
PAPER = {
    # size: encoder and total parameters (M), training GFLOP per image algorithmic and executed
    "B": (85.6, 111.7, 58.7, 58.0),
    "L": (303.1, 329.2, 124.5, 123.7),
    "H": (630.4, 656.6, 291.4, 290.3),
}


def imagenet_recipe(size: str) -> PretrainRecipe:
    return PretrainRecipe(data=IMAGENET, encoder=encoder(size))


def counted_training_flops(recipe: PretrainRecipe) -> int:
    """What torch counts for forward and backward of one image; no number is computed."""
    with torch.device("meta"):
        model = MAE(recipe)
        data = recipe.data
        images = torch.empty(1, data.num_channels, data.image_size, data.image_size)
        noise = torch.empty(1, recipe.num_patches)
        with FlopCounterMode(display=False) as counter:
            model(images, noise).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("size", PAPER)
def test_parameters_and_flops_are_the_papers(size: str) -> None:
    recipe = imagenet_recipe(size)
    encoder_m, total_m, algorithmic, executed = PAPER[size]
    assert encoder_params(recipe.encoder, 3) / 1e6 == pytest.approx(encoder_m, abs=0.06)
    assert pretrain_params(recipe) / 1e6 == pytest.approx(total_m, abs=0.06)
    flops = pretrain_flops_per_image(recipe)
    assert flops.algorithmic / 1e9 == pytest.approx(algorithmic, abs=0.06)
    assert flops.executed / 1e9 == pytest.approx(executed, abs=0.06)


@pytest.mark.parametrize(
    ("size", "full", "visible", "total"),
    [
        # GMACs of a forward pass at 224 px: encoder on all, on 25 %, with the 8x512 decoder
        ("Ti", 1.25, 0.31, 5.66),
        ("S", 4.60, 1.14, 6.51),
        ("B", 17.56, 4.41, 9.78),
        ("L", 61.55, 15.38, 20.76),
        ("H", 167.29, 41.43, 48.56),
    ],
)
def test_forward_macs_match_the_published_table(
    size: str, full: float, visible: float, total: float
) -> None:
    recipe = imagenet_recipe(size)
    shape = recipe.encoder
    keep = recipe.num_patches // 4
    embed_hidden = 2 * (recipe.num_patches - keep) * shape.patch_size**2 * 3 * shape.width
    assert encoder_forward_flops(shape, 224, 3) / 2e9 == pytest.approx(full, abs=0.012)
    on_visible = encoder_forward_flops(shape, 224, 3, keep) + embed_hidden
    assert on_visible / 2e9 == pytest.approx(visible, abs=0.012)
    # The published totals leave out the decoder's two projections in places: 1 %.
    training = pretrain_flops_per_image(recipe).algorithmic
    assert training / 6e9 == pytest.approx(total, rel=0.01)


@pytest.mark.parametrize("size", ["Ti", "S", "B", "L", "H"])
def test_executed_flops_are_what_torch_counts(size: str) -> None:
    recipe = imagenet_recipe(size)
    executed = pretrain_flops_per_image(recipe).executed
    assert executed == pytest.approx(counted_training_flops(recipe), rel=0.005)


SMALL_SHAPES = list(itertools.product([8, 16], [2, 4], [1, 3], [0.4, 0.75], ["N1", "N4"]))


@pytest.mark.parametrize(("pixels", "patch", "channels", "ratio", "size"), SMALL_SHAPES)
def test_counts_hold_for_small_shapes(
    pixels: int, patch: int, channels: int, ratio: float, size: str
) -> None:
    data = DataConfig(
        path="unused",
        image_size=pixels,
        num_channels=channels,
        pixel_mean=(0.5,) * channels,
        pixel_std=(0.5,) * channels,
    )
    recipe = PretrainRecipe(
        data=data,
        encoder=encoder(size, patch_size=patch),
        decoder=DecoderConfig(width=24, depth=1, num_heads=2),
        mask_ratio=ratio,
    )
    flops = pretrain_flops_per_image(recipe)
    assert flops.executed == counted_training_flops(recipe)
    assert flops.algorithmic > flops.executed
    with torch.device("meta"):
        model = MAE(recipe)
    assert pretrain_params(recipe) == sum(p.numel() for p in model.parameters())
    assert encoder_params(recipe.encoder, channels) == sum(
        p.numel() for p in model.encoder.parameters()
    )


def test_an_mlp_ratio_other_than_four_is_counted() -> None:
    shape = replace(encoder("N2"), mlp_ratio=2.5)
    with torch.device("meta"):
        model = Encoder(shape, 8, 1)
        with FlopCounterMode(display=False) as counter:
            model.forward_features(torch.empty(1, 1, 8, 8))
    assert counter.get_total_flops() == encoder_forward_flops(shape, 8, 1)
    assert encoder_params(shape, 1) == sum(p.numel() for p in model.parameters())


def test_evaluations_count_encoder_and_head() -> None:
    shape = encoder("B")
    forward, head = encoder_forward_flops(shape, 224, 3), 2 * 768 * 1000

    def count(recipe: EvalRecipe) -> tuple[int, int]:
        flops = eval_flops_per_image(recipe, shape, 1000)
        return flops.train_image.algorithmic, flops.eval_image.algorithmic

    assert count(KnnRecipe(data=IMAGENET)) == (forward, forward)
    assert count(LinearProbeRecipe(data=IMAGENET)) == (forward + 3 * head, forward + head)
    assert count(FinetuneRecipe(data=IMAGENET)) == (3 * (forward + head), forward + head)
    pixels = 2 * 3 * 224 * 224 * 1000
    assert count(LinearProbeRecipe(data=IMAGENET, features="pixels")) == (3 * pixels, pixels)


def test_finetune_executes_no_gradient_towards_the_pixels() -> None:
    shape = encoder("N2")
    data = DataConfig(path="unused", image_size=8)
    with torch.device("meta"):
        model = Encoder(shape, 8, 3)
        head = torch.nn.Linear(24, 10)
        with FlopCounterMode(display=False) as counter:
            head(model.forward_features(torch.empty(1, 3, 8, 8)).mean(dim=1)).sum().backward()
    counted = eval_flops_per_image(FinetuneRecipe(data=data), shape, 10)
    assert counted.train_image.executed == counter.get_total_flops()


def test_a_plan_of_ten_thousand_cells_is_counted_quickly() -> None:
    recipes = [replace(imagenet_recipe("B"), seed=seed) for seed in range(2_000)]
    start = time.process_time()
    for recipe in recipes:
        pretrain_flops_per_image(recipe)
        pretrain_params(recipe)
    assert time.process_time() - start < 1.0


def test_paper_sizes_have_the_papers_patches() -> None:
    shapes = {name: (e.width, e.depth, e.num_heads, e.patch_size) for name, e in ENCODERS.items()}
    assert shapes["Ti"] == (192, 12, 3, 16)
    assert shapes["S"] == (384, 12, 6, 16)
    assert shapes["B"] == (768, 12, 12, 16)
    assert shapes["L"] == (1024, 24, 16, 16)
    assert shapes["H"] == (1280, 32, 16, 14)
    assert encoder("H", patch_size=16).patch_size == 16
    assert encoder("H", patch_size=16).name == "H"


def test_the_ladder_has_eight_sizes_or_more_at_one_patch_and_grows() -> None:
    ladder = [encoder(name, patch_size=16) for name in ENCODERS if not name.startswith("N")]
    params = [encoder_params(size, 3) for size in ladder]
    assert len(ladder) >= 8
    assert params == sorted(params)
    assert all(isinstance(size, EncoderConfig) and size.name for size in ladder)


@pytest.mark.parametrize(("typo", "near"), [("vit-l", "'L'"), ("tI", "'Ti'"), ("N5", "'N")])
def test_an_unknown_size_names_the_nearest(typo: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean {near}"):
        encoder(typo)
