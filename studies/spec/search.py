"""What a sweep asks for, taken apart: a search per size, the combinations of a grid, the seeds.

Pure: no store and no Optuna. A sweep over sizes is as many plain sweeps, one after another; each
has the same space and the same number of trials, so that no size is tuned harder than another.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from mae_core.config import EncoderConfig
from mae_core.errors import ConfigError
from studies.errors import StudyError
from studies.spec.study import Axis, Cell, Choices, Range, Stage, Sweep, check_objective, map_cell

MAX_COMBINATIONS = 10_000
"""A grid beyond this is a mistake: nobody runs it."""


def check_sweep(sweep: Sweep) -> None:
    """Refuse grids, sizes and seeds that do not go together."""
    if sweep.sampler == "grid":
        _check_grid(sweep)
    names = [size_name(encoder) for encoder in sweep.sizes]
    if len(set(names)) < len(names):
        raise StudyError(f"a sweep has each size once, not {', '.join(names)}: name the encoders")
    own = {stage.recipe.seed for stage in sweep.base.stages}
    if own & set(sweep.repeat_seeds) or len(set(sweep.repeat_seeds)) < len(sweep.repeat_seeds):
        raise StudyError(
            f"repeat_seeds {sweep.repeat_seeds}: use each once, and none of the trials' own "
            f"({', '.join(map(str, sorted(own)))}): the winner was chosen for its score there"
        )
    by_size(sweep)  # each is checked as it is made


def check_protocols(sweep: Sweep) -> None:
    """Refuse protocols that may not choose, and rules that have nothing to choose between."""
    check_objective(sweep.base, sweep.objective)
    if not sweep.objectives:
        if sweep.rule != "objective":
            raise StudyError(f"sweep rule {sweep.rule!r} compares protocols: name `objectives`")
        return
    if len(set(sweep.objectives)) < max(2, len(sweep.objectives)):
        raise StudyError(
            f"sweep objectives {sweep.objectives}: name two protocols or more, each once; one "
            "alone is the `objective`"
        )
    if sweep.objective not in sweep.objectives:
        raise StudyError(
            f"sweep objective {sweep.objective!r} is none of {', '.join(sweep.objectives)}: the "
            "winner of several protocols is named by one of them"
        )
    for name in sweep.objectives:
        check_objective(sweep.base, name)


def size_name(encoder: EncoderConfig) -> str:
    """What an encoder is called in addresses."""
    return encoder.name or f"{encoder.width}x{encoder.depth}"


def by_size(sweep: Sweep) -> tuple[Sweep, ...]:
    """The plain sweeps that a sweep is: one per size, or itself."""
    if not sweep.sizes:
        return (sweep,)
    return tuple(_at_size(sweep, encoder) for encoder in sweep.sizes)


def _at_size(sweep: Sweep, encoder: EncoderConfig) -> Sweep:
    trunk = sweep.base.pretrain
    if trunk is None:
        raise StudyError(f"the sweep's base {sweep.base.address} has no encoder to vary in size")
    before: Any = trunk.recipe

    def change(stage: Stage) -> Stage:
        if getattr(stage.recipe, "encoder", None) != before.encoder:
            return stage
        recipe: Any = stage.recipe
        return replace(stage, recipe=replace(recipe, encoder=encoder))

    name = size_name(encoder)
    try:
        base = map_cell(sweep.base, change)
    except ConfigError as error:
        raise StudyError(f"the sweep's base cannot have the size {name}: {error}") from error
    return replace(sweep, base=replace(base, address=f"{base.address}/{name}"), sizes=())


def encoder_of(cell: Cell) -> EncoderConfig | None:
    """The encoder that a cell trains, None of one without."""
    encoder = getattr(cell.pretrain.recipe, "encoder", None) if cell.pretrain else None
    return encoder if isinstance(encoder, EncoderConfig) else None


def check_sizes(sweep: Sweep, cells: Iterable[Cell]) -> None:
    """Refuse a cell that takes the winner of its size where that size is not searched."""
    for cell in cells if sweep.sizes else ():
        if cell.uses_winner and encoder_of(cell) not in sweep.sizes:
            encoder = encoder_of(cell)
            what = "no encoder" if encoder is None else f"the encoder {size_name(encoder)}"
            known = ", ".join(size_name(e) for e in sweep.sizes)
            raise StudyError(
                f"cell {cell.address} takes the winner of its size and has {what}; the sweep "
                f"searches {known}: add it to the sweep's sizes, alike in every setting"
            )


def axis_values(axis: Axis) -> tuple[float | int | str, ...]:
    """All values of an axis; raises `StudyError` for a range without a step."""
    if isinstance(axis, Choices):
        return axis.values
    if axis.step is None:
        raise StudyError(f"sweep axis {axis.key!r}: a grid needs a step, or choices")
    count = math.floor((axis.high - axis.low) / axis.step + 1e-9) + 1
    return tuple(round(axis.low + i * axis.step, 12) for i in range(count))


def combinations(sweep: Sweep) -> tuple[dict[str, Any], ...]:
    """Settings of every possible trial of a grid, in the order in which they are tried.

    The order is drawn by the sweep's seed: a grid that is not finished has tried all parts of it.
    """
    from studies.spec.overrides import override_cell

    found = []
    for values in itertools.product(*(axis_values(axis) for axis in sweep.space)):
        settings = dict(zip((axis.key for axis in sweep.space), values, strict=True))
        try:
            override_cell(sweep.base, settings)
        except (ConfigError, StudyError):  # impossible only together
            continue
        found.append(settings)
    random.Random(sweep.seed).shuffle(found)
    return tuple(found)


def _check_grid(sweep: Sweep) -> None:
    total = math.prod(len(axis_values(axis)) for axis in sweep.space)
    if total > MAX_COMBINATIONS:
        raise StudyError(f"a grid of {total} combinations: use another sampler, or fewer values")
    possible = len(combinations(sweep))
    if sweep.num_trials > possible:
        raise StudyError(
            f"a grid of {possible} possible combinations has no {sweep.num_trials} trials: "
            "lower num_trials or add values"
        )


def is_log(axis: Axis) -> bool:
    """Whether an axis is searched on a logarithmic scale."""
    return isinstance(axis, Range) and axis.log


def repeats(sweep: Sweep, trial: Cell) -> tuple[Cell, ...]:
    """The winning trial at other seeds: the same data and dev set, other weights and order."""
    return tuple(
        replace(
            map_cell(trial, lambda s, seed=seed: _reseeded(s, seed)),
            address=f"{trial.address}/s{seed}",
            role="repeat",
        )
        for seed in sweep.repeat_seeds
    )


def _reseeded(stage: Stage, seed: int) -> Stage:
    recipe: Any = stage.recipe
    return replace(stage, recipe=replace(recipe, seed=seed))


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
