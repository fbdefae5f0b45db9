"""The paper's studies have the published recipes, size by size, or say on one page where not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.recipe_values import (
    PAGE,
    STUDIES,
    compared,
    deviation_table,
    of_study,
    summary,
    undeclared,
    unused,
)

from studies.load import load_study
from studies.reference.official_recipes import DEVIATIONS, OFFICIAL
from studies.spec.overrides import with_settings
from studies.spec.study import Study


def test_every_value_is_the_published_one_or_a_declared_deviation() -> None:
    assert undeclared() == []
    assert unused() == [], "declared, but equal to what is published: take it off the table"
    assert {one.study for one in compared()} == set(STUDIES)
    assert {one.recipe for one in compared()} == set(OFFICIAL)
    assert "official" in summary()


def changed(name: str, setting: str, value: object) -> Study:
    """A study with one setting otherwise, wherever a stage has it."""
    study = load_study(name)
    stage_name, _, path = setting.partition(".")
    cells = tuple(
        replace(
            cell,
            stages=tuple(
                with_settings(stage, {path: value}) if stage.name == stage_name else stage
                for stage in cell.stages
            ),
        )
        for cell in study.cells
    )
    return replace(study, cells=cells)


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("paper/calibration", "finetune.augmentation.crop_scale", [0.2, 1.0]),
        ("paper/calibration", "linear_probe.augmentation.crop_misfit", "retry"),
        ("paper/calibration", "finetune.mix.group_size", 1024),
        ("paper/comparison", "finetune_448.data.eval_crop", 0.875),
        ("paper/comparison", "scratch.ema_decay", None),
        ("paper/comparison", "pretrain.lr_schedule.warmup", "20ep"),
        ("paper/mask_sampling", "pretrain.mask.min_block", 4),
        ("paper/robustness", "IN-A.data.eval_crop", 1.0),
    ],
)
def test_a_value_that_differs_is_found(name: str, setting: str, value: object) -> None:
    wrong = [o for o in of_study(changed(name, setting, value)) if not o.is_official]
    assert [o for o in wrong if not o.deviations]
    assert not [o for o in of_study(load_study(name)) if not o.is_official and not o.deviations]


def test_the_page_lists_every_deviation() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    assert rows == deviation_table(), "write it by `make recipe-values`"
    assert all(d.reason.endswith(".") and d.recipe in OFFICIAL for d in DEVIATIONS)
