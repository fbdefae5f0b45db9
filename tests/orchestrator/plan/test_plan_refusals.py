"""What a stage would refuse, refused before anything starts: by its recipe, parents and data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.make_data import write_tree

from mae_core.config import (
    NO_AUGMENTATION,
    AttentiveProbeRecipe,
    BasisRecipe,
    ContrastiveRecipe,
    CorruptionRecipe,
    CustomEvalRecipe,
    DataConfig,
    EncoderConfig,
    Execution,
    FeaturesRecipe,
    FinetuneRecipe,
    KnnRecipe,
    LinearProbeRecipe,
    OptimizerConfig,
    PretrainRecipe,
    Recipe,
    ReconstructionRecipe,
    ScratchRecipe,
    ShiftRecipe,
    TokenizerRecipe,
)
from mae_core.config.augmentation import MixConfig
from mae_core.config.inference import SEVERITIES
from mae_core.data.importers import import_any
from mae_core.errors import ConfigError
from mae_core.model.cost import DataSize
from orchestrator.plan.estimate import cost_of
from orchestrator.plan.plan import make_plan
from orchestrator.store.data_facts import Datasets
from orchestrator.store.driver import LocalStore
from orchestrator.store.records import Records
from studies.errors import StudyError
from studies.spec.cell import Cell, Stage
from studies.spec.study import Study

DIGITS = DataConfig(
    path="digits", image_size=8, num_channels=1, pixel_mean=(0.3,), pixel_std=(0.4,)
)
LARGE = replace(DIGITS, image_size=16)
COLOUR = replace(DIGITS, num_channels=3, pixel_mean=(0.3,) * 3, pixel_std=(0.4,) * 3)
TINY = EncoderConfig(width=16, depth=2, num_heads=2, patch_size=2)
PRETRAIN = PretrainRecipe(data=DIGITS, encoder=TINY, global_batch=64)
ALONE = Execution()
SIZE = DataSize(1000, 300, 10, num_test=300)


def cell(*recipes: Recipe, execution: Execution = ALONE) -> Cell:
    """Stages in a row, each the child of the one before."""
    stages: list[Stage] = []
    for number, recipe in enumerate(recipes):
        parents = (stages[-1].name,) if stages else ()
        name = f"{recipe.KIND}{number}"
        stages.append(Stage(name=name, recipe=recipe, parents=parents, execution=execution))
    return Cell(address="c", stages=tuple(stages))


@pytest.mark.parametrize("start", [PRETRAIN, ContrastiveRecipe(data=DIGITS, encoder=TINY)])
@pytest.mark.parametrize(
    "kind",
    [
        KnnRecipe,
        LinearProbeRecipe,
        FeaturesRecipe,
        AttentiveProbeRecipe,
        lambda data: CustomEvalRecipe(data=data, entry="mine:score"),
    ],
)
def test_a_frozen_encoder_is_judged_at_its_own_images(start: Recipe, kind: Any) -> None:
    if kind is AttentiveProbeRecipe:
        assert cell(start, kind(data=DIGITS, num_heads=2))
    else:
        assert cell(start, kind(data=DIGITS))
    with pytest.raises(StudyError, match="takes images of 8 px, and these have 16 px"):
        cell(start, kind(data=LARGE))
    with pytest.raises(StudyError, match="takes 1 channels, and these images have 3"):
        cell(start, kind(data=COLOUR))


def test_a_tuned_encoder_may_see_other_sizes_of_whole_patches() -> None:
    assert cell(PRETRAIN, FinetuneRecipe(data=LARGE))
    with pytest.raises(StudyError, match="image size 9 is not divisible by the patch size 2"):
        cell(PRETRAIN, FinetuneRecipe(data=replace(DIGITS, image_size=9)))
    with pytest.raises(StudyError, match="takes 1 channels, and these images have 3"):
        cell(PRETRAIN, FinetuneRecipe(data=COLOUR))


def test_a_patch_of_one_value_has_no_variance() -> None:
    single = replace(TINY, patch_size=1)
    with pytest.raises(ConfigError, match="a patch of one value cannot be normalised"):
        replace(PRETRAIN, encoder=single)
    raw = replace(PRETRAIN, encoder=single, norm_pix_loss=False)
    assert replace(PRETRAIN, data=COLOUR, encoder=single)
    with pytest.raises(StudyError, match="a patch of one value cannot be normalised"):
        cell(raw, ReconstructionRecipe(data=DIGITS))
    with pytest.raises(StudyError, match="takes images of 8 px"):
        cell(PRETRAIN, ReconstructionRecipe(data=LARGE))


def refused(found: Cell, size: DataSize = SIZE) -> str:
    """What the plan says of the last stage of a cell."""
    with pytest.raises(ConfigError) as caught:
        cost_of(found, found.stages[-1], size)
    return str(caught.value)


def test_an_execution_that_a_stage_cannot_be_computed_with() -> None:
    sharded = Execution(zero_stage=3)
    averaged = FinetuneRecipe(data=DIGITS, ema_decay=0.9, global_batch=64)
    assert "c#finetune1: ema_decay needs whole weights" in refused(
        cell(PRETRAIN, averaged, execution=sharded)
    )
    contrast = ContrastiveRecipe(data=DIGITS, encoder=TINY, global_batch=64)
    assert "cannot train contrastively" in refused(cell(contrast, execution=sharded))
    watched = Execution(monitor_every_steps=5)
    for start in (PRETRAIN, contrast):
        found = cell(start, execution=watched)
        assert "looks at dev, which has no image" in refused(found)
        assert cost_of(found, found.stages[0], replace(SIZE, num_dev=9)).steps


def test_mixing_needs_pairs_on_every_rank() -> None:
    mixed = FinetuneRecipe(
        data=DIGITS, mix=MixConfig(), augmentation=NO_AUGMENTATION, global_batch=96
    )
    assert "divisible by twice the number of ranks" in refused(
        cell(PRETRAIN, mixed, execution=Execution(world_size=32))
    )
    found = cell(PRETRAIN, mixed, execution=Execution(world_size=16))
    assert cost_of(found, found.stages[-1], SIZE)


def test_a_basis_needs_more_patches_than_components() -> None:
    basis = BasisRecipe(data=DIGITS, patch_size=4, num_components=16, num_images=4)
    assert "16 principal components of only 16 patches" in refused(cell(basis))


def test_balanced_labels_need_images_of_every_class(tmp_path: Path) -> None:
    size = Datasets(LocalStore(tmp_path)).size(DIGITS)
    few = KnnRecipe(data=DIGITS, num_labels=1400)
    enough = cell(PRETRAIN, replace(few, num_labels=1000))
    assert cost_of(enough, enough.stages[1], size).is_known
    uneven = replace(size, smallest_class=99)
    assert size.smallest_class == 174
    assert "1400 class-balanced labels need 140 images of every class, and one has 99" in refused(
        cell(PRETRAIN, few), uneven
    )


def test_a_relative_error_needs_a_whole_baseline() -> None:
    tuned = Stage(name="tuned", recipe=FinetuneRecipe(data=DIGITS), parents=("pretrain",))
    base = CorruptionRecipe(data=DIGITS, severities=SEVERITIES[:2])
    stages = (
        Stage(name="pretrain", recipe=PRETRAIN),
        tuned,
        Stage(name="few", recipe=base, parents=("tuned",)),
        Stage(name="all", recipe=CorruptionRecipe(data=DIGITS), parents=("tuned",)),
    )
    relative = CorruptionRecipe(data=DIGITS, baseline="parent")
    for parents in (("tuned",), ("tuned", "few")):
        last = Stage(name="last", recipe=relative, parents=parents)
        with pytest.raises(StudyError, match="baseline 'parent' needs a stage of kind corruptions"):
            Cell(address="c", stages=(*stages, last))
    last = Stage(name="last", recipe=relative, parents=("tuned", "all"))
    assert Cell(address="c", stages=(*stages, last))


def test_classes_that_the_classifier_does_not_know(tmp_path: Path) -> None:
    path = str(tmp_path / "animals")
    import_any(str(write_tree(tmp_path / "tree")), path)
    records = Records(LocalStore(tmp_path / "store"))
    tuned, animals = FinetuneRecipe(data=DIGITS), replace(DIGITS, path=path)
    pairs = (("cat", "0"), ("dog", "1"), ("owl", "2"))

    def plan(last: Recipe) -> None:
        study = Study(name="s", question="?", cells=(cell(PRETRAIN, tuned, last),))
        make_plan(study, records, Datasets(records.store))

    plan(CorruptionRecipe(data=DIGITS))
    plan(ShiftRecipe(data=animals, class_pairs=pairs))
    with pytest.raises(ConfigError, match=r"c#corruptions2: the classifier knows 10 classes"):
        plan(CorruptionRecipe(data=animals))
    with pytest.raises(ConfigError, match=r"c#shift2: 3 of the set's 3 classes are none"):
        plan(ShiftRecipe(data=animals))


@pytest.mark.parametrize(
    "make",
    [
        lambda **changes: replace(PRETRAIN, **changes),
        lambda **changes: ContrastiveRecipe(data=DIGITS, encoder=TINY, **changes),
        lambda **changes: TokenizerRecipe(data=DIGITS, patch_size=2, **changes),
        lambda **changes: ScratchRecipe(data=DIGITS, encoder=TINY, **changes),
        lambda **changes: AttentiveProbeRecipe(data=DIGITS, num_heads=2, **changes),
    ],
)
def test_lars_on_divided_weights(make: Any) -> None:
    """Under ZeRO it would see flat pieces of layers, and be plain SGD."""
    recipe = make(optimizer=OptimizerConfig(name="lars"))
    for zero in (1, 2, 3):
        with pytest.raises(ConfigError, match=f"LARS needs whole layers, and ZeRO stage {zero}"):
            recipe.check_execution(Execution(zero_stage=zero))  # type: ignore[arg-type]
    recipe.check_execution(Execution(zero_stage=0))
