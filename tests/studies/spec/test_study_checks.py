"""Findings about a study: each rule on a study that breaks it and one that does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mae_core.config import (
    DataConfig,
    DecoderConfig,
    Duration,
    KnnRecipe,
    LrScheduleConfig,
    OptimizerConfig,
    PretrainRecipe,
)
from mae_core.model import sizes
from studies.catalog import CATALOG
from studies.load import load_study
from studies.spec.cell import Cell, Stage
from studies.spec.checks import Finding, check_study
from studies.spec.study import Study

DATA = DataConfig(path="x", image_size=64)
BASE = PretrainRecipe(
    data=DATA,
    encoder=sizes.encoder("B"),
    decoder=DecoderConfig(width=128, depth=1, num_heads=4),
    duration=Duration.epochs(100),
    lr_schedule=LrScheduleConfig(warmup=Duration.epochs(10)),
)


def study(*recipes: PretrainRecipe, axes: tuple[str, ...] = ("duration",), **knn: Any) -> Study:
    cells = tuple(
        Cell(
            address=f"c{number}",
            stages=(
                Stage(name="pretrain", recipe=recipe),
                Stage(
                    name="knn",
                    recipe=KnnRecipe(data=recipe.data, k=knn.get(_name(recipe), 20)),
                    parents=("pretrain",),
                ),
            ),
        )
        for number, recipe in enumerate(recipes)
    )
    return Study(name="s", question="?", cells=cells, axes=axes)


def _name(recipe: PretrainRecipe) -> str:
    return recipe.encoder.name


def test_one_image_size_is_seen_through_one_window() -> None:
    assert "eval-crop" not in found(study(BASE))
    other = replace(BASE, data=replace(DATA, eval_crop=0.875))
    assert "1 in c0 knn; 0.875 in c1 knn" in found(study(BASE, other))["eval-crop"].message
    larger = replace(BASE, data=replace(DATA, image_size=224))
    assert "eval-crop" not in found(study(BASE, larger))


def found(of: Study, **duplicates: Any) -> dict[str, Finding]:
    return {finding.code: finding for finding in check_study(of, **duplicates)}


def run(epochs: float, warmup: float | None = None, **changes: Any) -> PretrainRecipe:
    warm = Duration.epochs(epochs / 10 if warmup is None else warmup)
    schedule = LrScheduleConfig(warmup=warm)
    return replace(BASE, duration=Duration.epochs(epochs), lr_schedule=schedule, **changes)


def test_a_careful_study_has_nothing_to_find() -> None:
    assert check_study(study(run(100), run(200, seed=1), run(400, seed=2))) == []


def test_points_of_one_curve_are_alike() -> None:
    odd = run(400, data=replace(DATA, image_size=96))
    finding = found(study(run(100), run(200, seed=1), odd))["mixed-curve"]
    assert finding.cells == ("c2",)
    assert finding.level == "warning"
    assert "data.image_size (c2: 96, the others 64)" in finding.message


@pytest.mark.parametrize(
    "changes", [{"precision": "bf16"}, {"global_batch": 1024}, {"mask_ratio": 0.5}]
)
def test_any_setting_beside_the_axis_is_named(changes: dict[str, Any]) -> None:
    recipes = (run(100), run(200, seed=1), run(400, **changes))
    assert next(iter(changes)) in found(study(*recipes))["mixed-curve"].message


def test_what_the_study_varies_is_no_finding() -> None:
    recipes = (run(100, mask_ratio=0.5), run(100, seed=1), run(100, mask_ratio=0.9))
    seen = found(study(*recipes, axes=("mask_ratio",)))
    assert "mixed-curve" not in seen
    assert "rank nothing" in seen["losses-not-comparable"].message
    dotted = (run(100), run(100, seed=1, global_batch=512))
    assert "mixed-curve" not in found(study(*dotted, axes=("pretrain.global_batch",)))


def test_sizes_that_change_the_patch_with_them() -> None:
    recipes = (run(100), run(100, encoder=sizes.encoder("L", patch_size=8)))
    seen = found(study(*recipes, axes=("size",)))
    assert "encoder.patch_size too (B 16, L 8)" in seen["size-and-more"].message
    assert "2 sizes" in seen["few-sizes"].message
    assert "size-and-more" not in found(
        study(run(100), run(100, encoder=sizes.encoder("L")), axes=("size",))
    )


@pytest.mark.parametrize(("shortest", "level"), [(100, "warning"), (250, "note")])
def test_a_fixed_warm_up(shortest: float, level: str) -> None:
    finding = found(study(run(shortest, 40), run(800, 40)))["warmup-share"]
    assert finding.level == level
    assert f"is {40 / shortest:.0%} of the shortest run" in finding.message


def test_a_rate_that_does_not_follow_the_batch() -> None:
    half = replace(run(100, global_batch=2048), optimizer=OptimizerConfig(base_lr=3e-4))
    finding = found(study(run(100), half))["lr-not-scaled"]
    assert "batches of 2048, 4096 share the learning rate 0.0024" in finding.message


def test_evaluations_tuned_by_size() -> None:
    recipes = (run(100), run(100, encoder=sizes.encoder("L")))
    assert "evaluation-by-size" not in found(study(*recipes, axes=("size",)))
    assert "stage knn" in found(study(*recipes, axes=("size",), L=5))["evaluation-by-size"].message


def test_a_decoder_that_dwarfs_the_encoder() -> None:
    big = DecoderConfig()
    recipes = (
        run(100, encoder=sizes.encoder("Ti"), decoder=big),
        run(100, encoder=sizes.encoder("L"), decoder=big, seed=1),
    )
    assert found(study(*recipes, axes=("size",)))["decoder-dwarfs-encoder"].message.count("Ti 9")


def test_one_seed_and_duplicates() -> None:
    seen = found(study(run(100), run(200)), duplicates={"data": {"test": 3, "dev": 0}})
    assert "other seeds" in seen["one-seed"].message
    assert "3 images of test are in train too" in seen["train-test-duplicates"].message


@pytest.mark.parametrize("name", CATALOG)
def test_the_catalogue_breaks_no_rule_unknowingly(name: str) -> None:
    """Mixed curves would be mistakes of ours; the paper's own liberties are notes or said."""
    codes = {f.code for f in check_study(load_study(name)) if f.level == "warning"}
    assert codes <= {"warmup-share", "size-and-more"}, codes
