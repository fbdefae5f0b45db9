"""Trainings of seconds that tests interrupt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mae_core.config import Duration, Execution, PretrainRecipe
from studies.catalog import quickstart
from studies.spec.cell import Cell, Stage
from studies.spec.study import Study

EVERY = 10
"""Steps between checkpoints."""


def pretrain(steps: int, execution: Execution, **changes: Any) -> Stage:
    stage = quickstart.pretrain("N1", 10, 0)
    assert isinstance(stage.recipe, PretrainRecipe)
    warmup = replace(stage.recipe.lr_schedule, warmup=Duration.steps(5))
    recipe = replace(
        stage.recipe,
        duration=Duration.steps(steps),
        global_batch=32,
        **{"lr_schedule": warmup} | changes,
    )
    return replace(stage, recipe=recipe, execution=execution)


def study(*stages: Stage) -> Study:
    cell = Cell(address="one", stages=stages)
    return Study(name="faults", question="does it go on?", cells=(cell,))


TWO = Execution(
    world_size=2, zero_stage=2, loader_threads=0, checkpoint_every_steps=EVERY, snapshot="blocking"
)
