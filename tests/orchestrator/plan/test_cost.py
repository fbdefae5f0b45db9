"""Costs of the stages beside the paper's two protocols, and what a plan refuses of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mae_core.config import (
    BestOfRecipe,
    DataConfig,
    Duration,
    EncoderConfig,
    FeatureProbeRecipe,
    FeaturesRecipe,
    FinetuneRecipe,
    KnnRecipe,
    LinearProbeRecipe,
    LrScheduleConfig,
    PartialFinetuneRecipe,
    PretrainRecipe,
    ReconstructionRecipe,
)
from mae_core.config.augmentation import MixConfig
from mae_core.errors import ConfigError
from mae_core.model.cost import Cost, DataSize
from mae_core.model.flops import encoder_forward_flops, pretrain_flops_per_image
from orchestrator.plan.estimate import cost_of
from studies.spec.cell import Cell, Stage

DIGITS = DataConfig(
    path="digits",
    image_size=8,
    num_channels=1,
    pixel_mean=(0.3,),
    pixel_std=(0.38,),
    dev_fraction=0.1,
)
TINY = EncoderConfig(width=16, depth=2, num_heads=2, patch_size=2)
SIZE = DataSize(1000, 300, 10, num_dev=100, num_test=300)
SHORT: dict[str, Any] = {
    "data": DIGITS,
    "duration": Duration.epochs(4),
    "global_batch": 100,
    "lr_schedule": LrScheduleConfig(warmup=Duration.epochs(1)),
}
FORWARD = encoder_forward_flops(TINY, 8, 1)


def cost(recipe: Any, *, kept: bool = False, size: DataSize = SIZE) -> Cost:
    """Cost of an evaluation of a pretraining, or of its kept features."""
    features = FeaturesRecipe(data=DIGITS, features=getattr(recipe, "features", "mean"))
    stages = [
        Stage(name="pretrain", recipe=PretrainRecipe(data=DIGITS, encoder=TINY)),
        Stage(name="features", recipe=features, parents=("pretrain",)),
    ]
    parents = ("features",) if kept else ("pretrain",)
    stages.append(Stage(name="probe", recipe=recipe, parents=parents))
    return cost_of(Cell(address="c", stages=tuple(stages)), stages[-1], size)


def test_features_are_one_forward_of_every_image() -> None:
    found = cost(FeaturesRecipe(data=DIGITS))
    assert found.images == 1400 and found.flops == 1400 * FORWARD


def test_probes_of_kept_features_encode_nothing() -> None:
    assert cost(KnnRecipe(data=DIGITS), kept=True).flops == 0
    assert cost(KnnRecipe(data=DIGITS)).flops == 1300 * FORWARD
    recipe = FeatureProbeRecipe(**SHORT, base_lrs=(0.1, 1.0), weight_decays=(0.0, 0.1, 0.2))
    found = cost(recipe, kept=True)
    head = 2 * TINY.width * 10
    assert found.steps == 40 and found.split is None
    assert found.flops == 4000 * 6 * 2 * head + 300 * head
    paper = cost(LinearProbeRecipe(**SHORT))
    assert paper.flops > 4000 * FORWARD > 20 * found.flops


def test_fewer_blocks_cost_less() -> None:
    costs = [cost(PartialFinetuneRecipe(**SHORT, num_blocks=n)).flops for n in (0.0, 0.5, 1.0, 2.0)]
    assert costs == sorted(set(costs)) and costs[0] > 4000 * FORWARD


def test_choosing_is_inference_on_the_scored_split() -> None:
    candidate = PartialFinetuneRecipe(**SHORT, eval_split="dev")
    stages = (
        Stage(name="pretrain", recipe=PretrainRecipe(data=DIGITS, encoder=TINY)),
        Stage(name="short", recipe=candidate, parents=("pretrain",)),
        Stage(name="long", recipe=replace(candidate, num_blocks=2.0), parents=("pretrain",)),
        Stage(name="best", recipe=BestOfRecipe(data=DIGITS), parents=("short", "long")),
    )
    found = cost_of(Cell(address="c", stages=stages), stages[-1], SIZE)
    assert found.images == 300 and found.steps is None
    assert found.flops == 300 * (FORWARD + 2 * TINY.width * 10)


def test_reconstruction_is_a_third_of_training_at_the_reference_ratio() -> None:
    pretrain = PretrainRecipe(data=DIGITS, encoder=TINY, mask_ratio=0.5)
    recipe = ReconstructionRecipe(data=DIGITS, gallery_ratios=(0.75,))
    stages = (
        Stage(name="pretrain", recipe=pretrain),
        Stage(name="reconstruction", recipe=recipe, parents=("pretrain",)),
    )
    found = cost_of(Cell(address="c", stages=stages), stages[1], SIZE)
    trained = pretrain_flops_per_image(replace(pretrain, mask_ratio=0.75)).algorithmic
    assert found.flops == 300 * trained / 3
    with pytest.raises(ConfigError, match="scored on test, which has no image"):
        cost_of(Cell(address="c", stages=stages), stages[1], replace(SIZE, num_eval=0))


def test_a_choice_needs_a_dev_split() -> None:
    recipe = FeatureProbeRecipe(**SHORT)
    with pytest.raises(ConfigError, match="c#probe: it chooses on dev, which has no image"):
        cost(recipe, kept=True, size=replace(SIZE, num_dev=0))
    alone = replace(recipe, base_lrs=(0.1,), weight_decays=(0.0,))
    assert cost(alone, kept=True, size=replace(SIZE, num_dev=0)).steps == 40


def test_labelled_images_that_do_not_divide_into_mixed_groups_are_refused() -> None:
    mixed = FinetuneRecipe(**SHORT, mix=MixConfig(group_size=20))
    assert cost(mixed).steps == 40
    with pytest.raises(ConfigError, match="global batch 90 does not divide into groups"):
        cost(replace(mixed, num_labels=90))


def test_a_window_of_ones_own_is_part_of_the_protocols_name() -> None:
    assert KnnRecipe(data=DIGITS).protocol == "k-NN (k=20), mean of patch tokens"
    narrow = KnnRecipe(data=replace(DIGITS, eval_crop=0.5), eval_split="dev")
    assert narrow.protocol == "k-NN (k=20), mean of patch tokens, window 0.5, dev"
