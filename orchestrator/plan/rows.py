"""From a plan's finished stages to the rows of the results table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from mae_core.config import (
    CorruptionRecipe,
    EvalRecipe,
    Family,
)
from orchestrator.plan.cell_facts import cell_facts
from orchestrator.plan.corruption_rows import by_condition
from orchestrator.plan.plan import Plan, PlannedStage
from orchestrator.store.records import Records
from studies.result_row import ResultRow, Role
from studies.spec.axes import place


def make_rows(
    plan: Plan, records: Records, protocols: Sequence[str] | None = None
) -> list[ResultRow]:
    """One row per finished stage of every cell, trials of the sweep included.

    A corruptions stage has more if the study's axes are its conditions. `protocols` are keys of
    the plan's stages, where they are shown together with those of other plans.
    """
    rows = []
    for planned, key in zip(plan.stages, protocols or plan.protocol_keys, strict=True):
        if planned.record is not None:
            row, recipe = _row(plan, planned, key, records), planned.stage.recipe
            rows.append(row)
            if isinstance(recipe, CorruptionRecipe):
                details = planned.record.metrics.get("details", {})
                rows += by_condition(row, plan.study.axes, recipe.severities, details)
    return rows


def _row(plan: Plan, planned: PlannedStage, key: str, records: Records) -> ResultRow:
    record = planned.record
    assert record is not None
    recipe, metrics = planned.stage.recipe, record.metrics
    evaluation = recipe if isinstance(recipe, EvalRecipe) else None
    return ResultRow(
        study=plan.study.name,
        cell=planned.cell.address,
        stage=planned.stage.name,
        kind=planned.stage.kind,
        protocol=recipe.protocol,
        protocol_key=key,
        role=role_of(planned),
        science_hash=planned.identity.science_hash,
        **asdict(cell_facts(planned.cell, plan.planner)),
        family=planned.coordinates.family,
        objective=objective_of(planned),
        places=planned.places,
        stage_flops=planned.cost.flops,
        num_labels=evaluation.num_labels if evaluation else None,
        label_seed=evaluation.label_seed if evaluation and evaluation.num_labels else None,
        eval_split=recipe.scored_on,
        num_eval_images=metrics.get("num_images"),
        top1=metrics.get("top1"),
        top5=metrics.get("top5"),
        loss=metrics.get("loss"),
        mce=metrics.get("details", {}).get("mce"),
        seconds=record.seconds,
        world_size=record.world_size,
        device=record.provenance.get("device"),
        images_per_s=metrics.get("images_per_s"),
        finished_at=record.finished_at,
        output_dir=str(records.outputs(record.science_hash, record.attempt)),
    )


def objective_of(planned: PlannedStage) -> str | None:
    """What the encoder of a stage was trained for, as a row says it."""
    found = place("objective", planned.cell, planned.stage)
    return None if found is None else str(found)


def role_of(planned: PlannedStage) -> Role:
    """Role of a cell's rows; an untrained network is one whatever its cell says."""
    pretrain = planned.cell.pretrain
    if planned.cell.role == "grid" and pretrain is not None:
        recipe = pretrain.recipe
        has_steps = recipe.training is None or recipe.training.duration.value > 0
        if recipe.FAMILY is Family.PRETRAINING and not has_steps:
            return "untrained"
    return planned.cell.role
