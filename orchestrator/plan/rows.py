"""From a plan's finished stages to the rows of the results table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mae_core.config import (
    AdoptedRecipe,
    CorruptionRecipe,
    EvalRecipe,
    Family,
    PretrainRecipe,
)
from orchestrator.plan.corruption_rows import by_condition
from orchestrator.plan.plan import Plan, PlannedStage, Planner
from orchestrator.store.records import Records
from studies.result_row import ResultRow, Role
from studies.spec.axes import place
from studies.spec.cell import Cell


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
        **axes_of(planned.cell, plan.planner),
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


def axes_of(cell: Cell, planner: Planner) -> dict[str, Any]:
    """Where a cell stands: the axes of its pretraining; only the seed for a baseline."""
    pretrain = cell.pretrain
    if pretrain is None:
        return {"seed": cell.stages[0].recipe.seed}
    recipe: Any = pretrain.recipe
    cost = planner.cost(cell, pretrain)
    size = recipe.encoder.name or f"{recipe.encoder.width}x{recipe.encoder.depth}"
    if isinstance(recipe, AdoptedRecipe):  # how long it was trained, its makers know
        return {"size": size, "encoder_params": cost.encoder_params, "seed": recipe.seed}
    own = {}
    if isinstance(recipe, PretrainRecipe):
        own = {
            "mask_ratio": recipe.mask_ratio,
            "decoder_depth": recipe.decoder.depth,
            "decoder_width": recipe.decoder.width,
        }
    return own | {
        "size": size,
        "encoder_params": cost.encoder_params,
        "total_params": cost.total_params,
        "duration": str(recipe.duration),
        "epochs": _epochs(recipe, cost.images, planner.num_train(pretrain)),
        "steps": cost.steps,
        "images_seen": cost.images,
        "seed": recipe.seed,
        "pretrain_flops": cost.algorithmic_flops,
    }


def _epochs(recipe: Any, images: int, num_train: int) -> float | None:
    """Epochs as the study asks for them; else passes over the training set."""
    if recipe.duration.unit == "epochs":
        return float(recipe.duration.value)
    return images / num_train if num_train else None
