"""What a sweep asks for, taken apart: a search per size, the combinations of a grid, the seeds.

Pure: no store and no Optuna. A sweep over sizes is as many plain sweeps, one after another; each
has the same space and the same number of trials, so that no size is tuned harder than another.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

from studies.spec.cell import Cell, Stage, map_cell
from studies.spec.overrides import with_settings
from studies.spec.sweep import Range, SearchAxis, Sweep


def is_log(axis: SearchAxis) -> bool:
    """Whether an axis is searched on a logarithmic scale."""
    return isinstance(axis, Range) and axis.log


def repeats(sweep: Sweep, trial: Cell) -> tuple[Cell, ...]:
    """The winning trial at other seeds: the same data and dev set, other weights and order."""
    return tuple(
        replace(
            map_cell(trial, functools.partial(_reseeded, seed=seed)),
            address=f"{trial.address}/s{seed}",
            role="repeat",
        )
        for seed in sweep.repeat_seeds
    )


def _reseeded(stage: Stage, seed: int) -> Stage:
    return with_settings(stage, {"seed": seed})


def pareto_front(values: dict[int, tuple[float, ...]]) -> list[int]:
    """Trials that no other beats in one value without losing in another, by number.

    `values` are all maximised. Trials with equal values are on the front together.
    """
    return [n for n in sorted(values) if not any(_beats(v, values[n]) for v in values.values())]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def mean_ranks(values: dict[int, tuple[float, ...]]) -> dict[int, float]:
    """Mean over protocols of each trial's rank, 1 = best; equals share their mean rank."""
    ranks: dict[int, list[float]] = {number: [] for number in values}
    for i in range(len(next(iter(values.values()), ()))):
        column = [v[i] for v in values.values()]
        for number, found in values.items():
            above = sum(c > found[i] for c in column)
            ranks[number].append(above + (column.count(found[i]) + 1) / 2)
    return {number: sum(r) / max(len(r), 1) for number, r in ranks.items()}
