"""A plan and the outcome of a run as people read them, and as JSON."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mae_core.config import Family, PretrainRecipe
from mae_core.model.cost import Cost
from orchestrator.cli.live import duration_text
from orchestrator.plan.plan import Plan, PlannedStage, Status, SweepPlan, plan_findings
from orchestrator.sweep.optuna_driver import JOURNAL
from studies.spec.checks import Finding

if TYPE_CHECKING:
    from orchestrator.drive.outcome import RunOutcome

UNKNOWN = "?"
"""Stands for what depends on data that has not been read yet."""


def print_plan(plan: Plan, console: Console, *, show_all: bool) -> None:
    """Print sizes, then what there is to do, then stages."""
    study = plan.study
    console.print(f"[bold]{escape(study.name)}[/]: {escape(study.question)}", highlight=False)
    for path in plan.unknown_data:
        missing = "://" not in path and not os.path.exists(path)
        why = "does not exist" if missing else "has not been read yet"
        console.print(
            f"[yellow]data {escape(repr(path))} {why}[/]: counts below are what the study "
            "expects; `run` reads it, `mae-study data inspect` shows it",
            highlight=False,
        )
    console.print(_sizes_table(plan))
    console.print(_status_table(plan))
    _print_sweeps(plan, console)
    if show_all or plan.drift:
        console.print(_stages_table(plan.drift if plan.drift and not show_all else plan.stages))
    print_findings(plan_findings(plan), console)
    _print_bill(plan, console)


def print_findings(findings: list[Finding], console: Console) -> None:
    """One paragraph each, warnings first."""
    for finding in findings:
        colour = "yellow" if finding.level == "warning" else "dim"
        console.print(
            f"[{colour}]{finding.level} {finding.code}[/]: {escape(finding.message)}",
            highlight=False,
        )


def _sizes_table(plan: Plan) -> Table:
    """One row per size, duration and cost: parameters, FLOPs, steps, batch, time."""
    table = Table(title="pretraining", title_justify="left", box=None)
    headings = (
        *("size", "duration", "cells", "encoder M", "with decoder M", "GFLOP/image"),
        *("executed", "steps", "micro×accum×world", "total FLOPs", "each"),
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "size" else "right")
    groups: dict[tuple[str, str, Cost], list[PlannedStage]] = {}
    for planned in plan.stages:
        recipe = planned.stage.recipe
        if recipe.FAMILY is Family.PRETRAINING and planned.cell.role != "sweep":
            assert recipe.new_encoder is not None and recipe.training is not None
            other = "" if isinstance(recipe, PretrainRecipe) else f" {recipe.objective_name}"
            name = recipe.new_encoder.name + other
            duration = str(recipe.training.duration)
            groups.setdefault((name, duration, planned.cost), []).append(planned)
    for (size, duration, _), members in groups.items():
        cost, split = members[0].cost, members[0].cost.split
        assert cost.flops_per_image is not None and split is not None
        table.add_row(
            escape(size),
            duration,
            str(len(members)),
            _millions(cost.encoder_params),
            _millions(cost.total_params),
            _giga(cost.flops_per_image.algorithmic),
            _giga(cost.flops_per_image.executed),
            UNKNOWN if cost.steps is None else f"{cost.steps:,}",
            f"{split.micro}×{split.accumulation}×{split.world} = {split.global_batch}",
            f"{cost.algorithmic_flops:.2e}" if cost.is_known else UNKNOWN,
            duration_text(plan.seconds(members[0])) if cost.is_known else UNKNOWN,
        )
    return table


def _status_table(plan: Plan) -> Table:
    """Stages by name and status, each once however many cells share it."""
    table = Table(title="stages", title_justify="left", box=None)
    table.add_column("stage")
    for status in Status:
        table.add_column(status.value, justify="right")
    table.add_column("estimated rank time", justify="right")
    counts: dict[str, Counter[Status]] = {}
    seconds: Counter[str] = Counter()
    unknown: set[str] = set()
    for planned in plan.once_each(s for s in plan.stages if s.cell.role != "sweep"):
        counts.setdefault(planned.stage.name, Counter())[planned.status] += 1
        if planned.status.is_work:
            seconds[planned.stage.name] += round(plan.seconds(planned) * planned.cost.world_size)
            if not planned.cost.is_known:
                unknown.add(planned.stage.name)
    for name, by_status in counts.items():
        cells = [str(by_status[s] or "·") for s in Status]
        time = duration_text(seconds[name]) if seconds[name] else "·"
        table.add_row(escape(name), *cells, UNKNOWN if name in unknown else time)
    return table


def _print_sweeps(plan: Plan, console: Console) -> None:
    for sweep in plan.sweeps:
        for line in _sweep_lines(sweep):
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def _sweep_lines(sweep: SweepPlan) -> Iterator[str]:
    wanted = sweep.trials.sweep
    total = wanted.num_trials
    objective = ", ".join(f"{name}.{wanted.metric}" for name in wanted.protocols)
    axes = ", ".join(axis.key for axis in wanted.space)
    at = f" at {sweep.label}" if sweep.label else ""
    yield (
        f"sweep{at} over {axes}: {min(len(sweep.scores), total)} of {total} trials done, "
        f"objective {objective} on dev"
    )
    if sweep.winner:
        settings = ", ".join(f"{k}={v}" for k, v in sweep.winner.settings.items())
        yield f"  winner: trial {sweep.winner.trial}, {sweep.winner.score:.1f} % ({settings})"
        for point in sweep.winner.front:
            values = ", ".join(f"{k} {v:.1f} %" for k, v in point.values.items())
            yield f"  Pareto front: trial {point.trial}, {values}"


def _stages_table(stages: Iterable[PlannedStage]) -> Table:
    table = Table(box=None)
    for heading in ("cell", "stage", "identity", "status", "why"):
        table.add_column(heading, overflow="fold")
    for planned in stages:
        table.add_row(
            escape(planned.cell.address),
            escape(planned.stage.name),
            planned.identity.science_hash,
            planned.status.value,
            escape(planned.reason),
        )
    return table


def _print_bill(plan: Plan, console: Console) -> None:
    work = len([s for s in plan.work if s.cell.role != "sweep"])
    trials = plan.num_missing_trials
    if not work and not trials:
        console.print("nothing to do: every stage is done")
        return
    basis = (
        "by the stages that finished in this store"
        if plan.rates.is_measured
        else "assuming 125 TFLOP/s per GPU in bf16, 40 GFLOP/s per core in fp32"
    )
    trial_text = f" and {trials} trials" if trials else ""
    time = f"about {duration_text(plan.rank_seconds)} of rank time ({basis})"
    if not _is_known(plan):
        time = "rank time unknown until the data is read"
    console.print(f"to do: {work} stages{trial_text}, {time}", highlight=False)


def _is_known(plan: Plan) -> bool:
    return all(s.cost.is_known for s in plan.work)


def plan_json(plan: Plan) -> dict[str, object]:
    """Everything that `plan` knows, as plain values."""
    sweeps = [_sweep_json(sweep) for sweep in plan.sweeps]
    return {
        "study": plan.study.name,
        "question": plan.study.question,
        "unknown_data": list(plan.unknown_data),
        "findings": [finding.to_json() for finding in plan_findings(plan)],
        "fingerprints": plan.fingerprints,
        "rank_seconds": plan.rank_seconds if _is_known(plan) else None,
        "sweep": sweeps[0] if len(sweeps) == 1 else None,
        "sweeps": sweeps,
        "stages": [_stage_json(plan, s) for s in plan.stages],
    }


def _sweep_json(sweep: SweepPlan) -> dict[str, object]:
    return {
        "size": sweep.label or None,
        "sweep_hash": sweep.trials.sweep_hash,
        "trials_done": len(sweep.scores),
        "trials_wanted": sweep.trials.sweep.num_trials,
        "winner": sweep.winner and sweep.winner.to_json(),
        "journal": str(sweep.trials.path(JOURNAL)),
    }


def _stage_json(plan: Plan, planned: PlannedStage) -> dict[str, object]:
    cost = planned.cost
    flops = cost.flops_per_image
    return {
        "cell": planned.cell.address,
        "stage": planned.stage.name,
        "kind": planned.stage.kind,
        "role": planned.cell.role,
        "science_hash": planned.identity.science_hash,
        "status": planned.status.value,
        "reason": planned.reason,
        "changes": [{"key": k, "accepted": a, "new": b} for k, a, b in planned.changes],
        "encoder_params": cost.encoder_params,
        "total_params": cost.total_params,
        "flops_per_image": flops and {"algorithmic": flops.algorithmic, "executed": flops.executed},
        "steps": cost.steps,
        "micro_batch": cost.split and cost.split.micro,
        "accumulation": cost.split and cost.split.accumulation,
        "world_size": cost.world_size,
        "flops": cost.flops if cost.is_known else None,
        "seconds": plan.seconds(planned) if cost.is_known else None,
    }


def print_outcome(outcome: RunOutcome, console: Console, *, quiet: bool) -> None:
    """Print the curves in words, and where everything is."""
    if not outcome.num_started:
        console.print(
            f"nothing to do: every stage of {outcome.plan.study.name} is done", markup=False
        )
    elif not quiet:
        console.print(outcome.summary, highlight=False, markup=False)
    if outcome.report:
        console.print(f"report: {outcome.report}", highlight=False, soft_wrap=True, markup=False)
    if outcome.tracking_problem:
        console.print(
            f"[yellow]MLflow is incomplete[/] ({escape(outcome.tracking_problem)}); the store "
            "has everything",
            highlight=False,
            soft_wrap=True,  # it may hold a command to paste
        )


def _millions(value: int | None) -> str:
    if value is None:
        return ""
    return f"{value / 1e6:.1f}" if value >= 1e6 else f"{value / 1e6:.3f}"


def _giga(value: float) -> str:
    return f"{value / 1e9:.1f}" if value >= 1e9 else f"{value / 1e9:.4f}"
