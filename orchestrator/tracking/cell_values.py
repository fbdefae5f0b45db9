"""What a run says of a cell or a stage in names and numbers that people compare in MLflow's UI.

Charts there know params and metrics of one run and nothing of our code. So every run carries the
axes of its cell, as params (to group by) and as metrics (scatter's numeric axes); a cell's run has
the final accuracies under plain names, one run being one point of a curve; a stage's run has every
setting of its recipe, under the key that `--set` knows it by.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from orchestrator.plan.cell_facts import cell_facts
from orchestrator.plan.plan import Plan, PlannedStage
from orchestrator.store.generations import milliseconds
from orchestrator.store.records import DoneRecord
from orchestrator.tracking.run_values import Point, Value
from studies.result_row import ResultRow
from studies.spec.axes import places
from studies.spec.codec import to_plain

MORE_AXES = ("objective", "target", "mask_sampling", "patch_size", "train_fraction")
"""Axes of `studies.spec.axes` that distinguish cells where a study varies them."""
MEASURED = ("top1", "top5", "loss", "mce")
"""What rows of the results table measure."""
NOT_SETTINGS = ("kind", "data.expected_images", "data.expected_classes")
MAX_SETTING = 500
"""Characters of a setting that is text or a list."""


def axes(plan: Plan, planned: PlannedStage) -> dict[str, Value]:
    """Where a run stands: numbers and words, by name."""
    cell, start = planned.cell, planned.cell.pretrain
    swept = tuple(axis.key for axis in plan.study.sweep.space) if plan.study.sweep else ()
    found: dict[str, object] = {**places(swept, cell, planned.stage), **planned.places}
    found |= cell_facts(cell, plan.planner).to_dict()
    if start is not None:
        found |= places(MORE_AXES, cell, start)
        found["image_size"] = start.recipe.data.image_size
        if training := start.recipe.training:
            found |= {"global_batch": training.global_batch, "base_lr": training.base_lr}
    return {safe(name): plain(value) for name, value in found.items() if value is not None}


def settings(planned: PlannedStage) -> dict[str, Value]:
    """A stage's recipe, flat, by the keys of `--set`: `linear_probe.optimizer.base_lr`."""
    recipe, kind = planned.stage.recipe, planned.stage.kind
    found: dict[str, Value] = {"protocol": recipe.protocol, "kind": kind}
    leaves = (leaf for leaf in _leaves(to_plain(recipe)) if leaf[0] not in NOT_SETTINGS)
    return found | {safe(f"{kind}.{key}"): plain(value) for key, value in leaves}


def stage_results(record: DoneRecord, flops: float | None) -> tuple[Point, ...]:
    """What a finished stage measured and cost."""
    costs = numeric({"seconds": record.seconds, "stage_flops": flops})
    found = final_results(record.metrics) | costs
    at = milliseconds(record.finished_at)
    return tuple(Point(key, value, at) for key, value in found.items())


def cell_results(stages: Sequence[PlannedStage], rows: Iterable[ResultRow]) -> tuple[Point, ...]:
    """Final values of a cell by plain names: `linear_probe_top1`, `finetune_top1`, `pretrain_loss`.

    A stage's values go by its name, with `_dev` where they were not scored on test; and by its
    kind too, where it is the cell's one stage of that kind, so that a chart needs one name for
    cells whose stages are called differently. `rank_hours` is what all stages cost, once all are
    done.
    """
    first: dict[str, ResultRow] = {}
    for row in rows:  # a stage's own row comes before those of its conditions
        first.setdefault(row.stage, row)
    names = metric_names(stages)
    found: list[Point] = []
    for stage, row in first.items():
        at = milliseconds(row.finished_at or "")
        own, *others = names[stage]
        values = numeric({key: getattr(row, key) for key in MEASURED})
        found += [Point(f"{n}_{k}", v, at) for n in (own, *others) for k, v in values.items()]
        found += [Point(f"{own}_seconds", row.seconds, at)] if row.seconds is not None else []
    if first.keys() == names.keys():
        last = max((milliseconds(row.finished_at or "") for row in first.values()), default=0)
        paid = sum(row.rank_seconds for row in first.values())
        found.append(Point("rank_hours", paid / 3600, last))
    return tuple(found)


def protocols(stages: Sequence[PlannedStage]) -> dict[str, str]:
    """Tags that say what a cell's accuracies mean: `protocol.linear_probe_100`."""
    names = metric_names(stages)
    return {
        f"protocol.{name}": s.stage.recipe.protocol
        for s in stages
        if s.stage.recipe.IS_EVALUATION
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


def final_results(metrics: Mapping[str, object]) -> dict[str, float]:
    """A stage's results under names that no curve has, and those that people sort by as they are.

    A curve's own key would get its last value once more, at step 0.
    """
    details = metrics.get("details")
    values = (numeric(details) if isinstance(details, dict) else {}) | numeric(metrics)
    values = {safe(k): v for k, v in values.items()}
    own = {k: values[k] for k in ("top1", "top5", "mce") if k in values}
    return {f"final.{k}": v for k, v in values.items()} | own


def numeric(values: Mapping[str, object]) -> dict[str, float]:
    """The entries that are numbers."""
    return {
        k: float(v)
        for k, v in values.items()
        if isinstance(v, int | float) and not isinstance(v, bool)
    }


def plain(value: object) -> Value:
    """A param's value: whole numbers without a point, what has parts as JSON."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text[:MAX_SETTING]


def safe(name: str) -> str:
    """A name that MLflow takes: letters, digits and `_-./ `."""
    return re.sub(r"[^\w.\-/ ]", "_", name)


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dicts that are set, by dotted key; lists are leaves."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{where}.{name}".lstrip("."))
    elif value is not None:
        yield where, value
