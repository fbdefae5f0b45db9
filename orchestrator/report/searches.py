"""What the report says of a study's sweep, gathered from the plan and the store."""

from __future__ import annotations

from orchestrator.plan.plan import Plan, SweepPlan
from orchestrator.store.records import Records
from orchestrator.sweep.optuna_driver import JOURNAL, TRANSFERRED, importance
from studies.analysis.sweeps.optima import Search, Trial
from studies.spec.search import is_log


def searches(plan: Plan, records: Records) -> tuple[Search, ...]:
    """The searches of a study's sweep, one per size, as far as they have come."""
    return tuple(_search(plan, sweep, records) for sweep in plan.sweeps)


def _search(plan: Plan, sweep: SweepPlan, records: Records) -> Search:
    trials, wanted = sweep.trials, sweep.trials.sweep
    winner = sweep.winner
    trunk = wanted.base.pretrain
    return Search(
        label=sweep.label,
        params=None if trunk is None else plan.planner.cost(wanted.base, trunk).encoder_params,
        protocols=wanted.protocols,
        objective=wanted.objective,
        trials=tuple(
            Trial(
                number=number,
                settings=trials.settings(number) or {},
                values=values,
                is_transferred=trials.source(number) == TRANSFERRED,
            )
            for number, values in sorted(sweep.values.items())
        ),
        wanted=wanted.num_trials,
        winner=winner.trial if winner else None,
        front=tuple(point.trial for point in winner.front) if winner else (),
        rule=wanted.rule,
        num_images=_num_images(sweep, records),
        repeats=_repeats(sweep, records),
        importance=importance(trials, sweep.values),
        log_axes=tuple(axis.key for axis in wanted.space if is_log(axis)),
        journal=str(trials.path(JOURNAL)),
    )


def _num_images(sweep: SweepPlan, records: Records) -> int | None:
    """Images of the dev set, by the winner's own record."""
    if sweep.winner is None:
        return None
    cell = sweep.trials.cell(sweep.winner.trial, sweep.winner.settings)
    done = records.done(sweep.trials.objective_hash(cell))
    count = done.metrics.get("num_images") if done else None
    return int(count) if count else None


def _repeats(sweep: SweepPlan, records: Records) -> dict[int, float]:
    """The winner's scores at other seeds, of those that have finished."""
    if sweep.winner is None:
        return {}
    wanted = sweep.trials.sweep
    cells = sweep.trials.repeats(sweep.winner)
    found = {}
    for seed, cell in zip(wanted.repeat_seeds, cells, strict=True):
        score = sweep.trials.score(records.done(sweep.trials.objective_hash(cell)))
        if score is not None:
            found[seed] = score
    return found
