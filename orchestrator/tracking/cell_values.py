"""What a run says of a cell or a stage in names and numbers that people compare in MLflow's UI.

Charts there know params and metrics of one run and nothing of our code. So every run carries the
axes of its cell, as params (to group by) and as metrics (scatter's numeric axes); a cell's run has
the final accuracies under plain names, one run being one point of a curve; a stage's run has every
setting of its recipe, under the key that `--set` knows it by.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.plan.cell_facts import cell_facts
from orchestrator.plan.plan import Plan, PlannedStage
from studies.result_row import ResultRow
from studies.spec.axes import place, places
from studies.spec.codec import to_plain

AXES = (
    "size",
    "encoder_params",
    "total_params",
    "duration",
    "epochs",
    "steps",
    "images_seen",
    "mask_ratio",
    "decoder_depth",
    "decoder_width",
    "seed",
    "pretrain_flops",
)
"""Copied onto every run: MLflow's filters and charts see only a run's own values."""
MORE_AXES = ("objective", "target", "mask_sampling", "patch_size", "train_fraction")
"""Axes of `studies.spec.axes` that tell cells apart where a study varies them."""
MEASURED = ("top1", "top5", "loss", "mce")
"""What rows of the results table measure."""
NOT_SETTINGS = ("data.expected_images", "data.expected_classes")
MAX_SETTING = 500
"""Characters of a setting that is text or a list."""


def axes(plan: Plan, planned: PlannedStage) -> dict[str, Any]:
    """Where a run stands: numbers and words, by name."""
    at = cell_facts(planned.cell, plan.planner).to_dict()
    found = {name: at[name] for name in AXES if name in at}
    start = planned.cell.pretrain
    if start is not None:
        recipe: Any = start.recipe
        more = {name: place(name, planned.cell, start) for name in MORE_AXES}
        more |= {
            "image_size": recipe.data.image_size,
            "global_batch": recipe.training.global_batch if recipe.training else None,
            "base_lr": recipe.training.base_lr if recipe.training else None,
        }
        found |= {name: value for name, value in more.items() if value is not None}
    swept = plan.study.sweep.space if plan.study.sweep else ()
    own = places(tuple(axis.key for axis in swept), planned.cell, planned.stage)
    own |= planned.places
    return {safe(name): plain(v) for name, v in (own | found).items() if v is not None}


def x_axes(plan: Plan) -> list[str]:
    """Params that accuracy is drawn against: what the study says it varies, else compute."""
    return [safe(name) for name in plan.study.axes] or ["pretrain_flops"]


def settings(planned: PlannedStage) -> dict[str, Any]:
    """A stage's recipe, flat, by the keys of `--set`: `linear_probe.optimizer.base_lr`."""
    recipe = planned.stage.recipe
    found = {"protocol": recipe.protocol, "kind": planned.stage.kind}
    flat = _flat({k: v for k, v in to_plain(recipe).items() if k != "kind"})
    for key, value in flat:
        if key not in NOT_SETTINGS:
            found[safe(f"{planned.stage.kind}.{key}")] = plain(value)
    return found


def cell_metrics(
    stages: Sequence[PlannedStage], rows: Mapping[tuple[str, str], ResultRow]
) -> dict[str, float]:
    """Final values of a cell by plain names: `linear_probe_top1`, `finetune_top1`, `pretrain_loss`.

    A stage's values go by its name, with `_dev` where they were not scored on test; and by its
    kind too, where it is the cell's one stage of that kind, so that a chart needs one name for
    cells whose stages are called differently. `rank_hours` is what all stages cost.
    """
    finished = [s for s in stages if (s.cell.address, s.stage.name) in rows]
    names = metric_names(finished)
    found: dict[str, float] = {}
    for planned in finished:
        row = rows[planned.cell.address, planned.stage.name]
        values = numeric({key: getattr(row, key) for key in MEASURED})
        for name in names[planned.stage.name]:
            found |= {f"{name}_{key}": value for key, value in values.items()}
        found |= numeric({f"{names[planned.stage.name][0]}_seconds": row.seconds})
    if finished:
        paid = sum(rows[s.cell.address, s.stage.name].rank_seconds for s in finished)
        found["rank_hours"] = paid / 3600
    return found


def protocols(stages: Iterable[PlannedStage]) -> dict[str, str]:
    """Tags that say what a cell's accuracies mean: `protocol.linear_probe_100`."""
    evaluations = [s for s in stages if s.stage.recipe.IS_EVALUATION]
    names = metric_names(evaluations)
    return {
        f"protocol.{name}": s.stage.recipe.protocol
        for s in evaluations
        for name in names[s.stage.name]
    }


def metric_names(stages: Sequence[PlannedStage]) -> dict[str, list[str]]:
    """Names that the values of each stage go by: its own first, then its kind's if that is free."""
    own: dict[str, str] = {}
    for planned in stages:
        name = safe(planned.stage.name) + _split(planned)
        while name in own.values():  # `a+b` and `a=b` look alike to MLflow
            name += "_"
        own[planned.stage.name] = name
    kinds = [planned.stage.kind + _split(planned) for planned in stages]
    found = {stage: [name] for stage, name in own.items()}
    for planned, kind in zip(stages, kinds, strict=True):
        if kinds.count(kind) == 1 and kind not in own.values():
            found[planned.stage.name].append(kind)
    return found


def _split(planned: PlannedStage) -> str:
    """Values on dev are no values on test, whatever else is alike."""
    return "_dev" if planned.stage.recipe.scored_on == "dev" else ""


def final_results(metrics: dict[str, Any]) -> dict[str, float]:
    """A stage's results under names that no curve has, and those that people sort by as they are.

    A curve's own key would get its last value once more, at step 0.
    """
    values = numeric(metrics)
    details = metrics.get("details")
    if isinstance(details, dict):
        values |= {k: v for k, v in numeric(details).items() if k not in values}
    values = {safe(k): v for k, v in values.items()}
    own = {k: values[k] for k in ("top1", "top5", "mce") if k in values}
    return {f"final.{k}": v for k, v in values.items()} | own


def numeric(values: Mapping[str, Any]) -> dict[str, float]:
    """The entries that are numbers."""
    return {
        k: float(v)
        for k, v in values.items()
        if isinstance(v, int | float) and not isinstance(v, bool)
    }


def plain(value: Any) -> Any:
    """A param's value: whole numbers without a point, what has parts as JSON."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, list | dict):
        value = json.dumps(value, ensure_ascii=False)
    return value[:MAX_SETTING] if isinstance(value, str) else value


def safe(name: str) -> str:
    """A name that MLflow takes: letters, digits and `_-./ `."""
    return re.sub(r"[^\w.\-/ ]", "_", name)


def _flat(value: Any, where: str = "") -> list[tuple[str, Any]]:
    """Leaves of nested dicts that are set, by dotted key; lists are leaves."""
    if not isinstance(value, dict):
        return [] if value is None else [(where, value)]
    return [
        leaf
        for name, inner in value.items()
        for leaf in _flat(inner, f"{where}.{name}".lstrip("."))
    ]
